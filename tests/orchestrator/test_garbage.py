"""`gc` removes what no experiment needs, that only, and leaves a sound store when killed."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from orchestrator.check import load_experiment
from orchestrator.garbage import collect, forget, survey, weights
from orchestrator.plan import make_plan
from orchestrator.resume import Store
from storage.artifacts import Artifacts
from storage.census import Piece

OTHER = {"target": {"architecture": "mlp_s", "epochs": 1, "hidden": [8]}}


def keys(place, **changes) -> set[str]:
    """Every key of the experiment's plan."""
    return set(make_plan(load_experiment(place.file(**changes)), None).tasks)


def loose(place, *forgotten) -> set[str]:
    """The keys of artifacts that can go."""
    pieces = survey(Store(place.store), None, forgotten).pieces
    return {piece.key for piece in pieces if piece.what == "artifact"}


def gc(place, *args):
    return place.command("gc", "--store", place.store, *args)


def test_nothing_of_a_finished_experiment_can_go(done):
    garbage = survey(Store(done.store), None)
    assert not garbage.pieces
    assert garbage.kept[0] == len(done.artifacts())
    said = gc(done, "--delete")
    assert (said.code, "removed 0 pieces" in said.flat) == (0, True)


def test_an_earlier_form_keeps_what_it_needs_until_it_is_forgotten(done):
    former, before = keys(done), done.rows("results").set_index("task_key")
    assert done.run(**OTHER).code == 0
    current = keys(done, **OTHER)
    assert loose(done) == set()
    assert loose(done, "tiny@earlier") == former - current
    listed = gc(done)
    assert "target.epochs=2" in listed.flat
    assert "nothing to remove" in listed.flat
    ((form, count, _),) = weights(survey(Store(done.store), None))
    assert (form.title in listed.text, count) == (True, len(former - current))
    listed = gc(done, "--forget", form.title)
    assert "nothing was removed; --delete does it" in listed.flat
    assert set(done.artifacts()) == former | current
    said = gc(done, "--forget", form.title[:12], "--delete")
    assert (said.code, "forgot 1 earlier form of tiny" in said.flat) == (0, True)
    assert set(done.artifacts()) == current
    for table in ("tasks", "results", "utility", "scores"):
        held = {p.stem.removeprefix("part-") for p in (done.store / "tables" / table).iterdir()}
        assert held <= current, table
    assert "earlier forms" not in gc(done).flat
    assert "nothing to run" in done.run(**OTHER).flat
    assert done.run().code == 0
    after = done.rows("results").set_index("task_key").loc[before.index]
    pd.testing.assert_series_equal(after["attack_accuracy"], before["attack_accuracy"])


def test_an_interrupted_form_keeps_what_it_had_finished(done):
    """Its cells name tasks that were never run, whose inputs only its plan tells."""
    wider = {"seeds": [0, 1]}
    assert done.run(**wider).code == 0
    plan = make_plan(load_experiment(done.file(**wider)), None)
    ends = {cell.task.key for cell in plan.cells if cell.seed == 1 or cell.kind == "worst"}
    for key in ends:
        shutil.rmtree(done.artifacts()[key])
        for part in (done.store / "tables").glob(f"*/part-{key}.parquet"):
            part.unlink()
    assert done.run(seeds=[0], defenses=["none"]).code == 0
    assert loose(done) == set()
    begun = {key for key, task in plan.tasks.items() if task.seed == 1} - ends
    assert begun
    assert begun <= set(done.artifacts())


def test_two_experiments_keep_what_either_needs(done):
    assert done.run(name="second", **OTHER).code == 0
    assert loose(done) == set()
    both = keys(done) | keys(done, **OTHER)
    assert set(done.artifacts()) == both
    assert loose(done, "second") == keys(done, **OTHER) - keys(done)
    assert loose(done, "second", "tiny") == both


def test_cells_keep_their_chains_when_their_experiments_folder_is_gone(done):
    shutil.rmtree(done.store / "experiments")
    assert loose(done) == set()
    assert loose(done, "tiny") == keys(done)


