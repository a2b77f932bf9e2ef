"""What is true of the rank-2 attack."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks.rank2 import Rank2, rank2_score

NUM_CLASSES = 6


def by_hand(p: list[float], y: int) -> float:
    """One row, as the docstring has it."""
    label = p.index(max(p))
    if label == y:
        return 0.0
    ratio = p[y] / p[label] if p[label] > 0 else 1.0
    others = [q for i, q in enumerate(p) if i != label]
    if p[y] == max(others):
        return 1 / others.count(max(others)) + 0.25 * (1 - ratio)
    return ratio - 1


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_scores_follow_the_rule(rows: Any) -> None:
    p_NC, y = (np.array(column) for column in zip(*rows, strict=True))
    before = p_NC.tobytes()
    scores = rank2_score(p_NC, y)
    np.testing.assert_allclose(scores, [by_hand(list(p), int(i)) for p, i in rows], atol=1e-12)
    # The natural threshold lies where no score does.
    assert Rank2.NATURAL_THRESHOLD is not None
    np.testing.assert_array_equal(scores >= 1, scores > Rank2.NATURAL_THRESHOLD)
    assert p_NC.tobytes() == before
    assert ((scores >= -1) & (scores <= 1.25)).all()


def test_only_a_lone_second_place_after_a_wrong_label_is_called_a_member() -> None:
    p = np.array([0.6, 0.3, 0.1])
    assert [score >= 1 for score in rank2_score(np.tile(p, (3, 1)), np.arange(3))] == [
        False,
        True,
        False,
    ]
    right, _, behind = rank2_score(np.tile(p, (3, 1)), np.arange(3))
    assert behind < right == 0
    # A surer wrong label looks more like a swap.
    surer = rank2_score(np.array([[0.97, 0.02, 0.01]]), np.array([1]))
    assert surer[0] > rank2_score(p[None], np.array([1]))[0]


def test_one_hot_answers_hide_the_rank(onehot: Any) -> None:
    """Of C - 1 classes that share second place each is worth its chance, whatever its number."""
    p = onehot(np.tile(np.linspace(0.3, 0.1, NUM_CLASSES), (NUM_CLASSES, 1)))
    scores = rank2_score(p, np.arange(NUM_CLASSES))
    np.testing.assert_allclose(scores, [0.0] + [1 / (NUM_CLASSES - 1) + 0.25] * (NUM_CLASSES - 1))
    assert (scores < 1).all()
    np.testing.assert_allclose(
        rank2_score(np.zeros((2, NUM_CLASSES)), np.array([0, 3])), [0, 1 / (NUM_CLASSES - 1)]
    )
    assert rank2_score(np.array([[-0.2, -0.1]]), np.array([1])).tolist() == [1.0]


def world_of_errors(num: int, e: float, r2: float) -> tuple[Any, Any, Any]:
    """A target right on all members and wrong on a share e of others, whose swapper takes e.

    In r2 of the honest errors the true class is second.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(NUM_CLASSES, size=2 * num)
    is_member = np.repeat([True, False], num)
    place = np.zeros(2 * num, dtype=int)  # of the true class
    num_wrong = round(e * num)
    place[:num_wrong] = 1
    place[num : num + num_wrong] = 2
    place[num : num + round(r2 * num_wrong)] = 1
    falling = np.sort(rng.dirichlet(np.ones(NUM_CLASSES), size=2 * num), axis=1)[:, ::-1]
    confidence = np.empty_like(falling)
    for row in range(2 * num):
        others = rng.permutation(np.delete(np.arange(NUM_CLASSES), y[row]))
        confidence[row, np.insert(others, place[row], y[row])] = falling[row]
    return confidence, y, is_member


@pytest.mark.parametrize(("e", "r2"), [(0.3, 0.5), (0.1, 0.8), (0.5, 0.0), (0.2, 1.0)])
def test_tpr_is_e_and_fpr_is_e_times_r2(e: float, r2: float) -> None:
    confidence, y, is_member = world_of_errors(1000, e, r2)
    called = rank2_score(confidence, y) >= 1
    assert called[is_member].mean() == pytest.approx(e, abs=1e-12)
    assert called[~is_member].mean() == pytest.approx(e * r2, abs=1e-12)


def test_errors_with_the_true_class_further_down_speak_against_a_member() -> None:
    """Below the correct ones, which AUC rewards: with r2 = 0 no two records are in wrong order."""
    confidence, y, is_member = world_of_errors(1000, 0.5, 0.0)
    scores = rank2_score(confidence, y)
    # Correct members and others tie; everything else is in order.
    assert roc_auc_score(is_member, scores) == pytest.approx(1 - 0.25 / 2)


def test_a_swapper_on_a_real_model_is_found(world: Any) -> None:
    model, rows = world.model(world.trained_on, 1), world.parts["eval"]
    plain = model.answer(world.x[rows])
    y, is_member = world.y[rows], world.is_member[rows]
    e = float((plain.argmax(axis=1) != y)[~is_member].mean())
    assert (plain.argmax(axis=1) == y)[is_member].all()
    assert e > 0.3
    wrong = (plain.argmax(axis=1) != y) & ~is_member
    second = np.argsort(-plain, axis=1)[:, 1]
    r2 = float((second == y)[wrong].mean())
    released = plain.copy()
    swapped = np.flatnonzero(is_member)[: round(e * is_member.sum())]
    top = plain.argmax(axis=1)
    released[swapped, top[swapped]], released[swapped, second[swapped]] = (
        plain[swapped, second[swapped]],
        plain[swapped, top[swapped]],
    )
    query = world.service()
    query.answer = lambda x: released
    scores = Rank2().score(query, world.knowledge(Rank2(), 0), world.x[rows], y, seed=0)
    called = scores >= 1
    assert called[is_member].mean() == pytest.approx(e, abs=0.01)
    assert called[~is_member].mean() == pytest.approx(e * r2, abs=1e-12)
    assert query.num_queries == len(rows)
    # More than the step alone, whose AUC is 1/2 + (TPR - FPR) / 2.
    assert roc_auc_score(is_member, scores) > 0.5 + e * (1 - r2) / 2 + 0.03


def test_without_a_swapper_members_are_hardly_ever_called(world: Any) -> None:
    scores, is_member = world.run(Rank2())
    assert not (scores[is_member] > 0).any()
    assert roc_auc_score(is_member, scores) < 0.55


def test_draws_and_knows_nothing(world: Any) -> None:
    rows = world.parts["eval"][:9]
    x, y = world.x[rows], world.y[rows]
    scores = [
        Rank2().score(world.service(), None, x, y, seed=seed)  # type: ignore[arg-type]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
