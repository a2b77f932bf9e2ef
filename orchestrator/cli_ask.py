"""Commands that ask the store: status, timeline, query, history, show."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator._console import (
    DEFAULT_STORE,
    DataDir,
    Debug,
    Errors,
    Name,
    Set,
    StoreOption,
    TrackingOption,
    find_data_dir,
    find_made_store,
    find_store,
    find_tracking,
    load,
    make_console,
    option,
    refuse,
    say,
)

__all__ = ["history", "query", "show", "status", "timeline"]


def status(
    name: Name,
    follow: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Show the runs at work until the last of them ends."),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Show what is done, failed and waiting, per dataset and defense, and who works on it now.

    Reads only the store, so that it may be asked from any terminal or machine that sees it. With
    --watch, runs and searches of the experiment are shown as they go: tasks by kind, workers by
    node, how busy they are, the time left. If nobody works on it, it waits until somebody does.
    Ctrl-C ends the watching, not the run.

    [bold]Examples[/bold]

      sfumato status my.yaml

      sfumato status my.yaml --watch
    """
    console = make_console()
    with Errors(debug):
        data_dir = find_data_dir(data_dir)
        experiment = load(name, overrides, data_dir)
        root = find_made_store(store)
        from orchestrator.overview import print_status
        from orchestrator.plan import make_plan
        from orchestrator.resume import Store, compare
        from orchestrator.watch import is_finished, last_written, print_drivers, watch

        if follow:
            watch(
                console,
                root,
                experiment.name,
                written=partial(last_written, root, experiment.name),
                finished=partial(is_finished, experiment, data_dir, root),
            )
        found = compare(make_plan(experiment, data_dir), Store(root), repair=False)
        print_status(console, found, Store(root))
        if experiment.tune is not None:
            from orchestrator.report_tune import print_trials
            from orchestrator.tune import study_name

            print_trials(console, experiment, study_name(experiment, data_dir), Store(root))
        if not follow:
            print_drivers(console, root, experiment.name)


def timeline(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write; default: the experiment's name and .trace.json.",
        ),
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
        data_dir, root = find_data_dir(data_dir), find_made_store(store)
        experiment = load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.resume import Store
        from orchestrator.timeline import chrome_trace

        tasks = make_plan(experiment, data_dir).tasks
        tables = Store(root).tables
        measured = tables.frame("tasks")
        for problem in tables.problems:
            say(f"warning: {problem}")
        found = int(measured["key"].isin(list(tasks)).sum())
        if not found:
            refuse(
                f"the store {store} has no finished task of the experiment '{experiment.name}' as "
                f"{name} describes it now; `sfumato run {name}` makes some"
            )
        path = out or Path(f"{experiment.name}.trace.json")
        path.write_text(chrome_trace(tasks, measured), encoding="utf-8")
        make_console().print(f"{found} tasks written to {path}")


