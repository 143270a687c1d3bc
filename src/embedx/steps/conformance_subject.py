"""The encoder that is checked, with what the checks share: items, threads around it, reference vectors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from embedx.core.contracts import Encoder
from embedx.core.errors import EmbedxError
from embedx.core.threads import cpu_quota
from embedx.corpora.decode import decode_image
from embedx.inference.pipeline import Embedded, Embedder
from embedx.inference.runtimes import Execution, open_runtime
from embedx.steps.conformance_items import TEXTS, image_files


class NoVectorsError(Exception):
    """The encoder gives no vectors at all, so that nothing can be said of them."""


class Subject:
    """An encoder under examination.

    Args:
        encoder: as its family opens it.
        threads: cores to use; None is the real quota.
    """

    def __init__(self, encoder: Encoder, threads: int | None = None) -> None:
        self.encoder = encoder
        self._threads = threads or cpu_quota()
        self._embedders: dict[str, Embedder] = {}

    def __enter__(self) -> Subject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for embedder in self._embedders.values():
            embedder.close()

    @functools.cached_property
    def items(self) -> list[Any]:
        """Awkward items of the encoder's kind, then its own canaries."""
        awkward = (
            [decode_image(data, "item") for data in image_files()]
            if self.encoder.card.modality == "image"
            else list(TEXTS)
        )
        return [*awkward, *self.encoder.canaries()]

    def embedder(self, runtime: str = "auto", device: str = "cpu") -> Embedder:
        """Return the encoder on a runtime in fp32.

        Raises:
            EncoderError: it does not run there.
        """
        key = f"{runtime} {device}"
        if key not in self._embedders:
            opened = open_runtime(self.encoder, Execution("fp32", runtime, device, self._threads))
            self._embedders[key] = Embedder(self.encoder, opened.runtime, self._threads)
        return self._embedders[key]

    def embed(self, items: Sequence[Any], embedder: Embedder | None = None) -> Embedded:
        """Embed items in one go, on the runtime that `auto` chooses unless told otherwise."""
        return (embedder or self.embedder()).embed(len(items), lambda start, stop: items[start:stop])

    @property
    def reference(self) -> Embedded:
        """The items' vectors in the encoder's own precision: by torch in fp32, or by its own function.

        Raises:
            NoVectorsError: there are none.
        """
        if isinstance(self._reference, NoVectorsError):
            raise self._reference
        return self._reference

    @functools.cached_property
    def _reference(self) -> Embedded | NoVectorsError:
        # A value, so that it is not tried again for every check: a service that fails takes its time.
        try:
            return self._embed_reference()
        except NoVectorsError as error:
            return error

    def _embed_reference(self) -> Embedded:
        try:
            runtime = "auto" if self.encoder.card.direct else "torch"
            embedded = self.embed(self.items, self.embedder(runtime))
        except Exception as error:
            raised = error.message if isinstance(error, EmbedxError) else f"{type(error).__name__}: {error}"
            raise NoVectorsError(f"no vectors: {' '.join(raised.split())[:400]}") from error
        if not len(embedded.vectors):
            first = next(iter(embedded.failures.values()))
            raise NoVectorsError(f"no vectors: every item fails, the first one: {first.message}")
        return embedded

    def rows(self, positions: Sequence[int]) -> np.ndarray:
        """Return the reference vectors of some items, by their places among the items."""
        place = {position: row for row, position in enumerate(self.reference.positions.tolist())}
        return self.reference.vectors[[place[position] for position in positions]]
