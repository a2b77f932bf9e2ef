"""Promises every attack keeps, checked on every file in attacks/."""

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

import attacks
from attacks.base import Attack

FILES = sorted(
    path.stem
    for path in Path(attacks.__path__[0]).glob("*.py")
    if not path.stem.startswith("_") and path.stem != "base"
)
THREAT_MODELS = {
    "BB-score",
    "BB-shadow",
    "BB-blind",
    "BB-pop",
    "BB-label",
    "BB-adaptive",
    "BB-defense-white",
}
ASK_ONCE = {
    *("adversarial_training", "attack_d", "attack_p", "attack_r", "attack_s", "coin_invert"),
    *("gap", "loss_trajectory", "metric", "mim", "ml_leaks", "mode_subtract", "nsh"),
    *("order_only", "quantile", "rank2", "rmia", "shokri", "sum_leak"),
}


def classes_in(name: str) -> list[type[Attack]]:
    module = importlib.import_module(f"attacks.{name}")
    return [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Attack)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]


def small(name: str) -> Attack:
    """The attack as it is run on two cores."""
    attack_class = classes_in(name)[0]
    return attack_class(**attack_class.PRESETS.get("cpu", {}))


# What a plugin defines says what it does: tell members, rebuild records, infer an attribute.
METHODS = {
    name: [m for m in ("score", "reconstruct", "infer") if m in vars(classes_in(name)[0])]
    for name in FILES
}
MEMBERSHIP = [name for name in FILES if METHODS[name] == ["score"]]
# A blind attacker has nothing to compare a judged record with but the others.
ALONE = [name for name in MEMBERSHIP if small(name).THREAT_MODEL != "BB-blind"]
GENERAL = [name for name in MEMBERSHIP if not small(name).AGAINST]
LEARNING = [name for name in MEMBERSHIP if small(name).LEARNS]


@pytest.fixture(params=FILES)
def attack_class(request: Any) -> type[Attack]:
    return classes_in(request.param)[0]


@pytest.fixture(params=MEMBERSHIP)
def attack(request: Any) -> Attack:
    return small(request.param)


@pytest.fixture(scope="session")
def worlds(make_world: Any) -> Any:
    """A world of records that an attack works on; the same for the same options."""
    made: dict[Any, Any] = {}

    def world_of(attack: Attack, **options: Any) -> Any:
        kind: dict[str, Any] = {}
        if "continuous" not in attack.KINDS:
            image = {"image": (1, 6, 6), "num_features": 36}
            kind = image if "image" in attack.KINDS else {"binary": True}
        key = tuple(sorted({**kind, **options}.items()))
        if key not in made:
            made[key] = make_world(**kind, **options)
        return made[key]

    return world_of


@pytest.mark.parametrize("name", FILES)
def test_it_does_one_thing(name: str) -> None:
    assert len(METHODS[name]) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_one_public_attack(name: str) -> None:
    assert len(classes_in(name)) == 1


def test_class_says_what_results_need(attack_class: type[Attack]) -> None:
    assert isinstance(attack_class.VERSION, int)
    assert attack_class.THREAT_MODEL in THREAT_MODELS
    assert attack_class.ACCESS in {"score", "label"}
    assert attack_class.__doc__
    assert "Source:" in attack_class.__doc__
    assert set(attack_class.PRESETS) <= {"paper", "sound", "cpu"}
    for fields in attack_class.PRESETS.values():
        attack_class(**fields)


def test_fields_are_frozen_typos_are_refused_and_help_is_given(
    attack_class: type[Attack],
) -> None:
    attack = attack_class(**attack_class.PRESETS.get("cpu", {}))
    with pytest.raises(ValidationError):
        type(attack)(no_such_field=1)
    for name, info in type(attack).model_fields.items():
        assert info.description
        with pytest.raises(ValidationError):
            setattr(attack, name, getattr(attack, name))


def test_scores_are_finite_float64_and_the_same_bits_again(attack: Attack, worlds: Any) -> None:
    small_world = worlds(attack, per_side=120)
    first, _ = small_world.run(attack, seed=3)
    again, _ = small_world.run(attack, seed=3)
    assert first.shape == (len(small_world.parts["eval"]),)
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert first.tobytes() == again.tobytes()


def test_inputs_and_global_random_state_are_untouched(attack: Attack, worlds: Any) -> None:
    small_world = worlds(attack, per_side=120)
    # The world's own arrays are read-only; fancy indexing copies them into writable ones here.
    known, query = small_world.knowledge(attack, 0), small_world.service(attack.ACCESS)
    rows = small_world.parts["eval"][:50]
    arrays = [small_world.x[rows], small_world.y[rows], known.rows]
    for part in known.told:
        arrays += [part.x, part.y, part.is_member]
    arrays += [known.others.x, known.others.y]
    for model in known.trained:
        arrays += [model.rows, *model.weights.values()]
    before = [a.tobytes() for a in arrays]
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    attack.score(query, known, arrays[0], arrays[1], seed=0)
    assert [a.tobytes() for a in arrays] == before
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("name", sorted(ASK_ONCE))
def test_the_judged_records_are_asked_once(name: str, small_world: Any) -> None:
    attack = small(name)
    known, query = small_world.knowledge(attack, 0), small_world.service(attack.ACCESS)
    rows = small_world.parts["eval"][:17]
    attack.score(query, known, small_world.x[rows], small_world.y[rows], seed=0)
    assert query.num_queries == 17


