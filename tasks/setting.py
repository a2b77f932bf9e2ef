"""What a defender may use (`defenses.base.Setting`): D1, D2 and the model, never D3."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from defenses.base import Records, Reference
from storage.datasets import Dataset
from tasks import training
from tasks.architectures import Architecture, with_recipe

__all__ = ["DefenderSetting", "make_setting"]


@dataclass(frozen=True, eq=False)
class DefenderSetting:
    """The defender's view; attributes as in `defenses.base.Setting`."""

    members: Records
    reference: Reference
    num_classes: int
    answer: Callable[[NDArray[Any]], NDArray[np.float64]]
    trained: tuple[Any, ...]
    train: Callable[..., dict[str, NDArray[Any]]]
    network: Callable[..., nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    recipe: Architecture
    device: str


def make_setting(
    dataset: Dataset,
    *,
    member_rows: NDArray[np.int64],
    reference: Reference,
    architecture: Architecture,
    seed: int,
    device: str,
    trained: tuple[Any, ...] = (),
    answer: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
    losses: list[NDArray[np.float64]] | None = None,
) -> DefenderSetting:
    """The setting of one defense.

    Args:
        dataset: where rows become records.
        member_rows: D1.
        reference: D2, or what the defender has in its place.
        architecture: of the model being defended; `train` uses its recipe.
        seed: default seed of `train`.
        device: of torch.
        trained: what the defense's `trainings` gave.
        answer: the model's answers; None while it is not trained yet.
        losses: filled with the loss history of every `train` call.
    """

    def train(
        records: Records,
        *,
        seed: int = seed,
        targets: NDArray[Any] | None = None,
        loss: Any = None,
        change: Any = None,
        after_epoch: Any = None,
        **overrides: Any,
    ) -> dict[str, NDArray[Any]]:
        model = training.train(
            with_recipe(architecture, **overrides),
            records.x,
            records.y,
            num_classes=dataset.num_classes,
            seed=seed,
            device=device,
            ways=training.Ways(targets, loss, change, after_epoch),
        )
        if losses is not None:
            losses.append(model.losses)
        return model.weights

    def network(*, seed: int = seed, **overrides: Any) -> nn.Module:
        recipe = with_recipe(architecture, **overrides)
        return training.initial(recipe, dataset.shape, dataset.num_classes, seed).to(device)

    return DefenderSetting(
        members=Records(dataset.x(member_rows), dataset.y[member_rows]),
        reference=reference,
        num_classes=dataset.num_classes,
        answer=_untrained if answer is None else answer,
        trained=trained,
        train=train,
        network=network,
        optimizer=lambda module: training.optimizer_of(module, architecture),
        recipe=architecture,
        device=device,
    )


def _untrained(x: NDArray[Any]) -> NDArray[np.float64]:
    raise TypeError("setting.answer() is for output defenses; this model is not trained yet")
