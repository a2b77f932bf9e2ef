from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import entr, softmax
from torch.nn import functional as F

from defenses.confidence_penalty import ConfidencePenalty


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_is_cross_entropy_less_the_weighted_entropy(gamma, num_classes):
    rng = np.random.default_rng(0)
    z, y = rng.normal(scale=5, size=(20, num_classes)), rng.integers(num_classes, size=20)
    c_NC = softmax(z, axis=1)
    slow = np.mean(
        [-np.log(row[label]) - gamma * entr(row).sum() for row, label in zip(c_NC, y, strict=True)]
    )
    fast = ConfidencePenalty(gamma=gamma).loss(torch.tensor(z), torch.tensor(y))
    assert float(fast) == pytest.approx(slow, rel=1e-9)


def test_a_certain_answer_has_a_finite_gradient():
    z = torch.tensor([[1e4, -1e4, 0.0], [200.0, 0.0, -200.0]], requires_grad=True)
    loss = ConfidencePenalty(gamma=1).loss(z, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_zero_is_the_plain_training(make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in ConfidencePenalty(gamma=0).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])
    z, y = torch.linspace(-3, 3, 300).reshape(30, 10).sin(), torch.arange(30) % 10
    assert torch.equal(ConfidencePenalty(gamma=0).loss(z, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_memorised_member_has_the_score_that_is_worth_its_penalty(num_classes, make_world):
    world, gamma = make_world(num_classes), 1.0
    own = np.arange(len(world.members)), world.members.y
    penalised = replace(world, weights=ConfidencePenalty(gamma=gamma).train(world, seed=1))

    # Where the slope of -log p - gamma H is zero, the other classes sharing what is left.
    def slope(p: float) -> float:
        return gamma * np.log(p * (num_classes - 1) / (1 - p)) - 1 / p

    least = brentq(slope, 0.1, 1 - 1e-9)
    assert np.median(world.answer(world.members.x)[own]) > 0.99
    assert np.median(penalised.answer(world.members.x)[own]) == pytest.approx(least, abs=0.05)


def test_a_reward_for_confidence_is_refused():
    with pytest.raises(ValueError, match="gamma"):
        ConfidencePenalty(gamma=-0.1)
