"""The inline executor: one worker, the calling process itself."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.base import InputDamaged, TaskDone, TaskFailed, WorkerJoined
from cluster.inline import Inline


class DamagedError(Exception):
    damaged_key = "abc"


def fail(error: BaseException) -> None:
    raise error


def started() -> Inline:
    inline = Inline()
    inline.start()
    assert inline.events(0) == [WorkerJoined("inline")]
    return inline


def test_setup_runs_once_and_before_the_worker_joins() -> None:
    calls: list[str] = []
    inline = Inline(setup=lambda: calls.append("setup"))
    assert inline.events(0) == []
    inline.start()
    assert calls == ["setup"]
    assert inline.events(0) == [WorkerJoined("inline")]


def test_runs_in_this_process_and_thread_so_that_breakpoints_work() -> None:
    inline = started()
    inline.submit("inline", "k", lambda: (os.getpid(), threading.get_ident()))
    assert inline.events(0) == [TaskDone("inline", "k", (os.getpid(), threading.get_ident()))]


def test_has_run_when_submit_returns() -> None:
    inline, seen = started(), []
    inline.submit("inline", "k", seen.append, 3)
    assert seen == [3]


@given(st.lists(st.sampled_from(["done", "failed", "damaged"])))
def test_each_task_is_told_once_in_order(kinds: list[str]) -> None:
    inline = started()
    for i, kind in enumerate(kinds):
        if kind == "done":
            inline.submit("inline", str(i), divmod, i, 7)
        else:
            inline.submit(
                "inline", str(i), fail, DamagedError() if kind == "damaged" else KeyError(i)
            )
    told = inline.events(0)
    assert [event.key for event in told] == [str(i) for i in range(len(kinds))]
    for i, (event, kind) in enumerate(zip(told, kinds, strict=True)):
        if kind == "done":
            assert event == TaskDone("inline", str(i), divmod(i, 7))
        elif kind == "damaged":
            assert isinstance(event, InputDamaged)
            assert event.damaged == "abc"
        else:
            assert isinstance(event, TaskFailed)
            assert event.error == f"KeyError: {i}"
    assert inline.events(0) == []


def test_an_error_is_one_line_and_keeps_its_traceback() -> None:
    inline = started()
    inline.submit("inline", "k", fail, ValueError("first\nsecond"))
    [event] = inline.events(0)
    assert isinstance(event, TaskFailed)
    assert event.error == "ValueError: first"
    assert "second" in event.traceback
    assert "in fail" in event.traceback


def test_an_error_without_message_is_its_type() -> None:
    inline = started()
    inline.submit("inline", "k", fail, RuntimeError())
    [event] = inline.events(0)
    assert isinstance(event, TaskFailed)
    assert event.error == "RuntimeError"


def test_a_keyboard_interrupt_is_the_persons_not_the_tasks() -> None:
    inline = started()
    with pytest.raises(KeyboardInterrupt):
        inline.submit("inline", "k", fail, KeyboardInterrupt())
    assert inline.events(0) == []


def test_an_unknown_worker_is_named() -> None:
    with pytest.raises(ValueError, match=r"'w1'.*'inline'"):
        started().submit("w1", "k", os.getpid)


def test_close_twice() -> None:
    inline = started()
    inline.submit("inline", "k", os.getpid)
    inline.close()
    inline.close()
    assert inline.events(0) == []
