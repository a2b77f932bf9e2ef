"""What is true of RMIA."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from attacks._ratio import base, offline, tuned_a
from attacks.rmia import Rmia


def at_label(confidence: Any, y: Any) -> Any:
    return confidence[..., np.arange(len(y)), y]


def by_hand(world: Any, attack: Rmia, rows: Any, *, defended: bool = False) -> Any:
    """The definition, a record at a time and over all pairs."""
    shadows = world.shadows(attack.num_shadows, defended=defended)
    service, others = world.service(), world.knowledge(attack, 0).others
    a = attack.a

    def signals(x: Any, y: Any) -> Any:
        return at_label(shadows(x), y), shadows.role(x), at_label(service(x), y)

    ratio_z = []
    for p, role, target in zip(*(s.T for s in signals(others.x, others.y)), strict=True):
        if (role == 0).any():
            p_out = p[role == 0].mean()
            ratio_z.append(target / (0.5 * ((1 + a) * p_out + (1 - a))))
    scores = []
    for p, role, target in zip(*(s.T for s in signals(world.x[rows], world.y[rows])), strict=True):
        p_out = p[role == 0].mean()
        expected = 0.5 * ((1 + a) * p_out + (1 - a))
        if attack.mode == "online":
            expected = 0.5 * (p[role == 1].mean() + p_out)
        scores.append(np.mean([target / expected > attack.gamma * r for r in ratio_z]))
    return np.array(scores)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_score_is_the_definition(world: Any, mode: Any, gamma: float) -> None:
    attack = Rmia(mode=mode, gamma=gamma, a=0.3)
    expected = by_hand(world, attack, world.parts["eval"][:100])
    np.testing.assert_allclose(world.run(attack)[0][:100], expected, atol=1e-12)


def test_reference_records_of_defended_shadows_count_for_nothing(world: Any) -> None:
    attack, rows = Rmia(a=0.3), world.parts["eval"][:60]
    known = world.knowledge(attack, 0, adaptive=True)
    assert set(np.unique(known.shadows.role(world.x[rows]))) == {-1, 0, 1}
    scores = attack.score(world.service(), known, world.x[rows], world.y[rows], seed=0)
    np.testing.assert_allclose(scores, by_hand(world, attack, rows, defended=True), atol=1e-12)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("num_shadows", [4, 8])
def test_finds_more_than_the_confidence_alone(world: Any, mode: Any, num_shadows: int) -> None:
    """The confidence against the population's is Attack-P."""
    scores, is_member = world.run(Rmia(mode=mode, num_shadows=num_shadows))
    rows = world.parts["eval"]
    alone = at_label(world.service()(world.x[rows]), world.y[rows])
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, alone) + 0.04


def test_one_reference_model_beats_the_confidence_alone(world: Any) -> None:
    scores, is_member = world.run(Rmia(num_shadows=2))
    rows = world.parts["eval"]
    role = world.shadows(2).role(world.x[rows])
    assert ((role == 0).sum(axis=0) == 1).all()
    alone = at_label(world.service()(world.x[rows]), world.y[rows])
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, alone) + 0.02


def test_ranks_as_base_does(world: Any) -> None:
    attack = Rmia(a=1.0, gamma=1.0)
    scores, _ = world.run(attack)
    rows, shadows = world.parts["eval"], world.shadows(attack.num_shadows)
    x, y = world.x[rows], world.y[rows]
    p_out = np.nanmean(np.where(shadows.role(x) == 0, at_label(shadows(x), y), np.nan), axis=0)
    view = base(at_label(world.service()(x), y), offline(p_out, 1.0))
    # Records above the whole population tie; order is kept among all others.
    assert spearmanr(scores, view)[0] > 0.99
    order = np.argsort(view)
    assert (np.diff(scores[order]) >= 0).all()


def test_a_is_tuned_on_shadow_models_and_never_on_the_target(world: Any) -> None:
    attack, rows = Rmia(), world.parts["eval"]
    known, shadows = world.knowledge(attack, 0), world.shadows(8)
    x, y = world.x_of(world.known_rows)
    a = tuned_a(at_label(shadows(x), y), shadows.role(x))
    tuned = attack.score(world.service(), known, world.x[rows], world.y[rows], seed=0)
    fixed = Rmia(a=a).score(world.service(), known, world.x[rows], world.y[rows], seed=0)
    np.testing.assert_array_equal(tuned, fixed)
    assert known.query.num_queries == 2 * len(known.others)


def test_a_that_cannot_be_tuned_is_a_third(world: Any) -> None:
    tuned, fixed = (world.run(Rmia(num_shadows=2, a=a))[0] for a in (None, 0.33))
    np.testing.assert_array_equal(tuned, fixed)


def test_membership_of_held_records_is_not_asked_for(world: Any) -> None:
    attack, rows = Rmia(), world.parts["eval"]
    honest, flipped = (world.knowledge(attack, 0) for _ in range(2))
    for part in flipped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (
        attack.score(world.service(), known, world.x[rows], world.y[rows], seed=0)
        for known in (honest, flipped)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("num_population", "asked"), [(50, 50), (2500, 840)])
