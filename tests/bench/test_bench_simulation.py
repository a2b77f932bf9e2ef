"""The scheduler against the clock of a large cluster: 1,000 workers, 100,000 tasks, simulated.

Real scheduler, simulated workers. The plan has the shape of `attacks_location` many times over, and
durations are drawn from what that experiment's tasks took on two cores: the scheduler is told the
median of their kind and name, as a run is, and the worker then takes what was drawn. The makespan
is compared with what no schedule can beat: all work over all workers, or the longest path.
"""

import heapq
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.base import TaskDone, WorkerJoined
from orchestrator.state import Job, State

NUM_WORKERS, NUM_TASKS = 1000, 100_000

# Seconds at the given ranks, by kind; measured on the runs of attacks_location (1,380 tasks).
RANKS = (0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 0.99, 1.0)
SECONDS = {
    "RunAttack": (0.01, 0.018, 0.10, 0.17, 0.23, 0.41, 1.1, 3.2, 4.8, 9.7, 19, 96, 542),
    "Answers": (0.02, 0.028, 0.054, 0.075, 0.10, 0.12, 0.15, 0.30, 0.86, 5.9, 16, 45, 53),
    "FitDefense": (0.01, 0.011, 0.026, 0.10, 0.20, 0.48, 3.0, 4.5, 6.7, 13, 28, 38, 53),
    "Shadow": (
        0.003,
        0.004,
        0.005,
        0.009,
        0.014,
        0.017,
        0.019,
        0.023,
        0.027,
        0.041,
        0.05,
        0.07,
        0.09,
    ),
    "TrainTarget": (1.3, 1.4, 1.6, 1.9, 4.0, 5.1, 6.8, 9.9, 10, 13, 68, 74, 75),
    "TrainShadows": (20, 21, 24, 29, 31, 34, 36, 37, 41, 43, 46, 47, 48),
    "MeasureUtility": (0.03, 0.036, 0.041, 0.059, 0.10, 0.28, 0.30, 0.59, 1.0, 5.8, 11, 12, 13),
    "Split": (0.05, 0.053, 0.12, 0.32, 0.65, 0.83, 0.87, 0.90, 0.93, 0.99, 1.1, 1.1, 1.1),
    "WorstCase": (0.1, 0.10, 0.11, 0.11, 0.13, 0.21, 0.49, 0.61, 1.0, 1.2, 1.2, 1.2, 1.2),
}


@dataclass
class Simulated:
    """What a simulated run came to: seconds on the simulated clock, and what they compare to."""

    makespan: float
    work: float
    longest: float
    num_workers: int
    busy: list[tuple[float, int]] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """No schedule ends sooner."""
        return max(self.work / self.num_workers, self.longest)


def drawn(kind: str, rng: random.Random) -> float:
    """Seconds of a task, between the measured ranks."""
    rank, seconds = rng.random(), SECONDS[kind]
    above = next(i for i, r in enumerate(RANKS) if r >= rank and i)
    low, high = RANKS[above - 1], RANKS[above]
    share = (rank - low) / (high - low)
    return seconds[above - 1] + share * (seconds[above] - seconds[above - 1])


def plan(num_tasks: int, rng: random.Random) -> tuple[dict[str, Job], dict[str, float]]:
    """Jobs as the scheduler is told of them, and the seconds each will really take."""
    jobs: dict[str, Job] = {}
    takes: dict[str, float] = {}
    # Of each name within a kind the median is known: tasks of one name take about the same.
    typical: dict[str, float] = {}

    def add(kind: str, name: str, *inputs: str) -> str:
        key = f"{kind}/{len(jobs)}"
        expected = typical.setdefault(f"{kind}/{name}", drawn(kind, rng))
        jobs[key] = Job(inputs, expected)
        takes[key] = expected * rng.lognormvariate(0.0, 0.25)
        return key

    while len(jobs) < num_tasks:
        split = add("Split", "s")
        target = add("Answers", "target", add("TrainTarget", "target", split))
        shadows = [
            add("Answers", "shadow", add("Shadow", "s", block))
            for block in (add("TrainShadows", "s", split) for _ in range(4))
            for _ in range(4)
        ]
        for defense in range(5):
            fitted = add("FitDefense", f"{defense}", target)
            answers = add("Answers", f"{defense}", fitted)
            add("MeasureUtility", f"{defense}", answers, target)
            copy = add("TrainTarget", "copy", split)
            own = add("Answers", f"own {defense}", add("FitDefense", f"{defense}", copy))
            attacks = [add("RunAttack", f"{defense}/{a}", answers) for a in range(30)]
            attacks += [add("RunAttack", f"{defense}/s{a}", answers, *shadows) for a in range(8)]
            attacks += [add("RunAttack", f"{defense}/a{a}", answers, own) for a in range(8)]
            add("WorstCase", f"{defense}", *attacks)
    return jobs, takes


