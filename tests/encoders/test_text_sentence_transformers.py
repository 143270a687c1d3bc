"""sentence-transformers folders: prompts, lengths and identities; what cannot be run is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.sentence_transformers_cases import minilm_folder, say

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.encoders.sentence_transformers import Prompts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return minilm_folder(tmp_path)


@pytest.fixture
def prompted(model: Path) -> Path:
    say(model / "config_sentence_transformers.json", prompts={"query": "query: ", "document": "passage: "})
    return model


def spec_of(folder: Path, **options) -> EncoderSpec:
    return EncoderSpec("sentence_transformers", str(folder), **options)


def card_of(folder: Path, **options):
    return open_encoder(spec_of(folder, **options)).card


def test_another_prompt_is_another_encoder_of_the_same_space(prompted: Path):
    document, query, words = (card_of(prompted, prompt=prompt) for prompt in (None, "query", "as words: "))
    assert [card.identity["prompt"] for card in (document, query, words)] == ["passage: ", "query: ", "as words: "]
    assert len({card.fingerprint for card in (document, query, words)}) == 3
    assert document.space == query.space == words.space != ""


def test_a_prompt_named_and_spelt_out_is_the_same_encoder(prompted: Path):
    assert card_of(prompted, prompt="query").fingerprint == card_of(prompted, prompt="query: ").fingerprint


def test_a_card_says_how_queries_are_embedded(prompted: Path):
    document = card_of(prompted)
    query = open_encoder(EncoderSpec.from_dict(document.queries["text"])).card
    assert query.identity["prompt"] == "query: "
    assert query.space == document.space
    assert query.queries == {}


def test_a_model_without_prompts_is_its_own_query_encoder(model: Path):
    assert card_of(model).queries == {}
    assert card_of(model, prompt="mine: ").queries == {}


def test_prompts_are_chosen_as_the_library_chooses():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models

    static = StaticEmbedding(Tokenizer(models.WordLevel({"a": 0}, "a")), embedding_dim=2)
    for named in (
        {},
        {"query": "q: "},
        {"document": "d: "},
        {"query": "q: ", "passage": "p: "},
        {"query": "q: ", "document": "d: ", "other": "o: "},
    ):
        library = SentenceTransformer(modules=[static], prompts=dict(named), device="cpu")
        seen = []
        library.preprocess = lambda texts, prompt=None, seen=seen, **_: (
            seen.append(prompt or "") or static.preprocess(texts)
        )
        library.encode_document(["a"])
        library.encode_query(["a"])
        ours = Prompts(named)
        assert [ours.words(None), ours.query_words()] == seen, named


def test_a_default_prompt_is_for_models_that_know_no_roles():
    prompts = Prompts({"clustering": "cluster: "}, default="clustering")
    assert prompts.words(None) == prompts.query_words() == "cluster: "
    assert Prompts({"query": "q: ", "other": "o: "}, default="other").words(None) == ""


def test_an_unknown_prompt_name_is_refused(prompted: Path):
    with pytest.raises(UsageError, match="prompt 'querry' is not one of the model's: query, document"):
        card_of(prompted, prompt="querry")


def test_a_shortened_vector_is_another_space(model: Path):
    whole, short = card_of(model), card_of(model, truncate_dim=64)
    assert (whole.dim, whole.normalized) == (384, True)
    assert (short.dim, short.normalized) == (64, False)  # the library does not normalise again
    assert whole.space != short.space
    assert card_of(model, truncate_dim=384).fingerprint == whole.fingerprint
    for impossible in (0, 385):
        with pytest.raises(UsageError, match=f"truncate_dim {impossible}"):
            card_of(model, truncate_dim=impossible)


def test_names_and_remarks_change_no_fingerprint(model: Path, tmp_path: Path):
    before = card_of(model).fingerprint
    assert open_encoder(EncoderSpec("minilm")).card.fingerprint == before
    other = tmp_path / "elsewhere"
    shutil.move(model, other)
    say(other / "config.json", _name_or_path="x", transformers_version="99", hidden_dropout_prob=0.5)
    pooling = other / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 384, "pooling_mode": "mean", "include_prompt": True}))
    assert card_of(other).fingerprint == before


def test_whatever_changes_vectors_changes_the_fingerprint(model: Path):
    seen = {card_of(model).fingerprint}
    say(model / "sentence_bert_config.json", max_seq_length=100)
    seen.add(card_of(model).fingerprint)
    say(model / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    seen.add(card_of(model).fingerprint)
    say(model / "tokenizer_config.json", do_lower_case=False)
    seen.add(card_of(model).fingerprint)
    one_weight_changed(model / "model.safetensors")
    seen.add(card_of(model).fingerprint)
    assert len(seen) == 5


def one_weight_changed(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    tensors["encoder.layer.0.output.dense.bias"] = tensors["encoder.layer.0.output.dense.bias"] + np.float32(1e-3)
    save_file(tensors, path)


def test_a_known_folder_opens_and_tokenises_without_torch(model: Path):
    encoder = open_encoder(spec_of(model))
    code = (
        "import sys; from embedx.core.specs import EncoderSpec; from embedx.encoders.registry import open_encoder\n"
        f"encoder = open_encoder(EncoderSpec('sentence_transformers', {str(model)!r}))\n"
        "print(encoder.card.fingerprint, len(encoder.prepare(['some text']).items[0]))\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [encoder.card.fingerprint, "4"]


def test_weights_changed_after_opening_are_noticed(model: Path):
    encoder = open_encoder(spec_of(model))
    one_weight_changed(model / "model.safetensors")
    with pytest.raises(EncoderError, match="changed after the encoder was opened"):
        encoder.build()


def test_missing_weights_are_not_filled_with_random_numbers(model: Path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(EncoderError, match=r"lack 1 tensors \(encoder\.layer\.3"):
        open_encoder(spec_of(model)).build()


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def foreign_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_code.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def foreign_activation(folder: Path) -> None:
    foreign = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, foreign]))
    (folder / "3_Dense").mkdir()
    say(folder / "3_Dense" / "config.json", in_features=384, out_features=8, activation_function="mine.Swish")


REFUSED = {
    "only a pickle": (rename_weights, "only the pickle pytorch_model.bin"),
    "foreign module": (foreign_module, "uses the module custom_code.Transformer"),
    "foreign activation": (foreign_activation, "needs the function mine.Swish"),
    "no modules": (lambda folder: (folder / "modules.json").unlink(), "no modules.json"),
    "adapter": (lambda folder: say(folder / "adapter_config.json", r=8), "is an adapter"),
    "other kind": (
        lambda folder: say(folder / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "is a SparseEncoder",
    ),
    "other length for documents": (
        lambda folder: say(folder / "sentence_bert_config.json", document_length=50),
        "sets document_length = 50",
    ),
    "broken JSON": (lambda folder: (folder / "modules.json").write_text("[{"), "is not valid JSON"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:99]),
        "is not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(model: Path, why):
    spoil, message = REFUSED[why]
    spoil(model)
    with pytest.raises(EncoderError, match=message) as error:
        open_encoder(spec_of(model))
    assert error.value.remedy


@pytest.mark.parametrize("option", [{"layer": "-2"}, {"pooling": "max"}, {"model_args": {"x": 1}}])
def test_options_that_the_folder_decides_are_refused(model: Path, option):
    with pytest.raises(UsageError, match="its folder says them"):
        open_encoder(spec_of(model, **option))


def test_weights_name_a_folder_or_a_file_in_it(model: Path):
    named = EncoderSpec("sentence_transformers", "my-model")
    cards = [open_encoder(replace(named, weights=str(path))).card for path in (model, model / "model.safetensors")]
    assert cards[0].fingerprint == cards[1].fingerprint == card_of(model).fingerprint
    assert open_encoder(EncoderSpec.from_dict(cards[0].spec)).card.fingerprint == cards[0].fingerprint


def test_a_relative_path_is_kept_absolute(model: Path, monkeypatch):
    monkeypatch.chdir(model.parent)
    card = card_of(Path("model"))
    assert card.spec["name"] == str(model)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch) -> Path:
    """A cache of the hub's client that holds nothing, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_is_nowhere_is_one_clear_error(hub_cache: Path):
    with pytest.raises(EncoderError, match="sentence-transformers/no-such-model is not in the local") as error:
        open_encoder(EncoderSpec("sentence_transformers", "no-such-model"))
    assert "--weights FOLDER" in error.value.remedy
    with pytest.raises(EncoderError, match="is not a model folder"):
        open_encoder(EncoderSpec("sentence_transformers", "./nowhere"))


def test_a_model_in_the_hubs_own_cache_is_found(model: Path, hub_cache: Path):
    repository = hub_cache / "models--sentence-transformers--mine"
    snapshot = repository / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    card = open_encoder(EncoderSpec("sentence_transformers", "mine")).card
    assert card.fingerprint == card_of(model).fingerprint
    assert card.weights_from == str(snapshot)
    rename_weights(snapshot)
    with pytest.raises(EncoderError, match="only the pickle"):
        open_encoder(EncoderSpec("sentence_transformers", "mine"))
