from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.base import Records
from defenses.random_noise import RandomNoise


class Drawn:
    """A `Noise` of given normals."""

    def __init__(self, normal: np.ndarray):
        self._normal = normal

    def normal(self, shape):
        assert shape == self._normal.shape
        return self._normal


def release(sigma: float, confidence: np.ndarray, normal: np.ndarray) -> np.ndarray:
    state = {"sigma": np.array(sigma), "num_classes": np.array(confidence.shape[1])}
    return RandomNoise().apply(confidence, state, Drawn(normal))


def slow_release(row: list[float], noise: list[float]) -> list[float]:
    label = row.index(max(row))
    left = [max(0.0, c + e) for c, e in zip(row, noise, strict=True)]
    if sum(left) == 0:
        left[label] = 1.0
    left = [value / sum(left) for value in left]
    top = left.index(max(left))
    left[label], left[top] = left[top], left[label]
    return left


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray]:
    """Random, tied and saturated rows, with noise that is random, none, or clips everything."""
    num_classes = draw(st.sampled_from([2, 10, 530]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0, 50.0]))), size=6)
    tied = rng.integers(1, 3, size=(6, num_classes)).astype(float)
    saturated = np.where(np.eye(num_classes)[rng.integers(num_classes, size=6)], 1.0, 1e-14)
    c = np.concatenate([random, tied, saturated])
    normal = rng.normal(size=c.shape)
    normal[::3], normal[1::6] = 0, -1e6
    return c / c.sum(axis=1, keepdims=True), normal


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.0, 1e-6, 0.05, 1.0, 30.0]))
def test_is_a_distribution_with_the_same_label(case, sigma):
    confidence, normal = case
    released = release(sigma, confidence, normal)
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    assert (released >= 0).all()
    np.testing.assert_array_equal(released.argmax(axis=1), confidence.argmax(axis=1))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.0, 1e-6, 0.05, 1.0]))
def test_is_clipped_renormalised_and_exchanged(case, sigma):
    confidence, normal = case
    for row, noise, answer in zip(
        confidence, sigma * normal, release(sigma, confidence, normal), strict=True
    ):
        expected = slow_release(row.tolist(), noise.tolist())
        np.testing.assert_allclose(answer, expected, rtol=1e-12, atol=1e-15)


def test_where_nothing_is_left_the_label_is():
    confidence = np.array([[0.2, 0.5, 0.3]])
    assert release(1.0, confidence, np.full((1, 3), -2.0)).tolist() == [[0.0, 1.0, 0.0]]


def test_an_earlier_class_that_noise_lifts_to_a_tie_does_not_take_the_label():
    released = release(1.0, np.array([[0.3, 0.4, 0.3]]), np.array([[0.1, 0.0, 0.0]]))
    assert released.argmax() == 1
    assert released[0, 0] == pytest.approx(released[0, 1], rel=1e-15)


def test_the_deterministic_policy_is_the_identity(make_world, fitted, make_noise):
    world = make_world(10)
    state, _ = fitted(RandomNoise(), world)
    confidence = world.answer(world.members.x)
    released = RandomNoise().apply(confidence, state, make_noise(range(len(confidence)), None))
    np.testing.assert_allclose(released, confidence, rtol=1e-12)


@pytest.mark.parametrize(("num_classes", "l1"), [(2, 0.2), (10, 0.05), (10, 0.4), (530, 0.4)])
def test_sigma_gives_the_distortion_asked_for(make_world, num_classes, l1):
    world = make_world(num_classes)
    confidence = world.answer(world.reference.val.x)
    state = RandomNoise(l1=l1).fit(world, seed=0)
    rng = np.random.default_rng(99)
    measured = [
        np.abs(release(state["sigma"], confidence, rng.normal(size=confidence.shape)) - confidence)
        .sum(axis=1)
        .mean()
        for _ in range(max(20, 4000 // num_classes))
    ]
    assert np.mean(measured) == pytest.approx(l1, rel=0.02)


def test_a_distortion_out_of_reach_is_an_error(make_world):
    with pytest.raises(ValueError, match=r"l1 is 1\.5.*at most about 0\."):
        RandomNoise(l1=1.5).fit(make_world(2), seed=0)


def test_a_given_sigma_is_used_as_it_is(make_world):
    unanswering = replace(make_world(10), weights=None)
    assert RandomNoise(sigma=0.3).fit(unanswering, seed=0)["sigma"] == 0.3
    with pytest.raises(ValueError, match="sigma"):
        RandomNoise(sigma=-0.1)


def test_no_records_to_choose_sigma_on_is_an_error(make_world):
    world = make_world(10)
    empty = replace(world.reference, val=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="no validation records"):
        RandomNoise().fit(replace(world, reference=empty), seed=0)


def test_fresh_answers_average_out_and_those_of_one_input_do_not(make_world, make_noise):
    world = make_world(10)
    state = RandomNoise().fit(world, seed=0)
    confidence = world.answer(world.reference.val.x)
    rows = range(len(confidence))

    def spread(num_repeats: int, seed_of) -> float:
        means = [
            np.mean(
                [
                    RandomNoise().apply(confidence, state, make_noise(rows, seed_of(group, i)))
                    for i in range(num_repeats)
                ],
                axis=0,
            )
            for group in range(8)
        ]
        return float(np.sqrt(np.var(means, axis=0).mean()))

    once, often = (spread(n, lambda group, i: 1000 * group + i) for n in (1, 16))
    assert often == pytest.approx(once / 4, rel=0.15)
    assert spread(4, lambda group, i: 7) < 1e-15
