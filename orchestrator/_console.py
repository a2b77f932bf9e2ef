"""What every command shares: its options, its console, its errors and exit codes."""

import inspect
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer

from orchestrator._problem import readable

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import Experiment
    from orchestrator.outcome import Options

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
NOT_READ = 141  # as of a process that the signal SIGPIPE ended

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A packaged experiment, or the path of a YAML file.")
]
StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="DIR|URI",
        help="Folder, or URI as s3://BUCKET/NAME, that keeps everything that was computed.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        envvar="SFUMATO_DATA",
        help="Folder with dataset files (Parquet, npz).",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set target.epochs=50."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]

TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server; default: a SQLite file in the store, of an URI in its local copy.",
    ),
]

StudyUri = Annotated[
    str | None,
    typer.Option(
        "--study-uri",
        metavar="URI",
        help="Database of studies, which several drivers may share; default: a file in the store.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Ray workers; default one per core."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="A running Ray cluster; default: start one."
    ),
]
GpusPerWorker = Annotated[
    float,
    typer.Option("--gpus-per-worker", metavar="X", min=0.0, help="Share of a GPU a worker owns."),
]
CpuWorkers = Annotated[
    int | None,
    typer.Option(
        "--cpu-workers",
        metavar="N",
        min=0,
        help="Workers without a GPU beside those with one; default: the cores these leave.",
    ),
]
TaskLimit = Annotated[
    float | None,
    typer.Option(
        "--task-limit",
        metavar="S",
        min=0,
        help="Seconds after which a task counts as hung and is tried on another worker, 0 for "
        "never; default: 20 times what alike ones took, and at least a day.",
    ),
]
Inline = Annotated[bool, typer.Option("--inline", help="One process, no Ray; breakpoints work.")]
Journal = Annotated[
    Path | None,
    typer.Option(
        "--journal", metavar="FILE", help="Append a line to this file for every task start and end."
    ),
]

DEFAULT_STORE = Path("sfumato-store")


@dataclass(frozen=True)
class Where:
    """Which workers run the tasks, as the options say it.

    Raises:
        ValueError: for workers of a process that has none.
    """

    inline: bool
    workers: int | None
    address: str | None
    gpus_per_worker: float
    cpu_workers: int | None = None
    task_limit_s: float | None = None

    def __post_init__(self) -> None:
        if self.inline and (self.workers or self.address or self.gpus_per_worker):
            refuse("--inline runs in this process; drop --workers, --address, --gpus-per-worker")
        if self.address is not None:
            from cluster.base import check_address

            check_address(self.address)
        if self.inline and self.task_limit_s:
            refuse("--inline runs in this process, which cannot stop a task; drop --task-limit")
        if self.cpu_workers is not None and not self.gpus_per_worker:
            refuse("--cpu-workers goes with --gpus-per-worker; without, --workers says how many")


class Errors:
    """Turn what a person can act on into a few lines and an exit code."""

    begun = False  # whether there is work to wind up when a signal comes
    stopped = False  # by a signal

    def __init__(self, debug: bool, *, resumes: bool = False) -> None:
        self._debug, self._resumes = debug, resumes

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, typer.Exit | SystemExit) or _not_read(error):
            return
        # What an import or an extension makes of a signal may be any error.
        if Errors.stopped or isinstance(error, KeyboardInterrupt):
            kept = "; everything finished so far is kept, the same command resumes"
            say("interrupted" + (kept if self._resumes else ""))
            raise typer.Exit(INTERRUPTED) from None
        if self._debug:
            return
        say(f"error: {error or type(error).__name__}")
        if not _expected(error):
            say("this is a fault of Sfumato's; --debug shows the traceback")
        raise typer.Exit(BAD_INPUT if _expected(error) else FAILED) from None


