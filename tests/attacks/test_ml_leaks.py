"""What is true of ML-Leaks."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks._generated import random_inputs
from attacks.ml_leaks import MlLeaks


def asked(world: Any, seed: int = 0, *, adaptive: bool = False) -> dict[str, Any]:
    (training,) = MlLeaks().trainings(world.outline(adaptive=adaptive), seed=seed)
    return training


def test_shadow_trains_on_half_of_what_is_known(world: Any) -> None:
    training = asked(world)
    assert set(training) == {"rows", "seed"}
    assert len(training["rows"]) == len(world.known_rows) // 2
    assert len(np.unique(training["rows"])) == len(training["rows"])
    assert np.isin(training["rows"], world.known_rows).all()
    assert not np.array_equal(np.sort(training["rows"]), np.sort(asked(world, 1)["rows"]))
    assert training["seed"] != asked(world, 1)["seed"]
    # The attacker may not pick the target's members: their share is that of all it holds.
    assert abs(world.is_member[training["rows"]].mean() - 0.5) < 4 * 0.5 / np.sqrt(300)


def test_adaptive_shadow_has_its_own_defense_with_its_own_reference(world: Any) -> None:
    training = asked(world, adaptive=True)
    assert training["defended"] is True
    assert len(training["rows"]) == round(0.4 * len(world.known_rows))
    assert len(training["reference_rows"]) == round(0.2 * len(world.known_rows))
    assert not np.isin(training["rows"], training["reference_rows"]).any()


@pytest.mark.parametrize("adaptive", [False, True])
def test_shadow_records_are_told_apart_by_whether_the_shadow_saw_them(
    world: Any, adaptive: bool
) -> None:
    """The attacker looks at S_in and S_out alone, each once, and never at S_ref."""
    attack, seen = MlLeaks(), []
    known = world.knowledge(attack, 0, adaptive=adaptive)

    def watch(rows: Any) -> Any:
        seen.append(rows)
        return world.x_of(rows)

    object.__setattr__(known, "x_of", watch)
    attack.score(world.service(), known, world.x[:5], world.y[:5], seed=0)
    s_in, s_out = seen
    training = asked(world, adaptive=adaptive)
    np.testing.assert_array_equal(np.sort(s_in), np.sort(training["rows"]))
    rest = np.setdiff1d(world.known_rows, [*s_in, *training.get("reference_rows", [])])
    np.testing.assert_array_equal(np.sort(s_out), rest)


def test_true_membership_of_known_records_is_not_used(world: Any) -> None:
    attack, rows = MlLeaks(), world.parts["eval"]
    honest, flipped = (world.knowledge(attack, 0) for _ in range(2))
    for part in flipped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (
        attack.score(world.service(), known, world.x[rows], world.y[rows], seed=0)
        for known in (honest, flipped)
    )
    np.testing.assert_array_equal(first, second)
    assert honest.query.num_queries == 0


def test_the_order_of_known_rows_does_not_matter(world: Any) -> None:
    known = world.knowledge(MlLeaks(), 0)
    object.__setattr__(known, "rows", known.rows[::-1])
    scores = MlLeaks().score(world.service(), known, world.x[:9], world.y[:9], seed=0)
    again = MlLeaks().score(
        world.service(), world.knowledge(MlLeaks(), 0), world.x[:9], world.y[:9], seed=0
    )
    np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize("adversary", [1, 3])
def test_onehot_answers_leave_nothing_to_tell_apart(
    world: Any, onehot: Any, adversary: Any
) -> None:
    scores, _ = world.run(MlLeaks(adversary=adversary), defend=onehot)
    assert len(set(scores)) == 1


def test_adversary_3_trains_nothing_and_asks_about_random_inputs(world: Any) -> None:
    attack, rows = MlLeaks(adversary=3, num_random=321), world.parts["eval"]
    assert attack.trainings(world.outline(), seed=0) == ()
    assert attack.harder() == ()
    known, service = world.knowledge(attack, 0), world.service()
    scores = attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == len(rows)
    assert known.query.num_queries == 321
    # The largest confidence less a constant.
    largest = world.service()(world.x[rows]).max(axis=1)
    threshold = largest - scores
    np.testing.assert_allclose(threshold, threshold[0], atol=1e-15)


@pytest.mark.parametrize("percentile", [10.0, 30.0, 60.0, 90.0])
def test_adversary_3_calls_a_share_of_random_inputs_members(world: Any, percentile: float) -> None:
    attack = MlLeaks(adversary=3, percentile=percentile)
    x = random_inputs("continuous", world.x, 2000, np.random.default_rng(5))
    known = world.knowledge(attack, 0)
    scores = attack.score(world.service(), known, x, np.zeros(2000, dtype=np.int64), seed=0)
    # 2000 inputs against a quantile of 1000: four standard deviations.
    share = percentile / 100
    bound = 4 * np.sqrt(share * (1 - share) * (1 / 2000 + 1 / 1000))
    assert abs((scores > 0).mean() - share) < bound


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"binary": True}, "bits"),
        ({"image": (3, 6, 6), "num_features": 108}, "pixels"),
        ({}, "numbers"),
    ],
)
def test_random_inputs_are_of_the_records_kind(make_world: Any, options: Any, values: str) -> None:
    world = make_world(per_side=60, **options)
    attack, seen = MlLeaks(adversary=3), []
    known = world.knowledge(attack, 0)

    def watch(x: Any) -> Any:
        seen.append(np.array(x))
        return world.service()(x)

    object.__setattr__(known, "query", watch)
    attack.score(world.service(), known, world.x[:5], world.y[:5], seed=0)
    (made,) = seen
    assert made.shape == (1000, *world.x.shape[1:])
    if values == "bits":
        assert set(np.unique(made)) == {0, 1}
    elif values == "pixels":
        assert 0 <= made.min() < 0.01 < 0.99 < made.max() <= 1
    else:
        held = world.x[world.known_rows]
        assert (made >= held.min(axis=0)).all()
        assert (made <= held.max(axis=0)).all()


@dataclass(frozen=True, eq=False)
class Foreign:
    """Another dataset as attacks see it: its rows, and at run time their records."""

    world: Any
    name: str = "elsewhere"

    @property
    def rows(self) -> Any:
        return np.arange(len(self.world.x))

    @property
    def labels(self) -> Any:
        return self.world.y

    def x_of(self, rows: Any) -> Any:
        return self.world.x[rows], self.world.y[rows]

    def named(self, name: str) -> "Foreign":
        assert name == self.name
        return self


@pytest.fixture(scope="module")
def foreign(make_world: Any) -> Foreign:
    """Another dataset: 20 classes and 25 features, where the target has 8 and 40."""
    return Foreign(make_world(num_classes=20, num_features=25, per_side=300, seed=9))


TRANSFER = MlLeaks(adversary=2, transfer_from="elsewhere")


def transferred(
    world: Any, foreign: Foreign, *, adaptive: bool = False, seed: int = 0
) -> tuple[dict[str, Any], Any]:
    """What adversary 2 asks to have trained, and what it knows when that was done."""
    outline = world.outline(adaptive=adaptive)
    outline.foreign = foreign.named
    (training,) = TRANSFER.trainings(outline, seed=seed)
    shadow = foreign.world.model(training["rows"], training["seed"])
    known = world.knowledge(MlLeaks(), seed)
    return training, SimpleNamespace(trained=(shadow,), foreign=foreign.named, known=known)


def test_adversary_2_trains_on_half_of_another_dataset(world: Any, foreign: Foreign) -> None:
    training, _ = transferred(world, foreign)
    assert set(training) == {"rows", "seed", "dataset"}
    assert training["dataset"] == "elsewhere"
    assert len(training["rows"]) == len(foreign.rows) // 2
    assert len(np.unique(training["rows"])) == len(training["rows"])
    other, _ = transferred(world, foreign, seed=1)
    assert not np.array_equal(np.sort(training["rows"]), np.sort(other["rows"]))


def test_adaptive_adversary_2_defends_its_shadow_with_records_of_that_dataset(
    world: Any, foreign: Foreign
) -> None:
    training, _ = transferred(world, foreign, adaptive=True)
    assert training["defended"] is True
    assert training["dataset"] == "elsewhere"
    assert len(training["rows"]) == round(0.4 * len(foreign.rows))
    assert len(training["reference_rows"]) == round(0.2 * len(foreign.rows))
    assert not np.isin(training["rows"], training["reference_rows"]).any()


@pytest.mark.parametrize("adaptive", [False, True])
def test_adversary_2_learns_from_the_other_dataset_alone(
    world: Any, foreign: Foreign, adaptive: bool
) -> None:
    """Nothing of the target's own data is in reach, and overfitting is found all the same."""
    _, known = transferred(world, foreign, adaptive=adaptive)
    rows, service = world.parts["eval"], world.service()
    scores = TRANSFER.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == len(rows)
    assert roc_auc_score(world.is_member[rows], scores) > 0.65


