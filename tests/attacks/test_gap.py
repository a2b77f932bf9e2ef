"""What is true of the gap attack."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attacks.gap import Gap


def judge(label: Any, y: Any) -> Any:
    return Gap().score(lambda x: label, None, np.zeros((len(y), 1)), y, seed=0)  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=2, max_size=60
    )
)
def test_accuracy_is_half_plus_half_the_accuracy_gap(records: Any) -> None:
    label, y, member = (np.array(column) for column in zip(*records, strict=True))
    if member.all() or not member.any():
        return
    is_called = judge(label, y) > Gap.THRESHOLD
    # Compared as integers over the common denominator 2 M N: the identity is exact.
    m, n = int(member.sum()), int((~member).sum())
    right = label == y
    balanced = int(is_called[member].sum()) * n + int((~is_called[~member]).sum()) * m
    assert balanced == m * n + int(right[member].sum()) * n - int(right[~member].sum()) * m


def test_only_the_label_counts(world: Any, onehot: Any) -> None:
    scores, _ = world.run(Gap())
    hidden, _ = world.run(Gap(), defend=onehot)
    np.testing.assert_array_equal(scores, hidden)
    assert set(scores) == {0.0, 1.0}
