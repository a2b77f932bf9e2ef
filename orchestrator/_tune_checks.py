"""The block `tune` of an experiment file against what there is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator import space
from orchestrator._attack_checks import Asked, attack_problems
from orchestrator._problem import Problem
from orchestrator._wording import field_problem
from orchestrator.data_attacks import data_problems
from orchestrator.entries import AttackEntry, DatasetEntry, called, grid_points
from orchestrator.references import reference_problems
from orchestrator.tune_entry import TuneEntry
from storage import datasets
from tasks import plugins
from tasks.base import canonical

__all__ = ["read_tune", "tune_problems"]


def read_tune(raw: Mapping[str, Any]) -> TuneEntry | None:
    """The block of a file, if there is one that can be read; what cannot is told by pydantic."""
    try:
        return TuneEntry.model_validate(raw["tune"]) if raw.get("tune") is not None else None
    except ValidationError:
        return None


def tune_problems(
    tune: TuneEntry,
    held_out: Sequence[tuple[str, AttackEntry]],
    readable: Sequence[tuple[DatasetEntry, datasets.Dataset]],
    preset: str,
    seed: int,
    data_dir: Path | None,
) -> Iterator[Problem]:
    """What is wrong with a search, but for the fields of its defense as given.

    Args:
        tune: the block.
        held_out: the experiment's own attacks, each with its path.
        readable: the datasets that could be loaded.
        preset: of the experiment.
        seed: the first.
        data_dir: where datasets are looked for.
    """
    if len(readable) > 1:
        several = ", ".join(entry.name for entry, _ in readable)
        message = f"a search is on one dataset, the experiment has {several}; keep one"
        yield Problem("tune", message)
    for entry, _ in readable:
        if entry.judge != "members":
            message = (
                f"'{entry.name}' is judged by its {entry.judge}, but what a search chooses is "
                "judged by the members; drop `judge`"
            )
            yield Problem("tune", message)
    for i, defense in enumerate(tune.defense):
        if defense.grid:
            message = "a search spans no grid; give the field a range in tune.space"
            yield Problem(f"tune.defense[{i}].grid", message)
        if defense.reference and defense.reference.source not in ("reference", "members", "random"):
            message = (
                f"records of '{defense.reference.source}' are drawn so that none equals a "
                "nonmember, which a search must not know; give reference, members or random"
            )
            yield Problem(f"tune.defense[{i}].reference", message)
    # What the defender is measured on must be its own: as where a dataset says judge: defender.
    own = [(e.model_copy(update={"judge": "defender"}), dataset) for e, dataset in readable]
    stages = [(f"tune.defense[{i}]", entry) for i, entry in enumerate(tune.defense)]
    yield from reference_problems(stages, own, seed, data_dir)
    yield from _space(tune, readable, preset)
    names = called(tune.defense) | {"trial"}
    placed = [(f"tune.attacks[{i}]", attack) for i, attack in enumerate(tune.attacks)]
    asked = Asked(placed, preset, False, seed)
    yield from attack_problems(asked, names, own, data_dir)
    yield from data_problems(placed, seed, own)
    yield from _about_members(placed)
    yield from _held_out(placed, held_out, preset)


def _about_members(tuning: Sequence[tuple[str, AttackEntry]]) -> Iterator[Problem]:
    """What trials are told apart by is how well members are told."""
    for path, entry in tuning:
        if entry.name in plugins.names("attacks"):
            aim = plugins.aim(plugins.attack(entry.name))
            if aim != "membership":
                message = (
                    f"'{entry.name}' is an attack of {aim}, but a search goes by membership; let "
                    "it judge what was chosen, among the file's own attacks"
                )
                yield Problem(path, message)


def _space(
    tune: TuneEntry, readable: Sequence[tuple[DatasetEntry, datasets.Dataset]], preset: str
) -> Iterator[Problem]:
    try:
        searched = space.axes(tune)
    except ValueError as error:
        key, _, message = str(error).partition(": ")
        yield Problem(f"tune.space.{key}" if message else "tune.defense", message or key)
        return
    if tune.sampler == "grid":
        try:
            space.grid_of(searched)
        except ValueError as error:
            key, _, message = str(error).partition(": ")
            yield Problem(f"tune.space.{key}", message)
    known = [(entry.name, dataset.num_classes) for entry, dataset in readable] or [("", 10)]
    for axis in searched:
        entry = tune.defense[axis.stage]
        cls = plugins.defense(entry.name)
        told: set[str] = set()
        for name, classes in known:
            given = cls.preset(entry.preset or preset, name, classes)
            for value in axis.dimension.ends:
                value = int(value) if axis.whole and isinstance(value, float) else value
                try:
                    cls.model_validate({**given, **entry.params, axis.field: value})
                except ValidationError as error:
                    for detail in error.errors():
                        # Of two fields that do not go together a trial is told when it meets them.
                        if detail["loc"] and detail["loc"][0] == axis.field:
                            found = field_problem(detail, "tune.space", list(cls.model_fields))
                            told.add(found.message)
        yield from (Problem(f"tune.space.{axis.key}", message) for message in sorted(told))


def _held_out(
    tuning: Sequence[tuple[str, AttackEntry]],
    held_out: Sequence[tuple[str, AttackEntry]],
    preset: str,
) -> Iterator[Problem]:
    """An attacker that trials see is not held out."""
    seen: dict[str, str] = {}
    for path, entry in tuning:
        for identity in _identities(entry, preset):
            seen.setdefault(identity, path)
    for path, entry in held_out:
        for identity in _identities(entry, preset):
            if identity in seen:
                message = (
                    f"is also a tuning attacker ({seen[identity]}), which judges nothing that was "
                    "tuned on it; drop one of the two (the tuning attackers are run on the "
                    "evaluation records anyway)"
                )
                yield Problem(path, message)


def _identities(entry: AttackEntry, preset: str) -> Iterator[str]:
    try:
        cls = plugins.attack(entry.name)
        for values in grid_points(entry):
            made = cls.model_validate({**cls.PRESETS.get(entry.preset or preset, {}), **values})
            told = [canonical(made), entry.adaptive, entry.fit_on, entry.shadow_data]
            yield json.dumps(told, sort_keys=True)
    except ValueError:  # told of the attack
        return
