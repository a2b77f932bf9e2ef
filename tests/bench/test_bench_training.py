"""Many small models: one after another, in two processes, and stacked in two processes.

Each way is the median of interleaved rounds, and between them a large product is timed on each
core, since a machine with neighbours changes from minute to minute. Nothing here asserts a time.
Real location30 where `SFUMATO_DATA` has it, else records of its size.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage import datasets
from tasks.architectures import make
from tasks.stacked import train_many
from tasks.training import TrainedModel, train

NUM_ROWS, NUM_CLASSES, SEED = 2505, 30, 0
ROUNDS = 8  # of NUM_MODELS / ROUNDS models each
NUM_MODELS = 64
STACKED = "two processes, stacked"
FLOP_PER_RECORD = 4 * 446 * 256 + 6 * (256 * 128 + 128 * 30)  # no gradient of the records
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

State = dict[str, NDArray[np.generic]]
DATA: State = {}  # of a worker process


def location() -> tuple[str, State]:
    if (folder := os.environ.get("SFUMATO_DATA")) and Path(folder, "location30.parquet").exists():
        found = datasets.load(datasets.Source("location30"), Path(folder))
        return "location30", {"x": found.x(np.arange(len(found))), "y": found.y}
    rng = np.random.default_rng(SEED)
    x = (rng.random((2 * NUM_ROWS, 446)) < 0.1).astype(np.float32)
    return "synthetic", {"x": x, "y": rng.integers(NUM_CLASSES, size=2 * NUM_ROWS)}


def begin(data: State, cores: list[int]) -> None:
    """Settle a fresh process on its cores and warm it up."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    DATA.update(data)
    for stacked in (False, True):
        fit([0, 1], 1, stacked)


def fit(seeds: list[int], epochs: int, stacked: bool) -> tuple[list[TrainedModel], float]:
    """Train a model for each seed; also the processor time it took."""
    started = time.process_time()
    x, y = DATA["x"], DATA["y"]
    rows = [np.random.default_rng(seed).permutation(len(y))[:NUM_ROWS] for seed in seeds]
    recipe = make("location_mlp3", epochs=epochs)
    if stacked:
        models = train_many(recipe, x, y, rows, num_classes=NUM_CLASSES, seeds=seeds)
    else:
        models = [
            train(recipe, x[own], y[own], num_classes=NUM_CLASSES, seed=seed)
            for seed, own in zip(seeds, rows, strict=True)
        ]
    return models, time.process_time() - started


def peak(duration_s: float = 0.3) -> tuple[float, float]:
    """FLOP/s of a large product, by the clock and by processor time."""
    a, b, out = (torch.ones(1024, 1024) for _ in range(3))
    wall, processor, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < duration_s:
        torch.mm(a, b, out=out)
        done += 2 * 1024**3
    return done / (time.perf_counter() - wall), done / (time.process_time() - processor)


class Way:
    """Processes that share the models of a round."""

    def __init__(self, pools: list[ProcessPoolExecutor], stacked: bool) -> None:
        self.pools, self.stacked = pools, stacked
        self.wall_s: list[float] = []
        self.processor_s: list[float] = []

    def run(self, seeds: list[int], epochs: int) -> list[TrainedModel]:
        started = time.perf_counter()
        num = len(self.pools)
        jobs = [
            pool.submit(fit, seeds[i::num], epochs, self.stacked)
            for i, pool in enumerate(self.pools)
        ]
        parts = [job.result() for job in jobs]
        self.wall_s.append(time.perf_counter() - started)
        self.processor_s.append(sum(spent for _, spent in parts))
        models = {
            seed: m for i in range(num) for seed, m in zip(seeds[i::num], parts[i][0], strict=True)
        }
        return [models[seed] for seed in seeds]


@contextmanager
def processes(data: State) -> Iterator[Callable[[list[int]], ProcessPoolExecutor]]:
    """Makes processes pinned to some cores, with a thread for each; ends them afterwards."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:

        def start(cores: list[int]) -> ProcessPoolExecutor:
            pool = ProcessPoolExecutor(1, context, initializer=begin, initargs=(data, cores))
            pool.submit(peak).result()
            return stack.enter_context(pool)

        yield start


def test_stacked_models_are_those_trained_one_after_another() -> None:
    """What the benchmark's processes do, in this one."""
    DATA.update(location()[1])
    agree(fit([0, 1], 1, False)[0], fit([0, 1], 1, True)[0])
    DATA.clear()


@pytest.mark.slow
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores that processes can be pinned to")
def test_many_models(benchmark, keep) -> None:
    name, data = location()
    timed = benchmark.enabled
    num_models, rounds, epochs = (NUM_MODELS, ROUNDS, 30) if timed else (16, 1, 1)
    share = num_models // rounds
    peaks: list[list[tuple[float, float]]] = []
    with processes(data) as start:
        two = [start([core]) for core in CORES[:2]]
        made = {"two processes, sequential": Way(two, False), STACKED: Way(two, True)}
        if timed:
            made["sequential, 1 thread"] = Way(two[:1], False)
            made["sequential, 2 threads pinned"] = Way([start(CORES[:2])], False)

        def measure() -> None:
            for turn in range(rounds):
                seeds = list(range(turn * share, (turn + 1) * share))
                found = {}
                for kind, way in made.items():
                    found[kind] = way.run(seeds, epochs)
                    peaks.append([job.result() for job in [pool.submit(peak) for pool in two]])
                agree(found["two processes, sequential"], found[STACKED])

        benchmark.pedantic(measure, rounds=1)
    flop = share * FLOP_PER_RECORD * NUM_ROWS * epochs
    wall_limit = float(np.median([sum(wall for wall, _ in pair) for pair in peaks]))
    core_limit = float(np.median([own for pair in peaks for _, own in pair]))
    table = {}
    for kind, way in made.items():
        wall_s, processor_s = float(np.median(way.wall_s)), float(np.median(way.processor_s))
        table[kind] = {
            "models_per_s": share / wall_s,
            "processor_s_per_model": processor_s / share,
            "share_of_peak": flop / wall_s / wall_limit,
            "share_of_peak_by_processor_time": flop / processor_s / core_limit,
        }
    speed = {kind: row["models_per_s"] for kind, row in table.items()}
    stacked = speed.pop(STACKED)
    for kind, own in speed.items():
        table[kind]["stacked is faster by"] = stacked / own
    keep("training", table, data=name, gflop_per_s=round(wall_limit / 1e9, 1))


def agree(alone: list[TrainedModel], together: list[TrainedModel]) -> None:
    for one, other in zip(alone, together, strict=True):
        for name, weight in one.weights.items():
            off = np.abs(other.weights[name] - weight).max() / np.abs(weight).max()
            assert off < 1e-3, f"{name} differs by {off:.1e} of its largest entry"
