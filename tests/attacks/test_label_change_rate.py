"""What is true of the label change rate."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks.label_change_rate import LabelChangeRate, change_rate


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=20),
)
def test_rates_are_shares_of_other_labels(records: Any) -> None:
    label = np.array(records).T
    repeats = change_rate(label, "repeats", 4)
    np.testing.assert_allclose(
        repeats, [1 - max(map(row.count, row)) / 5 for row in records], atol=1e-12
    )
    near = change_rate(label, "neighbours", 4)
    np.testing.assert_allclose(
        near, [sum(other != row[0] for other in row[1:]) / 4 for row in records], atol=1e-12
    )
    # Asked again, the first answer is one among equals; about near copies it is the record's own.
    np.testing.assert_array_equal(change_rate(label[::-1], "repeats", 4), repeats)
    assert (repeats < 1).all()


class Fickle:
    """Answers class 0, or class 1 with a probability of the record's: 0.1 for members, else 0.4.

    `fresh`: it is drawn for every query. `per_input`: for every input. Counts.
    """

    def __init__(self, world: Any, policy: str) -> None:
        self.num_queries, self.policy = 0, policy
        self._every = world.x.reshape(len(world.x), -1).astype(np.float64)
        self._chance = np.where(world.is_member, 0.1, 0.4)
        self._rng = np.random.default_rng(1)
        self._direction = np.random.default_rng(2).normal(size=self._every.shape[1])

    def __call__(self, x: Any) -> Any:
        self.num_queries += len(x)
        flat = x.reshape(len(x), -1).astype(np.float64)
        distance = (self._every**2).sum(axis=1) - 2 * flat @ self._every.T
        chance = self._chance[distance.argmin(axis=1)]
        if self.policy == "fresh":
            unit = self._rng.random(len(x))
        else:  # later decimals of a projection are as good as random, and the input's own
            unit = np.mod(flat @ self._direction * 1e5, 1)
        return (unit < chance).astype(np.int64)

    def timed(self, x: Any) -> Any:
        raise AssertionError("this attack measures no time")


@pytest.mark.parametrize(
    ("policy", "over", "found"),
    [
        ("fresh", "repeats", True),
        ("fresh", "neighbours", True),
        ("per_input", "repeats", False),
        ("per_input", "neighbours", True),
    ],
)
def test_noise_on_the_label_is_counted_unless_it_is_keyed_and_the_question_the_same(
    world: Any, policy: str, over: Any, found: bool
) -> None:
    attack, query, rows = LabelChangeRate(over=over), Fickle(world, policy), world.parts["eval"]
    known = world.knowledge(attack, 0)
    scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
    assert query.num_queries == 16 * len(rows)
    is_member = world.is_member[rows]
    if not found:
        np.testing.assert_array_equal(scores, np.zeros(len(rows)))
        return
    # Here it is the others that change more: the caller turns the sign. A record whose own label
    # is the rarer one disagrees with most of its copies, which costs some of the order.
    assert roc_auc_score(~is_member, scores) > (0.95 if over == "repeats" else 0.75)


def test_against_the_commonest_label_is_surer_than_against_the_first() -> None:
    """One answer in ten differs or four in ten do; with the first as the measure more is unsure."""
    rng = np.random.default_rng(0)
    chance = np.repeat([0.1, 0.4], 1000)
    label = (rng.random((16, 2000)) < chance).astype(np.int64)
    commonest = roc_auc_score(chance > 0.2, change_rate(label, "repeats", 2))
    first = roc_auc_score(chance > 0.2, change_rate(label, "neighbours", 2))
    assert commonest > first + 0.05


def test_a_swapped_label_differs_from_all_near_copies(world: Any) -> None:
    attack, rows = LabelChangeRate(repeats=8, over="neighbours"), world.parts["eval"]
    swapped = {record.tobytes() for record in world.x[rows[:20]]}
    query = world.service("label")
    query.answer = lambda x: np.eye(8)[[int(record.tobytes() in swapped) for record in x]]
    known = world.knowledge(attack, 0)
    scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
    np.testing.assert_array_equal(scores, (np.arange(len(rows)) < 20).astype(np.float64))
    assert query.num_queries == 8 * len(rows)
    assert known.query.num_queries == 0


def test_true_labels_are_not_read(world: Any) -> None:
    attack, rows = LabelChangeRate(over="neighbours"), world.parts["eval"]
    known = world.knowledge(attack, 0)
    scores = [
        attack.score(world.service("label"), known, world.x[rows], y, seed=0)
        for y in (world.y[rows], np.zeros(len(rows), dtype=np.int64))
    ]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_fields_out_of_range_are_refused() -> None:
    for fields in ({"repeats": 1}, {"over": "both"}):
        with pytest.raises(ValidationError):
            LabelChangeRate(**fields)
