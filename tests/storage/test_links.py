"""A link that leads out of a store is found; others are let be."""

import os
from pathlib import Path

import pytest

from storage.links import stray


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for folder in ("artifacts/ab", "tables/results", "experiments/tiny/forms", "damaged"):
        (tmp_path / "store" / folder).mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return tmp_path / "store"


@pytest.mark.parametrize(
    "place",
    [
        "artifacts/cd",
        "tables/scores",
        "experiments/other",
        "experiments/tiny/images",
        "mlflow.db",
        "mlflow.db.lock",
        "optuna.journal",
        "unknown",
    ],
)
@pytest.mark.parametrize("target", ["out", "out/not-there", "store-beside"])
def test_a_link_out_of_a_store_is_found(store: Path, place: str, target: str) -> None:
    (store / place).symlink_to(store.parent / target)
    assert stray(store) == store / place


@pytest.mark.parametrize("place", ["artifacts", "tables", "experiments", "damaged"])
def test_a_whole_folder_that_is_elsewhere_is_found(store: Path, place: str) -> None:
    (store / place).rename(store.parent / "moved")
    (store / place).symlink_to(os.path.join("..", "moved"))
    assert stray(store) == store / place


def test_links_within_a_store_and_to_all_of_it_are_let_be(store: Path) -> None:
    (store / "artifacts" / "cd").symlink_to("ab")
    (store / "here").symlink_to(".")
    (store / "loop").symlink_to("loop")
    part = store / "tables" / "results" / "part-x.parquet"
    part.symlink_to(store.parent / "out" / "x")  # is only read, and replaced as a link
    assert stray(store) is None
    (store.parent / "alias").symlink_to(store)
    assert stray(store.parent / "alias") is None
    assert stray(store.parent / "not there") is None
