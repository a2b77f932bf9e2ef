"""What an attacker plans with: models of its own, shadows, its own copies of the defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from attacks.base import Planning as PlanningAttack
from orchestrator.defended import Case, Stage, deploy, identity, shadow
from orchestrator.entries import AttackEntry
from storage import splits
from tasks import plugins
from tasks.answers import Answers
from tasks.base import Rows, Task, canonical_text, random_generator, stream
from tasks.knowledge import ForeignRecords, distinct, known_rows
from tasks.train_target import TrainTarget

__all__ = ["AttackerOutline", "Own", "own_models", "rows_for_shadow"]

# How an attacker divides its records: to train its copy on, to keep from it, and for its defense.
_IN, _OUT = 0.4, 0.4


@dataclass(frozen=True)
class Own:
    """The attacker's own models, as fields of `RunAttack`."""

    trainings: tuple[Task, ...] = ()
    own_copy: Answers | None = None
    own_copy_out: Rows | None = None
    held: Rows | None = None


def _wants_own_copy(plugin: Any, entry: AttackEntry) -> bool:
    """Whether the attack is fitted on a copy of the service instead of the deployed one."""
    elsewhere = entry.adaptive or entry.shadow_data == "population"
    return elsewhere and plugin.LEARNS and not _plans(type(plugin))


_PLANS: dict[type, bool] = {}


def _plans(cls: type) -> bool:
    """Whether the attack wants models of its own; a protocol looks at all its methods each time."""
    if cls not in _PLANS:
        _PLANS[cls] = issubclass(cls, PlanningAttack)
    return _PLANS[cls]


def own_models(
    case: Case, stages: Sequence[Stage], plugin: Any, entry: AttackEntry, judge: splits.Judge
) -> Own:
    """What the attacker trains before it attacks.

    Raises:
        ValueError: if the population is too small for models as large as the target.
    """
    own = [stage.of_attacker for stage in stages]
    defended = bool(entry.adaptive and own)
    held = None
    if entry.shadow_data == "population":
        held = case.once(
            ("held", judge, defended),
            lambda: Rows(rows_for_shadow(case.divided, case.seed, defended=defended, judge=judge)),
        )
    if _plans(type(plugin)):
        outline = AttackerOutline(case, own, judge, entry.adaptive, held)
        return Own(trainings=_trainings(outline, plugin), held=held)
    if not _wants_own_copy(plugin, entry):
        return Own()
    copied = own if defended else []
    return case.once(
        ("own copy", judge, entry.shadow_data, identity(copied)),
        lambda: _own_copy(case, copied, judge, held),
    )


def _trainings(outline: "AttackerOutline", plugin: Any) -> tuple[Task, ...]:
    """What a plugin asks for; of the same plugin the same, whatever defense it does not copy."""
    case = outline.case
    held = outline.held and outline.held.digest
    alike = ("trainings", canonical_text(plugin), outline.judge, outline.adaptive, held)
    chain = (*alike, identity(outline.stages))
    for what in (alike, chain):
        if what in case.made:
            return cast("tuple[Task, ...]", case.made[what])
    seed = stream(case.seed, f"attack.fit/{plugins.plugin_name(plugin)}")
    asked = tuple(plugin.trainings(outline, seed=seed))
    case.made[chain if outline.copies else alike] = asked
    return asked


def _own_copy(case: Case, stages: Sequence[Stage], judge: splits.Judge, held: Rows | None) -> Own:
    """A copy of the service, defended as the stages say, on some of what the attacker holds."""

    def shuffled() -> NDArray[np.int64]:
        # The records that set threshold and sign are kept from the copy.
        fit = case.divided.known(judge)[0]
        rows = distinct(fit, case.divided) if held is None else held.array
        order = random_generator(case.seed, "attack.own_copy").permutation(len(rows))
        return np.sort(rows)[order]

    rows = case.once(("own copy rows", judge, held and held.digest), shuffled)
    share_in, share_out = (_IN, _OUT) if stages else (0.5, 0.5)
    num_in, num_out = round(share_in * len(rows)), round(share_out * len(rows))
    rows_in, rows_out, rest = np.split(rows, [num_in, num_in + num_out])
    copy = deploy(
        case,
        stages,
        Rows(rows_in),
        Rows(rest) if stages else None,
        stream(case.seed, "attack.own_copy.train"),
    )
    return Own(own_copy=copy, own_copy_out=Rows(rows_out), held=held)


