"""No defense."""

from typing import ClassVar

from defenses.base import Defense

__all__ = ["Undefended"]


class Undefended(Defense):
    """Release the model's confidences as they are: the row all ratios are taken to.

    Source: none; the control of every table.
    """

    VERSION: ClassVar[int] = 1
