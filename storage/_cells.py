"""The forms an experiment was run in: where their cells are, and all of them as one table."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage._disk import check_name, write_whole, writing_to
from storage._schemas import BOOL, SCHEMAS

_FORM = re.compile(r"[0-9a-f]{12}")
_STEM = re.compile(r"([a-z0-9_-][a-z0-9_.-]*)(?:@([0-9a-f]{12}))?")

# Cells of two forms that agree in these are one cell.
IDENTITY = ("label", "preset", "dataset", "seed", "defense", "attack", "kind", "task_key")
# Cells that agree in these differ at most in their seed.
_ALIKE = ("label", "dataset", "attack", "kind", "settings")

SHOWN = SCHEMAS["cells"].append(pa.field("current", BOOL))
"""The columns of the view: a cell, a form that asks for it, and whether it is current."""


class Forms:
    """The parts of the table `cells`: one for each form that an experiment was run in.

    A form is named by 12 hexadecimal digits; "" is the one form of an experiment in a store that
    was made before forms were kept. Which form was run last is a file of its own, written after
    the cells, so that a crash between the two leaves the form before it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, experiment: str, form: str) -> Path:
        """The part of one form.

        Raises:
            ValueError: what is no name, or no form.
        """
        at = f"@{form}" if _checked(form) else ""
        return self.folder / f"{check_name(experiment)}{at}.parquet"

    def experiments(self) -> list[str]:
        """The experiments that have cells."""
        return sorted({name for name, _ in self._all()})

    def of(self, experiment: str) -> list[str]:
        """The forms of `experiment` that have cells; raises as `path`."""
        check_name(experiment)
        return [form for name, form in self._all() if name == experiment]

    def current(self, experiment: str) -> str | None:
        """The form of `experiment` that was run last, None if that is not known."""
        forms = self.of(experiment)
        try:
            told = self._pointer(experiment).read_text(encoding="ascii")
        except (OSError, ValueError):  # the next run writes it anew
            told = ""
        if _FORM.fullmatch(told):
            return told
        return forms[0] if "" in forms or len(forms) == 1 else None

    def set_current(self, experiment: str, form: str) -> None:
        """Say which form was run last.

        Raises:
            ValueError: as `path`.
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        write_whole(self._pointer(experiment), _checked(form))

    def forget(self, experiment: str, form: str | None = None) -> None:
        """Remove the cells of one form, or of all (None), if they are there.

        Raises:
            ValueError: as `path`.
            StoreUnwritable: the disk is read-only or forbidden.
        """
        gone = [self.path(experiment, each) for each in self.of(experiment) if form in (None, each)]
        if form is None:
            gone.append(self._pointer(experiment))
        with writing_to(self.folder):
            for path in gone:
                path.unlink(missing_ok=True)

    def _all(self) -> list[tuple[str, str]]:
        found = (_STEM.fullmatch(path.stem) for path in sorted(self.folder.glob("*.parquet")))
        return [(match[1], match[2] or "") for match in found if match]

    def _pointer(self, experiment: str) -> Path:
        return self.folder / f"{check_name(experiment)}.current"


def _checked(form: str) -> str:
    if form and not _FORM.fullmatch(form):
        raise ValueError(f"{form!r} names no form of an experiment: expected 12 digits 0-9 and a-f")
    return form


def union(parts: Mapping[str, Any], current: str | None) -> Any:
    """The cells of several forms of one experiment, those of the current form first.

    Args:
        parts: rows of the table `cells` by form.
        current: the form run last.

    Returns:
        Columns as `SHOWN`. A cell is current if the current form has it, or has it with another
        seed and the same settings.
    """
    forms = sorted(parts, key=lambda form: (form != current, form))
    rows = pa.concat_tables([SCHEMAS["cells"].empty_table(), *(parts[form] for form in forms)])
    cells = rows.to_pylist()
    num_current = len(parts[current]) if current is not None and current in parts else 0
    kept: dict[tuple[Any, ...], int] = {}
    for at, cell in enumerate(cells):
        identity = tuple(cell[name] for name in IDENTITY)
        known = kept.setdefault(identity, at)
        # Of two earlier forms the one that was run on knows more.
        if num_current <= known < at and cell["status"] == "done":
            kept[identity] = at
    asked = {_alike(cell) for cell in cells[:num_current] if cell["settings"]}
    now = [at < num_current or _alike(cells[at]) in asked for at in kept.values()]
    taken = rows.take(pa.array(list(kept.values()), pa.int64()))
    return taken.append_column(SHOWN.field("current"), pa.array(now, BOOL))


def _alike(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in _ALIKE)
