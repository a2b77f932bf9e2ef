"""DP-SGD: what each step does, what is drawn, and what is certified, each against its own maths."""

import subprocess
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats
from torch import nn
from torch.nn import functional as F

from defenses._dp_accountant import epsilon_of, noise_for
from defenses.base import Records
from defenses.dpsgd import DPSGD

PLAIN = {"noise_multiplier": 0, "max_grad_norm": None}
ONE_STEP = {"batch_size": 10_000, "epochs": 1, "momentum": 0, "weight_decay": 0}
# Gradients weigh nothing beside the noise, which has standard deviation 1.
ALL_NOISE = {"noise_multiplier": 1e6, "max_grad_norm": 1e-6, "momentum": 0, "weight_decay": 0}


def small_net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def conv_net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )


def random_records(num: int, *shape: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    return Records(3 * rng.normal(size=(num, *shape)).astype(np.float32), rng.integers(3, size=num))


def setting_of(members: Records, make: Any = small_net, drawn: list[Any] | None = None) -> Any:
    """A setting; the records of each step are added to `drawn`."""

    def network(*, seed: int) -> nn.Module:
        module: nn.Module = make(seed)
        if drawn is not None:
            module.register_forward_pre_hook(lambda _, given: drawn.append(given[0].clone()))
        return module

    return SimpleNamespace(members=members, network=network, device="cpu", num_classes=3)


def flat(weights: dict[str, Any]) -> NDArray[np.float64]:
    return np.concatenate(
        [np.asarray(value, dtype=np.float64).ravel() for value in weights.values()]
    )


def moved(defense: DPSGD, setting: Any, seed: int = 0) -> NDArray[np.float64]:
    """What training moved the weights by, times the expected batch size over the learning rate."""
    start = flat(
        {name: value.numpy() for name, value in setting.network(seed=seed).state_dict().items()}
    )
    expected = min(defense.batch_size, len(setting.members))
    return (start - flat(defense.train(setting, seed=seed))) * expected / defense.learning_rate


def gradients(members: Records, make: Any, seed: int = 0) -> NDArray[np.float64]:
    """Each record's own gradient [N, P], one by one."""
    module, rows = make(seed), []
    for x, y in zip(members.x, members.y, strict=True):
        module.zero_grad()
        F.cross_entropy(module(torch.tensor(x)[None]), torch.tensor([y])).backward()
        rows.append(np.concatenate([p.grad.double().ravel().numpy() for p in module.parameters()]))
    return np.stack(rows)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_without_noise_and_clipping_it_is_sgd_on_poisson_batches(schedule):
    members, drawn = random_records(40, 6), []
    defense = DPSGD(
        **PLAIN, batch_size=8, epochs=6, learning_rate=0.1, weight_decay=0.01, schedule=schedule
    )
    weights = defense.train(setting_of(members, drawn=drawn), seed=4)

    label = {x.tobytes(): y for x, y in zip(members.x, members.y, strict=True)}
    module = small_net(4)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    assert len(drawn) == 6 * 5
    for step, x_BD in enumerate(drawn):
        if schedule == "cosine":
            sgd.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * (step // 5) / 7))
        y_B = torch.tensor([label[x.numpy().tobytes()] for x in x_BD], dtype=torch.int64)
        sgd.zero_grad()
        (F.cross_entropy(module(x_BD), y_B, reduction="sum") / 8).backward()
        sgd.step()
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(weights[name], value.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("make", "shape"), [(small_net, (6,)), (conv_net, (2, 4, 4))])
@pytest.mark.parametrize("size", ["below all", "median", "above all"])
def test_each_gradient_is_clipped_by_itself(size, make, shape):
    members = random_records(25, *shape)
    own = gradients(members, make)
    norms = np.linalg.norm(own, axis=1)
    norm = {"below all": 0.01, "median": float(np.median(norms)), "above all": 1e4}[size]
    expected = (own * np.minimum(1, norm / norms)[:, None]).sum(axis=0)
    defense = DPSGD(noise_multiplier=0, max_grad_norm=norm, learning_rate=1, **ONE_STEP)
    got = moved(defense, setting_of(members, make))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-5 * len(members))


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-3, 1e3), label=st.integers(0, 2), norm=st.sampled_from([0.1, 1.0, 5.0]))
def test_no_record_moves_the_sum_by_more_than_the_norm(scale, label, norm):
    members = random_records(12, 6)
    x = np.concatenate([members.x, np.full((1, 6), scale, dtype=np.float32)])
    more = Records(x, np.append(members.y, label))
    defense = DPSGD(noise_multiplier=0, max_grad_norm=norm, learning_rate=1, **ONE_STEP)
    change = moved(defense, setting_of(more)) - moved(defense, setting_of(members))
    assert np.linalg.norm(change) <= norm * (1 + 1e-4) + 1e-4


