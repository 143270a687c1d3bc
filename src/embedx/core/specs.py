"""What to compute (specs) and how (resources): frozen, validated once at the edge."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from embedx.core.errors import UsageError
from embedx.core.long_texts import LongTexts
from embedx.core.places import NO_ACCESS, Access, Place

Kind = Literal["image", "text"]
Precision = Literal["auto", "fp32", "bf16"]

SHARD_MAX_ROWS = 131_072
SHARD_MAX_BYTES = 256 * 2**20


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is not one of {', '.join(choices)}", f"Pass one of: {', '.join(choices)}")


@dataclass(frozen=True)
class PreprocessSpec:
    """Overrides of an image encoder's own preprocessing; None keeps the family's value.

    Attributes:
        resize: shorter side in pixels before the crop.
        crop: side of the centre crop in pixels.
        interpolation: nearest, bilinear, bicubic or lanczos.
        mean: per-channel mean on the 0..1 scale.
        std: per-channel standard deviation on the 0..1 scale.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class EncoderSpec:
    """Names a frozen encoder: where it comes from and what of it is used.

    Attributes:
        family: the library (`torchvision`, `timm`, `sentence_transformers`) or `minilm`.
        name: the model's name within the family, or a local folder.
        weights: a local state dict; None takes the family's published weights.
        layer: the node whose output is the vector; None is the layer before the classifier.
        pooling: how spatial or token axes are pooled; None is the family's own way.
        prompt: what is put before every text: a prompt's name in the model's own configuration, such as `query`,
            or the words themselves; None is the model's own choice for documents.
        truncate_dim: keep only the first values of a vector, for encoders trained so (Matryoshka).
        model_args: extra arguments of the library's own constructor.
        preprocess: overrides of the image preprocessing.
    """

    family: str
    name: str = ""
    weights: str | None = None
    layer: str | None = None
    pooling: str | None = None
    prompt: str | None = None
    truncate_dim: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)

    @property
    def ref(self) -> str:
        """The reference a user would type: `family:name`."""
        return f"{self.family}:{self.name}" if self.name else self.family

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "encoder") -> EncoderSpec:
        """Build a spec from a dict, naming the keys nobody knows.

        Raises:
            UsageError: an unknown key or a wrong type.
        """
        data = dict(data)
        preprocess = data.pop("preprocess", None) or {}
        for given, known, label in (
            (data, cls, where),
            (preprocess, PreprocessSpec, f"{where} [preprocess]"),
        ):
            names = [f.name for f in fields(known)]
            for key in given:
                if key not in names:
                    raise UsageError(f"{label}: unknown key {key!r}", f"Known keys: {', '.join(names)}")
        if not isinstance(data.get("family"), str):
            raise UsageError(f"{where}: the key 'family' is missing", 'Add e.g. family = "timm"')
        for key in ("mean", "std"):
            if preprocess.get(key) is not None:
                preprocess = {**preprocess, key: tuple(float(v) for v in preprocess[key])}
        return cls(**data, preprocess=PreprocessSpec(**preprocess))


@dataclass(frozen=True)
class CorpusSpec:
    """Which items: the sources and how ids, content and carried columns are found in them.

    Attributes:
        sources: folders, files, URLs of files and prefixes, patterns such as `{000..099}.tar`, `alias=PATH`, or
            `@FILE`, a list of these.
        kind: image or text; None lets the sources and the encoder decide.
        text_column: the column of the text in tables; None looks for `text` or the only string column.
        image_column: the column of image paths in tables.
        id_column: the column of ids; None looks for `item_id`, then `id`, then numbers the rows.
        columns: columns to carry; None is the default (`label`, `path` or `text`), empty carries none.
        on_duplicate: what two items of one id mean: error, or keep the first or the last.
        limit: take only the first items of the listing.
        sql: a query whose rows are the corpus; sources are then the DuckDB databases it reads.
        id_prefix: `source` puts the source's name before every id that is not unique without it.
        access: how places outside this machine are reached.
    """

    sources: tuple[str, ...]
    kind: Kind | None = None
    text_column: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] | None = None
    on_duplicate: str = "error"
    limit: int | None = None
    sql: str | None = None
    id_prefix: str | None = None
    access: Access = NO_ACCESS

    def __post_init__(self) -> None:
        if not self.sources and self.sql is None:
            raise UsageError("no source given", "Name a folder of images, a .tar, a table, or give --sql")
        if self.sql is not None and not self.sql.strip():
            raise UsageError("--sql is empty", "Pass a query, e.g. --sql \"select id, text from 'reviews.parquet'\"")
        if self.id_prefix is not None:
            _check_choice("--id-prefix", self.id_prefix, ("source",))
        if self.kind is not None:
            _check_choice("--kind", self.kind, ("image", "text"))
        if self.text_column and self.image_column:
            raise UsageError("--text-column and --image-column exclude each other", "Give one of them")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} leaves no item", "Pass a number of at least 1")
        _check_choice("--on-duplicate", self.on_duplicate, ("error", "first", "last"))


