"""Areas, their variance and intervals: slow definitions, scipy, and what 95 % promises."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.metrics import (
    auc,
    auc_interval,
    bca_bootstrap,
    clopper_pearson,
    delong,
    delong_paired,
    equivalent,
    mean_interval,
    seed_interval,
)


def judged(least=1):
    """Scores with many ties, and membership with at least `least` of each kind."""
    score = st.integers(-4, 4) | st.floats(-3, 3, allow_subnormal=False)
    drawn = st.lists(st.tuples(score, st.booleans()), min_size=2 * least, max_size=24)
    both = drawn.filter(lambda rows: least <= sum(m for _, m in rows) <= len(rows) - least)
    return both.map(lambda rows: (np.array([s for s, _ in rows], float), np.array(rows)[:, 1] > 0))


def normal(num_in, num_out, shift, seed):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(num_in + num_out) < num_in)
    return rng.normal(size=member.size) + shift * member, member


def pair_matrix(score, member):
    return np.array([[float(a > b) + (a == b) / 2 for b in score[~member]] for a in score[member]])


@settings(deadline=None)
@given(judged())
def test_auc_is_the_share_of_pairs_won(case):
    assert auc(*case) == pytest.approx(pair_matrix(*case).mean(), abs=1e-12)


@settings(deadline=None)
@given(judged())
def test_auc_sees_only_the_order(case):
    score, member = case
    order = np.searchsorted(np.unique(score), score)
    assert auc(np.exp(order.astype(float)) - 7, member) == auc(score, member)


@settings(deadline=None)
@given(judged())
def test_turning_scores_or_membership_around_complements_the_auc(case):
    score, member = case
    assert auc(-score, member) == pytest.approx(1 - auc(score, member), abs=1e-12)
    assert auc(score, ~member) == pytest.approx(1 - auc(score, member), abs=1e-12)


@settings(deadline=None)
@given(judged(least=2))
def test_delong_equals_its_definition_over_all_pairs(case):
    pairs = pair_matrix(*case)
    value, variance = delong(*case)
    slow = pairs.mean(1).var(ddof=1) / pairs.shape[0] + pairs.mean(0).var(ddof=1) / pairs.shape[1]
    assert value == pytest.approx(pairs.mean(), abs=1e-12)
    assert variance == pytest.approx(slow, abs=1e-12)


@settings(deadline=None)
@given(judged(least=2), st.randoms(use_true_random=False))
def test_paired_delong_equals_its_definition_over_all_pairs(case, random):
    score, member = case
    other = np.array([random.choice([-1.0, 0.0, 1.0]) for _ in score]) + score
    pairs = pair_matrix(score, member) - pair_matrix(other, member)
    slow = pairs.mean(1).var(ddof=1) / pairs.shape[0] + pairs.mean(0).var(ddof=1) / pairs.shape[1]
    assume(slow > 1e-9)
    difference, p_value = delong_paired(score, other, member)
    assert difference == pytest.approx(pairs.mean(), abs=1e-12)
    expected = 2 * stats.norm.sf(abs(pairs.mean()) / np.sqrt(slow))
    assert p_value == pytest.approx(expected, abs=1e-9)


def test_paired_delong_where_nothing_varies():
    member = np.arange(15) < 6
    perfect, constant = member.astype(float), np.zeros(15)
    assert delong_paired(perfect, perfect, member) == (0.0, 1.0)
    assert delong_paired(perfect, constant, member) == (0.5, 2.0**-5)
    assert delong_paired(constant, -perfect, ~member) == (-0.5, 2.0**-5)


def test_paired_delong_rejects_five_percent_of_equal_attacks():
    p_values = []
    for seed in range(600):
        shared, member = normal(60, 60, 0.7, seed)
        noise = np.random.default_rng([seed, 1]).normal(size=(2, member.size))
        p_values.append(delong_paired(shared + noise[0], shared + noise[1], member)[1])
    assert 0.025 < np.mean(np.array(p_values) < 0.05) < 0.08


def test_delong_and_bootstrap_intervals_have_the_same_width():
    for shift, seed in ((0.2, 1), (1.0, 2)):
        score, member = normal(150, 200, shift, seed)
        _, low, high = auc_interval(score, member)
        boot_low, boot_high = bca_bootstrap(auc, [score, member], member, seed=0)
        assert high - low == pytest.approx(boot_high - boot_low, rel=0.1)
        assert low == pytest.approx(boot_low, abs=0.1 * (high - low))


@settings(deadline=None)
@given(judged())
def test_auc_interval_is_around_the_auc_and_within_0_and_1(case):
    value, low, high = auc_interval(*case)
    if min(case[1].sum(), (~case[1]).sum()) == 1 and not np.isfinite(low):
        return
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1


def test_perfect_separation_leaves_room_for_doubt():
    member = np.arange(20) < 10
    p = 0.025**0.1
    assert auc_interval(member.astype(float), member) == pytest.approx((1, p, 1))
    assert auc_interval(-member.astype(float), member) == pytest.approx((0, 0, 1 - p))
    assert auc_interval(np.zeros(20), member) == pytest.approx((0.5, p / 2, 1 - p / 2))


def test_clopper_pearson_limits_are_where_the_binomial_tails_reach_their_level():
    successes, n = np.array([1, 5, 37]), np.array([9, 5, 80])
    low, high = clopper_pearson(successes, n)
    assert stats.binom.sf(successes - 1, n, low) == pytest.approx(0.025)
    assert stats.binom.cdf(successes, n, high)[[0, 2]] == pytest.approx(0.025)
    assert high[1] == 1
    assert clopper_pearson(0, 0) == (0, 1)
    assert clopper_pearson(0, 1000)[1] == pytest.approx(3.69 / 1000, rel=3e-3)


@pytest.mark.parametrize("n", [1, 7, 40, 300])
def test_clopper_pearson_covers_at_least_95_percent_for_every_rate(n):
    counts = np.arange(n + 1)
    low, high = clopper_pearson(counts, n)
    for rate in np.linspace(0.001, 0.999, 200):
        covered = (low <= rate) & (rate <= high)
        assert stats.binom.pmf(counts, n, rate)[covered].sum() >= 0.95


def test_bca_agrees_with_scipy_on_two_skewed_samples():
    rng = np.random.default_rng(1)
    first, second = rng.exponential(size=12), 3 * rng.exponential(size=100)

    def ratio(values, is_first):
        return values[is_first].mean() / values[~is_first].mean()

    is_first = np.arange(112) < 12
    ours = bca_bootstrap(ratio, [np.r_[first, second], is_first], is_first, seed=0, resamples=9000)

    def reference(method):
        result = stats.bootstrap(
            (first, second),
            lambda a, b, axis: a.mean(axis) / b.mean(axis),
            n_resamples=9000,
            method=method,
            rng=np.random.default_rng(2),
        )
        return np.array(result.confidence_interval)

    bca, percentile = reference("BCa"), reference("percentile")
    tolerance = 0.08 * np.ptp(bca)
    assert ours == pytest.approx(tuple(bca), abs=tolerance)
    assert abs(bca[1] - percentile[1]) > tolerance  # the corrections are not negligible here


def test_strata_keep_their_sizes():
    member = np.arange(30) < 10
    assert bca_bootstrap(np.mean, [member], member, seed=0, resamples=50) == (1 / 3, 1 / 3)


def test_duplicates_add_no_certainty():
    score, member = normal(40, 40, 0.5, 6)
    once = bca_bootstrap(auc, [score, member], member, seed=0, resamples=1000)
    row = np.repeat(np.arange(80), 4)
    copied = [score[row], member[row]]
    clustered = bca_bootstrap(auc, copied, member[row], seed=0, resamples=1000, clusters=row)
    naive = bca_bootstrap(auc, copied, member[row], seed=0, resamples=1000)
    assert clustered == pytest.approx(once, abs=1e-9)
    assert np.ptp(naive) < 0.65 * np.ptp(once)


def test_bootstrap_refuses_what_it_cannot_resample():
    values = np.arange(4.0)
    with pytest.raises(ValueError, match="cluster 7 lies in two strata"):
        bca_bootstrap(np.mean, [values], np.array([0, 1, 0, 1]), seed=0, clusters=np.full(4, 7))
    with pytest.raises(ValueError, match="NaN on"):
        bca_bootstrap(lambda v: np.nan, [values], seed=0, resamples=10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 0.5))
def test_a_mean_has_limits_between_seeds_only_where_three_differ(values, half):
    low, high = np.array(values) - half, np.array(values) + half
    got = mean_interval(values, low, high)
    if len(values) > 2 and len(set(values)) > 1:
        assert got == seed_interval(values)
    else:
        expected = np.mean(values) + np.array([0, -half, half])
        assert got == pytest.approx(expected.tolist(), abs=1e-12)
    assert got[1] <= got[0] + 1e-12
    assert got[0] <= got[2] + 1e-12


def test_seed_interval_and_equivalence_agree_with_scipy():
    values = np.array([0.503, 0.511, 0.492, 0.5, 0.507])
    mean, low, high = seed_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))
    above = stats.ttest_1samp(values, 0.485, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.515, alternative="less").pvalue
    assert equivalent(values) == pytest.approx(max(above, below))
    assert equivalent(values + 0.02) > 0.5
    assert np.isnan([*seed_interval([0.5])[1:], equivalent([0.5])]).all()
    assert (equivalent([0.5, 0.5]), equivalent([0.6, 0.6])) == (0, 1)