def test_asks_once_about_each_record_and_the_population(
    world: Any, num_population: int, asked: int
) -> None:
    attack, rows = Rmia(num_population=num_population), world.parts["eval"][:17]
    known, service = world.knowledge(attack, 0), world.service()
    scores = attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == asked
    np.testing.assert_allclose(scores * asked, np.round(scores * asked), atol=1e-9)


def test_the_population_is_drawn_by_the_seed(world: Any) -> None:
    attack = Rmia(num_population=50)
    first, again, other = (world.run(attack, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_population_records_without_an_out_model_are_left_out_and_not_asked(world: Any) -> None:
    attack = Rmia(a=0.33, num_shadows=2)
    known, service = world.knowledge(attack, 0), world.service()
    honest = known.shadows

    def without(dropped: Any) -> Any:
        lost = {record.tobytes() for record in known.others.x[dropped]}

        def role(x: Any) -> Any:
            mine = np.array([record.tobytes() in lost for record in x])
            return np.where(mine & (honest.role(x) == 0), -1, honest.role(x))

        class Some:
            num_shadows = 2

            def __call__(self, x: Any) -> Any:
                return honest(x)

        some: Any = Some()
        some.role = role
        return SimpleNamespace(
            shadows=some, population=known.others, query=world.service(), num_classes=8
        )

    rows = world.parts["eval"]
    some = without(slice(0, 300))
    scores = attack.score(service, some, world.x[rows], world.y[rows], seed=0)
    assert some.query.num_queries == 540
    np.testing.assert_allclose(scores * 540, np.round(scores * 540), atol=1e-9)
    with pytest.raises(ValueError, match="none of the 840 population records drawn has an OUT"):
        attack.score(service, without(slice(None)), world.x[rows], world.y[rows], seed=0)


def test_records_without_a_model_are_counted_in_the_error(world: Any) -> None:
    outside = np.setdiff1d(np.arange(len(world.x)), np.concatenate(list(world.parts.values())))[:3]
    x, y = world.x[outside], world.y[outside]
    online = Rmia(mode="online")
    with pytest.raises(ValueError, match="3 of 3 records have no IN models among 8"):
        online.score(world.service(), world.knowledge(online, 0), x, y, seed=0)
    assert Rmia().score(world.service(), world.knowledge(Rmia(), 0), x, y, seed=0).shape == (3,)
    with pytest.raises(ValueError, match="of 600 records have no OUT models among 2"):
        world.run(Rmia(num_shadows=2), adaptive=True)


def test_two_shadow_models_are_too_few_only_with_own_copies_of_the_defense(world: Any) -> None:
    assert "use 4 or more" in Rmia(num_shadows=2).fault((40,), adaptive=True)
    assert Rmia(num_shadows=2).fault((40,), adaptive=False) == ""
    assert Rmia(num_shadows=4).fault((40,), adaptive=True) == ""
    scores, is_member = world.run(Rmia(num_shadows=4), adaptive=True)
    assert roc_auc_score(is_member, scores) > 0.6


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = Rmia(num_shadows=6).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 6
        assert {a["defended"] for a in asked} == {adaptive}


def test_onehot_answers_leave_the_gap(world: Any, onehot: Any) -> None:
    """Right answers and wrong ones are told apart, and how surely others are right."""
    scores, is_member = world.run(Rmia(), defend=onehot)
    rows = world.parts["eval"]
    right = world.service()(world.x[rows]).argmax(axis=1) == world.y[rows]
    assert scores[right].min() >= scores[~right].max()
    assert roc_auc_score(is_member, scores) > 0.6


def test_shadow_answers_are_asked_for_in_pieces_of_bounded_memory() -> None:
    """Four models of 65,536 classes and 150 records do not fit in 128 MB at once."""
    num_classes, num_records = 2**16, 150
    rng = np.random.default_rng(0)
    level = rng.uniform(0.1, 0.9, size=(4, num_records))
    x = np.arange(num_records, dtype=np.float32)[:, None]
    y = np.full(num_records, 7)
    sizes = []

    def answer(level: Any) -> Any:
        confidence = np.zeros((*level.shape, num_classes), dtype=np.float32)
        confidence[..., 7] = level
        return confidence

    class Levels:
        num_shadows = 4

        def __call__(self, x: Any) -> Any:
            sizes.append(4 * len(x) * num_classes)
            return answer(level[:, x[:, 0].astype(int)])

        def role(self, x: Any) -> Any:
            return np.zeros((4, len(x)), dtype=np.int8)

    known: Any = SimpleNamespace(shadows=Levels(), num_classes=num_classes)
    p, role = Rmia(num_shadows=4)._signals(known, x, y)
    np.testing.assert_allclose(p, level, rtol=1e-7)
    assert max(sizes) <= 2**24
    assert len(sizes) > 2
    assert role.shape == (4, num_records)


def test_other_shadow_models_than_asked_for_are_refused(small_world: Any) -> None:
    known = small_world.knowledge(Rmia(num_shadows=4), 0)
    with pytest.raises(ValueError, match=r"got 4 shadow models .* num_shadows = 8"):
        Rmia().score(small_world.service(), known, small_world.x, small_world.y, seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_shadows": 0},
        {"num_shadows": 5},
        {"num_population": 0},
        {"gamma": 0.0},
        {"a": 1.1},
        {"clip": 0.0},
        {"mode": "both"},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rmia(**fields)
