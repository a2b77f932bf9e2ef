"""A classifier behind its defenses as tasks: the target, a shadow, an attacker's own copy."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense, OutputDefense, TrainingDefense
from defenses.base import Planning as PlanningDefense
from storage import datasets, splits
from storage.halves import half_split
from tasks import architectures, plugins
from tasks.answers import Answers
from tasks.base import Rows, Task, canonical_text, stream
from tasks.block import BLOCK
from tasks.fit_defense import FitDefense
from tasks.noise import NoisePolicy
from tasks.reference import ReferenceFrom
from tasks.split import Split
from tasks.train_block import sub_models
from tasks.train_shadows import LoneShadow, Shadow, TrainShadows, shadow_pool, shadow_rows
from tasks.train_target import TrainTarget

__all__ = ["Case", "DefenderOutline", "Stage", "deploy", "identity", "shadow"]

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Stage:
    """A defense of a chain, resolved for one dataset."""

    plugin: Defense
    noise: NoisePolicy
    reference_from: ReferenceFrom | None = None

    @cached_property
    def identity(self) -> tuple[str, str, str]:
        """Equal for stages that make the same tasks, and only for them."""
        return canonical_text(self.plugin), self.noise, canonical_text(self.reference_from)

    @cached_property
    def trains(self) -> bool:
        """Whether it shapes the model."""
        return isinstance(self.plugin, TrainingDefense)

    @cached_property
    def answering(self) -> OutputDefense | None:
        """The plugin, if it changes answers."""
        return self.plugin if isinstance(self.plugin, OutputDefense) else None

    @cached_property
    def planning(self) -> PlanningDefense | None:
        """The plugin, if it wants models of its own trained."""
        return self.plugin if isinstance(self.plugin, PlanningDefense) else None

    @cached_property
    def of_attacker(self) -> "Stage":
        """The stage in an attacker's own copy of the chain."""
        # The threat model keeps the deployed defense's reference records from the attacker.
        return replace(self, reference_from=self.reference_from and self.reference_from.of_attacker)


def identity(stages: Sequence[Stage]) -> tuple[tuple[str, str, str], ...]:
    """Equal for chains that make the same tasks, and only for them."""
    return tuple(stage.identity for stage in stages)


@dataclass(frozen=True)
class Case:
    """One dataset under one seed: what all its cells share.

    `others` gives further datasets by name, with the architectures they have by default. `made` is
    what `once` made.
    """

    dataset: datasets.Dataset
    split: Split
    divided: splits.Split
    architecture: architectures.Architecture
    seed: int
    others: Callable[[str], "Case"] | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, what: Hashable, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, made when first asked for.

        The many attacks of a plan share their splits, models and copies; a plan that made each
        anew for every attack would take minutes.

        Args:
            what: names it, with all it depends on but the case.
            make: makes it; what it gives must not change afterwards.
        """
        if what not in self.made:
            self.made[what] = make()
        return cast(_Made, self.made[what])

    @property
    def member_rows(self) -> NDArray[np.int64]:
        """D1."""
        return self.once("members", lambda: self.divided.members)

    @property
    def reference_rows(self) -> NDArray[np.int64]:
        """D2."""
        return self.once("reference", lambda: self.divided.reference)

    def shadow_pool(self, judge: splits.Judge) -> NDArray[np.int64]:
        """The records that shadow models divide."""
        return self.once(
            ("shadow pool", judge), lambda: shadow_pool(self.divided, judge, self.seed)
        )


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
        if stage is None or stage.planning is None:
            return ()
        depth = 0 if self.answers is None else len(self.answers.stages)
        outline = replace(self, reference_from=stage.reference_from)
        return stage.planning.trainings(outline, seed=stream(self.seed, "defense.fit", depth))

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
    shaping = [stage for stage in stages if stage.trains]
    if len(shaping) > 1 or (shaping and stages[0] is not shaping[0]):
        names = ", ".join(plugins.plugin_name(stage.plugin) for stage in stages)
        raise ValueError(f"a chain takes one training defense, as its first; got [{names}]")
    member_rows = case.member_rows if rows is None else rows.array
    reference_rows = case.reference_rows if reference is None else reference.array
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
    shaping = [stage for stage in stages if stage.trains]
    if shaping and (shaping[0].reference_from or shaping[0].planning):
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
    pool = case.shadow_pool(judge)
    outline = DefenderOutline(case, shadow.seed, pool, pool, None)
    return _defended(Answers(seed=shadow.seed, source=shadow), stages, outline)


def _lone_shadow(case: Case, stages: Sequence[Stage], judge: splits.Judge, number: int) -> Answers:
    """A shadow whose training defense has trainings or a reference of its own, so no block."""
    seed = stream(case.seed, "shadow", number)
    pool = case.shadow_pool(judge)
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
        if stage.answering is not None:
            fitted = FitDefense(
                seed=answers.seed,
                answers=answers,
                defense=stage.plugin,
                trainings=replace(outline, answers=answers).trainings(stage),
                reference_from=stage.reference_from,
            )
            answers = Answers(seed=answers.seed, source=fitted, noise=stage.noise)
    return answers
