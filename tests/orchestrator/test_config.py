"""Bad experiment files: all problems at once, each with line, path and remedy."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.check import load_experiment
from orchestrator.config import Experiment
from orchestrator.source import ConfigError, packaged

VALID: dict[str, Any] = {
    "name": "tiny",
    "description": "a valid experiment",
    "seeds": [0, 1],
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 300, "classes": 4},
            "split": {"members": 60, "reference": 60, "nonmembers": 60, "untrained": 20},
            "known": 0.5,
            "judge": "members",
            "dedup": "group",
        },
        "digits_binary",
    ],
    "target": {"architecture": "mlp_s", "epochs": 2, "hidden": [8]},
    "defenses": [
        "none",
        {"name": "purifier", "label": "small", "epochs": 2, "noise": "per_input"},
        ["l2", {"name": "purifier", "grid": {"latent": [2, 3]}, "preset": "sound"}],
    ],
    "attacks": [
        "gap",
        {"name": "ml_leaks", "hidden": 8, "adaptive": True},
        {"name": "nsh", "grid": {"width": [0.5, 1.0]}, "fit_on": "clean"},
    ],
    "adaptive": True,
    "preset": "cpu",
}


def load(tmp_path: Path, content: Any, *overrides: str) -> Experiment:
    path = tmp_path / "file.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return load_experiment(str(path), overrides)


def problems(tmp_path: Path, content: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content, *overrides)
    for problem in caught.value.problems:
        assert problem.message.strip(), "a problem says nothing"
        assert "\n" not in problem.message
    return [str(problem) for problem in caught.value.problems]


def changed(**keys: Any) -> dict[str, Any]:
    return {**copy.deepcopy(VALID), **keys}


def test_a_valid_file_loads_and_what_it_resolves_to_loads_as_the_same(tmp_path: Path) -> None:
    experiment = load(tmp_path, VALID)
    assert experiment.attacks[1].params == {"hidden": 8}
    assert load(tmp_path, experiment.resolved()) == experiment


@pytest.mark.parametrize("name", sorted(packaged().keys() - {"compare_fronts"}))
def test_packaged_experiments_load_where_their_data_is(name: str) -> None:
    # Without the data directory the only complaint may be that a set is not here.
    with contextlib.suppress(ConfigError):
        assert load_experiment(name).name == name
        return
    with pytest.raises(ConfigError) as caught:
        load_experiment(name)
    assert all("SFUMATO_DATA" in problem.message for problem in caught.value.problems)


def test_all_problems_come_at_once_with_line_and_path_in_file_order(tmp_path: Path) -> None:
    text = """\
seeds: [0, one]
datasets:
  - {name: synth_s, generator: {rows: 300}, split: {members: 200, reference: 200, nonmembers: 200}}
  - synth_hrad
target: {architecture: cnn_s, epochz: 3}
defenses: [none, purifer, [onehot, l2], {name: purifier, epohs: 3}]
attacks:
  - {name: nsh, width: -1}
  - gapp
