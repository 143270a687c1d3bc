"""DuckDB in a bounded piece of memory, for joins of any number of items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from embedx.core.errors import StoreError
from embedx.core.threads import cpu_quota, memory_quota_bytes
from embedx.store.files import File, Files, LocalFiles, as_file, read_all
from embedx.store.shards import is_whole_arrow

STREAM_ROWS = 65_536
"""Rows of a batch of a streamed result."""


class Database:
    """A connection; what does not fit its memory limit goes to a folder. Open it with `open_database`.

    Args:
        connection: to DuckDB.
        scratch: a local folder.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, scratch: Path) -> None:
        self._connection = connection
        self.scratch = scratch
        self._scans = 0

    def do(self, statement: str, parameters: list[Any] | None = None) -> list[tuple]:
        """Run a statement and return its rows; for small results."""
        # Fetched to the end at once: a half-read result would block the connection's next statement.
        rows: list[tuple] = self._connection.execute(statement, parameters).fetchall()
        return rows

    def scalar(self, query: str) -> int:
        """Return the one number of a query."""
        ((value,),) = self.do(query)
        return int(value)

    def stream(self, query: str) -> pa.RecordBatchReader:
        """Return a result in batches; to be read to its end before the next statement."""
        return self._connection.sql(query).to_arrow_reader(STREAM_ROWS)

    def table(self, query: str, parameters: list[Any] | None = None) -> pa.Table:
        """Return a result whole."""
        return self._connection.sql(query, params=parameters).to_arrow_table()

    def register(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        """Make an Arrow table known under a name; a reader can be read once."""
        self._connection.register(name, table)

    def register_parquet(self, name: str, path: Path) -> None:
        """Make a Parquet file known under a name, without reading it."""
        self._connection.register(name, self._connection.read_parquet(str(path)))

    def register_file(self, name: str, file: File) -> None:
        """Make an Arrow file known under a name, without reading it; one that lies far away is fetched first.

        Raises:
            StoreError: it is missing or damaged.
        """
        import pyarrow.dataset as pds  # here, because it imports pandas: 0.3 s of every start

        path: Path | None = None
        with suppress(FileNotFoundError):
            path = file.fetch(self.scratch)
        if path is None or not is_whole_arrow(as_file(path)):
            raise StoreError(f"{file} cannot be read: it is damaged or missing", "Restore it, or run embedx verify")
        self._connection.register(name, pds.dataset([str(path)], format="ipc"))

    def scan(self, files: Files, names: list[str], schema: pa.Schema) -> tuple[str, list[Any]]:
        """Return a table of SQL, and its parameters, of some columns of Parquet files; to be read once.

        `__embedx_file` says which of the names a row comes from.
        """
        if isinstance(files, LocalFiles):
            # Only where it lies on a disk can DuckDB read it by itself.
            root = str(files.root)
            paths = [f"{root}/{name}" for name in names]
            columns = ", ".join(quoted(name) for name in schema.names)
            return (
                f"""(SELECT {columns}, substr(__embedx_path, {len(root) + 2}) AS __embedx_file
                     FROM read_parquet(?, filename = '__embedx_path', hive_partitioning = false))""",
                [paths],
            )
        self._scans += 1
        self.register(f"scan_{self._scans}", _stream_columns(files, names, schema))
        return f"scan_{self._scans}", []


@contextmanager
def open_database(work_dir: Path) -> Iterator[Database]:
    """Open a database for the time of a block.

    Args:
        work_dir: for what does not fit the memory limit.
    """
    connection = duckdb.connect()
    try:
        limit = max(256 * 2**20, min(2**29, memory_quota_bytes() // 8))
        connection.execute(f"SET memory_limit = '{limit // 2**20}MiB'")
        connection.execute(f"SET threads = {cpu_quota()}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET temp_directory = '{str(work_dir / 'duckdb').replace(chr(39), chr(39) * 2)}'")
        yield Database(connection, work_dir)
    finally:
        connection.close()


def _stream_columns(files: Files, names: list[str], schema: pa.Schema) -> pa.RecordBatchReader:
    """Read columns of many Parquet files, several at a time: one request for a small file, few for a large one."""

    def read(name: str) -> pa.Table:
        with files.open(name) as opened:
            table = pq.ParquetFile(opened, pre_buffer=True).read(schema.names).cast(schema)
        return table.append_column("__embedx_file", pa.array([name] * len(table), pa.string()))

    with_file = schema.append(pa.field("__embedx_file", pa.string()))
    batches = (batch for table in read_all(files, read, names) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(with_file, batches)


def quoted(name: str) -> str:
    """Return a column's name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'
