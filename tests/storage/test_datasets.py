import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_digits

from storage import _synth
from storage.datasets import DEFAULT_SPLITS, Dataset, Source, canonical_bytes, load, names


def from_path(path: Path) -> Dataset:
    return load(Source("own", path=str(path)), None)


def read_all(path: Path) -> None:
    dataset = from_path(path)
    dataset.x(np.arange(len(dataset)))  # images are decoded when first asked for


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def arrays(path: Path, **named: Any) -> Path:
    np.savez(path, **named)
    return path


def jpeg(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def slow_groups(records: list[bytes]) -> list[int]:
    return [records.index(record) for record in records]


# --- real files ---------------------------------------------------------------------------------

DATA = os.environ.get("SFUMATO_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="SFUMATO_DATA is not set")

# name, kind, rows, shape, classes, rows of the smallest and largest class, duplicates, extras
MANIFEST = [
    ("location30", "binary", 5010, (446,), 30, 97, 308, 0, []),
    (
        "retail100",
        "binary",
        35593,
        (600,),
        100,
        175,
        867,
        0,
        ["label_10", "label_2", "label_20", "label_50"],
    ),
    ("hospital100", "binary", 52096, (599,), 100, 109, 4512, 11, ["sens_gender", "sens_race"]),
    ("clinc100", "binary", 14943, (600,), 100, 129, 150, 1373, []),
    (
        "adult_binary",
        "binary",
        48842,
        (126,),
        2,
        11687,
        37155,
        20363,
        ["sens_race", "sens_sex", "split_test"],
    ),
    ("cifar10", "image", 60000, (3, 32, 32), 10, 6000, 6000, 0, ["split"]),
    ("cifar10_mini", "image", 2500, (3, 32, 32), 10, 250, 250, 0, ["split"]),
    ("tinyimagenet32_100a", "image", 54996, (3, 32, 32), 100, 548, 550, 0, ["split"]),
    ("utkface64", "image", 22000, (3, 64, 64), 2, 0, 22000, 0, ["age", "sens_race"]),
    ("faces_yaleb38", "image", 2414, (1, 64, 64), 38, 59, 64, 0, ["light_azimuth_elevation"]),
    ("faces_orl38", "image", 380, (1, 64, 64), 38, 10, 10, 0, ["subject"]),
    ("mnist10k", "image", 10000, (1, 28, 28), 10, 863, 1127, 0, []),
]


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("row", MANIFEST, ids=lambda row: row[0])
def test_real_files_are_what_their_manifest_says(row: tuple[Any, ...]) -> None:
    name, kind, rows, shape, classes, least, most, duplicates, extras = row
    dataset = load(Source(name), Path(str(DATA)))
    counts = np.bincount(dataset.y)
    assert (dataset.kind, len(dataset), dataset.shape) == (kind, rows, shape)
    assert dataset.num_classes == len(counts) == classes
    assert least <= counts.min()
    assert counts.max() <= most
    if least != 0:  # the manifest gives no class counts for utkface64
        assert (counts.min(), counts.max()) == (least, most)
    assert rows - len(np.unique(dataset.groups)) == duplicates
    assert sorted(dataset.extras) == extras
    assert all(len(extra) == rows for extra in dataset.extras.values())
    info = next(info for info in names(Path(str(DATA))) if info.name == name)
    assert (info.rows, info.classes, info.shape, info.available) == (rows, classes, shape, True)
    x = dataset.x([0, rows - 1])
    assert x.shape == (2, *shape)
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.data
@needs_data
def test_decoded_cifar10_is_its_ready_made_copy() -> None:
    whole = load(Source("cifar10"), Path(str(DATA)))
    mini = load(Source("cifar10_mini"), Path(str(DATA)))
    rows = np.r_[:100, 2000:2100]
    of_whole = np.r_[:100, 50000:50100]
    np.testing.assert_array_equal(whole.x(of_whole), mini.x(rows))
    np.testing.assert_array_equal(whole.y[of_whole], mini.y[rows])
    np.testing.assert_array_equal(whole.extras["split"][of_whole], mini.extras["split"][rows])


@pytest.mark.data
@needs_data
def test_adult_points_to_its_encoded_form() -> None:
    with pytest.raises(ValueError, match="use 'adult_binary'"):
        load(Source("adult"), Path(str(DATA)))
    with pytest.raises(
        ValueError, match=r"columns split, workclass, .* and 4 more are not numbers"
    ):
        from_path(Path(str(DATA)) / "adult.parquet")


# --- what every set promises --------------------------------------------------------------------

BUILT_IN = ["digits", "digits_binary", "synth_s", "synth_m", "synth_hard", "synth_null"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_sets_without_a_file_match_their_catalogue_line(name: str) -> None:
    dataset = load(Source(name), None)
    info = next(info for info in names(None) if info.name == name)
    assert info.available
    assert (len(dataset), dataset.num_classes, dataset.shape) == (
        info.rows,
        info.classes,
        info.shape,
    )
    assert set(np.unique(dataset.y)) == set(range(info.classes))
    records = [row.tobytes() for row in dataset.x(np.arange(1797))]
    assert dataset.groups[:1797].tolist() == slow_groups(records)


def test_default_splits_fit_their_sets() -> None:
    assert all(
        sum(DEFAULT_SPLITS[info.name].values()) <= info.rows
        for info in names()
        if info.name != "adult"
    )
    assert DEFAULT_SPLITS["location30"] == {"members": 1600, "reference": 1600, "nonmembers": 1600}
    assert not any(i.available for i in names() if i.name not in BUILT_IN)


def test_digits_are_scikit_learns() -> None:
    images = load_digits().images
    digits, binary = load(Source("digits"), None), load(Source("digits_binary"), None)
    rows = [5, 0, 1796]
    np.testing.assert_array_equal(digits.x(rows)[:, 0] * 16, images[rows])
    np.testing.assert_array_equal(binary.x(rows), images[rows].reshape(3, 64) > 8)
    assert (digits.kind, binary.kind) == ("continuous", "binary")
    assert digits.content_hash != binary.content_hash


def test_rows_are_numbers_within_the_set() -> None:
    dataset = load(Source("digits"), None)
    assert dataset.x([]).shape == (0, 1, 8, 8)
    with pytest.raises(TypeError, match=r"np.flatnonzero"):
        dataset.x(dataset.y == 3)
    with pytest.raises(IndexError, match=r"rows -1\.\.2 asked for; it has 0\.\.1796"):
        dataset.x([-1, 2])
    with pytest.raises(IndexError, match=r"0..1796"):
        dataset.x([1797])


def test_arrays_are_read_only_and_x_is_a_copy() -> None:
    dataset = load(Source("digits_binary"), None)
    with pytest.raises(ValueError, match="read-only"):
        dataset.y[0] = 3
    before = dataset.x([0])
    dataset.x([0])[:] = 7
    np.testing.assert_array_equal(dataset.x([0]), before)


# --- canonical bytes ----------------------------------------------------------------------------


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (5, 13), elements=st.integers(0, 1)))
def test_canonical_bytes_of_binary_records_are_their_bits(bits: np.ndarray) -> None:
    packed = canonical_bytes(bits.astype(np.float32), "binary")
    assert packed.shape == (5, 2)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=13), bits)


