"""The loop that embeds the items of a shard: fetch, prepare, batch, forward, check; bounded and overlapping.

Several encoders share it: each item is fetched once, and prepared once for all encoders that prepare alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedx.core.batches import TOKENS_STEP, plan_batches, round_up
from embedx.core.contracts import Broken, Encoder, EncoderCard, Forwarded, Prepared, Runtime
from embedx.core.errors import TooLargeError
from embedx.inference.clock import Clock
from embedx.inference.feed import Feed, Fetch
from embedx.inference.gates import is_interchangeable, measure_fidelity

MAX_BATCH_ITEMS = 512

NOT_FINITE = Broken("forward", "NotFinite", "the encoder's vector has NaN or infinite values")


@dataclass(frozen=True)
class Embedded:
    """The result of a shard.

    Attributes:
        vectors: (m, dim) float32, finite, of the items that succeeded, in their order.
        positions: (m,) int64, their positions among the items.
        failures: position -> why there is no vector.
        counts: sums: tokens or images, padded, batches, truncated.
    """

    vectors: np.ndarray
    positions: np.ndarray
    failures: dict[int, Broken]
    counts: dict[str, int]


class _Gathered:
    """The vectors of one output of a forward pass while they come in, at the rows of their items.

    Args:
        count: items of the shard.
        output: whose vectors.
    """

    def __init__(self, count: int, output: Output) -> None:
        self.output = output
        self.vectors = np.empty((count, output.card.dim), dtype=np.float32)
        self.done = np.zeros(count, dtype=bool)
        self.failures: dict[int, Broken] = {}
        self.sums: Counter[str] = Counter()

    def put(self, rows: np.ndarray, result: Forwarded) -> None:
        """Keep the vectors of some rows; those that failed or are not finite become failures."""
        vectors = result.vectors[:, self.output.columns]
        if self.output.card.normalized:
            # In float32 here, whatever precision the runtime used: a unit vector is promised to have length 1.
            with np.errstate(invalid="ignore", divide="ignore"):
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        good = np.isfinite(vectors).all(axis=1)
        good[list(result.failures)] = False
        self.vectors[rows[good]] = vectors[good]
        self.done[rows[good]] = True
        for place in np.flatnonzero(~good).tolist():
            self.failures[int(rows[place])] = result.failures.get(place, NOT_FINITE)

    def result(self) -> Embedded:
        """Return what was gathered, in the items' order."""
        positions = np.flatnonzero(self.done)
        vectors = self.vectors[positions] if len(positions) < len(self.done) else self.vectors
        return Embedded(vectors, positions, self.failures, dict(self.sums))


@dataclass(frozen=True)
class Output:
    """One encoder's part of what a forward pass yields.

    Attributes:
        card: the encoder's.
        columns: where its vector stands in the pass's.
    """

    card: EncoderCard
    columns: slice


def plan_outputs(cards: Sequence[EncoderCard]) -> tuple[Output, ...]:
    """Return the outputs of a pass that yields the vectors of some encoders side by side."""
    stops = np.cumsum([card.dim for card in cards]).tolist()
    return tuple(Output(card, slice(stop - card.dim, stop)) for card, stop in zip(cards, stops))


