"""Who works on an experiment now, seen from another process: once, or until they have ended."""

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.config import Experiment
from orchestrator.count import Snapshot
from orchestrator.live import drivers, gone
from orchestrator.plan import make_plan
from orchestrator.progress import draw, line, spell_seconds
from orchestrator.resume import Store, compare
from storage.artifacts import StoreUnwritable
from storage.working import pull

__all__ = ["is_finished", "last_written", "print_drivers", "watch"]

_EVERY_S = 2.0
_LINE_EVERY_S = 5.0
_BEGIN_EVERY_S = 0.5  # a short run must not be over before it is seen


def print_drivers(console: Console, root: Path, experiment: str) -> None:
    """Print how each driver of an experiment stands, or that there is none."""
    found = drivers(root, experiment)
    if not found:
        console.print("nobody works on it now")
    console.print(_drawn(found), end="")
    for told in gone(root, experiment):
        console.print(_lost(told), soft_wrap=True)


def watch(
    console: Console,
    root: Path,
    experiment: str,
    *,
    written: Callable[[], Hashable],
    finished: Callable[[], bool],
) -> None:
    """Show how the drivers of an experiment stand until none of them is left.

    If there is none at first, waits for one, or until the experiment is finished. Reads only the
    small files that drivers write, and for a store at an URI what changed there.

    Args:
        console: a terminal is redrawn, elsewhere a line is printed every few seconds.
        root: of the store.
        experiment: its name.
        written: a value that changes when somebody has written results of it.
        finished: whether it lacks nothing; costs a look at all its artifacts.
    """
    seen = _Seen(console, root, experiment)
    found = seen.look()
    if not found:
        if finished():
            return
        console.print("nobody works on it now: waiting until somebody does; Ctrl-C ends this")
        last = written()
        while not (found := seen.look()):
            time.sleep(_BEGIN_EVERY_S)
            if (now := written()) != last:
                last = now
                if not drivers(root, experiment) and finished():  # a short run
                    return
    show = seen.redraw if console.is_terminal else seen.say
    show(found)
    for told in gone(root, experiment):
        if (told.host, told.pid) in seen.ever:
            console.print(_lost(told), soft_wrap=True)


def last_written(root: Path, experiment: str) -> Hashable:
    """What changes with the cells and trials that are kept."""
    places = [root / "tables" / "trials", *root.glob(f"tables/cells/{experiment}[@.]*")]
    found = []
    for place in sorted(places):
        with suppress(OSError):
            found.append((str(place), place.stat().st_mtime_ns))
    return tuple(found)


def is_finished(experiment: Experiment, data_dir: Path | None, root: Path) -> bool:
    """Whether nothing is left to run: of the experiment, or else of its search."""
    store = Store(root)
    if not compare(make_plan(experiment, data_dir), store, repair=False).needed:
        return True
    if experiment.tune is None:
        return False
    from orchestrator.tune import study_name

    trials = store.tables.frame("trials")
    mine = trials.loc[trials["study"] == study_name(experiment, data_dir), "state"]
    return int((mine != "running").sum()) >= experiment.tune.trials


class _Seen:
    """Looks at the drivers of an experiment, and shows them."""

    def __init__(self, console: Console, root: Path, experiment: str) -> None:
        self._console, self._root, self._experiment = console, root, experiment
        self._away = ""
        self._pulled = time.monotonic()
        self.ever: set[tuple[str, int]] = set()

    def look(self) -> Sequence[Snapshot]:
        if time.monotonic() - self._pulled >= _EVERY_S:
            self._pull()
        found = drivers(self._root, self._experiment)
        self.ever |= {(told.host, told.pid) for told in found}
        return found

    def redraw(self, found: Sequence[Snapshot]) -> None:
        """Redraw them on a terminal until there is none."""
        with Live(
            _drawn(found), console=self._console, auto_refresh=False, transient=True
        ) as screen:
            while found:
                screen.update(_drawn(found), refresh=True)
                time.sleep(_EVERY_S)
                found = self.look()

    def say(self, found: Sequence[Snapshot]) -> None:
        """Print a line now and then until there is none."""
        said: dict[tuple[str, int], tuple[str, float]] = {}
        while found:
            for told in found:
                now, at, text = time.monotonic(), (told.host, told.pid), line(told)
                before, when = said.get(at, ("", -_LINE_EVERY_S))
                if text != before and (not before or now - when >= _LINE_EVERY_S):
                    said[at] = (text, now)
                    who = f"{told.host}, process {told.pid}: " if len(self.ever) > 1 else ""
                    self._console.print(Text(who + text), soft_wrap=True)
            time.sleep(_EVERY_S)
            found = self.look()

    def _pull(self) -> None:
        try:
            pull(self._root)
            self._away = ""
        except StoreUnwritable as error:  # it may come back
            if not self._away:
                self._away = str(error)
                self._console.print(Text(f"warning: {error}"), soft_wrap=True)
        self._pulled = time.monotonic()


def _drawn(found: Sequence[Snapshot]) -> Group:
    drawn: list[RenderableType] = []
    for told in found:
        drawn += [Text(f"driver on {told.host}, process {told.pid}:"), draw(told)]
    return Group(*drawn)


def _lost(told: Snapshot) -> Text:
    return Text(
        f"the driver on {told.host}, process {told.pid}, was killed or lost "
        f"{spell_seconds(max(0.0, told.silent_s))} ago after {told.finished} of {told.total} "
        "tasks; the same command resumes"
    )
