import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from sklearn.tree import DecisionTreeClassifier

from embedx.core.errors import FingerprintMismatchError, StoreError, UsageError
from embedx.heads import folder
from embedx.heads.artefact import estimator_bytes, foreign_types
from embedx.heads.folder import new_head
from embedx.heads.head import open_head
from embedx.heads.verification import find_problems
from embedx.store.reader import open_store
from tests.heads.fakes import FINGERPRINT, encoder_card


def rewrite_card(path, **changes):
    card = json.loads((path / "card.json").read_text())
    card.update(changes)
    (path / "card.json").write_text(json.dumps(card))


def put_estimator(path, data):
    """Replace the estimator and make the card agree: what somebody could do who wants to be trusted."""
    import hashlib

    (path / "head.skops").write_bytes(data)
    card = json.loads((path / "card.json").read_text())
    card["files"]["head.skops"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "card.json").write_text(json.dumps(card))


def refused(path, match):
    with pytest.raises(StoreError, match=match) as caught:
        open_head(path)
    assert caught.value.remedy
    assert find_problems(path)


def test_the_folder_is_what_the_design_says(fitted, planted_store):
    path, report = fitted
    assert sorted(file.name for file in path.iterdir()) == ["card.json", "head.skops", "report.html"]
    card = json.loads((path / "card.json").read_text())
    assert card["format"] == 1 and card["kind"] == "logistic"
    assert card["classes"] == [f"class {code}" for code in range(6)] == report["classes"]
    assert card["encoder"]["fingerprint"] == FINGERPRINT and card["encoder"]["ref"] == "fake:planted"
    assert card["training"]["store"] == str(planted_store) and card["training"]["version"] == 0
    assert card["training"]["n"] == card["training"]["count"] == 240
    assert len(card["training"]["rows_sha256"]) == 64
    assert set(card["libraries"]) >= {"python", "numpy", "scikit-learn", "skops"}
    values = [point["C"] for point in card["C_curve"]]
    assert values == sorted(values) and np.log10(values[-1] / values[0]) >= 5 and card["C"] in values
    assert find_problems(path) == []
    page = (path / "report.html").read_text()
    assert "<svg" in page and "class 5" in page and "http" not in page and "<script" not in page


def test_files_have_the_users_mode(fitted):
    umask = os.umask(0)
    os.umask(umask)
    assert fitted[0].stat().st_mode & 0o777 == 0o777 & ~umask
    assert (fitted[0] / "card.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_labels_and_columns_are_in_one_order(fitted, planted_store):
    head = open_head(fitted[0])
    store = open_store(planted_store)
    _, vectors = store.vectors()
    truth = store.table(["label"])["label"].to_pylist()
    labels, best = head.predict(vectors)
    probabilities = head.predict_proba(vectors)
    assert probabilities.shape == (240, 6) and probabilities.dtype == best.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert [head.classes[column] for column in probabilities.argmax(axis=1)] == list(labels)
    np.testing.assert_array_equal(best, probabilities.max(axis=1))
    assert list(labels) == list(head.estimator.predict(vectors))
    assert np.mean(labels == np.array(truth, dtype=object)) > 0.95


def test_a_head_works_without_embedx(fitted, planted_store):
    """The format is skops' own: a pipeline over raw vectors that anybody can load."""
    _, vectors = open_store(planted_store).vectors()
    estimator = skops.io.load(fitted[0] / "head.skops")
    assert list(estimator.predict(vectors)) == list(open_head(fitted[0]).predict(vectors)[0])


@pytest.mark.parametrize("vectors", [np.zeros((2, 15)), np.zeros(16), np.zeros((2, 2, 16)), np.full((2, 16), np.nan)])
def test_vectors_that_do_not_fit(fitted, vectors):
    with pytest.raises(UsageError):
        open_head(fitted[0]).predict(vectors)


def test_no_vectors_give_no_predictions(fitted):
    labels, probabilities = open_head(fitted[0]).predict(np.empty((0, 16), dtype=np.float32))
    assert labels.shape == probabilities.shape == (0,)


def test_another_encoder_is_refused_naming_both(fitted):
    head = open_head(fitted[0])
    head.check_encoder(encoder_card(16), "store")
    with pytest.raises(FingerprintMismatchError) as caught:
        head.check_encoder(encoder_card(16, fingerprint="b" * 64, ref="other:model"), "stores/x")
    for part in ("fake:planted", "other:model", "a" * 12, "b" * 12, "stores/x", str(head.path)):
        assert part in str(caught.value)


def test_absent(tmp_path):
    refused(tmp_path / "nothing", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not an embedx head")


@pytest.mark.parametrize("name", ["card.json", "head.skops"])
def test_a_missing_file(head_path, name):
    (head_path / name).unlink()
    refused(head_path, "not an embedx head" if name == "card.json" else "cannot be read")


def test_a_tampered_estimator_is_not_loaded(head_path):
    data = bytearray((head_path / "head.skops").read_bytes())
    data[len(data) // 2] ^= 1
    (head_path / "head.skops").write_bytes(data)
    refused(head_path, "sha256 differs")


def test_a_changed_page_is_found_by_verification(head_path):
    with (head_path / "report.html").open("a") as file:
        file.write("x")
    open_head(head_path)
    assert "report.html" in find_problems(head_path)[0]


def test_weights_that_are_not_finite_are_found_by_verification(head_path):
    estimator = open_head(head_path).estimator
    estimator[-1].coef_[0, 0] = np.nan
    put_estimator(head_path, skops.io.dumps(estimator))
    assert find_problems(head_path) == ["head.skops has weights that are not finite"]


class Foreign:
    """A class of somebody else's."""


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (Foreign(), "Foreign"),
        # skops itself trusts both of these.
        (DecisionTreeClassifier().fit(np.eye(4), [0, 1, 0, 1]), "DecisionTreeClassifier"),
        (Pipeline([("f", FunctionTransformer(np.sqrt)), ("c", LogisticRegression())]), "FunctionTransformer"),
    ],
)
def test_foreign_types_are_refused_although_the_card_agrees(head_path, estimator, name):
    data = skops.io.dumps(estimator)
    assert any(name in foreign for foreign in foreign_types(data))
    put_estimator(head_path, data)
    refused(head_path, f"holds .*{name}|holds .*, which is no part")
    with pytest.raises(ValueError, match="may not be part"):
        estimator_bytes(estimator)


def test_pickle_is_refused(head_path):
    import pickle

    put_estimator(head_path, pickle.dumps({"a": 1}))
    refused(head_path, "no skops file")


def test_a_card_cannot_smuggle_types_in(head_path):
    """The list of what may be loaded is ours, whatever stands beside the file."""
    put_estimator(head_path, skops.io.dumps(Foreign()))
    rewrite_card(head_path, trusted=["tests.heads.test_head.Foreign"])
    refused(head_path, "no part of an embedx head")


def test_an_estimator_of_other_classes_is_refused(head_path):
    rows = np.random.default_rng(0).normal(size=(20, 16))
    other = Pipeline([("normalize", Normalizer()), ("classify", LogisticRegression())]).fit(rows, ["x", "y"] * 10)
    put_estimator(head_path, skops.io.dumps(other))
    refused(head_path, "disagree")


def test_an_unfitted_estimator_is_refused(head_path):
    put_estimator(head_path, skops.io.dumps(Pipeline([("classify", LogisticRegression())])))
    refused(head_path, "no fitted classifier")


def test_a_schema_that_is_broken(head_path):
    with zipfile.ZipFile(head_path / "x.zip", "w") as archive:
        archive.writestr("schema.json", "{")
    data = (head_path / "x.zip").read_bytes()
    (head_path / "x.zip").unlink()
    put_estimator(head_path, data)
    refused(head_path, "no skops file")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, "format 2"),
        ({"encoder": {"ref": "x"}}, "encoder.fingerprint"),
        ({"files": {}}, "files.head.skops"),
        ({"dim": 8}, "disagree"),
        ({"classes": ["x"]}, "disagree"),
    ],
)
def test_a_card_that_does_not_fit(head_path, changes, match):
    rewrite_card(head_path, **changes)
    refused(head_path, match)


