"""Task: what a service's answers tell of an attribute it was never asked to tell."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from storage.artifacts import Artifact, Draft
from storage.datasets import Dataset
from tasks.attribute_metrics import attribute_metrics
from tasks.base import ADDED, stream
from tasks.data_attack import DataAttack
from tasks.identity import Hidden
from tasks.service import Query
from tasks.worker import Bench

__all__ = ["RunAttribute", "attribute_values"]

MOST_VALUES = 100


@dataclass(frozen=True, eq=False)
class RunAttribute(DataAttack):
    """The inferred values of the judged records, and how many are right.

    The attacker holds the records that are known to it (fit and calibration parts of both sides),
    with their attribute. It asks the service about each of them once; their membership is of no
    use to it. Of the judged records it sees the answers, never the records.

    The headline is balanced accuracy: where one value is frequent, always guessing it makes a
    high natural accuracy out of nothing. `majority_accuracy` is what that guess gets, the value
    being the most frequent of the attacker's own records. Records without a value are left out.

    Instead of answers it may see the last hidden layer of the model itself, which bounds what
    answers can tell from above (overlearning); output defenses change nothing of it.

    Attributes:
        column: of the dataset, which has the attribute.
        layer: what the attacker sees of the model.

    Source: methods.md section 7.2; Song & Shmatikov 2020.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 10.0
    TABLES: ClassVar[tuple[str, ...]] = ("attribute",)

    column: str
    layer: Literal["answers", "hidden"] = field(default="answers", metadata=ADDED)

    def run(self, bench: Bench, draft: Draft) -> None:
        """Infer, then join values and membership."""
        target = self.answers.target
        dataset, split = bench.dataset(target.split.data), bench.split(target.split)
        value, names = attribute_values(dataset, self.column)
        fit_rows, _, cal_rows, _ = split.known(self.judge)
        own = np.concatenate([fit_rows, cal_rows])
        own = own[value[own] >= 0]
        rows, is_member = self.judged(bench)
        flags = self.flags(bench, own, rows, is_member)
        has_value = value[rows] >= 0
        rows, is_member = rows[has_value], is_member[has_value]
        if not len(rows):
            raise ValueError(f"none of {len(has_value)} judged records has a '{self.column}'")
        query = Query(self.answers.service(bench), self.attack.ACCESS)
        if self.layer == "hidden":
            hidden = Hidden.of(target, bench)
            seen, own_seen = (hidden(dataset.x(r)).astype(np.float64) for r in (rows, own))
        else:
            seen, own_seen = self.released(rows, bench), query(dataset.x(own))
        returned = self.attack.infer(
            seen,
            own_seen,
            value[own].copy(),
            num_values=len(names),
            seed=stream(self.seed, f"attack.fit/{self.name}"),
        )
        inferred = self._checked(returned, len(rows), len(names)).argmax(axis=1)
        columns = {"record": rows, "is_member": is_member, "value": value[rows]}
        draft.table("records", {**columns, "inferred": inferred})
        figures = attribute_metrics(
            value[rows], inferred, is_member, len(names), seed=stream(self.seed, "bootstrap")
        )
        usual = np.bincount(value[own], minlength=len(names)).argmax()
        draft.facts(
            "metrics",
            {
                **figures,
                "attribute": self.column,
                "num_known": len(own),
                "majority_accuracy": float(np.mean(value[rows] == usual)),
                "num_queries": query.num_queries,
                "flags": flags,
            },
        )

    def _checked(self, returned: Any, num: int, num_values: int) -> NDArray[np.float64]:
        score = np.asarray(returned, dtype=np.float64)
        bad = int((~np.isfinite(score)).sum())
        if score.shape != (num, num_values) or bad:
            raise ValueError(
                f"attack '{self.name}' must return finite scores [{num}, {num_values}], it "
                f"returned shape {list(score.shape)} with {bad} not finite"
            )
        return score

    def table_rows(self, artifact: Artifact) -> dict[str, Any]:
        """The result row."""
        row = self.row(artifact) | {"layer": self.layer}
        if self.layer == "hidden":
            row["threat_model"] = "white-box"
        return {"attribute": [row]}


def attribute_values(dataset: Dataset, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The attribute of every record as a number below A, -1 where it has none, and A names.

    Numbers and texts are put in order; NaN and empty texts are no values.

    Args:
        dataset: the records.
        column: one of the columns beside its features and label.

    Raises:
        ValueError: if there is no such column, or not between 2 and 100 values in it.
    """
    if column not in dataset.extras:
        known = ", ".join(sorted(dataset.extras)) or "none"
        raise ValueError(f"'{dataset.name}' has no column '{column}' beside its features: {known}")
    given = np.asarray(dataset.extras[column])
    if given.ndim != 1:
        raise ValueError(f"column '{column}' is {list(given.shape)}; one value a record is needed")
    if given.dtype.kind in "OUS":
        given = np.array(["" if value is None else str(value) for value in given.tolist()])
        present = given != ""
    else:
        present = ~np.isnan(given) if given.dtype.kind == "f" else np.ones(len(given), dtype=bool)
    values, place = np.unique(given[present], return_inverse=True)
    if not 2 <= len(values) <= MOST_VALUES:
        raise ValueError(
            f"column '{column}' of '{dataset.name}' has {len(values)} different values; an "
            f"attribute to infer has 2 to {MOST_VALUES}"
        )
    code = np.full(len(given), -1, dtype=np.int64)
    code[present] = place
    return code, tuple(map(str, values.tolist()))
