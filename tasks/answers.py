"""Task: what the service answers for every record, computed once."""

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from defenses.base import Defense
from storage.artifacts import Draft
from tasks.architectures import recipe
from tasks.base import Task
from tasks.fit_defense import FitDefense
from tasks.noise import NoisePolicy
from tasks.plugins import plugin_name
from tasks.reference import ReferenceFrom
from tasks.service import Service, Stored, TrainedView, digests
from tasks.train_shadows import Shadow
from tasks.train_target import TrainTarget
from tasks.worker import Bench

__all__ = ["Answers"]


@dataclass(frozen=True, eq=False)
class Answers(Task):
    """The released confidences of all records of the split (the first draw of each).

    Attributes:
        source: the classifier, or the outermost output defense around it.
        noise: the noise policy of that defense.
    """

    VERSION: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 0.5

    source: TrainTarget | Shadow | FitDefense
    noise: NoisePolicy = "deterministic"

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.source.dataset

    @property
    def name(self) -> str:
        """The outermost defense, or the architecture."""
        return self.source.name

    @property
    def target(self) -> TrainTarget | Shadow:
        """The classifier at the root of the chain."""
        return self.source.target if isinstance(self.source, FitDefense) else self.source

    @property
    def stages(self) -> "tuple[Answers, ...]":
        """The answers after each output defense, innermost first; empty without any."""
        if not isinstance(self.source, FitDefense):
            return ()
        return (*self.source.answers.stages, self)

    @property
    def undefended(self) -> "Answers":
        """The answers of the classifier itself."""
        return self.source.answers.undefended if isinstance(self.source, FitDefense) else self

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """The defenses of the chain: a training defense first, then outward."""
        trained = self.target.defense
        fitted = [s.source.defense for s in self.stages if isinstance(s.source, FitDefense)]
        # One that trains and changes answers too (HAMP) is one defense, not two.
        alone = [] if trained is None or trained in fitted[:1] else [trained]
        return (*alone, *fitted)

    @property
    def references(self) -> dict[int, ReferenceFrom]:
        """Which of `defenses` were given other reference records than the target's, and which."""
        fitted = [s.source for s in self.stages if isinstance(s.source, FitDefense)]
        first = len(self.defenses) - len(fitted)
        found = {first + i: fit.reference_from for i, fit in enumerate(fitted)}
        if isinstance(self.target, TrainTarget) and self.target.defense is not None:
            found[0] = self.target.reference_from
        return {place: choice for place, choice in found.items() if choice is not None}

    @property
    def defense(self) -> str:
        """The names of `defenses`, as tables have them; "none" without any."""
        return "+".join(map(plugin_name, self.defenses)) or "none"

    def columns(self) -> dict[str, Any]:
        """The columns of a table row that say which service it is about."""
        target = self.target
        named = [(plugin_name(defense), defense) for defense in self.defenses]
        params = [{"name": name, **plugin.model_dump(mode="json")} for name, plugin in named]
        for place, choice in self.references.items():
            params[place]["reference"] = choice.columns()
        drawn = [
            stage.noise
            for stage in self.stages
            if isinstance(stage.source, FitDefense) and stage.source.defense.NOISE
        ]
        return {
            "dataset": self.dataset,
            "dataset_hash": target.split.data.content_hash,
            "seed": target.seed,
            "architecture": target.architecture.name,
            "target_params": json.dumps(recipe(target.architecture), sort_keys=True),
            "defense": self.defense,
            "defense_params": json.dumps(params, sort_keys=True),
            "noise_policy": "+".join(dict.fromkeys(drawn)) or "none",
        }

    @property
    def flags(self) -> list[str]:
        """What the defenses of the chain, and what they saw, say of every result about them."""
        found = {flag for defense in self.defenses for flag in defense.FLAGS}
        leaky = any(choice.leaky for choice in self.references.values())
        return sorted({*found, "leaky"} if leaky else found)

    def diagnosis(self, bench: Bench) -> dict[str, Any]:
        """What the defenses logged about their fits; the outermost wins.

        What a training defense says of its model (a certificate) is not true of answers that
        output defenses change, which may have seen the members.
        """
        if isinstance(self.source, TrainTarget) and self.target.defense is not None:
            return bench.open(self.source).facts("metrics")
        found: dict[str, Any] = {}
        for stage in self.stages:
            found |= bench.open(stage.source).facts("metrics")
        return found

    def run(self, bench: Bench, draft: Draft) -> None:
        """Write one confidence vector a record."""
        split = bench.split(self.target.split)
        rows = np.sort(np.concatenate([r for n, r in split.roles().items() if n != "population"]))
        x = bench.dataset(self.target.split.data).x(rows)
        draws = np.zeros(len(rows), dtype=np.int64)
        confidence = self.source.stage(bench, self.noise).compute(x, draws)
        _check(confidence, self.name)
        draft.table("answers", {"record": rows, "confidence": confidence})

    def confidence(self, bench: Bench) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows [M] in increasing order, and their released confidences [M, C]."""

        def read() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            table = bench.open(self).table("answers")
            return table["record"], table["confidence"]

        return bench.keep(("answers", self.key), read)

    def of(self, rows: NDArray[np.int64], bench: Bench) -> NDArray[np.float64]:
        """Released confidences [n, C] of dataset rows [n].

        Raises:
            ValueError: if some row has a role without answers (the population).
        """
        record, confidence = self.confidence(bench)
        position = np.searchsorted(record, rows).clip(max=len(record) - 1)
        absent = record[position] != rows
        if absent.any():
            raise ValueError(f"no answers are stored for rows {rows[absent][:3].tolist()}")
        chosen: NDArray[np.float64] = confidence[position]
        return chosen

    def service(self, bench: Bench) -> Service:
        """The deployed service; what this artifact holds is not computed again."""

        def stored() -> Stored:
            return Stored(self.confidence(bench)[1], positions(self, bench))

        def make() -> Service:
            return Service(self.source.stage(bench, self.noise), stored)

        return bench.keep(("service", self.key), make)

    def trained(self, bench: Bench) -> TrainedView:
        """The defended copy as the attack that asked for it sees it."""
        return replace(self.source.trained(bench), service=lambda: self.service(bench))


def _check(confidence: NDArray[Any], name: str) -> None:
    bad = ~np.isfinite(confidence).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"'{name}' answered row {row} with {confidence[row]}, not finite numbers")


def positions(answers: Answers, bench: Bench) -> dict[bytes, int]:
    """Where in its answers each record of a split stands, by content; one for all its services."""

    def make() -> dict[bytes, int]:
        record, _ = answers.confidence(bench)
        x = bench.dataset(answers.target.split.data).x(record)
        return {digest: i for i, digest in enumerate(digests(x))}

    return bench.keep(("positions", answers.target.split.key), make)
