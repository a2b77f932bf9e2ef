"""What is true of the averaging attack."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import ndtri
from sklearn.metrics import roc_auc_score

from attacks._near_copies import answers_about
from attacks.averaging import Averaging, summary
from attacks.gap import Gap
from attacks.metric import Metric, best_threshold

SMALL: dict[str, Any] = {"width": 0.1, "epochs": 40}


class Noisy:
    """A service that adds Gaussian noise to `base(x)`: anew (fresh) or keyed by the input."""

    def __init__(
        self, base: Callable[[Any], Any], sigma: float, policy: str, *, num_features: int = 40
    ) -> None:
        self.base, self.sigma, self.policy = base, sigma, policy
        self.num_queries = 0
        self._rng = np.random.default_rng(1)
        self._direction = np.random.default_rng(2).normal(size=(num_features, 64))

    def __call__(self, x: Any) -> Any:
        self.num_queries += len(x)
        released = self.base(x)
        shape = released.shape
        if self.policy == "fresh":
            return released + self.sigma * self._rng.normal(size=shape)
        # The sixth and later decimals of a projection are as good as random, and the input's own.
        projection = x.reshape(len(x), -1).astype(np.float64) @ self._direction[:, : shape[1]]
        unit = np.mod(projection * 1e5, 1).clip(1e-9, 1 - 1e-9)
        return released + self.sigma * ndtri(unit)

    def timed(self, x: Any) -> Any:
        raise AssertionError("this attack measures no time")


@pytest.mark.parametrize(
    ("policy", "over", "falls"),
    [
        ("fresh", "repeats", True),
        ("fresh", "neighbours", True),
        ("per_input", "repeats", False),
        ("per_input", "neighbours", True),
    ],
)
def test_the_mean_loses_noise_as_the_square_root_of_queries_unless_it_is_keyed(
    policy: str, over: Any, falls: bool
) -> None:
    """Every record has the same true answer, so what varies over records is the noise."""
    x = np.random.default_rng(0).normal(size=(2000, 40)).astype(np.float32)
    y = np.zeros(len(x), dtype=np.int64)
    deviation = {}
    for num in (1, 4, 16, 64):
        query = Noisy(lambda x: np.full((len(x), 4), 0.25), 0.05, policy)
        pieces = answers_about(query, x, num, over, kind="continuous", num_classes=4, seed=0)
        found = np.concatenate([summary(answers, y[rows]) for rows, answers in pieces])
        deviation[num] = found[:, :4].std(axis=0)
        # 2,000 normal numbers: the deviation is good to 1/sqrt(4000), four times which is 6.4 %.
        expected = 0.05 / np.sqrt(num if falls else 1)
        np.testing.assert_allclose(deviation[num], expected, rtol=0.064)
    if not falls:
        # Summing 64 equal numbers rounds a little.
        np.testing.assert_allclose(deviation[64], deviation[1], rtol=1e-9)


@pytest.fixture(scope="module")
def tagged(make_world: Any) -> Any:
    """A world whose records carry their row number in the first feature, near copies too."""
    world = make_world()
    x = world.x.copy()
    x[:, 0] = 0.02 * np.arange(len(x))
    x.flags.writeable = False
    object.__setattr__(world, "x", x)
    return world


def planted(world: Any) -> Callable[[Any], Any]:
    """Answers in which members get 0.1 more on their true class than others."""
    onehot = np.eye(world.num_classes)[world.y]
    confidence = np.where(onehot, 0.4, 0.6 / 7)
    confidence += 0.1 * world.is_member[:, None] * (onehot - (1 - onehot) / 7)
    return lambda x: confidence[np.rint(x[:, 0] / 0.02).astype(int)]


def scored(world: Any, attack: Averaging, make: Callable[[], Any]) -> tuple[Any, Any]:
    """Scores of the evaluation records against services that `make` makes, and membership."""
    known = world.knowledge(attack, 0)
    object.__setattr__(known, "query", make())
    rows = world.parts["eval"]
    scores = attack.score(make(), known, world.x[rows], world.y[rows], seed=0)
    return scores, world.is_member[rows]


@pytest.mark.parametrize("head", ["net", "metric"])
@pytest.mark.parametrize(
    ("policy", "over", "repeats", "found"),
    [
        ("fresh", "repeats", 1, False),
        ("fresh", "repeats", 64, True),
        ("per_input", "repeats", 64, False),
        ("per_input", "neighbours", 64, True),
    ],
)
def test_a_signal_buried_in_noise_is_recovered_by_asking_often_enough(
    tagged: Any, head: Any, policy: str, over: Any, repeats: int, found: bool
) -> None:
    """Noise of three times the signal: the best AUC is 0.60 with one answer, 0.97 with 64."""
    attack = Averaging(repeats=repeats, over=over, head=head, statistic="confidence", **SMALL)
    scores, is_member = scored(tagged, attack, lambda: Noisy(planted(tagged), 0.3, policy))
    auc = roc_auc_score(is_member, scores)
    # Four standard deviations of an AUC near chance, 300 records a side, are 0.094. The net has
    # 480 records to learn from, and gets about 0.9 of what there is to find.
    assert auc > 0.8 if found else auc < 0.60 + 0.094


def test_the_deviation_tells_what_the_mean_does_not(world: Any) -> None:
    """Members' answers are less noisy, with the same mean."""
    rng = np.random.default_rng(3)
    members = {record.tobytes() for record in world.x[world.is_member]}

    def answer(x: Any) -> Any:
        quiet = np.array([record.tobytes() in members for record in x])
        sigma = np.where(quiet, 0.02, 0.04)[:, None]
        return 0.125 + sigma * rng.normal(size=(len(x), world.num_classes))

    attack = Averaging(repeats=16, **SMALL)
    known, query = world.knowledge(attack, 0), world.service()
    known.query.answer = query.answer = answer
    rows = world.parts["eval"]
    scores = attack.score(query, known, world.x[rows], world.y[rows], seed=0)
    assert roc_auc_score(world.is_member[rows], scores) > 0.95


