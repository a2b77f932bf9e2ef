"""What there is: every attack, defense, dataset, architecture and experiment by name."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from rich.table import Table

from orchestrator.source import packaged
from storage import datasets
from tasks import architectures, plugins

__all__ = ["KINDS", "table"]

KINDS = ("attacks", "defenses", "datasets", "architectures", "experiments")


def table(what: str, data_dir: Path | None) -> Table:
    """A table of everything of one kind: name, one line, source."""
    columns = {
        "attacks": ("name", "threat model", "what it does", "source"),
        "defenses": ("name", "what it does", "source"),
        "datasets": ("name", "records", "classes", "here", "what it is", "split D1/D2/D3"),
        "architectures": ("name", "what it is"),
        "experiments": ("name", "what it shows"),
    }[what]
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column == "name")
    rows = {
        "attacks": _attacks,
        "defenses": _defenses,
        "architectures": _architectures,
        "experiments": _experiments,
    }
    for row in _datasets(data_dir) if what == "datasets" else rows[what]():
        made.add_row(*row)
    return made


def _attacks() -> Iterator[tuple[str, ...]]:
    for name in plugins.names("attacks"):
        cls = plugins.attack(name)
        yield name, cls.THREAT_MODEL, plugins.summary(cls), plugins.source(cls)


def _defenses() -> Iterator[tuple[str, ...]]:
    for name in plugins.names("defenses"):
        cls = plugins.defense(name)
        yield name, plugins.summary(cls), plugins.source(cls)


def _datasets(data_dir: Path | None) -> Iterator[tuple[str, ...]]:
    for info in datasets.names(data_dir):
        sizes = "/".join(str(size) for size in info.default_split.values())
        here = "yes" if info.available else "no"
        yield info.name, str(info.rows), str(info.classes), here, info.summary, sizes


def _architectures() -> Iterator[tuple[str, ...]]:
    for name in architectures.names():
        yield name, architectures.summary(name)


def _experiments() -> Iterator[tuple[str, ...]]:
    for name, path in packaged().items():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        yield name, " ".join(str(content.get("description", "")).split())
