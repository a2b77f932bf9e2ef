"""MMD + mixup: members and others are answered alike."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from defenses._mixup import mixed
from defenses.base import Defense, Records, Setting

__all__ = ["Mmd", "class_matched", "mmd2"]

_BATCH = 1024
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4


class Mmd(Defense):
    """Each epoch trains on mixtures, then pulls the members' answers towards those of others.

    Phase 1 is mixup on the members. Phase 2 runs if members and validation records are right at
    rates at least `least_gap` apart: each batch of members is compared with a batch of reference
    records of the same classes, and `weight` times the squared maximum mean discrepancy of the two
    sets of confidences is descended, the gradient through the members alone. The last epoch has
    no phase 2.

    Both phases share one optimiser: with two, one that adapts its step (Adam) would undo `weight`.

    Source: Li, Li and Ribeiro, "Membership Inference Attacks and Defenses in Classification
        Models", CODASPY 2021, section 5 and its public code. There the gap is taken on the set
        that is also matched; here the matched records are the fitting part of the reference, and
        the gap is taken on the validation part.
    """

    VERSION: ClassVar[int] = 1

    weight: float = Field(3.0, ge=0, description="of the discrepancy, mu; 0 is mixup alone")
    alpha: float = Field(1.0, ge=0, le=100, description="mixup's Beta(alpha, alpha); 0: unmixed")
    least_gap: float = Field(
        0.03, ge=0, le=1, description="difference of accuracies below which phase 2 is left out"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="SGD with momentum 0.9, weight decay 5e-4 and a rate that falls as a cosine; "
        "None: the target's own optimiser",
    )
    epochs: int | None = Field(None, ge=1, le=10_000, description="None: the target's own")
    batch_size: int | None = Field(None, ge=1, description="None: the target's own")

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        return {} if name == "cpu" else {"learning_rate": 0.01}

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Train on the members and on the reference's classes and records, never on its loss.

        Raises:
            ValueError: if the reference has no records to match with or to validate on.
            FloatingPointError: if the loss leaves the finite numbers.
        """
        matched, val = setting.reference.fit, setting.reference.val
        if self.weight and not (len(matched) and len(val)):
            raise ValueError(
                f"the reference has {len(matched)} records to match and {len(val)} to validate "
                "on; mmd needs both, enlarge the reference split"
            )
        rng = np.random.default_rng([seed, *b"mmd.match"])
        order, mixing = (
            torch.Generator().manual_seed(int(rng.integers(2**62))) for _ in ("order", "mixing")
        )
        epochs = self.epochs or setting.recipe.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))  # dropout draws from the global one
            module = setting.network(seed=seed)
            optimizer, schedule = self._optimizer(setting, module, epochs)
            for epoch in range(epochs):
                for x_BD, y_B in _batches(self._size(setting), setting, order):
                    target_B = y_B
                    if self.alpha:
                        x_BD, target_B = mixed(
                            x_BD, y_B, mixing, alpha=self.alpha, num_classes=setting.num_classes
                        )
                    _descend(F.cross_entropy(module(x_BD), target_B), optimizer, epoch)
                if self.weight and epoch < epochs - 1:
                    right = [_accuracy(module, part, setting) for part in (setting.members, val)]
                    if abs(right[0] - right[1]) >= self.least_gap:
                        self._match(setting, module, optimizer, order, rng, epoch)
                schedule.step()
        return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}

    def _match(
        self,
        setting: Setting,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        rng: np.random.Generator,
        epoch: int,
    ) -> None:
        matched = setting.reference.fit
        for x_BD, y_B in _batches(self._size(setting), setting, order):
            kept, others = class_matched(y_B.cpu().numpy(), matched.y, rng)
            if not len(kept):
                continue
            own = module(x_BD[torch.from_numpy(kept).to(x_BD.device)]).softmax(dim=1)
            with torch.no_grad():
                other = module(torch.from_numpy(matched.x[others]).to(x_BD.device)).softmax(dim=1)
            _descend(self.weight * mmd2(own, other), optimizer, epoch)

    def _size(self, setting: Setting) -> int:
        return self.batch_size or setting.recipe.batch_size

    def _optimizer(
        self, setting: Setting, module: nn.Module, epochs: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        if self.learning_rate is None:
            optimizer = setting.optimizer(module)
            milestones = list(getattr(setting.recipe, "milestones", ()))
            return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=self.learning_rate,
            momentum=_MOMENTUM,
            weight_decay=_WEIGHT_DECAY,
        )
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


def mmd2(p_BC: Tensor, q_BC: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two samples, biased, Gaussian kernel of sigma 1.

    Args:
        p_BC: [B, C].
        q_BC: [M, C].

    Returns:
        A scalar, at least 0 up to rounding.
    """
    within = _kernel(p_BC, p_BC).mean() + _kernel(q_BC, q_BC).mean()
    return within - 2 * _kernel(p_BC, q_BC).mean()


def _kernel(a_NC: Tensor, b_MC: Tensor) -> Tensor:
    # By products, as differences need [N, M, C]; in double precision, as products cancel.
    a_NC, b_MC = a_NC.double(), b_MC.double()
    square_NM = a_NC.square().sum(1)[:, None] + b_MC.square().sum(1)[None] - 2 * a_NC @ b_MC.T
    return (-square_NM.clamp(min=0) / 2).exp()


def class_matched(
    y_B: NDArray[np.int64], y_M: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A partner of the same class for each of a batch, drawn from M records.

    No record is drawn twice while its class has others left. Where a class has none at all, its
    members have no partner and are left out.

    Returns:
        Positions in the batch, and as many positions in the M, of the same classes.
    """
    # The M in order of class, at random within it; so is the batch, and both are read in step.
    by_class_M = np.lexsort((rng.random(len(y_M)), y_M))
    by_class_B = np.argsort(y_B, kind="stable")
    sorted_B = y_B[by_class_B]
    start_B = np.searchsorted(y_M[by_class_M], sorted_B)
    count_B = np.searchsorted(y_M[by_class_M], sorted_B, side="right") - start_B
    rank_B = np.arange(len(y_B)) - np.searchsorted(sorted_B, sorted_B)
    has = count_B > 0
    return by_class_B[has], by_class_M[start_B[has] + rank_B[has] % count_B[has]]


def _batches(size: int, setting: Setting, order: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    x, y = torch.from_numpy(setting.members.x), torch.from_numpy(setting.members.y)
    rows = torch.split(torch.randperm(len(y), generator=order), size)
    return [(x[batch].to(setting.device), y[batch].to(setting.device)) for batch in rows]


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"the training loss became {float(loss)} in epoch {epoch + 1}; lower learning_rate"
        )
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


@torch.no_grad()
def _accuracy(module: nn.Module, records: Records, setting: Setting) -> float:
    module.eval()
    right = 0
    for start in range(0, len(records), _BATCH):
        part = slice(start, start + _BATCH)
        z_BC = module(torch.from_numpy(records.x[part]).to(setting.device))
        right += int((z_BC.argmax(dim=1).cpu() == torch.from_numpy(records.y[part])).sum())
    module.train()
    return right / len(records)
