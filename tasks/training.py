"""Train a model, ask a model. The loops whose speed matters live here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.architectures import Architecture, build
from tasks.base import stream

__all__ = [
    "TrainedModel",
    "Ways",
    "initial",
    "load_module",
    "logits",
    "optimizer_of",
    "softmax64",
    "train",
    "weights_of",
]

BATCH = 1024  # fixed: another size may move the last bits of a logit


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Weights by name, and the mean training loss of each epoch."""

    weights: dict[str, NDArray[Any]]
    losses: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ways:
    """How a training defense departs from plain training; each None leaves it as it is.

    Attributes:
        targets: [N] classes, or soft labels [N, C], instead of the records' own.
        loss: (logits [B, C], targets of the batch, epoch from 0) -> the scalar to descend.
        change: (x, targets, generator) -> (x, targets): another batch instead of this one.
        after_epoch: (epoch from 0, module) -> whether to stop. It may set the module to `eval`.
    """

    targets: NDArray[Any] | None = None
    loss: Callable[[Tensor, Tensor, int], Tensor] | None = None
    change: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None
    after_epoch: Callable[[int, nn.Module], bool] | None = None


_PLAIN = Ways()


def train(
    architecture: Architecture,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    num_classes: int,
    seed: int,
    device: str = "cpu",
    ways: Ways = _PLAIN,
) -> TrainedModel:
    """Train one model to its recipe's end; no early stop on any other data.

    Args:
        architecture: the network and its recipe.
        x: [N, ...] records.
        y: [N] classes below `num_classes`.
        num_classes: C.
        seed: root of the streams target.init and target.batches.
        device: of torch.
        ways: what a training defense does differently.

    Raises:
        FloatingPointError: if the loss becomes NaN or infinite.

    Source: methods.md section 3.2.
    """
    targets = y if ways.targets is None else ways.targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "target.init"))
        module = build(architecture, x.shape[1:], num_classes).to(device)
        # Dropout draws from the global generator too, hence the whole loop is forked.
        losses = _fit(module, architecture, x, targets, seed=seed, device=device, ways=ways)
    return TrainedModel(weights_of(module), np.asarray(losses))


def initial(
    architecture: Architecture, shape: tuple[int, ...], num_classes: int, seed: int
) -> nn.Module:
    """The network that `train` with this seed starts from, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "target.init"))
        return build(architecture, shape, num_classes)


def weights_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """A copy of what a network has learned, by name."""
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}


def _fit(
    module: nn.Module,
    architecture: Architecture,
    x: NDArray[np.float32],
    targets: NDArray[Any],
    *,
    seed: int,
    device: str,
    ways: Ways,
) -> list[float]:
    x_ND = torch.from_numpy(x).to(device)
    target_N = torch.from_numpy(targets).to(device)
    order = torch.Generator().manual_seed(stream(seed, "target.batches"))
    changes = torch.Generator().manual_seed(stream(seed, "target.changes"))
    optimizer = optimizer_of(module, architecture)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(architecture.milestones))
    criterion = nn.CrossEntropyLoss()
    losses: list[float] = []
    module.train()
    for epoch in range(architecture.epochs):
        total = torch.zeros((), device=device)
        shuffled = torch.randperm(len(targets), generator=order).to(device)
        for batch in torch.split(shuffled, architecture.batch_size):
            optimizer.zero_grad(set_to_none=True)
            x_BD, target_B = x_ND[batch], target_N[batch]
            if ways.change is not None:
                x_BD, target_B = ways.change(x_BD, target_B, changes)
            z_BC = module(x_BD)
            loss = ways.loss(z_BC, target_B, epoch) if ways.loss else criterion(z_BC, target_B)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        schedule.step()
        losses.append(float(total) / len(targets))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the training loss became {losses[-1]} in epoch {epoch + 1}; "
                f"lower learning_rate (now {architecture.learning_rate})"
            )
        # A loss of a defense's own is on another scale than the recipe's bound.
        if ways.loss is None and losses[-1] < architecture.min_loss:
            break
        if ways.after_epoch is not None and ways.after_epoch(epoch, module):
            break
        module.train()
    return losses


def optimizer_of(module: nn.Module, architecture: Architecture) -> torch.optim.Optimizer:
    """The optimizer of a recipe."""
    rate, decay = architecture.learning_rate, architecture.weight_decay
    if architecture.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    return torch.optim.Adam(module.parameters(), lr=rate, weight_decay=decay, fused=True)


def load_module(
    architecture: Architecture,
    weights: Mapping[str, NDArray[Any]],
    shape: tuple[int, ...],
    num_classes: int,
    device: str = "cpu",
) -> nn.Module:
    """The network with these weights, ready to answer (dropout off, running statistics)."""
    with torch.random.fork_rng(devices=[]):
        module = build(architecture, shape, num_classes)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.to(device).eval()


def logits(module: nn.Module, x: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float32]:
    """Logits [N, C] of records x [N, ...], asked in batches of a fixed size."""
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(x[start : start + BATCH]).to(device)).cpu().numpy()
            for start in range(0, max(len(x), 1), BATCH)  # of no records too: [0, C]
        ]
    return np.concatenate(parts)


def softmax64(z_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax in float64: 1 - p_y of a memorised member is below float32's rounding."""
    z = z_NC.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z
