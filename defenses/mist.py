"""MIST: sub-models learn to answer for their records as those do that lack them."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import Defense, Setting

__all__ = ["Mist", "cross_difference"]

_BATCH = 1024


class Mist(Defense):
    """Experimental: its numbers are ours, as the paper's could not be verified.

    Each round divides the members at random. A sub-model for each part starts from the common
    weights and trains on its part alone; then it is drawn, on its part, towards the answers of
    the sub-models that did without these records this round. The new common weights are the
    mean. What a model says of a record only because it saw it has no other to agree with.

    Left open, and chosen here: the random subsets are disjoint and cover the members, so that no
    other sub-model of the round saw a record; the others' answers are those after the local
    epochs, without dropout, so that it does not matter who moves first; a sub-model starts with
    a fresh optimizer, which it keeps for both phases, as one that adapts its step (Adam) would
    otherwise undo `weight`, but for its momentum, which would carry the first phase on in the
    second; the recipe's epochs are as many rounds.

    Source: Li, Li and Ribeiro, "MIST: Defending Against Membership Inference Attacks Through
        Membership-Invariant Subspace Training", USENIX Security 2024.
    """

    VERSION: ClassVar[int] = 1
    FLAGS: ClassVar[tuple[str, ...]] = ("unverified_hparams",)

    num_models: int = Field(3, ge=2, le=1000, description="sub-models a round, S")
    weight: float = Field(
        1.0, ge=0, description="of the cross-difference, lambda; 0: federated averaging alone"
    )
    rounds: int | None = Field(None, ge=1, le=10_000, description="None: the target's epochs")
    local_epochs: int = Field(1, ge=1, le=1000, description="of a sub-model in a round")
    cross_epochs: int = Field(1, ge=1, le=1000, description="on the cross-difference, in a round")

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """Train on the members alone.

        Raises:
            ValueError: if there are fewer members than sub-models.
            FloatingPointError: if the weights leave the finite numbers.
        """
        num = len(setting.members)
        if num < self.num_models:
            raise ValueError(
                f"mist divides {num} members among {self.num_models} sub-models; lower num_models "
                "or enlarge the members"
            )
        rng = np.random.default_rng([seed, *b"mist.parts"])
        order = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))  # dropout draws from the global one
            common = setting.network(seed=seed)
            for number in range(self.rounds or setting.recipe.epochs):
                parts = np.array_split(rng.permutation(num), self.num_models)
                common = self._round(setting, common, parts, order, number)
        return {name: value.cpu().numpy().copy() for name, value in common.state_dict().items()}

    def _round(
        self,
        setting: Setting,
        common: nn.Module,
        parts: Sequence[NDArray[np.int64]],
        order: torch.Generator,
        number: int,
    ) -> nn.Module:
        """The common model after round `number` (from 0)."""
        owned = [
            (
                torch.from_numpy(setting.members.x[part]).to(setting.device),
                torch.from_numpy(setting.members.y[part]).to(setting.device),
            )
            for part in parts
        ]
        models = [deepcopy(common).train() for _ in parts]
        optimizers = [_optimizer(setting, model, number) for model in models]
        size = setting.recipe.batch_size
        for model, optimizer, (x, y) in zip(models, optimizers, owned, strict=True):
            for batch in _batches(len(y), size, self.local_epochs, order):
                rows = batch.to(setting.device)
                _descend(F.cross_entropy(model(x[rows]), y[rows]), optimizer)
        if self.weight:
            others = [
                torch.stack([_answers(model, x) for j, model in enumerate(models) if j != i])
                for i, (x, _) in enumerate(owned)
            ]
            for model, optimizer, (x, y), q_JNC in zip(
                models, optimizers, owned, others, strict=True
            ):
                _halt(optimizer)
                for batch in _batches(len(y), size, self.cross_epochs, order):
                    rows = batch.to(setting.device)
                    p_BC = model(x[rows]).softmax(dim=1)
                    _descend(self.weight * cross_difference(p_BC, q_JNC[:, rows]), optimizer)
        states = [model.state_dict() for model in models]
        mean = {name: _mean([state[name] for state in states]) for name in states[0]}
        if not all(bool(torch.isfinite(value).all()) for value in mean.values()):
            raise FloatingPointError(
                f"the weights left the finite numbers in round {number + 1}; lower learning_rate "
                f"(now {setting.recipe.learning_rate}) of the target"
            )
        common.load_state_dict(mean)
        return common


def cross_difference(p_BC: Tensor, q_JBC: Tensor) -> Tensor:
    """How far answers are from those of J other models: the mean L1 distance, in [0, 2].

    Args:
        p_BC: [B, C], rows sum to 1; gradients reach these alone.
        q_JBC: [J, B, C], rows sum to 1.
    """
    return (p_BC - q_JBC.detach()).abs().sum(dim=-1).mean()


def _optimizer(setting: Setting, model: nn.Module, number: int) -> torch.optim.Optimizer:
    """A fresh optimizer of the recipe, its rate lowered as the recipe says for this epoch."""
    optimizer = setting.optimizer(model)
    reached = sum(milestone <= number for milestone in getattr(setting.recipe, "milestones", ()))
    for group in optimizer.param_groups:
        group["lr"] *= 0.1**reached
    return optimizer


def _halt(optimizer: torch.optim.Optimizer) -> None:
    """Forget the direction of earlier steps, but not what they say of a step's size."""
    for held in optimizer.state.values():
        for name in ("exp_avg", "momentum_buffer"):  # of Adam, of SGD
            if held.get(name) is not None:
                held[name].zero_()


def _batches(num: int, size: int, epochs: int, order: torch.Generator) -> list[Tensor]:
    shuffled = [torch.split(torch.randperm(num, generator=order), size) for _ in range(epochs)]
    return [batch for epoch in shuffled for batch in epoch]


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


@torch.no_grad()
def _answers(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    p_NC = torch.cat([model(part).softmax(dim=1) for part in torch.split(x, _BATCH)])
    model.train()
    return p_NC


def _mean(values: list[Tensor]) -> Tensor:
    # What counts batches (BatchNorm) is the same in all and no number to average.
    return torch.stack(values).mean(dim=0) if values[0].is_floating_point() else values[0]
