"""Label smoothing of the target's own training."""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses.base import Defense, Setting

__all__ = ["LabelSmoothing"]


class LabelSmoothing(Defense):
    """Train the same model towards labels of which a part is spread over all classes.

    The label of class y becomes (1 - alpha) onehot(y) + alpha / C: a member can be learned by
    heart, but not with all confidence.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR
        2016, section 7, whose alpha (their epsilon) is the default. As a defense it is a baseline
        of several papers, none of which gives an alpha for our datasets.
    """

    VERSION: ClassVar[int] = 1

    alpha: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="how much of a label is spread over the classes; 0 is the plain training",
    )

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        loss = self.loss if self.alpha else None
        return setting.train(setting.members, seed=seed, loss=loss)

    def loss(self, logits: Tensor, targets: Tensor, epoch: int = 0) -> Tensor:
        """Mean cross-entropy of logits [B, C] with the smoothed labels of classes [B]."""
        return F.cross_entropy(logits, targets, label_smoothing=self.alpha)
