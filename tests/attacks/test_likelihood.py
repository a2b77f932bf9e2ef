"""What is true of the signal and the likelihood ratio of LiRA, against the slow obvious way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from attacks._likelihood import lira, logit_confidence

MODES = ("online", "offline")
BOTH = pytest.mark.parametrize("global_variance", [False, True])
EACH = pytest.mark.parametrize("mode", MODES)


def toy(
    seed: int, num_records: int = 30, num_shadows: int = 24, num_queries: int = 2
) -> tuple[Any, Any, Any, Any]:
    """Signals of varying place and spread; about a third of the roles each in, out, reference."""
    rng = np.random.default_rng(seed)
    role = rng.integers(-1, 2, size=(num_shadows, num_records))
    role[:6] = np.array([0, 0, 0, 1, 1, 1])[:, None]  # nobody has fewer than three of a side
    place = rng.normal(size=(num_records, num_queries)) * 5
    spread = rng.uniform(0.5, 2, size=(num_records, 1))
    shadow = place + spread * rng.normal(size=(num_shadows, num_records, num_queries))
    shadow += (role == 1)[..., None]
    target = place + spread * rng.normal(size=(num_records, num_queries))
    return target, shadow, role == 1, role == 0


def slow(
    target: Any, shadow: Any, is_in: Any, is_out: Any, *, mode: str, global_variance: bool
) -> Any:
    """The definition, a record and a query at a time."""
    num_records, num_queries = target.shape
    scores = np.zeros((num_records, num_queries))
    for q in range(num_queries):
        squares, freedom = {"in": 0.0, "out": 0.0}, {"in": 0, "out": 0}
        fitted = []
        for n in range(num_records):
            own = {}
            for side, mask in (("in", is_in), ("out", is_out)):
                seen = shadow[mask[:, n], n, q]
                own[side] = (seen.mean(), max(seen.std(ddof=1), 1e-3))
                squares[side] += ((seen - seen.mean()) ** 2).sum()
                freedom[side] += len(seen) - 1
            fitted.append(own)
        for n, own in enumerate(fitted):
            if global_variance:
                own = {
                    side: (mean, max(np.sqrt(squares[side] / freedom[side]), 1e-3))
                    for side, (mean, _) in own.items()
                }
            if mode == "offline":
                scores[n, q] = norm.logcdf(target[n, q], *own["out"])
            else:
                scores[n, q] = norm.logpdf(target[n, q], *own["in"])
                scores[n, q] -= norm.logpdf(target[n, q], *own["out"])
    return scores.mean(axis=1)


@EACH
@BOTH
def test_equals_the_slow_definition(mode: Any, global_variance: bool) -> None:
    world = toy(0)
    np.testing.assert_allclose(
        lira(*world, mode=mode, global_variance=global_variance),
        slow(*world, mode=mode, global_variance=global_variance),
        rtol=1e-9,
    )


@EACH
@BOTH
def test_pieces_bounded_in_memory_give_the_same_scores(mode: Any, global_variance: bool) -> None:
    """So many records that they do not fit in one piece."""
    world = toy(1, num_records=1500, num_shadows=32, num_queries=3)
    assert world[1].size > 2**17
    np.testing.assert_allclose(
        lira(*world, mode=mode, global_variance=global_variance),
        slow(*world, mode=mode, global_variance=global_variance),
        rtol=1e-9,
    )


def gaussians(num_shadows: int, shift: float, num_records: int = 20_000) -> tuple[Any, Any]:
    """Signals N(shift, 1) in, N(0, 1) out, half of the targets in; and which."""
    rng = np.random.default_rng(5)
    is_in = rng.permuted(np.arange(num_shadows)[:, None] % 2 == np.zeros(num_records), axis=0)
    shadow = rng.normal(size=(num_shadows, num_records)) + shift * is_in
    member = np.arange(num_records) % 2 == 0
    target = rng.normal(size=num_records) + shift * member
    return (target[:, None], shadow[..., None], is_in, ~is_in), member


@EACH
@BOTH
def test_unit_shift_of_gaussians_gives_the_known_auc(mode: Any, global_variance: bool) -> None:
    signals, member = gaussians(128, 1.0)
    auc = roc_auc_score(member, lira(*signals, mode=mode, global_variance=global_variance))
    # Phi(1 / sqrt 2) less what 64 models a side leave unknown (up to 0.01) and sampling (0.003).
    assert auc == pytest.approx(norm.cdf(np.sqrt(0.5)), abs=0.013)


@EACH
@BOTH
@pytest.mark.parametrize("num_shadows", [4, 16])
def test_no_shift_gives_no_auc(mode: Any, global_variance: bool, num_shadows: int) -> None:
    signals, member = gaussians(num_shadows, 0.0)
    auc = roc_auc_score(member, lira(*signals, mode=mode, global_variance=global_variance))
    assert abs(auc - 0.5) < 4 * np.sqrt(20_001 / (12 * 10_000 * 10_000))


@EACH
def test_few_models_need_a_deviation_in_common(mode: Any) -> None:
    signals, member = gaussians(8, 1.0)
    own, common = (
        roc_auc_score(member, lira(*signals, mode=mode, global_variance=pooled))
        for pooled in (False, True)
    )
    assert common > own + 0.005


@BOTH
def test_in_and_out_keep_their_own_spread(global_variance: bool) -> None:
    """A tool was seen to use the deviation of IN for OUT; here they differ tenfold."""
    rng = np.random.default_rng(0)
    is_in = np.repeat([[True], [False]], 500, axis=0) & np.ones(50, dtype=bool)
    shadow = rng.normal(size=(1000, 50)) * np.where(is_in, 0.1, 1.0)
    scores = lira(
        np.full((50, 1), 0.3),
        shadow[..., None],
        is_in,
        ~is_in,
        mode="online",
        global_variance=global_variance,
    )
    expected = norm.logpdf(0.3, 0, 0.1) - norm.logpdf(0.3, 0, 1)
    assert scores.mean() == pytest.approx(expected, abs=0.2)


def test_common_deviation_leaves_out_the_spread_between_records() -> None:
    target, shadow, is_in, is_out = toy(3, num_queries=1)
    far = np.linspace(-1000, 1000, len(target))[:, None]
    there = lira(target + far, shadow + far, is_in, is_out, mode="online", global_variance=True)
    here = lira(target, shadow, is_in, is_out, mode="online", global_variance=True)
    np.testing.assert_allclose(there, here, rtol=1e-6)


def test_offline_is_one_sided_and_keeps_order_far_out() -> None:
    _, shadow, is_in, is_out = toy(2, num_records=1, num_queries=1)
    at = np.linspace(-200, 20, 500)
    scores = [
        lira(np.array([[a]]), shadow, is_in, is_out, mode="offline", global_variance=False)[0]
        for a in at
    ]
    assert (np.diff(scores) >= 0).all()
    assert (np.diff(np.array(scores)[at < 0]) > 0).all()
    assert max(scores) <= 0


def test_offline_reads_no_in_model() -> None:
    target, shadow, is_in, is_out = toy(4)
    changed = np.where(is_in[..., None], np.nan, shadow)
    nobody = np.zeros_like(is_in)
    for pooled in (False, True):
        asked = {"mode": "offline", "global_variance": pooled}
        expected = lira(target, shadow, is_in, is_out, **asked)  # type: ignore[arg-type]
        for signals, who in ((changed, is_in), (shadow, nobody)):
            np.testing.assert_array_equal(lira(target, signals, who, is_out, **asked), expected)


@EACH
@BOTH
@pytest.mark.parametrize("planted", [1e9, -1e300, np.inf, np.nan])
def test_reference_entries_change_nothing(mode: Any, global_variance: bool, planted: float) -> None:
    target, shadow, is_in, is_out = toy(6)
    reference = ~(is_in | is_out)
    assert reference.any()
    changed = np.where(reference[..., None], planted, shadow)
    np.testing.assert_array_equal(
        lira(target, changed, is_in, is_out, mode=mode, global_variance=global_variance),
        lira(target, shadow, is_in, is_out, mode=mode, global_variance=global_variance),
    )


@EACH
@BOTH
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_models_records_and_queries_changes_nothing(
    mode: Any, global_variance: bool, seed: int
) -> None:
    target, shadow, is_in, is_out = toy(seed)
    rng = np.random.default_rng(seed)
    k, n, q = (rng.permutation(size) for size in shadow.shape)
    moved = lira(
        target[n][:, q],
        shadow[k][:, n][:, :, q],
        is_in[k][:, n],
        is_out[k][:, n],
        mode=mode,
        global_variance=global_variance,
    )
    kept = lira(target, shadow, is_in, is_out, mode=mode, global_variance=global_variance)
    np.testing.assert_allclose(moved, kept[n], rtol=1e-8, atol=1e-8)


@EACH
@BOTH
@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 100), move=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_unit_and_origin_of_the_signal_change_nothing(
    mode: Any, global_variance: bool, scale: float, move: float, seed: int
) -> None:
    target, shadow, is_in, is_out = toy(seed)
    there, here = (
        lira(a, b, is_in, is_out, mode=mode, global_variance=global_variance)
        for a, b in ((scale * target + move, scale * shadow + move), (target, shadow))
    )
    np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-6)


@EACH
def test_deviations_may_come_from_other_records(mode: Any) -> None:
    """Then the judged records do not touch each other."""
    judged, others = toy(7), toy(8, num_records=50)
    pool = others[1:]
    together = lira(*judged, mode=mode, global_variance=True, pool=pool)
    target, shadow, is_in, is_out = judged
    alone = lira(
        target[:1],
        shadow[:, :1],
        is_in[:, :1],
        is_out[:, :1],
        mode=mode,
        global_variance=True,
        pool=pool,
    )
    np.testing.assert_allclose(alone, together[:1], rtol=1e-9)
    own = lira(*judged, mode=mode, global_variance=True)
    assert not np.allclose(own, together)
    same = lira(*judged, mode=mode, global_variance=True, pool=judged[1:])
    np.testing.assert_array_equal(own, same)


@EACH
@BOTH
def test_models_that_agree_give_finite_scores_in_order(mode: Any, global_variance: bool) -> None:
    """Labels only: every model gives a record the same signal, and no spread is seen."""
    is_in = np.arange(8)[:, None] % 2 == np.zeros(3)
    shadow = np.broadcast_to(np.array([-27.6, 27.6, 27.6])[:, None], (8, 3, 1))
    target = np.array([[27.6], [27.6], [-27.6]])
    scores = lira(target, shadow, is_in, ~is_in, mode=mode, global_variance=global_variance)
    assert np.isfinite(scores).all()
    assert scores[2] <= scores[1] <= scores[0]


@BOTH
def test_records_without_models_are_counted_in_the_error(global_variance: bool) -> None:
    target, shadow, is_in, is_out = toy(9)
    none = is_out.copy()
    none[:, [4, 11]] = False
    with pytest.raises(ValueError, match="2 of 30 records have no OUT models among 24"):
        lira(target, shadow, is_in, none, mode="offline", global_variance=global_variance)
    none = is_in.copy()
    none[:, 5] = False
    with pytest.raises(ValueError, match="1 of 30 records have no IN models among 24"):
        lira(target, shadow, none, is_out, mode="online", global_variance=global_variance)


def test_one_model_is_enough_for_a_common_deviation_only() -> None:
    target, shadow, is_in, is_out = toy(9)
    one = is_in.copy()
    one[:, 3] = np.arange(len(one)) == 3
    assert np.isfinite(lira(target, shadow, one, is_out, mode="online", global_variance=True)).all()
    with pytest.raises(ValueError, match=r"1 of 30 records have one IN model.*global_variance"):
        lira(target, shadow, one, is_out, mode="online", global_variance=False)
    everywhere = np.zeros_like(is_in)
    everywhere[3] = True
    with pytest.raises(ValueError, match=r"none of the 30 records .* has two IN models"):
        lira(target, shadow, everywhere, is_out, mode="online", global_variance=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@EACH
def test_signals_that_are_not_finite_are_told(mode: Any, bad: float) -> None:
    for where in ("target", "shadow"):
        target, shadow, is_in, is_out = toy(10)
        if where == "target":
            target[3, 1] = bad
        else:
            shadow[0, 3, 1] = bad  # model 0 is OUT of every record
        with pytest.raises(ValueError, match="1 of 30 records are not finite"):
            lira(target, shadow, is_in, is_out, mode=mode, global_variance=False)


def test_shapes_and_roles_that_do_not_fit_are_told() -> None:
    target, shadow, is_in, is_out = toy(11)
    asked: dict[str, Any] = {"mode": "online", "global_variance": True}
    with pytest.raises(ValueError, match=r"target_phi is \(30,\)"):
        lira(target[:, 0], shadow, is_in, is_out, **asked)
    with pytest.raises(ValueError, match=r"is_in \(30, 24\)"):
        lira(target, shadow, is_in.T, is_out, **asked)
    with pytest.raises(ValueError, match="720 entries are both IN and OUT"):
        lira(target, shadow, is_in, is_out, pool=(shadow, is_in | True, is_in | True), **asked)


@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 20))
def test_signal_is_the_log_odds_of_the_true_label(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 4, num_classes)) * 2
    y = rng.integers(num_classes, size=4)
    confidence = np.exp(log_softmax(logits, axis=-1))
    before = confidence.copy()
    phi = logit_confidence(confidence, y)
    p = np.take_along_axis(confidence, np.broadcast_to(y, (3, 4))[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(phi, np.log(p / (1 - p)), atol=1e-9)
    np.testing.assert_array_equal(confidence, before)


def test_signal_keeps_the_digits_that_one_minus_p_loses() -> None:
    rest = np.array([1e-13, 3e-15, 1e-15, 1e-18])
    confidence = np.stack([1 - rest, rest / 2, rest / 2], axis=1)
    phi = logit_confidence(confidence, np.zeros(4, dtype=np.int64), clip=1e-30)
    np.testing.assert_allclose(phi, -np.log(rest), rtol=1e-12)
    assert confidence[3, 0] == 1.0


def test_signal_is_bounded_by_the_clip_on_labels_only() -> None:
    confidence = np.eye(5)[[2, 2]]
    y = np.array([2, 0])
    for clip in (1e-12, 1e-30):
        np.testing.assert_allclose(
            logit_confidence(confidence, y, clip=clip), [-np.log(clip), np.log(clip)]
        )
    np.testing.assert_array_equal(logit_confidence(0 * confidence, y), [0.0, 0.0])


def test_signal_of_float32_answers_is_taken_in_float64() -> None:
    phi = logit_confidence(np.array([[0.75, 0.25]], dtype=np.float32), np.array([0]))
    assert phi.dtype == np.float64
    assert phi[0] == pytest.approx(np.log(3), abs=1e-15)
