"""What is true of ML-Leaks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attacks.ml_leaks import MlLeaks, _Net, _top3


def asked(world: Any, seed: int = 0, *, adaptive: bool = False) -> dict[str, Any]:
    (training,) = MlLeaks().trainings(world.outline(adaptive=adaptive), seed=seed)
    return training


def test_shadow_trains_on_half_of_what_is_known(world: Any) -> None:
    training = asked(world)
    assert set(training) == {"rows", "seed"}
    assert len(training["rows"]) == len(world.known_rows) // 2
    assert len(np.unique(training["rows"])) == len(training["rows"])
    assert np.isin(training["rows"], world.known_rows).all()
    assert not np.array_equal(np.sort(training["rows"]), np.sort(asked(world, 1)["rows"]))
    assert training["seed"] != asked(world, 1)["seed"]
    # The attacker may not pick the target's members: their share is that of all it holds.
    assert abs(world.is_member[training["rows"]].mean() - 0.5) < 4 * 0.5 / np.sqrt(300)


def test_adaptive_shadow_has_its_own_defense_with_its_own_reference(world: Any) -> None:
    training = asked(world, adaptive=True)
    assert training["defended"] is True
    assert len(training["rows"]) == round(0.4 * len(world.known_rows))
    assert len(training["reference_rows"]) == round(0.2 * len(world.known_rows))
    assert not np.isin(training["rows"], training["reference_rows"]).any()


@pytest.mark.parametrize("adaptive", [False, True])
def test_shadow_records_are_told_apart_by_whether_the_shadow_saw_them(
    world: Any, adaptive: bool
) -> None:
    """The attacker looks at S_in and S_out alone, each once, and never at S_ref."""
    attack, seen = MlLeaks(), []
    known = world.knowledge(attack, 0, adaptive=adaptive)

    def watch(rows: Any) -> Any:
        seen.append(rows)
        return world.x_of(rows)

    object.__setattr__(known, "x_of", watch)
    attack.score(world.service(), known, world.x[:5], world.y[:5], seed=0)
    s_in, s_out = seen
    training = asked(world, adaptive=adaptive)
    np.testing.assert_array_equal(np.sort(s_in), np.sort(training["rows"]))
    rest = np.setdiff1d(world.known_rows, [*s_in, *training.get("reference_rows", [])])
    np.testing.assert_array_equal(np.sort(s_out), rest)


def test_true_membership_of_known_records_is_not_used(world: Any) -> None:
    attack, rows = MlLeaks(), world.parts["eval"]
    honest, flipped = (world.knowledge(attack, 0) for _ in range(2))
    for part in flipped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (
        attack.score(world.service(), known, world.x[rows], world.y[rows], seed=0)
        for known in (honest, flipped)
    )
    np.testing.assert_array_equal(first, second)
    assert honest.query.num_queries == 0


def test_the_order_of_known_rows_does_not_matter(world: Any) -> None:
    known = world.knowledge(MlLeaks(), 0)
    object.__setattr__(known, "rows", known.rows[::-1])
    scores = MlLeaks().score(world.service(), known, world.x[:9], world.y[:9], seed=0)
    again = MlLeaks().score(
        world.service(), world.knowledge(MlLeaks(), 0), world.x[:9], world.y[:9], seed=0
    )
    np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize("adversary", [1, 3])
def test_onehot_answers_leave_nothing_to_tell_apart(
    world: Any, onehot: Any, adversary: Any
) -> None:
    scores, _ = world.run(MlLeaks(adversary=adversary), defend=onehot)
    assert len(set(scores)) == 1


def test_adversary_3_trains_nothing_and_reads_the_largest_confidence(world: Any) -> None:
    attack, rows = MlLeaks(adversary=3), world.parts["eval"]
    assert attack.trainings(world.outline(), seed=0) == ()
    scores, _ = world.run(attack)
    np.testing.assert_array_equal(scores, world.service()(world.x[rows]).max(axis=1))


def test_adversary_2_is_refused() -> None:
    with pytest.raises(ValidationError, match="adversary"):
        MlLeaks(adversary=2)  # type: ignore[arg-type]


def test_wrong_shadows_are_refused(world: Any) -> None:
    known = world.knowledge(MlLeaks(), 0)
    with pytest.raises(ValueError, match="the seed trainings"):
        MlLeaks().score(world.service(), known, world.x[:3], world.y[:3], seed=1)
    object.__setattr__(known, "trained", ())
    with pytest.raises(ValueError, match="got 0 shadow models"):
        MlLeaks().score(world.service(), known, world.x[:3], world.y[:3], seed=0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_features_are_the_three_largest_in_order(p: list[float]) -> None:
    want = [*sorted(p, reverse=True), 0.0][:3]
    np.testing.assert_array_equal(_top3(np.array([p]))[0], want)


def test_training_follows_torch_step_by_step() -> None:
    """The written-out gradients and Adam against autograd and torch.optim.Adam."""
    rng = np.random.default_rng(0)
    top, is_member = _top3(rng.dirichlet(np.ones(5), size=47)), rng.random(47) < 0.5
    hidden, decay, epochs = 7, 0.01, 4
    net = _Net.initial(hidden, np.random.default_rng(1))
    first, second = torch.tensor(net.first), torch.tensor(net.second)
    twin = torch.nn.Sequential(
        torch.nn.Linear(3, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2)
    ).double()
    with torch.no_grad():
        for layer, weights in ((twin[0], first), (twin[2], second)):
            layer.weight.copy_(weights[:-1].T)
            layer.bias.copy_(weights[-1])
    net.fit(
        top,
        is_member,
        learning_rate=0.01,
        batch_size=10,
        epochs=epochs,
        weight_decay=decay,
        rng=np.random.default_rng(2),
    )
    order = np.random.default_rng(2)
    optimiser = torch.optim.Adam(twin.parameters(), lr=0.01, weight_decay=decay)
    x, target = torch.tensor(top), torch.tensor(is_member.astype(np.int64))
    for _ in range(epochs):
        for rows in torch.tensor(order.permutation(47)).split(10):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(twin(x[rows]), target[rows]).backward()
            optimiser.step()
    np.testing.assert_allclose(net.first[:3], twin[0].weight.detach().numpy().T, atol=1e-9)
    np.testing.assert_allclose(net.first[3], twin[0].bias.detach().numpy(), atol=1e-9)
    np.testing.assert_allclose(net.second[:-1], twin[2].weight.detach().numpy().T, atol=1e-9)
    np.testing.assert_allclose(net.second[-1], twin[2].bias.detach().numpy(), atol=1e-9)
    with torch.no_grad():
        log_p = torch.log_softmax(twin(x), dim=1).numpy()
    np.testing.assert_allclose(net.log_odds(top), log_p[:, 1] - log_p[:, 0], atol=1e-8)