class Embedder:
    """An encoder on a runtime with the threads around it; shared by the tasks of a process.

    Args:
        encoder: prepares and collates.
        runtime: executes.
        prepare_threads: threads that fetch, decode and tokenise.
        cards: of the encoders whose vectors the runtime yields side by side; none is the encoder's own.
    """

    def __init__(
        self, encoder: Encoder, runtime: Runtime, prepare_threads: int, cards: Sequence[EncoderCard] = ()
    ) -> None:
        self.encoder = encoder
        self.runtime = runtime
        self.outputs = plan_outputs(cards or [encoder.card])
        self.preparing = ThreadPoolExecutor(prepare_threads, thread_name_prefix="embedx-prepare")
        self._forwarding = ThreadPoolExecutor(runtime.parallel_requests, thread_name_prefix="embedx-forward")
        if resizing := getattr(encoder, "resizing", None):
            resizing.ask(runtime.precision, self._resizes_alike)

    def embed(self, count: int, fetch: Fetch, clock: Clock | None = None, output: int = 0) -> Embedded:
        """Embed items 0..count-1; failed ones come back as values and cost no other item anything."""
        return embed_together([self], count, fetch, [clock or Clock()])[0][output]

    def forward_all(self, prepared: Prepared, start: int, clock: Clock, gathered: Sequence[_Gathered]) -> None:
        """Run prepared items through the encoder and gather their vectors, at their positions after `start`."""
        costs = self.encoder.cost(prepared)
        modality = self.encoder.card.modality
        step = TOKENS_STEP if modality == "text" else 1
        batches = plan_batches(costs, self.runtime.batch_budget(modality), MAX_BATCH_ITEMS, step)
        sums = gathered[0].sums
        for batch in batches:
            sums["cost"] += int(costs[batch].sum())
            sums["padded_cost"] += round_up(int(costs[batch].max()), step) * len(batch)
        sums["batches"] += len(batches)

        def run(batch: np.ndarray) -> None:
            entries = [prepared.items[position] for position in batch]
            result = self._forward(entries, clock)
            for part in gathered:
                part.put(prepared.positions[batch] + start, result)

        with clock.stage("wait_forward"):
            # In the caller's context: a remote encoder counts its requests with the meter of the task it works for.
            futures = [self._forwarding.submit(copy_context().run, run, batch) for batch in batches]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _forward(self, entries: Sequence[Any], clock: Clock) -> Forwarded:
        """Run one batch; an item that does not fit the device's memory by itself fails, and no other does."""
        with clock.stage("collate"):
            inputs = self.encoder.collate(entries)
        try:
            with clock.stage("forward"):
                return self._checked(self.runtime.forward(inputs), len(entries))
        except TooLargeError as error:
            if len(entries) == 1:
                nothing = np.full((1, self.outputs[-1].columns.stop), np.nan, dtype=np.float32)
                return Forwarded(nothing, {0: Broken.from_exception("forward", error, retryable=True)})
        alone = [self._forward([entry], clock) for entry in entries]
        failures = {place: one.failures[0] for place, one in enumerate(alone) if one.failures}
        return Forwarded(np.concatenate([one.vectors for one in alone]), failures)

    def _resizes_alike(self, plain: Sequence[np.ndarray], fast: Sequence[np.ndarray]) -> bool:
        """Whether vectors are the same of images resized in two ways, prepared as (3, height, width) uint8 each."""
        forwards = [self.runtime.forward(self.encoder.collate(images)) for images in (plain, fast)]
        reference, vectors = (self._checked(forward, len(plain)).vectors for forward in forwards)
        return is_interchangeable(measure_fidelity(vectors, reference), self.runtime.precision)

    def _checked(self, result: np.ndarray | Forwarded, count: int) -> Forwarded:
        forwarded = result if isinstance(result, Forwarded) else Forwarded(result)
        wanted = (count, self.outputs[-1].columns.stop)
        if forwarded.vectors.shape != wanted:
            raise ValueError(f"{self.encoder.card.ref} gave vectors of shape {forwarded.vectors.shape}, not {wanted}")
        return forwarded

    def close(self) -> None:
        """Stop the threads."""
        if resizing := getattr(self.encoder, "resizing", None):
            resizing.withdraw(self.runtime.precision, self._resizes_alike)
        self.preparing.shutdown(wait=False, cancel_futures=True)
        self._forwarding.shutdown(wait=False, cancel_futures=True)


def embed_together(
    embedders: Sequence[Embedder], count: int, fetch: Fetch, clocks: Sequence[Clock]
) -> list[list[Embedded]]:
    """Embed items 0..count-1 with several encoders of one modality; each item is fetched once.

    The encoders take turns over a window of items: one forward pass at a time already uses all cores.

    Args:
        embedders: what to run.
        count: items.
        fetch: gives them.
        clocks: one for each embedder; what several share counts to the first of them.

    Returns:
        For each embedder, what came of each of its outputs.
    """
    gathered = [[_Gathered(count, output) for output in embedder.outputs] for embedder in embedders]
    encoders = [embedder.encoder for embedder in embedders]
    for encoder in encoders if len(encoders) > 1 else ():
        if resizing := getattr(encoder, "resizing", None):
            resizing.forbid()
    feed = Feed(encoders, embedders[0].preparing, fetch, clocks)
    for start, prepared in feed.iterate(count):
        for embedder, clock, own, way in zip(embedders, clocks, gathered, feed.ways):
            mine = prepared[way]
            for part in own:
                part.failures.update({start + position: broken for position, broken in mine.failures.items()})
                part.sums["truncated"] += mine.truncated
                part.sums.update(mine.counts)
            embedder.forward_all(mine, start, clock, own)
    return [[part.result() for part in own] for own in gathered]
