"""Commands that ask the store: status, timeline."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator._console import (
    DEFAULT_STORE,
    DataDir,
    Debug,
    Errors,
    Name,
    Set,
    StoreOption,
    find_data_dir,
    find_store,
    load,
    make_console,
    refuse,
)

__all__ = ["status", "timeline"]


def status(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Show what is done, failed and waiting, per dataset and defense; reads only the store."""
    console = make_console()
    with Errors(debug):
        data_dir, root = find_data_dir(data_dir), find_store(store)
        experiment = load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.report import print_status
        from orchestrator.resume import Store, compare

        found = compare(make_plan(experiment, data_dir), Store(root), repair=False)
        print_status(console, found, Store(root))


def timeline(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default NAME.trace.json.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Write when each task ran, and on which worker, as a Chrome trace.

    Open the file in chrome://tracing or in Perfetto.
    """
    with Errors(debug):
        data_dir, root = find_data_dir(data_dir), find_store(store)
        experiment = load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.resume import Store
        from orchestrator.timeline import chrome_trace

        tasks = make_plan(experiment, data_dir).tasks
        measured = Store(root).tables.frame("tasks")
        found = int(measured["key"].isin(list(tasks)).sum())
        if not found:
            refuse(f"the store {store} has no finished task of '{name}'; run it first")
        path = out or Path(f"{experiment.name}.trace.json")
        path.write_text(chrome_trace(tasks, measured), encoding="utf-8")
        make_console().print(f"{found} tasks written to {path}")
