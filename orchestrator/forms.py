"""The forms an experiment was run in: what each asked for is kept until it is forgotten."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator._alike import DIGITS, Alike
from orchestrator._yaml import parsed
from orchestrator.plan import Plan
from orchestrator.resume import Store
from storage import census
from storage.artifacts import write_whole
from storage.tables import IDENTITY
from tasks.versions import installed, software

__all__ = ["Form", "describe", "differences", "earlier", "form_of", "held", "kept"]

_NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
_FILES = (".yaml", ".json")
_MOST_TOLD = 5


@dataclass(frozen=True)
class Form:
    """One form of an experiment as a store keeps it.

    Attributes:
        experiment: its name.
        name: 12 digits; "" in a store made before forms were kept.
        file: its settings, a file that can be run.
        current: whether it is the one that was run last.
        tasks: the keys of its plan; None where they were not kept.
        damaged: why its tasks cannot be told although they were kept, or None.
        ran_at: when it was last run, None where that was not kept.
    """

    experiment: str
    name: str
    file: Path
    current: bool = False
    tasks: frozenset[str] | None = None
    damaged: str | None = None
    ran_at: datetime | None = None

    @property
    def title(self) -> str:
        """What `gc --forget` calls it."""
        return f"{self.experiment}@{self.name}" if self.name else self.experiment

    def settings(self) -> dict[str, Any]:
        """Its settings as plain data; empty if they cannot be read."""
        try:
            told, _, problems = parsed(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) and not problems else {}


def form_of(plan: Plan) -> str:
    """The name of a plan's form: a hash of its cells, whatever their order and spelling."""
    cells = ({**vars(cell), "task_key": cell.task.key} for cell in plan.cells)
    return _name(cells)


def _name(cells: Iterable[Mapping[str, Any]]) -> str:
    told = sorted(json.dumps([cell[name] for name in IDENTITY]) for cell in cells)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:DIGITS]


def describe(plan: Plan, store: Store) -> None:
    """Keep the experiment as resolved, what it needs, and what it ran with, beside its results.

    From then on `gc` leaves all of it alone, and earlier forms of the same name too.

    Raises:
        StoreUnwritable: if the store cannot be written to.
    """
    name, form = plan.experiment.name, form_of(plan)
    folder = store.experiment(name)
    _adopt(store, name)
    resolved = yaml.safe_dump(plan.experiment.resolved(), sort_keys=False, allow_unicode=True)
    tasks = sorted(plan.tasks)
    needs = {"ran_at": datetime.now(UTC).isoformat(), "sha256": _digest(tasks), "tasks": tasks}
    write_whole(folder / "forms" / f"{form}.yaml", resolved)
    write_whole(folder / "forms" / f"{form}.json", json.dumps(needs, indent=1))
    write_whole(folder / "experiment.yaml", resolved)
    write_whole(folder / "versions.json", json.dumps(_versions(), indent=1, sort_keys=True))


def _digest(tasks: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(tasks).encode()).hexdigest()


