import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedx.store.schema import is_column_name, round_mantissa, vector_array, vectors_from_array

FLOATS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)


@given(FLOATS)
def test_rounding_keeps_ten_bits_and_is_idempotent(vectors):
    rounded = round_mantissa(vectors)
    normal = np.abs(vectors) > 1e-37
    assert np.all(np.abs(rounded - vectors)[normal] <= np.abs(vectors)[normal] * 2.0**-11 * 1.0001)
    assert np.array_equal(round_mantissa(rounded), rounded)
    assert not np.any(rounded.view(np.uint32) & np.uint32(0x1FFF))


def test_rounding_is_float16_for_unit_vectors():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    large = np.abs(vectors) > 1e-4
    assert np.array_equal(round_mantissa(vectors)[large], vectors.astype(np.float16).astype(np.float32)[large])


@given(FLOATS)
def test_vector_column_round_trip(vectors):
    array = vector_array(vectors)
    assert np.array_equal(vectors_from_array(array, vectors.shape[1]), vectors)
    if len(vectors) > 1:
        assert np.array_equal(vectors_from_array(array.slice(1), vectors.shape[1]), vectors[1:])
    with pytest.raises(ValueError, match="length"):
        vectors_from_array(array, vectors.shape[1] + 1)


def test_column_names():
    assert is_column_name("label") and is_column_name("größe")
    for name in ("vector", "item_id", "with space", "a;b", "", "x=y"):
        assert not is_column_name(name)


def test_null_vectors_are_refused():
    array = pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))
    with pytest.raises(ValueError, match="null"):
        vectors_from_array(array, 2)
