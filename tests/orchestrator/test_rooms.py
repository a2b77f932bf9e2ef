"""Jobs beside each other in the memory of a node or a GPU, and which workers take which."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.base import TaskDone, TaskFailed, WorkerJoined, WorkerLost
from orchestrator.state import Job, Run, State

GIB = 2**30


def joined(worker: str, room: str = "node", capacity: int = 8, *, gpu: bool = False):
    return WorkerJoined(worker, node=room, gpu=gpu, room=room, room_bytes=capacity * GIB)


def test_what_does_not_fit_waits_for_what_runs() -> None:
    jobs = {"long": Job(seconds=9, memory=5 * GIB), "big": Job(seconds=8, memory=4 * GIB)}
    jobs |= {"small": Job(seconds=1, memory=1 * GIB)}
    state = State(jobs)
    assert state.handle(joined("a")) == [Run("a", "long")]
    # big is first in line: small may not slip in before it for ever.
    assert state.handle(joined("b")) == []
    assert state.handle(joined("c", "other", 1)) == [Run("c", "small")]
    assert state.handle(TaskDone("a", "long")) == [Run("a", "big")]
    assert state.handle(TaskDone("a", "big")) == []
    assert state.waiting == 0


def test_a_job_larger_than_any_room_runs_alone() -> None:
    state = State({"huge": Job(seconds=9, memory=99 * GIB), "small": Job(memory=GIB)})
    assert state.handle(joined("a")) == [Run("a", "huge")]
    assert state.handle(joined("b")) == []
    assert state.handle(TaskDone("a", "huge")) == [Run("a", "small")]


def test_a_claim_ends_with_its_room() -> None:
    state = State({"long": Job(seconds=9, memory=5 * GIB), "big": Job(seconds=8, memory=4 * GIB)})
    state.handle(joined("a"))
    state.handle(joined("b"))
    assert state.handle(WorkerLost("b")) == []
    # The room is gone with its last worker: what it had claimed and run is free for others.
    assert state.handle(WorkerLost("a")) == []
    assert state.handle(joined("c", "other")) == [Run("c", "long")]
    assert state.handle(joined("d", "third")) == [Run("d", "big")]


def test_a_lack_of_memory_gets_a_larger_share_before_it_counts() -> None:
    state = State({"job": Job(), "other": Job(seconds=0.5)}, max_attempts=1)
    assert state.handle(joined("a")) == [Run("a", "job")]
    assert state.handle(joined("b")) == [Run("b", "other")]
    # 8 GiB for two workers: the job had half of them, and is given all.
    told = state.handle(WorkerLost("a", "out of memory", out_of_memory=True))
    assert told == []
    assert state.memory["job"] == 8 * GIB
    assert state.attempts == {}
    assert state.handle(joined("c")) == []  # not beside anything
    [run] = state.handle(TaskDone("b", "other"))
    assert run.key == "job"
    worker = run.worker
    # Alone, and still not enough: now it is its own fault.
    state.handle(TaskFailed(worker, "job", "MemoryError", out_of_memory=True))
    assert state.failed == {"job": "MemoryError"}


def test_memory_nobody_knows_is_no_excuse() -> None:
    state = State({"job": Job()}, max_attempts=2)
    state.handle(WorkerJoined("a"))
    state.handle(WorkerLost("a", "killed", out_of_memory=True))
    assert state.attempts == {"job": 1}
    state.handle(WorkerJoined("b"))
    state.handle(TaskFailed("b", "job", "MemoryError", out_of_memory=True))
    assert state.failed == {"job": "MemoryError"}


def test_gpu_jobs_go_to_gpu_workers_and_others_to_others() -> None:
    jobs = {"train": Job(seconds=9, gpu=True), "train2": Job(seconds=8, gpu=True)}
    state = State(jobs | {"split": Job(seconds=7), "check": Job(seconds=6)})
    assert state.handle(joined("cpu")) == [Run("cpu", "split")]
    assert state.handle(joined("gpu", "node GPU 0", gpu=True)) == [Run("gpu", "train")]
    assert state.handle(TaskDone("cpu", "split")) == [Run("cpu", "check")]
    assert state.handle(TaskDone("cpu", "check")) == []
    assert state.handle(TaskDone("gpu", "train")) == [Run("gpu", "train2")]


def test_gpu_workers_alone_do_everything() -> None:
    state = State({"split": Job(), "train": Job(("split",), gpu=True)})
    assert state.handle(joined("gpu", "GPU 0", gpu=True)) == [Run("gpu", "split")]
    assert state.handle(TaskDone("gpu", "split")) == [Run("gpu", "train")]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for number in range(draw(st.integers(1, 14))):
        inputs = draw(st.lists(st.sampled_from(sorted(jobs)), max_size=2)) if jobs else []
        jobs[f"k{number}"] = Job(
            tuple(inputs),
            draw(st.sampled_from([1.0, 2.0, 9.0])),
            gpu=draw(st.booleans()),
            memory=draw(st.sampled_from([0, 1, 3, 5, 9, 30])) * GIB,
        )
    return jobs


STEPS = st.tuples(
    st.sampled_from(["join", "lose", "starve", "finish", "finish", "exhaust"]), st.integers(0, 99)
)


@settings(max_examples=300, deadline=None)
@given(plans(), st.lists(STEPS, max_size=60))
def test_any_history_keeps_to_the_rooms_and_ends(jobs, history) -> None:
    state = State(jobs, max_attempts=99)
    there: dict[str, WorkerJoined] = {}
    runs: Counter[str] = Counter()

    def send(event) -> None:
        for run in state.handle(event):
            runs[run.key] += 1
        judge(state, jobs, there)

    def join(number: int) -> None:
        gpu, room = number % 3 == 0, number % 4
        worker = f"w{len(there) + sum(runs.values())}-{number}-{len(state.done)}"
        while worker in there:
            worker += "'"
        event = joined(worker, f"{'gpu' if gpu else 'node'}{room}", 4 + 4 * room, gpu=gpu)
        there[worker] = event
        send(event)

    for what, number in history:
        if what == "join":
            join(number)
        elif what == "lose" and there:
            worker = sorted(there)[number % len(there)]
            del there[worker]
            send(WorkerLost(worker))
        elif state.running:
            worker = sorted(state.running)[number % len(state.running)]
            key, known = state.running[worker], state.memory.get(state.running[worker], 0)
            if what == "finish":
                send(TaskDone(worker, key))
            elif what == "starve":
                del there[worker]
                send(WorkerLost(worker, out_of_memory=True))
                assert state.memory.get(key, 0) >= known
            elif what == "exhaust" and known < 16 * GIB:
                send(TaskFailed(worker, key, "MemoryError", out_of_memory=True))
                assert state.memory.get(key, 0) > known or key in state.failed
    join(0)
    join(1)
    while state.running:
        worker, key = next(iter(state.running.items()))
        send(TaskDone(worker, key))
    assert state.finished
    assert state.done | state.failed.keys() | state.blocked.keys() == jobs.keys()


def judge(state: State, jobs: dict[str, Job], there: dict[str, WorkerJoined]) -> None:
    """No job twice, each where it may be, no room overfull, no worker idle without a reason."""
    assert len(set(state.running.values())) == len(state.running)
    needs: dict[str, list[int]] = {}
    for worker, key in state.running.items():
        at = there[worker]
        assert at.gpu or not jobs[key].gpu
        mine = at.gpu == jobs[key].gpu
        needs.setdefault(at.room, []).append(state.memory.get(key, 0) if mine else 0)
    for at in there.values():
        room = needs.get(at.room, [])
        assert sum(map(bool, room)) <= 1 or sum(room) <= at.room_bytes
        if not room and at.worker not in state.running:  # nothing keeps it from any job
            ready = {
                key
                for key, job in jobs.items()
                if key not in state.done | state.failed.keys() | state.blocked.keys()
                and key not in state.running.values()
                and state.done.issuperset(job.inputs)
                and job.gpu == at.gpu
            }
            # Others that wait for such a job have claimed it; each of their rooms at most one.
            rooms = {o.room for o in there.values() if o.gpu == at.gpu and o.room in needs}
            assert len(ready) <= len(rooms)


def test_a_larger_room_that_is_free_takes_what_another_waits_for() -> None:
    state = State({"long": Job(seconds=9, memory=5 * GIB), "big": Job(seconds=8, memory=4 * GIB)})
    assert state.handle(joined("a")) == [Run("a", "long")]
    assert state.handle(joined("b")) == []
    assert state.handle(joined("c", "larger", 16)) == [Run("c", "big")]
    assert state.handle(TaskDone("a", "long")) == []
    assert state.handle(TaskDone("c", "big")) == []
    assert state.finished


def test_a_room_of_unknown_size_beside_known_ones_is_no_way_out() -> None:
    state = State({"job": Job(seconds=9), "other": Job()}, max_attempts=1)
    state.handle(WorkerJoined("a"))
    state.handle(joined("b", "known", 64))
    state.handle(WorkerLost("a", "out of memory", out_of_memory=True))
    assert state.failed.keys() == {"job"}


def test_a_gpu_job_grows_within_gpus() -> None:
    state = State({"train": Job(gpu=True)})
    state.handle(joined("cpu", "node", 1024))
    state.handle(joined("gpu", "GPU 0", 16, gpu=True))
    for _ in range(2):  # its share is all of the device already
        state.handle(TaskFailed("gpu", "train", "OutOfMemoryError", out_of_memory=True))
    assert state.failed == {"train": "OutOfMemoryError"}
    assert state.memory.get("train", 0) <= 16 * GIB
