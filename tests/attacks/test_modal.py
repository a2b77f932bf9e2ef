"""What is true of the modal score of a row."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks._modal import modal_off_class

RESOLUTION = 1e-6


def one_row(row: Any) -> tuple[float, int]:
    """The slow obvious way: count what is left without the largest and zeros."""
    off = [float(v) for v in np.delete(row, np.argmax(row)) if np.round(v / RESOLUTION) > 0]
    if not off:
        return 0.0, 0
    bins = Counter(float(np.round(v / RESOLUTION)) for v in off)
    most = max(bins.values())
    best = min(b for b, count in bins.items() if count == most)
    return min(v for v in off if np.round(v / RESOLUTION) == best), most


@given(
    st.integers(2, 9),
    st.lists(st.sampled_from([0.0, 3e-7, 0.1, 0.1 + 2e-7, 0.2, 0.5, 3.0]), min_size=9, max_size=45),
)
def test_is_what_counting_row_by_row_finds(num_classes: int, values: list[float]) -> None:
    rows = np.array(values[: len(values) // num_classes * num_classes]).reshape(-1, num_classes)
    value, count = modal_off_class(rows, RESOLUTION)
    assert [*zip(value.tolist(), count.tolist(), strict=True)] == [one_row(row) for row in rows]
    assert (value.dtype, count.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize(
    ("row", "value", "count"),
    [
        ([0.9, 0.02, 0.02, 0.02, 0.0, 0.04], 0.02, 3),
        ([0.0, 0.0, 0.0], 0.0, 0),
        ([0.7, 0.3], 0.3, 1),
        # Of two largest the second counts among the others; of equal counts the lowest value.
        ([0.4, 0.4, 0.1, 0.1, 0.05, 0.05], 0.05, 2),
        # Zeros are more frequent and are no modal value.
        ([0.9, 0.0, 0.0, 0.0, 0.01, 0.01], 0.01, 2),
    ],
)
def test_by_hand(row: list[float], value: float, count: int) -> None:
    found = modal_off_class(np.array([row]), RESOLUTION)
    assert [array.tolist() for array in found] == [[value], [count]]


def test_the_given_rows_are_left_alone_and_may_be_none_or_read_only() -> None:
    rows = np.random.default_rng(0).random((20, 5)).astype(np.float32)
    before = rows.copy()
    rows.flags.writeable = False
    modal_off_class(rows, RESOLUTION)
    np.testing.assert_array_equal(rows, before)
    assert [len(a) for a in modal_off_class(np.empty((0, 5)), RESOLUTION)] == [0, 0]
