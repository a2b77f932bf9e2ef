"""AEPPT's and MemGuard's answers: vectors a second, one thread, medians of interleaved rounds.

AEPPT is measured against the time of its own matrix products alone (100 steps, forward and back,
in the same precision and batches), which it may undercut: gradients are computed again only where
a unit has switched. Both are measured against a loop over records and steps with automatic
differentiation. The classifiers are trained, so that as many units switch as in an experiment.
"""

import itertools
import time
from statistics import median

import numpy as np
import torch
from scipy.special import softmax

from defenses import _aeppt_steps
from defenses._aeppt_fit import SUBSTITUTE, Answers, Recipe, trained
from defenses._aeppt_steps import Substitute, finished, perturbed
from defenses._memguard_search import noised
from defenses._mlp import weights_of
from defenses._relu_net import ReluNet
from defenses.memguard import MemGuard
from tasks.worker import prepare

ROUNDS = 5
STEPS, CLASSES = 100, 100
AEPPT_STEP = 2e-5
SEARCH = {
    name: getattr(MemGuard(), name)
    for name in (
        "label_weight",
        "distortion_weight",
        "largest_distortion_weight",
        "step",
        "iterations",
    )
}


def answers(num, rng):
    """Answers as of an overfitted model: a sure half, and one that is less so."""
    z = rng.normal(size=(2, num, CLASSES))
    z[:, np.arange(num), rng.integers(CLASSES, size=num)] += np.array([[9.0], [5.0]])
    return softmax(z, axis=2)


def labelled(c):
    return Answers(c, c.argmax(axis=1))


def substitute(rng):
    members, others = (labelled(c) for c in answers(2000, rng))
    judged_on = tuple(labelled(c) for c in answers(500, rng))
    recipe = Recipe(epochs=20, learning_rate=1e-3, batch_size=512, device="cpu")
    return trained(SUBSTITUTE, (members, others), judged_on, recipe, seed=0)


def times(ways, rounds):
    """Median seconds of each, measured in turn so that a neighbour slows all alike."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(taken[1:] or taken) for name, taken in seconds.items()}


def aeppt_loop(net, c, uniform):
    released = []
    for row, draws in zip(c, uniform, strict=True):
        label = torch.tensor([row.argmax()])
        a = last = torch.tensor(row[None])
        decision = (net(a, label) >= 0).double()
        for u in draws:
            a = a.detach().requires_grad_()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(a, label), decision)
            (slope,) = torch.autograd.grad(loss, a)
            a = (a + AEPPT_STEP * u * slope.sign()).clamp(0, 1)
            last = a if a.argmax() == label else last
        released.append((last / last.sum()).detach().numpy()[0])
    return np.array(released)


def products(net, rows):
    """The matrix products of one answer for each row, and nothing else."""
    (first, second, last), (back, back_second, _) = net.weights, net.transposed
    for start in range(0, len(rows), _aeppt_steps._ROWS_AT_ONCE):
        a = rows[start : start + _aeppt_steps._ROWS_AT_ONCE]
        for _ in range(STEPS):
            joined = a @ first @ second
            _ = joined @ last
            _ = joined @ back_second @ back


def test_aeppt(benchmark, keep):
    prepare()
    rng = np.random.default_rng(0)
    net = substitute(rng)
    fast, slow = Substitute.of(weights_of(net)), net.double()
    num, sample, rounds = (64, 2, 0) if benchmark.disabled else (10_000, 10, ROUNDS)
    c = np.concatenate(answers(num // 2, rng))[rng.permutation(num)]
    uniform = rng.random((num, STEPS))

    def whole():
        moved = perturbed(c, uniform, fast, AEPPT_STEP, guard="keep_argmax")
        return finished(moved, c.argmax(axis=1), "renorm", "keep_argmax")

    few, draws = c[:sample], uniform[:sample]
    ways = {
        "answer": whole,
        "products": lambda: products(fast.net, c),
        "loop": lambda: aeppt_loop(slow, few, draws),
    }
    typical = times(ways, rounds)
    released = benchmark.pedantic(whole, rounds=1)
    np.testing.assert_allclose(aeppt_loop(slow, few, draws), released[:sample], atol=1e-9)
    speed, limit = num / typical["answer"], num / typical["products"]
    loop = sample / typical["loop"]
    row = {"vectors/s": speed, "limit": limit, "of limit": speed / limit}
    keep("perturbation", {"aeppt": row | {"loop": loop, "times loop": speed / loop}})


def memguard_loop(net, c):
    found = []
    for row in c:
        z, label = torch.tensor(row.clip(min=1e-30)).log(), int(row.argmax())
        s, others = z.softmax(0), torch.arange(len(row)) != label
        before = torch.sign(net(s.sort().values)).item()
        best, c3 = torch.tensor(row), SEARCH["distortion_weight"]
        while c3 <= 1.5 * SEARCH["largest_distortion_weight"]:
            e, p = torch.zeros_like(z), None
            for _ in range(SEARCH["iterations"]):
                e = e.detach().requires_grad_()
                v = z + e
                scores = v.softmax(0)
                loss = net(scores.sort().values).abs()[0] + c3 * (scores - s).abs().sum()
                loss = loss + SEARCH["label_weight"] * (v[others].max() - v[label]).relu()
                (slope,) = torch.autograd.grad(loss, e)
                e = (e - SEARCH["step"] * slope / slope.norm()).detach()
                p = (z + e).softmax(0)
                if p.argmax() == label and torch.sign(net(p.sort().values)).item() != before:
                    break
            else:
                break
            best, c3 = p, 10 * c3
        found.append(best.detach().numpy())
    return np.array(found)


def classifier(rng):
    """MemGuard's network after a training of its own kind, for PyTorch and as arrays."""
    members, others = (np.sort(c, axis=1) for c in answers(2000, rng))
    sizes = (CLASSES, 256, 128, 64, 1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
    parts = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1]
    net = torch.nn.Sequential(*parts).double()
    x = torch.tensor(np.concatenate([members, others]))
    y = (torch.arange(len(x)) < len(members)).double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net, ReluNet.of([(p.weight.detach().numpy(), p.bias.detach().numpy()) for p in layers])


def test_memguard(benchmark, keep):
    prepare()
    rng = np.random.default_rng(0)
    slow, fast = classifier(rng)
    num, sample, rounds = (16, 1, 0) if benchmark.disabled else (1000, 12, 3)
    c = np.concatenate(answers(num // 2, rng))[rng.permutation(num)]
    few = c[:sample]
    typical = times(
        {"answer": lambda: noised(c, fast, **SEARCH), "loop": lambda: memguard_loop(slow, few)},
        rounds,
    )
    found, before, after = benchmark.pedantic(lambda: noised(c, fast, **SEARCH), rounds=1)
    np.testing.assert_allclose(memguard_loop(slow, few), found[:sample], atol=1e-9)
    speed, loop = num / typical["answer"], sample / typical["loop"]
    crossed = float(np.mean(np.sign(before) != np.sign(after)))
    row = {"vectors/s": speed, "loop": loop, "times loop": speed / loop, "crossed": crossed}
    keep("perturbation", {"memguard": row})
