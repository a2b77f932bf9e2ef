"""What a worker does with a task: open its inputs, time it, keep its result."""

import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from numpy.typing import NDArray

from storage import datasets, splits
from storage.artifacts import Artifact, Artifacts, Draft, StoreUnwritable
from tasks.base import Data, Task
from tasks.versions import software

if TYPE_CHECKING:
    from tasks.split import Split

__all__ = ["Bench", "Site", "check_journal", "execute", "prepare"]

T = TypeVar("T")
_REMEMBERED = 96


@dataclass(frozen=True)
class Site:
    """Where tasks run: nothing here may change a result.

    Attributes:
        artifacts: the artifact folder of the store, absolute.
        data_dir: where datasets are looked for, absolute, or None.
        device: "cpu" or "cuda".
        journal: a file to which every start and end of a task is appended, or None.
    """

    artifacts: Path
    data_dir: Path | None = None
    device: str = "cpu"
    journal: Path | None = None


class Bench:
    """A worker's place: the store, the data, and what it used last."""

    def __init__(self, site: Site) -> None:
        self.artifacts = Artifacts(site.artifacts)
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
        dataset = datasets.load(data.source, self.data_dir)
        if dataset.content_hash != data.content_hash:
            raise ValueError(
                f"dataset '{data.name}' changed since the plan was made (content "
                f"{dataset.content_hash[:12]}, planned {data.content_hash[:12]}); run again"
            )
        return dataset

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


def prepare() -> None:
    """One thread for every numeric library of this process.

    Workers are one a core; and unpinned threads on small matrices can be a hundred times slower.
    """
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

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


_benches: dict[Site, Bench] = {}


def execute(task: Task, site: Site, worker: str) -> dict[str, float]:
    """Run a task whose inputs are in the store, and put its artifact there.

    Returns:
        What was measured: `duration_s`, 0 if the artifact was there already.
    """
    bench = _benches.setdefault(site, Bench(site))
    if task.key in bench.artifacts:
        return {"duration_s": 0.0}
    _journal(site, "start", task)
    measured: dict[str, Any] = {"versions": software()}

    def write(draft: Draft) -> None:
        began, cpu, clock = datetime.now(UTC), time.process_time(), time.perf_counter()
        task.run(bench, draft)
        measured.update(
            duration_s=time.perf_counter() - clock,
            cpu_s=time.process_time() - cpu,
            peak_rss_bytes=_peak_rss(),
            device=site.device,
            worker=worker,
            started_at=began.isoformat(),
            created_at=datetime.now(UTC).isoformat(),
        )
        draft.facts("measured", measured)

    bench.artifacts.put(task.key, task.description, write)
    _journal(site, "done", task)
    return {"duration_s": float(measured["duration_s"])}


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _journal(site: Site, event: str, task: Task) -> None:
    """Append a line whole: O_APPEND writes below a page do not mix with another worker's."""
    if site.journal is None:
        return
    line = f"{datetime.now(UTC).isoformat()} {os.getpid()} {event} {task.kind} {task.key}\n"
    try:
        file = _open_journal(site.journal)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as error:  # ends the run, as every task would meet it
        raise StoreUnwritable(
            error.errno,
            f"cannot write the journal {site.journal}: {error.strerror}. Free space or permit "
            "writing there, or name another file with --journal",
        ) from error


def check_journal(path: Path | None) -> None:
    """Refuse a journal that cannot be opened; raises ValueError."""
    try:
        if path is not None:
            os.close(_open_journal(path))
    except OSError as error:
        raise ValueError(
            f"--journal {path}: {error.strerror}; name a file that can be written to"
        ) from error


def _open_journal(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
