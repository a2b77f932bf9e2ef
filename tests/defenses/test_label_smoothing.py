from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F

from defenses.label_smoothing import LabelSmoothing


def labels(y: np.ndarray, num_classes: int, alpha: float) -> np.ndarray:
    return (1 - alpha) * np.eye(num_classes)[y] + alpha / num_classes


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("alpha", [0.05, 0.6])
def test_is_the_cross_entropy_of_labels_spread_over_all_classes(alpha, num_classes):
    rng = np.random.default_rng(0)
    z, y = rng.normal(scale=5, size=(20, num_classes)), rng.integers(num_classes, size=20)
    slow = -np.mean((labels(y, num_classes, alpha) * log_softmax(z, axis=1)).sum(axis=1))
    fast = LabelSmoothing(alpha=alpha).loss(torch.tensor(z), torch.tensor(y))
    assert float(fast) == pytest.approx(slow, rel=1e-12)


def test_is_least_at_the_smoothed_label():
    y = np.arange(10)
    z = torch.tensor(np.log(labels(y, 10, 0.3))).requires_grad_()
    LabelSmoothing(alpha=0.3).loss(z, torch.tensor(y)).backward()
    assert z.grad.abs().max() < 1e-12


def test_zero_is_the_plain_training(make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in LabelSmoothing(alpha=0).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])
    z, y = torch.linspace(-3, 3, 300).reshape(30, 10).sin(), torch.arange(30) % 10
    assert torch.equal(LabelSmoothing(alpha=0).loss(z, y), F.cross_entropy(z, y))


@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_memorised_member_has_the_smoothed_label(num_classes, make_world):
    world, alpha = make_world(num_classes), 0.3
    smooth = replace(world, weights=LabelSmoothing(alpha=alpha).train(world, seed=1))
    own = np.arange(len(world.members)), world.members.y
    held = 1 - alpha + alpha / num_classes
    # Plainly trained, the same model is all but certain.
    assert np.median(world.answer(world.members.x)[own]) > 0.99
    assert np.median(smooth.answer(world.members.x)[own]) == pytest.approx(held, abs=0.05)


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_labels_that_say_nothing_are_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        LabelSmoothing(alpha=alpha)
