"""Which searched fields mattered, and which way: read from the trials of a study."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.importance import get_param_importances
from optuna.trial import TrialState
from scipy.stats import spearmanr

from orchestrator.space import Axis
from orchestrator.study import Search
from orchestrator.tune_entry import TuneEntry

__all__ = ["LEAST", "Mattered", "explained", "importances"]

LEAST = 5  # complete trials; with fewer nothing is said


@dataclass(frozen=True)
class Mattered:
    """One field and one objective.

    Attributes:
        field: as the space names it.
        objective: a column.
        share: of the objective's variance that the field explains, over all fields 1; NaN where
            the field is not in every trial.
        trend: Spearman's correlation of the field with the objective over the trials that have it,
            NaN for choices.
        best: the field's values on the front, as text.
    """

    field: str
    objective: str
    share: float
    trend: float
    best: str


def importances(found: Search, tune: TuneEntry) -> dict[str, dict[str, float]]:
    """Objective -> field -> share of its variance (functional ANOVA); empty below `LEAST` trials.

    Source: Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", 2014.
    """
    complete = [t for t in found.trials() if t.state == TrialState.COMPLETE]
    if len(complete) < LEAST:
        return {}
    told: dict[str, dict[str, float]] = {}
    for i, objective in enumerate(tune.objectives):
        values = [trial.values[i] for trial in complete]
        if len(set(values)) < 2:
            continue  # nothing varies, so nothing explains it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = get_param_importances(
                found.study, target=lambda trial, i=i: trial.values[i], evaluator=_evaluator()
            )
        told[objective.column] = {name: float(share) for name, share in shares.items()}
    return told


def _evaluator() -> Any:
    from optuna.importance import FanovaImportanceEvaluator

    return FanovaImportanceEvaluator(seed=0)  # the same trials, the same shares


def explained(
    found: Search,
    tune: TuneEntry,
    searched: Sequence[Axis],
    rows: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
) -> list[Mattered]:
    """Every field for every objective, what mattered most first.

    Args:
        found: the study.
        tune: its block.
        searched: its fields.
        rows: the complete trials.
        front: those of them on the front.
    """
    shares = importances(found, tune)
    listed = []
    for i, objective in enumerate(tune.objectives):
        mine = shares.get(objective.column, {})
        told = []
        for axis in searched:
            pairs = [
                (value, row["objectives"][i])
                for row in rows
                if (value := json.loads(row["params"]).get(axis.key)) is not None
            ]
            told.append(
                Mattered(
                    axis.key,
                    objective.column,
                    mine.get(axis.key, math.nan),
                    math.nan if axis.dimension.choices is not None else _trend(pairs),
                    _values([_of(row, axis.key) for row in front]),
                )
            )
        listed += sorted(told, key=lambda m: -1.0 if math.isnan(m.share) else m.share, reverse=True)
    return listed


def _of(row: Mapping[str, Any], key: str) -> Any:
    """A trial's value of a field as text or number; a dash where it has no such field."""
    params = json.loads(row["params"])
    value = params.get(key)
    if key not in params:
        return "-"
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return value if whole else json.dumps(value)


def _trend(pairs: Sequence[tuple[Any, float]]) -> float:
    if len(pairs) < LEAST or len({x for x, _ in pairs}) < 2 or len({y for _, y in pairs}) < 2:
        return math.nan
    return float(spearmanr(*np.array(pairs, dtype=float).T).statistic)


def _values(values: Sequence[Any]) -> str:
    """A range of numbers, or the choices by how often each is there."""
    if not values:
        return "-"
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} x{count}" for name, count in ordered)
