"""Stand-ins for a store and an encoder session, small enough to build an index in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.core.contracts import Broken, EncoderCard


def encoder_card(modality: str = "text", dim: int = 8) -> EncoderCard:
    return EncoderCard(
        ref=f"fake:{modality}",
        family="fake",
        modality=modality,
        dim=dim,
        fingerprint="f" * 64,
        identity={"weights": "none"},
        spec={"family": "fake", "name": modality},
        normalized=False,
        flops=1.0,
        parameters=1,
    )


@dataclass
class FakeStore:
    """Has the attributes of `embedx.store.reader.Store` that an index build reads."""

    matrix: np.ndarray
    carried: dict[str, list] = field(default_factory=dict)
    ids: list[str] | None = None
    path: Path = Path("fake-store")
    version: int = 3
    modality: str = "text"
    precision: str = "fp32"
    promised: int | None = None
    canaries: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matrix = np.asarray(self.matrix, dtype=np.float32)
        self.ids = self.ids or [f"item-{row:04d}" for row in range(len(self.matrix))]
        self.card = encoder_card(self.modality, self.dim)

    @property
    def dim(self) -> int:
        return self.matrix.shape[1]

    @property
    def count(self) -> int:
        return len(self.matrix) if self.promised is None else self.promised

    @property
    def columns(self) -> list[str]:
        return list(self.carried)

    def table(self) -> pa.Table:
        return pa.table({"item_id": pa.array(self.ids, pa.string()), **self.carried})

    def iterate_batches(
        self, columns: Sequence[str] = (), batch_rows: int = 7
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        table = self.table().select(["item_id", *columns])
        start = 0
        for batch in table.to_batches(max_chunksize=batch_rows):
            yield batch, self.matrix[start : start + batch.num_rows]
            start += batch.num_rows


class FakeSession:
    """Embeds a text as the vector whose values its numbers are; the text `broken` fails."""

    def __init__(self, modality: str = "text", dim: int = 8) -> None:
        self.card = encoder_card(modality, dim)
        self.asked: list[list] = []

    def embed_texts(self, texts: list[str]) -> tuple[np.ndarray, dict[int, Broken]]:
        self.asked.append(texts)
        failures = {i: Broken("prepare", "ValueError", "no words") for i, t in enumerate(texts) if t == "broken"}
        good = [[float(value) for value in text.split()] for text in texts if text != "broken"]
        return np.array(good, dtype=np.float32).reshape(-1, self.card.dim), failures

    def embed_image_files(self, paths: list[Path]) -> tuple[np.ndarray, dict[int, Broken]]:
        self.asked.append(paths)
        return np.ones((len(paths), self.card.dim), dtype=np.float32), {}
