from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from defenses._cvae import reform
from defenses._swapper import calibrated_radius, exchanged, matched, swap_rate
from defenses.base import Records, Reference
from defenses.purifier import Purifier

SMALL = {"hidden": (16, 16, 32), "latent": 4, "epochs": 3, "learning_rate": 1e-3}
SWAPPER = {"reformer": False, "swap_radius": 1e-9}


@dataclass(frozen=True)
class Table:
    """A setting that looks its answers up: x is the row number of the answer."""

    confidence: np.ndarray
    members: Records
    reference: Reference
    num_classes: int
    trained: tuple = ()
    device: str = "cpu"

    def answer(self, x):
        return self.confidence[np.asarray(x, dtype=int)[:, 0]]


def table(num_members=400, num_reference=400, num_classes=10, right=(1.0, 0.7), seed=0) -> Table:
    """Members answered confidently, reference less so; `right` are the two accuracies."""
    rng = np.random.default_rng(seed)
    num_rows = num_members + num_reference
    is_member = np.arange(num_rows) < num_members
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), rng.integers(0, num_classes, num_rows)] += np.where(
        is_member, rng.uniform(9, 20, num_rows), rng.uniform(1, 12, num_rows)
    )
    label = logits.argmax(axis=1)
    rank = np.concatenate(
        [np.arange(num_members) / num_members, np.arange(num_reference) / num_reference]
    )
    wrong = rank >= np.where(is_member, *right)
    y = np.where(wrong, (label + 1) % num_classes, label)
    x = np.arange(num_rows, dtype=np.float32)[:, None]
    reference = np.flatnonzero(~is_member)
    cut = num_members + num_reference * 4 // 5
    return Table(
        softmax(logits, axis=1),
        Records(x[:num_members], y[:num_members]),
        Reference(
            x[reference],
            y[reference],
            Records(x[num_members:cut], y[num_members:cut]),
            Records(x[cut:], y[cut:]),
        ),
        num_classes,
    )


# --- the swapper ---


@pytest.mark.parametrize(
    ("train_accuracy", "test_accuracy", "rate"),
    [(1.0, 0.6044, 0.3956), (0.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.7, 0.8, 0.0), (0.5, 0.0, 1.0)],
)
def test_swap_rate(train_accuracy, test_accuracy, rate):
    assert swap_rate(train_accuracy, test_accuracy) == pytest.approx(rate)


@pytest.mark.parametrize("right", [(1.0, 0.7), (0.9, 0.7), (0.6, 0.6), (0.0, 0.3)])
def test_stores_the_share_of_members_that_equation_2_says(right):
    setting = table(num_members=390, right=right)
    state = Purifier(**SWAPPER).fit(setting, seed=0)
    accuracies = [
        np.mean(setting.answer(part.x).argmax(axis=1) == part.y)
        for part in (setting.members, setting.reference)
    ]
    stored = round(swap_rate(*accuracies) * 390)
    assert state["swap.confidence"].shape == (stored, 10)
    assert len(set(state["swap.member"].tolist())) == stored
    np.testing.assert_array_equal(
        state["swap.confidence"], setting.answer(setting.members.x)[state["swap.member"]]
    )


def test_correct_only_stores_the_surplus_of_right_members():
    setting = table(right=(0.8, 0.5))
    state = Purifier(**SWAPPER, swap_select="correct_only").fit(setting, seed=0)
    assert len(state["swap.member"]) == round((0.8 - 0.5) * 400)
    members = setting.members
    correct = setting.answer(members.x).argmax(axis=1) == members.y
    assert correct[state["swap.member"]].all()


def test_released_labels_are_no_better_on_members(make_noise):
    setting = table(num_members=2000, num_reference=2000)
    defense = Purifier(reformer=False)
    state = defense.fit(setting, seed=0)
    members = setting.members
    clean = setting.answer(members.x)
    released = defense.apply(clean, state, make_noise(range(2000)))
    assert np.mean(clean.argmax(axis=1) == members.y) == 1
    assert np.mean(released.argmax(axis=1) == members.y) == pytest.approx(0.7, abs=0.01)
    found = defense.diagnose(setting, state, seed=0)
    assert found["swap_accepted"] == 1
    assert found["swap_rate"] == pytest.approx(0.3, abs=1e-9)
    assert found["extra_bytes"] == 600 * 10 * 4


