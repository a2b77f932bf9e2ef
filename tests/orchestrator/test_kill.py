"""A driver killed at random moments loses nothing and repeats nothing."""

import random
import subprocess
import sys
from collections import Counter

import pytest

from storage.tables import equal

# Forked children start with everything imported, so that kills hit the work and not the imports.
DRIVER = """
import os, signal, sys, time
import mlflow, torch
import attacks.nsh, attacks.ml_leaks, defenses.purifier, storage.tables, cluster.inline
from orchestrator.cli import main

argv, delays = sys.argv[1].split("|"), [float(d) for d in sys.argv[2].split(",")]

def child():
    pid = os.fork()
    if pid == 0:
        sys.argv = argv
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    return pid

killed = 0
for delay in delays:
    pid, until = child(), time.monotonic() + delay
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
        time.sleep(0.002)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
code = os.waitstatus_to_exitcode(os.waitpid(child(), 0)[1])
print("killed", killed, "code", code)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_many_kills(undisturbed, lab, kills):
    before, _outcome, _ = undisturbed
    rng = random.Random(20261122)
    delays = ",".join(f"{rng.uniform(0.02, 1.1):.3f}" for _ in range(kills))
    argv = ["sfumato", "run", str(lab.file()), "--inline", "--store", str(lab.store.root)]
    argv += ["--journal", str(lab.journal)]
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, "|".join(argv), delays],
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = ran.stdout.strip().splitlines()[-1].split()
    assert ran.returncode == 0, ran.stderr
    assert last[0] == "killed", ran.stdout
    assert int(last[1]) >= kills // 2, "too few kills hit a running driver to prove anything"
    assert last[3] == "0"
    assert "Traceback" not in ran.stderr

    assert equal(before.store.tables, lab.store.tables) == []
    assert lab.repeated() == []
    finished = Counter(key for event, key in lab.executions() if event == "done")
    assert set(finished.values()) <= {1}
    rows = lab.store.tables.frame("results", "tiny")
    assert len(rows) == len(set(zip(rows["task_key"], rows["label"], strict=True))) == 16
    assert tracked(lab) == Counter(dict.fromkeys(rows["task_key"], 1))


def tracked(lab) -> Counter:
    """How many MLflow child runs each result row has."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.store.root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    keys = (run.data.tags.get("sfumato.task_key") for run in runs)
    return Counter(key for key in keys if key)
