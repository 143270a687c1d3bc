"""The step `search`: a text, an image, an item or a file of queries finds its nearest items in an index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embedx.core.contracts import Broken, EncoderCard
from embedx.core.errors import EncoderError, FingerprintMismatchError, StoreError, UsageError
from embedx.core.paths import write_atomic
from embedx.core.reports import Report
from embedx.indexes.search import Hits, VectorIndex, open_index
from embedx.steps.chunk_hits import search_items
from embedx.steps.queries import QueryFile, read_queries

if TYPE_CHECKING:
    import pyarrow as pa


class EncoderSession(Protocol):
    """An encoder that is loaded and embeds queries in this process."""

    @property
    def card(self) -> EncoderCard:
        """The encoder's card."""

    def embed_texts(self, texts: list[str]) -> tuple[np.ndarray, dict[int, Broken]]:
        """Return (m, dim) float32 for the texts that succeeded, and the failures by position."""

    def canary_vectors(self) -> np.ndarray:
        """Return (m, dim) float32: today's vectors of the encoder's canary items."""

    def embed_image_files(self, paths: list[Path]) -> tuple[np.ndarray, dict[int, Broken]]:
        """Return (m, dim) float32 for the images that succeeded, and the failures by position."""


OpenSession = Callable[[dict[str, Any], str, str], EncoderSession]
"""Loads an encoder by spec, fingerprint and precision; refuses one whose fingerprint is another today."""


@dataclass(frozen=True)
class SearchSpec:
    """One search: exactly one of text, image, item_id and queries.

    Attributes:
        index: the index's folder.
        text: a text to embed.
        image: an image file to embed.
        item_id: an item of the index; it is left out of its own hits.
        queries: a file of texts or image paths (.txt, .jsonl, .csv, .tsv, .parquet) or of vectors (.npy).
        k: hits per query; of a text in chunks only the best one counts.
        where: a DuckDB condition over `item_id` and the carried columns.
        out: a Parquet file to write the hits to.
    """

    index: Path
    text: str | None = None
    image: Path | None = None
    item_id: str | None = None
    queries: Path | None = None
    k: int = 10
    where: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        kinds = {"--text": self.text, "--image": self.image, "--id": self.item_id, "--queries": self.queries}
        given = [flag for flag, value in kinds.items() if value is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} exclude each other" if given else "no query given"
            raise UsageError(what, f"Pass exactly one of {', '.join(kinds)}")
        if self.text is not None and not self.text.strip():
            raise UsageError("--text is empty", "Pass what to search for")
        if self.image is not None and not self.image.is_file():
            raise UsageError(f"--image {self.image} is no file", "Check the path")
        if self.k < 1:
            raise UsageError(f"-k {self.k} asks for no hits", "Pass a number of at least 1")
        if self.out is not None and self.out.is_dir():
            raise UsageError(f"--out {self.out} is a folder", "Pass the name of a Parquet file")


@dataclass(frozen=True)
class Answered:
    """Queries that have an answer, beside those that could not be embedded.

    Attributes:
        names: what each query is called.
        hits: one entry per name.
        ids: the query file's own ids; None where it has none.
        failures: queries without an answer, for the report.
    """

    names: list[str]
    hits: Hits
    ids: list[str] | None = None
    failures: tuple[dict[str, str], ...] = ()


