"""What a submitted experiment brings along: its file with every setting in it, data, our code."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import orchestrator
from cluster._package import released, source_files, write_wheel, write_zip
from cluster.jobs import MOST_BYTES
from orchestrator.check import load_experiment
from orchestrator.compare import load_studies
from orchestrator.config import Experiment
from orchestrator.entries import DatasetEntry
from orchestrator.source import ConfigError, Problem, read
from storage import datasets

__all__ = ["Shipment", "make_shipment"]

PACKAGES = ("orchestrator", "tasks", "defenses", "attacks", "storage", "cluster")
_DATA = "data"  # the folder with data, in the job's


@dataclass
class Shipment:
    """What is sent.

    Attributes:
        name: of the experiment.
        file: its file in the job's folder.
        content: of that folder but for our code: name -> what it holds, or the file that does.
        data: the files that go along, in the job's folder.
        named: whether some of them are found there by their names.
        unchecked: datasets that are not on this machine.
    """

    name: str
    file: str
    content: dict[str, bytes | Path] = field(default_factory=dict)
    data: dict[Path, str] = field(default_factory=dict)
    named: bool = False
    unchecked: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Make the archive of the job's folder, and a wheel of our code if that is a release.

        Code that is being developed is in the archive, so that the very files of this process run.
        """
        content = dict(self.content)
        init = Path(orchestrator.__file__)
        release = released("sfumato", init)
        wheel = None if release is None else write_wheel(folder, release)
        if wheel is None:
            content |= source_files(init.parent.parent, PACKAGES, "sfumato")
        archive = folder / "job.zip"
        write_zip(archive, content)
        return archive, wheel


def make_shipment(
    name: str,
    overrides: Sequence[str],
    *,
    tune: bool,
    data_dir: str | None,
    data_stays: bool,
) -> Shipment:
    """Check an experiment as `run` or `tune` would, and gather what it needs.

    Args:
        name: a packaged experiment, or the path of a YAML file.
        overrides: "key=value" each.
        tune: whether it is searched, not run.
        data_dir: where the cluster has the named datasets; None sends those that SFUMATO_DATA has.
        data_stays: whether the cluster sees the data under the same paths, so that none is sent.

    Raises:
        ConfigError: with every problem found.
        ValueError: if its data are too large to be sent.
    """
    here = _data_here(data_dir)
    away = data_stays or data_dir is not None
    if not tune:
        experiment, unchecked = _load(name, overrides, here, away)
        shipment = Shipment(experiment.name, f"{experiment.name}.yaml", unchecked=unchecked)
        experiments = [experiment]
    elif "compare" in read(name).raw:
        comparison, experiments = load_studies(name, overrides, here)
        assert comparison is not None
        shipment = Shipment(comparison.name, f"{comparison.name}.compare.yaml")
        told = comparison.model_dump(mode="json")
        told["compare"] = [f"{each.name}.yaml" for each in experiments]
        shipment.content[shipment.file] = _yaml(told)
    else:
        experiment, unchecked = _load(name, overrides, here, away)
        if experiment.tune is None:
            load_studies(name, overrides, here)  # says so
        shipment = Shipment(experiment.name, f"{experiment.name}.yaml", unchecked=unchecked)
        experiments = [experiment]
    for each in experiments:
        resolved = each.resolved()
        if not data_stays:
            for entry in resolved["datasets"]:
                _send_own(shipment, entry)
            if data_dir is None:
                _send_named(shipment, resolved, here)
        shipment.content[f"{each.name}.yaml"] = _yaml(resolved)
    _check_size(shipment)
    shipment.content |= {inside: path for path, inside in shipment.data.items()}
    return shipment


def _data_here(data_dir: str | None) -> Path | None:
    """The data folder of this machine, to check with."""
    for given in (data_dir, os.environ.get("SFUMATO_DATA")):
        if given and Path(given).is_dir():
            return Path(given).absolute()
    return None


def _load(
    name: str, overrides: Sequence[str], here: Path | None, away: bool
) -> tuple[Experiment, list[str]]:
    """The checked experiment, and the datasets that only the cluster may have."""
    try:
        return load_experiment(name, overrides, here), []
    except ConfigError as error:
        content = read(name)
        for override in overrides:
            content.set(override)
        content.raw.setdefault("name", content.path.stem)
        missing = _missing(content.raw, here)
        of = {problem: _meant(problem, missing) for problem in error.problems}
        if not any(of.values()):
            raise
        if away:
            problems = [problem for problem, dataset in of.items() if not dataset]
        else:
            remedy = "; if the cluster has it: --data-stays, or --data-dir as it is there"
            problems = [
                Problem(p.path, p.message + (remedy if dataset else ""), p.line)
                for p, dataset in of.items()
            ]
        if problems:
            raise ConfigError(error.name, problems) from None
        return Experiment.model_validate(content.raw), sorted({d for d in of.values() if d})


def _missing(raw: Mapping[str, Any], here: Path | None) -> dict[str, str]:
    """What is said of each dataset that is not on this machine -> its name."""
    told: dict[str, str] = {}
    known = {info.name for info in datasets.names()}
    sources = [datasets.Source(text) for text in sorted({*_texts(raw)} & known)]
    given = raw.get("datasets")
    for entry in given if isinstance(given, list) else ():
        try:
            sources.append(DatasetEntry.model_validate(entry).source)
        except ValidationError:
            continue
    for source in sources:
        try:
            datasets.load(source, here)
        except FileNotFoundError as error:
            told[str(error)] = source.name
        except (ValueError, OSError, MemoryError):
            continue
    return told


def _meant(problem: Problem, missing: Mapping[str, str]) -> str:
    return next((name for text, name in missing.items() if text in problem.message), "")


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain data, but for keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _send_own(shipment: Shipment, entry: dict[str, Any]) -> None:
    """Have the file of a dataset go along, and the entry name it there."""
    if not entry.get("path"):
        return
    path = Path(entry["path"])
    # Named by the dataset, whose name is fit for one; its ending says how it is read.
    inside = f"{_DATA}/own{len(shipment.data)}_{entry['name']}{path.suffix}"
    entry["path"] = shipment.data.setdefault(path, inside)


def _send_named(shipment: Shipment, resolved: Mapping[str, Any], here: Path | None) -> None:
    """Have the data folder's files go along that something in the experiment names."""
    for text in sorted(set(_texts(resolved))):
        if (path := datasets.in_data_dir(text, here)) is not None:
            shipment.data.setdefault(path, f"{_DATA}/{path.name}")
            shipment.named = True


def _check_size(shipment: Shipment) -> None:
    sizes = {path: path.stat().st_size for path in shipment.data}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ValueError(
            f"the data have {sum(sizes.values()) / 2**20:.0f} MiB ({largest} alone "
            f"{sizes[largest] / 2**20:.0f}), more than the {MOST_BYTES >> 20} that Ray takes with "
            "a job. Put them on a disk that every node sees: with the same paths as here, add "
            "--data-stays; those that the file names without a path, --data-dir as it is there"
        )


def _yaml(plain: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True).encode()
