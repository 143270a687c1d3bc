"""transformers folders: layers, poolings, lengths and image processors; what cannot be run is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.sentence_transformers_cases import say
from tests.conformance.support import as_users_open, image_files
from tests.conformance.transformers_cases import as_gpt2, word_pieces

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders.registry import open_encoder
from embedx.encoders.transformers import parse_layers

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def save(folder: Path, config: str, model: str = "", beside: Callable[[], Any] | None = None, **settings: Any) -> Path:
    """Save a tiny model with random weights, its tokenizer or image processor beside it."""
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings)
    built = getattr(transformers, model)(made) if model else transformers.AutoModel.from_config(made)
    built.save_pretrained(folder)
    if beside is not None:
        beside().save_pretrained(folder)
    return folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save(tmp_path / "bert", "BertConfig", beside=word_pieces, vocab_size=30522, **TINY)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024, "vocab_size": 600}
    return save(tmp_path / "gpt2", "GPT2Config", beside=as_gpt2, **sizes)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return save(tmp_path / "vit", "ViTConfig", beside=processor("ViTImageProcessor"), **TINY, patch_size=32)


def processor(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**settings)

    return make


def card_of(folder: Path, **options: Any):
    return open_encoder(EncoderSpec("transformers", str(folder), **options)).card


@pytest.mark.parametrize(
    ("text", "layers"), [(None, ()), ("-1", (-1,)), ("-3", (-3,)), ("-4,-3, -2,-1", (-1, -2, -3, -4))]
)
def test_layers_are_counted_from_the_end(text, layers):
    assert parse_layers(text, "ref") == layers


@pytest.mark.parametrize("text", ["0", "1", "encoder.layer.3", "-1,", "-0", "", "-1:-4"])
def test_other_layers_are_refused(text):
    with pytest.raises(UsageError, match="is no hidden state"):
        parse_layers(text, "ref")


def test_encoders_take_the_mean_and_decoders_the_last_token(bert: Path, gpt2: Path):
    assert card_of(bert).identity["pooling"] == "mean"
    assert card_of(gpt2).identity["pooling"] == "last"


def test_each_choice_is_another_encoder_and_the_default_spelt_out_is_not(bert: Path):
    plain = card_of(bert).fingerprint
    assert card_of(bert, layer="-1", pooling="mean").fingerprint == plain
    options = [
        {"layer": "-2"},
        {"layer": "-1,-2"},
        {"pooling": "cls"},
        {"prompt": "x "},
        {"model_args": {"max_tokens": 9}},
    ]
    assert len({plain, *(card_of(bert, **option).fingerprint for option in options)}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "-3"}, "has 2 layers"),
        ({"pooling": "gem"}, "--pooling 'gem'"),
        ({"model_args": {"dtype": "x"}}, "takes no model_args dtype"),
        ({"model_args": {"max_tokens": 513}}, "max_tokens = 513"),
        ({"truncate_dim": 8}, "takes no truncate_dim"),
        ({"preprocess": PreprocessSpec(crop=8)}, "preprocess has no effect"),
    ],
)
def test_what_a_text_model_does_not_have_is_refused(bert: Path, options, message):
    with pytest.raises(UsageError, match=message):
        card_of(bert, **options)


def test_a_decoder_reads_as_far_as_it_is_told(gpt2: Path):
    assert card_of(gpt2).input["max_tokens"] == 512
    assert card_of(gpt2, model_args={"max_tokens": 1000}).input["max_tokens"] == 1000
    with pytest.raises(UsageError, match="from 1 to 1024"):
        card_of(gpt2, model_args={"max_tokens": 1025})


def test_positions_after_the_padding_token_are_not_read(tmp_path: Path):
    sizes = {**TINY, "vocab_size": 30522, "max_position_embeddings": 66, "pad_token_id": 1}
    assert card_of(save(tmp_path, "RobertaConfig", beside=word_pieces, **sizes)).input["max_tokens"] == 64


def test_a_prompt_leaves_the_space(bert: Path):
    plain, prompted = card_of(bert), card_of(bert, prompt="query: ")
    assert plain.space == prompted.space
    assert plain.fingerprint != prompted.fingerprint


def test_heads_and_decoders_are_not_part_of_the_encoder(tmp_path: Path):
    from tests.conformance.transformers_cases import as_t5

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 600}
    folder = save(tmp_path / "t5", "T5Config", "T5ForConditionalGeneration", as_t5, **sizes)
    before = card_of(folder)
    change_weight(folder / "model.safetensors", "decoder.block.0.layer.0.SelfAttention.k.weight")
    assert card_of(folder).fingerprint == before.fingerprint
    change_weight(folder / "model.safetensors", "encoder.block.0.layer.0.SelfAttention.k.weight")
    assert card_of(folder).fingerprint != before.fingerprint


def change_weight(path: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, path, {"format": "pt"})


def foreign(folder: Path) -> None:
    say(folder / "config.json", model_type="mine", auto_map={"AutoModel": "modeling_mine.MyModel"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign, "needs Python code of its own"),
        (lambda folder: say(folder / "config.json", model_type="mine"), "does not know the model type 'mine'"),
        (lambda folder: (folder / "config.json").unlink(), "is missing"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only the pickle"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(bert: Path, spoil, message):
    spoil(bert)
    with pytest.raises(EncoderError, match=message) as error:
        card_of(bert)
    assert error.value.remedy


def test_missing_weights_are_not_filled_with_random_numbers(bert: Path):
    say(bert / "config.json", num_hidden_layers=3)
    with pytest.raises(EncoderError, match=r"lack 16 tensors \(encoder\.layer\.2"):
        open_encoder(EncoderSpec("transformers", str(bert))).build()


def test_an_encoder_decoder_without_a_lone_encoder_is_refused(tmp_path: Path):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 30522}
    folder = save(tmp_path, "BartConfig", beside=word_pieces, **sizes)
    with pytest.raises(EncoderError, match="is an encoder-decoder"):
        open_encoder(EncoderSpec("transformers", str(folder))).build()


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_known_folder_opens_without_torch(family: str, request):
    folder = request.getfixturevalue(family)
    fingerprint = card_of(folder).fingerprint
    code = (
        "import sys; from embedx.core.specs import EncoderSpec; from embedx.encoders.registry import open_encoder\n"
        f"print(open_encoder(EncoderSpec('transformers', {str(folder)!r})).card.fingerprint)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint


PROCESSORS = {
    "ViT": processor("ViTImageProcessor"),
    "DeiT, odd margin": processor(
        "DeiTImageProcessor", size={"height": 99, "width": 131}, crop_size={"height": 64, "width": 64}
    ),
    "BEiT": processor("BeitImageProcessor"),
    "BiT": processor("BitImageProcessor", size={"shortest_edge": 97}, crop_size={"height": 64, "width": 60}),
    "BiT, crop larger": processor(
        "BitImageProcessor", size={"shortest_edge": 64}, crop_size={"height": 66, "width": 66}
    ),
    "CLIP": processor("CLIPImageProcessor"),
    "SigLIP": processor("SiglipImageProcessor"),
    "ConvNext": processor("ConvNextImageProcessor", size={"shortest_edge": 224}),
    "ConvNext 384": processor("ConvNextImageProcessor"),
    "not normalised": processor("ViTImageProcessor", do_normalize=False),
    "Lanczos": processor("ViTImageProcessor", resample=1),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_that_of_the_pillow_backend(tmp_path: Path, name):
    import transformers

    from embedx.encoders.transformers_images import load_transform

    PROCESSORS[name]().save_pretrained(tmp_path)
    transform = load_transform(tmp_path)
    library = transformers.AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil")
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (transform.mean, transform.std))
    for data in image_files():
        image = as_users_open(data)
        wanted = library(image, return_tensors="np")["pixel_values"][0]
        ours = (transform.apply(image).astype(np.float32) / 255 - mean) / std
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"do_rescale": False}, "does not scale to 0..1"),
        ({"rescale_factor": 1 / 127.5}, "does not scale to 0..1"),
        ({"do_pad": True}, "pads"),
        ({"size": {"shortest_edge": 64}}, "keeps the aspect ratio and does not crop"),
        ({"size": {"shortest_edge": 64, "longest_edge": 99}}, "its size is"),
        ({"image_processor_type": "DPTImageProcessor"}, "DPTImageProcessor is not one of"),
    ],
)
def test_a_processor_that_does_something_else_is_refused(vit: Path, settings, message):
    say(vit / "preprocessor_config.json", **settings)
    with pytest.raises(EncoderError, match=f"cannot be translated: .*{message}"):
        card_of(vit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a photo of "}, "prompt has no effect"),
        ({"model_args": {"a": 1}}, "model_args has no effect"),
        ({"layer": "-3"}, "has 2 layers"),
        ({"layer": "embeddings"}, "is no hidden state"),
        ({"pooling": "last"}, "--pooling 'last' is unknown"),
    ],
)
def test_what_an_image_model_does_not_have_is_refused(vit: Path, options, message):
    with pytest.raises(UsageError, match=message):
        card_of(vit, **options)


def test_images_of_another_size_are_refused_at_once(vit: Path):
    say(vit / "preprocessor_config.json", size={"height": 96, "width": 96})
    with pytest.raises(EncoderError, match="does not run on 96 x 96 pixels"):
        card_of(vit)


def test_a_model_without_a_class_token_has_none(tmp_path: Path):
    folder = save(tmp_path, "SiglipVisionConfig", beside=processor("SiglipImageProcessor"), **TINY, patch_size=32)
    with pytest.raises(UsageError, match="has no class token"):
        card_of(folder, pooling="cls")


def test_random_weights_of_an_unused_pooler_are_not_part_of_the_fingerprint(vit: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    with_pooler = card_of(vit).fingerprint
    tensors = load_file(vit / "model.safetensors")
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    assert len(bare) < len(tensors)
    save_file(bare, vit / "model.safetensors", {"format": "pt"})
    assert card_of(vit).fingerprint == with_pooler


def test_masked_autoencoders_are_refused(tmp_path: Path):
    sizes = {**TINY, "patch_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    sizes |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    folder = save(tmp_path, "ViTMAEConfig", beside=processor("ViTImageProcessor"), **sizes)
    with pytest.raises(EncoderError, match="hides patches at random"):
        card_of(folder)
