"""HAMP: its soft labels, its loss, and answers of which only the order is the record's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, spearmanr

from defenses.base import Records
from defenses.hamp import Hamp, soft_label


@given(st.floats(0.01, 0.99), st.sampled_from([2, 3, 10, 30, 100, 530]))
def test_soft_labels_are_as_sure_as_they_may_be(share, num_classes):
    label, other = soft_label(share, num_classes)
    row = [label] + [other] * (num_classes - 1)
    assert sum(row) == pytest.approx(1)
    assert label > other
    assert entropy(row) >= share * np.log(num_classes) - 1e-12
    surer = label + 0.01
    if surer < 1:
        before = [surer] + [(1 - surer) / (num_classes - 1)] * (num_classes - 1)
        assert entropy(before) < share * np.log(num_classes)


def test_the_loss_is_the_divergence_less_the_entropy():
    rng = np.random.default_rng(0)
    z = rng.normal(scale=3, size=(12, 10))
    soft = rng.dirichlet(np.full(10, 0.3), size=12)
    answers = [np.exp(row) / np.exp(row).sum() for row in z]
    divergence = np.mean([entropy(p, q) for p, q in zip(soft, answers, strict=True)])
    unsure = np.mean([entropy(row) for row in answers])
    for reduction, scale in (("batch", 1), ("element", 10)):
        defense = Hamp(entropy_weight=0.3, reduction=reduction)
        found = float(defense.loss(torch.tensor(z), torch.tensor(soft), 0))
        assert found == pytest.approx(divergence / scale - 0.3 * unsure, rel=1e-9)


def test_members_are_trained_on_soft_labels_alone(make_world):
    world = make_world(10)
    asked = []

    class Watching(type(world)):
        def train(self, records, **options):
            asked.append((records, options))
            return super().train(records, **options)

    Hamp(entropy_share=0.6).train(Watching(world.members, world.reference, 10), seed=1)
    ((records, options),) = asked
    assert records is world.members
    label, other = soft_label(0.6, 10)
    for row, y in zip(options["targets"], world.members.y, strict=True):
        expected = np.full(10, other)
        expected[y] = label
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_members_are_answered_with_more_entropy_than_plainly(make_world):
    world = make_world(10)
    soft = replace(world, weights=Hamp(entropy_share=0.8).train(world, seed=1))
    plain, unsure = (entropy(one.answer(world.members.x), axis=1).mean() for one in (world, soft))
    assert unsure > plain + 0.3 * np.log(10)


@st.composite
def answers(draw) -> np.ndarray:
    num_classes = draw(st.sampled_from([2, 10, 530]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0]))), size=4)
    tied = rng.integers(1, 3, size=(4, num_classes)).astype(float)
    return np.concatenate([random, tied / tied.sum(axis=1, keepdims=True)])


def random_state(seed: int, num_classes: int) -> dict[str, np.ndarray]:
    scores = np.random.default_rng(seed).dirichlet(np.ones(num_classes), size=7)
    return {"scores": -np.sort(-scores, axis=1)}


class Draws:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def uniform(self, shape):
        return self.rng.random(shape)


@settings(max_examples=60, deadline=None)
@given(answers(), st.integers(0, 2**31))
def test_order_and_label_are_kept_and_values_are_a_random_inputs(confidence, seed):
    num_classes = confidence.shape[1]
    state = random_state(seed, num_classes)
    released = Hamp().apply(confidence, state, Draws(seed))
    np.testing.assert_array_equal(released.argmax(axis=1), confidence.argmax(axis=1))
    drawn = (np.random.default_rng(seed).random((len(released), 1))[:, 0] * 7).astype(int)
    for before, after, row in zip(confidence, released, drawn, strict=True):
        np.testing.assert_array_equal(np.sort(after)[::-1], state["scores"][row])
        # Strictly larger stays larger; of equals, the first becomes the largest.
        assert (np.diff(after[np.lexsort((np.arange(num_classes), -before))]) <= 0).all()
        if len(set(before)) == num_classes:
            assert spearmanr(before, after).statistic == pytest.approx(1)


def test_a_random_input_that_ties_does_not_change_the_label():
    confidence = np.array([[0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    released = Hamp().apply(confidence, {"scores": np.array([[0.4, 0.4, 0.2]])}, Draws(0))
    np.testing.assert_array_equal(released.argmax(axis=1), [2, 1])
    np.testing.assert_allclose(np.sort(released, axis=1), [[0.2, 0.4, 0.4]] * 2)


def test_scores_are_the_models_answers_to_random_inputs(make_world):
    world = make_world(10)
    asked = []

    class Watching(type(world)):
        def answer(self, x):
            asked.append(x)
            return super().answer(x)

    watching = Watching(world.members, world.reference, 10, world.weights)
    state = Hamp(num_random=50).fit(watching, seed=5)
    (x,) = asked
    assert x.shape == (50, *world.members.x.shape[1:])
    expected = sorted((-np.sort(-row)).tolist() for row in world.answer(x))
    assert sorted(state["scores"].tolist()) == expected
    assert (np.diff(state["scores"], axis=1) <= 0).all()
    assert (np.diff(state["scores"][:, 0]) >= 0).all()


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (np.array([[0, 1, 0], [1, 1, 0]]), "bits"),
        (np.full((3, 1, 4, 4), 0.5), "unit"),
        (np.array([[-3, 100, 5], [3, 200, 5]]), "range"),
    ],
)
def test_random_inputs_are_of_the_members_kind(members, kind):
    asked = []

    class Setting:
        num_classes = 2
        members = None

        def answer(self, x):
            asked.append(x)
            return np.full((len(x), 2), 0.5)

    setting = Setting()
    setting.members = Records(members.astype(np.float32), np.zeros(len(members), dtype=np.int64))
    Hamp(num_random=4000).fit(setting, seed=0)
    (x,) = asked
    assert x.dtype == np.float32
    if kind == "bits":
        assert set(np.unique(x)) == {0, 1}
        np.testing.assert_allclose(x.mean(axis=0), 0.5, atol=0.05)
    else:
        low, high = (0, 1) if kind == "unit" else (members.min(axis=0), members.max(axis=0))
        assert (x >= low).all()
        assert (x <= high).all()
        np.testing.assert_allclose(x.mean(axis=0), (np.array(low) + high) / 2, rtol=0.2, atol=0.1)


def test_repeating_a_query_averages_to_a_prototype_of_the_order(make_world, fitted, make_noise):
    world = make_world(10)
    state, _ = fitted(Hamp(), world, 3)
    # Two records of one order are one to whoever asks often enough.
    c = np.array(
        [[0.9, 0.04, 0.03, 0.02, 0.01, 0, 0, 0, 0, 0], [0.3, 0.2, 0.15, 0.1, 0.1] + 5 * [0.03]]
    )
    means = [
        Hamp().apply(np.tile(row, (4000, 1)), state, make_noise(range(4000), seed)).mean(axis=0)
        for seed, row in enumerate(c)
    ]
    np.testing.assert_allclose(means[0], means[1], atol=0.02)


def test_presets_are_the_published_values():
    for dataset, share, weight, rate in [
        ("purchase100", 0.8, 0.01, 0.5),
        ("hospital100", 0.6, 0.01, 0.5),
        ("cifar100", 0.5, 0.005, 1.0),
        ("cifar10", 0.95, 0.001, 0.5),
        ("location30", 0.5, 0.001, 0.5),
    ]:
        paper = Hamp(**Hamp.preset("paper", dataset, 100))
        assert (paper.entropy_share, paper.entropy_weight) == (share, weight)
        assert paper.reduction == "element"
        assert paper.learning_rate / (1 - 0.9) == pytest.approx(rate / (1 - 0.99))
        cpu = Hamp(**Hamp.preset("cpu", dataset, 100))
        assert (cpu.reduction, cpu.recipe()) == ("batch", {})
    assert Hamp.NOISE["paper"] == "fresh"
    assert Hamp.NOISE["sound"] == "per_input"
