"""Task: what a defense costs: accuracy, distortion, time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Artifact, Draft
from storage.splits import Judge, Split
from tasks import metrics
from tasks.answers import Answers
from tasks.base import ADDED, Task, measured, stream
from tasks.detection import swap_detection
from tasks.fit_defense import FitDefense
from tasks.service import Service
from tasks.train_target import TrainTarget
from tasks.worker import Bench

__all__ = ["MeasureUtility"]

_WARM_UPS, _REPEATS = 3, 5
_SMALL, _LARGE = 1, 256
_DIAGNOSED = (
    "kl_mean",
    "variance_ratio",
    "noise_variance_ratio",
    "info_r2",
    "swap_rate_members",
    "swap_rate_reference",
    "swap_rate_outside",
    "epsilon",
    "delta",
)


@dataclass(frozen=True, eq=False)
class MeasureUtility(Task):
    """The utility row of one deployed service.

    Attributes:
        answers: the deployed service.
        baseline: the answers of the undefended target of the same split and seed.
        judge: "defender" measures what else is measured on the nonmembers (D3) on reference_val,
            as a defender who tunes has no D3 (methods.md 10.3); the columns keep their names.
    """

    VERSION: ClassVar[int] = 3
    SECONDS: ClassVar[float] = 1.0
    TABLES: ClassVar[tuple[str, ...]] = ("utility",)

    answers: Answers
    baseline: Answers
    judge: Judge = field(default="members", metadata=ADDED)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.answers.dataset

    @property
    def name(self) -> str:
        """The outermost defense, or the architecture."""
        return self.answers.name

    def run(self, bench: Bench, draft: Draft) -> None:
        """Compare released with undefended answers on D1 and others, and time both services."""
        target = self.answers.target
        dataset, split = bench.dataset(target.split.data), bench.split(target.split)
        facts: dict[str, Any] = {}
        released = {}
        others = self._others(split)
        for role, rows in (("members", split.members), ("nonmembers", others)):
            p_NC, c_NC = self.answers.of(rows, bench), self.baseline.of(rows, bench)
            y = dataset.y[rows]
            released[role] = (p_NC, y)
            facts[f"accuracy_{role}"] = np.mean(p_NC.argmax(axis=1) == y)
            facts[f"baseline_accuracy_{role}"] = np.mean(c_NC.argmax(axis=1) == y)
            changed = p_NC.argmax(axis=1) != c_NC.argmax(axis=1)
            facts[f"label_change_rate_{role}"] = changed.mean()
            distortion = metrics.l1(c_NC, p_NC)
            facts[f"l1_distortion_{role}"] = distortion.mean()
            if role == "nonmembers":
                facts["l1_distortion_p95"] = np.quantile(distortion, 0.95)
        p_NC, y = released["nonmembers"]
        correct = int((p_NC.argmax(axis=1) == y).sum())
        low, high = metrics.clopper_pearson(correct, len(y))
        facts |= {
            "train_accuracy": facts.pop("accuracy_members"),
            "test_accuracy": facts.pop("accuracy_nonmembers"),
            "test_accuracy_low": float(low),
            "test_accuracy_high": float(high),
            "ece": metrics.ece(p_NC, y),
        }
        facts["test_accuracy_drop"] = (
            facts.pop("baseline_accuracy_nonmembers") - facts["test_accuracy"]
        )
        facts.pop("baseline_accuracy_members")
        for column in ("l1_distortion", "label_change_rate"):
            facts[column] = facts[f"{column}_nonmembers"]
        diagnosis = self.answers.diagnosis(bench)
        facts |= {name: diagnosis.get(name) for name in _DIAGNOSED}
        facts["swap_rate"] = diagnosis.get("swap_rate")
        facts["extra_bytes"] = int(diagnosis.get("extra_bytes", 0))
        facts |= self._swaps(bench, split)
        facts["flags"] = [*self.answers.flags, *facts["flags"]]
        draft.facts("metrics", facts)
        draft.facts("timing", self._timing(bench, dataset.x(others[:_LARGE])))

    def _others(self, split: Split) -> NDArray[np.int64]:
        """The records that trained nothing, on which test accuracy and distortion are measured."""
        return split.reference_val if self.judge == "defender" else split.nonmembers

    def _swaps(self, bench: Bench, split: Split) -> dict[str, Any]:
        """Whether answers whose label the output defenses changed look like the others."""
        if not self.answers.stages:
            return {"flags": []}
        rows = np.concatenate([split.members, self._others(split)])
        found = swap_detection(
            self.answers.of(rows, bench),
            self.answers.undefended.of(rows, bench),
            seed=stream(self.seed, "swap.detection"),
        )
        if found is None:
            return {"flags": []}
        return {
            "swap_detection_auc": found.auc,
            "swap_detection_auc_low": found.low,
            "swap_detection_auc_high": found.high,
            "swap_detection_p": found.p,
            "flags": ["swap_detectable"] if found.detectable else [],
        }

    def _timing(self, bench: Bench, x: Any) -> dict[str, float]:
        """Fit and query seconds, and their ratios to the undefended target's (section 8.5)."""
        fit_s = sum(self._fit_seconds(bench))
        baseline_s = bench.open(self.baseline.target).facts("metrics")["train_s"]
        service, plain = self.answers.service(bench), self.baseline.service(bench)
        small, large = x[:_SMALL], x
        query_s, plain_s = _seconds(service, large), _seconds(plain, large)
        return {
            "fit_s": fit_s,
            "fit_ratio": fit_s / max(baseline_s, 1e-9),
            "query_s": query_s,
            "query_ratio": query_s / max(plain_s, 1e-9),
            "query_ratio_1": _seconds(service, small) / max(_seconds(plain, small), 1e-9),
        }

    def _fit_seconds(self, bench: Bench) -> Iterator[float]:
        """Seconds of everything the defenses add, the trainings they asked for included."""
        target = self.answers.target
        if target.defense is not None:
            own = target.trainings if isinstance(target, TrainTarget) else ()
            for task in (target, *own):
                yield bench.open(task).facts("metrics")["train_s"]
        for stage in self.answers.stages:
            if isinstance(stage.source, FitDefense):
                for task in (stage.source, *stage.source.trainings):
                    facts = bench.open(task).facts("metrics")
                    yield facts.get("fit_s", facts.get("train_s", 0.0))

    def table_rows(self, artifact: Artifact) -> dict[str, list[dict[str, Any]]]:
        """The utility row."""
        facts, taken = artifact.facts("metrics"), measured(artifact)
        row = {
            **self.answers.columns(),
            **{name: value for name, value in facts.items() if name != "swap_rate"},
            **artifact.facts("timing"),
            **{name: taken[name] for name in ("duration_s", "device", "worker", "created_at")},
            "task_key": self.key,
        }
        return {"utility": [row]}


def _seconds(service: Service, x: Any) -> float:
    """Median seconds of one answer to the batch `x`, computed afresh."""
    for _ in range(_WARM_UPS):
        service.afresh(x)
    timed = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        service.afresh(x)
        timed.append(time.perf_counter() - started)
    return median(timed)
