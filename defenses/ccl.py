"""CCL: cross-entropy with a concave term."""

from typing import Any, ClassVar, Literal

from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses._recipe import WithRecipe
from defenses.base import Setting

__all__ = ["CCL"]


class CCL(WithRecipe):
    """Train the same model with a loss that is less convex, hence more spread over the members.

    The loss is beta mean(alpha CE - (1 - alpha) exp(p)), with p the score of the true class. The
    slope of exp(p) grows with p: what is sure already gets surer faster than what is not.

    Source: Liu et al., "Mitigating Privacy Risk in Membership Inference by Convex-Concave Loss",
        ICML 2024; numbers from its public code, which are for CIFAR.
    """

    VERSION: ClassVar[int] = 1

    alpha: float = Field(
        0.5, ge=0, le=1, description="weight of cross-entropy; with beta 1, 1 is plain training"
    )
    beta: float = Field(
        0.05,
        gt=0,
        description="factor of the whole loss: the smaller, the more weight decay counts",
    )
    concave: Literal["exp", "quadratic"] = Field(
        "exp", description="the concave term: exp(p), or its first terms p + p^2 / 2"
    )

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """The published recipe, which is the same for every dataset.

        On two cores the objective is the published one, beta and weight decay together; how it is
        descended is the target's own. Without the decay a small model learns all of its members
        by heart, and there is no loss left to be spread. With it, decay over beta is 0.01, which
        networks without batch normalisation may not bear: `mlp_s` learns nothing of retail100
        (4 % of its members), which is no privacy to speak of.
        """
        if name == "cpu":
            return {"weight_decay": 5e-4}
        return {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "milestones": (150, 225),
            "weight_decay": 5e-4,
            "batch_size": 512,
            "epochs": 300,
        }

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        loss = None if self.alpha == self.beta == 1 else self.loss
        return setting.train(setting.members, seed=seed, loss=loss, **self.recipe())

    def loss(self, logits: Tensor, targets: Tensor, epoch: int = 0) -> Tensor:
        """The scalar to descend, for logits [B, C] and classes [B]."""
        log_p_BC = logits.log_softmax(dim=1)
        p_B = log_p_BC.gather(1, targets[:, None])[:, 0].exp()
        concave_B = p_B.exp() if self.concave == "exp" else p_B + p_B.square() / 2
        cross_entropy = F.nll_loss(log_p_BC, targets)
        return self.beta * (self.alpha * cross_entropy - (1 - self.alpha) * concave_B.mean())
