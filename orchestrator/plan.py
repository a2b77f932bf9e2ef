"""An experiment as tasks, deduplicated by key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from attacks.base import Planning as PlanningAttack
from defenses.base import Defense, OutputDefense, TrainingDefense
from defenses.base import Planning as PlanningDefense
from orchestrator.config import (
    AttackEntry,
    DatasetEntry,
    DefenseEntry,
    Experiment,
    attack_label,
    called,
    chain_label,
    grid_points,
    point_label,
)
from storage import datasets, splits
from tasks import architectures, plugins
from tasks.answers import Answers
from tasks.base import Rows, Task, stream
from tasks.check_split import CheckSplit
from tasks.fit_defense import FitDefense
from tasks.measure_utility import MeasureUtility
from tasks.noise import NoisePolicy
from tasks.run_attack import RunAttack, known_rows
from tasks.split import Split
from tasks.train_block import sub_models
from tasks.train_shadows import (
    BLOCK,
    LoneShadow,
    Shadow,
    TrainShadows,
    shadow_pool,
    shadow_rows,
)
from tasks.train_target import TrainTarget
from tasks.worst_case import WorstCase

__all__ = ["Cell", "Plan", "make_plan"]


@dataclass(frozen=True)
class Cell:
    """One place in the experiment's tables, and the task that fills it.

    Attributes:
        kind: "attack", "utility", "worst" (its seed is the first) or "check" (of no defense).
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


@dataclass(frozen=True)
class _Stage:
    """A defense of a chain, resolved for one dataset."""

    plugin: Defense
    noise: NoisePolicy


@dataclass(frozen=True)
class _Case:
    """One dataset under one seed: what all its cells share."""

    dataset: datasets.Dataset
    split: Split
    divided: splits.Split
    architecture: architectures.Architecture
    seed: int


def make_plan(experiment: Experiment, data_dir: Path | None) -> Plan:
    """All tasks of a checked experiment; trains nothing, writes nothing."""
    tasks: dict[str, Task] = {}
    cells: list[Cell] = []
    for entry in experiment.datasets:
        dataset = datasets.load(entry.source, data_dir)
        chains = list(_chains(experiment, entry.name, dataset.num_classes))
        listed = list(_attacks(experiment))
        mine: list[Cell] = []
        for seed in experiment.seeds:
            case = _case(experiment, entry, dataset, seed)
            mine += _cells(experiment, entry, case, chains, listed)
        cells += [*mine, *_worst_cells(mine)]
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
    experiment: Experiment, entry: DatasetEntry, dataset: datasets.Dataset, seed: int
) -> _Case:
    split = entry.division(seed, dataset.content_hash)
    name = experiment.target.architecture or architectures.default_architecture(
        entry.name, dataset.kind, experiment.preset
    )
    architecture = architectures.make(name, **experiment.target.recipe)
    return _Case(dataset, split, split.divide(dataset), architecture, seed)


def _chains(
    experiment: Experiment, dataset: str, num_classes: int
) -> Iterator[tuple[str, str, list[_Stage], set[str]]]:
    """Every defense as (label, preset, stages, names for `against`), grids spanned."""
    for chain in experiment.defenses:
        label, preset = chain_label(chain), chain[-1].preset or experiment.preset
        resolved: list[list[tuple[str, _Stage]]] = [[]]
        for entry in chain:
            options = list(_stages(experiment, entry, dataset, num_classes))
            resolved = [[*before, option] for before in resolved for option in options]
        for stages in resolved:
            suffix = "".join(point for point, _ in stages)
            yield label + suffix, preset, [stage for _, stage in stages], called(chain)


def _stages(
    experiment: Experiment, entry: DefenseEntry, dataset: str, num_classes: int
) -> Iterator[tuple[str, _Stage]]:
    preset = entry.preset or experiment.preset
    cls = plugins.defense(entry.name)
    for values in grid_points(entry):
        fields = {**cls.preset(preset, dataset, num_classes), **values}
        policy = entry.noise or cls.NOISE.get(preset, "deterministic")
        stage = _Stage(cls.model_validate(fields), cast(NoisePolicy, policy))
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
            if experiment.adaptive and not entry.adaptive and isinstance(plugin, PlanningAttack):
                yield f"{label} adaptive", entry.model_copy(update={"adaptive": True}), plugin


