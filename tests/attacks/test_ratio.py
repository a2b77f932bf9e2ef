"""What is true of RMIA's ratios and counts, against the slow obvious way."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from attacks._ratio import (
    A_UNTUNED,
    base,
    mean_over,
    offline,
    ratio,
    share_exceeded,
    tuned_a,
)


def pairwise(ratio_x: Any, ratio_z: Any, gamma: float) -> Any:
    """The definition: all pairs."""
    return (ratio_x[:, None] > gamma * ratio_z[None, :]).mean(axis=1)


@pytest.mark.parametrize("gamma", [1.0, 1.1, 2.0])
def test_counts_are_those_of_all_pairs_to_the_bit(gamma: float) -> None:
    rng = np.random.default_rng(0)
    for num_z in (1, 7, 1000):
        ratio_x, ratio_z = rng.lognormal(size=500), rng.lognormal(size=num_z)
        ratio_x[:200] = gamma * rng.choice(ratio_z, 200)  # ties, which do not exceed
        fast, slow = share_exceeded(ratio_x, ratio_z, gamma), pairwise(ratio_x, ratio_z, gamma)
        assert fast.dtype == np.float64
        assert fast.tobytes() == slow.tobytes()


LEVELS = st.lists(
    st.one_of(
        st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 1e-12, 1e12]),
        st.floats(0, 1e15),
    ),
    min_size=1,
    max_size=30,
)


@given(ratio_x=LEVELS, ratio_z=LEVELS, gamma=st.sampled_from([0.5, 1.0, 1.1, 2.0, 3.0]))
def test_ties_and_extremes_are_counted_as_all_pairs_are(
    ratio_x: list[float], ratio_z: list[float], gamma: float
) -> None:
    """0.1 * 3 is not 0.3: both ways must round alike."""
    x, z = np.array(ratio_x), np.array(ratio_z)
    assert share_exceeded(x, z, gamma).tobytes() == pairwise(x, z, gamma).tobytes()


def test_never_all_pairs_in_memory() -> None:
    rng = np.random.default_rng(1)
    ratio_x, ratio_z = rng.lognormal(size=20_000), rng.lognormal(size=5_000)
    tracemalloc.start()
    share_exceeded(ratio_x, ratio_z, 2.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # all pairs are 100 MB of booleans


def test_inputs_that_cannot_be_counted_are_told() -> None:
    one = np.ones(3)
    with pytest.raises(ValueError, match="population is empty"):
        share_exceeded(one, one[:0], 2.0)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 3 entries of ratio_z"):
            share_exceeded(one, np.array([1, bad, 1]), 2.0)
        with pytest.raises(ValueError, match="1 of 3 entries of ratio_x"):
            share_exceeded(np.array([1, bad, 1]), one, 2.0)


def test_mean_is_over_the_mask_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    p, mask = rng.random((9, 40)), rng.random((9, 40)) < 0.4
    p[:, 3] = 0.0  # an answer of 0 is an answer
    mask[:, 5] = False
    mean, count = mean_over(p, mask)
    for n in range(40):
        seen = p[mask[:, n], n]
        assert count[n] == len(seen)
        assert mean[n] == pytest.approx(seen.mean() if len(seen) else 0.0, abs=1e-15)


def test_mean_has_the_same_bits_in_whatever_company() -> None:
    rng = np.random.default_rng(3)
    p, mask = rng.random((64, 300)), rng.random((64, 300)) < 0.5
    together, _ = mean_over(p, mask)
    for part in ([7], [299, 7], slice(0, 17)):
        assert mean_over(p[:, part], mask[:, part])[0].tobytes() == together[part].tobytes()


def test_answers_that_cannot_be_averaged_are_told() -> None:
    p, mask = np.ones((2, 3)), np.ones((2, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"p is \(2, 3\) and its mask \(3, 2\)"):
        mean_over(p, mask.T)
    p[1, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 3 records are not finite"):
        mean_over(p, mask)


def test_offline_mean_is_that_of_a_line_through_one() -> None:
    """Half of p_out and half of a p_out + 1 - a."""
    p_out = np.array([0.0, 0.25, 1.0])
    for a in (0.0, 0.33, 1.0):
        expected = 0.5 * (p_out + (a * p_out + 1 - a))
        np.testing.assert_allclose(offline(p_out, a), expected, rtol=1e-15)
    np.testing.assert_array_equal(offline(p_out, 1.0), p_out)


def test_ratio_is_finite_where_nothing_is_expected() -> None:
    p = np.array([0.0, 0.0, 1.0, 0.5])
    target = np.array([0.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(ratio(target, p), [1.0, 1e12, 1e-12, 2.0])
    np.testing.assert_allclose(base(target, p), np.log(ratio(target, p)), atol=1e-12)


def gaussian_ratios(num: int, shift: float) -> tuple[Any, Any, Any]:
    """Log ratios N(shift, 1) of members, N(0, 1) of others and of a population; who is one."""
    rng = np.random.default_rng(4)
    member = np.arange(num) % 2 == 0
    ratio_x = np.exp(rng.normal(size=num) + shift * member)
    return ratio_x, np.exp(rng.normal(size=num)), member


def test_unit_shift_of_gaussians_gives_the_known_auc() -> None:
    ratio_x, ratio_z, member = gaussian_ratios(20_000, 1.0)
    auc = roc_auc_score(member, share_exceeded(ratio_x, ratio_z, 1.0))
    # Phi(1 / sqrt 2); four standard deviations of 10,000 a side.
    assert auc == pytest.approx(norm.cdf(np.sqrt(0.5)), abs=0.014)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_requested_false_positives_are_realised(alpha: float) -> None:
    """Without a margin (gamma 1) a non-member's score is uniform."""
    ratio_x, ratio_z, _ = gaussian_ratios(20_000, 0.0)
    called = share_exceeded(ratio_x, ratio_z, 1.0) > 1 - alpha
    # The threshold is estimated from as many population records as are judged.
    assert abs(called.mean() - alpha) < 4 * np.sqrt(2 * alpha * (1 - alpha) / 20_000)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_ranks_as_base_does_over_a_large_population(gamma: float) -> None:
    rng = np.random.default_rng(5)
    p_out, p_out_z = rng.beta(1, 2, size=2000), rng.beta(1, 2, size=25_000)
    target = np.clip(p_out + 0.5 * rng.random(2000), 0, 1)
    target_z = np.clip(p_out_z + rng.normal(size=25_000) * 0.3, 0.001, 1)
    ratio_z = ratio(target_z, offline(p_out_z, 1.0))
    scores = share_exceeded(ratio(target, offline(p_out, 1.0)), ratio_z, gamma)
    assert spearmanr(scores, base(target, p_out))[0] > 0.99


