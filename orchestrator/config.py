"""An experiment file, validated: every problem at once, each with its place in the file."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage import datasets
from storage.datasets import Source
from tasks import architectures, plugins
from tasks.noise import NoisePolicy

__all__ = [
    "AttackEntry",
    "ConfigError",
    "DatasetEntry",
    "DefenseEntry",
    "Experiment",
    "Problem",
    "TargetEntry",
    "load_experiment",
    "packaged",
]

Preset = Literal["paper", "sound", "cpu"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Name = Annotated[str, Field(pattern=rf"^{_NAME.pattern}$", max_length=100)]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an experiment: where, and what to do."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(ValueError):
    """An experiment that cannot run, with all its problems."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name, self.problems = name, tuple(problems)
        listed = "\n".join(f"  {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{name}: {len(problems)} {noun}\n{listed}")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitSizes(_Entry):
    """How many records play each role."""

    members: int = Field(ge=10, description="D1, trains the target")
    reference: int = Field(ge=10, description="D2, the defender's reference data")
    nonmembers: int = Field(ge=10, description="D3, never seen by target or defender")
    untrained: int = Field(0, ge=0, description="each of two fresh groups, for judge: untrained")


class Generator(_Entry):
    """Parameters of SynthPurchase (methods.md section 2.5), for the synth_* datasets."""

    rows: int | None = Field(None, ge=30)
    features: int | None = Field(None, ge=4)
    classes: int | None = Field(None, ge=2)
    clusters: int | None = Field(None, ge=1)
    sparsity: float | None = Field(None, gt=0, lt=1)
    bit_noise: float | None = Field(None, ge=0, lt=1)
    label_noise: float | None = Field(None, ge=0, lt=1)
    data_seed: int | None = Field(None, ge=0)


class DatasetEntry(_Entry):
    """A dataset, how it is divided, and what the attacker knows of it."""

    name: Name
    path: str | None = Field(None, description="a Parquet or npz file of one's own")
    split: SplitSizes | None = Field(None, description="default: the dataset's own")
    generator: Generator = Generator()
    known: Literal[0.25, 0.5, 0.75] = Field(0.5, description="the attacker's share of D1 and D3")
    judge: Literal["members", "reference", "untrained"] = "members"
    dedup: Literal["group", "drop"] = "group"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def source(self) -> Source:
        """What storage.datasets loads."""
        given = self.generator.model_dump(exclude_none=True)
        return Source(self.name, self.path, tuple(sorted(given.items())))

    def sizes(self) -> SplitSizes:
        """The split asked for, or the dataset's default.

        Raises:
            ValueError: if there is neither.
        """
        if self.split is not None:
            return self.split
        default = datasets.DEFAULT_SPLITS.get(self.name) if self.path is None else None
        if default is None:
            raise ValueError(
                f"'{self.name}' has no default split; "
                "add split: {members: …, reference: …, nonmembers: …}"
            )
        return SplitSizes(**default)


class TargetEntry(_Entry):
    """The target's architecture and fields of its recipe."""

    architecture: str | None = Field(None, description="default: the dataset's own")
    recipe: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"architecture": value}
        return _gathered(value, ("architecture",), "recipe")


class DefenseEntry(_Entry):
    """A defense: its name, its fields, and how it is shown and asked."""

    name: str
    label: str | None = None
    preset: Preset | None = None
    noise: NoisePolicy | None = None
    grid: dict[str, list[Any]] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        return _gathered(value, ("name", "label", "preset", "noise", "grid"), "params")


class AttackEntry(_Entry):
    """An attack: its name, its fields, and what it is granted."""

    name: str
    label: str | None = None
    preset: Preset | None = None
    adaptive: bool = False
    fit_on: Literal["defended", "clean"] = "defended"
    grid: dict[str, list[Any]] = {}
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        own = ("name", "label", "preset", "adaptive", "fit_on", "grid")
        return _gathered(value, own, "params")


