"""The chain of tasks, settings and versions behind a number, from what the store itself says."""

import json
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.resume import Store
from orchestrator.source import packaged
from storage import census
from storage.artifacts import ArtifactDamaged, ArtifactMissing
from storage.tables import SCHEMAS

__all__ = ["Shown", "Step", "find_key", "look_up"]

_SHORTEST = 4
_AROUND = string.whitespace + "'\"`"  # a key copied from a table, CSV or JSON
_LISTED = 8
_OTHERS = ("tasks", "cells", "scores", "failures", "trials", "judged")
_FIGURES = tuple(table for table in SCHEMAS if table not in _OTHERS)


@dataclass(frozen=True)
class Step:
    """A task as the store knows it.

    Attributes:
        key: the task key.
        state: of its artifact.
        kind, name, dataset, seed: what it is; empty or None where nothing says so any more.
        version: of the kind of task, bumped when the same settings would give other numbers.
        settings: what was hashed to make its key, but for the seed and the inputs.
        inputs: (field, key) of the tasks it was made from; empty if its artifact is gone.
        measured: `duration_s`, `worker`, `device`, `created_at` (ISO) and so on.
        versions: what it was computed with, or None where that was not kept.
    """

    key: str
    state: Literal["complete", "damaged", "absent"]
    kind: str
    name: str
    dataset: str
    seed: int | None
    version: int | None
    settings: Mapping[str, Any]
    inputs: tuple[tuple[str, str], ...]
    measured: Mapping[str, Any]
    versions: Mapping[str, Any] | None


@dataclass(frozen=True)
class Shown:
    """All that a store says about a task.

    Attributes:
        step: the task.
        chain: it and everything it was made from, by key.
        figures: rows of the tables of results by table, without nulls.
        failure: the row of its last failure, empty if there is none.
        cells: the cells that it fills.
        served: for a task that fills none, the cells by experiment whose chains it is part of.
        versions: what the chain was computed with, the most frequent first, with how many tasks.
        warnings: why the number may not be what it seems.
    """

    step: Step
    chain: Mapping[str, Step]
    figures: Mapping[str, Sequence[Mapping[str, Any]]]
    failure: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    served: Mapping[str, int]
    versions: Sequence[tuple[Mapping[str, Any] | None, int]]
    warnings: Sequence[str]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "key": self.step.key,
            "chain": [vars(step) for step in self.chain.values()],
            "figures": self.figures,
            "failure": self.failure,
            "cells": self.cells,
            "served": self.served,
            "versions": [{"versions": made, "tasks": count} for made, count in self.versions],
            "warnings": self.warnings,
        }


