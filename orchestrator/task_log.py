"""The log of one task: found by its key, with how it ended, printed and followed."""

import codecs
import shlex
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator._console import DEFAULT_STORE
from orchestrator._problem import readable
from orchestrator.live import drivers
from orchestrator.progress import spell_seconds
from orchestrator.resume import Store
from storage import census
from storage.artifacts import StoreUnwritable
from storage.working import pull
from tasks.logs import log_path

__all__ = ["Standing", "command", "find_task", "print_log", "standing"]

_SHORTEST = 4
_AROUND = string.whitespace + "'\"`"  # a key copied from a table, CSV or JSON
_LISTED = 8
_LOOK_S = 0.5
_PULL_S = 2.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Standing:
    """How a task stands.

    Attributes:
        state: `open` is one that began, of which neither a result nor a failure is kept.
        what: the task in words.
        how: when, where, for how long, with what error.
        tail: the end of its log, where the log itself may be gone.
        inline: whether it ran in the driver's process, so that its prints went elsewhere.
    """

    state: Literal["running", "done", "failed", "open", "never"]
    what: str
    how: str
    tail: str = ""
    inline: bool = False


def command(store: Store, key: str) -> str:
    """The command that shows a task's log."""
    if store.upstream is not None:
        at = f" --store {shlex.quote(store.upstream.uri)}"
    elif store.root == DEFAULT_STORE.absolute():
        at = ""
    else:
        at = f" --store {shlex.quote(str(store.root))}"
    return f"sfumato logs --task {key[:12]}{at}"


