"""The scheduler told one history at a time: what it answers to each event."""

import pytest

from cluster.base import InputDamaged, TaskDone, TaskFailed, WorkerJoined, WorkerLost
from orchestrator.state import Job, Run, State


def test_a_crash_is_an_event():
    state = State({"target": Job(), "shadow0": Job(("target",))}, done=["target"])
    assert state.handle(WorkerJoined("w1")) == [Run("w1", "shadow0")]
    assert state.handle(WorkerJoined("w2")) == []
    assert state.handle(WorkerLost("w1")) == [Run("w2", "shadow0")]
    assert state.attempts == {"shadow0": 1}


def test_a_worker_gets_what_it_holds_the_inputs_of():
    jobs = {"a": Job(), "b": Job(), "use a": Job(("a",)), "use b": Job(("b",))}
    state = State(jobs)
    state.handle(WorkerJoined("wa"))
    state.handle(WorkerJoined("wb"))
    assert state.running == {"wa": "a", "wb": "b"}
    assert state.handle(TaskDone("wb", "b")) == [Run("wb", "use b")]
    assert state.handle(TaskDone("wa", "a")) == [Run("wa", "use a")]


def test_a_grandparent_found_damaged_is_made_first_and_only_it():
    jobs = {"split": Job(), "target": Job(("split",)), "attack": Job(("target",))}
    state = State(jobs, done=["split", "target"])
    state.handle(WorkerJoined("w"))
    assert state.handle(InputDamaged("w", "attack", "split", "gone")) == [Run("w", "split")]
    assert state.handle(TaskDone("w", "split")) == [Run("w", "attack")]
    assert state.handle(InputDamaged("w", "attack", "split", "gone")) == [Run("w", "split")]
    assert state.handle(TaskFailed("w", "split", "OSError: no data")) == []
    assert (state.blocked, state.finished) == ({"attack": "split"}, True)


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_an_artifact_that_is_always_damaged_ends(max_attempts):
    state = State({"a": Job(), "b": Job(("a",))}, max_attempts=max_attempts)
    runs = state.handle(WorkerJoined("w"))
    for run in runs:  # grows
        bad = InputDamaged("w", "b", "a", "bad checksum")
        runs += state.handle(TaskDone("w", "a") if run.key == "a" else bad)
    assert [run.key for run in runs] == ["a", "b"] * (max_attempts + 1)
    assert f"damaged {max_attempts + 1} times: bad checksum" in state.failed["a"]
    assert state.blocked == {"b": "a"}


def test_what_is_being_made_again_is_waited_for():
    jobs = {"split": Job(), "target": Job(("split",))}
    jobs |= {attack: Job(("target",)) for attack in ("gap", "lira")}
    state = State(jobs, done=["split", "target"])
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.running == {"w1": "gap", "w2": "lira"}
    assert state.handle(InputDamaged("w1", "gap", "split")) == [Run("w1", "split")]
    assert state.handle(InputDamaged("w2", "lira", "split")) == []
    assert state.attempts == {"split": 1}
    assert state.handle(TaskDone("w1", "split")) == [Run("w2", "gap"), Run("w1", "lira")]


def test_what_could_not_be_made_again_blocks_whoever_misses_it_later():
    jobs = {"split": Job(), "target": Job(("split",))}
    jobs |= {attack: Job(("target",)) for attack in ("gap", "lira")}
    state = State(jobs, done=["split", "target"])
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.handle(InputDamaged("w1", "gap", "split")) == [Run("w1", "split")]
    assert state.handle(TaskFailed("w1", "split", "OSError: no data")) == []
    assert state.handle(InputDamaged("w2", "lira", "split")) == []
    assert state.blocked == {"gap": "split", "lira": "split"}
    assert state.finished


def test_a_running_job_is_let_end_though_what_it_needs_has_failed():
    jobs = {"a": Job(), "b": Job(("a",)), "c": Job(("b",)), "d": Job(("b",)), "e": Job(("d",))}
    state = State(jobs, done=["a", "b"])
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.running == {"w1": "d", "w2": "c"}
    assert state.handle(InputDamaged("w2", "c", "b")) == [Run("w2", "b")]
    assert state.handle(InputDamaged("w2", "b", "a")) == [Run("w2", "a")]
    assert state.handle(TaskFailed("w2", "a", "OSError: no data")) == []
    assert state.blocked == {"b": "a", "c": "a"}
    assert (state.waiting, state.finished) == (1, False)
    assert state.handle(InputDamaged("w1", "d", "a")) == []
    assert state.blocked == dict.fromkeys("bcde", "a")
    assert state.finished


