"""Ray actors, one per CPU core or per share of a GPU; reports and replaces lost ones."""

import os
import re
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RaySystemError, RayTaskError

from cluster._ray_errors import INSTALL, lost_line, no_memory, resources, task_line
from cluster._ray_worker import Place, Ready, Setup, Shared, Worker, ask, kill
from cluster.base import ClusterUnreachable, Event, TaskFailed, WorkerJoined, WorkerLost
from cluster.ray_start import ONE_THREAD, join, own_sigterm, start_local

__all__ = ["RayPool"]

T = TypeVar("T")
_PING_S = 1.0
_FEW = 8
_LOOK_S = 1.0  # how often new nodes are looked for


@dataclass
class _Slot:
    """A worker as the driver sees it; `ref` is the one call it has outstanding, if any."""

    name: str
    actor: Any
    ref: Any
    gpus: float
    doing: Literal["placing", "preparing", "idle", "running"] = "placing"
    place: Place | None = None
    core: int = -1
    key: str = ""
    pinged: float = 0.0


class RayPool:
    """An executor whose workers are Ray actors.

    A worker that dies, hangs up or is put out by Ray is reported lost with a one-line reason, made
    sure to be dead, and replaced under a fresh name. CPU workers pin themselves to a core each
    and are told to use one thread, because Ray does neither. Workers that find no place wait for
    one, which is what makes a cluster grow that can; without a number of workers, each node that
    joins later gets some too.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        cpu_workers: int | None = 0,
        logical_gpus: int | None = None,
        setup: Setup | None = None,
        visible: Path | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Nothing starts before `start`.

        Args:
            workers: how many; default one per CPU core, or as many as the GPUs hold, and as
                many more as nodes that join later hold.
            address: "host:port" of a running cluster's head, or "auto" for the cluster this
                machine belongs to; None starts Ray on this machine, reachable from it only.
            gpus_per_worker: share of a GPU a worker owns, 0 for CPU workers. A whole number, or
                below 1. GPU workers claim no CPU and are not pinned.
            cpu_workers: how many without a GPU work beside those with one; None for the cores
                that these leave. Nothing without GPU workers.
            logical_gpus: how many GPUs a local start pretends to have; default the real ones.
            setup: called once in each worker before it joins; must be importable there. May give
                the bytes of memory of the device that the worker owns.
            visible: absolute path; each worker says whether it is there (`WorkerJoined.sees`).
            start_timeout_s: for connecting, and again for the first worker to join.

        Raises:
            ValueError: if a number is out of range or `visible` is relative.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        if cpu_workers is not None and cpu_workers < 0:
            raise ValueError(f"cpu_workers is {cpu_workers}; it must be at least 0")
        if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker % 1):
            raise ValueError(
                f"gpus_per_worker is {gpus_per_worker}; it must be between 0 and 1, or whole"
            )
        if visible is not None and not visible.is_absolute():
            raise ValueError(f"the path {visible} must be absolute: workers run elsewhere")
        self._workers, self._address, self._gpus = workers, address, gpus_per_worker
        self._cpu_workers = cpu_workers if gpus_per_worker else 0
        self._logical_gpus, self._setup, self._visible = logical_gpus, setup, visible
        self._start_timeout_s = start_timeout_s
        self._slots: dict[str, _Slot] = {}
        self._lost_at: dict[str, str] = {}  # worker -> node
        self._names: dict[str, str] = {}  # node -> what people call it
        self._dropped: list[WorkerLost] = []
        self._unfit: dict[str, str] = {}  # node -> why no worker is to be there
        self._shared: list[Any] = []
        self._num_named = self._num_wanted = self._losses = 0
        self._looked = 0.0
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
            with own_sigterm():
                if self._address is None:
                    self._reaper = start_local(self._workers, self._logical_gpus)
                else:
                    join(self._address, self._start_timeout_s)
            self._owns_ray = True
        try:
            self._grow(must=True)
        except BaseException:
            self.close()
            raise
        self._deadline = time.monotonic() + self._start_timeout_s

    def submit(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` on an idle worker.

        `call`, its arguments and its result travel through Ray; `call` must be importable there.

        Raises:
            ValueError: if the worker is unknown or not idle. A worker whose loss has not been
                collected from `events` yet still counts as idle; nothing is run there.
        """
        slot = self._slots.get(worker)
        if slot is None and any(lost.worker == worker for lost in self._dropped):
            return
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
        if self._unreported and not self._dropped:
            raise ClusterUnreachable(self._unreported)
        happened: list[Event] = [*self._dropped]
        self._dropped = []
        until = time.monotonic() + (0 if happened else timeout_s)
        while True:
            self._ping_idle()
            self._grow()
            slots = {slot.ref: slot for slot in self._slots.values() if slot.ref is not None}
            wait_s = min(max(0.0, until - time.monotonic()), _PING_S)
            if slots:
                refs = list(slots)
                ready, _ = ray.wait(refs, num_returns=1, timeout=wait_s, fetch_local=False)
                if ready:
                    if len(refs) > _FEW:  # of a few, looking again costs more than it finds
                        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
                    for ref in ready:
                        slot = slots[ref]
                        if slot.name in self._slots:  # not dropped a moment ago
                            self._slots[slot.name] = self._slots.pop(slot.name)  # the others' turn
                            happened += self._collect(slot)
            else:
                time.sleep(wait_s)
            if happened or time.monotonic() >= until:
                break
        if not self._joined and time.monotonic() > self._deadline:
            raise ClusterUnreachable(
                f"no worker came up within {self._start_timeout_s:.0f} s. Asked for "
                f"{self._num_wanted} x {self._portion()}; the cluster has free: "
                f"{resources(ray.available_resources())}, in all: "
                f"{resources(ray.cluster_resources())}. Stop what occupies it, ask for fewer or "
                "smaller workers, or allow more time."
            )
        return happened

    @property
    def pending(self) -> int:
        """How many workers wait for a place in the cluster: its demand for more nodes."""
        return sum(slot.doing == "placing" for slot in self._slots.values())

    def drop(self, worker: str, reason: str, *, node: bool = False) -> None:
        """Kill a worker; the next `events` reports it lost. Nothing if it is unknown.

        With `node` its node gets no other: the workers there are killed too, and one that comes to
        be placed there is given up.
        """
        slot = self._slots.get(worker)
        if slot is None:
            return
        also = [slot]
        if node and slot.place is not None:
            at = slot.place.node
            self._unfit[at] = reason
            also = [s for s in self._slots.values() if s.place is not None and s.place.node == at]
        for other in also:
            self._replace(other, again=not node)
            self._dropped.append(WorkerLost(other.name, reason))

    def share(self, thing: T) -> T:
        """A stand-in whose method calls reach a copy of `thing` on this machine."""
        node = str(ray.get_runtime_context().get_node_id())
        stand_in, actor = Shared.of(thing, node, self._environment())
        self._shared.append(actor)
        return stand_in

    def beside(self, worker: str, call: Callable[..., T], *args: Any) -> Callable[[], T | None]:
        """Begin `call(*args)` on the node where a worker is or was, in a process of its own."""
        slot = self._slots.get(worker)
        place = slot.place if slot is not None else None
        node = self._lost_at.get(worker) if place is None else place.node
        return ask(node, call, *args) if node is not None else lambda: None

    def close(self) -> None:
        """Kill the workers; stop Ray if `start` started it, disconnect if it connected."""
        for actor in [*(slot.actor for slot in self._slots.values()), *self._shared]:
            kill(actor)
        self._slots, self._shared = {}, []
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()
        if self._reaper is not None:
            self._reaper.communicate()  # closes its pipe: from here on nothing is left
            self._reaper = None

    # -- one worker ---------------------------------------------------------------------------

    def _add(self, gpus: float) -> None:
        name = f"w{self._num_named}"
        self._num_named += 1
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=0 if gpus else 1,
                num_gpus=gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=1,
                runtime_env=self._environment(),
            )
            .remote()
        )
        self._slots[name] = _Slot(name, actor, actor.place.remote(), gpus)

    def _environment(self) -> dict[str, Any]:
        # A local Ray was started with these. Elsewhere each worker's process must be
        # started for its actor, which takes some 2 s more.
        return {} if self._reaper else {"env_vars": ONE_THREAD}

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
                text = re.sub(r"\x1b\[\d+m", "", str(error))  # Ray colours its tracebacks
                return [TaskFailed(slot.name, slot.key, task_line(error), text)]
            if self._joined and slot.place is not None:  # others work: this node is at fault
                self.drop(slot.name, task_line(error), node=True)
                return []
            raise ClusterUnreachable(
                f"worker {slot.name} on node {self._called(slot.place)} could not be set up: "
                f"{task_line(error)}"
            ) from error
        except RayError as error:
            return [self._lose(slot, error)]
        except Exception as error:  # unpickling ran the result's own code, here
            slot.doing = "idle"
            line = f"{type(error).__name__}: {error} (while reading the result in the driver)"
            return [TaskFailed(slot.name, slot.key, line, traceback.format_exc())]
        if doing == "placing" and answer.node in self._unfit:
            self._replace(slot, again=False)
            return []
        if doing == "placing":
            taken = {s.core for s in self._slots.values() if s.place and s.place.ip == answer.ip}
            slot.core = next(i for i in range(len(taken) + 1) if i not in taken)
            slot.place, slot.doing = answer, "preparing"
            core = None if slot.gpus else slot.core
            slot.ref = slot.actor.prepare.remote(core, self._visible, self._setup)
            return []
        if doing == "preparing":
            slot.doing, slot.pinged = "idle", time.monotonic()
            self._joined |= slot.gpus == self._gpus  # of those that were asked for
            self._losses = 0
            return [self._joining(slot, answer)]
        if doing == "running":
            slot.doing = "idle"
            return [answer]
        return []

    def _joining(self, slot: _Slot, ready: Ready) -> WorkerJoined:
        place = slot.place
        assert place is not None, "it was placed before it was made ready"
        there = next((node for node in ray.nodes() if node["NodeID"] == place.node), None)
        memory = int(there["Resources"].get("memory", 0)) if there is not None else 0
        room = f"{place.node} GPU {','.join(place.gpus)}" if slot.gpus else place.node
        return WorkerJoined(
            slot.name,
            node=self._called(place),
            gpu=bool(slot.gpus),
            room=room,
            room_bytes=ready.device_bytes if slot.gpus else memory,
            sees=ready.sees,
        )

    def _called(self, place: Place | None) -> str:
        """A node for people: its address, with the beginning of its id if another has that."""
        if place is None:
            return "?"
        if place.node not in self._names:
            taken = place.ip in self._names.values()
            self._names[place.node] = f"{place.ip}/{place.node[:6]}" if taken else place.ip
        return self._names[place.node]

    def _lose(self, slot: _Slot, error: RayError) -> WorkerLost:
        reason = lost_line(error)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise ClusterUnreachable(f"worker {slot.name} could not start: {reason}. {INSTALL}")
        node, was_running = self._called(slot.place), slot.doing == "running"
        # One that dies in a task is the task's doing, which is given up after a few of them.
        self._losses += not was_running
        self._replace(slot)
        if self._losses > 3 * self._num_wanted + 3:
            # Told at the next call, so that the events of this one are not lost.
            self._unreported = (
                f"{self._losses} workers in a row died without work; the last, "
                f"{slot.name} on node {node}: {reason}. Look for a lack of memory "
                "(fewer workers help) or a broken node, then run the same command again."
            )
        return WorkerLost(slot.name, reason, out_of_memory=no_memory(error))

    def _replace(self, slot: _Slot, *, again: bool = True) -> None:
        # An unavailable actor may still be computing; a lost worker must never come back.
        kill(slot.actor)
        del self._slots[slot.name]
        if slot.place is not None:
            self._lost_at[slot.name] = slot.place.node
        if again:
            self._add(slot.gpus)
        elif not self._slots:
            self._unreported = "no node is left to work on: " + "; ".join(self._unfit.values())

    # -- the cluster --------------------------------------------------------------------------

    def _grow(self, *, must: bool = False) -> None:
        """Ask for the workers that were wanted, or for as many as there is room for by now."""
        if not must and (self._workers is not None or time.monotonic() < self._looked + _LOOK_S):
            return
        self._looked = time.monotonic()
        fits, beside = self._capacity()
        local = self._address is None
        if must and not fits and (self._workers is None or (local and self._gpus)):
            raise ClusterUnreachable(
                f"the cluster has no room for a worker of {self._portion()}: it has "
                f"{resources(ray.cluster_resources())}. Ask for less, or use other nodes."
            )
        wanted = {self._gpus: self._workers or fits}
        if self._gpus:
            wanted[0.0] = beside if self._cpu_workers is None else self._cpu_workers
        for gpus, num in wanted.items():
            there = sum(slot.gpus == gpus for slot in self._slots.values())
            for _ in range(num - there):
                self._add(gpus)
        self._num_wanted = len(self._slots)

    def _capacity(self) -> tuple[int, int]:
        """How many workers the cluster holds, counted node by node, and how many cores are left."""
        num = left = 0
        for node in ray.nodes():
            fit = node["Alive"] and node["NodeID"] not in self._unfit
            has = node["Resources"] if fit else {}
            cores = int(has.get("CPU", 0))
            if self._gpus:
                # A share lies on one device: of 0.4, two fit, not two and a half.
                per_gpu = int(1 / self._gpus + 1e-9) if self._gpus <= 1 else 1 / self._gpus
                here = int(has.get("GPU", 0) * per_gpu + 1e-9)
                num += here
                left += max(0, cores - here)
            else:
                num += cores
        if self._address is None and not self._gpus and hasattr(os, "sched_getaffinity"):
            num = min(num, len(os.sched_getaffinity(0)))  # taskset, batch systems: Ray looks past
        return num, left

    def _portion(self) -> str:
        return f"{self._gpus:g} GPU" if self._gpus else "1 CPU"
