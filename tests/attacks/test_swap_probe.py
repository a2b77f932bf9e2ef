"""What is true of the swap probe."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attacks.swap_probe import SwapProbe, swap_score

BONUS = 0.5


def by_hand(own: int, near: list[int], y: int) -> float:
    """One record, as the docstring has it."""
    counts = {label: near.count(label) for label in near}
    most = max(counts.values())
    if counts.get(own, 0) == most:
        return -sum(label != own for label in near) / len(near)
    return most / len(near) + BONUS * (counts.get(y, 0) == most)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.integers(0, 3), min_size=5, max_size=5),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_scores_follow_the_rule(records: Any) -> None:
    own, near, y = (np.array(column) for column in zip(*records, strict=True))
    scores = swap_score(own, near.T, y, bonus=BONUS)
    np.testing.assert_allclose(scores, [by_hand(*r) for r in records], rtol=1e-12, atol=1e-12)
    plain = swap_score(own, near.T, y, bonus=0.0)
    # Without the bonus the score is the agreement, and y is not read.
    np.testing.assert_array_equal(plain, swap_score(own, near.T, (y + 1) % 4, bonus=0.0))
    np.testing.assert_array_equal(plain > 0, scores > 0)
    assert (plain <= 1).all()


def test_examples() -> None:
    own, y = np.array([0, 0, 0, 0, 0, 0]), np.array([1, 2, 0, 0, 1, 2])
    near = np.array(
        [
            [1, 1, 1, 1],  # swapped: all snap back, to y
            [1, 1, 1, 1],  # to another class
            [0, 0, 0, 0],  # stable
            [0, 0, 0, 1],  # all but stable
            [0, 0, 1, 1],  # as often its own: not swapped
            [0, 1, 2, 3],  # no majority, its own as common as any
        ]
    ).T
    np.testing.assert_allclose(
        swap_score(own, near, y, bonus=BONUS), [1.5, 1.0, 0.0, -0.25, -0.5, -0.75]
    )


def nearest(world: Any) -> Any:
    """The model's answer about the nearest record, so that near copies have the record's own."""
    model = world.model(world.trained_on, 1)
    every = world.x.reshape(len(world.x), -1).astype(np.float64)
    answers = model.answer(world.x)

    def answer(x: Any) -> Any:
        flat = x.reshape(len(x), -1).astype(np.float64)
        distance = (every**2).sum(axis=1) - 2 * flat @ every.T
        return answers[distance.argmin(axis=1)]

    return answer


def swapping(world: Any, base: Any, *, share: float = 0.2, jitter: float = 0.0) -> tuple[Any, Any]:
    """A service that exchanges the two largest scores for `share` of the members, told exactly.

    `jitter` is the probability that an answer's label is drawn anew, by input.
    """
    members = np.sort(world.trained_on)
    stored = np.random.default_rng(0).permutation(members)[: round(share * len(members))]
    records = {record.tobytes() for record in world.x[stored]}

    def answer(x: Any) -> Any:
        confidence = np.array(base(x))
        matched = np.flatnonzero([record.tobytes() in records for record in x])
        first, second = np.argsort(-confidence[matched], axis=1)[:, :2].T
        largest, next_largest = confidence[matched, first], confidence[matched, second]
        confidence[matched, first], confidence[matched, second] = next_largest, largest
        if jitter:
            for row, record in enumerate(x):
                rng = np.random.default_rng(list(record.tobytes()))
                if rng.random() < jitter:
                    confidence[row] = np.eye(confidence.shape[1])[rng.integers(world.num_classes)]
        return confidence

    return answer, np.isin(np.arange(len(world.x)), stored)


def probed(world: Any, answer: Any, attack: SwapProbe) -> tuple[Any, Any, Any]:
    """Scores of the evaluation records, their rows, and the service."""
    query, known = world.service("label"), world.knowledge(attack, 0)
    query.answer = answer
    rows = world.parts["eval"]
    return attack.score(query, known, world.x[rows], world.y[rows], seed=0), rows, query


@pytest.fixture(scope="module")
def worlds(make_world: Any, world: Any) -> dict[str, Any]:
    return {
        "continuous": world,
        "binary": make_world(binary=True, num_features=120),
        "image": make_world(image=(1, 5, 8)),
    }


@pytest.mark.parametrize("kind", ["continuous", "binary", "image"])
def test_tpr_is_the_swapped_share_at_no_false_positives(worlds: Any, kind: str) -> None:
    world = worlds[kind]
    answer, is_swapped = swapping(world, nearest(world))
    scores, rows, _ = probed(world, answer, SwapProbe())
    assert 0.05 < is_swapped[rows].mean() < 0.15  # half of the rows are no members
    np.testing.assert_array_equal(scores > 0.99, is_swapped[rows])
    np.testing.assert_array_equal(scores[~is_swapped[rows]], 0.0)


@pytest.mark.parametrize("kind", ["continuous", "image"])
def test_a_model_that_is_not_quite_locally_constant_hides_nobody(worlds: Any, kind: str) -> None:
    world = worlds[kind]
    answer, is_swapped = swapping(world, world.model(world.trained_on, 1).answer)
    scores, rows, _ = probed(world, answer, SwapProbe())
    is_member, found = world.is_member[rows], scores > 0.99
    share = is_swapped[rows][is_member].mean()
    assert found[is_member].mean() == pytest.approx(share, abs=0.005)
    assert found[~is_member].mean() <= 0.005


@pytest.mark.parametrize("kind", ["continuous", "binary", "image"])
def test_without_a_swapper_a_locally_constant_service_scores_0(worlds: Any, kind: str) -> None:
    world = worlds[kind]
    scores, rows, _ = probed(world, nearest(world), SwapProbe())
    np.testing.assert_array_equal(scores, np.zeros(len(rows)))


def test_noise_on_the_label_costs_agreement_but_not_the_members(world: Any) -> None:
    """A tenth of all answers have a random label: a swapped member still stands out."""
    answer, is_swapped = swapping(world, nearest(world), jitter=0.1)
    scores, rows, _ = probed(world, answer, SwapProbe())
    found, is_member = scores > 0, world.is_member[rows]
    # Missed only where the member's own label is drawn, and drawn back: one in 80.
    assert found[is_swapped[rows]].mean() > 0.9
    # Others snap back where their own label is drawn, and drawn wrong: 7 in 80, 300 records.
    assert found[~is_member].mean() < 7 / 80 + 4 * np.sqrt(7 / 80 * 73 / 80 / 300)


@pytest.mark.parametrize("copies", [1, 7])
def test_asks_as_often_as_it_says(world: Any, copies: int) -> None:
    _, rows, query = probed(world, nearest(world), SwapProbe(copies=copies))
    assert query.num_queries == (copies + 1) * len(rows)


def test_fields_out_of_range_are_refused() -> None:
    for fields in ({"copies": 0}, {"bonus": -0.1}):
        with pytest.raises(ValidationError):
            SwapProbe(**fields)
