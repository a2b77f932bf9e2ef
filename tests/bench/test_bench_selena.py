"""SELENA's sub-models as the plan trains them, beside the best loop over models.

The plan's way is the very tasks: blocks shared out over two pinned one-thread workers, artifacts
written. The loops are one torch model after another in one process, on one pinned thread and on
two. All are interleaved in short rounds; a rate is the median over rounds, and so is a ratio within
a round, which neighbours on the machine change least. Nothing here asserts a time.
Published K and L, Location's network, real location30 where `SFUMATO_DATA` has it, else records of
its size; epochs are cut, as every epoch costs the same.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from defenses.selena import Selena
from storage import datasets
from tasks.architectures import Architecture, make
from tasks.base import Data
from tasks.split import Split
from tasks.stacked import one_of
from tasks.train_block import SubModel, TrainBlock, sub_models
from tasks.training import train
from tasks.worker import Bench, Site, execute, prepare

ROUNDS, EPOCHS = 9, 10
TOGETHER, ONE = "blocks on two workers", "loop, 1 thread"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

Weights = dict[str, np.ndarray]


def location() -> tuple[datasets.Source, Path | None]:
    if (folder := os.environ.get("SFUMATO_DATA")) and Path(folder, "location30.parquet").exists():
        return datasets.Source("location30"), Path(folder).resolve()
    size = (("classes", 30), ("features", 446), ("rows", 5010))
    return datasets.Source("synth_m", params=size), None


def begin(cores: list[int], site: Site, block: TrainBlock) -> None:
    """Settle a fresh process on its cores, load the data and warm it up."""
    os.sched_setaffinity(0, cores)
    prepare()
    torch.set_num_threads(len(cores))
    execute(block, site, "warm")
    loop([block], site)


def together(block: TrainBlock, site: Site) -> float:
    """Run a task; the processor time it took."""
    started = time.process_time()
    execute(block, site, "w")
    return time.process_time() - started


def shared_out(pools: list[ProcessPoolExecutor], blocks: list[TrainBlock], site: Site) -> float:
    """Give whoever is idle the next task, as a run does; the processor time of all."""
    left = iter(blocks)

    def work(pool: ProcessPoolExecutor) -> float:
        return sum(pool.submit(together, block, site).result() for block in left)

    with ThreadPoolExecutor(len(pools)) as threads:
        return sum(threads.map(work, pools))


def loop(blocks: list[TrainBlock], site: Site) -> tuple[list[Weights], float]:
    """Train the same models one after another; also the processor time it took."""
    started = time.process_time()
    data = Bench(site).dataset(blocks[0].split.data)
    weights = [
        train(
            block.architecture,
            data.x(rows.array),
            data.y[rows.array],
            num_classes=data.num_classes,
            seed=seed,
        ).weights
        for block in blocks
        for rows, seed in zip(block.rows, block.seeds, strict=True)
    ]
    return weights, time.process_time() - started


def planned(
    split: Split, dataset: datasets.Dataset, defense: Selena, recipe: Architecture, seed: int
) -> list[TrainBlock]:
    """The blocks that SELENA's sub-models come from, in order."""

    def models(rows: list[np.ndarray], *, seed: int, **_: object) -> tuple[SubModel, ...]:
        return sub_models(split, recipe, rows, seed)

    outline = SimpleNamespace(member_rows=split.divide(dataset).members, models=models)
    asked = defense.trainings(outline, seed=seed)
    return list({model.block.key: model.block for model in asked}.values())


@contextmanager
def processes(site: Site, warm: TrainBlock) -> Iterator[Callable[[list[int]], ProcessPoolExecutor]]:
    """Makes processes pinned to some cores, with a thread for each; ends them afterwards."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:

        def start(cores: list[int]) -> ProcessPoolExecutor:
            own = (cores, site, warm)
            pool = ProcessPoolExecutor(1, context, initializer=begin, initargs=own)
            pool.submit(os.getpid).result()
            return stack.enter_context(pool)

        yield start


@pytest.mark.slow
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores that processes can be pinned to")
def test_sub_models(benchmark, keep, tmp_path, monkeypatch) -> None:
    timed = benchmark.enabled
    defense = Selena(**({} if timed else Selena.preset("cpu", "location30", 30)))
    recipe = make("location_mlp3", epochs=EPOCHS if timed else 1)
    rounds = ROUNDS if timed else 1
    source, folder = location()
    dataset = datasets.load(source, folder)
    split = Split(
        seed=0,
        data=Data(source, dataset.content_hash),
        members=1600,
        reference=1600,
        nonmembers=1600,
        untrained=0,
        known=0.5,
        dedup="group",
    )
    site = Site(tmp_path, folder)
    pair, short = Selena(num_models=2, num_excluded=1), make("location_mlp3", epochs=1)
    warm = planned(split, dataset, pair, short, 0)[0]
    with processes(site, warm) as start:
        two = [start([core]) for core in CORES[:2]]
        loops = {ONE: two[0]}
        if timed:
            monkeypatch.setenv("OMP_PROC_BIND", "true")  # each thread on a core of its own
            loops["loop, 2 threads"] = start(CORES[:2])
        taken: dict[str, list[np.ndarray]] = {kind: [] for kind in (TOGETHER, *loops)}

        def measure() -> None:
            for number in range(rounds):
                blocks = planned(split, dataset, defense, recipe, 1 + number)
                began = time.perf_counter()
                spent = shared_out(two, blocks, site)
                seconds = np.array([time.perf_counter() - began, spent])
                taken[TOGETHER].append(seconds / defense.num_models)
                for kind, pool in loops.items():
                    # Two threads on such small matrices collapse when the machine has other work;
                    # one block tells their pace.
                    own = blocks if kind == ONE else blocks[:1]
                    began = time.perf_counter()
                    alone, spent = pool.submit(loop, own, site).result()
                    seconds = np.array([time.perf_counter() - began, spent])
                    taken[kind].append(seconds / len(alone))
                    agree(own, alone, site)

        benchmark.pedantic(measure, rounds=1)
    table = {}
    for kind, rows in taken.items():
        wall_s, processor_s = np.median(rows, axis=0)
        table[kind] = {"models_per_s": 1 / wall_s, "processor_s_per_model": processor_s}
    wall = {kind: np.array(rows)[:, 0] for kind, rows in taken.items()}
    best = min(loops, key=lambda kind: float(np.median(wall[kind])))
    ratio = wall[best] / wall[TOGETHER]
    for kind in loops:
        table[kind]["together is faster by"] = float(np.median(wall[kind] / wall[TOGETHER]))
    table[TOGETHER]["together is faster by"] = 1.0
    keep(
        "selena",
        table,
        data=dataset.name,
        models=defense.num_models,
        best=best,
        faster=f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
    )


def agree(blocks: list[TrainBlock], alone: list[Weights], site: Site) -> None:
    """Both ways give the same models, but for rounding."""
    bench, models = Bench(site), iter(alone)
    for block in blocks:
        stored = bench.arrays(block, "weights")
        for index in range(len(block.rows)):
            one = one_of(stored, index)
            for name, weight in next(models).items():
                off = np.abs(one[name] - weight).max() / np.abs(weight).max()
                assert off < 1e-3, f"{name} differs by {off:.1e} of its largest entry"
    assert next(models, None) is None
