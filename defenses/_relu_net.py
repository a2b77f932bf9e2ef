"""A trained ReLU network with one output, for moving many inputs at once along its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gradients", "ReluNet"]


@dataclass(frozen=True, eq=False)
class ReluNet:
    """Linear layers with ReLUs between them, in float64.

    In float32 an answer could hang on its batch: what moves along a gradient stops or turns at
    the first step across a boundary, and a rounding error can make it one step sooner.

    Attributes:
        weights: [in, out] of each layer; the last has one output.
        transposed: the same as [out, in], contiguous.
        biases: [out] of each layer, or [N, out], one for each row.
    """

    weights: tuple[NDArray[np.float64], ...]
    transposed: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> "ReluNet":
        """From weights [out, in], as PyTorch keeps them, and biases [out]."""
        transposed = [np.ascontiguousarray(weight, dtype=np.float64) for weight, _ in layers]
        return cls(
            weights=tuple(np.ascontiguousarray(weight.T) for weight in transposed),
            transposed=tuple(transposed),
            biases=tuple(np.asarray(bias, dtype=np.float64) for _, bias in layers),
        )

    @property
    def num_inputs(self) -> int:
        """The width of the first layer's input."""
        return len(self.weights[0])

    def forward(
        self, x_NC: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """The output [N], and the activations [N, out] of each hidden layer."""
        hidden, kept = x_NC, []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = hidden @ weight
            hidden += bias
            np.maximum(hidden, 0, out=hidden)
            kept.append(hidden)
        return hidden @ self.weights[-1][:, 0] + self.biases[-1][..., 0], kept

    def gradient(self, on: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
        """The gradient [N, in] of the output, for the units [N, out] of each layer that are on."""
        grad = on[-1] * self.transposed[-1]
        for weight, units in zip(self.transposed[-2:0:-1], on[-2::-1], strict=True):
            grad = grad @ weight
            grad *= units
        return grad @ self.transposed[0]


class Gradients:
    """The gradients of rows that take small steps.

    The output is linear for as long as the same units are on, so a row's gradient is computed
    again only once a unit has switched. That is exact, and of small steps few switch one.
    """

    def __init__(self, net: ReluNet, num_rows: int) -> None:
        self._net = net
        # With nothing on the gradient is 0: gradients and units agree from the start.
        self._on = [np.zeros((num_rows, w.shape[1]), dtype=bool) for w in net.weights[:-1]]
        self._grad = np.zeros((num_rows, net.num_inputs))

    def __len__(self) -> int:
        return len(self._grad)

    def at(self, kept: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The gradients [N, in] at these activations of `forward`; not to be modified."""
        switched_N = np.zeros(len(self), dtype=bool)
        for on, hidden in zip(self._on, kept, strict=True):
            now = hidden > 0
            switched_N |= (now != on).any(axis=1)
            on[:] = now
        rows = np.flatnonzero(switched_N)
        if len(rows):
            self._grad[rows] = self._net.gradient([on[rows] for on in self._on])
        return self._grad
