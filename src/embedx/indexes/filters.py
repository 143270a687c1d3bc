"""Filters: a SQL condition over ids and carried columns, turned into the rows that qualify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedx.core.errors import UsageError

if TYPE_CHECKING:
    from embedx.indexes.items import Items


def select_rows(items: Items, where: str) -> np.ndarray:
    """Evaluate a DuckDB condition on every item.

    The condition sees one table and nothing else: no other file, no Python variable, no setting.

    Args:
        items: the items of an index.
        where: a boolean expression over `item_id` and the carried columns.

    Returns:
        (n,) bool, true where it holds; NULL counts as false.

    Raises:
        UsageError: the condition is not one, or holds for no item.
    """
    import duckdb
    import pyarrow.dataset as ds

    # One thread, so that the scan numbers the rows in the file's order; pyarrow decodes in parallel anyway.
    with duckdb.connect(config={"threads": 1}) as connection:
        rows = connection.from_arrow(ds.dataset(items.path, format="parquet"))
        for setting in (
            "enable_external_access = false",
            "python_enable_replacements = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        try:
            # Parsed as an expression: text that ends it and starts another statement is a syntax error.
            condition = duckdb.SQLExpression(where).cast("BOOLEAN").alias("embedx_keep")
            number = duckdb.SQLExpression("row_number() OVER ()").alias("embedx_row")
            numbered = rows.select(duckdb.StarExpression(), number)
            result = numbered.select(duckdb.ColumnExpression("embedx_row"), condition).fetchnumpy()
        except duckdb.Error as error:
            raise _broken(items, where, str(error)) from error
    order = np.asarray(result["embedx_row"], dtype=np.int64) - 1
    if len(order) != items.count:
        raise _broken(items, where, "it must hold or not hold for each item by itself")
    mask = np.zeros(items.count, dtype=bool)
    mask[order] = np.ma.filled(result["embedx_keep"], False).astype(bool)
    if not mask.any():
        raise UsageError(f"--where {where!r} holds for none of the {items.count:,} items", "Relax the condition")
    return mask


def _broken(items: Items, where: str, why: str) -> UsageError:
    columns = ", ".join(["item_id", *items.columns])
    problem = " ".join(why.split("\n")[0].split()).rstrip(" .!")
    return UsageError(
        f"--where {where!r} cannot be evaluated: {problem}",
        f"Write a DuckDB condition over the columns {columns}, e.g. \"item_id LIKE 'a%'\"",
    )
