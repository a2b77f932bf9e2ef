"""A small world to attack: real models fitted far too long, with everything that surrounds them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from attacks.base import Attack, Known, Planning, Records

Defend = Callable[[NDArray[Any]], NDArray[Any]]


def keep(confidence: NDArray[Any]) -> NDArray[Any]:
    return confidence


class Model:
    """A trained network; implements `Trained`."""

    def __init__(
        self, x: Any, y: Any, rows: Any, num_classes: int, seed: int, defend: Defend = keep
    ) -> None:
        torch.set_num_threads(1)
        self.rows, self.state, self.defend = rows, {}, defend
        x = x.reshape(len(x), -1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, num_classes))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        inputs, labels = torch.tensor(x[rows]), torch.tensor(y[rows])
        for _ in range(80):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimiser.step()
        self.weights = {name: p.detach().numpy() for name, p in net.named_parameters()}

    @classmethod
    def fitted(
        cls, x: Any, targets: Any, num_classes: int, seed: int, snapshots: int, epochs: int
    ) -> "list[Model]":
        """Snapshots of a network trained on classes [N] or soft labels [N, C]."""
        torch.set_num_threads(1)
        x = x.reshape(len(x), -1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, num_classes))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        inputs, labels = torch.tensor(np.array(x)), torch.tensor(np.array(targets))
        labels = labels.float() if labels.ndim == 2 else labels
        found = []
        ends = {-(-epochs * i // snapshots) for i in range(1, snapshots + 1)}
        for epoch in range(epochs):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimiser.step()
            if epoch + 1 in ends:
                model = cls.__new__(cls)
                model.state, model.defend, model.rows = {}, keep, np.empty(0, dtype=np.int64)
                model.weights = {n: p.detach().numpy().copy() for n, p in net.named_parameters()}
                found.append(model)
        return found

    def answer(self, x: Any) -> NDArray[Any]:
        # In float64, so that an answer does not depend on its place in the batch.
        w = {name: p.astype(np.float64) for name, p in self.weights.items()}
        hidden = np.maximum(x.reshape(len(x), -1) @ w["0.weight"].T + w["0.bias"], 0)
        logits = hidden @ w["2.weight"].T + w["2.bias"]
        return self.defend(softmax(logits, axis=1))


class Service:
    """Answers, counts, and tells labels only where only labels are allowed; a `Classifier`."""

    def __init__(self, answer: Callable[[Any], Any], access: str) -> None:
        self.answer, self.access, self.num_queries = answer, access, 0

    def timed(self, x: Any) -> tuple[NDArray[Any], float]:
        """An answer, and a made-up time that tells nothing."""
        return self(x), 1e-3

    def __call__(self, x: Any) -> NDArray[Any]:
        self.num_queries += len(x)
        released = self.answer(x)
        released = released.argmax(axis=1) if self.access == "label" else released
        released.flags.writeable = False  # answers may be shared, so nobody writes into them
        return released


class ShadowModels:
    """Models trained on halves of all members and non-members; implements `Shadows`.

    With own defenses, of the OUT models of a record every second one had it as reference.
    """

    def __init__(self, world: Any, num_shadows: int, defend: Defend, *, defended: bool) -> None:
        pool = np.sort(np.concatenate(list(world.parts.values())))
        self.num_shadows = num_shadows
        self.models: list[Model] = []
        self._place = {record.tobytes(): i for i, record in enumerate(world.x[pool])}
        # The last column is for records outside the pool.
        self._role = np.zeros((num_shadows, len(pool) + 1), dtype=np.int8)
        rng = np.random.default_rng([world.seed, 7])
        first_is_reference = rng.random(len(pool)) < 0.5
        for pair in range(num_shadows // 2):
            half = rng.permutation(len(pool))[: len(pool) // 2]
            in_first = np.isin(np.arange(len(pool)), half)
            for k, is_in in ((2 * pair, in_first), (2 * pair + 1, ~in_first)):
                self._role[k, :-1] = is_in
                if defended:
                    is_reference = ~is_in & (first_is_reference ^ (pair % 2 == 1))
                    self._role[k, :-1][is_reference] = -1
                chosen = defend if defended else keep
                self.models.append(world.model(pool[is_in], 100 + k, chosen))

    def __call__(self, x: Any) -> NDArray[Any]:
        answers = np.stack([model.answer(x) for model in self.models])
        answers.flags.writeable = False
        return answers

    def role(self, x: Any) -> NDArray[np.int8]:
        return self._role[:, [self._place.get(record.tobytes(), -1) for record in x]]


TOLD = {"BB-score", "BB-label", "BB-adaptive", "BB-defense-white"}


@dataclass(frozen=True, eq=False)
class Knowledge:
    threat_model: str
    told: tuple[Known, Known]
    others: Records
    kind: str
    query: Service
    num_classes: int
    trained: tuple[Model, ...]
    rows: NDArray[np.int64]
    x_of: Callable[[Any], tuple[Any, Any]]
    device: str = "cpu"
    asked_shadows: ShadowModels | None = None

    @property
    def fit(self) -> Known:
        return self._told(0)

    @property
    def cal(self) -> Known:
        return self._told(1)

    def _told(self, part: int) -> Known:
        if self.threat_model not in TOLD:
            raise PermissionError(f"{self.threat_model} is told nobody's membership")
        return self.told[part]

    @property
    def population(self) -> Records:
        if self.threat_model == "BB-blind":
            raise PermissionError("a blind attacker has no records of its own")
        return self.others

    def train(
        self, x: Any, targets: Any, *, seed: int, snapshots: int = 1, **recipe: Any
    ) -> tuple[Model, ...]:
        epochs = recipe.get("epochs", 80)
        return tuple(Model.fitted(x, targets, self.num_classes, seed, snapshots, epochs))

    @property
    def shadows(self) -> ShadowModels:
        if self.asked_shadows is None:
            raise PermissionError("this attack's trainings() asked for no shadow models")
        return self.asked_shadows


@dataclass(frozen=True, eq=False)
class World:
    """Records, a target trained on some of them, and who knows what.

    `independent`: the target never saw a member, so there is nothing to find out. `image`: the
    shape [channels, height, width] records are given, with as many features in [0, 1]. `binary`:
    features are bits.
    """

    num_classes: int = 8
    per_side: int = 600
    num_features: int = 40
    independent: bool = False
    seed: int = 0
    image: tuple[int, ...] | None = None
    binary: bool = False
    cache: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = 3 * self.per_side
        centre = rng.normal(size=(self.num_classes, self.num_features)) * 0.3
        y = rng.integers(self.num_classes, size=n)
        x = (centre[y] + rng.normal(size=(n, self.num_features))).astype(np.float32)
        if self.binary:
            x = (x > 0).astype(np.float32)
        if self.image:
            x = (1 / (1 + np.exp(-x))).astype(np.float32)
        x = x.reshape(n, *(self.image or (self.num_features,)))
        shuffled = rng.permutation(n).reshape(3, self.per_side)
        members, nonmembers, others = shuffled
        fit, cal = int(0.4 * self.per_side), int(0.1 * self.per_side)
        parts = {
            name: rng.permutation(np.concatenate([members[a:b], nonmembers[a:b]]))
            for name, a, b in (
                ("fit", 0, fit),
                ("cal", fit, fit + cal),
                ("eval", fit + cal, self.per_side),
            )
        }
        known_rows = rng.permutation(np.concatenate([parts["fit"], parts["cal"]]))
        for array in (x, y, known_rows, *parts.values()):
            array.flags.writeable = False
        for name, value in (
            ("x", x),
            ("y", y),
            ("is_member", np.isin(np.arange(n), members)),
            ("parts", parts),
            ("known_rows", known_rows),
            ("trained_on", others if self.independent else members),
            # Where nothing trained on them: a third group nobody is judged by.
            ("population_rows", others[:0] if self.independent else others),
        ):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # names set above; the type checker need not know them

    def model(self, rows: Any, seed: int, defend: Defend = keep) -> Model:
        key = (np.sort(rows).tobytes(), seed, defend)
        if key not in self.cache:
            self.cache[key] = Model(self.x, self.y, rows, self.num_classes, seed, defend)
        return self.cache[key]

    def shadows(
        self, num_shadows: int, defend: Defend = keep, *, defended: bool = False
    ) -> ShadowModels:
        key = ("shadows", num_shadows, defend, defended)
        if key not in self.cache:
            self.cache[key] = ShadowModels(self, num_shadows, defend, defended=defended)
        return self.cache[key]

    def outline(self, *, adaptive: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            known_rows=self.known_rows,
            population_rows=np.sort(self.population_rows),
            num_members=self.per_side,
            labels=self.y,
            num_classes=self.num_classes,
            adaptive=adaptive,
            training=lambda **asked: asked,
            shadows=lambda num_shadows, *, defended=False: tuple(
                {"shadow": i, "num_shadows": num_shadows, "defended": defended}
                for i in range(num_shadows)
            ),
        )

    def known(self, part: str) -> Known:
        rows = self.parts[part]
        return Known(self.x[rows], self.y[rows], self.is_member[rows])

    def x_of(self, rows: Any) -> tuple[Any, Any]:
        held = np.concatenate([self.known_rows, self.population_rows])
        if not np.isin(rows, held).all():
            raise PermissionError("rows the attacker does not hold")
        return self.x[rows], self.y[rows]

    def service(self, access: str = "score", defend: Defend = keep) -> Service:
        return Service(self.model(self.trained_on, 1, defend).answer, access)

    def knowledge(
        self, attack: Attack, seed: int, defend: Defend = keep, *, adaptive: bool = False
    ) -> Knowledge:
        asked: tuple[Any, ...] = ()
        if isinstance(attack, Planning):
            asked = attack.trainings(self.outline(adaptive=adaptive), seed=seed)
        shadows = [a for a in asked if "shadow" in a]
        trained = [
            self.model(a["rows"], a["seed"], defend if a.get("defended") else keep)
            for a in asked
            if "shadow" not in a
        ]
        shadow_models = None
        if shadows:
            defended = shadows[0]["defended"]
            shadow_models = self.shadows(len(shadows), defend, defended=defended)
        fit = self.known("fit")
        rows = np.concatenate([self.parts["fit"][~fit.is_member], self.population_rows])
        rows = np.random.default_rng(self.seed).permutation(rows)
        return Knowledge(
            threat_model=attack.THREAT_MODEL,
            told=(fit, self.known("cal")),
            others=Records(self.x[rows], self.y[rows]),
            kind="image" if self.image else "binary" if self.binary else "continuous",
            query=self.service(attack.ACCESS, defend),
            num_classes=self.num_classes,
            trained=tuple(trained),
            rows=self.known_rows,
            x_of=self.x_of,
            asked_shadows=shadow_models,
        )

    def run(
        self, attack: Attack, seed: int = 0, defend: Defend = keep, **options: Any
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores of the evaluation records, and which of them are members."""
        rows = self.parts["eval"]
        known = self.knowledge(attack, seed, defend, **options)
        query = self.service(attack.ACCESS, defend)
        return attack.score(query, known, self.x[rows], self.y[rows], seed=seed), self.is_member[
            rows
        ]


@pytest.fixture(scope="session")
def world() -> World:
    """Overfitted: members are answered much more surely than others."""
    return World()


@pytest.fixture(scope="session")
def small_world() -> World:
    """For what does not depend on how much there is to find."""
    return World(per_side=120)


@pytest.fixture(scope="session")
def independent_world() -> World:
    """Nothing to find: the target was trained on neither side."""
    return World(independent=True)


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture(scope="session")
def accuracy() -> Callable[[Any, Any], float]:
    """Balanced accuracy of a decision."""
    return lambda called, member: 0.5 * (called[member].mean() + (~called[~member]).mean())


@pytest.fixture(scope="session")
def onehot() -> Defend:
    """The defense that releases the label only, as a one-hot row."""

    def defend(confidence: NDArray[Any]) -> NDArray[Any]:
        return np.eye(confidence.shape[1])[confidence.argmax(axis=1)]

    return defend
