"""The classifiers: what goes in, what comes out, how many numbers are learned."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks import architectures
from tasks.architectures import (
    Architecture,
    build,
    count_parameters,
    make,
    names,
    recipe,
    with_recipe,
)


def layers(*sizes: int) -> int:
    """Parameters of fully connected layers with biases."""
    return sum(a * b + b for a, b in pairwise(sizes))


SIZES = {
    "location_mlp3": ((446,), 30, layers(446, 256, 128, 30)),
    "purchase_mlp4": ((600,), 100, layers(600, 1024, 512, 256, 100)),
    "purchase_mlp4_tanhout": ((600,), 100, layers(600, 1024, 512, 256, 100)),
    "purchase_mlp5": ((600,), 100, layers(600, 1024, 512, 256, 128, 100)),
    "texas_mlp4": ((599,), 100, layers(599, 1024, 512, 256, 100)),
    "texas_mlp5": ((6169,), 100, layers(6169, 1024, 512, 256, 128, 100)),
    "mlp_s": ((64,), 10, layers(64, 256, 128, 10)),
    # 3x3 convolutions 3 -> 16 -> 32, halved twice from 9x8, then 32*2*2 -> 64 -> 7.
    "cnn_s": ((3, 9, 8), 7, 3 * 16 * 9 + 16 + 16 * 32 * 9 + 32 + layers(128, 64, 7)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_the_published_size_and_shape(name: str) -> None:
    shape, num_classes, num_parameters = SIZES[name]
    module = build(make(name), shape, num_classes)
    assert count_parameters(module) == num_parameters
    assert module(torch.rand(5, *shape)).shape == (5, num_classes)


def test_location_has_the_published_count() -> None:
    assert SIZES["location_mlp3"][2] == 151_198


@pytest.mark.parametrize("name", names())
def test_every_architecture_is_described_and_buildable(name: str) -> None:
    shape = (1, 8, 8) if make(name).network == "cnn" else (12,)
    module = build(make(name), shape, 3)
    kinds = [type(layer) for layer in module]
    hidden = nn.Tanh if make(name).activation == "tanh" else nn.ReLU
    # A non-linearity after every linear layer but the last, unless the recipe wants one there.
    linear = [i for i, kind in enumerate(kinds) if kind is nn.Linear]
    assert all(kinds[i + 1] is hidden for i in linear[:-1])
    assert (kinds[-1] is nn.Tanh) == make(name).tanh_output
    assert architectures.summary(name)
    assert make(name).name == name


def test_tanh_after_the_last_layer_bounds_the_logits() -> None:
    x = 100 * torch.randn(50, 20)
    bounded = build(make("purchase_mlp4_tanhout"), (20,), 4)(x)
    assert bounded.abs().max() <= 1


def test_dropout_follows_every_hidden_layer_and_is_off_when_answering() -> None:
    module = build(make("mlp_s", dropout=0.5), (8,), 3)
    assert sum(isinstance(layer, nn.Dropout) for layer in module) == 2
    x = torch.rand(4, 8)
    module.eval()
    assert torch.equal(module(x), module(x))


def test_weights_are_called_the_same_with_dropout_and_without() -> None:
    for name, shape in (("mlp_s", (8,)), ("cnn_s", (1, 8, 8)), ("purchase_mlp4_tanhout", (8,))):
        dropped = build(make(name, dropout=0.5), shape, 3).state_dict()
        assert list(dropped) == list(build(make(name), shape, 3).state_dict())


def test_an_mlp_takes_images_too() -> None:
    assert build(make("mlp_s"), (1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(64,), (1, 3, 8), (1, 8, 3)])
def test_a_cnn_says_what_it_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"choose an mlp|too small"):
        build(make("cnn_s"), shape, 10)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'mlp_x' is not an architecture. Did you mean 'mlp_s'\?"):
        make("mlp_x")
    with pytest.raises(ValueError, match=r"Known: .*cnn_s") as error:
        make("zzzzzz")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", 3),
        ("epochs", 0),
        ("epochs", 2.5),
        ("learning_rate", 0),
        ("learning_rate", "fast"),
        ("batch_size", 0),
        ("dropout", 1.0),
        ("weight_decay", -1),
        ("optimizer", "lion"),
        ("activation", "gelu"),
    ],
)
def test_a_bad_recipe_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        make("mlp_s", **{field: value})
    with pytest.raises(ValidationError, match=field):
        with_recipe(make("mlp_s"), **{field: value})


def test_a_recipe_changes_only_what_it_names() -> None:
    before = make("purchase_mlp4")
    after = with_recipe(before, epochs=7, weight_decay=0.5)
    changed = {
        name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)
    }
    assert changed == {"epochs", "weight_decay"}
    assert before.epochs == 100
    assert with_recipe(before) == before
    with pytest.raises(ValidationError, match="frozen"):
        before.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_told_and_makes_the_same_again(name: str) -> None:
    assert recipe(make(name)) == {}
    changed = with_recipe(make(name), epochs=7, hidden=(3, 2), milestones=(4,))
    told = recipe(changed)
    assert told == {"epochs": 7, "hidden": [3, 2], "milestones": [4]}
    assert make(name, **told) == changed
    nameless = changed.model_copy(update={"name": "own"})
    assert Architecture(name="own", **recipe(nameless)) == nameless


@pytest.mark.parametrize("preset", ["paper", "sound", "cpu"])
def test_every_dataset_has_a_default_its_records_fit(preset: str) -> None:
    for dataset in ("location30", "retail100", "hospital100", "anything"):
        chosen = architectures.default_architecture(dataset, "binary", preset)
        assert make(chosen).network == "mlp"
    assert architectures.default_architecture("anything", "image", preset) == "cnn_s"
    assert architectures.default_architecture("location30", "binary", preset) == "location_mlp3"


def test_initialisation_comes_from_the_global_generator_alone() -> None:
    def drawn(seed: int) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (
                torch.cat([p.flatten() for p in build(make("mlp_s"), (8,), 3).parameters()])
                .detach()
                .numpy()
            )

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1) != drawn(2)).any()
