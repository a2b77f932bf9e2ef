from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from defenses._cvae import Recipe, _loss, reform, tensors, train_reformer
from defenses._cvae_facts import reformer_facts

ELBO = Recipe(
    objective="elbo",
    hidden=(32, 64, 128),
    latent=8,
    epochs=3,
    batch_size=64,
    learning_rate=1e-3,
    label_loss_weight=0.0,
    kl_weight=0.01,
    decoder_norm=True,
    published_init=False,
)
CODE = replace(ELBO, objective="code", batch_size=50, decoder_norm=False, published_init=True)


def overfitted(num_rows: int, num_classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), rng.integers(0, num_classes, num_rows)] += rng.uniform(
        1, 9, num_rows
    )
    return softmax(logits, axis=1)


@pytest.mark.parametrize("num_classes", [2, 10, 30, 100, 530])
@pytest.mark.parametrize("objective", ["text", "code", "elbo"])
def test_shapes(num_classes, objective):
    recipe = replace(ELBO, objective=objective, epochs=1)
    c = overfitted(70, num_classes)
    parameters = train_reformer(c, c[:20], recipe, seed=0)
    assert parameters["encoder.0.weight"].shape == (32, 2 * num_classes)
    assert parameters["decoder.0.weight"].shape == (128, 8 + num_classes)
    p = reform(c, np.zeros((70, 8)), parameters, recipe)
    assert p.shape == c.shape
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)


def test_public_objective_collapses_to_one_vector_a_label():
    c, val = overfitted(600, 10), overfitted(150, 10, seed=1)
    recipe = replace(CODE, epochs=40)
    found = reformer_facts(val, train_reformer(c, val, recipe, seed=0), recipe, seed=0)
    assert found["kl_mean"] <= 2 / (50 * 10) + 1e-3
    assert found["variance_ratio"] < 0.02
    assert found["info_r2"] < 0.2


def test_without_a_price_on_information_it_reconstructs():
    c, val = overfitted(600, 3), overfitted(200, 3, seed=1)
    recipe = replace(
        ELBO, kl_weight=0.0, epochs=100, learning_rate=5e-3, batch_size=100, hidden=(64, 64, 64)
    )
    parameters = train_reformer(c, val, recipe, seed=0)
    p = reform(val, np.zeros((200, 8)), parameters, recipe)
    assert np.mean((p - val) ** 2) < 1e-4
    found = reformer_facts(val, parameters, recipe, seed=0)
    assert found["variance_ratio"] == pytest.approx(1, abs=0.1)
    assert found["noise_variance_ratio"] < 0.01
    assert found["info_r2"] > 0.9


def numpy_reformer(c, condition, xi, parameters, recipe):
    """The layers by hand, with batch norm of the stored statistics."""

    def linear(name, h):
        return h @ parameters[f"{name}.weight"].T.astype(float) + parameters[f"{name}.bias"]

    def norm_relu(name, h):
        mean, variance = (
            parameters[f"{name}.running_{kind}"].astype(float) for kind in ("mean", "var")
        )
        h = (h - mean) / np.sqrt(variance + 1e-5)
        return np.maximum(h * parameters[f"{name}.weight"] + parameters[f"{name}.bias"], 0)

    h = np.concatenate([c, condition], axis=1)
    for layer in (0, 3, 6):
        h = norm_relu(f"encoder.{layer + 1}", linear(f"encoder.{layer}", h))
    mean = linear("mean", h)
    log_variance = np.zeros_like(mean)
    if recipe.objective != "text":
        log_variance = np.clip(linear("log_variance", h), -20, 10)
    h = np.concatenate([mean + np.exp(log_variance / 2) * xi, condition], axis=1)
    h = linear("decoder.0", h)
    layer = 1
    if recipe.decoder_norm:
        h, layer = norm_relu("decoder.1", h), 3
    for _ in range(2):
        h = norm_relu(f"decoder.{layer + 1}", linear(f"decoder.{layer}", h))
        layer += 3
    return mean, log_variance, linear(f"decoder.{layer}", h)


@pytest.mark.parametrize("recipe", [ELBO, CODE, replace(ELBO, objective="text")])
def test_agrees_with_the_layers_written_out(recipe):
    c = overfitted(90, 5)
    parameters = train_reformer(c, c[:20], recipe, seed=0)
    xi = np.random.default_rng(0).normal(size=(90, 8))
    condition = np.eye(5)[c.argmax(axis=1)]
    _, _, logits = numpy_reformer(c, condition, xi, parameters, recipe)
    p = reform(c, xi, parameters, recipe)
    np.testing.assert_allclose(p, softmax(logits, axis=1), rtol=0, atol=1e-6)
    # The condition is the label, and it changes the answer.
    other = np.roll(condition, 1, axis=1)
    _, _, logits = numpy_reformer(c, other, xi, parameters, recipe)
    assert np.abs(p - softmax(logits, axis=1)).max() > 1e-5


