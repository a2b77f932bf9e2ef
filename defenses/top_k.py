"""Only the largest scores of the released answer."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from defenses._confidence import checked_distribution
from defenses.base import Defense, Noise, Setting

__all__ = ["TopK"]


class TopK(Defense):
    """Release the k largest scores and 0 for all others. The first index wins ties.

    The label is kept. With `renormalise` and k = 1 the answer is the one-hot vector.

    Source: Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P
        2017, section VIII (k = 1 and 3). It does not say whether what is left is renormalised.
    """

    VERSION: ClassVar[int] = 1

    k: int = Field(1, ge=1, description="scores kept, at most the number of classes")
    renormalise: bool = Field(False, description="divide rows by the sum of what is kept")

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Nothing is learned; the number of classes is kept to check answers against.

        Raises:
            ValueError: if k exceeds the number of classes.
        """
        if self.k > setting.num_classes:
            raise ValueError(
                f"top_k keeps k = {self.k} scores, the model has {setting.num_classes}; set k "
                f"below {setting.num_classes} ({setting.num_classes} hides nothing)"
            )
        return {"num_classes": np.array(setting.num_classes)}

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Confidences [N, C] with at most k non-zero a row, summing to 1 with `renormalise`.

        Raises:
            ValueError: if a row is not a distribution over the classes fitted for.
        """
        c_NC = checked_distribution(confidence, int(state["num_classes"]))
        kept_Nk = np.argsort(-c_NC, axis=1, kind="stable")[:, : self.k]
        released_NC = np.zeros_like(c_NC)
        np.put_along_axis(released_NC, kept_Nk, np.take_along_axis(c_NC, kept_Nk, axis=1), axis=1)
        if self.renormalise:
            released_NC /= released_NC.sum(axis=1, keepdims=True)
            # The division can tie the label with an earlier class that was strictly below it.
            label_N = c_NC.argmax(axis=1)
            tied = np.flatnonzero(released_NC.argmax(axis=1) != label_N)
            released_NC[tied, label_N[tied]] = np.nextafter(released_NC[tied].max(axis=1), 2)
        return released_NC
