"""Building: what is written, what is refused, and that nothing half-written is ever current."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedx.core.digests import file_sha256
from embedx.core.errors import BusyError, StoreError, UsageError
from embedx.indexes import build as building
from embedx.indexes import items, versions
from embedx.indexes.choice import choose_index
from embedx.indexes.search import open_index
from embedx.indexes.spec import IndexSpec, parse_memory_size
from embedx.indexes.verification import find_problems
from tests.indexes.fakes import FakeStore


def test_the_folder_is_what_the_design_says(store, build, index_path):
    built = build(store)
    assert (index_path / "CURRENT").read_text() == "0001\n"
    version = index_path / "versions" / "0001"
    assert sorted(path.name for path in version.iterdir()) == ["card.json", "ids.parquet", "index.faiss"]
    assert [path.name for path in (index_path / "versions").iterdir()] == ["0001"]
    table = pq.read_table(version / "ids.parquet")
    assert table.equals(store.table())
    card = json.loads((version / "card.json").read_text())
    assert card["format"] == 1
    assert (card["factory"], card["metric"], card["count"], card["dim"]) == ("Flat", "cosine", 60, 8)
    assert card["store"] == {"path": str(store.path.resolve()), "version": 3}
    assert card["encoder"] == {
        "ref": "fake:text",
        "fingerprint": "f" * 64,
        "modality": "text",
        "precision": "fp32",
        "spec": {"family": "fake", "name": "text"},
        "space": "",
        "queries": {},
    }
    assert card["recall"]["value"] == 1.0 and card["recall"]["n_queries"] == 60
    assert card["speed"]["qps"] > 0 and set(card["speed"]["latency_ms"]) == {"median", "p95"}
    assert {"faiss-cpu", "numpy", "pyarrow", "python"} <= set(card["libraries"])
    for name, promised in card["files"].items():
        assert promised == {"bytes": (version / name).stat().st_size, "sha256": file_sha256(version / name)}
    assert card["bytes"] == sum(promised["bytes"] for promised in card["files"].values())
    assert built.files.number == 1 and find_problems(index_path) == []


def test_a_rebuild_is_the_next_version_and_an_open_reader_keeps_its_own(store, build, index_path):
    build(store)
    reader = open_index(index_path)
    bigger = FakeStore(np.concatenate([store.matrix, store.matrix + 1]))
    build(bigger, metric="l2")
    assert (index_path / "CURRENT").read_text() == "0002\n"
    assert (open_index(index_path).count, open_index(index_path).card.metric) == (120, "l2")
    assert reader.count == 60 and len(reader.search(store.matrix[:1], 5).ids[0]) == 5


@pytest.mark.parametrize("stage", ["measure_recall", "write_json"])
def test_a_failed_build_leaves_the_old_version_and_nothing_else(store, build, index_path, monkeypatch, stage):
    build(store)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, stage, fail)
    with pytest.raises(StoreError, match="No space left"):
        build(store)
    assert [path.name for path in (index_path / "versions").iterdir()] == ["0001"]
    assert open_index(index_path).version == 1


def test_a_first_build_that_fails_leaves_no_folder(build, index_path):
    with pytest.raises(StoreError, match="length 0"):
        build(FakeStore(np.zeros((3, 4))))
    assert not index_path.exists()
    index_path.mkdir()
    with pytest.raises(StoreError, match="length 0"):
        build(FakeStore(np.zeros((3, 4))))
    assert list(index_path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from tests.indexes.fakes import FakeStore
from embedx.indexes import audit, build, versions

audit.SPEED_S = 0.02
target, name = {"built": (build, "measure_recall"), "named": (versions, "write_atomic")}[sys.argv[3]]
import os
setattr(target, name, lambda *a, **k: os.kill(os.getpid(), 9))
from embedx.indexes.spec import IndexSpec
build.build_index(FakeStore(np.eye(6)), IndexSpec(Path("s"), Path(sys.argv[1])))
"""


@pytest.mark.parametrize("stage", ["built", "named"])
@pytest.mark.parametrize("first", [True, False])
def test_kill_9_leaves_the_current_version_and_the_next_build_cleans_up(store, build, index_path, stage, first):
    if not first:
        build(store)
    arguments = [sys.executable, "-c", KILLED, str(index_path), str(Path(__file__).parents[2]), stage]
    assert subprocess.run(arguments, timeout=60).returncode == -9
    if first:
        with pytest.raises(StoreError, match="not an embedx index"):
            open_index(index_path)
    else:
        assert open_index(index_path).version == 1 and open_index(index_path).count == 60
    build(store)
    assert open_index(index_path).count == 60
    assert not list((index_path / "versions").glob(".building-*"))
    # A version that was named but never became current keeps its number.
    numbers = sorted(path.name for path in (index_path / "versions").iterdir())
    assert open_index(index_path).version == int(numbers[-1])


