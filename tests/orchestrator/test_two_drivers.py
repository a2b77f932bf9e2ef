"""Two drivers that start on one empty store at the same moment."""

import subprocess
import sys
from collections import Counter

from storage.tables import equal


def test_two_drivers_on_one_new_store(module_lab, lab):
    few = {"defenses": ["none", "onehot"]}
    module_lab.run(**few)
    command = [sys.executable, "-m", "orchestrator", "run", str(lab.file(**few)), "--inline"]
    command += ["--store", str(lab.store.root)]
    drivers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [driver.communicate(timeout=240) for driver in drivers]
    for driver, (out, err) in zip(drivers, said, strict=True):
        assert driver.returncode == 0, out + err
        assert "warning" not in err, err
    assert equal(module_lab.store.tables, lab.store.tables) == []
    rows = lab.store.tables.frame("results", "tiny")
    assert len(rows) == 8

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.store.root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    keys = Counter(run.data.tags.get("sfumato.task_key") for run in runs)
    assert set(rows["task_key"]) <= set(keys)
