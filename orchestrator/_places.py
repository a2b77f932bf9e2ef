"""Which defenses and attacks of an experiment a task is for."""

from collections.abc import Sequence

from orchestrator.plan import Cell, Plan
from tasks.base import Task

_MOST_LISTED = 3


class Places:
    """Names tasks as their experiment does: by the labels of what rests on them."""

    def __init__(self, plan: Plan) -> None:
        self._tasks: dict[str, Task] = {}
        self._users: dict[str, list[str]] = {}
        self._cells: dict[str, list[Cell]] = {}
        self._labels: set[str] = set()
        self.add(plan)

    def add(self, plan: Plan) -> None:
        """Also name the tasks of another plan of the same experiment."""
        for key, task in plan.tasks.items():
            if key not in self._tasks:
                self._tasks[key] = task
                for needed in task.inputs:
                    self._users.setdefault(needed.key, []).append(key)
        for cell in plan.cells:
            at = self._cells.setdefault(cell.task.key, [])
            at += [cell] if cell not in at else []
        self._labels |= {cell.label for cell in plan.cells if cell.label}

    def named(self, key: str) -> str:
        """A task in words: what it is, of what dataset and seed, for which defenses and attacks."""
        task = self._tasks[key]
        cells = self._cells.get(key) or self._served(key)
        words = [f"{task.kind} {task.name}".rstrip(), f"{task.dataset} seed {task.seed}"]
        labels = list(dict.fromkeys(cell.label for cell in cells if cell.label))
        if len(labels) > 1 and len(labels) == len(self._labels):
            words.append(f"all {len(labels)} defenses")
        elif labels:
            words.append(f"defense {_listed(labels)}")
        attacks = list(dict.fromkeys(cell.attack for cell in cells))
        if all(attacks):
            words.append(f"attack {_listed(attacks)}")
        return ", ".join(words)

    def _served(self, key: str) -> list[Cell]:
        """The cells that rest on a task; a worst case rests on all attacks and is none of them."""
        seen, open_ = {key}, [key]
        while open_:
            above = [user for user in self._users.get(open_.pop(), ()) if user not in seen]
            seen.update(above)
            open_.extend(above)
        cells = (cell for user in self._tasks if user in seen for cell in self._at(user))
        return [cell for cell in cells if cell.kind not in ("worst", "check")]

    def _at(self, key: str) -> Sequence[Cell]:
        return self._cells.get(key, ())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
