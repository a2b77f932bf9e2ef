"""What an attacker plans with: models of its own, shadows, its own copies of the defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.base import Planning as PlanningAttack
from orchestrator.config import AttackEntry
from orchestrator.defended import Case, Stage, deploy, shadow
from storage import splits
from tasks import plugins
from tasks.base import Rows, Task, stream
from tasks.run_attack import known_rows
from tasks.train_target import TrainTarget

__all__ = ["AttackerOutline", "attack_trainings"]


def attack_trainings(
    case: Case, stages: Sequence[Stage], plugin: Any, entry: AttackEntry, judge: splits.Judge
) -> tuple[Task, ...]:
    if not isinstance(plugin, PlanningAttack):
        return ()
    # The threat model keeps the deployed defense's reference records from the attacker.
    own = [
        replace(s, reference_from=s.reference_from and s.reference_from.of_attacker) for s in stages
    ]
    outline = AttackerOutline(case, own, judge, entry.adaptive)
    name = plugins.plugin_name(plugin)
    return plugin.trainings(outline, seed=stream(case.seed, f"attack.fit/{name}"))


@dataclass(frozen=True)
class AttackerOutline:
    """`attacks.base.Outline`: what the attacker holds; `training` makes the task."""

    case: Case
    stages: Sequence[Stage] = field(repr=False)
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
            return deploy(self.case, self.stages, Rows(rows), reference, seed)
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
        return tuple(shadow(self.case, stages, self.judge, i) for i in range(num_shadows))
