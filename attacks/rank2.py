"""Rank-2 attack: a swapped member's true class is the second in rank."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Rank2", "rank2_score"]

_FINE = 0.25  # weight of the order within those in second place; less than the step to a tie


class Rank2(Attack):
    """Call a record with a wrong label a member if its true class comes second.

    PURIFIER's swapper exchanges the two largest scores, so the true class of a swapped member
    that the target had right is second for certain; where the target errs by itself it is second
    in about half of the cases. With a target that has all members right and an error of e on
    others, swapping makes TPR = e and FPR = e r2, with r2 the share of honest errors in which the
    true class is second. A reformer that collapsed to one vector a label hides the rank.

    On services that do not swap, members are hardly ever wrong, and the calibrated sign turns.

    Source: methods.md section 6.12 d, ours. The order within the records it calls members is
        that of `rank2_score`.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    # Between second place shared, at most 3/4, and alone, at least 1.
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.875
    AGAINST: ClassVar[tuple[str, ...]] = ("purifier",)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """See `rank2_score`; asks once a record and uses neither `known` nor `seed`."""
        return rank2_score(query(x), y)


def rank2_score(confidence: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """At least 1 where the label is wrong and `y` alone in second place, else below 1.

    By the record's label (the first of the largest scores wins) and margin
    1 - p_y / p_label, in [0, 1]:

    - label right: 0;
    - label wrong, `y` second: 1/T + margin/4, with T the number of classes that share second
      place, so that a rank which is not there to be seen counts as the chance of it. Swapped
      members were memorised, so the label in their place is surer than an honest error;
    - label wrong, `y` behind: -margin. Those are honest errors, which members hardly have.

    Args:
        confidence: [N, C] as released; rows need not sum to 1. Not modified.
        y: int64 [N], true labels.

    Returns:
        float64 [N] in [-1, 1.25].
    """
    p_NC = np.maximum(np.asarray(confidence, dtype=np.float64), 0.0)
    row_N = np.arange(len(p_NC))
    label_N = p_NC.argmax(axis=1)
    p_label_N, p_y_N = p_NC[row_N, label_N], p_NC[row_N, y]
    # Where nothing was released all classes are level.
    ratio_N = np.divide(p_y_N, p_label_N, out=np.ones_like(p_y_N), where=p_label_N > 0)
    p_NC[row_N, label_N] = -1.0
    second_N = p_NC.max(axis=1)
    num_second_N = (p_NC == second_N[:, None]).sum(axis=1)
    found_N = np.where(
        p_y_N == second_N, 1.0 / num_second_N + _FINE * (1.0 - ratio_N), ratio_N - 1.0
    )
    return np.where(label_N == y, 0.0, found_N)