presets: cpu
"""
    found = problems(tmp_path, text)
    expected = [
        ("line 1: seeds[1]: ", "whole number", "'one'"),
        ("line 3: datasets[0].split: ", "600", "300", "smaller"),
        ("line 4: datasets[1]: ", "'synth_hrad'", "'synth_hard'"),
        ("line 5: target.epochz: ", "'epochs'"),
        ("line 5: target.architecture: ", "images", "mlp"),
        ("line 6: defenses[1]: ", "'purifer'", "'purifier'"),
        ("line 6: defenses[2][1]: ", "'l2'", "first"),
        ("line 6: defenses[3].epohs: ", "'epochs'"),
        ("line 8: attacks[0].width: ", "more than 0", "-1"),
        ("line 9: attacks[1]: ", "'gapp'", "'gap'"),
        ("line 10: presets: ", "'preset'"),
    ]
    for start, *parts in expected:
        hits = [line for line in found if line.startswith(start)]
        assert any(all(part in line for part in parts) for line in hits), (start, parts, found)
    assert len(found) == len(expected), found


@pytest.mark.parametrize(
    ("keys", "start", "parts"),
    [
        ({"datasets": 3}, "datasets: ", ("list", "3")),
        ({"datasets": []}, "datasets: ", ("empty",)),
        ({"defenses": {"name": "none"}}, "defenses: ", ("list", "mapping")),
        ({"seeds": "a"}, "seeds: ", ("list", "'a'")),
        ({"seeds": []}, "seeds: ", ("empty",)),
        ({"seeds": [0, 1, 0]}, "seeds[2]: ", ("'0'", "seeds[0]")),
        ({"seeds": [-1]}, "seeds[0]: ", ("at least 0", "-1")),
        ({"seeds": [2**31]}, "seeds[0]: ", ("less than", str(2**31))),
        ({"seeds": [10**40]}, "seeds[0]: ", ("less than",)),
        ({"attacks": [None]}, "attacks[0]: ", ("a name or a mapping", "nothing")),
        ({"attacks": []}, "attacks: ", ("empty",)),
        ({"attacks": ["gap", "gap"]}, "attacks[1]: ", ("attacks[0]", "drop")),
        ({"attacks": [{"adversary": 1}]}, "attacks[0].name: ", ("missing",)),
        ({"attacks": [{"name": "nsh", 1: 2}]}, "attacks[0].1: ", ("text",)),
        ({"attacks": [{"name": "nsh", "width": float("inf")}]}, "attacks[0].width: ", ("finite",)),
        (
            {"attacks": [{"name": "nsh", "grid": {"width": []}}]},
            "attacks[0].grid.width",
            ("empty",),
        ),
        ({"attacks": [{"name": "nsh", "grid": 3}]}, "attacks[0].grid: ", ("mapping", "3")),
        (
            {"attacks": [{"name": "nsh", "grid": {"width": [1, "a"]}}]},
            "attacks[0].grid.width: ",
            ("number", "'a'"),
        ),
        (
            {"attacks": [{"name": "nsh", "width": 1, "grid": {"width": [1]}}]},
            "attacks[0].grid.width: ",
            ("keep one",),
        ),
        (
            {"attacks": [{"name": "nsh", "grid": {"epochs": list(range(1, 1200))}}]},
            "attacks[0].grid: ",
            ("1199", "1000"),
        ),
        ({"attacks": [{"name": "nsh", "grid": {"width": [1, 1]}}]}, "attacks[0]: ", ("label",)),
        ({"defenses": [[["l2"]]]}, "defenses[0][0]: ", ("a name or a mapping", "a list")),
        ({"defenses": [[]]}, "defenses[0]: ", ("empty",)),
        ({"defenses": [["l2", "l2"]]}, "defenses[0][1]: ", ("'l2'", "first")),
        ({"defenses": ["purifier", "purifier"]}, "defenses[1]: ", ("label", "defenses[0]")),
        (
            {"defenses": ["onehot", {"name": "purifier", "label": "onehot"}]},
            "defenses[1]: ",
            ("label", "'onehot'"),
        ),
        ({"defenses": [{"name": "purifier", "label": [1]}]}, "defenses[0].label: ", ("text",)),
        ({"defenses": [{"name": "purifier", "label": "a\nb"}]}, "defenses[0].label", ("one line",)),
        ({"defenses": [{"name": "purifier", "noise": "loud"}]}, "defenses[0].noise", ("'fresh'",)),
        ({"defenses": [{"name": "purifier", "preset": 3}]}, "defenses[0].preset: ", ("'paper'",)),
        (
            {"defenses": [{"name": "purifier", "swapper": "perhaps"}]},
            "defenses[0].swapper: ",
            ("true or false", "'perhaps'"),
        ),
        (
            {"defenses": [{"name": "purifier", "swapper": False, "reformer": False}]},
            "defenses[0]: ",
            ("reformer and swapper",),
        ),
        ({"target": {"architecture": "mlp_z"}}, "target.architecture: ", ("'mlp_s'",)),
        ({"target": {"name": "mlp_s"}}, "target.name: ", ("'architecture'",)),
        ({"target": None}, "target: ", ("architecture's name", "nothing")),
        ({"target": {"hidden": [-4]}}, "target.hidden[0]: ", ("at least 1", "-4")),
        ({"target": {"hidden": [10**6, 10**6]}}, "target: ", ("narrower",)),
        ({"target": {"learning_rate": float("nan")}}, "target.learning_rate: ", ("nan",)),
        ({"datasets": ["synth_s", "synth_s"]}, "datasets[1]: ", ("'synth_s'", "datasets[0]")),
        ({"datasets": [{"name": "own", "path": "no/such.npz"}]}, "datasets[0]: ", ("no file",)),
        ({"datasets": [{"name": "../x"}]}, "datasets[0].name: ", ("'../x'", "letters")),
        (
            {"datasets": [{"name": "synth_s", "known": 0.3}]},
            "datasets[0].known: ",
            ("0.25, 0.5 or 0.75", "0.3"),
        ),
        (
            {"datasets": [{"name": "synth_s", "splt": {}}]},
            "datasets[0].splt: ",
            ("'split'",),
        ),
        (
            {"datasets": [{"name": "synth_s", "split": {"member": 30}}]},
            "datasets[0].split.member: ",
            ("'members'",),
        ),
        (
            {"datasets": [{"name": "synth_s", "generator": {"row": 30}}]},
            "datasets[0].generator.row: ",
            ("'rows'",),
        ),
        (
            {
                "datasets": [
                    {
                        "name": "synth_s",
                        "split": {"members": 3, "reference": 30, "nonmembers": 30},
                    }
                ]
            },
            "datasets[0].split.members: ",
            ("at least 10", "3"),
        ),
        (
            {"datasets": [{"name": "synth_s", "judge": "untrained"}]},
            "datasets[0].split: ",
            ("split.untrained", "10 or more"),
        ),
        ({"name": "../../etc"}, "name: ", ("lower-case letters", "'../../etc'")),
        ({"name": "Upper"}, "name: ", ("lower-case letters", "'Upper'")),
        ({"name": ""}, "name: ", ("lower-case letters",)),
        ({"name": "x" * 200}, "name: ", ("100",)),
        ({"name": None}, "name: ", ("text", "nothing")),
        ({"atacks": ["gap"]}, "atacks: ", ("'attacks'",)),
        ({"adaptive": "perhaps"}, "adaptive: ", ("true or false", "'perhaps'")),
    ],
)
def test_each_mistake_names_place_value_and_remedy(
    tmp_path: Path, keys: dict[str, Any], start: str, parts: tuple[str, ...]
) -> None:
    found = problems(tmp_path, changed(**keys))
    at = [line.partition(": ")[2] if line.startswith("line ") else line for line in found]
    hits = [line for line in at if line.startswith(start)]
    assert any(all(part in line for part in parts) for line in hits), found
    assert all(line.startswith("line ") for line in found), "a line is missing"


def test_a_missing_key_is_named_though_it_has_no_line(tmp_path: Path) -> None:
    assert problems(tmp_path, {"attacks": ["gap"]}) == ["datasets: is missing; add it"]


def test_the_file_name_is_the_name_and_must_be_usable_as_one(tmp_path: Path) -> None:
    path = tmp_path / "My Experiment.yaml"
    path.write_text("datasets: [synth_s]\nattacks: [gap]\n")
    with pytest.raises(ConfigError, match=r"'My Experiment'.*the file's name"):
        load_experiment(str(path))
    assert load_experiment(str(path), ["name=mine"]).name == "mine"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- gap\n", "mapping of keys"),
        ("gap", "mapping of keys"),
        ("a: b: c\n", "line 1: is not YAML"),
        ("datasets:\n\t- synth_s\n", "not tabs"),
        ("seeds: [0\nattacks: [gap]\n", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("a: *nowhere\n", "line 1: is not YAML"),
        ("a: !!python/object:os.system x\n", "line 1: a: cannot be read"),
        ("attacks: [gap]\nseeds: 2020-02-30\n", "line 2: seeds: cannot be read"),
        ("a: !!bool x\n", "line 1: a: cannot be read"),
        ("a: !!timestamp x\n", "line 1: a: cannot be read"),
        ("a: " + "9" * 5000 + "\n", "line 1: a: cannot be read"),
        ("? [1, 2]\n: 3\n", "is not YAML"),
        ("a: !!set 3\n", "line 1: is not YAML"),
        ("a: \x00\n", "line 1: is not YAML"),
        ("a: &a [*a]\n", "nested"),
        ("a: " + "[" * 5000, "nested"),
        ("a: " + "[" * 50 + "]" * 50, "nested"),
        (BOMB, "aliases"),
        ("seeds: [0]\nattacks: [gap]\nseeds: [1]\n", "line 3: seeds: is given twice"),
        (
            "datasets: [{name: synth_s, name: synth_m}]\nattacks: [gap]\n",
            "datasets[0].name: is given",
        ),
    ],
)
def test_what_is_no_experiment_at_all(tmp_path: Path, text: str, part: str) -> None:
    assert any(part in line for line in problems(tmp_path, text)), problems(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    for name, part in [
        (str(binary), "UTF-8"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "none.yaml"), "no such file"),
        ("quickstat", "did you mean 'quickstart'"),
        ("", "neither a packaged experiment"),
        ("x" * 5000, "cannot be read"),
        ("a\x00b", "nor a file"),
    ]:
        with pytest.raises(ConfigError, match=part):
            load_experiment(name)


def test_settings_from_outside(tmp_path: Path) -> None:
    made = load(
        tmp_path,
        VALID,
        "target.epochs=5",
        "seeds=[3]",
        "datasets[0].split.members=70",
        "seeds[0]=4",
    )
    assert made.target.recipe["epochs"] == 5
    assert made.seeds == [4]
    sizes = made.datasets[0].split
    assert sizes is not None
    assert sizes.members == 70


def test_a_setting_changes_one_place_although_an_alias_shares_it(tmp_path: Path) -> None:
    text = """\
