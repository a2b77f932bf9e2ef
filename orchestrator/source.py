"""An experiment file as text: where each key stands, and settings changed from outside."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ConfigError", "Content", "Problem", "nearest", "packaged", "read"]

# An experiment of a thousand plugins has far less; a few lines of aliases make far more.
_MOST_VALUES = 100_000
_DEEPEST = 20
_STEP = re.compile(r"([^.\[\]=\s]+)|\[(\d{1,6})\]")
_SETTING = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[\d{1,6}\])*")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an experiment: where, and what to do.

    Attributes:
        path: the keys that lead there, such as `datasets[0].split`; empty for the whole.
        message: what is wrong, the value, what would be right.
        line: of the file, where it stands in one.
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(ValueError):
    """An experiment that cannot run, with all its problems."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name, self.problems = name, tuple(problems)
        listed = "\n".join(f"  {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{name}: {len(problems)} {noun}\n{listed}")


@dataclass
class Content:
    """What a file says.

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
        if not equals or not _SETTING.fullmatch(path):
            message = f"'{setting}' is not key=value, as in target.epochs=5 or seeds=[0,1]"
            self.problems.append(Problem("--set", message))
            return
        value, _, problems = _parsed(text)
        if problems:
            listed = [Problem("--set", f"'{setting}': {p.message}") for p in problems]
            self.problems += listed
            return
        steps = [int(i) if i else name for name, i in _STEP.findall(path)]
        fault = _put(self.raw, steps, value)
        if fault:
            self.problems.append(Problem("--set", f"'{setting}' does not fit: {fault}"))
        self.changed.add(path)

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
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text ({error.reason} at byte {error.start}); name a YAML file"
        raise ConfigError(name, [Problem("", message)]) from None
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ConfigError(name, [Problem("", message)]) from None
    raw, lines, problems = _parsed(text)
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        message = f"is {kind}, not a mapping of keys; it needs at least datasets: and attacks:"
        raise ConfigError(str(path), problems or [Problem("", message)])
    return Content(path, raw, lines, problems)


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
        message = f"cannot be read: {error.strerror}"
        raise ConfigError(name[:200], [Problem("", message)]) from None
    listed = ", ".join(known)
    if is_folder:
        message = f"is a folder; name a YAML file in it, or a packaged experiment ({listed})"
    elif path.suffix in (".yaml", ".yml") or "/" in name:
        message = f"there is no such file (looked in {Path.cwd()}); packaged are: {listed}"
    else:
        message = f"is neither a packaged experiment ({listed}) nor a file{nearest(name, known)}"
    raise ConfigError(name or "(no name)", [Problem("", message)])


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """A suggestion to put after a message: the nearest name, or all of them."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def _parsed(text: str) -> tuple[Any, dict[str, int], list[Problem]]:
    """The value of a YAML text, the line of every path in it, and what is wrong with it."""
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, problems
        problem = _too_large(node)
        if problem is None:
            for path, line, fault in _walk(loader, node, ""):
                lines.setdefault(path, line)
                problems += [Problem(path, fault, line)] if fault else []
            if any("cannot be read" in fault.message for fault in problems):
                return None, lines, problems
            return _unshared(loader.construct_document(node)), lines, problems
    except yaml.YAMLError as error:
        problem = _syntax(error, text)
    except RecursionError:
        message = f"is nested deeper than {_DEEPEST} levels, or an alias in it holds itself"
        problem = Problem("", f"{message}; write lists and mappings out flat")
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        problem = Problem("", f"holds a value that cannot be read as its YAML tag says: {error}")
    finally:
        if loader is not None:
            loader.dispose()
    return None, lines, [problem]


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    line = mark.line + 1 if mark else None
    position = getattr(error, "position", None)
    if line is None and isinstance(position, int):
        line = text.count("\n", 0, position) + 1
    hint = "; indent with spaces, not tabs" if "\\t" in what else ""
    return Problem("", f"is not YAML: {what}{hint}", line)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _too_large(root: yaml.Node) -> Problem | None:
    """Refuse aliases that multiply and nesting without end, before anything walks them."""
    known: dict[int, tuple[int, int]] = {}
    above: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """How many values, and how many levels of them."""
        if id(node) in above:
            raise RecursionError
        if id(node) not in known:
            above.add(id(node))
            below = [measure(child) for child in _children(node)]
            above.discard(id(node))
            height = 1 + max((levels for _, levels in below), default=0)
            known[id(node)] = 1 + sum(count for count, _ in below), height
        return known[id(node)]

    total, levels = measure(root)
    if levels > _DEEPEST:
        raise RecursionError
    if total <= _MOST_VALUES:
        return None
    message = f"holds {total} values once its aliases are followed; at most {_MOST_VALUES} are read"
    return Problem("", message)


def _walk(
    loader: yaml.SafeLoader, node: yaml.Node, path: str
) -> Iterator[tuple[str, int, str | None]]:
    """Every path with its line, and what is wrong there; call only on what is small enough."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        yield path, line, _unreadable(loader, node)
        return
    yield path, line, None
    if isinstance(node, yaml.MappingNode):
        given = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            below, line = f"{path}.{name}" if path else name, key.start_mark.line + 1
            yield below, line, "is given twice; keep one" if name in given else None
            given.add(name)
            yield from _walk(loader, value, below)
    else:
        for i, value in enumerate(node.value):
            yield from _walk(loader, value, f"{path}[{i}]")


def _unreadable(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str | None:
    """Why a scalar is not what it looks like or is tagged as (a 30th of February, say)."""
    try:
        loader.construct_object(node)
    except yaml.YAMLError as error:
        return f"cannot be read: {getattr(error, 'problem', None) or error}; quote text"
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        return f"cannot be read: {error}; quote text"
    return None


def _unshared(value: Any) -> Any:
    """A copy in which every alias is a value of its own."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


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
