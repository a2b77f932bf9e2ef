"""Attack metrics, utility metrics, and the decision threshold they are read at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from tasks._intervals import (
    Bools,
    Floats,
    auc,
    auc_interval,
    auc_limits,
    auc_p_value,
    bca_bootstrap,
    checked,
    clopper_pearson,
    delong,
    delong_paired,
    equivalent,
    holm,
    mean_interval,
    seed_interval,
)
from tasks.one_run import epsilon_one_run

__all__ = [
    "Calibration",
    "accuracy_interval",
    "attack_metrics",
    "auc",
    "auc_interval",
    "auc_limits",
    "auc_p_value",
    "bca_bootstrap",
    "calibrate",
    "class_independence",
    "clopper_pearson",
    "decisions",
    "delong",
    "delong_paired",
    "ece",
    "epsilon_lower_bound",
    "equivalent",
    "holm",
    "l1",
    "mean_interval",
    "seed_interval",
    "tpr_at_fpr",
]


@dataclass(frozen=True)
class Calibration:
    """When a score says "member": `sign * score > threshold`.

    `threshold_raw` is the same without the flip of rule T2: `score > threshold_raw`.
    """

    threshold: float
    sign: int
    threshold_raw: float


def _cuts(score_N: Floats, member_N: Bools) -> tuple[Floats, Floats, Floats, Floats]:
    """Every way to cut the scores in two, from "all members" to "none".

    Returns:
        Thresholds [M + 1] for M distinct scores, -inf first and inf last, the others midway; the
        widths of the gaps they lie in; true positives; false positives (`score > threshold`).
    """
    value_M, place_N = np.unique(score_N, return_inverse=True)
    low, high = value_M[:-1], value_M[1:]
    middle = low / 2 + high / 2
    # Between adjacent floating-point numbers there is nothing; `score > low` cuts there.
    middle = np.where((middle >= low) & (middle < high), middle, low)
    threshold = np.concatenate([[-np.inf], middle, [np.inf]])
    width = np.concatenate([[0.0], high / 2 - low / 2, [0.0]])
    above = [
        np.cumsum(np.bincount(place_N[chosen], minlength=len(value_M))[::-1])[::-1]
        for chosen in (member_N, ~member_N)
    ]
    tp, fp = (np.append(count, 0).astype(np.float64) for count in above)
    return threshold, width, tp, fp


def _best_cut(score_N: Floats, member_N: Bools) -> tuple[float, float]:
    """The threshold of best balanced accuracy, and its advantage TPR - FPR times both counts."""
    threshold, width, tp, fp = _cuts(score_N, member_N)
    advantage = tp * (~member_N).sum() - fp * member_N.sum()  # whole numbers: ties are exact
    best = advantage.max()
    if best == 0:
        return float("inf"), 0.0
    return float(threshold[np.where(advantage == best, width, -1).argmax()]), float(best)


def calibrate(
    score_cal: ArrayLike,
    is_member_cal: ArrayLike,
    threshold: float | None = None,
    natural: float | None = None,
) -> Calibration:
    """Fix sign and threshold on the calibration records, before any judged record is looked at.

    Without a threshold, the cut and sign of best balanced accuracy are taken. Of equally good
    cuts the one in the widest gap between neighbouring scores wins, then the lowest; -1 must be
    strictly better than +1. If no cut beats chance (all scores equal), nobody is called a member:
    threshold inf, accuracy exactly 1/2. `threshold_raw` is the best cut with sign +1.

    A score may have a natural threshold, as a learned attack's log-odds have 0. It is kept unless
    the calibrated cut beats it by more than one standard error: the best of hundreds of cuts on a
    few hundred records is partly luck.

    A threshold the attack chose itself comes with a direction. It is kept unless the calibration
    records speak against it by more than one binomial standard error: near chance a flip would be
    a coin toss, and would turn a stated decision rule into its opposite in half of the seeds.
    With a flip, exactly the records not above the threshold are called members.

    Args:
        score_cal: [N] finite scores.
        is_member_cal: [N] bool, both kinds present.
        threshold: None, or the attack's own: `score > threshold` says "member".
        natural: where the score itself is undecided, or None; not used with `threshold`.

    Raises:
        ValueError: for bad shapes, non-finite scores, an empty group or a NaN threshold.

    Source: methods.md, rule T2. Chosen on other records, a sign fitted to noise leaves the
        expected balanced accuracy of the judged records at 1/2.
    """
    score_N, member_N = checked(score_cal, is_member_cal)
    if threshold is None:
        raw, gain = _best_cut(score_N, member_N)
        flipped, flipped_gain = _best_cut(-score_N, member_N)
        if natural is not None:
            advantage, error = _advantage(score_N > natural, member_N)
            best = max(_advantage(score_N > raw, member_N)[0], 0.0)
            best = max(_advantage(-score_N > flipped, member_N)[0], best)
            if best - advantage <= error:
                return Calibration(float(natural), 1, float(natural))
        if flipped_gain > gain:
            return Calibration(flipped, -1, raw)
        return Calibration(raw, 1, raw)
    if np.isnan(threshold):
        raise ValueError("threshold is NaN; give a number, or None to have one calibrated")
    advantage, error = _advantage(score_N > threshold, member_N)
    if -advantage > error:
        # `-score > -next(threshold)` is `score <= threshold`, also for scores equal to it.
        return Calibration(-float(np.nextafter(threshold, np.inf)), -1, float(threshold))
    return Calibration(float(threshold), 1, float(threshold))


def _advantage(called_N: Bools, member_N: Bools) -> tuple[float, float]:
    """TPR - FPR of a decision, and its binomial standard error."""
    tpr, fpr = called_N[member_N].mean(), called_N[~member_N].mean()
    variance = tpr * (1 - tpr) / member_N.sum() + fpr * (1 - fpr) / (~member_N).sum()
    return float(tpr - fpr), float(np.sqrt(variance))


def decisions(score: ArrayLike, calibration: Calibration) -> Bools:
    """Bool [N], True where the calibrated, signed decision is "member"."""
    signed = calibration.sign * np.asarray(score, dtype=np.float64)
    return np.asarray(signed > calibration.threshold)


def _tp_at_fpr(score_N: Floats, member_N: Bools, alpha: float) -> float:
    _, _, tp, fp = _cuts(score_N, member_N)
    # As a quotient: 29 / 100 is the float 0.29, whereas 0.29 * 100 is less than 29.
    return float(tp[fp / (~member_N).sum() <= alpha].max())


def tpr_at_fpr(score: ArrayLike, is_member: ArrayLike, alpha: float) -> float:
    """Largest TPR of any threshold with empirical FPR <= alpha; ties move as a block.

    Nothing is interpolated: if the highest scores of all are tied with too many non-members, 0.

    Source: methods.md section 8.1; Carlini et al. 2022.
    """
    score_N, member_N = checked(score, is_member)
    return _tp_at_fpr(score_N, member_N, alpha) / float(member_N.sum())


def _epsilon(tp: ArrayLike, num_in: int, fp: ArrayLike, num_out: int) -> Floats:
    """The bound at given counts, not floored; both limits one-sided at 0.025.

    The limits of FNR and TNR are one minus those of TPR and FPR, so both bounds hold whenever
    those two limits do, and taking the larger keeps the joint level of 95 %.
    """
    tpr_low = clopper_pearson(tp, num_in)[0]
    fpr_high = clopper_pearson(fp, num_out)[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = np.log(tpr_low) - np.log(fpr_high)
        negative = np.log1p(-fpr_high) - np.log1p(-tpr_low)
    return np.asarray(np.maximum(positive, negative))


def epsilon_lower_bound(score: ArrayLike, is_member: ArrayLike) -> float:
    """Lower bound, at 95 %, on the epsilon of any (epsilon, 0)-private mechanism scoring so.

    The threshold with the best bound is chosen on one half of the records and counted on the
    other. Halves are the even and odd positions within each group, in the given order, which
    must tell nothing about scores. With n non-members in a half the bound is below log(n / 3.69).
    At least 0, which proves nothing; 0 also where a group has only one record.

    Source: methods.md section 8.7; Jagielski, Ullman and Oprea 2020, section 3.
    """
    score_N, member_N = checked(score, is_member)
    position_N = np.where(member_N, np.cumsum(member_N), np.cumsum(~member_N))
    first_N = position_N % 2 == 1
    counted, member = score_N[~first_N], member_N[~first_N]
    num_in, num_out = int(member.sum()), int((~member).sum())
    if min(num_in, num_out) == 0:
        return 0.0
    chosen = member_N[first_N]
    threshold, _, tp, fp = _cuts(score_N[first_N], chosen)
    best = threshold[_epsilon(tp, int(chosen.sum()), fp, int((~chosen).sum())).argmax()]
    above = counted > best
    bound = _epsilon((above & member).sum(), num_in, (above & ~member).sum(), num_out)
    return max(float(bound), 0.0)


def _balanced_interval(tp: int, num_in: int, tn: int, num_out: int) -> tuple[float, float]:
    """95 % interval of balanced accuracy.

    Groups of equal size: Clopper-Pearson of all correct decisions (two rates pooled vary less than
    one binomial, so it errs on the safe side). Otherwise stratified: each group's Clopper-Pearson
    limits, their distances from the rates added as independent errors are (MOVER).

    Source: Zou and Donner 2008 for MOVER.
    """
    if num_in == num_out:
        low, high = clopper_pearson(tp + tn, num_in + num_out)
        return float(low), float(high)
    rates = np.array([tp / num_in, tn / num_out])
    low, high = clopper_pearson([tp, tn], [num_in, num_out])
    middle = rates.mean()
    return (
        float(middle - np.hypot(*(rates - low)) / 2),
        float(middle + np.hypot(*(high - rates)) / 2),
    )


def attack_metrics(
    score: ArrayLike, is_member: ArrayLike, calibration: Calibration
) -> dict[str, float | list[str] | int]:
    """The measured columns of one result row.

    Records are taken as independent: of exact duplicates pass one, so that the intervals count
    distinct duplicate groups.

    Args:
        score: [N] finite scores of the judged records, higher = more likely member, not yet signed.
        is_member: [N] bool, both kinds present.
        calibration: made on other records.

    Returns:
        Columns of design.md section 4, fractions; `*_low` and `*_high` are 95 % limits. AUC, TPR at
        FPR and epsilon are of the signed score. `precision` is NaN if nobody is called a member.
        Flags: `underpowered` below 1 000 non-members (TPR at 1 % FPR), `underpowered_0_001` below
        10 000 (at 0.1 %), `unbalanced` if the groups differ in size.

    Raises:
        ValueError: for bad shapes, non-finite scores or an empty group.

    Source: methods.md sections 8.1, 8.6 and 8.7.
    """
    score_N, member_N = checked(score, is_member)
    signed_N = calibration.sign * score_N
    called_N = decisions(score_N, calibration)
    raw_N = score_N > calibration.threshold_raw
    num_in, num_out = int(member_N.sum()), int((~member_N).sum())
    tp, tn = int((called_N & member_N).sum()), int((~called_N & ~member_N).sum())
    low, high = _balanced_interval(tp, num_in, tn, num_out)
    auc_value, auc_low, auc_high = auc_interval(signed_N, member_N)
    called = int(called_N.sum())
    row: dict[str, float | list[str] | int] = {
        "num_members": num_in,
        "num_nonmembers": num_out,
        "attack_accuracy": (tp / num_in + tn / num_out) / 2,
        "attack_accuracy_low": low,
        "attack_accuracy_high": high,
        "attack_accuracy_unsigned": float(
            (raw_N[member_N].mean() + (~raw_N[~member_N]).mean()) / 2
        ),
        "accuracy_unbalanced": (tp + tn) / (num_in + num_out),
        "auc": auc_value,
        "auc_low": auc_low,
        "auc_high": auc_high,
        "precision": tp / called if called else float("nan"),
        "recall": tp / num_in,
        "epsilon_lower_bound": epsilon_lower_bound(signed_N, member_N),
        "epsilon_one_run": epsilon_one_run(signed_N, member_N),
    }
    for alpha, column in ((0.01, "tpr_at_fpr_0_01"), (0.001, "tpr_at_fpr_0_001")):
        hits = _tp_at_fpr(signed_N, member_N, alpha)
        tpr_low, tpr_high = clopper_pearson(hits, num_in)
        row[column] = hits / num_in
        row[f"{column}_low"], row[f"{column}_high"] = float(tpr_low), float(tpr_high)
    raised = {
        "underpowered": num_out < 1_000,
        "underpowered_0_001": num_out < 10_000,
        "unbalanced": num_in != num_out,
    }
    row["flags"] = [flag for flag, is_raised in raised.items() if is_raised]
    return row


def accuracy_interval(correct: ArrayLike) -> tuple[float, float, float]:
    """Share of True in bool [N] with its 95 % Clopper-Pearson interval."""
    correct_N = np.asarray(correct, dtype=bool)
    if correct_N.size == 0:
        raise ValueError("accuracy of no records is undefined; give at least one")
    low, high = clopper_pearson(correct_N.sum(), correct_N.size)
    return float(correct_N.mean()), float(low), float(high)


def ece(confidence_NC: NDArray[Any], y: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error of the top label, in [0, 1].

    Bins are of equal width, (i / bins, (i + 1) / bins].

    Source: Guo et al. 2017, equation 3.
    """
    top_N = confidence_NC.max(axis=1)
    correct_N = confidence_NC.argmax(axis=1) == y
    bin_N = np.clip(np.ceil(top_N * bins).astype(np.int64) - 1, 0, bins - 1)
    gap_B = np.bincount(bin_N, weights=correct_N - top_N, minlength=bins)
    return float(np.abs(gap_B).sum() / len(top_N))


def l1(confidence_NC: NDArray[Any], released_NC: NDArray[Any]) -> Floats:
    """L1 distance [N] of each released row from the confidence, in [0, 2]."""
    difference_NC = np.asarray(released_NC, np.float64) - np.asarray(confidence_NC, np.float64)
    return np.asarray(np.abs(difference_NC).sum(axis=1))


def class_independence(y: NDArray[Any], is_member: NDArray[Any]) -> float:
    """p-value of the chi-squared test that class and membership are independent.

    Below 0.01 the split itself tells membership through the label.

    Source: methods.md section 2.3, invariant I6.
    """
    classes, place_N = np.unique(y, return_inverse=True)
    member_N = np.asarray(is_member).astype(bool)
    count_2C = np.stack(
        [np.bincount(place_N[side], minlength=len(classes)) for side in (member_N, ~member_N)]
    )
    if len(classes) < 2:
        return 1.0
    return float(scipy.stats.chi2_contingency(count_2C, correction=False).pvalue)
