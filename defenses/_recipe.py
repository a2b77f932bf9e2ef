"""A training recipe of a paper's own, in place of the target's."""

from typing import Annotated, Any, Literal

from pydantic import Field

from defenses.base import Defense

__all__ = ["WithRecipe"]

_RECIPE = ("optimizer", "learning_rate", "milestones", "weight_decay", "batch_size", "epochs")


class WithRecipe(Defense):
    """A training defense whose paper does not train as the target does.

    Each field that is None leaves the target's own recipe as it is.
    """

    optimizer: Literal["adam", "sgd"] | None = Field(
        None, description="SGD has momentum 0.9; None: the target's own"
    )
    learning_rate: float | None = Field(None, gt=0, description="None: the target's own")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="epochs where the rate is divided by 10; None: the target's own"
    )
    weight_decay: float | None = Field(None, ge=0, description="None: the target's own")
    batch_size: int | None = Field(None, ge=1, description="None: the target's own")
    epochs: int | None = Field(None, ge=1, le=10_000, description="None: the target's own")

    def recipe(self) -> dict[str, Any]:
        """What `setting.train` has to change."""
        values = {name: getattr(self, name) for name in _RECIPE}
        return {name: value for name, value in values.items() if value is not None}
