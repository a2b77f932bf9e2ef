"""What is true of mode subtraction."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from attacks.mim import Mim
from attacks.mode_subtract import ModeSubtract, without_mode
from defenses._aeppt_fit import SUBSTITUTE
from defenses._aeppt_steps import Substitute, perturbed
from defenses._mlp import TwoBranch, initialised, weights_of

QUICK = {"width": 0.1, "epochs": 30}
DEFAULT = {"resolution": 1e-6, "least_count": 2}


def distance(first: Any, second: Any) -> Any:
    return np.abs(first - second).sum(axis=1)


@pytest.mark.parametrize("num_classes", [20, 100])
def test_restores_what_aeppt_moved_of_nearly_one_hot_answers(num_classes: int) -> None:
    """methods.md 6.12-f: the L1 distance from the clean answer is less than half."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(400, num_classes))
    logits[np.arange(400), rng.integers(num_classes, size=400)] += 25.0
    clean = softmax(logits, axis=1)
    assert clean.max(axis=1).min() > 0.999
    substitute = Substitute.of(
        weights_of(initialised(lambda: TwoBranch(num_classes, *SUBSTITUTE), 1))
    )
    released = perturbed(clean, rng.random((400, 50)), substitute, 9e-4)
    assert np.median(distance(released, clean)) > 0.1
    restored = without_mode(released, **DEFAULT)
    assert (distance(restored, clean) < 0.5 * distance(released, clean)).mean() > 0.99
    # Renormalising hides the sum and not the shift.
    renormalised = released / released.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(without_mode(renormalised, **DEFAULT), restored, atol=1e-9)


@pytest.mark.parametrize(
    ("released", "restored"),
    [
        ([0.94, 0.02, 0.02, 0.0, 0.04], [0.92, 0, 0, 0, 0.02]),
        # Below the shift: not raised, so left.
        ([0.94, 0.02, 0.02, 0.0, 0.01], [0.92, 0, 0, 0, 0.01]),
        # No two scores share a value.
        ([0.8, 0.3, 0.1, 0.0, 0.0], [0.8, 0.3, 0.1, 0, 0]),
        # A shift that would make another class the label is none.
        ([0.3, 0.2, 0.2, 0.19, 0.0], [0.3, 0.2, 0.2, 0.19, 0]),
        ([0.2, 0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]),
        ([0.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, 0]),
    ],
)
def test_by_hand(released: list[float], restored: list[float]) -> None:
    expected = np.array(restored) / (sum(restored) or 1)
    np.testing.assert_allclose(without_mode(np.array([released]), **DEFAULT)[0], expected)


@given(
    st.integers(2, 9),
    st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.7, 3.0]), min_size=9, max_size=45),
)
def test_keeps_labels_and_gives_distributions(num_classes: int, values: list[float]) -> None:
    rows = np.array(values[: len(values) // num_classes * num_classes]).reshape(-1, num_classes)
    before = rows.copy()
    found = without_mode(rows, **DEFAULT)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(found.argmax(axis=1), rows.argmax(axis=1))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), rows.any(axis=1).astype(float))


def test_clean_answers_are_left_nearly_as_they_are(world: Any) -> None:
    clean = world.service()(world.x)
    assert np.quantile(distance(without_mode(clean, **DEFAULT), clean), 0.99) < 1e-4
    two = np.array([[0.7, 0.3], [0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_array_equal(without_mode(two, **DEFAULT), two)


def raised(confidence: Any) -> Any:
    """Raises all scores but the largest; most where the service was sure, so that it seems not."""
    largest = confidence.max(axis=1, keepdims=True)
    moved = confidence + 0.06 * largest**4
    label = np.arange(confidence.shape[1]) == confidence.argmax(axis=1)[:, None]
    return np.where(label, largest - 0.06 * largest**4, np.round(moved, 3))


def test_fitted_on_clean_answers_it_is_not_misled_where_mim0_is(world: Any, accuracy: Any) -> None:
    rows, found = world.parts["eval"], {}
    for attack in (Mim(**QUICK), ModeSubtract(**QUICK)):
        known = world.knowledge(attack, 0)  # its service is the undefended one
        query = world.service("score", raised)
        scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
        found[type(attack)] = accuracy(scores > 0, world.is_member[rows])
    assert found[Mim] < 0.6
    assert found[ModeSubtract] > 0.65


def test_fitted_on_defended_answers_it_finds_them_as_well(world: Any) -> None:
    scores, is_member = world.run(ModeSubtract(**QUICK), defend=raised)
    assert roc_auc_score(is_member, scores) > 0.65


def test_asks_once_about_each_record_to_fit_on_and_to_judge(small_world: Any) -> None:
    attack = ModeSubtract(width=0.05, epochs=2)
    known, query = small_world.knowledge(attack, 0), small_world.service()
    attack.score(query, known, small_world.x[:13], small_world.y[:13], seed=0)
    assert query.num_queries == 13
    assert known.query.num_queries == len(small_world.known_rows)


@pytest.mark.parametrize("fields", [{"least_count": 1}, {"resolution": 0.0}, {"width": 0}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModeSubtract(**fields)


def test_one_sided_knowledge_and_divergence_are_refused(small_world: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"mode_subtract.s training .* 1e\+18"):
        small_world.run(ModeSubtract(width=0.05, epochs=30, learning_rate=1e18))
    attack = ModeSubtract()
    known = small_world.knowledge(attack, 0)
    known.cal.is_member[:] = False
    with pytest.raises(ValueError, match=r"known\.cal holds 0 members.*mode_subtract needs"):
        attack.score(small_world.service(), known, small_world.x[:3], small_world.y[:3], seed=0)
