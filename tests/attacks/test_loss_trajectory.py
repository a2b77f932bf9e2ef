"""What is true of the loss trajectory."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks.loss_trajectory import LossTrajectory, _distributions, _divide, _log_odds

CPU: dict[str, Any] = dict(LossTrajectory.PRESETS["cpu"])
QUICK: dict[str, Any] = {"snapshots": 3, "distil_epochs": 3, "epochs": 3, "hidden": (8,)}


@pytest.fixture(scope="module")
def crowded(make_world: Any) -> Any:
    """A world whose every record has a role, so that nothing is left to distil on."""
    world = make_world(per_side=120, seed=1)
    object.__setattr__(world, "population_rows", world.population_rows[:0])
    return world


def asked(world: Any, seed: int = 0, *, adaptive: bool = False) -> dict[str, Any]:
    (training,) = LossTrajectory().trainings(world.outline(adaptive=adaptive), seed=seed)
    return training


def watched(known: Any) -> list[dict[str, Any]]:
    """What is trained through `known.train` from now on."""
    seen: list[dict[str, Any]] = []
    train = type(known).train

    def watch(x: Any, targets: Any, **rest: Any) -> Any:
        models = train(known, x, targets, **rest)
        seen.append({"x": x, "targets": targets, "models": models, **rest})
        return models

    object.__setattr__(known, "train", watch)
    return seen


def judge(world: Any, known: Any, attack: LossTrajectory, rows: Any, seed: int = 0) -> Any:
    return attack.score(world.service(), known, world.x[rows], world.y[rows], seed=seed)


def contents(x: Any) -> set[bytes]:
    return {record.tobytes() for record in x}


@pytest.mark.parametrize(
    ("adaptive", "spare", "shares"),
    [
        (False, True, (0.5, 0.5, 0.0, 0.0)),
        (True, True, (0.4, 0.4, 0.0, 0.2)),
        (False, False, (0.4, 0.4, 0.2, 0.0)),
        (True, False, (0.3, 0.3, 0.2, 0.2)),
    ],
)
def test_held_records_are_divided(adaptive: bool, spare: bool, shares: Any) -> None:
    rows = np.random.default_rng(0).permutation(500)[:100]
    parts = _divide(rows, adaptive=adaptive, spare=spare, seed=0)
    assert [len(part) for part in parts] == [round(100 * share) for share in shares]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(rows))
    again = _divide(rows[::-1], adaptive=adaptive, spare=spare, seed=0)
    np.testing.assert_array_equal(parts[0], again[0])
    other = _divide(rows, adaptive=adaptive, spare=spare, seed=1)
    assert set(parts[0]) != set(other[0])
    odd = _divide(rows[:-1], adaptive=False, spare=True, seed=0)
    assert (len(odd[0]), len(odd[1])) == (49, 50)


def test_shadow_trains_on_half_of_what_is_known(world: Any, crowded: Any) -> None:
    for some, share in ((world, 0.5), (crowded, 0.4)):
        training = asked(some)
        assert set(training) == {"rows", "seed"}
        assert len(training["rows"]) == round(share * len(some.known_rows))
        assert np.isin(training["rows"], some.known_rows).all()
    assert asked(world)["seed"] != asked(world, 1)["seed"]


def test_adaptive_shadow_has_its_own_defense_with_its_own_reference(
    world: Any, crowded: Any
) -> None:
    for some, share in ((world, 0.4), (crowded, 0.3)):
        training = asked(some, adaptive=True)
        assert training["defended"] is True
        assert len(training["rows"]) == round(share * len(some.known_rows))
        assert len(training["reference_rows"]) == round(0.2 * len(some.known_rows))
        assert not np.isin(training["rows"], training["reference_rows"]).any()


def test_too_few_population_records_are_not_spare(make_world: Any) -> None:
    """As many as the shadow has members are enough."""
    world = make_world(per_side=120)
    for num, share in ((60, 0.5), (59, 0.4)):
        object.__setattr__(world, "population_rows", world.population_rows[:num])
        assert len(asked(world)["rows"]) == round(share * 120)


@pytest.mark.parametrize("adaptive", [False, True])
def test_models_are_distilled_on_records_that_are_compared_nowhere(
    world: Any, crowded: Any, adaptive: bool
) -> None:
    for some, num_aux in ((world, 600), (crowded, 24)):
        attack = LossTrajectory(**QUICK)
        known = some.knowledge(attack, 0, adaptive=adaptive)
        seen = watched(known)
        judge(some, known, attack, some.parts["eval"])
        shadows, targets = seen
        np.testing.assert_array_equal(shadows["x"], targets["x"])
        distilled_on = contents(shadows["x"])
        assert len(distilled_on) == len(shadows["x"]) == num_aux
        training = asked(some, adaptive=adaptive)
        used = [*training["rows"], *training.get("reference_rows", [])]
        assert not distilled_on & contents(some.x[used])
        assert not distilled_on & contents(some.x[some.parts["eval"]])
        s_in, s_out, s_aux, _ = _divide(
            some.known_rows, adaptive=adaptive, spare=some is world, seed=0
        )
        np.testing.assert_array_equal(s_in, training["rows"])
        assert not distilled_on & contents(some.x[s_out])
        assert len(s_aux) == (0 if some is world else 24)


def test_target_and_shadow_are_distilled_alike(world: Any) -> None:
    attack = LossTrajectory(**{**QUICK, "snapshots": 2})
    known = world.knowledge(attack, 0)
    seen = watched(known)
    judge(world, known, attack, world.parts["eval"])
    assert len(seen) == 2
    assert seen[0]["seed"] == seen[1]["seed"]
    for model, part in zip((known.trained[0], world.service()), seen, strict=True):
        answers = getattr(model, "answer", model)(part["x"])
        np.testing.assert_allclose(part["targets"], answers, rtol=1e-9)
        assert (part["snapshots"], part["epochs"]) == (2, 3)


def test_features_are_losses_under_the_snapshots_and_under_the_model(world: Any) -> None:
    attack, rows = LossTrajectory(**QUICK), world.parts["eval"]
    known = world.knowledge(attack, 0)
    seen = watched(known)
    x, y = world.x[rows], world.y[rows]
    judge(world, known, attack, rows)
    answers = world.service()(x)
    losses = attack._losses(seen[1]["models"], answers, x, y)
    assert losses.shape == (len(rows), 4)
    for t, model in enumerate((*seen[1]["models"], world.service())):
        p = getattr(model, "answer", model)(x)
        expected = [-np.log(max(row[label], 1e-12)) for row, label in zip(p, y, strict=True)]
        np.testing.assert_allclose(losses[:, t], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("num_auxiliary", "used"), [(100_000, 600), (50, 50)])
def test_asks_once_about_each_record_and_what_is_distilled_on(
    world: Any, num_auxiliary: int, used: int
) -> None:
    attack = LossTrajectory(**QUICK, num_auxiliary=num_auxiliary)
    known, service = world.knowledge(attack, 0), world.service()
    rows = world.parts["eval"][:17]
    attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == used


def test_finds_more_than_the_loss_alone(world: Any) -> None:
    scores, is_member = world.run(LossTrajectory(**CPU))
    rows = world.parts["eval"]
    alone = world.service()(world.x[rows])[np.arange(len(rows)), world.y[rows]]
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, alone) + 0.02
    assert ((scores > 0) == is_member).mean() > 0.75


def test_finds_overfitting_with_nothing_spare_and_with_own_copies(crowded: Any) -> None:
    for adaptive in (False, True):
        scores, is_member = crowded.run(LossTrajectory(**CPU), adaptive=adaptive)
        assert roc_auc_score(is_member, scores) > 0.65


def toy(num: int, effect: float, seed: int) -> tuple[Any, Any]:
    """Losses that fall from a record's difficulty; the last is lower by `effect` for members."""
    rng = np.random.default_rng(seed)
    is_in = np.arange(num) < num // 2
    difficulty = rng.normal(size=num)
    path = difficulty[:, None] * np.linspace(1, 0.8, 5) + 0.1 * rng.normal(size=(num, 5))
    own = difficulty - effect * is_in + 0.2 * rng.normal(size=num)
    return np.column_stack([path, own]), is_in