def search_index(spec: SearchSpec, open_session: OpenSession | None = None) -> Report:
    """Search an index.

    Args:
        spec: which index, which query, how many hits.
        open_session: loads the encoder; None is embedx's own. Not called for items and vectors.

    Returns:
        A report with `hits`, or with `queries` (a list of {query, hits}) for a file of queries.

    Raises:
        UsageError: a query of the wrong kind or broken, an unknown item, a broken or empty condition.
        StoreError: no index, or a damaged one.
        FingerprintMismatchError: the encoder is another today than the one that made the index, or the encoder of
            its queries belongs to another model.
    """
    index = open_index(spec.index)
    answered = _answer(index, spec, open_session or _own_session)
    carried = index.table(np.concatenate([*answered.hits.rows, np.empty(0, np.int64)]).astype(np.int64))
    report: Report = {
        "index": str(spec.index),
        "version": index.version,
        "metric": index.card.metric,
        "count": index.count,
        "k": spec.k,
        "encoder": {key: index.card.encoder[key] for key in ("ref", "fingerprint", "precision")},
    }
    per_query = _hit_dicts(answered.hits, carried)
    if spec.queries is None:
        report["hits"] = next(per_query)
    else:
        ids: Sequence[str | None] = answered.ids or [None] * len(answered.names)
        report["queries"] = [
            {"query": name, **({} if query_id is None else {"id": query_id}), "hits": hits}
            for name, query_id, hits in zip(answered.names, ids, per_query)
        ]
        report["failures"] = list(answered.failures)
    if spec.out is not None:
        _write_hits(spec.out, answered, carried)
        report["out"] = str(spec.out)
    return report


def _answer(index: VectorIndex, spec: SearchSpec, open_session: OpenSession) -> Answered:
    if spec.item_id is not None:
        item_id = spec.item_id
        hits = search_items(index, lambda k: index.neighbours(item_id, k, spec.where), spec.k, without=item_id)
        if not hits.ids[0]:
            raise UsageError(f"there is no item besides {spec.item_id!r} to find", "Relax --where, or index more items")
        return Answered([spec.item_id], hits)
    if spec.queries is not None:
        return _answer_file(index, read_queries(spec.queries), spec, open_session)
    if spec.image is not None:
        session = _session(index, "image", open_session)
        name, (vectors, failures) = str(spec.image), session.embed_image_files([spec.image])
    else:
        session = _session(index, "text", open_session)
        name = spec.text or ""
        vectors, failures = session.embed_texts([name])
    if failures:
        raise UsageError(f"the query {name[:80]!r} cannot be embedded: {failures[0].message}", "Pass another one")
    return Answered([name], _search(index, vectors, spec))


def _search(index: VectorIndex, vectors: np.ndarray, spec: SearchSpec) -> Hits:
    return search_items(index, lambda k: index.search(vectors, k, spec.where), spec.k)


def _answer_file(index: VectorIndex, file: QueryFile, spec: SearchSpec, open_session: OpenSession) -> Answered:
    if file.vectors is not None:
        return Answered(file.names, _search(index, file.vectors, spec))
    if file.images is not None:
        vectors, failures = _session(index, "image", open_session).embed_image_files(file.images)
    else:
        vectors, failures = _session(index, "text", open_session).embed_texts(file.names)
    if len(failures) == len(file.names):
        raise UsageError(
            f"no query of {spec.queries} can be embedded, the first one: {failures[0].message}",
            "Mend the file",
        )
    kept = [position for position in range(len(file.names)) if position not in failures]
    return Answered(
        names=[file.names[position] for position in kept],
        hits=_search(index, vectors, spec),
        ids=None if file.ids is None else [file.ids[position] for position in kept],
        failures=tuple(
            {"query": file.names[position], "error": broken.error, "message": broken.message}
            for position, broken in sorted(failures.items())
        ),
    )


def _session(index: VectorIndex, kind: str, open_session: OpenSession) -> EncoderSession:
    """Load the encoder that embeds queries of this kind into the space of the index, and check that it is the one."""
    encoder = index.card.encoder
    modality = encoder["modality"]
    queries = encoder.get("queries", {})  # absent from cards of older versions
    if kind in queries:
        session = _query_session(encoder, queries[kind], open_session)
    elif kind == modality:
        session = open_session(encoder["spec"], encoder["fingerprint"], encoder["precision"])
    else:
        raise UsageError(
            f"a query by {kind} needs an encoder of {kind}s, the index was made with {encoder['ref']}, "
            f"an encoder of {modality}s",
            f"Search it with {_FLAGS[modality]}; an image tower of open_clip is searched by text too",
        )
    if session.card.dim != index.dim:
        raise EncoderError(
            f"{session.card.ref} gives {session.card.dim} values, the index holds {index.dim}",
            "Build the index again",
        )
    if "canaries" in encoder:
        _check_unseen(encoder, session, open_session)
    return session