def test_a_broken_card(head_path):
    (head_path / "card.json").write_text("{")
    refused(head_path, "cannot be read")


def write(target, text):
    with new_head(target) as files:
        for name in folder.FILES:
            (files.folder / name).write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_head_is_replaced_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    for text in ("old", "new", "newest"):
        write(tmp_path / "h", text)
        assert [(tmp_path / "h" / name).read_text() for name in folder.FILES] == [text] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_a_failed_write_leaves_the_old_head_and_nothing_else(tmp_path):
    write(tmp_path / "h", "old")
    with pytest.raises(RuntimeError), new_head(tmp_path / "h") as files:
        (files.folder / "head.skops").write_text("half")
        raise RuntimeError("boom")
    assert (tmp_path / "h" / "head.skops").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_a_reader_sees_one_head_or_the_other_and_never_a_mixture(tmp_path):
    """A process replaces the head as fast as it can while this one opens its folder."""
    write(tmp_path / "h", "0")
    code = (
        "import sys; from pathlib import Path; from embedx.heads.folder import FILES, new_head\n"
        "for turn in range(60):\n"
        "    with new_head(Path(sys.argv[1])) as files:\n"
        "        for name in FILES: (files.folder / name).write_text(str(turn))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "h")])
    seen = set()
    while process.poll() is None:
        handle = os.open(tmp_path / "h", os.O_RDONLY)
        try:
            contents = {read_at(handle, name) for name in folder.FILES}
        except FileNotFoundError:
            continue  # the older head is being removed; its name leads to the new one already
        finally:
            os.close(handle)
        assert len(contents) == 1, contents
        seen |= contents
    assert process.returncode == 0 and len(seen) > 3
    assert (tmp_path / "h" / "card.json").read_text() == "59" and [path.name for path in tmp_path.iterdir()] == ["h"]


def read_at(handle, name):
    with open(name, opener=lambda path, flags: os.open(path, flags, dir_fd=handle)) as file:
        return file.read()


def test_a_head_behind_a_link_is_replaced_where_it_lies(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "card.json").read_text() == "new"


@pytest.mark.parametrize("name", ["notes.txt", "_delta_log"])
def test_a_folder_of_something_else_is_refused_untouched(tmp_path, name):
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / name).write_text("mine")
    with pytest.raises(StoreError, match="is no embedx head"):
        write(tmp_path / "h", "new")
    assert [path.name for path in (tmp_path / "h").iterdir()] == [name]


def test_a_head_with_a_file_of_the_users_is_not_replaced(head_path):
    (head_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        write(head_path, "new")
    assert (head_path / "notes.txt").read_text() == "mine"


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "h"):
        with pytest.raises(StoreError):
            write(target, "new")
    assert (tmp_path / "file").is_file()


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "h").mkdir()
    write(tmp_path / "h", "new")
    write(tmp_path / "a" / "b" / "h", "new")
    shutil.rmtree(tmp_path / "a")
