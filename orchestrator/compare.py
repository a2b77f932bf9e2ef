"""Studies from file to result, one or several beside each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from orchestrator.check import load_experiment
from orchestrator.config import Experiment
from orchestrator.figures_tune import draw_fronts
from orchestrator.front import Direction, hypervolume, nondominated, reference_point
from orchestrator.judge import Points, front_experiment, points_of, record_judged, write_files
from orchestrator.outcome import Options, Progress
from orchestrator.report_tune import (
    draw_figures,
    front_of,
    print_explained,
    print_judged,
    print_search,
)
from orchestrator.resume import Store
from orchestrator.run import run
from orchestrator.source import ConfigError, Problem, read
from orchestrator.space import axes
from orchestrator.study import open_search
from orchestrator.study_storage import open_storage
from orchestrator.tune import Found, search, study_name, told_rows
from orchestrator.tune_entry import Comparison
from storage.artifacts import StoreUnwritable
from storage.census import check_store

__all__ = ["Studied", "explain_study", "load_studies", "print_comparison", "run_study"]


@dataclass
class Studied:
    """What a study came to.

    Attributes:
        experiment: of its file.
        found: the trials.
        points: the complete ones against each other.
        judged: rows of the table `judged`.
        files: what was written -> path.
        figures: drawn.
        warnings, stopped: as of a run.
        broken: whether something is missing that the same command would try again.
    """

    experiment: Experiment
    found: Found
    points: Points
    judged: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: str | None = None
    broken: bool = False


def load_studies(
    name: str, overrides: Sequence[str], data_dir: Path | None
) -> tuple[Comparison | None, list[Experiment]]:
    """The study of a file, or all of those that its key `compare` names.

    Args:
        name: a packaged file, or the path of one.
        overrides: as for `load_experiment`; of a comparison, for each of its studies.
        data_dir: where datasets are looked for.

    Raises:
        ConfigError: with every problem found.
    """
    content = read(name)
    if "compare" not in content.raw:
        return None, [_study(name, overrides, data_dir)]
    raw = {"name": content.path.stem, **content.raw}
    try:
        comparison = Comparison.model_validate(raw)
    except ValidationError as error:
        told = [
            Problem(".".join(map(str, detail["loc"])), str(detail["msg"]))
            for detail in error.errors()
        ]
        raise ConfigError(str(content.path), [content.located(one) for one in told]) from None
    beside = content.path.parent
    found = []
    for study in comparison.compare:
        local = beside / study
        path = str(local) if study.endswith((".yaml", ".yml")) and local.is_file() else study
        more = [] if comparison.trials is None else [f"tune.trials={comparison.trials}"]
        found.append(_study(path, [*more, *overrides], data_dir))
    return comparison, found


def _study(name: str, overrides: Sequence[str], data_dir: Path | None) -> Experiment:
    experiment = load_experiment(name, overrides, data_dir)
    if experiment.tune is None:
        message = (
            "there is no block `tune` in it, so there is nothing to search; add tune: {defense: …, "
            "space: …, attacks: …}, or use `sfumato run`"
        )
        raise ConfigError(name, [Problem("tune", message)])
    return experiment


def run_study(
    console: Console,
    experiment: Experiment,
    options: Options,
    progress: Callable[[Console], Progress],
    study_uri: str | None,
    *,
    judge: bool,
) -> Studied:
    """Search, choose, have the points judged, and tell.

    Raises:
        As `tune.search` and `run.run`.
    """
    tune, store = experiment.tune, Store(options.store)
    assert tune is not None
    found = search(experiment, options, progress(console), study_uri=study_uri)
    points = points_of(tune, found.rows)
    done = Studied(experiment, found, points)
    done.warnings += found.outcome.warnings
    done.stopped = found.outcome.stopped
    short = len(found.rows) < tune.trials and tune.time is None and tune.sampler != "grid"
    done.broken = done.stopped is not None or short or points.chosen is None
    print_search(console, experiment, found, points)
    if points.chosen is not None and done.stopped is None:
        done.files = write_files(experiment, points, store)
        if judge:
            _judge(console, done, options, progress)
    try:
        folder = store.experiment(experiment.name) / "figures"
        done.figures = draw_figures(experiment, found, points, done.judged, folder)
    except StoreUnwritable as error:
        done.stopped = done.stopped or str(error)
    return done


def _judge(
    console: Console,
    done: Studied,
    options: Options,
    progress: Callable[[Console], Progress],
) -> None:
    """The held-out attackers on the evaluation records; everything already known is reused."""
    judged = front_experiment(done.experiment, done.points, done.points.picked)
    outcome = run(judged, options, progress(console))
    done.warnings += outcome.warnings
    done.stopped = outcome.stopped
    done.broken |= bool(outcome.stopped or outcome.failed or outcome.missing)
    for key, reason in outcome.failed.items():
        task = outcome.plan.tasks[key]
        done.warnings.append(f"failed: {task.kind} {task.name}: {reason}")
    store = Store(options.store)
    done.judged = record_judged(done.experiment, done.found, done.points, store)
    print_judged(console, done.experiment, done.judged)


def explain_study(
    console: Console, experiment: Experiment, options: Options, study_uri: str | None
) -> None:
    """Say which fields mattered, from the trials there are; runs nothing."""
    tune, store = experiment.tune, Store(options.store)
    assert tune is not None
    check_store(options.store)
    name = study_name(experiment, options.data_dir)
    found = open_search(name, open_storage(study_uri, store.root), tune, axes(tune), {})
    try:
        points = points_of(tune, told_rows(found, store))
        print_explained(console, experiment, found, points)
    finally:
        found.close()


def print_comparison(
    console: Console, comparison: Comparison, done: Sequence[Studied], root: Path
) -> None:
    """The fronts of several studies in one figure, and their hypervolumes.

    Volumes are of worst-attacker accuracy against test accuracy, from the same reference point: by
    what the trials saw, and of the judged points by all attackers on the evaluation records.
    """
    table = Table(title=f"{comparison.name}: fronts beside each other", title_justify="left")
    for name in (
        "study",
        "trials",
        "on the front",
        "hypervolume (trials saw)",
        "hypervolume (all attackers)",
        "chosen: worst acc %",
        "chosen: test acc %",
    ):
        table.add_column(name, justify="left" if name == "study" else "right", overflow="fold")
    fronts = []
    for one in done:
        front = front_of(one.points, one.judged, _defense(one), _COLUMNS, _DIRECTIONS)
        if front is None or not one.points.feasible.any():
            console.print(
                f"{one.experiment.name} is left out: no trial of it holds all constraints"
            )
            continue
        fronts.append(front)
        chosen = next((row for row in one.judged if row["chosen"]), {})
        table.add_row(
            one.experiment.name,
            str(len(one.found.rows)),
            str(int(front.on_front_N.sum())),
            f"{_volume(front.values_N2[one.points.feasible]):.4f}",
            f"{_volume(_judged(one.judged)):.4f}" if one.judged else "-",
            _percent(chosen, "worst_accuracy"),
            _percent(chosen, "test_accuracy"),
        )
    console.print()
    console.print(table)
    if len(fronts) > 1:
        drawn = draw_fronts(
            fronts,
            Store(root).experiment(done[0].experiment.name) / "figures" / comparison.name,
            x_title="worst attacker's accuracy",
            y_title="test accuracy",
        )
        console.print(f"figure:  {drawn[-1]}", soft_wrap=True)


def _defense(one: Studied) -> str:
    assert one.experiment.tune is not None
    return "+".join(entry.name for entry in one.experiment.tune.defense)


_COLUMNS: tuple[str, str] = ("attack_accuracy", "test_accuracy")
_DIRECTIONS: tuple[Direction, Direction] = ("minimize", "maximize")


def _volume(values_N2: Any) -> float:
    values_N2 = np.asarray(values_N2, dtype=float).reshape(-1, 2)
    where = reference_point(_COLUMNS, _DIRECTIONS, values_N2)
    known = values_N2[np.isfinite(values_N2).all(axis=1)]
    return hypervolume(known, _DIRECTIONS, where)


def _judged(judged: Sequence[Mapping[str, Any]]) -> Any:
    """The points of the search, by the worst of all attackers on the evaluation records."""
    found = [
        (row["worst_accuracy"], row["test_accuracy"])
        for row in judged
        if row["number"] is not None and row.get("worst_accuracy") is not None
    ]
    values = np.array(found, dtype=float).reshape(-1, 2)
    return values[nondominated(values, _DIRECTIONS)] if len(values) else values


def _percent(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "-" if value is None else f"{100 * value:.1f}"
