"""Find attacks and defenses by file name: there is nothing to register."""

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar

import attacks
import defenses
from attacks.base import Attack
from defenses.base import Defense

__all__ = ["aim", "attack", "defense", "names", "source", "summary"]

Aim = Literal["membership", "inversion", "attribute"]
Kind = Literal["attacks", "defenses"]
_PACKAGES = {"attacks": attacks, "defenses": defenses}
_Plugin = TypeVar("_Plugin", Attack, Defense)


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """The plugins of a package, sorted; none of them is imported."""
    found = (module.name for module in pkgutil.iter_modules(_PACKAGES[kind].__path__))
    return tuple(sorted(name for name in found if name != "base" and not name.startswith("_")))


def attack(name: str) -> type[Attack]:
    """The attack in `attacks/<name>.py`.

    Raises:
        ValueError: if there is none; the message suggests the nearest names.
    """
    return _load("attacks", name, Attack)


def defense(name: str) -> type[Defense]:
    """The defense in `defenses/<name>.py`; raises as `attack` does."""
    return _load("defenses", name, Defense)


def aim(cls: type[Attack]) -> Aim:
    """What an attack is after, told by the method it defines."""
    methods: tuple[tuple[str, Aim], ...] = (("reconstruct", "inversion"), ("infer", "attribute"))
    found = (what for method, what in methods if getattr(cls, method) != getattr(Attack, method))
    return next(found, "membership")


def _load(kind: Kind, name: str, base: type[_Plugin]) -> type[_Plugin]:
    if name not in names(kind):
        near = get_close_matches(name, names(kind), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        noun = kind.removesuffix("s")
        article = "an" if noun == "attack" else "a"
        known = ", ".join(names(kind))
        raise ValueError(f"'{name}' is not {article} {noun}.{hint} Known: {known}")
    return _class_in(kind, name, base)


@cache
def _class_in(kind: Kind, name: str, base: type[_Plugin]) -> type[_Plugin]:
    module = importlib.import_module(f"{kind}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(
            f"{kind}/{name}.py must define exactly one public {base.__name__} class, "
            f"found {len(found)}: {', '.join(c.__name__ for c in found) or 'none'}"
        )
    return found[0]


def plugin_name(plugin: Any) -> str:
    """The name of a plugin or plugin class: its file's."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return cls.__module__.rpartition(".")[2]


def summary(cls: type) -> str:
    """The first sentence of a plugin's docstring."""
    return (cls.__doc__ or "").strip().split("\n", 1)[0]


def source(cls: type) -> str:
    """The paper a plugin's docstring names after "Source:", on one line."""
    _, found, rest = (cls.__doc__ or "").partition("Source:")
    return " ".join(rest.split("\n\n", 1)[0].split()) if found else ""
