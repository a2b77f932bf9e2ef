import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defenses.onehot import OneHot


@given(arrays(np.float64, (7, 4), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])))
def test_keeps_the_label_and_nothing_else(confidence):
    released = OneHot().apply(confidence, {"num_classes": np.array(4)}, None)
    for row, answer in zip(confidence.tolist(), released.tolist(), strict=True):
        label = row.index(max(row))  # the first wins ties
        assert answer == [float(j == label) for j in range(4)]
