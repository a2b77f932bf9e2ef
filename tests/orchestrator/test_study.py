"""Asking and telling: what trials draw, whose they are, and what becomes of those of the dead."""

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from orchestrator import space
from orchestrator.study import BEAT_S, SILENT_S, Ask, Search, open_search, told_of
from orchestrator.study_storage import open_storage
from orchestrator.tune_entry import TuneEntry

SAMPLERS = ["tpe", "nsga2", "nsga3", "gp", "random", "grid"]
SPACE = {
    "swapper": [True, False],
    "swap_radius": {"choices": [None, 0.001, 0.1], "when": {"swapper": True}},
    "noise_scale": {"low": 0.0, "high": 2.0},
    "kl_weight": {"low": 1e-4, "high": 1.0, "log": True},
    "latent": {"low": 2, "high": 8, "step": 2},
    "hidden": [[8, 8, 8], [16, 16, 16]],
}
GRID = {"swapper": [True, False], "latent": {"low": 2, "high": 4}, "hidden": SPACE["hidden"]}


def block(**keys: Any) -> TuneEntry:
    raw = {"defense": "purifier", "space": SPACE, "attacks": ["gap"], "startup": 4}
    raw |= {"space": GRID} if keys.get("sampler") == "grid" else {}
    raw |= (
        {"startup": 8} if keys.get("sampler") == "gp" else {}
    )  # after which a trial takes seconds
    raw |= {"population": 4, "constraints": ["l1_distortion <= 0.3", "test_accuracy >= 0.5"]}
    return TuneEntry.model_validate({**raw, **keys})


class Drivers:
    """Opens the study again and again, as if by drivers of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: list[Search] = []

    def __call__(self, tune: TuneEntry, cls: type[Search] | None = None) -> Search:
        made = open_search("s", open_storage(None, self.folder), tune, space.axes(tune), {})
        if cls is not None:
            made.close()
            made = cls(made.study, tune, space.axes(tune))
        self.open.append(made)
        return made

    def kill(self, search: Search, *, trial: Ask | None = None) -> None:
        """Let it look dead: no process of its number began when it says."""
        search.close()
        search._me = {**search._me, "began": -1.0}
        for number in [trial.number] if trial else list(search._mine):
            found = search.study.get_trials(deepcopy=False)[number]
            search._claim(found._trial_id, number)


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    made = Drivers(tmp_path)
    yield made
    for search in made.open:
        search.close()


def drawn(search: Search, ask: Ask) -> dict[str, Any]:
    """Values of a trial. The defense as given has a swapper."""
    given = {(0, "swapper"): True}
    return space.suggest(ask.trial, search._searched, given)


def measured(values: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Two objectives and two violations, at random but the same for the same values."""
    at = float(values.get("noise_scale", values["latent"]))
    leak = 0.5 + 0.2 / (1 + at)
    accuracy = 0.9 - 0.05 * at - 0.01 * values["latent"] - 0.1 * bool(values["swapper"])
    return [leak, accuracy], [at - 1.0, 0.5 - accuracy]


def tell(search: Search, ask: Ask, values: dict[str, Any]) -> None:
    objectives, violations = measured(values)
    row = {"number": ask.number, "values": len(values)}
    search.tell(ask, row, values=objectives, violations=violations)


def run(search: Search, most: int) -> list[dict[str, Any]]:
    found = []
    while (ask := search.ask(most)) is not None:
        values = drawn(search, ask)
        tell(search, ask, values)
        found.append(values)
    return found