def test_adversary_2_refuses_a_shadow_of_another_division(world: Any, foreign: Foreign) -> None:
    _, known = transferred(world, foreign)
    with pytest.raises(ValueError, match="the seed trainings"):
        TRANSFER.score(world.service(), known, world.x[:3], world.y[:3], seed=1)
    known.trained = ()
    with pytest.raises(ValueError, match=r"got 0 shadow models .* adversary 2 needs"):
        TRANSFER.score(world.service(), known, world.x[:3], world.y[:3], seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"adversary": 2},
        {"adversary": 1, "transfer_from": "elsewhere"},
        {"adversary": 3, "transfer_from": "elsewhere"},
        {"transfer_from": "elsewhere"},
        {"adversary": 4},
        {"adversary": 2, "transfer_from": ""},
    ],
)
def test_adversary_2_and_no_other_names_a_dataset(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"adversary|transfer_from"):
        MlLeaks(**fields)


def test_training_harder_keeps_the_adversary_and_its_data() -> None:
    for attack in (MlLeaks(), TRANSFER):
        harder = attack.harder()
        assert len(harder) == 3
        assert {h.transfer_from for h in harder} == {attack.transfer_from}  # type: ignore[attr-defined]
        assert {h.epochs for h in harder} == {4 * attack.epochs}  # type: ignore[attr-defined]


def test_wrong_shadows_are_refused(world: Any) -> None:
    known = world.knowledge(MlLeaks(), 0)
    with pytest.raises(ValueError, match="the seed trainings"):
        MlLeaks().score(world.service(), known, world.x[:3], world.y[:3], seed=1)
    object.__setattr__(known, "trained", ())
    with pytest.raises(ValueError, match="got 0 shadow models"):
        MlLeaks().score(world.service(), known, world.x[:3], world.y[:3], seed=0)
