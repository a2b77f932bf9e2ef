"""The searched fields of a defense: their kinds, their conditions, and defenses made of values."""

import json
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, Union, get_args, get_origin

from orchestrator._problem import nearest
from orchestrator.entries import DefenseEntry
from orchestrator.tune_entry import Dimension, TuneEntry
from tasks import plugins

__all__ = ["Axis", "Suggests", "axes", "defended_by", "grid_of", "start", "suggest"]

_SCALARS = bool | int | float | str | None


class Suggests(Protocol):
    """What a trial of Optuna's offers."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Axis:
    """A searched field.

    Attributes:
        key: as the space names it, which is also Optuna's name for it.
        stage: which defense of the chain.
        field: of the defense.
        dimension: its range.
        whole: whether it takes whole numbers only.
        conditions: (stage, field, values): searched only where that field has one of them.
    """

    key: str
    stage: int
    field: str
    dimension: Dimension
    whole: bool
    conditions: tuple[tuple[int, str, list[Any]], ...] = ()

    def suggest(self, trial: Suggests) -> Any:
        """A value from a trial."""
        dimension = self.dimension
        if dimension.choices is not None:
            told = trial.suggest_categorical(self.key, self.shown)
            return dimension.choices[self.shown.index(told)]
        low, high, step = dimension.low, dimension.high, dimension.step
        assert low is not None
        assert high is not None
        with warnings.catch_warnings():
            # Steps need not end at `high`: Optuna then ends a range where they do, and says so.
            warnings.filterwarnings("ignore", "The distribution is specified by")
            if self.whole:
                return trial.suggest_int(
                    self.key, int(low), int(high), step=int(step or 1), log=dimension.log
                )
            return trial.suggest_float(
                self.key,
                float(low),
                float(high),
                step=None if step is None else float(step),
                log=dimension.log,
            )

    @property
    def stepped(self) -> list[Any]:
        """The values of a range with steps, of which the last may be below its end."""
        low, high = self.dimension.low, self.dimension.high
        step = self.dimension.step or 1
        assert low is not None
        assert high is not None
        # In decimals, as 3 * 0.1 is not 0.3.
        first, last, by = (Decimal(str(number)) for number in (low, high, step))
        values = [first + i * by for i in range(int((last - first) // by) + 1)]
        return [int(value) if self.whole else float(value) for value in values]

    @property
    def shown(self) -> list[Any]:
        """Choices as Optuna can keep them: lists and mappings as JSON."""
        assert self.dimension.choices is not None
        return [v if isinstance(v, _SCALARS) else json.dumps(v) for v in self.dimension.choices]

    def holds(self, value: Any) -> bool:
        """Whether a value of the field is in the range."""
        dimension = self.dimension
        if dimension.choices is not None:
            return _plain(value) in dimension.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert dimension.low is not None
        assert dimension.high is not None
        if not dimension.low <= value <= dimension.high:
            return False
        steps = 0.0 if dimension.step is None else (value - dimension.low) / dimension.step
        return abs(steps - round(steps)) < 1e-9

    def kept(self, value: Any) -> Any:
        """A value of the field as Optuna keeps it."""
        choices = self.dimension.choices
        return value if choices is None else self.shown[choices.index(_plain(value))]


def _plain(value: Any) -> Any:
    """As YAML has it, to which a tuple is a list."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def axes(tune: TuneEntry) -> tuple[Axis, ...]:
    """The searched fields in the order given.

    Raises:
        ValueError: a key that names no field, or a condition that cannot be decided; the message
            begins with the key.
    """
    found: list[Axis] = []
    for key, dimension in tune.space.items():
        stage, field = _place(tune.defense, key)
        cls = plugins.defense(tune.defense[stage].name)
        if field not in cls.model_fields:
            near = nearest(field, list(cls.model_fields))
            raise ValueError(
                f"{key}: '{tune.defense[stage].name}' has no field '{field}'"
                f"{near or '; it has ' + ', '.join(cls.model_fields)}"
            )
        whole = _is_whole(cls.model_fields[field].annotation)
        numbers = [n for n in (dimension.low, dimension.high, dimension.step) if n is not None]
        if whole and any(number != int(number) for number in numbers):
            raise ValueError(f"{key}: takes whole numbers, got {numbers}")
        if twin := next((a.key for a in found if (a.stage, a.field) == (stage, field)), None):
            raise ValueError(f"{key}: is the same field as {twin}; keep one")
        conditions = tuple(_condition(tune, key, dimension, found))
        found.append(Axis(key, stage, field, dimension, whole, conditions))
    return tuple(found)


