"""Models trained together are the models trained alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks import stacked
from tasks.architectures import Architecture, make, with_recipe
from tasks.stacked import train_many
from tasks.training import TrainedModel, load_module, logits, train

torch.set_num_threads(1)

NUM, FEATURES, CLASSES = 120, 11, 4
RECIPE = make("mlp_s", hidden=(16, 8), epochs=20, batch_size=16)
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
RECIPES = {
    "adam": RECIPE,
    "decay": with_recipe(RECIPE, weight_decay=0.01),
    "relu": with_recipe(RECIPE, activation="relu"),
    "tanh output": with_recipe(RECIPE, tanh_output=True),
    "relu, tanh output": with_recipe(RECIPE, activation="relu", tanh_output=True),
    "sgd": with_recipe(RECIPE, **SGD),
    "sgd, decay, milestones": with_recipe(RECIPE, **SGD, weight_decay=0.01, milestones=(3, 6)),
    "milestone twice": with_recipe(RECIPE, milestones=(0, 4, 4)),
    "linear": with_recipe(RECIPE, hidden=()),
    "one batch": with_recipe(RECIPE, batch_size=500),
    "one record a batch": with_recipe(RECIPE, batch_size=1, epochs=2),
}
COUNTS = {
    "equal": (48, 48, 48, 48),
    "equal, last batch short": (50, 50, 50),
    "steps differ": (90, 20, 50, 33, 7),
    "last batches differ": (50, 49, 51, 63),
    "one record": (1, 40),
    "alone": (37,),
}


def records(shape: tuple[int, ...] = (FEATURES,)) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=NUM)
    x = rng.normal(size=(NUM, *shape)) + y.reshape(-1, *([1] * len(shape))) / 2
    return x.astype(np.float32), y


def row_sets(counts: tuple[int, ...]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return [rng.permutation(NUM)[:count] for count in counts]


def together(recipe: Architecture, counts: tuple[int, ...]) -> list[TrainedModel]:
    x, y = records()
    seeds = range(10, 10 + len(counts))
    return train_many(recipe, x, y, row_sets(counts), num_classes=CLASSES, seeds=seeds)


def alone(recipe: Architecture, counts: tuple[int, ...]) -> list[TrainedModel]:
    x, y = records()
    return [
        train(recipe, x[rows], y[rows], num_classes=CLASSES, seed=10 + i)
        for i, rows in enumerate(row_sets(counts))
    ]


def assert_agree(recipe: Architecture, found: TrainedModel, expected: TrainedModel) -> None:
    """To the tolerance that `train_many` states."""
    assert list(found.weights) == list(expected.weights)
    for name, weight in expected.weights.items():
        assert found.weights[name].dtype == weight.dtype
        assert found.weights[name].flags.c_contiguous
        scale = np.abs(weight).max()
        np.testing.assert_allclose(found.weights[name], weight, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-7)
    x, _ = records()
    answers = [
        logits(load_module(recipe, m.weights, x.shape[1:], CLASSES), x) for m in (found, expected)
    ]
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-4 * np.abs(answers[1]).max())


def assert_same(some: list[TrainedModel], others: list[TrainedModel]) -> None:
    for one, other in zip(some, others, strict=True):
        for name, weight in other.weights.items():
            np.testing.assert_array_equal(one.weights[name], weight)
        np.testing.assert_array_equal(one.losses, other.losses)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("recipe", ["adam", "sgd, decay, milestones"])
def test_any_row_counts_in_any_stack(recipe, counts, size, monkeypatch) -> None:
    monkeypatch.setattr(stacked, "STACK_CPU", size)
    pairs = zip(*(way(RECIPES[recipe], COUNTS[counts]) for way in (together, alone)), strict=True)
    for found, expected in pairs:
        assert len(found.losses) == RECIPES[recipe].epochs
        assert_agree(RECIPES[recipe], found, expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(recipe, monkeypatch) -> None:
    monkeypatch.setattr(stacked, "STACK_CPU", 3)
    counts = (50, 33, 50, 21)
    pairs = zip(*(way(RECIPES[recipe], counts) for way in (together, alone)), strict=True)
    for found, expected in pairs:
        assert_agree(RECIPES[recipe], found, expected)


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 20),
    size=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_row_counts_and_batch_sizes_of_all_sorts(counts, batch_size, size) -> None:
    recipe = with_recipe(RECIPE, hidden=(5,), epochs=2, batch_size=batch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked, "STACK_CPU", size)
        for found, expected in zip(
            together(recipe, tuple(counts)), alone(recipe, tuple(counts)), strict=True
        ):
            assert_agree(recipe, found, expected)


def test_each_model_stops_by_its_own_loss(monkeypatch) -> None:
    monkeypatch.setattr(stacked, "STACK_CPU", 4)
    recipe = with_recipe(RECIPE, epochs=60, learning_rate=0.01, min_loss=0.2)
    counts = (50, 20, 90, 35, 36)
    expected = alone(recipe, counts)
    epochs = [len(model.losses) for model in expected]
    assert len(set(epochs)) > 2, "these models should stop at different epochs"
    assert min(epochs) < recipe.epochs
    found = together(recipe, counts)
    assert [len(model.losses) for model in found] == epochs
    for one, other in zip(found, expected, strict=True):
        assert_agree(recipe, one, other)


def test_the_same_call_gives_the_same_bits_and_leaves_no_trace() -> None:
    x, y = records()
    x.setflags(write=False)
    rows = row_sets((50, 20, 33))
    before = [own.copy() for own in rows]
    state = torch.get_rng_state()

    def call() -> list[TrainedModel]:
        return train_many(RECIPE, x, y, rows, num_classes=CLASSES, seeds=[1, 2, 3])

    first = call()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(17)
    assert_same(first, call())
    for own, earlier in zip(rows, before, strict=True):
        np.testing.assert_array_equal(own, earlier)


def test_models_come_back_in_the_order_asked_for() -> None:
    x, y = records()
    rows, seeds = row_sets((20, 50, 33, 50)), [5, 6, 7, 8]
    forward = train_many(RECIPE, x, y, rows, num_classes=CLASSES, seeds=seeds)
    back = train_many(RECIPE, x, y, rows[::-1], num_classes=CLASSES, seeds=seeds[::-1])
    for one, other in zip(forward, back[::-1], strict=True):
        assert_agree(RECIPE, one, other)


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (with_recipe(RECIPE, dropout=0.3, epochs=3), (FEATURES,)),
        (make("cnn_s", channels=(4, 4), hidden=(8,), epochs=2), (1, 8, 8)),
    ],
)
def test_what_does_not_stack_trains_one_after_another(recipe, shape) -> None:
    x, y = records(shape)
    rows = row_sets((50, 33))
    found = train_many(recipe, x, y, rows, num_classes=CLASSES, seeds=[1, 2])
    expected = [
        train(recipe, x[own], y[own], num_classes=CLASSES, seed=seed)
        for own, seed in zip(rows, [1, 2], strict=True)
    ]
    assert_same(found, expected)


def test_records_of_any_shape_go_into_an_mlp() -> None:
    x, y = records((1, 3, 4))
    rows = row_sets((50, 33))
    found = train_many(RECIPE, x, y, rows, num_classes=CLASSES, seeds=[1, 2])
    flat = train_many(RECIPE, x.reshape(NUM, -1), y, rows, num_classes=CLASSES, seeds=[1, 2])
    assert_same(found, flat)


def test_a_row_may_come_twice() -> None:
    x, y = records()
    rows = np.array([3, 3, 7, 100, 7, 3])
    (found,) = train_many(RECIPE, x, y, [rows], num_classes=CLASSES, seeds=[4])
    assert_agree(RECIPE, found, train(RECIPE, x[rows], y[rows], num_classes=CLASSES, seed=4))


def test_divergence_names_the_epoch_and_the_remedy() -> None:
    recipe = with_recipe(RECIPES["sgd"], learning_rate=1e38, batch_size=10)
    with pytest.raises(FloatingPointError, match=r"in epoch 1; lower learning_rate \(now 1e\+38"):
        together(recipe, (50, 50))


def test_bad_calls_say_what_is_missing() -> None:
    x, y = records()
    assert train_many(RECIPE, x, y, [], num_classes=CLASSES, seeds=[]) == []
    with pytest.raises(ValueError, match="2 row sets and 1 seeds"):
        train_many(RECIPE, x, y, row_sets((5, 5)), num_classes=CLASSES, seeds=[1])
    with pytest.raises(ValueError, match=r"models \[1\] have no rows"):
        train_many(RECIPE, x, y, row_sets((5, 0)), num_classes=CLASSES, seeds=[1, 2])
