"""A driver of a search killed at random moments: no trial is lost, doubled or measured otherwise.

SFUMATO_CHAOS_SHARE=0.1 runs a tenth of the campaign.
"""

import json
import math
import os
import random
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.study_storage import JOURNAL, open_storage
from storage._schemas import MEASURED
from storage.tables import Tables

pytestmark = pytest.mark.slow

KILLS = math.ceil(50 * float(os.environ.get("SFUMATO_CHAOS_SHARE", "1")))
PATIENCE_S = 300.0
TRIALS = 20
STUDY: dict[str, Any] = {
    "name": "tuned",
    "datasets": [
        {
            "name": "synth_s",
            "generator": {"rows": 600, "features": 16, "classes": 5, "clusters": 4},
            "split": {"members": 160, "reference": 160, "nonmembers": 160},
        }
    ],
    "target": {"architecture": "mlp_s", "epochs": 8, "hidden": [16]},
    "attacks": [{"name": "metric", "statistic": "entropy"}],
    "tune": {
        "defense": ["random_noise", "top_k"],
        # The last refuses what has fewer classes, so some trials fail; others are beyond the bound.
        "space": {
            "random_noise.sigma": {"low": 0.0, "high": 1.0},
            "top_k.k": [2, 3, 4, 5, 7],
            "top_k.renormalise": {"choices": [True, False], "when": {"top_k.k": [2, 3]}},
        },
        "attacks": ["gap", {"name": "metric", "statistic": "confidence"}],
        "objectives": ["attack_accuracy", "l1_distortion"],
        "constraints": ["l1_distortion <= 0.9"],
        "sampler": "random",
        "in_flight": 1,
        "trials": TRIALS,
    },
}


@dataclass
class Searched:
    """A store with the study, and what its drivers wrote elsewhere."""

    root: Path
    seen: int = 0
    kept: set[str] = field(default_factory=set)
    repeated: list[str] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def out(self) -> Path:
        return self.root / "out.txt"

    def argv(self, *options: str) -> list[str]:
        file = self.root / "tuned.yaml"
        file.write_text(yaml.safe_dump(STUDY))
        journal = ["--journal", str(self.root / "journal.txt"), "--no-judge"]
        return ["sfumato", "tune", str(file), "--store", str(self.store), *journal, *options]

    def journal(self) -> list[list[str]]:
        try:
            return [line.split() for line in (self.root / "journal.txt").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def look(self) -> None:
        """Note what was started although its artifact was there before: present means complete."""
        journal = self.journal()
        started = [line[4] for line in journal[self.seen :] if line[2] == "start"]
        self.repeated += [key for key in started if key in self.kept]
        self.kept = {path.name for path in self.store.glob("artifacts/[0-9a-f][0-9a-f]/*")}
        self.seen = len(journal)

    def rows(self) -> list[dict[str, Any]]:
        rows = Tables(self.store / "tables").frame("trials").sort_values("number")
        return [
            {str(n): repr(v.tolist() if hasattr(v, "tolist") else v) for n, v in row.items()}
            for row in rows.drop(columns=[c for c in rows if c in MEASURED]).to_dict("records")
        ]

    def faults(self, wanted: list[dict[str, Any]]) -> list[str]:
        """How a study whose driver has ended well differs from the undisturbed one."""
        storage = open_storage(None, self.store)
        (study,) = storage.get_all_studies()
        trials = storage.get_all_trials(study._study_id)
        found = [f"trial {t.number} is {t.state.name}" for t in trials if not t.state.is_finished()]
        if [t.number for t in trials] != list(range(TRIALS)):
            found.append(f"trials {[t.number for t in trials]}")
        told = Counter(
            record["trial_id"]
            for line in (self.store / JOURNAL).read_text().splitlines()
            # 6 sets the state; a trial that waited is set running first.
            if (record := json.loads(line))["op_code"] == 6 and record["state"] in (1, 2, 3)
        )
        found += [f"trial {number} told {num} times" for number, num in told.items() if num != 1]
        if sum(told.values()) != TRIALS:
            found.append(f"{sum(told.values())} trials told")
        rows = self.rows()
        found += [
            f"trial {row['number']}: {name}: {row[name]}, not {other[name]}"
            for row, other in zip(rows, wanted, strict=False)
            for name in row
            if row[name] != other[name]
        ]
        if len(rows) != len(wanted):
            found.append(f"{len(rows)} rows, not {len(wanted)}")
        found += [f"run again: {key}" for key in self.repeated]
        found += [f"left: {path}" for path in self.store.rglob(".draft-*")]
        tracked = self.tracked()
        keys = {path.name[5:-8] for path in self.store.glob("tables/trials/part-*")}
        if {key: tracked[key] for key in keys} != dict.fromkeys(keys, 1):
            found.append(f"MLflow: {[tracked[key] for key in keys]}")
        if "Traceback" in self.out.read_text():
            found.append(self.out.read_text())
        return found

    def tracked(self) -> Counter[str]:
        """How many MLflow child runs each key has."""
        select = """
            SELECT keys.value FROM runs
            JOIN tags keys ON keys.run_uuid = runs.run_uuid AND keys.key = 'sfumato.task_key'
            WHERE runs.lifecycle_stage = 'active' AND runs.status = 'FINISHED'
        """
        connection = sqlite3.connect(self.store / "mlflow.db")
        try:
            return Counter(key for (key,) in connection.execute(select))
        finally:
            connection.close()

    def wipe(self) -> None:
        shutil.rmtree(self.store)
        for path in (self.out, self.root / "journal.txt"):
            path.unlink(missing_ok=True)
        self.seen, self.kept = 0, set()


def test_drivers_of_a_search(forker: Any, memory: Callable[[], Path], rng: random.Random) -> None:
    calm = Searched(memory())
    began = time.monotonic()
    assert forker.start(calm).wait(PATIENCE_S) == 0, calm.out.read_text()
    seconds = time.monotonic() - began
    wanted, lines = calm.rows(), len(calm.journal())
    assert {row["state"] for row in wanted} == {"'complete'", "'pruned'", "'failed'"}
    assert calm.faults(wanted) == []

    place, kills, completions, phases = Searched(memory()), 0, 0, Counter[str]()
    while kills < KILLS:
        driver = forker.start(place)
        if rng.random() < 0.4:  # some moments by the clock, others by what was done
            code = driver.wait(rng.uniform(0, seconds))
        else:
            until, most = time.monotonic() + PATIENCE_S, place.seen + rng.randint(1, lines // 3)
            while (code := driver.wait(0.001)) is None and len(place.journal()) < most:
                assert time.monotonic() < until, place.out.read_text()
        if code is None and (code := driver.kill()) is None:
            kills += 1
            new = place.journal()[place.seen :]
            phases["before a task" if not new else f"after a task's {new[-1][2]}"] += 1
        place.look()
        if code is not None:
            assert code == 0, place.out.read_text()
            assert place.faults(wanted) == []
            completions += 1
            place.wipe()
    code = forker.start(place).wait(PATIENCE_S)
    place.look()
    assert code == 0, place.out.read_text()
    assert place.faults(wanted) == []
    told = ", ".join(f"{num} {phase}" for phase, num in sorted(phases.items()))
    print(  # noqa: T201
        f"\ndrivers of a search: {kills} kills ({told}); {completions + 1} studies completed, "
        f"{TRIALS} trials each, {len(place.repeated)} finished tasks run again; "
        f"{time.monotonic() - began:.0f} s"
    )