def test_a_job_runs_on_one_worker_though_its_first_one_had_finished():
    state = State({"a": Job(), "b": Job(("a",))})
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.handle(WorkerLost("w1")) == [Run("w2", "a")]
    state.handle(WorkerJoined("w3"))
    assert state.handle(TaskDone("w1", "a")) == [Run("w3", "b")]
    assert state.handle(InputDamaged("w3", "b", "a")) == []
    assert (state.running, state.waiting) == ({"w2": "a"}, 1)
    assert state.handle(TaskDone("w2", "a")) == [Run("w3", "b")]


@pytest.mark.parametrize("end", [WorkerLost("w2"), TaskFailed("w2", "a", "ValueError: no")])
def test_what_exists_cannot_fail(end):
    state = State({"a": Job(), "b": Job(("a",))})
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.handle(WorkerLost("w1")) == [Run("w2", "a")]
    state.handle(TaskDone("w1", "a"))
    state.handle(end)
    assert (state.done, state.failed, state.attempts) == ({"a"}, {}, {"a": 1})


def test_what_is_blocked_stays_so():
    jobs = {"a": Job(), "b": Job(("a",)), "c": Job(("b",)), "d": Job(("a",))}
    state = State(jobs, done=["a"])
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerJoined("w2"))
    assert state.running == {"w1": "b", "w2": "d"}
    state.handle(WorkerLost("w1"))
    assert state.handle(InputDamaged("w2", "d", "a")) == [Run("w2", "a")]
    state.handle(TaskFailed("w2", "a", "OSError: no data"))
    assert state.handle(TaskDone("w1", "b")) == []
    assert (state.done, state.blocked) == (set(), dict.fromkeys("bcd", "a"))


def test_a_job_can_fail_while_a_second_worker_makes_it():
    state = State({"a": Job(), "b": Job(("a",))}, done=["a"], max_attempts=2)
    state.handle(WorkerJoined("w1"))
    state.handle(InputDamaged("w1", "b", "a"))
    state.handle(TaskDone("w1", "a"))
    assert state.handle(InputDamaged("w1", "b", "a")) == [Run("w1", "a")]
    state.handle(WorkerJoined("w2"))
    assert state.handle(WorkerLost("w1")) == [Run("w2", "a")]
    state.handle(TaskDone("w1", "a"))
    assert state.handle(WorkerJoined("w3")) == [Run("w3", "b")]
    assert state.handle(InputDamaged("w3", "b", "a")) == []
    assert (set(state.failed), state.blocked, state.waiting) == ({"a"}, {"b": "a"}, 0)
    assert not state.finished
    assert state.handle(TaskDone("w2", "a")) == []
    assert (state.done, state.finished) == (set(), True)


@pytest.mark.parametrize(("ahead", "chosen"), [(15, "use a"), (16, "k0")])
def test_no_more_than_16_jobs_are_looked_at(ahead, chosen):
    state = State({f"k{i}": Job() for i in range(ahead)} | {"a": Job(), "use a": Job(("a",))})
    assert state.handle(WorkerJoined("w")) == [Run("w", "a")]
    assert state.handle(TaskDone("w", "a")) == [Run("w", chosen)]


def test_a_worker_that_comes_back_holds_nothing():
    state = State({"first": Job(), "a": Job(), "use a": Job(("a",))})
    assert state.handle(WorkerJoined("w")) == [Run("w", "a")]
    assert state.handle(TaskDone("w", "a")) == [Run("w", "use a")]
    assert state.handle(WorkerLost("w")) == []
    assert state.handle(WorkerJoined("w")) == [Run("w", "first")]


@pytest.mark.parametrize(("num_since", "chosen"), [(30, "use old"), (31, "first")])
def test_a_worker_is_thought_to_hold_the_last_32_keys(num_since, chosen):
    jobs = {"first": Job(), "use old": Job(("old",)), "old": Job((), 20)}
    jobs |= {f"before{i}": Job((), 10) for i in range(20)} | {"again": Job(("old",), 5)}
    jobs |= {f"since{i}": Job((), 3) for i in range(num_since)}
    state = State(jobs)
    runs = state.handle(WorkerJoined("w"))
    for run in runs:  # grows
        runs += state.handle(TaskDone("w", run.key))
    keys = [run.key for run in runs]
    assert keys.index("before19") < keys.index("again") < keys.index("since0")
    assert keys[-2] == chosen


def test_a_worker_that_was_given_up_cannot_vouch_for_what_was_damaged_since():
    state = State({"a": Job(), "b": Job(("a",))})
    state.handle(WorkerJoined("w1"))
    state.handle(WorkerLost("w1"))
    state.handle(WorkerJoined("w2"))
    state.handle(TaskDone("w2", "a"))
    assert state.handle(InputDamaged("w2", "b", "a")) == [Run("w2", "a")]
    assert state.handle(TaskDone("w1", "a")) == []
    assert state.done == set()
