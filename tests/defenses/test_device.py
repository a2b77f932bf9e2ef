"""Every defense computes on the device it is given, and learns there what it learns on the CPU.

The device is made up: tensors that call themselves `meta` but keep their values. As on a GPU, they
do not mix with the CPU's, take none of its generators, and must be copied to become arrays.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from defenses.base import Defense
from tasks.plugins import defense, names

aten = torch.ops.aten
LEARNING = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
# Rows may be named by indices on the CPU, and copies are what crosses over.
MAY_MIX = {aten.index, aten.index_put, aten.index_put_, aten.copy_}
# What PyTorch itself refuses on a device it does not know, once the weights are there.
REFUSED = {
    "aeppt": r"fused=True.* but torch.float32 and meta",
    "memguard": r"fused=True.* but torch.float32 and meta",
    "dpsgd": "META device type not an accelerator",
}
ANSWERS_HERE = {"model_stacking"}  # both its models, as it does when it is asked
QUICK = {"purifier", "relaxloss"}  # one of each kind in every run of the tests


def having(method: str) -> list[Any]:
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in names("defenses")
        if hasattr(defense(name), method)
    ]


class Away(torch.Tensor):
    """A tensor on the made-up device; `held` has its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Away":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device="meta"
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what is asked of the device, if the device could."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Away)]
    packet, device = func.overloadpacket, kwargs.get("device")
    there = bool(away) if device is None else torch.device(device).type == "meta"
    crosses = packet is aten._to_copy
    if there and not crosses and packet not in MAY_MIX:
        foreign = [t for t in tensors if not isinstance(t, Away) and t.dim()]
        assert not foreign, f"{func} mixes devices"
        assert kwargs.get("generator") is None, f"{func} uses a generator of the CPU"
    held_args, held_kwargs = tree_map_only(Away, lambda tensor: tensor.held, (args, kwargs))
    if device is not None:
        held_kwargs["device"] = torch.device("cpu")
    found = func(*held_args, **held_kwargs)
    if packet is aten.copy_ and not isinstance(args[0], Away):
        there = False
    changed = {id(tensor.held): tensor for tensor in away}  # in place, and given back
    return tree_map_only(torch.Tensor, lambda t: wrapped(t, changed) if there else t, found)


def wrapped(held: torch.Tensor, known: dict[int, Away]) -> Away:
    return known[id(held)] if id(held) in known else Away(held)


class Watch(TorchDispatchMode):
    """Catches what is made on the device, and counts where models are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.here = self.there = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in LEARNING:
            is_away = any(isinstance(leaf, Away) for leaf in tree_leaves(args))
            self.there, self.here = self.there + is_away, self.here + (not is_away)
        return computed(func, args, kwargs or {})


def small(name: str) -> Defense:
    cls = defense(name)
    short = {key: 2 for key in ("epochs", "rounds") if key in cls.model_fields}
    return cls(**cls.preset("cpu", "synth_s", 5) | short)


class Here:
    """What is asked on the CPU whatever the device: the models, which are no part of a defense."""

    def __init__(self, inner: Any, **changes: Any) -> None:
        self.__dict__.update(changes, inner=inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def answer(self, x: Any) -> Any:
        with _disable_current_modes():
            return self.inner.answer(x)


def compare(name: str, world: Any, learn: Callable[[Any], dict[str, np.ndarray]]) -> None:
    trained = tuple(Here(model) for model in world.trained)
    with Watch() as usual:
        expected = learn(Here(world, trained=trained))
    away = Here(replace(world, device="meta"), trained=trained)
    if name in REFUSED:
        with Watch(), pytest.raises(RuntimeError, match=REFUSED[name]):
            learn(away)
        return
    with Watch() as watch:
        found = learn(away)
    if name in ANSWERS_HERE:
        assert 0 < watch.there < usual.here
    else:
        assert watch.here == 0, "it computes on the CPU"
        assert watch.there == usual.here
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert isinstance(found[key], np.ndarray)
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("name", having("fit"))
def test_is_fitted_where_it_is_told(name, make_world, prepared):
    plugin = small(name)
    world = prepared(plugin, make_world(5), 3)
    compare(name, world, lambda setting: plugin.fit(setting, seed=3))


@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model")  # it is copied
@pytest.mark.parametrize("name", having("train"))
def test_is_trained_where_it_is_told(name, make_world, prepared):
    plugin = small(name)
    world = prepared(plugin, replace(make_world(5), weights=None), 3)
    compare(name, world, lambda setting: plugin.train(setting, seed=3))


def test_the_device_does_as_a_gpu_does():
    """Else the tests above would find nothing."""
    x = torch.arange(6.0).reshape(2, 3)
    with Watch():
        away = x.to("meta")
        assert away.device.type == "meta"
        np.testing.assert_array_equal((2 * away).cpu().numpy(), 2 * x)
        with pytest.raises(AssertionError, match="mixes devices"):
            away + x
        with pytest.raises(AssertionError, match="generator of the CPU"):
            torch.randn(3, device="meta", generator=torch.Generator())
        with pytest.raises((TypeError, RuntimeError)):
            away.numpy()
