"""What a search came to, as tables in the terminal and figures in the store."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from orchestrator import space
from orchestrator.config import Experiment
from orchestrator.explain import LEAST, explained, importances
from orchestrator.figures_tune import (
    Column,
    Front,
    Judged,
    draw_fronts,
    draw_history,
    draw_importances,
    draw_parallel,
)
from orchestrator.flags import marked, marks_explained
from orchestrator.front import RULES, Direction, hypervolume, nondominated, reference_point
from orchestrator.judge import Points
from orchestrator.progress import spell_seconds
from orchestrator.resume import Store
from orchestrator.study import Search
from orchestrator.tune import Found
from orchestrator.tune_entry import COLUMNS, TuneEntry

__all__ = [
    "draw_figures",
    "front_of",
    "print_explained",
    "print_judged",
    "print_search",
    "print_trials",
]

_NAMES = {
    "attack_accuracy": "worst attacker's accuracy",
    "test_accuracy": "test accuracy",
}


def print_trials(console: Console, experiment: Experiment, study: str, store: Store) -> None:
    """Print how far a search is, from the table of its trials; a driver may be at it."""
    trials = store.tables.frame("trials")
    states = trials.loc[trials["study"] == study, "state"].value_counts().to_dict()
    told = ", ".join(f"{count} {state}" for state, count in states.items()) or "none yet"
    console.print(f"trials of {study}: {told}, of {_tune(experiment).trials}")


def print_search(console: Console, experiment: Experiment, found: Found, points: Points) -> None:
    """Print how the search went, and its front."""
    tune = _tune(experiment)
    states = [row["state"] for row in found.rows]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed")
    )
    console.print()
    console.print(f"study {found.study}: {len(states)} trials ended ({counts})")
    total, shared = (
        sum(row[name] for row in found.rows if row[name] == row[name])
        for name in ("tasks_s", "shared_s")
    )
    if total:
        console.print(
            f"tasks of all trials: {spell_seconds(total)}, of which {100 * shared / total:.0f} % "
            "was done for others (the target, shadows, answers) and not done again"
        )
    if found.elsewhere:
        console.print(f"{found.elsewhere} trials are in the hands of other drivers")
    for row in found.rows:
        if row["state"] == "failed":
            console.print(f"failed: trial {row['number']} ({row['params']}): {row['error']}")
    if not points.feasible.any() and found.rows:
        bounds = ", ".join(tune.constraints)
        console.print(
            f"no trial holds all constraints ({bounds}): nothing is chosen; loosen them, widen the "
            "space, or allow more trials"
            if bounds
            else "no trial is complete: nothing is chosen"
        )
        return
    if not len(points.rows):
        return
    volume = hypervolume(
        points.values[points.feasible],
        [o.direction for o in tune.objectives],
        _reference(tune, points),
    )
    console.print(_front_table(experiment, tune, points))
    console.print(f"hypervolume of the front, by what the trials saw: {volume:.4f}")


def _front_table(experiment: Experiment, tune: TuneEntry, points: Points) -> Table:
    dataset = experiment.datasets[0].name
    table = Table(
        title=f"{dataset}: the front, as the tuning attackers saw it on the defender's own records",
        title_justify="left",
    )
    table.add_column("trial")
    for axis in space.axes(tune):
        table.add_column(axis.key, justify="right", overflow="fold")
    for objective in tune.objectives:
        table.add_column(objective.column, justify="right")
    table.add_column("by attacker")
    order = np.argsort(points.values[:, 0], kind="stable")
    for i in (int(i) for i in order if points.front[i]):
        row = points.rows[i]
        params = json.loads(row["params"])
        cells = [_short(params.get(axis.key, "-")) for axis in space.axes(tune)]
        cells += [_spelled(o.column, points.values[i, m]) for m, o in enumerate(tune.objectives)]
        mark = " *" if i == points.chosen else ""
        style = "bold" if mark else ""
        table.add_row(f"{row['number']}{mark}", *cells, str(row["attack"]), style=style)
    if points.chosen is not None:
        table.caption = f"* chosen by the rule {tune.choose}: {RULES[tune.choose]}"
        table.caption_justify = "left"
    return table


def print_judged(
    console: Console, experiment: Experiment, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Print what held-out attackers made of the points, and how far the search was fooled."""
    table = Table(
        title=f"{experiment.datasets[0].name}: judged by attackers that no trial saw (accuracy %)",
        title_justify="left",
        show_lines=True,
    )
    for name in (
        "defense",
        "trials saw",
        "same attackers, evaluation records",
        "held-out attackers",
        "worst of both",
        "fooled by",
        "test acc %",
        "drop",
    ):
        table.add_column(name, justify="left" if name == "defense" else "right", overflow="fold")
    for row in rows:
        mark = " *" if row["chosen"] else ""
        table.add_row(
            f"{row['label']}{mark}{marked(_shown(row))}",
            _accuracy(row, "validation"),
            _accuracy(row, "tuning"),
            _accuracy(row, "held_out"),
            _within(row, "worst_accuracy"),
            _fooled(row),
            _within(row, "test_accuracy"),
            _percent(row.get("test_accuracy_drop")),
            style="bold" if mark else "",
        )
    meant = marks_explained({flag for row in rows for flag in _shown(row)})
    table.caption = (
        "fooled by: the worst of both less what the trials saw, in points (of it: searching, by "
        "the same attackers on records, and under seeds, that the search had not seen; attackers, "
        "by those it did not know)" + (f"\n{meant}" if meant else "")
    )
    table.caption_justify = "left"
    console.print(table)


