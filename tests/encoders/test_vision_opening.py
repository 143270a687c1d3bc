"""Opening image encoders: cards without torch, fingerprints of what matters, and errors that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedx.core.errors import EmbedxError, EncoderError, UnknownEncoderError, UsageError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders import checkpoints
from embedx.encoders import timm as timm_family
from embedx.encoders import torchvision as torchvision_family


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def states() -> Iterator[dict[str, dict[str, Any]]]:
    """Seeded random state dicts of the smallest models there are."""
    import timm
    import torch
    from torchvision import models

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads that wait for each other are slow beside other work
    yield {
        "squeezenet1_1": models.squeezenet1_1(weights=None).state_dict(),
        "resnet18": models.resnet18(weights=None).state_dict(),
        "test_efficientnet": timm.create_model("test_efficientnet").state_dict(),
        "test_vit": timm.create_model("test_vit").state_dict(),
    }
    torch.set_num_threads(threads)


@pytest.fixture
def saved(states, tmp_path):
    """Save a model's weights, changed or wrapped on the way; returns the file."""
    import torch

    def save(name: str, change=lambda state: state, file: str = "weights.pth") -> str:
        torch.save(change(dict(states[name])), tmp_path / file)
        return str(tmp_path / file)

    return save


def tv(name: str, weights: str | None = None, **how: Any):
    return torchvision_family.open_encoder(EncoderSpec("torchvision", name, weights=weights, **how))


def tm(name: str, weights: str | None = None, **how: Any):
    return timm_family.open_encoder(EncoderSpec("timm", name, weights=weights, **how))


def test_card(saved):
    card = tv("resnet18", saved("resnet18")).card
    assert (card.ref, card.family, card.modality, card.dim) == ("torchvision:resnet18", "torchvision", "image", 512)
    assert card.input == {"size": [3, 224, 224]}
    assert card.parameters == 11_176_512
    assert card.flops == pytest.approx(3.63e9, rel=0.02)  # 1.81 G multiply-adds
    assert not card.normalized
    assert EncoderSpec.from_dict(json.loads(json.dumps(card.spec))).ref == card.ref
    assert card.identity["layer"] == "input of fc"