# -- what trials draw -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works_and_stays_in_the_space(
    drivers: Drivers, sampler: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = drivers(block(sampler=sampler))
        found = run(search, most := 9 if sampler == "gp" else 12)
    assert len(found) == most
    assert capfd.readouterr() == ("", "")
    for values in found:
        for axis in search._searched:
            if axis.key in values:
                assert axis.holds(values[axis.key]), (axis.key, values)
        assert ("swap_radius" in values) == (values["swapper"] and "swap_radius" in SPACE) or (
            sampler == "grid"
        )
    ended = search.finished()
    assert [trial.number for trial in ended] == list(range(most))
    for trial, values in zip(ended, found, strict=True):
        assert trial.values == measured(values)[0]
        assert list(trial.constraints.values()) == measured(values)[1]
    assert len({str(values) for values in found}) >= most - 2  # neither stuck, nor all alike


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(s, marks=[] if s in ("tpe", "random", "grid") else [pytest.mark.slow])
        for s in SAMPLERS
    ],
)
def test_what_a_trial_draws_does_not_depend_on_how_often_its_drivers_died(
    tmp_path: Path, sampler: str
) -> None:
    """A driver is killed after it has asked, after a value was drawn, and after it has told."""
    tune = block(sampler=sampler)
    calm, troubled = Drivers(tmp_path / "calm"), Drivers(tmp_path / "troubled")
    most = 9 if sampler == "gp" else 10
    wanted = run(calm(tune), most)
    found = []
    for number in range(most):
        first = troubled(tune)
        ask = first.adopt(most) or first.ask(most)
        assert ask is not None
        assert ask.number == number
        for drawn_before in range(1 + number % 3):
            space.suggest(ask.trial, first._searched[:drawn_before], {})
            troubled.kill(first)
            first = troubled(tune)
            ask = first.adopt(most)
            assert ask is not None
            assert (ask.number, ask.adopted) == (number, True)
        values = drawn(first, ask)
        tell(first, ask, values)
        found.append(values)
        first.close()
    assert found == wanted
    for search in calm.open + troubled.open:
        search.close()


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_the_seed_decides(tmp_path: Path, sampler: str) -> None:
    found = []
    for i, seed in enumerate([0, 0, 1]):
        search = Drivers(tmp_path / str(i))(block(sampler=sampler, seed=seed))
        found.append(run(search, 6))
        search.close()
    assert found[0] == found[1] != found[2]


def test_two_fields_of_one_range_are_drawn_apart(drivers: Drivers) -> None:
    ranges = {key: {"low": 0.0, "high": 2.0} for key in ("noise_scale", "kl_weight")}
    tune = block(sampler="random", space={**ranges, "latent": [2], "swapper": [True]})
    found = run(drivers(tune), 8)
    assert all(values["noise_scale"] != values["kl_weight"] for values in found)


def test_a_grid_is_tried_whole_and_once(drivers: Drivers) -> None:
    search = drivers(block(sampler="grid"))
    found = run(search, 1000)
    assert len(found) == 2 * 3 * 2
    assert len({str(values) for values in found}) == 12
    assert search.ask(1000) is None
    assert drivers(block(sampler="grid")).ask(1000) is None


def test_a_grid_is_tried_whole_by_two_drivers(drivers: Drivers) -> None:
    one, two, found = drivers(block(sampler="grid")), drivers(block(sampler="grid")), []
    while True:
        asks = [(search, ask) for search in (one, two) if (ask := search.ask(100)) is not None]
        for search, ask in reversed(asks):
            values = drawn(search, ask)
            tell(search, ask, values)
            found.append(values)
        if not asks:
            break
    assert len(found) == 12
    assert len({str(values) for values in found}) == 12


def test_the_start_is_the_first_trial_and_only_of_an_empty_study(drivers: Drivers) -> None:
    start = {"swapper": True, "swap_radius": None, "noise_scale": 0.5, "kl_weight": 0.1}
    start |= {"latent": 4, "hidden": "[16, 16, 16]"}
    for _ in range(2):  # also if the first driver was killed before it asked
        drivers(block()).start_with(start)
    search = drivers(block())
    found = run(search, 3)
    assert found[0] == {**start, "hidden": [16, 16, 16]}
    search.start_with({**start, "latent": 8})
    assert len(run(search, 5)) == 2
    assert all(t.system_attrs.get("fixed_params") is None for t in search.trials()[1:])


# -- whose trials are whose -----------------------------------------------------------------------