def test_canonical_bytes_of_images_are_the_pixels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = np.divide(pixels, np.float32(255), dtype=np.float32)
    np.testing.assert_array_equal(canonical_bytes(x, "image"), pixels.reshape(1, 256))
    outside = np.array([[[[-0.5, 1.5]]]], np.float32)
    assert canonical_bytes(outside, "image").tolist() == [[0, 255]]
    between = np.array([[[[100.4, 100.6]]]], np.float32) / 255
    assert canonical_bytes(between, "image").tolist() == [[100, 101]]


finite = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=finite))
def test_canonical_bytes_are_equal_exactly_for_equal_records(x: np.ndarray) -> None:
    twice = np.concatenate([x, x])
    keys = [row.tobytes() for row in canonical_bytes(twice, "continuous")]
    for i in range(8):
        for j in range(8):
            assert (keys[i] == keys[j]) == bool((twice[i] == twice[j]).all())


def test_zero_has_one_sign() -> None:
    x = np.array([[0.0, 0.5], [-0.0, 0.5]], np.float32)
    first, second = canonical_bytes(x, "continuous")
    assert first.tobytes() == second.tobytes()


# --- SynthPurchase ------------------------------------------------------------------------------


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


# --- own files ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    x=hnp.arrays(np.float32, (7, 3), elements=st.sampled_from([-0.0, 0.0, 0.5, 1.0, -3.25])),
    binary=st.booleans(),
)
def test_both_formats_give_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, x: np.ndarray, binary: bool
) -> None:
    folder = tmp_path_factory.mktemp("own")
    x = (x > 0).astype(np.uint8) if binary else x
    y = np.array([2, 0, 1, 1, 0, 2, 0])
    columns = {f"f{i:03d}": x[:, i] for i in range(3)}
    for path in (
        table(folder / "own.parquet", label=y, **columns),
        arrays(folder / "own.npz", x=x, y=y),
    ):
        dataset = from_path(path)
        np.testing.assert_array_equal(dataset.x(np.arange(7)), x)
        np.testing.assert_array_equal(dataset.x([6, 2, 2]), x[[6, 2, 2]])
        np.testing.assert_array_equal(dataset.y, y)
        assert dataset.y.dtype == np.int64
        assert dataset.groups.tolist() == slow_groups([(row + 0.0).tobytes() for row in x])
        assert dataset.kind == ("binary" if set(np.unique(x)) <= {0, 1} else "continuous")
        assert dataset.shape == (3,)
        assert dataset.num_classes == 3


