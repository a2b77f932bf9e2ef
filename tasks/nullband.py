"""The max-null band of methods.md section 8.6: is the largest of several attacks chance?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from tasks._intervals import checked

__all__ = ["NullBand", "max_null_band"]

_CHUNK_BYTES = 16 << 20  # of permuted memberships held at once


@dataclass(frozen=True)
class NullBand:
    """Verdict on the largest of several attacks; see `max_null_band`.

    `band_*` and `observed_*` are in permutation standard deviations above 1/2, `worst_*` are
    indices of attacks, `inside` holds if neither observed maximum exceeds its band. `sd_*` are
    those standard deviations, an attack each, of the mean over seeds of balanced accuracy and AUC.
    """

    band_accuracy: float
    band_auc: float
    observed_accuracy: float
    observed_auc: float
    worst_accuracy: int
    worst_auc: int
    inside: bool
    sd_accuracy: tuple[float, ...]
    sd_auc: tuple[float, ...]

    def chance_accuracy(self, attack: int) -> float:
        """The accuracy at which attack number `attack` would reach the band."""
        return 0.5 + self.band_accuracy * self.sd_accuracy[attack]

    def chance_auc(self, attack: int) -> float:
        """The AUC at which attack number `attack` would reach the band."""
        return 0.5 + self.band_auc * self.sd_auc[attack]


def max_null_band(
    scores: Sequence[NDArray[Any]],
    decisions: Sequence[NDArray[Any]],
    is_member: Sequence[NDArray[Any]],
    *,
    seed: int,
    permutations: int = 2000,
    quantile: float = 0.995,
) -> NullBand:
    """Is the largest of A attacks larger than chance makes the largest of A attacks?

    Scores and thresholds stay fixed while membership is permuted within each seed, the same
    permutation for all attacks, so their dependence is kept. The statistic is the maximum over
    attacks of (mean over seeds - 1/2) / (its permutation standard deviation), for balanced
    accuracy and for AUC. An attack without permutation variance (constant) contributes 0.

    Args:
        scores: per seed, signed scores [A, N_s]; attacks in the same order for every seed. NaN
            where an attack did not judge the record: then it is compared on those it did.
        decisions: per seed, bool [A, N_s], True for "member".
        is_member: per seed, bool [N_s].
        seed: of the permutations.
        permutations: how many.
        quantile: of the permutation distribution that is the band.

    Raises:
        ValueError: if there is no seed or no attack, or shapes disagree.

    Source: methods.md section 8.6; Westfall and Young 1993 for the maximum over dependent tests.
    """
    if not scores or not len(scores) == len(decisions) == len(is_member) or not len(scores[0]):
        raise ValueError(
            f"{len(scores)} seeds of scores, {len(decisions)} of decisions and {len(is_member)} of "
            "membership; there must be equally many, at least one, of at least one attack"
        )
    rng = np.random.default_rng(seed)
    num_attacks = len(scores[0])
    advantage = np.zeros((2, num_attacks, 1 + permutations))  # the observed one first
    for score_AN, decision_AN, member in zip(scores, decisions, is_member, strict=True):
        if not score_AN.shape == decision_AN.shape == (num_attacks, len(member)):
            raise ValueError(
                f"scores {score_AN.shape} and decisions {decision_AN.shape} of a seed must both "
                f"be [{num_attacks}, {len(member)}]: attacks of the first seed, records of this one"
            )
        judged_AN = ~np.isnan(score_AN)
        member_N = np.asarray(member).astype(bool)
        for row, judged in zip(score_AN, judged_AN, strict=True):
            checked(row[judged], member_N[judged])
        # Both metrics are linear in membership. What is left out, a factor common to all seeds,
        # cancels in the statistic. The weights are whole or half numbers: their sums are exact,
        # so a constant attack comes out as exactly 0.
        num_rows = member_N.size
        num_A, in_A = judged_AN.sum(axis=1), (judged_AN & member_N).sum(axis=1)
        ranks = scipy.stats.rankdata(score_AN, axis=1, nan_policy="omit")
        rank_AN = np.where(judged_AN, ranks - (num_A[:, None] + 1) / 2, 0.0)
        called_AN = (decision_AN.astype(bool) & judged_AN).astype(np.float64)
        centred_AN = called_AN * num_A[:, None] - called_AN.sum(axis=1, keepdims=True)
        weight_BN = np.concatenate([np.where(judged_AN, centred_AN, 0.0), rank_AN])
        pairs_B = np.tile(in_A * (num_A - in_A), 2)
        step = max(1, _CHUNK_BYTES // (8 * num_rows))
        for first in range(0, 1 + permutations, step):
            count = min(step, 1 + permutations - first)
            member_PN = rng.permuted(np.tile(member_N, (count, 1)), axis=1)
            if first == 0:
                member_PN[0] = member_N
            excess_BP = weight_BN @ member_PN.T.astype(np.float64) / pairs_B[:, None]
            advantage[..., first : first + count] += excess_BP.reshape(2, num_attacks, count)
    spread = advantage[..., 1:].std(axis=2, keepdims=True)
    standard = advantage / np.where(spread > 0, spread, np.inf)
    observed, largest = standard[..., 0], standard[..., 1:].max(axis=1)
    # "higher": one of the permutations, so that at most 1 - quantile of them lie above the band.
    band = np.quantile(largest, quantile, axis=1, method="higher")
    # Put back what was left out: a mean over seeds, and accuracy is half of TPR + 1 - FPR.
    sd_2A = spread[..., 0] / [[2 * len(scores)], [len(scores)]]
    return NullBand(
        band_accuracy=float(band[0]),
        band_auc=float(band[1]),
        observed_accuracy=float(observed[0].max()),
        observed_auc=float(observed[1].max()),
        worst_accuracy=int(observed[0].argmax()),
        worst_auc=int(observed[1].argmax()),
        inside=bool((observed.max(axis=1) <= band).all()),
        sd_accuracy=tuple(sd_2A[0].tolist()),
        sd_auc=tuple(sd_2A[1].tolist()),
    )
