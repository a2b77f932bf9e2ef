"""An experiment file as text: where each key stands, and settings changed from outside."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from orchestrator._problem import ConfigError, Problem, nearest, readable
from orchestrator._yaml import DEEPEST, parsed

__all__ = ["ConfigError", "Content", "Problem", "nearest", "packaged", "read", "readable"]

_MOST_BYTES = 1_000_000
_STEP = re.compile(r"([^.\[\]=\s]+)|\[(\d{1,6})\]")
_SETTING = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[\d{1,6}\])*")


@dataclass
class Content:
    """What a file says, its relative paths made absolute from its folder.

    Attributes:
        path: the file.
        raw: its keys; no two places share an object, so that one can be changed alone.
        lines: the line of every path in it.
        problems: keys given twice, values that cannot be read, settings that do not fit.
        changed: paths set from outside.
    """

    path: Path
    raw: dict[str, Any]
    lines: dict[str, int]
    problems: list[Problem] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)

    def set(self, setting: str) -> None:
        """Change one value, as "key=value" with a dotted path and a YAML value."""
        path, equals, text = setting.partition("=")
        setting = readable(setting, 100)
        if not equals or not _SETTING.fullmatch(path):
            message = f"'{setting}' is not key=value, as in target.epochs=5 or seeds=[0,1]"
            self.problems.append(Problem("--set", message))
            return
        value, _, problems = parsed(text)
        if problems:
            listed = [Problem("--set", f"'{setting}': {p.message}") for p in problems]
            self.problems += listed
            return
        steps = [int(i) if i else name for name, i in _STEP.findall(path)]
        deep = f"nested deeper than {DEEPEST} levels" if len(steps) > DEEPEST else None
        fault = deep or _put(self.raw, steps, value)
        if fault:
            self.problems.append(Problem("--set", f"'{setting}' does not fit: {fault}"))
        self.changed.add(path)
        self.root_paths(Path())  # said on the command line, so meant from where that is

    def root_paths(self, folder: Path) -> None:
        """Make every relative `path` of a dataset absolute, from a folder; others are left."""
        entries = self.raw.get("datasets")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(path := entry.get("path"), str) and path:
                entry["path"] = os.path.abspath(folder / _expanded(path))

    def located(self, problem: Problem) -> Problem:
        """The problem with the line of the nearest enclosing path that the file has."""
        path = problem.path
        if problem.line is not None:
            return problem
        # By every ending at a step: keys may hold brackets and dots themselves.
        for end in range(len(path), 0, -1):
            if end < len(path) and path[end] not in ".[":
                continue
            if path[:end] in self.changed:
                return Problem(path, f"{problem.message} (as --set says)")
            if path[:end] in self.lines:
                return Problem(path, problem.message, self.lines[path[:end]])
        if path and any(setting.startswith(path) for setting in self.changed):
            return Problem(path, f"{problem.message} (as --set says)")
        return problem


def packaged() -> dict[str, Path]:
    """The packaged experiments: name -> file."""
    folder = Path(__file__).parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(name: str) -> Content:
    """The content of a packaged experiment, or of the YAML file at a path.

    Raises:
        ConfigError: if there is no such file, or it holds no mapping of keys.
    """
    path = _find(name)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            message = f"has more than {_MOST_BYTES:,} bytes, which no experiment needs; is it data?"
            raise ConfigError(name, [Problem("", f"{message} Name a YAML file")])
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text ({error.reason} at byte {error.start}); name a YAML file"
        raise ConfigError(name, [Problem("", message)]) from None
    except OSError as error:
        message = f"cannot be read: {error.strerror}; name a YAML file"
        raise ConfigError(name, [Problem("", message)]) from None
    raw, lines, problems = parsed(text)
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else "a list" if isinstance(raw, list) else "a single value"
        message = f"is {kind}, not a mapping of keys; it needs at least datasets: and attacks:"
        raise ConfigError(str(path), problems or [Problem("", message)])
    found = Content(path, raw, lines, problems)
    found.root_paths(path.parent)
    return found


def _expanded(path: str) -> str:
    try:
        return os.path.expanduser(path)
    except ValueError:  # no user is called so; then it is no file either, which is told later
        return path


def _find(name: str) -> Path:
    known = packaged()
    if name in known:
        return known[name]
    path = Path(name)
    try:
        if path.is_file():
            return path
        is_folder = bool(name) and path.is_dir()
    except OSError as error:
        message = f"cannot be read: {error.strerror}; name a YAML file"
        raise ConfigError(name, [Problem("", message)]) from None
    listed = "`sfumato list experiments` names what is packaged"
    if is_folder:
        message = f"is a folder; name a YAML file in it; {listed}"
    elif path.suffix in (".yaml", ".yml") or "/" in name:
        message = f"there is no such file (looked in {Path.cwd()}); {listed}"
    else:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else listed
        message = f"is neither a packaged experiment nor a file; {hint}"
    raise ConfigError(name or "(no name)", [Problem("", message)])


def _put(place: Any, steps: Sequence[str | int], value: Any) -> str | None:
    """Set the value at the end of `steps`; gives what is in the way, or None."""
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(step, str):
            if not isinstance(place, dict):
                return f"there is no key '{step}' in {place!r:.60}; write that as a mapping first"
            if last:
                place[step] = value
            elif place.get(step) is None:
                if isinstance(steps[i + 1], int):
                    return f"'{step}' is not there"
                place[step] = {}
        elif not isinstance(place, list) or step >= len(place):
            has = f"a list of {len(place)}" if isinstance(place, list) else "no list"
            return f"there is no [{step}], it is {has}"
        elif last:
            place[step] = value
        place = place[step]
    return None
