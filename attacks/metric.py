"""Metric attacks: one number of the answer against a threshold for each class."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Metric", "Statistic", "best_threshold", "class_thresholds", "statistic_of"]

Statistic = Literal[
    "correctness",
    "confidence",
    "entropy",
    "modified_entropy",
    "max_confidence",
    "loss",
    "margin",
    "logit",
]

# Below the lowest value seen by this much lies the threshold that calls all of them members.
_EDGE = 1e-9


class Metric(Attack):
    """Compare a statistic of the confidence with the best threshold of the record's class.

    The score is the statistic minus that threshold, so 0 decides.

    Source: Song & Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models",
        USENIX Security 2021, sections 3.1 and 3.2 (equation 8: modified entropy); `logit` from
        Carlini et al., S&P 2022, section 4. The public code reports the better of global and
        class-wise thresholds on the evaluation records; we choose on known records only, by
        `per_class`.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    THRESHOLD: ClassVar[float | None] = 0.0
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    statistic: Statistic = Field("modified_entropy", description="what is read off an answer")
    per_class: bool = Field(True, description="one threshold a class instead of one in all")
    min_records: int = Field(10, ge=2, description="classes with fewer use the global threshold")
    clip: float = Field(1e-12, gt=0, lt=0.5, description="smallest argument of a logarithm")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Statistic minus threshold; deterministic, `seed` is not used.

        Raises:
            ValueError: if the known records are all members or all non-members.
        """
        y_M = np.concatenate([known.fit.y, known.cal.y])
        is_member_M = np.concatenate([known.fit.is_member, known.cal.is_member])
        answers = [known.query(part.x) for part in (known.fit, known.cal) if len(part)]
        if not answers or is_member_M.all() or not is_member_M.any():
            raise ValueError(
                f"known.fit and known.cal hold {int(is_member_M.sum())} members among "
                f"{len(y_M)} records; metric needs both members and non-members for its threshold"
            )
        value_M = statistic_of(self.statistic, np.concatenate(answers), y_M, clip=self.clip)
        least = self.min_records if self.per_class else None
        threshold_C = class_thresholds(value_M, y_M, is_member_M, known.num_classes, least)
        value_N = statistic_of(self.statistic, query(x), y, clip=self.clip)
        return np.asarray(value_N - threshold_C[y])


def class_thresholds(
    value: NDArray[np.float64],
    y: NDArray[np.int64],
    is_member: NDArray[np.bool_],
    num_classes: int,
    min_records: int | None,
) -> NDArray[np.float64]:
    """The best threshold of each class, [C].

    Args:
        value: [M] of known records, higher = more likely a member.
        y: [M] their labels.
        is_member: [M], both kinds present.
        num_classes: C.
        min_records: classes with fewer, or with one kind only, have the best threshold of all
            records; None for all classes.
    """
    threshold_C = np.full(num_classes, best_threshold(value, is_member))
    if min_records is not None:
        for label in np.flatnonzero(np.bincount(y) >= min_records):
            mine = y == label
            # One side only: balanced accuracy is undefined, so the global threshold stays.
            if is_member[mine].any() and not is_member[mine].all():
                threshold_C[label] = best_threshold(value[mine], is_member[mine])
    return threshold_C


def statistic_of(
    name: Statistic, confidence: NDArray[Any], y: NDArray[np.int64], *, clip: float
) -> NDArray[np.float64]:
    """One number a row, higher = more likely a member, always finite.

    Args:
        name: which statistic.
        confidence: [N, C] as released; rows need not sum to 1, entries outside [0, 1] are
            taken as the nearer end. Not modified.
        y: [N] true labels.
        clip: smallest argument of a logarithm, in (0, 0.5).

    Returns:
        float64 [N]: `confidence`, `max_confidence` and `correctness` in [0, 1], `margin` in
        [-1, 1], `entropy` and `modified_entropy` are minus the entropy in nats (<= 0), `loss` is
        log p_y (minus the cross entropy), `logit` is log(p_y / (1 - p_y)).

    Source: Song & Mittal 2021, section 3.1; `modified_entropy` equation 8.
    """
    p_NC = np.clip(np.asarray(confidence, dtype=np.float64), 0.0, 1.0)
    row_N = np.arange(len(p_NC))
    p_y_N = p_NC[row_N, y]
    log_p_y_N = np.log(np.maximum(p_y_N, clip))
    result_N: NDArray[np.float64]
    match name:
        case "correctness":
            result_N = (np.argmax(confidence, axis=1) == y).astype(np.float64)
        case "confidence":
            result_N = p_y_N
        case "max_confidence":
            result_N = p_NC.max(axis=1)
        case "entropy":
            result_N = np.sum(p_NC * np.log(np.maximum(p_NC, clip)), axis=1)
        case "modified_entropy":
            # Only the logarithms are clipped, so a correct one-hot row gives exactly 0.
            term_NC = p_NC * _log_rest(p_NC, clip)
            term_NC[row_N, y] = (1.0 - p_y_N) * log_p_y_N
            result_N = term_NC.sum(axis=1)
        case "loss":
            result_N = log_p_y_N
        case "margin":
            other_NC = p_NC.copy()
            other_NC[row_N, y] = -np.inf
            result_N = p_y_N - other_NC.max(axis=1)
        case "logit":
            result_N = log_p_y_N - _log_rest(p_y_N, clip)
    return result_N


def _log_rest(p: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    """Clipped log(1 - p): log1p keeps the digits of small p that 1 - p loses."""
    result: NDArray[np.float64] = np.log1p(-np.minimum(p, 1.0 - clip))
    return result


def best_threshold(value: NDArray[np.float64], is_member: NDArray[np.bool_]) -> float:
    """The threshold t at which "value > t is a member" has the best balanced accuracy.

    Candidates lie halfway between neighbouring values, at the highest value (nobody is a member)
    and just below the lowest (everybody is). The lowest of equally good ones is taken.

    Args:
        value: [N] finite.
        is_member: [N], with both truth values present.
    """
    order = np.argsort(value, kind="stable")
    value_N, is_member_N = value[order], is_member[order]
    # TNR - FNR among the lowest i records: balanced accuracy is 1/2 + half of it.
    gain = np.cumsum(np.where(is_member_N, -1.0 / is_member_N.sum(), 1.0 / (~is_member_N).sum()))
    last_of_ties = np.flatnonzero(np.append(value_N[1:] > value_N[:-1], True))
    # Rounded so that equally good thresholds tie whatever the order of summation.
    gain = np.round(np.append(0.0, gain[last_of_ties]), 12)
    level = value_N[last_of_ties]
    middle = level[:-1] + (level[1:] - level[:-1]) / 2
    # Between two adjacent floats there is no middle; the lower one separates them.
    middle = np.where(middle < level[1:], middle, level[:-1])
    candidates = np.concatenate([[level[0] - _EDGE], middle, [level[-1]]])
    return float(candidates[np.argmax(gain)])
