"""A study of Optuna's whose trials outlive their drivers.

Every trial belongs to a driver, who says so in the trial and beats while it lives. Trials of dead
drivers are taken over as they are: the same number, the same values. A trial whose values were not
all drawn yet draws the rest as it would have, as each trial has a sampler seeded by its number.
"""

import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.space import Axis, grid_of
from orchestrator.tune_entry import TuneEntry
from tasks.base import stream

__all__ = ["Ask", "Search", "open_search", "told_of"]

BEAT_S = 10.0
SILENT_S = 60.0  # a driver on another machine that was not heard of for this long is dead
_DRIVER, _SURPLUS, _TOLD, _DRAWN = "driver", "surplus", "row", "drawn"
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Ask:
    """A trial to be run: its number, and what suggests its values."""

    trial: Trial
    adopted: bool = False

    @property
    def number(self) -> int:
        return int(self.trial.number)


class Search:
    """Ask and tell on a study that other drivers may work on at the same time."""

    def __init__(self, study: Study, tune: TuneEntry, searched: Sequence[Axis]) -> None:
        self.study, self._tune, self._searched = study, tune, searched
        self._me = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": _began(os.getpid()),
        }
        self._mine: set[int] = set()
        self._stop = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give back the trials that are open, and beat no more."""
        with suppress(Exception):  # a storage that is away: they are given back by silence
            for trial in self.trials():
                driver = trial.user_attrs.get(_DRIVER)
                mine = isinstance(driver, dict) and driver.get("id") == self._me["id"]
                if mine and trial.state == TrialState.RUNNING:
                    given = {**driver, "gone": True}
                    self.study._storage.set_trial_user_attr(trial._trial_id, _DRIVER, given)
        self._stop.set()
        self._thread.join(timeout=BEAT_S)

    # -- what there is ------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts, by number."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if not trial.user_attrs.get(_SURPLUS)]

    def finished(self) -> list[FrozenTrial]:
        """The trials that ended, by number."""
        return [trial for trial in self.trials() if trial.state in _FINISHED]

    def elsewhere(self) -> list[FrozenTrial]:
        """Trials that other drivers are at, or were until they died."""
        running = [t for t in self.trials() if t.state == TrialState.RUNNING]
        return [t for t in running if t.number not in self._mine]

    # -- ask ----------------------------------------------------------------------------------

    def adopt(self, most: int) -> Ask | None:
        """A trial whose driver is dead, if there is one."""
        for trial in self.elsewhere():
            if not self._lives(trial):
                self._claim(trial._trial_id, trial.number)
                ask = Ask(Trial(self.study, trial._trial_id), adopted=True)
                # It may have died before it saw that there were enough.
                if _DRIVER in trial.user_attrs or not self._is_surplus(ask, most):
                    return ask
        return None

    def ask(self, most: int) -> Ask | None:
        """A new trial, or None if there are `most` already or the space is exhausted."""
        counted = [t for t in self.trials() if t.state != TrialState.WAITING]
        if len(counted) >= most or self._exhausted():
            return None
        ask = Ask(self.study.ask())
        self._claim(ask.trial._trial_id, ask.number)
        return None if self._is_surplus(ask, most) else ask

    def _is_surplus(self, ask: Ask, most: int) -> bool:
        """Whether there are enough trials before this one, as two drivers asked at once: end it."""
        before = [t for t in self.trials() if t.number < ask.number]
        if len(before) < most:
            return False
        ask.trial.set_user_attr(_SURPLUS, True)
        self.study.tell(ask.number, state=TrialState.FAIL)
        self._mine.discard(ask.number)
        return True

    def start_with(self, values: Mapping[str, Any]) -> None:
        """Have these values tried first, unless something was tried before."""
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(dict(values), skip_if_exists=True)

    def _exhausted(self) -> bool:
        if self._tune.sampler != "grid":
            return False
        size = 1
        for values in grid_of(self._searched).values():
            size *= len(values)
        return len(self.trials()) >= size

    def _claim(self, trial_id: int, number: int) -> None:
        self.study._storage.set_trial_user_attr(trial_id, _DRIVER, self._me)
        self._mine.add(number)

    # -- tell ---------------------------------------------------------------------------------

    def tell(
        self,
        ask: Ask,
        row: Mapping[str, Any],
        *,
        values: Sequence[float] | None,
        violations: Sequence[float] = (),
        state: TrialState = TrialState.COMPLETE,
    ) -> None:
        """End a trial; nothing happens if another driver has.

        Args:
            ask: the trial.
            row: what the tables shall say of it; kept with it, so that it can be said again.
            values: of the objectives, unless pruned or failed.
            violations: of the constraints; above 0 where one does not hold.
            state: COMPLETE, PRUNED or FAIL.
        """
        storage, trial_id = self.study._storage, ask.trial._trial_id
        if not storage.get_trial(trial_id).state.is_finished():
            set_before = storage.get_trial(trial_id).constraints
            for bound, violation in zip(self._tune.constraints, violations, strict=False):
                if bound not in set_before:  # by a driver killed right after
                    ask.trial.set_constraint(bound, violation)
            storage.set_trial_user_attr(trial_id, _TOLD, dict(row))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.study.tell(
                    ask.number,
                    values=None if values is None else [float(v) for v in values],
                    state=state,
                    skip_if_finished=True,
                )
        self._mine.discard(ask.number)

    # -- drivers ------------------------------------------------------------------------------

    def _beats(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self._beat()
            except Exception:  # the main thread meets the same fault and says it
                continue

    def _beat(self) -> None:
        self.study.set_user_attr(f"{_DRIVER}:{self._me['id']}", time.time())

    def _lives(self, trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get(_DRIVER)
        if not isinstance(driver, dict):
            # Asked for a moment ago and not claimed yet, or its driver died in between.
            asked = trial.datetime_start
            return bool(asked is None or time.time() - asked.timestamp() < BEAT_S)
        if driver.get("gone"):
            return False
        if driver.get("id") == self._me["id"]:
            return True
        if driver.get("host") == self._me["host"]:
            return bool(_began(int(driver["pid"])) == driver["began"])
        beat = self.study.user_attrs.get(f"{_DRIVER}:{driver.get('id')}", 0.0)
        return bool(time.time() - float(beat) < SILENT_S)


def told_of(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """What the tables shall say of a finished trial, if it was told."""
    row = trial.user_attrs.get(_TOLD)
    return row if isinstance(row, dict) else None


def open_search(
    name: str, storage: Any, tune: TuneEntry, searched: Sequence[Axis], about: Mapping[str, Any]
) -> Search:
    """The study of this name, made if it is not there.

    Args:
        name: of the study.
        storage: of Optuna's.
        tune: how to search.
        searched: the space.
        about: what the dashboard shows of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[objective.direction for objective in tune.objectives],
            sampler=_Seeded(tune, searched),
            pruner=_pruner(tune),
            load_if_exists=True,
        )
        if study.metric_names is None:
            study.set_metric_names([objective.column for objective in tune.objectives])
    for key, value in about.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return Search(study, tune, searched)


