"""open_clip's towers: equal to the library, fingerprints of what matters, spaces, and errors that say what to do."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from tests.clip_models import SMALL, save_model, save_weights
from tests.conformance.support import TEXTS

from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders import checkpoints
from embedx.encoders.registry import open_encoder
from embedx.encoders.vision import canary_images

HARD = (*TEXTS, "", "<end_of_text> a <<start_of_text> b", "&amp;lt; don't ſtop I'LL", "word " * 30_000)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))  # open_clip keeps weights in ~/.cache/clip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def model(folder) -> Any:
    """A small model of the library, saved in `folder`."""
    return save_model(folder)


def opened(name: Path | str, tower: str = "", **how: Any):
    prefix = "local-dir:" if isinstance(name, Path) else ""
    return open_encoder(EncoderSpec("open_clip", f"{prefix}{name}{tower}", **how))


def vectors(encoder: Any, items: list[Any]) -> np.ndarray:
    prepared = encoder.prepare(items)
    assert not prepared.failures
    inputs = {name: torch.from_numpy(array) for name, array in encoder.collate(prepared.items).items()}
    with torch.no_grad():
        return encoder.build()(**inputs).numpy()


def changed(config: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for part, values in changes.items():
        config[part].update(values)
    return config


# ---- equal to the library


def test_cards(model, folder):
    image, text = opened(folder).card, opened(folder, "#text").card
    assert (image.modality, image.dim, image.normalized, image.input) == ("image", 32, True, {"size": [3, 64, 64]})
    assert (text.modality, text.dim, text.normalized, text.input) == ("text", 32, True, {"max_tokens": 20})
    assert image.parameters == sum(p.numel() for p in model.visual.parameters())
    assert image.parameters + text.parameters == sum(p.numel() for p in model.parameters()) - 1, "but the logit scale"
    assert image.space == text.space and len(image.space) == 64
    assert EncoderSpec.from_dict(image.queries["text"]).ref == text.ref
    assert EncoderSpec.from_dict(text.queries["image"]).ref == image.ref


@pytest.mark.parametrize("batch", [1, len(HARD)])
def test_texts_need_no_padding_to_the_context(model, folder, batch):
    texts = list(HARD)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True).numpy()
    encoder = opened(folder, "#text")
    ours = np.concatenate([vectors(encoder, texts[start : start + batch]) for start in range(0, len(texts), batch)])
    assert np.abs(ours - expected).max() < 1e-6
    assert encoder.collate(encoder.prepare(["a cat"]).items)["input_ids"].shape == (1, 8)


@pytest.mark.parametrize(
    "text_config",
    [
        pytest.param({"no_causal_mask": True}, id="MobileCLIP"),
        pytest.param({"embed_cls": True}, id="CoCa"),
        pytest.param({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, id="SigLIP"),
        pytest.param({"pool_type": "eos", "eos_id": 49407, "proj_type": "none", "width": 32}, id="MetaCLIP 2"),
    ],
)
def test_towers_that_read_their_padding_get_it(folder, text_config):
    config = {**changed(SMALL, text_cfg=text_config), "custom_text": True}
    model = save_model(folder, config)
    texts = list(HARD)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True).numpy()
    encoder = opened(folder, "#text")
    alone = np.concatenate([vectors(encoder, [text]) for text in texts])
    assert np.abs(alone - expected).max() < 1e-6


def test_truncated_texts_are_counted(model, folder):
    encoder = opened(folder, "#text")
    fits, cut = " ".join(["cat"] * 18), " ".join(["cat"] * 19)
    assert encoder.prepare([fits, cut, "cat", cut]).truncated == 2
    (entry,) = encoder.prepare([cut]).items
    assert len(entry) == 20 and entry[-1] == 49407, "the end-of-text token stays"


def test_prompts_stand_before_every_text(model, folder):
    prompted, plain = opened(folder, "#text", prompt="a photo of a "), opened(folder, "#text")
    assert np.array_equal(vectors(prompted, ["cat"]), vectors(plain, ["a photo of a cat"]))
    assert prompted.card.fingerprint != plain.card.fingerprint and prompted.card.space == plain.card.space


def test_text_towers_of_transformers(folder):
    from tests.conformance.open_clip_cases import save_unigram_tokenizer
    from transformers import RobertaConfig

    folder.mkdir()
    save_unigram_tokenizer(folder)
    roberta = RobertaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1)
    roberta.save_pretrained(folder / "roberta")
    text = {"hf_model_name": str(folder / "roberta"), "hf_tokenizer_name": "any", "context_length": 20}
    model = save_model(folder, {**SMALL, "text_cfg": text})
    texts = [text for text in HARD if text]
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        expected = model.encode_text(ids, normalize=True).numpy()
    encoder = opened(folder, "#text")
    assert np.abs(vectors(encoder, texts) - expected).max() < 1e-6
    assert len(encoder.prepare(["a"]).items[0]) < 20, "its mask makes padding needless"
    card = encoder.card
    (folder / "roberta").rename(folder / "elsewhere")
    moved = save_model(folder, {**SMALL, "text_cfg": {**text, "hf_model_name": str(folder / "elsewhere")}})
    assert type(moved) is type(model)
    assert opened(folder, "#text").card.fingerprint == card.fingerprint, "where its configuration lies is no identity"


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, [64, 96]])
def test_preprocessing_is_the_librarys(folder, mode, interpolation, size):
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "resize_mode": mode, "interpolation": interpolation}
    save_model(folder, changed(SMALL, vision_cfg={"image_size": size}), preprocess=said)
    encoder = opened(folder)
    library = image_transform(size, is_train=False, **said)
    for image in (*canary_images(), Image.new("RGB", (3, 200), "red")):
        (ours,) = encoder.prepare([image]).items
        mean, std = (
            np.array(encoder.card.identity["preprocessing"][name]).reshape(3, 1, 1) for name in ("mean", "std")
        )
        assert np.abs((ours / 255 - mean) / std - library(image).numpy()).max() < 1e-5


def test_a_built_tower_is_frozen_and_alone(folder):
    config = changed(SMALL, vision_cfg={"patch_dropout": 0.5})
    model = save_model(folder, config)
    for tower, own in (("", model.visual), ("#text", model)):
        built = opened(folder, tower).build()
        assert not any(part.training for part in built.modules())
        tensors = sum(tensor.numel() for tensor in built.state_dict().values())
        others = {
            "": 0,
            "#text": model.logit_scale.numel() + sum(t.numel() for t in model.visual.state_dict().values()),
        }
        assert tensors == sum(t.numel() for t in own.state_dict().values()) - others[tower]
    items = canary_images()[:2]
    assert np.array_equal(vectors(opened(folder), items), vectors(opened(folder), items)), "no patch is dropped"


def test_quickgelu_is_the_architectures(folder, tmp_path):
    model = save_model(folder, {**SMALL, "quick_gelu": True})
    pixels = torch.stack([image_transform(64, is_train=False)(image) for image in canary_images()])
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True).numpy()
    assert np.abs(vectors(opened(folder), canary_images()) - expected).max() < 1e-6
    save_model(tmp_path / "gelu", SMALL)
    plain = opened(tmp_path / "gelu")
    assert plain.card.identity["tensors"] == opened(folder).card.identity["tensors"]
    assert np.abs(vectors(plain, canary_images()) - expected).max() > 1e-5
    assert plain.card.fingerprint != opened(folder).card.fingerprint and plain.card.space != opened(folder).card.space
    forced = opened(tmp_path / "gelu", model_args={"force_quick_gelu": True})
    assert forced.card.fingerprint == opened(folder).card.fingerprint


@pytest.mark.parametrize("vision", [{}, {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}])
def test_another_image_size_is_the_librarys(folder, vision):
    save_model(folder, {**changed(SMALL, vision_cfg=vision), "custom_text": True})
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=96).eval()
    pixels = torch.stack([image_transform(96, is_train=False)(image) for image in canary_images()])
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True).numpy()
    encoder = opened(folder, model_args={"force_image_size": 96})
    assert encoder.card.input == {"size": [3, 96, 96]}
    assert np.abs(vectors(encoder, canary_images()) - expected).max() < 1e-5


# ---- fingerprints and spaces


def test_fingerprint_is_of_what_changes_the_vectors(model, folder, tmp_path):
    original = opened(folder).card, opened(folder, "#text").card

    def cards(change=lambda state: state, wrap=lambda state: state):
        path = tmp_path / "other.pt"
        torch.save(wrap(change(dict(model.state_dict()))), path)
        return opened(folder, weights=str(path)).card, opened(folder, "#text", weights=str(path)).card

    def prints(found):
        return [(card.fingerprint, card.space) for card in found]

    same = prints(original)
    assert prints(cards()) == same
    assert prints(cards(wrap=lambda s: {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in s.items()}})) == same
    assert prints(cards(lambda s: s | {"logit_scale": s["logit_scale"] + 1})) == same
    assert prints(cards(open_clip.model.convert_to_custom_text_state_dict)) == same
    bias = "visual.ln_post.bias"
    image, text = cards(lambda s: s | {bias: s[bias] + 1e-6})
    assert image.fingerprint != original[0].fingerprint and text.fingerprint == original[1].fingerprint
    assert image.space == text.space != original[0].space
    image, text = cards(lambda s: s | {"text_projection": s["text_projection"] * 1.5})
    assert image.fingerprint == original[0].fingerprint and text.fingerprint != original[1].fingerprint
    assert image.space == text.space != original[0].space
    assert opened(folder, preprocess=PreprocessSpec(mean=(0.1, 0.5, 0.5))).card.fingerprint != same[0][0]


def test_what_training_only_and_defaults_say_is_no_identity(model, folder, tmp_path):
    config = changed(SMALL, vision_cfg={"patch_dropout": 0.5, "mlp_ratio": 4.0}, text_cfg={"hf_model_pretrained": True})
    save_model(tmp_path / "said", config)
    for tower in ("", "#text"):
        card, other = opened(folder, tower).card, opened(tmp_path / "said", tower).card
        assert (card.fingerprint, card.space) == (other.fingerprint, other.space)


def test_a_changed_configuration_beside_the_same_weights_is_noticed(model, folder):
    before = opened(folder).card
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "preprocess_cfg": {"resize_mode": "squash"}}))
    assert opened(folder).card.fingerprint != before.fingerprint


def test_remembered_cards_need_neither_torch_nor_open_clip(model, folder):
    cards = [opened(folder, tower).card for tower in ("", "#text")]
    script = """
