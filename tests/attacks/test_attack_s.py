"""What is true of Attack S."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks._ranks import class_levels, levels
from attacks._references import held_records
from attacks.attack_s import AttackS
from attacks.base import Records

HIGH = -float(np.log(1e-12))


def two_classes(logit: Any) -> Any:
    p = expit(np.asarray(logit, dtype=np.float64))
    return np.stack([p, 1 - p], axis=-1)


def toy(role: Any, logit: Any) -> Any:
    """A knowledge of M records numbered by x, with shadow models' logits of class 0 [S, M]."""
    num_shadows, num = role.shape
    x = np.arange(num, dtype=np.float32)[:, None]
    y = np.zeros(num, dtype=np.int64)

    class Shadows:
        def __init__(self) -> None:
            self.num_shadows = num_shadows

        def __call__(self, x: Any) -> Any:
            return two_classes(logit[:, x[:, 0].astype(int)])

        def role(self, x: Any) -> Any:
            return role[:, x[:, 0].astype(int)]

    return SimpleNamespace(
        shadows=Shadows(),
        rows=np.arange(num),
        x_of=lambda rows: (x[rows], y[rows]),
        population=Records(x[:0], y[:0]),
        num_classes=2,
    )


def test_score_is_minus_the_level_among_out_losses(world: Any) -> None:
    rows, known = world.parts["eval"], world.knowledge(AttackS(), 0)
    held, shadows = held_records(known), world.shadows(8)

    def loss(model: Any, x: Any, y: Any) -> Any:
        return -np.log(model(x)[np.arange(len(y)), y].clip(min=1e-12))

    is_out = shadows.role(held.x) == 0
    out_loss = np.stack([loss(m.answer, held.x, held.y) for m in shadows.models])[is_out]
    # Half of the known rows, and all of the population, which no shadow model saw.
    assert len(out_loss) == 8 * (len(known.rows) / 2 + len(world.population_rows))
    mine = loss(world.service(), world.x[rows], world.y[rows])
    expected = levels(mine, out_loss, low=0.0, high=HIGH)
    np.testing.assert_allclose(world.run(AttackS())[0], -expected, rtol=1e-9)
    expected = class_levels(
        mine,
        world.y[rows],
        out_loss,
        np.stack([held.y] * 8)[is_out],
        low=0.0,
        high=HIGH,
        min_records=10,
    )
    np.testing.assert_allclose(world.run(AttackS(per_class=True))[0], -expected, rtol=1e-9)


@pytest.mark.parametrize("per_class", [False, True])
def test_requested_and_realised_false_positive_rate(world: Any, per_class: bool) -> None:
    """The shadow models are trained as the target is, so their OUT losses are like its own."""
    scores, is_member = world.run(AttackS(per_class=per_class))
    num = int((~is_member).sum())
    for alpha in (0.02, 0.1, 0.25, 0.5):
        realised = float((scores[~is_member] >= -alpha).mean())
        # The references are many, but of 1080 records only.
        sd = np.sqrt(alpha * (1 - alpha) * (1 / num + 1 / 1080))
        assert abs(realised - alpha) < 4 * sd


def test_gaussian_logits() -> None:
    """AUC 0.760 for a unit shift, and the false positive rate that was asked for."""
    rng = np.random.default_rng(0)
    role = (rng.random((8, 2000)) < 0.5).astype(np.int8)
    known = toy(role, rng.normal(size=role.shape) + role)
    is_member = np.arange(8000) < 4000
    logit = rng.normal(size=8000) + is_member
    x, y = np.zeros((8000, 1)), np.zeros(8000, dtype=np.int64)
    scores = AttackS().score(lambda x: two_classes(logit), known, x, y, seed=0)  # type: ignore[arg-type]
    # The standard deviation of the AUC is 0.0054.
    assert abs(roc_auc_score(is_member, scores) - norm.cdf(1 / np.sqrt(2))) < 0.022
    for alpha in (0.01, 0.1, 0.5):
        realised = float((scores[~is_member] >= -alpha).mean())
        sd = np.sqrt(alpha * (1 - alpha) * (1 / 4000 + 1 / 8000))
        assert abs(realised - alpha) < 4 * sd


def test_only_out_losses_are_ranked_among() -> None:
    """What a model answers to its own members and its defense's reference data is not read."""
    rng = np.random.default_rng(1)
    role = rng.integers(-1, 2, size=(8, 300)).astype(np.int8)
    logit = rng.normal(size=role.shape)
    planted = np.where(role == 0, logit, 30.0)
    x, y = np.zeros((50, 1)), np.zeros(50, dtype=np.int64)
    mine = rng.normal(size=50)
    first, second = (
        AttackS(per_class=True).score(lambda x: two_classes(mine), toy(role, l), x, y, seed=0)  # type: ignore[arg-type]
        for l in (logit, planted)  # noqa: E741
    )
    np.testing.assert_array_equal(first, second)


def test_asks_about_the_judged_records_only_and_once(world: Any) -> None:
    attack, service = AttackS(), world.service()
    known, rows = world.knowledge(attack, 0), world.parts["eval"][:17]
    attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == 0


def test_own_records_above_the_limit_are_drawn_by_the_seed() -> None:
    rng = np.random.default_rng(2)
    role = np.zeros((2, 500), dtype=np.int8)
    known = toy(role, rng.normal(size=role.shape))
    attack, y = AttackS(num_shadows=2, num_records=20), np.zeros(1, dtype=np.int64)
    service: Any = lambda x: two_classes(np.full(len(x), 0.3))  # noqa: E731
    x = np.zeros((1, 1))
    first, second, again = (attack.score(service, known, x, y, seed=s) for s in (0, 1, 0))
    assert first == again != second
    # 40 losses: levels come in steps of 1/41, apart from what is between two losses.
    everything = AttackS(num_shadows=2).score(service, known, x, y, seed=0)
    assert abs(first - everything) < 0.4


def test_equal_answers_have_equal_scores(world: Any, onehot: Any) -> None:
    scores, _ = world.run(AttackS(), defend=onehot)
    assert len(np.unique(scores)) == 2


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = AttackS(num_shadows=6).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 6
        assert {a["defended"] for a in asked} == {adaptive}


def test_shadow_models_without_out_records_are_refused() -> None:
    known = toy(np.ones((2, 5), dtype=np.int8), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="2 shadow models are OUT of none of the 5 records"):
        AttackS().score(None, known, np.zeros((1, 1)), np.zeros(1, dtype=np.int64), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"num_shadows": 3}, {"num_records": 0}, {"min_records": 0}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttackS(**fields)
