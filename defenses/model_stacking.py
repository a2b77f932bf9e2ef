"""Model stacking: no model sees all members, and none is asked alone."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from defenses._forest import forest_answers, grown
from defenses.base import Defense, Records, Setting

__all__ = ["ModelStacking"]

_BATCH = 1024  # fixed: another size may move the last bits of a logit
_ARRAYS = dict[str, NDArray[Any]]


class ModelStacking(Defense):
    """Two models on a third of the members each, and a third model that judges their answers.

    M1 is the target's network, M2 a random forest (of images: a second network); the logistic
    regression on both answers learns from the last third. Every record is answered through it.

    Source: Salem et al., "ML-Leaks: Model and Data Independent Membership Inference Attacks and
        Defenses on Machine Learning Models", NDSS 2019, section VI-B.
    """

    VERSION: ClassVar[int] = 1

    second: Literal["forest", "network"] | None = Field(
        None, description="M2; None: a network for images, else a forest"
    )
    num_trees: int = Field(100, ge=1, le=10_000, description="of the forest")
    penalty: float = Field(
        1.0, gt=0, description="L2 penalty of the regression, the inverse of scikit-learn's C"
    )
    max_iterations: int = Field(1000, ge=1, description="of the regression's solver")

    def train(self, setting: Setting, *, seed: int) -> dict[str, NDArray[Any]]:
        """The weights of all three: m1.*, m2.* or forest.*, meta.*.

        Raises:
            ValueError: if a third of the members is empty or the last one of a single class.
        """
        first, second, last = self.thirds(setting.members, seed)
        if not len(first) or len(np.unique(last.y)) < 2:
            raise ValueError(
                f"{len(setting.members)} members are too few to stack models on: each third "
                "must have records, and the last one two classes"
            )
        weights = {
            f"m1.{name}": value
            for name, value in setting.train(first, seed=_seed(seed, b"m1")).items()
        }
        is_image = setting.members.x.ndim > 2
        if (self.second or ("network" if is_image else "forest")) == "network":
            trained = setting.train(second, seed=_seed(seed, b"m2"))
            weights |= {f"m2.{name}": value for name, value in trained.items()}
        else:
            rng = np.random.default_rng([seed, *b"stacking.forest"])
            forest = grown(_flat(second.x), second.y, num_trees=self.num_trees, rng=rng)
            weights |= {f"forest.{name}": value for name, value in forest.items()}
        features = _answers(weights, last.x, setting.recipe, setting.num_classes)
        return weights | self._meta(features, last.y, setting.num_classes)

    def thirds(self, members: Records, seed: int) -> tuple[Records, Records, Records]:
        """The members at random in three disjoint parts, of sizes that differ by one at most."""
        order = np.random.default_rng([seed, *b"stacking.thirds"]).permutation(len(members))
        first, second, last = (
            Records(members.x[rows], members.y[rows]) for rows in np.array_split(order, 3)
        )
        return first, second, last

    def confidences(
        self, weights: Mapping[str, NDArray[Any]], x: NDArray[Any], *, architecture: Any
    ) -> NDArray[np.float64]:
        """The stacked answers float64 [N, C] to x [N, ...], rows sum to 1.

        Args:
            weights: what `train` gave.
            x: records.
            architecture: of M1; its `activation` and `tanh_output` are read.
        """
        num_classes = int(weights["meta.num_classes"])
        features = _answers(weights, x, architecture, num_classes)
        # A class that the last third lacks is one the regression cannot tell: it gets nothing.
        released_NC = np.zeros((len(x), num_classes))
        # Column by column of the same matrices for any number of rows: einsum, unlike a product
        # of matrices, gives a row the same bits whatever batch it is in.
        z = np.einsum("nf,cf->nc", features, weights["meta.weight"]) + weights["meta.bias"]
        released_NC[:, weights["meta.classes"]] = softmax(z, axis=1)
        return released_NC

    def _meta(
        self, features: NDArray[np.float64], y: NDArray[np.int64], num_classes: int
    ) -> _ARRAYS:
        regression = LogisticRegression(C=1 / self.penalty, max_iter=self.max_iterations)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            regression.fit(features, y)
        weight, bias = regression.coef_, regression.intercept_
        if len(weight) == 1:  # two classes: the log-odds of the second
            weight, bias = np.vstack([0 * weight, weight]), np.append(0.0, bias)
        return {
            "meta.weight": np.ascontiguousarray(weight, dtype=np.float64),
            "meta.bias": np.asarray(bias, dtype=np.float64),
            "meta.classes": np.asarray(regression.classes_, dtype=np.int64),
            "meta.num_classes": np.array(num_classes),
        }


def _seed(seed: int, purpose: bytes) -> int:
    return int(np.random.default_rng([seed, *b"stacking.", *purpose]).integers(2**62))


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


def _answers(
    weights: Mapping[str, NDArray[Any]], x: NDArray[Any], architecture: Any, num_classes: int
) -> NDArray[np.float64]:
    """What both models answer, side by side: [N, 2 C]."""
    both = [softmax(_logits(weights, "m1.", x, architecture), axis=1)]
    if "forest.root" in weights:
        forest = {
            name.removeprefix("forest."): value
            for name, value in weights.items()
            if name.startswith("forest.")
        }
        both.append(forest_answers(forest, _flat(x), num_classes))
    else:
        both.append(softmax(_logits(weights, "m2.", x, architecture), axis=1))
    return np.concatenate(both, axis=1)


@torch.no_grad()
def _logits(
    weights: Mapping[str, NDArray[Any]], prefix: str, x: NDArray[Any], architecture: Any
) -> NDArray[np.float64]:
    """Logits float64 [N, C], read off the weights: a defense cannot build the network itself.

    Layers are in order of the number in their name. Four-dimensional weights are 3x3 convolutions,
    each with ReLU and 2x2 pooling; the others are linear, with the architecture's activation
    between them. These are all the networks there are.
    """
    names = {name.rpartition(".")[0] for name in weights if name.startswith(prefix)}
    layers = [
        tuple(torch.from_numpy(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        for name in sorted(names, key=lambda name: int(name.removeprefix(prefix)))
    ]
    activation = torch.relu if getattr(architecture, "activation", "tanh") == "relu" else torch.tanh

    def forward(z: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(layers):
            if weight.ndim == 4:
                z = F.max_pool2d(F.relu(F.conv2d(z, weight, bias, padding=1)), 2)
                continue
            z = F.linear(z.flatten(1), weight, bias)
            if i < len(layers) - 1:
                z = activation(z)
        return torch.tanh(z) if getattr(architecture, "tanh_output", False) else z

    starts = range(0, max(len(x), 1), _BATCH)  # of no records too: [0, C]
    parts = [forward(torch.from_numpy(x[start : start + _BATCH])).double() for start in starts]
    z_NC: NDArray[np.float64] = torch.cat(parts).numpy()
    return z_NC
