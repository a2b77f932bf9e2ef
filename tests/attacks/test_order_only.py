"""What is true of the attack on the order alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks.gap import Gap
from attacks.order_only import OrderOnly, discordance, ranks

CPU = OrderOnly.PRESETS["cpu"]
SURE = 0.99
# Four standard deviations of the AUC under chance, 300 records a side.
CHANCE = 4 * np.sqrt(601 / (12 * 300 * 300))

ROW = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7]), min_size=6, max_size=6)


@given(st.lists(st.tuples(ROW, ROW), min_size=1, max_size=6))
def test_discordance_is_the_share_of_pairs_ordered_otherwise(rows: Any) -> None:
    first, second = (np.array([pair[i] for pair in rows]) for i in (0, 1))
    expected = []
    for a, b in zip(first, second, strict=True):
        unlike = 0.0
        for i in range(6):
            for j in range(i):
                product = (a[i] - a[j]) * (b[i] - b[j])
                unlike += 1.0 if product < 0 else 0.5 if product == 0 else 0.0
        expected.append(unlike / 15)
    np.testing.assert_allclose(discordance(first, second), expected, atol=1e-12)


def test_discordance_of_the_same_the_reverse_and_chance() -> None:
    row = np.random.default_rng(0).random((500, 40))
    np.testing.assert_allclose(discordance(row, row), 0, atol=1e-12)
    np.testing.assert_allclose(discordance(row, -row), 1)
    other = np.random.default_rng(1).random((500, 40))
    # The variance of Kendall's tau is 2 (2n + 5) / (9 n (n - 1)); of its half a quarter of that.
    deviation = np.sqrt(2 * 85 / (9 * 40 * 39) / 4 / 500)
    assert abs(discordance(row, other).mean() - 0.5) < 4 * deviation


@given(st.lists(ROW, min_size=1, max_size=6))
def test_ranks_count_who_is_below_and_half_of_who_is_equal(rows: Any) -> None:
    scores = np.array(rows)
    expected = [[(np.sum(row < v) + (np.sum(row == v) - 1) / 2) / 5 for v in row] for row in scores]
    np.testing.assert_allclose(ranks(scores), expected, atol=1e-12)


def tempered(confidence: Any) -> Any:
    return confidence**0.3


def another_inputs(confidence: Any) -> Any:
    """As HAMP: the order of the scores, with other scores."""
    released = np.empty_like(confidence)
    fixed = np.sort(np.random.default_rng(0).random(confidence.shape[1]))
    np.put_along_axis(released, np.argsort(confidence, axis=1), fixed[None], axis=1)
    return released


@pytest.mark.parametrize("defend", [tempered, another_inputs])
def test_strictly_monotone_changes_of_the_scores_change_nothing(world: Any, defend: Any) -> None:
    attack = OrderOnly(**CPU)
    first, is_member = world.run(attack)
    second, _ = world.run(attack, defend=defend)
    assert first.tobytes() == second.tobytes()
    # And it is the order of more than the label: better than the gap attack.
    gap, _ = world.run(Gap())
    assert roc_auc_score(is_member, first) > roc_auc_score(is_member, gap) + 0.03


def test_a_planted_order_is_found_and_a_meaningless_one_is_not(world: Any) -> None:
    """Behind the label, classes come in order where the service was sure, else in reverse."""

    def released(confidence: Any, is_in_order: Any) -> Any:
        label = np.eye(confidence.shape[1])[confidence.argmax(axis=1)]
        return 2 * label + np.where(is_in_order[:, None], confidence, 1 - confidence)

    def planted(confidence: Any) -> Any:
        return released(confidence, confidence.max(axis=1) > SURE)

    def meaningless(confidence: Any) -> Any:
        coins = np.floor(1e6 * confidence.max(axis=1)) % 2 == 1
        return released(confidence, coins)

    aucs = [
        roc_auc_score(*reversed(world.run(OrderOnly(**CPU), defend=defend)))
        for defend in (planted, meaningless)
    ]
    assert aucs[0] > aucs[1] + 0.03


def test_a_fixed_order_tells_nothing(world: Any) -> None:
    scores, is_member = world.run(
        OrderOnly(**CPU), defend=lambda c: np.tile(np.arange(float(c.shape[1])), (len(c), 1))
    )
    assert abs(roc_auc_score(is_member, scores) - 0.5) < CHANCE


def test_compares_with_models_that_are_merely_out(world: Any) -> None:
    """Answers of models a record trained, or was the defense's reference of, do not count."""
    attack, rows = OrderOnly(**CPU), world.parts["eval"][:40]
    known = world.knowledge(attack, 0, adaptive=True)
    honest = known.shadows
    assert set(np.unique(honest.role(world.x[rows]))) == {-1, 0, 1}

    class Planted:
        num_shadows = honest.num_shadows
        role = honest.role

        def __call__(self, x: Any) -> Any:
            counts = (honest.role(x) == 0)[..., None]
            return np.where(counts, honest(x), np.arange(world.num_classes))

    object.__setattr__(known, "asked_shadows", Planted())
    service, x, y = world.service(), world.x[rows], world.y[rows]
    planted = attack.score(service, known, x, y, seed=0)
    known = world.knowledge(attack, 0, adaptive=True)
    assert attack.score(service, known, x, y, seed=0).tobytes() == planted.tobytes()


