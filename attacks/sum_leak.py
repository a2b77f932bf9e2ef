"""Sum leak: what a row that was not renormalised tells without being read."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._logistic import log_odds
from attacks._membership_net import both_sides
from attacks._modal import modal_off_class
from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Feature", "SumLeak"]

Feature = Literal["sum", "zeros", "modal", "modal_count", "max"]


class SumLeak(Attack):
    """Logistic regression on the sum of the released scores and the shape they were left in.

    AEPPT adds the same step to all scores that it moves the same way, and clips: the sum tells the
    direction of the steps, hence what the defender's substitute decided about the record; clipped
    scores are zeros, and moved ones share a value. A defense that cuts scores off (rounding,
    top-k) leaves a sum and zeros of the same kind. Of HAMP's scores, which are another input's,
    none of this is about the record, so it is not attacked.

    Neither the true label nor any single score but the largest is used.

    Source: methods.md section 6.12-e. The penalty and the resolution of "the same value" (that of
        6.12-f) are ours, as is counting the modal value among scores above zero, which the count
        of zeros leaves.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-score"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    AGAINST: ClassVar[tuple[str, ...]] = ("aeppt", "rounding", "top_k")
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sound": {}, "cpu": {}}

    features: tuple[Feature, ...] = Field(
        ("sum", "zeros", "modal", "modal_count", "max"),
        min_length=1,
        description="what is read of a row; modal: the most frequent score above zero but the "
        "largest, modal_count: how often it occurs",
    )
    resolution: float = Field(1e-6, gt=0, description="within which scores count as the same")
    inverse_penalty: float = Field(1.0, gt=0, description="C of the regression's L2 penalty")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member"; deterministic, `seed` is not used.

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members.
        """
        both_sides(known, "sum_leak")
        return log_odds(
            self._features(known.query(known.fit.x)),
            known.fit.is_member,
            self._features(query(x)),
            inverse_penalty=self.inverse_penalty,
        )

    def _features(self, released: NDArray[Any]) -> NDArray[np.float64]:
        """[N, F] in the order of `features`."""
        released_NC = np.asarray(released, dtype=np.float64)
        modal_N, count_N = modal_off_class(released_NC, self.resolution)
        column: dict[Feature, NDArray[Any]] = {
            "sum": released_NC.sum(axis=1),
            "zeros": (released_NC <= 0).sum(axis=1),
            "modal": modal_N,
            "modal_count": count_N,
            "max": released_NC.max(axis=1),
        }
        return np.stack([column[name].astype(np.float64) for name in self.features], axis=1)
