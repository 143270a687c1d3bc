"""What a worker does with a file that stands: write it again without the rows that go, or with new columns."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedx.steps.extract_shard import id_range
from embedx.steps.shard_job import Part, ShardJob
from embedx.store.listing import read_group
from embedx.store.schema import owner_ids, store_schema
from embedx.store.shards import Receipt, read_receipt, write_shard


def rewrite_shard(part: Part, old_path: str, group: int) -> Receipt:
    """Write a file again without the rows that go and with new carried columns where they changed.

    Args:
        part: the new file.
        old_path: the file, relative to the store.
        group: its changes' record batch in `rewrites.arrow`.
    """
    job, path = part.job, part.path
    if path.exists():
        return read_receipt(path)
    started = time.perf_counter()
    changes = pa.Table.from_batches([read_group(job.layout.file("rewrites.arrow"), group)])
    table = pq.read_table(Path(job.root) / old_path, partitioning=None).cast(store_schema(job.columns))
    updates = changes.filter(changes.column("update"))
    drops = changes.filter(pc.invert(changes.column("update"))).column("item_id")
    table = table.filter(pc.invert(pc.is_in(owner_ids(table), value_set=drops)))
    if updates.num_rows:
        table = _apply_updates(job, table, updates)
    receipt = Receipt(
        run=job.run,
        shard=part.shard,
        fingerprint=job.fingerprint,
        precision=job.precision,
        rows=table.num_rows,
        failed=0,
        seconds={"rewrite": round(time.perf_counter() - started, 3)},
        host=f"{socket.gethostname()}:{os.getpid()}",
        **id_range(table),
    )
    return write_shard(path, table, receipt)


def _apply_updates(job: ShardJob, table: pa.Table, updates: pa.Table) -> pa.Table:
    found = pc.index_in(owner_ids(table), value_set=updates.column("item_id"))
    changed = pc.is_valid(found)
    names = {"source": "source"}
    names |= {column.name: f"c_{column.name}" for column in job.columns if column.name != job.content_column}
    for name, new_name in names.items():
        position = table.schema.get_field_index(name)
        new = updates.column(new_name).take(found).combine_chunks()
        merged = pc.if_else(changed, new, table.column(name))
        table = table.set_column(position, table.schema.field(name), merged)
    return table