def test_a_remembered_card_needs_no_torch(saved, tmp_path):
    weights = {"torchvision": saved("squeezenet1_1"), "timm": saved("test_efficientnet", file="t.pth")}
    cards = [tv("squeezenet1_1", weights["torchvision"]).card, tm("test_efficientnet", weights["timm"]).card]
    script = """
import json, sys
from embedx.core.specs import EncoderSpec
from embedx.encoders import timm, torchvision
from PIL import Image
tv = torchvision.open_encoder(EncoderSpec("torchvision", "squeezenet1_1", weights=sys.argv[1]))
tm = timm.open_encoder(EncoderSpec("timm", "test_efficientnet", weights=sys.argv[2]))
assert len(tv.prepare([Image.new("RGB", (9, 9))]).items) == 1
print(json.dumps([tv.card.to_dict(), tm.card.to_dict()]))
assert not {"torch", "timm", "torchvision"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script, *weights.values()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [json.loads(json.dumps(card.to_dict())) for card in cards]


def test_fingerprint_is_of_what_changes_the_vectors(saved):
    name, head, bias, counter = "test_efficientnet", "classifier", "bn1.bias", "bn1.num_batches_tracked"
    original = tm(name, saved(name)).card.fingerprint

    def fingerprint(change=lambda state: state, file="other.pth", **how):
        return tm(name, saved(name, change, file), **how).card.fingerprint

    assert fingerprint(file="renamed.pt") == original
    assert fingerprint(lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}, "epoch": 3}) == original
    assert fingerprint(lambda s: {"model": s}) == original
    assert fingerprint(lambda s: s | {f"{head}.{n}": s[f"{head}.{n}"][:10] for n in ("weight", "bias")}) == original
    assert fingerprint(lambda s: {n: t for n, t in s.items() if not n.startswith(f"{head}.")}) == original
    assert fingerprint(lambda s: s | {counter: s[counter] + 5}) == original
    assert fingerprint(lambda s: s | {bias: s[bias] + 1e-6}) != original
    assert fingerprint(preprocess=PreprocessSpec(resize=255)) != original
    assert fingerprint(preprocess=PreprocessSpec(mean=(0.1, 0.5, 0.5))) != original
    assert fingerprint(model_args={"pad_type": "same"}) != original


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_classifier_may_be_of_any_size_or_absent(name, saved):
    head = {"resnet18": "fc.", "squeezenet1_1": "classifier."}[name]
    prints = {
        tv(name, saved(name, change)).card.fingerprint
        for change in (
            lambda state: state,
            lambda state: {n: t[:10] if n.startswith(head) else t for n, t in state.items()},
            lambda state: {n: t for n, t in state.items() if not n.startswith(head)},
        )
    }
    assert len(prints) == 1


def test_safetensors_are_known_by_content(states, saved, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "blob-without-suffix"
    save_file({name: tensor.clone() for name, tensor in states["test_efficientnet"].items()}, file)
    expected = tm("test_efficientnet", saved("test_efficientnet")).card.fingerprint
    assert tm("test_efficientnet", str(file)).card.fingerprint == expected


def test_changed_weights_at_the_same_path_are_noticed(saved):
    path = saved("test_efficientnet")
    encoder = tm("test_efficientnet", path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(EncoderError, match="changed after the encoder was opened"):
        encoder.build()
    saved("test_efficientnet", lambda s: s | {"conv_stem.weight": s["conv_stem.weight"] * 1.5})
    assert tm("test_efficientnet", path).card.fingerprint != encoder.card.fingerprint


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_weights_that_do_not_fit(family, saved):
    if family == "timm":
        with pytest.raises(EncoderError) as caught:
            tm("test_efficientnet", saved("resnet18"))
    else:
        with pytest.raises(EncoderError) as caught:
            tv(
                "resnet18",
                saved("resnet18", lambda s: s | {"conv1.weight": s["conv1.weight"][:32], "extra": s["fc.bias"]}),
            )
        assert "conv1.weight (32, 3, 7, 7) instead of (64, 3, 7, 7)" in str(caught.value)
        assert "1 unexpected (extra)" in str(caught.value)
    assert "do not fit" in str(caught.value) and "weights.pth" in str(caught.value)
    assert caught.value.remedy


def test_missing_tensors_are_named(saved):
    with pytest.raises(EncoderError, match=r"1 missing \(layer1.0.bn1.bias\)"):
        tv("resnet18", saved("resnet18", lambda s: {n: t for n, t in s.items() if n != "layer1.0.bn1.bias"}))


def test_pickles_with_code_are_refused(tmp_path, saved):
    import torch

    whole = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), whole)
    with pytest.raises(EncoderError, match=r"torch.nn.modules.linear.Linear, and loading it could run code"):
        tv("resnet18", str(whole))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 100, b"\x20\0\0\0\0\0\0\0{broken"])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=r"weights.pth"):
        tv("resnet18", str(path))


def test_a_checkpoint_without_tensors(saved):
    with pytest.raises(EncoderError, match="holds no state dict"):
        tv("resnet18", saved("resnet18", lambda state: {"epoch": 3}))


def test_missing_weights_file():
    with pytest.raises(EncoderError, match=r"nowhere.pth of torchvision:resnet18 does not exist"):
        tv("resnet18", "nowhere.pth")


@pytest.mark.parametrize(
    ("open_one", "name", "hint"),
    [(tv, "resnet19", "resnet18"), (tv, "ResNet50", "resnet50"), (tm, "mobilenetv2_10", "mobilenetv2_100")],
)
def test_unknown_names_are_answered_with_near_ones(open_one, name, hint):
    with pytest.raises(UnknownEncoderError, match=f"Did you mean .*{hint}") as caught:
        open_one(name)
    assert caught.value.exit_code == 2


def test_unknown_tag_of_timm():
    with pytest.raises(UnknownEncoderError, match=r"mobilenetv2_100.ra_in1k"):
        tm("mobilenetv2_100.foo")


def test_offline_names_the_file_to_fetch(monkeypatch):
    monkeypatch.setattr(checkpoints, "is_reachable", lambda url: False)
    for open_one, name, part in (
        (tv, "resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
        (tm, "mobilenetv2_100", "https://huggingface.co/timm/mobilenetv2_100.ra_in1k"),
    ):
        with pytest.raises(EncoderError, match="not on this machine") as caught:
            open_one(name)
        assert part in caught.value.remedy and "--weights" in caught.value.remedy


def test_published_weights_are_found_in_the_torch_cache(saved, tmp_path):
    home = tmp_path / "torch" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    Path(saved("squeezenet1_1")).rename(home / "squeezenet1_1-b8a52dc0.pth")
    card = tv("squeezenet1_1").card
    assert card.weights_from == str(home / "squeezenet1_1-b8a52dc0.pth")
    assert card.dim == 512


def test_published_weights_are_found_in_the_hugging_face_cache(saved, monkeypatch):
    import huggingface_hub

    path = saved("test_efficientnet")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: path)
    published = tm("test_efficientnet").card
    assert published.licence == "apache-2.0"
    assert published.fingerprint == tm("test_efficientnet", path).card.fingerprint
    assert published.fingerprint == tm("test_efficientnet.r160_in1k", path).card.fingerprint


def test_preprocessing_is_that_of_the_published_weights_a_file_is(saved, monkeypatch):
    from torchvision.models import MobileNet_V2_Weights as choices

    path = Path("any.pth")
    for weights in choices:
        monkeypatch.setattr(torchvision_family, "file_sha256", lambda _, w=weights: w.url[-12:-4] + "0" * 56)
        assert torchvision_family._published_as(path, choices) is weights
    monkeypatch.setattr(torchvision_family, "file_sha256", lambda _: "0" * 64)
    assert torchvision_family._published_as(path, choices) is None


@pytest.mark.parametrize(
    ("published", "current"),
    [
        ("features.denseblock2.denselayer12.norm.1.weight", "features.denseblock2.denselayer12.norm1.weight"),
        ("encoder.layers.encoder_layer_11.mlp.linear_1.bias", "encoder.layers.encoder_layer_11.mlp.0.bias"),
        ("encoder.layers.encoder_layer_11.mlp.linear_2.weight", "encoder.layers.encoder_layer_11.mlp.3.weight"),
    ],
)
def test_published_files_have_older_names(published, current):
    from torchvision import models

    name = "densenet121" if "dense" in published else "vit_b_32"
    assert current in models.get_model(name, weights=None).state_dict()
    assert torchvision_family._current_name(published) == current
    assert torchvision_family._current_name(current) == current
    assert torchvision_family._current_name("features.norm0.weight") == "features.norm0.weight"


def test_weights_without_a_format_version_load(saved, states):
    from safetensors.torch import save_file
    from torchvision import models

    states["mnasnet0_5"] = models.mnasnet0_5(weights=None).state_dict()
    path = saved("mnasnet0_5")
    save_file(dict(states["mnasnet0_5"]), f"{path}.safetensors")
    assert tv("mnasnet0_5", path).card.fingerprint == tv("mnasnet0_5", f"{path}.safetensors").card.fingerprint


@pytest.mark.parametrize(
    ("name", "expected"),
    [("inception_v3", {"transform_input": True}), ("vit_h_14", {"image_size": 518}), ("resnet18", {})],
)
def test_graph_arguments_of_published_weights(name, expected):
    from torchvision import models

    assert torchvision_family._graph_arguments(name, models.get_model_weights(name).DEFAULT) == expected


def test_model_args(saved):
    path = saved("test_vit")
    with pytest.raises(UsageError, match="nonsense"):
        tm("test_vit", path, model_args={"nonsense": 1})
    with pytest.raises(UsageError, match="nonsense"):
        tv("resnet18", saved("resnet18", file="r.pth"), model_args={"nonsense": 1})
    with pytest.raises(EncoderError, match=r"reads 1 channels|do not fit"):
        tm("test_vit", path, model_args={"in_chans": 1})
    assert tm("test_vit", path).card.input == {"size": [3, 160, 160]}
    import timm
    import torch

    torch.save(timm.create_model("test_vit", img_size=128).state_dict(), path)
    assert tm("test_vit", path, model_args={"img_size": 128}).card.input == {"size": [3, 128, 128]}


def test_a_model_of_another_image_size_says_so(saved):
    with pytest.raises(EncoderError, match="does not run on images of 96 x 96"):
        tm("test_vit", saved("test_vit"), model_args={"dynamic_img_size": False}, preprocess=PreprocessSpec(crop=96))


def test_listing_builds_nothing():
    for family, known in ((torchvision_family, "torchvision:vgg16"), (timm_family, "timm:vit_tiny_patch16_224")):
        listed = family.list_encoders()
        assert known in [entry["ref"] for entry in listed]
        assert all(entry.keys() == {"ref", "family", "modality", "dim"} for entry in listed)


def test_errors_are_embedx_errors_with_remedies(saved):
    for spec in (
        {"name": "resnet18", "weights": "nowhere"},
        {"name": "nothing"},
        {"name": "resnet18", "pooling": "avg"},
    ):
        with pytest.raises(EmbedxError) as caught:
            tv(**spec)
        assert caught.value.remedy
