"""What the person sees while tasks run: a live display on a terminal, plain lines elsewhere."""

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator._places import Places
from orchestrator.resume import Prepared
from tasks.base import Task

__all__ = ["Lines", "Screen", "for_console", "spell_seconds"]

_LINE_EVERY_S = 5.0


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


class _Count:
    """What is done of what was planned, and when it will end."""

    def __init__(self) -> None:
        self.total = self.cached = self.finished = self.failed = 0
        self.kinds: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.open: Counter[tuple[str, str]] = Counter()
        self.expected: dict[tuple[str, str], float] = {}
        self.measured: dict[tuple[str, str], tuple[int, float]] = {}
        self.running: dict[str, tuple[Task, float]] = {}
        self.began = time.monotonic()
        self.places: Places | None = None
        self.known: set[str] = set()

    def add(self, prepared: Prepared) -> None:
        """Tasks to be done, the first or more of them; what is known is not counted again."""
        tasks = prepared.plan.tasks
        if self.places is None:
            self.places, self.began = Places(prepared.plan), time.monotonic()
        else:
            self.places.add(prepared.plan)
        new = [key for key in prepared.needed if key not in self.known]
        self.total += len(new)
        self.cached += len(tasks.keys() - self.known - set(new))
        self.known |= tasks.keys()
        for key in new:
            like = (tasks[key].kind, tasks[key].name)
            self.open[like] += 1
            self.expected[like] = prepared.seconds[key]
            self.left[tasks[key].kind] += 1
            self.kinds[tasks[key].kind] += 1

    def started(self, worker: str, task: Task) -> None:
        self.running[worker] = (task, time.monotonic())

    def ended(self, worker: str, task: Task, seconds: float | None) -> None:
        """Note an end; `seconds` is None for a failure."""
        self.running.pop(worker, None)
        self.left[task.kind] -= 1
        like = (task.kind, task.name)
        self.open[like] = max(0, self.open[like] - 1)  # a task may have to run once more
        if seconds is None:
            self.failed += 1
            return
        self.finished += 1
        count, total = self.measured.get(like, (0, 0.0))
        self.measured[like] = (count + 1, total + seconds)

    def named(self, task: Task) -> str:
        assert self.places is not None, "begin() comes first"
        return self.places.named(task.key)

    def time_left(self) -> str:
        """From the durations of alike tasks measured so far, spread over the workers at work."""
        left_s = 0.0
        for like, count in self.open.items():
            measured, total = self.measured.get(like, (0, 0.0))
            left_s += count * (total / measured if measured else self.expected[like])
        return spell_seconds(left_s / max(1, len(self.running)))


class Lines:
    """Plain lines for job logs: a line every few seconds, each failure and note at once."""

    def __init__(self, console: Console) -> None:
        self._console, self._count, self._said = console, _Count(), 0.0

    def begin(self, prepared: Prepared) -> None:
        """Say what will run."""
        self._count.add(prepared)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._count.kinds.items())
        self._say(f"{self._count.total} tasks to run ({kinds}), {self._count.cached} in the store")

    def grow(self, prepared: Prepared) -> None:
        """Count what came to it; says nothing."""
        self._count.add(prepared)

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
                f"{count.finished}/{count.total} done, about {count.time_left()} left "
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
        self._console, self._count = console, _Count()
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
        count = self._count
        done = count.finished + count.failed
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, count.total), completed=done, width=30),
            f"{done}/{count.total} tasks",
            f"{count.cached} in the store",
            Text(f"{count.failed} failed", style="red") if count.failed else "",
            f"{spell_seconds(time.monotonic() - count.began)} gone",
            f"about {count.time_left()} left",
        )
        kinds = "  ".join(f"{k} {n - count.left[k]}/{n}" for k, n in count.kinds.items())
        workers = Table.grid(padding=(0, 2))
        for worker, (task, since) in sorted(count.running.items()):
            what = f"{task.kind} {task.name}"
            where = f"{task.dataset} seed {task.seed}"
            workers.add_row(worker, what, where, spell_seconds(time.monotonic() - since))
        return Group(head, Text(kinds, style="dim"), workers)
