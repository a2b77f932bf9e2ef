"""What a worker does with a task: open its inputs, time it, keep its result."""

import faulthandler
import hashlib
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from numpy.typing import NDArray

from storage import datasets, splits
from storage.artifacts import Artifact, ArtifactDamaged, Artifacts, Draft, write_whole
from storage.upstream import Upstream
from tasks._cache import cache_place, leave_cache, node_cache
from tasks._journal import append, check_journal
from tasks.base import Data, Task
from tasks.logs import log_path, logged, read_log
from tasks.shelf import Shelf
from tasks.versions import software

if TYPE_CHECKING:
    from tasks.split import Split

__all__ = ["Bench", "Site", "check_journal", "execute", "leave", "prepare", "tail"]

T = TypeVar("T")
_REMEMBERED = 96


@dataclass(frozen=True)
class Site:
    """Where tasks run: nothing here may change a result.

    Attributes:
        artifacts: the artifact folder of the store, absolute; None on a node that does not see
            it: then a folder of that node's own.
        data_dir: where datasets are looked for, absolute, or None.
        device: "cpu" or "cuda".
        journal: a file to which every start and end of a task is appended, or None.
        logs: the folder of the tasks' logs; None for one of the node's own, or none at all.
        capture: whether what this process prints while it runs a task goes to the task's log.
        upstream: where artifacts are besides, or None.
        data: the driver's machine, for data that another machine lacks.
        shelf: the driver's machine, for a node that does not see the store.
        run: the name of the run, on another machine.
    """

    artifacts: Path | None
    data_dir: Path | None = None
    device: str = "cpu"
    journal: Path | None = None
    logs: Path | None = None
    capture: bool = False
    upstream: Upstream | None = None
    data: Shelf | None = None
    shelf: Shelf | None = None
    run: str = ""


class Bench:
    """A worker's place: the store, the data, and what it used last."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.artifacts = Artifacts(_own(site, "artifacts") or Path(), site.upstream)
        self.data_dir = site.data_dir
        self.device = site.device
        self._kept: OrderedDict[object, Any] = OrderedDict()

    def open(self, task: Task) -> Artifact:
        """The finished artifact of an input."""
        return self.artifacts.open(task.key)

    def keep(self, name: object, make: Callable[[], T]) -> T:
        """What `make` returns, made again only if it has not been used for a while."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return cast(T, self._kept[name])
        made = make()
        self._kept[name] = made
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        return made

    def dataset(self, data: Data) -> datasets.Dataset:
        """The dataset a task names.

        Raises:
            ValueError: if its content is no longer what the plan was made for.
        """
        try:
            dataset = datasets.load(data.source, self.data_dir)
        except FileNotFoundError:
            if self._site.data is None:
                raise
            dataset = self._fetched(data.source, self._site.data)
        if dataset.content_hash != data.content_hash and self._site.data is not None:
            dataset = self._fetched(data.source, self._site.data)  # this node has another version
        if dataset.content_hash != data.content_hash:
            raise ValueError(
                f"dataset '{data.name}' changed since the plan was made (content "
                f"{dataset.content_hash[:12]}, planned {data.content_hash[:12]}); run again"
            )
        return dataset

    def _fetched(self, source: datasets.Source, shelf: Shelf) -> datasets.Dataset:
        """A dataset from the driver's machine, which this node keeps for the run."""
        folder = node_cache(self._site.run) / "data"
        name = hashlib.sha256(repr(source).encode()).hexdigest()
        there = next(folder.glob(f"{name}.*"), None)
        if there is None:
            ending, content = shelf.data(source)
            there = folder / f"{name}{ending}"
            write_whole(there, content)
        return datasets.load(replace(source, path=str(there)))

    def split(self, task: "Split") -> splits.Split:
        """The row numbers of every role, as the split's artifact holds them."""

        def read() -> splits.Split:
            dataset = self.dataset(task.data)
            table = self.open(task).table("split")
            return task.restore(table["role"], table["row"], dataset)

        return self.keep(("split", task.key), read)

    def arrays(self, task: Task, name: str) -> dict[str, NDArray[Any]]:
        """The arrays `name` of an input's artifact, remembered."""
        return self.keep((name, task.key), lambda: self.open(task).arrays(name))


