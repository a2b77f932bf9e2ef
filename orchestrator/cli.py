"""The command line. Heavy packages are imported by the command that needs them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import Experiment

__all__ = ["main"]

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="sfumato",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
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
""",
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A packaged experiment, or the path of a YAML file.")
]
StoreOption = Annotated[
    Path, typer.Option("--store", help="Folder that keeps everything that was computed.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="SFUMATO_DATA", help="Folder with dataset files (Parquet, npz)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set target.epochs=50."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]

DEFAULT_STORE = Path("sfumato-store")


@app.command()
def run(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Ray workers; default one per core."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster (host:port); default: start one."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option("--gpus-per-worker", min=0.0, help="Share of a GPU a worker owns.")
    ] = 0.0,
    inline: Annotated[
        bool, typer.Option("--inline", help="One process, no Ray; breakpoints work.")
    ] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="MLflow server; default: a SQLite file in the store."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Append a line to this file for every task start and end."),
    ] = None,
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
    console = _console()
    with _Errors(debug):
        if inline and (workers or address or gpus_per_worker):
            _refuse("--inline runs in this process; drop --workers, --address, --gpus-per-worker")
        data_dir, root = _data_dir(data_dir), _store(store)
        experiment = _load(name, overrides, data_dir)
        from orchestrator.progress import for_console
        from orchestrator.report import print_results
        from orchestrator.resume import Store
        from orchestrator.run import Options
        from orchestrator.run import run as run_experiment

        options = Options(
            store=root,
            data_dir=data_dir,
            executor="inline" if inline else "auto",
            address=address,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            tracking_uri=tracking_uri,
            journal=journal.absolute() if journal else None,
        )
        outcome = run_experiment(experiment, options, for_console(console))
        print_results(console, experiment, Store(root))
        _print_end(console, name, store, tracking_uri, outcome)
        if outcome.stopped or outcome.failed:
            raise typer.Exit(FAILED)


@app.command()
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
    console = _console()
    with _Errors(debug):
        data_dir, root = _data_dir(data_dir), _store(store)
        experiment = _load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.report import print_plan
        from orchestrator.resume import Store, compare

        print_plan(console, compare(make_plan(experiment, data_dir), Store(root), repair=False))


@app.command()
def status(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Show what is done, failed and waiting, per dataset and defense; reads only the store."""
    console = _console()
    with _Errors(debug):
        data_dir, root = _data_dir(data_dir), _store(store)
        experiment = _load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.report import print_status
        from orchestrator.resume import Store, compare

        found = compare(make_plan(experiment, data_dir), Store(root), repair=False)
        print_status(console, found, Store(root))


@app.command()
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
    with _Errors(debug):
        data_dir, root = _data_dir(data_dir), _store(store)
        experiment = _load(name, overrides, data_dir)
        from orchestrator.plan import make_plan
        from orchestrator.resume import Store
        from orchestrator.timeline import chrome_trace

        tasks = make_plan(experiment, data_dir).tasks
        measured = Store(root).tables.frame("tasks")
        found = int(measured["key"].isin(list(tasks)).sum())
        if not found:
            _refuse(f"the store {store} has no finished task of '{name}'; run it first")
        path = out or Path(f"{experiment.name}.trace.json")
        path.write_text(chrome_trace(tasks, measured), encoding="utf-8")
        _console().print(f"{found} tasks written to {path}")


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="attacks, defenses, datasets, architectures or experiments"
        ),
    ],
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """List every attack, defense, dataset, architecture or packaged experiment by name."""
    console = _console()
    with _Errors(debug):
        from orchestrator.listing import KINDS, table

        if what not in KINDS:
            from difflib import get_close_matches

            near = get_close_matches(what, KINDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            _refuse(f"cannot list '{what}'{hint} (known: {', '.join(KINDS)})")
        console.print(table(what, _data_dir(data_dir)))


class _Errors:
    """Turn what a person can act on into a few lines and an exit code."""

    def __init__(self, debug: bool) -> None:
        self._debug = debug

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # SystemExit: whoever reads our output closed the pipe (`| head`), and rich says so.
        if error is None or isinstance(error, typer.Exit | SystemExit):
            return
        if self._debug and not isinstance(error, KeyboardInterrupt):
            return
        if isinstance(error, KeyboardInterrupt):
            _say("interrupted; everything finished so far is kept, the same command resumes")
            raise typer.Exit(INTERRUPTED) from None
        _say(f"error: {error or type(error).__name__}")
        if not _expected(error):
            _say("this is a fault of Sfumato's; --debug shows the traceback")
        raise typer.Exit(BAD_INPUT if _expected(error) else FAILED) from None


def _expected(error: BaseException) -> bool:
    from cluster.base import ClusterUnreachable
    from storage.artifacts import StoreUnwritable

    return isinstance(error, ValueError | OSError | ClusterUnreachable | StoreUnwritable)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _console() -> "Console":
    from rich.console import Console

    # Without a terminal rich assumes 80 columns, which cuts tables in logs.
    asked = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else max(40, int(asked)) if asked.isdigit() else 160
    # No markup: labels, paths and errors may hold brackets, which are not styles.
    return Console(width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def _data_dir(given: Path | None) -> Path | None:
    if given is None:
        return None
    if not given.is_dir():
        _refuse(f"the data folder {given} does not exist; check --data-dir or SFUMATO_DATA")
    return given.absolute()


def _store(given: Path) -> Path:
    if "://" in str(given) or ":/" in str(given):
        _refuse(f"--store {given}: only local folders are stores so far")
    if given.exists() and not given.is_dir():
        _refuse(f"--store {given} is a file; name a folder")
    return given.absolute()


def _load(name: str, overrides: list[str] | None, data_dir: Path | None) -> "Experiment":
    from orchestrator.check import load_experiment

    return load_experiment(name, overrides or (), data_dir)


def _print_end(
    console: "Console", name: str, store: Path, tracking_uri: str | None, outcome: Any
) -> None:
    from rich.text import Text

    from orchestrator.progress import spell_seconds
    from storage.tracking import default_uri, masked

    mlflow = masked(tracking_uri or default_uri(store))
    console.print()
    if outcome.ran:
        console.print(
            f"{outcome.ran} tasks run in {spell_seconds(outcome.makespan_s)} on "
            f"{outcome.workers} worker{'s' if outcome.workers > 1 else ''} "
            f"({100 * outcome.utilisation:.0f} % of worker time in tasks), "
            f"{outcome.cached} were in the store"
        )
    else:
        console.print(f"nothing to run: all {outcome.cached} tasks were in the store")
    for warning in outcome.warnings:
        _say(f"warning: {warning}")
    if outcome.stopped:
        _say(f"stopped: {outcome.stopped}")
    if outcome.failed:
        blocked = f", {len(outcome.blocked)} more could not run" if outcome.blocked else ""
        _say(f"{len(outcome.failed)} tasks failed{blocked}:")
        for key, reason in outcome.failed.items():
            task = outcome.plan.tasks[key]
            _say(f"  {task.kind} {task.name}, {task.dataset} seed {task.seed}: {reason}")
        _say("the same command tries them again")
    at = "" if store == DEFAULT_STORE else f" --store {store}"
    console.print(f"results: {store}/tables (Parquet), {mlflow} (MLflow)", soft_wrap=True)
    hints = {
        "sfumato list defenses": "what else can stand in an experiment",
        f"sfumato run {name}{at} --set 'seeds=[0,1,2,3,4]'": "more seeds; only what is new runs",
        f"mlflow ui --backend-store-uri {mlflow}": "browse the history",
    }
    for i, (command, what) in enumerate(hints.items()):
        line = Text("next:    " if i == 0 else " " * 9)
        console.print(line.append(command, style="bold").append(f"  {what}"), soft_wrap=True)


def main() -> None:
    """Entry point of the `sfumato` script."""
    app()