def test_columns_beside_named_features_are_extras(tmp_path: Path) -> None:
    dataset = from_path(
        table(
            tmp_path / "own.parquet",
            city=["Bonn", None, "Ulm"],
            f1=[0.5, 1.5, 2.5],
            label=[0, 1, 0],
            fnlwgt=[7, 8, 9],
            f000=[1, 2, 3],
        )
    )
    assert dataset.x([1]).tolist() == [[1.5, 2.0]]
    assert dataset.extras["city"].tolist() == ["Bonn", "", "Ulm"]
    assert dataset.extras["fnlwgt"].tolist() == [7, 8, 9]


def test_without_named_features_every_number_is_one_but_not_the_index(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [30, 40, 50, 60], "label": [0, 1, 0, 1], "bmi": [20.5, 25, 31, 2]})
    folder = tmp_path / "year=1"  # not a column, though some readers make it one
    folder.mkdir()
    frame[frame.age != 50].to_parquet(folder / "own.parquet")
    dataset = from_path(folder / "own.parquet")
    assert dataset.x([0, 1, 2]).tolist() == [[30, 20.5], [40, 25], [60, 2]]


def test_images_of_both_formats(tmp_path: Path) -> None:
    files = [jpeg(0), jpeg(1), jpeg(0)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    y = [0, 1, 1]
    for dataset in (
        from_path(table(tmp_path / "own.parquet", label=y, image=files, age=[5, 6, 7])),
        from_path(arrays(tmp_path / "own.npz", x=pixels, y=y, age=[5, 6, 7], classes=["a", "b"])),
    ):
        assert (dataset.kind, dataset.shape) == ("image", (3, 8, 8))
        np.testing.assert_array_equal(
            np.rint(dataset.x([2, 1]) * 255), pixels[[2, 1]].transpose(0, 3, 1, 2)
        )
        np.testing.assert_array_equal(
            canonical_bytes(dataset.x([1]), "image"),
            pixels[[1]].transpose(0, 3, 1, 2).reshape(1, -1),
        )
        assert dataset.groups.tolist() == [0, 1, 0]
        assert list(dataset.extras) == ["age"]
    grey = from_path(
        table(tmp_path / "g.parquet", label=y, image=[jpeg(i, (5, 4), "L") for i in y])
    )
    assert grey.x([0]).shape == (1, 1, 4, 5)


def test_published_purchase_layout(tmp_path: Path) -> None:
    features = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.int64)
    one_hot = np.eye(3)[[2, 0, 1, 0]]
    arrays(tmp_path / "purchase100.npz", features=features, labels=one_hot)
    dataset = load(Source("purchase100"), tmp_path)
    assert (dataset.kind, dataset.y.tolist()) == ("binary", [2, 0, 1, 0])
    arrays(tmp_path / "texas100.npz", features=features, labels=[[2], [0], [1], [0]])
    assert load(Source("texas100"), tmp_path).y.tolist() == [2, 0, 1, 0]
    assert [info.name for info in names(tmp_path) if info.available][:2] == [
        "purchase100",
        "texas100",
    ]


