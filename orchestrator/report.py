"""Results as tables in the terminal; every number is a query on the store's tables."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from orchestrator.config import Experiment
from orchestrator.progress import spell_seconds
from orchestrator.resume import Prepared, Store
from tasks import metrics
from tasks.nullband import NullBand, max_null_band

__all__ = ["null_band", "print_plan", "print_results", "print_status"]

_FLAG_MARKS = {
    "invalid": "!",
    "collapsed": "c",
    "non_adaptive": "n",
    "leaky": "L",
    "overlap": "o",
}
_MEANING = {
    "invalid": "in some seed 1.5 points below the gap attack it contains: under-trained",
    "collapsed": "collapsed: the reformer is one prototype per label",
    "non_adaptive": "non-adaptive: the attacker ignores the defense",
    "leaky": "leaky: the defense saw the non-members",
    "overlap": "overlap of shadow and judged records",
}


def print_results(console: Console, experiment: Experiment, store: Store) -> None:
    """Print, per dataset, what each defense costs and what each attack gets out of it."""
    tables = store.tables
    results = tables.frame("results", experiment.name)
    utility = tables.frame("utility", experiment.name)
    cells = tables.frame("cells", experiment.name)
    for entry in experiment.datasets:
        name = entry.name
        here = cells[cells["dataset"] == name]
        labels = list(dict.fromkeys(here["label"]))
        seeds = len(set(here["seed"]))
        console.print()
        console.print(_utility(utility[utility["dataset"] == name], labels, name, seeds))
        rows = results[results["dataset"] == name]
        attacks = list(dict.fromkeys(here.loc[here["kind"] == "attack", "attack"]))
        console.print(_attacks(rows, labels, attacks, name, seeds))
        if entry.judge == "untrained":
            scores = tables.frame("scores", experiment.name)
            _print_null(console, scores, rows, labels, name)
    _print_missing(console, cells)


def _utility(rows: pd.DataFrame, labels: Sequence[str], dataset: str, seeds: int) -> Table:
    table = Table(
        title=f"{dataset}: what each defense costs ({_seeds(seeds)})", title_justify="left"
    )
    columns = (
        "train acc %",
        "test acc %",
        "drop",
        "ECE",
        "L1",
        "labels changed %",
        "fit x",
        "query x",
    )
    table.add_column("defense", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for label in labels:
        mine = rows[rows["label"] == label]
        table.add_row(
            label,
            _interval(mine["train_accuracy"], 100, 1),
            _interval(mine["test_accuracy"], 100, 1),
            _mean(mine["test_accuracy_drop"], 100, 1),
            _mean(mine["ece"], 1, 3),
            _mean(mine["l1_distortion"], 1, 3),
            _mean(mine["label_change_rate"], 100, 1),
            _mean(mine["fit_ratio"], 1, 2),
            _mean(mine["query_ratio"], 1, 1),
        )
    return table


def _attacks(
    rows: pd.DataFrame, labels: Sequence[str], attacks: Sequence[str], dataset: str, seeds: int
) -> Table:
    title = f"{dataset}: what each attack gets (accuracy %, below it AUC; {_seeds(seeds)})"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("attack", overflow="fold")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    marks: set[str] = set()
    for attack in attacks:
        shown = [attack]
        for label in labels:
            mine = rows[(rows["label"] == label) & (rows["attack_label"] == attack)]
            flags = {flag for listed in mine["flags"] for flag in listed if flag in _FLAG_MARKS}
            marks |= flags
            shown.append(_attack_cell(mine, flags))
        table.add_row(*shown)
    shown = ["worst of these"]
    for label in labels:
        mine = rows[(rows["label"] == label) & rows["attack_label"].isin(attacks)]
        means = mine.groupby("attack_label")["attack_accuracy"].mean()
        # Attacks that tie exactly are named by the first in the experiment's order.
        worst = [(float(means[name]), name) for name in attacks if name in means.index]
        top = max(worst, key=lambda entry: entry[0], default=None)
        shown.append(f"{100 * top[0]:.1f}\n{top[1]}" if top else "-")
    table.add_row(*shown, style="bold")
    if marks:
        table.caption = "; ".join(f"{_FLAG_MARKS[m]} = {_MEANING[m]}" for m in sorted(marks))
        table.caption_justify = "left"
    return table


def _attack_cell(rows: pd.DataFrame, flags: Iterable[str]) -> str:
    if rows.empty:
        return "-"
    marks = "".join(sorted(_FLAG_MARKS[flag] for flag in flags))
    if len(rows) == 1:
        row = rows.iloc[0]
        half = 50 * (row["attack_accuracy_high"] - row["attack_accuracy_low"])
        accuracy = f"{100 * row['attack_accuracy']:.1f} ±{half:.1f}"
    else:
        accuracy = _interval(rows["attack_accuracy"], 100, 1)
    return f"{accuracy}{' ' + marks if marks else ''}\n{_mean(rows['auc'], 1, 3)}"


def _interval(values: "pd.Series[Any]", scale: float, digits: int) -> str:
    """Mean and half-width of the 95 % t-interval over seeds."""
    given = values.dropna().to_numpy(dtype=float)
    if not len(given):
        return "-"
    mean, low, high = metrics.seed_interval(given)
    text = f"{scale * mean:.{digits}f}"
    return text if len(given) < 2 else f"{text} ±{scale * (high - low) / 2:.{digits}f}"


def _mean(values: "pd.Series[Any]", scale: float, digits: int) -> str:
    given = values.dropna()
    return f"{scale * given.mean():.{digits}f}" if len(given) else "-"


def _seeds(count: int) -> str:
    return "1 seed, ± 95 % over records" if count == 1 else f"{count} seeds, ± 95 % over seeds"


def _print_null(
    console: Console,
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    labels: Sequence[str],
    dataset: str,
) -> None:
    """The verdict of the null: no attack may leave the max-null band."""
    for label in labels:
        band, attacks = null_band(scores, rows[rows["label"] == label])
        verdict = "inside" if band.inside else "OUTSIDE: the evaluation itself leaks"
        console.print(
            f"null on {dataset}, {label}: worst accuracy {band.observed_accuracy:.2f} sd "
            f"({attacks[band.worst_accuracy]}, band {band.band_accuracy:.2f}), worst AUC "
            f"{band.observed_auc:.2f} sd ({attacks[band.worst_auc]}, band {band.band_auc:.2f}): "
            f"{verdict}"
        )


def null_band(scores: pd.DataFrame, rows: pd.DataFrame) -> tuple[NullBand, list[str]]:
    """The max-null band over the attacks and seeds of one defense (methods.md section 8.6).

    Args:
        scores: rows of the table `scores`.
        rows: result rows of one dataset and defense.

    Returns:
        The band, and the attacks in the order it counts them.
    """
    attacks = sorted(set(rows["attack_label"]))
    of_task = dict(iter(scores.groupby("task_key")))
    judged, decided, members = [], [], []
    for _, seed in rows.groupby("seed"):
        key = dict(zip(seed["attack_label"], seed["task_key"], strict=True))
        frames = [of_task[key[attack]].sort_values("record") for attack in attacks]
        judged.append(np.stack([frame["score"].to_numpy() for frame in frames]))
        decided.append(np.stack([frame["decision"].to_numpy(dtype=bool) for frame in frames]))
        members.append(frames[0]["is_member"].to_numpy(dtype=bool))
    return max_null_band(judged, decided, members, seed=0), attacks


def _print_missing(console: Console, cells: pd.DataFrame) -> None:
    """Say which cells are missing, and why."""
    missing = cells[~cells["status"].isin(["done"])]
    for row in missing.to_dict("records"):
        what = row["attack"] or "utility"
        reason = f": {row['reason']}" if row["reason"] else ""
        where = f"{row['dataset']} seed {row['seed']}, {row['label']}, {what}"
        console.print(f"missing: {where} ({row['status']}{reason})")


def print_plan(console: Console, prepared: Prepared) -> None:
    """Print what would run: a row per kind and name, with the expected seconds."""
    needed = set(prepared.needed)
    tasks = prepared.plan.tasks
    counted: dict[tuple[str, str, str], list[str]] = {}
    for key, task in tasks.items():
        counted.setdefault((task.dataset, task.kind, task.name), []).append(key)
    table = Table(title=f"{prepared.plan.experiment.name}: the plan", title_justify="left")
    for column in ("dataset", "task", "name"):
        table.add_column(column)
    for column in ("tasks", "in the store", "to run", "expected s each"):
        table.add_column(column, justify="right")
    for (dataset, kind, name), keys in counted.items():
        missing = sum(1 for key in keys if key in needed)
        each = sum(prepared.seconds[key] for key in keys) / len(keys)
        in_store = sum(1 for key in keys if key in prepared.done)
        numbers = (str(len(keys)), str(in_store), str(missing), f"{each:.1f}")
        table.add_row(dataset, kind, name, *numbers)
    console.print(table)
    for note in prepared.notes:
        console.print(note)
    total = spell_seconds(prepared.expected_s)
    console.print(
        f"{len(needed)} of {len(tasks)} tasks to run, about {total} of work for one worker"
    )


def print_status(console: Console, prepared: Prepared, store: Store) -> None:
    """Print, per dataset and defense, how many cells are done, failed and waiting."""
    failures = store.tables.frame("failures")
    failed = dict(zip(failures["key"].tolist(), failures["error"].tolist(), strict=True))
    table = Table(title=f"{prepared.plan.experiment.name}: status", title_justify="left")
    for column in ("dataset", "defense"):
        table.add_column(column)
    for column in ("cells", "done", "failed", "waiting"):
        table.add_column(column, justify="right")
    places: dict[tuple[str, str], Counter[str]] = {}
    reasons: dict[str, str] = {}
    for cell in prepared.plan.cells:
        key = cell.task.key
        state = "done" if key in prepared.done else "failed" if key in failed else "waiting"
        places.setdefault((cell.dataset, cell.label), Counter())[state] += 1
        if state == "failed":
            what = f"{cell.task.kind} {cell.task.name} {cell.dataset} seed {cell.seed}"
            reasons[what] = failed[key]
    for (dataset, label), count in places.items():
        numbers = (str(count.total()), *(str(count[s]) for s in ("done", "failed", "waiting")))
        table.add_row(dataset, label, *numbers)
    console.print(table)
    for note in prepared.notes:
        console.print(note)
    for what, reason in reasons.items():
        console.print(f"failed: {what}: {reason}")
