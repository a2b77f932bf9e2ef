"""Attacks on records and attributes in an experiment: what is asked of their keys, their tasks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator._problem import Problem, nearest
from orchestrator.defended import Case
from orchestrator.entries import AttackEntry, DatasetEntry
from storage import datasets, splits
from tasks import architectures, plugins
from tasks.answers import Answers
from tasks.base import Rows, stream
from tasks.data_attack import DataAttack
from tasks.run_attribute import RunAttribute, attribute_values
from tasks.run_inversion import RunInversion
from tasks.train_target import TrainTarget

__all__ = ["data_attack", "data_problems"]

_FEWEST_SEEN = 2  # records of a value, for it to count as one the attacker has met
_MOST_LISTED = 10
_SMALLEST_IMAGE = 4  # in pixels, for the identity network


def data_attack(
    case: Case, answers: Answers, plugin: Any, entry: AttackEntry, judge: splits.Judge
) -> tuple[str, DataAttack] | None:
    """The kind of cell and the task of an attack that is not after membership, else None."""
    match plugins.aim(type(plugin)):
        case "attribute":
            assert entry.column is not None, "checked with the file"
            return "attribute", RunAttribute(
                case.seed, answers, plugin, judge, entry.column, entry.layer or "answers"
            )
        case "inversion":
            identity = case.once(("identity", judge), lambda: _identity(case, judge))
            return "inversion", RunInversion(case.seed, answers, plugin, judge, identity)
    return None


def _identity(case: Case, judge: splits.Judge) -> TrainTarget | None:
    """The network reconstructions are shown to, for images: of the same kind for every target."""
    if len(case.dataset.shape) != 3 or min(case.dataset.shape[1:]) < _SMALLEST_IMAGE:
        return None
    groups, reference = case.divided.groups, case.divided.reference
    judged = case.divided.judged(judge)[0]
    rows = np.sort(reference[~np.isin(groups[reference], groups[judged])])
    return TrainTarget(
        seed=stream(case.seed, "inversion.identity"),
        split=case.split,
        architecture=architectures.make("cnn_s"),
        rows=Rows(rows),
    )


def data_problems(
    attacks: Sequence[tuple[str, AttackEntry]],
    seed: int,
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
) -> Iterator[Problem]:
    """What is wrong with keys that have a meaning only here, or none here.

    Args:
        attacks: those that can be read, each with its path.
        seed: the first of the experiment.
        readable: the datasets that could be loaded.
    """
    for path, entry in attacks:
        try:
            aim = plugins.aim(plugins.attack(entry.name))
        except ValueError:
            continue  # an unknown name is told elsewhere
        if aim == "attribute":
            yield from _column(entry, path, seed, readable)
        for key, given in (("column", entry.column), ("layer", entry.layer)):
            if given is not None and aim != "attribute":
                yield Problem(f"{path}.{key}", f"{entry.name} infers no attribute; drop this key")
        if aim != "membership" and entry.fit_on == "clean":
            message = (
                f"{entry.name} is fitted on what the service answers (fit_on: defended); "
                "drop this key"
            )
            yield Problem(f"{path}.fit_on", message)


def _column(
    entry: AttackEntry,
    path: str,
    seed: int,
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
) -> Iterator[Problem]:
    """Whether every dataset has the attribute, and the attacker enough records to learn it."""
    if entry.column is None:
        known = sorted({name for _, dataset in readable for name in _possible(dataset)})
        there = f": {_listed(known)}" if known else "; the datasets here have no such column"
        yield Problem(path, f"needs a key 'column', the attribute to infer{there}")
        return
    for given, dataset in readable:
        if entry.column not in dataset.extras:
            known = sorted(_possible(dataset))
            has = nearest(entry.column, known) if known else "; it has none beside its features"
            message = f"'{dataset.name}' has no column '{entry.column}'{has}"
            yield Problem(f"{path}.column", message)
            continue
        try:
            value, names = attribute_values(dataset, entry.column)
            split = given.division(seed, dataset.content_hash).divide(dataset)
            own, judged = _own(split, given.judge), split.judged(given.judge)[0]
        except ValueError as error:
            yield Problem(f"{path}.column", str(error))
            continue
        count = np.bincount(value[own][value[own] >= 0], minlength=len(names))
        if np.sum(count >= _FEWEST_SEEN) < _FEWEST_SEEN or not (value[judged] >= 0).any():
            message = (
                f"of the {len(own)} records of '{dataset.name}' an attacker holds {count.sum()} "
                f"have a '{entry.column}', and two values with two records each are needed; "
                "make the split larger"
            )
            yield Problem(f"{path}.column", message)


def _possible(dataset: datasets.Dataset) -> list[str]:
    """The columns that could be an attribute to infer."""
    found = []
    for name in dataset.extras:
        try:
            attribute_values(dataset, name)
        except ValueError:
            continue
        found.append(name)
    return found


def _own(split: splits.Split, judge: splits.Judge) -> NDArray[np.int64]:
    fit_rows, _, cal_rows, _ = split.known(judge)
    return np.concatenate([fit_rows, cal_rows])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
