"""The command that searches: tune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    StudyUri,
    TaskLimit,
    TrackingOption,
    Where,
    Workers,
    find_data_dir,
    find_store,
    make_console,
    make_options,
    option,
    refuse,
    say,
    send,
)

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.compare import Studied

__all__ = ["tune"]


def tune(
    name: Name,
    store: StoreOption = DEFAULT_STORE,
    data_dir: DataDir = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Only say which fields mattered in the trials there are."),
    ] = False,
    no_judge: Annotated[
        bool,
        typer.Option("--no-judge", help="Have no points judged by held-out attackers."),
    ] = False,
    study_uri: StudyUri = None,
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
    """Search a defense's hyper-parameters, and judge what was found by attackers no trial saw.

    Trials see the defender's own records (members and reference) and the tuning attackers of the
    file's block `tune`. Points of the front are then judged on the evaluation records by the
    file's own attacks; how much more those get tells how far the search was fooled. The same
    command resumes, and goes on where `tune.trials` has grown. A file with the key `compare` has
    several studies searched and drawn together. Exit code: 0 the trials ended and a point was
    chosen and judged (trials that failed are told), 1 something of that is missing, 2 bad input,
    130 interrupted.

    [bold]Examples[/bold]

      sfumato tune tune_purifier_location

      sfumato tune tune_purifier_location --set tune.trials=60 --workers 8

      sfumato tune tune_purifier_location --explain

      sfumato tune compare_fronts
    """
    console = make_console()
    with Errors(debug, resumes=not explain):
        where = Where(inline, workers, address, gpus_per_worker, cpu_workers, task_limit)
        data_dir, root = find_data_dir(data_dir), find_store(store)
        from orchestrator.compare import load_studies

        comparison, experiments = load_studies(name, overrides or (), data_dir)
        options = make_options(root, data_dir, where, tracking_uri, journal)
        from orchestrator.compare import explain_study, run_study
        from orchestrator.progress import for_console
        from orchestrator.study_storage import StudyAway

        try:
            if explain:
                for experiment in experiments:
                    explain_study(console, experiment, options, study_uri)
                return
            Errors.begun = True
            done = [
                run_study(console, each, options, for_console, study_uri, judge=not no_judge)
                for each in experiments
            ]
        except StudyAway as error:
            refuse(str(error))
        if comparison is not None:
            from orchestrator.compare import print_comparison

            print_comparison(console, comparison, done, root)
        send(root, [text for one in done for text in (*one.warnings, one.stopped or "")])
        _print_end(console, name, store, done)
        if any(one.broken for one in done):
            raise typer.Exit(FAILED)


def _print_end(console: "Console", name: str, store: Path, done: "list[Studied]") -> None:
    from rich.text import Text

    at = option(store)
    console.print()
    for one in done:
        for path in one.figures:
            if path.suffix == ".png":
                console.print(f"figure:  {path}", soft_wrap=True)
        for what, written in one.files.items():
            console.print(f"{what + ':':<8} {written}", soft_wrap=True)
        for warning in one.warnings:
            say(f"warning: {warning}")
        if one.stopped:
            say(f"stopped: {one.stopped}")
    hints: dict[str, str] = {}
    chosen = [one.files["chosen"] for one in done if "chosen" in one.files]
    if chosen:
        hints[f"sfumato run {chosen[0]}{at}"] = "the chosen point as an experiment of its own"
    hints[f"sfumato tune {name}{at} --explain"] = "which fields mattered"
    hints[f"sfumato query{at} 'SELECT * FROM fooled'"] = "how far each point fooled the search"
    hints[f"sfumato ui{at}"] = "the studies in Optuna's dashboard, the history in MLflow"
    for i, (command, what) in enumerate(hints.items()):
        line = Text("next:    " if i == 0 else " " * 9)
        console.print(line.append(command, style="bold").append(f"  {what}"), soft_wrap=True)