def _check_unseen(encoder: dict[str, Any], session: EncoderSession, open_session: OpenSession) -> None:
    """Refuse an encoder whose fingerprint does not hold its weights, where they are others than the index's."""
    from embedx.steps.canaries import compare_canaries

    if session.card.fingerprint != encoder["fingerprint"]:  # of queries, with a prompt of their own
        session = open_session(encoder["spec"], encoder["fingerprint"], encoder["precision"])
    compare_canaries(
        session.canary_vectors(),
        encoder["canaries"],
        f"{encoder['ref']} computes other vectors than when the index's were made",
        "Another model answers at that address: use the one of then, or extract and index again",
    )


_FLAGS = {"image": "--image or --id", "text": "--text, --queries or --id"}


def _query_session(encoder: dict[str, Any], spec: dict[str, Any], open_session: OpenSession) -> EncoderSession:
    """Load the encoder that was trained to embed queries for another one: CLIP's text tower, a query prompt."""
    # fp32 whatever the precision of the index: a query more exact than the vectors is no error, and costs little.
    session = open_session(spec, "", "fp32")
    if not encoder["space"] or session.card.space != encoder["space"]:
        raise FingerprintMismatchError(
            f"{session.card.ref} belongs to the model {session.card.space[:12] or 'of itself alone'} here, "
            f"but the vectors of {encoder['ref']} in the index to the model {encoder['space'][:12]}",
            "Its weights or configuration changed: use the same ones, or extract and index again",
        )
    return session


def _own_session(spec: dict[str, Any], fingerprint: str, precision: str) -> EncoderSession:
    # Imported only here: searching by item or by vector must not load what an encoder needs.
    from embedx.steps.encoding import open_encoder_session

    session: EncoderSession = open_encoder_session(spec, fingerprint, precision)
    return session


def _hit_dicts(hits: Hits, carried: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """Yield each query's hits as {id, score, ...columns}."""
    columns = {
        _unclashed(name, ("id", "score")): carried.column(name).to_pylist()
        for name in carried.column_names
        if name != "item_id"
    }
    start = 0
    for ids, scores in zip(hits.ids, hits.scores):
        yield [
            {
                "id": item_id,
                "score": float(f"{score:.7g}"),
                **{name: _json_value(values[row]) for name, values in columns.items()},
            }
            for row, (item_id, score) in enumerate(zip(ids, scores), start=start)
        ]
        start += len(ids)


def _json_value(value: Any) -> Any:
    # NaN and infinities are not JSON.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unclashed(name: str, taken: Sequence[str]) -> str:
    """Rename a carried column whose name means something else in the answer."""
    return f"{name}_column" if name in taken else name


def _write_hits(path: Path, answered: Answered, carried: pa.Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    hits = answered.hits
    counts = [len(ids) for ids in hits.ids]
    columns: dict[str, Any] = {
        "query": pa.array(np.repeat(np.array(answered.names, dtype=object), counts), pa.string())
    }
    if answered.ids is not None:
        columns["query_id"] = pa.array(np.repeat(np.array(answered.ids, dtype=object), counts), pa.string())
    columns["rank"] = pa.array([rank for n in counts for rank in range(1, n + 1)], pa.int32())
    columns["item_id"] = carried.column("item_id")
    columns["score"] = pa.array(np.concatenate([*hits.scores, np.empty(0)]), pa.float32())
    taken = tuple(columns)
    columns |= {_unclashed(name, taken): carried.column(name) for name in carried.column_names if name != "item_id"}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    try:
        write_atomic(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error})", "Pass another --out") from error
