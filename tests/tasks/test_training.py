"""Training repeats to the bit, leaves no trace, and says when it fails."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tasks.architectures import Architecture, make, with_recipe
from tasks.training import BATCH, TrainedModel, load_module, logits, softmax64, train

RECIPES = {
    "mlp": make("mlp_s", hidden=(16, 8), epochs=6, learning_rate=0.01, batch_size=16),
    "dropout": make("mlp_s", hidden=(16,), epochs=4, dropout=0.3, batch_size=16),
    "sgd": make(
        "mlp_s", hidden=(16,), epochs=6, optimizer="sgd", learning_rate=0.05, milestones=(3,)
    ),
    "decay": make("mlp_s", hidden=(16,), epochs=4, weight_decay=0.1),
    "cnn": make("cnn_s", channels=(4, 4), hidden=(8,), epochs=3, batch_size=16),
}


def records(recipe: Architecture, num: int = 50) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    shape = (1, 8, 8) if recipe.network == "cnn" else (8,)
    y = rng.integers(3, size=num)
    x = rng.normal(size=(num, *shape)) + y.reshape(-1, *([1] * len(shape)))
    return x.astype(np.float32), y


def fit(recipe: Architecture, seed: int = 0, num: int = 50) -> TrainedModel:
    x, y = records(recipe, num)
    return train(recipe, x, y, num_classes=3, seed=seed)


def flat(model: TrainedModel) -> NDArray[Any]:
    return np.concatenate([value.ravel() for value in model.weights.values()])


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(name: str) -> None:
    one = fit(RECIPES[name])
    torch.rand(17)
    np.random.default_rng().random(3)
    two = fit(RECIPES[name])
    np.testing.assert_array_equal(flat(one), flat(two))
    np.testing.assert_array_equal(one.losses, two.losses)


@pytest.mark.parametrize("name", RECIPES)
def test_other_seeds_give_other_models(name: str) -> None:
    models = [flat(fit(RECIPES[name], seed)) for seed in (0, 1, 2)]
    assert (models[0] != models[1]).any()
    assert (models[1] != models[2]).any()


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls_and_every_epoch_is_kept(name: str) -> None:
    model = fit(RECIPES[name])
    assert len(model.losses) == RECIPES[name].epochs
    assert model.losses[-1] < model.losses[0]


@pytest.mark.parametrize("name", RECIPES)
def test_training_leaves_no_trace_outside(name: str) -> None:
    recipe = RECIPES[name]
    x, y = records(recipe)
    before_x, before_y = x.copy(), y.copy()
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = train(recipe, x, y, num_classes=3, seed=1)
    logits(load_module(recipe, model.weights, x.shape[1:], 3), x)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(x, before_x)
    np.testing.assert_array_equal(y, before_y)


def test_a_loss_of_an_epoch_is_the_mean_over_records_not_over_batches() -> None:
    # With a rate this small the model stays as it was drawn, so any batch size sees one model.
    recipe = with_recipe(RECIPES["mlp"], learning_rate=1e-12, epochs=1)
    whole = fit(with_recipe(recipe, batch_size=50))
    uneven = fit(with_recipe(recipe, batch_size=49))
    np.testing.assert_allclose(uneven.losses, whole.losses, rtol=1e-5)
    x, y = records(recipe)
    p = softmax64(logits(load_module(recipe, whole.weights, (8,), 3), x))
    np.testing.assert_allclose(whole.losses, -np.log(p[np.arange(50), y]).mean(), rtol=1e-5)


def test_training_stops_below_min_loss() -> None:
    free = fit(with_recipe(RECIPES["mlp"], epochs=30))
    bound = float(free.losses[4])
    stopped = fit(with_recipe(RECIPES["mlp"], epochs=30, min_loss=np.nextafter(bound, 1)))
    np.testing.assert_array_equal(stopped.losses, free.losses[:5])
    # Below means below.
    assert len(fit(with_recipe(RECIPES["mlp"], epochs=30, min_loss=bound)).losses) > 5


def test_the_milestone_divides_the_rate_by_ten() -> None:
    recipe = make("mlp_s", hidden=(4,), epochs=3, optimizer="sgd", learning_rate=0.1)
    x, y = records(recipe, num=20)

    def moved(milestones: tuple[int, ...]) -> NDArray[Any]:
        recipes = [
            with_recipe(recipe, milestones=milestones, epochs=epochs, batch_size=20)
            for epochs in (1, 2)
        ]
        first, second = (flat(train(r, x, y, num_classes=3, seed=0)) for r in recipes)
        return second - first

    np.testing.assert_allclose(10 * moved((1,)), moved(()), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_shrinks_weights(optimizer: str) -> None:
    recipe = make("mlp_s", hidden=(16,), epochs=20, optimizer=optimizer, learning_rate=0.01)
    norms = [np.linalg.norm(flat(fit(with_recipe(recipe, weight_decay=d)))) for d in (0, 0.1, 1)]
    assert norms[0] > norms[1] > norms[2]


@pytest.mark.parametrize(("batch_size", "epoch"), [(10, 1), (50, 2)])
def test_divergence_names_the_epoch_and_the_remedy(batch_size: int, epoch: int) -> None:
    # A step of this size overflows; the loss shows it at the next batch.
    recipe = with_recipe(RECIPES["sgd"], learning_rate=1e38, batch_size=batch_size)
    message = rf"(nan|inf) in epoch {epoch}; lower learning_rate \(now 1e\+38\)"
    with pytest.raises(FloatingPointError, match=message):
        fit(recipe)


def test_one_record_is_enough_and_a_last_short_batch_is_used() -> None:
    assert np.isfinite(fit(RECIPES["mlp"], num=1).losses).all()
    recipe = with_recipe(RECIPES["mlp"], epochs=1, batch_size=49)
    assert (flat(fit(recipe)) != flat(fit(with_recipe(recipe, batch_size=50)))).any()


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_model_answers_without_dropout_in_any_batch(name: str) -> None:
    recipe = RECIPES[name]
    x, _ = records(recipe, num=40)
    module = load_module(recipe, fit(recipe).weights, x.shape[1:], 3)
    answer = logits(module, x)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(logits(module, x), answer)
    alone = np.concatenate([logits(module, x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(alone, answer, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(logits(module, x[order]), answer[order], rtol=1e-4, atol=1e-5)


def test_logits_of_a_small_net_are_those_computed_by_hand() -> None:
    recipe = RECIPES["mlp"]
    model, (x, _) = fit(recipe), records(recipe)
    hidden = x.astype(np.float64)
    for layer in (1, 3, 5):
        weight, bias = (model.weights[f"{layer}.{name}"] for name in ("weight", "bias"))
        hidden = hidden @ weight.T.astype(np.float64) + bias
        hidden = hidden if layer == 5 else np.tanh(hidden)
    found = logits(load_module(recipe, model.weights, (8,), 3), x)
    np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_any_number_of_records_is_answered_in_order(num: int) -> None:
    recipe = RECIPES["mlp"]
    module = load_module(recipe, fit(recipe).weights, (8,), 3)
    x = np.random.default_rng(2).normal(size=(num, 8)).astype(np.float32)
    with torch.inference_mode():
        whole = module(torch.from_numpy(x)).numpy()
    assert logits(module, x).shape == (num, 3)
    np.testing.assert_allclose(logits(module, x), whole, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_module(RECIPES["mlp"], fit(RECIPES["mlp"]).weights, (9,), 3)


LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 7)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-40, 40, width=32),
)


@settings(deadline=None)
@given(LOGITS)
def test_softmax_rows_sum_to_one_and_keep_the_order(z: NDArray[np.float32]) -> None:
    before = z.copy()
    p = softmax64(z)
    assert p.dtype == np.float64
    assert p.shape == z.shape
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=0, atol=1e-9)
    assert ((p >= 0) & (p <= 1)).all()
    for z_C, p_C in zip(z.tolist(), p, strict=True):
        assert p_C[z_C.index(max(z_C))] == p_C.max()
        top = max(z_C)
        weights = [np.exp(value - top) for value in z_C]  # Python floats, one by one
        np.testing.assert_allclose(p_C, np.array(weights) / sum(weights), rtol=1e-12, atol=0)
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize("gap", [5.0, 16.7, 30.0, 34.53])
def test_a_memorised_member_keeps_its_logit(gap: float) -> None:
    # At 34.53 p_y is 1 - 1e-15; in float32 anything above 16.7 is 1 and the logit infinite.
    gap32 = np.float32(gap)
    p = softmax64(np.array([[0, gap32]], np.float32))[0]
    assert p[1] < 1
    phi = np.log(p[1]) - np.log1p(-p[1])
    assert np.isfinite(phi)
    assert abs(phi - float(gap32)) < 0.2
    # From the other entry it is exact.
    assert abs(np.log(p[1] / p[0]) - float(gap32)) < 1e-9


def test_saturated_logits_stay_finite() -> None:
    p = softmax64(np.array([[3e38, -3e38, 0], [1000, 0, 0], [0, 0, 0]], np.float32))
    np.testing.assert_array_equal(p[0], [1, 0, 0])
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p[2], 1 / 3)
