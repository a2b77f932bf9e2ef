"""Mixup of the training batches."""

from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from defenses._mixup import mixed
from defenses.base import Defense, Setting

__all__ = ["Mixup"]


class Mixup(Defense):
    """Train the same model on mixtures of two members and of their labels.

    No member is ever seen as it is, so none of them is fitted as it is.

    Source: Li, Li and Ribeiro, "Membership Inference Attacks and Defenses in Classification
        Models", CODASPY 2021, the first of their two phases; Zhang et al., "mixup: Beyond
        Empirical Risk Minimization", ICLR 2018, section 2.
    """

    VERSION: ClassVar[int] = 1

    alpha: float = Field(
        1.0,
        ge=0,
        le=100,
        description="a batch is mixed in the proportion lambda ~ Beta(alpha, alpha): the larger, "
        "the nearer to half and half; 0 is the plain training",
    )

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        change = None
        if self.alpha:
            change = partial(mixed, alpha=self.alpha, num_classes=setting.num_classes)
        return setting.train(setting.members, seed=seed, change=change)
