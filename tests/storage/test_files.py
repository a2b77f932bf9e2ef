"""A person's own files, in every layout that is understood."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.datasets import Source, load, names


def slow_groups(records: list[bytes]) -> list[int]:
    return [records.index(record) for record in records]


@settings(max_examples=20, deadline=None)
@given(
    x=hnp.arrays(np.float32, (7, 3), elements=st.sampled_from([-0.0, 0.0, 0.5, 1.0, -3.25])),
    binary=st.booleans(),
)
def test_both_formats_give_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, files_in: Any, x: np.ndarray, binary: bool
) -> None:
    files = files_in(tmp_path_factory.mktemp("own"))
    x = (x > 0).astype(np.uint8) if binary else x
    y = np.array([2, 0, 1, 1, 0, 2, 0])
    columns = {f"f{i:03d}": x[:, i] for i in range(3)}
    for path in (
        files.table("own.parquet", label=y, **columns),
        files.arrays("own.npz", x=x, y=y),
    ):
        dataset = files.read(path)
        np.testing.assert_array_equal(dataset.x(np.arange(7)), x)
        np.testing.assert_array_equal(dataset.x([6, 2, 2]), x[[6, 2, 2]])
        np.testing.assert_array_equal(dataset.y, y)
        assert dataset.y.dtype == np.int64
        assert dataset.groups.tolist() == slow_groups([(row + 0.0).tobytes() for row in x])
        assert dataset.kind == ("binary" if set(np.unique(x)) <= {0, 1} else "continuous")
        assert dataset.shape == (3,)
        assert dataset.num_classes == 3


def test_columns_beside_named_features_are_extras(files: Any) -> None:
    dataset = files.read(
        files.table(
            "own.parquet",
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


def test_without_named_features_every_number_is_one_but_not_the_index(
    tmp_path: Path, files: Any
) -> None:
    frame = pd.DataFrame({"age": [30, 40, 50, 60], "label": [0, 1, 0, 1], "bmi": [20.5, 25, 31, 2]})
    folder = tmp_path / "year=1"  # not a column, though some readers make it one
    folder.mkdir()
    frame[frame.age != 50].to_parquet(folder / "own.parquet")
    dataset = files.read(folder / "own.parquet")
    assert dataset.x([0, 1, 2]).tolist() == [[30, 20.5], [40, 25], [60, 2]]


def test_published_purchase_layout(tmp_path: Path, files: Any) -> None:
    features = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.int64)
    one_hot = np.eye(3)[[2, 0, 1, 0]]
    files.arrays("purchase100.npz", features=features, labels=one_hot)
    dataset = load(Source("purchase100"), tmp_path)
    assert (dataset.kind, dataset.y.tolist()) == ("binary", [2, 0, 1, 0])
    files.arrays("texas100.npz", features=features, labels=[[2], [0], [1], [0]])
    assert load(Source("texas100"), tmp_path).y.tolist() == [2, 0, 1, 0]
    assert [info.name for info in names(tmp_path) if info.available][:2] == [
        "purchase100",
        "texas100",
    ]


def test_train_and_test_halves_are_pooled(files: Any) -> None:
    x = np.arange(8.0).reshape(4, 2)
    path = files.arrays("a.npz", x_train=x[:3], y_train=[0, 1, 1], x_test=x[3:], y_test=[0])
    dataset = files.read(path)
    np.testing.assert_array_equal(dataset.x(np.arange(4)), x)
    assert dataset.extras["split"].tolist() == ["train", "train", "train", "test"]
    path = files.arrays("b.npz", x_train=x, y_train=[0, 1, 1, 0], x_test=x[:, :1], y_test=[0])
    with pytest.raises(ValueError, match=r"x_train is \[4, 2\] and x_test is \[4, 1\]"):
        files.read(path)
