"""The level of a value among references: against slow definitions, and as a test's level."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from attacks._ranks import class_levels, levels, own_levels, predictive_levels

LOW, HIGH = 0.0, 8.0
# Halves, so that ties are frequent, and any number between.
VALUE = st.one_of(st.integers(0, 16).map(lambda i: i / 2), st.floats(LOW, HIGH))
# The AUC of N(1, 1) against N(0, 1).
UNIT_SHIFT = float(stats.norm.cdf(1 / np.sqrt(2)))


def slow_level(value: float, reference: list[float]) -> float:
    """Straight from the words of the docstring."""
    ordered = sorted(reference)
    num = len(ordered)
    ranks = [i + 1 for i, r in enumerate(ordered) if r == value]
    if ranks:
        return sum(ranks) / len(ranks) / (num + 1)
    known = [(LOW, 0), *((r, i + 1) for i, r in enumerate(ordered)), (HIGH, num + 1)]
    for (below, rank), (above, _) in itertools.pairwise(known):
        if below <= value <= above and below < above:
            return (rank + (value - below) / (above - below)) / (num + 1)
    raise AssertionError("within the ends")


@given(st.lists(VALUE, min_size=1, max_size=12), st.lists(VALUE, min_size=1, max_size=12))
def test_levels_are_the_definition(value: list[float], reference: list[float]) -> None:
    found = levels(np.array(value), np.array(reference), low=LOW, high=HIGH)
    expected = [slow_level(v, reference) for v in value]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    order = np.argsort(value)
    assert (np.diff(found[order]) >= -1e-12).all()


@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_own_levels_are_levels_among_the_references_that_count(
    data: Any, num_values: int, num_models: int
) -> None:
    def drawn(size: int, of: Any) -> Any:
        return np.array(data.draw(st.lists(of, min_size=size, max_size=size)))

    value = drawn(num_values, VALUE).astype(np.float64)
    reference = drawn(num_values * num_models, VALUE).astype(np.float64)
    mask = drawn(num_values * num_models, st.booleans()).astype(np.bool_)
    reference, mask = (a.reshape(num_models, num_values) for a in (reference, mask))
    mask[0] = True
    reference[~mask] = np.nan
    found = own_levels(value, reference, mask, low=LOW, high=HIGH)
    for n in range(num_values):
        expected = slow_level(value[n], reference[mask[:, n], n].tolist())
        assert found[n] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_own_levels_in_pieces() -> None:
    """More references than are worked on at once."""
    rng = np.random.default_rng(0)
    value, reference = rng.random(2500), rng.random((1000, 2500))
    mask = rng.random((1000, 2500)) < 0.5
    found = own_levels(value, reference, mask, low=0.0, high=1.0)
    for n in (0, 1, 2096, 2097, 2098, 2499):
        expected = levels(value[n : n + 1], reference[mask[:, n], n], low=0.0, high=1.0)
        assert found[n] == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("alpha", [0.001, 0.03, 0.5, 0.77, 0.999])
def test_a_level_is_the_inverse_of_a_quantile_with_the_ends_added(alpha: float) -> None:
    """The authors' thresholds: the linear quantile of the losses, 0 and the largest possible."""
    reference = np.random.default_rng(1).uniform(LOW, HIGH, 57)
    threshold = np.quantile([*reference, LOW, HIGH], alpha, method="linear")
    found = levels(np.array([threshold]), reference, low=LOW, high=HIGH)
    assert found[0] == pytest.approx(alpha, rel=1e-9)


def test_equal_references_count_half() -> None:
    """Where all agree a value that agrees tells nothing, and one that does not tells much."""
    value = np.array([0.0, 4.0, HIGH])
    for reference, expected in (
        ([0.0] * 9, [0.5, 0.95, 1.0]),
        ([HIGH] * 9, [0.0, 0.05, 0.5]),
        ([0.0] * 4 + [HIGH] * 5, [0.25, 0.45, 0.7]),
    ):
        shared = levels(value, np.array(reference), low=LOW, high=HIGH)
        np.testing.assert_allclose(shared, expected)
        columns = np.tile(np.array(reference)[:, None], 3)
        own = own_levels(value, columns, np.ones((9, 3), dtype=np.bool_), low=LOW, high=HIGH)
        np.testing.assert_allclose(own, expected)


