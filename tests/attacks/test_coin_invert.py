"""What is true of coin inversion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from attacks.coin_invert import CoinInvert, _falling, _Inverse, _own_answers
from attacks.gap import Gap
from orchestrator.check import load_experiment
from orchestrator.plan import make_plan
from tasks.run_attack import RunAttack

QUICK = CoinInvert(num_trees=60)


def coin(confidence: Any) -> Any:
    """A coin that hangs on the answer and tells nothing about it."""
    return np.floor(1e9 * confidence.max(axis=1)) % 2 == 1


def flattened(confidence: Any) -> Any:
    """Noised rows are flat: a mark by which they are known, and a change that can be undone."""
    return np.where(
        coin(confidence)[:, None], softmax(0.2 * np.log(confidence), axis=1), confidence
    )


def turned(confidence: Any) -> Any:
    """Noised rows have the scores of the clean one, in another order behind the label."""
    falling = np.argsort(-confidence, axis=1)
    reordered = np.empty_like(confidence)
    other = np.concatenate([falling[:, :1], falling[:, :0:-1]], axis=1)
    np.put_along_axis(reordered, other, np.take_along_axis(confidence, falling, axis=1), axis=1)
    return np.where(coin(confidence)[:, None], reordered, confidence)


def learnt(world: Any, defend: Any) -> _Inverse:
    return QUICK._learnt(*_own_answers(world.knowledge(QUICK, 0, defend), 0), seed=0)


def distance(log_first: Any, second: Any) -> Any:
    return np.abs(np.exp(log_first) - second).sum(axis=1)


def test_asks_for_one_model_bare_and_defended_whatever_the_experiment_says(world: Any) -> None:
    for adaptive in (False, True):
        bare, defended = CoinInvert().trainings(world.outline(adaptive=adaptive), seed=0)
        assert not bare["defended"]
        assert defended["defended"]
        for name in ("rows", "reference_rows", "seed"):
            np.testing.assert_array_equal(bare[name], defended[name])
        rows, reference = bare["rows"], bare["reference_rows"]
        assert len(rows) == round(0.4 * len(world.known_rows))
        assert len(reference) == round(0.2 * len(world.known_rows))
        assert np.isin(rows, world.known_rows).all()
        assert not np.isin(reference, rows).any()
    assert CoinInvert().trainings(world.outline(), seed=1)[0]["seed"] != bare["seed"]


def test_both_copies_are_defended_and_bare_forms_of_one_trained_target(tmp_path: Path) -> None:
    path = tmp_path / "planned.yaml"
    dataset = {
        "name": "synth_s",
        "generator": {"rows": 400, "classes": 4},
        "split": {"members": 80, "reference": 60, "nonmembers": 80},
    }
    keys = {"datasets": [dataset], "seeds": [0], "defenses": ["memguard"]}
    path.write_text(yaml.safe_dump({**keys, "attacks": ["coin_invert"]}))
    plan = make_plan(load_experiment(str(path)), None)
    (attack,) = (task for task in plan.tasks.values() if isinstance(task, RunAttack))
    bare, defended = attack.trainings
    assert bare.key == defended.target.key  # type: ignore[attr-defined]
    assert [type(d).__name__ for d in defended.defenses] == ["MemGuard"]  # type: ignore[attr-defined]


def test_learns_to_tell_the_coin_and_to_undo_the_noise(world: Any) -> None:
    inverse, x = learnt(world, flattened), world.x[world.parts["eval"]]
    released, clean = world.service("score", flattened)(x), world.service()(x)
    noised = coin(clean)
    assert 0.4 < inverse.share < 0.6
    order, log_released = _falling(released, 1e-12)
    p_noised = inverse.noised(log_released)
    assert roc_auc_score(noised, p_noised) > 0.95
    estimate = inverse.estimate(log_released, p_noised)
    clean = np.take_along_axis(clean, order, axis=1)
    before, after = (distance(a, clean) for a in (log_released, estimate))
    assert after[noised].mean() < 0.4 * before[noised].mean()
    # Hardly at the cost of the rows that needed nothing undone.
    assert after[~noised].mean() < 0.1 * before[noised].mean()


def test_a_coin_that_leaves_no_mark_is_not_told(world: Any) -> None:
    inverse, x = learnt(world, turned), world.x[world.parts["eval"]]
    noised = coin(world.service()(x))
    _, log_released = _falling(world.service("score", turned)(x), 1e-12)
    auc = roc_auc_score(noised, inverse.noised(log_released))
    num = noised.sum(), (~noised).sum()
    assert abs(auc - 0.5) < 4 * np.sqrt((len(noised) + 1) / (12 * num[0] * num[1]))


def test_without_noise_the_released_row_is_the_clean_one(world: Any) -> None:
    released, y = world.service()(world.x[:20]), world.y[:20]
    inverse = learnt(world, lambda c: c)
    assert (inverse.coin, inverse.regression, inverse.share) == (None, None, 0)
    feature = inverse.features(released, y)
    assert (feature[:, 1] == 0).all()
    np.testing.assert_array_equal(feature[:, 4:12], feature[:, 12:])


def test_where_all_is_noised_every_row_is_regressed(world: Any) -> None:
    inverse = learnt(world, lambda c: softmax(0.2 * np.log(c), axis=1))
    assert (inverse.coin, inverse.share) == (None, 1)
    clean = world.service()(world.x[:50])
    feature = inverse.features(softmax(0.2 * np.log(clean), axis=1), world.y[:50])
    assert (feature[:, 1] == 1).all()
    falling = -np.sort(-clean, axis=1)
    assert (
        distance(feature[:, 12:], falling).mean() < 0.3 * distance(feature[:, 4:12], falling).mean()
    )


def test_features_by_hand() -> None:
    """A coin that says 1/2 under equal weights, where a quarter was noised; noise is a square."""

    class Even:
        def predict_proba(self, log_released: Any) -> Any:
            return np.full((len(log_released), 2), 0.5)

    class Root:
        def predict(self, log_released: Any) -> Any:
            return 0.5 * log_released

    inverse = _Inverse(Even(), 0.25, Root(), 1e-12)  # type: ignore[arg-type]
    released = np.array([[0.09, 0.9, 0.01], [0.9, 0.01, 0.09]])
    (first, second) = inverse.features(released, np.array([0, 0]))
    falling = np.array([0.9, 0.09, 0.01])
    root = np.sqrt(falling) / np.sqrt(falling).sum()
    clean = 0.25 * root + 0.75 * falling
    scores = [*np.log(falling), *np.log(clean)]
    np.testing.assert_allclose(first, [0, 0.25, np.log(0.09), np.log(clean[1]), *scores])
    np.testing.assert_allclose(second, [1, 0.25, np.log(0.9), np.log(clean[0]), *scores])


def test_finds_more_than_the_gap_behind_the_noise(world: Any) -> None:
    scores, is_member = world.run(QUICK, defend=flattened)
    gap, _ = world.run(Gap())
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, gap) + 0.03


def test_equal_answers_have_equal_scores(world: Any, onehot: Any) -> None:
    scores, _ = world.run(QUICK, defend=onehot)
    rows = world.parts["eval"]
    right = world.service("label")(world.x[rows]) == world.y[rows]
    assert len(np.unique(scores[right])) == len(np.unique(scores[~right])) == 1


def test_the_order_of_known_rows_does_not_matter_and_the_seed_does(small_world: Any) -> None:
    known, x, y = small_world.knowledge(QUICK, 0), small_world.x[:9], small_world.y[:9]
    first = QUICK.score(small_world.service(), known, x, y, seed=0)
    object.__setattr__(known, "rows", known.rows[::-1])
    second = QUICK.score(small_world.service(), known, x, y, seed=0)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"trained on 48 of the 120 .* division of seed 1"):
        QUICK.score(small_world.service(), known, x, y, seed=1)


def test_asks_once_about_each_record_to_fit_on_and_to_judge(small_world: Any) -> None:
    known, query = small_world.knowledge(QUICK, 0), small_world.service()
    QUICK.score(query, known, small_world.x[:13], small_world.y[:13], seed=0)
    assert query.num_queries == 13
    assert known.query.num_queries == len(small_world.parts["fit"])


def test_missing_copies_one_sided_or_too_little_knowledge_are_refused(small_world: Any) -> None:
    known = small_world.knowledge(QUICK, 0)
    arguments = small_world.service(), known, small_world.x[:3], small_world.y[:3]
    object.__setattr__(known, "trained", known.trained[:1])
    with pytest.raises(ValueError, match=r"got 1 models in known\.trained"):
        QUICK.score(*arguments, seed=0)
    known.fit.is_member[:] = True
    with pytest.raises(ValueError, match=r"known\.fit holds 96 members.*coin_invert needs"):
        QUICK.score(*arguments, seed=0)
    outline = small_world.outline()
    outline.known_rows = outline.known_rows[:5]
    with pytest.raises(ValueError, match="holds 5 known rows"):
        QUICK.trainings(outline, seed=0)


@pytest.mark.parametrize(
    "fields", [{"same": 0}, {"ridge": 0}, {"num_trees": 0}, {"least_leaf": 0}, {"clip": 0.5}]
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CoinInvert(**fields)
