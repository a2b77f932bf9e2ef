"""A trial as a small plan: what it runs, in which order it may stop, and what it came to."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import Experiment
from orchestrator.entries import DefenseEntry
from orchestrator.plan import Cell, Plan, make_plan, plan_of
from orchestrator.resume import Store
from orchestrator.tune_entry import COLUMNS, TuneEntry

__all__ = ["Figures", "Stage", "figures", "stages", "trial_experiment"]


@dataclass(frozen=True)
class Stage:
    """A part of a trial after which it may stop.

    Attributes:
        plan: all that is done by its end.
        num_seeds: under how many seeds.
        whole: whether the attacks are in it, not the costs alone.
    """

    plan: Plan
    num_seeds: int
    whole: bool


@dataclass(frozen=True)
class Figures:
    """What a stage measured.

    Attributes:
        columns: column -> value, of those of `COLUMNS` that are there and finite.
        row: more of it, for the tables.
    """

    columns: Mapping[str, float]
    row: Mapping[str, Any]


def trial_experiment(
    experiment: Experiment, tune: TuneEntry, chain: Sequence[DefenseEntry]
) -> Experiment:
    """The experiment of one trial: this defense against the tuning attackers, on D1 and D2."""
    return experiment.model_copy(
        update={
            "seeds": tune.seeds or experiment.seeds,
            "datasets": [e.model_copy(update={"judge": "defender"}) for e in experiment.datasets],
            "defenses": [list(chain)],
            "attacks": tune.attacks,
            "adaptive": False,
            "retry": False,
            "tune": None,
        }
    )


def stages(trial: Experiment, tune: TuneEntry, data_dir: Path | None) -> list[Stage]:
    """The parts of a trial in order, each with all of those before it.

    Costs come first where a constraint may end the trial there. With one objective there is a part
    for every seed, after which Optuna may prune; with several the first seed is one of its own.
    """
    num = len(trial.seeds)
    steps = list(range(1, num + 1)) if len(tune.objectives) == 1 else sorted({1, num})
    plans = {
        n: make_plan(trial.model_copy(update={"seeds": trial.seeds[:n]}), data_dir) for n in steps
    }
    parts = [Stage(plans[n], n, whole=True) for n in steps]
    if any(COLUMNS[bound.column][0] == "utility" for bound in tune.bounds):
        costs = [cell for cell in plans[1].cells if cell.kind == "utility"]
        parts.insert(0, Stage(plan_of(trial, costs), 1, whole=False))
    return parts


def figures(stage: Stage, store: Store) -> Figures:
    """What a finished stage measured, read from the tables.

    Raises:
        ValueError: if a row is not there.
    """
    columns: dict[str, float] = {}
    row: dict[str, Any] = {"num_seeds": stage.num_seeds}
    utility = _rows(store, "utility", _of(stage, "utility"))
    for name, (table, _) in COLUMNS.items():
        if table == "utility":
            columns[name] = _mean([found.get(name) for found in utility])
    first = utility[0]
    row |= {name: first[name] for name in ("dataset", "dataset_hash", "defense", "defense_params")}
    for name in ("train_accuracy", "test_accuracy", "test_accuracy_drop", "l1_distortion"):
        row[name] = columns[name]
    for name in ("test_accuracy_low", "test_accuracy_high"):
        row[name] = _mean([found.get(name) for found in utility])
    if stage.whole:
        (worst,) = _rows(store, "worst", _of(stage, "worst"))
        for name in ("attack_accuracy", "auc"):
            columns[name] = worst[name]
        for name in ("attack_accuracy", "attack_accuracy_low", "attack_accuracy_high", "auc"):
            row[name] = worst[name]
        row |= {"attack": worst["attack"], "task_key": worst["task_key"]}
        columns |= _largest(stage, store)
    else:
        row["task_key"] = first["task_key"]
    finite = {name: float(v) for name, v in columns.items() if v is not None and math.isfinite(v)}
    return Figures(finite, {k: v for k, v in row.items() if v is not None and v == v})


def _largest(stage: Stage, store: Store) -> dict[str, float]:
    """Of the columns of `results` the mean over seeds of the attack for which it is largest."""
    cells = _of(stage, "attack")
    rows = {row["task_key"]: row for row in _rows(store, "results", cells)}
    by_attack: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_attack.setdefault(cell.attack, []).append(rows[cell.task.key])
    found = {}
    for name, (table, _) in COLUMNS.items():
        if table == "results":
            means = [_mean([row.get(name) for row in mine]) for mine in by_attack.values()]
            known = [mean for mean in means if math.isfinite(mean)]
            found[name] = max(known) if known else math.nan
    return found


def _of(stage: Stage, kind: str) -> list[Cell]:
    return [cell for cell in stage.plan.cells if cell.kind == kind]


def _rows(store: Store, table: str, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    keys = [cell.task.key for cell in cells]
    frame = store.tables.rows(table, keys)
    found = {row["task_key"]: row for row in _plain(frame.to_dict("records"))}
    lacking = [key for key in keys if key not in found]
    if lacking or not keys:
        raise ValueError(
            f"the table {table} lacks the rows of {len(lacking)} finished tasks; run the study "
            "again, it writes them anew"
        )
    return [found[key] for key in keys]


def _plain(rows: Sequence[Mapping[Any, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {str(n): v.tolist() if hasattr(v, "tolist") else v for n, v in row.items()}


def _mean(values: Sequence[float | None]) -> float:
    """The mean; NaN if one is not there."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else math.nan


def params_of(values: Mapping[str, Any]) -> str:
    """The values of a trial as its row tells them."""
    return json.dumps(values, sort_keys=True)