def _shown(row: Mapping[str, Any]) -> set[str]:
    flags = row.get("flags")
    return set() if flags is None else {str(flag) for flag in flags}


def _accuracy(row: Mapping[str, Any], kind: str) -> str:
    if _missing(row.get(f"{kind}_accuracy")):
        return "-"
    return f"{_within(row, f'{kind}_accuracy')}\n{row.get(f'{kind}_attack') or ''}"


def _within(row: Mapping[str, Any], column: str) -> str:
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if _missing(value):
        return "-"
    half = "" if _missing(low) or _missing(high) else f" ±{50 * (high - low):.1f}"  # type: ignore[operator]
    return f"{100 * value:.1f}{half}"  # type: ignore[operator]


def _fooled(row: Mapping[str, Any]) -> str:
    values = [row.get(name) for name in ("optimism", "search_optimism", "attacker_optimism")]
    if any(map(_missing, values)):
        return "-"
    whole, by_search, by_attackers = (100 * float(value or 0.0) for value in values)
    return f"{whole:+.1f}\nsearching {by_search:+.1f}\nattackers {by_attackers:+.1f}"


def _percent(value: Any) -> str:
    return "-" if _missing(value) else f"{100 * value:.1f}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def print_explained(
    console: Console, experiment: Experiment, found: Search, points: Points
) -> None:
    """Print which fields mattered."""
    tune = _tune(experiment)
    if len(points.rows) < LEAST:
        console.print(
            f"{len(points.rows)} complete trials tell nothing of what mattered; {LEAST} or more do"
        )
        return
    front = [row for i, row in enumerate(points.rows) if points.front[i]]
    table = Table(
        title=f"what mattered in {len(points.rows)} complete trials", title_justify="left"
    )
    for name in ("objective", "field", "importance %", "trend", "on the front"):
        table.add_column(name, justify="right" if name in ("importance %", "trend") else "left")
    before = ""
    for one in explained(found, tune, space.axes(tune), points.rows, front):
        table.add_row(
            one.objective if one.objective != before else "",
            one.field,
            "-" if math.isnan(one.share) else f"{100 * one.share:.0f}",
            "-" if math.isnan(one.trend) else f"{one.trend:+.2f}",
            one.best,
        )
        before = one.objective
    table.caption = (
        "importance: share of the objective's variance (functional ANOVA; - is a field that not "
        "every trial has); trend: rank correlation of field and objective, above 0 both grow"
    )
    table.caption_justify = "left"
    console.print(table)


def axes_of(tune: TuneEntry) -> tuple[str, str]:
    """The two columns a study's front is drawn by: privacy, and what it costs."""
    columns = [objective.column for objective in tune.objectives]
    others = [column for column in columns if column != "attack_accuracy"]
    return "attack_accuracy", others[0] if others else "test_accuracy"


def front_of(
    points: Points,
    judged: Sequence[Mapping[str, Any]],
    name: str,
    columns: tuple[str, str],
    directions: tuple[Direction, Direction],
) -> Front | None:
    """A study's trials by two columns, as `draw_fronts` takes them; None without any.

    Args:
        points: the trials.
        judged: what held-out attackers made of some; shown where the second column is the test
            accuracy.
        name: of the front.
        columns: of the table `trials`, or objectives.
        directions: of the columns.
    """
    if not len(points.rows):
        return None
    values = np.array([[_of_trial(row, column) for column in columns] for row in points.rows])
    on_front = np.zeros(len(values), dtype=bool)
    if points.feasible.any():
        on_front[points.feasible] = nondominated(values[points.feasible], directions)
    low, high = (
        np.array([[_of_trial(row, f"{column}_{end}") for column in columns] for row in points.rows])
        for end in ("low", "high")
    )
    at = {row["label"]: row for row in judged} if columns[1] == "test_accuracy" else {}
    told, references = [], {}
    for i in range(len(points.rows)):
        row = at.pop(points.label(i), None)
        if row is not None and not _missing(row.get("worst_accuracy")):
            told.append(Judged(i, *(_pair(row, end) for end in ("", "_low", "_high"))))
    for label, row in at.items():
        if not _missing(row.get("worst_accuracy")):
            references[str(label)] = _pair(row, "")
    return Front(name, values, on_front, low, high, points.chosen, told, references)


