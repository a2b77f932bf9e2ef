"""When each task of an experiment ran, and on which worker, as a Chrome trace."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tasks.base import Task

__all__ = ["chrome_trace"]

_MICROSECONDS = 1e6


def chrome_trace(tasks: Mapping[str, Task], measured: pd.DataFrame) -> str:
    """The finished tasks of a plan in the Trace Event Format (chrome://tracing, Perfetto).

    Args:
        tasks: key -> task.
        measured: rows of the table `tasks`.

    Returns:
        JSON: a complete event ("X") a task, its worker as the thread; times in microseconds from
        the first start. Tasks that several experiments share show when they were run.
    """
    rows = measured[measured["key"].isin(list(tasks))].sort_values("started_at")
    first = rows["started_at"].min()
    workers = {worker: i for i, worker in enumerate(sorted(set(rows["worker"])))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": i, "name": "thread_name", "args": {"name": worker}}
        for worker, i in workers.items()
    ]
    for row in rows.to_dict("records"):
        event = {
            "ph": "X",
            "pid": 0,
            "tid": workers[row["worker"]],
            "name": " ".join(part for part in (row["kind"], row["name"]) if part),
            "cat": row["kind"],
            "ts": (row["started_at"] - first).total_seconds() * _MICROSECONDS,
            "dur": row["duration_s"] * _MICROSECONDS,
            "args": {
                "key": row["key"],
                "dataset": row["dataset"],
                "seed": str(row["seed"]),
                "device": row["device"],
                "cpu_s": row["cpu_s"],
            },
        }
        events.append(event)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