def query(
    sql: Annotated[
        str | None,
        typer.Argument(metavar="SQL", help="One statement; '-' reads it from standard input."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    form: Annotated[
        Literal["table", "csv", "json", "parquet"] | None,
        typer.Option("--format", help="Default: as the file of --out is named, else a table."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write there instead of to the terminal."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Ask the tables of a store in SQL (DuckDB's); without SQL, list what can be asked.

    Only reads: no statement changes the store, or reaches other files or the
    network. A table shows the first 100 rows and six digits of a number, the
    other formats give all rows and every bit. Times are UTC.

    [bold]A pandas frame, in Python[/bold]

      from storage.queries import query

      frame = query("sfumato-store", "SELECT * FROM tradeoff")

    [bold]Examples[/bold]

      sfumato query "SELECT label, attack_label, auc, auc_std FROM mean_results"

      sfumato query "DESCRIBE results"

      sfumato query "SELECT * FROM scores" --out scores.parquet
    """
    console = make_console()
    with Errors(debug):
        from orchestrator.answer import (
            MOST_ROWS,
            find_format,
            print_answer,
            print_catalogue,
            write_answer,
        )
        from storage.queries import ask, catalogue, find_tables

        if sql is None:
            if store != DEFAULT_STORE:  # what can be asked is known before any run, too
                find_made_store(store)
            print_catalogue(console, catalogue())
            return
        chosen = find_format(form, out)
        tables = find_tables(find_store(store))
        text = sys.stdin.read() if sql == "-" else sql
        rows = ask(tables, text, first=MOST_ROWS + 1 if chosen == "table" else None)
        if chosen == "table":
            print_answer(console, rows)
        else:
            write_answer(console, rows, chosen, out)
        if chosen == "table" and len(rows) > MOST_ROWS:
            say(f"only the first {MOST_ROWS} rows are shown; --format csv gives all")
        for problem in tables.problems:
            say(f"warning: {problem}")


def history(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="An experiment's name; default: all of them."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="EXPR", help="Only rows of which this holds; see below."),
    ] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="COLUMN", help="Any column.")] = "started",
    ascending: Annotated[
        bool, typer.Option("--ascending", help="The smallest first; default: the largest.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many rows.")
    ] = 50,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,C", help="What to show, in this order."),
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="How to show it.")
    ] = "table",
    anew: Annotated[
        bool, typer.Option("--rebuild", help="Make the history anew from the store's tables.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    tracking_uri: TrackingOption = None,
    debug: Debug = False,
) -> None:
    """Show what was run and what came out, from MLflow, the last first.

    EXPR is COLUMN OPERATOR VALUE, or several joined by 'and'. Texts take = != LIKE ILIKE (% stands
    for any letters), numbers = != < <= > >=, started a date or time in UTC. '' asks for rows
    without a value. Texts with quotes or 'or' in them go in quotes of their own.

    The tables are the record and MLflow a view of it: --rebuild adds what MLflow lacks and removes
    what the tables no longer say (there, deleted runs can be restored until `mlflow gc`). A damaged
    SQLite file is set aside and made anew.

    [bold]Examples[/bold]

      sfumato history quickstart --sort attack_accuracy --limit 10

      sfumato history --filter "dataset = location30 and auc > 0.6" --filter "label LIKE purif%"

      sfumato history --filter "flags = ''" --columns label,seed,auc,auc_low --format csv

      sfumato history --rebuild
    """
    console = make_console()
    with Errors(debug):
        from orchestrator import past
        from orchestrator.history import rebuild
        from orchestrator.resume import Store
        from storage.runs import check_columns, find_runs
        from storage.tracking import TrackingAway, default_uri, masked

        uri, root = find_tracking(tracking_uri), find_store(store)
        if anew or uri is None:
            find_made_store(store)
        shown = [word.strip() for word in columns.split(",")] if columns else []
        at = option(store)
        at += f" --tracking-uri {masked(uri)}" if uri else ""
        try:
            check_columns(shown)
            if anew:
                if filters or columns or form != "table":
                    refuse("--rebuild shows no rows; drop --filter, --columns and --format")
                done, notes = rebuild(Store(root), uri, name)
                past.print_rebuilt(console, done, masked(uri or default_uri(root)))
                for note in notes:
                    say(f"warning: {note}")
                return
            rows = find_runs(
                uri or default_uri(root),
                experiment=name,
                filters=filters or (),
                sort=sort,
                ascending=ascending,
                limit=limit,
            )
        except TrackingAway as error:
            remedy = "" if anew else f"; `sfumato history --rebuild{at}` makes it from the tables"
            refuse(f"{error}{remedy}")
        past.print_runs(console, rows, shown or past.default_columns(rows, form), form)
        if not rows and form == "table":
            say("no row of the history matches")
        elif len(rows) == limit and form == "table":
            say(f"these are the first {limit}; --limit shows more")


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A task key, or its first digits (at least 4).")
    ],
    every: Annotated[
        bool, typer.Option("--all", help="Show each of many alike inputs, such as shadow models.")
    ] = False,
    output: Annotated[
        Literal["text", "json"], typer.Option("--format", help="For a person, or for a program.")
    ] = "text",
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FILE", help="Write what an inversion rebuilt, as PNG."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    debug: Debug = False,
) -> None:
    """Show what is behind a number: the chain of tasks, their settings, and the versions.

    KEY is in the column task_key of every table. Reads only the store: it works when experiment
    file, data and plugins are gone.

    [bold]Examples[/bold]

      sfumato show 3f9a21

      sfumato show 3f9a21 --all --format json

      sfumato show 81c04e --images faces.png
    """
    with Errors(debug):
        root = find_made_store(store)
        from orchestrator.figures import kept_images
        from orchestrator.lineage import print_shown
        from orchestrator.resume import Store
        from orchestrator.show import find_key, look_up

        found = find_key(Store(root), key)
        if images is not None:
            images.write_bytes(kept_images(Store(root), found))
            say(f"originals above their reconstructions written to {images}")
        elif output == "json":
            typer.echo(json.dumps(look_up(Store(root), found).plain(), indent=1))
        else:
            print_shown(make_console(), look_up(Store(root), found), every=every)
