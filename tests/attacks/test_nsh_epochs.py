"""The epoch that NSH and its like keep, against a slow reference that holds every epoch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks._epochs import Kept
from attacks._membership_net import balanced_loss, mim0


def chosen_slowly(accuracies, losses, num_cal):
    best = max(accuracies)
    near = [i for i, a in enumerate(accuracies) if a >= best - np.sqrt(best * (1 - best) / num_cal)]
    return min(near, key=lambda i: losses[i])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_keeps_the_epoch_that_holding_all_would_choose(seed, num_epochs):
    rng = np.random.default_rng(seed)
    num_cal = 40
    is_member = np.arange(num_cal) < num_cal // 2
    net = mim0(2, 0.01)
    kept = Kept(is_member, balanced_loss)
    accuracies, losses = [], []
    for epoch in range(num_epochs):
        log_odds = rng.normal(0, 3, num_cal) + rng.uniform(0, 3) * np.where(is_member, 1, -1)
        with torch.no_grad():
            net.joint[0].bias.fill_(epoch)  # marks the state
        kept.consider(epoch, log_odds, net)
        called = log_odds > 0
        accuracies.append(0.5 * (called[is_member].mean() + (~called[~is_member]).mean()))
        plus = np.logaddexp(0, -log_odds[is_member]).mean()
        minus = np.logaddexp(0, log_odds[~is_member]).mean()
        losses.append(0.5 * (plus + minus))
    state = kept.choice()
    assert int(state["joint.0.bias"][0]) == chosen_slowly(accuracies, losses, num_cal)
    assert kept.best_epoch == int(np.argmax(accuracies))
