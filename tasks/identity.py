"""The last hidden layer of a classifier: what it knows of records beyond its answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks import images, training
from tasks.train_target import Classifier, TrainTarget
from tasks.worker import Bench

__all__ = ["Hidden", "Identity"]


class _Body(nn.Module):
    """A network that answers with what its last linear layer is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.given = torch.empty(0)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        last.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.given = inputs[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.network(x)
        return self.given


@dataclass(frozen=True, eq=False)
class Hidden:
    """A trained classifier, asked for its last hidden layer."""

    body: nn.Module
    device: str

    @classmethod
    def of(cls, task: Classifier, bench: Bench) -> "Hidden":
        """That of a finished task.

        Raises:
            ValueError: if it is another network than its architecture, as a defense made it.
        """

        def load() -> "Hidden":
            data = bench.dataset(task.split.data)
            held = bench.artifacts.open(task.key).arrays("weights")
            recipe = task.architecture
            try:
                network = training.load_module(
                    recipe, held, data.shape, data.num_classes, bench.device
                )
            except RuntimeError:
                raise ValueError(
                    f"the model is no plain {recipe.name}, as its defense trains another; leave "
                    "`layer: hidden` to models that are (against: [none])"
                ) from None
            return cls(_Body(network), bench.device)

        return bench.keep(("hidden", task.key), load)

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The last hidden layer [N, F] for records [N, ...]."""
        return training.logits(self.body, np.ascontiguousarray(x, np.float32), self.device)


@dataclass(frozen=True, eq=False)
class Identity:
    """A frozen network that looks at reconstructions, and the pictures it knows people by.

    Attributes:
        hidden: the network.
        gallery: [M, F], its last hidden layer for the records it was trained on.
        classes: int64 [M], whom these show.
    """

    hidden: Hidden
    gallery: NDArray[np.float32]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, task: TrainTarget, bench: Bench) -> "Identity":
        """The network that a finished task holds."""

        def load() -> "Identity":
            dataset, rows = bench.dataset(task.split.data), task.member_rows(bench)
            hidden = Hidden.of(task, bench)
            return cls(hidden, hidden(dataset.x(rows)), dataset.y[rows])

        return bench.keep(("identity", task.key), load)

    def names(self, feature_NF: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the most alike of its own records is of the class y [N]."""
        return images.reidentified(feature_NF, y, self.gallery, self.classes)
