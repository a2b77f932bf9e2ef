"""What tasks take, as a store has measured it so far: seconds and memory."""

from collections.abc import Iterator
from functools import cached_property
from statistics import median

from storage.tables import Tables
from tasks.base import Task

__all__ = ["Costs"]

_Like = tuple[str, ...]


class Costs:
    """What alike tasks took; the tables are read once, when first asked.

    Alike are tasks of one kind, name and dataset; where there are none, of one kind and name, or
    of one kind.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def seconds(self, task: Task) -> float:
        """The median of alike tasks, or a first guess."""
        known = (self._seen[like][0] for like in _likes(task) if like in self._seen)
        return next(known, task.SECONDS)

    def memory(self, task: Task, *, gpu: bool) -> int:
        """The most bytes that alike tasks needed, of the GPU's or the node's; 0 if unknown.

        Those of one kind only are not alike in this: the largest of them says nothing of a small.
        """
        near = [like for like in _likes(task) if len(like) > 1 and like in self._seen]
        known = (self._seen[like][1 + gpu] for like in near)
        return next((int(most) for most in known if most), 0) or task.MEMORY

    @cached_property
    def _seen(self) -> dict[_Like, tuple[float, float, float]]:
        """Median seconds, most bytes of the node and of the GPU, of all that are alike."""
        seconds: dict[_Like, list[float]] = {}
        host: dict[_Like, float] = {}
        gpu: dict[_Like, float] = {}
        frame = self._tables.frame("tasks")
        named = zip(*(frame[name].tolist() for name in ("kind", "name", "dataset")), strict=True)
        told = zip(
            frame["duration_s"].tolist(),
            frame["peak_rss_bytes"].fillna(0).tolist(),
            frame["peak_gpu_bytes"].fillna(0).tolist(),
            strict=True,
        )
        for (kind, name, dataset), (taken, on_host, on_gpu) in zip(named, told, strict=True):
            for like in ((kind, name, dataset), (kind, name), (kind,)):
                seconds.setdefault(like, []).append(taken)
                host[like] = max(host.get(like, 0), on_host)
                gpu[like] = max(gpu.get(like, 0), on_gpu)
        return {like: (median(all_), host[like], gpu[like]) for like, all_ in seconds.items()}


def _likes(task: Task) -> Iterator[_Like]:
    yield (task.kind, task.name, task.dataset)
    yield (task.kind, task.name)
    yield (task.kind,)