def test_cells_of_an_older_plan_keep_their_chains(done, before_forms):
    """As after an upgrade: the plan names other keys than the tables still show."""
    before_forms(done.store, "tiny")
    path = done.store / "experiments" / "tiny" / "experiment.yaml"
    changed = path.read_text().replace("epochs: 2", "epochs: 1")
    assert changed != path.read_text()
    path.write_text(changed)
    assert loose(done) == set()


def test_a_study_keeps_its_chain(done):
    former = keys(done)
    trial = next(iter(done.rows("results")["task_key"]))
    assert done.run(**OTHER).code == 0
    assert trial in loose(done, "tiny@earlier")
    row = {"study": "s", "number": 0, "state": "complete", "params": "{}", "task_keys": [trial]}
    Store(done.store).tables.write("trials", 64 * "0", [row])
    kept = former - loose(done, "tiny@earlier")
    plan = make_plan(load_experiment(done.file()), None)
    assert {trial, *(task.key for task in plan.tasks[trial].inputs)} <= kept
    assert kept < former


def own_data(place) -> str:
    rng = np.random.default_rng(0)
    columns = {f"f{i:03}": rng.integers(0, 2, 240) for i in range(8)}
    path = place.folder / "own.parquet"
    pd.DataFrame({**columns, "label": np.arange(240) % 4}).to_parquet(path)
    return str(path)


def own(path) -> dict:
    sizes = {"members": 60, "reference": 60, "nonmembers": 60}
    return {"datasets": [{"name": "own", "path": path, "split": sizes}]}


def test_what_was_run_is_kept_when_its_data_are_gone(done):
    path = own_data(done)
    data = own(path)
    assert done.run(name="mine", **data).code == 0
    mine = keys(done, **data)
    os.remove(path)
    assert loose(done) == set()
    assert gc(done, "--delete").code == 0
    assert mine <= set(done.artifacts())


def test_nothing_goes_while_what_is_needed_cannot_be_told(done, before_forms):
    """Stores made before forms were kept have only the experiment file to plan from."""
    path = own_data(done)
    data = own(path)
    assert done.run(name="mine", **data).code == 0
    before_forms(done.store, "mine")
    mine = keys(done, **data)
    os.remove(path)
    (done.store / "artifacts" / "ab" / ("ab" * 32)).mkdir(parents=True)  # something to remove
    held = set(done.artifacts())
    said = gc(done, "--delete")
    assert said.code == 2
    for part in ("nothing was removed", "mine:", "own.parquet", "sfumato gc --forget mine"):
        assert part in said.flat
    with pytest.raises(ValueError, match="mine"):
        collect(survey(Store(done.store), None), damaged=True)
    assert set(done.artifacts()) == held
    assert (done.store / "experiments" / "mine").is_dir()

    dry = gc(done, "--forget", "mine")
    assert (dry.code, set(done.artifacts())) == (0, held)
    said = gc(done, "--forget", "mine", "--delete")
    assert (said.code, "forgot the experiment mine" in said.flat) == (0, True)
    assert set(done.artifacts()) == held - mine == keys(done)
    assert not (done.store / "experiments" / "mine").exists()
    assert not list((done.store / "tables" / "cells").glob("mine*"))
    assert not loose(done)


@pytest.mark.parametrize("content", [None, "datasets: [nowhere]\nattacks: [gap]\n"])
def test_an_unreadable_experiment_stops_it_too(done, before_forms, content):
    before_forms(done.store, "tiny")
    path = done.store / "experiments" / "tiny" / "experiment.yaml"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert gc(done, "--delete").code == 2
    assert set(done.artifacts()) == keys(done)


