from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from defenses.base import Records
from defenses.temperature import Temperature

temperatures = st.floats(0.01, 100)


def release(temperature: float, confidence: np.ndarray) -> np.ndarray:
    state = {
        "temperature": np.array(temperature),
        "num_classes": np.array(confidence.shape[1]),
    }
    return Temperature().apply(confidence, state, None)


@st.composite
def distributions(draw) -> np.ndarray:
    """Random, tied, nearly tied, saturated and one-hot rows."""
    num_classes = draw(st.sampled_from([2, 10, 530]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0, 50.0]))), size=4)
    tied = rng.integers(1, 3, size=(4, num_classes)).astype(float)
    near = np.nextafter(1.9, np.where(rng.random((4, num_classes)) < 0.5, 1, 2))
    one_hot = np.eye(num_classes)[rng.integers(num_classes, size=4)]
    c = np.concatenate([random, tied, near, one_hot, np.where(one_hot, 1.0, 1e-300)])
    return c / c.sum(axis=1, keepdims=True)


def cross_entropy(confidence: np.ndarray, y: np.ndarray) -> float:
    return -float(np.mean([np.log(row[label]) for row, label in zip(confidence, y, strict=True)]))


def test_is_the_softmax_of_the_divided_logits():
    z = np.random.default_rng(0).normal(scale=80, size=(200, 10)).clip(-170, 170)
    for temperature in (0.3, 1.0, 5.0, 20.0):
        np.testing.assert_allclose(
            release(temperature, softmax(z, axis=1)),
            softmax(z / temperature, axis=1),
            rtol=1e-11,
            atol=1e-300,
        )


@settings(max_examples=60, deadline=None)
@given(distributions())
def test_one_is_the_identity(confidence):
    np.testing.assert_allclose(release(1.0, confidence), confidence, rtol=1e-12, atol=1e-300)


@settings(max_examples=60, deadline=None)
@given(distributions(), temperatures)
def test_order_and_label_are_kept(confidence, temperature):
    released = release(temperature, confidence)
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(released.argmax(axis=1), confidence.argmax(axis=1))
    for before, after in zip(confidence, released, strict=True):
        rising = after[np.argsort(before, kind="stable")]
        assert (rising[:-1] <= rising[1:] * (1 + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(distributions(), temperatures, st.floats(1.01, 10))
def test_hotter_is_less_sure(confidence, temperature, factor):
    colder, hotter = release(temperature, confidence), release(factor * temperature, confidence)
    assert (hotter.max(axis=1) <= colder.max(axis=1) + 1e-12).all()


def test_calibration_beats_every_other_temperature(make_world):
    world = make_world(10)
    val = world.reference.val
    confidence = world.answer(val.x)
    found = float(Temperature().fit(world, seed=0)["temperature"])
    least = cross_entropy(release(found, confidence), val.y)
    for other in np.geomspace(0.02, 100, 400):
        assert least <= cross_entropy(release(other, confidence), val.y) + 1e-9
    assert found > 1.5, "an overfitted model is too sure of itself"


def test_calibration_finds_a_planted_temperature(make_world):
    rng = np.random.default_rng(1)
    z = rng.normal(scale=2, size=(20_000, 5))
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((len(z), 1))).sum(axis=1).clip(max=4)

    class Overconfident:
        num_classes = 5
        reference = replace(make_world(2).reference, val=Records(3 * z, y))

        def answer(self, x):
            return softmax(x, axis=1)

    found = float(Temperature().fit(Overconfident(), seed=0)["temperature"])
    assert found == pytest.approx(3, rel=0.05)


def test_answers_without_a_mistake_or_a_doubt_are_left_alone(make_world):
    y = np.arange(10)

    class Certain:
        num_classes = 10
        reference = replace(make_world(2).reference, val=Records(np.eye(10), y))

        def answer(self, x):
            return x

    assert Temperature().fit(Certain(), seed=0)["temperature"] == 1


def test_a_given_temperature_is_used_as_it_is(make_world):
    unanswering = replace(make_world(10), weights=None)
    assert Temperature(temperature=20).fit(unanswering, seed=0)["temperature"] == 20
    with pytest.raises(ValueError, match="temperature"):
        Temperature(temperature=0.001)


def test_no_records_to_calibrate_on_is_an_error(make_world):
    world = make_world(10)
    empty = replace(world.reference, val=Records(world.reference.x[:0], world.reference.y[:0]))
    with pytest.raises(ValueError, match="no validation records"):
        Temperature().fit(replace(world, reference=empty), seed=0)