def test_swapped_label_is_the_second_and_stays_so_in_any_batch(make_noise):
    setting = table()
    defense = Purifier(**SWAPPER)
    state = defense.fit(setting, seed=0)
    clean = setting.answer(setting.members.x)
    released = defense.apply(clean, state, make_noise(range(400)))
    swapped = np.zeros(400, dtype=bool)
    swapped[state["swap.member"]] = True
    for row, (before, after) in enumerate(zip(clean, released, strict=True)):
        assert after.argmax() == np.argsort(before)[-2 if swapped[row] else -1]
        assert sorted(after) == sorted(before)
    order = np.random.default_rng(0).permutation(400)
    for rows in np.array_split(order, 23):
        again = defense.apply(clean[rows], state, make_noise(rows))
        np.testing.assert_array_equal(again, released[rows])


def test_a_perturbed_member_is_not_recognised():
    setting = table()
    state = Purifier(**SWAPPER).fit(setting, seed=0)
    stored = state["swap.confidence"]
    near, _ = matched(stored, stored, 1e-9)
    far, _ = matched(0.999 * stored + 0.001 / 10, stored, 1e-9)
    assert near.all()
    assert not far.any()


def test_random_offset_goes_with_the_record_not_the_place(make_noise):
    setting = table()
    defense = Purifier(**SWAPPER, target_label="random_offset")
    state = defense.fit(setting, seed=0)
    stored = state["swap.confidence"]
    assert set(state["swap.offset"].tolist()) == set(range(1, 10))
    expected = (stored.argmax(axis=1) + state["swap.offset"]) % 10
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(len(stored))[: 20 + seed]
        released = defense.apply(stored[rows], state, make_noise(rows))
        np.testing.assert_array_equal(released.argmax(axis=1), expected[rows])


def test_selection_does_not_follow_storage_order():
    setting = table(num_members=40, num_reference=40)
    counts = Counter()
    for seed in range(400):
        counts.update(Purifier(**SWAPPER).fit(setting, seed=seed)["swap.member"].tolist())
    seen = np.array([counts[position] for position in range(40)])
    expected, spread = 400 * 0.3, np.sqrt(400 * 0.3 * 0.7)
    assert (np.abs(seen - expected) < 4.5 * spread).all()
    assert abs(np.corrcoef(np.arange(40), seen)[0, 1]) < 0.5


def test_selection_is_its_own_stream():
    setting = table()
    chosen = [
        Purifier(**SWAPPER | more).fit(setting, seed=4)["swap.member"]
        for more in ({}, {"swap_radius": None}, {"target_label": "random_offset"})
    ]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    np.testing.assert_array_equal(chosen[0], chosen[2])


@pytest.mark.parametrize(
    ("neighbours", "within", "match"), [(1, 1, True), (3, 1, False), (3, 2, True), (4, 2, True)]
)
def test_half_of_the_neighbours_must_be_near(neighbours, within, match):
    c = np.array([[0.9, 0.06, 0.04]])
    shift = np.array([0.01, -0.01, 0.0])
    stored = np.concatenate([np.repeat(c, within, axis=0), c + shift, c + 2 * shift, c - shift])
    assert matched(c, stored, 1e-6, neighbours)[0].tolist() == [match]


