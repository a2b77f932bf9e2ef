"""Bad data of one's own: exit code 2 before any work, with file, column and row."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

N = 200
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = np.arange(N) % 3
PIXELS = RNG.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)


def put(array: np.ndarray, place: Any, value: Any, dtype: Any = None) -> np.ndarray:
    changed = array.astype(dtype or array.dtype)
    changed[place] = value
    return changed


def jpeg(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        # records
        ({"x": put(X, (7, 2), np.nan)}, ["column '2', row 7 is nan", "fill or drop"]),
        ({"x": put(X, (7, 2), np.inf)}, ["column '2', row 7 is inf", "fill or drop"]),
        ({"x": put(X, (7, 2), -np.inf)}, ["column '2', row 7 is -inf", "fill or drop"]),
        ({"x": put(X, (7, 2), 1e300, float)}, ["row 7 is 1e+300", "float32"]),
        ({"x": X.astype(object)}, ["'x'", "pickled", "never loaded"]),
        ({"x": X[:, :0]}, ["no feature columns", "[200, 0]", "at least 1"]),
        ({"x": X[:, 0]}, ["[200]", "numbers [n, D]"]),
        ({"x": X.astype(complex)}, ["complex128", "numbers [n, D]"]),
        ({"x": X[:-1]}, ["199 records but 200 labels"]),
        ({"x": PIXELS / 255}, ["images are float64", "uint8 0..255"]),
        ({"x": PIXELS[..., [0, 1]]}, ["[200, 8, 8, 2]", "[n, H, W, 3]"]),
        # labels
        ({"y": 0 * Y}, ["every label is 0", "two classes"]),
        ({"y": 2 * Y}, ["no record: 1, 3", "without gaps"]),
        ({"y": Y - 1}, ["label of row 0 is -1", "0..C-1"]),
        ({"y": Y + 0.5}, ["label of row 0 is 0.5", "whole numbers"]),
        ({"y": put(Y, 4, np.nan, float)}, ["label of row 4 is nan", "whole numbers"]),
        ({"y": put(Y, 4, 2**40)}, ["label of row 4 is 1099511627776"]),
        ({"y": np.array(["a", "b", "c"])[Y]}, ["the first is 'a'", "whole numbers"]),
        ({"y": np.stack([Y, Y], axis=1)}, ["row 0 is not one-hot"]),
        # sizes
        ({"x": X[:0], "y": Y[:0]}, ["0 rows", "at least two"]),
        ({"x": X[:1], "y": Y[:1]}, ["1 rows", "at least two"]),
        ({"x": X[:50], "y": Y[:50]}, ["datasets[0].split", "180 records", "50", "smaller"]),
        ({"x": np.ones_like(X)}, ["datasets[0].split", "no duplicate group fits", "dedup"]),
        # names
        ({"x": None, "z": X}, ["arrays y, z", "`x` and `y`"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_arrays(place: Any, arrays: dict[str, Any], parts: list[str]) -> None:
    made = {name: array for name, array in {"x": X, "y": Y, **arrays}.items() if array is not None}
    np.savez(place.folder / "own.npz", **made)
    place.refused(place.own(place.folder / "own.npz"), "tiny.yaml: 1 problem line ", *parts)
    assert not place.store.exists()


def columns(**changed: Any) -> dict[str, Any]:
    return {"label": Y, "age": X[:, 0], **changed}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (columns(city=["Basel"] * N), ["columns city are not numbers", "encode"]),
        (columns(born=pa.array([0] * N, pa.timestamp("s"))), ["born", "not numbers"]),
        (columns(age=pa.array([*X[1:, 0], None])), ["column 'age', row 199", "null"]),
        (columns(age=put(X[:, 0], 5, np.nan)), ["column 'age', row 5 is nan"]),
        (columns(label=pa.array([None, *Y[1:]])), ["column 'label', row 0", "null"]),
        (columns(label=["x"] * N), ["the first is 'x'", "whole numbers"]),
        ({"age": X[:, 0]}, ["no column `label` among age", "name the class column"]),
        ({"label": Y}, ["no feature columns", "f000"]),
        ({"label": Y[:0], "age": X[:0, 0]}, ["0 rows", "at least two"]),
        ({"label": Y, "image": ["x"] * N}, ["'image' is string", "binary"]),
        ({"label": Y, "image": [b"x", *[jpeg(0)] * (N - 1)]}, ["'image', row 0 (1 bytes)", "drop"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_columns(place: Any, table: dict[str, Any], parts: list[str]) -> None:
    pq.write_table(pa.table(table), place.folder / "own.parquet")
    place.refused(place.own(place.folder / "own.parquet"), "own.parquet: ", *parts)


def test_a_column_that_appears_twice(place: Any) -> None:
    table = pa.Table.from_arrays([pa.array(a) for a in (Y, X[:, 0], X[:, 1])], ["label", "a", "a"])
    pq.write_table(table, place.folder / "own.parquet")
    place.refused(place.own(place.folder / "own.parquet"), "columns a appear twice", "rename")


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        ([*[jpeg(i) for i in range(N - 1)], jpeg(1, 9)], ["row 199 is 9x9", "row 0 is 8x8"]),
        ([*[jpeg(i) for i in range(N - 1)], jpeg(1)[:150]], ["row 199 (150 bytes)", "decode"]),
        ([*[jpeg(i) for i in range(N - 1)], None], ["row 199 (0 bytes)", "decode"]),
    ],
    ids=["size", "corrupted", "missing"],
)
def test_an_image_that_is_wrong_is_found_at_the_latest_when_it_is_read(
    place: Any, images: list[Any], parts: list[str]
) -> None:
    """Nothing is decoded before a task asks for it; no task may go on without it."""
    file = place.folder / "own.parquet"
    pq.write_table(pa.table({"label": Y, "image": images}), file)
    said = place.own(file, split={"members": 70, "reference": 70, "nonmembers": 60})
    assert said.code in (1, 2), said.text
    for part in ("own.parquet", "column 'image'", *parts):
        assert part in said.flat, said.text
    if said.code == 1:
        assert not list((place.store / "tables" / "results").glob("*.parquet"))


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("own.npz", truncate, "truncated"),
        ("own.npz", flip, "damaged npz"),
        ("own.npz", lambda content: b"", "not an npz file"),
        ("own.npz", lambda content: b"PK\x05\x06" + bytes(18), "arrays (none)"),
        ("own.parquet", truncate, "damaged"),
        ("own.parquet", lambda content: b"", "damaged"),
        ("own.parquet", lambda content: b"PAR1" + bytes(99) + b"PAR1", "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_damaged_file(place: Any, name: str, damage: Any, part: str) -> None:
    file = place.folder / name
    if name.endswith("npz"):
        np.savez(file, x=X, y=Y)
    else:
        pd.DataFrame(columns()).to_parquet(file)
    file.write_bytes(damage(file.read_bytes()))
    place.refused(place.own(file), "datasets[0]", name, part)


def test_an_array_that_says_it_has_terabytes(place: Any) -> None:
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**4)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(place.folder / "own.npz", "w") as file:
        file.writestr("x.npy", head.getvalue() + bytes(100))
    place.refused(place.own(place.folder / "own.npz"), "datasets[0]", "memory", "smaller")


def test_files_that_are_none(place: Any) -> None:
    (place.folder / "own.csv").write_text("label,age\n0,1\n")
    np.save(place.folder / "own.npy", X.astype(object), allow_pickle=True)
    (place.folder / "folder.npz").mkdir()
    place.refused(place.own(place.folder / "own.csv"), "'.csv'", ".parquet or .npz")
    place.refused(place.own(place.folder / "own.npy"), "'.npy'", ".parquet or .npz")
    place.refused(place.own(place.folder / "gone.npz"), "gone.npz", "check `path`")
    place.refused(place.own(place.folder / "folder.npz"), "folder.npz", "check `path`")
    place.refused(place.own("a\x00b"), "a\\x00b", "check `path`")
    place.refused(place.own("x" * 5000), "File name too long", "check `path`")


def test_a_split_larger_than_the_data(place: Any) -> None:
    data = place.experiment["datasets"][0]
    split = {"members": 200, "reference": 60, "nonmembers": 60}
    said = place.run(datasets=[{**data, "split": split}])
    place.refused(said, "datasets[0].split", "320", "300", "smaller")
    said = place.run(datasets=[{**data, "split": {**split, "members": 10**30}}])
    place.refused(said, "datasets[0].split", "300", "smaller")


def test_a_split_that_is_missing(place: Any) -> None:
    np.savez(place.folder / "own.npz", x=X, y=Y)
    said = place.run(datasets=[{"name": "own", "path": str(place.folder / "own.npz")}])
    place.refused(said, "datasets[0].split", "'own' has no default split", "add split:")


def test_a_network_that_does_not_fit_the_records(place: Any) -> None:
    np.savez(place.folder / "own.npz", x=X, y=Y)
    said = place.own(place.folder / "own.npz", target="cnn_s")
    place.refused(said, "target.architecture", "cnn needs images", "[5]", "mlp")
    np.savez(place.folder / "own.npz", x=PIXELS[:, :2, :2], y=Y)
    place.refused(place.own(place.folder / "own.npz", target="cnn_s"), "[3, 2, 2]", "too small")


def test_a_dataset_that_is_not_in_the_data_folder(place: Any) -> None:
    said = place.run("--data-dir", str(place.folder), datasets=["retail100"])
    place.refused(said, "retail100", str(place.folder), "--data-dir")


def test_a_data_folder_that_does_not_exist(place: Any) -> None:
    said = place.run("--data-dir", str(place.folder / "none"))
    place.refused(said, str(place.folder / "none"), "does not exist", "--data-dir")


def test_a_file_that_changed_between_plan_and_run(place: Any) -> None:
    """A plan names its data by content, so a task never computes on other data."""
    from orchestrator.check import load_experiment
    from orchestrator.plan import make_plan
    from tasks.worker import Site, execute

    file = place.folder / "own.npz"
    np.savez(file, x=X, y=Y)
    sizes = {"members": 60, "reference": 60, "nonmembers": 60}
    data = {"name": "own", "path": str(file), "split": sizes}
    plan = make_plan(load_experiment(place.file(datasets=[data])), None)
    np.savez(file, x=X + 1, y=Y)
    split = next(iter(plan.tasks.values()))
    with pytest.raises(ValueError, match=r"'own' changed since the plan was made.*run again"):
        execute(split, Site(place.store / "artifacts"), "w")
    assert not place.artifacts()


def test_a_training_that_diverges_is_told_with_the_remedy(place: Any) -> None:
    """Only training can tell; nothing is reported of such a model."""
    recipe = {"architecture": "mlp_s", "epochs": 2, "learning_rate": 1e300}
    said = place.run(target=recipe)
    assert said.code == 1, said.text
    for part in ("TrainTarget", "became nan in epoch", "lower learning_rate (now 1e+300)"):
        assert part in said.flat, said.text
    assert not list(Path(place.store / "tables" / "results").glob("*.parquet"))