def _gathered(value: Any, own: tuple[str, ...], rest: str) -> Any:
    """A mapping with the keys that are a plugin's fields moved under `rest`."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        return value
    fields = {key: item for key, item in value.items() if key not in own}
    return {**{key: value[key] for key in own if key in value}, rest: fields}


class Experiment(_Entry):
    """One experiment: what is trained, defended, attacked, and how often."""

    name: Name
    description: str = ""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    datasets: list[DatasetEntry] = Field(min_length=1)
    target: TargetEntry = TargetEntry()
    defenses: list[list[DefenseEntry]] = Field(
        default=[[DefenseEntry(name="none")]], min_length=1, description="an inner list is a chain"
    )
    attacks: list[AttackEntry] = Field(min_length=1)
    adaptive: bool = Field(False, description="also run attacks that train models adaptively")
    preset: Preset = "cpu"

    @model_validator(mode="before")
    @classmethod
    def _chains(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("defenses"), list):
            chains = [c if isinstance(c, list) else [c] for c in value["defenses"]]
            return {**value, "defenses": chains}
        return value

    def resolved(self) -> dict[str, Any]:
        """The experiment as plain data, defaults filled in."""
        return self.model_dump(mode="json")


def packaged() -> dict[str, Path]:
    """The packaged experiments: name -> file."""
    folder = Path(__file__).parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


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
    path = _find(name)
    raw, lines, problems = _read(path)
    if not isinstance(raw, dict):
        raise ConfigError(str(path), problems or [Problem("", "must be a mapping of keys")])
    raw.setdefault("name", path.stem)
    for override in overrides:
        problems += _override(raw, override)
    experiment: Experiment | None = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors()]
    if experiment is not None:
        problems += _check(experiment, data_dir)
    else:
        problems += _check_parts(raw)
    if problems or experiment is None:
        unique = dict.fromkeys(Problem(p.path, p.message, _line(p, lines)) for p in problems)
        raise ConfigError(str(path), sorted(unique, key=lambda p: p.line or 0))
    return experiment


def _find(name: str) -> Path:
    known = packaged()
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise ConfigError(name, [Problem("", "there is no such file")])
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    message = f"is neither a packaged experiment ({', '.join(known)}) nor a file.{hint}"
    raise ConfigError(name, [Problem("", message)])


def _read(path: Path) -> tuple[Any, dict[str, int], list[Problem]]:
    """The file's content, the line of every path in it, and keys given twice."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text: {error}")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or "cannot be parsed"
        line = mark.line + 1 if mark else None
        problem = Problem("", f"is not YAML: {message}", line)
        raise ConfigError(str(path), [problem]) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(str(path), [Problem("", f"is not YAML: {error}")]) from None
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    if node is not None:
        _walk(node, "", lines, problems, set())
    return content, lines, problems


def _walk(
    node: yaml.Node, path: str, lines: dict[str, int], problems: list[Problem], seen: set[int]
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        given = set()
        for key, value in node.value:
            below = f"{path}.{key.value}" if path else str(key.value)
            if key.value in given:
                line = key.start_mark.line + 1
                problems.append(Problem(below, "is given twice; keep one", line))
            given.add(key.value)
            lines[below] = key.start_mark.line + 1
            _walk(value, below, lines, problems, seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, f"{path}[{i}]", lines, problems, seen)


def _line(problem: Problem, lines: Mapping[str, int]) -> int | None:
    """The line of the nearest enclosing path that the file has."""
    if problem.line is not None:
        return problem.line
    path = problem.path
    while path:
        if path in lines:
            return lines[path]
        path = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", path)
    return None


def _override(raw: dict[str, Any], override: str) -> list[Problem]:
    """Set one dotted path of the raw content in place."""
    key, equals, text = override.partition("=")
    steps: list[str | int] = [
        int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)
    ]
    if not equals or not steps:
        example = "--set target.epochs=5, --set seeds=[0,1]"
        return [Problem("--set", f"'{override}' is not key=value (as in {example})")]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return [Problem("--set", f"the value of '{override}' is not YAML")]
    place: Any = raw
    try:
        for step, following in itertools.pairwise(steps):
            if isinstance(place, dict):
                place = place.setdefault(step, [] if isinstance(following, int) else {})
            else:
                place = place[step]
        place[steps[-1]] = value
    except (IndexError, TypeError, KeyError):
        return [Problem("--set", f"'{key}' does not fit the experiment")]
    return []