def test_radius_lets_at_most_one_in_two_hundred_others_match():
    setting = table(num_members=1000, num_reference=2000)
    members = setting.answer(setting.members.x)
    reference = setting.answer(setting.reference.x)
    rows = np.arange(0, 1000, 3)
    radius = calibrated_radius(members, members, reference, rows)
    outside = np.delete(members, rows, axis=0)
    shares = [matched(others, members[rows], radius)[0].mean() for others in (reference, outside)]
    assert 0 < max(shares) <= 0.005
    # Never below what two evaluations of one member differ by.
    moved = members + 1e-4 * np.random.default_rng(0).normal(size=members.shape)
    moves = np.sort(np.linalg.norm(moved - members, axis=1))
    assert calibrated_radius(members, moved, reference, rows) >= 10 * moves[-3]
    assert calibrated_radius(members, members, reference, rows[:0]) == 1e-9


confidences = arrays(np.float64, (5, 4), elements=st.floats(0, 1, width=16))


@given(confidences)
def test_exchange_moves_two_values_and_is_its_own_inverse(c):
    once = exchanged(c)
    for before, after in zip(c, once, strict=True):
        assert sorted(before) == sorted(after)
        assert np.count_nonzero(before != after) in (0, 2)
        if len(set(before)) == 4:
            assert after.argmax() == np.argsort(before)[-2]
            np.testing.assert_array_equal(exchanged(after[None])[0], before)


# --- reformer and swapper together ---


@pytest.mark.parametrize("target_label", ["second", "random_offset"])
def test_order(target_label, fitted, make_noise):
    setting = table()
    state, _ = fitted(Purifier(**SMALL, target_label=target_label), setting, 0)
    c = setting.answer(setting.members.x)
    rows, member = range(400), state["swap.member"]
    offset = state.get("swap.offset")
    parameters = {k.removeprefix("reformer."): v for k, v in state.items() if "reformer." in k}
    answers = {}
    for order in ("new", "old"):
        defense = Purifier(**SMALL, target_label=target_label, order=order)
        answers[order] = defense.apply(c, state, make_noise(rows))
        still = defense.apply(c, state, make_noise(rows, seed=None))
        xi = np.zeros((400, 4))
        if order == "new":
            # Reformed under the condition of the swapped label.
            expected = c.copy()
            expected[member] = exchanged(c[member], offset)
            expected = reform(expected, xi, parameters, defense._recipe)
        else:
            expected = reform(c, xi, parameters, defense._recipe)
            expected[member] = exchanged(expected[member], offset)
        np.testing.assert_allclose(still, expected, rtol=0, atol=1e-12)
    assert np.abs(answers["new"] - answers["old"])[member].max() > 1e-3


@pytest.mark.parametrize("order", ["new", "old"])
def test_either_order_is_the_reformer_when_nobody_is_stored(order, fitted, make_noise):
    setting = table(right=(0.6, 0.6))
    alone = Purifier(**SMALL, swapper=False)
    both = Purifier(**SMALL, order=order)
    state, _ = fitted(both, setting, 0)
    assert len(state["swap.member"]) == 0
    c = setting.answer(setting.members.x)
    np.testing.assert_array_equal(
        both.apply(c, state, make_noise(range(400))),
        alone.apply(c, fitted(alone, setting, 0)[0], make_noise(range(400))),
    )


@pytest.mark.parametrize("order", ["new", "old"])
def test_either_order_is_the_swapper_when_nothing_is_reformed(order, make_noise):
    setting = table()
    defense = Purifier(**SWAPPER, order=order)
    state = defense.fit(setting, seed=0)
    c = setting.answer(setting.members.x)
    expected = c.copy()
    expected[state["swap.member"]] = exchanged(c[state["swap.member"]])
    np.testing.assert_array_equal(defense.apply(c, state, make_noise(range(400))), expected)


def test_all_swapper_settings_share_one_reformer(make_world, fitted, prepared):
    world = make_world(10)
    plain = Purifier(**SMALL)
    others = [
        Purifier(**SMALL, order="old", neighbours=3, candidates=16, swap_radius=1e-3),
        Purifier(**SMALL, target_label="random_offset", swap_select="correct_only"),
    ]
    asked = [prepared(defense, world, 0).trained[0].defense for defense in (plain, *others)]
    assert asked[0] == asked[1] == asked[2] == Purifier(**SMALL, swapper=False)
    assert prepared(asked[0], world, 0).trained == ()
    assert prepared(Purifier(**SWAPPER), world, 0).trained == ()
    alone, _ = fitted(asked[0], world, 0)
    shared, _ = fitted(plain, world, 0)
    for key, value in alone.items():
        np.testing.assert_array_equal(shared[key], value)
    with pytest.raises(ValueError, match="what `trainings` asked for"):
        plain.fit(world, seed=0)


