"""Dropout in the target's own training."""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from defenses.base import Defense, Setting

__all__ = ["Dropout"]


class Dropout(Defense):
    """Train the same model with units dropped after every hidden fully connected layer.

    It answers with all of its units.

    Source: Salem et al., "ML-Leaks", NDSS 2019, section V-A, whose rate is the default. AEPPT
        compares with dropout too, without saying how much.
    """

    VERSION: ClassVar[int] = 1

    rate: float = Field(
        0.5, ge=0, lt=1, description="share of units dropped; replaces the architecture's own"
    )

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        return setting.train(setting.members, seed=seed, dropout=self.rate)
