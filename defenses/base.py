"""The seam of a defense: what a defender may use, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # listing plugins must not wait for torch
    import torch
    from torch import nn

__all__ = [
    "Defense",
    "Diagnosing",
    "Noise",
    "Outline",
    "OutputDefense",
    "Planning",
    "Recipe",
    "Records",
    "Reference",
    "Setting",
    "Trained",
    "TrainingDefense",
]


class Noise(Protocol):
    """Random numbers for all rows of one answer at once.

    The noise policy (fresh, per_input, deterministic) is the caller's business: draws are keyed by
    it and by each row's input, so a defense must not keep a generator of its own. Under
    `deterministic`, normal() is all 0 and uniform() all 0.5.
    Each call gives new, independent numbers; `shape[0]` must be the number of rows.
    """

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]: ...

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, eq=False)
class Records:
    """Records the defender owns: x [N, ...] float32 and y [N] int64."""

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Reference(Records):
    """D2, divided once: `fit` (80 %) to fit on, `val` (20 %) to select and stop on.

    An experiment may put other records in its place, such as the members or noise, on which the
    model does not do as it does on records it never saw. `unseen` is D2 then, else None: whoever
    asks how well the model generalises reads `of_unseen`.
    """

    fit: Records
    val: Records
    unseen: "Reference | None" = None

    @property
    def of_unseen(self) -> "Reference":
        """Records like the members that never trained the model."""
        return self if self.unseen is None else self.unseen


class Trained(Protocol):
    """A model or defense that was trained because a defense asked for it."""

    @property
    def weights(self) -> Mapping[str, NDArray[Any]]: ...

    @property
    def state(self) -> Mapping[str, NDArray[Any]]: ...

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]: ...


class Outline(Protocol):
    """What is known while planning: row numbers, labels and sizes, never an answer.

    `reference_rows` are D2 even where the defense is given other records in its place.
    """

    @property
    def member_rows(self) -> NDArray[np.int64]: ...

    @property
    def reference_rows(self) -> NDArray[np.int64]: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def num_classes(self) -> int: ...

    def training(
        self,
        *,
        rows: NDArray[np.int64] | None = None,
        reference_rows: NDArray[np.int64] | None = None,
        defense: "Defense | None" = None,
        seed: int | None = None,
    ) -> Any:
        """A training task.

        With `rows`, a model of the target's architecture and recipe on those rows. Without, the
        model being defended itself. `defense` is fitted around it. What comes back at run time in
        `setting.trained`, in the order returned by `trainings`, is a `Trained`.
        """
        ...

    def models(
        self, rows: Sequence[NDArray[np.int64]], *, seed: int, **overrides: Any
    ) -> tuple[Any, ...]:
        """Many trainings at once: a model of the target's architecture for each of `rows`.

        `overrides` are fields of the recipe. They are trained together, which is faster.
        """
        ...


class Recipe(Protocol):
    """How the target is trained; read only."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def dropout(self) -> float: ...


class Setting(Protocol):
    """What a defender may use: D1, D2 and the model. There is no way to D3 from here.

    Attributes:
        members: D1, the records the model was trained on.
        reference: D2, records that never trained it, or what the experiment says instead.
        num_classes: C.
        answer: confidences float64 [N, C] of the model being defended (of the previous stage in a
            chain), for any x [N, ...].
        trained: what `trainings` asked for, in that order.
        train: the target's own training: `train(records, seed=..., **overrides)` gives weights.
            Overrides are fields of the recipe (epochs, weight_decay, ...) or depart from plain
            training: `targets` ([N] classes or soft labels [N, C]); `loss(logits, targets, epoch)`
            of a batch; `change(x, targets, generator)`, another batch instead of this one;
            `after_epoch(epoch, module)`, whether to stop.
        network: `network(seed=..., **overrides)` is what `train` with that seed starts from.
        optimizer: `optimizer(module)` is the recipe's own.
        recipe: the architecture, to be read: epochs, batch_size, learning_rate, ...
        device: where torch code should run.
    """

    @property
    def members(self) -> Records: ...

    @property
    def reference(self) -> Reference: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def answer(self) -> Callable[[NDArray[Any]], NDArray[np.float64]]: ...

    @property
    def trained(self) -> tuple[Trained, ...]: ...

    @property
    def train(self) -> Callable[..., dict[str, NDArray[Any]]]: ...

    @property
    def network(self) -> "Callable[..., nn.Module]": ...

    @property
    def optimizer(self) -> "Callable[[nn.Module], torch.optim.Optimizer]": ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def device(self) -> str: ...


class Defense(BaseModel):
    """A defense: its fields are the paper's hyper-parameters, its methods the algorithm.

    It defines `fit` and `apply` if it changes answers, `train` if it shapes the model, all three,
    or none (the identity).

    Class variables:
        VERSION: bump when the same fields would give other answers.
        NOISE: the default noise policy by preset name, empty if the defense draws nothing.
        FLAGS: flags of every result about the defense, whatever its fields; results that are
            kept hold those of their VERSION.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    VERSION: ClassVar[int]
    NOISE: ClassVar[Mapping[str, str]] = {}
    FLAGS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def preset(cls, name: str, dataset: str, num_classes: int) -> dict[str, Any]:
        """Field values of preset `name` ("paper", "sound", "cpu") for a dataset.

        Fields left out keep their default.
        """
        return {}


@runtime_checkable
class OutputDefense(Protocol):
    """A defense that changes answers."""

    def fit(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """The fitted state: arrays only."""
        ...

    def apply(
        self, confidence: NDArray[np.float64], state: Mapping[str, NDArray[Any]], noise: Noise
    ) -> NDArray[np.float64]:
        """Released confidences [N, C] for confidences [N, C], which are not modified.

        Rows are independent: a row's answer does not depend on the others in the batch.
        """
        ...


@runtime_checkable
class TrainingDefense(Protocol):
    """A defense that shapes the model while it is trained."""

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """The trained weights: arrays only. `setting.answer` is not available here."""
        ...


@runtime_checkable
class Diagnosing(Protocol):
    """A defense with facts to log about each fit."""

    def diagnose(
        self, setting: Setting, state: Mapping[str, NDArray[Any]], *, seed: int
    ) -> dict[str, float]:
        """Scalar facts about a fitted state, kept with it and shown as columns where named so.

        Of a defense that only trains, `state` is the weights.
        """
        ...


@runtime_checkable
class Planning(Protocol):
    """A defense that needs models of its own trained before it is fitted."""

    def trainings(self, outline: Outline, *, seed: int) -> tuple[Any, ...]:
        """Called while planning; each entry is the result of `outline.training(...)`."""
        ...
