"""The `reference:` of a defense: what it means in an experiment, and whether it can be had."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.entries import DatasetEntry, DefenseEntry, ReferenceEntry
from orchestrator.source import Problem, nearest
from storage import datasets, splits
from storage.datasets import Dataset, Source
from tasks import plugins
from tasks.base import Data
from tasks.reference import ReferenceFrom, check_input

__all__ = ["ROLES", "reference_from", "reference_problems"]

_LEAST = 10
ROLES = ("reference", "members", "nonmembers", "random")


def reference_from(
    entry: ReferenceEntry | None, entries: Sequence[DatasetEntry], data_dir: Path | None
) -> ReferenceFrom | None:
    """The records as a task names them; None for all of D2, as without the key.

    Args:
        entry: of a defense.
        entries: the experiment's datasets, whose names may be given too.
        data_dir: where datasets are looked for.
    """
    if entry is None or (entry.source == "reference" and entry.size is None):
        return None
    if entry.source in ROLES:
        return ReferenceFrom.model_validate({"role": entry.source, "size": entry.size})
    source = _source(entry.source, entries)
    data = Data(source, datasets.load(source, data_dir).content_hash)
    return ReferenceFrom(role="dataset", size=entry.size, data=data)


def reference_problems(
    stages: Sequence[tuple[str, DefenseEntry]],
    loaded: Sequence[tuple[DatasetEntry, Dataset]],
    seed: int,
    data_dir: Path | None,
) -> Iterator[Problem]:
    """What is wrong with the references of defenses.

    Args:
        stages: every defense, with its path.
        loaded: the experiment's datasets that can be read.
        seed: the first of the experiment.
        data_dir: where datasets are looked for.
    """
    given = [(f"{path}.reference", entry, entry.reference) for path, entry in stages]
    asked = [(path, entry, reference) for path, entry, reference in given if reference]
    if not asked:
        return
    places = []
    for entry, dataset in loaded:
        try:
            split = entry.division(seed, dataset.content_hash).divide(dataset)
        except ValueError:  # told of the dataset
            continue
        places.append((entry, dataset, split))
    for path, defense, reference in asked:
        yield from _of_plugin(path, defense, reference)
        other: Dataset | None = None
        if reference.source not in ROLES:
            try:
                other = datasets.load(_source(reference.source, [e for e, _ in loaded]), data_dir)
            except (ValueError, OSError) as error:
                yield Problem(f"{path}.from", f"{error}{nearest(reference.source, ROLES)}")
                continue
        for entry, dataset, split in places:
            for key, message in _of_place(reference, entry, dataset, split, other):
                yield Problem(f"{path}.{key}" if key else path, message)


def _source(name: str, entries: Sequence[DatasetEntry]) -> Source:
    return next((entry.source for entry in entries if entry.name == name), Source(name))


def _of_plugin(path: str, defense: DefenseEntry, reference: ReferenceEntry) -> Iterator[Problem]:
    try:
        cls = plugins.defense(defense.name)
    except ValueError:  # told of the defense
        return
    if not (hasattr(cls, "fit") or hasattr(cls, "train")):
        yield Problem(path, f"'{defense.name}' is fitted on nothing; drop the key")
    elif hasattr(cls, "train") and reference.source not in ROLES[:-1]:
        message = (
            f"'{defense.name}' shapes the training of the model; records of '{reference.source}' "
            f"have no class until a model predicts it; give {', '.join(ROLES[:-1])}"
        )
        yield Problem(f"{path}.from", message)


def _of_place(
    reference: ReferenceEntry,
    entry: DatasetEntry,
    dataset: Dataset,
    split: splits.Split,
    other: Dataset | None,
) -> Iterator[tuple[str, str]]:
    """Keys and messages about one dataset of the experiment."""
    if entry.judge == "reference":
        message = (
            f"'{entry.name}' is judged by its reference (judge: reference), which tells something "
            "only of a defense fitted on all of it; drop the key, or judge members"
        )
        yield "", message
    if entry.judge == "defender" and reference.source == "nonmembers":
        message = (
            f"'{entry.name}' is judged by its defender (judge: defender), who has no nonmembers; "
            "give reference, members, random or another dataset"
        )
        yield "from", message
        return
    if other is not None:
        try:
            check_input(other, dataset)
        except ValueError as error:
            yield "from", str(error)
            return
        has, what = len(other), f"'{other.name}' has {len(other)}"
    elif reference.source == "random":
        if reference.size is None and not len(split.reference):
            yield "", f"needs a size, as '{entry.name}' has no reference to take it from"
        return
    else:
        has = len(getattr(split, reference.source))
        named = "reference records" if reference.source == "reference" else reference.source
        what = f"'{entry.name}' has {has} {named}"
    if reference.size is not None and reference.size > has:
        yield "size", f"wants {reference.size} records, but {what}; make it {has} or less"
    elif has < _LEAST:
        yield "", f"needs {_LEAST} records or more, but {what}"
