"""What is true of quantile regression."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from attacks.base import Records
from attacks.quantile import LEVELS, Quantile, _Net, _pinball_score, hinge

SMALL: dict[str, Any] = {"hidden": (64,), "learning_rate": 1e-3}
BOTH = pytest.mark.parametrize("loss", ["gaussian", "pinball"])
Signal = Callable[[Any, Any, Any], Any]


def hard(x: Any, y: Any, noise: Any) -> Any:
    """Place and spread are known from the record, or they hide the noise."""
    return 2 * x[:, 0] + np.exp(0.8 * x[:, 1]) * noise


class Toy:
    """A two-class service whose signals are a function of the record and of hidden noise.

    The noise of judged members is N(shift, 1), of others N(0, 1). The attacker has nothing but
    the population.
    """

    def __init__(
        self,
        signal: Signal = hard,
        shift: float = 1.0,
        num: int = 2000,
        num_population: int = 2000,
        shape: tuple[int, ...] = (6,),
    ) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng(0)
        n = num + num_population
        x = rng.normal(size=(n, *shape)).astype(np.float32)
        y = rng.integers(2, size=n)
        self.is_member = np.arange(num) % 2 == 0
        noise = rng.normal(size=n)
        noise[:num] += shift * self.is_member
        s = signal(x, y, noise)
        self.x, self.y, self.signal = x[:num], y[:num], s[:num]
        own = s * np.where(y == 1, 1, -1)  # of class 1
        found = {record.tobytes(): value for record, value in zip(x, own, strict=True)}

        def query(x: Any) -> Any:
            of_one = np.array([found[record.tobytes()] for record in x])
            return np.stack([expit(-of_one), expit(of_one)], axis=1)

        self.query = query
        self.known: Any = SimpleNamespace(
            population=Records(x[num:], y[num:]),
            query=query,
            num_classes=2,
            kind="image" if len(shape) == 3 else "continuous",
            device="cpu",
        )

    def scores(self, attack: Quantile, seed: int = 0) -> Any:
        return attack.score(self.query, self.known, self.x, self.y, seed=seed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@BOTH
def test_difficulty_known_from_the_record_is_used(toy: Toy, loss: Any) -> None:
    auc = roc_auc_score(toy.is_member, toy.scores(Quantile(loss=loss, **SMALL)))
    raw = roc_auc_score(toy.is_member, toy.signal)
    # Who knows place and spread sees a unit shift of Gaussians: Phi(1 / sqrt 2) = 0.760.
    assert raw < 0.65
    assert 0.72 < auc < 0.80


@BOTH
def test_requested_false_positives_are_realised_on_fresh_non_members(loss: Any) -> None:
    toy = Toy(shift=0.0, num=1000, num_population=4000)
    scores = toy.scores(Quantile(loss=loss, **SMALL))
    for alpha in (0.3, 0.1, 0.05):
        threshold = norm.ppf(1 - alpha) if loss == "gaussian" else -np.log10(alpha)
        realised = np.mean(scores > threshold)
        assert abs(realised - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / 1000)


@BOTH
def test_no_shift_gives_no_auc(loss: Any) -> None:
    toy = Toy(shift=0.0)
    auc = roc_auc_score(toy.is_member, toy.scores(Quantile(loss=loss, epochs=5, **SMALL)))
    assert abs(auc - 0.5) < 4 * np.sqrt(2001 / (12 * 1000 * 1000))


def test_spread_counts_as_well_as_place() -> None:
    """All non-members have the same mean; a large signal means little where signals spread."""
    toy = Toy(lambda x, y, noise: np.exp(x[:, 0]) * noise)
    noise = toy.signal / np.exp(toy.x[:, 0])
    scores = toy.scores(Quantile(**SMALL))
    assert spearmanr(toy.signal, noise)[0] < 0.9
    assert spearmanr(scores, noise)[0] > 0.95


def test_a_label_is_read_if_wanted() -> None:
    toy = Toy(lambda x, y, noise: np.where(y == 1, 4.0, -4.0) + noise)
    with_label, without = (
        roc_auc_score(toy.is_member, toy.scores(Quantile(use_label=use_label, **SMALL)))
        for use_label in (True, False)
    )
    assert with_label > without + 0.1
    assert with_label > 0.72


def test_difficulty_of_images_is_seen_by_convolutions() -> None:
    def contrast(x: Any, y: Any, noise: Any) -> Any:
        return 2 * np.abs(x[:, 0, 1:] - x[:, 0, :-1]).mean(axis=(1, 2)) ** 2 + 0.3 * noise

    toy = Toy(contrast, shape=(1, 7, 6))
    attack = Quantile(channels=(8,), **SMALL)
    net = _Net(attack, toy.x, toy.signal, toy.known)
    assert [p.ndim for p in net.parameters()] == [4, 1, 2, 1, 2, 1]
    auc = roc_auc_score(toy.is_member, toy.scores(attack))
    assert auc > roc_auc_score(toy.is_member, toy.signal) + 0.05


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (2, 3), (1,)])
def test_records_of_any_shape(shape: tuple[int, ...]) -> None:
    toy = Toy(lambda x, y, noise: noise, num=20, num_population=30, shape=shape)
    assert np.isfinite(toy.scores(Quantile(epochs=2))).all()


def test_the_epoch_is_chosen_on_what_is_held_out() -> None:
    """Signals that no record foretells: a net trained too long learns the population by heart."""
    toy = Toy(lambda x, y, noise: noise, num_population=300)
    kept, longer = (
        toy.scores(Quantile(hidden=(256,), learning_rate=3e-3, epochs=epochs))
        for epochs in (20, 60)
    )
    np.testing.assert_array_equal(kept, longer)
    assert spearmanr(kept, toy.signal)[0] > 0.9


def test_only_the_population_is_known_and_each_record_asked_about_once(world: Any) -> None:
    rows = world.parts["eval"][:17]
    for attack, asked in ((Quantile(epochs=1), 840), (Quantile(epochs=1, num_population=50), 50)):
        known, service = world.knowledge(attack, 0), world.service()
        attack.score(service, known, world.x[rows], world.y[rows], seed=0)
        assert service.num_queries == 17
        assert known.query.num_queries == asked


def test_overfitting_is_found_without_any_known_member(world: Any) -> None:
    for loss in ("gaussian", "pinball"):
        scores, is_member = world.run(Quantile(loss=loss, **SMALL))
        assert roc_auc_score(is_member, scores) > 0.75


def test_the_seed_draws_population_and_weights(toy: Toy) -> None:
    attack = Quantile(epochs=1, num_population=100)
    first, again, other = (toy.scores(attack, seed) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_bits_are_read_as_they_are(toy: Toy) -> None:
    x = (toy.x > 2.5).astype(np.float32)
    net = _Net(Quantile(), x, toy.signal, SimpleNamespace(kind="binary", num_classes=2))  # type: ignore[arg-type]
    assert not net.get_buffer("mean").any()
    assert (net.get_buffer("deviation") == 1).all()
    net = _Net(Quantile(), toy.x, toy.signal, toy.known)
    np.testing.assert_allclose(net.get_buffer("deviation"), toy.x.std(axis=0), rtol=1e-5)
    same = _Net(Quantile(), np.ones_like(x), toy.signal, toy.known)
    assert (same.get_buffer("deviation") == 1).all()


def test_signal_is_the_margin_of_log_confidences() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(5), size=30), rng.integers(5, size=30)
    before = p.copy()
    expected = [
        np.log(row[label]) - max(np.log(np.delete(row, label)))
        for row, label in zip(p, y, strict=True)
    ]
    np.testing.assert_allclose(hinge(p, y), expected, rtol=1e-12)
    np.testing.assert_array_equal(p, before)


def test_signal_is_finite_on_labels_only_and_on_nothing() -> None:
    onehot, y = np.eye(3)[[1, 1]], np.array([1, 0])
    for clip in (1e-12, 1e-30):
        np.testing.assert_allclose(hinge(onehot, y, clip=clip), [-np.log(clip), np.log(clip)])
    np.testing.assert_array_equal(hinge(0 * onehot, y), [0.0, 0.0])


def slow_level(quantiles: Any, signal: float) -> float:
    """-log10 of the false positive rate, found quantile by quantile."""
    q, rates = sorted(quantiles), [-np.log10(1 - level) for level in LEVELS]
    if signal <= q[0]:
        return rates[0] + 0.1 * (signal - q[0]) / (q[-1] - q[0])
    if signal > q[-1]:
        return rates[-1] + 0.1 * (signal - q[-1]) / (q[-1] - q[0])
    for low, high, rate in zip(q, q[1:], rates, strict=False):
        if low < signal <= high:
            return rate + 0.1 * (signal - low) / (high - low)
    raise AssertionError


def test_level_is_interpolated_between_quantiles_put_in_order() -> None:
    rng = np.random.default_rng(0)
    quantiles = rng.normal(size=(200, 41)).cumsum(axis=1) / 5  # they cross
    quantiles[:50] = np.round(quantiles[:50])  # and tie
    signal = rng.normal(size=200) * 3
    signal[:20] = quantiles[np.arange(20), rng.integers(41, size=20)]
    expected = [slow_level(q, s) for q, s in zip(quantiles, signal, strict=True)]
    np.testing.assert_allclose(_pinball_score(quantiles, signal), expected, atol=1e-9)


def test_levels_are_log_spaced_and_signals_beyond_them_keep_their_order() -> None:
    assert len(LEVELS) == 41
    np.testing.assert_allclose(-np.log10(1 - LEVELS), np.arange(41) / 10, atol=1e-9)
    quantiles = np.tile(np.linspace(-1, 1, 41), (300, 1))
    scores = _pinball_score(quantiles, np.linspace(-9, 9, 300))
    assert (np.diff(scores) > 0).all()
    collapsed = _pinball_score(np.zeros((3, 41)), np.array([-1.0, 0.0, 1.0]))
    assert np.isfinite(collapsed).all()
    assert collapsed[0] < collapsed[1] < collapsed[2]


def test_too_small_a_population_is_told() -> None:
    toy = Toy(num=10, num_population=9)
    with pytest.raises(ValueError, match=r"holds 9 records; .* at least 10"):
        toy.scores(Quantile())


def test_a_training_that_diverges_is_told(toy: Toy) -> None:
    with pytest.raises(FloatingPointError, match="learning_rate 1e\\+30"):
        toy.scores(Quantile(learning_rate=1e30, epochs=3))


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "huber"},
        {"num_population": 9},
        {"learning_rate": 0.0},
        {"epochs": 0},
        {"batch_size": 1},
        {"clip": 0.5},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quantile(**fields)
