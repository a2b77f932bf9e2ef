"""MIST: one round against a slow one, who sees whom, and what it does."""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from defenses.base import Records
from defenses.mist import Mist, cross_difference

FEATURES, RATE, MOMENTUM, SIZE = 5, 0.3, 0.9, 7


class Watched(nn.Module):
    """A linear classifier that logs which records it is trained on, and by which copy of it."""

    log: ClassVar[list[tuple[int, tuple[int, ...]]]] = []

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES - 1, num_classes).double()

    def forward(self, x):
        if torch.is_grad_enabled():
            assert self.training
            Watched.log.append((id(self), tuple(x[:, -1].long().tolist())))
        else:
            assert not self.training, "others are asked as they answer"
        return self.linear(x[:, :-1])


def sgd(module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM)


def toy(num: int, num_classes: int, optimizer=None, milestones=()) -> SimpleNamespace:
    """A setting of members alone; their last feature is their number."""
    rng = np.random.default_rng(num)
    x = np.column_stack([rng.normal(size=(num, FEATURES - 1)), np.arange(num)])
    Watched.log = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Watched(num_classes)
    return SimpleNamespace(
        members=Records(x, rng.integers(num_classes, size=num)),
        num_classes=num_classes,
        network=lambda *, seed: module,
        optimizer=optimizer or sgd,
        recipe=SimpleNamespace(
            epochs=4, batch_size=SIZE, learning_rate=RATE, milestones=milestones
        ),
        device="cpu",
    )


def softmax(weight, bias, x) -> np.ndarray:
    p = np.exp(weight @ x + bias)
    return p / p.sum()


def slow_round(weight, bias, members, defense, batches) -> tuple[np.ndarray, np.ndarray]:
    """A round record by record, written from the paper's words; momentum starts with a phase."""
    sizes = [len(part) for part in np.array_split(np.arange(len(members)), defense.num_models)]
    x, batches = members.x[:, :-1], iter(batches)

    def epochs(size, number):
        steps = -(-size // SIZE)
        return [[next(batches) for _ in range(steps)] for _ in range(number)]

    def phase(model, all_epochs, climb):
        speed = [np.zeros_like(weight), np.zeros_like(bias)]
        for batch in (batch for epoch in all_epochs for batch in epoch):
            speed = [MOMENTUM * v for v in speed]
            for i in batch:
                grad_z = climb(i, softmax(*model, x[i]))
                speed[0] += np.outer(grad_z, x[i]) / len(batch)
                speed[1] += grad_z / len(batch)
            model[:] = [value - RATE * v for value, v in zip(model, speed, strict=True)]

    models, parts = [[weight, bias] for _ in sizes], []
    for model, size in zip(models, sizes, strict=True):
        local = epochs(size, defense.local_epochs)
        parts.append(sorted(i for batch in local[0] for i in batch))
        phase(model, local, lambda i, p: p - np.eye(len(p))[members.y[i]])
    assert sorted(i for part in parts for i in part) == list(range(len(members)))
    frozen = [list(model) for model in models]
    for k, (model, size) in enumerate(zip(models, sizes, strict=True)):
        cross = epochs(size, defense.cross_epochs if defense.weight else 0)
        assert all(sorted(i for batch in epoch for i in batch) == parts[k] for epoch in cross)

        def climb(i, p, k=k):
            """Of the mean over the others of sum_c |p_c - q_c|, through the softmax."""
            others = [softmax(*other, x[i]) for j, other in enumerate(frozen) if j != k]
            s = np.mean([np.sign(p - q) for q in others], axis=0)
            return defense.weight * p * (s - np.dot(s, p))

        phase(model, cross, climb)
    assert next(batches, None) is None
    return np.mean([m[0] for m in models], axis=0), np.mean([m[1] for m in models], axis=0)


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_models": 2, "weight": 5.0},
        {"num_models": 5, "cross_epochs": 3},
        {"local_epochs": 2, "weight": 0.1},
        {"weight": 0.0},
    ],
    ids=str,
)
def test_a_round_is_the_slow_one(fields, num_classes):
    setting, defense = toy(32, num_classes), Mist(rounds=1, **fields)
    start = setting.network(seed=0).linear
    weight, bias = start.weight.detach().numpy().copy(), start.bias.detach().numpy().copy()
    trained = defense.train(setting, seed=3)
    batches = [rows for _, rows in Watched.log]
    expected = slow_round(weight, bias, setting.members, defense, batches)
    np.testing.assert_allclose(trained["linear.weight"], expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(trained["linear.bias"], expected[1], rtol=0, atol=1e-12)
    assert np.abs(expected[0] - weight).max() > 0.01


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 2**62))
def test_a_sub_model_sees_its_own_part_in_both_phases_and_nothing_else(num, models, seed):
    setting, defense = toy(num, 3), Mist(num_models=models, rounds=2)
    if num < models:
        with pytest.raises(ValueError, match=f"divides {num} members among {models}"):
            defense.train(setting, seed=seed)
        return
    defense.train(setting, seed=seed)
    half = len(Watched.log) // 2
    for log in (Watched.log[:half], Watched.log[half:]):
        seen: dict[int, list[int]] = {}
        for model, rows in log:
            seen.setdefault(model, []).extend(rows)
        assert len(seen) == models
        assert sorted(i for rows in seen.values() for i in set(rows)) == list(range(num))
        assert all(len(rows) == 2 * len(set(rows)) for rows in seen.values())


