"""A deployed classifier with its defenses, as it answers and as it is asked."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from defenses.base import OutputDefense
from storage.datasets import Kind, canonical_bytes
from tasks import training
from tasks.noise import KeyedNoise, NoisePolicy, noise_keys

__all__ = ["Defended", "Model", "Query", "Service", "TrainedView", "digests"]


class Stage(Protocol):
    """One step from inputs to answers; `fresh` if asking again may give another answer."""

    @property
    def fresh(self) -> bool: ...

    def compute(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]: ...

    def afresh(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]: ...


def digests(x: NDArray[Any]) -> list[bytes]:
    """128 bits that stand for each record's exact float32 content."""
    flat = np.ascontiguousarray(x, dtype=np.float32).reshape(len(x), int(np.prod(x.shape[1:])))
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in flat]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained classifier."""

    fresh: ClassVar[bool] = False

    module: nn.Module
    device: str

    def compute(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Confidences float64 [N, C]; nothing is random."""
        return training.softmax64(training.logits(self.module, x, self.device))

    afresh = compute


@dataclass(frozen=True, eq=False)
class Custom:
    """A classifier whose training defense says how it is asked (model stacking, for one)."""

    fresh: ClassVar[bool] = False

    confidences: Callable[[NDArray[Any]], NDArray[np.float64]]

    def compute(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Confidences float64 [N, C]."""
        return self.confidences(x)

    afresh = compute


@dataclass(frozen=True, eq=False)
class Defended:
    """An output defense around another service."""

    previous: "Service"
    defense: OutputDefense
    state: Mapping[str, NDArray[Any]]
    policy: NoisePolicy
    secret: bytes
    input_kind: Kind

    @property
    def fresh(self) -> bool:
        """Whether this stage or one before it draws again for each query."""
        return self.policy == "fresh" or self.previous.stage.fresh

    def compute(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Released confidences [N, C]; what the previous stage has stored is not asked again."""
        return self.apply(self.previous.answer(x, draws), x, draws)

    def afresh(self, x: NDArray[Any], draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same with every stage computed, as a deployed service would."""
        return self.apply(self.previous.afresh(x, draws), x, draws)

    def apply(
        self, confidence: NDArray[np.float64], x: NDArray[Any], draws: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Released confidences for the previous stage's answers about x."""
        if self.policy == "deterministic":
            keys = np.zeros((len(x), 2), dtype=np.uint64)
        else:
            content = canonical_bytes(x, self.input_kind)
            keys = noise_keys(self.secret, content, draws if self.policy == "fresh" else None)
        return self.defense.apply(confidence, self.state, KeyedNoise(keys, self.policy))


@dataclass(frozen=True, eq=False)
class Stored:
    """Answers computed once: confidence [M, C] of dataset rows, found by record content."""

    confidence: NDArray[np.float64]
    position: Mapping[bytes, int]


class Service:
    """What is deployed: answers from the store where there is one, else computed."""

    def __init__(self, stage: Stage, stored: Callable[[], Stored] | None = None) -> None:
        self.stage = stage
        self._load = stored

    @cached_property
    def stored(self) -> Stored | None:
        """The answers that were computed once, or None."""
        return self._load() if self._load is not None else None

    def answer(
        self,
        x: NDArray[Any],
        draws: NDArray[np.int64] | None = None,
        known: list[bytes] | None = None,
    ) -> NDArray[np.float64]:
        """Confidences [N, C] for any inputs.

        Args:
            x: [N, ...] float32.
            draws: [N] how often each input was asked before; None for never. Under noise policy
                `fresh` another number is another answer.
            known: the digests of x where the caller has them.
        """
        draws = np.zeros(len(x), dtype=np.int64) if draws is None else draws
        if self.stored is None:
            return self.stage.compute(x, draws)
        found = self.stored.position
        content = digests(x) if known is None else known
        position = np.array([found.get(digest, -1) for digest in content], dtype=np.int64)
        # Else the stored answer stands: computed in another batch, its last bits might differ.
        if self.stage.fresh:
            position[draws > 0] = -1
        hit = position >= 0
        if hit.all():
            return self.stored.confidence[position]
        answers = np.empty((len(x), self.stored.confidence.shape[1]))
        answers[hit] = self.stored.confidence[position[hit]]
        answers[~hit] = self.stage.compute(x[~hit], draws[~hit])
        return answers

    def afresh(
        self, x: NDArray[Any], draws: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Confidences [N, C] with nothing taken from the store."""
        return self.stage.afresh(x, np.zeros(len(x), dtype=np.int64) if draws is None else draws)


class Query:
    """`attacks.base.Classifier`: a service that counts what it is asked.

    Args:
        service: what answers.
        access: "label" lets only int64 labels out.
        budget: how many rows may be asked in total, or None.
    """

    def __init__(
        self,
        service: Service,
        access: Literal["score", "label"] = "score",
        budget: int | None = None,
    ) -> None:
        self._service = service
        self._access = access
        self._budget = budget
        self._asked: Counter[bytes] = Counter()
        self.num_queries = 0

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Confidences float64 [N, C], or labels int64 [N].

        Raises:
            RuntimeError: if the query budget is used up.
        """
        content, draws = self._count(x)
        return self._let_out(self._service.answer(x, draws, content))

    def timed(self, x: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """An answer computed afresh, and the seconds it took; counts and raises like a call."""
        _, draws = self._count(x)
        started = time.perf_counter()
        confidence = self._service.afresh(x, draws)
        seconds = time.perf_counter() - started
        return self._let_out(confidence), seconds

    def _count(self, x: NDArray[Any]) -> tuple[list[bytes], NDArray[np.int64]]:
        """The digests of x, and how often each row was asked before."""
        if self._budget is not None and self.num_queries + len(x) > self._budget:
            raise RuntimeError(
                f"the query budget of {self._budget} is used up: {self.num_queries} asked, "
                f"{len(x)} more wanted"
            )
        self.num_queries += len(x)
        content = digests(x)
        draws = np.zeros(len(x), dtype=np.int64)
        if not self._service.stage.fresh:
            # Asked again it answers the same, so nothing is kept of millions of queries.
            return content, draws
        for i, digest in enumerate(content):
            draws[i] = self._asked[digest]
            self._asked[digest] += 1
        return content, draws

    def _let_out(self, confidence: NDArray[np.float64]) -> NDArray[Any]:
        # A copy, as what is stored must not change under an attack's hands.
        if self._access == "label":
            labels: NDArray[np.int64] = confidence.argmax(axis=1)
            return labels
        return np.array(confidence)


@dataclass(frozen=True, eq=False)
class TrainedView:
    """What a plugin gets back for a training it asked for (`Trained` of both seams)."""

    rows: NDArray[np.int64]
    load_weights: Callable[[], Mapping[str, NDArray[Any]]]
    load_state: Callable[[], Mapping[str, NDArray[Any]]]
    service: Callable[[], Service]

    @property
    def weights(self) -> Mapping[str, NDArray[Any]]:
        """The model's weights."""
        return self.load_weights()

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The fitted defense's arrays; empty if there is none."""
        return self.load_state()

    def answer(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Confidences [N, C] for any x [N, ...]."""
        return self.service().answer(x)
