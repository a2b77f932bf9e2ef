"""The Ray pool, on real Ray: real processes, real kills."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from cluster.base import (
    ClusterUnreachable,
    Event,
    InputDamaged,
    TaskDone,
    TaskFailed,
    WorkerJoined,
    WorkerLost,
)
from cluster.ray_pool import RayPool

pytestmark = pytest.mark.ray

# Workers cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE_S = 60.0
Descendants = Callable[[int], set[int]]
AwaitGone = Callable[[set[int], float], set[int]]


@pytest.fixture(scope="module")
def pool(
    tmp_path_factory: pytest.TempPathFactory, descendants: Descendants, await_gone: AwaitGone
) -> Iterator[RayPool]:
    """Two CPU workers, on a Ray that pretends to have two GPUs."""
    before = descendants(os.getpid())
    pool = RayPool(workers=2, logical_gpus=2, visible=tmp_path_factory.mktemp("store"))
    environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    pool.start()
    assert environment == {name: os.environ.get(name) for name in environment}
    try:
        gather(pool, 2, WorkerJoined)
        yield pool
    finally:
        started = descendants(os.getpid()) - before
        pool.close()
    assert len(started) > 3
    assert not await_gone(started, 10), "something outlives close()"


def gather(pool: RayPool, num: int, *kinds: type) -> list[Any]:
    """All events until `num` of the given kinds have come."""
    until, events = time.monotonic() + PATIENCE_S, list[Event]()
    while sum(isinstance(event, kinds) for event in events) < num:
        assert time.monotonic() < until, f"waited for {num} of {kinds}, got {events}"
        events += pool.events(1.0)
    return events


def outcome(pool: RayPool, worker: str, call: Callable[..., Any], *args: Any) -> Any:
    pool.submit(worker, "key", call, *args)
    [event] = gather(pool, 1, TaskDone, TaskFailed, InputDamaged, WorkerLost)
    return event


def workers_of(pool: RayPool) -> dict[str, int]:
    """Every worker's process id, by name."""
    for name in list(pool._slots):
        pool.submit(name, name, os.getpid)
    return {event.worker: event.result for event in gather(pool, len(pool._slots), TaskDone)}


def meet(own: Path, other: Path, first: bool) -> tuple[int, set[int]]:
    """Ends only if somebody runs the mirror image at the same time: pipes need two ends."""
    for path in (own, other) if first else (other, own):
        with path.open("w" if path is own else "r"):
            pass
    return os.getpid(), os.sched_getaffinity(0)


def tell_and_hang(pipe: Path) -> None:
    pipe.write_text(f"{os.getpid()}\n")
    signal.pause()


def fail(error: Exception) -> None:
    raise error


def read_damaged(key: str) -> None:
    error = OSError(f"checksum of {key} is wrong")
    error.damaged_key = key
    raise error


def lock() -> Any:
    import threading

    return threading.Lock()


