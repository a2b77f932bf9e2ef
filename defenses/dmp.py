"""DMP: distil the target into a model that never sees a member."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from defenses._recipe import WithRecipe
from defenses.base import Records, Setting

__all__ = ["Dmp"]

_BATCH = 1024


class Dmp(WithRecipe):
    """Train a teacher on the members, and release a student of its answers to other records.

    The student learns KL(teacher || student) at `temperature` on reference records, whose labels
    are not used; the teacher is discarded. Of the reference, the records the teacher is surest
    of are taken: a sure answer to a record tells less of the teacher's members than a doubtful one.

    Source: Shejwalkar and Houmansadr, "Membership Privacy for Machine Learning Models Through
        Knowledge Transfer", AAAI 2021, section 4; recipe from HAMP's public code for it.
    """

    VERSION: ClassVar[int] = 1

    temperature: float = Field(1.0, gt=0, description="of both softmaxes, T")
    kept: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the reference's fitting part to distil on, least teacher entropy "
        "first",
    )

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """The published recipe; on two cores the target's own, on all there is of the reference.

        The published rate is 0.5 with momentum 0.99 for a KL divided by the number of classes
        too. With momentum 0.9 ten times that rate makes the same way. Half of the reference is
        our choice: the paper selects from a pool far larger than ours.
        """
        if name == "cpu":
            return {}
        return {
            "kept": 0.5 if name == "paper" else 1.0,
            "optimizer": "sgd",
            "learning_rate": 10 * 0.5 / num_classes,
            "milestones": (60, 90),
            "weight_decay": 1e-5,
            "batch_size": 32,
            "epochs": 100,
        }

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """The student's weights.

        Raises:
            ValueError: if there are no reference records to distil on.
        """
        if not len(setting.reference.fit):
            raise ValueError(
                "the reference has no records to distil on; enlarge the reference split"
            )
        rng = np.random.default_rng([seed, *b"dmp.teacher"])
        teacher = setting.train(setting.members, seed=int(rng.integers(2**62)))
        x = setting.reference.fit.x
        soft_NC = _soft(setting, teacher, x, self.temperature, seed)
        rows = self.selected(soft_NC)
        return setting.train(
            # The classes a record is given here are the teacher's, not its own.
            Records(x[rows], soft_NC[rows].argmax(axis=1)),
            seed=seed,
            targets=soft_NC[rows].astype(np.float32),
            loss=self.loss,
            **self.recipe(),
        )

    def selected(self, soft_NC: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rows with the least entropy, in rising order of row; at least one."""
        entropy_N = -np.sum(soft_NC * np.log(soft_NC.clip(min=1e-300)), axis=1)
        num_kept = max(1, round(self.kept * len(soft_NC)))
        return np.sort(np.argsort(entropy_N, kind="stable")[:num_kept])

    def loss(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """KL(targets || student) for logits [B, C] and the teacher's tempered answers [B, C]."""
        return F.kl_div(
            F.log_softmax(logits / self.temperature, dim=1), targets, reduction="batchmean"
        )


@torch.no_grad()
def _soft(
    setting: Setting,
    weights: dict[str, NDArray[Any]],
    x: NDArray[Any],
    temperature: float,
    seed: int,
) -> NDArray[np.float64]:
    """What the network with these weights answers to x at a temperature, float64 [N, C]."""
    module = setting.network(seed=seed)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    module.eval()
    parts = [
        module(torch.from_numpy(x[start : start + _BATCH]).to(setting.device)).cpu().double()
        for start in range(0, len(x), _BATCH)
    ]
    soft_NC: NDArray[np.float64] = (torch.cat(parts) / temperature).softmax(dim=1).numpy()
    return soft_NC
