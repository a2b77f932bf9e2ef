"""The classifiers, and how each is trained (methods.md section 3.1)."""

from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import count
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

__all__ = ["Architecture", "build", "default_architecture", "make", "names", "recipe", "summary"]


Width = Annotated[int, Field(ge=1, le=10**9)]


class Architecture(BaseModel):
    """A network and its training recipe. The recipe's fields may be set in an experiment file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    VERSION: ClassVar[int] = 1

    name: str = Field(description="as experiment files and tables call it")
    network: Literal["mlp", "cnn"] = Field(description="the family of networks")
    hidden: tuple[Width, ...] = Field(max_length=100, description="widths of the hidden layers")
    activation: Literal["tanh", "relu"] = Field("tanh", description="after every hidden layer")
    tanh_output: bool = Field(False, description="Tanh also after the last layer")
    channels: tuple[Width, ...] = Field(
        (), max_length=100, description="widths of the convolutions (cnn)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="after every hidden linear layer")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="SGD has momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, description="constant unless milestones are given")
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="epochs where the rate is divided by 10"
    )
    epochs: int = Field(100, ge=1, le=10_000, description="passes over the training records")
    batch_size: int = Field(64, ge=1, le=10**9, description="records a step")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty")
    min_loss: float = Field(
        0.0, ge=0, description="stop once an epoch's mean training loss is below this"
    )


def _mlp(*hidden: int, **recipe: Any) -> dict[str, Any]:
    return {"network": "mlp", "hidden": hidden, **recipe}


def _cnn(*channels: int, **recipe: Any) -> dict[str, Any]:
    return {"network": "cnn", "channels": channels, **recipe}


_PURCHASE = {"batch_size": 512, "epochs": 100, "min_loss": 1e-3}
_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "location_mlp3": ("446-256-128-30 Tanh, PURIFIER's Location target", _mlp(256, 128)),
    "purchase_mlp4": (
        "600-1024-512-256-100 Tanh, PURIFIER's Purchase target",
        _mlp(1024, 512, 256, **_PURCHASE),
    ),
    "purchase_mlp4_tanhout": (
        "purchase_mlp4 with Tanh also after the last layer, AEPPT's Purchase target",
        _mlp(1024, 512, 256, tanh_output=True, learning_rate=1e-4, batch_size=512),
    ),
    "purchase_mlp5": (
        "600-1024-512-256-128-100 Tanh, as in NSH, SELENA, HAMP",
        _mlp(1024, 512, 256, 128, batch_size=512, epochs=30),
    ),
    "texas_mlp4": (
        "d-1024-512-256-100 Tanh, PURIFIER's Texas target as printed",
        _mlp(1024, 512, 256, batch_size=128, epochs=50),
    ),
    "texas_mlp5": (
        "d-1024-512-256-128-100 Tanh, PURIFIER's Texas target as in public code",
        _mlp(1024, 512, 256, 128, batch_size=128, epochs=50),
    ),
    "mlp_s": ("d-256-128-C Tanh, for two cores", _mlp(256, 128, epochs=40)),
    "cnn_s": (
        "two 3x3 convolutions (16, 32) with pooling and a hidden layer of 64, for two cores",
        _cnn(16, 32, hidden=(64,), activation="relu", epochs=40),
    ),
}

_DEFAULTS = {
    "location30": {"paper": "location_mlp3", "sound": "location_mlp3", "cpu": "location_mlp3"},
    "retail100": {"paper": "purchase_mlp4", "sound": "purchase_mlp4", "cpu": "mlp_s"},
    "purchase100": {"paper": "purchase_mlp4", "sound": "purchase_mlp4", "cpu": "mlp_s"},
    "clinc100": {"paper": "purchase_mlp4", "sound": "purchase_mlp4", "cpu": "mlp_s"},
    "hospital100": {"paper": "texas_mlp4", "sound": "texas_mlp4", "cpu": "mlp_s"},
    "texas100": {"paper": "texas_mlp4", "sound": "texas_mlp4", "cpu": "mlp_s"},
}


def names() -> tuple[str, ...]:
    """Every architecture by name."""
    return tuple(_KNOWN)


def summary(name: str) -> str:
    """One line about an architecture."""
    return _KNOWN[name][0]


def make(name: str, **recipe: Any) -> Architecture:
    """The architecture `name` with some fields of its recipe replaced.

    Raises:
        ValueError: for an unknown name (with the nearest one), or a bad field.
    """
    if name not in _KNOWN:
        near = get_close_matches(name, _KNOWN, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"'{name}' is not an architecture.{hint} Known: {', '.join(_KNOWN)}")
    return Architecture.model_validate({"name": name, **_KNOWN[name][1], **recipe})


def recipe(architecture: Architecture) -> dict[str, Any]:
    """The fields in which an architecture differs from what its name stands for, as JSON values."""
    fields = architecture.model_dump(mode="json", exclude={"name"})
    known = architecture.name in _KNOWN
    usual = make(architecture.name).model_dump(mode="json") if known else {}
    return {
        name: value for name, value in fields.items() if name not in usual or usual[name] != value
    }


def default_architecture(dataset: str, kind: str, preset: str) -> str:
    """The name of the architecture a dataset is attacked with unless the experiment names one.

    Args:
        dataset: name of the dataset.
        kind: "binary", "continuous" or "image".
        preset: "paper", "sound" or "cpu".
    """
    if dataset in _DEFAULTS:
        return _DEFAULTS[dataset][preset]
    return "cnn_s" if kind == "image" else "mlp_s"


def build(architecture: Architecture, shape: Sequence[int], num_classes: int) -> nn.Module:
    """A freshly initialised network from records of `shape` to `num_classes` logits.

    Initialisation draws from torch's global generator; callers fork and seed it.

    Raises:
        ValueError: if the network cannot take records of this shape.
    """
    activation = nn.Tanh if architecture.activation == "tanh" else nn.ReLU
    layers: list[nn.Module] = []
    if architecture.network == "cnn":
        width, size = _convolutions(architecture, shape, layers)
        features = width * size
    else:
        layers.append(nn.Flatten())
        features = int(np.prod(shape))
    for hidden in architecture.hidden:
        layers += [nn.Linear(features, hidden), activation()]
        if architecture.dropout:
            layers.append(nn.Dropout(architecture.dropout))
        features = hidden
    layers.append(nn.Linear(features, num_classes))
    if architecture.tanh_output:
        layers.append(nn.Tanh())
    # Dropout is not counted, so that weights are called the same with it and without: a model
    # trained with dropout is asked as the architecture it was to be.
    number = count()
    return nn.Sequential(
        OrderedDict(
            (f"dropout{i}" if isinstance(layer, nn.Dropout) else str(next(number)), layer)
            for i, layer in enumerate(layers)
        )
    )


def _convolutions(
    architecture: Architecture, shape: Sequence[int], layers: list[nn.Module]
) -> tuple[int, int]:
    if len(shape) != 3:
        raise ValueError(
            f"a cnn needs images [channels, height, width], these records are {list(shape)}; "
            "choose an mlp (such as mlp_s)"
        )
    width, height, breadth = shape
    for channels in architecture.channels:
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        width, height, breadth = channels, height // 2, breadth // 2
    if min(height, breadth) < 1:
        raise ValueError(f"images of {list(shape)} are too small for {architecture.channels}")
    layers.append(nn.Flatten())
    return width, height * breadth


def with_recipe(architecture: Architecture, **overrides: Any) -> Architecture:
    """A copy with some fields replaced, validated.

    Raises:
        ValueError: for an unknown or bad field.
    """
    values = {name: getattr(architecture, name) for name in Architecture.model_fields}
    return Architecture.model_validate({**values, **overrides})


def count_parameters(module: torch.nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in module.parameters())