def test_two_builds_at_once_are_refused(store, build, index_path):
    with versions.new_version(index_path), pytest.raises(BusyError, match="being built"):
        build(store)


def test_a_folder_of_something_else_is_refused_untouched(store, build, index_path):
    index_path.mkdir()
    (index_path / "thesis.doc").write_text("x")
    with pytest.raises(StoreError, match=r"not empty and is no embedx index.*thesis\.doc"):
        build(store)
    assert [path.name for path in index_path.iterdir()] == ["thesis.doc"]


def test_a_file_as_folder_is_refused(store, build, index_path):
    index_path.write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        build(store)


def test_an_empty_store_is_refused(build, index_path):
    with pytest.raises(StoreError, match="holds no vectors"):
        build(FakeStore(np.empty((0, 4))))
    assert not index_path.exists()


@pytest.mark.parametrize("promised", [59, 61])
def test_a_store_that_holds_another_number_of_rows_is_refused(store, build, promised):
    store.promised = promised
    with pytest.raises(StoreError, match="promises"):
        build(store)


@pytest.mark.parametrize(
    ("value", "metric", "why"), [(np.nan, "l2", "finite"), (np.inf, "ip", "finite"), (0.0, "cosine", "length 0")]
)
def test_a_vector_that_cannot_be_ranked_is_named(store, build, value, metric, why):
    store.matrix[33] = value
    with pytest.raises(StoreError, match=f"item-0033.*{why}"):
        build(store, metric=metric)


def test_zero_vectors_are_fine_where_they_mean_something(store, build, index_path):
    store.matrix[33] = 0
    build(store, metric="l2")
    assert open_index(index_path).search(np.zeros((1, 8)), 1).ids == [["item-0033"]]


def test_one_item_can_be_indexed(build, index_path):
    card = build(FakeStore(np.ones((1, 4)))).card
    assert card.recall["k"] == 1 and card.recall["value"] == 1.0
    assert open_index(index_path).search(np.ones((1, 4)), 10).ids == [["item-0000"]]


def test_recall_below_the_target_is_not_published(store, build, index_path, monkeypatch):
    monkeypatch.setattr(building, "measure_recall", lambda *a: {"k": 10, "value": 0.5, "n_queries": 60, "method": ""})
    with pytest.raises(StoreError, match=r"recall@10 0\.5000"):
        build(store)
    assert not index_path.exists()


def test_items_in_many_row_groups_are_found_by_row_and_by_id(build, index_path, monkeypatch):
    monkeypatch.setattr(items, "ROW_GROUP_ROWS", 10)
    build(FakeStore(np.random.default_rng(0).standard_normal((95, 3)), {"n": list(range(95))}))
    index = open_index(index_path)
    assert pq.ParquetFile(index.files.ids).num_row_groups == 10
    rows = np.array([94, 3, 3, 50, 0, 51])
    assert index.table(rows).column("n").to_pylist() == rows.tolist()
    for row in (0, 9, 10, 94):
        assert index.neighbours(f"item-{row:04d}", 94).rows[0].tolist().count(row) == 0


def test_the_choice_is_flat_within_the_budget():
    choice = choose_index(1_000, 384, 4 * 1_000 * 384)
    assert (choice.factory, choice.memory_bytes) == ("Flat", 1_536_000)
    with pytest.raises(UsageError, match=r"needs 0.00 GiB"):
        choose_index(1_000, 384, 4 * 1_000 * 384 - 1)
    with pytest.raises(UsageError, match="IVF16,Flat"):
        choose_index(1_000, 384, 2**40, "IVF16,Flat")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("500MB", 500_000_000), ("2g", 2 * 10**9), ("1.5 KiB", 1536), ("4096", 4096), ("7b", 7)],
)
def test_memory_sizes(text, size):
    assert parse_memory_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "4Gi4", "-1", "0", "4XB", "iB", "1i"])
def test_broken_memory_sizes(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_memory_size(text)


@pytest.mark.parametrize("wrong", [{"metric": "hamming"}, {"recall": 0.0}, {"recall": 1.5}])
def test_broken_specs(index_path, wrong):
    with pytest.raises(UsageError):
        IndexSpec(store=index_path, out=index_path, **wrong)
