"""Columns given as arrays are held to what rows are held to."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage._schemas import SCHEMAS, to_arrow

KEY = "a" * 64
NUMBERS = ("f2", "f4", "f8", ">f8", "i1", "i4", "i8", ">i8", "u2", "u8", "?")
OTHERS = ("U2", "c8", "M8[us]", "S2")


def outcome(table, content):
    """The rows written, floats as their bytes, or the type of the refusal."""
    try:
        rows = to_arrow(table, content, "task_key", KEY).to_pylist()
    except (TypeError, ValueError) as error:
        return TypeError if isinstance(error, TypeError) else ValueError
    return [
        {n: struct.pack(">d", v) if isinstance(v, float) else v for n, v in row.items()}
        for row in rows
    ]


def same_nan(array):
    """A NaN that is signalling or says more than the usual one may become the usual one."""
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return array


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["seed", "auc", "adaptive", "dataset", "created_at", "flags"]),
    st.sampled_from(NUMBERS + OTHERS).flatmap(
        lambda dtype: hnp.arrays(dtype, st.integers(1, 4)).map(same_nan)
    ),
)
def test_an_array_is_taken_or_refused_as_its_values_are(column, array):
    rows = [{column: value} for value in array]
    assert outcome("results", {column: array}) == outcome("results", rows)
    strided = np.repeat(array, 2)[::2]
    assert outcome("results", {column: strided}) == outcome("results", rows)


def test_columns_left_out_are_null_and_the_key_is_filled_in():
    table = to_arrow("scores", {"score": np.array([0.5, -0.0])}, "task_key", KEY)
    assert table.schema == SCHEMAS["scores"]
    assert table["task_key"].to_pylist() == [KEY, KEY]
    assert table["decision"].to_pylist() == [None, None]
    assert str(table["score"].to_pylist()) == "[0.5, -0.0]"
    given_too = {"task_key": [KEY, KEY], "score": np.array([0.5, -0.0])}
    assert to_arrow("scores", given_too, "task_key", KEY).equals(table)


@pytest.mark.parametrize("nothing", [[], {}, {"score": []}, {"score": np.empty(0)}])
def test_no_rows(nothing):
    assert to_arrow("scores", nothing, "task_key", KEY) == SCHEMAS["scores"].empty_table()


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        ({"record": [1, 2], "score": np.zeros(3)}, ValueError, "score has 3 rows, other columns 2"),
        ({"score": np.zeros((2, 2))}, ValueError, r"column score has shape \(2, 2\)"),
        ({"score": np.array(0.5)}, ValueError, "column score has shape"),
        ({"record": [1], "score": 0.5}, TypeError, "column score is 0.5; expected a list"),
        ({"score": 0.5}, TypeError, "A row by itself goes into a list"),
        ({"task_key": KEY}, TypeError, "column task_key is 'aaa"),
        ({"task_key": [KEY, "b"]}, ValueError, "task_key is 'b' in the part of"),
        ({"scores": np.zeros(2)}, ValueError, "no column is named 'scores'; known: task_key"),
        ({"record": np.zeros(2)}, TypeError, "record holds int64, got an array of float64"),
        ({"record": np.array([2**63], "u8")}, ValueError, "record is 9223372036854775808, beyond"),
    ],
)
def test_what_are_no_columns_is_refused_with_its_place(columns, error, match):
    with pytest.raises(error, match=match):
        to_arrow("scores", columns, "task_key", KEY)