datasets:
  - {name: synth_s, split: &s {members: 20, reference: 20, nonmembers: 20}}
  - {name: synth_m, split: *s}
attacks: [gap]
"""
    made = load(tmp_path, text, "datasets[0].split.members=30")
    assert [entry.sizes().members for entry in made.datasets] == [30, 20]


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("seeds", "is not key=value"),
        ("=3", "is not key=value"),
        ("", "is not key=value"),
        ("a..b=3", "is not key=value"),
        ("seeds[=3", "is not key=value"),
        ("seeds[99]=3", "there is no [99]"),
        ("seeds.a=3", "there is no key 'a'"),
        ("preset.a=3", "there is no key 'a'"),
        ("datasets[1].known=0.25", "mapping"),
        ("seeds=[", "is not YAML"),
        ("seeds=&a [*a]", "nested"),
        ("seeds=2020-02-30", "cannot be read"),
        ("sedes=[1]", "did you mean 'seeds'"),
        ("preset=fast", "'fast' (as --set says)"),
        ("target.epochs=many", "target.epochs: must be a whole number, got 'many' (as --set"),
        ("nothing[0]=3", "is not there"),
    ],
)
def test_malformed_settings(tmp_path: Path, setting: str, part: str) -> None:
    found = problems(tmp_path, VALID, setting)
    assert any(part in line for line in found), found
    assert not any(line.startswith("line ") for line in found), "the file is not at fault"


def test_a_split_that_fits_by_count_but_not_by_distinct_records(tmp_path: Path) -> None:
    import numpy as np

    x = np.repeat(np.eye(20, dtype=np.float32), 20, axis=0)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(400) % 4)
    split = {"members": 100, "reference": 100, "nonmembers": 100}
    own = {"name": "own", "path": str(tmp_path / "own.npz"), "split": split, "dedup": "drop"}
    found = problems(tmp_path, changed(datasets=[own]))
    assert "datasets[0].split: " in found[0]
    assert "20" in found[0]
