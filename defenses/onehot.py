"""One-hot encoding of the released answer."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses._confidence import checked
from defenses.base import Defense, Noise, Setting

__all__ = ["OneHot"]


class OneHot(Defense):
    """Release the predicted label only, as a unit vector. The first index wins ties.

    The least a classifier can say: what an attack still finds is in the labels.

    Source: PURIFIER section 5.4, the baseline of table 5.
    """

    VERSION: ClassVar[int] = 1

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Nothing is learned; the number of classes is kept to check answers against."""
        return {"num_classes": np.array(setting.num_classes)}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        num_classes = int(state["num_classes"])
        c_NC = checked(confidence, num_classes)
        released_NC: NDArray[np.float64] = np.eye(num_classes)[c_NC.argmax(axis=1)]
        return released_NC