def test_trials_of_a_dead_driver_are_taken_over_as_they_are(drivers: Drivers) -> None:
    first = drivers(block())
    asks = [ask for _ in range(3) if (ask := first.ask(9))]
    values = [drawn(first, ask) for ask in asks]
    drivers.kill(first)
    second = drivers(block())
    taken = [ask for _ in range(3) if (ask := second.adopt(9))]
    assert [ask.number for ask in taken] == [0, 1, 2]
    assert all(ask.adopted for ask in taken)
    assert [drawn(second, ask) for ask in taken] == values
    assert second.adopt(9) is None
    assert second.elsewhere() == []
    third = drivers(block())  # they are the second's now, who lives
    assert third.adopt(9) is None
    assert [trial.number for trial in third.elsewhere()] == [0, 1, 2]


def test_trials_of_a_living_driver_are_left_alone(drivers: Drivers) -> None:
    first, second = drivers(block()), drivers(block())
    ask = first.ask(9)
    assert ask is not None
    assert second.adopt(9) is None
    assert [trial.number for trial in second.elsewhere()] == [0]
    assert first.elsewhere() == []
    assert first.adopt(9) is None
    mine = second.ask(9)
    assert mine is not None
    assert mine.number == 1


def process(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def claim(search: Search, ask: Ask, **changes: Any) -> None:
    search._me = {**search._me, **changes}
    search._claim(ask.trial._trial_id, ask.number)


def test_a_process_is_told_by_its_number_and_when_it_began(drivers: Drivers) -> None:
    from orchestrator.study import _began

    first, second = drivers(block()), drivers(block())
    ask = first.ask(9)
    assert ask is not None
    child = process("input()")
    began = _began(child.pid)
    assert began is not None
    claim(first, ask, pid=child.pid, began=began)
    assert second.adopt(9) is None
    claim(first, ask, pid=child.pid, began=began - 1)  # another one that had the number before
    assert len(second.elsewhere()) == 1
    child.kill()
    claim(first, ask, pid=child.pid, began=began)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert _began(child.pid) is None  # dead, though nobody has asked how it ended
    child.communicate()
    assert _began(child.pid) is None
    taken = second.adopt(9)
    assert taken is not None
    assert taken.number == 0


@pytest.mark.parametrize(
    ("silent_s", "taken"), [(0.0, False), (SILENT_S - 5, False), (SILENT_S + 1, True), (None, True)]
)
def test_a_driver_of_another_machine_is_told_by_its_beat(
    drivers: Drivers, silent_s: float | None, taken: bool
) -> None:
    first, second = drivers(block()), drivers(block())
    ask = first.ask(9)
    assert ask is not None
    # Its number is that of nobody here, which says nothing.
    claim(first, ask, host="elsewhere", id="far", pid=2**22 + 1, began=7.0)
    if silent_s is not None:
        first.study.set_user_attr("driver:far", time.time() - silent_s)
    assert (second.adopt(9) is not None) == taken


def test_a_driver_beats(drivers: Drivers) -> None:
    search = drivers(block())
    (told,) = [v for k, v in search.study.user_attrs.items() if k.startswith("driver:")]
    assert abs(time.time() - told) < 60


def unclaimed(search: Search, age_s: float) -> None:
    """A trial whose driver died between asking and saying that it is its own."""
    trial: FrozenTrial = optuna.create_trial(state=TrialState.RUNNING)
    trial.datetime_start = datetime.now() - timedelta(seconds=age_s)
    search.study._storage.create_new_trial(search.study._study_id, template_trial=trial)


def test_a_trial_that_nobody_claimed_is_waited_for_and_then_taken(drivers: Drivers) -> None:
    search = drivers(block())
    unclaimed(search, BEAT_S / 2)
    assert search.adopt(9) is None
    assert len(search.elsewhere()) == 1
    unclaimed(search, BEAT_S + 1)
    taken = search.adopt(9)
    assert taken is not None
    assert taken.number == 1
    drawn(search, taken)


# -- enough ---------------------------------------------------------------------------------------


class Stale(Search):
    """Looked at the trials a moment before others asked."""

    stale = True

    def trials(self) -> list[FrozenTrial]:
        if self.stale:
            self.stale = False
            return []
        return super().trials()


def test_a_trial_too_many_does_not_count(drivers: Drivers) -> None:
    first, late = drivers(block()), drivers(block(), Stale)
    for _ in range(3):
        assert first.ask(3) is not None
    assert late.ask(3) is None
    assert [trial.number for trial in first.trials()] == [0, 1, 2]
    assert first.finished() == []
    assert first.ask(3) is None
    assert late.elsewhere() == first.trials()
    more = first.ask(4)  # room was made for one more
    assert more is not None
    assert first.ask(4) is None
    assert len(late.trials()) == 4


def test_a_trial_too_many_whose_driver_died_before_it_saw_that_is_not_taken(
    drivers: Drivers,
) -> None:
    search = drivers(block())
    run(search, 2)
    unclaimed(search, BEAT_S + 1)
    assert search.adopt(2) is None
    assert search.elsewhere() == []
    assert len(search.finished()) == 2
    assert search.adopt(9) is None


def test_four_drivers_at_once_ask_for_no_trial_too_many(tmp_path: Path) -> None:
    tune = block(sampler="random")
    found: list[int] = []
    searches = [Drivers(tmp_path)(tune) for _ in range(4)]
    together = threading.Barrier(4)

    def work(search: Search) -> None:
        together.wait(30)
        while (ask := search.ask(15)) is not None:
            found.append(ask.number)
            tell(search, ask, drawn(search, ask))

    threads = [threading.Thread(target=work, args=(search,)) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == len(set(found)) == 15
    assert sorted(found) == [trial.number for trial in searches[0].finished()]
    for search in searches:
        search.close()


def test_more_trials_go_on(drivers: Drivers) -> None:
    whole = Drivers(drivers.folder / "whole")(block())
    wanted = run(whole, 8)
    whole.close()
    assert run(drivers(block()), 5) + run(drivers(block()), 8) == wanted
    assert run(drivers(block()), 8) == run(drivers(block()), 3) == []


# -- telling --------------------------------------------------------------------------------------


def test_a_trial_told_twice_stays_as_it_was_told_first(drivers: Drivers) -> None:
    first, second = drivers(block()), drivers(block())
    ask = first.ask(9)
    assert ask is not None
    drawn(first, ask)
    again = Ask(optuna.trial.Trial(second.study, ask.trial._trial_id), adopted=True)
    first.tell(ask, {"by": "first"}, values=[0.6, 0.7], violations=[0.1, -0.2])
    second.tell(again, {"by": "second"}, values=[0.1, 0.1], violations=[0.5, 0.5])
    second.tell(again, {"by": "second"}, values=None, state=TrialState.FAIL)
    (trial,) = second.finished()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.6, 0.7])
    assert list(trial.constraints.values()) == [0.1, -0.2]
    assert told_of(trial) == {"by": "first"}


def test_a_driver_killed_while_it_told_is_followed_by_one_that_tells_all(drivers: Drivers) -> None:
    first = drivers(block())
    ask = first.ask(9)
    assert ask is not None
    drawn(first, ask)
    ask.trial.set_constraint(first._tune.constraints[0], 0.25)
    drivers.kill(first)
    second = drivers(block())
    taken = second.adopt(9)
    assert taken is not None
    second.tell(taken, {}, values=[0.6, 0.7], violations=[0.25, 0.5])
    (trial,) = second.finished()
    assert trial.constraints == dict(zip(block().constraints, [0.25, 0.5], strict=True))


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_that_came_to_nothing_counts(drivers: Drivers, state: TrialState) -> None:
    search = drivers(block())
    ask = search.ask(1)
    assert ask is not None
    drawn(search, ask)
    search.tell(ask, {"error": "why"}, values=None, violations=[0, 0], state=state)
    assert search.ask(1) is None
    (trial,) = search.finished()
    assert (trial.state, trial.values, told_of(trial)) == (state, None, {"error": "why"})
    run(search, 8)  # the sampler takes it