def _cells(
    experiment: Experiment,
    entry: DatasetEntry,
    case: _Case,
    chains: Sequence[tuple[str, str, list[_Stage], set[str]]],
    listed: Sequence[tuple[str, AttackEntry, Any]],
) -> Iterator[Cell]:
    baseline = _deploy(case, [])
    checks = CheckSplit(seed=case.seed, split=case.split, judge=entry.judge)
    yield Cell("check", entry.name, case.seed, "", "", "", experiment.preset, checks)
    for label, preset, stages, names in chains:
        answers = _deploy(case, stages)
        about = {
            "dataset": entry.name,
            "seed": case.seed,
            "label": label,
            "defense": answers.columns()["defense"],
            "preset": preset,
        }
        utility = MeasureUtility(seed=case.seed, answers=answers, baseline=baseline)
        yield Cell(kind="utility", attack="", task=utility, **about)
        for name, attack, plugin in listed:
            if attack.against is not None and names.isdisjoint(attack.against):
                continue
            if attack.adaptive and not answers.defenses:
                continue  # an own copy of no defense is the same attack again
            task = RunAttack(
                seed=case.seed,
                answers=answers,
                attack=plugin,
                checks=checks,
                judge=entry.judge,
                fit_on=attack.fit_on,
                adaptive=attack.adaptive,
                trainings=_attack_trainings(case, stages, plugin, attack, entry.judge),
            )
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


def _shadow(case: _Case, stages: Sequence[_Stage], judge: splits.Judge, number: int) -> Answers:
    """The answers of one shadow model, defended as the stages say."""
    shaping = [stage.plugin for stage in stages if isinstance(stage.plugin, TrainingDefense)]
    if shaping and isinstance(shaping[0], PlanningDefense):
        return _lone_shadow(case, stages, judge, number)
    block = TrainShadows(
        seed=case.seed,
        split=case.split,
        architecture=case.architecture,
        judge=judge,
        block=number // BLOCK,
        defense=shaping[0] if shaping else None,
    )
    shadow = Shadow(seed=stream(case.seed, "shadow", number), block=block, index=number % BLOCK)
    pool = shadow_pool(case.divided, judge, case.seed)
    outline = DefenderOutline(case, shadow.seed, pool, pool, None)
    return _defended(Answers(seed=shadow.seed, source=shadow), stages, outline)


def _lone_shadow(
    case: _Case, stages: Sequence[_Stage], judge: splits.Judge, number: int
) -> Answers:
    """A shadow whose training defense has trainings of its own, which are tasks too."""
    seed = stream(case.seed, "shadow", number)
    pool = shadow_pool(case.divided, judge, case.seed)
    halves = splits.half_split(pool, number + 1, seed=stream(case.seed, "shadow.halves"))
    rows, reference = shadow_rows(pool, halves[number], number, case.seed)
    held = Rows(np.concatenate(reference))
    outline = DefenderOutline(case, seed, rows, held.array, held)
    target = LoneShadow(
        seed=seed,
        split=case.split,
        architecture=case.architecture,
        defense=stages[0].plugin,
        rows=Rows(rows),
        reference=held,
        trainings=outline.trainings(stages[0].plugin),
    )
    return _defended(Answers(seed=seed, source=target), stages, outline)


def _deploy(
    case: _Case,
    stages: Sequence[_Stage],
    rows: Rows | None = None,
    reference: Rows | None = None,
    seed: int | None = None,
) -> Answers:
    """The answers of a classifier trained on `rows` (default: the members), defended."""
    seed = case.seed if seed is None else seed
    shaping = [stage for stage in stages if isinstance(stage.plugin, TrainingDefense)]
    if len(shaping) > 1 or (shaping and stages[0] is not shaping[0]):
        names = ", ".join(plugins.plugin_name(stage.plugin) for stage in stages)
        raise ValueError(f"a chain takes one training defense, as its first; got [{names}]")
    member_rows = case.divided.members if rows is None else rows.array
    reference_rows = case.divided.reference if reference is None else reference.array
    outline = DefenderOutline(case, seed, member_rows, reference_rows, reference)
    trained = shaping[0].plugin if shaping else None
    target = TrainTarget(
        seed=seed,
        split=case.split,
        architecture=case.architecture,
        defense=trained,
        rows=rows,
        reference=reference,
        trainings=outline.trainings(trained),
    )
    return _defended(Answers(seed=seed, source=target), stages, outline)


def _defended(answers: Answers, stages: Sequence[_Stage], outline: "DefenderOutline") -> Answers:
    """The answers behind the output defenses of a chain."""
    for stage in stages:
        if isinstance(stage.plugin, OutputDefense):
            fitted = FitDefense(
                seed=answers.seed,
                answers=answers,
                defense=stage.plugin,
                trainings=replace(outline, answers=answers).trainings(stage.plugin),
            )
            answers = Answers(seed=answers.seed, source=fitted, noise=stage.noise)
    return answers