@dataclass(frozen=True)
class FailureLimit:
    """How many failed items a run tolerates: a count, or a share of the planned items."""

    count: int | None = None
    share: float = 0.01

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read `10` or `2.5%`.

        Raises:
            UsageError: neither a count nor a percentage.
        """
        try:
            if text.endswith("%"):
                share = float(text[:-1]) / 100
                if not 0 <= share <= 1:
                    raise ValueError
                return cls(share=share)
            count = int(text)
            if count < 0:
                raise ValueError
            return cls(count=count)
        except ValueError:
            raise UsageError(
                f"--max-failures {text!r} is neither a count nor a percentage", "Pass e.g. 10 or 1%"
            ) from None

    def allows(self, n_failed: int, n_planned: int) -> bool:
        """Whether `n_failed` of `n_planned` items may fail."""
        # The nudge: 29 % of 100 is 28.999... in floating point.
        return n_failed <= (self.count if self.count is not None else self.share * n_planned + 1e-9)

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{self.share * 100:g}%"


@dataclass(frozen=True)
class ExtractSpec:
    """What one extraction computes. Resources and failure limits are not part of it.

    Attributes:
        corpus: which items.
        encoder: with what.
        out: the store.
        precision: auto, fp32 or bf16; fixed when the store is created.
        full_bits: keep all 23 mantissa bits instead of rounding to 10.
        max_failures: beyond it nothing is published.
        retry_failed: try items again whose unchanged content failed before.
        mirror: remove what is gone from the listed sources.
        max_removed: the largest share of the store's rows that `mirror` may remove.
        long: how texts longer than the encoder reads are read; None is the store's way, of a new one truncation.
    """

    corpus: CorpusSpec
    encoder: EncoderSpec
    out: Place
    precision: Precision = "auto"
    full_bits: bool = False
    max_failures: FailureLimit = FailureLimit()
    retry_failed: bool = False
    mirror: bool = False
    max_removed: float = 0.2
    long: LongTexts | None = None

    def __post_init__(self) -> None:
        _check_choice("--precision", self.precision, ("auto", "fp32", "bf16"))
        if self.mirror and self.corpus.limit is not None:
            raise UsageError("--mirror and --limit exclude each other", "What a limit leaves out is not gone")


def spread(spec: ExtractSpec, encoders: Mapping[str, EncoderSpec]) -> tuple[ExtractSpec, ...]:
    """Return the extraction of each of several encoders: alike, to the store `<out>/<name>`.

    Args:
        spec: what all have in common; its `out` is the folder of the stores.
        encoders: name of the store -> encoder.
    """
    return tuple(replace(spec, encoder=encoder, out=spec.out / name) for name, encoder in encoders.items())


def parse_share(flag: str, text: str) -> float:
    """Read a percentage such as `20%`.

    Raises:
        UsageError: it is none.
    """
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share <= 1:
        raise UsageError(f"{flag} {text!r} is not a percentage", "Pass e.g. 20%")
    return share


@dataclass(frozen=True)
class Resources:
    """How to compute: changes speed, never a plan, a fingerprint or a vector beyond the gate.

    Attributes:
        cluster: `local`, or the address of a running scheduler.
        workers: worker processes of a local cluster; None is one per GPU, or one per eight cores.
        device: auto, cpu, cuda or mps.
        runtime: auto, openvino or torch.
        threads: cores to use; None is the real quota.
        max_requests: the most requests to a remote encoder, of all processes together; None has no limit.
        profile: where to write a trace of the run.
    """

    cluster: str = "local"
    workers: int | None = None
    device: str = "auto"
    runtime: str = "auto"
    threads: int | None = None
    max_requests: int | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        _check_choice("--device", self.device, ("auto", "cpu", "cuda", "mps"))
        _check_choice("--runtime", self.runtime, ("auto", "openvino", "torch"))
        if self.cluster != "local" and "://" not in self.cluster:
            raise UsageError(
                f"--cluster {self.cluster!r} is neither 'local' nor an address",
                "Pass e.g. tcp://10.0.0.5:8786",
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers} leaves nobody to work", "Pass a number of at least 1")
        if self.max_requests is not None and self.max_requests < 1:
            raise UsageError(f"--max-requests {self.max_requests} allows none", "Pass a number of at least 1")


def shard_items_override() -> int | None:
    """The value of `EMBEDX_SHARD_ITEMS`, which fixes the items per shard (for tests); None when unset."""
    text = os.environ.get("EMBEDX_SHARD_ITEMS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"EMBEDX_SHARD_ITEMS={text!r} is not a positive number", "Unset it, or set e.g. 100")
    return int(text)