def fitted(attack: LossTrajectory, losses: Any, is_in: Any) -> Any:
    torch.set_num_threads(1)
    return attack._trained(losses, is_in, "cpu", np.random.default_rng(0))


def test_a_trajectory_tells_difficulty_from_membership() -> None:
    net = fitted(LossTrajectory(hidden=(32,)), *toy(600, 0.6, 0))
    losses, is_in = toy(2000, 0.6, 1)
    alone = roc_auc_score(is_in, -losses[:, -1])
    assert alone < 0.7
    # Known to about 0.22, the difficulty leaves a shift of 0.6 in a noise of that: 0.97.
    assert roc_auc_score(is_in, _log_odds(net, losses, "cpu")) > 0.94


def test_no_effect_is_not_found() -> None:
    net = fitted(LossTrajectory(hidden=(32,)), *toy(600, 0.0, 0))
    losses, is_in = toy(2000, 0.0, 1)
    auc = roc_auc_score(is_in, _log_odds(net, losses, "cpu"))
    assert abs(auc - 0.5) < 4 * np.sqrt(2001 / (12 * 1000 * 1000))


def test_the_epoch_is_chosen_on_records_that_are_not_fitted_on() -> None:
    """Held out are records on which all that is learned from the others is wrong."""
    losses, is_in = toy(400, 2.0, 2)
    held_out, rng = np.zeros(400, dtype=bool), np.random.default_rng(0)
    for side in (np.flatnonzero(is_in), np.flatnonzero(~is_in)):
        held_out[rng.permutation(side)[:40]] = True
    losses[held_out] = losses[held_out][::-1]
    net = fitted(LossTrajectory(hidden=(32,), epochs=40, learning_rate=1e-3), losses, is_in)
    right = (_log_odds(net, losses, "cpu") > 0) == is_in
    # The last epoch has 1 and 0 here.
    assert right[~held_out].mean() < 0.7
    assert right[held_out].mean() > 0.4


