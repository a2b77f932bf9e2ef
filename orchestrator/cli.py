"""The command line. Heavy packages are imported by the command that needs them."""

import platform
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import cli_ask, cli_care, cli_cluster, cli_data, cli_jobs, cli_tune, cli_ui
from orchestrator._console import (
    DEFAULT_STORE,
    FAILED,
    Address,
    CpuWorkers,
    DataDir,
    Debug,
    Errors,
    GpusPerWorker,
    Inline,
    Journal,
    Name,
    Set,
    StoreOption,
    TaskLimit,
    TrackingOption,
    Where,
    Workers,
    add,
    find_data_dir,
    find_store,
    flowing,
    load,
    make_console,
    make_options,
    option,
    play,
    say,
    send,
    uri_of,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

app = typer.Typer(
    name="sfumato",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=flowing("""
How much does a classifier's answer give away about the data behind it, and what does it
cost to stop that?

One YAML file names datasets, defenses and attacks; [bold]sfumato run[/bold] trains what is
missing, in parallel, and prints what each attack gets and what each defense costs. Whatever
was computed stays in the store: interrupt at any moment, and the same command resumes.

[bold]Start here[/bold]

  sfumato run quickstart            two small datasets, no download

  sfumato list attacks              what there is, and which paper each comes from

  sfumato plan purifier_location    what would run, and for how long

  sfumato run my.yaml --set 'seeds=[0,1,2]'    your own file, one setting changed
"""),
)


def _print_versions(asked: bool) -> None:
    if not asked:
        return
    found = [f"sfumato {metadata.version('sfumato')}", f"Python {platform.python_version()}"]
    for name in ("torch", "ray"):
        with suppress(metadata.PackageNotFoundError):  # `sfumato doctor` says what is missing
            found.append(f"{name} {metadata.version(name)}")
    typer.echo(", ".join(found))
    raise typer.Exit


@app.callback()
def sfumato(
    versions: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_versions,
            help="Show the versions of Sfumato, Python, torch and Ray.",
        ),
    ] = False,
) -> None: ...


def run(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    workers: Workers = None,
    address: Address = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    cpu_workers: CpuWorkers = None,
    task_limit: TaskLimit = None,
    inline: Inline = False,
    tracking_uri: TrackingOption = None,
    journal: Journal = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Run what is missing of an experiment, and print its results table.

    Nothing that is in the store is computed again. Ctrl-C at any moment is safe. Exit code: 0 all
    done, 1 some task failed (the rest finished), 2 bad input, 130 interrupted.

    [bold]Examples[/bold]

      sfumato run quickstart

      sfumato run purifier_location --set 'seeds=[0]' --store /big/disk/store

      sfumato run audit.yaml --workers 8
    """
    console = make_console()
    with Errors(debug, resumes=True):
        where = Where(inline, workers, address, gpus_per_worker, cpu_workers, task_limit)
        data_dir, root = find_data_dir(data_dir), find_store(store)
        experiment = load(name, overrides, data_dir)
        from orchestrator.figures import inversion_figures
        from orchestrator.progress import for_console
        from orchestrator.report import print_results
        from orchestrator.resume import Store
        from orchestrator.run import run as run_experiment

        options = make_options(root, data_dir, where, tracking_uri, journal)
        Errors.begun = True
        outcome = run_experiment(experiment, options, for_console(console))
        print_results(console, experiment, Store(root), outcome.form)
        drawn = inversion_figures(outcome.plan, Store(root))
        send(root, [*outcome.warnings, outcome.stopped or ""])
        _print_end(console, name, store, root, tracking_uri, outcome)
        for path in drawn:
            console.print(f"images:  {path}", soft_wrap=True)
        if outcome.stopped or outcome.failed or outcome.missing:
            raise typer.Exit(FAILED)


def plan(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Show what would run: tasks by kind, which are in the store, and the expected seconds.

    Trains nothing, starts nothing, writes nothing. Seconds are medians of what this store has
    measured for alike tasks, first guesses before that.
    """
    console = make_console()
    with Errors(debug):
        data_dir, root = find_data_dir(data_dir), find_store(store)
        experiment = load(name, overrides, data_dir)
        from orchestrator.overview import print_plan
        from orchestrator.plan import make_plan
        from orchestrator.resume import Store, compare

        print_plan(console, compare(make_plan(experiment, data_dir), Store(root), repair=False))


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(
        run,
        plan,
        cli_tune.tune,
        cli_ask.status,
        cli_ask.timeline,
        cli_ask.query,
        cli_ask.history,
        cli_ask.show,
    ),
    *(cli_jobs.submit, cli_jobs.jobs, cli_jobs.logs, cli_jobs.stop),
    *(cli_care.gc, cli_care.doctor, cli_ui.ui),
)
for command in _COMMANDS:
    add(app, command)
add(app, cli_data.list_, "list")
app.add_typer(cli_data.data_app, name="data")
app.add_typer(cli_cluster.cluster_app, name="cluster")


def _print_end(
    console: "Console",
    name: str,
    store: Path,
    root: Path,
    tracking_uri: str | None,
    outcome: Any,
) -> None:
    from rich.text import Text

    from orchestrator._places import Places
    from orchestrator.progress import spell_seconds
    from storage.tracking import default_uri, masked

    uri = uri_of(store)
    mlflow = masked(tracking_uri or default_uri(root if uri else store))
    console.print()
    if outcome.ran:
        console.print(
            f"{outcome.ran} tasks run in {spell_seconds(outcome.makespan_s)} on "
            f"{outcome.workers} worker{'s' if outcome.workers > 1 else ''} "
            f"({100 * outcome.utilisation:.0f} % of worker time in tasks), "
            f"{outcome.cached} were in the store"
        )
    elif not outcome.failed and not outcome.stopped:
        console.print(f"nothing to run: all {outcome.cached} tasks were in the store")
    for warning in outcome.warnings:
        if warning not in (outcome.stopped or ""):
            say(f"warning: {warning}")
    if outcome.stopped:
        say(f"stopped: {outcome.stopped}")
    if outcome.failed:
        blocked = f", {len(outcome.blocked)} more could not run" if outcome.blocked else ""
        say(f"{len(outcome.failed)} tasks failed{blocked}:")
        places = Places(outcome.plan)
        for key, reason in outcome.failed.items():
            say(f"  {places.named(key)}: {reason}")
        say("the same command tries them again")
    elif outcome.missing and not outcome.stopped:
        say(
            f"{outcome.missing} cells lost what they need while this ran; the same command fills "
            "them"
        )
    at = option(store)
    tables = f"{uri} (tables, Parquet)" if uri else f"{store}/tables (Parquet)"
    console.print(f"results: {tables}, {mlflow} (MLflow)", soft_wrap=True)
    hints = {
        "sfumato list defenses": "what else can stand in an experiment",
        f"sfumato run {name}{at} --set 'seeds=[0,1,2,3,4]'": "more seeds; only what is new runs",
        f"sfumato ui{at}": "browse the history",
    }
    if outcome.stopped or outcome.failed:
        hints = {
            "the same command": "goes on where this stopped",
            f"sfumato status {name}{at}": "what is missing",
        }
    for i, (command, what) in enumerate(hints.items()):
        line = Text("next:    " if i == 0 else " " * 9)
        console.print(line.append(command, style="bold").append(f"  {what}"), soft_wrap=True)


def main() -> None:
    """Entry point of the `sfumato` script."""
    play(app)
