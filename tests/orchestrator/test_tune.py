"""A search from file to tables: how many trials, whose values, what fails, what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator import space
from orchestrator.check import load_experiment
from orchestrator.cli import app
from orchestrator.config import Experiment
from orchestrator.outcome import Options
from orchestrator.resume import Store
from orchestrator.study import open_search
from orchestrator.study_storage import open_storage
from orchestrator.trial import stages, trial_experiment
from orchestrator.tune import Found, search, study_name
from storage._schemas import MEASURED
from tasks.train_target import TrainTarget

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 5, "clusters": 4},
            "split": {"members": 160, "reference": 160, "nonmembers": 160},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 8, "hidden": [16]},
    "attacks": [{"name": "metric", "statistic": "entropy"}],
    "tune": {
        "defense": "random_noise",
        "space": {"sigma": {"low": 0.0, "high": 1.0}},
        "attacks": ["gap", {"name": "metric", "statistic": "confidence"}],
        "objectives": ["attack_accuracy", "l1_distortion"],
        "sampler": "random",
        "trials": 4,
    },
}


class Quiet:
    """Progress that remembers what was started and said."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.notes: list[str] = []

    def begin(self, prepared: Any) -> None: ...

    def grow(self, prepared: Any) -> None: ...

    def joined(self, worker: str, node: str, gpu: bool) -> None: ...

    def lost(self, worker: str) -> None: ...

    def tick(self, pending: int) -> None: ...

    def started(self, worker: str, task: Any) -> None:
        self.ran.append(task)

    def finished(self, worker: str, task: Any, seconds: float) -> None: ...

    def failed(self, worker: str, task: Any, error: str) -> None:
        self.notes.append(error)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def end(self) -> None: ...


class Study:
    """An experiment with a search in a file, and a store."""

    def __init__(self, folder: Path, **tune: Any) -> None:
        self.folder, self.tune, self.keys = folder, tune, {}  # type: ignore[var-annotated]
        self.quiet = Quiet()

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def journal(self) -> Path:
        return self.folder / "journal.txt"

    def file(self) -> str:
        path = self.folder / "small.yaml"
        made = {**SMALL, **self.keys, "tune": {**SMALL["tune"], **self.tune}}
        path.write_text(yaml.safe_dump(made, sort_keys=False))
        return str(path)

    @property
    def experiment(self) -> Experiment:
        return load_experiment(self.file())

    def search(self, *, uri: str | None = None, **options: Any) -> Found:
        self.quiet = Quiet()
        given = {"store": self.store.root, "executor": "inline", **options}
        return search(self.experiment, Options(**given), self.quiet, study_uri=uri)

    def command(self, *args: str) -> tuple[int, str]:
        command = ["tune", self.file(), "--store", str(self.store.root), "--inline", *args]
        ended = CliRunner().invoke(app, command)
        if ended.exception is not None and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return ended.exit_code, ended.output

    def rows(self) -> list[dict[str, Any]]:
        rows = self.store.tables.frame("trials").sort_values("number").to_dict("records")
        return [{str(k): v for k, v in row.items()} for row in rows]

    def kinds(self) -> Counter[str]:
        """What ran in the last search."""
        return Counter(task.kind for task in self.quiet.ran)

    def mlflow(self) -> dict[str, list[Any]]:
        """Runs by the trial's key."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.store.root}/mlflow.db")
        ids = [e.experiment_id for e in client.search_experiments()]
        found: dict[str, list[Any]] = {}
        for run in client.search_runs(ids):
            found.setdefault(run.data.tags.get("sfumato.task_key", "parent"), []).append(run)
        return found


def measured(value: Any) -> str:
    return repr(value.tolist() if hasattr(value, "tolist") else value)


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    """Where rows differ in what is not measured."""
    if len(rows) != len(others):
        return [f"{len(rows)} rows, not {len(others)}"]
    return [
        f"trial {row['number']}: {name}: {row[name]} / {other[name]}"
        for row, other in zip(rows, others, strict=True)
        for name in row
        if name not in MEASURED and measured(row[name]) != measured(other[name])
    ]


@pytest.fixture
def study(tmp_path: Path, new_history: Path) -> Callable[..., Study]:
    """`study(**tune)`; `study(**tune, at="name")` in a store of its own."""

    def make(at: str = "one", **tune: Any) -> Study:
        made = Study(tmp_path / at, **tune)
        made.store.root.mkdir(parents=True)
        (made.store.root / "mlflow.db").write_bytes(new_history.read_bytes())
        return made

    return make


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The small search, undisturbed. Not to be changed."""
    made = Study(tmp_path_factory.mktemp("calm"))
    made.search(journal=made.journal)
    return made


