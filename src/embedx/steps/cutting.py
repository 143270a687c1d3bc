"""Cutting what several stores need into shards: rows that the same stores need are one shard of each, read once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedx.core.errors import UsageError
from embedx.core.shards import SHARD_FLOPS, ShardCutter, iterate_groups
from embedx.core.specs import shard_items_override
from embedx.steps.plan import Plan, Planning
from embedx.store.listing import PlanWriter, iterate_listing

BYTES_PER_TOKEN = 4
"""Of English text: a static estimate for cutting shards, never for batches."""

WEB_SHARD_ITEMS = 200
"""The most images of a shard that are fetched from web servers: also where all shards in work share a slow server's few
connections, they are done before the watchdog barks."""


@dataclass(frozen=True)
class SharedShard:
    """Rows that some stores need alike: what one task reads, and embeds for each of them.

    Attributes:
        numbers: store -> the shard's number in that store's plan; stores by their position among the run's.
        rows: how many.
    """

    numbers: dict[int, int]
    rows: int


def cut_shards(
    plannings: Sequence[Planning], plans: Sequence[Plan], wanted: Sequence[np.ndarray], listing: Path
) -> list[SharedShard]:
    """Copy the rows to embed from the listing into each store's `plan.arrow`, in shards.

    A shard holds rows that exactly the same stores need, in listing order. So a new run cuts all rows for all stores;
    where one store has more than another, the rest has shards of its own.

    Args:
        plannings: of the stores.
        plans: of the stores; gets `shard_rows` and `new_rows`.
        wanted: of the stores: (listed,) bool, the rows to embed.
        listing: the file of all rows.

    Returns:
        The shards, those that most stores share first.
    """
    # A bit for each store: with up to eight of them a byte an item.
    needed = np.zeros(plans[0].listed, dtype=np.min_scalar_type((1 << len(plans)) - 1))
    for place, rows in enumerate(wanted):
        needed[rows] |= needed.dtype.type(1 << place)
    combinations = sorted(
        (int(bits) for bits in set(np.unique(needed)) - {0}), key=lambda bits: (-bits.bit_count(), bits)
    )
    shards: list[SharedShard] = []
    with ExitStack() as stack:
        writers = {
            place: stack.enter_context(PlanWriter(plan.layout.file("plan.arrow"), plannings[0].corpus.columns))
            for place, plan in enumerate(plans)
            if plan.to_embed
        }
        for bits in combinations:
            stores = [place for place in writers if bits >> place & 1]
            sharing = _Sharing(stores, [plannings[place] for place in stores], [plans[place] for place in stores])
            shards += sharing.cut(listing, needed == bits, {place: writers[place] for place in stores})
    for plan in plans:
        plan.new_rows += plan.to_embed
        if sum(plan.shard_rows) != plan.to_embed:
            raise UsageError("the plan lost items", "This is a bug in embedx: please report it with the command")
    return shards


@dataclass(frozen=True)
class _Sharing:
    """Stores that need the same rows.

    Attributes:
        stores: their positions among the run's.
        plannings: of these.
        plans: of these.
    """

    stores: list[int]
    plannings: list[Planning]
    plans: list[Plan]

    def cut(self, listing: Path, chosen: np.ndarray, writers: dict[int, PlanWriter]) -> list[SharedShard]:
        """Write the chosen rows as shards of every store; returns them."""
        cutter = ShardCutter(max(planning.card.dim for planning in self.plannings), shard_items_override())
        before = {store: len(plan.shard_rows) for store, plan in zip(self.stores, self.plans)}
        rows: list[int] = []
        for batch in iterate_listing(listing):
            places = np.flatnonzero(chosen[batch.column("row").to_numpy()])
            if not len(places):
                continue
            batch = batch.take(pa.array(places))
            sizes = pc.fill_null(pc.binary_length(batch.column("content")), 0).to_numpy(zero_copy_only=False)
            for shard, start, stop in iterate_groups(cutter.assign(self._work(batch, sizes), sizes)):
                rows += [0] * (shard + 1 - len(rows))
                rows[shard] += stop - start
                for store, writer in writers.items():
                    writer.add(before[store] + shard, batch.slice(start, stop - start))
        for plan in self.plans:
            plan.shard_rows += rows
        return [
            SharedShard({store: before[store] + shard for store in self.stores}, count)
            for shard, count in enumerate(rows)
        ]

    def _work(self, batch: pa.RecordBatch, sizes: np.ndarray) -> np.ndarray:
        """Return (n,) float64, the work that each row makes for all stores; counts the rows that texts will have."""
        work = np.zeros(len(sizes), dtype=np.float64)
        for planning, plan in zip(self.plannings, self.plans):
            card = planning.card
            if card.modality != "text":
                work += card.flops
                continue
            max_tokens = None if planning.long.chunks else card.input.get("max_tokens")
            tokens = np.maximum(sizes / BYTES_PER_TOKEN, 2)
            work += card.flops * (np.minimum(tokens, max_tokens) if max_tokens else tokens)
            if planning.long.has_rows:
                # Half of what the encoder reads: rather too many rows than too few for the disk.
                plan.new_rows += int((2 * tokens / card.input["max_tokens"]).sum())
        if self.plannings[0].card.modality == "image":
            from_web = pc.match_substring_regex(batch.column("locator"), "^https?://").to_numpy(False)
            work[from_web] = np.maximum(work[from_web], SHARD_FLOPS / WEB_SHARD_ITEMS)
        return work
