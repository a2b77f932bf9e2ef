"""What is derived from a state's array is derived once, however often the defense is asked."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

__all__ = ["once_per"]

T = TypeVar("T")
_made: dict[tuple[int, str], tuple[Any, Any]] = {}


def once_per(array: NDArray[Any], purpose: str, make: Callable[[], T]) -> T:
    """What `make` gives, kept for as long as `array` (the object, not its content) lives.

    A service is asked thousands of times with one state; building a network and an index for
    each single question costs more than answering it.
    """
    key = (id(array), purpose)
    entry = _made.get(key)
    if entry is not None and entry[0]() is array:
        found: T = entry[1]
        return found
    made = make()

    # Holds the table itself: at the interpreter's end this module's names go first.
    def forget(_: object, kept: dict[tuple[int, str], tuple[Any, Any]] = _made) -> None:
        kept.pop(key, None)

    _made[key] = (weakref.ref(array, forget), made)
    return made
