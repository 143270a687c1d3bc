import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedx.core.batches import plan_batches

COSTS = st.lists(st.integers(0, 300), max_size=200).map(lambda costs: np.array(costs, dtype=np.int64))


@given(COSTS, st.integers(1, 2000), st.integers(1, 64))
def test_every_item_is_in_one_batch_within_the_budget(costs, budget, max_items):
    batches = plan_batches(costs, budget, max_items)
    assert sorted(int(p) for batch in batches for p in batch) == list(range(len(costs)))
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or max(1, costs[batch].max()) * len(batch) <= budget


@given(COSTS)
def test_costliest_first(costs):
    batches = plan_batches(costs, 512, 32)
    ordered = [costs[p] for batch in batches for p in batch]
    assert ordered == sorted(ordered, reverse=True)
