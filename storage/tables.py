"""The tables of results: Parquet part files named by task key, and views that join them."""

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from storage._cells import IDENTITY, SHOWN, Forms, union
from storage._disk import (
    check_key,
    draft_name,
    sync_folder,
    write_synced,
    writing_to,
)
from storage._part import SEAL, PartDamagedError, digest, read_part
from storage._schemas import (
    MEASURED,
    SCHEMAS,
    TEXT,
    Content,
    check_table,
    key_column,
    to_arrow,
)

__all__ = ["IDENTITY", "MEASURED", "SCHEMAS", "Tables", "equal", "view_schema"]

# What a view shows of its cell, and as what: a cell's attack is a label, a result's is a name.
_FORM = {name: name for name in ("current", "form", "settings")}
_SHARED = {name: name for name in ("experiment", "label", "preset", "status", "service")} | _FORM
_JOINED = {
    "results": _SHARED | {"attack": "attack_label"},
    "utility": _SHARED,
    "worst": _SHARED,
    "inversion": _SHARED | {"attack": "attack_label"},
    "attribute": _SHARED | {"attack": "attack_label"},
    "gates": {name: name for name in ("experiment", "status")} | _FORM,
}

# Which view shows what fills a cell of each kind.
_FILLS = {
    "attack": "results",
    "utility": "utility",
    "worst": "worst",
    "check": "gates",
    "inversion": "inversion",
    "attribute": "attribute",
}


