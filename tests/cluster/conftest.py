"""Processes as the kernel knows them."""

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], set[int]]:
    """Of a process id: its children, their children, and so on."""

    def find(pid: int) -> set[int]:
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found, front = set[int](), {pid}
        while front:
            front = {child for child, parent in parents.items() if parent in front}
            found |= front
        return found

    return find


@pytest.fixture(scope="session")
def await_gone() -> Callable[[set[int], float], set[int]]:
    """Wait for processes to end; gives those that did not in so many seconds."""

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait(pids: set[int], seconds: float) -> set[int]:
        until = time.monotonic() + seconds
        while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < until:
            select.select([], [], [], 0.1)
        return left

    return wait
