"""Every damage that is planted is found and its file named; a sound store passes."""

import json
import shutil

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def store(support_store, tmp_path):
    return shutil.copytree(support_store, tmp_path / "store")


def problems(embedx, store, status=1, *more):
    return embedx.json("verify", store, *more, status=status)["problems"]


def data_file(store):
    return next(store.glob("data/*/*.parquet"))


def test_a_sound_store_passes_also_when_embedded_again(embedx, store):
    assert problems(embedx, store, 0) == []
    assert problems(embedx, store, 0, "--deep", "20") == []


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.999])
def test_a_flipped_byte(embedx, store, place):
    path = data_file(store)
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x40
    path.write_bytes(data)
    (found,) = problems(embedx, store)
    assert found["path"] == str(path.relative_to(store)) and "sha256" in found["message"]


def test_truncated_and_missing(embedx, store):
    path = data_file(store)
    path.write_bytes(path.read_bytes()[:-100])
    assert "bytes, the log says" in problems(embedx, store)[0]["message"]
    path.unlink()
    assert problems(embedx, store)[0] == {"path": str(path.relative_to(store)), "message": "is missing"}


def test_a_swapped_encoder_card(embedx, store):
    path = store / "_embedx" / "encoder.json"
    card = json.loads(path.read_text())
    card["encoder"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(card))
    messages = [found["message"] for found in problems(embedx, store)]
    assert any("fingerprint does not belong" in message for message in messages)
    assert any("was made with encoder" in message for message in messages)


def rewrite(store, change):
    """Put a file with other content and a consistent digest in place of the published one."""
    import hashlib
    import os

    path = data_file(store)
    receipt = pq.read_metadata(path).metadata[b"embedx.receipt"].decode()
    table = change(pq.read_table(path, partitioning=None).cast(pq.read_schema(path)))
    size = path.stat().st_size
    with pq.ParquetWriter(path, table.schema, store_schema=False, compression="none") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"embedx.receipt": receipt})
    run = next((store / "_embedx" / "runs").iterdir())
    files = json.loads((run / "files.json").read_text())
    files[0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (run / "files.json").write_text(json.dumps(files))
    log = next((store / "_delta_log").glob("*0.json"))
    log.write_text(log.read_text().replace(f'"size":{size}', f'"size":{os.path.getsize(path)}'))


def test_wrong_vectors_ids_and_texts(embedx, store):
    import numpy as np
    import pyarrow as pa

    def spoil(table):
        vectors = np.stack(table.column("vector").to_pylist()).astype(np.float32)
        vectors[3] *= 2
        vectors[5, 0] = np.nan
        offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
        column = pa.ListArray.from_arrays(
            offsets, pa.array(vectors.reshape(-1)), type=table.schema.field("vector").type
        )
        ids, texts = table.column("item_id").to_pylist(), table.column("text").to_pylist()
        ids[1], texts[7] = ids[0], "something else"
        table = table.set_column(1, table.schema.field("vector"), column)
        table = table.set_column(0, table.schema.field("item_id"), pa.array(ids))
        return table.set_column(5, table.schema.field("text"), pa.array(texts))

    rewrite(store, spoil)
    messages = " | ".join(found["message"] for found in problems(embedx, store))
    for said in ("length not 1", "not finite", "another text than its digest"):
        assert said in messages, messages


def test_duplicate_ids(embedx, store):
    import pyarrow as pa

    def spoil(table):
        ids = table.column("item_id").to_pylist()
        ids[1] = ids[0]
        return table.set_column(0, table.schema.field("item_id"), pa.array(ids))

    rewrite(store, spoil)
    assert any("stands 2 times" in found["message"] for found in problems(embedx, store))


def test_a_receipt_that_contradicts_the_log(embedx, store):
    log = next((store / "_delta_log").glob("*0.json"))
    log.write_text(log.read_text().replace('\\"numRecords\\": 60', '\\"numRecords\\": 61'))
    assert any("the log 61" in found["message"] for found in problems(embedx, store))


def test_other_folders_are_refused(embedx, tmp_path):
    embedx("verify", tmp_path, status=1)