def _problem(detail: Any) -> Problem:
    """One pydantic error as a problem: our path, our words, a suggestion where there is one."""
    location = list(detail["loc"])
    if len(location) > 2 and location[0] == "defenses" and isinstance(location[2], int):
        location.pop(2)  # the chain we wrapped around a single defense; harmless for real ones
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else (f".{step}" if path else str(step))
    message = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "extra_forbidden":
        message = f"is not a key here{_near(str(location[-1]), _keys_at(location))}"
    elif detail["type"] == "missing":
        message = "is missing"
    elif detail["type"] == "too_short":
        message = "must not be empty"
    elif "input" in detail and isinstance(detail["input"], str | int | float | bool):
        message = f"{message}, got {detail['input']!r}"
    return Problem(path, message)


def _keys_at(location: Sequence[Any]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "datasets": DatasetEntry,
        "split": SplitSizes,
        "generator": Generator,
    }
    named = [str(step) for step in location[:-1] if step in models]
    model = models[named[-1]] if named else Experiment
    return list(model.model_fields)


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint or '; '}{'' if hint else 'known: ' + ', '.join(known)}"


def _check_parts(raw: Mapping[str, Any]) -> list[Problem]:
    """Problems of the parts that can be read although the whole cannot."""
    problems: list[Problem] = []
    for kind in ("defenses", "attacks"):
        entries = raw.get(kind)
        for i, entry in enumerate(entries if isinstance(entries, list) else []):
            for j, part in enumerate(entry if isinstance(entry, list) else [entry]):
                path = f"{kind}[{i}][{j}]" if isinstance(entry, list) else f"{kind}[{i}]"
                name = part if isinstance(part, str) else None
                if isinstance(part, Mapping):
                    name = part.get("name")
                if isinstance(name, str):
                    problems += _named(kind, name, path)
    return problems


def _named(kind: str, name: str, path: str) -> list[Problem]:
    try:
        plugins.attack(name) if kind == "attacks" else plugins.defense(name)
    except ValueError as error:
        return [Problem(path, str(error))]
    return []


def _check(experiment: Experiment, data_dir: Path | None) -> list[Problem]:
    """Problems of names, fields, labels and data."""
    problems: list[Problem] = []
    for i, seed in enumerate(experiment.seeds):
        if seed in experiment.seeds[:i]:
            problems.append(Problem(f"seeds[{i}]", f"{seed} is given twice"))
    loaded: list[tuple[DatasetEntry, datasets.Dataset | None]] = []
    for i, entry in enumerate(experiment.datasets):
        dataset, found = _check_dataset(entry, f"datasets[{i}]", data_dir)
        problems += found
        loaded.append((entry, dataset))
        if entry.name in [other.name for other in experiment.datasets[:i]]:
            problems.append(Problem(f"datasets[{i}]", f"'{entry.name}' is named twice"))
    known = [(entry.name, dataset) for entry, dataset in loaded if dataset is not None]
    problems += _check_target(experiment, known)
    sizes = [(name, d.num_classes) for name, d in known] or [("", 10)]
    problems += _check_plugins(experiment, sizes)
    return problems


def _check_dataset(
    entry: DatasetEntry, path: str, data_dir: Path | None
) -> tuple[datasets.Dataset | None, list[Problem]]:
    try:
        dataset = datasets.load(entry.source, data_dir)
    except (ValueError, OSError) as error:
        return None, [Problem(path, str(error))]
    try:
        sizes = entry.sizes()
        given = (sizes.members, sizes.reference, sizes.nonmembers, 2 * sizes.untrained)
        if sum(given) > len(dataset.y):
            raise ValueError(
                f"the split wants {sum(given)} records ({' + '.join(map(str, given))}), "
                f"'{entry.name}' has {len(dataset.y)}; make it smaller"
            )
        if entry.judge == "untrained" and sizes.untrained < 10:
            raise ValueError("judge: untrained needs split.untrained of at least 10")
    except ValueError as error:
        return dataset, [Problem(f"{path}.split", str(error))]
    return dataset, []


