"""What is true of Attack D."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from attacks._references import held_records, own_scores, signal
from attacks.attack_d import AttackD
from attacks.attack_p import AttackP
from attacks.base import Records


def watched(world: Any, attack: AttackD, **options: Any) -> tuple[Any, list[Any]]:
    """What the attacker knows, and every training it asks for: x, targets, seed, model."""
    known = world.knowledge(attack, 0, **options)
    trainings: list[Any] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(known, name)

        def train(self, x: Any, targets: Any, *, seed: int, **recipe: Any) -> Any:
            assert not recipe
            models = known.train(x, targets, seed=seed)
            trainings.append((x, targets, seed, models[0]))
            return models

    return Watched(), trainings


@pytest.fixture(scope="module")
def fitted(world: Any) -> Any:
    """The attack on the evaluation and calibration records, and what it asked for."""
    known, trainings = watched(world, AttackD())
    service = world.service()
    rows = np.concatenate([world.parts["cal"], world.parts["eval"]])
    scores = AttackD().score(service, known, world.x[rows], world.y[rows], seed=0)
    return SimpleNamespace(
        known=known, trainings=trainings, service=service, rows=rows, scores=scores
    )


def test_finds_more_than_one_threshold_for_all(world: Any, fitted: Any) -> None:
    of_eval = slice(len(world.parts["cal"]), None)
    is_member = world.is_member[world.parts["eval"]]
    one, _ = world.run(AttackP())
    found = roc_auc_score(is_member, fitted.scores[of_eval])
    assert found > roc_auc_score(is_member, one) + 0.05


def test_halves_of_the_held_records_are_complementary(fitted: Any) -> None:
    held = {record.tobytes() for record in held_records(fitted.known).x}
    assert len(fitted.trainings) == 8
    for pair in range(4):
        first, second = (
            {record.tobytes() for record in fitted.trainings[k][0]}
            for k in (2 * pair, 2 * pair + 1)
        )
        assert len(first) == len(second) == len(held) // 2
        assert first | second == held
    assert len({frozenset(x.tobytes() for x in t[0]) for t in fitted.trainings}) == 8
    assert len({t[2] for t in fitted.trainings}) == 8


def test_judged_records_are_not_distilled_on(world: Any, fitted: Any) -> None:
    judged = {record.tobytes() for record in world.x[world.parts["eval"]]}
    for x, *_ in fitted.trainings:
        assert not judged & {record.tobytes() for record in x}


def test_soft_labels_are_the_services_answers(world: Any, fitted: Any) -> None:
    for x, targets, *_ in fitted.trainings:
        np.testing.assert_allclose(targets, world.service()(x), rtol=1e-12)


def test_asks_once_for_every_record_it_holds_or_judges(world: Any, fitted: Any) -> None:
    assert fitted.service.num_queries == len(fitted.rows)
    assert fitted.known.query.num_queries == len(world.known_rows) + len(world.population_rows)


def test_at_most_num_records_are_asked_about(small_world: Any) -> None:
    attack, rows = AttackD(num_records=51, num_models=4), small_world.parts["eval"][:5]
    known, trainings = watched(small_world, attack)
    x, y = small_world.x[rows], small_world.y[rows]
    attack.score(small_world.service(), known, x, y, seed=0)
    assert known.query.num_queries == 51
    assert [len(t[0]) for t in trainings] == [25, 26, 25, 26]


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_score_is_minus_the_level_among_models_not_distilled_on_the_record(
    world: Any, fitted: Any, smooth: Any
) -> None:
    """Calibration records are held, so half of the models know them; of judged ones none does."""
    x, y = world.x[fitted.rows], world.y[fitted.rows]
    models = [t[3] for t in fitted.trainings]
    knows = [{record.tobytes() for record in t[0]} for t in fitted.trainings]
    is_out = np.array([[record.tobytes() not in known for record in x] for known in knows])
    num_cal = len(world.parts["cal"])
    assert (is_out[:, :num_cal].sum(axis=0) == 4).all()
    assert is_out[:, num_cal:].all()
    reference = np.stack([signal(m.answer(x), y, smooth, clip=1e-12) for m in models])
    target = signal(world.service()(x), y, smooth, clip=1e-12)
    expected = own_scores(target, reference, is_out, smooth, clip=1e-12)
    found = fitted.scores
    if smooth == "linear":
        service = world.service()
        found = AttackD(smooth=smooth).score(service, world.knowledge(AttackD(), 0), x, y, seed=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_released_rows_become_distributions(small_world: Any, scale: float) -> None:
    attack, rows = AttackD(num_models=4), small_world.parts["eval"][:5]
    known, trainings = watched(small_world, attack, defend=lambda c: scale * c)
    x, y = small_world.x[rows], small_world.y[rows]
    attack.score(small_world.service(), known, x, y, seed=0)
    honest = small_world.service()
    for asked, targets, *_ in trainings:
        expected = honest(asked) if scale else np.full(targets.shape, 1 / targets.shape[1])
        np.testing.assert_allclose(targets, expected, rtol=1e-9)


class Toy:
    """Distilled models of normal logits around every record's own mean: the target without it."""

    def __init__(self, mean: Any, scale: Any, *, held: int = 4) -> None:
        self.mean, self.scale = mean, scale
        x = -1 - np.arange(held, dtype=np.float32)[:, None]
        y = np.zeros(held, dtype=np.int64)
        self.rows, self.x_of = np.arange(held), lambda rows: (x[rows], y[rows])
        self.population = Records(x[:0], y[:0])

    def query(self, x: Any) -> Any:
        return np.full((len(x), 2), 0.5)

    def train(self, x: Any, targets: Any, *, seed: int) -> Any:
        drawn = np.random.default_rng(seed).normal(size=len(self.mean))

        def answer(x: Any) -> Any:
            p = expit((self.mean + self.scale * drawn)[x[:, 0].astype(int)])
            return np.column_stack([p, 1 - p])

        return (SimpleNamespace(answer=answer),)


