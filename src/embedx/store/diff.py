"""The diff of a listing with a store's version: SQL in DuckDB, in bounded memory, for any number of items.

Every listed item gets one kind:

new             not in the store: embed
changed         in the store with other content: embed, and drop the old row
updated         same content, other carried columns: rewrite the row, do not embed
unchanged       nothing to do
failed_before   failed in an earlier run, content unchanged: not tried again
adopted         already embedded by an interrupted run
adopted_failed  already tried and failed in an interrupted run
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds

from embedx.core.errors import StoreError
from embedx.core.paths import replacing
from embedx.core.threads import cpu_quota, memory_quota_bytes
from embedx.store.delta import Snapshot
from embedx.store.listing import ListingColumns
from embedx.store.shards import is_whole_arrow

EMBED = "('new', 'changed')"


@dataclass(frozen=True)
class Duplicate:
    """An id that more than one listed item has."""

    item_id: str
    count: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class FinishedShard:
    """A shard file that an interrupted run left.

    Attributes:
        run: the run.
        shard: its number in that run's plan.
        path: relative to the store.
        rows: rows of the file.
        failed_ids: items of the shard that failed.
    """

    run: str
    shard: int
    path: str
    rows: int
    failed_ids: tuple[str, ...]


class Diff:
    """Compares a listing with a snapshot. Use as a context manager: the database lives in `work_dir`.

    Args:
        listing: the Arrow file of the listing.
        columns: its carried columns.
        snapshot: the version to compare with.
        work_dir: for what does not fit the memory limit.
    """

    def __init__(self, listing: Path, columns: ListingColumns, snapshot: Snapshot, work_dir: Path) -> None:
        self._columns = columns
        self._snapshot = snapshot
        self._con = duckdb.connect()
        limit = max(256 * 2**20, min(2**30, memory_quota_bytes() // 8))
        self._do(f"SET memory_limit = '{limit // 2**20}MiB'")
        self._do(f"SET threads = {cpu_quota()}")
        self._do("SET preserve_insertion_order = false")
        self._do(f"SET temp_directory = '{str(work_dir / 'duckdb').replace(chr(39), chr(39) * 2)}'")
        self._con.register("listing", _dataset(listing))

    def __enter__(self) -> Diff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._con.close()

    def _do(self, statement: str, parameters: list[Any] | None = None) -> list[tuple]:
        # Fetched to the end at once: a half-read result would block the connection's next statement.
        rows: list[tuple] = self._con.execute(statement, parameters).fetchall()
        return rows

    # -- the listing alone ---------------------------------------------------------------------------------

    def duplicates(self, most: int = 3) -> list[Duplicate]:
        """Return a few ids that are listed more than once, in listing order."""
        rows = self._do(
            f"""SELECT item_id, count(*), list(DISTINCT source ORDER BY source) FROM listing
                GROUP BY item_id HAVING count(*) > 1 ORDER BY min(row) LIMIT {most}"""
        )
        return [Duplicate(item_id, count, tuple(sources)) for item_id, count, sources in rows]

    # -- the comparison ------------------------------------------------------------------------------------

    def compare(self, known_failures: Path | None, identities: list[Path], keep: str, retry_failed: bool) -> None:
        """Give every listed item its kind.

        Args:
            known_failures: the store's present `failures.arrow`.
            identities: `identities.arrow` of the published runs, oldest first; empty when an item's identity is
                its digest.
            keep: which of several items of one id counts: first or last.
            retry_failed: try items again that failed before.
        """
        order = "ASC" if keep != "last" else "DESC"
        self._create_current(identities)
        self._create_failed(known_failures, retry_failed)
        compared = ["source", *self._columns.listed_names]
        differs = " OR ".join(f"w.{_quoted(name)} IS DISTINCT FROM s.{_quoted(name)}" for name in compared)
        self._do(
            f"""CREATE TEMP TABLE decision AS
            WITH w AS (
                SELECT row, item_id, source, identity{self._listed()} FROM listing
                QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY row {order}) = 1
            )
            SELECT w.row, w.item_id, w.source, w.identity{self._listed("w.")},
                s.old_path, s.digest AS old_digest, ({differs}) AS differs,
                CASE WHEN s.item_id IS NULL AND f.identity = w.identity THEN 'failed_before'
                     WHEN s.item_id IS NULL THEN 'new'
                     WHEN s.identity IS DISTINCT FROM w.identity THEN 'changed'
                     WHEN {differs} THEN 'updated'
                     ELSE 'unchanged' END AS kind
            FROM w LEFT JOIN current s USING (item_id) LEFT JOIN failed f USING (item_id)"""
        )
        if doubled := self._scalar("SELECT count(*) - count(DISTINCT row) FROM decision"):
            raise StoreError(
                f"{doubled} items of {self._snapshot.root} stand there more than once", "Run embedx verify on the store"
            )

    def _create_current(self, identities: list[Path]) -> None:
        if not self._snapshot.files:
            nulls = "".join(f", {null}" for null in self._nulls())
            self._do(
                f"""CREATE TEMP TABLE current AS SELECT '' AS item_id, '' AS source, '' AS digest, '' AS old_path,
                    '' AS identity{nulls} WHERE false"""
            )
            return
        root = self._snapshot.root
        self._con.register(
            "file_names",
            pa.table(
                {
                    "__embedx_file": [str(root / file.path) for file in self._snapshot.files],
                    "old_path": [file.path for file in self._snapshot.files],
                }
            ),
        )
        names = [str(root / file.path) for file in self._snapshot.files]
        carried = "".join(
            f", r.{_quoted(column.name)} AS {_quoted('c_' + column.name)}" for column in self._columns.listed
        )
        identity, join = "r.digest", ""
        if identities:
            self._union("identity_log", identities, "item_id, identity")
            identity = "i.identity"
            join = """LEFT JOIN (SELECT item_id, arg_max(identity, generation) AS identity
                                 FROM identity_log GROUP BY item_id) i USING (item_id)"""
        self._do(
            f"""CREATE TEMP TABLE current AS
                SELECT r.item_id, r.source, r.digest, n.old_path, {identity} AS identity{carried}
                FROM read_parquet(?, filename = '__embedx_file', hive_partitioning = false) r
                JOIN file_names n USING (__embedx_file) {join}""",
            [names],
        )

    def _create_failed(self, known_failures: Path | None, retry_failed: bool) -> None:
        self._do("CREATE TEMP TABLE failed (item_id VARCHAR, identity VARCHAR)")
        if known_failures is not None and not retry_failed:
            self._con.register("failure_file", _dataset(known_failures))
            self._do("INSERT INTO failed SELECT DISTINCT item_id, identity FROM failure_file")

    def _union(self, name: str, paths: list[Path], select: str) -> None:
        parts = []
        for generation, path in enumerate(paths):
            self._con.register(f"{name}_{generation}", _dataset(path))
            parts.append(f"SELECT {select}, {generation} AS generation FROM {name}_{generation}")
        self._do(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(parts)}")

    def _listed(self, prefix: str = "") -> str:
        return "".join(f", {prefix}{_quoted(name)}" for name in self._columns.listed_names)

    # -- files whose size or time changed, but perhaps not their content --------------------------------------

    def iterate_suspects(self) -> Iterator[tuple[int, str, str]]:
        """Yield (row, locator, digest in the store) of items called changed only by their file's size or time."""
        yield from self._do(
            "SELECT d.row, l.locator, d.old_digest FROM decision d JOIN listing l USING (row) WHERE d.kind = 'changed'"
        )

    def mark_same_content(self, rows: list[int]) -> None:
        """Call items unchanged (or updated) whose digest turned out to be the store's."""
        self._con.register("same_rows", pa.table({"row": pa.array(rows, pa.int64())}))
        self._do(
            """UPDATE decision SET kind = CASE WHEN differs THEN 'updated' ELSE 'unchanged' END
               WHERE row IN (SELECT row FROM same_rows)"""
        )

    # -- what interrupted runs have done already -----------------------------------------------------------

    def adopt(self, plans: dict[str, Path], shards: list[FinishedShard], retry_failed: bool) -> None:
        """Mark the items that finished shards of interrupted runs hold already.

        Args:
            plans: run -> its `plan.arrow`; all with this listing's columns.
            shards: the finished shards.
            retry_failed: do not adopt failures.
        """
        self._con.register(
            "finished",
            pa.table(
                {
                    "run": pa.array([shard.run for shard in shards], pa.string()),
                    "shard": pa.array([shard.shard for shard in shards], pa.int32()),
                }
            ),
        )
        pairs = [(shard.run, shard.shard, item_id) for shard in shards for item_id in shard.failed_ids]
        self._con.register(
            "finished_failures",
            pa.table(
                {
                    "run": pa.array([pair[0] for pair in pairs], pa.string()),
                    "shard": pa.array([pair[1] for pair in pairs], pa.int32()),
                    "item_id": pa.array([pair[2] for pair in pairs], pa.string()),
                }
            ),
        )
        parts = []
        for number, (run, plan) in enumerate(plans.items()):
            self._con.register(f"open_plan_{number}", _dataset(plan))
            parts.append(
                f"SELECT '{run}' AS run, shard, item_id, source, identity{self._listed()} FROM open_plan_{number}"
            )
        same = " AND ".join(
            f"d.{_quoted(name)} IS NOT DISTINCT FROM p.{_quoted(name)}"
            for name in ("source", *self._columns.listed_names)
        )
        self._do(
            f"""CREATE TEMP TABLE finished_rows AS
                SELECT p.run, p.shard, p.item_id, f.item_id IS NOT NULL AS failed, d.row AS row
                FROM ({" UNION ALL ".join(parts)}) p JOIN finished s USING (run, shard)
                LEFT JOIN finished_failures f USING (run, shard, item_id)
                LEFT JOIN decision d ON d.item_id = p.item_id AND d.identity = p.identity AND {same}
                    AND d.kind IN {EMBED}"""
        )
        skip = "WHERE NOT failed" if retry_failed else ""
        self._do(
            f"""CREATE TEMP TABLE matched AS SELECT run, shard, item_id, failed, row FROM finished_rows {skip}
                QUALIFY row IS NOT NULL AND row_number() OVER (PARTITION BY row ORDER BY failed, run, shard) = 1"""
        )
        self._do(
            """UPDATE decision SET kind = CASE WHEN m.failed THEN 'adopted_failed' ELSE 'adopted' END
               FROM matched m WHERE decision.row = m.row"""
        )

    def matched_rows(self) -> dict[tuple[str, int], int]:
        """Return (run, shard) -> how many of the file's rows are wanted as they are."""
        rows = self._do("SELECT run, shard, count(*) FROM matched WHERE NOT failed GROUP BY ALL")
        return {(run, shard): count for run, shard, count in rows}

    def adopted_failures(self) -> dict[tuple[str, int], list[str]]:
        """Return (run, shard) -> the items whose failure there stands; each item stands in one shard only."""
        rows = self._do("SELECT run, shard, list(item_id) FROM matched WHERE failed GROUP BY ALL")
        return {(run, shard): ids for run, shard, ids in rows}

    # -- results -------------------------------------------------------------------------------------------

    def mark_removed(self, sources: list[str]) -> int:
        """Call removed what the store has of these sources and the listing has not; returns how many."""
        self._con.register("listed_sources", pa.table({"source": pa.array(sources, pa.string())}))
        self._do(
            """CREATE TEMP TABLE removed AS SELECT item_id, old_path AS path FROM current
               WHERE source IN (SELECT source FROM listed_sources) AND item_id NOT IN (SELECT item_id FROM decision)"""
        )
        return self._scalar("SELECT count(*) FROM removed")

    def counts(self) -> dict[str, int]:
        """Return how many items there are of each kind."""
        return dict(self._do("SELECT kind, count(*) FROM decision GROUP BY kind"))

    def iterate_rows(self, kinds: str = EMBED) -> Iterator[np.ndarray]:
        """Yield ascending listing rows (int64) of some kinds, in pieces."""
        reader = self._con.sql(f"SELECT row FROM decision WHERE kind IN {kinds} ORDER BY row").to_arrow_reader(65_536)
        for batch in reader:
            yield batch.column(0).to_numpy()

    def rewrites(self, partial: list[FinishedShard]) -> pa.Table:
        """Return the rows that change in files that stand already.

        Args:
            partial: finished shards of which only some rows are wanted.

        Returns:
            Table (path, item_id, update, source, carried...); a row without `update` is dropped.
        """
        nulls = "".join(f", {null}" for null in self._nulls())
        has_removed = self._scalar("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'removed'")
        parts = [
            f"""SELECT old_path AS path, item_id, kind = 'updated' AS update, source{self._listed()} FROM decision
                WHERE old_path IS NOT NULL AND kind NOT IN ('unchanged', 'failed_before')"""
        ]
        if has_removed:
            parts.append(f"SELECT path, item_id, false, ''{nulls} FROM removed")
        if partial:
            self._con.register(
                "partial",
                pa.table(
                    {
                        "run": pa.array([shard.run for shard in partial], pa.string()),
                        "shard": pa.array([shard.shard for shard in partial], pa.int32()),
                        "path": pa.array([shard.path for shard in partial], pa.string()),
                    }
                ),
            )
            parts.append(
                f"""SELECT p.path, r.item_id, false, ''{nulls} FROM finished_rows r JOIN partial p USING (run, shard)
                    LEFT JOIN matched m USING (run, shard, item_id)
                    WHERE NOT r.failed AND m.item_id IS NULL"""
            )
        return self._con.sql(f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY path, item_id").to_arrow_table()

    def write_identities(self, path: Path) -> None:
        """Write item -> identity of everything listed that the run looked at, for the next run's diff."""
        reader = self._con.sql(
            "SELECT item_id, identity FROM decision WHERE kind NOT IN ('failed_before')"
        ).to_arrow_reader(65_536)
        with (
            replacing(path) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)

    def surviving_failures(self, known_failures: Path | None, mirrored: list[str]) -> pa.Table | None:
        """Return the earlier failures that still stand: not listed now, or listed and not tried again.

        Args:
            known_failures: the store's present `failures.arrow`.
            mirrored: sources of which items that are not listed any more are forgotten.
        """
        if known_failures is None:
            return None
        self._con.register("old_failures", _dataset(known_failures))
        return self._con.sql(
            """SELECT o.* FROM old_failures o LEFT JOIN decision d USING (item_id)
               WHERE d.kind = 'failed_before' OR (d.kind IS NULL AND NOT list_contains(?, o.source))""",
            params=[mirrored],
        ).to_arrow_table()

    def _nulls(self) -> list[str]:
        return [
            f"CAST(NULL AS {_DUCK_TYPES[column.type]}) AS {_quoted('c_' + column.name)}"
            for column in self._columns.listed
        ]

    def _scalar(self, query: str) -> int:
        ((value,),) = self._do(query)
        return int(value)


def _dataset(path: Path) -> pds.Dataset:
    if not is_whole_arrow(path):
        raise StoreError(f"{path} cannot be read: it is damaged or missing", "Restore it, or run embedx verify")
    return pds.dataset([str(path)], format="ipc")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_DUCK_TYPES = {"string": "VARCHAR", "long": "BIGINT", "double": "DOUBLE", "boolean": "BOOLEAN"}
