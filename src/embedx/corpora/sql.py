"""A SQL query as a table: DuckDB reads files and databases; nothing is written and no extension is fetched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedx.core.errors import CorpusError, UsageError
from embedx.core.threads import cpu_quota, memory_quota_bytes
from embedx.corpora.columnar import PIECE_ROWS, batch_rows, column_type
from embedx.corpora.tables import Piece

SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_unsigned_extensions": "false",
}


@dataclass
class SqlTable:
    """The rows of a query, with the interface of `tables.Table`.

    Attributes:
        query: one SELECT.
        databases: DuckDB files that it may read; tables of the first need no prefix.
        path: what to call it.
        format: `sql`.
        blank_lines: always 0.
    """

    query: str
    databases: tuple[str, ...] = ()
    path: str = "--sql"
    format: str = "sql"
    blank_lines: int = 0

    def columns(self) -> dict[str, str]:
        """Return column -> type; the query is planned, not run.

        Raises:
            UsageError: it is no single SELECT, or does not compile.
        """
        with self._connected() as connection:
            # With LIMIT 0 the query is planned and not run. Only DESCRIBE gives the names as they were asked for.
            described = connection.execute(f"DESCRIBE {self._select()}").fetchall()
            if len({row[0] for row in described}) != len(described):
                raise UsageError("--sql gives two columns of one name", "Name them apart with AS")
            schema = connection.sql(f"SELECT * FROM ({self._select()}\n) LIMIT 0").to_arrow_table().schema
        return {field.name: column_type(field.type) for field in schema}

    def iterate_pieces(self, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """Yield the rows in the query's order.

        Raises:
            CorpusError: the query fails while it runs.
        """
        with self._connected() as connection:
            names = ", ".join('"' + name.replace('"', '""') + '"' for name in columns or ()) or "*"
            start = 0
            for batch in connection.sql(f"SELECT {names} FROM ({self._select()}\n)").to_arrow_reader(PIECE_ROWS):
                yield Piece(start, partial(batch_rows, batch, True), range(start, start + batch.num_rows), batch)
                start += batch.num_rows

    def _select(self) -> str:
        return self.query.strip().rstrip(";")

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        import duckdb

        try:
            statements = duckdb.extract_statements(self.query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("--sql is not one SELECT", "A corpus is the rows of one query; it changes nothing")
            with tempfile.TemporaryDirectory(prefix="embedx-sql-") as folder:
                connection = duckdb.connect(config=SETTINGS)
                try:
                    limit = max(256 * 2**20, min(2**30, memory_quota_bytes() // 8))
                    connection.execute(f"SET memory_limit = '{limit // 2**20}MiB'")
                    connection.execute(f"SET threads = {cpu_quota()}")
                    connection.execute(f"SET temp_directory = '{folder.replace(chr(39), chr(39) * 2)}'")
                    self._attach(connection)
                    connection.execute("SET lock_configuration = true")
                    yield connection
                finally:
                    connection.close()
        except (duckdb.Error, OSError) as error:  # OSError: what fails while its rows are streamed
            raise CorpusError(
                f"--sql fails: {' '.join(str(error).split())[:300]}", "Mend the query; try it in the duckdb shell"
            ) from None

    def _attach(self, connection: Any) -> None:
        for number, path in enumerate(self.databases):
            if not os.path.isfile(path):
                raise CorpusError(f"the database {path} does not exist", "With --sql, sources are DuckDB files")
            name = os.path.basename(path).partition(".")[0]
            quoted = '"' + name.replace('"', '""') + '"'
            connection.execute(f"ATTACH '{path.replace(chr(39), chr(39) * 2)}' AS {quoted} (READ_ONLY)")
            if number == 0:
                connection.execute(f"USE {quoted}")
