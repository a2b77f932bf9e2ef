"""A lower bound on epsilon from the guesses about many records of one training run."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from tasks._intervals import checked

__all__ = ["epsilon_of_guesses", "epsilon_one_run", "one_run_p_value"]

# Shares of the records guessed about, half as members and half not: fixed in advance, and each
# tested at its part of the level (Bonferroni).
_SHARES = (0.02, 0.1, 0.3, 1.0)
_LEVEL = 0.05
_LARGEST, _PRECISION = 20.0, 1e-3


def epsilon_one_run(score: ArrayLike, is_member: ArrayLike) -> float:
    """Lower bound, at 95 %, on epsilon by guessing the records of extreme score.

    The k highest scores are guessed to be members and the k lowest not, for four k fixed in
    advance; the bound is the best of the four, each at a quarter of the level. Ties at a cut are
    broken by the given order, which must tell nothing.

    The bound supposes that each record's membership is a fair coin of its own. Here equally many
    members and others are drawn from one pool, whose coins are tied by their sum: with hundreds
    of records the difference is small, but a certificate takes a run of its own.

    Args:
        score: [N] finite, higher = member, signed on other records.
        is_member: [N] bool.

    Returns:
        Epsilon at least 0, at most 20; 0 proves nothing.

    Source: Steinke, Nasr & Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS
        2023, theorem 5.2; methods.md section 8.7.
    """
    score_N, member_N = checked(score, is_member)
    order = np.argsort(-score_N, kind="stable")
    bounds = []
    for share in _SHARES:
        each = max(1, round(share * len(order) / 2))
        each = min(each, len(order) // 2)
        correct = member_N[order[:each]].sum() + (~member_N[order[len(order) - each :]]).sum()
        bounds.append(
            epsilon_of_guesses(2 * each, int(correct), len(order), level=_LEVEL / len(_SHARES))
        )
    return max(bounds)


def epsilon_of_guesses(
    num_guesses: int, num_correct: int, num_records: int, *, delta: float = 0.0, level: float = 0.05
) -> float:
    """The largest epsilon in [0, 20] that the guesses refute, to 1e-3 from below.

    Args:
        num_guesses: r, records a guess was made about.
        num_correct: v of them were right.
        num_records: m, records whose membership was a coin.
        delta: of (epsilon, delta).
        level: of the test, 0.05 for a bound at 95 %.
    """
    low, high = 0.0, _LARGEST
    if one_run_p_value(low, num_guesses, num_correct, num_records, delta=delta) > level:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        p = one_run_p_value(middle, num_guesses, num_correct, num_records, delta=delta)
        low, high = (middle, high) if p <= level else (low, middle)
    return low


def one_run_p_value(
    epsilon: float, num_guesses: int, num_correct: int, num_records: int, *, delta: float = 0.0
) -> float:
    """How likely an (epsilon, delta)-private training lets this many guesses be right, at most.

    P[B >= v] + 2 m delta max_{i >= 1} P[v > B >= v - i] / i for B ~ Bin(r, 1 / (1 + e^-epsilon)).

    Raises:
        ValueError: if the counts do not satisfy 0 <= v <= r <= m.
    """
    if not 0 <= num_correct <= num_guesses <= num_records:
        raise ValueError(
            f"{num_correct} right of {num_guesses} guesses about {num_records} records; "
            "they must satisfy 0 <= right <= guesses <= records"
        )
    q = 1.0 / (1.0 + np.exp(-epsilon))
    tail = float(binom.sf(num_correct - 1, num_guesses, q))
    if delta and num_correct:
        steps: NDArray[np.int64] = np.arange(1, num_correct + 1)
        below = binom.cdf(num_correct - 1, num_guesses, q)
        below = below - binom.cdf(num_correct - steps - 1, num_guesses, q)
        tail += 2 * num_records * delta * float((below / steps).max())
    return min(1.0, tail)
