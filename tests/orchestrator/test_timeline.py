"""The Chrome trace: every finished task once, one after another on its worker."""

import json
from itertools import pairwise

from orchestrator.timeline import chrome_trace


def test_every_task_once_and_no_worker_does_two_things_at_once(undisturbed):
    lab, outcome, _ = undisturbed
    trace = json.loads(chrome_trace(outcome.plan.tasks, lab.store.tables.frame("tasks")))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert sorted(span["args"]["key"] for span in spans) == sorted(outcome.plan.tasks)
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names == {0: "inline"}
    assert spans[0]["ts"] == 0
    for one, next_ in pairwise(spans):
        assert one["ts"] + one["dur"] <= next_["ts"] + 1000  # a millisecond of clock rounding


def test_tasks_of_other_experiments_are_left_out(undisturbed):
    lab, outcome, _ = undisturbed
    key = next(iter(outcome.plan.tasks))
    trace = json.loads(
        chrome_trace({key: outcome.plan.tasks[key]}, lab.store.tables.frame("tasks"))
    )
    assert [e["args"]["key"] for e in trace["traceEvents"] if e["ph"] == "X"] == [key]


def test_damaged_parts_are_told_and_an_experiment_not_run_is_named(done, monkeypatch):
    monkeypatch.chdir(done.folder)
    (part, *_) = sorted((done.store / "tables" / "tasks").glob("part-*.parquet"))
    part.write_bytes(b"rubbish")
    said = done.command("timeline", done.file(), "--store", done.store)
    assert said.code == 0
    assert "warning: " in said.text
    assert part.name in said.text
    assert (done.folder / "tiny.trace.json").exists()
    other = done.command(
        "timeline", done.file(name="other", seeds=[7]), "--store", done.store, "--out", "x.json"
    )
    assert other.code == 2
    assert "no finished task of the experiment 'other' as" in other.flat
    assert not (done.folder / "x.json").exists()
