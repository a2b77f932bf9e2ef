"""Points of a front before attackers that no trial saw: what a search is worth, and how far fooled.

Three figures of a point belong together. *Validation* is what its trial saw: the tuning attackers
on the defender's own records. *Tuning* is the same attackers on the evaluation records. *Held-out*
is attackers no trial saw, on the evaluation records; the *worst* of both is what is known to leak.
The first step is what searching for the best of many trials flatters (and what other seeds change),
the second what attackers the search did not know find besides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import yaml

from orchestrator import space
from orchestrator.config import Experiment
from orchestrator.entries import AttackEntry, attack_label, chain_label
from orchestrator.front import choose, nondominated, spread
from orchestrator.resume import Store
from orchestrator.tune import Found, trial_key
from orchestrator.tune_entry import TuneEntry
from storage.artifacts import write_whole
from tasks import metrics

__all__ = ["Points", "front_experiment", "points_of", "record_judged", "write_files"]

TUNED_ON = "tuned on"


@dataclass(frozen=True)
class Points:
    """The trials that count, against each other.

    Attributes:
        rows: complete trials by number, as in the table `trials`.
        values: [N, M] of the objectives.
        feasible: [N] bool.
        front: [N] bool, the feasible that no feasible one dominates.
        chosen: the row the rule takes, or None.
        picked: the rows that held-out attackers judge, the chosen one among them.
        before: what stands before the last defense of a chain in its label.
    """

    rows: Sequence[Mapping[str, Any]]
    values: Any
    feasible: Any
    front: Any
    chosen: int | None
    picked: Sequence[int]
    before: str = ""

    def label(self, row: int) -> str:
        """What the experiment of the front calls a point."""
        return self.before + str(self.rows[row]["label"])


def points_of(tune: TuneEntry, rows: Sequence[Mapping[str, Any]]) -> Points:
    """The front of a study's trials, and the points of it to be judged."""
    directions = [objective.direction for objective in tune.objectives]
    kept = [row for row in rows if row["state"] == "complete"]
    values = np.array([list(row["objectives"]) for row in kept], dtype=float)
    values = values.reshape(len(kept), len(directions))
    feasible = np.array([bool(row["feasible"]) for row in kept], dtype=bool)
    front = np.zeros(len(kept), dtype=bool)
    if feasible.any():
        front[feasible] = nondominated(values[feasible], directions)
    gains = [i for i, o in enumerate(tune.objectives) if o.column.endswith("accuracy")]
    accuracy = gains[-1] if gains else len(directions) - 1
    chosen = choose(values, directions, tune.choose, feasible, accuracy=accuracy) if kept else None
    picked = [] if chosen is None else spread(values, directions, tune.judged, [chosen], feasible)
    before = "".join(f"{entry.called}+" for entry in tune.defense[:-1])
    return Points(kept, values, feasible, front, chosen, picked, before)


def front_experiment(experiment: Experiment, points: Points, picked: Sequence[int]) -> Experiment:
    """The experiment that judges points of the front: a file of it can be run.

    The experiment's own defenses are judged beside them, and the tuning attackers too, under
    labels that say so.
    """
    tune = experiment.tune
    assert tune is not None
    searched = space.axes(tune)
    chains = [
        space.defended_by(
            tune.defense,
            searched,
            json.loads(points.rows[row]["params"]),
            str(points.rows[row]["label"]),
        )
        for row in picked
    ]
    told = [_told(entry) for entry in tune.attacks]
    return experiment.model_copy(
        update={
            "name": f"{experiment.name}.front",
            "defenses": [*experiment.defenses, *chains],
            "attacks": [*experiment.attacks, *told],
            "tune": None,
        }
    )


def _told(entry: AttackEntry) -> AttackEntry:
    return entry.model_copy(update={"label": f"{attack_label(entry)} ({TUNED_ON})"})


