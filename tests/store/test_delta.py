import json

import pytest
from deltalake import DeltaTable

from embedx.core.errors import BusyError, StoreError
from embedx.store import delta
from embedx.store.delta import DataFile, NewFile, Transition, open_snapshot, publish
from embedx.store.files import as_file
from embedx.store.schema import store_schema
from embedx.store.shards import write_shard
from tests.store.test_shards import COLUMNS, receipt, table

SCHEMA = store_schema(COLUMNS)


def add(root, name, ids):
    path = root / "data" / name
    write_shard(as_file(path), table(ids), receipt(len(ids)))
    return NewFile(DataFile(f"data/{name}", path.stat().st_size, len(ids)), min(ids), max(ids))


def test_publish_append_and_replace(tmp_path):
    empty = open_snapshot(tmp_path)
    assert (empty.version, empty.files) == (-1, ())
    assert publish(Transition("r1", empty, [add(tmp_path, "1.parquet", ["a", "b"])], [], SCHEMA)).version == 0
    first = open_snapshot(tmp_path)
    assert (first.rows, first.sequence) == (2, 1)
    new = [add(tmp_path, "2.parquet", ["b", "ü ä#%"])]
    assert publish(Transition("r2", first, new, [first.files[0]], SCHEMA, closes=("r0",))).version == 1
    second = open_snapshot(tmp_path)
    assert [file.path for file in second.files] == ["data/2.parquet"]
    assert DeltaTable(str(tmp_path)).to_pyarrow_table().column("item_id").to_pylist() == ["b", "ü ä#%"]
    assert open_snapshot(tmp_path, 0).files == first.files
    assert delta.run_markers(tmp_path, ["r0", "r1", "r2", "r9"]) == {
        "r0": delta.CLOSED,
        "r1": delta.PUBLISHED,
        "r2": delta.PUBLISHED,
    }
    assert [entry["run"] for entry in delta.history(tmp_path)] == ["r2", "r1"]


def test_two_runs_of_one_base_cannot_both_land(tmp_path):
    base = open_snapshot(tmp_path)
    publish(Transition("r1", base, [add(tmp_path, "1.parquet", ["a"])], [], SCHEMA))
    late = open_snapshot(tmp_path)
    publish(Transition("r2", late, [add(tmp_path, "2.parquet", ["b"])], [], SCHEMA))
    with pytest.raises(BusyError, match="another writer"):
        publish(Transition("r3", late, [add(tmp_path, "3.parquet", ["b"])], [], SCHEMA))
    assert open_snapshot(tmp_path).rows == 2


def test_statistics_and_configuration_are_in_the_log(tmp_path):
    publish(Transition("r1", open_snapshot(tmp_path), [add(tmp_path, "1.parquet", ["a", "c"])], [], SCHEMA))
    lines = (tmp_path / "_delta_log" / f"{0:020d}.json").read_text().splitlines()
    actions = [json.loads(line) for line in lines]
    stats = json.loads(next(action["add"]["stats"] for action in actions if "add" in action))
    assert stats["numRecords"] == 2 and stats["maxValues"] == {"item_id": "c"}
    meta = next(action["metaData"] for action in actions if "metaData" in action)
    assert "3650 days" in meta["configuration"]["delta.logRetentionDuration"]


def test_a_missing_version_is_named(tmp_path):
    publish(Transition("r1", open_snapshot(tmp_path), [add(tmp_path, "1.parquet", ["a"])], [], SCHEMA))
    with pytest.raises(StoreError, match="7"):
        open_snapshot(tmp_path, 7)