class Tables:
    """The tables under one folder: a part file a task key, written whole or not at all.

    A damaged part is never trusted and never fatal: it is renamed to end in `.damaged`, so that
    its task counts as not done.

    Attributes:
        problems: a line for every damaged part met so far, or other cause to doubt an answer.
        forms: the forms of experiments whose cells are kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.forms = Forms(self.root / "cells")
        self.problems: list[str] = []

    def write(self, table: str, key: str, rows: Content) -> None:
        """Replace the part of `key`.

        Args:
            table: a table of `SCHEMAS` other than cells.
            key: the task key; fills the key column of rows that leave it out.
            rows: values by column; what is left out or None becomes null. Many rows are written
                fastest as one mapping of columns, each an array or list [N].

        Raises:
            ValueError: an unknown table or column, columns of unequal lengths or of another shape
                than [N], a number out of range, or a row that says another key.
            TypeError: a value of the wrong type.
            StoreUnwritable: the disk is full, read-only or forbidden.
        """
        path = self._part(table, key)
        self._replace(path, to_arrow(table, rows, key_column(table), key))

    def write_cells(
        self, experiment: str, rows: Sequence[Mapping[str, Any]], form: str = ""
    ) -> None:
        """Replace the cells of one form of `experiment`; raises as `write` and `Forms.path`."""
        path = self.forms.path(experiment, form)
        named = [{**row, "form": form} for row in rows] if form else rows
        self._replace(path, to_arrow("cells", named, "experiment", experiment))

    def remove(self, table: str, key: str) -> None:
        """Forget the part of `key`, if there is one."""
        with writing_to(self.root):
            self._part(table, key).unlink(missing_ok=True)

    def lacking(self, table: str, keys: Iterable[str]) -> set[str]:
        """Those of `keys` without a sound part; damaged parts are set aside."""
        return {key for key in set(keys) if self._sound(table, self._part(table, key)) is None}

    def rows(self, table: str, keys: Iterable[str]) -> pd.DataFrame:
        """The rows of these tasks as they were written; reads no other parts."""
        paths = [self._part(table, key) for key in sorted(set(keys))]
        frame: pd.DataFrame = self._read(table, paths).to_pandas()
        return frame

    def frame(
        self, view: str, experiment: str | None = None, form: str | None = None
    ) -> pd.DataFrame:
        """A table as people see it: results of all kinds joined with the cells asking for them.

        Cells are those of all forms kept of an experiment, each once, and say whether they are
        `current`: asked for by the form last run, if with another seed.

        Args:
            view: a table of `SCHEMAS`. Results, inversion and attribute also show experiment,
                label, preset, status, service, current, form, settings and attack_label, utility
                and worst all but the last, gates experiment, status, current, form and settings:
                a row per cell and row of its task.
            experiment: only what its cells ask for; reads no other parts.
            form: only what this form of it asks for.

        Raises:
            ValueError: an unknown table, or `experiment` with a table whose rows belong to tasks
                that experiments share and cells do not name (tasks, failures), or to studies
                (trials, judged).
        """
        frame: pd.DataFrame = self.view(view, experiment, form).to_pandas()
        return frame

    def view(self, view: str, experiment: str | None = None, form: str | None = None) -> Any:
        """As `frame`, in Arrow."""
        check_table(view)
        if view in ("tasks", "failures", "trials", "judged") and experiment is not None:
            raise ValueError(
                f"{view} cannot be told by experiment: cells name only the last task of a cell. "
                f"Take frame({view!r}) and keep the rows whose keys are in the plan"
            )
        if view not in (*_JOINED, "cells") and experiment is None:
            return self._read(view, self.parts(view))
        cells = self._asked(experiment, form)
        if view == "cells":
            return cells
        keys = cells["task_key"].to_pylist()
        wanted = sorted({key for key in keys if key})
        if experiment is None:
            held = {path.name for path in self.parts(view)}
            wanted = [key for key in wanted if f"part-{key}.parquet" in held]
        rows = self._read(view, [self._part(view, key) for key in wanted])
        if view == "scores":
            return rows
        self._report_missing(view, cells, set(rows["task_key"].to_pylist()))
        return _join(cells, rows, _JOINED[view])

    def _asked(self, experiment: str | None, form: str | None) -> Any:
        """The cells of an experiment, or of all, each once."""
        told = [SHOWN.empty_table()]
        for name in self.forms.experiments() if experiment is None else [experiment]:
            wanted = [each for each in self.forms.of(name) if form in (None, each)]
            paths = {each: self.forms.path(name, each) for each in wanted}
            parts = {each: self._read("cells", [path]) for each, path in paths.items()}
            told.append(union(parts, self.forms.current(name) if form is None else form))
        return pa.concat_tables(told)

    def _report_missing(self, view: str, cells: Any, held: set[str]) -> None:
        """Say that finished cells lack their rows: a mean over the others is another mean."""
        columns = (cells[name].to_pylist() for name in ("kind", "status", "task_key"))
        done = {
            k
            for kind, status, k in zip(*columns, strict=True)
            if _FILLS.get(kind) == view and status == "done"
        }
        if missing := len(done - held):
            self.problems.append(
                f"{view} lacks the rows of {missing} finished cells; `sfumato run` of their "
                "experiments writes them again"
            )

    def parts(self, table: str) -> list[Path]:
        """The parts of a table, whether sound or not."""
        pattern = "*.parquet" if table == "cells" else "part-*.parquet"
        return sorted((self.root / table).glob(pattern))

    def _part(self, table: str, key: str) -> Path:
        check_table(table)
        if table == "cells":
            raise ValueError("cells belong to an experiment, not to a task; use write_cells")
        return self.root / table / f"part-{check_key(key)}.parquet"

    def _replace(self, path: Path, table: Any) -> None:
        sink = pa.BufferOutputStream()
        # Page checksums do not cover the footer: one wrong bit there can make a value null.
        sealed = table.replace_schema_metadata({SEAL: digest(table)})
        # Most parts are one row wide: compressing its 40 columns one by one costs time and gains
        # nothing. No dictionary for numbers: it makes all NaNs one NaN.
        long = len(table) > 100
        pq.write_table(
            sealed,
            sink,
            compression="zstd" if long else "none",
            use_dictionary=[field.name for field in table.schema if long and field.type == TEXT],
            write_statistics=False,
            write_page_checksum=True,
        )
        draft = path.parent / draft_name()
        with writing_to(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_synced(draft, memoryview(sink.getvalue()))
                if path.is_dir():
                    self._set_aside(path, "it is a folder")
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _sound(self, table: str, path: Path) -> Any | None:
        """The rows of a part, or None if there is none; a damaged one is set aside."""
        try:
            return read_part(table, path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PartDamagedError as damage:
            self._set_aside(path, str(damage))
        return None

    def _set_aside(self, path: Path, fault: str) -> None:
        problem = f"{path} is damaged ({fault})"
        aside, number = path.with_suffix(".damaged"), 0
        try:
            while aside.is_dir() or (path.is_dir() and aside.exists()):  # never replaced by a name
                number += 1
                aside = path.with_suffix(f".damaged-{number}")
            path.replace(aside)
            problem += "; it was set aside, a run that needs it writes it again"
        except OSError as error:  # gone meanwhile, or the store is read-only: it is skipped anyway
            problem += f"; it is ignored, as it could not be set aside ({error.strerror})"
        self.problems.append(problem)

    def _read(self, table: str, paths: Iterable[Path]) -> Any:
        parts = [part for path in paths if (part := self._sound(table, path)) is not None]
        return pa.concat_tables([SCHEMAS[table].empty_table(), *parts])


def view_schema(view: str) -> Any:
    """The columns of a view, whether or not there are rows."""
    if view == "cells":
        return SHOWN
    rows = SCHEMAS[view].empty_table()
    if view in _JOINED:
        rows = _join(SHOWN.empty_table(), rows, _JOINED[view])
    return rows.schema


def equal(
    a: Tables,
    b: Tables,
    tables: Iterable[str] = (
        *("results", "utility", "scores", "worst", "gates"),
        *("inversion", "attribute"),
    ),
) -> list[str]:
    """How two stores differ, but for measured columns, the order of rows and timing attacks.

    Floats are compared bit for bit; one NaN is as good as another.

    Returns:
        A line for each difference; empty if the tables are equal.
    """
    differences = []
    timing = _timing_keys(a) | _timing_keys(b)
    for table in tables:
        names = {path.name: path for path in a.parts(table)}
        others = {path.name: path for path in b.parts(table)}
        for name in sorted(names.keys() | others.keys()):
            mine = a._sound(table, names[name]) if name in names else None
            theirs = b._sound(table, others[name]) if name in others else None
            if mine is None or theirs is None:
                where = "second" if mine is None else "first"
                differences.append(f"{table}/{name}: sound only in the {where} store")
            elif table not in ("results", "scores") or name not in timing:
                differences += [f"{table}/{name}: {line}" for line in _differences(mine, theirs)]
    return differences


def _timing_keys(tables: Tables) -> set[str]:
    rows = tables._read("results", tables.parts("results"))
    pairs = zip(rows["task_key"].to_pylist(), rows["attack"].to_pylist(), strict=True)
    return {f"part-{key}.parquet" for key, attack in pairs if attack == "timing"}


def _differences(a: Any, b: Any) -> Iterator[str]:
    names = [name for name in a.column_names if name not in MEASURED]
    a, b = a.select(names), b.select(names)
    if digest(a) == digest(b):
        return
    mine, theirs = _bits(a), _bits(b)
    only_a, only_b = list((mine - theirs).elements()), list((theirs - mine).elements())
    if len(only_a) == len(only_b) == 1:
        for name, left, right in zip(names, only_a[0], only_b[0], strict=True):
            if left != right:
                yield f"{name} is {_shown(left)} in the first, {_shown(right)} in the second"
    elif only_a or only_b:
        yield f"{len(only_a)} rows only in the first, {len(only_b)} only in the second"


def _bits(table: Any) -> Counter[tuple[Any, ...]]:
    """Rows as tuples in which floats are their bytes, so that -0.0 is not 0.0."""
    columns = [map(_exact, column.to_pylist()) for column in table.columns]
    return Counter(zip(*columns, strict=True))


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_exact, value))
    if isinstance(value, float):
        return b"nan" if value != value else struct.pack(">d", value)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bytes) and value != b"nan":
        return repr(struct.unpack(">d", value)[0])
    return "nan" if value == b"nan" else repr(value)


def _join(cells: Any, rows: Any, shown: Mapping[str, str]) -> Any:
    """A row for each cell and row of its task, in the order of the cells."""
    found: dict[str, list[int]] = {}
    for index, key in enumerate(rows["task_key"].to_pylist()):
        found.setdefault(key, []).append(index)
    keys = cells["task_key"].to_pylist()
    pairs = [(cell, row) for cell, key in enumerate(keys) for row in found.get(key, ())]
    left = cells.take(pa.array([cell for cell, _ in pairs], pa.int64()))
    right = rows.take(pa.array([row for _, row in pairs], pa.int64()))
    columns = {name: left[column] for column, name in shown.items()}
    return pa.table(columns | {name: right[name] for name in rows.column_names})
