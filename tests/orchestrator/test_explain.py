"""Which fields mattered, from studies whose truth is known."""

import json
import math
import warnings
from typing import Any

import optuna
import pytest

from orchestrator import space
from orchestrator.explain import LEAST, Mattered, explained, importances
from orchestrator.study import Search, open_search
from orchestrator.tune_entry import TuneEntry


def study(trials: int, leak: Any, **keys: Any) -> tuple[Search, TuneEntry, list[dict[str, Any]]]:
    """A study with so many trials, whose first objective is `leak(values)`."""
    raw = {
        "defense": "purifier",
        "space": {
            "noise_scale": {"low": 0.0, "high": 2.0},
            "kl_weight": {"low": 1e-4, "high": 1.0, "log": True},
            "swapper": [True, False],
            "swap_radius": {"choices": [None, 0.1], "when": {"swapper": True}},
        },
        "attacks": ["gap"],
        "sampler": "random",
    }
    tune = TuneEntry.model_validate({**raw, **keys})
    storage = optuna.storages.InMemoryStorage()
    search, rows = open_search("s", storage, tune, space.axes(tune), {}), []
    while (ask := search.ask(trials)) is not None:
        values = space.suggest(ask.trial, search._searched, {})
        objectives = [leak(values), 0.5]
        search.tell(ask, {}, values=objectives)
        text = json.dumps(values)
        rows.append({"number": ask.number, "params": text, "objectives": objectives})
    search.close()
    return search, tune, rows


def mattered(trials: int, leak: Any, front: int = 2) -> dict[tuple[str, str], Mattered]:
    search, tune, rows = study(trials, leak)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explained(search, tune, search._searched, rows, rows[:front])
    return {(one.objective, one.field): one for one in found}


def test_the_field_that_alone_decides_has_all_the_weight_and_the_right_way() -> None:
    found = mattered(30, lambda values: 0.9 - 0.2 * values["noise_scale"])
    noise = found["attack_accuracy", "noise_scale"]
    assert noise.share > 0.9
    assert noise.trend == pytest.approx(-1)
    assert abs(found["attack_accuracy", "kl_weight"].trend) < 0.7
    assert found["attack_accuracy", "kl_weight"].share < 0.1
    shares = [one.share for one in found.values() if one.objective == "attack_accuracy"]
    assert sum(share for share in shares if not math.isnan(share)) == pytest.approx(1)
    assert next(iter(found.values())).field == "noise_scale"  # what mattered most is first


def test_choices_have_no_trend_and_conditional_fields_no_share() -> None:
    found = mattered(20, lambda values: 0.9 - 0.2 * values["swapper"])
    assert found["attack_accuracy", "swapper"].share > 0.9
    assert math.isnan(found["attack_accuracy", "swapper"].trend)
    assert math.isnan(found["attack_accuracy", "swap_radius"].share)


def test_an_objective_that_never_varies_is_explained_by_nothing() -> None:
    found = mattered(20, lambda values: values["noise_scale"])
    for field in ("noise_scale", "kl_weight", "swapper"):
        assert math.isnan(found["test_accuracy", field].share)
        assert math.isnan(found["test_accuracy", field].trend)


@pytest.mark.parametrize("trials", [0, 1, LEAST - 1])
def test_of_few_trials_nothing_is_said(trials: int) -> None:
    search, tune, rows = study(trials, lambda values: values["noise_scale"])
    assert importances(search, tune) == {}
    for one in explained(search, tune, search._searched, rows, rows):
        assert math.isnan(one.share)
        assert math.isnan(one.trend)
        assert (one.best == "-") == (not rows)


def test_the_same_trials_have_the_same_shares() -> None:
    search, tune, _ = study(12, lambda values: values["noise_scale"] + values["kl_weight"])
    assert importances(search, tune) == importances(search, tune) != {}


def test_values_on_the_front_are_told_as_a_range_or_by_count() -> None:
    search, tune, rows = study(6, lambda values: values["noise_scale"])
    told = [
        '{"noise_scale": 0.5, "kl_weight": 0.25, "swapper": true, "swap_radius": null}',
        '{"noise_scale": 1.5, "kl_weight": 0.25, "swapper": true, "swap_radius": 0.1}',
        '{"noise_scale": 1.0, "kl_weight": 0.25, "swapper": false}',
    ]
    front = [{"params": text, "objectives": [0, 0]} for text in told]
    best = {one.field: one.best for one in explained(search, tune, search._searched, rows, front)}
    assert best["noise_scale"] == "0.5 to 1.5"
    assert best["kl_weight"] == "0.25"
    assert best["swapper"] == "true x2, false x1"
    assert set(best["swap_radius"].split(", ")) == {"null x1", "0.1 x1", "- x1"}