# -- the whole ------------------------------------------------------------------------------------


def test_a_search_has_its_trials_in_the_table(calm: Study) -> None:
    rows = calm.rows()
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert {row["state"] for row in rows} == {"complete"}
    assert {row["study"] for row in rows} == {study_name(calm.experiment, None)}
    for row in rows:
        sigma = json.loads(row["params"])["sigma"]
        assert 0 <= sigma <= 1
        (made,) = json.loads(row["defense_params"])
        assert made["sigma"] == sigma
        assert list(row["objective_columns"]) == ["attack_accuracy", "l1_distortion"]
        assert list(row["objectives"]) == [row["attack_accuracy"], row["l1_distortion"]]
        assert row["feasible"]
        # An obvious account of it, from the tables that every run has.
        mine = calm.store.tables.rows("results", row["task_keys"])
        assert len(mine) == 2
        assert row["attack_accuracy"] == mine["attack_accuracy"].max()
        (cost,) = calm.store.tables.rows("utility", row["task_keys"]).to_dict("records")
        assert row["l1_distortion"] == cost["l1_distortion"]
        assert row["test_accuracy"] == cost["test_accuracy"]


def test_trials_share_what_does_not_depend_on_their_values(calm: Study) -> None:
    rows = calm.rows()
    assert rows[0]["num_shared"] == 0
    assert all(row["num_shared"] > 0 for row in rows[1:])
    assert all(0 < row["shared_s"] <= row["tasks_s"] for row in rows[1:])
    started = Counter(
        line.split()[4]
        for line in calm.journal.read_text().splitlines()
        if line.split()[2] == "start"
    )
    assert set(started.values()) == {1}
    kinds = calm.kinds()
    assert kinds["TrainTarget"] == 1
    assert kinds["FitDefense"] == 4


