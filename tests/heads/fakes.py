"""Real stores of planted vectors, made without an encoder in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.core.contracts import EncoderCard
from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.core.paths import write_json
from embedx.store.delta import DataFile, NewFile, Transition, open_snapshot, publish
from embedx.store.layout import StoreLayout
from embedx.store.reader import StoreCard
from embedx.store.schema import CarriedColumn, store_schema, vector_array
from embedx.store.shards import Receipt, write_shard

FINGERPRINT = "a" * 64


def planted(n_per_class: int, n_classes: int, dim: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around one random centre per class, (n, dim) float32, and their labels, shuffled."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(n_classes, dim))
    codes = random.permutation(np.repeat(np.arange(n_classes), n_per_class))
    vectors = centres[codes] + noise * random.normal(size=(len(codes), dim))
    return vectors.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


def encoder_card(dim: int, fingerprint: str = FINGERPRINT, ref: str = "fake:planted") -> EncoderCard:
    return EncoderCard(
        ref=ref,
        family="fake",
        modality="text",
        dim=dim,
        fingerprint=fingerprint,
        identity={},
        spec={"family": "fake", "name": "planted"},
        normalized=False,
        flops=1.0,
        parameters=1,
    )


def make_store(
    root: Path,
    vectors: np.ndarray,
    columns: dict[str, list],
    ids: list[str] | None = None,
    parents: list[str | None] | None = None,
    **card: str,
) -> Path:
    """Write a store of one file per 1,000 rows; ids are `item-0000`, ... unless given. With parents it is one of chunks."""
    n, dim = vectors.shape
    ids = ids or [f"item-{row:04d}" for row in range(n)]
    carried = tuple(CarriedColumn(name) for name in columns)
    schema = store_schema(carried)
    layout = StoreLayout(root)
    store_card = StoreCard(
        encoder_card(dim, **card), "fp32", True, [], carried, long=LongTexts("chunk") if parents else TRUNCATED
    )
    layout.meta.mkdir(parents=True)
    write_json(layout.encoder, store_card.to_dict())
    adds = []
    for shard, start in enumerate(range(0, n, 1000)):
        part = slice(start, start + 1000)
        arrays = {
            "item_id": pa.array(ids[part], pa.string()),
            "vector": vector_array(vectors[part]),
            "source": pa.array(["planted"] * len(ids[part])),
            "digest": pa.array(["0"] * len(ids[part])),
            "parent_id": pa.array(parents[part] if parents else [None] * len(ids[part]), pa.string()),
            **{name: pa.array(values[part], pa.string()) for name, values in columns.items()},
        }
        table = pa.table([arrays[name] for name in schema.names], schema=schema)
        run = layout.run("000001")
        receipt = Receipt("000001", shard, FINGERPRINT, "fp32", len(table), 0)
        size = write_shard(run.shard(shard), table, receipt).size_bytes
        file = DataFile(run.shard_name(shard), size, len(table))
        adds.append(NewFile(file, min(ids[part]), max(ids[part])))
    publish(Transition("000001", open_snapshot(root), adds, [], schema))
    return root
