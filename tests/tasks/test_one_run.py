"""Epsilon from guesses: facts of arithmetic, and mechanisms whose epsilon is known."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from tasks.one_run import epsilon_of_guesses, epsilon_one_run, one_run_p_value


def test_all_right_at_epsilon_zero_is_a_coin_tossed_that_often() -> None:
    assert one_run_p_value(0.0, 100, 100, 100) == pytest.approx(2.0**-100, rel=1e-9)


def test_more_right_guesses_are_less_likely_and_refute_more() -> None:
    p = [one_run_p_value(1.0, 50, v, 80) for v in range(51)]
    assert all(a >= b for a, b in itertools.pairwise(p))
    found = [epsilon_of_guesses(50, v, 80) for v in range(51)]
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert found[25] == 0.0


def test_delta_is_the_sum_over_what_it_may_hide() -> None:
    r, v, m, delta, epsilon = 30, 24, 60, 1e-3, 0.7
    q = 1 / (1 + np.exp(-epsilon))
    pmf = [binom.pmf(k, r, q) for k in range(r + 1)]
    most = max(sum(pmf[v - i : v]) / i for i in range(1, v + 1))
    slow = sum(pmf[v:]) + 2 * m * delta * most
    assert one_run_p_value(epsilon, r, v, m, delta=delta) == pytest.approx(slow, rel=1e-9)


def test_the_bound_is_where_the_test_stops_refuting() -> None:
    bound = epsilon_of_guesses(200, 180, 400)
    assert one_run_p_value(bound, 200, 180, 400) <= 0.05
    assert one_run_p_value(bound + 2e-3, 200, 180, 400) > 0.05


def test_randomised_response_is_not_refuted() -> None:
    """Each bit told right with probability e / (1 + e) is exactly 1-private."""
    rng = np.random.default_rng(0)
    m, above = 500, 0
    for _ in range(200):
        member = rng.random(m) < 0.5
        told = np.where(rng.random(m) < np.e / (1 + np.e), member, ~member)
        if member.all() or not member.any():
            continue
        above += epsilon_one_run(told.astype(float), member) > 1.0
    # At most 5 % of 200 in expectation; 4 standard deviations above that.
    assert above <= 10 + 4 * np.sqrt(200 * 0.05 * 0.95)


def test_perfect_scores_are_bounded_by_the_number_of_records_alone() -> None:
    member = np.arange(400) % 2 == 0
    few, many = (epsilon_one_run(member[:n].astype(float), member[:n]) for n in (40, 400))
    assert 0 < few < many < np.log(400)


def test_scores_that_tell_nothing_bound_nothing() -> None:
    rng = np.random.default_rng(1)
    member = rng.permutation(np.arange(1000) % 2 == 0)
    assert epsilon_one_run(rng.random(1000), member) < 0.1
    assert epsilon_one_run(np.zeros(1000), member) < 0.1


@pytest.mark.parametrize("counts", [(5, 6, 10), (11, 5, 10), (5, -1, 10)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must satisfy"):
        one_run_p_value(1.0, counts[0], counts[1], counts[2])
