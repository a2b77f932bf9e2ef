"""What is true of the metric attacks."""

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from attacks.base import Known
from attacks.metric import Metric, Statistic, best_threshold, statistic_of

CLIP = 1e-12
NAMES = get_args(Statistic)
vectors = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def by_hand(name: str, p: list[float], y: int) -> float:
    """One row, as the tables of the papers print it."""

    def log(value: float) -> float:
        return math.log(min(max(value, CLIP), 1.0))

    others = [q for i, q in enumerate(p) if i != y]
    return {
        "correctness": float(p.index(max(p)) == y),
        "confidence": p[y],
        "max_confidence": max(p),
        "entropy": sum(q * log(q) for q in p),
        "modified_entropy": (1 - p[y]) * log(p[y]) + sum(q * log(1 - q) for q in others),
        "loss": log(p[y]),
        "margin": p[y] - max(others),
        "logit": log(p[y]) - log(1 - p[y]),
    }[name]


def one(name: Any, p: list[float], y: int) -> float:
    return float(statistic_of(name, np.array([p]), np.array([y]), clip=CLIP)[0])


def balanced(value: Any, is_member: Any, threshold: float) -> float:
    called = value > threshold
    return 0.5 * (called[is_member].mean() + (~called[~is_member]).mean())


@given(st.lists(vectors, min_size=1, max_size=5), st.randoms())
@example([[1.0, 0.0, 0.0]], None)
def test_statistics_follow_the_formulas(rows: Any, rng: Any) -> None:
    width = min(len(row) for row in rows)
    p_NC = np.array([row[:width] for row in rows])
    y_N = np.array([rng.randrange(width) if rng else 0 for _ in rows])
    for name in NAMES:
        got = statistic_of(name, p_NC, y_N, clip=CLIP)
        want = [by_hand(name, list(p), int(y)) for p, y in zip(p_NC, y_N, strict=True)]
        # 1 - p loses the digits of a p near 1, so the two roads to its logarithm differ a little.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-9, err_msg=name)


@given(vectors, st.data())
def test_modified_entropy_is_monotone_in_every_entry(p: list[float], data: Any) -> None:
    y, i = (data.draw(st.integers(0, len(p) - 1)) for _ in range(2))
    raised = [*p]
    raised[i] = data.draw(st.floats(p[i], 1))
    before, after = one("modified_entropy", p, y), one("modified_entropy", raised, y)
    if i == y:
        assert after >= before - 1e-12
    else:
        assert after <= before + 1e-12


@pytest.mark.parametrize("num_classes", [2, 10, 530])
def test_modified_entropy_tells_right_from_wrong_certainty(num_classes: int) -> None:
    certain = [1.0] + [0.0] * (num_classes - 1)
    assert one("modified_entropy", certain, 0) == 0.0
    assert one("entropy", certain, 0) == one("entropy", certain, 1) == 0.0
    assert one("modified_entropy", certain, 1) == pytest.approx(2 * math.log(CLIP), rel=1e-3)


def test_logit_keeps_the_order_of_nearly_certain_answers() -> None:
    p_y = [1 - 1e-6, 1 - 1e-9, 1 - 1e-11]
    values = [one("logit", [p, 1 - p], 0) for p in p_y]
    assert values == sorted(set(values))
    assert math.isfinite(one("logit", [1 - 1e-15, 1e-15], 0))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [-27.6, -1.5, 0.0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.25, 1), 1.0]
            ),
            st.booleans(),
        ),
        min_size=2,
        max_size=40,
    )
)
def test_threshold_is_as_good_as_trying_every_one(records: Any) -> None:
    value, is_member = (np.array(column) for column in zip(*records, strict=True))
    assume(is_member.any() and not is_member.all())
    # Every distinct decision is made by a threshold at a value or below all of them.
    best = max(balanced(value, is_member, t) for t in [value.min() - 1, *value])
    threshold = best_threshold(value, is_member)
    assert math.isfinite(threshold)
    assert balanced(value, is_member, threshold) == pytest.approx(best, abs=1e-9)


def reference_threshold(value: Any, is_member: Any) -> float:
    levels = sorted(set(value))
    candidates = [
        levels[0] - 1e-9,
        *((a + b) / 2 for a, b in itertools.pairwise(levels)),
        levels[-1],
    ]
    accuracies = [round(balanced(value, is_member, t), 12) for t in candidates]
    return float(candidates[accuracies.index(max(accuracies))])


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_score_is_statistic_minus_the_threshold_of_the_class(
    world: Any, name: Any, per_class: bool
) -> None:
    scores, _ = world.run(Metric(statistic=name, per_class=per_class))
    answer = world.service()
    rows, known = world.parts["eval"], np.concatenate([world.parts["fit"], world.parts["cal"]])
    value = statistic_of(name, answer(world.x[known]), world.y[known], clip=CLIP)
    is_member = world.is_member[known]
    judged = statistic_of(name, answer(world.x[rows]), world.y[rows], clip=CLIP)
    for label in range(world.num_classes):
        mine = (world.y[known] == label) | (not per_class)
        want = reference_threshold(value[mine], is_member[mine])
        here = world.y[rows] == label
        np.testing.assert_allclose(scores[here], judged[here] - want, atol=1e-9)


def test_small_and_one_sided_classes_use_the_global_threshold() -> None:
    rng = np.random.default_rng(0)
    # Class 0 is large, class 1 has nine records, class 2 has members only.
    y = np.repeat([0, 1, 2], [80, 9, 20])
    is_member = np.concatenate([np.arange(89) % 2 == 0, np.ones(20, bool)])
    confidence = rng.dirichlet(np.ones(3), size=len(y))
    confidence[(y == 0) & is_member] = [0.9, 0.05, 0.05]
    x = np.arange(len(y))
    half = rng.permutation(len(y))

    class Holder:
        num_classes = 3
        fit, cal = (Known(x[part], y[part], is_member[part]) for part in (half[:70], half[70:]))

        @staticmethod
        def query(rows: Any) -> Any:
            return confidence[rows]

    def scores(**fields: Any) -> Any:
        attack = Metric(statistic="confidence", **fields)
        return attack.score(Holder.query, Holder, x, y, seed=0)  # type: ignore[arg-type]

    everywhere = scores(per_class=False)
    np.testing.assert_array_equal(scores()[y > 0], everywhere[y > 0])
    assert not np.array_equal(scores()[y == 0], everywhere[y == 0])
    assert not np.array_equal(scores(min_records=9)[y == 1], everywhere[y == 1])


def test_known_records_of_one_side_only_are_refused(world: Any) -> None:
    known = world.knowledge(Metric(), 0)
    for part in (known.fit, known.cal):
        part.is_member[:] = True
    with pytest.raises(ValueError, match="both members and non-members"):
        Metric().score(world.service(), known, world.x[:3], world.y[:3], seed=0)


def test_correctness_decides_as_the_gap_attack_where_members_are_known_by_heart(
    world: Any,
) -> None:
    scores, _ = world.run(Metric(statistic="correctness"))
    rows = world.parts["eval"]
    right = world.service()(world.x[rows]).argmax(axis=1) == world.y[rows]
    np.testing.assert_array_equal(scores > Metric.THRESHOLD, right)
