"""A search for hyper-parameters: trials on the workers, told to a study, until there are enough."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from orchestrator import space
from orchestrator.config import Experiment
from orchestrator.costs import Costs
from orchestrator.forms import describe
from orchestrator.front import dominates_by
from orchestrator.history import History, trial_run
from orchestrator.loop import STALE_S, Loop
from orchestrator.outcome import Options, Outcome, Progress
from orchestrator.plan import Plan, make_plan
from orchestrator.resume import Store, compare
from orchestrator.study import Ask, Search, open_search, told_of
from orchestrator.study_storage import open_storage
from orchestrator.trial import Figures, Stage, figures, stages, trial_experiment
from orchestrator.tune_entry import COLUMNS, TuneEntry, parse_seconds
from storage import datasets
from storage.working import Pusher, push
from tasks import plugins
from tasks.worker import check_journal

__all__ = ["Found", "search", "study_name", "trial_key"]

_LOOK_S = 2.0  # how often a driver with nothing to do looks for trials of dead ones
# What may change without making another study of it.
_FREE = ("trials", "time", "in_flight", "choose", "judged")
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass
class Found:
    """What a search came to.

    Attributes:
        study: its name: the experiment's, and a hash of what its trials measure.
        rows: a row of the table `trials` for each trial that ended, by number.
        outcome: what ran.
        elsewhere: trials that other drivers are at.
        search: the study.
    """

    study: str
    rows: list[dict[str, Any]]
    outcome: Outcome
    elsewhere: int = 0
    search: Search | None = field(default=None, repr=False)


def study_name(experiment: Experiment, data_dir: Path | None) -> str:
    """The name of an experiment's study: trials that measure something else are another's.

    The hash covers the block `tune` but for how long and for what to choose, and every task of the
    defense as given, hence data, target, attackers and versions.
    """
    tune = experiment.tune
    assert tune is not None
    asked = {name: value for name, value in tune.resolved().items() if name not in _FREE}
    first = make_plan(trial_experiment(experiment, tune, tune.defense), data_dir)
    told = json.dumps([asked, sorted(cell.task.key for cell in first.cells)], sort_keys=True)
    return f"{experiment.name}@{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def trial_key(study: str, number: int) -> str:
    """The key of a trial's row."""
    return hashlib.sha256(f"{study}/{number}".encode()).hexdigest()


def search(
    experiment: Experiment,
    options: Options,
    progress: Progress,
    *,
    study_uri: str | None = None,
) -> Found:
    """Run what is missing of a study's trials; a killed search is resumed by the same call.

    Raises:
        StudyAway: if the study's storage cannot be reached.
        ClusterUnreachable: if no worker can be had.
        StoreUnwritable: if the store cannot be written to.
        KeyboardInterrupt: as typed; the same call resumes.
    """
    check_journal(options.journal)
    store, tune = Store(options.store), experiment.tune
    assert tune is not None
    name = study_name(experiment, options.data_dir)
    # The file as resolved; what trials need `gc` is told by their rows.
    describe(make_plan(experiment, options.data_dir), store)
    push(store.root)
    store.drop_stale_drafts(older_than_s=STALE_S)
    if other := _earlier(experiment, name, store):
        progress.note(other)
    searched = space.axes(tune)
    about = {
        "experiment": experiment.name,
        "dataset": experiment.datasets[0].name,
        "defense": "+".join(entry.name for entry in tune.defense),
        "tuning attackers": ", ".join(entry.name for entry in tune.attacks),
    }
    found = open_search(name, open_storage(study_uri, store.root), tune, searched, about)
    history = History(Plan(experiment, {}, ()), store, options.tracking_uri)
    outcome = Outcome(Plan(experiment, {}, ()), "")
    pusher = Pusher(store.root)
    driver = _Driver(experiment, tune, found, options, store, progress, history, outcome, name)
    try:
        driver.catch_up()
        if driver.begin():
            driver.work()
    finally:
        progress.end()
        found.close()
        outcome.warnings += pusher.close()
        outcome.warnings += history.close()
        outcome.warnings += store.tables.problems
    rows = told_rows(found, store)
    return Found(name, rows, outcome, len(found.elsewhere()), found)


def _earlier(experiment: Experiment, name: str, store: Store) -> str:
    """What to say of trials of other forms of a study; empty without any."""
    trials = store.tables.frame("trials")
    others = trials[(trials["experiment"] == experiment.name) & (trials["study"] != name)]
    if others.empty:
        return ""
    return (
        f"{len(others)} trials of {others['study'].nunique()} earlier forms of this study stay in "
        "the store and are no part of it: data, target, space, attackers or versions were others"
    )


