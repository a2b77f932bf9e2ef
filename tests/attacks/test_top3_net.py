"""What is true of ML-Leaks' features and net."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks._top3_net import Top3Net, top3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_features_are_the_three_largest_in_order(p: list[float]) -> None:
    want = [*sorted(p, reverse=True), 0.0][:3]
    np.testing.assert_array_equal(top3(np.array([p]))[0], want)


def test_training_follows_torch_step_by_step() -> None:
    """The written-out gradients and Adam against autograd and torch.optim.Adam."""
    rng = np.random.default_rng(0)
    top, is_member = top3(rng.dirichlet(np.ones(5), size=47)), rng.random(47) < 0.5
    hidden, decay, epochs = 7, 0.01, 4
    net = Top3Net.initial(hidden, np.random.default_rng(1))
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
