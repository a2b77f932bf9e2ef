"""SIGINT and SIGTERM stop a run in a few words, and the same command resumes."""

import os
import select
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

PATIENCE_S = 120


@pytest.mark.parametrize(
    ("place", "how"),
    [
        pytest.param(["--inline"], signal.SIGINT, id="inline-ctrl-c"),
        pytest.param(["--inline"], signal.SIGTERM, id="inline-sigterm", marks=pytest.mark.slow),
        pytest.param(["--workers", "1"], signal.SIGTERM, id="ray-sigterm", marks=pytest.mark.ray),
        pytest.param(
            ["--workers", "1"],
            signal.SIGINT,
            id="ray-ctrl-c",
            marks=[pytest.mark.ray, pytest.mark.slow],
        ),
    ],
)
def test_stopped_by_a_signal(lab, new_history, place, how):
    lab.store.root.mkdir()
    shutil.copy(new_history, lab.store.root)
    argv = [sys.executable, "-m", "orchestrator", "run", str(lab.file()), *place]
    argv += ["--store", str(lab.store.root), "--journal", str(lab.journal)]
    driver = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that select() and readline() see the same
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Jobs that a shell puts in the background begin with SIGINT ignored, and so would this.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    # Progress is a line a task without a terminal; the second says that one has finished.
    for _ in range(2):
        assert select.select([driver.stdout], [], [], PATIENCE_S)[0], "no progress"
        driver.stdout.readline()
    driver.send_signal(how)
    errors = driver.communicate(timeout=PATIENCE_S)[1].decode()
    assert driver.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 3, errors

    finished = {key for event, key in lab.executions() if event == "done"}
    assert finished
    outcome, _ = lab.run()
    assert outcome.cached >= len(finished)
    assert not outcome.failed
    assert lab.repeated() == []
