from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defenses.base import Records, Reference
from defenses.prototype import Prototype


@dataclass(frozen=True)
class Answers:
    """A setting whose x are the answers themselves."""

    reference: Reference
    num_classes: int

    def answer(self, x):
        return x


def setting(confidence: np.ndarray) -> Answers:
    y = np.zeros(len(confidence), dtype=np.int64)
    part = Records(confidence, y)
    return Answers(Reference(confidence, y, part, part), confidence.shape[1])


def test_is_the_mean_by_predicted_label(make_world, fitted):
    world = make_world(10)
    state, _ = fitted(Prototype(), world)
    answers = world.answer(world.reference.x)
    for label in range(10):
        rows = [row for row in answers if np.argmax(row) == label]
        np.testing.assert_allclose(state["prototype"][label], sum(rows) / len(rows), atol=1e-12)


near_ties = st.sampled_from([1.0, 2.0, np.nextafter(2.0, 3), np.nextafter(2.0, 1), 7.0, 1e-9])


@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=near_ties),
    arrays(np.float64, (5, 4), elements=near_ties),
)
def test_label_is_kept_even_where_never_predicted_on_reference(reference, asked):
    reference = reference / reference.sum(axis=1, keepdims=True)
    asked = asked / asked.sum(axis=1, keepdims=True)
    state = Prototype().fit(setting(reference), seed=0)
    released = Prototype().apply(asked, state, None)
    np.testing.assert_array_equal(released.argmax(axis=1), asked.argmax(axis=1))
    np.testing.assert_allclose(state["prototype"].sum(axis=1), 1, atol=1e-12)


def test_rounding_of_the_mean_does_not_move_the_label():
    a = np.array([0.34, 0.47, 0.49])
    reference = np.stack([a, np.nextafter(a, 1), 1 - 2 * a], axis=1)
    assert (reference.argmax(axis=1) == 1).all()
    assert reference.mean(axis=0).argmax() == 0  # each row is sure, their mean in float64 is not
    state = Prototype().fit(setting(reference), seed=0)
    assert Prototype().apply(reference, state, None).argmax(axis=1).tolist() == [1, 1, 1]


def test_says_nothing_beyond_the_label(make_world, fitted):
    world = make_world(10)
    state, _ = fitted(Prototype(), world)
    confidence = world.answer(np.concatenate([world.members.x, world.reference.x]))
    released = Prototype().apply(confidence, state, None)
    assert len(np.unique(released, axis=0)) == len(np.unique(confidence.argmax(axis=1)))