def test_noise_policy_decides_whether_repeats_differ(make_world, fitted, make_noise):
    world = make_world(10)
    defense = Purifier(**SMALL)
    state, _ = fitted(defense, world)
    c = world.answer(world.members.x[:20])
    first, same, other = (
        defense.apply(c, state, make_noise(range(20), seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-6


def test_the_swapper_asks_records_the_model_never_saw_whatever_the_reformer_learns_from():
    setting = table(num_members=400)
    usual = Purifier(**SWAPPER | {"swap_radius": None}).fit(setting, seed=0)
    members = setting.members
    parts = Records(members.x[:320], members.y[:320]), Records(members.x[320:], members.y[320:])
    on_members = Reference(members.x, members.y, *parts, unseen=setting.reference)
    changed = replace(setting, reference=on_members)
    state = Purifier(**SWAPPER | {"swap_radius": None}).fit(changed, seed=0)
    assert state["swap.rate"] == pytest.approx(0.3)
    for key, value in usual.items():
        np.testing.assert_array_equal(state[key], value)
    # Without D2 beside it, members look as if the model were right about everybody.
    alone = replace(setting, reference=replace(on_members, unseen=None))
    assert Purifier(**SWAPPER).fit(alone, seed=0)["swap.rate"] == 0


def test_the_reformer_learns_from_what_is_given_in_place_of_the_reference(fitted):
    setting = table()
    members = setting.members
    parts = Records(members.x[:320], members.y[:320]), Records(members.x[320:], members.y[320:])
    on_members = Reference(members.x, members.y, *parts, unseen=setting.reference)
    alone = Purifier(**SMALL, swapper=False)
    with_d2, without = (
        fitted(alone, replace(setting, reference=reference), 0)[0]
        for reference in (on_members, replace(on_members, unseen=None))
    )
    usual, _ = fitted(alone, setting, 0)
    for key, value in with_d2.items():
        np.testing.assert_array_equal(without[key], value)
    assert any(not np.array_equal(value, usual[key]) for key, value in with_d2.items())


@pytest.mark.parametrize("objective", ["text", "code", "elbo"])
@pytest.mark.parametrize("form", ["G", "H", "G then H", "H then G"])
def test_every_form_runs_under_every_objective_and_noise(objective, form, fitted, make_noise):
    """The ablations of methods.md 4.3, each released by fresh, per-input and no noise."""
    setting = table()
    defense = Purifier(
        **SMALL,
        objective=objective,
        reformer=form != "H",
        swapper=form != "G",
        order="old" if form == "G then H" else "new",
    )
    state, _ = fitted(defense, setting, 0)
    c = setting.answer(setting.members.x)
    fresh, again, kept, kept_again, still = (
        defense.apply(c, state, make_noise(range(400), seed=seed)) for seed in (1, 2, 3, 3, None)
    )
    for released in (fresh, kept, still):
        assert np.isfinite(released).all()
        np.testing.assert_allclose(released.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_array_equal(kept, kept_again)
    # Only the reformer draws: what the swapper does to a repeat is the same every time.
    assert np.array_equal(fresh, again) == np.array_equal(fresh, still) == (form == "H")
    if form == "H":
        swapped = np.flatnonzero(fresh.argmax(axis=1) != c.argmax(axis=1))
        np.testing.assert_array_equal(swapped, state["swap.member"])


@given(right=st.tuples(st.integers(0, 100), st.integers(0, 100)), num=st.integers(5, 120))
def test_the_share_swapped_is_exact(right, num):
    """Equation 2 to the record, and what was swapped once is swapped again."""
    setting = table(num_members=num, num_reference=50, right=(right[0] / 100, right[1] / 100))
    defense = Purifier(**SWAPPER)
    state = defense.fit(setting, seed=0)
    members = setting.members
    clean = setting.answer(members.x)
    accuracies = [
        np.mean(setting.answer(part.x).argmax(axis=1) == part.y)
        for part in (members, setting.reference)
    ]
    expected = 0.0
    if accuracies[0] > accuracies[1]:
        expected = (accuracies[0] - accuracies[1]) / accuracies[0]
    first, second = (defense.apply(clean, state, None) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    changed = np.flatnonzero(first.argmax(axis=1) != clean.argmax(axis=1))
    np.testing.assert_array_equal(changed, state["swap.member"])
    assert len(changed) == round(expected * num)


def test_true_labels_never_reach_the_reformer(make_world, fitted):
    world = make_world(10)
    defense = Purifier(**SMALL, swapper=False)
    state, _ = fitted(defense, world)
    part = world.reference
    parts = [Records(p.x, np.zeros_like(p.y)) for p in (part.fit, part.val)]
    blind = replace(world, reference=Reference(part.x, np.zeros_like(part.y), *parts))
    for key, value in fitted(defense, blind)[0].items():
        np.testing.assert_array_equal(value, state[key])


def test_diagnosis_of_a_real_model(make_world, fitted):
    world = make_world(10)
    defense = Purifier(**Purifier.preset("cpu", "synth_s", 10))
    state, ready = fitted(defense, world)
    found = defense.diagnose(ready, state, seed=0)
    assert all(np.isfinite(value) for value in found.values()), found
    assert found["swap_rate_members"] >= len(state["swap.member"]) / len(world.members)
    assert found["swap_rate_reference"] <= 0.005
    assert found["swap_radius"] >= 1e-9
    reformer = sum(v.nbytes for k, v in state.items() if k.startswith("reformer."))
    assert found["extra_bytes"] == reformer + 4 * state["swap.confidence"].size


def test_presets():
    paper = Purifier(**Purifier.preset("paper", "retail100", 100))
    assert (paper.objective, paper.hidden, paper.latent, paper.epochs, paper.learning_rate) == (
        "code",
        (128, 256, 512),
        20,
        150,
        1e-4,
    )
    assert (paper.batch_size, paper.published_init, paper.swap_radius) == (50, True, 1e-6)
    sound = Purifier(**Purifier.preset("sound", "cifar10", 10))
    assert (sound.objective, sound.kl_weight, sound.learning_rate) == ("elbo", 0.01, 1e-3)
    assert (sound.latent, sound.batch_size, sound.swap_radius) == (2, 128, None)
    assert Purifier.preset("paper", "faces_yaleb38", 38)["latent"] == 100
    assert Purifier.preset("paper", "tinyimagenet32_100a", 100)["hidden"] == (512, 1024, 2048)
    assert Purifier.preset("paper", "unheard_of", 30) == Purifier.preset("paper", "retail100", 30)
    assert Purifier.preset("cpu", "location30", 30)["hidden"] == (32, 64, 128)
    with pytest.raises(ValueError, match="Known: paper, sound, cpu"):
        Purifier.preset("fast", "location30", 30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reformer": False, "swapper": False}, "defense 'none'"),
        ({"neighbours": 9}, "set candidates to 9"),
        ({"hidden": (0, 4, 4)}, "at least 1"),
        ({"objective": "vae"}, "objective"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Purifier(**fields)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-0.1, "row 2, class 1 is -0.1; give the model's softmax"), (0.9, "row 2 sum to")],
)
def test_scores_that_are_no_distribution_are_refused(value, message, make_noise):
    setting = table()
    state = Purifier(**SWAPPER).fit(setting, seed=0)
    c = np.full((4, 10), 0.1)
    c[2, 1] = value
    with pytest.raises(ValueError, match=message):
        Purifier(**SWAPPER).apply(c, state, make_noise(range(4)))
