import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedx.core.batches import plan_batches, round_up

COSTS = st.lists(st.integers(0, 300), max_size=200).map(lambda costs: np.array(costs, dtype=np.int64))


@given(COSTS, st.integers(1, 2000), st.integers(1, 64))
def test_every_item_is_in_one_batch_within_the_budget(costs, budget, max_items):
    batches = plan_batches(costs, budget, max_items)
    assert sorted(int(p) for batch in batches for p in batch) == list(range(len(costs)))
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or max(1, costs[batch].max()) * len(batch) <= budget


@given(COSTS, st.integers(1, 2000))
def test_padding_counts_where_batches_are_padded_to_a_step(costs, budget):
    for batch in plan_batches(costs, budget, 64, step=8):
        assert len(batch) == 1 or round_up(max(1, costs[batch].max()), 8) * len(batch) <= budget


def test_a_runtime_sees_few_shapes():
    """A runtime compiles and keeps something for each shape: their number must not grow with the texts."""
    lengths = np.random.default_rng(0).integers(3, 257, (40, 500))
    shapes = {
        (len(batch), round_up(shard[batch].max(), 8))
        for shard in lengths
        for batch in plan_batches(shard, 1536, 512, step=8)[:-1]
    }
    assert len(shapes) <= 256 / 8


@given(COSTS)
def test_costliest_first(costs):
    batches = plan_batches(costs, 512, 32)
    ordered = [costs[p] for batch in batches for p in batch]
    assert ordered == sorted(ordered, reverse=True)
