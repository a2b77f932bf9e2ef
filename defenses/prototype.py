"""One fixed vector for each predicted label."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses._confidence import checked
from defenses.base import Defense, Noise, Setting

__all__ = ["Prototype"]


class Prototype(Defense):
    """Release the mean reference confidence of the predicted label.

    It tells as little as a one-hot vector and looks like a confidence: what PURIFIER's
    reformer becomes when its latent collapses, and so the baseline of every collapsed one.

    Source: ours, after PURIFIER section 4.2 with no information in the latent; the mean is
        over reference records (D2) with that predicted label.
    """

    VERSION: ClassVar[int] = 1

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Average the answers on all of D2 by predicted label.

        Returns:
            `prototype` float64 [C, C], whose row l sums to 1 and has its largest entry at l.
        """
        num_classes = setting.num_classes
        c_NC = checked(setting.answer(setting.reference.x), num_classes)
        label_N = c_NC.argmax(axis=1)
        # A label never predicted on D2 gets a one-hot smoothed by the global mean. Its top stays
        # on the label: no global mean exceeds the mean top score, the weight of the one-hot.
        top = c_NC.max(axis=1).mean()
        prototype_CC = top * np.eye(num_classes) + (1 - top) * c_NC.mean(axis=0)
        for label in np.unique(label_N):
            prototype_CC[label] = c_NC[label_N == label].mean(axis=0)
        # Rounding of a mean can tie the label with an earlier class that was strictly below it.
        label_C = np.arange(num_classes)
        tied = label_C[prototype_CC.argmax(axis=1) != label_C]
        prototype_CC[tied, tied] = np.nextafter(prototype_CC[tied].max(axis=1), 2)
        return {"prototype": prototype_CC}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        prototype_CC = np.asarray(state["prototype"], dtype=np.float64)
        c_NC = checked(confidence, len(prototype_CC))
        released_NC: NDArray[np.float64] = prototype_CC[c_NC.argmax(axis=1)]
        return released_NC
