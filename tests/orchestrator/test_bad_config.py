"""Bad experiment files and settings: exit code 2, place, value, remedy, nothing written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

NAN, INF = float("nan"), float("inf")
HEAD = "datasets: [synth_s]\nattacks: [gap]\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def dataset(**keys: Any) -> dict[str, Any]:
    sizes = {"members": 60, "reference": 60, "nonmembers": 60}
    return {"datasets": [{"name": "synth_s", "generator": {"rows": 300}, "split": sizes, **keys}]}


def target(**keys: Any) -> dict[str, Any]:
    return {"target": {"architecture": "mlp_s", "epochs": 2, **keys}}


def attack(**keys: Any) -> dict[str, Any]:
    return {"attacks": [{"name": "nsh", **keys}]}


def test_misspelt_keys_and_wrong_types_are_told_together(place: Any) -> None:
    said = place.run(sedes=[0], attacks=["gapp", {"name": "nsh", "epochs": "many"}])
    place.refused(said, "tiny.yaml: 3 problems", "sedes", "did you mean 'seeds'?")
    place.refused(said, "'gapp' is not an attack. Did you mean 'gap'?")
    place.refused(said, "attacks[1].epochs: must be a whole number, got 'many'")
    assert said.text.count("line ") >= 3


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("datasets: [synth_s\nattacks: [gap]\n", ["is not YAML"]),
        ("datasets:\n\t- synth_s\n", ["line 2", "not tabs"]),
        (HEAD + "seeds: [0]\nseeds: [1]\n", ["line 4: seeds", "given twice", "keep one"]),
        ("", ["is empty", "datasets:", "attacks:"]),
        ("- gap\n- nsh\n", ["a list", "mapping of keys"]),
        ("42\n", ["a single value", "mapping of keys"]),
        (BOMB, ["aliases", "at most 100000"]),
        ("a: " + "[" * 1500 + "]" * 1500, ["nested deeper than 20", "flat"]),
        (HEAD + "name: !!python/object/apply:os.system [touch pwned]\n", ["python/object"]),
        (HEAD + "seeds: !!python/tuple [0]\n", ["python/tuple"]),
        ("datasets: [größe]\n".encode("latin-1"), ["is not UTF-8", "byte 13", "YAML file"]),
        (bytes(range(256)) * 10, ["is not UTF-8", "byte 128"]),
        (HEAD + "seeds: 2020-02-30\n", ["line 3: seeds", "cannot be read"]),
        (HEAD + "---\nseeds: [1]\n", ["is not YAML", "document"]),
        ("\x1b[2Jname: x\n", ["is not YAML", "line 1"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value[:12]),
)
def test_what_is_no_experiment(place: Any, content: str | bytes, parts: list[str]) -> None:
    place.refused(place.run_file(place.text(content)), "tiny.yaml: ", *parts)
    assert not place.store.exists()
    assert not Path("pwned").exists()


def test_a_file_of_100_mb_is_refused_without_being_read(place: Any) -> None:
    file = place.text("")
    os.truncate(file, 100_000_000)
    place.refused(place.run_file(file), "tiny.yaml", "1,000,000 bytes", "Name a YAML file")


def test_files_that_are_none(place: Any) -> None:
    place.refused(
        place.run_file(str(place.folder)), str(place.folder), "a folder", "sfumato list experiments"
    )
    place.refused(place.run_file("quickstrat"), "'quickstart'")
    place.refused(place.run_file("\x1b[31m.yaml"), "\\x1b[31m.yaml", "no such file")
    place.refused(place.run_file("x" * 5000), "File name too long", "YAML file")
    os.mkfifo(place.folder / "pipe.yaml")
    place.refused(place.run_file(str(place.folder / "pipe.yaml")), "no such file")


def test_an_experiment_that_is_not_there_as_a_process_of_its_own(place: Any) -> None:
    command = [sys.executable, "-m", "orchestrator", "run", str(place.folder / "nothing.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    for part in ("nothing.yaml", "no such file", "sfumato list experiments"):
        assert part in said


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        # keys and types at each level
        ({"sedes": [0]}, ["sedes", "did you mean 'seeds'?"]),
        (dataset(splt={}), ["datasets[0].splt", "did you mean 'split'?"]),
        (dataset(generator={"row": 30}), ["datasets[0].generator.row", "'rows'"]),
        (target(epoch=3), ["target.epoch", "did you mean 'epochs'?"]),
        ({"defenses": [{"name": "purifier", "epohs": 3}]}, ["defenses[0].epohs", "'epochs'"]),
        (attack(widht=1), ["attacks[0].widht", "did you mean 'width'?"]),
        ({"seeds": 3}, ["seeds", "must be a list", "3"]),
        ({"datasets": {"name": "synth_s"}}, ["datasets", "must be a list", "a mapping"]),
        (dataset(split=[60, 60, 60]), ["datasets[0].split", "must be a mapping", "a list"]),
        ({"target": ["mlp_s"]}, ["target", "architecture's name", "a list"]),
        ({"defenses": ["none", 3]}, ["defenses[1]", "a name or a mapping", "3"]),
        (attack(epochs="many"), ["attacks[0].epochs", "whole number", "'many'"]),
        ({"description": 5}, ["description", "must be text", "5"]),
        # names of what does not exist
        ({"datasets": ["synth_sx"]}, ["datasets[0]", "'synth_sx'", "'synth_s'"]),
        ({"target": "mlp_sx"}, ["target.architecture", "'mlp_sx'", "'mlp_s'"]),
        ({"defenses": ["purifer"]}, ["defenses[0]", "'purifer'", "'purifier'"]),
        ({"attacks": ["_likelihood"]}, ["attacks[0]", "'_likelihood'", "Known: ", " gap,"]),
        ({"attacks": ["../gap"]}, ["attacks[0]", "'../gap'", "'gap'"]),
        ({"preset": "fast"}, ["preset", "'paper', 'sound' or 'cpu'", "'fast'"]),
        (target(network="rnn"), ["target.network", "'mlp' or 'cnn'", "'rnn'"]),
        # what is given twice
        ({"attacks": ["gap", "gap"]}, ["attacks[1]", "attacks[0]", "label"]),
        ({"seeds": [0, 1, 0]}, ["seeds[2]", "'0'", "seeds[0]", "drop one"]),
        ({"datasets": ["synth_s", "synth_s"]}, ["datasets[1]", "drop one"]),
        # another kind of value
        ({"seeds": [True]}, ["seeds[0]", "whole number", "true"]),
        ({"seeds": ["1"]}, ["seeds[0]", "whole number", "'1'"]),
        ({"adaptive": 1}, ["adaptive", "true or false", "1"]),
        (dataset(generator={"rows": True}), ["generator.rows", "whole number", "true"]),
        (target(epochs=True), ["target.epochs", "must be a number", "true"]),
        (target(hidden=[8, True]), ["target.hidden[1]", "must be a number", "true"]),
        (attack(width=True), ["attacks[0].width", "must be a number", "true"]),
        (attack(grid={"width": [1, True]}), ["attacks[0].grid.width", "a number", "true"]),
        (
            {"defenses": [{"name": "purifier", "swapper": 1}]},
            ["defenses[0].swapper", "true or false", "1"],
        ),
        # numbers out of range
        ({"seeds": [-1]}, ["seeds[0]", "at least 0", "-1"]),
        ({"seeds": [10**40]}, ["seeds[0]", "less than 2147483648"]),
        ({"seeds": [10**3000]}, ["seeds[0]", "cannot be read", "9966 bits"]),
        (target(batch_size=10**30), ["target.batch_size", "at most 1000000000"]),
        (target(hidden=[0]), ["target.hidden[0]", "at least 1"]),
        (target(hidden=[10**9, 10**9]), ["target", "more than 2000000000 weights", "narrower"]),
        (target(hidden=[2] * 3000), ["target.hidden", "at most 100"]),
        (target(learning_rate=NAN), ["target.learning_rate", "nan"]),
        (attack(width=INF), ["attacks[0].width", "finite", "inf"]),
        (dataset(known=NAN), ["datasets[0].known", "0.25, 0.5 or 0.75", "nan"]),
        (
            dataset(generator={"rows": 10**6, "features": 10**4}),
            ["datasets[0]", "1000000 rows of 10000 features", "fewer rows or features"],
        ),
        (
            dataset(generator={"rows": 10**6, "features": 4}),
            ["datasets[0]", "found 16 distinct records", "ask for fewer rows"],
        ),
        # names that are parts of paths, labels that are shown
        ({"name": "../../etc/x"}, ["name", "lower-case letters", "'../../etc/x'"]),
        ({"name": "/a/b"}, ["name", "lower-case letters", "'/a/b'"]),
        ({"name": ".."}, ["name", "beginning with a letter", "'..'"]),
        ({"name": "a\nb"}, ["name", "lower-case letters", "'a\\nb'"]),
        ({"name": "a\x00b"}, ["name", "lower-case letters", "'a\\x00b'"]),
        (
            {"defenses": [{"name": "prototype", "label": "\x1b[31mred"}]},
            ["defenses[0].label", "control characters", "\\x1b[31mred"],
        ),
        (
            {"defenses": [{"name": "prototype", "label": "\u202edesrever"}]},
            ["defenses[0].label", "control characters", "\\u202e"],
        ),
        (attack(label="x" * 5000), ["attacks[0].label", "at most", "200"]),
        ({"attacks": ["x" * 100_000]}, ["attacks[0].name", "at most", "100"]),
        ({"k" * 100_000: 1}, ["kkkk", "…", "is not a key here"]),
        # nothing, and too much
        ({"attacks": []}, ["attacks: must not be empty"]),
        (attack(grid={"width": []}), ["attacks[0].grid.width", "must not be empty"]),
        (
            attack(grid={"epochs": list(range(1, 40)), "width": [i / 99 for i in range(1, 40)]}),
            ["attacks[0].grid", "1521 points", "at most 1000"],
        ),
        (
            {
                "defenses": [
                    [{"name": n, "grid": {"temperature": [1, 2]}} for n in ["temperature"] * 2]
                ]
            },
            ["defenses[0]", "more than one grid"],
        ),
        # what does not go together
        ({"defenses": [["prototype", "l2"]]}, ["defenses[0][1]", "'l2'", "first"]),
        (attack(against=["nnoe"]), ["attacks[0].against", "'nnoe'", "did you mean 'none'?"]),
        ({"attacks": [{"name": "gap", "adaptive": True}]}, ["attacks[0].adaptive", "no adaptive"]),
        (
            {"attacks": [{"name": "gap", "shadow_data": "population"}]},
            ["attacks[0].shadow_data", "no use for a shadow", "drop"],
        ),
        (
            {
                **dataset(split={"members": 100, "reference": 60, "nonmembers": 60}),
                **attack(shadow_data="population"),
            },
            ["attacks[0].shadow_data", "records of no role", "leaves", "use 'known'"],
        ),
        (
            {"attacks": [{"name": "ml_leaks", "adversary": 2, "transfer_from": "digitz"}]},
            ["attacks[0]", "'digitz'", "which it trains on", "cannot be used"],
        ),
        (
            {
                "datasets": ["digits_binary"],
                "attacks": [{"name": "ml_leaks", "adversary": 2, "transfer_from": "digits_binary"}],
            },
            ["attacks[0]", "'digits_binary'", "the target's own dataset", "another"],
        ),
        (
            {"attacks": [{"name": "ml_leaks", "adversary": 2}]},
            ["attacks[0]", "adversary is 2", "takes the name of another dataset"],
        ),
        (
            {"attacks": [{"name": "ml_leaks", "adversary": 3, "adaptive": True}]},
            ["attacks[0].adaptive", "no adaptive form"],
        ),
        (attack(fit_on="clean", adaptive=True), ["attacks[0].fit_on", "drop one"]),
        (
            {
                "adaptive": True,
                "attacks": [
                    {"name": "nsh", "label": "a"},
                    {"name": "ml_leaks", "label": "a adaptive"},
                ],
            },
            ["attacks[1]", "'a adaptive'", "label of its own"],
        ),
        ({"attacks": ["boundary"]}, ["attacks[0]", "image", "binary", "drop it"]),
        ({"retry": "yes"}, ["retry", "true or false", "'yes'"]),
        (dataset(judge="untrained"), ["datasets[0].split", "split.untrained", "10 or more"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_each_mistake_names_line_place_value_and_remedy(
    place: Any, keys: dict[str, Any], parts: list[str]
) -> None:
    place.refused(place.run(**keys), "tiny.yaml: 1 problem line ", *parts)
    assert not place.store.exists()


def test_ten_thousand_problems_are_not_all_listed(place: Any) -> None:
    said = place.run(attacks=["gapp"] * 5000)
    assert said.code == 2
    assert "9999 problems, the first 20 of them" in said.text
    assert len(said.text.splitlines()) == 21


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("seeds", ["--set: 'seeds' is not key=value", "seeds=[0,1]"]),
        ("", ["--set: '' is not key=value"]),
        ("sedes=[1]", ["sedes", "did you mean 'seeds'?"]),
        ("target.epoch=3", ["target.epoch", "did you mean 'epochs'?", "as --set says"]),
        ("nothing.at.all=3", ["nothing", "is not a key here"]),
        ("attacks[7]=gap", ["'attacks[7]=gap' does not fit", "no [7]"]),
        ("preset.a=3", ["preset", "got a mapping (as --set says)"]),
        ("defenses[0].a=3", ["does not fit", "no key 'a'", "a mapping first"]),
        ("seeds=[", ["'seeds=[': is not YAML"]),
        ("seeds=[true]", ["seeds[0]", "whole number", "true (as --set says)"]),
        ("target.epochs=true", ["target.epochs", "a number", "true (as --set says)"]),
        ("name=../x", ["name", "'../x'", "as --set says"]),
        ("seeds\x1b[31m=1", ["'seeds\\x1b[31m=1' is not key=value"]),
        ("x" * 100_000, ["--set: 'xxx", "…", "is not key=value"]),
        (".".join("a" * 3000) + "=1", ["does not fit", "nested deeper than 20"]),
        ("seeds=" + "[" * 1500, ["nested deeper than 20"]),
        ("seeds=!!python/name:os.system", ["cannot be read"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_settings_that_do_not_fit(place: Any, setting: str, parts: list[str]) -> None:
    place.refused(place.run("--set", setting), "tiny.yaml: 1 problem", *parts)
    assert not place.store.exists()


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "0.1e-2", "1.0e-3"])
def test_a_power_of_ten_is_a_number(place: Any, text: str) -> None:
    """YAML 1.1 reads 1e-3 as text, which nobody who writes it means."""
    file = place.file()
    for setting in ("learning_rate", "min_loss"):
        said = place.command(
            "plan", file, "--set", f"target.{setting}={text}", "--store", place.store
        )
        assert said.code == 0, said.text


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_commands_that_only_read_refuse_the_same(place: Any, verb: str) -> None:
    said = place.command(verb, place.file(attacks=["gapp"]), "--store", place.store)
    place.refused(said, "'gapp' is not an attack")
    assert not place.store.exists()


def test_contradicting_options(place: Any) -> None:
    place.refused(place.run("--address", "auto"), "--inline", "drop", "--address")


def test_labels_with_brackets_are_shown_as_they_are(done: Any) -> None:
    label = "[red]a[/b] :x:"
    said = done.run(defenses=[{"name": "prototype", "label": label}])
    assert said.code == 0, said.text
    assert label in said.text


def test_what_the_file_is_called_is_no_path(place: Any) -> None:
    """The name of an experiment without a name: is its file's, and names a folder in the store."""
    content = {key: value for key, value in place.experiment.items() if key != "name"}
    for name in ("..evil.yaml", "ÄÖ.yaml", "-x.yaml", "a b.yaml"):
        path = place.folder / name
        path.write_text(yaml.safe_dump(content))
        place.refused(place.run_file(str(path)), "name", "lower-case letters", "the file's name")
    assert not place.store.exists()
