"""What is true of Attack R."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, softmax
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from attacks._likelihood import logit_confidence
from attacks._ranks import own_levels, predictive_levels
from attacks.attack_p import AttackP
from attacks.attack_r import AttackR
from attacks.gap import Gap

HIGH = -float(np.log(1e-12))


def two_classes(logit: Any) -> Any:
    p = expit(np.asarray(logit, dtype=np.float64))
    return np.stack([p, 1 - p], axis=-1)


def toy_scores(attack: AttackR, target: Any, reference: Any, role: Any) -> Any:
    """Scores of N records of class 0 with these logits, [N] of the target and [S, N]."""

    class Shadows:
        num_shadows = len(reference)

        def __call__(self, x: Any) -> Any:
            return two_classes(reference[:, x[:, 0].astype(int)])

        def role(self, x: Any) -> Any:
            return role[:, x[:, 0].astype(int)]

    known: Any = SimpleNamespace(shadows=Shadows(), num_classes=2)
    x = np.arange(len(target), dtype=np.float32)[:, None]
    service: Any = lambda x: two_classes(target[x[:, 0].astype(int)])  # noqa: E731
    return attack.score(service, known, x, np.zeros(len(x), dtype=np.int64), seed=0)


def half_in(num_shadows: int, num: int, rng: Any) -> Any:
    """Roles [S, N] with every record IN for half of the models."""
    role = np.repeat(np.array([1, 0], dtype=np.int8), num_shadows // 2)[:, None]
    return rng.permuted(np.tile(role, num), axis=0)


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_finds_more_than_the_gap_and_surer_than_one_threshold(world: Any, smooth: Any) -> None:
    scores, is_member = world.run(AttackR(smooth=smooth))
    gap, _ = world.run(Gap())
    global_, _ = world.run(AttackP())
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, gap) + 0.04

    def tpr(scores: Any) -> float:
        return float((scores[is_member] > np.quantile(scores[~is_member], 0.95)).mean())

    # At a false positive rate of 5 %: hard records' own losses make the difference.
    assert tpr(scores) > tpr(global_) + 0.15


def test_score_is_minus_the_level_among_the_records_own_out_losses(world: Any) -> None:
    rows, shadows = world.parts["eval"], world.shadows(16)
    x, y = world.x[rows], world.y[rows]
    answers = np.stack([m.answer(x) for m in shadows.models])
    is_out = shadows.role(x) == 0
    assert (is_out.sum(axis=0) == 8).all()
    target = world.service()(x)
    mine, losses = (-np.log(p[..., np.arange(len(y)), y]) for p in (target, answers))
    expected = own_levels(mine, losses, is_out, low=0.0, high=HIGH)
    found = world.run(AttackR(smooth="linear"))[0]
    np.testing.assert_allclose(found, -expected, rtol=1e-9, atol=1e-12)
    mine, logits = (-logit_confidence(p, y) for p in (target, answers))
    expected = predictive_levels(mine, logits, is_out)
    np.testing.assert_allclose(world.run(AttackR())[0], -expected, rtol=1e-9)


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_requested_and_realised_false_positive_rate(world: Any, smooth: Any) -> None:
    """Real models: shadow models without a record are like a target without it."""
    scores, is_member = world.run(AttackR(smooth=smooth))
    num = int((~is_member).sum())
    for alpha in (1 / 9, 2 / 9, 5 / 9):
        low, high = binom.interval(1 - 6e-5, num, alpha)
        assert low <= (scores[~is_member] >= -alpha - 1e-12).sum() <= high


@pytest.mark.parametrize(("smooth", "least"), [("linear", 1 / 9), ("logit_normal", 0.001)])
def test_the_same_of_gaussian_logits(smooth: Any, least: float) -> None:
    """Records of their own difficulty, eight OUT models each; IN answers are not like them."""
    rng, num = np.random.default_rng(0), 10_000
    mean, scale = rng.normal(0, 4, num), rng.uniform(0.2, 2, num)
    role = half_in(16, num, rng)
    reference = mean + scale * rng.normal(size=role.shape) + 3 * role
    scores = toy_scores(
        AttackR(smooth=smooth), mean + scale * rng.normal(size=num), reference, role
    )
    for alpha in (least, 2 / 9, 5 / 9, 8 / 9):
        low, high = binom.interval(1 - 6e-5, num, alpha)
        assert low <= (scores >= -alpha - 1e-12).sum() <= high


@pytest.mark.parametrize("smooth", ["linear", "logit_normal"])
def test_unit_shift_of_gaussian_logits(smooth: Any) -> None:
    """AUC 0.760 with many models, whatever the records' own means; one threshold tells little."""
    rng, num = np.random.default_rng(1), 3000
    is_member = np.arange(num) < num // 2
    mean, scale = rng.normal(0, 3, num), rng.uniform(0.2, 1, num)
    role = half_in(512, num, rng)
    reference = mean + scale * rng.normal(size=role.shape)
    target = mean + scale * (rng.normal(size=num) + is_member)
    attack = AttackR(num_shadows=512, smooth=smooth)
    # The standard deviation of the AUC is 0.0088.
    auc = roc_auc_score(is_member, toy_scores(attack, target, reference, role))
    assert abs(auc - norm.cdf(1 / np.sqrt(2))) < 0.036
    assert roc_auc_score(is_member, target) < 0.65


