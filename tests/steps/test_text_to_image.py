"""Texts that find images and images that find texts: the towers of one open_clip model, on the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from embedx.core.errors import FingerprintMismatchError, UsageError
from embedx.encoders.vision import canary_images
from embedx.steps.search import SearchSpec, search_index
from tests.clip_models import save_model
from tests.conftest import Command, write_jsonl

TEXTS = ["a red cat", "two dogs on a beach", "the quick brown fox", "Paris in the rain", "a diagram"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Any:
    """A model, a store and an index of a dozen images, a store and an index of texts; and open_clip's own vectors."""
    import open_clip
    import torch
    from open_clip.transform import image_transform

    root = tmp_path_factory.mktemp("clip")
    model = save_model(root / "model")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root / 'model'}")
    (root / "photos").mkdir()
    images = {}
    for number, image in enumerate([*canary_images(), *(ImageChops.invert(image) for image in canary_images())]):
        images[f"{number:02d}.png"] = image
        image.save(root / "photos" / f"{number:02d}.png")
    write_jsonl(root / "texts.jsonl", [{"id": f"t{number}", "text": text} for number, text in enumerate(TEXTS)])
    run = Command(root)
    for source, tower, name in (("photos", "", "images"), ("texts.jsonl", "#text", "texts")):
        exact = ("--precision", "fp32", "--store-precision", "full", "--columns", "none")
        run("extract", source, "--encoder", f"open_clip:local-dir:model{tower}", "--out", f"{name}-store", *exact)
        run("index", f"{name}-store", "--out", name)
    with torch.no_grad():
        pixels = torch.stack([image_transform(64, is_train=False)(image) for image in images.values()])
        image_vectors = model.encode_image(pixels, normalize=True).numpy()
        text_vectors = model.encode_text(tokenize(TEXTS), normalize=True).numpy()
    return SimpleNamespace(root=root, run=run, names=list(images), images=image_vectors, texts=text_vectors)


def assert_ranked(hits: list[dict], ids: list[str], scores: np.ndarray) -> None:
    """All items are there with the scores that the library gives them, the highest first."""
    expected = dict(zip(ids, scores.tolist(), strict=True))
    found = {hit["id"]: hit["score"] for hit in hits}
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert np.ptp(scores) > 0.01, "the items differ"


def test_a_text_finds_images_as_open_clip_ranks_them(world):
    report = world.run.json("search", "images", "--text", TEXTS[1], "-k", 12)
    assert len(report["hits"]) == 12
    assert_ranked(report["hits"], world.names, world.images @ world.texts[1])


def test_a_file_of_texts_finds_images(world):
    report = world.run.json("search", "images", "--queries", "texts.jsonl", "-k", 12)
    for query, vector in zip(report["queries"], world.texts, strict=True):
        assert_ranked(query["hits"], world.names, world.images @ vector)


def test_an_image_finds_images_and_texts(world):
    picture = world.root / "photos" / world.names[3]
    report = world.run.json("search", "images", "--image", picture, "-k", 12)
    assert_ranked(report["hits"], world.names, world.images @ world.images[3])
    report = world.run.json("search", "texts", "--image", picture, "-k", 5)
    assert_ranked(report["hits"], [f"t{number}" for number in range(5)], world.texts @ world.images[3])


def test_a_column_of_image_paths_finds_texts(world):
    rows = [{"image": f"photos/{name}", "id": name} for name in world.names[:3]]
    write_jsonl(world.root / "pictures.jsonl", [*rows, {"image": "photos/absent.png", "id": "gone"}])
    report = world.run.json("search", "texts", "--queries", "pictures.jsonl", "-k", 5)
    assert [query["id"] for query in report["queries"]] == world.names[:3]
    for query, vector in zip(report["queries"], world.images[:3]):
        assert_ranked(query["hits"], [f"t{number}" for number in range(5)], world.texts @ vector)
    assert [failure["query"] for failure in report["failures"]] == ["photos/absent.png"]


def test_the_wrong_tower_for_a_corpus_names_the_right_one(world):
    for source, tower, kind, other in (("texts.jsonl", "", "images", "#text"), ("photos", "#text", "texts", "")):
        error = world.run.json(
            "extract", source, "--encoder", f"open_clip:local-dir:model{tower}", "--out", "never", status=2
        )["error"]
        assert f"embeds {kind}" in error["message"]
        assert error["remedy"].endswith(f"--encoder open_clip:local-dir:{world.root / 'model'}{other}")


@pytest.fixture
def copied(world, tmp_path) -> Path:
    """The index of images, to be changed."""
    import shutil

    shutil.copytree(world.root / "images", tmp_path / "images")
    return tmp_path / "images"


def rewrite_card(index: Path, change) -> None:
    (path,) = index.glob("versions/*/card.json")
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def test_the_text_tower_of_another_model_is_refused(world, copied, tmp_path):
    save_model(tmp_path / "other", seed=1)
    stranger = f"local-dir:{tmp_path / 'other'}#text"
    rewrite_card(copied, lambda card: card["encoder"]["queries"]["text"].update(name=stranger))
    with pytest.raises(
        FingerprintMismatchError, match="but the vectors of open_clip:local-dir:.* to the model"
    ) as caught:
        search_index(SearchSpec(copied, text="a cat"))
    assert stranger in caught.value.message and caught.value.remedy


def test_changed_weights_are_refused_on_the_command_line(world, copied, tmp_path):
    save_model(tmp_path / "model", seed=1)
    moved = f"local-dir:{tmp_path / 'model'}"
    rewrite_card(copied, lambda card: card["encoder"]["queries"]["text"].update(name=f"{moved}#text"))
    error = world.run.json("search", copied, "--text", "a cat", status=1)["error"]
    assert "to the model" in error["message"] and "index again" in error["remedy"]


def test_indexes_of_older_versions_say_what_they_take(copied):
    def strip(card: dict) -> None:
        del card["encoder"]["queries"], card["encoder"]["space"]

    rewrite_card(copied, strip)
    with pytest.raises(UsageError, match="a query by text needs an encoder of texts"):
        search_index(SearchSpec(copied, text="a cat"))
    Image.new("RGB", (70, 80), "red").save(copied.parent / "red.png")
    assert len(search_index(SearchSpec(copied, image=copied.parent / "red.png", k=3))["hits"]) == 3
