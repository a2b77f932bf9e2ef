"""What is true of attribute inference."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from attacks.attribute import Attribute

torch.set_num_threads(1)


def answered(
    values: NDArray[np.int64], num_classes: int, shift: float, *, seed: int
) -> NDArray[np.float64]:
    """Confidences whose logits lie elsewhere for each value, by `shift` deviations."""
    place = np.random.default_rng(0).normal(size=(int(values.max()) + 1, num_classes))
    noise = np.random.default_rng([1, seed]).normal(size=(len(values), num_classes))
    return np.asarray(softmax(shift * place[values] + noise, axis=1))


def drawn(n: int, share: Any, *, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([2, seed]).choice(len(share), size=n, p=share)


def balanced_accuracy(scores: NDArray[Any], values: NDArray[np.int64]) -> float:
    right = scores.argmax(axis=1) == values
    return float(np.mean([right[values == value].mean() for value in np.unique(values)]))


def test_log_probabilities_of_each_value() -> None:
    own, judged = drawn(300, [0.5, 0.3, 0.2], seed=1), drawn(50, [0.5, 0.3, 0.2], seed=2)
    scores = Attribute().infer(
        answered(judged, 6, 2.0, seed=2),
        answered(own, 6, 2.0, seed=1),
        own,
        num_values=3,
        seed=0,
    )
    assert scores.shape == (50, 3)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, atol=1e-7)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_planted_attribute_is_found(num_classes: int) -> None:
    own, judged = (drawn(n, [0.2] * 5, seed=n) for n in (1500, 1000))
    scores = Attribute().infer(
        answered(judged, num_classes, 2.0, seed=2),
        answered(own, num_classes, 2.0, seed=1),
        own,
        num_values=5,
        seed=0,
    )
    # With two classes there is one number a record, on which five values overlap.
    least = {2: 0.35, 10: 0.9, 100: 0.99}[num_classes]
    assert balanced_accuracy(scores, judged) > least


@pytest.mark.parametrize("num_classes", [2, 30])
def test_an_independent_attribute_stays_at_chance(num_classes: int) -> None:
    num_values, per_value = 5, 800
    own = drawn(1500, [0.6, 0.1, 0.1, 0.1, 0.1], seed=1)
    judged = np.repeat(np.arange(num_values), per_value)
    scores = Attribute().infer(
        answered(judged, num_classes, 0.0, seed=2),
        answered(own, num_classes, 0.0, seed=1),
        own,
        num_values=num_values,
        seed=0,
    )
    # The mean of five shares; what is called which value is fixed, so they are dependent, and
    # each varies at most as a fair coin would.
    deviation = np.sqrt(0.25 / per_value / num_values)
    assert abs(balanced_accuracy(scores, judged) - 1 / num_values) < 4 * deviation


def test_rare_values_are_inferred_too() -> None:
    """One value in 20 has; its log-odds lie two deviations higher.

    Weighted, the best cut is midway: both values are found with Phi(1) = 0.841. Unweighted, it is
    2 + log(19) / 2 deviations above the frequent value's mean, and 7 in 10 rare ones are missed.
    """
    own, judged = drawn(3000, [0.95, 0.05], seed=1), drawn(4000, [0.95, 0.05], seed=2)

    def told(values: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        log_odds = 2.0 * values - 1 + np.random.default_rng([5, seed]).normal(size=len(values))
        return np.asarray(softmax(np.stack([0 * log_odds, log_odds], axis=1), axis=1))

    scores = Attribute().infer(told(judged, 2), told(own, 1), own, num_values=2, seed=0)
    called = scores.argmax(axis=1)
    # Four deviations of a share of the 200 rare records, and what a cut half off costs.
    assert (called[judged == 1] == 1).mean() > 0.841 - 4 * np.sqrt(0.841 * 0.159 / 200) - 0.1
    assert balanced_accuracy(scores, judged) > 0.841 - 4 * np.sqrt(0.841 * 0.159 / 200) / 2 - 0.02


def test_what_only_small_scores_tell_is_read_from_log_ratios() -> None:
    """The value decides by which factor two scores of a millionth differ."""
    own, judged = drawn(1000, [0.5, 0.5], seed=1), drawn(500, [0.5, 0.5], seed=2)

    def small(values: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        rng = np.random.default_rng([3, seed])
        first = rng.random(len(values))
        size = 1e-6 * np.exp(rng.normal(size=len(values)))
        factor = np.where(values == 1, 3.0, 1 / 3.0)
        rest = np.stack([size * factor, size / factor], axis=1)
        return np.column_stack([first, 1 - first - rest.sum(axis=1), rest])

    scores = Attribute().infer(small(judged, 2), small(own, 1), own, num_values=2, seed=0)
    assert balanced_accuracy(scores, judged) > 0.97


def test_same_seed_same_bits_and_no_trace() -> None:
    own = drawn(200, [0.5, 0.5], seed=1)
    own_answers, answers = answered(own, 4, 1.0, seed=1), answered(own, 4, 1.0, seed=2)
    for array in (own, own_answers, answers):
        array.flags.writeable = False
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    state = torch.get_rng_state()
    found = [
        Attribute(epochs=3).infer(answers, own_answers, own, num_values=2, seed=seed)
        for seed in (3, 3, 4)
    ]
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].tobytes() != found[2].tobytes()
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_answers_get_equal_scores_wherever_they_stand() -> None:
    own = drawn(200, [0.5, 0.5], seed=1)
    own_answers, answers = answered(own, 30, 1.0, seed=1), answered(own, 30, 1.0, seed=2)
    attack = Attribute(epochs=3)
    twice = attack.infer(
        np.vstack([answers, answers[::-1]]), own_answers, own, num_values=2, seed=0
    )
    np.testing.assert_array_equal(twice[:200], twice[200:][::-1])
    alone = attack.infer(answers[5:6], own_answers, own, num_values=2, seed=0)
    np.testing.assert_array_equal(alone[0], twice[5])


def test_a_value_never_seen_is_never_inferred() -> None:
    own = 2 * drawn(400, [0.5, 0.5], seed=1)
    answers = answered(own, 6, 1.0, seed=1)
    scores = Attribute().infer(answers, answers, own, num_values=4, seed=0)
    assert scores.shape == (400, 4)
    assert np.isfinite(scores).all()
    assert set(scores.argmax(axis=1)) == {0, 2}


@pytest.mark.parametrize("num_classes", [2, 530])
@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_rows_need_not_be_distributions(num_classes: int, factor: float) -> None:
    own = drawn(60, [0.5, 0.5], seed=1)
    answers = factor * answered(own, num_classes, 1.0, seed=1)
    scores = Attribute(epochs=3).infer(answers, answers, own, num_values=2, seed=0)
    assert np.isfinite(scores).all()


def test_labels_alone_tell_what_they_tell() -> None:
    """One-hot rows: each label's most frequent value, weighted by how rare values are."""
    own, judged = drawn(2000, [0.5, 0.5], seed=1), drawn(1000, [0.5, 0.5], seed=2)

    def onehot(values: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        told = np.random.default_rng([4, seed]).random(len(values)) < 0.8
        return np.eye(2)[np.where(told, values, 1 - values)]

    scores = Attribute().infer(onehot(judged, 2), onehot(own, 1), own, num_values=2, seed=0)
    np.testing.assert_array_equal(scores.argmax(axis=1), onehot(judged, 2).argmax(axis=1))
    assert len(np.unique(scores, axis=0)) == 2


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ([0, 0, 1, 1, 2], r"0\.\.1"),
        ([0, 0, 1, 1, -1], r"0\.\.1"),
        ([0, 0, 0, 0, 0], "two or more of at least two values"),
        ([0, 0, 0, 0, 1], "two or more of at least two values"),
        ([0, 0, 1, 1], "5 own_answers and 4 own_values"),
    ],
)
def test_values_that_cannot_be_learnt_are_refused(own: list[int], complaint: str) -> None:
    answers = answered(np.zeros(5, dtype=np.int64), 3, 1.0, seed=1)
    with pytest.raises(ValueError, match=complaint):
        Attribute().infer(answers, answers, np.array(own), num_values=2, seed=0)


def test_a_step_too_large_is_told() -> None:
    own = drawn(60, [0.5, 0.5], seed=1)
    answers = answered(own, 3, 1.0, seed=1)
    with pytest.raises(FloatingPointError, match="use a smaller one"):
        Attribute(learning_rate=1e300).infer(answers, answers, own, num_values=2, seed=0)
