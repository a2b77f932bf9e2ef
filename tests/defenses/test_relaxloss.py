from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn import functional as F

from defenses.relaxloss import RelaxLoss


def slow(z: np.ndarray, y: np.ndarray, epoch: int, defense: RelaxLoss) -> tuple[float, np.ndarray]:
    """The loss of a batch and its gradient in the logits, row by row from the paper's words."""
    num_rows, num_classes = z.shape
    losses, flat_losses, climbs, flat_climbs = [], [], [], []
    for row, label in zip(softmax(z, axis=1), y, strict=True):
        held = min(row[label], defense.upper)
        target = [held if k == label else (1 - held) / (num_classes - 1) for k in range(len(row))]
        losses.append(-np.log(row[label]))
        climbs.append(row - np.eye(num_classes)[label])
        counts = defense.flattening == "all" or row.argmax() != label
        flat_losses.append(-np.dot(target, np.log(row)) * counts)
        flat_climbs.append((row - target) * counts)
    mean, climb = np.mean(losses), np.array(climbs) / num_rows
    if epoch % 2 == 0:
        return abs(mean - defense.alpha), climb * np.sign(mean - defense.alpha)
    if mean > defense.alpha:
        return mean, climb
    flat, flat_climb = np.mean(flat_losses), np.array(flat_climbs) / num_rows
    if defense.flattening == "all":
        return flat, flat_climb
    return flat - mean, flat_climb - climb


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
@pytest.mark.parametrize("alpha", [0.01, 30.0])
@pytest.mark.parametrize(("upper", "flattening"), [(0.3, "all"), (1.0, "all"), (0.7, "wrong")])
def test_is_what_the_paper_says(alpha, upper, flattening, epoch, num_classes):
    rng = np.random.default_rng(epoch)
    z, y = rng.normal(scale=2, size=(12, num_classes)), rng.integers(num_classes, size=12)
    z[np.arange(6), y[:6]] += 6  # half of them right, some above `upper`
    defense = RelaxLoss(alpha=alpha, upper=upper, flattening=flattening)
    value, climb = slow(z, y, epoch, defense)
    logits = torch.tensor(z, requires_grad=True)
    loss = defense.loss(logits, torch.tensor(y), epoch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-9)
    # Exact only while no gradient passes through the flattened labels.
    np.testing.assert_allclose(logits.grad.numpy(), climb, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1e-12])
def test_no_level_is_the_plain_training(alpha, make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in RelaxLoss(alpha=alpha).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])
    z, y = torch.linspace(-3, 3, 300).reshape(30, 10).sin(), torch.arange(30) % 10
    for epoch in (0, 1):
        loss = RelaxLoss(alpha=0).loss(z, y, epoch)
        assert torch.equal(loss, F.cross_entropy(z, y))


def member_losses(world, module) -> np.ndarray:
    with torch.no_grad():
        z = module(torch.tensor(world.members.x)).double()
        return F.cross_entropy(z, torch.tensor(world.members.y), reduction="none").numpy()


@pytest.mark.parametrize(
    ("num_classes", "fields"),
    [
        (2, {"alpha": 0.25, "upper": 1.0}),
        (10, {"alpha": 0.5, "upper": 0.3}),
        (10, {"alpha": 0.8, "upper": 0.3}),
        (10, {"alpha": 0.8, "upper": 1.0, "flattening": "wrong"}),
    ],
)
def test_the_loss_stays_at_its_level_and_spreads(num_classes, fields, make_world):
    world = make_world(num_classes)
    means, variances = [], []

    def watch(epoch, module):
        losses_N = member_losses(world, module)
        means.append(losses_N.mean())
        variances.append(losses_N.var())
        return False

    def train(records, **options):
        return world.train(records, learning_rate=0.005, epochs=200, after_epoch=watch, **options)

    setting = SimpleNamespace(members=world.members, train=train)
    RelaxLoss(**fields).train(setting, seed=1)
    relaxed, spread = np.mean(means[100:]), np.mean(variances[100:])
    assert relaxed == pytest.approx(fields["alpha"], rel=0.2)
    means.clear()
    variances.clear()
    train(world.members, seed=1)
    assert np.mean(means[100:]) < 0.5 * relaxed, "the plain training must go on falling"
    assert np.mean(variances[100:]) < spread


def test_members_are_less_certain_than_when_trained_plainly(make_world):
    world = make_world(10)
    own = np.arange(len(world.members)), world.members.y
    relaxed = replace(world, weights=RelaxLoss().train(world, seed=1))
    plain, soft = (np.median(one.answer(world.members.x)[own]) for one in (world, relaxed))
    assert soft < plain - 0.1


def test_presets_are_the_published_values():
    for dataset, alpha, upper, epochs in [
        ("purchase100", 0.8, 0.3, 120),
        ("retail100", 0.8, 0.3, 120),
        ("hospital100", 2.5, 0.1, 120),
        ("cifar10", 1.0, 1.0, 300),
        ("cifar100", 3.0, 1.0, 300),
    ]:
        paper = RelaxLoss(**RelaxLoss.preset("paper", dataset, 100))
        assert (paper.alpha, paper.upper, paper.epochs) == (alpha, upper, epochs)
        assert (paper.flattening == "wrong") == dataset.startswith("cifar")
        cpu = RelaxLoss(**RelaxLoss.preset("cpu", dataset, 100))
        assert (cpu.alpha, cpu.upper) == (alpha, upper)
        assert cpu.recipe() == {}


@pytest.mark.parametrize("num_classes", [2, 10, 530])
def test_an_unpublished_level_is_better_than_a_guess(num_classes):
    fields = RelaxLoss.preset("sound", "mine", num_classes)
    assert 0 < fields["alpha"] < np.log(num_classes) / 2
    assert fields["upper"] > 1 / num_classes


def test_trains_by_its_own_recipe():
    asked = {}
    setting = SimpleNamespace(members=None, train=lambda records, **options: asked.update(options))
    RelaxLoss(**RelaxLoss.preset("paper", "purchase100", 100)).train(setting, seed=5)
    assert callable(asked.pop("loss"))
    assert asked == {
        "seed": 5,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "milestones": (50, 100),
        "weight_decay": 1e-4,
        "batch_size": 128,
        "epochs": 120,
    }


@pytest.mark.parametrize("fields", [{"alpha": -1}, {"upper": 0}, {"upper": 1.1}, {"epochs": 0}])
def test_values_out_of_bounds_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        RelaxLoss(**fields)
