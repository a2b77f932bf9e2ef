"""Fewer decimals in the released confidences."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from defenses._confidence import checked, checked_distribution
from defenses.base import Defense, Noise, Setting

__all__ = ["Rounding"]


class Rounding(Defense):
    """Release every score with a few decimals only.

    The values are exactly those decimals, so the predicted label can tie with another class, and
    whoever takes the first of the largest scores may then read that one. It is a cost of the
    defense and is measured as such: a score nudged to keep the label would be no rounded score
    any more and would tell an attacker the order that rounding hid. Without a tie the label is
    kept, and it is always among the largest.

    Source: Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P
        2017, section VIII; AEPPT, figure 9 (2 and 3 decimals, not renormalised), whose example
        takes both 0.2501 and 0.2599 to 0.25, which is `floor`.
    """

    VERSION: ClassVar[int] = 1

    decimals: int = Field(2, ge=1, le=12, description="digits kept after the point")
    mode: Literal["round", "floor"] = Field(
        "round", description="to the nearest (halves to the even digit), or cut off"
    )
    renormalise: bool = Field(
        False, description="divide rows by their sum; what rounds to nothing becomes uniform"
    )

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Nothing is learned; the number of classes is kept to check answers against."""
        return {"num_classes": np.array(setting.num_classes)}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Rounded confidences [N, C], whose rows sum to 1 only with `renormalise`.

        Raises:
            ValueError: if the confidences are not finite [N, C] or one is negative; with
                `renormalise`, also if a row is not a distribution.
        """
        num_classes = int(state["num_classes"])
        check = checked_distribution if self.renormalise else checked
        c_NC = check(confidence, num_classes)
        if self.mode == "round":
            released_NC: NDArray[np.float64] = np.round(c_NC, self.decimals)
        else:
            released_NC = _floor(c_NC, 10**self.decimals)
        if self.renormalise:
            released_NC[~released_NC.any(axis=1)] = 1
            released_NC /= released_NC.sum(axis=1, keepdims=True)
        return released_NC


def _floor(c_NC: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """The largest k / scale, as float64 has it, that is not above c."""
    # 0.29 * 100 is 28.999999999999996: the product alone would cut a score that fits already.
    k_NC = np.floor(c_NC * scale)
    k_NC += (k_NC + 1) / scale <= c_NC
    k_NC -= k_NC / scale > c_NC
    return k_NC / scale