def rows_for_shadow(
    split: splits.Split, seed: int, *, defended: bool, judge: splits.Judge = "members"
) -> NDArray[np.int64]:
    """Rows of the population, enough that a shadow trained on its part is as large as the target.

    Raises:
        ValueError: if the population is too small, or the judge's attacker has none.
    """
    if judge == "defender":
        raise ValueError("a defender has no population (judge: defender); use 'known'")
    num_members, population = len(split.members), distinct(split.population, split)
    wanted = round(num_members / (_IN if defended else 0.5))
    if len(population) < wanted:
        raise ValueError(
            f"'population' takes {wanted} records of no role, so that a shadow model is as large "
            f"as the target ({num_members}); the split leaves {len(population)}: make its "
            "roles smaller, or use 'known'"
        )
    order = random_generator(seed, "attack.shadow_data").permutation(len(population))
    return np.sort(population[order[:wanted]])


@dataclass(frozen=True)
class AttackerOutline:
    """`attacks.base.Outline`: what the attacker holds; `training` makes the task."""

    case: Case
    stages: Sequence[Stage] = field(repr=False)
    judge: splits.Judge
    adaptive: bool
    held: Rows | None = None
    copies: list[bool] = field(default_factory=list, repr=False)  # filled once the defense matters

    @cached_property
    def known_rows(self) -> NDArray[np.int64]:
        """Rows the attacker trains its models on; membership is not told."""
        if self.held is not None:
            return self.held.array
        return self.case.once(
            ("known rows", self.judge), lambda: _fixed(known_rows(self.case.divided, self.judge))
        )

    @cached_property
    def population_rows(self) -> NDArray[np.int64]:
        """Rows of no role, which the attacker holds too; none if it is the defender."""
        return self.case.once(
            ("population", self.judge),
            lambda: _fixed(np.sort(self.case.divided.population_of(self.judge))),
        )

    @cached_property
    def _all_rows(self) -> NDArray[np.int64]:
        """Rows the attacker holds."""
        held = self.held and self.held.digest
        return self.case.once(
            ("all rows", self.judge, held),
            lambda: np.union1d(self.known_rows, self.population_rows),
        )

    @property
    def num_members(self) -> int:
        """How many records train the target."""
        return len(self.case.member_rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every row of the dataset."""
        return self.case.dataset.y

    @property
    def num_classes(self) -> int:
        """C."""
        return self.case.dataset.num_classes

    def foreign(self, dataset: str) -> ForeignRecords:
        """Another dataset, all of whose records the attacker holds."""
        return ForeignRecords(self._case_of(dataset).dataset)

    def _case_of(self, dataset: str) -> Case:
        assert self.case.others is not None
        return self.case.others(dataset)

    def training(
        self,
        *,
        rows: NDArray[np.int64],
        reference_rows: NDArray[np.int64] | None = None,
        defended: bool = False,
        dataset: str | None = None,
        seed: int,
    ) -> Task:
        """A model like the target on the attacker's rows, with the deployed defense if asked."""
        if dataset is not None:
            other = self._case_of(dataset)
            every = Rows(ForeignRecords(other.dataset).rows)
            outline = replace(self, case=other, held=every)
            return outline.training(
                rows=rows, reference_rows=reference_rows, defended=defended, seed=seed
            )
        if not np.isin(rows, self._all_rows).all():
            foreign = np.setdiff1d(rows, self._all_rows)
            raise PermissionError(f"the attacker does not hold rows {foreign[:3].tolist()}")
        reference = None if reference_rows is None else Rows(reference_rows)
        if defended:
            if reference is None:
                raise ValueError("an own copy of the defense needs reference_rows")
            self.copies.append(True)
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
        stages: Sequence[Stage] = ()
        if defended:
            self.copies.append(True)
            stages = self.stages
        like = (self.judge, identity(stages))

        def numbered(i: int) -> Task:
            return self.case.once(
                ("shadow", i, *like), lambda: shadow(self.case, stages, self.judge, i)
            )

        return self.case.once(
            ("shadows", num_shadows, *like), lambda: tuple(map(numbered, range(num_shadows)))
        )


def _fixed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that many plugins are shown, so that none can change them under the others."""
    rows.setflags(write=False)
    return rows
