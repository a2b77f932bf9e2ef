from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch.nn import functional as F

from defenses._mixup import mixed
from defenses.mixup import Mixup


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def proportions(x_BB: torch.Tensor) -> tuple[float, np.ndarray]:
    """What was done to a batch of unit vectors: lambda, and who each was mixed with."""
    x_BB = x_BB.numpy()
    own = x_BB.diagonal()
    other = np.where(own == 1, np.arange(len(x_BB)), (x_BB - np.diag(own)).argmax(axis=1))
    return float(own.min()), other


@pytest.mark.parametrize("num_classes", [2, 10, 530])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_its_loss_is_that_of_both_labels_in_their_proportion(alpha, num_classes):
    batch = 40
    y = torch.randint(num_classes, (batch,), generator=draws(1))
    x, soft = mixed(torch.eye(batch), y, draws(), alpha=alpha, num_classes=num_classes)
    share, other = proportions(x)
    assert sorted(other) == list(range(batch))
    assert soft.shape == (batch, num_classes)
    z = torch.randn(batch, num_classes, generator=draws(2))
    two = share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[other])
    assert float(F.cross_entropy(z, soft)) == pytest.approx(float(two), rel=1e-5)


def test_records_and_labels_are_mixed_alike():
    y = torch.arange(8)
    x, soft = mixed(torch.eye(8), y, draws(3), alpha=1.0, num_classes=8)
    torch.testing.assert_close(x, soft, rtol=0, atol=0)


def test_images_and_soft_labels_are_mixed_too():
    x, y = torch.rand(12, 3, 4, 5), torch.arange(12) % 5
    soft = F.one_hot(y, 5).float()
    before = x.clone(), soft.clone()
    made, target = mixed(x, soft, draws(4), alpha=1.0, num_classes=5)
    unit, same = mixed(torch.eye(12), y, draws(4), alpha=1.0, num_classes=5)
    torch.testing.assert_close(target, same, rtol=0, atol=0)
    share, other = proportions(unit)
    torch.testing.assert_close(made, share * x + (1 - share) * x[other])
    assert torch.equal(x, before[0])
    assert torch.equal(soft, before[1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_proportion_is_drawn_from_its_beta(alpha):
    generator = draws(5)
    shares = []
    while len(shares) < 1500:
        x, _ = mixed(torch.eye(2), torch.arange(2), generator, alpha=alpha, num_classes=2)
        if x[0, 0] < 1:  # of two records, each is as often mixed with itself as with the other
            shares.append(float(x[0, 0]))
    # A float32 next to 1 is 1 and left out above, which alpha 0.2 does to 3 % of the draws.
    low, high = 1e-6, 1 - 1e-6
    kept = [share for share in shares if low < share < high]
    law = beta(alpha, alpha)
    between = law.cdf(high) - law.cdf(low)
    assert kstest(kept, lambda v: (law.cdf(v) - law.cdf(low)) / between).pvalue > 0.001


def test_the_draws_are_those_of_the_generator():
    x, y = torch.rand(20, 3), torch.arange(20) % 4

    def run(seed: int) -> list[torch.Tensor]:
        generator = draws(seed)
        return [mixed(x, y, generator, alpha=1.0, num_classes=4)[0] for _ in range(3)]

    first = run(0)
    assert all(torch.equal(a, b) for a, b in zip(first, run(0), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], run(1)[0])


def test_trains_on_mixed_batches_only(make_world):
    world = make_world(10)

    def change(x, targets, generator):
        return mixed(x, targets, generator, alpha=0.2, num_classes=10)

    slow = world.train(world.members, seed=1, change=change)
    weights = Mixup(alpha=0.2).train(world, seed=1)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, slow[name])


def test_zero_is_the_plain_training(make_world):
    world = make_world(10)
    plain = world.train(world.members, seed=1)
    for name, value in Mixup(alpha=0).train(world, seed=1).items():
        np.testing.assert_array_equal(value, plain[name])


@pytest.mark.parametrize("num_classes", [2, 10])
def test_members_never_shown_as_they_are_are_not_answered_with_certainty(num_classes, make_world):
    world = make_world(num_classes)
    own = np.arange(len(world.members)), world.members.y
    mixing = replace(world, weights=Mixup().train(world, seed=1))
    doubts = [1 - np.mean(setting.answer(world.members.x)[own]) for setting in (world, mixing)]
    assert doubts[1] > 10 * doubts[0]


@pytest.mark.parametrize("alpha", [-1, 1e6])
def test_a_proportion_out_of_bounds_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Mixup(alpha=alpha)
