"""The Python API: the command line's steps as functions, with the same names and the same reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedx.core.long_texts import parse_long
from embedx.core.reports import ProgressHook, Report, no_progress
from embedx.core.specs import CorpusSpec, EncoderSpec, ExtractSpec, FailureLimit, Resources, spread
from embedx.encoders.naming import check_name, name_encoders
from embedx.encoders.registry import parse_ref
from embedx.steps.encoding import Session, open_encoder_session
from embedx.store.reader import open_store

__all__ = ["extract", "fit_head", "index", "load_encoder", "open_head", "open_index", "open_store"]

PathLike = str | Path


def extract(
    sources: PathLike | Sequence[PathLike],
    encoder: str | EncoderSpec | Sequence[str | EncoderSpec] | Mapping[str, str | EncoderSpec],
    out: PathLike,
    *,
    columns: Sequence[str] | None = None,
    precision: str = "auto",
    max_failures: str = "1%",
    long: str | None = None,
    chunk_pool: str | None = None,
    resources: Resources | None = None,
    progress: ProgressHook = no_progress,
    **corpus: Any,
) -> Report:
    """Embed what is new or changed in a corpus, and publish it as one new version of a store.

    A script that calls this needs `if __name__ == "__main__":` around the call: local Dask workers are processes
    that import the script.

    Args:
        sources: folders of images or table files.
        encoder: `family:name`, `minilm`, the path of an encoder TOML file, or a spec. Several, as a list or as a dict
            of store name -> encoder: each gets a store of its own, and every item is read once.
        out: the store; of several encoders, the folder of their stores.
        columns: columns to carry besides the default ones; an empty list carries none.
        precision: auto, fp32 or bf16.
        max_failures: a count or a percentage.
        long: truncate or chunk: how texts longer than the encoder reads are read.
        chunk_pool: mean or max of the chunks.
        resources: workers, device, runtime.
        progress: called with the present state.
        **corpus: further fields of `CorpusSpec`, e.g. `text_column="body"`.

    Returns:
        The report that `embedx extract --json` prints; of several encoders, with `stores`, of which one that got no
        new version has an `error`.

    Raises:
        EmbedxError: see `embedx.core.errors`.
    """
    from embedx.steps import extract as step

    named = _name_encoders(encoder)
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    spec = ExtractSpec(
        corpus=CorpusSpec(
            sources=tuple(str(source) for source in listed),
            columns=None if columns is None else tuple(columns),
            **corpus,
        ),
        encoder=next(iter(named.values())),
        out=Path(out),
        precision=precision,  # type: ignore[arg-type]
        max_failures=FailureLimit.parse(max_failures),
        long=parse_long(long, chunk_pool),
    )
    if isinstance(encoder, (str, EncoderSpec)):
        return step.extract(spec, resources, progress)
    return step.extract_several(spread(spec, named), resources, progress)


def _name_encoders(
    encoders: str | EncoderSpec | Sequence[str | EncoderSpec] | Mapping[str, str | EncoderSpec],
) -> dict[str, EncoderSpec]:
    """Return store name -> encoder; of a single one the name has no meaning."""
    if isinstance(encoders, EncoderSpec):
        return {"": encoders}
    if isinstance(encoders, str):
        return {"": parse_ref(encoders)}
    if isinstance(encoders, Mapping) and encoders:
        for name in encoders:
            check_name(name)
        return {name: parse_ref(one) if isinstance(one, str) else one for name, one in encoders.items()}
    return name_encoders(list(encoders))


def index(store: PathLike, out: PathLike, **options: Any) -> Report:
    """Build the next version of an index over a store.

    Args:
        store: the store.
        out: the index's folder.
        **options: further fields of `embedx.indexes.spec.IndexSpec`, e.g. `metric="l2"`.
    """
    from embedx.indexes.spec import IndexSpec
    from embedx.steps.index import index_store

    return index_store(IndexSpec(store=Path(store), out=Path(out), **options))


def open_index(path: PathLike) -> Any:
    """Open an index: `.search(vectors, k, where)`, `.card`, `.count`, `.vector(id)`."""
    from embedx.indexes.search import open_index as open_

    return open_(Path(path))


def fit_head(store: PathLike, label: str, out: PathLike, **options: Any) -> Report:
    """Fit a head on a store's vectors.

    Args:
        store: the store.
        label: the column to learn.
        out: the head's folder.
        **options: further fields of `embedx.heads.spec.HeadSpec`, e.g. `test_size=0.1`.
    """
    from embedx.heads.spec import HeadSpec
    from embedx.steps.fit_head import fit_head as step

    return step(HeadSpec(store=Path(store), label=label, out=Path(out), **options))


def open_head(path: PathLike) -> Any:
    """Open a head: `.predict(vectors)`, `.predict_proba(vectors)`, `.classes`, `.card`."""
    from embedx.heads.head import open_head as open_

    return open_(Path(path))


def load_encoder(encoder: str | EncoderSpec, *, precision: str = "fp32", runtime: str = "auto") -> Session:
    """Load an encoder to this process: `.embed_texts(texts)`, `.embed_image_files(paths)`, `.card`.

    Args:
        encoder: as for `extract`.
        precision: fp32 or bf16.
        runtime: auto, openvino or torch.
    """
    spec = parse_ref(encoder) if isinstance(encoder, str) else encoder
    return open_encoder_session(spec.to_dict(), "", precision, runtime)
