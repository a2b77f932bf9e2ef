"""A driver of bad tasks: `drive_bad.py STORE ADDRESS LIMIT_S MARKS`; its last line is JSON."""

import json
import sys
from pathlib import Path

from bad_tasks import Bad
from rich.console import Console

from orchestrator.config import Experiment
from orchestrator.costs import Costs
from orchestrator.loop import Loop
from orchestrator.outcome import Options, Outcome
from orchestrator.plan import Plan
from orchestrator.progress import Lines
from orchestrator.resume import Prepared, Store

root, address, limit_s, marks = sys.argv[1:]
poison, hangs, once = (Bad(0, what, marks) for what in ("poison", "hangs", "hangs once"))
good = [Bad(seed, "good", marks, (once,) if seed == 0 else ()) for seed in range(20)]
blocked = [Bad(100, "good", marks, (poison,)), Bad(101, "good", marks, (good[1], hangs))]
tasks = {task.key: task for task in (poison, hangs, once, *good, *blocked)}
content = {"name": "bad", "datasets": [{"name": "synth_s"}], "attacks": [{"name": "gap"}]}
plan = Plan(Experiment.model_validate(content), tasks, ())
store = Store(Path(root))
seconds = dict.fromkeys(tasks, 1.0)
prepared = Prepared(plan, frozenset(), tuple(tasks), seconds, Costs(store.tables))
options = Options(
    store.root,
    executor="ray",
    address=address,
    task_limit_s=float(limit_s),
    journal=store.root.parent / "journal.txt",
)
outcome = Outcome(plan, "form")
progress = Lines(Console(width=200))
progress.begin(prepared)
loop = Loop(options, store, progress, lambda rows: None, outcome, expected_s=100)
loop.add(prepared)
loop.work()
names = {key: f"{task.name} {task.seed}" for key, task in tasks.items()}
told = {
    "failed": {names[key]: error for key, error in outcome.failed.items()},
    "blocked": {names[key]: names[by] for key, by in outcome.blocked.items()},
    "ran": outcome.ran,
    "stopped": outcome.stopped,
    "keys": {name: key for key, name in names.items()},
}
print(json.dumps(told))  # noqa: T201
