"""L2 regularisation of the target's own training."""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from defenses.base import Defense, Setting

__all__ = ["L2"]


class L2(Defense):
    """Train the same model on the same members with weight decay.

    Source: Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P
        2017, section VIII. The default is the published penalty of AEPPT's targets; a target
        whose own recipe has it already needs a larger one.
    """

    VERSION: ClassVar[int] = 1

    weight_decay: float = Field(
        5e-4, ge=0, description="L2 penalty of the optimiser; replaces the architecture's own"
    )

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        return setting.train(setting.members, seed=seed, weight_decay=self.weight_decay)
