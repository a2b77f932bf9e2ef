from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from defenses.ccl import CCL


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("concave", ["exp", "quadratic"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.05), (0.1, 1.0), (0.0, 2.0)])
def test_is_what_the_paper_says(alpha, beta, concave, num_classes):
    rng = np.random.default_rng(0)
    z, y = rng.normal(scale=5, size=(20, num_classes)), rng.integers(num_classes, size=20)
    z[0, y[0]] += 1000  # certain and right
    total = 0.0
    for row, label in zip(softmax(z, axis=1), y, strict=True):
        p = row[label]
        term = np.exp(p) if concave == "exp" else p + p**2 / 2
        total += alpha * -np.log(p) - (1 - alpha) * term
    defense = CCL(alpha=alpha, beta=beta, concave=concave)
    loss = defense.loss(torch.tensor(z), torch.tensor(y))
    assert float(loss) == pytest.approx(beta * total / len(y), rel=1e-9)


@pytest.mark.parametrize("concave", ["exp", "quadratic"])
def test_all_weight_on_cross_entropy_is_the_plain_training(concave, make_world):
    z = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(64) % 10
    plain = F.cross_entropy(z, y)
    loss = CCL(alpha=1, beta=1, concave=concave).loss(z, y)
    assert torch.equal(loss, plain)
    (slope,), (plain_slope,) = torch.autograd.grad(loss, z), torch.autograd.grad(plain, z)
    assert torch.equal(slope, plain_slope)

    world = make_world(10)
    weights = world.train(world.members, seed=1)
    for name, value in CCL(alpha=1, beta=1, concave=concave).train(world, seed=1).items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize("concave", ["exp", "quadratic"])
def test_pushes_the_surest_the_most(concave):
    # The slope in the record's own cross-entropy: 1 everywhere under plain training.
    logit = torch.linspace(-12, 12, 400, dtype=torch.float64)
    z = torch.stack([logit, torch.zeros_like(logit)], dim=1).requires_grad_()
    y = torch.zeros(len(logit), dtype=torch.long)
    (slope,) = torch.autograd.grad(CCL(alpha=0.5, beta=1, concave=concave).loss(z, y), z)
    (plain,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    push = (slope / plain)[:, 0]
    assert (push.diff() > 0).all()
    assert float(push[0]) == pytest.approx(0.5, abs=1e-4)
    assert float(push[-1]) == pytest.approx(0.5 + 0.5 * (np.e if concave == "exp" else 2), abs=1e-3)


def test_the_quadratic_term_is_the_beginning_of_the_other():
    z = torch.tensor([[-8.0, 0.0], [-10.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0])
    exp, quadratic = (
        float(CCL(alpha=0, beta=1, concave=concave).loss(z, y)) for concave in ("exp", "quadratic")
    )
    assert -exp == pytest.approx(1 - quadratic, abs=1e-9)


def test_members_losses_spread_wider_at_equal_accuracy_on_others(make_world):
    world = make_world(10)
    rows = np.arange(len(world.members))
    objective = {"beta": 0.05, "weight_decay": 5e-4}  # the published one
    spread, right = [], []
    for alpha in (1.0, 0.5):
        weights = CCL(alpha=alpha, **objective).train(world, seed=1)
        answering = replace(world, weights=weights)
        p_N = answering.answer(world.members.x)[rows, world.members.y]
        spread.append(np.log(p_N).var())
        labels = answering.answer(world.reference.x).argmax(axis=1)
        right.append(np.mean(labels == world.reference.y))
    assert right[1] == pytest.approx(right[0], abs=0.05)
    assert spread[1] > 1.5 * spread[0]


def test_presets_hold_the_published_objective():
    for name in ("paper", "sound", "cpu"):
        defense = CCL(**CCL.preset(name, "location30", 30))
        assert (defense.alpha, defense.beta, defense.weight_decay) == (0.5, 0.05, 5e-4)
        assert (defense.epochs == 300) == (name != "cpu")


@pytest.mark.parametrize("fields", [{"alpha": -0.1}, {"alpha": 1.1}, {"beta": 0}])
def test_values_out_of_bounds_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CCL(**fields)
