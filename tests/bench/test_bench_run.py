"""The whole of `purifier_location` against the sum of its task seconds over two workers.

The ratio is the utilisation's inverse: 1 would be workers that never wait. Cold stores, Ray's start
left out as the run itself leaves it out (its clock starts with the first worker).
"""

import os
from pathlib import Path
from statistics import median

import pytest

from orchestrator.check import load_experiment
from orchestrator.outcome import Options
from orchestrator.progress import Lines
from orchestrator.run import run

ROUNDS = 5
SMALL = ["seeds=[0]", "target.epochs=1", "attacks=[gap]", "defenses=[none, onehot]"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.data
def test_purifier_location(benchmark, tmp_path, keep):
    folder = os.environ.get("SFUMATO_DATA")
    if not folder:
        pytest.skip("SFUMATO_DATA is not set")
    from rich.console import Console

    experiment = load_experiment(
        "purifier_location", SMALL if benchmark.disabled else (), Path(folder)
    )
    outcomes = []

    def cold():
        options = Options(
            store=tmp_path / f"store-{len(outcomes)}",
            data_dir=Path(folder),
            executor="ray",
            workers=2,
        )
        quiet = Lines(Console(quiet=True))
        outcomes.append(run(experiment, options, quiet))

    benchmark.pedantic(cold, rounds=1 if benchmark.disabled else ROUNDS)
    assert not any(outcome.failed for outcome in outcomes)
    used = median(outcome.utilisation for outcome in outcomes)
    seconds = median(outcome.makespan_s for outcome in outcomes)
    row = {"makespan, s": seconds, "utilisation": used, "ratio to half the task seconds": 1 / used}
    keep("run", {"purifier_location, cold, two Ray workers": row})