@dataclass(frozen=True)
class DefenderOutline:
    """`defenses.base.Outline`: rows, labels and sizes; `training` makes the task."""

    case: _Case
    seed: int
    member_rows: NDArray[np.int64]
    reference_rows: NDArray[np.int64]
    reference: Rows | None
    answers: Answers | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every row of the dataset."""
        return self.case.dataset.y

    @property
    def num_classes(self) -> int:
        """C."""
        return self.case.dataset.num_classes

    def trainings(self, plugin: Defense | None) -> tuple[Task, ...]:
        """What a defense asks for."""
        if not isinstance(plugin, PlanningDefense):
            return ()
        depth = 0 if self.answers is None else len(self.answers.stages)
        return plugin.trainings(self, seed=stream(self.seed, "defense.fit", depth))

    def training(
        self,
        *,
        rows: NDArray[np.int64] | None = None,
        reference_rows: NDArray[np.int64] | None = None,
        defense: Defense | None = None,
        seed: int | None = None,
    ) -> Task:
        """A model on rows of its own, or a defense around the model being defended."""
        if rows is None:
            if self.answers is None or defense is None:
                raise ValueError("a training without rows needs a defense to fit around answers")
            return FitDefense(seed=self.seed, answers=self.answers, defense=defense)
        given = self.reference if reference_rows is None else Rows(reference_rows)
        seed = self.seed if seed is None else seed
        target = TrainTarget(
            seed=seed,
            split=self.case.split,
            architecture=self.case.architecture,
            rows=Rows(rows),
            reference=given,
        )
        if defense is None:
            return target
        return FitDefense(seed=seed, answers=Answers(seed=seed, source=target), defense=defense)

    def models(
        self, rows: Sequence[NDArray[np.int64]], *, seed: int, **overrides: Any
    ) -> tuple[Task, ...]:
        """Models of the target's architecture, one for each of `rows`, trained in blocks."""
        recipe = architectures.with_recipe(self.case.architecture, **overrides)
        return sub_models(self.case.split, recipe, rows, seed)


def _attack_trainings(
    case: _Case, stages: Sequence[_Stage], plugin: Any, entry: AttackEntry, judge: splits.Judge
) -> tuple[Task, ...]:
    if not isinstance(plugin, PlanningAttack):
        return ()
    outline = AttackerOutline(case, stages, judge, entry.adaptive)
    name = plugins.plugin_name(plugin)
    return plugin.trainings(outline, seed=stream(case.seed, f"attack.fit/{name}"))


@dataclass(frozen=True)
class AttackerOutline:
    """`attacks.base.Outline`: what the attacker holds; `training` makes the task."""

    case: _Case
    stages: Sequence[_Stage] = field(repr=False)
    judge: splits.Judge
    adaptive: bool

    @cached_property
    def known_rows(self) -> NDArray[np.int64]:
        """Rows the attacker holds; membership is not told."""
        return known_rows(self.case.divided, self.judge)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every row of the dataset."""
        return self.case.dataset.y

    @property
    def num_classes(self) -> int:
        """C."""
        return self.case.dataset.num_classes

    def training(
        self,
        *,
        rows: NDArray[np.int64],
        reference_rows: NDArray[np.int64] | None = None,
        defended: bool = False,
        seed: int,
    ) -> Task:
        """A model like the target on the attacker's rows, with the deployed defense if asked."""
        foreign = np.setdiff1d(rows, self.known_rows)
        if len(foreign):
            raise PermissionError(f"the attacker does not hold rows {foreign[:3].tolist()}")
        reference = None if reference_rows is None else Rows(reference_rows)
        if defended:
            if reference is None:
                raise ValueError("an own copy of the defense needs reference_rows")
            return _deploy(self.case, self.stages, Rows(rows), reference, seed)
        return TrainTarget(
            seed=seed,
            split=self.case.split,
            architecture=self.case.architecture,
            rows=Rows(rows),
            reference=reference,
        )

    def shadows(self, num_shadows: int, *, defended: bool = False) -> tuple[Task, ...]:
        """The answers of shadow models in the half-split design, by number.

        Raises:
            ValueError: if the number is not even and positive.
        """
        if num_shadows < 2 or num_shadows % 2:
            raise ValueError(f"shadows come in pairs of complementary halves, not {num_shadows}")
        stages = self.stages if defended else ()
        return tuple(_shadow(self.case, stages, self.judge, i) for i in range(num_shadows))
