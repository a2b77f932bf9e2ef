"""What `sfumato data` shows: the datasets that are here, and one of them looked at closely."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from orchestrator._data_notes import catalogue_notes, column_notes
from orchestrator.check import load_experiment
from orchestrator.data_check import (
    Column,
    Finding,
    class_findings,
    duplicate_findings,
    label_findings,
    membership_findings,
    order_findings,
)
from orchestrator.source import packaged, readable
from storage import datasets
from storage.datasets import Dataset, Source
from storage.given import GIVEN_ROLES, counted

__all__ = ["Subject", "findings", "here", "print_check", "subjects"]

_MOST_VALUES = 40_000_000  # looked at, column by column: 160 MB
_FEWEST_ROWS = 2_000
_FEWEST = 10
_CONSTANT = 0.999


@dataclass(frozen=True)
class Subject:
    """A dataset to look at.

    Attributes:
        dataset: as a run would load it.
        where: the file, or where else it comes from.
        given: [n], "members", "reference", "nonmembers" or empty; None if no split is given.
        column: the column they come from; None if they are drawn by sizes.
        seed: of the draw.
        dedup: how a run would treat equal records.
    """

    dataset: Dataset
    where: str
    given: NDArray[np.str_] | None = None
    column: str | None = None
    seed: int = 0
    dedup: str = "group"


def here(data_dir: Path | None) -> Table:
    """Every dataset by name, the files of one's own in the data folder, and which are here."""
    table = Table(box=None, pad_edge=False)
    for name in ("name", "here", "records", "classes", "shape", "kind", "file", "sha256"):
        right = name in ("records", "classes")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "file")
    for info in datasets.names(data_dir):
        path = info.path if info.available else None
        table.add_row(
            info.name,
            "yes" if info.available else "no",
            f"{info.rows:,}",
            str(info.classes),
            _shape(info.shape),
            info.kind,
            path.name if path else "comes with Sfumato" if info.available else "",
            _checksum(path) if path else "",
        )
    for path in datasets.own_files(data_dir):
        try:
            own = datasets.load(Source(path.stem), data_dir)
        except (ValueError, OSError) as error:
            table.add_row(path.stem, "no", "", "", "", "", f"{path.name}: {error}", _checksum(path))
            continue
        shape, size = _shape(own.shape), f"{len(own):,}"
        table.add_row(
            path.stem,
            "yes",
            size,
            str(own.num_classes),
            shape,
            own.kind,
            path.name,
            _checksum(path),
        )
    return table


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def subjects(name: str, column: str | None, data_dir: Path | None) -> list[Subject]:
    """What a name stands for.

    Args:
        name: a dataset, a Parquet or npz file, or an experiment, whose datasets are all meant.
        column: a column whose values are "members", "reference" and "nonmembers", if any.
        data_dir: where datasets are looked for.

    Raises:
        ValueError: if it stands for nothing, or the column does not tell who is a member.
        OSError: if the file cannot be read.
    """
    suffix = Path(name).suffix.lower()
    if name in packaged() or suffix in (".yaml", ".yml"):
        if column is not None:
            raise ValueError(
                f"--split-column {column}: the experiment '{name}' says itself how its datasets "
                "are divided; drop the option, or name the file of the data"
            )
        return list(_of_experiment(name, data_dir))
    beside = () if column is None else (column,)
    path = _path(name, data_dir)
    source = Source(Path(name).stem if path else name, path, beside=beside)
    dataset = datasets.load(source, data_dir)
    dataset.check_images()
    if column is None:
        return [Subject(dataset, _where(source, data_dir))]
    given = _given(dataset, column)
    return [Subject(dataset, _where(source, data_dir), given, column)]


def _path(name: str, data_dir: Path | None) -> str | None:
    """The absolute path that a name is, None if it is that of a dataset."""
    path = Path(name).expanduser()
    known = name in {info.name for info in datasets.names()} or datasets.in_data_dir(name, data_dir)
    # No dataset has a dot or a slash in its name.
    is_path = path.suffix or len(path.parts) > 1 or (path.is_dir() and not known)
    return str(path.absolute()) if is_path else None


def _given(dataset: Dataset, column: str) -> NDArray[np.str_]:
    values: NDArray[np.str_] = dataset.extras[column]
    for role in ("members", "nonmembers"):
        if (num := int((values == role).sum())) < _FEWEST:
            raise ValueError(
                f"column {column}: {num} rows are '{role}', at least {_FEWEST} are needed; its "
                f"values are {counted(values)}. If others stand for the roles, write an "
                f"experiment with split: {{column: {column}, {role}: …}} and name that instead"
            )
    return np.where(np.isin(values, GIVEN_ROLES), values, "")


def _of_experiment(name: str, data_dir: Path | None) -> Iterator[Subject]:
    experiment = load_experiment(name, (), data_dir)
    seed = experiment.seeds[0]
    for entry in experiment.datasets:
        dataset = datasets.load(entry.source, data_dir)
        dataset.check_images()
        task = entry.division(seed, dataset.content_hash)
        divided = task.divide(dataset)
        given = np.full(len(dataset), "", dtype="U15")
        for role in GIVEN_ROLES:
            given[getattr(divided, role)] = role
        by = task.column.column if task.column else None
        yield Subject(dataset, _where(entry.source, data_dir), given, by, seed, entry.dedup)


def _where(source: Source, data_dir: Path | None) -> str:
    if source.path is not None:
        return source.path
    found = datasets.in_data_dir(source.name, data_dir)
    return str(found) if found else "comes with Sfumato"


