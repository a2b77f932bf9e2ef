"""SynthPurchase: the noise, weights and size asked for, and the same records for ever."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import _synth
from storage.datasets import Source, load


def nearest_prototype(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance in bits to the nearest prototype, its class, and the labels."""
    made = _synth.PRESETS[name]
    x, y = _synth.generate(made)
    bits = _synth.prototypes(made)[0].reshape(-1, made.features).astype(np.float32)
    distance = (x[:, None, :] != bits).sum(axis=2) if made.features < 200 else None
    if distance is None:
        x_float = x.astype(np.float32)
        distance = x_float.sum(1)[:, None] + bits.sum(1) - 2 * x_float @ bits.T
    nearest = distance.argmin(axis=1)
    return distance.min(axis=1), nearest // made.clusters, y


@pytest.mark.parametrize("name", ["synth_s", "synth_m"])
def test_synth_has_the_noise_it_was_asked_for(name: str) -> None:
    made = _synth.PRESETS[name]
    distance, classes, y = nearest_prototype(name)
    bits = made.rows * made.features
    error = np.sqrt(made.bit_noise * (1 - made.bit_noise) / bits)
    assert distance.sum() / bits == pytest.approx(made.bit_noise, abs=5 * error + 5e-4)
    # A uniform label is the true one once in K.
    wrong = made.label_noise * (1 - 1 / made.classes)
    assert (classes != y).mean() == pytest.approx(wrong, abs=5 * np.sqrt(wrong / made.rows))
    counts = np.bincount(y, minlength=made.classes)
    expected = made.rows / made.classes
    assert ((counts - expected) ** 2 / expected).sum() < made.classes + 5 * np.sqrt(
        2 * made.classes
    )


def test_synth_prototypes_and_weights() -> None:
    made = _synth.PRESETS["synth_m"]
    bits, weights = _synth.prototypes(made)
    assert bits.shape == (100, 4, 600)
    assert bits.mean() == pytest.approx(0.15, abs=5 * np.sqrt(0.15 * 0.85 / bits.size))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    # Each weight of a Dirichlet(1, 1, 1, 1) has variance (1/4)(3/4)/5.
    assert weights.var() == pytest.approx(3 / 80, rel=0.3)


def test_synth_clusters_are_drawn_by_weight() -> None:
    quiet = (("bit_noise", 0.1), ("classes", 3), ("rows", 9000), ("label_noise", 0.0))
    made = _synth.parameters("synth_s", quiet)
    x, y = _synth.generate(made)
    bits, weights = _synth.prototypes(made)
    for label in range(3):
        mine = x[y == label]
        clusters = (mine[:, None, :] != bits[label]).sum(axis=2).argmin(axis=1)
        share = np.bincount(clusters, minlength=4) / len(mine)
        np.testing.assert_allclose(share, weights[label], atol=5 * np.sqrt(0.25 / len(mine)))


@pytest.mark.slow  # 2 s of training each, 7 s when the machine is busy
@pytest.mark.parametrize(("name", "expected"), [("synth_s", 0.835), ("synth_hard", 0.551)])
def test_synth_is_as_hard_as_measured(name: str, expected: float) -> None:
    """The table of methods.md 2.5, for one seed of ours; both readings are of 2,000 rows."""
    from sklearn.neural_network import MLPClassifier  # here, because importing it takes a second

    x, y = _synth.generate(_synth.PRESETS[name])
    model = MLPClassifier(
        (256, 128), activation="tanh", alpha=0.0, batch_size=64, max_iter=40, random_state=0
    )
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(x[:2000], y[:2000])
    assert model.score(x[:2000], y[:2000]) > 0.995
    assert model.score(x[4000:], y[4000:]) == pytest.approx(expected, abs=0.04)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(2, 1500),
    more=st.integers(0, 1500),
    features=st.integers(16, 70),
    classes=st.integers(2, 9),
    clusters=st.integers(1, 3),
    data_seed=st.integers(0, 2**63),
)
def test_more_synth_rows_are_a_longer_run_without_duplicates(
    rows: int, more: int, features: int, classes: int, clusters: int, data_seed: int
) -> None:
    made = _synth.SynthPurchase(rows, features, classes, clusters, 0.3, 0.2, 0.1, data_seed)
    longer = _synth.parameters(
        "synth_s",
        (
            ("rows", rows + more),
            ("features", features),
            ("classes", classes),
            ("clusters", clusters),
            ("label_noise", 0.1),
            ("data_seed", data_seed),
        ),
    )
    x, y = _synth.generate(made)
    longer_x, longer_y = _synth.generate(longer)
    np.testing.assert_array_equal(longer_x[:rows], x)
    np.testing.assert_array_equal(longer_y[:rows], y)
    assert len(np.unique(longer_x, axis=0)) == rows + more
    assert 0 <= y.min() <= y.max() < classes


def test_synth_parameters_decide_data_and_hash() -> None:
    base = load(Source("synth_s"), None)
    other = load(Source("synth_s", params=(("data_seed", 1),)), None)
    assert (other.x(np.arange(100)) != base.x(np.arange(100))).any()
    assert other.content_hash != base.content_hash
    # synth_hard made from synth_s is the same data, hence the same hash.
    alike = (("clusters", 8), ("bit_noise", 0.25), ("label_noise", 0))
    same, hard = load(Source("synth_s", params=alike), None), load(Source("synth_hard"), None)
    assert same.content_hash == hard.content_hash
    np.testing.assert_array_equal(same.x(np.arange(100)), hard.x(np.arange(100)))
    sized = load(Source("synth_m", params=(("rows", 50), ("features", 64), ("classes", 70))), None)
    assert (len(sized), sized.shape, sized.num_classes) == (50, (64,), 70)


def test_synth_records_are_golden() -> None:
    """A new numpy may draw other numbers; then `_synth.VERSION` must be bumped."""
    x, y = _synth.generate(_synth.PRESETS["synth_hard"])
    digest = hashlib.sha256(x.tobytes() + y.astype("<i8").tobytes()).hexdigest()
    assert (_synth.VERSION, digest[:16]) == (1, "da6c32d67a796188")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("synth_s", (("row", 10),), "no parameter is named 'row'. Did you mean 'rows'?"),
        ("synth_s", (("rows", 1),), "rows is 1; it must be a whole number of at least 2"),
        ("synth_s", (("rows", 10.0),), "rows is 10.0; it must be a whole number"),
        ("synth_s", (("rows", "10"),), "rows is '10'; it must be a whole number"),
        ("synth_s", (("classes", True),), "classes is True; it must be a whole number"),
        ("synth_s", (("data_seed", -1),), "data_seed is -1; it must be a whole number"),
        ("synth_s", (("bit_noise", 1.5),), r"bit_noise is 1.5; it must be a number in [0, 1]"),
        ("synth_s", (("sparsity", float("nan")),), "sparsity is nan; it must be a number"),
        ("synth_s", (("features", 3),), "found 8 distinct records"),
        ("synth_null", (("bit_noise", 0),), "found 40 distinct records"),
        ("digits", (("rows", 10),), "parameters rows given, but this set is not generated"),
    ],
)
def test_wrong_synth_parameters(name: str, params: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(Source(name, params=params), None)
    assert message in str(caught.value)
    assert name in str(caught.value) or "SynthPurchase" in str(caught.value)