def _versions() -> dict[str, Any]:
    made = software()
    return {
        **made,
        "packages": made["packages"] | installed("ray"),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def _adopt(store: Store, name: str) -> None:
    """Make the one form of a store that knew no forms the first of several."""
    tables = store.tables
    if "" not in tables.forms.of(name):
        return
    cells = tables.frame("cells", name, "").drop(columns=["current"]).to_dict("records")
    if not cells:  # damaged, and set aside by reading it
        return
    alike = Alike(lambda key: census.description(store.root, key))
    rows = [{**_given(cell), **alike.columns(cell["kind"], cell["task_key"])} for cell in cells]
    form, folder = _name(rows), store.experiment(name)
    if (folder / "experiment.yaml").is_file() and not (folder / "forms" / f"{form}.yaml").exists():
        write_whole(folder / "forms" / f"{form}.yaml", (folder / "experiment.yaml").read_text())
    tables.write_cells(name, rows, form)
    tables.forms.set_current(name, form)
    tables.forms.forget(name, "")


def _given(cell: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a frame as a table takes it."""
    given = {str(n): None if v is None or v != v else v for n, v in cell.items() if n != "form"}
    return given | {"seed": None if given["seed"] is None else int(given["seed"])}


def kept(store: Store) -> list[Form]:
    """Every form of every experiment that a store keeps, by experiment, the current one first."""
    folders = {path.name for path in store.root.glob("experiments/*") if path.is_dir()}
    found: list[Form] = []
    for experiment in sorted(folders | set(store.tables.forms.experiments())):
        folder, forms = store.experiment(experiment), store.tables.forms
        files = {p.stem for p in folder.glob("forms/*") if p.suffix in _FILES}
        names = {*forms.of(experiment), *filter(_NAME.fullmatch, files)} or {""}
        mine = sorted((_read(folder, experiment, name) for name in names), key=_age)
        current = forms.current(experiment)
        if current not in names:  # not known any more: then the last of them
            current = mine[0].name
        mine = [replace(form, current=form.name == current) for form in mine]
        found += sorted(mine, key=lambda form: not form.current)
    return found


def _age(form: Form) -> tuple[float, str]:
    return -form.ran_at.timestamp() if form.ran_at else 0.0, form.name


def _read(folder: Path, experiment: str, name: str) -> Form:
    if not name:
        return Form(experiment, name, folder / "experiment.yaml")
    form = Form(experiment, name, folder / "forms" / f"{name}.yaml")
    path = folder / "forms" / f"{name}.json"
    try:
        told = json.loads(path.read_bytes())
        tasks, ran_at = told["tasks"], datetime.fromisoformat(told["ran_at"])
        if told["sha256"] != _digest(tasks):
            raise ValueError("its tasks do not match their checksum")
    except FileNotFoundError:
        return form
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return replace(form, damaged=f"{path} is damaged ({error})")
    return replace(form, tasks=frozenset(tasks), ran_at=ran_at)


def held(plan: Plan, store: Store) -> str | None:
    """The form of a plan under the name that the store has its cells by; None if it has none."""
    forms, experiment, form = store.tables.forms, plan.experiment.name, form_of(plan)
    if "" in forms.of(experiment):  # made before forms were kept
        cells = store.tables.frame("cells", experiment, "").to_dict("records")
        form = "" if _name(map(_given, cells)) == form else form
    return form if form in forms.of(experiment) else None


def earlier(plan: Plan, store: Store, before: str | None) -> str | None:
    """What to say of cells that only earlier forms of an experiment ask for, if there are any.

    Args:
        plan: of the form that is run.
        store: where it is kept already.
        before: the form that was run before it.
    """
    name, form = plan.experiment.name, form_of(plan)
    if before in (None, form):
        return None
    cells = store.tables.frame("cells", name)
    mine = [cell.task.key for cell in plan.cells]
    # Worst cases are over their seeds: more seeds leave them behind, and nobody misses them.
    count = int((~cells["task_key"].isin(mine) & (cells["kind"] != "worst")).sum())
    if not count:
        return None
    was = next((f for f in kept(store) if (f.experiment, f.name) == (name, before)), None)
    other = differences(was.settings() if was else {}, plan.experiment.resolved())
    if len(other) > _MOST_TOLD:
        other = [*other[:_MOST_TOLD], f"and {len(other) - _MOST_TOLD} more differences"]
    return (
        f"{count} earlier cells of {name} stay in the store (its last run, form {before}, had "
        f"{', '.join(other) or 'other data or versions'}); "
        f"`sfumato gc --forget {name}@earlier` tells what they take"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what settings an experiment as resolved was another: as "target.epochs=12"."""
    # What is not set is left out: a version that knows more keys has more of those.
    return list(_differences(_set(old), _set(new), ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if was == now or name == "description":
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{at}{name}.")
        elif isinstance(was, list) and isinstance(now, list) and not _plain([*was, *now]):
            before, after = [_called(item) for item in was], [_called(item) for item in now]
            for item in was:
                if item not in now:
                    called = _called(item)
                    yield f"another {called}" if called in after else f"{name} with {called}"
            yield from (f"{name} without {item}" for item in after if item not in before)
        else:
            yield f"{at}{name}={json.dumps(was):.80}" if name in old else f"no {at}{name}"


def _set(value: Any) -> Any:
    """Plain data without what is not set."""
    if isinstance(value, list):
        return [_set(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {name: _set(item) for name, item in value.items()}
    return {name: item for name, item in inner.items() if item not in (None, {}, [], "")}


def _plain(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | str) for value in values)


def _called(item: Any) -> str:
    if isinstance(item, list):
        return "+".join(map(_called, item))
    return str(item.get("label") or item.get("name")) if isinstance(item, dict) else str(item)
