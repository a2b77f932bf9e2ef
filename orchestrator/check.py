"""An experiment file against what there is: every problem of keys, names, fields, labels, data."""

import itertools
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from pydantic import BaseModel, ValidationError

from defenses.base import Defense
from orchestrator._attack_checks import Asked, attack_problems
from orchestrator._extent import extent_problems
from orchestrator._plugin_fields import endless, fields, repeated, suffixes
from orchestrator._tune_checks import read_tune, tune_problems
from orchestrator._wording import field_problem, kind_problems, problem_of
from orchestrator.config import Experiment
from orchestrator.data_attacks import data_problems
from orchestrator.entries import (
    AttackEntry,
    DatasetEntry,
    DefenseEntry,
    Preset,
    TargetEntry,
    called,
    chain_label,
)
from orchestrator.references import reference_problems
from orchestrator.source import ConfigError, Problem, read
from orchestrator.tune_entry import TuneEntry
from storage import datasets
from tasks import architectures, plugins

__all__ = ["check", "load_experiment"]

_Part = TypeVar("_Part", bound=BaseModel)
_OF_TRIAL = re.compile(r"(.*\+)?trial \d+")
_MOST_WEIGHTS = 2_000_000_000
_SMALLEST_PART = 1
_MOST_IMAGES = 100  # decoded before a run; `sfumato data check` decodes all


@dataclass(frozen=True)
class _Chain:
    """The stages that can be read, each with its path; `whole` if those are all."""

    path: str
    stages: list[tuple[str, DefenseEntry]]
    whole: bool


@dataclass
class _Parts:
    """The parts of an experiment that can be read, each with its path, whatever the rest is."""

    preset: str = "cpu"
    adaptive: bool = False
    seeds: list[int] = field(default_factory=list)
    target: TargetEntry | None = None
    datasets: list[tuple[str, DatasetEntry]] = field(default_factory=list)
    chains: list[_Chain] = field(default_factory=list)
    attacks: list[tuple[str, AttackEntry]] = field(default_factory=list)


def load_experiment(
    name: str, overrides: Sequence[str] = (), data_dir: Path | None = None
) -> Experiment:
    """Read, override and check an experiment; its datasets are loaded and checked too.

    Args:
        name: a packaged experiment, or the path of a YAML file.
        overrides: "key=value" with a dotted path and a YAML value, such as "target.epochs=5".
        data_dir: where datasets are looked for.

    Raises:
        ConfigError: with every problem found.
    """
    content = read(name)
    if "compare" in content.raw and "datasets" not in content.raw:
        message = f"is a comparison of studies, which `sfumato tune {name}` searches and draws"
        raise ConfigError(str(content.path), [content.located(Problem("compare", message))])
    for override in overrides:
        content.set(override)
    content.raw.setdefault("name", content.path.stem)
    found = [content.located(problem) for problem in check(content.raw, data_dir)]
    problems = dict.fromkeys([*content.problems, *found])
    if problems:
        raise ConfigError(str(content.path), sorted(problems, key=lambda p: p.line or 0))
    return Experiment.model_validate(content.raw)


def check(raw: Mapping[str, Any], data_dir: Path | None) -> list[Problem]:
    """All problems of an experiment's content; none means that it can be planned.

    A part that is wrong hides no other: names, fields and data are checked wherever they can be
    read.

    Args:
        raw: the keys of the file.
        data_dir: where datasets are looked for.
    """
    problems: list[Problem] = []
    try:
        Experiment.model_validate(raw)
    except ValidationError as error:
        problems += [problem_of(detail, raw) for detail in error.errors()]
    parts = _parts(raw)
    loaded: list[tuple[str, datasets.Dataset]] = []
    readable: list[tuple[DatasetEntry, datasets.Dataset]] = []
    for path, entry in parts.datasets:
        dataset, found = _dataset(entry, path, parts.seeds[0], data_dir)
        problems += found
        loaded += [(entry.name, dataset)] if dataset is not None else []
        readable += [(entry, dataset)] if dataset is not None else []
    names = [(path, entry.name) for path, entry in parts.datasets]
    problems += repeated(names, "a dataset stands once in an experiment; drop one")
    seeds = [(f"seeds[{i}]", str(seed)) for i, seed in enumerate(parts.seeds)]
    problems += repeated(seeds, "drop one")
    if parts.target is not None:
        problems += _target(parts.target, parts.preset, loaded)
    # A plugin's presets may depend on the data; without any, on an ordinary set.
    known = [(name, dataset.num_classes) for name, dataset in loaded] or [("", 10)]
    problems += _defenses(parts, known)
    stages = [stage for parsed in parts.chains for stage in parsed.stages]
    problems += reference_problems(stages, readable, parts.seeds[0], data_dir)
    mine = {name for parsed in parts.chains for name in called([e for _, e in parsed.stages])}
    asked = Asked(parts.attacks, parts.preset, parts.adaptive, parts.seeds[0])
    problems += attack_problems(asked, mine, readable, data_dir)
    problems += data_problems(parts.attacks, parts.seeds[0], readable)
    chains = [[entry for _, entry in parsed.stages] for parsed in parts.chains]
    attacks = [entry for _, entry in parts.attacks]
    problems += extent_problems(len(parts.seeds), len(parts.datasets), chains, attacks)
    if (tune := read_tune(raw)) is not None:
        chain = _Chain("tune.defense", [*_tuned(tune)], whole=True)
        problems += _defenses(replace(parts, chains=[chain]), known)
        for parsed in parts.chains:
            if _OF_TRIAL.fullmatch(chain_label([entry for _, entry in parsed.stages])):
                message = "is labelled as the trials of a search are; give another label"
                problems.append(Problem(parsed.path, message))
        seed = (tune.seeds or parts.seeds)[0]
        problems += tune_problems(tune, parts.attacks, readable, parts.preset, seed, data_dir)
    return problems


