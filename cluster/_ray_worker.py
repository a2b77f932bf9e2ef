"""What runs on the nodes of a Ray cluster: workers, and stand-ins for what the driver's has."""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.base import Event
from cluster.inline import attempt

__all__ = ["Place", "Ready", "Setup", "Shared", "Worker", "ask", "kill", "on_node"]

T = TypeVar("T")
Setup = Callable[[], int | None]
_ASK_WAIT_S = 10.0


@dataclass(frozen=True)
class Place:
    """Where a worker came to be.

    Attributes:
        ip: of its machine; several nodes may be on one.
        node: Ray's id of the node.
        gpus: the ids of the devices it owns (a share of), as its node counts them.
    """

    ip: str
    node: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Ready:
    """A worker that may be given work.

    Attributes:
        sees: whether the file it was asked for is there.
        device_bytes: memory of the device it owns, as the setup said; 0 if it did not.
    """

    sees: bool
    device_bytes: int


class Worker:
    """What runs inside a worker's process."""

    def place(self) -> Place:
        """Where it is."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Place(
            str(ray.util.get_node_ip_address()), str(context.get_node_id()), tuple(map(str, gpus))
        )

    def prepare(self, core: int | None, visible: Path | None, setup: Setup | None) -> Ready:
        """Make ready for work."""
        if core is not None and hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {allowed[core % len(allowed)]})
        device_bytes = setup() if setup is not None else None
        return Ready(visible is None or visible.exists(), device_bytes or 0)

    def run(self, worker: str, key: str, call: Callable[..., Any], *args: Any) -> Event:
        """Do one task."""
        return attempt(worker, key, call, *args)

    def ping(self) -> None:
        """Answered by a living worker."""


class _Holder:
    """An object of the driver's machine, in a process beside the driver."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def call(self, name: str, *args: Any) -> Any:
        return getattr(self._thing, name)(*args)


class Shared:
    """A stand-in for an object that is held on the driver's machine; calls go there.

    What a method raises, the stand-in raises.
    """

    def __init__(self, actor: Any) -> None:
        self._actor, self._name = actor, uuid.uuid4().hex

    @classmethod
    def of(cls, thing: T, node: str, runtime_env: dict[str, Any]) -> "tuple[T, Any]":
        """The stand-in of `thing`, and the actor to kill in the end."""
        actor = (
            ray.remote(_Holder)
            .options(
                num_cpus=0,
                max_concurrency=8,  # reading files and the network
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=on_node(node),
                runtime_env=runtime_env,
            )
            .remote(thing)
        )
        return cast(T, cls(actor)), actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any) -> Any:
            try:
                return ray.get(self._actor.call.remote(name, *args))
            except RayTaskError as error:
                if isinstance(error.cause, Exception):
                    raise error.cause from None
                raise

        return call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shared) and other._name == self._name

    def __hash__(self) -> int:
        return hash(self._name)


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """Nowhere but on this node."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def ask(node: str, call: Callable[..., T], *args: Any) -> Callable[[], T | None]:
    """Begin a call on a node; gives what waits for its result.

    That is None if the node is gone or does not answer within seconds.
    """
    task = ray.remote(_answer).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node))
    ref, until = task.remote(call, *args), time.monotonic() + _ASK_WAIT_S

    def answer() -> T | None:
        if not ray.is_initialized():  # `get` would start one
            return None
        with suppress(RayError):
            return cast(T, ray.get(ref, timeout=max(0.0, until - time.monotonic())))
        return None

    return answer


def _answer(call: Callable[..., T], *args: Any) -> T:
    return call(*args)


def kill(actor: Any) -> None:
    """End an actor's process."""
    with suppress(RayError, RuntimeError, ValueError):  # gone already, or the cluster is
        ray.kill(actor, no_restart=True)
