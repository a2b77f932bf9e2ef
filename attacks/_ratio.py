"""RMIA's likelihood ratios, and how many of a population's a record's exceeds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

__all__ = ["A_UNTUNED", "base", "mean_over", "offline", "ratio", "share_exceeded", "tuned_a"]

# The coefficient `a` where it cannot be tuned: the authors' fallback.
A_UNTUNED = 0.33
_A_GRID = np.arange(11) / 10
# Fewer records on a side tell nothing about `a`.
_LEAST_RECORDS = 10


def mean_over(
    p: NDArray[np.float64], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each record's mean over the models in its mask.

    Models are added one by one, so that a record's mean has the same bits whichever others it is
    asked with, and one row of the result is all the memory it takes.

    Args:
        p: [S, N] finite, what each model answers to each record.
        mask: [S, N], which of them count. A record's models are not told by zeros in `p`: an
            answer may be 0.

    Returns:
        Means [N], 0 where no model counts, and how many do, int64 [N].

    Raises:
        ValueError: if shapes disagree or an answer is not finite.
    """
    if p.shape != mask.shape:
        raise ValueError(f"p is {p.shape} and its mask {mask.shape}; both must be [S, N]")
    total_N = np.zeros(p.shape[1])
    for p_N, mask_N in zip(p, mask, strict=True):
        total_N += p_N * mask_N
    if num_bad := int(np.count_nonzero(~np.isfinite(total_N))):
        raise ValueError(
            f"the reference models' answers to {num_bad} of {len(total_N)} records are not finite; "
            "look for nan or infinite confidences"
        )
    count_N = np.count_nonzero(mask, axis=0)
    return total_N / np.maximum(count_N, 1), count_N


def offline(p_out: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """What models answer on average, half of them with the record, from those without alone.

    The models with the record are taken to answer a p_out + 1 - a.

    Source: Zarifzadeh et al. 2024, appendix B (computing Pr(x) with OUT models only).
    """
    return np.asarray(0.5 * ((1.0 + a) * p_out + (1.0 - a)))


def ratio(
    p_target: NDArray[np.float64], p: NDArray[np.float64], *, clip: float = 1e-12
) -> NDArray[np.float64]:
    """The target's confidence over what is expected of any model, both at least `clip`; > 0."""
    return np.asarray(np.maximum(p_target, clip) / np.maximum(p, clip))


def base(
    p_target: NDArray[np.float64], p: NDArray[np.float64], *, clip: float = 1e-12
) -> NDArray[np.float64]:
    """The logarithm of `ratio`, taken apart: log p_target - log p, in nats.

    RMIA's score puts records in the same order where the population is large.

    Source: BASE, the form that Lassila et al. 2025 show RMIA to be equivalent to.
    """
    return np.asarray(np.log(np.maximum(p_target, clip)) - np.log(np.maximum(p, clip)))


def share_exceeded(
    ratio_x: NDArray[np.float64], ratio_z: NDArray[np.float64], gamma: float
) -> NDArray[np.float64]:
    """RMIA's score: of how many z is ratio_x / ratio_z > gamma.

    Compared is ratio_x > gamma * ratio_z. Multiplying rounds in order, so that sorting the
    products and searching once counts exactly what comparing all pairs does, ties included,
    without N x Z of anything.

    Args:
        ratio_x: [N] finite, of the judged records.
        ratio_z: [Z] finite, of the population, Z > 0.
        gamma: how far a ratio must lie above another to exceed it.

    Returns:
        float64 [N] in [0, 1], multiples of 1 / Z.

    Raises:
        ValueError: if the population is empty or a ratio is not finite.

    Source: Zarifzadeh et al., "Low-Cost High-Power Membership Inference Attacks", ICML 2024,
        section 2 (the pairwise likelihood ratio and the score).
    """
    if not len(ratio_z):
        raise ValueError("the population is empty; RMIA compares records with one or more others")
    for name, values in (("ratio_x", ratio_x), ("ratio_z", ratio_z)):
        if num_bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"{num_bad} of {len(values)} entries of {name} are not finite")
    least_Z = np.sort(gamma * ratio_z)
    return np.asarray(np.searchsorted(least_Z, ratio_x, side="left") / len(least_Z))


def tuned_a(p: NDArray[np.float64], role: NDArray[Any], *, clip: float = 1e-12) -> float:
    """The coefficient `a` with which the other models attack the first one best.

    The score is the ratio itself: comparing it with a population's keeps its order. The second
    model trained on the complement of the first one's records and is left out, as it would be
    OUT of all the members and of no other. Only records that the models divided are used; others
    are OUT of every model, so that their means would be surer than the members'.

    Args:
        p: [S, M], what each model answers to each record at its label.
        role: [S, M]: 1 in, 0 out, otherwise neither. Models 2i and 2i + 1 are complementary.
        clip: see `ratio`.

    Returns:
        One of 0, 0.1, ..., 1, by AUC, of equally good ones the nearest to 0.33; or 0.33 if fewer
        than ten members or ten others of the first model have an OUT model among the others.
    """
    p_out_M, count_M = mean_over(p[2:], role[2:] == 0)
    used_M = (role[0] >= 0) & (count_M > 0) & (role == 1).any(axis=0)
    is_member = role[0][used_M] == 1
    if min(np.count_nonzero(is_member), np.count_nonzero(~is_member)) < _LEAST_RECORDS:
        return A_UNTUNED
    p_target, p_out = p[0][used_M], p_out_M[used_M]
    # Rounded so that equally good ones tie whatever the order of summation.
    auc = np.round(
        [roc_auc_score(is_member, ratio(p_target, offline(p_out, a), clip=clip)) for a in _A_GRID],
        9,
    )
    best = _A_GRID[auc == auc.max()]
    return float(best[np.argmin(np.abs(best - A_UNTUNED))])