def _of_trial(row: Mapping[str, Any], column: str) -> float:
    """A column of a trial, or an objective; NaN where it has none."""
    value = row.get(column)
    named = list(row["objective_columns"])
    if value is None and column in named:
        value = row["objectives"][named.index(column)]
    return math.nan if value is None else float(value)


def _pair(row: Mapping[str, Any], end: str) -> tuple[float, float]:
    x, y = row.get(f"worst_accuracy{end}"), row.get(f"test_accuracy{end}")
    return (math.nan if x is None else float(x), math.nan if y is None else float(y))


def draw_figures(
    experiment: Experiment,
    found: Found,
    points: Points,
    judged: Sequence[Mapping[str, Any]],
    folder: Path,
) -> list[Path]:
    """Draw front, history, importances and parallel coordinates; what lacks data is left out.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    tune = _tune(experiment)
    if not len(points.rows):
        return []
    written: list[Path] = []
    x, y = axes_of(tune)
    ways = (COLUMNS[x][1], COLUMNS[y][1])
    front = front_of(points, judged, "+".join(e.name for e in tune.defense), (x, y), ways)
    if front is not None and points.front.any():
        written += draw_fronts(
            [front],
            folder / "front",
            x_title=_NAMES.get(x, x),
            y_title=_NAMES.get(y, y),
            directions=ways,
            percent=(_is_share(x), _is_share(y)),
        )
    written += _history(tune, found, folder)
    assert found.search is not None
    if shares := importances(found.search, tune):
        written += draw_importances(shares, folder / "importances")
    axles = [
        Column(
            axis.key,
            [_value(json.loads(row["params"]), axis.key) for row in points.rows],
            axis.dimension.log,
        )
        for axis in space.axes(tune)
    ]
    first = tune.objectives[0]
    written += draw_parallel(
        axles,
        points.values[:, 0],
        folder / "parallel",
        title=_NAMES.get(first.column, first.column),
        percent=_is_share(first.column),
        direction=first.direction,
    )
    return written


def _history(tune: TuneEntry, found: Found, folder: Path) -> list[Path]:
    names = [_NAMES.get(o.column, o.column) for o in tune.objectives]
    directions = [o.direction for o in tune.objectives]
    values = np.full((len(found.rows), len(names)), np.nan)
    for i, row in enumerate(found.rows):
        if row["state"] == "complete":
            values[i] = list(row["objectives"])
    feasible = np.array([bool(row["feasible"]) for row in found.rows])
    best: dict[str, Any] = {}
    if len(names) == 1:
        seen = np.where(feasible, values[:, 0], np.nan)
        gather = np.fmin if directions[0] == "minimize" else np.fmax
        best = {names[0]: gather.accumulate(seen)}
    elif feasible.any():
        where = reference_point([o.column for o in tune.objectives], directions, values)
        best = {
            "hypervolume": [
                hypervolume(values[: i + 1][feasible[: i + 1]], directions, where)
                for i in range(len(values))
            ]
        }
    return draw_history(
        {name: values[:, m] for m, name in enumerate(names)},
        best,
        folder / "history",
        states=[row["state"] for row in found.rows],
        percent=[n for n, o in zip(names, tune.objectives, strict=True) if _is_share(o.column)],
        numbers=[int(row["number"]) for row in found.rows],
    )


def _reference(tune: TuneEntry, points: Points) -> Any:
    columns = [objective.column for objective in tune.objectives]
    return reference_point(columns, [o.direction for o in tune.objectives], points.values)


def _tune(experiment: Experiment) -> TuneEntry:
    assert experiment.tune is not None
    return experiment.tune


def _value(params: Mapping[str, Any], key: str) -> Any:
    """A value as an axis shows it; None only where the trial has no such field."""
    if key not in params:
        return None
    value = params[key]
    return (
        "none"
        if value is None
        else value
        if isinstance(value, bool | int | float | str)
        else json.dumps(value)
    )


def _is_share(column: str) -> bool:
    return column.endswith(("accuracy", "accuracy_drop", "change_rate"))


def _spelled(column: str, value: float) -> str:
    return f"{100 * value:.1f} %" if _is_share(column) else f"{value:.4g}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
