"""What a check of `sfumato doctor` is given, and what it finds."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """A line of the examination; `remedy` says what to do about what is no `ok`."""

    what: str
    state: Literal["ok", "note", "FAIL"]
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Place:
    """What is examined.

    Attributes:
        store: root of the store, absolute; it need not exist.
        data_dir: the data folder, or None.
        deep: read every file of the store and of the data.
        quick: start no Ray.
        told: called with a line now and then while much is read.
    """

    store: Path
    data_dir: Path | None = None
    deep: bool = False
    quick: bool = False
    told: Callable[[str], None] = lambda line: None


Check = Callable[[Place], Iterator[Finding]]


def probe(code: str, timeout_s: float) -> dict[str, Any]:
    """Run Python code that prints a JSON object, in a process of its own.

    A broken binary package does not raise, it ends the process.

    Raises:
        RuntimeError: in one line, how it ended.
    """
    # -P: a file of the folder we are called from must not pass for a package.
    command = [sys.executable, "-P", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"gave no answer in {timeout_s:.0f} s") from None
    if done.returncode < 0:
        raise RuntimeError(f"ended its process ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}")
    told: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return told


def size(nbytes: float) -> str:
    """Bytes as a person says them: 512 B, 1.5 KiB, 3.0 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
