"""What is wrong with an experiment, in words for the person who wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

_MOST_LISTED = 20
_MOST_SHOWN = 800


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
        path = f"{readable(self.path, 200)}: " if self.path else ""
        return place + path + readable(self.message)


class ConfigError(ValueError):
    """An experiment that cannot run, with all its problems."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name, self.problems = name, tuple(problems)
        listed = "\n".join(f"  {problem}" for problem in problems[:_MOST_LISTED])
        noun = "problem" if len(problems) == 1 else "problems"
        if len(problems) > _MOST_LISTED:
            noun += f", the first {_MOST_LISTED} of them"
        super().__init__(f"{readable(name, 300)}: {len(problems)} {noun}\n{listed}")


def readable(text: str, most: int = _MOST_SHOWN) -> str:
    """On one line without control characters; the middle is left out of what is very long."""
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 3 :]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """A suggestion to put after a message: the nearest name, or all of them."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
