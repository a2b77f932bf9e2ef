"""The gap attack: records the service labels correctly are called members."""

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.base import Attack, Classifier, Knowledge

__all__ = ["Gap"]


class Gap(Attack):
    """Call a record a member if the service gives it its true label.

    Its balanced accuracy is exactly 1/2 + (train_accuracy - test_accuracy) / 2, so it is the
    floor any attack that sees scores has to reach.

    Source: Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to
        Overfitting", CSF 2018, adversary 1 (section 3.2).
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-label"
    ACCESS: ClassVar[Literal["score", "label"]] = "label"
    THRESHOLD: ClassVar[float | None] = 0.5

    def score(
        self,
        query: Classifier,
        known: Knowledge,
        x: NDArray[Any],
        y: NDArray[np.int64],
        *,
        seed: int,
    ) -> NDArray[np.float64]:
        """1.0 where the released label is `y`, else 0.0; uses neither `known` nor `seed`."""
        label_N = query(x)
        return np.asarray(label_N == y, dtype=np.float64)