def test_summary_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    answers = rng.integers(4, size=(5, 30, 3)) / 4
    y = rng.integers(3, size=30)
    found = summary(answers, y)
    assert found.shape == (30, 2 * 3 + 3)
    for n in range(30):
        of_n = [list(answers[r, n]) for r in range(5)]
        labels = [row.index(max(row)) for row in of_n]
        expected = [
            *np.mean(of_n, axis=0),
            *np.std(of_n, axis=0),
            max(labels.count(c) for c in range(3)) / 5,
            labels.count(int(y[n])) / 5,
            float(labels[0] == y[n]),
        ]
        np.testing.assert_allclose(found[n], expected, atol=1e-12)


@pytest.mark.parametrize("head", ["net", "metric"])
@pytest.mark.parametrize(("over", "repeats"), [("repeats", 1), ("repeats", 5), ("neighbours", 5)])
def test_asks_as_often_as_it_says(small_world: Any, head: Any, over: Any, repeats: int) -> None:
    attack = Averaging(repeats=repeats, over=over, head=head, width=0.05, epochs=2)
    known, service = small_world.knowledge(attack, 0), small_world.service()
    rows = small_world.parts["eval"][:13]
    attack.score(service, known, small_world.x[rows], small_world.y[rows], seed=0)
    assert service.num_queries == repeats * 13
    assert known.query.num_queries == repeats * (len(known.fit) + len(known.cal))


@pytest.mark.parametrize("statistic", ["modified_entropy", "confidence", "loss"])
@pytest.mark.parametrize("min_records", [10, 100])
def test_one_query_and_a_threshold_are_the_metric_attack(
    world: Any, statistic: Any, min_records: int
) -> None:
    fields: dict[str, Any] = {"statistic": statistic, "min_records": min_records}
    mine, _ = world.run(Averaging(repeats=1, head="metric", **fields))
    theirs, _ = world.run(Metric(**fields))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("over", ["repeats", "neighbours"])
def test_at_least_the_gap_attack_on_label_only_answers(
    make_world: Any, onehot: Any, accuracy: Any, over: Any
) -> None:
    world = make_world(num_classes=4, per_side=1200)
    gap, is_member = world.run(Gap())
    floor = accuracy(gap > 0.5, is_member)
    assert floor > 0.6
    attack = Averaging(repeats=4, over=over, width=0.25)
    known, rows = world.knowledge(attack, 0, onehot), world.parts["eval"]
    both = np.concatenate([world.parts["cal"], rows])
    query = world.service("score", onehot)
    scores = attack.score(query, known, world.x[both], world.y[both], seed=0)
    threshold = best_threshold(scores[: -len(rows)], known.cal.is_member)
    assert accuracy(scores[-len(rows) :] > threshold, is_member) >= floor - 0.015


@pytest.mark.parametrize("head", ["net", "metric"])
def test_overfitting_is_found_without_any_noise(world: Any, head: Any) -> None:
    attack = Averaging(repeats=4, over="neighbours", head=head, **SMALL)
    scores, is_member = world.run(attack)
    assert roc_auc_score(is_member, scores) > 0.75


def test_equal_answers_score_the_same(world: Any) -> None:
    attack = Averaging(repeats=3, **SMALL)
    scores, _ = world.run(attack, defend=lambda c: np.full_like(c, 1 / 7))
    y = world.y[world.parts["eval"]]
    assert all(len(np.unique(scores[y == label])) == 1 for label in range(world.num_classes))


def test_only_nets_can_be_trained_harder() -> None:
    assert Averaging(head="metric").harder() == ()
    assert {type(attack) for attack in Averaging().harder()} == {Averaging}


def test_one_sided_knowledge_divergence_and_fields_out_of_range_are_refused(world: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"averaging's training .* learning_rate 1e\+18"):
        world.run(Averaging(repeats=2, width=0.05, epochs=30, learning_rate=1e18))
    known = world.knowledge(Averaging(), 0)
    known.cal.is_member[:] = False
    with pytest.raises(ValueError, match=r"known\.cal holds 0 members among 120 .* averaging"):
        Averaging().score(world.service(), known, world.x[:3], world.y[:3], seed=0)
    for fields in ({"repeats": 0}, {"over": "both"}, {"head": "tree"}, {"clip": 0.5}):
        with pytest.raises(ValidationError):
            Averaging(**fields)


def test_the_device_is_where_the_net_goes(world: Any) -> None:
    known = world.knowledge(Averaging(), 0)
    object.__setattr__(known, "device", "meta")  # whose tensors have no values to give back
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        Averaging(repeats=2).score(world.service(), known, world.x[:3], world.y[:3], seed=0)