def _tuned(tune: TuneEntry) -> Iterator[tuple[str, DefenseEntry]]:
    alone = len(tune.defense) == 1
    for i, entry in enumerate(tune.defense):
        yield "tune.defense" if alone else f"tune.defense[{i}]", entry


def _parts(raw: Mapping[str, Any]) -> _Parts:
    seeds = raw.get("seeds")
    parts = _Parts(preset=next((p for p in get_args(Preset) if p == raw.get("preset")), "cpu"))
    parts.adaptive = raw.get("adaptive") is True
    if isinstance(seeds, list):
        parts.seeds = [seed for seed in seeds if isinstance(seed, int) and 0 <= seed < 2**31]
    parts.seeds = parts.seeds or [0]
    parts.target = _read(TargetEntry, raw.get("target", {}))
    for i, given in enumerate(_list(raw, "datasets")):
        parts.datasets += _placed(DatasetEntry, given, f"datasets[{i}]")
    for i, given in enumerate(_list(raw, "attacks")):
        parts.attacks += _placed(AttackEntry, given, f"attacks[{i}]")
    for i, given in enumerate(_list(raw, "defenses")):
        path, stages = f"defenses[{i}]", []
        for j, stage in enumerate(given if isinstance(given, list) else [given]):
            below = f"{path}[{j}]" if isinstance(given, list) else path
            stages += _placed(DefenseEntry, stage, below)
        whole = len(stages) == (len(given) if isinstance(given, list) else 1)
        parts.chains.append(_Chain(path, stages, whole and bool(stages)))
    return parts


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    found = raw.get(key)
    return found if isinstance(found, list) else []


def _read(model: type[_Part], given: Any) -> _Part | None:
    try:
        return model.model_validate(given)
    except ValidationError:
        return None


def _placed(model: type[_Part], given: Any, path: str) -> list[tuple[str, _Part]]:
    entry = _read(model, given)
    return [] if entry is None else [(path, entry)]


def _dataset(
    entry: DatasetEntry, path: str, seed: int, data_dir: Path | None
) -> tuple[datasets.Dataset | None, list[Problem]]:
    try:
        dataset = datasets.load(entry.source, data_dir)
    except MemoryError:
        return None, [Problem(path, "does not fit in memory; make it smaller")]
    except OSError as error:
        place = f"{entry.path}: " if entry.path else ""
        why = f"{place}cannot be read: {error.strerror}; check `path`"
        return None, [Problem(path, why if error.strerror else str(error))]
    except ValueError as error:
        return None, [Problem(path, str(error))]
    try:
        dataset.check_images(_MOST_IMAGES)
    except ValueError as error:
        return dataset, [Problem(path, str(error))]
    try:
        _divide(entry, dataset, seed)
    except ValueError as error:
        return dataset, [Problem(f"{path}.split", str(error))]
    return dataset, []


