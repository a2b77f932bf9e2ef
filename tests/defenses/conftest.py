"""A small real world for defenses: an overfitted model, its members, and reference records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from defenses.base import Defense, OutputDefense, Records, Reference

torch.set_num_threads(1)

NUM_FEATURES = 16


class RowNoise:
    """Noise keyed by row, so that a row draws the same in every batch; None: deterministic."""

    def __init__(self, rows: Any, seed: int | None = 0):
        self.rows, self.seed, self.calls = np.atleast_1d(rows), seed, 0

    def _draw(self, shape: tuple[int, ...], kind: str, mean: float) -> NDArray[np.float64]:
        assert shape[0] == len(self.rows)
        self.calls += 1
        if self.seed is None:
            return np.full(shape, mean)
        keys = [[self.seed, self.calls, int(row)] for row in self.rows]
        draws = [getattr(np.random.default_rng(key), kind)(size=shape[1:]) for key in keys]
        return np.reshape(draws, shape)  # of no rows too

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._draw(shape, "normal", 0.0)

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._draw(shape, "uniform", 0.5)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, with the defense fitted around it if it has one."""

    weights: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    defense: Defense | None = None

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        confidence = confidences(self.weights, x)
        if isinstance(self.defense, OutputDefense):
            confidence = self.defense.apply(confidence, self.state, RowNoise(range(len(x))))
        return confidence


@dataclass(frozen=True, eq=False)
class World:
    """A `Setting`. Without weights it is that of a training defense, which has no answers."""

    members: Records
    reference: Reference
    num_classes: int
    weights: Mapping[str, NDArray[Any]] | None = None
    trained: tuple[Model, ...] = ()
    device: str = "cpu"

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        assert self.weights is not None, "a training defense asked for answers"
        return confidences(self.weights, x)

    def train(self, records: Records, *, seed: int, **overrides: Any) -> dict[str, NDArray[Any]]:
        return train(records, self.num_classes, seed=seed, device=self.device, **overrides)

    def network(self, *, seed: int, **overrides: Any) -> nn.Module:
        return network(self.num_classes, seed, **overrides).to(self.device)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr=self.recipe.learning_rate)

    @property
    def recipe(self) -> SimpleNamespace:
        return SimpleNamespace(
            epochs=30, batch_size=64, learning_rate=0.02, weight_decay=0.0, dropout=0.0
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """An `Outline`: members are the first rows, reference records the rest."""

    member_rows: NDArray[np.int64]
    reference_rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_classes: int

    def training(self, **asked: Any) -> dict[str, Any]:
        return asked

    def models(self, rows: Any, *, seed: int, **overrides: Any) -> tuple[dict[str, Any], ...]:
        return tuple({"rows": own, "seed": seed + i} for i, own in enumerate(rows))


def network(num_classes: int, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.Sequential(nn.Tanh(), nn.Dropout(dropout))  # keeps the names of the weights
        return nn.Sequential(nn.Linear(NUM_FEATURES, 96), middle, nn.Linear(96, num_classes))


def train(
    records: Records,
    num_classes: int,
    *,
    seed: int,
    epochs: int = 150,
    weight_decay: float = 0.0,
    learning_rate: float = 0.02,
    dropout: float = 0.0,
    targets: NDArray[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    change: Callable[..., Any] | None = None,
    after_epoch: Callable[..., bool] | None = None,
    device: str = "cpu",
) -> dict[str, NDArray[Any]]:
    """Full-batch training until the members are memorised."""
    model = network(num_classes, seed, dropout).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    x = torch.tensor(records.x).to(device)
    y = torch.tensor(records.y if targets is None else targets).to(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            adam.zero_grad()
            x_B, y_B = (x, y) if change is None else change(x, y, generator)
            z = model(x_B)
            step = nn.functional.cross_entropy(z, y_B) if loss is None else loss(z, y_B, epoch)
            step.backward()
            adam.step()
            if after_epoch is not None and after_epoch(epoch, model):
                break
            model.train()
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


def confidences(weights: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[np.float64]:
    model = network(len(weights["2.bias"]))
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    with torch.no_grad():
        logits = model(torch.tensor(x)).numpy()
    return softmax(logits.astype(np.float64), axis=1)


@cache
def _world(num_classes: int) -> World:
    rng = np.random.default_rng(num_classes)
    num_rows = max(300, 2 * num_classes)
    centres = rng.normal(size=(num_classes, NUM_FEATURES))

    def records() -> Records:
        y = rng.permutation(np.arange(num_rows) % num_classes)
        x = centres[y] + 0.8 * rng.normal(size=(num_rows, NUM_FEATURES))
        # Noisy labels, so that what the model learns of its members is not true of others.
        y = np.where(rng.random(num_rows) < 0.2, rng.integers(num_classes, size=num_rows), y)
        return Records(x.astype(np.float32), y)

    members, reference = records(), records()
    cut = num_rows * 4 // 5
    x, y = reference.x, reference.y
    return World(
        members=members,
        reference=Reference(x, y, Records(x[:cut], y[:cut]), Records(x[cut:], y[cut:])),
        num_classes=num_classes,
        weights=train(members, num_classes, seed=1),
    )


def _prepared(defense: Defense, world: World, seed: int) -> World:
    """The world with everything trained that the defense asks for."""
    if not hasattr(defense, "trainings"):
        return world
    x = np.concatenate([world.members.x, world.reference.x])
    y = np.concatenate([world.members.y, world.reference.y])
    num_members = len(world.members)
    plan = Plan(np.arange(num_members), np.arange(num_members, len(y)), y, world.num_classes)
    trained = []
    for asked in defense.trainings(plan, seed=seed):
        rows, inner = asked.get("rows"), asked.get("defense")
        weights, surroundings = getattr(world, "weights", None), world
        if rows is not None:
            part = Records(x[rows], y[rows])
            weights = train(part, world.num_classes, seed=asked.get("seed") or seed)
            surroundings = replace(world, members=part, weights=weights)
        state = {} if inner is None else _fitted(inner, surroundings, seed)[0]
        trained.append(Model(weights or {}, state, inner))
    return replace(world, trained=tuple(trained))


def _fitted(defense: Defense, world: World, seed: int = 0) -> tuple[dict[str, NDArray[Any]], World]:
    ready = _prepared(defense, world, seed)
    return (defense.fit(ready, seed=seed) if hasattr(defense, "fit") else {}), ready


@pytest.fixture
def make_world() -> Callable[[int], World]:
    """The world with C classes: its model is overfitted, its members' answers saturated."""
    return _world


@pytest.fixture
def fitted() -> Callable[..., tuple[dict[str, NDArray[Any]], World]]:
    """Fit a defense as the plan would: what it asks for first, then itself."""
    return _fitted


@pytest.fixture
def prepared() -> Callable[[Defense, World, int], World]:
    return _prepared


@pytest.fixture
def make_outline() -> Callable[[int, str], Plan]:
    """The plan of a dataset with others beside D1 and D2, whose labels are `alike` or `odd`."""

    def make(num_classes: int, others: str) -> Plan:
        y = np.random.default_rng(0).integers(num_classes, size=900)
        if others == "odd":
            y[600:] = num_classes - 1
        shuffled = np.random.default_rng(1).permutation(600)
        return Plan(shuffled[:300], shuffled[300:], y, num_classes)

    return make


@pytest.fixture
def make_noise() -> type[RowNoise]:
    return RowNoise
