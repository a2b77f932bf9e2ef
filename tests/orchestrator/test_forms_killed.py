"""Forms of experiments under kills and two drivers: nothing is lost, nothing is mixed."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.check import load_experiment
from orchestrator.forms import kept
from orchestrator.garbage import survey
from orchestrator.plan import make_plan
from orchestrator.resume import Store

pytestmark = pytest.mark.slow


def averaged(place) -> list[tuple]:
    """(label, number of seeds, whether it is current) of all means."""
    means = Store(place.store).tables.frame("results").groupby(["label", "settings"])
    return [(label, len(rows), rows["current"].all()) for (label, _), rows in means]


# Children start with everything imported; the n-th write of settings or cells ends them, if asked.
FORKS = """
import json, os, sys
import mlflow, torch, cluster.inline, storage.tables
import attacks.gap, defenses.prototype, orchestrator.report, orchestrator.run
from orchestrator.cli import main

def begin(argv, left):
    def watch(event, args):
        nonlocal left
        if event == "os.rename" and {"experiments", "cells"} & set(str(args[1]).split(os.sep)):
            if left == 0:
                os._exit(9)
            left -= 1
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(watch)
        sys.argv = ["sfumato", *argv]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
    return pid

children = [begin(argv, left) for argv, left in json.loads(sys.argv[1])]
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print("codes", json.dumps(codes))
"""


def forked(*children) -> list[int]:
    """Exit codes of runs at the same time: (arguments, writes before it is killed or -1)."""
    argv = [sys.executable, "-c", FORKS, json.dumps(children)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    line = ended.stdout.strip().splitlines()[-1]
    assert line.startswith("codes "), ended.stdout
    return json.loads(line.removeprefix("codes "))


def test_killed_at_any_write_of_a_form_nothing_is_lost_and_the_next_run_finishes(
    done, before_forms
):
    """Settings and cells are some files, of which any prefix may be there."""
    before_forms(done.store, "tiny")
    former = set(make_plan(load_experiment(done.file()), None).tasks)
    file = done.file(seeds=[7])
    after = (0, 1, 2, 4, 5, 7, 99)
    stores = [done.folder / f"store{writes}" for writes in after]
    for store in stores:
        shutil.copytree(done.store, store)
    runs = [[["run", file, "--inline", "--store", str(store)] for store in stores], after]
    codes = forked(*zip(*runs, strict=True))
    killed = codes.count(9)
    assert codes == [9] * killed + [0]
    for store in map(Store, stores[:killed]):
        tables = store.tables
        seeds = tables.frame("results", "tiny")["seed"].tolist()
        assert seeds.count(0) == 2
        assert set(tables.frame("results", "tiny").query("seed == 0")["current"]) == {True}
        assert tables.problems == []
        garbage = survey(store, None)
        assert garbage.unplanned == {}
        assert not former & {piece.key for piece in garbage.pieces}
    for store in (stores[1], stores[killed - 1]):
        place = replace(done, folder=store.parent / f"again{store.name}")
        place.folder.mkdir()
        store.rename(place.store)
        assert place.run_file(file).code == 0
        assert averaged(place) == [("none", 2, True), ("prototype", 2, True)]
        assert len(kept(Store(place.store))) == 2


def test_two_drivers_of_two_forms_both_keep_theirs(done):
    files = []
    for seed in (1, 2):
        files.append(done.folder / f"seed{seed}.yaml")
        files[-1].write_text(Path(done.file(seeds=[seed])).read_text())
    at = ["--inline", "--store", str(done.store)]
    assert forked(*([["run", str(file), *at], -1] for file in files)) == [0, 0]
    forms = kept(Store(done.store))
    assert sorted(form.settings()["seeds"] for form in forms) == [[0], [1], [2]]
    assert next(form.settings()["seeds"] for form in forms if form.current) in ([1], [2])
    assert averaged(done) == [("none", 3, True), ("prototype", 3, True)]
    assert set(Store(done.store).tables.frame("cells")["status"]) == {"done"}