def test_the_noise_is_gaussian_of_the_stated_width(make_world):
    world = make_world(10)
    fields = {"max_grad_norm": 0.5, "learning_rate": 1.0, **ONE_STEP}
    still = moved(DPSGD(noise_multiplier=0, **fields), world, seed=3)
    noise = moved(DPSGD(noise_multiplier=8, **fields), world, seed=3) - still
    assert noise.std() == pytest.approx(8 * 0.5, rel=4 / np.sqrt(2 * len(noise)))
    assert stats.kstest(noise, stats.norm(scale=8 * 0.5).cdf).pvalue > 1e-3
    other = moved(DPSGD(noise_multiplier=8, **fields), world, seed=5)
    other -= moved(DPSGD(noise_multiplier=0, **fields), world, seed=5)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 4 / np.sqrt(len(noise))


def test_every_step_has_noise_of_its_own_even_an_empty_one(make_world):
    world, drawn = make_world(10), []
    few = Records(world.members.x[:3], world.members.y[:3])
    setting = setting_of(few, lambda seed: world.network(seed=seed), drawn)
    fields = {**ALL_NOISE, "batch_size": 1, "learning_rate": 1.0, "schedule": "constant"}
    walk = [moved(DPSGD(**fields, epochs=epochs), setting, seed=8) for epochs in (1, 2, 4, 8)]
    sizes = [len(x) for x in drawn]
    assert len(sizes) == 3 * (1 + 2 + 4 + 8)
    num_empty = sizes[-24:].count(0)
    assert num_empty >= 5, "the test needs empty batches"
    for epochs, total in zip((1, 2, 4, 8), walk, strict=True):
        # Relative error of a variance of P numbers: sqrt(2 / P) = 0.028. Skipping empty batches
        # would leave some 0.7 of it, the same noise in each step 3 * epochs times as much.
        assert total.var() == pytest.approx(3 * epochs, rel=0.12)
    first, rest = walk[0], walk[1] - walk[0]
    assert abs(np.corrcoef(first, rest)[0, 1]) < 4 / np.sqrt(len(first))


