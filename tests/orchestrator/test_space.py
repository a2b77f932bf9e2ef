"""The block `tune` as it is read, and defenses made of what a search draws."""

import json
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.entries import DefenseEntry
from orchestrator.space import Axis, axes, defended_by, grid_of, start, suggest
from orchestrator.tune_entry import COLUMNS, Constraint, Dimension, TuneEntry, parse_seconds
from tasks import plugins


def tune(defense: Any, space: Any, **keys: Any) -> TuneEntry:
    return TuneEntry.model_validate(
        {"defense": defense, "space": space, "attacks": ["gap"], **keys}
    )


def given_of(block: TuneEntry) -> dict[tuple[int, str], Any]:
    """(stage, field) -> value of the defense as given, without a preset."""
    found = {}
    for stage, entry in enumerate(block.defense):
        made = plugins.defense(entry.name).model_validate(entry.params)
        found |= {(stage, name): getattr(made, name) for name in type(made).model_fields}
    return found


class Drawn:
    """Suggests what it is told to, and remembers what it was asked for."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: list[str] = []

    def suggest_float(self, name: str, *_: Any, **__: Any) -> float:
        return float(self._told(name))

    def suggest_int(self, name: str, *_: Any, **__: Any) -> int:
        return int(self._told(name))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        value = self._told(name)
        assert value in choices
        return value

    def _told(self, name: str) -> Any:
        self.asked.append(name)
        return self.values[name]


# -- the block ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "ends"),
    [
        ({"low": 0, "high": 1}, [0, 1]),
        ({"low": 1e-4, "high": 10, "log": True}, [1e-4, 10]),
        ({"low": 10, "high": 50, "step": 20}, [10, 50]),
        ({"low": 0.0, "high": 1.0, "step": 1}, [0.0, 1.0]),
        ({"choices": [None, 0.5]}, [None, 0.5]),
        ([None, 0.5, "a", True, [1, 2]], [None, 0.5, "a", True, [1, 2]]),
        ([3], [3]),
        ({"choices": [1], "when": {"swapper": True}}, [1]),
        ({"choices": [1, True, 1.5]}, [1, True, 1.5]),
    ],
)
def test_every_form_of_a_range(given_: Any, ends: list[Any]) -> None:
    found = Dimension.model_validate(given_)
    assert found.ends == ends
    assert Dimension.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({}, "either low and high, or choices"),
        ({"log": True}, "either low and high, or choices"),
        ({"low": 1}, "go together"),
        ({"high": 1}, "go together"),
        ({"low": 1, "high": 1}, "must be below high"),
        ({"low": 2, "high": 1}, "must be below high"),
        ({"low": 0, "high": 1, "log": True}, "log needs low above 0, got 0"),
        ({"low": -1, "high": 1, "log": True}, "log needs low above 0, got -1"),
        ({"low": 0, "high": 1, "step": 0}, "step must be above 0"),
        ({"low": 0, "high": 1, "step": -1}, "step must be above 0"),
        ({"low": 1, "high": 2, "step": 1, "log": True}, "does not go with log"),
        ({"low": 0, "high": 1, "step": 2}, "at most high - low"),
        ({"choices": [1], "log": True}, "not to choices"),
        ({"choices": [1], "step": 1}, "not to choices"),
        ({"choices": [1], "low": 1}, "either low and high, or choices"),
        ({"choices": [1], "low": 1, "high": 2}, "either low and high, or choices"),
        ({"choices": []}, "at least 1 item"),
        ([], "at least 1 item"),
        ([1, 1], "each can be there once"),
        ([[1, 2], [1, 2]], "each can be there once"),
        ({"low": True, "high": 2}, "valid"),
        ({"low": "1", "high": 2}, "valid"),
        ({"low": 0, "high": float("inf")}, "finite"),
        ({"low": float("-inf"), "high": 1}, "finite"),
        ({"low": float("nan"), "high": 1}, "finite"),
        ({"low": 0, "high": 1, "log": "yes"}, "valid boolean"),
        ({"low": 0, "high": 1, "steps": 3}, "Extra inputs"),
        (7, "valid"),
        ("log", "valid"),
    ],
)
def test_every_refusal_of_a_range(given_: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Dimension.model_validate(given_)


SPACE = {"temperature": {"low": 1, "high": 2}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"space": {}}, "at least 1 item"),
        ({"defense": []}, "at least 1 item"),
        ({"attacks": []}, "at least 1 item"),
        ({"objectives": []}, "at least 1 item"),
        ({"objectives": ["accuracy"]}, "'accuracy' is no column of a trial; known: .*auc"),
        ({"objectives": ["auc", "auc"]}, "each column can be an objective once"),
        ({"objectives": ["auc", {"column": "auc", "direction": "maximize"}]}, "once"),
        ({"objectives": [{"column": "auc", "direction": "up"}]}, "'minimize' or 'maximize'"),
        ({"objectives": [*COLUMNS][:5]}, "at most 4 items"),
        ({"constraints": ["l1_distortion < 1"]}, "is no constraint; write COLUMN <= NUMBER"),
        ({"constraints": ["l1_distortion <= a"]}, "is no constraint"),
        ({"constraints": ["l1_distortion <= 1.2.3"]}, "could not convert|is no constraint"),
        ({"constraints": ["l1 <= 1"]}, "'l1' is no column of a trial; known: .*l1_distortion"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"trials": 1.0}, "valid integer"),
        ({"time": "2"}, "'2' is no duration"),
        ({"time": "0h"}, "'0h' is no duration"),
        ({"time": "-1h"}, "is no duration"),
        ({"sampler": "cmaes"}, "'tpe', 'nsga2'"),
        ({"population": 1}, "greater than or equal to 2"),
        ({"startup": 0}, "greater than or equal to 1"),
        ({"prune": "hyperband"}, "'none', 'median' or 'halving'"),
        ({"margin": -0.1}, "greater than or equal to 0"),
        ({"in_flight": 0}, "greater than or equal to 1"),
        ({"choose": "best"}, "'best' is no rule; known: knee"),
        ({"judged": 0}, "greater than or equal to 1"),
        ({"seeds": []}, "at least 1 item"),
        ({"trails": 3}, "Extra inputs"),
    ],
)
def test_every_refusal_of_a_block(keys: dict[str, Any], said: str) -> None:
    raw = {"defense": "temperature", "space": SPACE, "attacks": ["gap"], **keys}
    with pytest.raises(ValidationError, match=said):
        TuneEntry.model_validate(raw)


def test_a_block_told_with_its_defaults_is_the_same_block() -> None:
    block = tune(
        ["l2", {"name": "purifier", "latent": 4}],
        {"purifier.latent": [2, 4], "l2.weight_decay": {"low": 1e-5, "high": 1, "log": True}},
        objectives=["attack_accuracy", {"column": "test_accuracy", "direction": "minimize"}],
        constraints=["test_accuracy_drop <= .01", "test_accuracy >= 5e-1"],
        time="1.5h",
    )
    assert TuneEntry.model_validate(block.resolved()) == block
    assert TuneEntry.model_validate(json.loads(json.dumps(block.resolved()))) == block
    assert [o.direction for o in block.objectives] == ["minimize", "minimize"]


def test_the_better_direction_of_a_column_is_its_own() -> None:
    block = tune("temperature", SPACE)
    told = [(objective.column, objective.direction) for objective in block.objectives]
    assert told == [("attack_accuracy", "minimize"), ("test_accuracy", "maximize")]


def test_constraints_are_broken_on_one_side_only() -> None:
    below, above = Constraint.parse("l1_distortion<=0.3"), Constraint.parse("auc >= -1e-1")
    assert (below.violation(0.3), above.violation(-0.1)) == (0, 0)
    assert below.violation(0.5) == pytest.approx(0.2)
    assert above.violation(-0.4) == pytest.approx(0.3)
    assert below.violation(0.1) < 0 > above.violation(0.1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), (" 1.5h ", 5400), ("2d", 172_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


# -- the axes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "space", "said"),
    [
        ("temperature", {"temprature": [1]}, "temprature: 'temperature' has no field 'temprature'"),
        (["l2", "rounding"], {"decimals": [1]}, "decimals: a chain of l2 and rounding needs"),
        (["l2", "rounding"], {"l3.decimals": [1]}, "'l3' is not one defense .* l2, rounding"),
        (["l2", "rounding"], {"l2.decimals": [1]}, "l2.decimals: 'l2' has no field 'decimals'"),
        (["rounding", "rounding"], {"rounding.decimals": [1]}, "is not one defense"),
        ("rounding", {"decimals": {"low": 1, "high": 2.5}}, r"whole numbers, got \[1, 2.5\]"),
        ("rounding", {"decimals": {"low": 1, "high": 3, "step": 0.5}}, "whole numbers"),
        (
            "purifier",
            {"latent": {"choices": [1], "when": {"swapper": True}}, "swapper": [True, False]},
            "when names 'swapper', which must stand before it",
        ),
        ("purifier", {"latent": {"choices": [1], "when": {"latent": 1}}}, "must stand before"),
        ("purifier", {"latent": {"choices": [1], "when": {"swaper": 1}}}, "when names 'swaper'"),
        (
            ["l2", "purifier"],
            {"purifier.latent": {"choices": [1], "when": {"swapper": True}}},
            "when names swapper: a chain of l2 and purifier needs DEFENSE.swapper",
        ),
        (
            [{"name": "rounding", "label": "r"}],
            {"r.decimals": [1], "decimals": [2]},
            "decimals: is the same field as r.decimals",
        ),
    ],
)
def test_what_names_no_field_is_refused_by_its_key(defense: Any, space: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        axes(tune(defense, space))
    assert str(caught.value).partition(":")[0] in space


def test_a_chain_is_searched_stage_by_stage() -> None:
    twice = [{"name": "rounding", "label": "first"}, {"name": "rounding", "label": "second"}]
    block = tune(["l2", *twice], {"second.decimals": {"low": 1, "high": 3}, "l2.weight_decay": [1]})
    found = axes(block)
    assert [(a.stage, a.field, a.whole) for a in found] == [
        (2, "decimals", True),
        (0, "weight_decay", False),
    ]
    made = defended_by(block.defense, found, {"second.decimals": 2, "l2.weight_decay": 1}, "trial")
    assert [entry.params for entry in made] == [{"weight_decay": 1}, {}, {"decimals": 2}]
    assert [entry.label for entry in made] == [None, "first", "trial"]
    assert [entry.params for entry in block.defense] == [{}, {}, {}]


def test_values_stand_in_place_of_the_given_and_the_rest_stays() -> None:
    block = tune({"name": "purifier", "latent": 9, "epochs": 5}, {"latent": [2, 4]})
    (made,) = defended_by(block.defense, axes(block), {"latent": 4}, "trial 3")
    assert (made.params, made.label) == ({"latent": 4, "epochs": 5}, "trial 3")
    (unlabelled,) = defended_by(block.defense, axes(block), {})
    assert unlabelled == block.defense[0] == DefenseEntry.model_validate(unlabelled)


CONDITIONAL = {
    "swapper": [True, False],
    "swap_radius": {"choices": [None, 0.1], "when": {"swapper": True}},
    "latent": {"choices": [2, 4], "when": {"swap_radius": [None, 0.5]}},
}


@pytest.mark.parametrize(
    ("drawn", "wanted"),
    [
        ({"swapper": False}, ["swapper"]),
        ({"swapper": True, "swap_radius": 0.1}, ["swapper", "swap_radius"]),
        ({"swapper": True, "swap_radius": None, "latent": 2}, ["swapper", "swap_radius", "latent"]),
    ],
)
def test_a_field_is_searched_only_where_its_conditions_hold(
    drawn: dict[str, Any], wanted: list[str]
) -> None:
    block = tune("purifier", CONDITIONAL)
    trial = Drawn(**drawn)
    assert suggest(trial, axes(block), given_of(block)) == drawn
    assert trial.asked == wanted


@pytest.mark.parametrize(("given_", "searched"), [(True, True), (False, False)])
def test_a_condition_on_a_field_that_is_not_searched_is_decided_by_the_given(
    given_: bool, searched: bool
) -> None:
    space = {"latent": {"choices": [2], "when": {"swapper": True}}, "epochs": [1]}
    block = tune({"name": "purifier", "swapper": given_}, space)
    found = suggest(Drawn(latent=2, epochs=1), axes(block), given_of(block))
    assert ("latent" in found) == searched


@pytest.mark.parametrize(("sharp", "searched"), [(1, True), (2, False)])
def test_a_condition_may_be_on_another_defense_of_the_chain(sharp: int, searched: bool) -> None:
    space = {"purifier.latent": {"choices": [2], "when": {"rounding.decimals": 1}}}
    block = tune([{"name": "rounding", "decimals": sharp}, "purifier"], space)
    found = suggest(Drawn(**{"purifier.latent": 2}), axes(block), given_of(block))
    assert ("purifier.latent" in found) == searched


def drawn_by_optuna(axis: Axis, seed: int) -> Any:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return axis.suggest(study.ask())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 8),
    st.sampled_from([None, 1, 2, 3]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_whole_fields_get_whole_numbers_in_the_range(
    low: int, more: int, step: int | None, as_floats: bool, seed: int
) -> None:
    kind = float if as_floats else int
    wide = max(more, step or 1)
    given_ = {"low": kind(low), "high": kind(low + wide), "step": step}
    (axis,) = axes(tune("rounding", {"decimals": given_}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = drawn_by_optuna(axis, seed)
    assert type(value) is int
    assert low <= value <= low + wide
    assert (value - low) % (step or 1) == 0
    assert axis.holds(value)
    assert value in axis.stepped


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-6, 10),
    st.floats(1e-3, 10),
    st.one_of(st.none(), st.sampled_from([0.1, 0.25, 0.3, 0.7, 1.0])),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_ranges_of_numbers_are_kept_to(
    low: float, wide: float, step: float | None, log: bool, seed: int
) -> None:
    log = log and step is None
    high = low + wide + (step or 0)
    given_ = {"low": low, "high": high, "step": step, "log": log}
    (axis,) = axes(tune("temperature", {"temperature": given_}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, where steps do not end at `high`
        value = drawn_by_optuna(axis, seed)
    assert isinstance(value, float)
    assert low <= value <= high
    assert axis.holds(value)


@pytest.mark.parametrize("value", [[16, 32, 64], [8, 8, 8]])
def test_choices_that_are_lists_go_there_and_back(value: list[int]) -> None:
    block = tune("purifier", {"hidden": [[16, 32, 64], [8, 8, 8]]})
    (axis,) = axes(block)
    kept = axis.kept(value)
    assert isinstance(kept, str)
    study = optuna.create_study()
    study.enqueue_trial({"hidden": kept})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = suggest(study.ask(), [axis], given_of(block))
    assert values == {"hidden": value}
    (made,) = defended_by(block.defense, [axis], json.loads(json.dumps(values)))
    assert plugins.defense("purifier").model_validate(made.params).hidden == tuple(value)  # type: ignore[attr-defined]


# -- the defense as given -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "space", "wanted"),
    [
        ({"name": "rounding", "decimals": 2}, {"decimals": {"low": 1, "high": 3}}, {"decimals": 2}),
        ({"name": "rounding", "decimals": 3}, {"decimals": {"low": 1, "high": 3}}, {"decimals": 3}),
        ({"name": "rounding", "decimals": 4}, {"decimals": {"low": 1, "high": 3}}, None),
        (
            {"name": "rounding", "decimals": 2},
            {"decimals": {"low": 1, "high": 5, "step": 2}},
            None,  # between two steps
        ),
        ("temperature", {"temperature": {"low": 1, "high": 3}}, None),  # None: calibrated
        ("temperature", {"temperature": [None, 1.0]}, {"temperature": None}),
        ("purifier", {"hidden": [[1, 1, 1], [128, 256, 512]]}, {"hidden": "[128, 256, 512]"}),
        ("purifier", {"hidden": [[1, 1, 1]], "swapper": [True]}, None),
        (
            {"name": "purifier", "swapper": False, "swap_radius": 7.0},
            CONDITIONAL,
            {"swapper": False},  # what is not searched there need not be in the space
        ),
        ({"name": "purifier", "swapper": True, "swap_radius": 7.0}, CONDITIONAL, None),
        (
            {"name": "rounding", "mode": "floor", "decimals": 1},
            {"mode": ["round", "floor"], "decimals": [1, 2], "renormalise": [True, False]},
            {"mode": "floor", "decimals": 1, "renormalise": "given"},
        ),
    ],
)
def test_the_defense_as_given_is_where_a_search_starts_if_the_space_holds_it(
    defense: Any, space: Any, wanted: dict[str, Any] | None
) -> None:
    block = tune(defense, space)
    found = start(axes(block), given_of(block))
    if wanted and wanted.get("renormalise") == "given":
        wanted["renormalise"] = given_of(block)[0, "renormalise"]
    assert found == wanted
    if found is not None:
        study = optuna.create_study()
        study.enqueue_trial(found)
        values = suggest(study.ask(), axes(block), given_of(block))
        (made,) = defended_by(block.defense, axes(block), values)
        cls = plugins.defense(made.name)
        assert cls.model_validate(made.params) == cls.model_validate(block.defense[0].params)


# -- grids ----------------------------------------------------------------------------------------


def test_a_grid_has_every_value_of_every_field() -> None:
    space = {
        "swapper": [True, False],
        "latent": {"low": 2, "high": 5},
        "epochs": {"low": 10, "high": 45, "step": 10},
        "noise_scale": {"low": 0.1, "high": 0.7, "step": 0.2},
        "hidden": [[1, 1, 1], [2, 2, 2]],
    }
    assert grid_of(axes(tune("purifier", space))) == {
        "swapper": [True, False],
        "latent": [2, 3, 4, 5],
        "epochs": [10, 20, 30, 40],
        "noise_scale": [0.1, 0.3, 0.5, 0.7],
        "hidden": ["[1, 1, 1]", "[2, 2, 2]"],
    }


@pytest.mark.parametrize(
    "dimension", [{"low": 0.0, "high": 1.0}, {"low": 0.1, "high": 1.0, "log": True}]
)
def test_a_grid_of_a_range_without_steps_is_refused_by_its_key(dimension: Any) -> None:
    with pytest.raises(ValueError, match=r"^noise_scale: a grid needs choices, or .* with a step"):
        grid_of(axes(tune("purifier", {"latent": [1], "noise_scale": dimension})))
    whole = {"low": 1, "high": 8, "log": True}
    with pytest.raises(ValueError, match=r"^latent: a grid needs choices"):
        grid_of(axes(tune("purifier", {"latent": whole})))
