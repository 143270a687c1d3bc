import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedx.core.shards import SHARD_FLOPS, ShardCutter, iterate_groups, max_shard_rows
from embedx.core.specs import SHARD_MAX_BYTES, SHARD_MAX_ROWS

WORK = st.lists(st.floats(0, SHARD_FLOPS / 3), max_size=300)


@given(WORK, st.integers(1, 50))
def test_shards_are_consecutive_and_do_not_depend_on_the_pieces(work, piece):
    flops = np.array(work)
    sizes = np.full(len(flops), 100)
    whole = ShardCutter(384).assign(flops, sizes)
    cutter = ShardCutter(384)
    parts = [cutter.assign(flops[i : i + piece], sizes[i : i + piece]) for i in range(0, len(flops), piece)]
    assert np.array_equal(whole, np.concatenate([np.empty(0, np.int64), *parts]))
    assert set(np.diff(whole).tolist()) <= {0, 1}
    assert len(whole) == 0 or whole[0] == 0


@given(WORK)
def test_no_shard_has_more_work_than_the_target(work):
    flops = np.array(work)
    numbers = ShardCutter(384).assign(flops, np.zeros(len(flops)))
    for _, start, stop in iterate_groups(numbers):
        assert stop - start == 1 or flops[start:stop].sum() <= SHARD_FLOPS


def test_first_shards_are_smaller():
    numbers = ShardCutter(384).assign(np.full(10_000, SHARD_FLOPS / 1000), np.zeros(10_000))
    sizes = [stop - start for _, start, stop in iterate_groups(numbers)]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] == sizes[4]


def test_limits_of_rows_and_bytes():
    assert max_shard_rows(2) == SHARD_MAX_ROWS
    assert max_shard_rows(4096) * 4096 * 4 <= SHARD_MAX_BYTES
    numbers = ShardCutter(8, fixed_items=7).assign(np.zeros(20), np.zeros(20))
    assert [stop - start for _, start, stop in iterate_groups(numbers)] == [7, 7, 6]
    numbers = ShardCutter(8, max_content_bytes=100).assign(np.zeros(4), np.array([60, 60, 500, 1]))
    assert numbers.tolist() == [0, 1, 2, 3]
