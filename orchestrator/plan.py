"""An experiment as tasks, deduplicated by key."""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import cast

from attacks.base import Attack
from orchestrator.attacker import own_models
from orchestrator.config import Experiment
from orchestrator.data_attacks import data_attack
from orchestrator.defended import Case, Stage, deploy
from orchestrator.entries import (
    AttackEntry,
    DatasetEntry,
    DefenseEntry,
    attack_label,
    called,
    chain_label,
    grid_points,
    point_label,
)
from orchestrator.references import reference_from
from storage import datasets
from tasks import architectures, plugins
from tasks.base import Task, canonical
from tasks.check_split import CheckSplit
from tasks.effort import ChooseEffort
from tasks.measure_utility import MeasureUtility
from tasks.noise import NoisePolicy
from tasks.reference import ReferenceFrom
from tasks.run_attack import RunAttack
from tasks.worst_case import WorstCase

__all__ = ["Cell", "Plan", "adapts_besides", "make_plan", "plan_of"]


@dataclass(frozen=True)
class Cell:
    """One place in the experiment's tables, and the task that fills it.

    Attributes:
        kind: "attack", "inversion", "attribute", "utility", "worst" (its seed is the first) or
            "check" (of no defense).
    """

    kind: str
    dataset: str
    seed: int
    label: str
    defense: str
    attack: str
    preset: str
    task: Task


@dataclass(frozen=True)
class _Listed:
    """An attack of the experiment at one point of its grid."""

    label: str
    entry: AttackEntry
    plugin: Attack

    @cached_property
    def harder(self) -> str | None:
        """What tells it from other attacks, if it can be trained harder; else None."""
        if not self.plugin.harder():
            return None
        entry = self.entry
        told = [canonical(self.plugin), entry.adaptive, entry.fit_on, entry.shadow_data]
        return json.dumps(told, sort_keys=True)

    def concerns(self, names: set[str], kind: str) -> bool:
        """Whether it is made for one of these defenses, or for all, and for this kind of data."""
        made_for = self.entry.against or self.plugin.AGAINST
        return not (made_for and names.isdisjoint(made_for)) and kind in self.plugin.KINDS


@dataclass(frozen=True)
class Plan:
    """The tasks of an experiment in an order that respects inputs, and the cells they fill."""

    experiment: Experiment
    tasks: Mapping[str, Task]
    cells: tuple[Cell, ...]


def make_plan(experiment: Experiment, data_dir: Path | None) -> Plan:
    """All tasks of a checked experiment; trains nothing, writes nothing."""
    # Nothing made here is garbage; looking for it again and again would take a sixth of the time.
    looked = gc.isenabled()
    gc.disable()
    try:
        return plan_of(experiment, _all_cells(experiment, data_dir))
    finally:
        if looked:
            gc.enable()


def _all_cells(experiment: Experiment, data_dir: Path | None) -> list[Cell]:
    cells: list[Cell] = []
    for entry in experiment.datasets:
        dataset = datasets.load(entry.source, data_dir)
        chains = list(_chains(experiment, entry.name, dataset.num_classes, data_dir))
        listed = list(_attacks(experiment))
        mine: list[Cell] = []
        efforts: dict[tuple[str, str], ChooseEffort] = {}
        for seed in experiment.seeds:
            case = _case(experiment, entry, dataset, seed, data_dir)
            mine += _cells(experiment, entry, case, chains, listed, efforts)
        cells += [*mine, *_worst_cells(mine)]
    return cells


def plan_of(experiment: Experiment, cells: Sequence[Cell]) -> Plan:
    """A plan of these cells alone, and what they need."""
    tasks: dict[str, Task] = {}
    for cell in cells:
        _collect(cell.task, tasks)
    return Plan(experiment, tasks, tuple(cells))


def _collect(task: Task, tasks: dict[str, Task]) -> None:
    """Add a task after its inputs, unless it is there."""
    if task.key not in tasks:
        for needed in task.inputs:
            if needed.key not in tasks:
                _collect(needed, tasks)
        tasks[task.key] = task


def _case(
    experiment: Experiment,
    entry: DatasetEntry,
    dataset: datasets.Dataset,
    seed: int,
    data_dir: Path | None,
) -> Case:
    split = entry.division(seed, dataset.content_hash)
    name = experiment.target.architecture or architectures.default_architecture(
        entry.name, dataset.kind, experiment.preset
    )
    architecture = architectures.make(name, **experiment.target.recipe)

    @cache
    def other(of: str) -> Case:
        foreign = DatasetEntry(name=of)
        loaded = datasets.load(foreign.source, data_dir)
        drawn = foreign.division(seed, loaded.content_hash)
        own = architectures.default_architecture(of, loaded.kind, experiment.preset)
        return Case(loaded, drawn, drawn.divide(loaded), architectures.make(own), seed)

    return Case(dataset, split, split.divide(dataset), architecture, seed, other)


