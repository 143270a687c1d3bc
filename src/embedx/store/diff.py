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

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedx.core.errors import StoreError
from embedx.store import adoption
from embedx.store.adoption import FinishedShard
from embedx.store.database import Database, quoted
from embedx.store.delta import Snapshot
from embedx.store.files import File, as_file, open_files
from embedx.store.listing import ListingColumns
from embedx.store.schema import CHUNK_ID, store_schema

KINDS = "('new', 'changed', 'updated', 'unchanged', 'failed_before', 'adopted', 'adopted_failed')"


@dataclass(frozen=True)
class Duplicate:
    """An id that more than one listed item has."""

    item_id: str
    count: int
    sources: tuple[str, ...]


class Diff:
    """Compares a listing with a snapshot.

    Args:
        database: to work in.
        listing: the Parquet file of the listing.
        columns: its carried columns.
        snapshot: the version to compare with.
        has_chunks: whether an item may have several rows; they stand and go together.
    """

    def __init__(
        self, database: Database, listing: Path, columns: ListingColumns, snapshot: Snapshot, has_chunks: bool = False
    ) -> None:
        self._database = database
        self._columns = columns
        self._snapshot = snapshot
        self._has_chunks = has_chunks
        self._has_adopted = False
        database.register_parquet("listing", listing)
        # By hash first: to find the few ids that are doubled, 8 bytes of each of 100 M are enough.
        database.do(
            """CREATE TEMP TABLE doubled AS
               SELECT item_id, count(*) AS count, min(row) AS first, max(row) AS last FROM listing
               WHERE hash(item_id) IN (SELECT hash(item_id) FROM listing GROUP BY 1 HAVING count(*) > 1)
               GROUP BY item_id HAVING count(*) > 1"""
        )

    # -- the listing alone ---------------------------------------------------------------------------------

    def duplicates(self, most: int = 3) -> list[Duplicate]:
        """Return a few ids that are listed more than once, in listing order."""
        rows = self._database.do(
            f"""SELECT item_id, any_value(d.count), list(DISTINCT source ORDER BY source)
                FROM listing JOIN (SELECT * FROM doubled ORDER BY first LIMIT {most}) d USING (item_id)
                GROUP BY item_id ORDER BY any_value(d.first)"""
        )
        return [Duplicate(item_id, count, tuple(sources)) for item_id, count, sources in rows]

    def chunk_like_id(self) -> str | None:
        """Return a listed id that ends like that of a chunk, or None."""
        rows = self._database.do(f"SELECT item_id FROM listing WHERE regexp_matches(item_id, '{CHUNK_ID}') LIMIT 1")
        return rows[0][0] if rows else None

    # -- the comparison ------------------------------------------------------------------------------------

    def compare(self, known_failures: File | None, identities: list[File], keep: str, retry_failed: bool) -> None:
        """Give every listed item its kind.

        Args:
            known_failures: the store's present `failures.arrow`.
            identities: `identities.arrow` of the published runs, oldest first; empty when an item's identity is
                its digest.
            keep: which of several items of one id counts: first or last.
            retry_failed: try items again that failed before.
        """
        kept = "last" if keep == "last" else "first"
        self._database.do(
            f"CREATE TEMP TABLE dropped AS SELECT row FROM listing JOIN doubled USING (item_id) WHERE row != {kept}"
        )
        self._create_current(identities)
        self._create_failed(known_failures, retry_failed)
        compared = ["source", *self._columns.listed_names]
        differs = " OR ".join(f"l.{quoted(name)} IS DISTINCT FROM s.{quoted(name)}" for name in compared)
        self._database.do(f"CREATE TYPE kinds AS ENUM {KINDS}")
        # Of each item only numbers: what a later step needs of its texts, it finds in the listing by row.
        self._database.do(
            f"""CREATE TEMP TABLE decision AS
            SELECT l.row, s.file, s.rows, ({differs}) AS differs,
                CAST(CASE WHEN s.item_id IS NULL AND f.identity = l.identity THEN 'failed_before'
                     WHEN s.item_id IS NULL THEN 'new'
                     WHEN s.identity IS DISTINCT FROM l.identity THEN 'changed'
                     WHEN {differs} THEN 'updated'
                     ELSE 'unchanged' END AS kinds) AS kind
            FROM listing l LEFT JOIN current s USING (item_id) LEFT JOIN failed f USING (item_id)"""
        )
        rows = self._database.scalar("SELECT count(*) FROM decision")
        if doubled := rows - self._database.scalar("SELECT count(*) FROM listing"):
            raise StoreError(
                f"{doubled} items of {self._snapshot.root} stand there more than once", "Run embedx verify on the store"
            )
        self._database.do("DELETE FROM decision WHERE row IN (SELECT row FROM dropped)")

    def _create_current(self, identities: list[File]) -> None:
        self._database.do("CREATE TEMP TABLE removed (item_id VARCHAR, file INTEGER, rows INTEGER)")
        names = [file.path for file in self._snapshot.files]
        files = {"path": pa.array(names, pa.string()), "file": pa.array(range(len(names)), pa.int32())}
        self._database.register("files", pa.table(files))
        if not names:
            self._database.do(
                f"""CREATE TEMP TABLE current AS SELECT '' AS item_id, '' AS source, '' AS digest, 0::INTEGER AS file,
                    0::INTEGER AS rows, '' AS identity{self._nulls()} WHERE false"""
            )
            return
        carried = "".join(
            f", r.{quoted(column.name)} AS {quoted('c_' + column.name)}" for column in self._columns.listed
        )
        identity, join = "r.digest", ""
        if identities:
            self._union("identity_log", identities, "item_id, identity")
            identity = "i.identity"
            join = """LEFT JOIN (SELECT item_id, arg_max(identity, generation) AS identity
                                 FROM identity_log GROUP BY item_id) i USING (item_id)"""
        items, parameters = self._items(names)
        self._database.do(
            f"""CREATE TEMP TABLE current AS
                SELECT r.item_id, r.source, r.digest, n.file, r.rows, {identity} AS identity{carried}
                FROM {items} r JOIN files n ON r.__embedx_file = n.path {join}""",
            parameters,
        )

    def _items(self, names: list[str]) -> tuple[str, list]:
        """Return the items of files as a table of SQL, with the number of their `rows`: the chunks of one are equal."""
        schema = store_schema(self._columns.listed)
        schema = schema.remove(schema.get_field_index("vector"))
        scan, parameters = self._database.scan(open_files(self._snapshot.root), names, schema)
        if not self._has_chunks:
            return f"(SELECT *, 1::INTEGER AS rows FROM {scan})", parameters
        columns = ["source", "digest", *(column.name for column in self._columns.listed)]
        own = ", ".join(f"any_value({quoted(name)}) AS {quoted(name)}" for name in columns)
        items = f"""(SELECT coalesce(parent_id, item_id) AS item_id, __embedx_file, {own}, count(*)::INTEGER AS rows
                     FROM {scan} GROUP BY ALL)"""
        return items, parameters

    def _create_failed(self, known_failures: File | None, retry_failed: bool) -> None:
        self._database.do("CREATE TEMP TABLE failed (item_id VARCHAR, identity VARCHAR)")
        if known_failures is not None and not retry_failed:
            self._database.register_file("failure_file", known_failures)
            self._database.do("INSERT INTO failed SELECT DISTINCT item_id, identity FROM failure_file")

    def _union(self, name: str, paths: list[File], select: str) -> None:
        parts = []
        for generation, path in enumerate(paths):
            self._database.register_file(f"{name}_{generation}", path)
            parts.append(f"SELECT {select}, {generation} AS generation FROM {name}_{generation}")
        self._database.do(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(parts)}")

    def _listed(self) -> str:
        return "".join(f", {quoted(name)}" for name in self._columns.listed_names)

    # -- files whose size or time changed, but perhaps not their content --------------------------------------

    def write_suspects(self, path: Path) -> None:
        """Write (row, locator, old_digest) of the items called changed only by their file's size or time."""
        _write(
            as_file(path),
            self._database.stream(
                "SELECT l.row, l.locator, c.digest AS old_digest "
                "FROM listing l JOIN decision d USING (row) JOIN current c USING (item_id) WHERE d.kind = 'changed'"
            ),
        )

    def find_replaced(self, labels: list[str]) -> tuple[str, str, str, int] | None:
        """Find changed items of some sources that stand in the store as another source's.

        Returns:
            (an item, its source, the store's source, how many there are of these two), or None.
        """
        self._database.register("derived", pa.table({"source": pa.array(labels, pa.string())}))
        rows = self._database.do(
            """SELECT min(item_id), l.source, c.source, count(*)
               FROM listing l JOIN decision d USING (row) JOIN current c USING (item_id)
               WHERE d.kind = 'changed' AND l.source != c.source AND l.source IN (SELECT source FROM derived)
               GROUP BY ALL ORDER BY count(*) DESC LIMIT 1"""
        )
        return rows[0] if rows else None

    def mark_same_content(self, rows: np.ndarray) -> None:
        """Call items unchanged (or updated) whose digest turned out to be the store's; (n,) int64 listing rows."""
        self._database.register("same_rows", pa.table({"row": pa.array(rows, pa.int64())}))
        self._database.do(
            """UPDATE decision SET kind = CASE WHEN differs THEN 'updated' ELSE 'unchanged' END
               WHERE row IN (SELECT row FROM same_rows)"""
        )

    # -- what interrupted runs have done already -----------------------------------------------------------

    def adopt(self, plans: dict[str, File], shards: list[FinishedShard], retry_failed: bool) -> dict[tuple, int]:
        """Mark the items that finished shards of interrupted runs hold already (see `store.adoption`).

        Returns:
            (run, shard) -> how many of the file's rows are wanted as they are.
        """
        adoption.adopt(self._database, self._columns, plans, shards, retry_failed)
        self._has_adopted = True
        return adoption.matched_rows(self._database)

    def adopted_failures(self) -> dict[tuple[str, int], list[str]]:
        """Return (run, shard) -> the items whose failure there stands."""
        return adoption.adopted_failures(self._database)

    # -- results -------------------------------------------------------------------------------------------

    def mark_removed(self, sources: list[str]) -> int:
        """Call removed what the store has of these sources and the listing has not; returns how many."""
        self._database.register("listed_sources", pa.table({"source": pa.array(sources, pa.string())}))
        self._database.do(
            """INSERT INTO removed SELECT item_id, file, rows FROM current c ANTI JOIN listing l USING (item_id)
               WHERE c.source IN (SELECT source FROM listed_sources)"""
        )
        return self._database.scalar("SELECT count(*) FROM removed")

    def stored(self) -> int:
        """Return how many items the store has."""
        return self._database.scalar("SELECT count(*) FROM current")

    def counts(self) -> dict[str, int]:
        """Return how many items there are of each kind."""
        return dict(self._database.do("SELECT kind, count(*) FROM decision GROUP BY kind"))

    def rows_to_embed(self, listed: int) -> np.ndarray:
        """Return (listed,) bool: the listing's rows to embed. A byte an item, where sorted numbers would take eight."""
        wanted = np.zeros(listed, dtype=bool)
        for batch in self._database.stream("SELECT row FROM decision WHERE kind IN ('new', 'changed')"):
            wanted[batch.column(0).to_numpy()] = True
        return wanted

    def iterate_rewrites(self, partial: list[FinishedShard]) -> pa.RecordBatchReader:
        """Stream the rows that change in files that stand already, by file.

        Args:
            partial: finished shards of which only some rows are wanted.

        Returns:
            Batches (path, item_id, update, rows, source, carried...); an item without `update` is dropped.
        """
        parts = [
            f"""SELECT path, item_id, kind = 'updated' AS update, rows, source{self._listed()}
                FROM listing JOIN decision USING (row) JOIN files USING (file)
                WHERE kind NOT IN ('unchanged', 'failed_before')""",
            f"SELECT path, item_id, false, rows, ''{self._nulls()} FROM removed JOIN files USING (file)",
        ]
        if self._has_adopted:
            self._create_partial(partial)
            parts.append(
                f"""SELECT s.path, r.item_id, false, p.rows, ''{self._nulls()}
                    FROM finished_rows r JOIN finished s USING (run, shard) JOIN partial p USING (path, item_id)
                    LEFT JOIN matched m USING (run, shard, item_id)
                    WHERE NOT r.failed AND m.item_id IS NULL"""
            )
        return self._database.stream(f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY path, item_id")

    def _create_partial(self, partial: list[FinishedShard]) -> None:
        """Create the table of (path, item_id, rows) of finished shards."""
        if partial:
            items, parameters = self._items([shard.path for shard in partial])
            self._database.do(
                f"CREATE TEMP TABLE partial AS SELECT __embedx_file AS path, item_id, rows FROM {items}", parameters
            )
        else:
            self._database.do("CREATE TEMP TABLE partial (path VARCHAR, item_id VARCHAR, rows INTEGER)")

    def write_identities(self, file: File) -> None:
        """Write item -> identity of everything the store has after this run, for the next run's diff."""
        _write(
            file,
            self._database.stream(
                """SELECT item_id, identity FROM listing JOIN decision USING (row) WHERE kind != 'failed_before'
                   UNION ALL
                   SELECT item_id, identity FROM current ANTI JOIN listing USING (item_id)
                       ANTI JOIN removed USING (item_id) WHERE identity IS NOT NULL"""
            ),
        )

    def surviving_failures(self, known_failures: File | None, mirrored: list[str]) -> pa.Table | None:
        """Return the earlier failures that still stand: not listed now, or listed and not tried again.

        Args:
            known_failures: the store's present `failures.arrow`.
            mirrored: sources of which items that are not listed any more are forgotten.
        """
        if known_failures is None:
            return None
        self._database.register_file("old_failures", known_failures)
        return self._database.table(
            """SELECT o.* FROM old_failures o
               LEFT JOIN (SELECT item_id, kind FROM listing JOIN decision USING (row)
                          WHERE item_id IN (SELECT item_id FROM old_failures)) d USING (item_id)
               WHERE d.kind = 'failed_before' OR (d.kind IS NULL AND NOT list_contains(?, o.source))""",
            [mirrored],
        )

    def _nulls(self) -> str:
        return "".join(
            f", CAST(NULL AS {_DUCK_TYPES[column.type]}) AS {quoted('c_' + column.name)}"
            for column in self._columns.listed
        )


def _write(file: File, batches: pa.RecordBatchReader) -> None:
    with file.writing() as path, pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


_DUCK_TYPES = {"string": "VARCHAR", "long": "BIGINT", "double": "DOUBLE", "boolean": "BOOLEAN"}
