"""Order only: what the order of the scores tells, whatever the scores are."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import rankdata

from attacks._logistic import log_odds
from attacks._membership_net import both_sides
from attacks.base import Attack, Classifier, Knowledge, Outline

__all__ = ["OrderOnly", "discordance", "ranks"]

# Shadow answers held in memory at once, in numbers.
_AT_ONCE = 2**24


class OrderOnly(Attack):
    """Compare the order of the scores with the one that models without the record give.

    A logistic regression reads whether the true class is the label, its rank, its mean rank under
    shadow models that the record did not train, and the share of the pairs of classes that are
    ordered otherwise than by the mean ranks of those models. A record whose class ranks higher
    than usual is likely a member. Nothing changes if scores are replaced by others in the same
    order.

    Shadow models have the attacker's own copies of the defense if it is adaptive.

    Source: methods.md section 6.12-l ("rank of y, number of inversions vs a shadow model"). The
        mean over several shadow models and the regression are ours. A net as in `nsh` that also
        reads the rank of every class learns those by heart: from some hundred known records it
        falls below the gap attack where the regression lies 0.08 of AUC above it.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-adaptive"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    AGAINST: ClassVar[tuple[str, ...]] = ("hamp", "temperature", "rounding")
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "sound": {},
        "cpu": {"num_shadows": 8},
    }

    num_shadows: int = Field(
        16,
        ge=4,
        le=10_000,
        multiple_of=2,
        description="shadow models; a record did not train half of them",
    )
    inverse_penalty: float = Field(1.0, gt=0, description="C of the regression's L2 penalty")

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """The shadow models, with their own copies of the defense if `outline.adaptive`."""
        return outline.shadows(self.num_shadows, defended=outline.adaptive)

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
            ValueError: if `known.fit` or `known.cal` lacks members or non-members, or there are
                not `num_shadows` shadow models.
        """
        both_sides(known, "order_only")
        if known.shadows.num_shadows != self.num_shadows:
            raise ValueError(
                f"order_only got {known.shadows.num_shadows} shadow models in known.shadows; it "
                f"asked for num_shadows = {self.num_shadows}"
            )
        return log_odds(
            self._features(known, known.query(known.fit.x), known.fit.x, known.fit.y),
            known.fit.is_member,
            self._features(known, query(x), x, y),
            inverse_penalty=self.inverse_penalty,
        )

    def _features(
        self,
        known: Knowledge,
        released: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """[N, 4]: label right, rank of y, its usual rank, discordance with the usual order."""
        feature_N4 = np.empty((len(x), 4))
        feature_N4[:, 0] = np.argmax(released, axis=1) == y
        step = max(1, _AT_ONCE // (self.num_shadows * known.num_classes))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            rank_PC, usual_PC = ranks(released[part]), self._usual(known, x[part])
            row_P = np.arange(len(rank_PC))
            feature_N4[part, 1] = rank_PC[row_P, y[part]]
            feature_N4[part, 2] = usual_PC[row_P, y[part]]
            feature_N4[part, 3] = discordance(rank_PC, usual_PC)
        return feature_N4

    def _usual(self, known: Knowledge, x: NDArray[Any]) -> NDArray[np.float64]:
        """Mean ranks [N, C] under shadow models that each record did not train."""
        shadows = known.shadows
        role_SN = shadows.role(x)
        # A record that was a defense's reference is no plain outsider; one is better than none.
        outside_SN = role_SN == 0
        outside_SN |= (role_SN == -1) & ~outside_SN.any(axis=0)
        # Records outside the pool are out of all models; their mean is to be as noisy as others'.
        outside_SN &= outside_SN.cumsum(axis=0) <= self.num_shadows // 2
        total_NC = np.zeros((len(x), known.num_classes))
        for confidence_NC, outside_N in zip(shadows(x), outside_SN, strict=True):
            total_NC[outside_N] += ranks(confidence_NC[outside_N])
        # Rounded, so that classes of equal mean rank tie.
        mean_NC: NDArray[np.float64] = np.round(total_NC / outside_SN.sum(axis=0)[:, None], 9)
        return mean_NC


def ranks(confidence: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks [N, C] of the scores [N, C] in their rows: 0 the smallest, 1 the largest.

    Equal scores share the mean of their ranks.
    """
    rank_NC: NDArray[np.float64] = rankdata(confidence, method="average", axis=1) - 1.0
    rank_NC /= confidence.shape[1] - 1
    return rank_NC


def discordance(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the pairs of classes that two rows order differently, [N] in [0, 1].

    A pair that is tied in one of the rows counts half: it is (1 - tau) / 2 for Kendall's tau-a.

    Args:
        first: [N, C] finite.
        second: [N, C] finite.
    """
    num_classes = first.shape[1]
    agreed_N = np.zeros(len(first))
    for apart in range(1, num_classes):
        sign_NP = np.sign(first[:, apart:] - first[:, :-apart])
        sign_NP *= np.sign(second[:, apart:] - second[:, :-apart])
        agreed_N += sign_NP.sum(axis=1)
    agreed_N /= num_classes * (num_classes - 1) / 2
    return np.asarray((1.0 - agreed_N) / 2.0)
