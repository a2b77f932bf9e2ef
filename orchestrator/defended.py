"""A classifier behind its defenses as tasks: the target, a shadow, an attacker's own copy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense, OutputDefense, TrainingDefense
from defenses.base import Planning as PlanningDefense
from storage import datasets, splits
from storage.halves import half_split
from tasks import architectures, plugins
from tasks.answers import Answers
from tasks.base import Rows, Task, stream
from tasks.block import BLOCK
from tasks.fit_defense import FitDefense
from tasks.noise import NoisePolicy
from tasks.reference import ReferenceFrom
from tasks.split import Split
from tasks.train_block import sub_models
from tasks.train_shadows import LoneShadow, Shadow, TrainShadows, shadow_pool, shadow_rows
from tasks.train_target import TrainTarget

__all__ = ["Case", "DefenderOutline", "Stage", "deploy", "shadow"]


@dataclass(frozen=True)
class Stage:
    """A defense of a chain, resolved for one dataset."""

    plugin: Defense
    noise: NoisePolicy
    reference_from: ReferenceFrom | None = None


@dataclass(frozen=True)
class Case:
    """One dataset under one seed: what all its cells share.

    `others` gives further datasets by name, with the architectures they have by default.
    """

    dataset: datasets.Dataset
    split: Split
    divided: splits.Split
    architecture: architectures.Architecture
    seed: int
    others: Callable[[str], "Case"] | None = None


@dataclass(frozen=True)
class DefenderOutline:
    """`defenses.base.Outline`: rows, labels and sizes; `training` makes the task."""

    case: Case
    seed: int
    member_rows: NDArray[np.int64]
    reference_rows: NDArray[np.int64]
    reference: Rows | None
    answers: Answers | None = None
    reference_from: ReferenceFrom | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every row of the dataset."""
        return self.case.dataset.y

    @property
    def num_classes(self) -> int:
        """C."""
        return self.case.dataset.num_classes

    def trainings(self, stage: Stage | None) -> tuple[Task, ...]:
        """What a defense asks for."""
        if stage is None or not isinstance(stage.plugin, PlanningDefense):
            return ()
        depth = 0 if self.answers is None else len(self.answers.stages)
        outline = replace(self, reference_from=stage.reference_from)
        return stage.plugin.trainings(outline, seed=stream(self.seed, "defense.fit", depth))

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
            return FitDefense(
                seed=self.seed,
                answers=self.answers,
                defense=defense,
                reference_from=self.reference_from,
            )
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


def deploy(
    case: Case,
    stages: Sequence[Stage],
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
    trained = shaping[0] if shaping else None
    target = TrainTarget(
        seed=seed,
        split=case.split,
        architecture=case.architecture,
        defense=trained.plugin if trained else None,
        rows=rows,
        reference=reference,
        trainings=outline.trainings(trained),
        reference_from=trained.reference_from if trained else None,
    )
    return _defended(Answers(seed=seed, source=target), stages, outline)


def shadow(case: Case, stages: Sequence[Stage], judge: splits.Judge, number: int) -> Answers:
    """The answers of one shadow model, defended as the stages say."""
    shaping = [stage for stage in stages if isinstance(stage.plugin, TrainingDefense)]
    alone = shaping and (
        shaping[0].reference_from or isinstance(shaping[0].plugin, PlanningDefense)
    )
    if alone:
        return _lone_shadow(case, stages, judge, number)
    block = TrainShadows(
        seed=case.seed,
        split=case.split,
        architecture=case.architecture,
        judge=judge,
        block=number // BLOCK,
        defense=shaping[0].plugin if shaping else None,
    )
    shadow = Shadow(seed=stream(case.seed, "shadow", number), block=block, index=number % BLOCK)
    pool = shadow_pool(case.divided, judge, case.seed)
    outline = DefenderOutline(case, shadow.seed, pool, pool, None)
    return _defended(Answers(seed=shadow.seed, source=shadow), stages, outline)


def _lone_shadow(case: Case, stages: Sequence[Stage], judge: splits.Judge, number: int) -> Answers:
    """A shadow whose training defense has trainings or a reference of its own, so no block."""
    seed = stream(case.seed, "shadow", number)
    pool = shadow_pool(case.divided, judge, case.seed)
    halves = half_split(pool, number + 1, seed=stream(case.seed, "shadow.halves"))
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
        trainings=outline.trainings(stages[0]),
        reference_from=stages[0].reference_from,
    )
    return _defended(Answers(seed=seed, source=target), stages, outline)


def _defended(answers: Answers, stages: Sequence[Stage], outline: DefenderOutline) -> Answers:
    """The answers behind the output defenses of a chain."""
    for stage in stages:
        if isinstance(stage.plugin, OutputDefense):
            fitted = FitDefense(
                seed=answers.seed,
                answers=answers,
                defense=stage.plugin,
                trainings=replace(outline, answers=answers).trainings(stage),
                reference_from=stage.reference_from,
            )
            answers = Answers(seed=answers.seed, source=fitted, noise=stage.noise)
    return answers
