"""A plan as large as a cluster's: built within 10 s and 1 GB, in a process of its own.

The experiment has the shape of `attacks_location`: every membership attack, undefended and under
four defenses, also adaptively, with efforts chosen and worst cases. "seeds" repeats it under many
seeds; "points" has few seeds and many points of a defense's grid, each with own copies and shadows.
"""

import json
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import Experiment
from orchestrator.plan import make_plan
from orchestrator.resume import Store, compare
from orchestrator.state import Job, State
from storage import datasets
from storage.datasets import Source

MOST_SECONDS, MOST_MB, NUM_TASKS = 10.0, 1000.0, 100_000


def experiment(shape: str, times: int) -> Experiment:
    """`attacks_location` on data that needs no file, under many seeds or with many defenses."""
    text = (resources.files("orchestrator") / "experiments/attacks_location.yaml").read_text()
    keys = yaml.safe_load(text)
    for attack in keys["attacks"]:
        if isinstance(attack, dict) and "transfer_from" in attack:
            attack["transfer_from"] = "digits"
    keys |= {"datasets": ["synth_s"], "target": {}, "seeds": list(range(times))}
    if shape == "points":
        weights = [0.01 * (1 + i) for i in range(times)]
        grid = {"name": "purifier", "grid": {"label_loss_weight": weights}}
        keys |= {"seeds": [0, 1, 2], "defenses": ["none", grid]}
    return Experiment.model_validate(keys)


def most_mb() -> float:
    """The most memory this program has had; `getrusage` counts what started it too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in status)["VmHWM"].split()[0]) / 1024


def measure(shape: str, times: int) -> dict[str, float]:
    """Seconds, megabytes and tasks of one plan, and of what a run does with it at first."""
    asked = experiment(shape, times)
    for name in ("synth_s", "digits"):
        datasets.load(Source(name), None)
    before, worked, began = most_mb(), time.process_time(), time.perf_counter()
    plan = make_plan(asked, None)
    told = {"plan s": time.perf_counter() - began, "plan CPU s": time.process_time() - worked}
    told |= {"MB": most_mb() - before, "tasks": float(len(plan.tasks))}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        prepared = compare(plan, Store(Path(folder)), repair=True)
        told["compare s"] = time.perf_counter() - began
    began = time.perf_counter()
    inputs = {key: tuple(needed.key for needed in task.inputs) for key, task in plan.tasks.items()}
    jobs = {key: Job(inputs[key], prepared.seconds[key]) for key in prepared.needed}
    told["jobs s"] = time.perf_counter() - began
    began = time.perf_counter()
    state = State(jobs)
    told["state s"] = time.perf_counter() - began
    assert state.waiting == len(plan.tasks)
    return told


def measured(shape: str, times: int) -> dict[str, float]:
    """As `measure`, in a process of its own."""
    call = [sys.executable, __file__, shape, str(times)]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, float] = json.loads(ran.stdout)
    return told


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "times"), [("seeds", 241), ("points", 286)])
def test_a_large_plan(
    benchmark: Any, keep: Any, capsys: pytest.CaptureFixture[str], shape: str, times: int
) -> None:
    told = benchmark.pedantic(measured, (shape, times), rounds=1)
    assert told["tasks"] >= NUM_TASKS
    # A plan is made by one thread: what else the machine does meanwhile is not its cost.
    seconds = told["plan CPU s"]
    told |= {"tasks/s": told["tasks"] / seconds, "of the limit of s": seconds / MOST_SECONDS}
    told |= {"of the limit of MB": told["MB"] / MOST_MB}
    with capsys.disabled():
        print(f"\n{shape}: {', '.join(f'{name} {value:.4g}' for name, value in told.items())}")
    keep("plan", {f"{shape} x {times}": told})
    assert seconds < MOST_SECONDS
    assert told["MB"] < MOST_MB


def test_a_large_plan_has_the_tasks_of_small_ones() -> None:
    """What the attacks of a plan share, each would have made alike by itself."""
    asked = experiment("seeds", 1).model_copy(update={"retry": False})
    chains = [chain for chain in asked.defenses if chain[0].name in ("none", "purifier")]
    whole = make_plan(asked.model_copy(update={"defenses": chains}), None)
    attacked = {(cell.label, cell.attack): cell.task.key for cell in whole.cells if cell.attack}
    alone = {
        (cell.label, cell.attack): cell.task.key
        for chain in chains
        for attack in asked.attacks
        for cell in make_plan(
            asked.model_copy(update={"defenses": [chain], "attacks": [attack]}), None
        ).cells
        if cell.attack
    }
    assert len(alone) > 70
    assert attacked == alone


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
