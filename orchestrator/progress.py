"""What the person sees while tasks run: a live display on a terminal, plain lines elsewhere."""

import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.count import Count, Snapshot
from orchestrator.resume import Prepared
from tasks.base import Task

__all__ = ["Lines", "Screen", "draw", "for_console", "line", "spell_seconds"]

_LINE_EVERY_S = 5.0
_WAITS_S = 15.0  # starting a worker takes some of these
_MOST_LISTED = 16  # workers; of more, each node is summed up


def for_console(console: Console) -> "Screen | Lines":
    """The display that suits where the output goes."""
    return Screen(console) if console.is_terminal else Lines(console)


def spell_seconds(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 2:05, 1:02:03."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """Plain lines for job logs: a line every few seconds, each failure and note at once."""

    def __init__(self, console: Console) -> None:
        self._console, self._count, self._said = console, Count(), 0.0
        self._waits = math.inf

    def begin(self, prepared: Prepared) -> None:
        """Say what will run."""
        self._count.add(prepared)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._count.kinds.items())
        self._say(f"{self._count.total} tasks to run ({kinds}), {self._count.cached} in the store")

    def grow(self, prepared: Prepared) -> None:
        """Count what came to it; says nothing."""
        self._count.add(prepared)

    def joined(self, worker: str, node: str, gpu: bool) -> None:
        """Count a worker."""
        self._count.joined(worker, node, gpu)

    def lost(self, worker: str) -> None:
        """Count it no more."""
        self._count.lost(worker)

    def tick(self, pending: int) -> None:
        """Say that workers have waited for a place in the cluster for a while."""
        now = time.monotonic()
        if pending != self._count.pending:
            self._count.pending, self._waits = pending, now
        if pending and now - self._waits > _WAITS_S:
            self._waits = math.inf  # once
            self._say(f"{_workers(pending)} wait{'s' * (pending == 1)} for a place in the cluster")

    def started(self, worker: str, task: Task) -> None:
        """Remember what runs where."""
        self._count.started(worker, task)

    def finished(self, worker: str, task: Task, seconds: float) -> None:
        """Now and then, say how far it is."""
        count = self._count
        count.ended(worker, task, seconds)
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S or count.finished + count.failed == count.total:
            self._said = now
            what = " ".join(filter(None, (task.kind, task.name, task.dataset)))
            self._say(
                f"{count.finished}/{count.total} done, about {spell_seconds(count.left_s)} left "
                f"(last: {what} seed {task.seed}, {seconds:.1f} s)"
            )

    def failed(self, worker: str, task: Task, error: str) -> None:
        """Say what failed."""
        self._count.ended(worker, task, None)
        self._say(f"failed: {self._count.named(task)}: {error}")

    def note(self, message: str) -> None:
        """Say something."""
        self._say(message)

    def end(self) -> None:
        """Nothing to take down."""

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class Screen:
    """A live display: a bar, what is left of each kind, what each worker does."""

    def __init__(self, console: Console) -> None:
        self._console, self._count = console, Count()
        self._live: Live | None = None

    def begin(self, prepared: Prepared) -> None:
        """Put the display up."""
        self._count.add(prepared)
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        self._live.start()

    def grow(self, prepared: Prepared) -> None:
        """Make room for what came to it; the first puts the display up."""
        if self._live is None:
            self.begin(prepared)
        else:
            self._count.add(prepared)

    def joined(self, worker: str, node: str, gpu: bool) -> None:
        """Show a worker."""
        self._count.joined(worker, node, gpu)

    def lost(self, worker: str) -> None:
        """Show it no more."""
        self._count.lost(worker)

    def tick(self, pending: int) -> None:
        """Show how many workers wait for a place in the cluster."""
        self._count.pending = pending

    def started(self, worker: str, task: Task) -> None:
        """Show what runs where."""
        self._count.started(worker, task)

    def finished(self, worker: str, task: Task, seconds: float) -> None:
        """Move the bar."""
        self._count.ended(worker, task, seconds)

    def failed(self, worker: str, task: Task, error: str) -> None:
        """Say what failed, above the display."""
        self._count.ended(worker, task, None)
        self.note(f"failed: {self._count.named(task)}: {error}")

    def note(self, message: str) -> None:
        """Say something above the display."""
        self._console.print(Text(message, style="yellow"), soft_wrap=True)

    def end(self) -> None:
        """Take the display down."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        return draw(self._count.snapshot())


def draw(told: Snapshot) -> Group:
    """A run at one moment: a bar, what is done of each kind, what each worker does, by node."""
    done = told.finished + told.failed
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=max(1, told.total), completed=done, width=30),
        f"{done}/{told.total} tasks",
        f"{told.cached} in the store",
        Text(f"{told.failed} failed", style="red") if told.failed else "",
        f"{spell_seconds(told.gone_s)} gone",
        f"about {spell_seconds(told.left_s)} left",
    )
    kinds = "  ".join(f"{kind} {ended}/{num}" for kind, (ended, num) in told.kinds.items())
    workers = Table.grid(padding=(0, 2))
    for node, desks in told.nodes.items():
        busy = [desk for desk in desks if desk.key]
        gpus = f", {sum(desk.gpu for desk in desks)} on GPUs" if any(d.gpu for d in desks) else ""
        if len(told.nodes) > 1 or len(told.desks) > _MOST_LISTED:
            at = Text(f"{node or 'here'}: {_workers(len(desks))}{gpus}, {len(busy)} busy")
            workers.add_row(at)
        if len(told.desks) <= _MOST_LISTED:
            for desk in busy:
                workers.add_row(f"{desk.worker}  {desk.what}", spell_seconds(desk.seconds))
    return Group(head, Text(kinds, style="dim"), workers, Text(_room(told), style="dim"))


def line(told: Snapshot) -> str:
    """The same in a line."""
    busy = sum(bool(desk.key) for desk in told.desks)
    failed = f", {told.failed} failed" if told.failed else ""
    return (
        f"{told.finished}/{told.total} done{failed}, about {spell_seconds(told.left_s)} left; "
        f"{busy} of {_workers(len(told.desks))} busy on {len(told.nodes)} node"
        f"{'s' * (len(told.nodes) != 1)}; {_room(told)}"
    )


def _room(told: Snapshot) -> str:
    waiting = f", {_workers(told.pending)} waiting for a place" if told.pending else ""
    return f"{100 * told.utilisation:.0f} % of worker time in tasks{waiting}"


def _workers(num: int) -> str:
    return f"{num} worker{'s' * (num != 1)}"