def _check_target(
    experiment: Experiment, known: Sequence[tuple[str, datasets.Dataset]]
) -> list[Problem]:
    target = experiment.target
    problems: list[Problem] = []
    for name, dataset in known:
        chosen = target.architecture or architectures.default_architecture(
            name, dataset.kind, experiment.preset
        )
        try:
            architecture = architectures.make(chosen, **target.recipe)
            architectures.build(architecture, dataset.shape, dataset.num_classes)
        except ValidationError as error:
            known_fields = list(architectures.Architecture.model_fields)
            problems += _field_problems(error, "target", known_fields)
        except ValueError as error:
            problems.append(Problem("target.architecture", str(error)))
    return problems


def _check_plugins(experiment: Experiment, known: Sequence[tuple[str, int]]) -> list[Problem]:
    problems: list[Problem] = []
    labels: dict[str, str] = {}
    for i, chain in enumerate(experiment.defenses):
        for j, entry in enumerate(chain):
            path = f"defenses[{i}][{j}]" if len(chain) > 1 else f"defenses[{i}]"
            found = _named("defenses", entry.name, path)
            if not found:
                cls = plugins.defense(entry.name)
                for dataset, classes in known:
                    values = cls.preset(entry.preset or experiment.preset, dataset, classes)
                    found += _check_fields(cls, values, entry, path)
            problems += found
        label = chain_label(chain)
        if label in labels:
            problems.append(
                Problem(
                    f"defenses[{i}]",
                    f"is labelled '{label}' like {labels[label]}; give it a label of its own",
                )
            )
        labels[label] = f"defenses[{i}]"
        if sum(1 for entry in chain if entry.grid) > 1:
            message = "only one defense of a chain may have a grid"
            problems.append(Problem(f"defenses[{i}]", message))
    seen: dict[str, str] = {}
    for i, attack in enumerate(experiment.attacks):
        path = f"attacks[{i}]"
        found = _named("attacks", attack.name, path)
        if not found:
            cls_a = plugins.attack(attack.name)
            values = dict(cls_a.PRESETS.get(attack.preset or experiment.preset, {}))
            found += _check_fields(cls_a, values, attack, path)
        problems += found
        label = attack_label(attack)
        if label in seen:
            problems.append(Problem(path, f"repeats {seen[label]} ('{label}'); drop it"))
        seen[label] = path
    return problems


def _check_fields(
    cls: type[BaseModel],
    preset: Mapping[str, Any],
    entry: DefenseEntry | AttackEntry,
    path: str,
) -> list[Problem]:
    problems: list[Problem] = []
    for values in grid_points(entry):
        try:
            cls.model_validate({**preset, **values})
        except ValidationError as error:
            reserved = [name for name in type(entry).model_fields if name not in ("params", "name")]
            problems += _field_problems(error, path, [*cls.model_fields, *reserved])
    return problems


def _field_problems(error: ValidationError, path: str, known: Sequence[str]) -> list[Problem]:
    problems = []
    for detail in error.errors():
        inner = _problem({**detail, "type": detail["type"]})
        message = inner.message
        if detail["type"] == "extra_forbidden":
            message = f"is not a field here{_near(str(detail['loc'][-1]), known)}"
        below = inner.path and f"{path}.{inner.path}"
        problems.append(Problem(below or path, message))
    return problems


def grid_points(entry: DefenseEntry | AttackEntry) -> Iterator[dict[str, Any]]:
    """The fields of an entry, once for every point of its grid."""
    names = list(entry.grid)
    for values in itertools.product(*(entry.grid[name] for name in names)):
        yield {**entry.params, **dict(zip(names, values, strict=True))}


def chain_label(chain: Sequence[DefenseEntry]) -> str:
    """What an experiment calls a defense or a chain of them."""
    return "+".join(entry.label or entry.name for entry in chain)


def attack_label(entry: AttackEntry) -> str:
    """What an experiment calls an attack: its name, and the fields given."""
    if entry.label:
        return entry.label
    shown = [v if isinstance(v, str) else f"{k}={v}" for k, v in entry.params.items()]
    shown += ["clean"] if entry.fit_on == "clean" else []
    shown += ["adaptive"] if entry.adaptive else []
    return f"{entry.name}({', '.join(shown)})" if shown else entry.name
