"""Tasks: what attacks on records and attributes, rather than on membership, have in common."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.base import Attack
from storage import invariants, splits
from storage.artifacts import Artifact
from tasks.answers import Answers
from tasks.base import Task, measured
from tasks.check_split import asked_order
from tasks.plugins import plugin_name
from tasks.split import rows_seen
from tasks.worker import Bench

__all__ = ["DataAttack"]


@dataclass(frozen=True, eq=False)
class DataAttack(Task):
    """An attack that is told what a service answers about records it is not shown.

    Attributes:
        answers: the deployed service.
        attack: the plugin.
        judge: whose records are judged, as for attacks on membership.
    """

    answers: Answers
    attack: Attack
    judge: splits.Judge

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.answers.dataset

    @property
    def name(self) -> str:
        """The plugin."""
        return plugin_name(self.attack)

    def judged(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows [N] and their membership, in an order that tells nothing."""
        rows, is_member = bench.split(self.answers.target.split).judged(self.judge)
        order = asked_order(self.seed, len(rows))
        return rows[order], is_member[order]

    def released(self, rows: NDArray[np.int64], bench: Bench) -> NDArray[Any]:
        """What the service answers about rows [n]: confidences [n, C], or labels [n]."""
        confidence = self.answers.of(rows, bench)
        # A copy, as what is stored must not change under an attack's hands.
        return confidence.argmax(axis=1) if self.attack.ACCESS == "label" else confidence.copy()

    def flags(
        self,
        bench: Bench,
        known_rows: NDArray[np.int64],
        rows: NDArray[np.int64],
        is_member: NDArray[np.bool_],
    ) -> list[str]:
        """What the defenses say of every result, after the invariants of methods.md section 2.3.

        Args:
            bench: the worker's place.
            known_rows: the rows the attacker fits on.
            rows: [N], the judged rows as asked.
            is_member: [N].

        Raises:
            RuntimeError: if the evaluation would leak.
        """
        target = self.answers.target
        data = bench.dataset(target.split.data)
        seen = [rows_seen(bench.open(stage.source)) for stage in self.answers.stages]
        if target.defense is not None:
            seen.append(rows_seen(bench.open(target)))
        used = [part for stage in seen for part in stage.values()]
        found = invariants.check_invariants(
            split=bench.split(target.split),
            groups=data.groups,
            y=data.y,
            target_rows=rows_seen(bench.open(target))["members"],
            defense_rows=np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64),
            fit_rows=known_rows,
            cal_rows=np.empty(0, dtype=np.int64),
            judged_rows=rows,
            judged_is_member=is_member,
            leaky="leaky" in self.answers.flags,
            judge=self.judge,
        )
        for violation in found:
            if violation.fatal:
                raise RuntimeError(
                    f"the evaluation would leak, so it is not reported: {violation.name}: "
                    f"{violation.message}"
                )
        # The others say that class or order tell membership, which is not attacked here.
        repeated = {violation.name.lower() for violation in found if violation.name == "I5"}
        return sorted({*self.answers.flags, *repeated})

    def row(self, artifact: Artifact) -> dict[str, Any]:
        """The result row but for the figures' own columns."""
        taken = measured(artifact)
        return {
            **self.answers.columns(),
            "attack": self.name,
            "attack_params": json.dumps(self.attack.model_dump(mode="json"), sort_keys=True),
            "threat_model": self.attack.THREAT_MODEL,
            "judge": self.judge,
            **artifact.facts("metrics"),
            **{name: taken[name] for name in ("duration_s", "device", "worker", "created_at")},
            "task_key": self.key,
        }
