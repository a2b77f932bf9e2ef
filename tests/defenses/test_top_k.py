import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.top_k import TopK


def release(defense: TopK, confidence: np.ndarray) -> np.ndarray:
    return defense.apply(confidence, {"num_classes": np.array(confidence.shape[1])}, None)


@st.composite
def distributions(draw) -> np.ndarray:
    """Random, tied, nearly tied and saturated rows."""
    num_classes = draw(st.sampled_from([2, 10, 530]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    random = rng.dirichlet(np.full(num_classes, draw(st.sampled_from([0.02, 1.0, 50.0]))), size=4)
    tied = rng.integers(1, 3, size=(4, num_classes)).astype(float)
    near = np.nextafter(1.9, np.where(rng.random((4, num_classes)) < 0.5, 1, 2))
    saturated = np.where(np.eye(num_classes)[rng.integers(num_classes, size=4)], 1.0, 1e-14)
    c = np.concatenate([random, tied, near, saturated])
    return c / c.sum(axis=1, keepdims=True)


def slow_top_k(row: list[float], k: int) -> list[float]:
    kept: list[int] = []
    while len(kept) < k:
        rest = [j for j in range(len(row)) if j not in kept]
        kept.append(max(rest, key=lambda j: row[j]))  # max() takes the first of equals
    return [value if j in kept else 0.0 for j, value in enumerate(row)]


@settings(max_examples=60, deadline=None)
@given(distributions(), st.sampled_from([1, 2, 3, 7]))
def test_keeps_the_largest_and_the_first_of_equals(confidence, k):
    released = release(TopK(k=min(k, confidence.shape[1])), confidence)
    for before, after in zip(confidence, released, strict=True):
        assert after.tolist() == slow_top_k(before.tolist(), min(k, len(before)))


@settings(max_examples=60, deadline=None)
@given(distributions(), st.sampled_from([1, 2, 3, 10]), st.booleans())
def test_the_label_is_kept(confidence, k, renormalise):
    released = release(TopK(k=min(k, confidence.shape[1]), renormalise=renormalise), confidence)
    np.testing.assert_array_equal(released.argmax(axis=1), confidence.argmax(axis=1))


@settings(max_examples=60, deadline=None)
@given(distributions(), st.sampled_from([1, 2, 3]))
def test_renormalised_scores_keep_their_ratios(confidence, k):
    k = min(k, confidence.shape[1])
    plain = release(TopK(k=k), confidence)
    released = release(TopK(k=k, renormalise=True), confidence)
    np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(released * plain.sum(axis=1, keepdims=True), plain, rtol=1e-12)
    if k == 1:
        np.testing.assert_array_equal(
            released, np.eye(confidence.shape[1])[confidence.argmax(axis=1)]
        )


def test_renormalising_does_not_tie_the_label_away():
    # Scores a rounding error apart, the label second: a division merges some of them.
    rng = np.random.default_rng(0)
    low = rng.uniform(0.24, 0.249, size=2000)
    rest = 1 - 2 * low
    c = np.stack([low, np.nextafter(low, 1), 0.44 * rest, 0.44 * rest, 0.12 * rest], axis=1)
    divided = c[:, :4] / c[:, :4].sum(axis=1, keepdims=True)
    assert (divided[:, 0] == divided[:, 1]).any(), "the trap is not set"
    released = release(TopK(k=4, renormalise=True), c)
    np.testing.assert_array_equal(released.argmax(axis=1), 1)


def test_all_classes_are_the_identity_and_more_are_refused(make_world, fitted):
    world = make_world(10)
    state, _ = fitted(TopK(k=10), world)
    confidence = world.answer(world.members.x)
    np.testing.assert_array_equal(TopK(k=10).apply(confidence, state, None), confidence)
    with pytest.raises(ValueError, match=r"k = 11.*10"):
        TopK(k=11).fit(world, seed=0)