def prepare() -> int:
    """One thread for every numeric library of this process.

    Workers are one a core; and unpinned threads on small matrices can be a hundred times slower.

    Returns:
        The bytes of memory of the GPU this process sees; 0 without one.
    """
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    with suppress(OSError, AttributeError):  # a standard error that is no file
        faulthandler.enable()  # where a task crashed is in its log then
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    threadpool_limits(1)
    # A process's first training step loads half of torch, which is no part of any fit's cost.
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    torch.autograd.backward(
        torch.nn.functional.cross_entropy(
            layer(torch.zeros(2, 2)), torch.zeros(2, dtype=torch.int64)
        )
    )
    optimizer.step()
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 0


def leave(run: str) -> None:
    """Remove what this node kept for a run that ends."""
    leave_cache(run)


def tail(run: str, key: str, num_bytes: int) -> bytes:
    """The end of a task's log that this node, which does not see the store, kept for a run."""
    return read_log(cache_place(run) / "logs", key, num_bytes)


_benches: dict[Site, Bench] = {}


def execute(task: Task, site: Site, worker: str) -> dict[str, float]:
    """Run a task whose inputs are in the store, and put its artifact there.

    Returns:
        What was measured: `duration_s`, 0 if the artifact was there already.
    """
    bench = _benches.get(site) or _benches.setdefault(site, Bench(site))
    if bench.artifacts.settle(task.key):
        return {"duration_s": 0.0}
    logs = _own(site, "logs")
    if logs is None:
        return _execute(task, site, bench, worker)
    send = None if site.shelf is None else partial(site.shelf.log, task.key)
    what = " ".join(filter(None, (task.kind, task.name, task.key[:12], "by", worker)))
    with logged(log_path(logs, task.key), what, capture=site.capture, send=send):
        return _execute(task, site, bench, worker)


def _execute(task: Task, site: Site, bench: Bench, worker: str) -> dict[str, float]:
    _journal(site, "start", task)
    measured: dict[str, Any] = {"versions": software()}

    def write(draft: Draft) -> None:
        _forget_peaks(site.device)
        began, cpu, clock = datetime.now(UTC), time.process_time(), time.perf_counter()
        task.run(bench, draft)
        measured.update(
            duration_s=time.perf_counter() - clock,
            cpu_s=time.process_time() - cpu,
            peak_rss_bytes=_peak_rss(),
            peak_gpu_bytes=_peak_gpu(site.device),
            device=site.device,
            worker=worker,
            started_at=began.isoformat(),
            created_at=datetime.now(UTC).isoformat(),
        )
        draft.facts("measured", measured)

    try:
        bench.artifacts.put(task.key, task.description, write)
    except ArtifactDamaged as fault:
        # A copy of this node's own is no fault of the store's: fetch it anew.
        if site.shelf is None or not bench.artifacts.forget(fault.damaged_key, str(fault)):
            raise
        bench.artifacts.put(task.key, task.description, write)
    _journal(site, "done", task)
    return {"duration_s": float(measured["duration_s"])}


def _own(site: Site, name: str) -> Path | None:
    """The folder of the store, or the node's own, where it does not see the store."""
    if site.shelf is not None or site.artifacts is None:
        return node_cache(site.run) / name
    return site.artifacts if name == "artifacts" else site.logs


def _forget_peaks(device: str) -> None:
    """Have the peaks of this process begin anew, where that can be asked for."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak_rss() -> int:
    """The most bytes this process has held, since it was last asked to forget."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        told = next(line for line in lines if line.startswith("VmHWM:"))
        return int(told.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_gpu(device: str) -> int:
    """The most bytes of the GPU that this process has held since then."""
    if device != "cuda":
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated())


def _journal(site: Site, event: str, task: Task) -> None:
    line = f"{datetime.now(UTC).isoformat()} {os.getpid()} {event} {task.kind} {task.key}\n"
    if site.journal is not None and site.data is not None:
        site.data.note(line)  # a disk that holds the store need not hold this file
    else:
        append(site.journal, line)
