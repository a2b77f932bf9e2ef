import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from defenses._memguard_search import log_odds, noised
from defenses._relu_net import ReluNet
from defenses.base import Records
from defenses.memguard import MemGuard, probability
from tasks.noise import KeyedNoise, noise_keys

PUBLISHED = {
    "label_weight": 10.0,
    "distortion_weight": 0.1,
    "largest_distortion_weight": 1e5,
    "step": 0.1,
    "iterations": 300,
}
SHORT = PUBLISHED | {"iterations": 40}


def layers(num_classes, seed=0, offset=0.0):
    """A classifier that decides both ways about `confidences` if `offset` is 0."""
    rng = np.random.default_rng(seed)
    sizes = [num_classes, 24, 16, 8, 1]
    pairs = itertools.pairwise(sizes)
    made = [(2 * rng.normal(size=(o, i)) / np.sqrt(i), 0.1 * rng.normal(size=o)) for i, o in pairs]
    odds = log_odds(ReluNet.of(made), confidences(200, num_classes, rng))
    made[-1] = made[-1][0], made[-1][1] - np.median(odds) + offset
    return made


def confidences(num, num_classes, rng):
    return softmax(rng.normal(scale=2, size=(num, num_classes)), axis=1)


def one_record(layers, c, fields):
    """Phase I of one record, step by step, with automatic differentiation."""
    weights = [(torch.tensor(weight), torch.tensor(bias)) for weight, bias in layers]

    def h(scores):
        hidden = scores.sort().values
        for weight, bias in weights[:-1]:
            hidden = (weight @ hidden + bias).relu()
        return (weights[-1][0] @ hidden + weights[-1][1])[0]

    z = torch.tensor(c.clip(min=1e-30)).log()
    s, label = z.softmax(0), int(c.argmax())
    others = torch.arange(len(c)) != label
    before = h(s)
    best = torch.tensor(c)
    if abs(torch.sigmoid(before) - 0.5) <= 1e-5:
        return best.numpy()
    c3 = fields["distortion_weight"]
    while c3 <= fields["largest_distortion_weight"] * 1.5:
        e, success = torch.zeros_like(z), False
        for _ in range(fields["iterations"]):
            e = e.detach().requires_grad_()
            v = z + e
            loss = h(v.softmax(0)).abs()
            loss = loss + fields["label_weight"] * (v[others].max() - v[label]).relu()
            loss = loss + c3 * (v.softmax(0) - s).abs().sum()
            loss.backward()
            length = e.grad.norm()
            e = (e - fields["step"] * e.grad / length).detach() if length > 0 else e.detach()
            p = (z + e).softmax(0)
            if p.argmax() == label and torch.sign(h(p)) != torch.sign(before):
                success = True
                break
        if not success:
            break
        best, c3 = p, 10 * c3
    return best.numpy()


@pytest.mark.parametrize(("num_classes", "iterations"), [(2, 40), (12, 40), (12, 3)])
def test_phase_one_is_the_search_record_by_record(num_classes, iterations):
    c = confidences(12, num_classes, np.random.default_rng(1))
    made, fields = layers(num_classes), PUBLISHED | {"iterations": iterations}
    found, before, after = noised(c, ReluNet.of(made), **fields)
    expected = np.array([one_record(made, row, fields) for row in c])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert 0 < (before > 0).sum() < len(c), "the classifier decides one way only"
    moved = (found != c).any(axis=1)
    assert moved.any()
    np.testing.assert_allclose(after, log_odds(ReluNet.of(made), found), atol=1e-9)


def test_what_is_found_lies_beyond_the_boundary_and_keeps_the_label():
    c = confidences(300, 12, np.random.default_rng(2))
    found, before, after = noised(c, ReluNet.of(layers(12)), **PUBLISHED)
    moved = (found != c).any(axis=1)
    assert moved.mean() > 0.9
    assert (np.sign(after[moved]) == -np.sign(before[moved])).all()
    np.testing.assert_array_equal(after[~moved], before[~moved])
    np.testing.assert_array_equal(found.argmax(axis=1), c.argmax(axis=1))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_more_rows_than_are_searched_together_change_nothing():
    c = confidences(300, 12, np.random.default_rng(3))
    classifier = ReluNet.of(layers(12))
    together = noised(c, classifier, **SHORT)[0]
    for rows in (np.arange(3), np.arange(299, 100, -1), np.array([257])):
        np.testing.assert_allclose(
            noised(c[rows], classifier, **SHORT)[0], together[rows], atol=1e-9
        )


