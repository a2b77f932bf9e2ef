"""What a number on a judged set is worth: intervals, and tests between numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy  # its stats load when first asked for: a cached rerun needs none
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TAIL = 0.025  # of each side of a 95 % interval


def checked(score: ArrayLike, is_member: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 [N] and membership as bool [N], both groups present.

    Raises:
        ValueError: for other shapes, non-finite scores, membership other than 0 and 1, or an
            empty group.
    """
    score_N, member_N = np.asarray(score, dtype=np.float64), np.asarray(is_member)
    if score_N.ndim != 1 or score_N.shape != member_N.shape:
        raise ValueError(
            f"score has shape {score_N.shape} and is_member {member_N.shape}; both must be [N]"
        )
    if not np.isfinite(score_N).all():
        raise ValueError(
            f"score holds {np.sum(~np.isfinite(score_N))} of {score_N.size} values that are NaN or "
            "infinite; an attack must return finite scores (clip before taking a log)"
        )
    if member_N.dtype != bool and not np.isin(member_N, (0, 1)).all():
        raise ValueError(
            f"is_member holds {np.unique(member_N)[:5]}; it must hold True and False (or 1 and 0)"
        )
    member_N = member_N.astype(bool)
    if member_N.all() or not member_N.any():
        raise ValueError(
            f"{member_N.sum()} members and {(~member_N).sum()} non-members were judged; "
            "metrics need at least one of each"
        )
    return score_N, member_N


def clopper_pearson(
    successes: ArrayLike, n: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Exact two-sided interval of a rate; each limit alone errs at most (1 - level) / 2.

    Args:
        successes: counts in 0..n, any shape that broadcasts with n.
        n: trials; with n = 0 the interval is [0, 1].
        level: confidence, between 0 and 1.

    Raises:
        ValueError: if a count is outside 0..n.

    Source: Clopper and Pearson 1934, as quantiles of the beta distribution.
    """
    k, trials = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    wrong = (k < 0) | (k > trials)
    if wrong.any():
        raise ValueError(f"successes must lie in 0..n; got {k[wrong][0]:g} of {trials[wrong][0]:g}")
    tail = (1 - level) / 2
    # The beta quantile does not exist where the limit is 0 or 1; a harmless 1 stands in there.
    low = special.betaincinv(np.where(k > 0, k, 1), trials - k + 1, tail)
    high = special.betaincinv(k + 1, np.where(k < trials, trials - k, 1), 1 - tail)
    return np.where(k > 0, low, 0.0), np.where(k < trials, high, 1.0)


def auc(score: ArrayLike, is_member: ArrayLike) -> float:
    """Probability that a member outscores a non-member, ties counting 1/2 (Mann-Whitney)."""
    score_N, member_N = checked(score, is_member)
    num_in, num_out = member_N.sum(), (~member_N).sum()
    rank_sum = scipy.stats.rankdata(score_N)[member_N].sum()
    return float((rank_sum - num_in * (num_in + 1) / 2) / (num_in * num_out))


def _placements(score_N: Floats, member_N: Bools) -> tuple[Floats, Floats]:
    """Of each member the share of non-members below it; of each non-member that of members above.

    Source: Sun and Xu 2014: midranks in the whole minus midranks in the own group, O(N log N).
    """
    rank_N = scipy.stats.rankdata(score_N)
    below = rank_N[member_N] - scipy.stats.rankdata(score_N[member_N])
    under = rank_N[~member_N] - scipy.stats.rankdata(score_N[~member_N])
    return below / (~member_N).sum(), 1 - under / member_N.sum()


def _variance(members: Floats, nonmembers: Floats) -> float:
    if min(len(members), len(nonmembers)) < 2:
        return float("nan")
    return float(members.var(ddof=1) / len(members) + nonmembers.var(ddof=1) / len(nonmembers))


def delong(score: ArrayLike, is_member: ArrayLike) -> tuple[float, float]:
    """AUC and its variance; the variance is NaN if a group has only one record.

    Source: DeLong, DeLong and Clarke-Pearson 1988; fast form of Sun and Xu 2014.
    """
    members, nonmembers = _placements(*checked(score, is_member))
    return float(members.mean()), _variance(members, nonmembers)


def auc_interval(
    score: ArrayLike, is_member: ArrayLike, tail: float = TAIL
) -> tuple[float, float, float]:
    """AUC with its interval (95 %, or 1 - 2 `tail`): DeLong's variance in `auc_limits`."""
    value, variance = delong(score, is_member)
    member_N = np.asarray(is_member).astype(bool)
    num_pairs = int(min(member_N.sum(), (~member_N).sum()))
    return value, *auc_limits(value, variance, num_pairs, tail)


def auc_limits(
    value: float, variance: float, num_pairs: int, tail: float = TAIL
) -> tuple[float, float]:
    """Limits of an AUC of known variance, on the logit scale, hence within [0, 1].

    With variance 0 every member-non-member pair came out the same way o (0, 1/2 or 1). The
    n = `num_pairs` disjoint pairs are independent, so P(o) >= p = tail^(1/n) and the AUC lies in
    [o p, o p + 1 - p]. The limits are NaN if the variance is.
    """
    if variance == 0:
        p = tail ** (1 / num_pairs)
        return value * p, value * p + 1 - p
    half = -special.ndtri(tail) * np.sqrt(variance) / (value * (1 - value))
    middle = special.logit(value)
    return float(special.expit(middle - half)), float(special.expit(middle + half))


def auc_p_value(value: float, variance: float, num_pairs: int) -> float:
    """Two-sided p-value of an AUC of 1/2: at most twice `tail` where `auc_limits` leave 1/2 out.

    With variance 0 it is the sign test's on `num_pairs` disjoint pairs; NaN if the variance is.
    """
    if variance == 0:
        return 1.0 if value == 0.5 else min(1.0, 2.0 ** (1 - num_pairs))
    z = special.logit(value) * value * (1 - value) / np.sqrt(variance)
    return float(2 * special.ndtr(-abs(z)))


def holm(p_values: ArrayLike, level: float) -> Bools:
    """Which of [N] tests to believe if all errors together are to have a chance of `level`.

    NaN is a test that could not be made. Holds however the tests depend on each other.

    Source: Holm 1979.
    """
    p_N = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_N)  # NaN comes last
    num = int(np.isfinite(p_N).sum())
    kept = p_N[order[:num]] * np.arange(num, 0, -1) <= level
    believed = np.zeros(len(p_N), dtype=bool)
    believed[order[:num][np.logical_and.accumulate(kept)]] = True
    return believed


