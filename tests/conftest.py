"""How tests share the machine when several run at once (`pytest -n 2 --dist loadgroup`)."""

import os

import pytest


def pytest_configure() -> None:
    """Without a terminal there is no width, though xdist tells its workers one of 80 columns."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run one after another: each takes all cores."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