@pytest.mark.parametrize("how", ["cut", "a key changed"])
def test_a_damaged_form_is_planned_anew_from_its_settings_or_stops_it(done, how):
    assert done.run(**OTHER).code == 0
    ((form, _, _),) = weights(survey(Store(done.store), None))
    path = form.file.with_suffix(".json")
    text = path.read_text()
    key = next(iter(form.tasks))
    path.write_text(text[:-9] if how == "cut" else text.replace(key, key[::-1]))
    assert loose(done) == set()
    form.file.unlink()
    said = gc(done, "--delete")
    assert said.code == 2
    for part in ("nothing was removed", f"{path} is damaged", f"sfumato gc --forget {form.title}"):
        assert part in said.flat
    assert keys(done) <= set(done.artifacts())
    assert gc(done, "--forget", form.title, "--delete").code == 0
    assert set(done.artifacts()) == keys(done, **OTHER)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("tyni", "the store has no such experiment; it has: tiny"),
        ("tyni@earlier", "the store has no such experiment; it has: tiny"),
        ("tiny@0000000", "tiny has no such form; its earlier forms: none, or earlier"),
        ("tiny@", "tiny has no such form"),
        ("tiny@{current}", "that is how tiny was run last; --forget tiny forgets all of it"),
    ],
)
def test_forgetting_what_is_not_there_is_refused(done, named, told):
    named = named.format(current=Store(done.store).tables.forms.current("tiny"))
    said = gc(done, "--forget", named)
    assert said.code == 2
    assert f"--forget {named}: {told}" in said.flat


def test_drafts_go_once_their_process_is_gone_and_the_set_aside_only_when_asked(done):
    artifacts = Artifacts(done.store / "artifacts")
    code = (
        "import os, sys; from pathlib import Path; from storage.artifacts import Artifacts\n"
        "from hashlib import sha256\n"
        "def die(draft):\n"
        "    draft.facts('half', {'a': 1}); os._exit(0)\n"
        "Artifacts(Path(sys.argv[1])).put(sha256(b'{}').hexdigest(), '{}', die)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(artifacts.root)], check=True)
    (aside,) = [artifacts.set_aside(next(artifacts.keys()), "for this test")]
    found = {piece.what: piece for piece in survey(Store(done.store), None).pieces}
    assert set(found) == {"draft", "damaged"}
    assert found["damaged"] == Piece("damaged", aside, found["damaged"].nbytes)
    assert gc(done, "--delete").code == 0
    assert not list(artifacts.root.glob(".draft-*"))
    assert aside.is_dir()
    assert gc(done, "--delete", "--damaged").code == 0
    assert not aside.exists()

    def meanwhile(draft):
        """While a living process writes, its draft is no garbage."""
        draft.facts("half", {"a": 1})
        assert list(artifacts.root.glob(".draft-*"))
        assert not survey(Store(done.store), None).pieces

    key = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    artifacts.put(key, "{}", meanwhile)


@pytest.mark.parametrize("at", [1, 5])
def test_killed_while_removing_no_half_artifact_is_left_in_place(done, at):
    assert done.run(**OTHER).code == 0
    wanted, going = keys(done, **OTHER), loose(done, "tiny@earlier")
    forget(Store(done.store), "tiny@earlier")
    code = (
        "import os, sys\n"
        "left = int(sys.argv[1])\n"
        "def watch(event, args):\n"
        "    global left\n"
        "    if event == 'os.remove' and args[1] != -1:  # a file of a folder that goes\n"
        "        left -= 1\n"
        "        if left == 0: os._exit(9)\n"
        "from pathlib import Path\n"
        "from orchestrator.garbage import collect, survey\n"
        "from orchestrator.resume import Store\n"
        "garbage = survey(Store(Path(sys.argv[2])), None)\n"
        "sys.addaudithook(watch)\n"
        "collect(garbage, damaged=False)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(at), str(done.store)])
    assert killed.returncode == 9
    artifacts = Store(done.store).artifacts
    states = {key: artifacts.state(key) for key in going}
    assert set(states.values()) == {"absent", "complete"}
    assert list(artifacts.root.glob(".draft-*"))
    assert gc(done, "--delete").code == 0
    assert not list(artifacts.root.glob(".draft-*"))
    assert set(done.artifacts()) == wanted
