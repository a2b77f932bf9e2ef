"""Half splits: complementary pairs, the same under any order, unrelated between pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.halves import half_split


@given(st.integers(2, 60), st.integers(1, 9), st.integers(0, 50))
@settings(deadline=None)
def test_half_splits(num_rows, num_models, seed):
    rows = np.random.default_rng(seed).permutation(500)[:num_rows]
    in_mask = half_split(rows, num_models, seed=seed)
    assert in_mask.shape == (num_models, num_rows)
    assert in_mask.dtype == bool
    for k in range(0, num_models - 1, 2):
        assert np.array_equal(in_mask[k], ~in_mask[k + 1])
    assert set(in_mask.sum(axis=1)) <= {num_rows // 2, num_rows - num_rows // 2}
    if num_models % 2 == 0:
        assert set(in_mask.sum(axis=0)) == {num_models // 2}
    assert np.array_equal(half_split(rows, num_models + 3, seed=seed)[:num_models], in_mask)
    assert np.array_equal(half_split(rows[::-1], num_models, seed=seed), in_mask[:, ::-1])


def test_half_splits_of_pairs_and_seeds_are_unrelated():
    one, other = (half_split(np.arange(2000), 32, seed=seed) for seed in (0, 1))
    halves = np.concatenate([one[::2], other[::2]]).astype(float)
    correlation = np.corrcoef(halves)[~np.eye(len(halves), dtype=bool)]
    assert abs(correlation).max() * np.sqrt(1999) < 4.5


@pytest.mark.parametrize(("rows", "num"), [([4], 2), ([4, 4], 2), ([4, 5], 0)])
def test_impossible_half_splits_are_refused(rows, num):
    with pytest.raises(ValueError, match="half split needs"):
        half_split(np.array(rows), num, seed=0)