def find_key(store: Store, text: str) -> str:
    """The one task key that begins with `text`.

    Raises:
        ValueError: if there is none, or several; or if `text` is something else.
    """
    text = text.strip(_AROUND)
    prefix = text.lower()
    census.check_store(store.root)
    found: set[str] = set()
    digits = _SHORTEST <= len(prefix) <= 64 and not set(prefix) - set("0123456789abcdef")
    if digits:
        found = census.find_keys(store.root, prefix)
        cells = store.tables.frame("cells")["task_key"].dropna()
        found |= {key for key in cells if key.startswith(prefix)}
    if len(found) == 1:
        return found.pop()
    if found:
        lines = [f"  {key[:16]}  {_about(store, key)}" for key in sorted(found)[:_LISTED]]
        more = [f"  and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        listed = "\n".join([*lines, *more])
        raise ValueError(f"{len(found)} tasks begin with '{prefix}'; give more digits:\n{listed}")
    if text in packaged() or Path(text).suffix in (".yaml", ".yml") or _is_ours(store, text):
        raise ValueError(
            f"'{text}' is an experiment; `show` takes a task key. The column task_key has them: "
            "sfumato query 'select label, attack, task_key from results'"
        )
    if not digits:
        raise ValueError(
            f"'{text}' is not a task key: give {_SHORTEST} to 64 of its digits 0-9 and a-f, from "
            "the first on (the column task_key of the tables has them)"
        )
    held = len(census.find_keys(store.root, ""))
    raise ValueError(
        f"no task key begins with '{prefix}' in {store.root}: searched {held} tasks of its "
        "artifacts and tables. Another store is named with --store"
    )


def look_up(store: Store, key: str) -> Shown:
    """All that the store says about a task; reads neither data nor plugins nor experiment files."""
    chain: dict[str, Step] = {}
    open_ = [key]
    while open_:
        top = open_.pop()
        if top not in chain:
            chain[top] = _step(store, top)
            open_.extend(below for _, below in reversed(chain[top].inputs))
    step = chain[key]
    chain = _named(store, chain)
    tables = store.tables
    figures = {table: _plain_rows(tables.rows(table, [key])) for table in _FIGURES}
    failure = _plain_rows(tables.rows("failures", [key]))
    cells = tables.frame("cells")
    mine = _plain_rows(cells[cells["task_key"] == key])
    versions = _counted(chain.values())
    return Shown(
        step=chain[key],
        chain=chain,
        figures={table: rows for table, rows in figures.items() if rows},
        failure=failure[0] if failure and step.state != "complete" else {},
        cells=mine,
        served={} if mine else _served(store, key, _plain_rows(cells)),
        versions=versions,
        warnings=[*_gaps(chain.values()), *_mixed(versions)],
    )


def _is_ours(store: Store, name: str) -> bool:
    try:
        return bool(name) and "/" not in name and store.experiment(name).is_dir()
    except (OSError, ValueError):
        return False


def _about(store: Store, key: str) -> str:
    step = _named(store, {key: _step(store, key)})[key]
    seed = "" if step.seed is None else f"seed {step.seed}"
    words = (step.kind, step.name, step.dataset, seed, step.state)
    return " ".join(word for word in words if word)


def _step(store: Store, key: str) -> Step:
    """A task from its artifact alone."""
    state = store.artifacts.state(key)
    measured: dict[str, Any] = {}
    if state == "complete":
        try:
            measured = store.artifacts.open(key).facts("measured")
        except (ArtifactDamaged, ArtifactMissing):
            state = "damaged"
    told = census.description(store.root, key) or {}
    fields: dict[str, Any] = dict(told.get("fields", {}))
    seed = fields.pop("seed", None)
    inputs = [(name, below) for name, value in fields.items() for below in census.keys_in(value)]
    versions = measured.pop("versions", None)
    return Step(
        key=key,
        state=state,
        kind=str(told.get("kind", "")),
        name="",
        dataset="",
        seed=seed,
        version=told.get("version"),
        settings={n: value for n, value in fields.items() if not _only_inputs(value)},
        inputs=tuple(inputs),
        measured=measured,
        versions=versions,
    )


def _only_inputs(value: Any) -> bool:
    if isinstance(value, dict):
        return set(value) == {"task"}
    return isinstance(value, list) and bool(value) and all(map(_only_inputs, value))


def _named(store: Store, steps: Mapping[str, Step]) -> dict[str, Step]:
    """The steps with what only the table `tasks` tells."""
    rows = {row["key"]: row for row in _plain_rows(store.tables.rows("tasks", steps))}
    named = {}
    for key, step in steps.items():
        row = dict(rows.get(key, {}))
        about = {n: row.pop(n, None) for n in ("key", "kind", "name", "dataset", "seed")}
        versions = row.pop("versions", None)
        named[key] = replace(
            step,
            kind=step.kind or about["kind"] or "",
            name=about["name"] or "",
            dataset=about["dataset"] or "",
            seed=about["seed"] if step.seed is None else step.seed,
            measured=step.measured or row,
            versions=step.versions or (json.loads(versions) if versions else None),
        )
    return named


def _plain_rows(frame: Any) -> list[dict[str, Any]]:
    """Rows as JSON values by column, nulls left out."""
    return [
        {name: plain for name, value in row.items() if (plain := _plain(value)) is not None}
        for row in frame.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):  # NaT, a missing time, is one too
        return None if value != value else value.isoformat()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is None or value != value else value


def _served(store: Store, key: str, cells: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The number of cells, by experiment, whose chains `key` is part of."""

    @cache
    def leads_here(at: str) -> bool:
        below = census.keys_in(census.description(store.root, at))
        return at == key or any(map(leads_here, below))

    used = (cell for cell in cells if cell.get("task_key") and leads_here(cell["task_key"]))
    return dict(Counter(cell["experiment"] for cell in used))


def _counted(steps: Iterable[Step]) -> list[tuple[Mapping[str, Any] | None, int]]:
    texts = Counter(json.dumps(s.versions, sort_keys=True) for s in steps if s.state == "complete")
    return [(json.loads(text), count) for text, count in texts.most_common()]


def _gaps(steps: Iterable[Step]) -> Iterable[str]:
    for state, what in (("damaged", "is not what was written"), ("absent", "is gone")):
        lost = [step for step in steps if step.state == state]
        if lost:
            first = f"{lost[0].kind} {lost[0].key[:12]}".strip()
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield f"{state}: {first}{more} {what}; the chain cannot be followed beyond it"


def _mixed(versions: Sequence[tuple[Mapping[str, Any] | None, int]]) -> Iterable[str]:
    known = [made for made, _ in versions if made]
    if len(known) < len(versions):
        count = sum(count for made, count in versions if not made)
        yield f"{count} tasks were computed before versions were kept"
    read: tuple[tuple[str, Callable[[Mapping[str, Any]], Any]], ...] = (
        ("Python", lambda made: made.get("python")),
        ("commits", lambda made: made.get("commit")),
    )
    names = dict.fromkeys(name for made in known for name in made["packages"])
    packages = [(name, lambda made, n=name: made["packages"].get(n)) for name in names]
    for what, value in (*read, *packages):
        seen = dict.fromkeys(str(value(made)) for made in known)
        if len(seen) > 1:
            yield f"the chain mixes {what}: {', '.join(text[:18] for text in seen)}"
    if any(str(made.get("commit")).endswith("-dirty") for made in known):
        yield "some tasks ran with changes to the source that no commit has"
