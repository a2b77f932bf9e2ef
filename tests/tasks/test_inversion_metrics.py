"""Means by side with their limits, and the guesses an error is set beside."""

import numpy as np
import pytest
from scipy import stats

from attacks.base import Records
from tasks.inversion_metrics import deviation, guesses, inversion_metrics


def test_figures_are_means_of_each_side_with_limits():
    rng = np.random.default_rng(0)
    is_member = rng.random(200) < 0.4
    error, named = rng.gamma(2.0, size=200), rng.random(200) < 0.3
    figures = inversion_metrics({"inversion_error": error, "reidentified": named}, is_member)
    for side, chosen in (
        ("", is_member >= 0),
        ("_members", is_member),
        ("_nonmembers", ~is_member),
    ):
        mine = error[chosen]
        assert figures[f"inversion_error{side}"] == pytest.approx(mine.mean())
        limits = stats.t.interval(0.95, len(mine) - 1, mine.mean(), stats.sem(mine))
        told = [figures[f"inversion_error{side}_{end}"] for end in ("low", "high")]
        assert told == pytest.approx(limits)
        assert figures[f"reidentified{side}"] == named[chosen].mean()
    exact = stats.binomtest(int(named.sum()), 200).proportion_ci(0.95, method="exact")
    assert figures["reidentified_low"] == pytest.approx(exact.low)
    assert figures["reidentified_high"] == pytest.approx(exact.high)
    assert (figures["num_members"], figures["num_nonmembers"]) == (
        is_member.sum(),
        (~is_member).sum(),
    )
    assert "reidentified_members_low" not in figures


def test_an_error_of_one_record_has_no_limits():
    figures = inversion_metrics({"inversion_error": np.array([2.0, 4.0])}, np.array([True, False]))
    assert figures["inversion_error"] == 3.0
    assert np.isnan(figures["inversion_error_members_low"])
    assert figures["inversion_error_nonmembers"] == 4.0


def test_guesses_are_the_mean_and_that_of_the_class():
    x = np.array([[[0.0, 1.0]], [[1.0, 1.0]], [[0.5, 0.0]]], dtype=np.float32)
    own = Records(x, np.array([0, 0, 2]))
    mean, by_class = guesses(own, np.array([2, 0, 1]))
    assert mean.shape == by_class.shape == (3, 1, 2)
    np.testing.assert_allclose(mean[1], x.mean(axis=0))
    np.testing.assert_allclose(by_class[0], x[2])
    np.testing.assert_allclose(by_class[1], [[0.5, 1.0]])
    np.testing.assert_allclose(by_class[2], mean[2])  # none of this class is known


def test_the_mean_is_the_best_of_all_constant_guesses():
    """Its error is the variance, so an attack that does worse was told nothing."""
    rng = np.random.default_rng(0)
    x = rng.random((50, 6)).astype(np.float32)
    mean, _ = guesses(Records(x, np.zeros(50, dtype=np.int64)), np.zeros(50, dtype=np.int64))
    error = np.mean((mean - x) ** 2)
    assert error == pytest.approx(x.var(axis=0).mean(), rel=1e-5)
    assert error < np.mean((rng.random((1, 6)) - x) ** 2)


def test_a_deviation_is_one_a_channel_or_one():
    rng = np.random.default_rng(0)
    x = rng.random((20, 3, 4, 5)) * np.array([1.0, 2.0, 0.0])[:, None, None]
    found = deviation(x)
    np.testing.assert_allclose(found[:2], [x[:, 0].std(), x[:, 1].std()])
    assert found[2] == 1.0  # of what never varies
    bits = (rng.random((20, 9)) < 0.3).astype(np.float32)
    assert deviation(bits) == pytest.approx(bits.std())
