"""What is true of Shokri's attack."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from attacks.base import Records
from attacks.gap import Gap
from attacks.metric import Metric
from attacks.ml_leaks import MlLeaks
from attacks.shokri import Shokri

CPU = Shokri.PRESETS["cpu"]
NUM_CLASSES, NUM_HELD, NUM_JUDGED = 4, 400, 1200
SHIFT = np.array([2.0, -2.0, 2.0, -2.0])


class Toy:
    """Records numbered by x; members of even classes are answered surer, of odd less sure.

    Those below `NUM_HELD` are held, the next half as many are the population. The pool are held
    records and, with `wide`, the population.
    """

    num_classes, device = NUM_CLASSES, "cpu"

    def __init__(self, *, seed: int = 0, num_shadows: int = 8, wide: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.num = NUM_HELD + NUM_HELD // 2 + NUM_JUDGED
        self.x = np.arange(self.num, dtype=np.float32)[:, None]
        self.y = rng.integers(NUM_CLASSES, size=self.num)
        pool = NUM_HELD + NUM_HELD // 2 * wide
        self.role = np.zeros((num_shadows, self.num), dtype=np.int8)
        roles = np.array([1, 0] * (num_shadows // 2), dtype=np.int8)[:, None]
        self.role[:, :pool] = rng.permuted(np.tile(roles, pool), axis=0)
        self.noise = rng.normal(size=(num_shadows + 1, self.num, NUM_CLASSES))
        self.is_member = rng.random(self.num) < 0.5
        self.rows = np.arange(NUM_HELD)
        self.asked: list[Any] = []

    def answers(self, k: int, is_in: Any) -> Any:
        logits = self.noise[k].copy()
        logits[np.arange(self.num), self.y] += 2 + SHIFT[self.y] * is_in
        return softmax(logits, axis=1)

    def x_of(self, rows: Any) -> Any:
        return self.x[rows], self.y[rows]

    @property
    def population(self) -> Records:
        rows = slice(NUM_HELD, NUM_HELD + NUM_HELD // 2)
        return Records(self.x[rows], self.y[rows])

    @property
    def shadows(self) -> Any:
        toy = self

        class Shadows:
            num_shadows = len(toy.role)

            def __call__(self, x: Any) -> Any:
                rows = x[:, 0].astype(int)
                toy.asked.append(rows)
                return np.stack(
                    [toy.answers(k, role == 1)[rows] for k, role in enumerate(toy.role)]
                )

            def role(self, x: Any) -> Any:
                return toy.role[:, x[:, 0].astype(int)]

        return Shadows()

    def judged(self, attack: Shokri, *, seed: int = 0) -> tuple[Any, Any, Any]:
        """Scores, classes and membership of the judged records."""
        rows = np.arange(self.num - NUM_JUDGED, self.num)
        answers = self.answers(len(self.role), self.is_member)
        service: Any = lambda x: answers[x[:, 0].astype(int)]  # noqa: E731
        known: Any = self
        scores = attack.score(service, known, self.x[rows], self.y[rows], seed=seed)
        return scores, self.y[rows], self.is_member[rows]


FAST = Shokri(num_shadows=8, num_steps=300, learning_rate=0.005)


def test_a_pattern_that_depends_on_the_class_is_found() -> None:
    """No single threshold on the confidence tells these members apart."""
    toy = Toy()
    scores, y, is_member = toy.judged(FAST)
    answers = toy.answers(8, toy.is_member)[-NUM_JUDGED:]
    confidence = answers[np.arange(NUM_JUDGED), y]
    assert abs(roc_auc_score(is_member, confidence) - 0.5) < 0.07
    assert roc_auc_score(is_member, scores) > 0.85
    for label in range(NUM_CLASSES):
        mine = y == label
        assert roc_auc_score(is_member[mine], scores[mine]) > 0.8
    # Sharing one net the classes are told apart by what is answered, hence less well.
    shared, *_ = toy.judged(FAST.model_copy(update={"min_records": 1000}))
    assert roc_auc_score(is_member, shared) < roc_auc_score(is_member, scores) - 0.02


def test_the_roles_of_the_pool_are_learned_and_no_membership_in_the_target() -> None:
    toy = Toy()
    scores, _, is_member = toy.judged(FAST)
    # Other members of the target among the held records: nothing changes.
    toy.is_member[: toy.num - NUM_JUDGED] ^= True
    np.testing.assert_array_equal(toy.judged(FAST)[0], scores)
    # The shadow models say the opposite of what the target does: it is believed.
    told, true = 1 - toy.role[:, :NUM_HELD], toy.role[:, :NUM_HELD].copy()
    shadows = toy.shadows

    class Lying:
        num_shadows = 8

        def __call__(self, x: Any) -> Any:
            toy.role[:, :NUM_HELD] = true
            return shadows(x)

        def role(self, x: Any) -> Any:
            return told[:, x[:, 0].astype(int) % NUM_HELD] * (x[:, 0] < NUM_HELD)

    lied = SimpleNamespace(
        shadows=Lying(),
        rows=toy.rows,
        x_of=toy.x_of,
        population=toy.population,
        num_classes=NUM_CLASSES,
        device="cpu",
    )
    rows = np.arange(toy.num - NUM_JUDGED, toy.num)
    answers = toy.answers(8, toy.is_member)
    opposite = FAST.score(
        lambda x: answers[x[:, 0].astype(int)],  # type: ignore[arg-type]
        lied,
        toy.x[rows],
        toy.y[rows],
        seed=0,
    )
    assert roc_auc_score(is_member, opposite) < 0.2


def test_shuffled_roles_teach_nothing() -> None:
    toy = Toy()
    rng = np.random.default_rng(9)
    shadows = toy.shadows
    told = toy.role.copy()
    told[:, :NUM_HELD] = rng.permuted(told[:, :NUM_HELD], axis=0)

    class Shuffled:
        num_shadows = 8
        role = staticmethod(lambda x: told[:, x[:, 0].astype(int)])

        def __call__(self, x: Any) -> Any:
            return shadows(x)

    known = SimpleNamespace(
        shadows=Shuffled(),
        rows=toy.rows,
        x_of=toy.x_of,
        population=toy.population,
        num_classes=NUM_CLASSES,
        device="cpu",
    )
    rows = np.arange(toy.num - NUM_JUDGED, toy.num)
    answers = toy.answers(8, toy.is_member)
    scores = FAST.score(
        lambda x: answers[x[:, 0].astype(int)],  # type: ignore[arg-type]
        known,
        toy.x[rows],
        toy.y[rows],
        seed=0,
    )
    # A chance pattern may be learned of each of four classes, hence more than chance's 0.067.
    assert abs(roc_auc_score(toy.is_member[rows], scores) - 0.5) < 0.15


def test_only_held_records_of_the_pool_are_learned_from() -> None:
    """Those outside are OUT of all models: what they look like would tell."""
    for wide in (False, True):
        toy = Toy(wide=wide)
        toy.judged(FAST)
        pool = NUM_HELD + NUM_HELD // 2 * wide
        np.testing.assert_array_equal(np.concatenate(toy.asked), np.arange(pool))


def test_records_above_the_limit_are_drawn_by_the_seed() -> None:
    toy = Toy()
    attack = FAST.model_copy(update={"num_records": 60, "num_steps": 1})
    for seed in (0, 1, 0):
        toy.judged(attack, seed=seed)
    first, second, again = (set(rows) for rows in toy.asked)
    assert first == again != second
    assert len(first) == len(second) == 60


def test_reference_records_of_defended_shadows_count_for_nothing() -> None:
    toys = [Toy(), Toy()]
    for toy in toys:
        rng = np.random.default_rng(3)
        out = toy.role[:, :NUM_HELD] == 0
        toy.role[:, :NUM_HELD][out & (rng.random(out.shape) < 0.5)] = -1
    # Exchanged between classes: neither mean nor deviation of all answers changes.
    planted = np.where((toys[1].role == -1)[..., None], np.roll(toys[1].noise[:-1], 1, 2), 0)
    original = toys[1].answers

    def answers(k: int, is_in: Any) -> Any:
        honest = original(k, is_in)
        if k == len(toys[1].role):
            return honest
        return np.where(planted[k].any(axis=1)[:, None], np.roll(honest, 1, axis=1), honest)

    toys[1].answers = answers  # type: ignore[method-assign]
    first, second = (toy.judged(FAST)[0] for toy in toys)
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def test_finds_more_than_a_net_for_all_classes_of_one_shadow(world: Any) -> None:
    scores, is_member = world.run(Shokri(**CPU))
    auc = roc_auc_score(is_member, scores)
    for other in (Gap(), MlLeaks(), Metric(statistic="loss", per_class=False)):
        assert auc > roc_auc_score(is_member, world.run(other)[0]) + 0.02


def test_defended_shadows_learn_what_a_defense_answers(world: Any) -> None:
    """Reversed confidences mislead who learned from clean answers."""

    def reverse(confidence: Any) -> Any:
        flipped = np.max(confidence, axis=1, keepdims=True) - confidence
        return flipped / flipped.sum(axis=1, keepdims=True)

    clean, own = (
        roc_auc_score(*reversed(world.run(Shokri(**CPU), defend=reverse, adaptive=adaptive)))
        for adaptive in (False, True)
    )
    assert own > 0.75
    assert own > clean + 0.05


def test_asks_about_the_judged_records_only_and_once(world: Any) -> None:
    attack, service = Shokri(num_shadows=4, num_steps=20), world.service()
    known, rows = world.knowledge(attack, 0), world.parts["eval"][:17]
    attack.score(service, known, world.x[rows], world.y[rows], seed=0)
    assert service.num_queries == 17
    assert known.query.num_queries == 0


def test_equal_answers_of_a_class_have_equal_scores(world: Any, onehot: Any) -> None:
    scores, _ = world.run(Shokri(num_shadows=4, num_steps=50), defend=onehot)
    rows = world.parts["eval"]
    label = world.service()(world.x[rows]).argmax(axis=1)
    pairs = np.unique(np.column_stack([label, world.y[rows]]), axis=0)
    assert len(np.unique(scores)) <= len(pairs)


def test_classes_without_own_records_are_judged(make_world: Any) -> None:
    few = make_world(num_classes=100, per_side=60)
    scores, _ = few.run(Shokri(num_shadows=4, num_steps=20))
    assert np.isfinite(scores).all()


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = Shokri(num_shadows=6).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 6
        assert {a["defended"] for a in asked} == {adaptive}


def test_presets() -> None:
    sizes = {name: Shokri(**fields) for name, fields in Shokri.PRESETS.items()}
    assert {n: a.num_shadows for n, a in sizes.items()} == {"paper": 20, "sound": 20, "cpu": 16}
    assert {a.hidden for a in sizes.values()} == {64}
    assert {a.min_records for a in sizes.values()} == {50}


def test_what_cannot_be_learned_is_refused() -> None:
    toy = Toy()
    toy.role[:] = 0
    with pytest.raises(ValueError, match="none of the 600 records the attacker holds trained any"):
        toy.judged(FAST)
    with pytest.raises(FloatingPointError, match="learning_rate 1e\\+30"):
        Toy().judged(FAST.model_copy(update={"learning_rate": 1e30, "steps_between": 300}))


@pytest.mark.parametrize(
    "fields", [{"num_shadows": 3}, {"batch_size": 5}, {"num_steps": 0}, {"min_records": 0}]
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Shokri(**fields)
