"""What is wrong with a block `tune` is told before anything runs, with its place."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.check import check
from orchestrator.cli import app

RAW: dict[str, Any] = {
    "name": "small",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 300, "features": 16, "classes": 4},
            "split": {"members": 60, "reference": 60, "nonmembers": 60},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "attacks": [{"name": "metric", "statistic": "entropy"}],
}
TUNE: dict[str, Any] = {
    "defense": "rounding",
    "space": {"decimals": {"low": 1, "high": 3}},
    "attacks": ["gap"],
}


ENTROPY = {"name": "metric", "statistic": "entropy"}


def problems(tune: dict[str, Any] | None = None, **keys: Any) -> list[tuple[str, str]]:
    raw = {**RAW, **keys, "tune": {**TUNE, **(tune or {})}}
    return [(problem.path, problem.message) for problem in check(raw, None)]


def test_a_good_block_has_none() -> None:
    assert problems() == []
    assert problems({"defense": ["l2", "rounding"], "space": {"l2.weight_decay": [0.1]}}) == []


@pytest.mark.parametrize(
    ("tune", "path", "said"),
    [
        ({"defense": "roundin"}, "tune.defense", "Did you mean 'rounding'|roundin"),
        ({"defense": {"name": "rounding", "digits": 2}}, "tune.defense.digits", "is not a field"),
        ({"defense": {"name": "rounding", "decimals": 99}}, "tune.defense", "12"),
        ({"defense": {"name": "rounding", "grid": {"decimals": [1, 2]}}}, "grid", "spans no grid"),
        ({"space": {"decimal": [1]}}, "tune.space.decimal", "decimals"),
        ({"space": {"decimals": {"low": 0, "high": 3}}}, "tune.space.decimals", "1"),
        ({"space": {"decimals": {"low": 1, "high": 13}}}, "tune.space.decimals", "12"),
        ({"space": {"decimals": {"low": 1, "high": 2.5}}}, "tune.space.decimals", "whole"),
        ({"space": {"decimals": [1, "two"]}}, "tune.space.decimals", "two"),
        ({"space": {"mode": ["round", "ceil"]}}, "tune.space.mode", "ceil|floor"),
        ({"space": {"decimals": {"choices": [1], "when": {"mood": 1}}}}, "decimals", "mood"),
        (
            {"sampler": "grid", "space": {"decimals": {"low": 1, "high": 3, "log": True}}},
            "tune.space.decimals",
            "a grid needs choices",
        ),
        ({"attacks": ["gapp"]}, "tune.attacks[0]", "gap"),
        ({"attacks": [{"name": "metric", "statistic": "size"}]}, "tune.attacks[0]", "size|entropy"),
        ({"attacks": ["gap", "inversion"]}, "tune.attacks[1]", "an attack of inversion"),
        ({"attacks": ["attribute"]}, "tune.attacks[0]", "an attack of attribute"),
        ({"objectives": ["accuracy"]}, "tune.objectives[0]", "is no column of a trial"),
        ({"constraints": ["l1 <= 2"]}, "tune.constraints", "is no column of a trial"),
        ({"trials": 0}, "tune.trials", "1"),
        ({"samplers": "tpe"}, "tune.samplers", "sampler"),
    ],
)
def test_each_is_told_with_its_place(tune: dict[str, Any], path: str, said: str) -> None:
    found = problems(tune)
    assert any(path in place and re.search(said, message) for place, message in found), found
    assert len(found) <= 2, found


def test_several_datasets_are_refused() -> None:
    other = {**RAW["datasets"][0], "name": "synth_m"}
    ((path, said),) = problems(datasets=[*RAW["datasets"], other])
    assert path == "tune"
    assert "a search is on one dataset, the experiment has synth_s, synth_m" in said


@pytest.mark.parametrize("judge", ["reference", "defender"])
def test_a_judge_of_another_kind_is_refused(judge: str) -> None:
    found = problems(datasets=[{**RAW["datasets"][0], "judge": judge}])
    assert [said for path, said in found if path == "tune"] == [
        f"'synth_s' is judged by its {judge}, but what a search chooses is judged by the members; "
        "drop `judge`"
    ]


@pytest.mark.parametrize(
    ("tuning", "held_out", "seen"),
    [
        ("gap", "gap", True),
        ("gap", {"name": "gap", "label": "another name"}, True),
        (ENTROPY, ENTROPY, True),
        (ENTROPY, {**ENTROPY, "statistic": "confidence"}, False),
        ("nsh", {"name": "nsh", "adaptive": True}, False),
        ({"name": "nsh", "adaptive": True}, {"name": "nsh", "adaptive": True}, True),
        (
            {"name": "metric", "grid": {"statistic": ["entropy", "confidence"]}},
            {"name": "metric", "statistic": "confidence"},
            True,
        ),
    ],
)
def test_an_attack_that_trials_see_is_not_held_out(tuning: Any, held_out: Any, seen: bool) -> None:
    found = problems({"attacks": [tuning]}, attacks=[held_out])
    assert [path for path, _ in found] == (["attacks[0]"] if seen else [])
    if seen:
        assert "is also a tuning attacker (tune.attacks[0])" in found[0][1]


def test_defaults_spelled_out_are_the_same_attack() -> None:
    from tasks import plugins

    spelled = plugins.attack("nsh").model_validate(plugins.attack("nsh").PRESETS.get("cpu", {}))
    entry = {"name": "nsh", **spelled.model_dump(mode="json")}
    ((path, _),) = problems({"attacks": ["nsh"]}, attacks=[entry])
    assert path == "attacks[0]"


# -- by command -----------------------------------------------------------------------------------


def refused(tmp_path: Path, content: Any, *args: str, command: str = "tune") -> str:
    """What is said, in one line; nothing was done."""
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(content))
    store = tmp_path / "store"
    given = [command, str(file), "--store", str(store), "--inline", *args]
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 2, ended.output
    assert "Traceback" not in ended.output
    assert "fault of Sfumato" not in ended.output
    assert not (store / "artifacts").exists()
    return " ".join(ended.output.split())


def test_a_file_without_the_block_says_what_to_add(tmp_path: Path) -> None:
    said = refused(tmp_path, RAW)
    assert "there is no block `tune` in it" in said
    assert "or use `sfumato run`" in said


def test_a_problem_is_told_with_its_line(tmp_path: Path) -> None:
    said = refused(tmp_path, {**RAW, "tune": {**TUNE, "space": {"decimal": [1]}}})
    assert "line " in said
    assert "tune.space.decimal" in said
    said = refused(tmp_path, {**RAW, "tune": TUNE}, "--set", "tune.trials=0")
    assert "tune.trials" in said
    said = refused(tmp_path, {**RAW, "tune": TUNE}, "--workers", "2")
    assert "drop --workers" in said


def test_a_study_uri_that_is_none_is_told(tmp_path: Path) -> None:
    said = refused(tmp_path, {**RAW, "tune": TUNE}, "--study-uri", "redis://ann:s3cret@h")
    assert "is no address of a database" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("name", ["compare_fronts", "tune_purifier_location"])
def test_a_packaged_study_given_to_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    store = ["--store", str(tmp_path / "store")]
    ended = CliRunner().invoke(app, ["run", name, *store])
    said = " ".join(ended.output.split())
    assert ended.exit_code == 2
    if name == "compare_fronts":
        assert "is a comparison of studies, which `sfumato tune compare_fronts` searches" in said
    else:  # it is an experiment of its own, whose data are not here
        assert "location30" in said
