"""Tasks that do nothing, from the scheduler through Ray and back, beside Ray's own calls alone."""

import math
import time
from collections import deque
from typing import Any

import pytest
import ray

from cluster.base import TaskDone, WorkerJoined
from cluster.ray_pool import RayPool
from orchestrator.state import Job, State

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TASKS, NUM_WORKERS = 6000, 2
LIMIT = 800.0  # tasks/s, on two cores


class Caller:
    """What a worker is, without anything around it."""

    def run(self, number: float) -> float:
        return math.sqrt(number)


def plain_calls(num: int) -> float:
    """Calls/s of two actors, each with one call outstanding: what can be had of Ray at most."""
    actors = [ray.remote(Caller).options(num_cpus=0).remote() for _ in range(NUM_WORKERS)]
    ray.get([actor.run.remote(4.0) for actor in actors])
    began, left = time.perf_counter(), num
    open_ = deque((actor, actor.run.remote(4.0)) for actor in actors)
    while open_:
        actor, ref = open_.popleft()
        assert ray.get(ref) == 2.0
        left -= 1
        if left >= NUM_WORKERS:
            open_.append((actor, actor.run.remote(4.0)))
    for actor in actors:
        ray.kill(actor)
    return num / (time.perf_counter() - began)


def test_tasks_that_do_nothing(benchmark: Any, keep: Any) -> None:
    pool = RayPool(workers=NUM_WORKERS)
    pool.start()
    try:
        joined = wait(pool)
        num = 60 if benchmark.disabled else NUM_TASKS

        def work() -> State:
            state = State({f"k{i}": Job() for i in range(num)})
            for event in joined:
                for run in state.handle(event):
                    pool.submit(run.worker, run.key, math.sqrt, 4.0)
            while not state.finished:
                for done in pool.events(1.0):
                    assert isinstance(done, TaskDone)
                    assert done.result == 2.0
                    for run in state.handle(done):
                        pool.submit(run.worker, run.key, math.sqrt, 4.0)
            return state

        state = benchmark.pedantic(work, rounds=3)
        assert len(state.done) == num
        if not benchmark.disabled:
            rate, most = num / benchmark.stats.stats.median, plain_calls(num)
            row = {"tasks/s": rate, "of 800": rate / LIMIT, "of plain calls": rate / most}
            keep("ray", {"two workers": row})
    finally:
        pool.close()


def wait(pool: RayPool) -> list[WorkerJoined]:
    """All workers, once they have joined."""
    joined: list[WorkerJoined] = []
    while len(joined) < NUM_WORKERS:
        events = pool.events(60.0)
        assert events, "no worker came up"
        joined += [event for event in events if isinstance(event, WorkerJoined)]
    return joined