def test_the_usual_order_is_the_mean_over_half_of_the_models_or_what_there_is() -> None:
    attack, eye = OrderOnly(num_shadows=4), np.eye(4)
    # Models rank class 0, 1, 2, 3 first. Records: out of 1 and 2; of all; reference of 3 only.
    role = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, -1]], dtype=np.int8)

    class Shadows:
        num_shadows = 4

        def __call__(self, x: Any) -> Any:
            return np.repeat(eye[:, None], len(x), axis=1)

        def role(self, x: Any) -> Any:
            return role[:, x[:, 0].astype(int)]

    known: Any = SimpleNamespace(shadows=Shadows(), num_classes=4)
    x = np.arange(3, dtype=np.float32)[:, None]
    expected = [ranks(eye)[models].mean(axis=0) for models in ([1, 2], [0, 1], [3])]
    np.testing.assert_allclose(attack._usual(known, x), expected, atol=1e-9)
    y, released = np.array([1, 0, 3]), np.tile([0.1, 0.2, 0.4, 0.3], (3, 1))
    released[2, 3] = 0.5
    feature = attack._features(known, released, x, y)
    rank = ranks(released)
    np.testing.assert_array_equal(feature[:, 0], [0, 0, 1])
    np.testing.assert_array_equal(feature[:, 1], [rank[i, y[i]] for i in range(3)])
    np.testing.assert_allclose(feature[:, 2], [expected[i][y[i]] for i in range(3)], atol=1e-9)
    np.testing.assert_allclose(feature[:, 3], discordance(rank, np.array(expected)), atol=1e-9)


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = OrderOnly(num_shadows=6).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 6
        assert {a["defended"] for a in asked} == {adaptive}


def test_asks_once_about_each_record_to_fit_on_and_to_judge(small_world: Any) -> None:
    attack = OrderOnly(num_shadows=4)
    known, query = small_world.knowledge(attack, 0), small_world.service()
    attack.score(query, known, small_world.x[:13], small_world.y[:13], seed=0)
    assert query.num_queries == 13
    assert known.query.num_queries == len(small_world.parts["fit"])


def test_other_shadows_and_one_sided_knowledge_are_refused(small_world: Any) -> None:
    known = small_world.knowledge(OrderOnly(num_shadows=4), 0)
    arguments = small_world.service(), known, small_world.x[:3], small_world.y[:3]
    with pytest.raises(ValueError, match=r"got 4 shadow models .* num_shadows = 16"):
        OrderOnly().score(*arguments, seed=0)
    known.fit.is_member[:] = False
    with pytest.raises(ValueError, match=r"known\.fit holds 0 members.*order_only needs"):
        OrderOnly(num_shadows=4).score(*arguments, seed=0)


@pytest.mark.parametrize("fields", [{"num_shadows": 2}, {"num_shadows": 7}, {"inverse_penalty": 0}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OrderOnly(**fields)