def test_beyond_all_references_levels_still_differ() -> None:
    value = np.array([1e-12, 1e-9, 1e-3, 0.5, 1.0, 7.0, 7.5, HIGH])
    reference = np.array([1.0, 2.0, 7.0])
    found = levels(value, reference, low=LOW, high=HIGH)
    assert (np.diff(found) > 0).all()
    assert found[0] == pytest.approx(1e-12 / 4, rel=1e-9)
    assert found[-1] == 1.0


def test_class_levels_rank_within_classes_that_are_large_enough() -> None:
    rng = np.random.default_rng(2)
    value, y = rng.uniform(LOW, HIGH, 40), rng.integers(5, size=40)
    reference, reference_y = rng.uniform(LOW, HIGH, 60), np.repeat([0, 1, 2, 3], [20, 30, 3, 7])
    found = class_levels(value, y, reference, reference_y, low=LOW, high=HIGH, min_records=7)
    for label in range(5):
        large = label in (0, 1, 3)
        among = reference[reference_y == label] if large else reference
        expected = [slow_level(v, among.tolist()) for v in value[y == label]]
        np.testing.assert_allclose(found[y == label], expected, rtol=1e-9)


def binomial_interval(alpha: float, num: int) -> tuple[int, int]:
    """Counts with four standard deviations' worth of probability (6e-5 outside)."""
    low, high = stats.binom.interval(1 - 6e-5, num, alpha)
    return int(low), int(high)


@pytest.mark.parametrize("num_models", [4, 8, 32])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_requested_and_realised_false_positive_rate(num_models: int, alpha: float) -> None:
    """Ten thousand records with normal signals of their own mean and scale."""
    num = 10_000
    rng = np.random.default_rng([3, num_models])
    mean, scale = rng.normal(0, 5, num), rng.uniform(0.1, 3, num)
    reference = mean + scale * rng.normal(size=(num_models, num))
    value = mean + scale * rng.normal(size=num)
    mask = np.ones(reference.shape, dtype=np.bool_)
    low, high = binomial_interval(alpha, num)
    called = int((predictive_levels(value, reference, mask) <= alpha).sum())
    assert low <= called <= high
    if alpha * (num_models + 1) >= 1:
        # A linear level is exact at i / (num_models + 1), and between them as far as the
        # distribution is flat; beyond the lowest reference there is nothing to tell it by.
        rank = int(alpha * (num_models + 1))
        exact = rank / (num_models + 1)
        low, high = binomial_interval(exact, num)
        found = own_levels(value, reference, mask, low=-60.0, high=60.0)
        assert low <= int((found <= exact + 1e-12).sum()) <= high


def test_realised_false_positive_rate_among_shared_references() -> None:
    num, alphas = 20_000, np.array([0.01, 0.05, 0.2, 0.5, 0.9])
    rng = np.random.default_rng(4)
    value, reference = rng.exponential(size=num), rng.exponential(size=num)
    found = levels(value, reference, low=0.0, high=100.0)
    realised = (found[:, None] <= alphas).mean(axis=0)
    # The references are as random as the values.
    assert (np.abs(realised - alphas) < 4 * np.sqrt(2 * alphas * (1 - alphas) / num)).all()