def test_batches_are_poisson_samples():
    num, expected, epochs = 60, 6, 50
    members, drawn = random_records(num, 6), []
    DPSGD(noise_multiplier=1.0, batch_size=expected, epochs=epochs).train(
        setting_of(members, drawn=drawn), seed=1
    )
    steps, rate = epochs * num // expected, expected / num
    assert len(drawn) == steps, "the accountant counts as many steps"
    row = {x.tobytes(): i for i, x in enumerate(members.x)}
    held = np.zeros((steps, num))
    for step, x_BD in enumerate(drawn):
        held[step, [row[x.numpy().tobytes()] for x in x_BD]] += 1
    assert held.max() == 1
    sizes = held.sum(axis=1)
    assert sizes.mean() == pytest.approx(expected, abs=5 * np.sqrt(num * rate * (1 - rate) / steps))
    assert sizes.var() == pytest.approx(num * rate * (1 - rate), rel=5 * np.sqrt(2 / steps))
    # Shuffled batches hold each record once an epoch; drawn ones some twice and some never.
    per_epoch = held.reshape(epochs, -1, num).sum(axis=1)
    assert (per_epoch == 0).mean() == pytest.approx((1 - rate) ** (1 / rate), abs=0.05)
    # Every record alike: their counts spread as binomial ones do.
    spread = ((held.sum(axis=0) - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum()
    assert 1e-4 < stats.chi2(num).cdf(spread) < 1 - 1e-4


def test_a_batch_of_all_is_all_and_certified_as_such():
    members, drawn = random_records(9, 6), []
    defense = DPSGD(noise_multiplier=2.0, batch_size=100, epochs=3)
    weights = defense.train(setting_of(members, drawn=drawn), seed=0)
    assert [len(x) for x in drawn] == [9, 9, 9]
    found = defense.diagnose(setting_of(members), weights, seed=0)
    assert found["delta"] == pytest.approx(1 / 90)
    assert found["epsilon"] == epsilon_of(2.0, 1.0, 3, 1 / 90)


def exact_gaussian(sigma: float, steps: int, delta: float) -> float:
    """Epsilon of unsampled Gaussian steps in closed form (Balle and Wang 2018, theorem 8)."""
    mu, phi = np.sqrt(steps) / sigma, stats.norm.cdf

    def excess(epsilon: float) -> float:
        return phi(mu / 2 - epsilon / mu) - np.exp(epsilon) * phi(-mu / 2 - epsilon / mu) - delta

    return float(optimize.brentq(excess, 0, 100))


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"),
    [(1.0, 1, 1e-5), (5.0, 10, 1e-4), (2.0, 3, 0.01), (40.0, 500, 1e-6)],
)
def test_without_sampling_epsilon_is_the_exact_one(sigma, steps, delta):
    exact = exact_gaussian(sigma, steps, delta)
    assert exact <= epsilon_of(sigma, 1.0, steps, delta) <= exact + 0.03


@pytest.mark.parametrize(("sigma", "rate"), [(0.8, 0.1), (1.5, 0.2), (3.0, 0.02)])
def test_one_sampled_step_is_certified_both_ways(sigma, rate):
    """Delta at the certified epsilon, by integrating both hockey-stick divergences."""
    delta = 1e-3
    epsilon = epsilon_of(sigma, rate, 1, delta)

    def without(z: float) -> float:
        return float(stats.norm.pdf(z, 0, sigma))

    def beside(z: float) -> float:
        return (1 - rate) * without(z) + rate * float(stats.norm.pdf(z, 1, sigma))

    for p, q in ((beside, without), (without, beside)):
        found, _ = integrate.quad(
            lambda z, p=p, q=q: max(p(z) - np.exp(epsilon) * q(z), 0),
            -12 * sigma,
            12 * sigma + 1,
            limit=500,
        )
        assert found <= delta


def test_sampled_steps_are_certified_as_tightly_as_simulation_allows():
    """Delta(epsilon) = E max(0, 1 - exp(epsilon - L)) of the privacy loss L of 20 steps."""
    sigma, rate, steps, delta = 1.0, 0.2, 20, 0.02
    epsilon = epsilon_of(sigma, rate, steps, delta)
    rng = np.random.default_rng(0)
    num = 200_000
    losses = np.zeros(num)
    for _ in range(steps):
        z = rng.normal(scale=sigma, size=num) + (rng.random(num) < rate)
        losses += np.log1p(rate * np.expm1((2 * z - 1) / (2 * sigma**2)))

    def simulated(level: float) -> tuple[float, float]:
        lost = np.maximum(0, -np.expm1(level - losses))
        return float(lost.mean()), float(lost.std() / np.sqrt(num))

    mean, error = simulated(epsilon)
    assert mean <= delta + 3 * error
    mean, error = simulated(epsilon - 0.1)
    assert mean > delta + 3 * error


def renyi_bound(sigma: float, rate: float, steps: int, delta: float) -> float:
    """Mironov, Talwar and Zhang 2019, section 3.3, integer orders; their simplest conversion."""
    best = np.inf
    for order in range(2, 100):
        k = np.arange(order + 1)
        choose = (
            special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
        )
        terms = choose + k * np.log(rate) + (order - k) * np.log1p(-rate)
        spent = steps * special.logsumexp(terms + k * (k - 1) / (2 * sigma**2)) / (order - 1)
        best = min(best, spent + np.log(1 / delta) / (order - 1))
    return float(best)


@pytest.mark.parametrize(
    ("sigma", "batch", "num", "epochs"),
    [(2.91, 128, 1600, 50), (1.7, 128, 20_000, 200), (1.44, 64, 15_000, 200)],
)
def test_published_settings_lie_just_below_the_renyi_bound(sigma, batch, num, epochs):
    rate, steps, delta = batch / num, epochs * -(-num // batch), 1 / (10 * num)
    bound = renyi_bound(sigma, rate, steps, delta)
    assert 0.7 * bound < epsilon_of(sigma, rate, steps, delta) < bound


def test_less_noise_more_steps_and_more_sampling_cost_more():
    def rises(values: list[float]) -> bool:
        return all(a < b for a, b in pairwise(values))

    assert rises([epsilon_of(s, 0.05, 300, 1e-4) for s in (1e4, 9, 3, 1.5, 1, 0.8, 0.3, 0.05, 0)])
    assert rises([epsilon_of(1.5, 0.05, steps, 1e-4) for steps in (1, 30, 100, 1000, 10_000)])
    assert rises([epsilon_of(1.5, rate, 100, 1e-4) for rate in (0.001, 0.03, 0.1, 0.5, 1.0)])
    assert rises([epsilon_of(1.5, 0.05, 100, delta) for delta in (1e-2, 1e-4, 1e-8)])


# Where PRV accounting is out of its depth: gigabytes of grid, a delta below its rounding.
@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"), [(0.3, 0.1, 500, 1e-4), (2.0, 0.1, 100, 1e-17)]
)
def test_the_renyi_bound_stands_in(sigma, rate, steps, delta):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(sigma, rate, steps)]
    with warnings.catch_warnings(action="ignore"):
        assert epsilon_of(sigma, rate, steps, delta) == accountant.get_epsilon(delta)


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_noise_is_found_for_a_budget(epsilon):
    members = random_records(200, 6)
    defense = DPSGD(epsilon=epsilon, batch_size=20, epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = defense.train(setting_of(members), seed=0)
        found = defense.diagnose(setting_of(members), weights, seed=0)
    assert epsilon - 0.02 < found["epsilon"] <= epsilon
    fixed = DPSGD(noise_multiplier=found["noise_multiplier"], batch_size=20, epochs=3)
    again = fixed.train(setting_of(members), seed=0)
    assert all(np.array_equal(value, again[name]) for name, value in weights.items())
    assert fixed.diagnose(setting_of(members), again, seed=0) == found


def test_a_budget_no_noise_can_keep_is_refused():
    with pytest.raises(ValueError, match=r"no noise certifies epsilon 0.001 at delta 1e-12"):
        noise_for(0.001, 1.0, 100, 1e-12)


def test_without_noise_nothing_is_certified():
    setting = setting_of(random_records(5, 6))
    assert DPSGD(**PLAIN).diagnose(setting, {}, seed=0) == {}


def test_random_numbers_are_its_own(make_world):
    world = make_world(10)
    setting = SimpleNamespace(
        members=world.members,
        device="cpu",
        network=lambda *, seed: world.network(seed=seed, dropout=0.5),
    )
    defense = DPSGD(noise_multiplier=1.0, epochs=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weights = defense.train(setting, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = defense.train(setting, seed=2)
    assert all(np.array_equal(value, again[name]) for name, value in weights.items())


def test_layers_that_mix_records_are_refused():
    def mixing(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def alone(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3))

    members, defense = random_records(20, 6), DPSGD(noise_multiplier=1.0, epochs=1)
    with pytest.raises(ValueError, match=r"'1' \(BatchNorm1d\).*GroupNorm"):
        defense.train(setting_of(members, mixing), seed=0)
    weights = defense.train(setting_of(members, alone), seed=0)
    alone(0).load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def test_a_rate_too_large_is_named():
    members = random_records(20, 6)
    defense = DPSGD(noise_multiplier=1.0, epochs=40, learning_rate=1e37)
    with pytest.raises(FloatingPointError, match=r"learning_rate \(now 1e\+37\)"):
        defense.train(setting_of(members), seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 4, "noise_multiplier": 1.7}, "epsilon 4 and noise_multiplier 1.7 exclude"),
        ({"noise_multiplier": 1, "max_grad_norm": None}, "give a norm"),
        ({"epsilon": 4, "max_grad_norm": None}, "give a norm"),
        ({"epsilon": 11}, "epsilon"),
        ({"noise_multiplier": -1}, "noise_multiplier"),
        ({"noise_multiplier": 1, "delta": 1.0}, "delta"),
        ({"noise_multiplier": 1, "max_grad_norm": 0}, "max_grad_norm"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DPSGD(**fields)


def test_presets_are_the_published_values():
    for dataset, batch, norm, sigma, epochs in [
        ("purchase100", 128, 1.0, 1.7, 200),
        ("retail100", 128, 1.0, 1.7, 200),
        ("texas100", 64, 1.0, 1.44, 200),
        ("hospital100", 64, 1.0, 1.44, 200),
        ("location30", 128, 3.0, 2.91, 50),
    ]:
        paper = DPSGD(**DPSGD.preset("paper", dataset, 100))
        assert (paper.batch_size, paper.max_grad_norm) == (batch, norm)
        assert (paper.noise_multiplier, paper.epochs) == (sigma, epochs)
        assert (paper.learning_rate, paper.momentum, paper.weight_decay) == (0.005, 0.9, 5e-4)
        assert paper.schedule == "cosine"
        cpu = DPSGD(**DPSGD.preset("cpu", dataset, 100))
        assert (cpu.noise_multiplier, cpu.max_grad_norm) == (sigma, norm)
        assert cpu.epochs <= 50
    assert DPSGD(**DPSGD.preset("sound", "mine", 7)).epsilon == 4


def test_listing_plugins_does_not_wait_for_opacus():
    code = "import sys, defenses.dpsgd; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
