"""An experiment as tasks, deduplicated by key."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

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
class Plan:
    """The tasks of an experiment in an order that respects inputs, and the cells they fill."""

    experiment: Experiment
    tasks: Mapping[str, Task]
    cells: tuple[Cell, ...]


def make_plan(experiment: Experiment, data_dir: Path | None) -> Plan:
    """All tasks of a checked experiment; trains nothing, writes nothing."""
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
    return plan_of(experiment, cells)


def plan_of(experiment: Experiment, cells: Sequence[Cell]) -> Plan:
    """A plan of these cells alone, and what they need."""
    tasks: dict[str, Task] = {}
    for cell in cells:
        _collect(cell.task, tasks)
    return Plan(experiment, tasks, tuple(cells))


def _collect(task: Task, tasks: dict[str, Task]) -> None:
    """Add a task after its inputs."""
    if task.key in tasks:
        return
    for needed in task.inputs:
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


def _attacks(experiment: Experiment) -> Iterator[tuple[str, AttackEntry, Any]]:
    """Every attack of the experiment as (label, entry, plugin), grids spanned."""
    for entry in experiment.attacks:
        cls = plugins.attack(entry.name)
        for values in grid_points(entry):
            fields = {**cls.PRESETS.get(entry.preset or experiment.preset, {}), **values}
            plugin = cls.model_validate(fields)
            label = attack_label(entry) + point_label(entry, values)
            yield label, entry, plugin
            if experiment.adaptive and adapts_besides(plugin, entry):
                yield f"{label} adaptive", entry.model_copy(update={"adaptive": True}), plugin


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
    listed: Sequence[tuple[str, AttackEntry, Any]],
    efforts: dict[tuple[str, str], ChooseEffort],
) -> Iterator[Cell]:
    """The cells of one seed; `efforts` are those chosen under the first, by defense and attack."""
    baseline = deploy(case, [])
    checks = CheckSplit(seed=case.seed, split=case.split, judge=entry.judge)
    yield Cell("check", entry.name, case.seed, "", "", "", experiment.preset, checks)
    for label, preset, stages, names in chains:
        answers = deploy(case, stages)
        about = {
            "dataset": entry.name,
            "seed": case.seed,
            "label": label,
            "defense": answers.columns()["defense"],
            "preset": preset,
        }
        # Under every other judge the utility is one and the same task.
        on = entry.judge if entry.judge == "defender" else "members"
        utility = MeasureUtility(seed=case.seed, answers=answers, baseline=baseline, judge=on)
        yield Cell(kind="utility", attack="", task=utility, **about)
        for name, attack, plugin in listed:
            made_for = attack.against or plugin.AGAINST
            if (made_for and names.isdisjoint(made_for)) or case.dataset.kind not in plugin.KINDS:
                continue
            if attack.adaptive and not answers.defenses:
                continue  # an own copy of no defense is the same attack again
            if (found := data_attack(case, answers, plugin, attack, entry.judge)) is not None:
                yield Cell(kind=found[0], attack=name, task=found[1], **about)
                continue
            own = own_models(case, stages, plugin, attack, entry.judge)
            task = RunAttack(
                seed=case.seed,
                answers=answers,
                attack=plugin,
                checks=checks,
                judge=entry.judge,
                fit_on=attack.fit_on,
                adaptive=attack.adaptive,
                trainings=own.trainings,
                own_copy=own.own_copy,
                own_copy_out=own.own_copy_out,
                held=own.held,
            )
            if experiment.retry and answers.defenses and plugin.harder():
                identity = [canonical(plugin), attack.adaptive, attack.fit_on, attack.shadow_data]
                place = (label, json.dumps(identity, sort_keys=True))
                effort = efforts.setdefault(place, ChooseEffort(case.seed, task))
                task = replace(task, effort=effort)
            yield Cell(kind="attack", attack=name, task=task, **about)


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