def simulate(jobs: dict[str, Job], takes: dict[str, float], num_workers: int) -> Simulated:
    """The real scheduler on a clock that jumps from end to end."""
    state, clock = State(jobs), 0.0
    running: list[tuple[float, str, str]] = []
    busy: list[tuple[float, int]] = []
    for i in range(num_workers):
        for run in state.handle(WorkerJoined(f"w{i}")):
            heapq.heappush(running, (takes[run.key], run.worker, run.key))
    while running:
        clock, worker, key = heapq.heappop(running)
        for run in state.handle(TaskDone(worker, key)):
            heapq.heappush(running, (clock + takes[run.key], run.worker, run.key))
        busy.append((clock, len(running)))
    assert state.finished
    assert len(state.done) == len(jobs)
    return Simulated(clock, sum(takes.values()), _longest(jobs, takes), num_workers, busy)


def _longest(jobs: dict[str, Job], takes: dict[str, float]) -> float:
    ends: dict[str, float] = {}
    for key, job in jobs.items():  # inputs stand before their users
        ends[key] = takes[key] + max((ends[needed] for needed in job.inputs), default=0.0)
    return max(ends.values())


def draw(told: Simulated, path: Path) -> None:
    """Workers at work over the simulated time, as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([t for t, _ in told.busy], [n for _, n in told.busy], lw=0.8)
    axes.axvline(told.bound, color="black", ls="--", lw=1, label="lower bound of the makespan")
    axes.set_xlabel("simulated seconds")
    axes.set_ylabel("workers at work")
    axes.set_ylim(0, told.num_workers * 1.05)
    axes.legend(frameon=False)
    figure.savefig(path)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    folder = Path(".benchmarks")
    return folder if folder.is_dir() else tmp_path


@pytest.mark.parametrize("num_workers", [NUM_WORKERS, NUM_WORKERS // 4])
def test_makespan(benchmark: Any, keep: Any, kept: Path, num_workers: int) -> None:
    """Without timing, a small one that shows the same; with it, the whole cluster.

    With 1,000 workers the longest path bounds the makespan, with a quarter of them the work.
    """
    small = benchmark.disabled
    num_tasks = NUM_TASKS
    if small:
        num_tasks, num_workers = 4000, num_workers // 25
    began = time.perf_counter()
    jobs, takes = plan(num_tasks, random.Random(0))
    planned = time.perf_counter() - began
    told = benchmark.pedantic(simulate, (jobs, takes, num_workers), rounds=1)
    # Graham's bound for any greedy schedule; far from it, the scheduler leaves workers idle.
    assert told.makespan <= told.work / num_workers + told.longest
    assert told.makespan >= told.bound * (1 - 1e-9)
    if not small:
        keep(
            "simulation",
            {
                f"{len(jobs)} tasks, {num_workers} workers": {
                    "makespan s": told.makespan,
                    "lower bound s": told.bound,
                    "ratio": told.makespan / told.bound,
                    "longest path s": told.longest,
                    "utilisation": told.work / num_workers / told.makespan,
                    "median task s": statistics.median(takes.values()),
                    "planned in s": planned,
                }
            },
        )
        draw(told, kept / f"simulation-{num_workers}.svg")