def stop(signum: int, frame: FrameType | None) -> NoReturn:
    """What a signal does that asks a command to end."""
    if Errors.begun and not Errors.stopped:  # winding up takes some seconds
        os.write(2, b"\nstopping\n")
    Errors.stopped = True
    # In the middle of an import some extensions abort, and some packages make other errors of it.
    if not Errors.begun and _importing(frame):
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def add(app: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Add a command; its docstring is its help, of which each paragraph flows as the width has it.

    Rich would break lines where the docstring does.
    """
    app.command(name, help=flowing(inspect.getdoc(command) or ""))(command)


def flowing(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?! *\n| *$) *", " ", text)


def _not_read(error: BaseException) -> bool:
    """Whether the reader of our output closed the pipe (`| head`), not a server some socket."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def play(app: typer.Typer) -> NoReturn:
    """Run a command as a process of its own, whatever stops it.

    Raises:
        SystemExit: always, with the exit code.
    """
    # Batch systems end jobs with SIGTERM: everything is kept then as after Ctrl-C.
    signal.signal(signal.SIGTERM, stop)
    # Where it is ignored, as in the background of a shell, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        app()
    except SystemExit as end:
        # Both Rich and Typer end with 1 while they handle a broken pipe.
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(NOT_READ) from None
        if end.__context__ and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            say("interrupted")  # before a command began
        raise
    raise SystemExit(OK)


def _expected(error: BaseException) -> bool:
    from cluster.base import ClusterUnreachable
    from storage.artifacts import StoreUnwritable

    return isinstance(error, ValueError | OSError | ClusterUnreachable | StoreUnwritable)


def refuse(message: str) -> NoReturn:
    raise ValueError(message)


def say(message: str) -> None:
    # What it quotes may be anything: no control characters reach the terminal.
    for line in message.split("\n"):
        typer.echo(readable(line), err=True)


def make_console() -> "Console":
    from rich.console import Console

    # Without a terminal rich assumes 80 columns, which cuts tables in logs.
    asked = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else max(40, int(asked)) if asked.isdigit() else 160
    # No markup: labels, paths and errors may hold brackets, which are not styles.
    return Console(width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def find_data_dir(given: Path | None) -> Path | None:
    if given is None:
        return None
    if not given.is_dir():
        refuse(f"the data folder {given} does not exist; check --data-dir or SFUMATO_DATA")
    return given.absolute()


def uri_of(given: Path) -> str | None:
    """The address that `given` was typed as, where it names a scheme: paths fold its slashes."""
    scheme, colon, rest = str(given).partition(":/")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return None
    rest = re.sub(r":/(?!/)", "://", rest.lstrip("/"))  # endpoint_override=http://…
    return f"{scheme.lower()}://" + ("/" if scheme.lower() == "file" else "") + rest


def option(store: Path) -> str:
    """How a command for the same store says so."""
    uri = uri_of(store)
    at = str(store) if uri is None else shlex.quote(uri)
    return "" if store == DEFAULT_STORE else f" --store {at}"


def find_store(given: Path) -> Path:
    """The folder of a store; for one at an URI that of its working copy, which is in step with it.

    Raises:
        ValueError: it can be no store.
        StoreUnwritable: the server of the URI is away or refuses.
    """
    if (uri := uri_of(given)) is not None:
        from storage.working import working_copy

        try:
            root = working_copy(uri)
        except ValueError as error:
            refuse(f"--store {error}")
    else:
        root = _local(given)
    from storage.census import obstacle
    from storage.links import stray

    try:
        if link := stray(root):
            refuse(
                f"--store {given}: {link} is a link that leads out of the store; put what it "
                "leads to in its place, or link the whole store"
            )
        for folder in (root, *root.parents):
            if folder.exists() and not folder.is_dir():
                refuse(f"--store {given}: {folder} is a file; name a folder")
        if file := obstacle(root):
            refuse(
                f"--store {given}: {file} is a file where a store has a folder; "
                "name another store, or move the file away"
            )
    except OSError as error:
        refuse(f"--store {given}: {error.strerror}; name another folder")
    return root


def _local(given: Path) -> Path:
    if not str(given).isprintable():
        refuse(f"--store {str(given)!r} holds characters that cannot be printed; name it otherwise")
    return given.absolute()


def find_made_store(given: Path) -> Path:
    """As `find_store`, for commands that only read: there must be one."""
    root = find_store(given)
    from storage.census import check_store

    check_store(root)
    return root


def send(root: Path, told: Iterable[str] = ()) -> None:
    """Send what a command wrote last to the URI that `root` is a working copy of, if it is one.

    Args:
        root: of a store.
        told: what the person is told anyway.
    """
    from storage.artifacts import StoreUnwritable
    from storage.working import push

    try:
        notes = push(root)
    except StoreUnwritable as error:
        notes = [str(error)]
    known = "\n".join(told)
    for note in notes:
        if note not in known:
            say(f"warning: {note}")


def find_tracking(given: str | None) -> str | None:
    """The address of an MLflow server or database, if there can be one at it."""
    from storage.tracking import masked

    if given is None:
        return None
    scheme, _, rest = given.partition("://")
    fault = "" if given.isprintable() and len(given) <= 1000 else "is no address"
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(given)
            if not parts.hostname or parts.port == 0:
                fault = "names no host"
        except ValueError:  # its text may hold a part of the password
            fault = "is no address"
    elif re.fullmatch(r"sqlite(\+\w+)?", scheme):
        fault = fault or ("" if rest.strip("/") else "names no file")
    elif not re.fullmatch(r"(postgresql|mysql|mssql)(\+\w+)?", scheme) or not rest:
        fault = fault or ("" if scheme == "databricks" else "is no address of MLflow")
    if fault:
        refuse(
            f"--tracking-uri {masked(given)!r:.300} {fault}; write http://HOST:PORT, "
            "sqlite:////PATH/mlflow.db or another database's postgresql://USER@HOST/NAME"
        )
    return given


def make_options(
    root: Path,
    data_dir: Path | None,
    where: Where,
    tracking_uri: str | None,
    journal: Path | None,
) -> "Options":
    """How to run, from what was typed."""
    # Ray reads the mode once, when it is imported, and does not infer it from a token.
    if where.address and {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from orchestrator.outcome import Options

    return Options(
        store=root,
        data_dir=data_dir,
        executor="inline" if where.inline else "auto",
        address=where.address,
        workers=where.workers,
        gpus_per_worker=where.gpus_per_worker,
        cpu_workers=where.cpu_workers,
        task_limit_s=where.task_limit_s,
        tracking_uri=find_tracking(tracking_uri),
        journal=journal.absolute() if journal else None,
    )


def load(name: str, overrides: list[str] | None, data_dir: Path | None) -> "Experiment":
    from orchestrator.check import load_experiment

    return load_experiment(name, overrides or (), data_dir)
