"""What is true of the attacker who perturbs answers as AEPPT does."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from attacks._membership_net import Recipe, Seen, ThreeBranch, trained
from attacks.adversarial_training import AdversarialTraining, _substitute, perturbed
from attacks.mim import Mim

QUICK = {"width": 0.1, "epochs": 30, "iterations": 20}


def substitute(num_classes: int, seed: int = 0) -> ThreeBranch:
    """One that decides both ways about `confidences`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = ThreeBranch(num_classes, (16,), (16,), (8,)).double()
        net.joint[-1].weight *= 50
        c = torch.tensor(confidences(400, num_classes))
        net.joint[-1].bias -= net(c, c.argmax(dim=1)).median()
    return net


def confidences(num: int, num_classes: int) -> Any:
    return softmax(np.random.default_rng(0).normal(scale=2, size=(num, num_classes)), axis=1)


def one_record(net: Any, c: Any, uniform: Any, step: float) -> Any:
    """Algorithm 1 as printed: one record, ascending the cross entropy of the decision."""
    label, a = torch.tensor([c.argmax()]), torch.tensor(c[None])
    decision = (net(a, label) >= 0).double()
    for u in uniform:
        a = a.detach().requires_grad_()
        torch.nn.functional.binary_cross_entropy_with_logits(net(a, label), decision).backward()
        a = (a + step * u * a.grad.sign()).clamp(0, 1)
    return a.detach().numpy()[0]


@pytest.mark.parametrize("num_classes", [2, 30])
def test_is_algorithm_1_record_by_record(num_classes: int) -> None:
    net, c = substitute(num_classes), confidences(600, num_classes)
    uniform = np.random.default_rng(1).random((len(c), 12))
    found = perturbed(c, uniform, net, 5e-3, "cpu")
    # Across the boundary of what is computed at once.
    for i in range(500, 525):
        want = one_record(net, c[i], uniform[i], 5e-3)
        np.testing.assert_allclose(found[i], want, rtol=0, atol=1e-12)
    label = torch.tensor(c.argmax(axis=1))
    before, after = (net(torch.tensor(a), label).detach().numpy() for a in (c, found))
    assert 0.2 < (before >= 0).mean() < 0.8
    assert np.where(before >= 0, after < before, after > before).all()
    assert len(perturbed(c[:0], uniform[:0], net, 5e-3, "cpu")) == 0


def test_the_substitute_is_the_published_one() -> None:
    net = _substitute(100)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim == 2]
    assert shapes == [(256, 100), (256, 100), (64, 512), (1, 64)]


def test_what_is_left_clean_is_left_alone(small_world: Any) -> None:
    """With all answers clean it is MIM0 whatever the steps, and with no step as well."""
    quick = {**QUICK, "epochs": 5}
    all_clean, _ = small_world.run(AdversarialTraining(clean_share=1.0, step=0.1, **quick))
    no_step, _ = small_world.run(AdversarialTraining(step=0.0, post="none", **quick))
    moved, _ = small_world.run(AdversarialTraining(step=0.1, **quick))
    half, _ = small_world.run(AdversarialTraining(step=0.1, clean_share=0.5, **quick))
    assert all_clean.tobytes() == no_step.tobytes()
    assert len({s.tobytes() for s in (all_clean, moved, half)}) == 3


@pytest.mark.parametrize(("post", "total"), [("renorm", True), ("none", False)])
def test_rows_sum_to_one_where_the_defense_says_so(
    post: Any, total: bool, small_world: Any
) -> None:
    attack = AdversarialTraining(post=post, step=0.05)
    num_classes = small_world.num_classes
    known = small_world.known("fit")
    c = small_world.service()(known.x).astype(np.float32)
    part = Seen(c, known.y, known.is_member)
    found = attack._perturbed(part, substitute(num_classes), "cpu", np.random.default_rng(0))
    sums = found.feature.sum(axis=1)
    assert (np.abs(sums - 1) < 1e-5).all() == total
    np.testing.assert_array_equal(part.feature, c)


def test_it_sees_through_the_defense_that_deceives_mim0(world: Any, accuracy: Any) -> None:
    """The defender has a substitute of its own, trained on other records than the attacker's."""
    parts = {}
    for name in ("eval", "cal"):
        rows = world.parts[name]
        c = world.service()(world.x[rows]).astype(np.float32)
        parts[name] = Seen(c, world.y[rows], world.is_member[rows])
    net = trained(
        lambda: _substitute(world.num_classes),
        parts["eval"],
        parts["cal"],
        Recipe("test", 1e-3, 30, 64, 30, "cpu"),
        np.random.default_rng(3),
    )

    def defend(c: Any) -> Any:
        return perturbed(c, np.full((len(c), 50), 0.5), net, 8e-3, "cpu")

    rows = world.parts["eval"]
    found = {}
    for attack in (
        Mim(**{k: QUICK[k] for k in ("width", "epochs")}),
        AdversarialTraining(post="none", step=8e-3, iterations=50, width=0.1, epochs=30),
    ):
        known = world.knowledge(attack, 0)  # clean answers
        scores = attack.score(
            world.service("score", defend), known, world.x[rows], world.y[rows], seed=0
        )
        found[type(attack)] = accuracy(scores > 0, world.is_member[rows])
    assert found[AdversarialTraining] > found[Mim] + 0.1