def test_row_does_not_depend_on_its_batch():
    c = overfitted(5000, 10)
    parameters = train_reformer(c[:100], c[:20], ELBO, seed=0)
    xi = np.random.default_rng(0).normal(size=(5000, 8))
    together = reform(c, xi, parameters, ELBO)
    for rows in (slice(0, 1), slice(4000, 4321), slice(4990, 5000)):
        alone = reform(c[rows], xi[rows], parameters, ELBO)
        np.testing.assert_allclose(alone, together[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", ["text", "code", "elbo"])
@pytest.mark.parametrize("label_loss_weight", [0.0, 0.7])
def test_loss_agrees_with_the_formula_row_by_row(objective, label_loss_weight):
    rng = np.random.default_rng(0)
    c = overfitted(6, 3)
    mean, log_variance, xi = rng.normal(size=(3, 6, 2))
    matrix = rng.normal(size=(5, 3))

    class Linear:
        def decode(self, v, condition):
            return torch.cat([v, condition], dim=1) @ torch.tensor(matrix)

    recipe = replace(ELBO, objective=objective, label_loss_weight=label_loss_weight)
    latent = torch.tensor(mean), torch.tensor(log_variance)
    found = _loss(Linear(), latent, *tensors(c, torch.float64, "cpu"), torch.tensor(xi), recipe, 6)

    total = 0.0
    for i in range(6):
        label = int(c[i].argmax())
        v = [mean[i, d] + np.exp(log_variance[i, d] / 2) * xi[i, d] for d in range(2)]
        log_p = log_softmax(np.concatenate([v, np.eye(3)[label]]) @ matrix)
        error = sum((np.exp(log_p[k]) - c[i, k]) ** 2 for k in range(3))
        kl = sum(
            (mean[i, d] ** 2 + np.exp(log_variance[i, d]) - 1 - log_variance[i, d]) / 2
            for d in range(2)
        )
        if objective == "code":  # mean over B C of the error, but sum over the batch of KL
            total += error / (6 * 3) + kl
        elif objective == "elbo":
            total += (error + 0.01 * kl) / 6
        else:
            total += (error + 1e-3 * sum(mean[i] ** 2)) / 6
        total -= label_loss_weight * log_p[label] / 6
    assert float(found) == pytest.approx(total, rel=1e-9)


def test_keeps_the_best_epoch_not_the_last():
    c, val = overfitted(60, 5), overfitted(60, 5, seed=1)
    # So large a rate that the loss on other records goes up and down.
    recipe = replace(ELBO, learning_rate=0.05, batch_size=20)
    runs = [train_reformer(c, val, replace(recipe, epochs=n), seed=0) for n in range(1, 13)]
    kept = [run["mean.weight"].tobytes() for run in runs]
    assert 1 < len(set(kept)) < len(kept)


def test_seed_decides_and_nothing_else():
    c = overfitted(80, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_reformer(c, c[:20], ELBO, seed=5)
    assert torch.equal(before, torch.get_rng_state()), "the caller's generator was used"
    torch.manual_seed(2)
    second, third = (train_reformer(c, c[:20], ELBO, seed=seed) for seed in (5, 6))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert not np.array_equal(first["mean.weight"], third["mean.weight"])


def test_odd_last_batch_of_one_record():
    c = overfitted(65, 5)
    assert train_reformer(c, c[:1], ELBO, seed=0)


def test_too_few_records_and_divergence_are_said():
    c = overfitted(40, 5)
    with pytest.raises(ValueError, match="got 1 and 40; enlarge the reference"):
        train_reformer(c[:1], c, ELBO, seed=0)
    with pytest.raises(ValueError, match="lower learning_rate"):
        train_reformer(c, c, replace(ELBO, learning_rate=1e30), seed=0)


def test_within_label_facts_agree_with_loops():
    c = overfitted(60, 4)
    parameters = train_reformer(c, c[:20], replace(ELBO, epochs=20), seed=0)
    p = reform(c, np.zeros((60, 8)), parameters, ELBO)
    labels = [int(np.argmax(row)) for row in c]
    spread = {"c": 0.0, "p": 0.0}
    for label in set(labels):
        rows = [i for i, other in enumerate(labels) if other == label]
        spread["c"] += np.trace(np.cov(c[rows].T))
        spread["p"] += np.trace(np.cov(p[rows].T))
    found = reformer_facts(c, parameters, ELBO, seed=0)
    assert found["variance_ratio"] == pytest.approx(spread["p"] / spread["c"])