import json, sys
from PIL import Image
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
found = [open_encoder(EncoderSpec("open_clip", f"local-dir:{sys.argv[1]}{tower}")) for tower in ("", "#text")]
assert len(found[0].prepare([Image.new("RGB", (9, 9))]).items) == 1
assert len(found[1].prepare(["a cat"]).items) == 1
print(json.dumps([encoder.card.fingerprint for encoder in found]))
assert not {"torch", "timm", "open_clip", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [card.fingerprint for card in cards]


# ---- what cannot be had


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("ViT-B-23/openai", UnknownEncoderError, r"no architecture 'ViT-B-23'. Did you mean .*ViT-B-32"),
        ("ViT-B-32/laion2b_s34b_b97k", UnknownEncoderError, r"Did you mean laion2b_s34b_b79k"),
        ("ViT-B-32", UsageError, r"names no weights. Write open_clip:ViT-B-32/TAG. Its weights are openai, "),
        ("ViT-S-32-alt#text", UsageError, r"open_clip publishes none: pass --weights"),
        ("ViT-B-32/openai", UsageError, r"QuickGELU.* Use open_clip:ViT-B-32-quickgelu/openai"),
        ("local-dir:/nowhere", EncoderError, r"/nowhere/open_clip_config.json is missing"),
    ],
)
def test_names_that_lead_nowhere(name, error, match):
    with pytest.raises(error, match=match):
        opened(name)


