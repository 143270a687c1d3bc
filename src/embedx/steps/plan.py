"""What a run does to a store, and what a plan is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from embedx.core.contracts import EncoderCard
from embedx.core.long_texts import TRUNCATED, LongTexts
from embedx.core.reports import ProgressHook
from embedx.core.specs import ExtractSpec
from embedx.corpora.listing import Corpus
from embedx.store.adoption import FinishedShard
from embedx.store.delta import Snapshot
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.reader import StoreCard
from embedx.store.rewrites import Rewrite
from embedx.store.runs import RunHistory
from embedx.store.shards import Receipt


@dataclass
class Plan:
    """What a run does.

    Attributes:
        layout: the run's paths.
        snapshot: the version it is based on.
        listed: rows of the listing.
        kinds: how many items of each kind (see `store.diff`).
        removed: items that leave the store because they left the sources.
        shard_rows: items of each shard to embed.
        adopted: finished shards of interrupted runs that are used as they are.
        rewrites: files to write again.
        failures: failed items that stand already: carried over, and adopted from interrupted runs.
        adopted_failed: how many of these are adopted.
        duplicates: listed items dropped because another has their id.
        forgotten: earlier failures that stand no longer.
        new_rows: about how many rows what is to embed will have; as many as items, unless texts have chunks.
    """

    layout: RunLayout
    snapshot: Snapshot
    listed: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    shard_rows: list[int] = field(default_factory=list)
    adopted: list[tuple[FinishedShard, Receipt]] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    failures: list[pa.Table] = field(default_factory=list)
    adopted_failed: int = 0
    duplicates: int = 0
    forgotten: int = 0
    new_rows: int = 0

    @property
    def to_embed(self) -> int:
        """Items that are left to embed."""
        return self.kinds.get("new", 0) + self.kinds.get("changed", 0)

    @property
    def adopted_items(self) -> int:
        """Items that interrupted runs have done."""
        return self.kinds.get("adopted", 0) + self.adopted_failed

    @property
    def planned(self) -> int:
        """Items of the run: to embed, and adopted."""
        return self.to_embed + self.adopted_items

    @property
    def is_empty(self) -> bool:
        """Whether the store is up to date."""
        return not self.planned and not self.rewrites and not self.forgotten

    @property
    def new_rewrites(self) -> list[tuple[int, Rewrite]]:
        """(shard number, rewrite) of the files that get a successor; numbered after the embedded shards."""
        kept = [rewrite for rewrite in self.rewrites if rewrite.rows]
        return [(len(self.shard_rows) + number, rewrite) for number, rewrite in enumerate(kept)]


@dataclass(frozen=True)
class Planning:
    """What a plan is made from."""

    spec: ExtractSpec
    corpus: Corpus
    card: EncoderCard
    store_card: StoreCard | None
    snapshot: Snapshot
    history: RunHistory
    store: StoreLayout
    progress: ProgressHook

    @property
    def long(self) -> LongTexts:
        """How long texts are read."""
        return self.store_card.long if self.store_card else self.spec.long or TRUNCATED
