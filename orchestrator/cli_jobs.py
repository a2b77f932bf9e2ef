"""Commands about jobs on a cluster elsewhere: submit, jobs, logs, stop."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from orchestrator._console import (
    DEFAULT_STORE,
    FAILED,
    INTERRUPTED,
    CpuWorkers,
    Debug,
    Errors,
    GpusPerWorker,
    Name,
    Set,
    StoreOption,
    StudyUri,
    TaskLimit,
    TrackingOption,
    Workers,
    find_made_store,
    find_tracking,
    make_console,
    refuse,
    say,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.jobs import Jobs

__all__ = ["jobs", "logs", "stop", "submit"]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Dashboard of the cluster's head, http://HOST:8265; default: RAY_API_SERVER_ADDRESS "
        "or RAY_ADDRESS.",
    ),
]
Id = Annotated[
    str | None,
    typer.Argument(metavar="ID", help="A job's id or its beginning; default: the one that runs."),
]


def submit(
    name: Name,
    address: Address = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="DIR|URI",
            help="Folder for results that every node sees, or URI as s3://BUCKET/NAME; default: "
            "sfumato-store in the home folder of the cluster's head.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the log until the job ends.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search, as `sfumato tune`, instead of a run.")
    ] = False,
    data_dir: Annotated[
        str | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            help="Folder with dataset files, as every node sees it; default: those of "
            "SFUMATO_DATA here that are needed are sent.",
        ),
    ] = None,
    data_stays: Annotated[
        bool,
        typer.Option(
            "--data-stays", help="Send no data: every node sees them under the same paths."
        ),
    ] = False,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    cpu_workers: CpuWorkers = None,
    task_limit: TaskLimit = None,
    tracking_uri: TrackingOption = None,
    study_uri: StudyUri = None,
    python: Annotated[
        str,
        typer.Option(
            "--python", metavar="PROGRAM", help="Python on the cluster's head that Ray is of."
        ),
    ] = "python",
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """Send an experiment to a Ray cluster, and have it run there.

    The file is checked here first. It goes with every setting in it, the data it names and this
    code; the cluster has the packages that the code needs. Submitted again with the same store,
    it resumes. A cluster's token is looked for as Ray does: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
    ~/.ray/auth_token. With --follow the exit code is the job's, as of `run`; Ctrl-C leaves it
    running.

    [bold]Examples[/bold]

      sfumato submit quickstart --address http://HOST:8265 --follow

      sfumato submit my.yaml --store /shared/store --set 'seeds=[0,1,2]'

      sfumato submit tune_purifier_location --tune --data-dir /shared/data
    """
    console = make_console()
    with Errors(debug):
        from orchestrator._there import check_secret, store_there

        where = store_there(store)
        if data_dir is not None and not data_dir.startswith("/"):
            refuse(f"--data-dir {data_dir}: say the whole path, as every node sees it")
        if study_uri and not tune:
            refuse("--study-uri is for --tune; drop it")
        check_secret("--tracking-uri", find_tracking(tracking_uri))
        check_secret("--study-uri", study_uri)
        from cluster.jobs import Jobs, find_address
        from orchestrator._shipment import make_shipment

        url = find_address(address)
        shipment = make_shipment(
            name, overrides or (), tune=tune, data_dir=data_dir, data_stays=data_stays
        )
        cluster = Jobs(url)
        for note in cluster.notes:
            say(f"note: {note}")
        if shipment.unchecked:
            say(f"note: not on this machine, so not checked: {', '.join(shipment.unchecked)}")
        options = {
            "--address": "auto",
            "--store": where,
            "--data-dir": data_dir or ("data" if shipment.named else None),
            "--workers": workers,
            "--gpus-per-worker": gpus_per_worker or None,
            "--cpu-workers": cpu_workers,
            "--task-limit": task_limit,
            "--tracking-uri": tracking_uri,
            "--study-uri": study_uri,
        }
        given = [str(w) for key, v in options.items() if v is not None for w in (key, v)]
        command = [python, "-m", "orchestrator", "tune" if tune else "run", *given]
        Errors.begun = True  # from here on an interrupt is told as what it leaves
        try:
            with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
                archive, wheel = shipment.write(Path(folder))
                sent = archive.stat().st_size + (wheel.stat().st_size if wheel else 0)
                job_id = cluster.submit(
                    [*command, "--", shipment.file],
                    name=shipment.name,
                    archive=archive,
                    wheel=wheel,
                    metadata={"sfumato.store": where, "sfumato.command": command[3]},
                )
        except KeyboardInterrupt:
            say("interrupted while it was sent; `sfumato jobs` says whether it arrived")
            raise typer.Exit(INTERRUPTED) from None
        num = len(shipment.data)
        what = f"{num} data file{'' if num == 1 else 's'}, " if num else ""
        console.print(f"job:     {job_id}", soft_wrap=True)
        console.print(f"sent:    {what}the experiment and our code, {sent / 2**20:.1f} MiB")
        note = "" if store else "  in the head's home folder; --store names another"
        console.print(f"store:   {where}{note}", soft_wrap=True)
        at = f" --address {url}" if address else ""
        _print_next(console, job_id, at, follow)
        if follow:
            _follow(cluster, job_id, at)


def jobs(address: Address = None, debug: Debug = False) -> None:
    """List the experiments that were submitted to a cluster, the newest first.

    [bold]Example[/bold]

      sfumato jobs --address http://HOST:8265
    """
    console = make_console()
    with Errors(debug):
        cluster = _connect(address)
        found = cluster.all()
        if not found:
            console.print(f"no experiment was submitted to {cluster.address}", soft_wrap=True)
            return
        from rich.table import Table

        from orchestrator._job_words import duration, how, plain

        table = Table(box=None, pad_edge=False)
        for column in ("id", "experiment", "status", "started (UTC)", "duration", "message"):
            table.add_column(column, overflow="fold", no_wrap=column in ("id", "status"))
        for job in found:
            started = f"{job.started:%Y-%m-%d %H:%M:%S}" if job.started else "-"
            row = (job.id, job.experiment, job.status, started, duration(job), how(job))
            table.add_row(*map(plain, row))
        console.print(table)


def logs(
    job: Id = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="KEY",
            help="The log of one task of a store instead: its key, or the first digits of it.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job or task ends.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a submitted experiment says, or what one task said.

    Without an id: the job that runs, or else the last one. With --follow the exit code is the
    job's; Ctrl-C leaves it running.

    With --task: what the task is, how it ended, and what it printed, its errors with their
    traceback. `sfumato status NAME` has the keys of failed tasks. A task that printed nothing and
    went well has no log.

    [bold]Examples[/bold]

      sfumato logs --follow

      sfumato logs purifier_location-20260102-0304

      sfumato logs --task 3f9a21 --store /big/disk/store
    """
    with Errors(debug):
        if task is not None:
            if job is not None or address is not None:
                refuse("--task shows a log that a store has; drop the job's ID and --address")
            from orchestrator.resume import Store
            from orchestrator.task_log import find_task, print_log

            kept = Store(find_made_store(store))
            print_log(kept, find_task(kept, task), partial(typer.echo, nl=False), follow=follow)
            return
        if store != DEFAULT_STORE:
            refuse("--store goes with --task: a job's log is on its cluster, which --address names")
        cluster = _connect(address)
        meant = cluster.find(job)
        if follow:
            Errors.begun = True
            _follow(cluster, meant.id, f" --address {cluster.address}" if address else "")
        _echo([cluster.log(meant.id)])


