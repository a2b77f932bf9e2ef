"""The attacks of an experiment file against what there is: plugins, defenses, records."""

import itertools
import math
from collections.abc import Generator, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from attacks.base import Attack
from attacks.base import Planning as PlanningAttack
from orchestrator._plugin_fields import faults, fields, repeated, suffixes
from orchestrator._problem import Problem, nearest
from orchestrator.attacker import rows_for_shadow
from orchestrator.entries import MOST_POINTS, AttackEntry, DatasetEntry, attack_label, grid_points
from orchestrator.plan import adapts_besides
from storage import datasets
from tasks import plugins

__all__ = ["Asked", "attack_problems"]


@dataclass(frozen=True)
class Asked:
    """The attacks that can be read, each with its path, and what the experiment says of all."""

    attacks: Sequence[tuple[str, AttackEntry]]
    preset: str
    adaptive: bool
    seed: int


def attack_problems(
    asked: Asked,
    defenses: Set[str],
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
    data_dir: Path | None,
) -> Iterator[Problem]:
    """What is wrong with the attacks.

    Args:
        asked: the attacks.
        defenses: every name by which `against` may mean a defense.
        readable: the datasets that could be loaded.
        data_dir: where others are looked for.
    """
    labels: list[tuple[str, str]] = []
    for path, entry in asked.attacks:
        for name in set(entry.against or []) - defenses:
            message = f"'{name}' is no defense of this experiment{nearest(name, sorted(defenses))}"
            yield Problem(f"{path}.against", message)
        cls = yield from _attack(entry.name, path)
        if cls is not None:
            yield from _of_class(cls, entry, path, asked, readable)
            yield from _foreign(cls, entry, path, asked.preset, readable, data_dir)
            if entry.shadow_data == "population":
                yield from _population(entry, path, asked.seed, readable)
        mine = [attack_label(entry) + suffix for suffix in suffixes(entry)]
        if asked.adaptive and cls is not None:
            also = any(
                adapts_besides(made, entry)
                for made in _made(cls, entry, entry.preset or asked.preset)
            )
            mine += [f"{label} adaptive" for label in mine] if also else []
        labels += [(path, label) for label in mine]
    yield from repeated(labels, "drop it, or give it a label of its own")


def _attack(name: str, path: str) -> Generator[Problem, None, type[Attack] | None]:
    try:
        return plugins.attack(name)
    except ValueError as error:
        yield Problem(path, str(error))
        return None


def _of_class(
    cls: type[Attack],
    entry: AttackEntry,
    path: str,
    asked: Asked,
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
) -> Iterator[Problem]:
    preset = dict(cls.PRESETS.get(entry.preset or asked.preset, {}))
    yield from fields(cls, [preset], entry, path)
    trains = issubclass(cls, PlanningAttack)
    forms = (False, True) if asked.adaptive and trains else (entry.adaptive,)
    met = [dataset for _, dataset in readable if dataset.kind in cls.KINDS]
    shapes = [dataset.shape for dataset in met]
    yield from faults(cls, preset, entry, path, [*itertools.product(shapes, forms)])
    if readable and not met:
        kinds = " and ".join(sorted({dataset.kind for _, dataset in readable}))
        message = (
            f"{entry.name} works on {' or '.join(sorted(cls.KINDS))} records, and those of this "
            f"experiment are {kinds}; drop it"
        )
        yield Problem(path, message)
    if entry.adaptive and entry.fit_on == "clean":
        message = (
            "an adaptive attacker fits on its own defended copy, not on clean answers; drop one"
        )
        yield Problem(f"{path}.fit_on", message)
    if any(made.adapts for made in _made(cls, entry, entry.preset or asked.preset)):
        return
    why = f"{entry.name} learns nothing and trains no models, so "
    if entry.adaptive:
        message = f"{why}it has no adaptive form; what it asks is the defended service anyway"
        yield Problem(f"{path}.adaptive", message)
    if entry.shadow_data == "population":
        yield Problem(f"{path}.shadow_data", f"{why}it has no use for a shadow; drop this key")


def _made(cls: type[Attack], entry: AttackEntry, preset: str) -> list[Attack]:
    """The attack at every point of its grid that can be made; what cannot is told elsewhere."""
    made = []
    for values in (
        grid_points(entry) if math.prod(map(len, entry.grid.values())) <= MOST_POINTS else ()
    ):
        try:
            made.append(cls.model_validate({**cls.PRESETS.get(preset, {}), **values}))
        except ValidationError:
            continue
    return made


def _foreign(
    cls: type[Attack],
    entry: AttackEntry,
    path: str,
    preset: str,
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
    data_dir: Path | None,
) -> Iterator[Problem]:
    """Whether the other datasets an attack trains on can be had, and are others."""
    own = {dataset.content_hash: given.name for given, dataset in readable}
    made = _made(cls, entry, entry.preset or preset)
    for name in dict.fromkeys(name for attack in made for name in attack.foreign_datasets):
        try:
            foreign = DatasetEntry(name=name)
            loaded = datasets.load(foreign.source, data_dir)
            foreign.division(0, loaded.content_hash).divide(loaded)
        except (ValueError, OSError) as error:
            yield Problem(path, f"'{name}', which it trains on, cannot be used: {error}")
            continue
        if loaded.content_hash in own:
            message = f"'{name}' is the target's own dataset; give another"
            yield Problem(path, message)


def _population(
    entry: AttackEntry,
    path: str,
    seed: int,
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
) -> Iterator[Problem]:
    for given, dataset in readable:
        try:
            split = given.division(seed, dataset.content_hash).divide(dataset)
            rows_for_shadow(split, seed, defended=entry.adaptive, judge=given.judge)
        except ValueError as error:
            yield Problem(f"{path}.shadow_data", f"{given.name}: {error}")
