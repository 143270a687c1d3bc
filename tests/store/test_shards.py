import hashlib
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.errors import StoreError
from embedx.store.files import as_file
from embedx.store.schema import CarriedColumn, store_schema, vector_array
from embedx.store.shards import Receipt, read_receipt, write_shard

COLUMNS = (CarriedColumn("label"),)


def table(ids, dim=4, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(ids), dim)).astype(np.float32)
    schema = store_schema(COLUMNS)
    arrays = [
        pa.array(ids, pa.string()),
        vector_array(vectors),
        pa.array(["s"] * len(ids)),
        pa.array(["d"] * len(ids)),
        pa.nulls(len(ids), pa.string()),
        pa.array(["l"] * len(ids)),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def receipt(rows, **more):
    return Receipt(run="000001-a", shard=0, fingerprint="f", precision="fp32", rows=rows, failed=0, **more)


def test_receipt_travels_in_the_footer(tmp_path):
    path = tmp_path / "data" / "00000.parquet"
    written = write_shard(
        as_file(path), table(["a", "b"]), receipt(2, first_id="a", last_id="b", seconds={"read": 1.5})
    )
    assert written.size_bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_receipt(as_file(path)) == replace(written, sha256="")  # a file cannot hold its own digest
    assert (written.first_id, written.seconds) == ("a", {"read": 1.5})
    assert [entry.name for entry in path.parent.iterdir()] == ["00000.parquet"]


def test_of_two_attempts_the_first_wins(tmp_path):
    path = tmp_path / "00000.parquet"
    write_shard(as_file(path), table(["a"], seed=1), receipt(1, host="first"))
    before = path.read_bytes()
    assert write_shard(as_file(path), table(["a"], seed=2), receipt(1, host="second")).host == "first"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["00000.parquet"]


def test_the_arrow_schema_is_not_stored_and_vectors_are_split(tmp_path):
    path = tmp_path / "00000.parquet"
    write_shard(as_file(path), table(["a", "b"]), receipt(2))
    metadata = pq.read_metadata(path)
    assert b"ARROW:schema" not in metadata.metadata
    vector = metadata.row_group(0).column(1)
    assert vector.path_in_schema.startswith("vector") and "BYTE_STREAM_SPLIT" in vector.encodings
    assert pq.ParquetFile(path).schema_arrow.field("vector").nullable is False


@pytest.mark.parametrize("damage", ["truncate", "no receipt", "garbage"])
def test_damage_is_an_error_that_names_the_file(tmp_path, damage):
    path = tmp_path / "00000.parquet"
    write_shard(as_file(path), table(["a", "b"]), receipt(2))
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbage":
        path.write_bytes(b"nothing")
    else:
        pq.write_table(table(["a", "b"]), path)
    with pytest.raises(StoreError, match="00000.parquet"):
        read_receipt(as_file(path))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="space"):
        write_shard(as_file(tmp_path / "00000.parquet"), table(["a"]), receipt(1))
    assert os.listdir(tmp_path) == []