def test_classes_are_alike():
    # The classifier sees sorted scores, so other names of the classes change the names only.
    rng = np.random.default_rng(4)
    c = confidences(60, 12, rng)
    order = rng.permutation(12)
    classifier = ReluNet.of(layers(12))
    renamed = noised(c[:, order], classifier, **SHORT)[0]
    np.testing.assert_allclose(renamed, noised(c, classifier, **SHORT)[0][:, order], atol=1e-9)


def test_a_heavier_distortion_finds_less_of_it():
    c = confidences(200, 12, np.random.default_rng(5))
    classifier = ReluNet.of(layers(12))
    l1 = [
        np.abs(noised(c, classifier, **SHORT | {"largest_distortion_weight": last})[0] - c).sum()
        for last in (0.1, 1e5)
    ]
    assert l1[1] < 0.95 * l1[0]


def test_the_undecided_are_left_alone():
    made = layers(12)
    made[-1] = np.zeros_like(made[-1][0]), np.array([3e-5])
    c = confidences(5, 12, np.random.default_rng(6))
    np.testing.assert_array_equal(noised(c, ReluNet.of(made), **SHORT)[0], c)
    made[-1] = made[-1][0], np.array([1.0])  # decided, but nothing to follow
    np.testing.assert_array_equal(noised(c, ReluNet.of(made), **SHORT)[0], c)


def test_probability_solves_the_budget():
    rng = np.random.default_rng(7)
    before, after = rng.normal(scale=3, size=(2, 200))
    distortion = rng.uniform(0, 2, 200)
    distortion[:5] = 0
    for epsilon in (0.0, 0.1, 0.7, 5.0):
        found = probability(before, after, distortion, epsilon)
        assert ((found >= 0) & (found <= 1)).all()
        assert (found * distortion <= epsilon + 1e-12).all()
        grid = np.linspace(0, 1, 2001)
        for i in range(200):
            far = [abs(1 / (1 + np.exp(-odds[i])) - 0.5) for odds in (after, before)]
            cost = grid * far[0] + (1 - grid) * far[1]
            cost[grid * distortion[i] > epsilon] = np.inf
            best = grid[np.argmin(cost)]
            assert best <= found[i] + 1e-12
            assert found[i] - best <= 1 / 2000 + 1e-9
        toward = np.abs(after) < np.abs(before)
        assert (found[~toward] == 0).all()
        spend = np.minimum(1, epsilon / distortion[5:])
        np.testing.assert_allclose(found[5:][toward[5:]], spend[toward[5:]], rtol=1e-12)


@st.composite
def distributions(draw):
    """Random, saturated, one-hot and (exactly or nearly) tied rows."""
    num_classes = draw(st.sampled_from([2, 10, 100]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tied = rng.integers(1, 3, size=(2, num_classes)).astype(float)
    near = np.nextafter(1.9, np.where(rng.random((2, num_classes)) < 0.5, 1, 2))
    one_hot = np.eye(num_classes)[rng.integers(num_classes, size=2)]
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0]))), size=2)
    c = np.concatenate([random, tied, near, one_hot, np.where(one_hot, 1.0, 1e-300)])
    return c / c.sum(axis=1, keepdims=True)


def state_of(made):
    names = [f"classifier.{2 * i}" for i in range(len(made))]
    return {
        f"{name}.{part}": np.asarray(value, dtype=np.float32)
        for name, layer in zip(names, made, strict=True)
        for part, value in zip(("weight", "bias"), layer, strict=True)
    }