def _pruner(tune: TuneEntry) -> optuna.pruners.BasePruner:
    if len(tune.objectives) > 1 or tune.prune == "none":
        return optuna.pruners.NopPruner()
    if tune.prune == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.MedianPruner(n_startup_trials=5)


class _Seeded(BaseSampler):  # type: ignore[misc]  # Optuna's types are not followed
    """The sampler asked for, made anew for each trial from the seed and the trial's number.

    So what a trial draws depends on the trials finished when it was asked for, never on which
    driver asks, or on how often one was killed.
    """

    def __init__(self, tune: TuneEntry, searched: Sequence[Axis]) -> None:
        self._tune, self._searched = tune, searched
        self._made: dict[int, BaseSampler] = {}

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._made:
            self._made[trial.number] = self._make(trial.number)
        return self._made[trial.number]

    def _make(self, number: int, name: str = "") -> BaseSampler:
        place = f"tune.sampler/{self._tune.sampler}"
        # A grid is shuffled by the seed, and its trials are numbers of places in it.
        at = 0 if self._tune.sampler == "grid" else number
        seed = stream(self._tune.seed, f"{place}/{name}" if name else place, at)
        return _sampler(self._tune, self._searched, seed % 2**32)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if (kept := trial.system_attrs.get(_DRAWN)) is not None:
            return {name: json_to_distribution(told) for name, (told, _) in kept.items()}
        space: dict[str, BaseDistribution] = self._of(trial).infer_relative_search_space(
            study, trial
        )
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if (kept := trial.system_attrs.get(_DRAWN)) is not None:
            return {name: search_space[name].to_external_repr(v) for name, (_, v) in kept.items()}
        drawn: dict[str, Any] = self._of(trial).sample_relative(study, trial, search_space)
        # Kept before the first is used: to the samplers a trial with some of its values set is
        # another one, so who takes it over could not draw the rest of them again.
        told = {
            name: [distribution_to_json(spread), spread.to_internal_repr(drawn[name])]
            for name, spread in search_space.items()
            if name in drawn
        }
        study._storage.set_trial_system_attr(trial._trial_id, _DRAWN, told)
        return drawn

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # By a sampler of its own: what a killed driver drew before would shift what is drawn next.
        grid = self._tune.sampler == "grid"
        sampler = self._of(trial) if grid else self._make(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Seeds are those of the trials."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        if self._tune.sampler != "grid":  # all a grid does then is to stop Optuna's own loop
            self._of(trial).after_trial(study, trial, state, values)
        self._made.pop(trial.number, None)


def _sampler(tune: TuneEntry, searched: Sequence[Axis], seed: int) -> BaseSampler:
    startup = tune.startup or 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match tune.sampler:
            case "tpe":
                return optuna.samplers.TPESampler(
                    n_startup_trials=startup,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
            case "gp":
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(population_size=tune.population, seed=seed)
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(population_size=tune.population, seed=seed)
            case "grid":
                return optuna.samplers.GridSampler(grid_of(searched), seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _began(pid: int) -> float | None:
    """When a process of this machine began; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            told = file.read()
        fields = told[told.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    except (OSError, ValueError, IndexError):
        return None
    try:  # a system without /proc: alive, but not since when
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0.0