def print_check(console: Console, subject: Subject) -> bool:
    """Print facts and findings.

    Returns:
        Whether there is a risk.
    """
    dataset = subject.dataset
    heading = readable(f"{dataset.name}: {subject.where}")
    console.print(heading, style="bold", soft_wrap=True)
    rows = _sample(np.arange(len(dataset)), dataset)
    columns = _columns(subject, rows)
    facts = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    for fact, value in _facts(subject, columns, len(rows)):
        facts.add_row(fact, readable(value))
    console.print(facts)
    found = list(findings(subject, columns, rows))
    lines = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    for finding in found:
        style = "bold" if finding.verdict == "risk" else None
        lines.add_row(finding.verdict, finding.what, readable(finding.message), style=style)
    console.print(lines)
    return any(finding.verdict == "risk" for finding in found)


def findings(subject: Subject, columns: list[Column], rows: NDArray[np.int64]) -> Iterator[Finding]:
    """Every question that can be asked of the dataset and its split, answered.

    Args:
        subject: the dataset.
        columns: of `rows`.
        rows: [k] distinct row numbers in random order.
    """
    dataset, given = subject.dataset, subject.given
    yield from label_findings(columns, dataset.y[rows])
    if given is not None:
        both = _distinct(dataset, given)
        drawn = subject.column is None
        yield from class_findings(dataset.y, both, given[both] == "members", drawn=drawn)
        yield from duplicate_findings(dataset.groups, given, subject.dedup)
        asked = _sample(both, dataset)
        yield from membership_findings(_columns(subject, asked), given[asked] == "members")
    else:
        message = "no split given, so nothing is known of members: add --split-column"
        yield Finding("note", "membership", f"{message}, or name an experiment that has one")
    yield from order_findings(dataset.y)
    if dataset.columns:
        named = re.fullmatch("f[0-9]+", dataset.columns[0]) is not None
        yield from column_notes(columns, named)
    if dataset.columns or dataset.kind == "image":  # from a file
        for info in datasets.names():
            if info.name == dataset.name:
                yield from catalogue_notes(dataset, info)


def _distinct(dataset: Dataset, given: NDArray[np.str_]) -> NDArray[np.int64]:
    """Members and nonmembers, one row of each record a side: copies are no further evidence."""
    both = np.flatnonzero((given == "members") | (given == "nonmembers"))
    record = 2 * dataset.groups[both] + (given[both] == "members")
    return both[np.unique(record, return_index=True)[1]]


def _sample(rows: NDArray[np.int64], dataset: Dataset) -> NDArray[np.int64]:
    """Rows in random order, as many of them as there is room for."""
    most = max(_FEWEST_ROWS, _MOST_VALUES // int(np.prod(dataset.shape)))
    return np.random.default_rng(0).permutation(rows)[:most]


def _columns(subject: Subject, rows: NDArray[np.int64]) -> list[Column]:
    """Features, and columns beside them but the one that gives the roles."""
    dataset = subject.dataset
    x_ND = dataset.x(rows).reshape(len(rows), -1)
    names = dataset.columns or tuple(map(str, range(x_ND.shape[1])))
    features = [Column(name, x_ND[:, i]) for i, name in enumerate(names)]
    beside = [
        Column(name, array[rows], is_feature=False)
        for name, array in dataset.extras.items()
        # A pandas index numbers the rows of its frame; it describes no record.
        if array.ndim == 1 and name != subject.column and not name.startswith("__index_level_")
    ]
    return features + beside


def _facts(subject: Subject, columns: list[Column], num_rows: int) -> Iterator[tuple[str, str]]:
    dataset = subject.dataset
    features = [column for column in columns if column.is_feature]
    yield "records", f"{len(dataset):,}"
    yield "shape", f"{_shape(dataset.shape)} ({dataset.kind})"
    of_class = np.bincount(dataset.y)
    small = np.flatnonzero(of_class < _FEWEST)
    few = f"; {len(small)} with less than {_FEWEST} records" if len(small) else ""
    yield (
        "classes",
        f"{dataset.num_classes}, of {of_class.min():,} to {of_class.max():,} records (imbalance "
        f"{of_class.max() / of_class.min():.1f}){few}",
    )
    repeats = np.bincount(dataset.groups)
    repeats = repeats[repeats > 1]
    equal = f"{repeats.sum():,} rows are copies of {len(repeats):,} records"
    yield "duplicates", equal if len(repeats) else "none"
    low = min(column.values.min() for column in features)
    high = max(column.values.max() for column in features)
    flat = [c.name for c in features if _commonest(c.values) >= _CONSTANT]
    sampled = f" (of {num_rows:,} rows drawn)" if num_rows < len(dataset) else ""
    yield "values", f"{low:g} to {high:g}{sampled}"
    named = f" ({', '.join(flat[:5])}{', …' if len(flat) > 5 else ''})" if flat else ""
    yield "near-constant", f"{len(flat)} of {len(features)} features{named}"
    if beside := [column.name for column in columns if not column.is_feature]:
        yield "beside", ", ".join(beside)
    if subject.given is not None:
        how = f"column {subject.column}" if subject.column else f"by sizes, seed {subject.seed}"
        counts = [f"{(subject.given == role).sum():,} {role}" for role in GIVEN_ROLES]
        yield "split", f"{how}: {', '.join(counts)}"


def _commonest(values: NDArray[np.float32]) -> float:
    """The share of the commonest value."""
    return float(np.unique(values, return_counts=True)[1].max()) / len(values)