def test_every_trial_is_a_child_of_one_run_in_mlflow(calm: Study) -> None:
    runs = calm.mlflow()
    (parent,) = runs["parent"]
    for row in calm.rows():
        (child,) = runs[row["key"]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert json.loads(child.data.params["params"]) == json.loads(row["params"])
        assert child.data.metrics["attack_accuracy"] == pytest.approx(row["attack_accuracy"])
        assert child.data.metrics["l1_distortion"] == pytest.approx(row["l1_distortion"])
    trials = {row["key"] for row in calm.rows()}
    assert trials <= runs.keys()


def test_the_history_made_anew_is_the_same(calm: Study, tmp_path: Path) -> None:
    from orchestrator.history import rebuild

    uri = f"sqlite:///{tmp_path}/other.db"
    done, said = rebuild(calm.store, uri)
    assert (set(done), said) == ({"small"}, [])
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    anew = {run.data.tags.get("sfumato.task_key"): run.data for run in client.search_runs(ids)}
    for row in calm.rows():
        (before,) = calm.mlflow()[row["key"]]
        assert anew[row["key"]].metrics == before.data.metrics
        assert anew[row["key"]].params == before.data.params


def test_what_trials_run_is_judged_on_the_defenders_records(calm: Study) -> None:
    experiment = calm.experiment
    assert experiment.tune is not None
    trial = trial_experiment(experiment, experiment.tune, experiment.tune.defense)
    plans = [part.plan for part in stages(trial, experiment.tune, None)]
    tasks = [task for plan in plans for task in plan.tasks.values()]
    judged = [task for task in tasks if task.kind in ("RunAttack", "MeasureUtility", "CheckSplit")]
    assert {task.kind for task in judged} >= {"RunAttack", "MeasureUtility"}
    assert {task.judge for task in judged} == {"defender"}
    # And those that did run, by what they say of themselves.
    for task in calm.quiet.ran:
        told = json.loads(task.description)["fields"]
        assert told.get("judge", "defender") == "defender", task


def test_a_second_call_runs_nothing_and_more_trials_go_on(study: Callable[..., Study]) -> None:
    one, whole = study(trials=2), study(at="whole", trials=4)
    one.search()
    before, files = one.rows(), sorted(one.store.root.rglob("part-*"))
    found = one.search()
    assert one.quiet.ran == []
    assert (found.outcome.ran, len(found.rows)) == (0, 2)
    assert same(before, one.rows()) == []
    assert [row["created_at"] for row in before] == [row["created_at"] for row in one.rows()]
    assert sorted(one.store.root.rglob("part-*")) == files
    one.tune["trials"] = 4
    assert len(one.search().rows) == 4
    assert one.kinds()["TrainTarget"] == 0
    whole.search()
    assert same(one.rows(), whole.rows()) == []
    assert {len(runs) for key, runs in one.mlflow().items()} == {1}


def test_another_sampler_is_another_study_that_reuses_everything_shared(
    study: Callable[..., Study],
) -> None:
    one = study(trials=2, sampler="grid", space={"sigma": [0.1, 0.2]})
    name = study_name(one.experiment, None)
    one.search()
    one.tune |= {"sampler": "random"}
    assert study_name(one.experiment, None) != name
    one.search()
    assert set(one.kinds()) <= {"FitDefense", "Answers", "RunAttack", "MeasureUtility", "WorstCase"}
    assert len(one.rows()) == 4
    one.tune |= {"trials": 9, "choose": "least_leak", "judged": 1, "in_flight": 3, "time": "1h"}
    assert study_name(one.experiment, None) == study_name(
        Study(one.folder, **{**one.tune, "trials": 2}).experiment, None
    )


def test_the_defense_as_given_is_the_first_trial_if_the_space_holds_it(
    study: Callable[..., Study],
) -> None:
    for at, sigma, held in (("in", 0.25, True), ("out", 3.0, False)):
        one = study(at=at, defense={"name": "random_noise", "sigma": sigma}, trials=1)
        (row,) = one.search().rows
        assert (json.loads(row["params"])["sigma"] == sigma) == held
    one = study(at="no", defense={"name": "random_noise", "sigma": 0.25}, trials=1, start=False)
    (row,) = one.search().rows
    assert json.loads(row["params"])["sigma"] != 0.25


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_draw_and_measure_the_same(study: Callable[..., Study], calm: Study) -> None:
    two = study()
    two.search(executor="ray", workers=2)
    assert same(two.rows(), calm.rows()) == []


# -- trials that end early ------------------------------------------------------------------------


def attacked(one: Study, row: Mapping[str, Any]) -> int:
    """How many attacks of a trial ran."""
    return len(one.store.tables.rows("results", row["task_keys"]))


def test_a_trial_beyond_a_constraint_on_costs_stops_before_any_attack(
    study: Callable[..., Study],
) -> None:
    one = study(
        space={"sigma": [0.01, 1.0]},
        sampler="grid",
        constraints=["l1_distortion <= 0.2"],
        trials=9,
    )
    rows = {json.loads(row["params"])["sigma"]: row for row in one.search().rows}
    assert rows.keys() == {0.01, 1.0}
    assert rows[0.01]["state"] == "complete"
    assert rows[0.01]["constraints"][0] <= 0
    pruned = rows[1.0]
    assert pruned["state"] == "pruned"
    assert pruned["constraints"][0] == pytest.approx(pruned["l1_distortion"] - 0.2)
    assert not pruned["feasible"]
    assert "l1_distortion is" in pruned["error"]
    assert "breaks l1_distortion <= 0.2" in pruned["error"]
    assert (attacked(one, rows[0.01]), attacked(one, pruned)) == (2, 0)
    assert one.kinds()["RunAttack"] == 2


def test_a_constraint_on_attacks_makes_a_trial_infeasible(study: Callable[..., Study]) -> None:
    one = study(constraints=["auc <= 0.1", "auc >= 0.1"], trials=1)
    (row,) = one.search().rows
    assert (row["state"], row["feasible"]) == ("complete", False)
    assert row["constraints"][0] == pytest.approx(-row["constraints"][1]) == row["auc"] - 0.1
    code, said = one.command()
    assert code == 1
    assert "no trial holds all constraints (auc <= 0.1, auc >= 0.1): nothing is chosen" in said


def test_a_trial_that_another_beats_in_all_stops_after_the_first_seed(
    study: Callable[..., Study],
) -> None:
    one = study(
        seeds=[0, 1],
        space={"sigma": [0.0, 1.0]},
        sampler="grid",
        trials=2,
        margin=0.05,
        # Turned round so that one of both is better in both.
        objectives=[
            {"column": "l1_distortion", "direction": "minimize"},
            {"column": "l1_distortion_p95", "direction": "minimize"},
        ],
    )
    rows = one.search().rows
    by_sigma = {json.loads(row["params"])["sigma"]: row for row in rows}
    first_is_better = json.loads(rows[0]["params"])["sigma"] == 0.0
    assert by_sigma[0.0]["state"] == "complete"
    assert by_sigma[0.0]["num_seeds"] == 2
    if first_is_better:
        assert by_sigma[1.0]["state"] == "pruned"
        assert by_sigma[1.0]["num_seeds"] == 1
        assert by_sigma[1.0]["error"] == "trial 0 beats it by more than 0.05 in all"
    else:
        assert by_sigma[1.0]["state"] == "complete"
    one.tune |= {"margin": 3.0}
    assert {row["state"] for row in one.search().rows} == {"complete"}


def test_with_one_objective_optuna_prunes_after_a_seed(study: Callable[..., Study]) -> None:
    one = study(
        seeds=[0, 1],
        space={"sigma": {"low": 0.0, "high": 1.0}},
        defense={"name": "random_noise", "sigma": 1.0},
        objectives=["l1_distortion"],
        trials=9,
    )
    rows = one.search().rows
    states = [row["state"] for row in rows]
    assert states[:5] == ["complete"] * 5  # the median is of five at least
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned
    for row in pruned:
        assert (row["num_seeds"], row["error"]) == (1, "median pruner after 1 seeds")
        assert len(row["objectives"]) == 0
    one.tune |= {"prune": "none", "trials": 6}
    assert {row["state"] for row in one.search().rows} == {"complete"}


def test_a_trial_taken_over_after_it_reported_ends_without_a_warning(
    study: Callable[..., Study],
) -> None:
    one = study(objectives=["l1_distortion"], trials=1)
    experiment = one.experiment
    assert experiment.tune is not None
    searched = space.axes(experiment.tune)
    storage = open_storage(None, one.store.root)
    dead = open_search(study_name(experiment, None), storage, experiment.tune, searched, {})
    ask = dead.ask(1)
    assert ask is not None
    values = space.suggest(ask.trial, searched, {})
    ask.trial.report(0.5, step=1)
    dead._me = {**dead._me, "began": -1.0}
    dead._claim(ask.trial._trial_id, 0)
    dead.close()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The reported value is ignored")
        (row,) = one.search().rows
    assert (row["number"], row["state"]) == (0, "complete")
    assert json.loads(row["params"]) == values


# -- trials that fail -----------------------------------------------------------------------------


def test_trials_that_fail_are_told_and_the_search_goes_on(study: Callable[..., Study]) -> None:
    """Of five classes no seven scores can be kept, which the defense says as it is fitted."""
    one = study(defense="top_k", space={"k": [1, 2, 7]}, sampler="grid", trials=3)
    code, said = one.command()
    rows = {json.loads(row["params"])["k"]: row for row in one.rows()}
    assert {k: row["state"] for k, row in rows.items()} == {
        1: "complete",
        2: "complete",
        7: "failed",
    }
    assert "FitDefense top_k" in rows[7]["error"]
    assert "7" in rows[7]["error"]
    assert list(rows[7]["objectives"]) == []
    assert f"failed: trial {rows[7]['number']}" in said
    assert code == 0
    assert len(one.search().rows) == 3  # it is not tried again


def test_values_that_do_not_go_together_fail_their_trial(study: Callable[..., Study]) -> None:
    space_ = {"reformer": [True, False], "swapper": [False]}
    one = study(
        defense={"name": "purifier", "epochs": 1, "hidden": [4, 4, 4]},
        space=space_,
        sampler="grid",
        trials=2,
    )
    rows = {json.loads(row["params"])["reformer"]: row for row in one.search().rows}
    assert (rows[True]["state"], rows[False]["state"]) == ("complete", "failed")
    assert "reformer and swapper are both false" in rows[False]["error"]
    assert len(rows[False]["task_keys"]) == 0
    assert {str(key) for key in one.mlflow()} >= {rows[True]["key"], rows[False]["key"]}


def test_a_search_of_which_every_trial_fails_ends(study: Callable[..., Study]) -> None:
    one = study(defense="top_k", space={"k": [7, 8]}, sampler="grid", trials=2)
    code, said = one.command()
    assert code == 1
    assert [row["state"] for row in one.rows()] == ["failed"] * 2
    assert "Traceback" not in said


def test_what_all_trials_need_is_no_fault_of_any(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(defense="top_k", space={"k": [1, 2, 3]}, sampler="grid", trials=3)

    def lost(self: Any, bench: Any, draft: Any) -> None:
        raise FileNotFoundError("there is no file on this node")

    with monkeypatch.context() as patch:
        patch.setattr(TrainTarget, "run", lost)
        code, said = one.command()
    assert code == 1
    assert "All trials need it" in said
    assert [row["state"] for row in one.rows()].count("failed") <= 1, "the others are not spent"
    # The trials that were open were given back: they are this process's again.
    code, said = one.command("--no-judge")
    assert code == 0, said
    assert [row["state"] for row in one.rows()].count("complete") >= 2


# -- how long -------------------------------------------------------------------------------------


def test_no_trial_starts_after_its_time(study: Callable[..., Study]) -> None:
    one = study(trials=10_000, time="0.5s")
    code, said = one.command("--no-judge")
    assert code == 0, said
    num = len(one.rows())
    assert 1 <= num < 100
    assert {row["state"] for row in one.rows()} == {"complete"}


# -- kills and companions -------------------------------------------------------------------------

# Forked children start with everything imported, so that kills hit the work and not the imports.
FORKED = """
import json, os, sys, time
import mlflow, torch, optuna, psycopg
import attacks.gap, attacks.metric, defenses.random_noise, storage.tables, cluster.inline
import orchestrator.compare, orchestrator.figures_tune, orchestrator.progress
from orchestrator.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    if "reap" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        for file in (1, 2):
            os.dup2(os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), file)
        sys.argv = ["sfumato", *asked["argv"]]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        os._exit(0)
    print(pid, flush=True)
"""


class Forker:
    """Starts drivers within milliseconds."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", FORKED]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, **what: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(self, one: Study, *options: str) -> int:
        argv = ["tune", one.file(), "--store", str(one.store.root), "--inline", "--no-judge"]
        argv += ["--journal", str(one.journal), *options]
        return self.ask(argv=argv, out=str(one.folder / "out.txt"))

    def ended(self, pid: int, seconds: float) -> int | None:
        """Its exit code, or None if it goes on after so many seconds."""
        import select

        told = os.pidfd_open(pid)
        try:
            if not select.select([told], [], [], seconds)[0]:
                return None
        finally:
            os.close(told)
        return self.ask(reap=pid)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


def executions(one: Study) -> list[tuple[str, str]]:
    lines = one.journal.read_text().splitlines() if one.journal.exists() else []
    return [(line.split()[2], line.split()[4]) for line in lines]


def finished_by(one: Study, pid: int) -> int:
    """How many tasks a driver has finished."""
    lines = one.journal.read_text().splitlines() if one.journal.exists() else []
    return sum(line.split()[1:3] == [str(pid), "done"] for line in lines)


def repeated(one: Study) -> list[str]:
    """Keys that were started again after they had finished."""
    done: set[str] = set()
    again = []
    for event, key in executions(one):
        again += [key] if event == "start" and key in done else []
        done |= {key} if event == "done" else set()
    return again


def trials_of(one: Study, uri: str | None = None) -> list[Any]:
    """The trials of the study, those of two drivers too many among them."""
    tune = one.experiment.tune
    assert tune is not None
    name = study_name(one.experiment, None)
    found = open_search(name, open_storage(uri, one.store.root), tune, space.axes(tune), {})
    found.close()
    return list(found.study.get_trials())


def finished_well(one: Study, calm_rows: list[dict[str, Any]], uri: str | None = None) -> list[str]:
    """How a study differs from the undisturbed one."""
    trials = [t for t in trials_of(one, uri) if not t.user_attrs.get("surplus")]
    faults = same(one.rows(), calm_rows)
    if [t.number for t in trials] != list(range(len(calm_rows))):
        faults.append(f"trials {[t.number for t in trials]}")
    faults += [f"trial {t.number} is {t.state.name}" for t in trials if t.state.name != "COMPLETE"]
    faults += [f"task {key[:12]} ran again" for key in repeated(one)]
    faults += [f"{len(r)} runs of {k}" for k, r in one.mlflow().items() if len(r) > 1]
    missing = {row["key"] for row in calm_rows} - one.mlflow().keys()
    faults += [f"no run of {key}" for key in missing]
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [2, 4])
def test_a_driver_killed_at_random_loses_and_repeats_nothing(
    study: Callable[..., Study], calm: Study, forker: Forker, wanted: int
) -> None:
    one, rng, kills = study(), random.Random(20261127), 0
    while kills < wanted:
        lines = len(executions(one)) + rng.randint(1, 9)
        pid, until = forker.start(one), time.monotonic() + 60
        while (code := forker.ended(pid, 0.001)) is None and len(executions(one)) < lines:
            assert time.monotonic() < until
        if code is not None:
            break
        os.kill(pid, signal.SIGKILL)
        assert forker.ended(pid, 60) == -signal.SIGKILL
        kills += 1
    assert forker.ended(forker.start(one), 60) == 0, (one.folder / "out.txt").read_text()
    assert kills >= min(wanted, 3)
    assert finished_well(one, calm.rows()) == []


def together(
    one: Study, forker: Forker, calm_rows: list[dict[str, Any]], uri: str | None, *, kill: bool
) -> None:
    options = ["--study-uri", uri] if uri else []
    first = forker.start(one, *options)
    second = forker.start(one, *options)
    if kill:
        until = time.monotonic() + 60
        while finished_by(one, first) < 12:  # a trial, and more
            assert forker.ended(first, 0.001) is None
            assert time.monotonic() < until
        os.kill(first, signal.SIGKILL)
        assert forker.ended(first, 60) == -signal.SIGKILL
    else:
        assert forker.ended(first, 90) == 0, (one.folder / "out.txt").read_text()
    assert forker.ended(second, 90) == 0, (one.folder / "out.txt").read_text()
    assert same(one.rows(), calm_rows) == []
    trials = [t for t in trials_of(one, uri) if not t.user_attrs.get("surplus")]
    assert [t.number for t in trials] == list(range(len(calm_rows)))
    assert {t.state.name for t in trials} == {"COMPLETE"}
    assert len({t.user_attrs["driver"]["id"] for t in trials}) == 2
    assert "Traceback" not in (one.folder / "out.txt").read_text()


@pytest.fixture(scope="module")
def calm_seven(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    made = Study(tmp_path_factory.mktemp("seven"), trials=7)
    made.search()
    return made.rows()


@pytest.mark.parametrize(
    ("kind", "kill"),
    [
        pytest.param("journal", False, id="journal, both live", marks=pytest.mark.slow),
        pytest.param("journal", True, id="journal, one dies", marks=pytest.mark.slow),
        pytest.param("postgresql", False, id="postgresql, both live", marks=pytest.mark.slow),
        pytest.param("postgresql", True, id="postgresql, one dies"),
    ],
)
def test_two_drivers_share_a_study(
    kind: str,
    kill: bool,
    study: Callable[..., Study],
    forker: Forker,
    calm_seven: list[dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    uri = None
    if kind == "postgresql":
        uri = request.getfixturevalue("postgres").new_database()
    together(study(trials=7), forker, calm_seven, uri, kill=kill)
