"""Task: what the strongest of all attacks on a service gets, beside what chance would give it."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Artifact, Draft
from tasks import metrics
from tasks.answers import Answers
from tasks.base import Task, canonical, measured, stream
from tasks.nullband import NullBand, max_null_band
from tasks.run_attack import RunAttack
from tasks.worker import Bench

__all__ = ["WorstCase"]


@dataclass(frozen=True, eq=False)
class WorstCase(Task):
    """The largest attack of one defense, over all seeds of an experiment: its headline.

    Of the means over seeds the largest is taken, for accuracy and for AUC apart; of equal ones the
    first. The largest of many attacks lies above 1/2 by chance alone, so the max-null band says
    how far.

    Attributes:
        attacks: every attack on the service under every seed, each once.

    Source: methods.md, rule T1, and section 8.6 for the band.
    """

    VERSION: ClassVar[int] = 2
    SECONDS: ClassVar[float] = 1.0
    GPU: ClassVar[bool] = False
    TABLES: ClassVar[tuple[str, ...]] = ("worst",)

    attacks: tuple[RunAttack, ...]

    @property
    def answers(self) -> Answers:
        """The service under the first seed."""
        return self.attacks[0].answers

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.answers.dataset

    @property
    def name(self) -> str:
        """The outermost defense, or the architecture."""
        return self.answers.name

    def by_attack(self) -> list[list[RunAttack]]:
        """The attacks in the order given, each as its tasks by seed.

        Raises:
            ValueError: if an attack lacks a seed that another has, or has one twice.
        """
        grouped: dict[str, list[RunAttack]] = {}
        for task in self.attacks:
            identity = [canonical(task.attack), task.adaptive, task.fit_on]
            # An attacker's models may be trained on its own records or on the population.
            identity += [task.held is not None] if task.held is not None else []
            grouped.setdefault(json.dumps(identity, sort_keys=True), []).append(task)
        groups = [sorted(tasks, key=lambda task: task.seed) for tasks in grouped.values()]
        seeds = [[task.seed for task in tasks] for tasks in groups]
        for tasks, own in zip(groups, seeds, strict=True):
            if own != seeds[0] or len(set(own)) < len(own):
                raise ValueError(
                    f"attack '{tasks[0].name}' has seeds {own}, '{groups[0][0].name}' {seeds[0]}; "
                    "a worst case compares attacks on the same seeds, each once"
                )
        return groups

    def run(self, bench: Bench, draft: Draft) -> None:
        """Find the largest attack, and permute membership for the band."""
        groups = self.by_attack()
        figures = [[bench.open(task).facts("metrics") for task in tasks] for tasks in groups]
        accuracy_AS = np.array([[f["attack_accuracy"] for f in row] for row in figures])
        auc_AS = np.array([[f["auc"] for f in row] for row in figures])
        worst, by_auc = int(accuracy_AS.mean(axis=1).argmax()), int(auc_AS.mean(axis=1).argmax())
        band = self._band(bench, groups)
        limits = [[f[f"attack_accuracy_{end}"] for f in figures[worst]] for end in ("low", "high")]
        mean, low, high = metrics.mean_interval(accuracy_AS[worst], *limits)
        flags = {flag for f in figures[worst] for flag in f["flags"]}
        made_for_it = any(task.knows_defense or task.attack.AGAINST for task in self.attacks)
        if self.answers.defenses and not made_for_it:
            flags.add("no_adaptive_attack")
        first = [tasks[0] for tasks in groups]
        facts = {
            "num_seeds": accuracy_AS.shape[1],
            "num_attacks": len(groups),
            "attack": first[worst].name,
            "attack_params": first[worst].attack_params,
            "attack_key": first[worst].key,
            "adaptive": first[worst].knows_defense,
            "attack_accuracy": mean,
            "attack_accuracy_low": low,
            "attack_accuracy_high": high,
            "chance_accuracy": band.chance_accuracy(worst),
            "auc_attack": first[by_auc].name,
            "auc_attack_key": first[by_auc].key,
            "auc": float(auc_AS[by_auc].mean()),
            "chance_auc": band.chance_auc(by_auc),
            "observed_accuracy_sd": band.observed_accuracy,
            "band_accuracy_sd": band.band_accuracy,
            "observed_auc_sd": band.observed_auc,
            "band_auc_sd": band.band_auc,
            "accuracy_sd_key": first[band.worst_accuracy].key,
            "auc_sd_key": first[band.worst_auc].key,
            "inside_band": band.inside,
            "flags": sorted(flags),
        }
        draft.facts("metrics", facts)

    def _band(self, bench: Bench, groups: list[list[RunAttack]]) -> NullBand:
        scores, decisions, is_member = [], [], []
        for of_seed in zip(*groups, strict=True):
            tables = [bench.open(task).table("scores") for task in of_seed]
            # An attack that asks thousands of times about a record judges some of them only.
            record = np.unique(np.concatenate([table["record"] for table in tables]))
            scores.append(np.stack([_spread(record, t, "score", np.nan) for t in tables]))
            decisions.append(np.stack([_spread(record, t, "decision", False) for t in tables]))
            member = np.zeros(len(record), dtype=bool)
            for table in tables:
                member[np.searchsorted(record, table["record"])] = table["is_member"]
            is_member.append(member)
        seed = stream(self.seed, "worst.permutations")
        return max_null_band(scores, decisions, is_member, seed=seed)

    def table_rows(self, artifact: Artifact) -> dict[str, list[dict[str, Any]]]:
        """The worst-case row."""
        taken = measured(artifact)
        about = {name: value for name, value in self.answers.columns().items() if name != "seed"}
        row = {
            **about,
            "judge": self.attacks[0].judge,
            **artifact.facts("metrics"),
            **{name: taken[name] for name in ("duration_s", "device", "worker", "created_at")},
            "task_key": self.key,
        }
        return {"worst": [row]}


def _spread(
    record: NDArray[np.int64], table: dict[str, NDArray[Any]], column: str, missing: Any
) -> NDArray[Any]:
    """A column of a table of records, at their places among `record` [N]; `missing` elsewhere."""
    spread = np.full(len(record), missing, dtype=table[column].dtype)
    spread[np.searchsorted(record, table["record"])] = table[column]
    return spread
