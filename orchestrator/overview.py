"""What would run, and how far it is: a plan beside its store, in the terminal."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from orchestrator._places import Places
from orchestrator.progress import spell_seconds
from orchestrator.resume import Prepared, Store
from orchestrator.task_log import command

__all__ = ["print_plan", "print_status"]


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
    counts: dict[tuple[str, str], Counter[str]] = {}
    for cell in prepared.plan.cells:
        key = cell.task.key
        state = "done" if key in prepared.done else "failed" if key in failed else "waiting"
        where = cell.label or "checks of the split"
        counts.setdefault((cell.dataset, where), Counter())[state] += 1
    for (dataset, label), count in counts.items():
        numbers = (str(count.total()), *(str(count[s]) for s in ("done", "failed", "waiting")))
        table.add_row(dataset, label, *numbers)
    console.print(table)
    for note in prepared.notes:
        console.print(note)
    places = Places(prepared.plan)
    for key in prepared.plan.tasks:
        if key in failed and key not in prepared.done:
            console.print(
                f"failed: {places.named(key)}: {failed[key]} ({command(store, key)})",
                soft_wrap=True,
            )