def test_predictive_levels_are_those_of_students_t() -> None:
    rng = np.random.default_rng(5)
    value, reference = rng.normal(size=30), rng.normal(size=(9, 30))
    mask = rng.random((9, 30)) < 0.6
    mask[:2] = True
    hidden = np.where(mask, reference, np.inf)
    found = predictive_levels(value, hidden, mask)
    for n in range(30):
        own = reference[mask[:, n], n]
        scale = own.std(ddof=1) * np.sqrt(1 + 1 / len(own))
        expected = stats.t.cdf(value[n], len(own) - 1, loc=own.mean(), scale=scale)
        assert found[n] == pytest.approx(expected, rel=1e-9)


def test_the_normal_distribution_with_estimated_moments_would_call_too_many() -> None:
    """Why it is Student's: of a level of 0.01 it makes one of 0.03 with eight references."""
    rng = np.random.default_rng(6)
    value, reference = rng.normal(size=10_000), rng.normal(size=(8, 10_000))
    plain = stats.norm.cdf((value - reference.mean(axis=0)) / reference.std(axis=0, ddof=1))
    assert (plain <= 0.01).mean() > 0.025
    found = predictive_levels(value, reference, np.ones((8, 10_000), dtype=np.bool_))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(plain))


def test_small_predictive_levels_stay_apart() -> None:
    value = -np.array([1e1, 1e2, 1e3, 1e6])
    reference = np.tile(np.linspace(-1, 1, 16)[:, None], 4)
    found = -predictive_levels(value, reference, np.ones((16, 4), dtype=np.bool_))
    assert (np.diff(found) > 0).all()
    assert (found < 0).all()


def test_references_that_agree_have_the_least_deviation() -> None:
    reference = np.full((8, 3), 2.0)
    found = predictive_levels(np.array([1.0, 2.0, 3.0]), reference, np.ones((8, 3), dtype=np.bool_))
    assert found[1] == 0.5
    assert found[0] < 1e-15
    assert found[2] > 1 - 1e-15


@pytest.mark.parametrize("kernel", ["shared", "own", "predictive"])
def test_unit_shift_of_gaussians(kernel: str) -> None:
    """AUC 0.760: members' signals lie one standard deviation lower."""
    num = 4000
    rng = np.random.default_rng(7)
    is_member = np.arange(num) < num // 2
    value = rng.normal(size=num) - is_member
    own = rng.normal(size=(512, num))
    mask = np.ones(own.shape, dtype=np.bool_)
    if kernel == "shared":
        found = levels(value, rng.normal(size=2000), low=-9.0, high=9.0)
    elif kernel == "own":
        found = own_levels(value, own, mask, low=-9.0, high=9.0)
    else:
        found = predictive_levels(value, own, mask)
    # The standard deviation of the AUC is 0.0076.
    assert abs(roc_auc_score(is_member, -found) - UNIT_SHIFT) < 0.03


def test_what_cannot_be_ranked_is_refused() -> None:
    one, mask = np.ones(1), np.ones((2, 1), dtype=np.bool_)
    with pytest.raises(ValueError, match="no reference to rank among"):
        levels(one, np.empty(0), low=LOW, high=HIGH)
    with pytest.raises(ValueError, match=r"1 of 2 entries of reference are not .* is nan"):
        levels(one, np.array([np.nan, 1.0]), low=LOW, high=HIGH)
    with pytest.raises(ValueError, match=r"1 of 1 entries of value .*\[0, 8\], the first is 9"):
        levels(9 * one, one, low=LOW, high=HIGH)
    with pytest.raises(ValueError, match="1 of 1 records have fewer than 1 OUT models among 2"):
        own_levels(one, np.ones((2, 1)), ~mask, low=LOW, high=HIGH)
    with pytest.raises(ValueError, match="fewer than 2 OUT models among 1"):
        predictive_levels(one, np.ones((1, 1)), mask[:1])
    with pytest.raises(ValueError, match="1 of 2 entries of reference"):
        predictive_levels(one, np.array([[1.0], [np.inf]]), mask)
    with pytest.raises(ValueError, match=r"value is \(2,\), reference \(2, 1\)"):
        own_levels(np.ones(2), np.ones((2, 1)), mask, low=LOW, high=HIGH)