def delong_paired(
    score_a: ArrayLike, score_b: ArrayLike, is_member: ArrayLike
) -> tuple[float, float]:
    """AUC of a minus AUC of b on the same records, and the two-sided p-value of no difference.

    With variance 0 and a difference, all disjoint pairs favour the same attack and the sign test
    on them gives p = 2^(1-n). The p-value is NaN if a group has only one record.

    Source: DeLong et al. 1988, equation 5 with the contrast (1, -1).
    """
    in_a, out_a = _placements(*checked(score_a, is_member))
    in_b, out_b = _placements(*checked(score_b, is_member))
    difference = float(in_a.mean() - in_b.mean())
    variance = _variance(in_a - in_b, out_a - out_b)
    if variance == 0:
        return difference, 1.0 if difference == 0 else 2.0 ** (1 - min(len(in_a), len(out_a)))
    return difference, float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance)))


def bca_bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[NDArray[Any]],
    strata: NDArray[Any] | None = None,
    *,
    seed: int,
    resamples: int = 2000,
    clusters: NDArray[Any] | None = None,
) -> tuple[float, float]:
    """95 % bias-corrected and accelerated interval of `statistic(*arrays)`.

    Args:
        statistic: called with the arrays' resampled rows; must not return NaN.
        arrays: each [N, ...].
        strata: [N], resampled apart (membership); one stratum if absent.
        seed: of the resampling.
        resamples: number of bootstrap samples.
        clusters: [N], rows that stay together (duplicate groups); each row alone if absent.

    Raises:
        ValueError: if a cluster lies in two strata, or the statistic is NaN on a resample.

    Source: Efron 1987; acceleration for several samples from Davison and Hinkley 1997, section
        5.3, with jackknife influence values, a whole cluster left out at a time.
    """
    num_rows = len(arrays[0])
    strata = np.zeros(num_rows) if strata is None else np.asarray(strata)
    clusters = np.arange(num_rows) if clusters is None else np.asarray(clusters)
    _, code_N = np.unique(clusters, return_inverse=True)
    order_N = np.argsort(code_N, kind="stable")
    size_G = np.bincount(code_N)
    start_G = np.cumsum(size_G) - size_G
    stratum_G = strata[order_N[start_G]]
    if (stratum_G[code_N] != strata).any():
        row = int(np.flatnonzero(stratum_G[code_N] != strata)[0])
        raise ValueError(
            f"cluster {clusters[row]} lies in two strata; members and non-members may share no "
            "duplicate group"
        )

    def value(chosen: NDArray[np.intp]) -> float:
        size = size_G[chosen]
        shift = np.repeat(start_G[chosen] - (np.cumsum(size) - size), size)
        rows = order_N[shift + np.arange(size.sum())]
        return float(statistic(*(array[rows] for array in arrays)))

    groups = [np.flatnonzero(stratum_G == stratum) for stratum in np.unique(stratum_G)]
    everything = np.arange(len(size_G))
    observed = value(everything)
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            value(
                np.concatenate(
                    [group[rng.integers(len(group), size=len(group))] for group in groups]
                )
            )
            for _ in range(resamples)
        ]
    )
    if np.isnan(drawn).any() or np.isnan(observed):
        raise ValueError(
            f"the statistic was NaN on {np.isnan(drawn).sum()} of {resamples} resamples; "
            "it must be defined on every one"
        )
    squares, cubes = 0.0, 0.0
    for group in (group for group in groups if len(group) > 1):
        left_out = np.array([value(np.delete(everything, g)) for g in group])
        influence = (left_out.mean() - left_out) * (len(group) - 1) / len(group)
        squares, cubes = squares + np.sum(influence**2), cubes + np.sum(influence**3)
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    below = np.mean(drawn < observed) + np.mean(drawn == observed) / 2
    bias = scipy.stats.norm.ppf(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    z = bias + scipy.stats.norm.ppf([TAIL, 1 - TAIL])
    low, high = np.quantile(drawn, scipy.stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def seed_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % t-interval; the limits are NaN for one seed."""
    values_S = np.asarray(values, dtype=np.float64)
    mean = float(values_S.mean())
    if values_S.size < 2:
        return mean, float("nan"), float("nan")
    error = values_S.std(ddof=1) / np.sqrt(values_S.size)
    half = float(-special.stdtrit(values_S.size - 1, TAIL) * error)
    return mean, mean - half, mean + half


def mean_interval(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % limits, between seeds where these tell their spread.

    Two seeds do not (their t-interval is 13 standard errors wide), nor do seeds that agree exactly.
    Then it is the mean of the seeds' own limits, over records: the seeds share records, so their
    number narrows nothing.

    Args:
        values, low, high: [S], of each seed the value and its limits over records, NaN if it has
            none.
    """
    values_S = np.asarray(values, dtype=np.float64)
    if values_S.size > 2 and np.ptp(values_S) > 0:
        return seed_interval(values_S)
    low_S, high_S = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    return float(values_S.mean()), float(low_S.mean()), float(high_S.mean())


def equivalent(values: ArrayLike, margin: float = 0.015, *, centre: float = 0.5) -> float:
    """p-value of two one-sided t-tests that the mean over seeds is within `margin` of `centre`.

    Small means "shown to be close". NaN for one seed; with no spread at all 0 inside, 1 outside.

    Source: Schuirmann 1987; the margin from methods.md section 8.6.
    """
    values_S = np.asarray(values, dtype=np.float64)
    if values_S.size < 2:
        return float("nan")
    error = values_S.std(ddof=1) / np.sqrt(values_S.size)
    room = margin - abs(float(values_S.mean()) - centre)  # the nearer limit has the larger p
    if error == 0:
        return 0.0 if room > 0 else 1.0
    return float(scipy.stats.t.sf(room / error, values_S.size - 1))
