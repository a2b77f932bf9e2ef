"""What is true of Attack P."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks._ranks import class_levels, levels
from attacks.attack_p import AttackP
from attacks.base import Records

HIGH = -float(np.log(1e-12))


def two_classes(x: Any) -> Any:
    """A service whose confidence in class 0 has the logit x."""
    p = expit(np.asarray(x, dtype=np.float64))
    return np.column_stack([p, 1 - p])


def toy(num_population: int, seed: int = 0, **fields: Any) -> tuple[AttackP, Any, Any]:
    """Logits of non-members are N(0, 1): the attack, what it knows, and a generator."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_population, 1))
    y = np.zeros(num_population, dtype=np.int64)
    asked: list[Any] = []

    def query(x: Any) -> Any:
        asked.append(x)
        return two_classes(x)

    known = SimpleNamespace(population=Records(x, y), query=query, num_classes=2, asked=asked)
    return AttackP(num_population=num_population, **fields), known, rng


def judge(attack: AttackP, known: Any, x: Any, y: Any) -> Any:
    return attack.score(two_classes, known, x, y, seed=0)  # type: ignore[arg-type]


def test_score_is_minus_the_level_among_the_population(world: Any) -> None:
    rows, known = world.parts["eval"], world.knowledge(AttackP(), 0)

    def loss(x: Any, y: Any) -> Any:
        return -np.log(world.service()(x)[np.arange(len(y)), y])

    mine, others = (
        loss(world.x[rows], world.y[rows]),
        loss(known.population.x, known.population.y),
    )
    expected = levels(mine, others, low=0.0, high=HIGH)
    np.testing.assert_allclose(world.run(AttackP())[0], -expected, rtol=1e-9)
    # Classes of more than the smallest number of records of any: some rank among all.
    least = int(np.median(np.bincount(known.population.y)))
    expected = class_levels(
        mine,
        world.y[rows],
        others,
        known.population.y,
        low=0.0,
        high=HIGH,
        min_records=least,
    )
    found = world.run(AttackP(per_class=True, min_records=least))[0]
    np.testing.assert_allclose(found, -expected, rtol=1e-9)
    assert not np.allclose(found, world.run(AttackP())[0])


@pytest.mark.parametrize("per_class", [False, True])
def test_requested_and_realised_false_positive_rate(world: Any, per_class: bool) -> None:
    scores, is_member = world.run(AttackP(per_class=per_class))
    num, num_population = int((~is_member).sum()), 840
    for alpha in (0.02, 0.1, 0.25, 0.5):
        realised = float((scores[~is_member] >= -alpha).mean())
        sd = np.sqrt(alpha * (1 - alpha) * (1 / num + 1 / num_population))
        assert abs(realised - alpha) < 4 * sd


def test_the_same_of_gaussian_logits_where_many_are_known() -> None:
    attack, known, rng = toy(20_000)
    x = rng.normal(size=(20_000, 1))
    scores = judge(attack, known, x, np.zeros(len(x), dtype=np.int64))
    for alpha in (0.001, 0.01, 0.1, 0.5):
        sd = np.sqrt(2 * alpha * (1 - alpha) / 20_000)
        assert abs((scores >= -alpha).mean() - alpha) < 4 * sd


def test_unit_shift_of_gaussian_logits() -> None:
    """AUC 0.760 where members' logits lie one standard deviation higher."""
    attack, known, rng = toy(500)
    is_member = np.arange(4000) < 2000
    x = (rng.normal(size=4000) + is_member)[:, None]
    scores = judge(attack, known, x, np.zeros(4000, dtype=np.int64))
    # The standard deviation of the AUC is 0.0076.
    assert abs(roc_auc_score(is_member, scores) - norm.cdf(1 / np.sqrt(2))) < 0.03


def test_records_below_all_the_population_stay_apart() -> None:
    attack, known, _ = toy(100)
    x = np.array([[5.0], [10.0], [20.0], [30.0]])
    scores = judge(attack, known, x, np.zeros(4, dtype=np.int64))
    assert (np.diff(scores) > 0).all()
    assert (scores > -1 / 101).all()


def test_harder_classes_are_told_by_their_own_losses() -> None:
    """Class 1 is four units harder; ranked together its members look like no members."""
    rng = np.random.default_rng(1)

    def drawn(num: int, is_member: Any) -> tuple[Any, Any]:
        y = rng.integers(2, size=num)
        logit = rng.normal(size=num) + 2 * is_member - 4 * y
        return np.where(y == 0, logit, -logit)[:, None], y

    is_member = np.arange(1000) < 500
    population = Records(*drawn(1000, False))
    known = SimpleNamespace(population=population, query=two_classes)
    x, y = drawn(1000, is_member)
    together, apart = (
        roc_auc_score(is_member, judge(AttackP(per_class=flag), known, x, y))
        for flag in (False, True)
    )
    assert apart > 0.9
    assert together < 0.75


@pytest.mark.parametrize(("num_population", "asked"), [(100, 100), (840, 840), (2500, 840)])
def test_asks_as_often_as_it_says(world: Any, num_population: int, asked: int) -> None:
    attack, service = AttackP(num_population=num_population), world.service()
    known, rows = world.knowledge(attack, 0), world.parts["eval"][:17]
    attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == asked


def test_which_of_a_large_population_are_asked_is_drawn() -> None:
    """Without replacement, by the seed."""
    _, known, _ = toy(1000)
    attack, y = AttackP(num_population=50), np.zeros(1, dtype=np.int64)
    for seed in (0, 1, 0):
        attack.score(two_classes, known, np.zeros((1, 1)), y, seed=seed)  # type: ignore[arg-type]
    first, second, again = (set(x[:, 0]) for x in known.asked)
    assert first == again != second
    assert len(first) == len(second) == 50


def test_equal_answers_have_equal_scores(world: Any, onehot: Any) -> None:
    """One-hot answers leave two losses, and as many scores."""
    scores, _ = world.run(AttackP(), defend=onehot)
    assert len(np.unique(scores)) == 2


def test_an_empty_population_is_refused() -> None:
    attack = AttackP()
    known = SimpleNamespace(population=Records(np.empty((0, 1)), np.empty(0, dtype=np.int64)))
    with pytest.raises(ValueError, match=r"known\.population is empty"):
        judge(attack, known, np.zeros((1, 1)), np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("fields", [{"num_population": 0}, {"min_records": 0}, {"clip": 0.5}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttackP(**fields)
