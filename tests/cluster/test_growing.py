"""A cluster that can grow does, because workers wait for a place in it; nodes that join work."""

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.base import Event, TaskDone, WorkerJoined, WorkerLost
from cluster.ray_pool import RayPool

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 120.0
HEAD, PORT = "ray.head.default", 6379  # as Ray's provider of nodes for tests has them
EMPTY = (
    *("initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)


def gather(pool: RayPool, num: int, kind: type) -> list[Event]:
    until, events = time.monotonic() + PATIENCE_S, list[Event]()
    while sum(isinstance(event, kind) for event in events) < num:
        assert time.monotonic() < until, events
        events += pool.events(1.0)
    return [event for event in events if isinstance(event, kind)]


def marked(mark: str) -> set[int]:
    """The processes that have a mark in their environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def growing(await_gone: Callable[[set[int], float], set[int]]) -> Iterator[str]:
    """One core, and up to two nodes of a core each on demand, which Ray's autoscaler starts.

    They are processes of this machine, as Ray's own provider for tests makes them.
    """
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            HEAD: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "more": {
                "resources": {"CPU": 1, "object_store_memory": 2**28},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": HEAD,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in EMPTY},
        "file_mounts_sync_continuously": False,
    }
    mark = f"SFUMATO_GROWING={uuid.uuid4().hex}"
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("", PORT))
        except OSError:
            pytest.skip(f"port {PORT} is taken, perhaps by another Ray")
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters only.
    with tempfile.TemporaryDirectory(prefix="g", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "growing.json"
        file.write_text(json.dumps(config))
        program = Path(sys.executable).with_name("ray")
        options = [f"--port={PORT}", "--num-cpus=1", f"--temp-dir={folder}"]
        name, _, value = mark.partition("=")
        head = subprocess.Popen(
            [program, "start", "--head", f"--autoscaling-config={file}", "--block", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                name: value,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "SPT_NOENV": "1",
            },
        )
        try:
            until = time.monotonic() + PATIENCE_S
            while True:
                assert time.monotonic() < until, "no head"
                try:
                    socket.create_connection(("127.0.0.1", PORT), 1).close()
                    break
                except OSError:
                    select.select([], [], [], 0.2)
            yield f"127.0.0.1:{PORT}"
        finally:
            head.terminate()
            head.wait(PATIENCE_S)
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)
            assert not await_gone(marked(mark), 10)


def test_waiting_workers_make_it_grow(growing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    pool = RayPool(workers=3, address=growing, start_timeout_s=PATIENCE_S)
    pool.start()
    try:
        assert pool.pending == 3
        joined = gather(pool, 3, WorkerJoined)  # of which the head's core bears one
        assert pool.pending == 0
        rooms = {event.room for event in joined if isinstance(event, WorkerJoined)}
        assert len(rooms) == 3
    finally:
        pool.close()


def test_nodes_come_and_go() -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        pool = RayPool()  # as many as there is room for
        pool.start()
        [first] = gather(pool, 1, WorkerJoined)
        began = time.monotonic()
        node = cluster.add_node(num_cpus=1)
        started_s = time.monotonic() - began
        [second] = gather(pool, 1, WorkerJoined)
        assert isinstance(first, WorkerJoined)
        assert isinstance(second, WorkerJoined)
        assert second.room != first.room
        assert second.node != first.node  # told apart though both are on this machine
        pool.submit(second.worker, "key", math.sqrt, 9.0)
        [done] = gather(pool, 1, TaskDone)
        assert isinstance(done, TaskDone)
        assert done.result == 3.0
        print(  # noqa: T201
            f"\nnode started in {started_s:.1f} s, first task done {time.monotonic() - began:.1f} s"
        )
        pool.submit(second.worker, "hung", select.select, [], [], [], 600)
        cluster.remove_node(node, allow_graceful=False)
        [lost] = gather(pool, 1, WorkerLost)
        assert isinstance(lost, WorkerLost)
        assert lost.worker == second.worker
        assert pool.pending == 1  # its replacement waits for a place
        pool.submit(first.worker, "key", math.sqrt, 16.0)
        assert len(gather(pool, 1, TaskDone)) == 1
        cluster.add_node(num_cpus=1)
        assert len(gather(pool, 1, WorkerJoined)) == 1
        assert pool.pending == 0
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
