"""Nets of many classes trained at once: each as it would be alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torch import nn

from attacks._class_nets import Answers, ClassNets, Recipe, division, trained

RECIPE = Recipe(
    hidden=16, learning_rate=0.01, batch_size=32, num_steps=200, steps_between=20, device="cpu"
)


def planted(
    num_shadows: int, y: Any, num_classes: int, seed: int, shift: Any, role: Any = None
) -> Answers:
    """Answers whose logit of the true class is higher by `shift[class]` for IN records."""
    rng = np.random.default_rng(seed)
    if role is None:
        role = np.array([1, 0] * (num_shadows // 2), dtype=np.int8)[:, None]
        role = rng.permuted(np.tile(role, len(y)), axis=0)
    logits = rng.normal(size=(num_shadows, len(y), num_classes))
    logits[:, np.arange(len(y)), y] += 2 + np.asarray(shift)[y] * (role == 1)
    return Answers(softmax(logits, axis=2).astype(np.float32), y, role)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 30))
def test_division_gives_large_classes_a_net_and_the_others_one(
    labels: list[int], min_records: int
) -> None:
    y = np.array(labels)
    net_of_class, records = division(y, 7, min_records)
    small = [label for label in range(7) if labels.count(label) < min_records]
    for label in range(7):
        mine = records[net_of_class[label]]
        if label in small:
            assert net_of_class[label] == len(records) - 1
            shared = np.flatnonzero(np.isin(y, small))
            enough = len(shared) >= min_records
            np.testing.assert_array_equal(mine, shared if enough else np.arange(len(y)))
        else:
            np.testing.assert_array_equal(mine, np.flatnonzero(y == label))
    assert len(records) == 7 - len(small) + bool(small)
    assert len({net_of_class[label] for label in range(7)}) == len(records)


def test_a_net_is_c_h_2_with_relu_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 5, 8), (3, 1, 8), (3, 8, 2), (3, 1, 2)]
    nets = ClassNets(0.2, 0.3, tuple(rng.normal(size=shape) for shape in shapes))
    confidence = rng.dirichlet(np.ones(5), size=11)
    for g in range(3):
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        first, first_bias, second, second_bias = (torch.tensor(w[g]) for w in nets.weights)
        state = (first.T, first_bias[0], second.T, second_bias[0])
        net.load_state_dict(dict(zip(net.state_dict(), state, strict=True)))
        with torch.no_grad():
            p = net(torch.tensor((confidence - 0.2) / 0.3)).softmax(dim=1).numpy()
        expected = np.log(p[:, 1]) - np.log(p[:, 0])
        np.testing.assert_allclose(nets.log_odds(confidence, g), expected, rtol=1e-9, atol=1e-12)


def test_every_net_learns_what_its_own_class_shows() -> None:
    """Members of class 0 are surer, those of class 1 less sure, of class 2 neither.

    The best possible AUC is 0.89: logits 2 apart, less what softmax hides of them.
    """
    shift = (2.0, -2.0, 0.0)
    y = np.repeat([0, 1, 2], 80)
    net_of_class, records = division(y, 4, 50)
    nets = trained(planted(8, y, 4, 0, shift), records, RECIPE, np.random.default_rng(0))
    test_y = np.repeat([0, 1, 2], 300)
    test = planted(2, test_y, 4, 1, shift)
    for label, least, most in ((0, 0.8, 0.92), (1, 0.8, 0.92), (2, 0.4, 0.6)):
        mine = test_y == label
        found = nets.log_odds(test.confidence[0, mine].astype(float), int(net_of_class[label]))
        assert least < roc_auc_score(test.role[0, mine], found) < most


def test_nets_do_not_depend_on_one_anothers_answers() -> None:
    """Trained at once, but apart: other answers of class 1 leave the net of class 0 alone."""
    y = np.repeat([0, 1], 60)
    answers = planted(4, y, 3, 0, (1.0, 1.0, 0.0))
    other = answers.confidence.copy()
    # The same numbers elsewhere, so that mean and deviation stay.
    other[:, 60:] = other[:, 60:][:, ::-1, ::-1]
    changed = Answers(other, y, answers.role)
    _, records = division(y, 2, 50)
    first, second = (
        trained(a, records, RECIPE, np.random.default_rng(0)) for a in (answers, changed)
    )
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)
        assert not np.allclose(a[1], b[1], rtol=1e-2)


def test_unevenly_many_in_and_out_answers_are_balanced() -> None:
    """A tenth IN or nine tenths: about as many are called IN; the odds of both are 81 apart."""
    test = planted(2, np.zeros(2000, dtype=np.int64), 3, 4, (2.0, 0, 0))
    y, called = np.zeros(150, dtype=np.int64), []
    for share_in in (0.1, 0.9):
        role = (np.random.default_rng(2).random((10, 150)) < share_in).astype(np.int8)
        answers = planted(10, y, 3, 3, (2.0, 0, 0), role)
        nets = trained(answers, [np.arange(150)], RECIPE, np.random.default_rng(0))
        called.append((nets.log_odds(test.confidence[0].astype(float), 0) > 0).mean())
    assert abs(called[0] - called[1]) < 0.1
    assert 0.35 < np.mean(called) < 0.65


def test_neither_in_nor_out_is_not_learned_from() -> None:
    y = np.zeros(60, dtype=np.int64)
    role = np.random.default_rng(0).integers(-1, 2, size=(6, 60)).astype(np.int8)
    answers = planted(6, y, 3, 0, (2.0, 0, 0), role)
    other = answers.confidence.copy()
    # Entries in another order: neither mean nor deviation of all changes.
    other[role == -1] = np.roll(other[role == -1], 1, axis=1)
    first, second = (
        trained(Answers(c, y, role), [np.arange(60)], RECIPE, np.random.default_rng(0))
        for c in (answers.confidence, other)
    )
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_step_with_the_least_held_back_loss_is_taken() -> None:
    """Pure noise on few records: descended on for long it would be learned by heart."""
    y = np.zeros(60, dtype=np.int64)
    noise = planted(4, y, 20, 0, np.zeros(20))
    test = planted(2, np.zeros(500, dtype=np.int64), 20, 1, np.zeros(20))
    odds = []
    for steps_between in (10, 1000):  # with one look, at the end, there is nothing to choose
        recipe = Recipe(64, 0.01, 64, 1000, steps_between, "cpu")
        nets = trained(noise, [np.arange(60)], recipe, np.random.default_rng(0))
        odds.append(np.abs(nets.log_odds(test.confidence[0].astype(float), 0)).mean())
    assert odds[0] < 1
    assert odds[1] > 3 * odds[0]


@pytest.mark.parametrize("num_records", [1, 2, 4])
def test_few_records_are_enough(num_records: int) -> None:
    y = np.zeros(num_records, dtype=np.int64)
    answers = planted(2, y, 2, 0, (1.0, 0.0))
    nets = trained(answers, [np.arange(num_records)], RECIPE, np.random.default_rng(0))
    assert all(np.isfinite(w).all() for w in nets.weights)


def test_answers_that_are_all_the_same_are_learned_from() -> None:
    role = np.array([[1] * 30, [0] * 30], dtype=np.int8)
    answers = Answers(np.full((2, 30, 4), 0.25, dtype=np.float32), np.zeros(30, dtype=int), role)
    nets = trained(answers, [np.arange(30)], RECIPE, np.random.default_rng(0))
    assert np.isfinite(nets.log_odds(np.array([[0.25] * 4, [9.0] * 4, [0.0] * 4]), 0)).all()


@pytest.mark.parametrize(("role", "name"), [(1, "OUT"), (0, "IN"), (-1, "IN")])
def test_one_sided_answers_are_refused(role: int, name: str) -> None:
    answers = Answers(
        np.zeros((2, 9, 3), dtype=np.float32),
        np.zeros(9, dtype=np.int64),
        np.full((2, 9), role, dtype=np.int8),
    )
    with pytest.raises(
        ValueError, match=f"none of the 2 shadow models has any of 9 records {name}"
    ):
        trained(answers, [np.arange(9)], RECIPE, np.random.default_rng(0))
