"""Metrics against slow references, known laws, and simulations of what they promise."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.metrics import (
    Calibration,
    accuracy_interval,
    attack_metrics,
    auc,
    calibrate,
    class_independence,
    clopper_pearson,
    decisions,
    ece,
    epsilon_lower_bound,
    l1,
    tpr_at_fpr,
)


@st.composite
def judged(draw, min_size=1):
    """Scores with many ties, and membership with `min_size` of each kind, in any order."""
    values = st.integers(-4, 4) | st.floats(-3, 3, allow_subnormal=False)
    members = draw(st.lists(values, min_size=min_size, max_size=12))
    nonmembers = draw(st.lists(values, min_size=min_size, max_size=12))
    order = draw(st.permutations(range(len(members) + len(nonmembers))))
    score = np.array(members + nonmembers, dtype=float)[order]
    return score, (np.arange(len(score)) < len(members))[order]


def normal(num_in, num_out, shift, seed):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(num_in + num_out) < num_in)
    return rng.normal(size=member.size) + shift * member, member


def balanced(called, member):
    """TPR and TNR counted in loops, as a whole number to compare without rounding."""
    tp = sum(1 for c, m in zip(called, member, strict=True) if c and m)
    tn = sum(1 for c, m in zip(called, member, strict=True) if not c and not m)
    return tp * int((~member).sum()) + tn * int(member.sum())


def all_cuts(score):
    """Every `score > cut` there is. Cuts at the scores: midway, rounding may land on one of two."""
    return [-np.inf, *np.unique(score)]


@settings(deadline=None)
@given(judged())
def test_calibration_finds_the_best_of_all_cuts_and_signs(case):
    score, member = case
    calibration = calibrate(score, member)
    best = {
        sign: max(balanced(sign * score > cut, member) for cut in all_cuts(sign * score))
        for sign in (1, -1)
    }
    assert balanced(decisions(score, calibration), member) == max(best.values())
    assert calibration.sign == (-1 if best[-1] > best[1] else 1)
    assert balanced(score > calibration.threshold_raw, member) == best[1]


@settings(deadline=None)
@given(judged())
def test_calibrated_threshold_is_midway_between_neighbouring_scores(case):
    score, member = case
    calibration = calibrate(score, member)
    values = np.unique(calibration.sign * score)
    midway = [(a + b) / 2 for a, b in pairwise(values)]
    chance = balanced(decisions(score, calibration), member) == member.sum() * (~member).sum()
    assert chance == (calibration.threshold == np.inf)
    assert chance or np.isclose(midway, calibration.threshold, rtol=1e-15, atol=0).any()


def test_of_equally_good_cuts_the_widest_gap_then_the_lowest_wins():
    member = np.array([False, True, False, True])
    assert calibrate([0.0, 1.0, 2.0, 3.0], member).threshold == 0.5
    assert calibrate([0.0, 1.0, 2.0, 5.0], member).threshold == 3.5


def test_adjacent_floating_point_scores_are_told_apart():
    for low in (1.0, -1.0, 5e-324):
        score = np.array([low, np.nextafter(low, np.inf)])
        for member in (np.array([False, True]), np.array([True, False])):
            assert (decisions(score, calibrate(score, member)) == member).all()


@settings(deadline=None)
@given(st.floats(-1e300, 1e300), st.integers(1, 9), st.integers(1, 9))
def test_constant_scores_give_exactly_one_half(value, num_in, num_out):
    member = np.arange(num_in + num_out) < num_in
    score = np.full(member.size, value)
    row = attack_metrics(score, member, calibrate(score, member))
    assert row["attack_accuracy"] == row["attack_accuracy_unsigned"] == row["auc"] == 0.5
    assert row["tpr_at_fpr_0_01"] == row["epsilon_lower_bound"] == row["recall"] == 0
    assert np.isnan(row["precision"])


@settings(deadline=None)
@given(judged(), st.integers(-5, 5))
def test_a_flipped_given_threshold_is_the_exact_complement(case, threshold):
    score, member = case
    calibration = calibrate(score, member, threshold=threshold)
    raw = score > threshold
    assert calibration.threshold_raw == threshold
    assert (decisions(score, calibration) == (raw if calibration.sign == 1 else ~raw)).all()


def test_a_given_threshold_flips_only_beyond_one_standard_error():
    member = np.arange(200) < 100

    def called(num_in, num_out):
        return np.concatenate([np.arange(100) < num_in, np.arange(100) < num_out]).astype(float)

    # One standard error of TPR - FPR is 0.0707 here: 7 of 100 is noise, 8 of 100 is not.
    assert calibrate(called(47, 54), member, threshold=0.5).sign == 1
    assert calibrate(called(46, 54), member, threshold=0.5).sign == -1
    assert calibrate(called(60, 40), member, threshold=0.5).sign == 1


def test_a_sign_fitted_to_noise_does_not_bias_the_judged_accuracy():
    accuracies = []
    for seed in range(600):
        score, member = normal(60, 60, 0, seed)
        calibration = calibrate(score[:30], member[:30])
        accuracies.append(attack_metrics(score[30:], member[30:], calibration)["attack_accuracy"])
    assert abs(np.mean(accuracies) - 0.5) < 4 * np.std(accuracies) / np.sqrt(len(accuracies))


def test_an_inverted_attack_is_leakage_once_signed():
    score, member = normal(1000, 1000, -1.0, 3)
    row = attack_metrics(score, member, calibrate(*normal(500, 500, -1.0, 4)))
    assert row["attack_accuracy"] > 0.65
    assert row["auc"] > 0.72
    assert row["attack_accuracy_unsigned"] < 0.52


@settings(deadline=None)
@given(judged(), st.sampled_from([0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_of_all_thresholds(case, alpha):
    score, member = case
    rates = [
        (np.mean(score[member] > cut), np.mean(score[~member] > cut)) for cut in all_cuts(score)
    ]
    assert tpr_at_fpr(score, member, alpha) == max(tpr for tpr, fpr in rates if fpr <= alpha)


def test_ties_with_too_many_nonmembers_give_no_tpr():
    member = np.arange(200) < 100
    score = np.r_[np.ones(50), np.zeros(50), np.ones(2), np.zeros(98)]
    assert tpr_at_fpr(score, member, 0.01) == 0
    assert tpr_at_fpr(score, member, 0.02) == 0.5


def test_the_false_positive_rate_is_compared_without_rounding_it_down():
    member = np.arange(200) < 100
    score = np.r_[np.ones(100), np.ones(29), np.zeros(71)]
    assert tpr_at_fpr(score, member, 0.29) == 1  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize(("num_in", "num_out"), [(40, 40), (30, 90)])
def test_balanced_accuracy_intervals_cover(num_in, num_out):
    rng = np.random.default_rng(5)
    member = np.arange(num_in + num_out) < num_in
    covered = 0
    for _ in range(600):
        called = np.where(member, rng.random(member.size) < 0.8, rng.random(member.size) < 0.3)
        row = attack_metrics(called.astype(float), member, Calibration(0.5, 1, 0.5))
        covered += row["attack_accuracy_low"] <= 0.75 <= row["attack_accuracy_high"]
    assert covered >= 0.94 * 600


@settings(deadline=None)
@given(judged(), st.integers(-3, 3))
def test_a_row_counts_what_a_loop_counts(case, threshold):
    score, member = case
    row = attack_metrics(score, member, Calibration(threshold, 1, threshold))
    pairs = list(zip(score > threshold, member, strict=True))
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    fn, tn = pairs.count((False, True)), pairs.count((False, False))
    assert row["attack_accuracy"] == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2)
    assert row["accuracy_unbalanced"] == (tp + tn) / len(score)
    assert row["recall"] == tp / (tp + fn)
    assert row["precision"] == pytest.approx(tp / (tp + fp) if tp + fp else np.nan, nan_ok=True)
    assert row["attack_accuracy_low"] <= row["attack_accuracy"] + 1e-12
    assert row["attack_accuracy"] <= row["attack_accuracy_high"] + 1e-12
    assert ("unbalanced" in row["flags"]) == (tp + fn != tn + fp)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_accuracy_follows_from_precision_and_recall_on_equal_groups(size, seed):
    score, member = normal(size, size, 0.5, seed)
    row = attack_metrics(score, member, Calibration(0.0, 1, 0.0))
    assume(row["recall"] > 0)
    recall, precision = row["recall"], row["precision"]
    identity = (recall + 1 - recall * (1 - precision) / precision) / 2
    assert row["attack_accuracy"] == pytest.approx(identity)


def test_small_groups_are_flagged():
    def flags(num_in, num_out):
        score, member = normal(num_in, num_out, 0, 0)
        return attack_metrics(score, member, Calibration(0.0, 1, 0.0))["flags"]

    assert flags(999, 999) == ["underpowered", "underpowered_0_001"]
    assert flags(999, 1000) == ["underpowered_0_001", "unbalanced"]
    assert flags(10_000, 10_000) == []


def test_bad_input_is_refused_with_its_reason():
    member = np.array([True, False])
    with pytest.raises(ValueError, match="NaN or infinite"):
        auc([0.0, np.nan], member)
    with pytest.raises(ValueError, match="at least one of each"):
        calibrate([0.0, 1.0], [True, True])
    with pytest.raises(ValueError, match=r"both must be \[N\]"):
        tpr_at_fpr([0.0], member, 0.1)
    with pytest.raises(ValueError, match=r"\[1 2\]"):
        auc([0.0, 1.0], [1, 2])
    with pytest.raises(ValueError, match="got 3 of 2"):
        clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="threshold is NaN"):
        calibrate([0.0, 1.0], member, threshold=np.nan)


def test_randomised_response_keeps_its_epsilon():
    rng = np.random.default_rng(8)
    bounds = []
    for _ in range(400):
        member = rng.random(4000) < 0.5
        truthful = rng.random(4000) < np.e / (1 + np.e)
        bounds.append(epsilon_lower_bound((member == truthful).astype(float), member))
    assert np.mean(np.array(bounds) <= 1) >= 0.95
    assert np.median(bounds) > 0.75  # a bound that says nothing would pass the line above


def test_epsilon_reaches_its_ceiling_on_perfect_separation():
    member = np.tile([True, True, False, False], 500)
    bound = epsilon_lower_bound(member.astype(float), member)
    assert np.log(500 / 3.69) - 0.02 < bound <= np.log(500 / 3.68)


def test_epsilon_sees_certain_nonmembers_too():
    member = np.tile([True, True, False, False], 500)
    score = np.where(member, 1.0, np.random.default_rng(0).random(2000) < 0.5)
    assert epsilon_lower_bound(score, member) > 3
    assert epsilon_lower_bound(-score, ~member) > 3


def test_epsilon_is_counted_on_records_that_did_not_choose_the_threshold():
    member = np.tile([True, True, False, False], 500)
    first = np.tile([True, False], 1000)
    assert epsilon_lower_bound(np.where(first, member, 0.0), member) == 0
    assert epsilon_lower_bound(np.where(first, member, 2.0 * member), member) > 3


def test_epsilon_of_noise_is_mostly_0_and_of_too_few_records_always():
    bounds = [epsilon_lower_bound(*normal(100, 100, 0, seed)) for seed in range(200)]
    assert np.mean(np.array(bounds) > 0) <= 0.05
    assert epsilon_lower_bound([1.0, 0.0, 0.1], [True, False, False]) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 10**6))
def test_ece_equals_a_loop_over_bins(num_rows, num_classes, seed):
    rng = np.random.default_rng(seed)
    confidence = rng.dirichlet(np.full(num_classes, 0.3), size=num_rows)
    y = rng.integers(num_classes, size=num_rows)
    top, right = confidence.max(axis=1), confidence.argmax(axis=1) == y
    slow = 0.0
    for i in range(15):
        rows = (top > i / 15) & (top <= (i + 1) / 15)
        if rows.any():
            slow += rows.mean() * abs(right[rows].mean() - top[rows].mean())
    assert ece(confidence, y) == pytest.approx(slow, abs=1e-12)


def test_ece_of_certain_answers_is_their_error():
    assert ece(np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 2, 0])) == 0.25


def test_ece_bins_end_with_their_upper_edge():
    confidence = np.array([[0.6, 0.4], [0.62, 0.38]])  # 0.6 = 9 / 15
    assert ece(confidence, np.array([0, 1])) == pytest.approx((0.4 + 0.62) / 2)


def test_l1_is_per_row():
    one_hot = np.eye(3)
    assert l1(one_hot, one_hot[[0, 2, 1]]).tolist() == [0, 2, 2]


def test_accuracy_interval_is_clopper_pearson():
    expected = stats.binomtest(7, 9).proportion_ci()
    assert accuracy_interval(np.arange(9) < 7) == pytest.approx(
        (7 / 9, expected.low, expected.high)
    )
    with pytest.raises(ValueError, match="at least one"):
        accuracy_interval([])


def test_class_independence_tells_a_biased_split():
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=2000)
    p_values = [class_independence(y, rng.permutation(2000) < 1000) for _ in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert class_independence(y, rng.random(2000) < np.where(y == 0, 0.9, 0.5)) < 0.01
    halves = np.arange(100) < 50, np.arange(100) % 50 < np.where(np.arange(100) < 50, 30, 20)
    assert class_independence(*halves) == pytest.approx(stats.chi2.sf(4, 1))  # 4 (30 - 25)^2 / 25
    assert class_independence(np.zeros(9), np.arange(9) < 4) == 1


@given(st.integers(0, 2**32 - 1), st.floats(-1, 3))
def test_natural_threshold_is_kept_unless_the_records_clearly_favour_another(seed, shift):
    rng = np.random.default_rng(seed)
    member = np.arange(200) < 100
    score = rng.normal(0, 1, 200) + np.where(member, 1, -1) + shift
    chosen = calibrate(score, member, natural=0.0)
    free = calibrate(score, member)

    def advantage(decided):
        return decided[member].mean() - decided[~member].mean()

    own = score > 0
    tpr, fpr = own[member].mean(), own[~member].mean()
    error = np.sqrt((tpr * (1 - tpr) + fpr * (1 - fpr)) / 100)
    gain = advantage(decisions(score, free)) - advantage(own)
    if gain <= error:
        assert (chosen.threshold, chosen.sign, chosen.threshold_raw) == (0.0, 1, 0.0)
    else:
        assert chosen == free
