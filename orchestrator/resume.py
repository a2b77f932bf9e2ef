"""A plan beside what the store has of it: what is done, what is damaged, what is missing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator._alike import Alike
from orchestrator.costs import Costs
from orchestrator.plan import Plan
from storage.artifacts import (
    ArtifactDamaged,
    ArtifactMissing,
    Artifacts,
    drop_drafts,
)
from storage.remote import ObjectStore
from storage.tables import Tables
from storage.working import upstream_of
from tasks.base import Task, measured

__all__ = ["RESULTS", "Prepared", "Store", "cell_rows", "compare", "record"]

RESULTS = ("results", "inversion", "attribute")
"""The tables whose rows are runs in the history: what attacks got."""


@dataclass(frozen=True)
class Store:
    """The folders of a store (design.md section 4)."""

    root: Path

    @property
    def artifacts(self) -> Artifacts:
        """The artifacts."""
        return Artifacts(self.root / "artifacts", self.upstream)

    @cached_property
    def upstream(self) -> ObjectStore | None:
        """Whose working copy this is: the store at an URI; None for a folder of its own."""
        return upstream_of(self.root)

    @cached_property
    def tables(self) -> Tables:
        """The tables; their `problems` tell what was found damaged."""
        return Tables(self.root / "tables")

    def experiment(self, name: str) -> Path:
        """The folder of one experiment."""
        return self.root / "experiments" / name

    def drop_stale_drafts(self, older_than_s: float) -> int:
        """Remove what processes that were killed were writing; as `drop_drafts`."""
        patterns = ("tables/*", "experiments/*", "experiments/*/forms", "experiments/*/images")
        folders = [folder for pattern in patterns for folder in self.root.glob(pattern)]
        dropped = (drop_drafts(folder, older_than_s) for folder in folders)
        return self.artifacts.drop_stale_drafts(older_than_s) + sum(dropped)


@dataclass(frozen=True)
class Prepared:
    """A plan beside what the store has of it.

    Attributes:
        plan: the tasks and cells.
        done: keys whose artifacts are complete.
        needed: keys that must run, in plan order.
        seconds: expected seconds of every task.
        costs: what tasks have taken in this store.
        notes: what was found damaged and set aside.
    """

    plan: Plan
    done: frozenset[str]
    needed: tuple[str, ...]
    seconds: Mapping[str, float]
    costs: Costs
    notes: tuple[str, ...] = ()

    @property
    def expected_s(self) -> float:
        """Expected seconds of work."""
        return sum(self.seconds[key] for key in self.needed)


def compare(plan: Plan, store: Store, *, repair: bool, costs: Costs | None = None) -> Prepared:
    """Compare a plan with the store.

    Args:
        plan: the tasks.
        store: where their artifacts would be.
        repair: set damaged artifacts aside, so that they are computed again, and write table
            rows that finished artifacts hold and the tables lack.
        costs: what tasks take, for who compares often; default: as the tables say now.
    """
    artifacts = store.artifacts
    notes: list[str] = []
    done, damages = artifacts.examine(plan.tasks)
    for key, damage in damages.items():
        notes.append(_damaged(artifacts, plan.tasks[key], damage, repair))
    if repair:  # what a killed run had not sent yet, or a worker that did not know the upstream
        artifacts.hand_on(done)
    tables = store.tables
    if repair:
        done -= _restore_rows(plan, done, store, tables, notes)
    needed = _needed(plan, done)
    # What alike tasks took is looked up only where somebody will read it.
    idle = repair and not needed
    known = costs or Costs(tables)
    seconds = {key: 0.0 if idle else known.seconds(task) for key, task in plan.tasks.items()}
    notes.extend(tables.problems)
    return Prepared(plan, frozenset(done), needed, seconds, known, tuple(notes))


def _damaged(
    artifacts: Artifacts, task: Task, damage: ArtifactDamaged | ArtifactMissing, repair: bool
) -> str:
    if repair:
        artifacts.set_aside(task.key, str(damage))
    fault = damage.fault if isinstance(damage, ArtifactDamaged) else str(damage)
    then = "set aside, computed again if needed" if repair else "`sfumato run` computes it again"
    return f"damaged artifact {task.kind} {task.name} {task.key[:12]} ({fault}): {then}"


def _restore_rows(
    plan: Plan, done: set[str], store: Store, tables: Tables, notes: list[str]
) -> set[str]:
    """Write table rows that finished artifacts hold and the tables lack.

    Returns:
        Keys of artifacts that turned out to be damaged.
    """
    damaged = set()
    filled = {cell.task.key: cell.task for cell in plan.cells if cell.task.key in done}
    by_table: dict[str, set[str]] = {"tasks": set(done)}
    for key, task in filled.items():
        for table in task.TABLES:
            by_table.setdefault(table, set()).add(key)
    lacking: set[str] = set()
    for table, keys in by_table.items():
        lacking |= tables.lacking(table, keys)
    for key in lacking:
        try:
            record(plan.tasks[key], store)
        except (ArtifactDamaged, ArtifactMissing) as error:
            notes.append(_damaged(store.artifacts, plan.tasks[key], error, repair=True))
            damaged.add(key)
    return damaged


def _needed(plan: Plan, done: set[str]) -> tuple[str, ...]:
    """Tasks that must run: unfinished cells and what they need, in plan order."""
    wanted: set[str] = set()
    open_ = [cell.task for cell in plan.cells if cell.task.key not in done]
    while open_:
        task = open_.pop()
        if task.key not in wanted:
            wanted.add(task.key)
            open_.extend(t for t in task.inputs if t.key not in done)
    return tuple(key for key in plan.tasks if key in wanted)


def record(task: Task, store: Store) -> list[dict[str, Any]]:
    """Write a finished task's table rows; gives its result rows."""
    artifact = store.artifacts.open(task.key)
    rows = task.table_rows(artifact)
    about = {
        "key": task.key,
        "kind": task.kind,
        "name": task.name,
        "dataset": task.dataset,
        "seed": task.seed,
    }
    tables = store.tables
    for table, content in rows.items():
        tables.write(table, task.key, content)
    tables.write("tasks", task.key, [{**about, **measured(artifact)}])
    return [row for table in RESULTS for row in rows.get(table, ())]


def cell_rows(
    plan: Plan, store: Store, failed: Mapping[str, str], blocked: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of the `cells` table: what fills each place, and why where nothing does."""
    artifacts = store.artifacts
    alike = Alike(lambda key: json.loads(plan.tasks[key].description))
    present = artifacts.present(cell.task.key for cell in plan.cells)
    rows = []
    for cell in plan.cells:
        key = cell.task.key
        status, reason = "waiting", ""
        if key in present:
            status = "done"
        elif key in failed:
            status, reason = "failed", failed[key]
        elif key in blocked:
            first = plan.tasks[blocked[key]]
            status = "blocked"
            reason = f"{first.kind} {first.name} failed: {failed.get(blocked[key], '')}"
        row = {
            "experiment": plan.experiment.name,
            "label": cell.label,
            "preset": cell.preset,
            "dataset": cell.dataset,
            "seed": cell.seed,
            "defense": cell.defense,
            "attack": cell.attack,
            "kind": cell.kind,
            "task_key": key,
            "status": status,
            "reason": reason,
            **alike.columns(cell.kind, key),
        }
        rows.append(row)
    return rows