def test_two_workers_run_at_once_each_on_its_own_core(pool: RayPool, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    os.mkfifo(one)
    os.mkfifo(two)
    first, second = pool._slots
    pool.submit(first, "a", meet, one, two, True)
    pool.submit(second, "b", meet, two, one, False)
    events = gather(pool, 2, TaskDone, TaskFailed)
    (pid, cores), (other_pid, other_cores) = [event.result for event in events]
    assert len({pid, other_pid, os.getpid()}) == 3
    assert len(cores) == len(other_cores) == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert cores != other_cores


def test_workers_have_one_thread_each(pool: RayPool) -> None:
    for name in list(pool._slots):
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            assert outcome(pool, name, os.getenv, variable).result == "1"


def test_results_and_arguments_travel(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    assert outcome(pool, worker, divmod, 17, 5) == TaskDone(worker, "key", (3, 2))
    assert outcome(pool, worker, bytes, 5_000_000).result == bytes(5_000_000)


def test_a_tasks_own_exception_is_a_failure_and_the_worker_stays(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    pid = outcome(pool, worker, os.getpid).result
    event = outcome(pool, worker, fail, ValueError("no such class: 7\nmore"))
    assert isinstance(event, TaskFailed)
    assert event.error == "ValueError: no such class: 7"
    assert "in fail" in event.traceback
    assert outcome(pool, worker, os.getpid).result == pid


def test_a_damaged_input_is_told_apart(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    event = outcome(pool, worker, read_damaged, "abc")
    assert event == InputDamaged(worker, "key", "abc", "OSError: checksum of abc is wrong")


def test_a_result_that_cannot_travel_is_a_failure(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    event = outcome(pool, worker, lock)
    assert isinstance(event, TaskFailed)
    assert event.error.startswith("TypeError: cannot pickle")
    assert "\x1b" not in event.traceback


def test_a_call_the_worker_cannot_import_says_to_install(
    pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_the_driver_has_me.py").write_text("def call(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_the_driver_has_me

    event = outcome(pool, next(iter(pool._slots)), only_the_driver_has_me.call)
    assert isinstance(event, TaskFailed)
    assert "only_the_driver_has_me" in event.error
    assert "Install Sfumato" in event.error


def test_a_busy_or_unknown_worker_refuses(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    with pytest.raises(ValueError, match="'w99' is not idle; idle workers"):
        pool.submit("w99", "k", os.getpid)
    pool.submit(worker, "a", os.getpid)
    with pytest.raises(ValueError, match="is not idle"):
        pool.submit(worker, "b", os.getpid)
    assert [event.key for event in gather(pool, 1, TaskDone)] == ["a"]


def test_a_worker_killed_in_a_task_is_lost_and_replaced(pool: RayPool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    worker, before = next(iter(pool._slots)), set(pool._slots)
    cores = {outcome(pool, name, os.sched_getaffinity, 0).result.pop() for name in before}
    pool.submit(worker, "key", tell_and_hang, pipe)
    assert select.select([reader], [], [], PATIENCE_S)[0], "the task never began"
    pid = int(os.read(reader, 100))
    os.close(reader)
    os.kill(pid, signal.SIGKILL)

    lost, joined = gather(pool, 1, WorkerJoined)
    assert isinstance(lost, WorkerLost)
    assert lost.worker == worker
    assert "ActorDiedError" in lost.reason
    assert "\n" not in lost.reason
    assert joined.worker not in before
    assert outcome(pool, joined.worker, divmod, 7, 2).result == (3, 1)
    # The replacement takes the core that became free.
    assert cores == {
        outcome(pool, name, os.sched_getaffinity, 0).result.pop() for name in list(pool._slots)
    }


def test_an_idle_workers_death_is_noticed_and_quiet(
    pool: RayPool, capfd: pytest.CaptureFixture[str]
) -> None:
    worker, pid = next(iter(workers_of(pool).items()))
    os.kill(pid, signal.SIGKILL)
    lost, joined = gather(pool, 1, WorkerJoined)
    assert isinstance(lost, WorkerLost)
    assert lost.worker == worker
    assert joined.worker in pool._slots
    assert capfd.readouterr().out == ""  # standard output belongs to tables


def test_four_halves_of_two_devices(pool: RayPool, await_gone: AwaitGone) -> None:
    halves = RayPool(gpus_per_worker=0.5)  # on the Ray that runs already
    halves.start()
    names = [event.worker for event in gather(halves, 4, WorkerJoined)]
    assert sorted(names) == ["w0", "w1", "w2", "w3"]
    devices = [outcome(halves, name, os.getenv, "CUDA_VISIBLE_DEVICES").result for name in names]
    assert sorted(devices) == ["0", "0", "1", "1"]
    assert outcome(halves, names[0], os.getenv, "MKL_NUM_THREADS").result == "1"
    pids = set(workers_of(halves).values())
    halves.close()
    halves.close()
    assert not await_gone(pids, 20)
    assert ray.is_initialized(), "it was running before, so it stays"
    assert outcome(pool, next(iter(pool._slots)), divmod, 7, 2).result == (3, 1)


@pytest.mark.parametrize(("share", "fit"), [(0.4, 4), (1.0, 2), (2.0, 1)])
def test_a_share_lies_on_whole_devices(pool: RayPool, share: float, fit: int) -> None:
    assert RayPool(gpus_per_worker=share)._capacity()[0] == fit


def test_more_than_there_is(pool: RayPool) -> None:
    with pytest.raises(ClusterUnreachable, match=r"no room for a worker of 3 GPU.*2 GPU"):
        RayPool(gpus_per_worker=3).start()
    crowded = RayPool(workers=1, start_timeout_s=1)  # both cores are taken
    crowded.start()
    try:
        with pytest.raises(ClusterUnreachable, match=r"within 1 s.*free: 0 CPU.*in all: 2 CPU"):
            gather(crowded, 1, WorkerJoined)
    finally:
        crowded.close()


def test_a_worker_says_whether_it_sees_the_store(pool: RayPool, tmp_path: Path) -> None:
    seen = []
    for path in (tmp_path, tmp_path / "elsewhere"):
        looking = RayPool(workers=1, gpus_per_worker=0.5, visible=path)
        looking.start()
        try:
            [joined] = gather(looking, 1, WorkerJoined)
        finally:
            looking.close()
        seen.append(joined.sees)
    assert seen == [True, False]


def test_workers_with_and_without_a_gpu(pool: RayPool, await_gone: AwaitGone) -> None:
    mixed = RayPool(gpus_per_worker=1, cpu_workers=0)
    assert mixed._capacity() == (2, 0)  # two GPUs; their workers keep both cores busy
    mixed = RayPool(workers=1, gpus_per_worker=1, setup=device_of_8_gib)
    mixed.start()
    try:
        [joined] = gather(mixed, 1, WorkerJoined)
        assert joined.gpu
        assert joined.room_bytes == 8 * 2**30
        assert joined.room.endswith(" GPU 0") or joined.room.endswith(" GPU 1")
        device = outcome(mixed, joined.worker, os.getenv, "CUDA_VISIBLE_DEVICES").result
        # The device of a worker that dies is free for the one that takes its place.
        mixed.submit(joined.worker, "poison", os._exit, 3)
        lost, again = gather(mixed, 1, WorkerJoined)
        assert isinstance(lost, WorkerLost)
        assert not lost.out_of_memory
        assert outcome(mixed, again.worker, os.getenv, "CUDA_VISIBLE_DEVICES").result in "01"
        assert device in ("0", "1")
    finally:
        mixed.close()


def device_of_8_gib() -> int:
    return 8 * 2**30


def test_no_two_workers_on_a_device_unless_asked(pool: RayPool) -> None:
    whole = RayPool(workers=3, gpus_per_worker=1)
    whole.start()
    try:
        joined = gather(whole, 2, WorkerJoined)
        devices = {
            outcome(whole, e.worker, os.getenv, "CUDA_VISIBLE_DEVICES").result for e in joined
        }
        assert devices == {"0", "1"}
        assert whole.pending == 1  # there is no third device
        whole.submit(joined[0].worker, "poison", os._exit, 3)
        events = gather(whole, 1, WorkerJoined)  # the third gets the device, or the replacement
        assert [type(event) for event in events] == [WorkerLost, WorkerJoined]
        assert whole.pending == 1
    finally:
        whole.close()


class Counter:
    """Something of the driver's machine."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, num: int) -> int:
        if num < 0:
            raise ValueError(f"{num} is below 0")
        self.calls += 1
        return self.calls


def use(counter: Counter) -> tuple[int, int, str]:
    try:
        counter.add(-1)
    except ValueError as error:
        return counter.add(1), counter.add(1), str(error)
    return 0, 0, ""


def test_what_is_shared_is_one_and_raises_what_it_raises(pool: RayPool) -> None:
    counter = pool.share(Counter())
    first, second = list(pool._slots)
    assert outcome(pool, first, use, counter).result == (1, 2, "-1 is below 0")
    assert outcome(pool, second, use, counter).result == (3, 4, "-1 is below 0")
    assert counter.add(1) == 5  # the driver has it too


def test_a_call_beside_a_worker_and_one_that_was_lost(pool: RayPool) -> None:
    workers = workers_of(pool)
    worker, pid = next(iter(workers.items()))
    assert pool.beside(worker, os.getpid)() not in {None, os.getpid(), *workers.values()}
    os.kill(pid, signal.SIGKILL)
    gather(pool, 1, WorkerJoined)
    assert pool.beside(worker, os.getcwd)() is not None
    assert pool.beside("w999", os.getcwd)() is None


def test_a_worker_that_hangs_is_dropped(pool: RayPool, await_gone: AwaitGone) -> None:
    worker, pid = next(iter(workers_of(pool).items()))
    pool.submit(worker, "hung", signal.pause)
    pool.drop(worker, "it took too long")
    events = gather(pool, 1, WorkerJoined)
    assert events[0] == WorkerLost(worker, "it took too long")
    assert not await_gone({pid}, 10)
    pool.drop(worker, "again")
    assert pool.events(0) == []


def test_a_node_that_is_unfit_gets_no_worker_any_more(pool: RayPool) -> None:
    only = RayPool(workers=2, gpus_per_worker=0.5)
    only.start()
    try:
        joined = gather(only, 2, WorkerJoined)
        only.submit(joined[0].worker, "key", signal.pause)
        only.drop(joined[0].worker, "its disk is full", node=True)
        only.submit(joined[1].worker, "other", divmod, 7, 2)  # its loss is not told yet
        lost = only.events(1.0)
        assert {event.worker for event in lost} == {event.worker for event in joined}
        assert {event.reason for event in lost} == {"its disk is full"}
        with pytest.raises(ClusterUnreachable, match=r"no node is left.*its disk is full"):
            only.events(1.0)
    finally:
        only.close()


def test_a_lack_of_memory_is_told_apart(pool: RayPool) -> None:
    worker = next(iter(pool._slots))
    event = outcome(pool, worker, fail, MemoryError("no room for 3 TiB"))
    assert isinstance(event, TaskFailed)
    assert event.out_of_memory
    assert not outcome(pool, worker, fail, ValueError("no")).out_of_memory


def broken_setup() -> None:
    raise OSError("no driver for the device")


def test_a_setup_that_fails_is_told(pool: RayPool) -> None:
    broken = RayPool(workers=1, gpus_per_worker=0.5, setup=broken_setup)
    broken.start()
    try:
        with pytest.raises(ClusterUnreachable, match=r"w0 .*OSError: no driver for the device"):
            gather(broken, 1, WorkerJoined)
    finally:
        broken.close()


def die() -> None:
    os._exit(3)


@pytest.mark.slow
def test_workers_that_die_before_they_work_end_it(pool: RayPool) -> None:
    doomed = RayPool(workers=1, gpus_per_worker=0.5, setup=die)
    doomed.start()
    try:
        with pytest.raises(ClusterUnreachable, match="7 workers in a row died without work"):
            gather(doomed, 9, WorkerLost)
    finally:
        doomed.close()


@pytest.mark.slow
def test_tasks_that_kill_do_not_end_it(pool: RayPool) -> None:
    patient = RayPool(workers=1, gpus_per_worker=0.5)
    patient.start()
    lost = 0
    try:
        while lost < 8:
            for event in gather(patient, 1, WorkerJoined, WorkerLost):
                lost += isinstance(event, WorkerLost)
                if isinstance(event, WorkerJoined):
                    patient.submit(event.worker, "poison", os._exit, 3)
        [joined] = gather(patient, 1, WorkerJoined)
        assert outcome(patient, joined.worker, divmod, 7, 2).result == (3, 1)
    finally:
        patient.close()


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="workers is 0"):
        RayPool(workers=0)
    with pytest.raises(ValueError, match=r"gpus_per_worker is 1\.5"):
        RayPool(gpus_per_worker=1.5)
    with pytest.raises(ValueError, match="must be absolute"):
        RayPool(visible=Path("store"))
