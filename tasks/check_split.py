"""Task: does the split give membership away before any model has answered?"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Artifact, Draft
from storage.splits import Judge
from tasks import metrics
from tasks._intervals import Bools, Floats
from tasks.base import Task, measured, random_generator, stream
from tasks.detection import GATE_TAIL, detectors, scale_detectors
from tasks.split import Split
from tasks.worker import Bench

__all__ = ["CheckSplit", "asked_order", "blind_scores", "position_scores"]

_MOST_FITTED = 5000
_MOST_FEATURES = 1024
_CLASS_LEVEL = 0.01  # the level of I6, whose flag tells this gate's verdict in the results

FLAGS = {"row_order": "order_leak", "asked_order": "order_leak", "inputs": "blind_leak"}


def asked_order(seed: int, num: int) -> NDArray[np.int64]:
    """The order in which an attack is given calibration and judged records; it tells nothing."""
    return random_generator(seed, "attack.order").permutation(num)


@dataclass(frozen=True, eq=False)
class CheckSplit(Task):
    """Attacks that are given no answer at all: none of them may do better than chance.

    One that does shows that the protocol leaks: whatever an attack gets out of this split is void.

    Attributes:
        split: the partition.
        judge: who is called a member.
    """

    VERSION: ClassVar[int] = 2
    SECONDS: ClassVar[float] = 1.5
    GPU: ClassVar[bool] = False
    TABLES: ClassVar[tuple[str, ...]] = ("gates",)

    split: Split
    judge: Judge = "members"

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.split.dataset

    @property
    def name(self) -> str:
        """Who is called a member."""
        return self.judge

    def run(self, bench: Bench, draft: Draft) -> None:
        """Judge row numbers, the order asked, the inputs and the classes."""
        dataset, split = bench.dataset(self.split.data), bench.split(self.split)
        fit_rows, fit_member, cal_rows, cal_member = split.known(self.judge)
        judged_rows, is_member = split.judged(self.judge)
        known_rows = np.concatenate([fit_rows, cal_rows])
        known_member = np.concatenate([fit_member, cal_member])

        place = np.argsort(asked_order(self.seed, len(cal_rows) + len(judged_rows)))
        gates = {
            "row_order": _gate(position_scores(known_rows, known_member, judged_rows), is_member),
            "asked_order": _gate(place[len(cal_rows) :], is_member),
        }
        rng = random_generator(self.seed, "check.sample")
        sample = rng.permutation(len(fit_rows))[:_MOST_FITTED]
        blind = blind_scores(
            (dataset.x(fit_rows[sample]), fit_member[sample]),
            (dataset.x(cal_rows), cal_member),
            dataset.x(judged_rows),
            seed=stream(self.seed, "check.fit"),
        )
        gates["inputs"] = _gate(blind, is_member)
        p = metrics.class_independence(dataset.y[judged_rows], is_member)
        gates["class"] = {"p": p, "flagged": p <= _CLASS_LEVEL}
        flags = {FLAGS[name] for name, gate in gates.items() if name in FLAGS and gate["flagged"]}
        draft.facts("metrics", {"gates": gates, "flags": sorted(flags)})

    def flags(self, bench: Bench) -> list[str]:
        """The flags of every result on this split; the class gate's is I6's own."""
        flags: list[str] = bench.open(self).facts("metrics")["flags"]
        return flags

    def table_rows(self, artifact: Artifact) -> dict[str, list[dict[str, Any]]]:
        """A row for every gate."""
        taken = measured(artifact)
        about = {
            "dataset": self.dataset,
            "dataset_hash": self.split.data.content_hash,
            "seed": self.split.seed,
            "judge": self.judge,
            **{name: taken[name] for name in ("duration_s", "device", "worker", "created_at")},
            "task_key": self.key,
        }
        gates = artifact.facts("metrics")["gates"]
        return {"gates": [{**about, "gate": name, **gate} for name, gate in gates.items()]}


def _gate(score: NDArray[Any] | None, is_member: Bools) -> dict[str, float | bool | None]:
    """AUC with its 99.9 % limits; flagged if 1/2 is outside them, above or below (rule T2).

    That is the level of this gate alone. A task knows nothing of the other gates and seeds of a
    run, so whoever shows many together corrects for their number by `p`.
    """
    if score is None:
        return {"value": None, "low": None, "high": None, "p": None, "flagged": False}
    value, variance = metrics.delong(score, is_member)
    num_pairs = int(min(is_member.sum(), (~is_member).sum()))
    low, high = metrics.auc_limits(value, variance, num_pairs, GATE_TAIL)
    p = metrics.auc_p_value(value, variance, num_pairs)
    return {"value": value, "low": low, "high": high, "p": p, "flagged": p <= 2 * GATE_TAIL}


def position_scores(
    known_rows: NDArray[np.int64], known_member: Bools, rows: NDArray[np.int64]
) -> Floats:
    """The share of members [N] among the known rows whose numbers are nearest to each of `rows`.

    As many neighbours vote as the square root of the known rows, at least five.

    Args:
        known_rows: [M] distinct row numbers.
        known_member: bool [M].
        rows: [N] row numbers.
    """
    by_row = np.argsort(known_rows)
    near, member = known_rows[by_row], known_member[by_row]
    num = min(max(5, math.isqrt(len(near))), len(near))
    # In one dimension the nearest `num` stand side by side: find where their run begins.
    start = np.searchsorted(near, rows)[:, None] + np.arange(-num, 1)
    start = start.clip(0, len(near) - num)
    reach = np.maximum(rows[:, None] - near[start], near[start + num - 1] - rows[:, None])
    first = np.take_along_axis(start, reach.argmin(axis=1)[:, None], axis=1)[:, 0]
    count = np.concatenate([[0], np.cumsum(member)])
    return np.asarray((count[first + num] - count[first]) / num)


def blind_scores(
    fit: tuple[NDArray[Any], Bools],
    cal: tuple[NDArray[Any], Bools],
    x: NDArray[Any],
    *,
    seed: int,
) -> Floats | None:
    """Guess membership from the records alone, asking no model.

    Of the detectors of `tasks.detection`, all fitted on `fit`, the one with the largest AUC on
    `cal` scores `x`: chosen on other records than are judged, so that having several of them, and
    hundreds of features to pick from, raises no more false alarms than one. Images are averaged
    over pixels, and other records over neighbouring features, until at most 1,024 features are
    left.

    Args:
        fit: records [M, ...] and their membership [M].
        cal: records and membership to choose on.
        x: [N, ...] the records to score; nothing is fitted on them.
        seed: of the classifiers.

    Returns:
        Scores [N], or None if `fit` or `cal` lacks members or non-members.
    """
    if any(member.all() or not member.any() for _, member in (fit, cal)):
        return None
    fit_x = _few_features(fit[0])
    fitted = (*detectors(fit_x, fit[1], seed=seed), *scale_detectors(fit_x, fit[1]))
    cal_x = _few_features(cal[0])
    best = max(fitted, key=lambda detector: metrics.auc(detector(cal_x), cal[1]))
    return best(_few_features(x))


def _few_features(x: NDArray[Any]) -> NDArray[Any]:
    """Records [N, ...] as [N, D], D at most 1,024."""
    if x.ndim == 4:  # [N, channels, height, width]
        side = 1
        while x.shape[1] * (x.shape[2] // side) * (x.shape[3] // side) > _MOST_FEATURES:
            side += 1
        high, wide = x.shape[2] // side, x.shape[3] // side
        x = x[:, :, : high * side, : wide * side]
        x = x.reshape(len(x), x.shape[1], high, side, wide, side).mean(axis=(3, 5))
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    starts = np.arange(0, flat.shape[1], -(-flat.shape[1] // _MOST_FEATURES))
    return np.add.reduceat(flat, starts, axis=1) if len(starts) < flat.shape[1] else flat
