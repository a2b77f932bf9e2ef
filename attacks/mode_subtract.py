"""Mode subtraction: undo the step that AEPPT adds to most scores of a row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks._membership_net import Recipe, Seen, Standardised, both_sides, judged, mim0, trained
from attacks._modal import modal_off_class
from attacks.base import Attack, Classifier, Knowledge, Known

__all__ = ["ModeSubtract", "without_mode"]


class ModeSubtract(Attack):
    """Take the common shift off every released row, then let AEPPT's MIM0 read what is left.

    All scores that AEPPT moves the same way move by the same sum of random steps, as one random
    number serves all classes. In a row that was nearly one-hot that sum is the value most of the
    raised scores share.

    Both the known records' answers and the judged ones are reconstructed. Fitted on defended
    answers (the default) the attacker needs nothing but the deployed service; with
    `fit_on: clean` it is the attacker of methods.md, trained on undefended answers, on which the
    reconstruction changes next to nothing.

    Source: methods.md section 6.12-f; MIM0 from AEPPT section 5.2. `true_confidence` is that of
        `nsh`. A value counts as a shift only if two scores share it, and a row whose label would
        change is left as it is.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-adaptive"
    NATURAL_THRESHOLD: ClassVar[float | None] = 0.0
    CONTAINS_GAP: ClassVar[bool] = True
    AGAINST: ClassVar[tuple[str, ...]] = ("aeppt",)
    LEARNS: ClassVar[bool] = True
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"true_confidence": False},
        "sound": {},
        "cpu": {"width": 0.5},
    }

    resolution: float = Field(1e-6, gt=0, description="within which scores count as the same")
    least_count: int = Field(
        2, ge=2, description="scores that must share a value for it to be a shift"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step")
    epochs: int = Field(100, ge=1, description="most passes over the known records")
    batch_size: int = Field(512, ge=2, description="most records a step")
    patience: int = Field(40, ge=1, description="epochs without a better one before stopping")
    width: float = Field(1.0, gt=0, description="factor on the width of every hidden layer")
    true_confidence: bool = Field(True, description="feed the true label's entry to the joint net")

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """Log-odds of "member".

        Raises:
            ValueError: if `known.fit` or `known.cal` lacks members or non-members.
            FloatingPointError: if the training leaves the finite numbers.
        """
        both_sides(known, "mode_subtract")

        def seen(records: Known) -> Seen:
            return Seen(self._features(known.query(records.x)), records.y, records.is_member)

        fit, cal = seen(known.fit), seen(known.cal)

        def make() -> Standardised:
            net = mim0(known.num_classes, self.width, true_confidence=self.true_confidence)
            return Standardised(net, fit.feature)

        recipe = Recipe(
            "mode_subtract",
            self.learning_rate,
            self.epochs,
            self.batch_size,
            self.patience,
            known.device,
        )
        net = trained(make, fit, cal, recipe, np.random.default_rng([seed, 0]))
        return judged(net, self._features(query(x)), y, known.device)

    def _features(self, released: NDArray[Any]) -> NDArray[np.float32]:
        """[N, C] what the net reads."""
        found_NC = without_mode(released, self.resolution, self.least_count)
        return found_NC.astype(np.float32)


def without_mode(
    released: NDArray[Any], resolution: float, least_count: int
) -> NDArray[np.float64]:
    """Released rows less the shift that most of their raised scores share, renormalised.

    Args:
        released: finite [N, C], as released. Not modified.
        resolution: within which scores count as the same.
        least_count: how many must share a value for it to be a shift.

    Returns:
        [N, C] with the labels (first largest entries) of `released`; rows sum to 1, but for rows
        without a score above zero, which are 0.

    Source: methods.md section 6.12-f: renorm(clip(O - S * pattern)), pattern 1 where O >= S.
    """
    released_NC = np.maximum(np.asarray(released, dtype=np.float64), 0.0)
    shift_N, count_N = modal_off_class(released_NC, resolution)
    shift_N1 = np.where(count_N >= least_count, shift_N, 0.0)[:, None]
    found_NC = released_NC - np.where(released_NC >= shift_N1, shift_N1, 0.0)
    # A shift as large as half the largest score is none: it would hand the label to a score below.
    other_N = found_NC.argmax(axis=1) != released_NC.argmax(axis=1)
    undone_N = other_N | ~found_NC.any(axis=1)
    found_NC[undone_N] = released_NC[undone_N]
    total_N1 = found_NC.sum(axis=1, keepdims=True)
    np.divide(found_NC, total_N1, out=found_NC, where=total_N1 > 0)
    return found_NC