def toy_scores(num_models: int, num: int, *, shift: Any) -> Any:
    rng = np.random.default_rng(1)
    mean, scale = rng.normal(0, 3, num), rng.uniform(0.2, 1, num)
    p = expit(mean + scale * (rng.normal(size=num) + shift))
    service: Any = lambda x: np.column_stack([p, 1 - p])[x[:, 0].astype(int)]  # noqa: E731
    known: Any = Toy(mean, scale)
    x = np.arange(num, dtype=np.float32)[:, None]
    attack = AttackD(num_models=num_models)
    return attack.score(service, known, x, np.zeros(num, dtype=np.int64), seed=0)


def test_unit_shift_of_gaussian_logits() -> None:
    """AUC 0.760 with many models."""
    is_member = np.arange(3000) < 1500
    auc = roc_auc_score(is_member, toy_scores(256, 3000, shift=is_member))
    # The standard deviation of the AUC is 0.0088.
    assert abs(auc - norm.cdf(1 / np.sqrt(2))) < 0.036


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_requested_and_realised_false_positive_rate(alpha: float) -> None:
    """Where distilled models are what the target would be without the record."""
    low, high = binom.interval(1 - 6e-5, 10_000, alpha)
    assert low <= (toy_scores(8, 10_000, shift=0.0) >= -alpha).sum() <= high


def test_the_seed_chooses_halves_and_models(small_world: Any) -> None:
    rows = small_world.parts["eval"]
    x, y = small_world.x[rows], small_world.y[rows]
    scores = []
    for seed in (0, 1):
        known, _ = watched(small_world, AttackD(num_models=4))
        scores.append(AttackD(num_models=4).score(small_world.service(), known, x, y, seed=seed))
    assert not np.allclose(scores[0], scores[1])
    assert np.corrcoef(scores[0], scores[1])[0, 1] > 0.5


def test_equal_answers_have_equal_scores(small_world: Any, onehot: Any) -> None:
    """A record asked about twice."""
    attack, rows = AttackD(num_models=4), np.tile(small_world.parts["eval"][:9], 2)
    known = small_world.knowledge(attack, 0, onehot)
    service = small_world.service(defend=onehot)
    scores = attack.score(service, known, small_world.x[rows], small_world.y[rows], seed=0)
    np.testing.assert_array_equal(scores[:9], scores[9:])


def test_fewer_than_two_records_are_refused(small_world: Any) -> None:
    known = small_world.knowledge(AttackD(), 0)
    none = Records(small_world.x[:0], small_world.y[:0])
    alone = replace(known, rows=known.rows[:1], others=none)
    with pytest.raises(ValueError, match="attack_d holds 1 records"):
        AttackD().score(small_world.service(), alone, small_world.x, small_world.y, seed=0)


@pytest.mark.parametrize("fields", [{"num_models": 2}, {"num_models": 7}, {"num_records": 1}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttackD(**fields)