def _divide(entry: DatasetEntry, dataset: datasets.Dataset, seed: int) -> None:
    """Divide it as the plan will.

    Raises:
        ValueError: if a role cannot be filled, or leaves an attack nothing to learn or to judge.
    """
    task = entry.division(seed, dataset.content_hash)
    given = (task.members, task.reference, task.nonmembers, 2 * task.untrained)
    if sum(given) > len(dataset):
        raise ValueError(
            f"wants {sum(given)} records ({' + '.join(map(str, given))}), "
            f"'{entry.name}' has {len(dataset)}; make it smaller"
        )
    if entry.judge == "untrained" and task.untrained < 10:
        has = f"split.untrained is {task.untrained}; make it 10 or more"
        none = f"the column {task.column.column} names none; give sizes" if task.column else ""
        raise ValueError(f"judge: untrained needs fresh records, {none or has}")
    split = task.divide(dataset)
    _, fit_member, _, cal_member = split.known(entry.judge)
    for part, is_member in (("to fit on", fit_member), ("to calibrate on", cal_member)):
        if len(is_member) < _SMALLEST_PART:
            raise ValueError(f"leaves an attacker no records {part}; make it larger")
        if entry.judge == "defender" and len(set(is_member)) < 2:
            side = "reference" if is_member.all() else "members"
            raise ValueError(
                f"leaves the defender's attacker no {side} {part} (judge: defender divides members "
                f"and reference once more); make {side} larger"
            )
    if not len(split.judged(entry.judge)[0]):
        raise ValueError("leaves no distinct records to judge; make it larger")


def _target(
    target: TargetEntry, preset: str, loaded: Sequence[tuple[str, datasets.Dataset]]
) -> Iterator[Problem]:
    if "name" in target.recipe:
        yield Problem("target.name", "is not a key here; did you mean 'architecture'?")
        return
    defaults = [
        architectures.default_architecture(name, dataset.kind, preset) for name, dataset in loaded
    ]
    chosen = [target.architecture] if target.architecture else defaults or ["mlp_s"]
    for name in dict.fromkeys(chosen):
        made = yield from _architecture(name, target.recipe)
        if made is None:
            continue
        yield from endless(made, "target")
        for (_, dataset), default in zip(loaded, defaults, strict=True):
            if name == (target.architecture or default):
                yield from _network(made, dataset)


def _architecture(
    name: str, recipe: Mapping[str, Any]
) -> Generator[Problem, None, architectures.Architecture | None]:
    """The architecture without what is wrong in its recipe, which is told."""
    try:
        made = architectures.make(name, **recipe)
    except ValidationError as error:
        known = [key for key in architectures.Architecture.model_fields if key != "name"]
        for detail in error.errors():
            yield field_problem(detail, "target", ["architecture", *known])
        wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
        rest = {key: value for key, value in recipe.items() if key not in wrong}
        return architectures.make(name, **rest) if len(rest) < len(recipe) else None
    except ValueError as error:
        yield Problem("target.architecture", str(error))
        return None
    for key, value in recipe.items():
        yield from kind_problems(value, getattr(made, key), f"target.{key}")
    return made


def _network(
    architecture: architectures.Architecture, dataset: datasets.Dataset
) -> Iterator[Problem]:
    """Whether it can be built for these records; on torch's meta device, so without memory."""
    try:
        with torch.device("meta"):
            network = architectures.build(architecture, dataset.shape, dataset.num_classes)
    except ValueError as error:
        yield Problem("target.architecture", str(error))
        return
    except (RuntimeError, TypeError, OverflowError) as error:
        what = str(error).split("\n", 1)[0]
        yield Problem("target", f"the network cannot be built: {what}; check its widths")
        return
    if architectures.count_parameters(network) > _MOST_WEIGHTS:
        yield Problem("target", f"has more than {_MOST_WEIGHTS} weights; make it narrower")


def _defenses(parts: _Parts, known: Sequence[tuple[str, int]]) -> Iterator[Problem]:
    labels: list[tuple[str, str]] = []
    for parsed in parts.chains:
        path = parsed.path
        for j, (place, entry) in enumerate(parsed.stages):
            cls = yield from _defense(entry.name, place)
            if cls is None:
                continue
            presets = [
                cls.preset(entry.preset or parts.preset, name, classes) for name, classes in known
            ]
            yield from fields(cls, presets, entry, place)
            if j and hasattr(cls, "train"):
                message = (
                    f"'{entry.name}' shapes the training of the model, so only the first of a "
                    f"chain can; write it first in {path}, with no other such defense"
                )
                yield Problem(place, message)
        chain = [entry for _, entry in parsed.stages]
        if sum(1 for entry in chain if entry.grid) > 1:
            yield Problem(path, "has more than one grid; only one defense of a chain may have one")
            continue
        if not parsed.whole:
            continue
        points = [suffixes(entry) for entry in chain]
        labels += [(path, chain_label(chain) + "".join(s)) for s in itertools.product(*points)]
    yield from repeated(labels, "give this one a label of its own")


def _defense(name: str, path: str) -> Generator[Problem, None, type[Defense] | None]:
    try:
        return plugins.defense(name)
    except ValueError as error:
        yield Problem(path, str(error))
        return None
