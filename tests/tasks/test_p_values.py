"""p-values of AUCs, and what Holm's correction leaves of many tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.metrics import auc_limits, auc_p_value, delong, holm


@given(st.floats(0.05, 0.95), st.floats(1e-5, 0.05), st.floats(1e-6, 0.2))
@settings(deadline=None)
def test_small_p_is_a_half_outside_the_limits(value: float, variance: float, tail: float) -> None:
    low, high = auc_limits(value, variance, 50, tail)
    p = auc_p_value(value, variance, 50)
    if abs(p - 2 * tail) > 1e-9:
        assert (p < 2 * tail) == (low > 0.5 or high < 0.5)


@pytest.mark.parametrize("num", [2, 11, 12, 40])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_without_variance_it_is_the_sign_test(value: float, num: int) -> None:
    p = auc_p_value(value, 0.0, num)
    assert p == (1.0 if value == 0.5 else min(1.0, 2 * 0.5**num))
    low, high = auc_limits(value, 0.0, num, 0.0005)
    assert (p <= 0.001) == (low > 0.5 or high < 0.5)


def test_it_is_as_often_small_as_it_says() -> None:
    rng = np.random.default_rng(0)
    member = np.arange(120) < 60
    found = [auc_p_value(*delong(rng.normal(size=120), member), 60) for _ in range(2000)]
    for level in (0.01, 0.1, 0.5):
        share = np.mean(np.array(found) <= level)
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 2000) + 0.005)
    assert np.isnan(auc_p_value(0.7, float("nan"), 1))


def slow_holm(p: list[float], level: float) -> list[bool]:
    """One after the other, the smallest first, until one is not small enough."""
    left = [i for i, value in enumerate(p) if not np.isnan(value)]
    kept = [False] * len(p)
    while left:
        smallest = min(left, key=lambda i: p[i])
        if p[smallest] > level / len(left):
            break
        kept[smallest] = True
        left.remove(smallest)
    return kept


LISTS = st.lists(st.sampled_from([0.0, 1e-5, 2e-4, 5e-4, 1e-3, 0.2, 1.0, float("nan")]), max_size=8)


@given(LISTS, st.sampled_from([0.001, 0.01]))
@settings(deadline=None)
def test_holm_is_holm(p: list[float], level: float) -> None:
    assert holm(p, level).tolist() == slow_holm(p, level)


def test_one_run_in_a_thousand_raises_a_false_flag_however_many_tests_it_has() -> None:
    rng = np.random.default_rng(1)
    for num in (3, 30, 300):
        smallest = rng.beta(1, num, size=100_000)  # of so many uniform p-values
        rest = np.ones(num - 1)
        false = np.mean([holm([p, *rest], 0.001)[0] for p in smallest[smallest < 0.001]] or [0])
        share = false * np.mean(smallest < 0.001)
        assert share == pytest.approx(0.001, abs=4 * np.sqrt(0.001 / 100_000))
