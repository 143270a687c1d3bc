"""The rows of a plan, embedded: each is read once, whatever the number of stores that need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.contracts import Broken
from embedx.core.meter import metered
from embedx.corpora.content import ImageReader
from embedx.inference.clock import Clock
from embedx.inference.feed import preparation_of
from embedx.inference.pipeline import Embedded
from embedx.steps.encoding import Session, embed_sessions
from embedx.steps.long_texts import embed_texts, spread_copies
from embedx.steps.shard_job import ShardJob


@dataclass(frozen=True)
class EmbeddedRows:
    """What one store gets of some rows.

    Attributes:
        result: the vectors, and why some rows have none.
        digests: of each row's content.
        read: sums of what was read for it: items and bytes. Of several stores the first one's, for it is done once.
    """

    result: Embedded
    digests: list[str]
    read: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """One store's way of having rows embedded.

    Attributes:
        job: its run.
        session: its encoder.
        clock: counts its seconds.
    """

    job: ShardJob
    session: Session
    clock: Clock = field(default_factory=Clock)


def embed_rows(reader: Reader, rows: pa.RecordBatch) -> EmbeddedRows:
    """Embed a plan's rows for one store."""
    ((_, embedded),) = embed_rows_together([reader], rows)
    return embedded


def embed_rows_together(readers: Sequence[Reader], rows: pa.RecordBatch) -> Iterator[tuple[int, EmbeddedRows]]:
    """Embed a plan's rows for some stores; yields (position among the readers, what came of it) as each is done."""
    job = readers[0].job
    with metered(job.meter):
        yield from (_embed_texts if job.kind == "text" else _embed_images)(readers, rows)


def gentlest_side(sides: Sequence[int]) -> int:
    """Return the size to which JPEGs may be reduced for all of some stores; 0, not at all, is what one may ask for."""
    return 0 if 0 in sides else max(sides)


def _embed_images(readers: Sequence[Reader], rows: pa.RecordBatch) -> Iterator[tuple[int, EmbeddedRows]]:
    job = readers[0].job
    digests = [""] * rows.num_rows
    sizes = [0] * rows.num_rows
    problems = rows.column("problem").to_pylist()
    # What has a problem is not read, and not read ahead either.
    locators = ["" if problem else name for name, problem in zip(rows.column("locator").to_pylist(), problems)]
    side = gentlest_side([reader.job.jpeg_side for reader in readers])
    images = ImageReader(locators, rows.column("identity").to_pylist(), job.access, side)
    reduced = np.zeros(rows.num_rows, dtype=bool)

    def fetch(start: int, stop: int) -> list[Any]:
        items = []
        for position in range(start, stop):
            if problems[position] is not None:
                items.append(Broken("read", "Unreadable", problems[position], True))
                continue
            content = images.read(position)
            digests[position], sizes[position] = content.digest, content.size_bytes
            reduced[position] = content.is_reduced
            items.append(content.item)
        return items

    with images:
        results = embed_sessions(
            [reader.session for reader in readers], rows.num_rows, fetch, [reader.clock for reader in readers]
        )
    read = {"items_read": sum(problem is None for problem in problems), "bytes_read": sum(sizes)}
    for place, result in enumerate(results):
        counted = replace(result, counts={**result.counts, "reduced": int(reduced.sum())})
        yield place, EmbeddedRows(counted, digests, {} if place else read)


def _embed_texts(readers: Sequence[Reader], rows: pa.RecordBatch) -> Iterator[tuple[int, EmbeddedRows]]:
    """Embed texts, each distinct one once; encoders that read them alike tokenise them once, too."""
    digests = rows.column("identity").to_pylist()
    _, first, copies = np.unique(np.array(digests, dtype=object), return_index=True, return_inverse=True)
    distinct = rows.take(pa.array(np.sort(first)))
    # Position among the distinct rows of each row; np.unique sorts by digest, the rows are in plan order.
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    of_row = rank[copies]
    texts = distinct.column("content").to_pylist()
    problems = distinct.column("problem").to_pylist()
    items = [text if problem is None else Broken("read", "BadText", problem) for text, problem in zip(texts, problems)]
    size = int(pc.sum(pc.binary_length(rows.column("content"))).as_py() or 0)
    read = {"items_read": rows.num_rows, "bytes_read": size}
    for places in _group_alike(readers):
        sessions, clocks = [readers[place].session for place in places], [readers[place].clock for place in places]
        for place, once in zip(places, embed_texts(sessions, items, readers[places[0]].job.long, clocks)):
            result = once
            if len(texts) < rows.num_rows:
                counts = {**once.counts, "copies": rows.num_rows - len(texts)}
                result = replace(spread_copies(once, of_row), counts=counts)
            yield place, EmbeddedRows(result, digests, {} if place else read)


def _group_alike(readers: Sequence[Reader]) -> list[list[int]]:
    """Return the readers in groups that cut and tokenise texts alike.

    Group by group, and not all at once: what is done for one group is committed before the next begins.
    """
    groups: dict[Any, list[int]] = {}
    for place, reader in enumerate(readers):
        key = (reader.job.long, preparation_of(reader.session.embedder.encoder))
        groups.setdefault(key, []).append(place)
    return list(groups.values())
