"""How fast the scheduler takes a plan of 100,000 jobs; recorded, never judged.

Without timing the plans are smaller, yet quadratic work would be seen.
"""

import random
from collections import deque

import pytest

from cluster.base import TaskDone, WorkerJoined
from orchestrator.state import Job, State

NUM_JOBS, FEW_JOBS = 100_000, 20_000
NUM_WORKERS = 64


def layered(num_jobs: int) -> dict[str, Job]:
    """Up to three inputs each, among the two thousand jobs before."""
    draw = random.Random(0)
    jobs = {"k0": Job()}
    for i in range(1, num_jobs):
        inputs = [f"k{draw.randrange(max(0, i - 2000), i)}" for _ in range(draw.randrange(4))]
        jobs[f"k{i}"] = Job(tuple(inputs), draw.choice([0.1, 1.0, 5.0, 30.0]))
    return jobs


def gathered(num_jobs: int) -> dict[str, Job]:
    """All into one, where work is quadratic first."""
    parts = {f"k{i}": Job() for i in range(num_jobs - 1)}
    return {**parts, "table": Job(tuple(parts))}


PLANS = {"layered": layered, "gathered": gathered}


@pytest.mark.parametrize("plan", PLANS)
def test_construct(benchmark, plan) -> None:
    jobs = PLANS[plan](FEW_JOBS if benchmark.disabled else NUM_JOBS)
    state = benchmark.pedantic(State, (jobs,), rounds=5)
    assert state.waiting == len(jobs)


@pytest.mark.parametrize("plan", PLANS)
def test_handle(benchmark, keep, plan) -> None:
    jobs = PLANS[plan](FEW_JOBS if benchmark.disabled else NUM_JOBS)

    def work(state: State) -> State:
        running = deque(
            run for i in range(NUM_WORKERS) for run in state.handle(WorkerJoined(f"w{i}"))
        )
        while running:
            run = running.popleft()
            running.extend(state.handle(TaskDone(run.worker, run.key)))
        return state

    state = benchmark.pedantic(work, setup=lambda: ((State(jobs),), {}), rounds=5)
    assert len(state.done) == len(jobs)
    if benchmark.stats is not None:  # None under --benchmark-disable
        events_per_s = (NUM_JOBS + NUM_WORKERS) / benchmark.stats.stats.median
        keep("state", {plan: {"events/s": events_per_s}})
