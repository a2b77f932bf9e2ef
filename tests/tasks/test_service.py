"""A deployed service: what is stored is not computed again, and every row asked counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defenses.base import Defense
from defenses.onehot import OneHot
from tasks.service import Defended, Query, Service, Stored, digests

POLICIES = ("fresh", "per_input", "deterministic")
NUM = 12


class Blur(Defense):
    """Adds what the noise policy draws."""

    VERSION: ClassVar[int] = 1

    def fit(self, setting: Any, *, seed: int) -> dict[str, NDArray[Any]]:
        return {"scale": np.array(0.1)}

    def apply(
        self, confidence: NDArray[Any], state: Mapping[str, NDArray[Any]], noise: Any
    ) -> NDArray[Any]:
        return confidence + state["scale"] * noise.uniform(confidence.shape)


class Counted:
    """A real stage that counts the rows it computes."""

    def __init__(self, stage: Any) -> None:
        self.stage, self.computed, self.done_afresh = stage, 0, 0

    @property
    def fresh(self) -> bool:
        return self.stage.fresh

    def compute(self, x: Any, draws: Any) -> NDArray[Any]:
        self.computed += len(x)
        return self.stage.compute(x, draws)

    def afresh(self, x: Any, draws: Any) -> NDArray[Any]:
        self.done_afresh += len(x)
        return self.stage.afresh(x, draws)


@dataclass
class Deployed:
    """A trained model behind Blur; the answers about `x` are stored, `other` is unknown."""

    model: Counted
    stage: Counted
    service: Service
    x: NDArray[Any]
    other: NDArray[Any]
    stored: NDArray[Any]

    def query(self, access: Any = "score", budget: int | None = None) -> Query:
        return Query(self.service, access, budget)


def wrap(service: Service, policy: Any, defense: Any = None) -> Counted:
    defense = defense or Blur()
    state = {"scale": np.array(0.1), "num_classes": np.array(10)}
    return Counted(Defended(service, defense, state, policy, b"secret", "binary"))


def with_stored(stage: Counted, x: NDArray[Any]) -> tuple[Service, NDArray[Any]]:
    confidence = stage.compute(x, np.zeros(len(x), np.int64))
    stage.computed = 0
    position = {digest: i for i, digest in enumerate(digests(x))}
    return Service(stage, lambda: Stored(confidence, position)), confidence


@pytest.fixture(scope="module")
def deploy(lab: Any) -> Callable[[str], Deployed]:
    rows = lab.bench.split(lab.split).members
    x, other = lab.dataset.x(rows[:NUM]), lab.dataset.x(rows[NUM : 2 * NUM])

    def make(policy: str) -> Deployed:
        model = Counted(lab.target.stage(lab.bench))
        inner, _ = with_stored(model, x)
        stage = wrap(inner, policy)
        service, stored = with_stored(stage, x)
        return Deployed(model, stage, service, x, other, stored)

    return make


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_stored_is_not_computed_again(deploy: Any, policy: str) -> None:
    d = deploy(policy)
    np.testing.assert_array_equal(d.service.answer(d.x[::-1]), d.stored[::-1])
    np.testing.assert_array_equal(d.query()(d.x), d.stored)
    assert d.stage.computed == d.model.computed == 0
    d.service.answer(d.other[:5])
    assert d.stage.computed == d.model.computed == 5


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(2 * NUM)), num=st.integers(0, 2 * NUM))
def test_a_mixed_batch_keeps_its_order(
    deploy: Any, policy: str, order: list[int], num: int
) -> None:
    d = deploy(policy)
    both = np.concatenate([d.x, d.other])
    chosen = np.array(order[:num], np.int64)
    answers = d.query()(both[chosen])
    assert d.stage.computed == (chosen >= NUM).sum()
    expected = np.concatenate([d.stored, d.stage.compute(d.other, np.zeros(NUM, np.int64))])[chosen]
    # Rows of another batch may differ in their last bits; the rows themselves differ much more.
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5)
    known = chosen < NUM
    np.testing.assert_array_equal(answers[known], expected[known])


def test_fresh_draws_again_for_every_repeat_and_first_what_is_stored(deploy: Any) -> None:
    d = deploy("fresh")
    query = d.query()
    asked = [query(d.x) for _ in range(4)]
    np.testing.assert_array_equal(asked[0], d.stored)
    assert d.stage.computed == 3 * NUM
    for i, one in enumerate(asked):
        for two in asked[:i]:
            assert (one != two).all()
        # The slow way: this draw number, one record at a time.
        alone = [d.stage.compute(record[None], np.array([i]))[0] for record in d.x]
        np.testing.assert_allclose(one, alone, rtol=0, atol=1e-5)
    # Another attacker's first question is a first question.
    np.testing.assert_array_equal(d.query()(d.x), d.stored)


def test_repeats_within_a_batch_are_repeats(deploy: Any) -> None:
    d = deploy("fresh")
    batch = d.x[[0, 1, 0, 0, 1]]
    together = d.query()(batch)
    query = d.query()
    one_by_one = np.concatenate([query(record[None]) for record in batch])
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(together[:2], d.stored[:2])
    assert len(np.unique(together[:, 0])) == 5


@pytest.mark.parametrize("policy", ["per_input", "deterministic"])
def test_without_fresh_noise_repeats_are_equal_to_the_bit(deploy: Any, policy: str) -> None:
    d = deploy(policy)
    query = d.query()
    for size in (NUM, 5, 1, NUM):  # other batch sizes round differently where computed again
        np.testing.assert_array_equal(query(d.x[:size]), d.stored[:size])
    assert d.stage.computed == 0
    np.testing.assert_array_equal(query(d.other), query(d.other))


def test_per_input_noise_differs_between_inputs_and_deterministic_does_not(deploy: Any) -> None:
    def noise(policy: str) -> NDArray[Any]:
        d = deploy(policy)
        plain = d.model.compute(d.x, np.zeros(NUM, np.int64))
        return (d.stored - plain) / 0.1

    assert len(np.unique(noise("per_input").round(6))) == NUM * 10
    np.testing.assert_allclose(noise("deterministic"), 0.5, atol=1e-9)


def test_a_draw_inside_a_chain_is_drawn_again_too(deploy: Any) -> None:
    d = deploy("fresh")
    outer, stored = with_stored(wrap(d.service, "deterministic"), d.x)
    query = Query(outer)
    np.testing.assert_array_equal(query(d.x), stored)
    assert (query(d.x) != stored).all()


def test_a_repeat_of_a_chain_draws_anew_only_where_the_policy_says(deploy: Any) -> None:
    d = deploy("per_input")
    stage = wrap(d.service, "fresh")
    outer, stored = with_stored(stage, d.x)
    query = Query(outer)
    first, second = query(d.x), query(d.x)
    np.testing.assert_array_equal(first, stored)
    assert (second != first).all()
    assert stage.computed == NUM
    assert d.stage.computed == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_label_access_lets_only_labels_out(deploy: Any, policy: str) -> None:
    d = deploy(policy)
    query = d.query("label")
    labels = query(d.x)
    np.testing.assert_array_equal(labels, d.stored.argmax(axis=1))
    timed, _ = query.timed(d.other)
    for answer in (labels, timed, query(d.other), query(d.x[:0])):
        assert answer.dtype == np.int64
        assert answer.ndim == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, NUM)), max_size=6))
def test_every_row_asked_counts_once(deploy: Any, asked: list[tuple[bool, int]]) -> None:
    query = deploy("fresh").query()
    d = deploy("fresh")
    for is_timed, num in asked:
        (query.timed if is_timed else query)(d.x[:num])
    assert query.num_queries == sum(num for _, num in asked)


@pytest.mark.parametrize("is_timed", [False, True])
def test_past_its_budget_a_query_is_refused_whole(deploy: Any, is_timed: bool) -> None:
    d = deploy("per_input")
    query = d.query(budget=7)
    ask = query.timed if is_timed else query
    ask(d.other[:4])
    done = d.stage.computed + d.stage.done_afresh
    with pytest.raises(RuntimeError, match=r"budget of 7 is used up: 4 asked, 4 more wanted"):
        ask(d.other[:4])
    assert query.num_queries == 4
    assert d.stage.computed + d.stage.done_afresh == done
    ask(d.other[:3])
    with pytest.raises(RuntimeError, match="7 asked, 1 more"):
        ask(d.x[:1])
    assert query.num_queries == 7


@pytest.mark.parametrize("policy", POLICIES)
def test_a_timed_answer_is_computed_through_every_stage(deploy: Any, policy: str) -> None:
    d = deploy(policy)
    answer, seconds = d.query().timed(d.x)
    assert d.stage.done_afresh == d.model.done_afresh == NUM
    assert d.stage.computed == d.model.computed == 0
    assert seconds > 0
    np.testing.assert_allclose(answer, d.stored, rtol=0, atol=1e-5)


def test_timing_a_fresh_service_draws_again(deploy: Any) -> None:
    d = deploy("fresh")
    query = d.query()
    first, second, third = query.timed(d.x)[0], query(d.x), query.timed(d.x)[0]
    assert (first != second).all()
    assert (second != third).all()
    assert (first != third).all()


def test_what_an_attack_does_to_an_answer_stays_with_it(deploy: Any) -> None:
    d = deploy("per_input")
    query = d.query()
    answer = query(d.x)
    answer[:] = 0
    np.testing.assert_array_equal(query(d.x), d.stored)
    assert d.stored.min() > 0


def test_nobody_asked_nobody_answered(deploy: Any, lab: Any) -> None:
    d = deploy("fresh")
    assert d.query()(d.x[:0]).shape == (0, 10)
    assert Query(Service(lab.target.stage(lab.bench)))(d.x[:0]).shape == (0, 10)
    assert Query(Service(wrap(Service(d.model), "fresh"))).timed(d.x[:0])[0].shape == (0, 10)


def test_a_service_without_a_store_computes(deploy: Any) -> None:
    d = deploy("per_input")
    service = Service(d.stage)
    np.testing.assert_array_equal(service.answer(d.x), d.stored)
    assert d.stage.computed == NUM


def test_the_store_is_opened_only_when_it_is_needed(deploy: Any) -> None:
    d = deploy("fresh")

    def broken() -> Stored:
        raise OSError("no store")

    service = Service(d.stage, broken)
    service.afresh(d.x)
    with pytest.raises(OSError, match="no store"):
        service.answer(d.x)


def test_released_rows_are_what_the_defense_released(deploy: Any) -> None:
    d = deploy("fresh")
    outer = Service(wrap(d.service, "deterministic", OneHot()))
    np.testing.assert_array_equal(outer.answer(d.x), np.eye(10)[d.stored.argmax(axis=1)])


def test_digests_stand_for_exact_content() -> None:
    x = np.random.default_rng(0).random((6, 3, 2)).astype(np.float32)
    assert len(set(digests(x))) == 6
    assert digests(x.astype(np.float64)) == digests(x)
    assert digests(np.asfortranarray(x)) == digests(x)
    assert digests(x[::2]) == digests(x)[::2]
    assert digests(x[:0]) == []
    moved = x.copy()
    moved[0, 0, 0] = np.nextafter(moved[0, 0, 0], np.float32(2))
    assert digests(moved)[0] != digests(x)[0]
    assert digests(moved)[1:] == digests(x)[1:]