def test_losses_that_are_all_the_same_are_no_trouble() -> None:
    net = fitted(LossTrajectory(**QUICK), np.full((40, 4), 27.6), np.arange(40) < 20)
    assert np.isfinite(_log_odds(net, np.full((3, 4), 27.6), "cpu")).all()


def test_a_training_that_diverges_is_told() -> None:
    with pytest.raises(FloatingPointError, match=r"smaller learning_rate than 1e\+30"):
        fitted(LossTrajectory(learning_rate=1e30), *toy(100, 0.5, 0))


def test_true_membership_of_known_records_is_not_used(world: Any) -> None:
    attack, rows = LossTrajectory(**QUICK), world.parts["eval"]
    honest, flipped = (world.knowledge(attack, 0) for _ in range(2))
    for part in flipped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (judge(world, known, attack, rows) for known in (honest, flipped))
    np.testing.assert_array_equal(first, second)


def test_the_order_of_known_rows_does_not_matter(world: Any) -> None:
    attack, rows = LossTrajectory(**QUICK), world.parts["eval"]
    known = world.knowledge(attack, 0)
    object.__setattr__(known, "rows", known.rows[::-1])
    scores = judge(world, known, attack, rows)
    again = judge(world, world.knowledge(attack, 0), attack, rows)
    np.testing.assert_array_equal(scores, again)


def test_wrong_shadows_are_refused(world: Any) -> None:
    attack, rows = LossTrajectory(**QUICK), world.parts["eval"][:3]
    known = world.knowledge(attack, 0)
    with pytest.raises(ValueError, match="the seed trainings"):
        judge(world, known, attack, rows, seed=1)
    object.__setattr__(known, "trained", ())
    with pytest.raises(ValueError, match="got 0 shadow models"):
        judge(world, known, attack, rows)


def test_too_few_records_are_told() -> None:
    with pytest.raises(ValueError, match="20 known rows or more, not 19"):
        _divide(np.arange(19), adaptive=False, spare=True, seed=0)


@given(st.lists(st.lists(st.floats(-1, 1e6), min_size=3, max_size=3), min_size=1, max_size=5))
def test_answers_are_learned_as_distributions(rows: list[list[float]]) -> None:
    """Whatever was released; rows that say nothing say so."""
    released = np.array(rows)
    p = _distributions(released)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert (p >= 0).all()
    nothing = (released <= 0).all(axis=1)
    np.testing.assert_allclose(p[nothing], 1 / 3)
    np.testing.assert_array_equal(np.array(rows), released)


@pytest.mark.parametrize(
    "fields",
    [
        {"snapshots": 101},
        {"snapshots": 0},
        {"num_auxiliary": 0},
        {"momentum": 1.0},
        {"hidden": (0,)},
        {"clip": 0.0},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossTrajectory(**fields)


def test_presets_take_as_many_losses_as_the_paper_or_fewer() -> None:
    presets = {k: LossTrajectory(**v).snapshots for k, v in LossTrajectory.PRESETS.items()}
    assert presets == {"paper": 100, "sound": 25, "cpu": 10}