@pytest.mark.parametrize(
    ("tower", "how", "match"),
    [
        ("", {"layer": "blocks.1"}, "no layer or pooling"),
        ("#text", {"pooling": "mean"}, "no layer or pooling"),
        ("", {"truncate_dim": 8}, "not trained for truncated"),
        ("", {"prompt": "a photo of "}, "a prompt is for texts"),
        ("#text", {"preprocess": PreprocessSpec(crop=8)}, "preprocess is for images"),
        ("", {"model_args": {"precision": "fp16"}}, "precision is unknown"),
    ],
)
def test_options_that_a_tower_does_not_take(tower, how, match):
    with pytest.raises(UsageError, match=match) as caught:
        opened("ViT-B-32-quickgelu/openai", tower, **how)
    assert caught.value.remedy


def test_offline_names_the_file_to_fetch(monkeypatch):
    monkeypatch.setattr(checkpoints, "is_reachable", lambda url: False)
    with pytest.raises(EncoderError, match="not on this machine") as caught:
        opened("ViT-B-32/laion2b_s34b_b79k", "#text")
    address = "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/open_clip_model.safetensors"
    assert address in caught.value.remedy and "--weights" in caught.value.remedy
    with pytest.raises(EncoderError, match="not on this machine") as caught:
        opened("hf-hub:laion/some-fine-tune")
    assert "hf download laion/some-fine-tune" in caught.value.remedy and "local-dir:" in caught.value.remedy


