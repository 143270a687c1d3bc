"""The contracts between layers that must not import each other: encoder, runtime, prepared items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class ItemFailure:
    """Why one item has no vector.

    Attributes:
        item_id: the item.
        source: the source it came from.
        stage: read, decode, prepare or forward.
        error: the error's class name.
        message: what a person can act on.
        retryable: whether trying again could help although the content is unchanged.
    """

    item_id: str
    source: str
    stage: str
    error: str
    message: str
    retryable: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of reports."""
        return {
            "id": self.item_id,
            "source": self.source,
            "stage": self.stage,
            "error": self.error,
            "message": self.message,
            "retryable": self.retryable,
        }


@dataclass(frozen=True)
class Broken:
    """A failed item as a value, in place of what a stage would have produced for it."""

    stage: str
    error: str
    message: str
    retryable: bool = False

    @classmethod
    def from_exception(cls, stage: str, error: BaseException, retryable: bool = False) -> Broken:
        """Describe an exception raised for one item."""
        text = " ".join(str(error).split()) or type(error).__name__
        return cls(stage, type(error).__name__, text[:500], retryable)


@dataclass(frozen=True)
class EncoderCard:
    """Everything a store, index or head must know of an encoder without loading it.

    Attributes:
        ref: `family:name`.
        family: the library.
        modality: image or text.
        dim: length of a vector.
        fingerprint: sha256 over `identity`.
        identity: everything that changes the vectors: tensors digest, architecture, layer, pooling,
            preprocessing, tokenizer, max length, normalisation.
        spec: the spec the card was made from, to load the encoder again.
        normalized: whether vectors have length 1.
        flops: work of one unit of cost: per token for texts, per item for images.
        parameters: number of weights.
        input: what the preprocessing yields, e.g. `{"size": [3, 224, 224]}` or `{"max_tokens": 256}`.
        weights_from: where the weights were found, for people.
        licence: licence of the weights where it is known.
        space: encoders with equal spaces were trained to be compared: CLIP's towers, a model with a query and a
            document prompt. Empty: vectors of this encoder compare with its own only.
        queries: modality -> spec of the encoder that embeds queries of that modality into this space, where that
            is not this encoder itself: CLIP's text tower, the same model with its query prompt.
        unseen: its weights cannot be seen, so the fingerprint does not hold them: that another model answers at a
            remote address is found by the canaries alone, in runs and in searches.
        direct: `build` returns a function of arrays and no torch module: word vectors, a remote endpoint. No runtime
            converts it, and it computes in its own precision.
    """

    ref: str
    family: str
    modality: str
    dim: int
    fingerprint: str
    identity: dict[str, Any]
    spec: dict[str, Any]
    normalized: bool
    flops: float
    parameters: int
    input: dict[str, Any] = field(default_factory=dict)
    weights_from: str = ""
    licence: str = ""
    space: str = ""
    queries: dict[str, dict[str, Any]] = field(default_factory=dict)
    direct: bool = False
    unseen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EncoderCard:
        """Build a card from `to_dict`'s result."""
        return cls(**data)


@dataclass(frozen=True)
class Prepared:
    """Items made ready for the forward pass, with the failed ones as values.

    Attributes:
        items: what `collate` takes, one entry per item that succeeded.
        positions: (m,) int64, each entry's position among the items given.
        failures: position -> what went wrong.
        truncated: how many texts were longer than the encoder reads.
        counts: further sums for the report, by name: words, words without a vector.
    """

    items: Sequence[Any]
    positions: np.ndarray
    failures: dict[int, Broken]
    truncated: int = 0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Forwarded:
    """The vectors of a batch where single items may have failed: what a function may return instead of the array.

    Attributes:
        vectors: (n, dim) float32; rows of failed items hold anything.
        failures: row -> what went wrong.
    """

    vectors: np.ndarray
    failures: dict[int, Broken] = field(default_factory=dict)


class DirectFunction(Protocol):
    """What `build` returns where the card says `direct`: the arrays of `collate`, by name, to vectors. Thread-safe."""

    parallel_requests: int
    """How many calls at a time are worth it."""
    batch_cost: int
    """The summed cost of the fastest batch."""

    def __call__(self, **inputs: np.ndarray) -> np.ndarray | Forwarded:
        """Return (n, dim) float32, or that and the items which failed."""


class Encoder(Protocol):
    """A frozen model with its preprocessing. Knows nothing of devices, batching or Dask.

    One of texts may have `windows`: a function from texts to the overlapping windows of each that it reads whole,
    as (start, stop) in characters; `--long chunk` needs it.

    Any may have `preparation`, a hashable value: of encoders with equal ones, `prepare` and `windows` do the same, so
    that a run of several calls them once. And `forward_key`, with `build_with`: see `encoders/joining.py`. And `pack`,
    which lets a module that it has built compute texts without their padding, and returns what undoes it, or None. And
    `resizing`, of one of images: see `encoders/resizing.py`.
    """

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""

    def prepare(self, items: Sequence[Any]) -> Prepared:
        """Tokenise or transform items; thread-safe; failed items become values."""

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64: padded tokens of each prepared text, 1 for each image."""

    def collate(self, entries: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack prepared entries to the named input arrays of the module, in the order of its `forward`.

        Texts are padded to the longest.
        """

    def build(self) -> Any:
        """Return the torch module in eval mode, named inputs -> (n, dim) float32; or a `DirectFunction`.

        Where a module has an attribute `backbone`, that sub-module may be cast to a lower precision; the rest, such as
        normalisation and pooling, stays float32.
        """

    def canaries(self) -> list[Any]:
        """Return a few fixed items whose vectors reveal a changed library or weight."""


class Runtime(Protocol):
    """Executes an encoder's module on a device at a precision."""

    name: str
    precision: str
    parallel_requests: int
    """How many `forward` calls at a time keep the device busy."""

    @property
    def way(self) -> str:
        """How it computes, for people: its name, the precision, and what else there is to say."""

    @property
    def hardware(self) -> str:
        """What it computes on: the name of a CPU or GPU. What was measured on one says nothing of another."""

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray | Forwarded:
        """Run one batch; returns (n, dim) float32, or that and the items which failed. Thread-safe."""

    def batch_budget(self, modality: str) -> int:
        """Return the padded cost of the fastest batch: tokens for texts, images for images."""