def stop(job: Id = None, address: Address = None, debug: Debug = False) -> None:
    """Stop a submitted experiment, and wait until it has.

    What had finished is in the store: submitted again, it goes on from there.

    [bold]Example[/bold]

      sfumato stop purifier_location
    """
    with Errors(debug):
        cluster = _connect(address)
        meant = cluster.find(job, running=True)
        from orchestrator._job_words import how

        if meant.over:
            typer.echo(f"job {meant.id} had ended already: {meant.status}, {how(meant)}")
            return
        ended = cluster.stop(meant.id)
        end = "is stopped" if ended.status == "stopped" else f"ended before: {ended.status}"
        typer.echo(f"job {ended.id} {end}; submitted again with the same store, it resumes")


def _connect(address: str | None) -> "Jobs":
    from cluster.jobs import Jobs, find_address

    return Jobs(find_address(address))


def _follow(cluster: "Jobs", job_id: str, at: str) -> NoReturn:
    """Show a job's log until it ends, and end as it did."""
    from cluster.base import ClusterUnreachable
    from orchestrator._job_words import code_of, duration, how

    commands = (
        f"`sfumato logs {job_id} --follow{at}` shows it, `sfumato stop {job_id}{at}` stops it"
    )
    try:
        _echo(cluster.follow(job_id))
        job = cluster.get(job_id)
    except KeyboardInterrupt:
        say(f"interrupted; the job goes on: {commands}")
        raise typer.Exit(INTERRUPTED) from None
    except ClusterUnreachable as error:
        say(f"error: {error}")
        say(f"the job may go on: {commands}")
        raise typer.Exit(FAILED) from None
    say(f"job {job_id}: {job.status} after {duration(job)}, {how(job)}")
    raise typer.Exit(code_of(job))


def _echo(chunks: Iterable[str]) -> None:
    from orchestrator._job_words import plain

    for chunk in chunks:
        typer.echo(plain(chunk), nl=False)


def _print_next(console: "Console", job_id: str, at: str, follow: bool) -> None:
    from rich.text import Text

    hints = {} if follow else {f"sfumato logs {job_id} --follow{at}": "what it says"}
    hints |= {f"sfumato stop {job_id}{at}": "stop it", f"sfumato jobs{at}": "all of them"}
    for i, (command, what) in enumerate(hints.items()):
        line = Text("next:    " if i == 0 else " " * 9)
        console.print(line.append(command, style="bold").append(f"  {what}"), soft_wrap=True)
