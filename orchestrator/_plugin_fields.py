"""The fields of a plugin in an experiment: their values, at every point of a grid."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from attacks.base import Attack
from orchestrator._problem import Problem
from orchestrator._wording import field_problem, kind_problems
from orchestrator.entries import MOST_POINTS, AttackEntry, DefenseEntry, grid_points, point_label
from tasks.base import canonical

__all__ = ["endless", "faults", "fields", "repeated", "suffixes"]


def _num_points(entry: DefenseEntry | AttackEntry) -> int:
    return math.prod(len(values) for values in entry.grid.values())


def suffixes(entry: DefenseEntry | AttackEntry) -> list[str]:
    """What the points of its grid add to its label; as one if they are too many."""
    if _num_points(entry) > MOST_POINTS:
        return [""]
    return [point_label(entry, values) for values in grid_points(entry)]


def fields(
    cls: type[BaseModel],
    presets: Sequence[Mapping[str, Any]],
    entry: DefenseEntry | AttackEntry,
    path: str,
) -> Iterator[Problem]:
    """Problems of a plugin's fields, at every point of its grid and for every dataset's preset."""
    if _num_points(entry) > MOST_POINTS:
        message = f"spans {_num_points(entry)} points; at most {MOST_POINTS} run in one experiment"
        yield Problem(f"{path}.grid", message)
        return
    for name in entry.grid:
        if name in entry.params:
            yield Problem(f"{path}.grid.{name}", "is also given as a field; keep one")
    own = [name for name in type(entry).model_fields if name not in ("params", "name")]
    for preset, values in itertools.product(presets, grid_points(entry)):
        try:
            made = cls.model_validate({**preset, **values})
        except ValidationError as error:
            for detail in error.errors():
                first = detail["loc"][0] if detail["loc"] else None
                place = f"{path}.grid" if first in entry.grid else path
                yield field_problem(detail, place, [*cls.model_fields, *own])
        else:
            yield from endless(made, path)
            for name, value in values.items():
                below = f"{path}.grid" if name in entry.grid else path
                yield from kind_problems(value, getattr(made, name), f"{below}.{name}")


def faults(
    cls: type[Attack],
    preset: Mapping[str, Any],
    entry: AttackEntry,
    path: str,
    cases: Sequence[tuple[tuple[int, ...], bool]],
) -> Iterator[Problem]:
    """What an attack says against its fields, for every shape of records and form it would run."""
    if _num_points(entry) > MOST_POINTS:
        return
    messages: dict[str, None] = {}
    for values in grid_points(entry):
        try:
            made = cls.model_validate({**preset, **values})
        except ValidationError:
            continue  # told by `fields`
        messages |= {made.fault(shape, adaptive=form): None for shape, form in cases}
    yield from (Problem(path, message) for message in messages if message)


def endless(made: BaseModel, path: str) -> Iterator[Problem]:
    """NaN and infinities, which pass for numbers but have no place in a task's key."""
    for name in type(made).model_fields:
        try:
            canonical(getattr(made, name))
        except ValueError:
            message = f"must be finite, got {getattr(made, name)!r:.60}"
            yield Problem(f"{path}.{name}", message)


def repeated(named: Sequence[tuple[str, str]], remedy: str) -> Iterator[Problem]:
    """Problems of names (path, name) given twice."""
    first: dict[str, str] = {}
    for path, name in named:
        if name in first:
            yield Problem(path, f"'{name}' is given before, as {first[name]}; {remedy}")
        first.setdefault(name, path)