def test_train_and_test_halves_are_pooled(tmp_path: Path) -> None:
    x = np.arange(8.0).reshape(4, 2)
    path = arrays(tmp_path / "a.npz", x_train=x[:3], y_train=[0, 1, 1], x_test=x[3:], y_test=[0])
    dataset = from_path(path)
    np.testing.assert_array_equal(dataset.x(np.arange(4)), x)
    assert dataset.extras["split"].tolist() == ["train", "train", "train", "test"]
    path = arrays(tmp_path / "b.npz", x_train=x, y_train=[0, 1, 1, 0], x_test=x[:, :1], y_test=[0])
    with pytest.raises(ValueError, match=r"x_train is \[4, 2\] and x_test is \[4, 1\]"):
        from_path(path)


def test_the_hash_is_of_the_content_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = from_path(table(tmp_path / "a.parquet", label=[0, 1], f0=[0.25, 0.5]))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    copy = from_path(tmp_path / "b.parquet")
    assert copy.content_hash == first.content_hash
    assert from_path(tmp_path / "b.parquet") is copy
    changed = bytearray((tmp_path / "b.parquet").read_bytes())
    changed[changed.index(np.float64(0.5).tobytes())] ^= 1
    (tmp_path / "b.parquet").write_bytes(changed)
    os.utime(tmp_path / "b.parquet", ns=(1, 1))  # the clock may be too coarse to tell
    again = from_path(tmp_path / "b.parquet")
    assert again.content_hash != first.content_hash
    assert len(again.content_hash) == 64


def test_a_path_goes_before_the_data_directory_and_that_before_a_built_in(tmp_path: Path) -> None:
    table(tmp_path / "digits.parquet", label=[0, 1], f0=[0.25, 0.5])
    table(tmp_path / "other.parquet", label=[0, 1, 0], f0=[0.25, 0.5, 0.5])
    table(tmp_path / "synth_s.parquet", label=[0, 1], f0=[0.25, 0.5])
    assert len(load(Source("digits"), None)) == 1797
    assert len(load(Source("digits"), tmp_path)) == 2
    assert len(load(Source("digits", path=str(tmp_path / "other.parquet")), tmp_path)) == 3
    with pytest.raises(
        ValueError, match=r"parameters rows given, but this set is read from .*synth_s"
    ):
        load(Source("synth_s", params=(("rows", 9),)), tmp_path)


# --- errors -------------------------------------------------------------------------------------