def test_the_fit_tells_apart_what_lies_far_below_all_models() -> None:
    """Eight losses put at most 1/9 on that; where members lie far below, the fit says so."""
    rng = np.random.default_rng(2)
    role = half_in(16, 3, rng)
    reference = np.tile(rng.normal(size=16)[:, None], 3)
    target = np.array([5.0, 10.0, 50.0])
    linear, fit = (
        toy_scores(AttackR(smooth=smooth), target, reference, role)
        for smooth in ("linear", "logit_normal")
    )
    for scores in (linear, fit):
        assert (np.diff(scores[:2]) > 0).all()
    assert (fit > -1e-3).all()
    assert (np.diff(fit) > 0).all()


def test_in_and_reference_records_count_for_nothing(world: Any) -> None:
    rng, num = np.random.default_rng(3), 60
    role = np.repeat(np.array([1, 0, -1], dtype=np.int8), [8, 4, 4])[:, None]
    role = rng.permuted(np.tile(role, num), axis=0)
    target, reference = rng.normal(size=num), rng.normal(size=role.shape)
    planted = np.where(role == 0, reference, 40.0)
    for smooth in ("linear", "logit_normal"):
        attack = AttackR(smooth=smooth)
        np.testing.assert_array_equal(
            toy_scores(attack, target, reference, role), toy_scores(attack, target, planted, role)
        )


def test_defended_shadows_see_through_a_deterministic_defense(world: Any) -> None:
    """Flattened answers raise every loss; copies of the defense raise theirs with it."""

    def flatten(confidence: Any) -> Any:
        return softmax(0.3 * np.log(confidence), axis=1)

    aucs = [
        roc_auc_score(*reversed(world.run(AttackR(), defend=flatten, adaptive=adaptive)))
        for adaptive in (False, True)
    ]
    assert aucs[1] > aucs[0] + 0.02
    assert aucs[1] > 0.7


def test_too_few_models_are_a_fault_only_with_own_copies_of_the_defense() -> None:
    for shape in ((40,), (3, 8, 8)):
        assert AttackR(num_shadows=8).fault(shape, adaptive=False) == ""
        assert AttackR(num_shadows=16).fault(shape, adaptive=True) == ""
        assert "num_shadows is 14" in AttackR(num_shadows=14).fault(shape, adaptive=True)
    for fields in AttackR.PRESETS.values():
        assert AttackR(**fields).fault((40,), adaptive=True) == ""


def test_four_out_models_are_left_where_there_is_no_fault(world: Any) -> None:
    known = world.knowledge(AttackR(), 0, adaptive=True)
    role = known.shadows.role(world.x[world.parts["eval"]])
    assert (role == 0).sum(axis=0).min() == 4


def test_records_without_enough_out_models_are_refused() -> None:
    role = np.ones((8, 2), dtype=np.int8)
    role[0] = 0
    numbers = np.zeros(2), np.zeros((8, 2))
    assert np.isfinite(toy_scores(AttackR(smooth="linear"), *numbers, role)).all()
    with pytest.raises(ValueError, match="2 of 2 records have fewer than 2 OUT models among 8"):
        toy_scores(AttackR(), *numbers, role)
    role[0, 1] = -1
    with pytest.raises(ValueError, match="1 of 2 records have fewer than 1 OUT models among 8"):
        toy_scores(AttackR(smooth="linear"), *numbers, role)


def test_asks_about_the_judged_records_only_and_once(world: Any) -> None:
    attack, service = AttackR(), world.service()
    known, rows = world.knowledge(attack, 0), world.parts["eval"][:17]
    attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == 0


def test_equal_answers_of_models_and_target_tell_nothing(world: Any, onehot: Any) -> None:
    """One-hot answers: where target and OUT models all agree the level is one half."""
    rows, shadows = world.parts["eval"], world.shadows(16, onehot, defended=True)
    x = world.x[rows]
    label = world.service()(x).argmax(axis=1)
    labels = np.stack([m.answer(x).argmax(axis=1) for m in shadows.models])
    right, others = label == world.y[rows], labels == world.y[rows]
    is_out = shadows.role(x) == 0
    for smooth in ("linear", "logit_normal"):
        scores, _ = world.run(AttackR(smooth=smooth), defend=onehot, adaptive=True)
        same = ((others == right) | ~is_out).all(axis=0)
        assert same.sum() > 20
        np.testing.assert_allclose(scores[same], -0.5)
        # Right where no OUT model is: never less than four of them, hence below 1/5.
        alone = ((others != right) | ~is_out).all(axis=0)
        assert (alone & right).sum() > 20
        assert (scores[alone & right] > -1e-3).all()


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = AttackR(num_shadows=10).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 10
        assert {a["defended"] for a in asked} == {adaptive}


def test_presets() -> None:
    assert {k: AttackR(**v).num_shadows for k, v in AttackR.PRESETS.items()} == {
        "paper": 58,
        "sound": 64,
        "cpu": 16,
    }
    assert AttackR(**AttackR.PRESETS["paper"]).smooth == "linear"


@pytest.mark.parametrize(
    "fields", [{"num_shadows": 6}, {"num_shadows": 17}, {"smooth": "cubic"}, {"clip": 0.0}]
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttackR(**fields)