def test_a_tokenizer_that_is_not_here_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_reachable", lambda url: False)
    weights = save_weights(model.state_dict(), tmp_path)
    with pytest.raises(EncoderError, match="the tokenizer of open_clip:ViT-B-16-SigLIP/webli#text is not on") as caught:
        opened("ViT-B-16-SigLIP/webli", "#text", weights=str(weights))
    assert "https://huggingface.co/timm/ViT-B-16-SigLIP" in caught.value.remedy


def test_published_weights_are_found_in_the_libraries_caches(folder, tmp_path, monkeypatch):
    import huggingface_hub

    model = save_model(folder, open_clip.get_model_config("ViT-S-32-alt"))
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED,
        "ViT-S-32-alt",
        {"mine": {"url": "https://example.org/s.pt", "hf_hub": "a/b/"}},
    )
    local = opened(folder).card
    cached = tmp_path / ".cache" / "clip" / "s.pt"
    cached.parent.mkdir(parents=True)
    torch.save(model.state_dict(), cached)
    found = opened("ViT-S-32-alt/mine").card
    assert found.weights_from == str(cached) and found.fingerprint == local.fingerprint

    path = str(folder / "open_clip_model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: path if "safe" in name else None)
    text = opened("ViT-S-32-alt/mine", "#text").card
    assert text.weights_from == path and text.space == found.space


def test_repositories_of_the_hub_are_found_in_its_cache(model, folder, tmp_path):
    repo = tmp_path / "hf" / "hub" / "models--somebody--tuned"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    folder_of_revision = repo / "snapshots" / "abc"
    folder_of_revision.parent.mkdir()
    shutil.copytree(folder, folder_of_revision)
    script = """
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
for tower in ("", "#text"):
    print(open_encoder(EncoderSpec("open_clip", f"hf-hub:somebody/tuned{tower}")).card.fingerprint)
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [opened(folder, tower).card.fingerprint for tower in ("", "#text")]


def test_configurations_that_open_clip_does_not_know(model, folder):
    path = folder / "open_clip_config.json"
    for change, match in (
        (
            {"vision_cfg": {**SMALL["vision_cfg"], "sparkle": 3}},
            "vision_cfg of the model says what open_clip .*sparkle",
        ),
        ({"vision_cfg": {"timm_model_name": "vit_nowhere"}}, "cannot build .*vit_nowhere"),
        ({"embed_dim": 64}, "weights do not fit"),
    ):
        path.write_text(json.dumps({"model_cfg": {**SMALL, **change}}))
        with pytest.raises(EncoderError, match=match):
            opened(folder)
    for content, match in (
        ("{", "is no configuration"),
        ('{"model_cfg": {}}', "says no embed_dim, vision_cfg, text_cfg"),
    ):
        path.write_text(content)
        with pytest.raises(EncoderError, match=match):
            opened(folder)


def test_weights_that_do_not_fit(model, folder, tmp_path):
    state = model.state_dict()
    for change, match in (
        ({n: t for n, t in state.items() if n != "visual.proj"}, r"1 missing \(proj\)"),
        ({**state, "visual.extra": state["visual.proj"]}, r"1 unexpected \(extra\)"),
        ({"conv1.weight": state["visual.conv1.weight"]}, r"no open_clip model: no tensor of visual.\* or of text.\*"),
    ):
        path = save_weights(change, tmp_path)
        with pytest.raises(EncoderError, match=match):
            opened(folder, weights=str(path))
    whole = tmp_path / "whole.pt"
    torch.save(model, whole)
    with pytest.raises(EncoderError, match="loading it could run code"):
        opened(folder, weights=str(whole))


def test_listing_builds_nothing():
    from embedx.encoders.open_clip import list_encoders

    listed = {entry["ref"]: entry for entry in list_encoders()}
    assert listed["open_clip:ViT-B-32/laion2b_s34b_b79k"]["dim"] == 512
    assert listed["open_clip:ViT-B-32/laion2b_s34b_b79k#text"]["modality"] == "text"
    assert len(listed) > 300