def write_files(experiment: Experiment, points: Points, store: Store) -> dict[str, str]:
    """Write the front and the chosen point as experiment files beside the study's results.

    Returns:
        "front" and "chosen" -> path.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    folder, written = store.experiment(experiment.name), {}
    files = {"front": list(points.picked)}
    files |= {} if points.chosen is None else {"chosen": [points.chosen]}
    for name, picked in files.items():
        made = front_experiment(experiment, points, picked)
        if name == "chosen":
            plain = [c for c in experiment.defenses if chain_label(c) == "none"]
            chosen = made.defenses[len(experiment.defenses) :]
            made = made.model_copy(
                update={"name": f"{experiment.name}.chosen", "defenses": [*plain, *chosen]}
            )
        text = yaml.safe_dump(made.resolved(), sort_keys=False, allow_unicode=True)
        write_whole(folder / f"{name}.yaml", text)
        written[name] = str(folder / f"{name}.yaml")
    return written


def record_judged(
    experiment: Experiment, found: Found, points: Points, store: Store
) -> list[dict[str, Any]]:
    """Write the table `judged` from what the front's experiment got; gives its rows.

    Defenses of the experiment that no trial tried have rows too, without a number.

    Raises:
        StoreUnwritable: the disk is full, read-only or forbidden.
    """
    tune = experiment.tune
    assert tune is not None
    name = f"{experiment.name}.front"
    form = store.tables.forms.current(name)
    results = store.tables.frame("results", name, form)
    utility = store.tables.frame("utility", name, form)
    told = {attack_label(_told(entry)) for entry in tune.attacks}
    by_label = {points.label(row): row for row in points.picked}
    written: list[dict[str, Any]] = []
    for label in dict.fromkeys(results["label"]):
        mine, costs = results[results["label"] == label], utility[utility["label"] == label]
        at = by_label.get(label)
        row = _about(experiment, found, points, label, at)
        row |= _worst(mine[~mine["attack_label"].isin(told)], "held_out")
        row |= _worst(mine[mine["attack_label"].isin(told)], "tuning")
        row |= _worst(mine, "worst")
        row |= _costs(costs)
        row["flags"] = _flags(mine, costs, row)
        worst, tuning, seen = (
            row.get(f"{kind}_accuracy") for kind in ("worst", "tuning", "validation")
        )
        for column, over, under in (
            ("search_optimism", tuning, seen),
            ("attacker_optimism", worst, tuning),
            ("optimism", worst, seen),
        ):
            row[column] = None if over is None or under is None else over - under
        store.tables.write("judged", row["key"], [row])
        written.append(row)
    # What an earlier choice, or an earlier form of the study, had judged is said no more.
    told_before = store.tables.frame("judged")
    mine = told_before.loc[told_before["experiment"] == experiment.name, "key"]
    for key in set(mine) - {row["key"] for row in written}:
        store.tables.remove("judged", key)
    return written


def _flags(results: pd.DataFrame, utility: pd.DataFrame, row: Mapping[str, Any]) -> list[str]:
    """The flags of the costs and of the attacks whose figures are shown."""
    shown = {row.get(f"{kind}_attack") for kind in ("tuning", "held_out")}
    rows = [*results.loc[results["attack_label"].isin(shown), "flags"], *utility["flags"]]
    return sorted({str(flag) for flags in rows if flags is not None for flag in flags})


def _about(
    experiment: Experiment, found: Found, points: Points, label: str, at: int | None
) -> dict[str, Any]:
    tune = experiment.tune
    assert tune is not None
    number = None if at is None else int(points.rows[at]["number"])
    place = f"judged/{found.study}" if number is not None else f"judged/{found.study}/{label}"
    row: dict[str, Any] = {
        "key": trial_key(place, -1 if number is None else number),
        "experiment": experiment.name,
        "study": found.study,
        "label": label,
        "dataset": experiment.datasets[0].name,
        "number": number,
        "chosen": at is not None and at == points.chosen,
        "rule": tune.choose if at is not None and at == points.chosen else None,
        "created_at": datetime.now(UTC),
    }
    if at is not None:
        trial = points.rows[at]
        row |= {
            "dataset_hash": trial["dataset_hash"],
            "validation_attack": trial["attack"],
            "validation_accuracy": trial["attack_accuracy"],
            "validation_accuracy_low": trial["attack_accuracy_low"],
            "validation_accuracy_high": trial["attack_accuracy_high"],
            "validation_test_accuracy": trial["test_accuracy"],
        }
    return row


def _worst(rows: pd.DataFrame, kind: str) -> dict[str, Any]:
    """The largest of some attacks by the mean over seeds, with its interval over them.

    An attack that lacks a seed that others have does not count.
    """
    num = f"num_{kind}"
    if rows.empty:
        return {num: 0}
    seeds = rows["seed"].nunique()
    whole = {
        name: mine
        for name, mine in rows.groupby("attack_label", sort=False)
        if len(mine) == seeds and mine["attack_accuracy"].notna().all()
    }
    if not whole:
        return {num: 0}
    top = max(whole, key=lambda name: float(whole[name]["attack_accuracy"].mean()))
    mine = whole[top].sort_values("seed")
    columns = ("attack_accuracy", "attack_accuracy_low", "attack_accuracy_high")
    mean, low, high = metrics.mean_interval(
        mine[columns[0]].to_numpy(), mine[columns[1]].tolist(), mine[columns[2]].tolist()
    )
    return {
        f"{kind}_attack": str(top),
        f"{kind}_accuracy": mean,
        f"{kind}_accuracy_low": low,
        f"{kind}_accuracy_high": high,
        num: len(whole),
        "num_seeds": int(seeds),
    }


def _costs(rows: pd.DataFrame) -> dict[str, Any]:
    if rows.empty:
        return {}
    ends = [rows[f"test_accuracy_{end}"].tolist() for end in ("low", "high")]
    mean, low, high = metrics.mean_interval(rows["test_accuracy"].to_numpy(), *ends)
    return {
        "test_accuracy": mean,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_accuracy_drop": float(rows["test_accuracy_drop"].mean()),
    }
