"""Task: one attack on one deployed service."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from attacks.base import Attack
from storage import invariants, splits
from storage.artifacts import Artifact, Draft
from storage.datasets import Dataset
from tasks import metrics
from tasks.answers import Answers
from tasks.base import ADDED, Data, Rows, Task, measured, stream
from tasks.check_split import CheckSplit, asked_order
from tasks.knowledge import ForeignRecords, Held, Knowledge
from tasks.plugins import plugin_name
from tasks.service import Query, digests
from tasks.split import rows_seen
from tasks.train_shadows import LoneShadow, Shadow
from tasks.train_target import TrainTarget
from tasks.worker import Bench

if TYPE_CHECKING:
    from tasks.effort import ChooseEffort

__all__ = ["RunAttack"]

GAP_MARGIN = 0.015  # an attack that sees y and the label contains the gap attack, less noise
COLLAPSED = 0.02  # within-label variance ratio below which a reformer is a prototype


@dataclass(frozen=True, eq=False)
class RunAttack(Task):
    """Scores of the judged records, and what they amount to.

    Attributes:
        answers: the deployed service.
        attack: the plugin.
        checks: what the split gives away by itself; its flags are the result's too.
        judge: who is called a member: the members, the reference set (PURIFIER's Table 7), or
            fresh records that trained nothing (the null of methods.md section 2.5). "defender" is
            the members against reference records, all of which a tuning defender owns (10.3).
        fit_on: whether the attacker fits on what the service returns, or on clean answers.
        adaptive: whether the attacker's own models carry the deployed defense.
        trainings: what the plugin's `trainings` asked for.
        own_copy: the service that an attack which `LEARNS` is fitted on in the deployed one's
            place: the attacker's own, trained on records it holds.
        own_copy_out: what the attacker holds besides and kept from its own copy.
        held: the rows the attacker's models are trained on, where those are not the known ones.
        effort: a `ChooseEffort` that says whether the attack is to be trained harder, or None.
    """

    VERSION: ClassVar[int] = 2
    SECONDS: ClassVar[float] = 1.5
    TABLES: ClassVar[tuple[str, ...]] = ("results", "scores")

    answers: Answers
    attack: Attack
    checks: CheckSplit
    judge: splits.Judge = "members"
    fit_on: Literal["defended", "clean"] = "defended"
    adaptive: bool = False
    trainings: tuple[Task, ...] = ()
    own_copy: Answers | None = field(default=None, metadata=ADDED)
    own_copy_out: Rows | None = field(default=None, metadata=ADDED)
    held: Rows | None = field(default=None, metadata=ADDED)
    effort: "ChooseEffort | None" = field(default=None, metadata=ADDED)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.answers.dataset

    @property
    def name(self) -> str:
        """The plugin."""
        return plugin_name(self.attack)

    @property
    def attack_params(self) -> str:
        """The plugin's fields as JSON."""
        return json.dumps(self.attack.model_dump(mode="json"), sort_keys=True)

    def run(self, bench: Bench, draft: Draft) -> None:
        """Attack, calibrate on the calibration part, then join membership and judge."""
        target = self.answers.target
        dataset, split = bench.dataset(target.split.data), bench.split(target.split)
        plugin = self.attack if self.effort is None else self.effort.chosen(bench)
        if self.effort is not None and plugin is self.effort.first.attack and self._is_first:
            _copy(bench.open(self.effort.first), draft)
            return
        found = self.attempt(bench, plugin)
        calibration = found.calibration(plugin)
        figures: dict[str, Any] = dict(
            metrics.attack_metrics(found.judged_score, found.judged_member, calibration)
        )
        judged_rows, judged_member = found.judged_rows, found.judged_member
        flags = [*figures.pop("flags"), *self._flags(bench, figures, judged_rows, judged_member)]
        flags += self.checks.flags(bench)
        fit_rows = split.known(self.judge)[0]
        for violation in self._violations(
            bench, dataset, split, (fit_rows, found.cal_rows, judged_rows), judged_member
        ):
            if violation.fatal:
                raise RuntimeError(
                    f"the evaluation would leak, so it is not reported: {violation.name}: "
                    f"{violation.message}"
                )
            flags.append(violation.name.lower())
        draft.table(
            "scores",
            {
                "record": judged_rows,
                "is_member": judged_member,
                "score": calibration.sign * found.judged_score,
                "decision": metrics.decisions(found.judged_score, calibration),
            },
        )
        lists = {"fit": fit_rows, "cal": found.cal_rows, "judged": judged_rows}
        if self.own_copy is not None and self.own_copy_out is not None:
            rows_in = self.own_copy.target.member_rows(bench)
            lists |= {"own_copy_in": rows_in, "own_copy_out": self.own_copy_out.array}
        draft.table(
            "rows",
            {
                "role": np.repeat(list(lists), [len(rows) for rows in lists.values()]),
                "row": np.concatenate(list(lists.values())),
            },
        )
        draft.facts(
            "metrics",
            {
                **figures,
                "flags": sorted(set(flags)),
                "num_queries": found.num_queries,
                "threshold": finite(calibration.threshold),
                "sign": calibration.sign,
                "effort": json.dumps(differences(self.attack, plugin), sort_keys=True),
            },
        )

    @property
    def knows_defense(self) -> bool:
        """Whether the attacker knows the deployed defense's algorithm and makes use of it."""
        return self.adaptive or self.attack.THREAT_MODEL == "BB-adaptive"

    @property
    def _is_first(self) -> bool:
        """Whether this is what the effort was chosen by, so that nothing has to run again."""
        return self.effort is not None and replace(self, effort=None).key == self.effort.first.key

    def attempt(self, bench: Bench, plugin: Attack) -> "Attempt":
        """Score calibration and judged records with the plugin, which may be trained harder."""
        target = self.answers.target
        dataset, split = bench.dataset(target.split.data), bench.split(target.split)
        _, _, cal_rows, cal_member = split.known(self.judge)
        judged_rows, judged_member = split.judged(self.judge)
        if (most := plugin.most_records) is not None:
            judged_rows, judged_member = balanced(judged_rows, judged_member, most)
            cal_rows, cal_member = balanced(cal_rows, cal_member, most // 2)

        # Calibration records are scored among the judged ones, in an order that tells nothing:
        # the attack treats them alike, and their scores give threshold and sign.
        both = np.concatenate([cal_rows, judged_rows])
        order = asked_order(self.seed, len(both))
        query = Query(self.answers.service(bench), plugin.ACCESS)
        known = self._knowledge(bench, dataset, split)
        shuffled = plugin.score(
            query,
            known,
            dataset.x(both[order]),
            dataset.y[both[order]],
            seed=stream(self.seed, f"attack.fit/{self.name}"),
        )
        score = self._checked(shuffled, len(both))[np.argsort(order)]
        # Its own copy an attacker may ask as often as it likes.
        asked = known.query.num_queries if self.own_copy is None else 0
        return Attempt(
            cal_rows,
            cal_member,
            score[: len(cal_rows)],
            judged_rows,
            judged_member,
            score[len(cal_rows) :],
            query.num_queries + asked,
        )

    def _knowledge(self, bench: Bench, dataset: Dataset, split: splits.Split) -> Knowledge:
        """What the attacker has, as its threat model grants it."""
        held = Held.of(dataset, split, self.judge, self.held)
        fitted_on = self.answers if self.fit_on == "defended" else self.answers.undefended
        fit, cal = held.told
        if self.own_copy is not None and self.own_copy_out is not None:
            fitted_on = self.own_copy
            rows_in = fitted_on.target.member_rows(bench)
            fit, cal = held.divided(rows_in, self.own_copy_out.array, seed=self.seed)
        return Knowledge(
            held=held,
            threat_model=self.attack.THREAT_MODEL,
            told_fit=fit,
            told_cal=cal,
            query=Query(fitted_on.service(bench), self.attack.ACCESS),
            trained=tuple(t.trained(bench) for t in self.trainings if not is_shadow(t)),
            shadow_models=self._shadow_models(bench),
            architecture=self.answers.target.architecture,
            device=bench.device,
            others={
                name: ForeignRecords(bench.dataset(data))
                for name in self.attack.foreign_datasets
                for data in {data_of(task) for task in self.trainings}
                if data is not None and data.name == name
            },
        )

    def _shadow_models(self, bench: Bench) -> "Callable[[], ShadowModels]":
        answers = tuple(task for task in self.trainings if is_shadow(task))

        def models() -> ShadowModels:
            if not answers:
                raise TypeError("this attack's trainings() asked for no shadows")
            return ShadowModels(answers, bench)

        return models

    def _checked(self, returned: Any, num: int) -> NDArray[np.float64]:
        score = np.asarray(returned, dtype=np.float64)
        if score.shape != (num,) or not np.isfinite(score).all():
            raise ValueError(
                f"attack '{self.name}' must return {num} finite scores, it returned shape "
                f"{list(score.shape)} with {int((~np.isfinite(score)).sum())} not finite"
            )
        return score

    def _flags(
        self,
        bench: Bench,
        figures: dict[str, Any],
        rows: NDArray[np.int64],
        is_member: NDArray[np.bool_],
    ) -> list[str]:
        flags = self.answers.flags
        models = bool(self.trainings) or self.own_copy is not None
        defended = any(isinstance(task, Answers) and task.defenses for task in self.trainings)
        ignorant = self.fit_on == "clean" or (models and not self.adaptive and not defended)
        if ignorant and self.answers.defenses:
            flags.append("non_adaptive")
        ratio = self.answers.diagnosis(bench).get("variance_ratio")
        if ratio is not None and ratio < COLLAPSED:
            flags.append("collapsed")
        if self.attack.CONTAINS_GAP:
            y = bench.dataset(self.answers.target.split.data).y[rows]
            correct = self.answers.of(rows, bench).argmax(axis=1) == y
            gap = 0.5 + (correct[is_member].mean() - correct[~is_member].mean()) / 2
            if figures["attack_accuracy"] < gap - GAP_MARGIN:
                flags.append("invalid")
        return flags

    def _violations(
        self,
        bench: Bench,
        dataset: Dataset,
        split: splits.Split,
        lists: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
        is_member: NDArray[np.bool_],
    ) -> list[invariants.Violation]:
        """The invariants of methods.md section 2.3, on the index lists the stages logged."""
        target = self.answers.target
        seen = [rows_seen(bench.open(stage.source)) for stage in self.answers.stages]
        if target.defense is not None:
            seen.append(rows_seen(bench.open(target)))
        used = [rows for stage in seen for rows in stage.values()]
        fit_rows, cal_rows, judged_rows = lists
        return invariants.check_invariants(
            split=split,
            groups=dataset.groups,
            y=dataset.y,
            target_rows=rows_seen(bench.open(target))["members"],
            defense_rows=np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64),
            fit_rows=fit_rows,
            cal_rows=cal_rows,
            judged_rows=judged_rows,
            judged_is_member=is_member,
            leaky="leaky" in self.answers.flags,
            judge=self.judge,
        )

    def table_rows(self, artifact: Artifact) -> dict[str, Any]:
        """The result row, and columns with a score a judged record."""
        figures = artifact.facts("metrics")
        taken = measured(artifact)
        columns = {k: v for k, v in figures.items() if k not in ("threshold", "sign")}
        result = {
            **self.answers.columns(),
            "attack": self.name,
            "attack_params": self.attack_params,
            "threat_model": self.attack.THREAT_MODEL,
            "adaptive": self.knows_defense,
            "judge": self.judge,
            "shadow_data": "known" if self.held is None else "population",
            **columns,
            **{name: taken[name] for name in ("duration_s", "device", "worker", "created_at")},
            "task_key": self.key,
        }
        return {"results": [result], "scores": artifact.table("scores")}


@dataclass(frozen=True, eq=False)
class Attempt:
    """What an attack said of the calibration and the judged records, and what it asked."""

    cal_rows: NDArray[np.int64]
    cal_member: NDArray[np.bool_]
    cal_score: NDArray[np.float64]
    judged_rows: NDArray[np.int64]
    judged_member: NDArray[np.bool_]
    judged_score: NDArray[np.float64]
    num_queries: int

    def calibration(self, plugin: Attack) -> metrics.Calibration:
        """Threshold and sign, from the calibration records alone."""
        return metrics.calibrate(
            self.cal_score, self.cal_member, plugin.THRESHOLD, plugin.NATURAL_THRESHOLD
        )


class ShadowModels:
    """`attacks.base.Shadows`: the answers of shadow models, and what each record was to them."""

    def __init__(self, answers: tuple[Answers, ...], bench: Bench) -> None:
        self._answers, self._bench = answers, bench

    @property
    def num_shadows(self) -> int:
        """S."""
        return len(self._answers)

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [S, N, C] of any x [N, ...]."""
        known = digests(x)
        return np.stack([a.service(self._bench).answer(x, known=known) for a in self._answers])

    def role(self, x: NDArray[Any]) -> NDArray[np.int8]:
        """Int8 [S, N]: 1 in, 0 out, -1 reference of the shadow's defense."""
        pool, content_P, number_of = self._pool()
        content_N = np.array([number_of.get(digest, -1) for digest in digests(x)], dtype=np.int64)
        roles = np.zeros((len(self._answers), len(x)), dtype=np.int8)

        def among(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.isin(content_N, content_P[np.isin(pool, rows)])

        for role, answers in zip(roles, self._answers, strict=True):
            if answers.defenses:
                role[among(np.concatenate(answers.target.reference_rows(self._bench)))] = -1
            # A model that trained on one of two equal records has seen both.
            role[among(answers.target.member_rows(self._bench))] = 1
        return roles

    def _pool(self) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[bytes, int]]:
        """Rows of the pool, the number of each one's content, and that number by content.

        The first two models trained on complementary halves of it.
        """
        first = self._answers[0].target

        def make() -> tuple[NDArray[np.int64], NDArray[np.int64], dict[bytes, int]]:
            halves = [a.target.member_rows(self._bench) for a in self._answers[:2]]
            rows = np.unique(np.concatenate(halves))
            content = digests(self._bench.dataset(first.split.data).x(rows))
            number_of = {digest: number for number, digest in enumerate(dict.fromkeys(content))}
            return rows, np.array([number_of[digest] for digest in content]), number_of

        return self._bench.keep(("shadow pool", first.key), make)


def data_of(task: Task) -> Data | None:
    """The dataset a model was trained on, if the task is a model or the answers of one."""
    target = task.target if isinstance(task, Answers) else task
    return target.split.data if isinstance(target, TrainTarget | Shadow | LoneShadow) else None


def is_shadow(task: Task) -> TypeGuard[Answers]:
    """Whether a training is a shadow model's answers rather than a model of the attack's own."""
    return isinstance(task, Answers) and isinstance(task.target, Shadow | LoneShadow)


def finite(value: float) -> float | None:
    """The value, or None for the thresholds that call everybody or nobody a member."""
    return value if math.isfinite(value) else None


def _copy(done: Artifact, draft: Draft) -> None:
    """An attack that need not run again, under another key."""
    for table in ("scores", "rows"):
        draft.table(table, done.table(table))
    draft.facts("metrics", done.facts("metrics"))


def differences(asked: Attack, used: Attack) -> dict[str, Any]:
    """The fields in which an attack was run otherwise than asked for."""
    before, after = asked.model_dump(mode="json"), used.model_dump(mode="json")
    return {name: value for name, value in after.items() if before[name] != value}


def balanced(
    rows: NDArray[np.int64], is_member: NDArray[np.bool_], most: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """At most `most` rows, half members and half not, the first of each in the given order."""
    each = min(most // 2, int(is_member.sum()), int((~is_member).sum()))
    kept = np.sort(
        np.concatenate([np.flatnonzero(is_member)[:each], np.flatnonzero(~is_member)[:each]])
    )
    return rows[kept], is_member[kept]