def _chains(
    experiment: Experiment, dataset: str, num_classes: int, data_dir: Path | None
) -> Iterator[tuple[str, str, list[Stage], set[str]]]:
    """Every defense as (label, preset, stages, names for `against`), grids spanned."""
    for chain in experiment.defenses:
        label, preset = chain_label(chain), chain[-1].preset or experiment.preset
        resolved: list[list[tuple[str, Stage]]] = [[]]
        for entry in chain:
            reference = reference_from(entry.reference, experiment.datasets, data_dir)
            options = list(_stages(experiment, entry, dataset, num_classes, reference))
            resolved = [[*before, option] for before in resolved for option in options]
        for stages in resolved:
            suffix = "".join(point for point, _ in stages)
            yield label + suffix, preset, [stage for _, stage in stages], called(chain)


def _stages(
    experiment: Experiment,
    entry: DefenseEntry,
    dataset: str,
    num_classes: int,
    reference: ReferenceFrom | None,
) -> Iterator[tuple[str, Stage]]:
    preset = entry.preset or experiment.preset
    cls = plugins.defense(entry.name)
    for values in grid_points(entry):
        fields = {**cls.preset(preset, dataset, num_classes), **values}
        policy = entry.noise or cls.NOISE.get(preset, "deterministic")
        stage = Stage(cls.model_validate(fields), cast(NoisePolicy, policy), reference)
        yield point_label(entry, values), stage


def _attacks(experiment: Experiment) -> Iterator[_Listed]:
    """Every attack of the experiment, grids spanned."""
    for entry in experiment.attacks:
        cls = plugins.attack(entry.name)
        for values in grid_points(entry):
            fields = {**cls.PRESETS.get(entry.preset or experiment.preset, {}), **values}
            plugin = cls.model_validate(fields)
            label = attack_label(entry) + point_label(entry, values)
            yield _Listed(label, entry, plugin)
            if experiment.adaptive and adapts_besides(plugin, entry):
                adaptive = entry.model_copy(update={"adaptive": True})
                yield _Listed(f"{label} adaptive", adaptive, plugin)


def adapts_besides(plugin: Attack, entry: AttackEntry) -> bool:
    """Whether `adaptive: true` of the experiment adds an adaptive form to this attack."""
    # Of BB-adaptive the one form adapts; who fits on clean answers ignores the defense.
    already = entry.adaptive or plugin.THREAT_MODEL == "BB-adaptive" or entry.fit_on == "clean"
    return plugin.adapts and not already


def _cells(
    experiment: Experiment,
    entry: DatasetEntry,
    case: Case,
    chains: Sequence[tuple[str, str, list[Stage], set[str]]],
    listed: Sequence[_Listed],
    efforts: dict[tuple[str, str], ChooseEffort],
) -> Iterator[Cell]:
    """The cells of one seed; `efforts` are those chosen under the first, by defense and attack."""
    baseline = deploy(case, [])
    checks = CheckSplit(seed=case.seed, split=case.split, judge=entry.judge)
    yield Cell("check", entry.name, case.seed, "", "", "", experiment.preset, checks)
    for label, preset, stages, names in chains:
        answers = deploy(case, stages)
        defended = bool(answers.defenses)
        place = (entry.name, case.seed, label, answers.defense)
        # Under every other judge the utility is one and the same task.
        on = entry.judge if entry.judge == "defender" else "members"
        utility = MeasureUtility(seed=case.seed, answers=answers, baseline=baseline, judge=on)
        yield Cell("utility", *place, "", preset, utility)
        for attack in listed:
            if not attack.concerns(names, case.dataset.kind):
                continue
            asked = attack.entry
            if asked.adaptive and not defended:
                continue  # an own copy of no defense is the same attack again
            found = data_attack(case, answers, attack.plugin, asked, entry.judge)
            if found is not None:
                yield Cell(found[0], *place, attack.label, preset, found[1])
                continue
            own = own_models(case, stages, attack.plugin, asked, entry.judge)
            task = RunAttack(
                seed=case.seed,
                answers=answers,
                attack=attack.plugin,
                checks=checks,
                judge=entry.judge,
                fit_on=asked.fit_on,
                adaptive=asked.adaptive,
                trainings=own.trainings,
                own_copy=own.own_copy,
                own_copy_out=own.own_copy_out,
                held=own.held,
            )
            if experiment.retry and defended and attack.harder is not None:
                same = (label, attack.harder)
                if same not in efforts:
                    efforts[same] = ChooseEffort(case.seed, task)
                task = replace(task, effort=efforts[same])
            yield Cell("attack", *place, attack.label, preset, task)


def _worst_cells(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The worst case of each defense of one dataset, over all its attacks and seeds."""
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kind == "attack":
            by_label.setdefault(cell.label, []).append(cell)
    for mine in by_label.values():
        attacks = {cell.task.key: cast(RunAttack, cell.task) for cell in mine}
        worst = WorstCase(seed=mine[0].seed, attacks=tuple(attacks.values()))
        yield replace(mine[0], kind="worst", attack="", task=worst)