def test_parts_are_drawn_anew_each_round():
    defense = Mist(num_models=2, rounds=2, weight=0)
    defense.train(toy(40, 3), seed=0)
    half = len(Watched.log) // 2
    first, second = (
        {i for model, rows in log if model == log[0][0] for i in rows}
        for log in (Watched.log[:half], Watched.log[half:])
    )
    assert 3 < len(first & second) < 17


def test_each_sub_model_starts_afresh_at_the_rate_of_its_round():
    started = []

    def optimizer(module):
        made = sgd(module)
        started.append((made, module.linear.weight.detach().clone()))
        return made

    Mist(num_models=2).train(toy(20, 3, optimizer, milestones=(1, 3)), seed=0)
    rates = [made.param_groups[0]["lr"] / RATE for made, _ in started]
    np.testing.assert_allclose(rates, np.repeat([1, 0.1, 0.1, 0.01], 2))
    for (_, one), (_, other) in zip(started[::2], started[1::2], strict=True):
        assert torch.equal(one, other), "a round's sub-models start from the same weights"
    assert not torch.equal(started[0][1], started[2][1])


def confidences(seed: int, *shape: int) -> torch.Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (4 * z).softmax(dim=-1)


@pytest.mark.parametrize("optimizer", [sgd, lambda m: torch.optim.Adam(m.parameters(), lr=RATE)])
def test_no_weight_is_the_limit_of_a_small_one(optimizer):
    """What drove the first phase must not go on in the second."""
    none, least = (
        Mist(weight=weight, rounds=1).train(toy(40, 3, optimizer), seed=0)
        for weight in (0.0, 1e-30)
    )
    for name, value in none.items():
        np.testing.assert_allclose(least[name], value, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 9), st.sampled_from([1, 2, 10, 530])
)
def test_the_cross_difference_is_a_mean_of_distances(seed, others, rows, classes):
    p, q = confidences(seed, rows, classes), confidences(seed + 1, others, rows, classes)
    slow = np.mean([sum(abs(p[i] - q[j, i]).tolist()) for i in range(rows) for j in range(others)])
    p.requires_grad_(True)
    q.requires_grad_(True)
    found = cross_difference(p, q)
    assert float(found.detach()) == pytest.approx(float(slow), abs=1e-12)
    assert 0 <= float(found.detach()) <= 2
    found.backward()
    assert q.grad is None
    assert p.grad is not None
    assert not cross_difference(p, p.detach().expand(others, rows, classes))


def test_a_larger_weight_tells_members_less_from_others(make_world):
    world = make_world(10)
    gaps, right = [], []
    for weight in (0.0, 1.0, 10.0):
        trained = replace(world, weights=Mist(weight=weight).train(world, seed=1))
        own, other = (
            trained.answer(side.x)[np.arange(len(side)), side.y]
            for side in (world.members, world.reference)
        )
        gaps.append(np.mean(own) - np.mean(other))
        right.append((trained.answer(world.reference.x).argmax(1) == world.reference.y).mean())
    assert gaps[0] > gaps[1] + 0.02
    assert gaps[1] > gaps[2] + 0.02
    assert min(right) > right[0] - 0.05, "the others are still answered as well"


def test_the_reference_is_not_used(make_world):
    world = make_world(5)
    hidden = replace(world, weights=None, reference=None)
    usual = Mist(rounds=3).train(world, seed=2)
    for name, value in Mist(rounds=3).train(hidden, seed=2).items():
        np.testing.assert_array_equal(value, usual[name])


def test_dropout_is_for_training_alone(make_world):
    """It works with it, and does not draw from the caller's generator."""
    world = make_world(5)

    class Dropping(type(world)):
        def network(self, *, seed, **overrides):
            return super().network(seed=seed, dropout=0.5, **overrides)

    dropping = Dropping(world.members, world.reference, world.num_classes)
    state = torch.get_rng_state()
    one, again = (Mist(rounds=3).train(dropping, seed=2)["0.weight"] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, Mist(rounds=3).train(world, seed=2)["0.weight"])


def test_divergence_names_the_round_and_the_remedy():
    setting = toy(20, 3, lambda m: torch.optim.SGD(m.parameters(), lr=float("inf")))
    with pytest.raises(FloatingPointError, match=r"in round 1; lower learning_rate \(now 0.3\)"):
        Mist().train(setting, seed=0)


@pytest.mark.parametrize("fields", [{"num_models": 1}, {"weight": -1}, {"rounds": 0}])
def test_values_out_of_bounds_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Mist(**fields)


def test_says_that_its_numbers_are_not_the_papers():
    assert "unverified_hparams" in Mist.FLAGS
    assert Mist.__doc__.startswith("Experimental")
    for name in ("paper", "sound", "cpu"):
        defense = Mist(**Mist.preset(name, "cifar10", 10))
        assert (defense.num_models, defense.weight) == (3, 1.0)
        assert (defense.local_epochs, defense.cross_epochs) == (1, 1)
