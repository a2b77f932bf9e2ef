"""A penalty on confident answers in the target's own training."""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses.base import Defense, Setting

__all__ = ["ConfidencePenalty"]


class ConfidencePenalty(Defense):
    """Train the same model to answer with entropy: the loss is CE - gamma H(F(x)).

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
        Distributions", ICLR 2017 workshop, section 3 (their beta is our gamma). As a baseline
        of RelaxLoss's public code it has the default weight.
    """

    VERSION: ClassVar[int] = 1

    gamma: float = Field(0.1, ge=0, description="weight of the entropy; 0 is the plain training")

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        loss = self.loss if self.gamma else None
        return setting.train(setting.members, seed=seed, loss=loss)

    def loss(self, logits: Tensor, targets: Tensor, epoch: int = 0) -> Tensor:
        """The mean over a batch, for logits [B, C] and classes [B]."""
        log_p_BC = logits.log_softmax(dim=1)
        entropy_B = -(log_p_BC.exp() * log_p_BC).sum(dim=1)
        return F.nll_loss(log_p_BC, targets) - self.gamma * entropy_B.mean()