def shadow_answers(a: float, num_shadows: int = 16, num: int = 2000) -> tuple[Any, Any]:
    """Models that answer p without a record, about a p + 1 - a with it; and roles."""
    rng = np.random.default_rng(6)
    role = np.zeros((num_shadows, num), dtype=np.int8)
    for pair in range(num_shadows // 2):
        is_in = rng.random(num) < 0.5
        role[2 * pair], role[2 * pair + 1] = is_in, ~is_in
    p = rng.uniform(0.05, 0.95, size=num)
    answer = np.where(role == 1, a * p + 1 - a, p)
    return np.exp(np.log(answer) + 0.1 * rng.normal(size=answer.shape)), role


def slow_a(p: Any, role: Any) -> float:
    """The grid search written out; models 0 and 1 are not references."""
    found = []
    for a in [i / 10 for i in range(11)]:
        scores, member = [], []
        for n in range(p.shape[1]):
            out = [p[k, n] for k in range(2, len(p)) if role[k, n] == 0]
            if out and role[0, n] != -1 and 1 in role[:, n]:
                scores.append(p[0, n] / (0.5 * ((1 + a) * np.mean(out) + 1 - a)))
                member.append(role[0, n] == 1)
        found.append((roc_auc_score(member, scores), -abs(a - 0.33), a))
    return max((round(auc, 9), near, a) for auc, near, a in found)[2]


@pytest.mark.parametrize("planted", [0.1, 0.5, 0.9])
def test_a_is_found_by_grid_search(planted: float) -> None:
    p, role = shadow_answers(planted)
    role[:, :500] = np.where(role[:, :500] == 0, -1, role[:, :500])  # nobody is merely OUT
    role[:, 500:700] = 0  # outside the pool
    role[0, 700:800] = -1  # reference of the attacked model's defense
    assert tuned_a(p, role) == slow_a(p, role)


def test_a_follows_how_much_models_remember() -> None:
    """Where the training lifts little (a near 1), the mean with the record is near p_out."""
    strong, weak = (tuned_a(*shadow_answers(a)) for a in (0.0, 0.95))
    assert strong < weak


def test_a_is_untuned_where_there_is_nothing_to_tune_on() -> None:
    p, role = shadow_answers(0.5)
    assert tuned_a(p[:2], role[:2]) == A_UNTUNED  # no third model
    few = np.concatenate([np.flatnonzero(role[0] == 1)[:9], np.flatnonzero(role[0] == 0)])
    assert tuned_a(p[:, few], role[:, few]) == A_UNTUNED
    outside = np.zeros_like(role)
    assert tuned_a(p, outside) == A_UNTUNED
    # Every a as good as any other: the one nearest to the fallback.
    assert tuned_a(np.full_like(p, 0.5), role) == 0.3