def told_rows(found: Search, store: Store) -> list[dict[str, Any]]:
    """The rows of the trials that ended, by number."""
    name = found.study.study_name
    keys = [trial_key(name, trial.number) for trial in found.finished()]
    rows = store.tables.rows("trials", keys).to_dict("records")
    named = [{str(n): v for n, v in row.items()} for row in rows]
    return sorted(named, key=lambda row: int(row["number"]))


# What trials of any values share, unless it is itself of the searched defense.
_SHARED = ("Split", "TrainTarget", "TrainShadows", "Shadow")


@dataclass
class _Flight:
    """A trial that runs."""

    ask: Ask
    values: dict[str, Any]
    parts: list[Stage]
    at: int = 0
    began: float = field(default_factory=time.time)
    own: set[str] = field(default_factory=set)  # tasks nobody had run before
    reached: Figures | None = None

    @property
    def part(self) -> Stage:
        return self.parts[self.at]

    @property
    def last(self) -> bool:
        return self.at == len(self.parts) - 1


class _Driver:
    """Asks for trials, adds their tasks to the loop, tells what they came to."""

    def __init__(
        self,
        experiment: Experiment,
        tune: TuneEntry,
        found: Search,
        options: Options,
        store: Store,
        progress: Progress,
        history: History,
        outcome: Outcome,
        name: str,
    ) -> None:
        self.experiment, self.tune, self.found = experiment, tune, found
        self.options, self.store, self.name = options, store, name
        self.progress, self.history, self.outcome = progress, history, outcome
        self.searched = space.axes(tune)
        self.given = _given(tune, experiment, options.data_dir)
        self.directions = [objective.direction for objective in tune.objectives]
        self.flights: list[_Flight] = []
        self.owner: dict[str, int] = {}  # task -> the first trial that wanted it run
        self.wanted: dict[str, set[str]] = {}  # task -> values under which trials want it
        self.costs = Costs(store.tables)
        self.until = time.monotonic() + parse_seconds(tune.time) if tune.time else None
        self.looked = 0.0
        self.loop: Loop | None = None

    # -- before and around the loop -----------------------------------------------------------

    def catch_up(self) -> None:
        """Write rows of trials that were told to the study by a driver killed right after."""
        ended = self.found.finished()
        keys = {trial_key(self.name, trial.number): trial for trial in ended}
        frame = self.store.tables.rows("trials", keys)
        known = set(frame.loc[frame["state"] != "running", "key"])
        for key, trial in keys.items():
            row = told_of(trial)
            if key not in known and row is not None:
                self._keep(row)

    def begin(self) -> bool:
        """Have the first trial ready, and an executor that suits it; whether there is any."""
        self._start()
        self._fill()
        if not self.flights and not self.found.elsewhere():
            return False
        seconds = sum(
            self.costs.seconds(task)
            for flight in self.flights
            for task in flight.parts[-1].plan.tasks.values()
        )
        left = self.tune.trials - len(self.found.finished())
        self.loop = Loop(
            self.options,
            self.store,
            self.progress,
            self.history.put,
            self.outcome,
            expected_s=seconds * max(1, left),
        )
        return True

    def work(self) -> None:
        assert self.loop is not None
        for flight in self.flights:
            self._launch(flight)
        self.loop.work(self.more)

    def _start(self) -> None:
        """The defense as given is tried first, if the space holds it."""
        if not self.tune.start or self.tune.sampler == "grid":  # a grid has it, in its turn
            return
        values = space.start(self.searched, self.given)
        if values is not None:
            self.found.start_with(values)

    def more(self) -> bool:
        """Move trials on; whether there are any, here or in the hands of another driver."""
        for flight in list(self.flights):
            self._advance(flight)
        self._fill()
        if self.flights:
            return True
        waiting = bool(self.found.elsewhere())
        if waiting:
            time.sleep(0.2)  # an inline executor waits for nothing
        return waiting

    def _fill(self) -> None:
        """Ask for trials until enough are in flight."""
        room = self.tune.in_flight or max(1, len(self.loop.present) if self.loop else 1)
        if len(self.flights) >= room:
            return
        if not self.flights and time.monotonic() - self.looked < _LOOK_S and self.looked:
            return
        while len(self.flights) < room and self.outcome.stopped is None:
            late = self.until is not None and time.monotonic() > self.until
            ask = self.found.adopt(self.tune.trials) or (
                None if late else self.found.ask(self.tune.trials)
            )
            if ask is None:
                self.looked = time.monotonic()
                return
            self._open(ask)

    # -- one trial ----------------------------------------------------------------------------

    def _open(self, ask: Ask) -> None:
        values = space.suggest(ask.trial, self.searched, self.given)
        chain = space.defended_by(self.tune.defense, self.searched, values, "trial")
        trial = trial_experiment(self.experiment, self.tune, chain)
        flight = _Flight(ask, values, [])
        try:
            flight.parts = stages(trial, self.tune, self.options.data_dir)
        except ValueError as error:  # a combination that the defense refuses
            self._tell(flight, TrialState.FAIL, str(error).strip().replace("\n", "; "))
            return
        self.flights.append(flight)
        self._write(self._row(flight, "running"))
        if self.loop is not None:
            self._launch(flight)

    def _launch(self, flight: _Flight) -> None:
        assert self.loop is not None
        plan = flight.part.plan
        prepared = compare(plan, self.store, repair=True, costs=self.costs)
        for key in prepared.needed:
            if self.owner.setdefault(key, flight.ask.number) == flight.ask.number:
                flight.own.add(key)
        for key in plan.tasks:
            self.wanted.setdefault(key, set()).add(repr(flight.values))
        self.outcome.cached += len(plan.tasks) - len(prepared.needed) if not flight.at else 0
        self.progress.grow(prepared)
        self.loop.add(prepared)

    def _advance(self, flight: _Flight) -> None:
        """Past every part that is done, up to the trial's end."""
        assert self.loop is not None
        state = self.loop.state
        while True:
            keys = [cell.task.key for cell in flight.part.plan.cells]
            if any(k not in state.done | state.failed.keys() | state.blocked.keys() for k in keys):
                return
            broken = next((k for k in keys if k not in state.done), None)
            if broken is not None:
                cause = state.blocked.get(broken, broken)
                task = self.loop.tasks[cause]
                error = f"{task.kind} {task.name}: {state.failed.get(cause, '')}"
                if task.kind in _SHARED and len(self.wanted[cause]) > 1:
                    # No fault of what is searched: the trial stays open, and none is spent on it.
                    self.outcome.stopped = (
                        f"{error}. All trials need it; `sfumato logs --task {cause[:12]}` says "
                        "more. The same command tries it again"
                    )
                    return
                self._end(flight, TrialState.FAIL, error)
                return
            flight.reached = figures(flight.part, self.store)
            why = self._stop(flight)
            if why is not None:
                self._end(flight, TrialState.PRUNED, why)
                return
            if flight.last:
                self._end(flight, TrialState.COMPLETE, "")
                return
            flight.at += 1
            self._launch(flight)

    def _stop(self, flight: _Flight) -> str | None:
        """Why a trial stops here, or None. Optuna prunes only with one objective."""
        assert flight.reached is not None
        columns = flight.reached.columns
        if not flight.part.whole:
            for bound in self.tune.bounds:
                value = columns.get(bound.column, 0.0)
                if COLUMNS[bound.column][0] == "utility" and bound.violation(value) > 0:
                    return (
                        f"{bound.column} is {value:.4g} under the first seed, which breaks "
                        f"{bound.column} {bound.operator} {bound.bound:g}"
                    )
            return None
        values = self._values(flight)
        if values is None:
            return None
        if len(values) == 1:
            trial, step = flight.ask.trial, flight.part.num_seeds
            if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(values[0], step=step)  # else by a driver that was killed
            if not flight.last and flight.ask.trial.should_prune():
                return f"{self.tune.prune} pruner after {flight.part.num_seeds} seeds"
            return None
        if flight.part.num_seeds == 1:
            flight.ask.trial.set_user_attr("first", values)
        if flight.last:
            return None
        for other in self.found.finished():
            first = other.user_attrs.get("first")
            if first and dominates_by(first, values, self.directions, self.tune.margin):
                return f"trial {other.number} beats it by more than {self.tune.margin:g} in all"
        return None

    def _values(self, flight: _Flight) -> list[float] | None:
        """Of the objectives; None where one is not there or not finite."""
        assert flight.reached is not None
        columns = flight.reached.columns
        found = [columns.get(objective.column) for objective in self.tune.objectives]
        return None if None in found else [float(value) for value in found if value is not None]

    def _end(self, flight: _Flight, state: TrialState, why: str) -> None:
        self.flights.remove(flight)
        if state == TrialState.COMPLETE and self._values(flight) is None:
            columns = flight.reached.columns if flight.reached else {}
            named = [o.column for o in self.tune.objectives if o.column not in columns]
            state, why = TrialState.FAIL, f"{', '.join(named)} is no finite number"
        self._tell(flight, state, why)

    def _tell(self, flight: _Flight, state: TrialState, why: str) -> None:
        values = self._values(flight) if state == TrialState.COMPLETE else None
        violations = self._violations(flight)
        row = self._row(flight, _WORDS[state], why, values, violations)
        told = {**row, "created_at": row["created_at"].isoformat()}
        self.found.tell(flight.ask, told, values=values, violations=violations, state=state)
        self._keep(told)
        self.progress.note(self._said(row))

    def _violations(self, flight: _Flight) -> list[float]:
        """Of the constraints; a column that was not measured yet counts as held."""
        columns = flight.reached.columns if flight.reached else {}
        return [
            bound.violation(columns[bound.column]) if bound.column in columns else 0.0
            for bound in self.tune.bounds
        ]

    # -- rows ---------------------------------------------------------------------------------

    def _row(
        self,
        flight: _Flight,
        state: str,
        why: str = "",
        values: Sequence[float] | None = None,
        violations: Sequence[float] = (),
    ) -> dict[str, Any]:
        number = flight.ask.number
        done = [part.plan for part in flight.parts[: flight.at + 1]]
        keys = sorted({key for plan in done for key in plan.tasks})
        cells = {cell.task.key for part in flight.parts for cell in part.plan.cells}
        taken = self._taken(flight, keys) if state != "running" else {}
        return {
            "key": trial_key(self.name, number),
            "experiment": self.experiment.name,
            "study": self.name,
            "number": number,
            "state": state,
            "label": f"trial {number}",
            "dataset": self.experiment.datasets[0].name,
            "params": json.dumps(flight.values, sort_keys=True),
            "objective_columns": [objective.column for objective in self.tune.objectives],
            "objectives": list(values or []),
            "constraints": list(violations),
            "feasible": state == "complete" and all(v <= 0 for v in violations),
            **(flight.reached.row if flight.reached else {}),
            **taken,
            "duration_s": time.time() - flight.began,
            "error": why,
            "task_keys": sorted(cells),
            "created_at": datetime.now(UTC),
        }

    def _taken(self, flight: _Flight, keys: Sequence[str]) -> dict[str, Any]:
        """Tasks and seconds, and how much of it others had done."""
        frame = self.store.tables.rows("tasks", keys)
        pairs = zip(frame["key"], frame["duration_s"], strict=True)
        seconds = {key: float(value) for key, value in pairs}
        shared = [key for key in keys if key not in flight.own]
        return {
            "num_tasks": len(keys),
            "num_shared": len(shared),
            "tasks_s": sum(seconds.values()),
            "shared_s": sum(seconds.get(key, 0.0) for key in shared),
        }

    def _keep(self, told: Mapping[str, Any]) -> None:
        """Into the table and the history."""
        created = datetime.fromisoformat(str(told["created_at"]))
        row = {**told, "created_at": created}
        self._write(row)
        self.history.hand_over([trial_run(row)])

    def _write(self, row: Mapping[str, Any]) -> None:
        self.store.tables.write("trials", str(row["key"]), [dict(row)])

    def _said(self, row: Mapping[str, Any]) -> str:
        """A line about a trial that ended."""
        ended = len(self.found.finished())
        told = ", ".join(
            f"{column} {value:.4g}"
            for column, value in zip(row["objective_columns"], row["objectives"], strict=False)
        )
        what = told if row["state"] == "complete" else f"{row['state']} ({row['error']})"
        bound = (
            " (beyond a constraint)" if row["state"] == "complete" and not row["feasible"] else ""
        )
        return f"trial {row['number']}: {what}{bound}; {ended} of {self.tune.trials} ended"


def _given(
    tune: TuneEntry, experiment: Experiment, data_dir: Path | None
) -> dict[tuple[int, str], Any]:
    """(stage, field) -> value of the defense as given, its preset included."""
    entry = experiment.datasets[0]
    classes = datasets.load(entry.source, data_dir).num_classes
    found: dict[tuple[int, str], Any] = {}
    for stage, defense in enumerate(tune.defense):
        cls = plugins.defense(defense.name)
        preset = cls.preset(defense.preset or experiment.preset, entry.name, classes)
        made = cls.model_validate({**preset, **defense.params})
        found |= {(stage, name): getattr(made, name) for name in cls.model_fields}
    return found
