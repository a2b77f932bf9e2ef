"""Label change rate: how often the label changes when asked again, or close by."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._near_copies import Over, answers_about
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["LabelChangeRate", "change_rate"]


class LabelChangeRate(Attack):
    """Count labels that differ from the one to be expected.

    A label that noise decides changes from query to query, and the more so the less sure the
    target was. Under noise policy `fresh` the same record is asked again (`over: repeats`); where
    noise is keyed by input, near copies are asked about instead (`neighbours`), which also tells
    members whose own label was swapped. Which of more and less change speaks for a member depends
    on the defense, so sign and threshold are calibrated by the caller.

    Made for the defenses whose label is random: PURIFIER's reformed label, and AEPPT's without
    its guard. The others that draw noise (MemGuard, random noise, HAMP) never change the label.

    Source: methods.md section 6.12 m, ours.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    AGAINST: ClassVar[tuple[str, ...]] = ("purifier", "aeppt")
    # Noise is fresh by default under `paper`, keyed by input under the others.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"repeats": 64},
        "sound": {"repeats": 64, "over": "neighbours"},
        "cpu": {"repeats": 16, "over": "neighbours"},
    }

    repeats: int = Field(16, ge=2, description="R, queries a record, the first about itself")
    over: Over = Field("repeats", description="ask about the record again, or about near copies")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """See `change_rate`; asks `repeats` times a record and does not use `y`."""
        rate_N = np.empty(len(x))
        for rows, label_Rn in answers_about(
            query,
            x,
            self.repeats,
            self.over,
            kind=known.kind,
            num_classes=known.num_classes,
            seed=seed,
        ):
            rate_N[rows] = change_rate(label_Rn, self.over, known.num_classes)
        return rate_N


def change_rate(label: NDArray[np.int64], over: Over, num_classes: int) -> NDArray[np.float64]:
    """The share of labels that differ.

    Args:
        label: int64 [R, N], R >= 2, the first of each record about itself.
        over: `repeats`: of all R, the share without the commonest label; the first is as random
            as the others, and comparing with it would add its noise. `neighbours`: of the R - 1
            near copies, the share without the record's own label.
        num_classes: C.

    Returns:
        float64 [N]: multiples of 1/R in [0, 1), or of 1/(R - 1) in [0, 1].
    """
    if over == "neighbours":
        return np.asarray((label[1:] != label[0]).mean(axis=0), dtype=np.float64)
    num_answers, num_rows = label.shape
    place_RN = label + num_classes * np.arange(num_rows)
    count_NC = np.bincount(place_RN.ravel(), minlength=num_rows * num_classes)
    commonest_N = count_NC.reshape(num_rows, num_classes).max(axis=1)
    return np.asarray((num_answers - commonest_N) / num_answers)
