"""Ray actors, one per CPU core or per share of a GPU; reports and replaces lost ones."""

import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError, RaySystemError, RayTaskError

from cluster.base import ClusterUnreachable, Event, TaskFailed, WorkerJoined, WorkerLost
from cluster.inline import attempt
from cluster.ray_start import ONE_THREAD, join, start_local

__all__ = ["RayPool"]

_PING_S = 1.0
_INSTALL = (
    "Install Sfumato, the same version, into the Python environment of every node "
    "(a driver that finds it only through its working directory or sys.path is not enough)."
)


class _Worker:
    """What runs inside a worker's process."""

    def node(self) -> str:
        return str(ray.util.get_node_ip_address())

    def prepare(
        self, core: int | None, visible: Path | None, setup: Callable[[], None] | None
    ) -> str:
        """Make ready for work; returns what is wrong, or an empty string."""
        if visible is not None and not visible.is_dir():
            return (
                f"node {self.node()} does not see the store {visible}: put the store on a disk "
                "that every node mounts at the same path, or use workers on this machine only"
            )
        if core is not None and hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[core % len(allowed)]})
        if setup is not None:
            setup()
        return ""

    def run(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> Event:
        return attempt(worker, key, call, *args)

    def ping(self) -> None:
        """Answered by a living worker."""


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's way of ending: Ray puts its own in place, which ends without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Slot:
    """A worker as the driver sees it; `ref` is the one call it has outstanding, if any."""

    name: str
    actor: Any
    ref: Any
    doing: Literal["placing", "preparing", "idle", "running"] = "placing"
    node: str = ""
    core: int = -1
    key: str = ""
    pinged: float = 0.0


class RayPool:
    """An executor whose workers are Ray actors.

    A worker that dies, hangs up or is put out by Ray is reported lost with a one-line reason, made
    sure to be dead, and replaced under a fresh name. CPU workers pin themselves to a core each
    and are told to use one thread, because Ray does neither.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        logical_gpus: int | None = None,
        setup: Callable[[], None] | None = None,
        visible: Path | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Nothing starts before `start`.

        Args:
            workers: how many; default one per CPU core, or as many as the GPUs hold.
            address: "host:port" of a running cluster's head, or "auto" for the cluster this
                machine belongs to; None starts Ray on this machine, reachable from it only.
            gpus_per_worker: share of a GPU a worker owns, 0 for CPU workers. A whole number, or
                below 1. GPU workers claim no CPU and are not pinned.
            logical_gpus: how many GPUs a local start pretends to have; default the real ones.
            setup: called once in each worker before it joins; must be importable there.
            visible: absolute folder that every worker must see.
            start_timeout_s: for connecting, and again for the first worker to join.

        Raises:
            ValueError: if a number is out of range or `visible` is relative.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker % 1):
            raise ValueError(
                f"gpus_per_worker is {gpus_per_worker}; it must be between 0 and 1, or whole"
            )
        if visible is not None and not visible.is_absolute():
            raise ValueError(f"the folder {visible} must be absolute: workers run elsewhere")
        self._workers, self._address, self._gpus = workers, address, gpus_per_worker
        self._logical_gpus, self._setup, self._visible = logical_gpus, setup, visible
        self._start_timeout_s = start_timeout_s
        self._slots: dict[str, _Slot] = {}
        self._num_named = self._num_wanted = self._losses = 0
        self._owns_ray = self._joined = False
        self._reaper: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self._unreported = ""

    def start(self) -> None:
        """Connect and ask for workers; returns before they have joined.

        Ray that is running in this process already is used and left running.

        Raises:
            ClusterUnreachable: if Ray cannot be started or reached, or has no room for a worker.
        """
        if not ray.is_initialized():
            with _own_sigterm():
                if self._address is None:
                    self._reaper = start_local(self._workers, self._logical_gpus)
                else:
                    join(self._address, self._start_timeout_s)
            self._owns_ray = True
        try:
            self._num_wanted = self._workers or self._capacity()
        except BaseException:
            self.close()
            raise
        self._deadline = time.monotonic() + self._start_timeout_s
        for _ in range(self._num_wanted):
            self._add()

    def submit(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` on an idle worker.

        `call`, its arguments and its result travel through Ray; `call` must be importable there.

        Raises:
            ValueError: if the worker is unknown or not idle. A worker whose loss has not been
                collected from `events` yet still counts as idle.
        """
        slot = self._slots.get(worker)
        if slot is None or slot.doing != "idle":
            idle = [s.name for s in self._slots.values() if s.doing == "idle"]
            raise ValueError(f"worker {worker!r} is not idle; idle workers: {idle}")
        slot.doing, slot.key = "running", key
        slot.ref = slot.actor.run.remote(worker, key, call, *args)

    def events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits up to `timeout_s` for the first event.

        Raises:
            ClusterUnreachable: if no worker joins in time, a worker cannot be made ready, or
                workers keep dying without any task finishing.
        """
        if self._unreported:
            raise ClusterUnreachable(self._unreported)
        happened: list[Event] = []
        until = time.monotonic() + timeout_s
        while True:
            self._ping_idle()
            slots = {slot.ref: slot for slot in self._slots.values() if slot.ref is not None}
            wait_s = min(max(0.0, until - time.monotonic()), _PING_S)
            if slots:
                refs = list(slots)
                if ray.wait(refs, num_returns=1, timeout=wait_s)[0]:
                    for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                        happened += self._collect(slots[ref])
            else:
                time.sleep(wait_s)
            if happened or time.monotonic() >= until:
                break
        if not self._joined and time.monotonic() > self._deadline:
            raise ClusterUnreachable(
                f"no worker came up within {self._start_timeout_s:.0f} s. Asked for "
                f"{self._num_wanted} x {self._share()}; the cluster has free: "
                f"{_resources(ray.available_resources())}, in all: "
                f"{_resources(ray.cluster_resources())}. Stop what occupies it, ask for fewer or "
                "smaller workers, or allow more time."
            )
        return happened

    def close(self) -> None:
        """Kill the workers; stop Ray if `start` started it, disconnect if it connected."""
        for slot in self._slots.values():
            _kill(slot.actor)
        self._slots = {}
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()
        if self._reaper is not None:
            self._reaper.communicate()  # closes its pipe: from here on nothing is left
            self._reaper = None

    # -- one worker ---------------------------------------------------------------------------

    def _add(self) -> None:
        name = f"w{self._num_named}"
        self._num_named += 1
        actor = (
            ray.remote(_Worker)
            .options(
                num_cpus=0 if self._gpus else 1,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1,
                # A local Ray was started with these. Elsewhere each worker's process must be
                # started for its actor, which takes some 2 s more.
                runtime_env={} if self._reaper else {"env_vars": ONE_THREAD},
            )
            .remote()
        )
        self._slots[name] = _Slot(name, actor, actor.node.remote())

    def _ping_idle(self) -> None:
        # An actor's death shows only in a call to it, and an idle worker has none outstanding.
        now = time.monotonic()
        for slot in self._slots.values():
            if slot.doing == "idle" and slot.ref is None and now - slot.pinged >= _PING_S:
                slot.ref, slot.pinged = slot.actor.ping.remote(), now

    def _collect(self, slot: _Slot) -> list[Event]:
        """Take the answer to the slot's outstanding call, and move the slot on."""
        doing, ref, slot.ref = slot.doing, slot.ref, None
        try:
            answer = ray.get(ref)
        except (RayTaskError, RaySystemError) as error:
            # What attempt() could not catch: a call, argument or result that cannot be (un)pickled.
            if doing == "running":
                slot.doing = "idle"
                self._losses = 0
                text = re.sub(r"\x1b\[\d+m", "", str(error))  # Ray colours its tracebacks
                return [TaskFailed(slot.name, slot.key, _task_line(error), text)]
            raise ClusterUnreachable(
                f"worker {slot.name} on node {slot.node or '?'} could not be set up: "
                f"{_task_line(error)}"
            ) from error
        except RayError as error:
            return [self._lose(slot, error)]
        except Exception as error:  # unpickling ran the result's own code, here
            slot.doing = "idle"
            line = f"{type(error).__name__}: {error} (while reading the result in the driver)"
            return [TaskFailed(slot.name, slot.key, line, traceback.format_exc())]
        if doing == "placing":
            taken = {s.core for s in self._slots.values() if s.node == answer}
            slot.core = next(i for i in range(len(taken) + 1) if i not in taken)
            slot.node, slot.doing = answer, "preparing"
            core = None if self._gpus else slot.core
            slot.ref = slot.actor.prepare.remote(core, self._visible, self._setup)
            return []
        if doing == "preparing":
            if answer:
                raise ClusterUnreachable(answer)
            slot.doing, slot.pinged, self._joined = "idle", time.monotonic(), True
            return [WorkerJoined(slot.name)]
        if doing == "running":
            slot.doing = "idle"
            self._losses = 0
            return [answer]
        return []

    def _lose(self, slot: _Slot, error: RayError) -> WorkerLost:
        reason = _lost_line(error)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise ClusterUnreachable(f"worker {slot.name} could not start: {reason}. {_INSTALL}")
        # An unavailable actor may still be computing; a lost worker must never come back.
        _kill(slot.actor)
        del self._slots[slot.name]
        self._losses += 1
        if self._losses > 3 * self._num_wanted + 3:
            # Told at the next call, so that the events of this one are not lost.
            self._unreported = (
                f"{self._losses} workers in a row died before any task finished; the last, "
                f"{slot.name} on node {slot.node or '?'}: {reason}. Look for a lack of memory "
                "(fewer workers help) or a broken node, then run the same command again."
            )
        else:
            self._add()
        return WorkerLost(slot.name, reason)

    # -- the cluster --------------------------------------------------------------------------

    def _capacity(self) -> int:
        """How many workers the cluster holds, counted node by node."""
        num = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            if self._gpus:
                # A share lies on one device: of 0.4, two fit, not two and a half.
                per_gpu = int(1 / self._gpus + 1e-9) if self._gpus <= 1 else 1 / self._gpus
                num += int(has.get("GPU", 0) * per_gpu + 1e-9)
            else:
                num += int(has.get("CPU", 0))
        if self._address is None and not self._gpus and hasattr(os, "sched_getaffinity"):
            num = min(num, len(os.sched_getaffinity(0)))  # taskset, batch systems: Ray looks past
        if num < 1:
            raise ClusterUnreachable(
                f"the cluster has no room for a worker of {self._share()}: it has "
                f"{_resources(ray.cluster_resources())}. Ask for less, or use other nodes."
            )
        return num

    def _share(self) -> str:
        return f"{self._gpus:g} GPU" if self._gpus else "1 CPU"


def _kill(actor: Any) -> None:
    with suppress(RayError, RuntimeError, ValueError):  # gone already, or the cluster is
        ray.kill(actor, no_restart=True)


def _task_line(error: RayError) -> str:
    cause = getattr(error, "cause", None)
    cause = error if cause is None else cause
    message = str(cause).strip()
    if "No module named" in message or "ImportError" in message:
        return f"{message.rpartition(chr(10))[2]}. {_INSTALL}"
    return f"{type(cause).__name__}: {message.partition(chr(10))[0]}"


def _lost_line(error: RayError) -> str:
    # Ray indents identifiers and adds advice for people running Ray by hand; the rest says why.
    text = " ".join(line for line in str(error).splitlines() if not line.startswith("\t"))
    text = text.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0]
    return f"{type(error).__name__}: {text[:400]}"


def _resources(of: dict[str, float]) -> str:
    return ", ".join(f"{of.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