def find_task(store: Store, text: str) -> str:
    """The one task that began, ended, failed or is wanted whose key begins with `text`.

    Raises:
        ValueError: if there is none, or several; or if `text` is something else.
    """
    prefix = text.strip(_AROUND).lower()
    if not _SHORTEST <= len(prefix) <= 64 or set(prefix) - set("0123456789abcdef"):
        raise ValueError(
            f"--task '{text}' is not a task key: give {_SHORTEST} to 64 of its digits 0-9 and "
            "a-f, from the first on. `sfumato status NAME` names failed tasks, the column "
            "task_key of the tables all"
        )
    found = _known(store, prefix)
    if len(found) == 1:
        return found.pop()
    if found:
        lines = []
        for key in sorted(found)[:_LISTED]:
            stands = standing(store, key)
            lines.append(f"  {key[:16]}  {stands.what}: {stands.state}")
        more = [f"  and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        listed = "\n".join([*lines, *more])
        raise ValueError(f"{len(found)} tasks begin with '{prefix}'; give more digits:\n{listed}")
    raise ValueError(
        f"no task key begins with '{prefix}' in {store.root}: searched {len(_known(store, ''))} "
        "tasks of its artifacts, tables and logs and of the runs at work. Another store is named "
        "with --store"
    )


def standing(store: Store, key: str) -> Standing:
    """How a task stands, from what is kept of it and from what works now."""
    asked = _row(store, "cells", key)
    done, failed = _row(store, "tasks", key), _row(store, "failures", key)
    what = _words(store, key, {**asked, **(done or failed)})
    for told in drivers(store.root):
        for desk in told.desks:
            if desk.key == key:
                at = f" on {desk.node}" if desk.node else ""
                driver = f"driver {told.host}, process {told.pid}"
                since = spell_seconds(desk.seconds + max(0.0, told.silent_s))
                how = f"by {desk.worker}{at} for {since} ({driver})"
                return Standing("running", desk.what, how, inline=desk.worker == "inline")
    if done and not failed:
        inline = done.get("worker") == "inline"
        how = f"{_when(done)} by {done.get('worker')} on {done.get('device')}"
        how += f", {done.get('duration_s', 0.0):.1f} s"
        state = store.artifacts.state(key)
        how += "" if state == "complete" else f"; its artifact is {state} now"
        return Standing("done", what, how, inline=inline)
    if failed:
        tries = int(failed.get("attempts", 1))
        how = f"{_when(failed)}, {tries} attempt{'s' * (tries != 1)}: {failed.get('error')}"
        return Standing("failed", what, how, tail=str(failed.get("log_tail") or ""))
    if log_path(store.root / "logs", key).exists():
        return Standing("open", what, "neither a result nor a failure of it is kept")
    reason = f", {asked['reason']}" if asked.get("reason") else ""
    return Standing("never", what, f"{asked.get('status', 'not asked for')}{reason}")


def print_log(store: Store, key: str, echo: Callable[[str], None], *, follow: bool) -> None:
    """Print what a task is, how it ended, and what it printed.

    Args:
        store: that has it.
        key: of the task.
        echo: takes text without control characters, line ends in it.
        follow: wait for a running task, and print what it prints meanwhile.
    """
    stands = standing(store, key)
    echo(_heading(key, stands))
    said = False
    for text in _read(store, key, follow=follow and stands.state == "running"):
        said = True
        echo(_shown(text))
    if follow and stands.state == "running":
        stands = standing(store, key)
        echo(_heading(key, stands))
    if said:
        return
    if stands.tail:
        echo("the log is gone; its end was kept:\n" + _shown(stands.tail.rstrip() + "\n"))
    elif stands.state == "never":
        echo("it never ran, so there is no log\n")
    elif stands.inline:
        echo("it runs or ran in the driver's own process: what it prints is on that terminal\n")
    else:
        echo("it printed nothing so far\n" if stands.state == "running" else "it printed nothing\n")


def _known(store: Store, prefix: str) -> set[str]:
    """Keys that begin so: of artifacts, tables, cells, logs and what runs now."""
    census.check_store(store.root)
    found = census.find_keys(store.root, prefix)
    found |= set(store.tables.frame("cells")["task_key"].dropna())
    found |= {desk.key for told in drivers(store.root) for desk in told.desks}
    found |= {path.stem for path in store.root.glob(f"logs/*/{prefix}*.log")}
    return {key for key in found if key and key.startswith(prefix)}


def _row(store: Store, table: str, key: str) -> Mapping[str, Any]:
    """A task's row without nulls; empty if there is none."""
    if table == "cells":
        cells = store.tables.frame("cells")
        frame = cells[cells["task_key"] == key]
    else:
        frame = store.tables.rows(table, [key])
    rows = frame.to_dict("records")
    return {str(n): v for n, v in rows[0].items() if v is not None and v == v} if rows else {}


def _words(store: Store, key: str, row: Mapping[str, Any]) -> str:
    told = census.description(store.root, key) or {}
    kind = row.get("kind") or told.get("kind") or "task"
    name = row.get("name") or row.get("attack") or row.get("defense") or ""
    seed = f"seed {row['seed']}" if "seed" in row else ""
    return " ".join(filter(None, (kind, name, row.get("dataset", ""), seed)))


def _when(row: Mapping[str, Any]) -> str:
    made = row.get("created_at")
    return f"{made:%Y-%m-%d %H:%M:%S} UTC" if made is not None else "at an unknown time"


def _heading(key: str, stands: Standing) -> str:
    words = {"open": "did not end", "never": "never ran"}.get(stands.state, stands.state)
    return readable(f"{stands.what}, {key[:12]}: {words} {stands.how}".rstrip()) + "\n"


def _shown(text: str) -> str:
    # A bar that redraws itself would be one endless line.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(readable(line.expandtabs(), sys.maxsize) for line in lines)


def _read(store: Store, key: str, *, follow: bool) -> Iterator[str]:
    """A log in pieces of text; with `follow` until its task runs no more."""
    path = log_path(store.root / "logs", key)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    position, pulled, last, runs = 0, time.monotonic(), "\n", follow
    while True:
        if runs:  # asked before what is there is read, so that nothing is missed in the end
            if time.monotonic() - pulled > _PULL_S:
                with suppress(StoreUnwritable):
                    pull(store.root)
                pulled = time.monotonic()
            runs = _runs(store, key)
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(position)
            while content := file.read(_CHUNK):
                position += len(content)
                if text := decoder.decode(content):
                    last = text[-1]
                    yield text
        if not runs:
            break
        time.sleep(_LOOK_S)
    if last != "\n":
        yield "\n"


def _runs(store: Store, key: str) -> bool:
    return any(desk.key == key for told in drivers(store.root) for desk in told.desks)