def _condition(
    tune: TuneEntry, key: str, dimension: Dimension, before: Sequence[Axis]
) -> Iterator[tuple[int, str, list[Any]]]:
    for other, wanted in dimension.when.items():
        try:
            stage, field = place = _place(tune.defense, other)
        except ValueError as error:
            raise ValueError(f"{key}: when names {error}") from None
        known = list(plugins.defense(tune.defense[stage].name).model_fields)
        if field not in known:
            near = nearest(field, known) or f"; it has {', '.join(known)}"
            name = tune.defense[stage].name
            raise ValueError(f"{key}: when names '{other}', but '{name}' has no such field{near}")
        searched = [_place(tune.defense, name) for name in tune.space]
        if place in searched and place not in [(axis.stage, axis.field) for axis in before]:
            raise ValueError(f"{key}: when names '{other}', which must stand before it")
        yield stage, field, wanted if isinstance(wanted, list) else [wanted]


def _place(chain: Sequence[DefenseEntry], key: str) -> tuple[int, str]:
    """Which defense of a chain a key means, and which of its fields."""
    name, dot, field = key.rpartition(".")
    if not dot:
        if len(chain) == 1:
            return 0, key
        raise ValueError(
            f"{key}: a chain of {' and '.join(e.name for e in chain)} needs DEFENSE.{key}"
        )
    named = [i for i, entry in enumerate(chain) if name in (entry.name, entry.label)]
    if len(named) != 1:
        known = ", ".join(entry.label or entry.name for entry in chain)
        raise ValueError(f"{key}: '{name}' is not one defense of the chain; it has {known}")
    return named[0], field


def _is_whole(annotation: Any) -> bool:
    """Whether a field is of whole numbers, perhaps or None."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return bool(kinds) and all(map(_is_whole, kinds))
    return annotation is int


def suggest(
    trial: Suggests, searched: Sequence[Axis], given: Mapping[tuple[int, str], Any]
) -> dict[str, Any]:
    """Values by key, of the fields whose conditions hold.

    Args:
        trial: of Optuna's; what it has suggested before it suggests again.
        searched: in an order in which conditions can be decided.
        given: (stage, field) -> value of fields that are not searched.
    """
    values: dict[str, Any] = {}
    for axis in searched:
        if _holds(axis, values, searched, given):
            values[axis.key] = axis.suggest(trial)
    return values


def start(searched: Sequence[Axis], given: Mapping[tuple[int, str], Any]) -> dict[str, Any] | None:
    """The defense as given, as Optuna keeps it; None if the space does not hold it."""
    values: dict[str, Any] = {}
    for axis in searched:
        value = given[axis.stage, axis.field]
        if not _holds(axis, values, searched, given):
            continue
        if not axis.holds(value):
            return None
        values[axis.key] = value
    return {axis.key: axis.kept(values[axis.key]) for axis in searched if axis.key in values}


def _holds(
    axis: Axis,
    values: Mapping[str, Any],
    searched: Sequence[Axis],
    given: Mapping[tuple[int, str], Any],
) -> bool:
    keys = {(other.stage, other.field): other.key for other in searched}
    for stage, field, wanted in axis.conditions:
        key = keys.get((stage, field))
        if key is not None and key not in values:
            return False  # its own condition does not hold
        value = given.get((stage, field)) if key is None else values[key]
        if _plain(value) not in wanted:
            return False
    return True


def defended_by(
    chain: Sequence[DefenseEntry],
    searched: Sequence[Axis],
    values: Mapping[str, Any],
    label: str | None = None,
) -> list[DefenseEntry]:
    """The chain with values in place of its own, its last defense called `label`."""
    made = []
    for stage, entry in enumerate(chain):
        own = {a.field: values[a.key] for a in searched if a.stage == stage and a.key in values}
        changes: dict[str, Any] = {"params": {**entry.params, **own}}
        if label is not None and stage == len(chain) - 1:
            changes["label"] = label
        made.append(entry.model_copy(update=changes))
    return made


def grid_of(searched: Sequence[Axis]) -> dict[str, list[Any]]:
    """All values of every axis, for a grid.

    Raises:
        ValueError: for a range without steps; the message begins with the key.
    """
    grid: dict[str, list[Any]] = {}
    for axis in searched:
        dimension = axis.dimension
        if dimension.choices is not None:
            grid[axis.key] = axis.shown
            continue
        step = dimension.step or (1 if axis.whole and not dimension.log else None)
        if step is None:
            raise ValueError(f"{axis.key}: a grid needs choices, or low and high with a step")
        grid[axis.key] = axis.stepped
    return grid
