"""Rates of inferred values against slow counts, and what chance makes of them."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from tasks.attribute_metrics import (
    attribute_metrics,
    balanced_accuracy,
    confusion,
    macro_f1,
    macro_f1_interval,
    mutual_information,
)


def drawn(seed, num=600, num_values=4, right=0.4):
    """Values of unequal frequency, inferred rightly with some probability, else at random."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, num_values + 1) / np.arange(1, num_values + 1).sum()
    value = rng.choice(num_values, size=num, p=share)
    guess = rng.integers(num_values, size=num)
    return value, np.where(rng.random(num) < right, value, guess), rng.random(num) < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_scikit_learn(seed):
    value, inferred, is_member = drawn(seed)
    value[value == 2] = 1  # a value nobody has, though it is inferred
    count = confusion(value, inferred, 4)
    assert balanced_accuracy(count)[0] == pytest.approx(
        np.mean([np.mean(inferred[value == a] == a) for a in (0, 1, 3)])
    )
    seen = np.isin(inferred, value)
    assert balanced_accuracy(confusion(value[seen], inferred[seen], 4))[0] == pytest.approx(
        balanced_accuracy_score(value[seen], inferred[seen])
    )
    wanted = f1_score(value, inferred, labels=[0, 1, 3], average="macro")
    assert macro_f1(count) == pytest.approx(wanted)
    figures = attribute_metrics(value, inferred, is_member, 4, seed=0)
    for side, chosen in (("_members", is_member), ("_nonmembers", ~is_member), ("", value >= 0)):
        assert figures[f"natural_accuracy{side}"] == np.mean(value[chosen] == inferred[chosen])
        alone = confusion(value[chosen], inferred[chosen], 4)
        assert figures[f"balanced_accuracy{side}"] == balanced_accuracy(alone)[0]
    assert figures["num_values"] == 3
    assert figures["uniform_accuracy"] == 1 / 3
    assert figures["num_rarest"] == min(np.sum(value == a) for a in (0, 1, 3))


def test_balanced_accuracy_is_accuracy_on_a_balanced_subset_on_average():
    value, inferred, _ = drawn(3)
    rng = np.random.default_rng(0)
    least = np.bincount(value).min()
    rates = []
    for _ in range(2000):
        rows = [rng.choice(np.flatnonzero(value == a), least, replace=False) for a in range(4)]
        chosen = np.concatenate(rows)
        rates.append(np.mean(value[chosen] == inferred[chosen]))
    error = np.std(rates) / np.sqrt(len(rates))
    expected = balanced_accuracy(confusion(value, inferred, 4))[0]
    assert abs(np.mean(rates) - expected) < 5 * error


def test_intervals_hold_the_truth_as_often_as_they_say():
    """At 95 % of 400 draws, 95.0 ± 1.1 %; Clopper-Pearson holds it more often."""
    held = {"balanced": 0, "f1": 0}
    large = drawn(0, num=400_000)
    true_f1 = macro_f1(confusion(large[0], large[1], 4))
    truth = 0.4 + 0.6 / 4
    for seed in range(400):
        value, inferred, is_member = drawn(seed, num=300)
        _, low, high = balanced_accuracy(confusion(value, inferred, 4))
        held["balanced"] += low <= truth <= high
        low, high = macro_f1_interval(value, inferred, is_member, 4, seed=seed)
        held["f1"] += low <= true_f1 <= high
    assert held["balanced"] > 0.94 * 400
    assert 0.90 * 400 < held["f1"] < 0.995 * 400


def test_a_perfect_guess_has_limits_of_some_width():
    value = np.array([0, 0, 1, 1, 1])
    accuracy, low, high = balanced_accuracy(confusion(value, value, 2))
    assert (accuracy, high) == (1.0, 1.0)
    assert low < 0.7


def test_information_of_what_is_known_and_of_nothing():
    rng = np.random.default_rng(0)
    value = rng.integers(4, size=20_000)
    assert mutual_information(confusion(value, value, 4)) == pytest.approx(2.0, abs=0.01)
    assert mutual_information(confusion(value, value // 2, 4)) == pytest.approx(1.0, abs=0.01)
    constant = mutual_information(confusion(value, np.zeros_like(value), 4))
    assert constant == 0.0
    # The plug-in estimate of nothing is 9 / (2 * 2000 ln 2) = 0.0032 bits.
    nothing = [
        mutual_information(confusion(rng.integers(4, size=2000), rng.integers(4, size=2000), 4))
        for _ in range(200)
    ]
    assert np.mean(nothing) < 0.001


def test_a_side_without_records_has_no_figures():
    value = np.array([0, 1, 0, 1])
    figures = attribute_metrics(value, value, np.ones(4, dtype=bool), 2, seed=0)
    assert figures["num_nonmembers"] == 0
    assert "balanced_accuracy_nonmembers" not in figures
    assert figures["balanced_accuracy_members"] == figures["balanced_accuracy"] == 1.0