def test_unknown_names(tmp_path: Path) -> None:
    table(tmp_path / "clinic.parquet", label=[0, 1], f0=[0.25, 0.5])
    with pytest.raises(ValueError, match=r"no dataset is named 'locatoin30'\. Did you mean 'loc"):
        load(Source("locatoin30"), None)
    with pytest.raises(ValueError, match="Did you mean 'clinic'"):
        load(Source("clinik"), tmp_path)
    with pytest.raises(ValueError, match=r"no dataset is named '../clinic'"):
        load(Source("../clinic"), tmp_path / "below")
    assert len(load(Source("clinic"), tmp_path)) == 2


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(Source("purchase100"), tmp_path)
    for words in (
        str(tmp_path / "purchase100.parquet"),
        str(tmp_path / "purchase100.npz"),
        "SFUMATO_DATA",
        "--data-dir",
        "`features` and `labels`",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no data directory is set.*`image` .JPEG"):
        load(Source("cifar100"), None)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone.npz"):
        from_path(tmp_path / "gone.npz")


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    content = path.read_bytes()
    return write_bytes(path, content[: len(content) // 2])


def corrupt_npz(path: Path) -> Path:
    arrays(path, x=np.zeros((100, 4)), y=np.arange(100) % 2)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255  # within x: its checksum fails
    return write_bytes(path, bytes(content))


F0 = [0.25, 0.5, 0.75]
IMAGES = [jpeg(0), jpeg(1), jpeg(2)]
objects = np.array([{}, {}, {}], dtype=object)

FAULTS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("csv", lambda p: write_bytes(p / "a.csv", b"label,f0\n"), "suffix is '.csv'; give a .parquet"),
    ("no parquet", lambda p: write_bytes(p / "a.parquet", b"x" * 99), "not a Parquet file"),
    (
        "truncated parquet",
        lambda p: truncated(table(p / "a.parquet", label=[0, 1, 1], f0=F0)),
        "not a Parquet file, or a damaged one",
    ),
    ("no npz", lambda p: write_bytes(p / "a.npz", b"x" * 99), "not an npz file, or a truncated"),
    (
        "truncated npz",
        lambda p: truncated(arrays(p / "a.npz", x=np.zeros((3, 2)), y=[0, 1, 1])),
        "not an npz file, or a truncated",
    ),
    ("corrupt npz", lambda p: corrupt_npz(p / "a.npz"), "a damaged npz file"),
    (
        "pickled",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 2)), y=[0, 1, 1], notes=objects),
        "array 'notes' holds pickled Python objects",
    ),
    ("no x", lambda p: arrays(p / "a.npz", z=F0, y=[0, 1, 1]), "arrays z, y; it must have `x` and"),
    ("no y", lambda p: arrays(p / "a.npz", x=np.zeros((3, 2))), "it must have `x` and `y`"),
    ("flat x", lambda p: arrays(p / "a.npz", x=F0, y=[0, 1, 1]), "`x` is float64 [3]; it must be"),
    (
        "text x",
        lambda p: arrays(p / "a.npz", x=[["a"], ["b"]], y=[0, 1]),
        "`x` is <U1 [2, 1]; it must be numbers",
    ),
    (
        "lengths",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 2)), y=[0, 1]),
        "3 records but 2 labels",
    ),
    (
        "float images",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 4, 4)), y=[0, 1, 1]),
        "images are float64 [3, 4, 4, 1]; they must be uint8",
    ),
    (
        "channels",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 3, 4, 4), np.uint8), y=[0, 1, 1]),
        "images are uint8 [3, 3, 4, 4]; they must be uint8 0..255 [n, H, W]",
    ),
    (
        "not one-hot",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 2)), y=[[1, 0], [0, 1], [1, 1]]),
        "row 2 is not one-hot",
    ),
    (
        "soft labels",
        lambda p: arrays(p / "a.npz", x=np.zeros((2, 2)), y=[[1, 0.5], [0, 1]]),
        "row 0 is not one-hot",
    ),
    ("no label", lambda p: table(p / "a.parquet", f0=F0, f1=F0), "no column `label` among f0, f1"),
    (
        "text labels",
        lambda p: table(p / "a.parquet", label=["cat", "dog", "cat"], f0=F0),
        "the first is 'cat'; they must be whole numbers 0..C-1",
    ),
    (
        "fractional",
        lambda p: table(p / "a.parquet", label=[0, 1, 0.5], f0=F0),
        "label of row 2 is 0.5; labels must be whole numbers",
    ),
    (
        "nan label",
        lambda p: table(p / "a.parquet", label=[0, float("nan"), 1], f0=F0),
        "label of row 1 is nan",
    ),
    (
        "null label",
        lambda p: table(p / "a.parquet", label=[0, None, 1], f0=F0),
        "column 'label', row 1 is missing (null)",
    ),
    (
        "negative",
        lambda p: table(p / "a.parquet", label=[0, 1, -1], f0=F0),
        "label of row 2 is -1; labels must be whole numbers 0..C-1",
    ),
    (
        "gap",
        lambda p: table(p / "a.parquet", label=[0, 1, 3], f0=F0),
        "labels run up to 3 but 1 of those classes have no record: 2;",
    ),
    (
        "from one",
        lambda p: table(p / "a.parquet", label=[1, 2, 3], f0=F0),
        "labels run up to 3 but 1 of those classes have no record: 0;",
    ),
    (
        "far label",
        lambda p: table(p / "a.parquet", label=[0, 1, 10**9], f0=F0),
        "999999998 of those classes have no record: 2, 3, 4, 5, 6 and ",
    ),
    (
        "one class",
        lambda p: table(p / "a.parquet", label=[0, 0, 0], f0=F0),
        "every label is 0; at least two classes",
    ),
    (
        "empty",
        lambda p: table(p / "a.parquet", label=pa.array([], pa.int16()), f0=pa.array([], "f4")),
        "0 rows; at least two records are needed",
    ),
    (
        "one row",
        lambda p: table(p / "a.parquet", label=[0], f0=[0.5]),
        "1 rows; at least two records are needed",
    ),
    (
        "empty images",
        lambda p: table(
            p / "a.parquet", label=pa.array([], pa.int16()), image=pa.array([], pa.binary())
        ),
        "0 rows; at least two records are needed",
    ),
    (
        "nan",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], f0=F0, f1=[1.0, 2.0, float("nan")]),
        "column 'f1', row 2 is nan (1 such values)",
    ),
    (
        "infinite",
        lambda p: arrays(p / "a.npz", x=[[0.5, 1], [0.5, -np.inf], [np.nan, 1]], y=[0, 1, 1]),
        "column '1', row 1 is -inf (2 such values)",
    ),
    (
        "too large",
        lambda p: arrays(p / "a.npz", x=[[0.5], [1e300]], y=[0, 1]),
        "column '0', row 1 is 1e+300",
    ),
    (
        "null",
        lambda p: table(
            p / "a.parquet", label=[0, 1, 1], f0=pa.array([0, None, 1], type=pa.uint8())
        ),
        "column 'f0', row 1 is missing (null)",
    ),
    (
        "text",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], age=[1, 2, 3], city=["a", "b", "c"]),
        "columns city are not numbers; encode them",
    ),
    (
        "text feature",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], f0=["a", "b", "c"], f1=F0),
        "columns f0 are not numbers; encode them",
    ),
    (
        "no features",
        lambda p: table(p / "a.parquet", label=[0, 1, 1]),
        "no feature columns; add columns f000",
    ),
    (
        "no features, npz",
        lambda p: arrays(p / "a.npz", x=np.zeros((3, 0)), y=[0, 1, 1]),
        "no feature columns; `x` is [3, 0]",
    ),
    (
        "odd extra",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], f0=F0, tags=[[1], [2], [3]]),
        "column 'tags' is list<",
    ),
    (
        "text image",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], image=["a", "b", "c"]),
        "column 'image' is string; it must be binary",
    ),
    (
        "first image",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], image=[b"GIF89a", *IMAGES[1:]]),
        "column 'image', row 0 (6 bytes) does not decode",
    ),
    (
        "truncated image",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], image=[*IMAGES[:2], IMAGES[2][:-90]]),
        "row 2 (",
    ),
    (
        "no image",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], image=[*IMAGES[:2], None]),
        "column 'image', row 2 (0 bytes) does not decode as JPEG or PNG; replace or drop",
    ),
    (
        "sizes",
        lambda p: table(p / "a.parquet", label=[0, 1, 1], image=[*IMAGES[:2], jpeg(2, (9, 8))]),
        "column 'image', row 2 is 9x8 RGB, row 0 is 8x8 RGB",
    ),
    (
        "modes",
        lambda p: table(p / "a.parquet", label=[0, 1], image=[jpeg(0, mode="L"), jpeg(1)]),
        "column 'image', row 1 is 8x8 RGB, row 0 is 8x8 L",
    ),
]


@pytest.mark.parametrize(("make", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_bad_file_is_one_clear_message(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(ValueError) as caught:
        read_all(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_bad_image_spoils_only_its_own_row(tmp_path: Path) -> None:
    dataset = from_path(table(tmp_path / "a.parquet", label=[0, 1, 1], image=[*IMAGES[:2], b"no"]))
    assert dataset.y.tolist() == [0, 1, 1]
    assert dataset.groups.tolist() == [0, 1, 2]
    assert dataset.x([1, 0]).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="row 2"):
        dataset.x([0, 2])
    with pytest.raises(ValueError, match="row 2"):
        dataset.x([2])
    np.testing.assert_array_equal(dataset.x([1]), dataset.x([1, 0])[:1])


def test_duplicate_columns_are_named(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays(
        [pa.array([0, 1]), pa.array([0.5, 1]), pa.array([2, 3])], names=["label", "f0", "f0"]
    )
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="columns f0 appear twice"):
        from_path(tmp_path / "a.parquet")
