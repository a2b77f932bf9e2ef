import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from defenses._neighbours import NeighbourIndex


def saturated(rng: np.random.Generator, num_rows: int, num_classes: int) -> np.ndarray:
    """Answers of a memorising model: 1 - p_max from about 1e-11 to 1e-3."""
    logits = 2 * rng.normal(size=(num_rows, num_classes))
    top = rng.integers(0, num_classes, num_rows)
    above = rng.uniform(7, 21, num_rows) + np.log(num_classes)
    logits[np.arange(num_rows), top] = logits.max(axis=1) + above
    return softmax(logits, axis=1)


def brute(stored: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Distances of one query to the stored vectors of its label, ascending."""
    same = stored[stored.argmax(axis=1) == query.argmax()]
    return np.sort(np.sqrt(((same - query) ** 2).sum(axis=1)))


@pytest.mark.parametrize(("num_classes", "flat_wrong"), [(2, 0.01), (10, 0.1), (100, 0.1)])
def test_finds_true_neighbours_where_vectors_are_saturated(num_classes, flat_wrong):
    rng = np.random.default_rng(num_classes)
    stored = saturated(rng, 3000, num_classes)
    queries = saturated(rng, 1000, num_classes)
    queries[:500] = stored[:500] * np.exp(1e-3 * rng.normal(size=(500, num_classes)))
    queries /= queries.sum(axis=1, keepdims=True)
    nearest = np.array([brute(stored, query)[0] for query in queries])
    distance, ids = NeighbourIndex(stored).search(queries, 1)
    assert np.mean(distance[:, 0] <= nearest * (1 + 1e-9)) >= 0.999
    assert (stored[ids[:, 0]].argmax(axis=1) == queries.argmax(axis=1)).all()

    # The trap is real on these vectors: the same question to FAISS's flat index goes wrong.
    flat = faiss.IndexFlatL2(num_classes)
    flat.add(stored.astype(np.float32))
    _, wrong = flat.search(queries.astype(np.float32), 1)
    found = np.sqrt(((stored[wrong[:, 0]] - queries) ** 2).sum(axis=1))
    assert np.mean(found > nearest * (1 + 1e-9)) > flat_wrong


def test_orders_offsets_far_below_the_rounding_of_float32():
    c = np.array([1 - 3e-9, 1e-9, 2e-9, 0.0])
    direction = np.array([-1.0, 1.0, 0.0, 0.0]) / np.sqrt(2)
    offsets = [1e-5, 1e-8, 0.0, 1e-7, 1e-3, 1e-10]
    stored = np.clip([c + offset * direction for offset in offsets], 0, 1)
    distance, ids = NeighbourIndex(stored).search(c[None], 6)
    assert ids[0].tolist() == [2, 5, 1, 3, 0, 4]
    np.testing.assert_allclose(distance[0], sorted(offsets), rtol=1e-6, atol=1e-15)


def test_tells_vectors_apart_whose_top_is_exactly_one():
    rng = np.random.default_rng(0)
    stored = 1e-28 * rng.random((200, 5))
    stored[:, 2] = 1.0
    queries = stored * np.exp(1e-3 * rng.normal(size=stored.shape))
    queries[:, 2] = 1.0
    distance, _ = NeighbourIndex(stored).search(queries)
    nearest = [brute(stored, query)[0] for query in queries]
    np.testing.assert_allclose(distance[:, 0], nearest, rtol=1e-9)


values = st.sampled_from([0.0, 1e-30, 1e-12, 1e-6, 0.1, 0.4, 1.0])


@given(
    arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=values),
    arrays(np.float64, (4, 3), elements=values),
    st.integers(1, 5),
)
def test_agrees_with_brute_force_on_anything(stored, queries, k):
    distance, ids = NeighbourIndex(stored).search(queries, k, candidates=12)
    assert distance.shape == ids.shape == (4, k)
    for query, row_distance, row_ids in zip(queries, distance, ids, strict=True):
        truth = brute(stored, query)[:k]
        found = len(truth)
        np.testing.assert_allclose(row_distance[:found], truth, rtol=1e-12, atol=0)
        assert np.isinf(row_distance[found:]).all()
        assert (row_ids[found:] == -1).all()
        assert len(set(row_ids[:found].tolist())) == found


def test_an_answer_does_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    index, queries = NeighbourIndex(saturated(rng, 500, 20)), saturated(rng, 300, 20)
    together = index.search(queries, 3)
    for row in range(0, 300, 17):
        alone = index.search(queries[row : row + 1], 3)
        np.testing.assert_array_equal(alone[0][0], together[0][row])
        np.testing.assert_array_equal(alone[1][0], together[1][row])


def test_errors_say_what_would_be_right():
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        NeighbourIndex(np.array([[0.2, np.nan]]))
    with pytest.raises(ValueError, match=r"\[M, 2\]"):
        NeighbourIndex(np.eye(2)).search(np.eye(3))
    with pytest.raises(ValueError, match="k is 0"):
        NeighbourIndex(np.eye(2)).search(np.eye(2), 0)
