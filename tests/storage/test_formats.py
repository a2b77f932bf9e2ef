"""Arrays, tables and facts as bytes: what goes in comes out, and nothing is lost silently."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage._formats import (
    arrays_bytes,
    facts_bytes,
    read_arrays,
    read_facts,
    read_table,
    table_bytes,
)

DTYPES = ("float64", "float32", "int64", "int32", "uint8", "bool")
COLUMNS = st.one_of(
    *[
        hnp.arrays(dtype, st.shared(st.integers(0, 9), key="rows"))
        for dtype in ("float64", "float32", "int64", "uint16", "bool")
    ],
    st.shared(st.integers(0, 9), key="rows").flatmap(
        lambda n: hnp.arrays("float64", (n, 3)) | hnp.arrays("float32", (n, 1))
    ),
    st.shared(st.integers(0, 9), key="rows").flatmap(
        lambda n: st.lists(st.text(), min_size=n, max_size=n).map(
            lambda texts: np.array(texts, dtype=object)
        )
    ),
)


def without_nan(value):
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if value != value else value


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_arrays_keep_every_bit_in_any_memory_order(arrays, transposed):
    arrays = {k: v.T if transposed else v for k, v in arrays.items()}
    back = read_arrays(arrays_bytes("w", arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert same_bits(back[name], np.array(array, order="C"))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), COLUMNS, min_size=1, max_size=5))
def test_tables_keep_every_bit(columns):
    back = read_table(bytes(table_bytes("t", columns)))
    assert list(back) == list(columns)
    for name, column in columns.items():
        if column.dtype == object:
            assert back[name].tolist() == column.tolist()
        else:
            assert same_bits(back[name], column)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_facts_come_back_with_nan_as_none(value):
    assert read_facts(facts_bytes("f", {"value": value})) == {"value": without_nan(value)}


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        ({"a": [1, 2], "b": [1]}, ValueError, "one length"),
        ({}, ValueError, "one length"),
        ({"a": np.zeros((2, 2, 2))}, ValueError, "shape"),
        ({"a": np.zeros((2, 0))}, ValueError, "shape"),
        ({"a": [1.0, None]}, ValueError, "1 missing"),
        ({"a": [1, "x"]}, (TypeError, ValueError), "x"),
        ({"a": np.array([1j])}, TypeError, "complex128"),
        ({"a": np.array(["2020-01-01"], "M8[D]")}, TypeError, "datetime64"),
        ({"a": [[1], [2]]}, TypeError, "list"),
    ],
)
def test_a_table_that_would_lose_something_is_refused(columns, error, match):
    with pytest.raises(error, match=match):
        table_bytes("t", columns)


@pytest.mark.parametrize(
    ("facts", "error"),
    [({"a": float("inf")}, ValueError), ({"a": object()}, TypeError), ({1: 2}, TypeError)],
)
def test_facts_json_cannot_hold_are_refused(facts, error):
    with pytest.raises(error, match="f"):
        facts_bytes("f", facts)


def test_arrays_of_other_types_are_refused():
    with pytest.raises(TypeError, match="float16"):
        arrays_bytes("w", {"h": np.zeros(2, "float16")})