@settings(max_examples=25, deadline=None)
@given(distributions(), st.sampled_from([-2.0, 0.0, 2.0]), st.sampled_from([0.05, 1.0]))
def test_the_label_never_changes(c, offset, epsilon):
    defense = MemGuard(epsilon=epsilon, iterations=20)
    before = c.copy()
    state = state_of(layers(c.shape[1], offset=offset))
    released = defense.apply(c, state, KeyedNoise(np.ones((len(c), 2), np.uint64), "fresh"))
    np.testing.assert_array_equal(released.argmax(axis=1), c.argmax(axis=1))
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(c, before)


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_the_expected_distortion_is_within_budget(epsilon):
    c = confidences(8, 12, np.random.default_rng(8))
    state = state_of(layers(12))
    num_draws = 1500
    defense = MemGuard(epsilon=epsilon, iterations=20)
    always = MemGuard(epsilon=2.0, iterations=20).apply(c, state, Coin(0.0))
    d = np.abs(always - c).sum(axis=1)
    rows = np.repeat(np.arange(8), num_draws)
    rng = np.random.default_rng(9)
    released = defense.apply(c[rows], state, Coin(rng.random(len(rows))))
    # Either the true answer or the noisy one, never a mixture.
    noisy = (released != c[rows]).any(axis=1)
    np.testing.assert_allclose(released[noisy], always[rows][noisy], atol=1e-9)
    share = noisy.reshape(8, num_draws).mean(axis=1)
    expected = np.where(d > 0, np.minimum(1, epsilon / d.clip(min=1e-300)), 0)
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / np.sqrt(num_draws))
    l1 = np.abs(released - c[rows]).sum(axis=1).reshape(8, num_draws).mean(axis=1)
    assert (l1 <= epsilon + 4 * d / 2 / np.sqrt(num_draws)).all()
    assert (d > epsilon).any(), "every row is within the budget anyway; nothing is tested"


class Coin:
    """Uniform numbers given by hand."""

    def __init__(self, value):
        self.value = value

    def uniform(self, shape):
        return np.broadcast_to(np.reshape(self.value, (-1, 1)), shape)


def test_epsilon_0_is_the_identity(make_world, fitted, make_noise):
    defense = MemGuard(epsilon=0, epochs=2)
    state, world = fitted(defense, make_world(10))
    c = world.answer(world.members.x[:50])
    np.testing.assert_array_equal(defense.apply(c, state, make_noise(range(50))), c)


def test_repetition_tells_nothing_under_per_input():
    c = np.repeat(confidences(1, 12, np.random.default_rng(10)), 60, axis=0)
    state = state_of(layers(12))
    content = np.zeros((60, 1), dtype=np.uint8)
    d = np.abs(MemGuard(epsilon=2).apply(c[:1], state, Coin(0.0)) - c[:1]).sum()
    defense = MemGuard(epsilon=d / 2)
    once = defense.apply(c, state, KeyedNoise(noise_keys(b"s", content, None), "per_input"))
    assert (once == once[0]).all()
    keys = noise_keys(b"s", content, np.arange(60))
    fresh = defense.apply(c, state, KeyedNoise(keys, "fresh"))
    assert len(np.unique(fresh.round(9), axis=0)) == 2


def test_the_classifier_tells_members_from_others(make_world, fitted):
    # The published rate is for thousands of records, not for 300.
    defense = MemGuard(epochs=200, learning_rate=0.1)
    state, world = fitted(defense, make_world(10))
    assert defense.diagnose(world, state, seed=0)["classifier_accuracy"] > 0.65


def test_published_values():
    paper = MemGuard(**MemGuard.preset("paper", "location30", 30))
    assert (paper.epsilon, paper.epochs, paper.learning_rate, paper.batch_size) == (
        1,
        400,
        1e-3,
        64,
    )
    assert (paper.label_weight, paper.step, paper.iterations) == (10, 0.1, 300)
    assert (paper.distortion_weight, paper.largest_distortion_weight) == (0.1, 1e5)


def test_no_validation_records_is_an_error(make_world):
    world = make_world(10)
    empty = replace(world.reference, val=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="enlarge the split"):
        MemGuard().fit(replace(world, reference=empty), seed=0)
