"""Adoption: what interrupted runs have embedded already is taken over, item by item."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from embedx.store.database import Database, quoted
from embedx.store.files import File
from embedx.store.listing import ListingColumns, open_groups


@dataclass(frozen=True)
class FinishedShard:
    """A shard file that an interrupted run left.

    Attributes:
        run: the run.
        shard: its number in that run's plan.
        path: relative to the store.
        rows: rows of the file.
        failed_ids: items of the shard that failed.
        items: items that have rows in the file.
    """

    run: str
    shard: int
    path: str
    rows: int
    failed_ids: tuple[str, ...]
    items: int


def adopt(
    database: Database,
    columns: ListingColumns,
    plans: dict[str, File],
    shards: list[FinishedShard],
    retry_failed: bool,
) -> None:
    """Mark the items that finished shards of interrupted runs hold already.

    Leaves the tables `finished_rows`, every row of the finished shards, and `matched`, those that are wanted as
    they are; each listed item is matched once at most.

    Args:
        database: with the tables `listing` and `decision` of `store.diff`.
        columns: of the listing.
        plans: run -> its `plan.arrow`; all with this listing's columns.
        shards: the finished shards.
        retry_failed: do not adopt failures.
    """
    _register(database, shards)
    listed = "".join(f", {quoted(name)}" for name in columns.listed_names)
    wanted = ["shard", "item_id", "source", "identity", *columns.listed_names]
    parts = []
    for number, (run, plan) in enumerate(plans.items()):
        database.register(f"open_plan_{number}", open_groups(plan.fetch(database.scratch), wanted))
        parts.append(f"SELECT '{run}' AS run, shard, item_id, source, identity{listed} FROM open_plan_{number}")
    same = " AND ".join(
        f"d.{quoted(name)} IS NOT DISTINCT FROM p.{quoted(name)}" for name in ("source", *columns.listed_names)
    )
    database.do(
        f"""CREATE TEMP TABLE finished_rows AS
            SELECT p.run, p.shard, p.item_id, f.item_id IS NOT NULL AS failed, d.row AS row
            FROM ({" UNION ALL ".join(parts)}) p JOIN finished s USING (run, shard)
            LEFT JOIN finished_failures f USING (run, shard, item_id)
            LEFT JOIN (SELECT l.* FROM listing l JOIN decision USING (row) WHERE kind IN ('new', 'changed')) d
                ON d.item_id = p.item_id AND d.identity = p.identity AND {same}"""
    )
    skip = "WHERE NOT failed" if retry_failed else ""
    database.do(
        f"""CREATE TEMP TABLE matched AS SELECT run, shard, item_id, failed, row FROM finished_rows {skip}
            QUALIFY row IS NOT NULL AND row_number() OVER (PARTITION BY row ORDER BY failed, run, shard) = 1"""
    )
    database.do(
        """UPDATE decision SET kind = CASE WHEN m.failed THEN 'adopted_failed' ELSE 'adopted' END
           FROM matched m WHERE decision.row = m.row"""
    )


def matched_rows(database: Database) -> dict[tuple[str, int], int]:
    """Return (run, shard) -> how many of the file's items are wanted as they are."""
    rows = database.do("SELECT run, shard, count(*) FROM matched WHERE NOT failed GROUP BY ALL")
    return {(run, shard): count for run, shard, count in rows}


def adopted_failures(database: Database) -> dict[tuple[str, int], list[str]]:
    """Return (run, shard) -> the items whose failure there stands; each item stands in one shard only."""
    rows = database.do("SELECT run, shard, list(item_id) FROM matched WHERE failed GROUP BY ALL")
    return {(run, shard): ids for run, shard, ids in rows}


def _register(database: Database, shards: list[FinishedShard]) -> None:
    database.register(
        "finished",
        pa.table(
            {
                "run": pa.array([shard.run for shard in shards], pa.string()),
                "shard": pa.array([shard.shard for shard in shards], pa.int32()),
                "path": pa.array([shard.path for shard in shards], pa.string()),
            }
        ),
    )
    failed = [(shard.run, shard.shard, item_id) for shard in shards for item_id in shard.failed_ids]
    database.register(
        "finished_failures",
        pa.table(
            {
                "run": pa.array([run for run, _, _ in failed], pa.string()),
                "shard": pa.array([shard for _, shard, _ in failed], pa.int32()),
                "item_id": pa.array([item_id for _, _, item_id in failed], pa.string()),
            }
        ),
    )
