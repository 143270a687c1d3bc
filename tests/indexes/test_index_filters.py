"""SQL conditions: exact, over ids and carried columns, and able to reach nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedx.core.errors import UsageError
from embedx.indexes.filters import select_rows
from embedx.indexes.items import ItemsWriter, open_items
from embedx.indexes.search import open_index
from tests.indexes.fakes import FakeStore


@pytest.fixture
def found(store, build, index_path):
    build(store)
    return open_items(index_path / "versions" / "0001" / "ids.parquet")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label = 'red'", range(0, 60, 3)),
        ("label IN ('red', 'blue') AND size < 10", [0, 2, 3, 5, 6, 8, 9]),
        ("item_id = 'item-0059'", [59]),
        ("item_id LIKE 'item-000%' -- the first ten", range(10)),
        ("weight < 3", [0, 1, 2, 3, 5]),
        ("weight IS NULL", [4]),
        ("NOT (weight >= 1)", [0, 1]),
        ("text ~ 'number 4.'", range(40, 50)),
        ("size = 3 OR size = 58", [3, 58]),
        ("label = 'red' AND size > (SELECT 50)", [51, 54, 57]),
    ],
)
def test_conditions(found, where, expected):
    np.testing.assert_array_equal(np.flatnonzero(select_rows(found, where)), list(expected))


@pytest.mark.parametrize(
    "where",
    [
        "label = ",
        "nonsense = 1",
        "label",
        "",
        "1 = 1; SELECT 2",
        "size = 1) AS a, (size = 2",
        "count(*) > 1",
        "weight / 'x' > 1",
        "size = (SELECT size FROM found)",
        "EXISTS (SELECT 1 FROM read_csv('/etc/passwd'))",
        "EXISTS (SELECT 1 FROM '/etc/passwd')",
        "EXISTS (SELECT 1 FROM glob('/*'))",
        "EXISTS (SELECT 1 FROM read_text('/etc/hostname'))",
        "getenv('HOME') <> ''",
    ],
)
def test_broken_or_reaching_out(found, where):
    with pytest.raises(UsageError, match="cannot be evaluated") as caught:
        select_rows(found, where)
    assert "\n" not in str(caught.value) and "item_id, label" in caught.value.remedy


def test_an_empty_result_is_an_error(found):
    with pytest.raises(UsageError, match="holds for none of the 60 items"):
        select_rows(found, "size > 1000")


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=1), st.integers(1, 50), st.randoms(use_true_random=False))
def test_filtered_search_is_brute_force_over_what_is_left(tmp_path_factory, chosen, k, random):
    seed = random.randint(0, 9)
    path = tmp_path_factory.getbasetemp() / f"filtered-{seed}"
    matrix = np.random.default_rng(seed).standard_normal((40, 5)).astype(np.float32)
    if not path.exists():
        from embedx.indexes.build import build_index
        from embedx.indexes.spec import IndexSpec

        build_index(FakeStore(matrix, {"n": list(range(40))}), IndexSpec(path, path, metric="ip"))
    query = matrix[:2] + 1
    hits = open_index(path).search(query, k, where=f"n IN ({', '.join(map(str, chosen))})")
    rows = np.array(sorted(chosen))
    for own, values in zip(hits.rows, query.astype(float) @ matrix[rows].astype(float).T):
        np.testing.assert_array_equal(own, rows[np.argsort(-values)][:k])


def test_rows_keep_their_number_across_many_row_groups(tmp_path, monkeypatch):
    from embedx.indexes import items

    monkeypatch.setattr(items, "ROW_GROUP_ROWS", 1_000)
    store = FakeStore(np.zeros((20_500, 1)), {"n": list(range(20_500))})
    with ItemsWriter(tmp_path / "ids.parquet") as writer:
        for batch, _ in store.iterate_batches(["n"], batch_rows=777):
            writer.add(batch)
    opened = open_items(tmp_path / "ids.parquet")
    assert opened.count == 20_500
    np.testing.assert_array_equal(np.flatnonzero(select_rows(opened, "n % 4099 = 7")), range(7, 20_500, 4099))
    in_subquery = "n IN (SELECT 20499 - unnest(range(3)))"
    np.testing.assert_array_equal(np.flatnonzero(select_rows(opened, in_subquery)), [20_497, 20_498, 20_499])