@pytest.mark.parametrize("name", ALONE)
def test_a_score_does_not_depend_on_the_other_records(name: str, worlds: Any) -> None:
    attack = small(name)
    small_world = worlds(attack, per_side=120)
    known, rows = small_world.knowledge(attack, 0), small_world.parts["eval"][:20]
    x, y = small_world.x[rows], small_world.y[rows]
    together = attack.score(small_world.service(attack.ACCESS), known, x, y, seed=0)
    reverse = attack.score(small_world.service(attack.ACCESS), known, x[::-1], y[::-1], seed=0)[
        ::-1
    ]
    alone = attack.score(small_world.service(attack.ACCESS), known, x[:1], y[:1], seed=0)
    np.testing.assert_allclose(reverse, together, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALONE)
def test_a_poisoned_judged_record_changes_no_other_score(name: str, worlds: Any) -> None:
    """Whoever fitted anything on the judged records would be led astray by wrong labels."""
    attack = small(name)
    world = worlds(attack, per_side=120)
    known, rows = world.knowledge(attack, 0), world.parts["eval"][:100]
    x, y = world.x[rows], world.y[rows].copy()
    y[20:] = (y[20:] + 1) % world.num_classes
    clean, poisoned = (
        attack.score(world.service(attack.ACCESS), known, x[:n], y[:n], seed=0) for n in (20, 100)
    )
    np.testing.assert_allclose(poisoned[:20], clean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 530])
def test_any_number_of_classes(attack: Attack, worlds: Any, num_classes: int) -> None:
    world = worlds(attack, num_classes=num_classes, per_side=60)
    scores, _ = world.run(attack)
    assert scores.shape == (60,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_released_rows_need_not_be_distributions(attack: Attack, worlds: Any, scale: float) -> None:
    small_world = worlds(attack, per_side=120)
    scores, _ = small_world.run(attack, defend=lambda confidence: confidence * scale)
    assert np.isfinite(scores).all()


def test_membership_is_told_only_to_those_whose_threat_model_says_so(
    attack: Attack, worlds: Any
) -> None:
    """What `known` refuses is refused to the attack as well, so its scores cannot need it."""
    small_world = worlds(attack, per_side=120)
    known = small_world.knowledge(attack, 0)
    told = type(attack).THREAT_MODEL in {"BB-score", "BB-label", "BB-adaptive", "BB-defense-white"}
    for part in ("fit", "cal"):
        if told:
            assert len(getattr(known, part))
        else:
            with pytest.raises(PermissionError):
                getattr(known, part)


@pytest.mark.parametrize("name", LEARNING)
def test_an_attack_that_learns_uses_the_known_records(name: str, worlds: Any) -> None:
    """`LEARNS` promises that another `known.fit` gives another attack: its adaptive form."""
    attack = small(name)
    small_world = worlds(attack, per_side=120)
    known = small_world.knowledge(attack, 0)
    rows = small_world.parts["eval"][:60]
    swapped = small_world.knowledge(attack, 0)
    for part in swapped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (
        attack.score(
            small_world.service(attack.ACCESS), k, small_world.x[rows], small_world.y[rows], seed=0
        )
        for k in (known, swapped)
    )
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("name", GENERAL)
def test_overfitting_is_found(name: str, worlds: Any) -> None:
    attack = small(name)
    # The target knows 120 images by heart; of 600 it learns what they have in common.
    options = {} if "continuous" in attack.KINDS else {"per_side": 120}
    scores, is_member = worlds(attack, **options).run(attack)
    assert roc_auc_score(is_member, scores) > 0.6


def test_nothing_is_found_where_nothing_is(attack: Attack, worlds: Any) -> None:
    scores, is_member = worlds(attack, independent=True).run(attack)
    # Four standard deviations of the AUC under chance, 300 records a side.
    assert abs(roc_auc_score(is_member, scores) - 0.5) < 4 * np.sqrt(601 / (12 * 300 * 300))


def made_of(attack: Attack, world: Any, answers: Any, *, seed: int = 0, **options: Any) -> Any:
    """What an attack on something other than membership makes of answers."""
    if METHODS[inspect.getmodule(type(attack)).__name__.split(".")[-1]] == ["reconstruct"]:
        return attack.reconstruct(answers, world.knowledge(attack, seed, **options), seed=seed)
    rows = world.parts["fit"]
    values = (world.x[rows].reshape(len(rows), -1)[:, 0] > 0).astype(np.int64)
    own = world.service(attack.ACCESS, **options)(world.x[rows])
    return attack.infer(answers, own, values, num_values=2, seed=seed)


@pytest.fixture(params=[name for name in FILES if METHODS[name] != ["score"]])
def other_attack(request: Any) -> Attack:
    return small(request.param)


def test_others_give_the_same_bits_again_and_leave_no_trace(
    other_attack: Attack, worlds: Any
) -> None:
    world = worlds(other_attack, per_side=120)
    answers = world.service()(world.x[world.parts["eval"]])
    numpy_state, before = str(np.random.get_state()), answers.tobytes()  # noqa: NPY002
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first, again = (made_of(other_attack, world, answers, seed=3) for _ in range(2))
    assert len(first) == len(answers)
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert first.tobytes() == again.tobytes()
    assert answers.tobytes() == before
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    alone = made_of(other_attack, world, answers[4:5], seed=3)
    np.testing.assert_allclose(alone[0], first[4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 530])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_others_read_any_rows(
    other_attack: Attack, worlds: Any, num_classes: int, scale: float
) -> None:
    world = worlds(other_attack, num_classes=num_classes, per_side=60)

    def defend(confidence: Any) -> Any:
        return confidence * scale

    answers = world.service(defend=defend)(world.x[world.parts["eval"]])
    assert np.isfinite(made_of(other_attack, world, answers, defend=defend)).all()
