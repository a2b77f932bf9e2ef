"""What is true of the noise attack."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from sklearn.metrics import roc_auc_score

from attacks.base import Known
from attacks.gap import Gap
from attacks.noise_robustness import NoiseRobustness, _distinct

CPU = NoiseRobustness(**NoiseRobustness.PRESETS["cpu"])
NUM_BITS = 200


@pytest.fixture(scope="module")
def binary_world(make_world: Any) -> Any:
    return make_world(binary=True)


@pytest.fixture(scope="module")
def image_world(make_world: Any) -> Any:
    return make_world(per_side=120, image=(1, 6, 6), num_features=36)


class Fixed:
    """A service that labels by a function, and remembers what it was asked."""

    def __init__(self, label_of: Any) -> None:
        self.label_of, self.asked = label_of, list[Any]()

    @property
    def num_queries(self) -> int:
        return sum(len(x) for x in self.asked)

    def __call__(self, x: Any) -> Any:
        self.asked.append(np.array(x))
        return np.asarray(self.label_of(x), dtype=np.int64)

    def timed(self, x: Any) -> Any:
        raise AssertionError("nobody times labels")


def copies_of(attack: NoiseRobustness, x: Any, kind: str, seed: int = 0) -> Any:
    """The noisy copies [N, R, ...] a service that agrees with every label is asked about."""
    service, known = Fixed(lambda x: np.zeros(len(x))), SimpleNamespace(kind=kind)
    y = np.zeros(len(x), dtype=np.int64)
    scores = attack.score(service, known, x, y, seed=seed)
    np.testing.assert_array_equal(scores, 1.0)
    np.testing.assert_array_equal(service.asked[0], x)
    noisy = np.concatenate(service.asked[1:])
    assert noisy.dtype == np.float32
    return noisy.reshape(len(x), attack.repeats, *x.shape[1:])


def test_members_keep_their_label_longer(world: Any, binary_world: Any, image_world: Any) -> None:
    for overfitted, attack in (
        (world, CPU),
        (image_world, CPU),
        (binary_world, CPU),
        (binary_world, NoiseRobustness(flips="each", repeats=25)),
    ):
        scores, is_member = overfitted.run(attack)
        assert 0 <= scores.min() < scores.max() <= 1
        assert scores[is_member].mean() > scores[~is_member].mean()


def test_finds_more_than_correctness_tells(world: Any, binary_world: Any, image_world: Any) -> None:
    for overfitted, attack in (
        (world, CPU),
        (image_world, CPU),
        (binary_world, NoiseRobustness(num_flips=(1, 2, 3))),
    ):
        scores, is_member = overfitted.run(attack)
        gap, _ = overfitted.run(Gap())
        # Seen: 0.10, 0.07 and 0.05 more, on the same records.
        assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, gap) + 0.02


def planted(is_member: Any, x: Any, withstands: Any, size: Any) -> Any:
    """Label 0 as long as noise of at most `withstands(is_member)` was added to a record."""

    def label_of(asked: Any) -> Any:
        # The first two features mark a record and stay as they are: noise has no say there.
        number = np.abs(asked[:, None, :] - x[None]).sum(axis=2).argmin(axis=1)
        return size(asked - x[number]) > withstands(is_member[number])

    return label_of


def knowing(x: Any, is_member: Any, query: Any, kind: str) -> Any:
    """An attacker who is told half of the records as `fit` and half as `cal`."""
    y = np.zeros(len(x), dtype=np.int64)
    parts = [Known(x[i::2], y[i::2], is_member[i::2]) for i in (0, 1)]
    return SimpleNamespace(fit=parts[0], cal=parts[1], query=query, kind=kind)


@pytest.mark.parametrize("planted_flips", [1, 7, 20])
def test_the_number_of_flips_that_tells_members_is_chosen(planted_flips: int) -> None:
    """Members withstand so many flips, others one less: no other number tells them apart."""
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(40, NUM_BITS)).astype(np.float32)
    is_member = rng.permutation(40) < 20
    label_of = planted(
        is_member, x, lambda m: planted_flips - 1 + m, lambda noise: np.abs(noise).sum(axis=1)
    )
    attack, service, clear = NoiseRobustness(repeats=5), Fixed(label_of), Fixed(label_of)
    known = knowing(x, is_member, service, "binary")
    scores = attack.score(clear, known, x, np.zeros(40, dtype=np.int64), seed=0)
    np.testing.assert_array_equal(scores, is_member)
    flipped = np.abs(clear.asked[1].reshape(40, 5, NUM_BITS) - x[:, None]).sum(axis=2)
    np.testing.assert_array_equal(flipped, planted_flips)


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_the_deviation_that_tells_members_is_chosen(law: Any) -> None:
    rng = np.random.default_rng(0)
    x = 100 * rng.normal(size=(40, NUM_BITS)).astype(np.float32)
    is_member = rng.permutation(40) < 20
    # The norm of noise over the square root of D is its deviation give or take a tenth.
    label_of = planted(
        is_member,
        x,
        lambda m: np.where(m, 0.75, 0.25),
        lambda noise: np.linalg.norm(noise, axis=1) / np.sqrt(NUM_BITS),
    )
    attack = NoiseRobustness(repeats=5, deviations=(2.0, 0.5, 0.125), law=law)
    known = knowing(x, is_member, Fixed(label_of), "continuous")
    service = Fixed(label_of)
    scores = attack.score(service, known, x, np.zeros(40, dtype=np.int64), seed=0)
    np.testing.assert_array_equal(scores, is_member)
    deviation = (service.asked[1].reshape(40, 5, NUM_BITS) - x[:, None]).std()
    assert deviation == pytest.approx(0.5, rel=0.05)


def test_where_all_strengths_are_equal_the_weakest_is_chosen() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(20, NUM_BITS)).astype(np.float32)
    known = knowing(x, np.arange(20) < 10, Fixed(lambda x: np.zeros(len(x))), "binary")
    service = Fixed(lambda x: np.zeros(len(x)))
    attack = NoiseRobustness(repeats=2, num_flips=(9, 4, 6))
    attack.score(service, known, x, np.zeros(20, dtype=np.int64), seed=0)
    flipped = np.abs(service.asked[1].reshape(20, 2, NUM_BITS) - x[:, None]).sum(axis=2)
    np.testing.assert_array_equal(flipped, 4)


def test_membership_of_fit_and_of_calibration_records_chooses() -> None:
    """Either part alone has one side only, so both must have been used."""
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(40, NUM_BITS)).astype(np.float32)
    is_member = np.arange(40) % 2 == 0
    label_of = planted(is_member, x, lambda m: 4 + m, lambda noise: np.abs(noise).sum(axis=1))
    known = knowing(x, is_member, Fixed(label_of), "binary")
    assert known.fit.is_member.all()
    assert not known.cal.is_member.any()
    scores = NoiseRobustness(repeats=3).score(
        Fixed(label_of), known, x, np.zeros(40, dtype=np.int64), seed=0
    )
    np.testing.assert_array_equal(scores, is_member)


def test_exactly_so_many_bits_are_flipped_uniformly_and_each_copy_anew() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(2, size=(50, 12)).astype(np.float32)
    attack = NoiseRobustness(num_flips=(3,))
    copies = copies_of(attack, x, "binary")
    assert np.isin(copies, (0, 1)).all()
    flipped = copies != x[:, None]
    np.testing.assert_array_equal(flipped.sum(axis=2), 3)
    # 5000 draws of 3 of 12; every bit, and every pair of bits, as often as any other.
    each = flipped.reshape(-1, 12).astype(int)
    assert np.abs(each.mean(axis=0) - 3 / 12).max() < 4 * np.sqrt(3 / 12 * 9 / 12 / 5000)
    pairs = (each.T @ each / 5000)[~np.eye(12, dtype=bool)]
    share = 3 * 2 / (12 * 11)
    # 66 pairs are looked at: 5 standard deviations.
    assert np.abs(pairs - share).max() < 5 * np.sqrt(share * (1 - share) / 5000)
    assert len(np.unique(each[:100], axis=0)) > 50


def test_distinct_numbers_are_those_of_a_list_they_are_taken_out_of() -> None:
    uniform = np.random.default_rng(0).random((30, 4, 9))
    for num in (9, 10, 500):
        chosen = _distinct(uniform, num)
        for drawn, picked in zip(uniform.reshape(-1, 9), chosen.reshape(-1, 9), strict=True):
            left = list(range(num))
            assert [left.pop(int(u * len(left))) for u in drawn] == list(picked)
    largest = np.full((1, 9), np.nextafter(1, 0))
    np.testing.assert_array_equal(_distinct(largest, 9), [[8, 7, 6, 5, 4, 3, 2, 1, 0]])


def test_each_bit_is_flipped_with_its_probability() -> None:
    x = np.random.default_rng(0).integers(2, size=(50, 40)).astype(np.float32)
    attack = NoiseRobustness(flips="each", flip_probabilities=(0.02,))
    copies = copies_of(attack, x, "binary")
    assert np.isin(copies, (0, 1)).all()
    flipped = (copies != x[:, None]).sum(axis=2)
    assert abs(flipped.mean() - 0.8) < 4 * np.sqrt(40 * 0.02 * 0.98 / 5000)
    assert len(np.unique(flipped)) > 3


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_noise_has_the_law_and_the_deviation(law: Any) -> None:
    x = np.random.default_rng(0).normal(size=(50, 40))
    attack = NoiseRobustness(deviations=(0.3,), law=law)
    noise = (copies_of(attack, x.astype(np.float32), "continuous") - x[:, None]).ravel()
    expected = ("norm", (0, 0.3)) if law == "normal" else ("uniform", (-0.3 * 3**0.5, 0.6 * 3**0.5))
    # A p-value below 6e-5 is 4 standard deviations.
    assert stats.kstest(noise[::7], *expected).pvalue > 6e-5


def test_pixels_stay_in_their_range() -> None:
    x = np.random.default_rng(0).random((20, 2, 3, 3)).astype(np.float32)
    attack = NoiseRobustness(deviations=(0.5,), repeats=10)
    copies = copies_of(attack, x, "image")
    assert copies.min() == 0.0
    assert copies.max() == 1.0
    other = copies_of(attack, x, "continuous")
    np.testing.assert_array_equal(copies, other.clip(0, 1))


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_all_strengths_share_their_draws(kind: str) -> None:
    x = np.random.default_rng(0).integers(2, size=(9, NUM_BITS)).astype(np.float32)
    strengths = [{"num_flips": (n,), "deviations": (0.1 * n,)} for n in (2, 6)]
    few, many = (
        copies_of(NoiseRobustness(repeats=8, **s), x, kind) - x[:, None] for s in strengths
    )
    if kind == "binary":
        assert (many[few != 0] != 0).all()
    else:
        np.testing.assert_allclose(many, 3 * few, atol=1e-6)
    assert not np.array_equal(
        few, copies_of(NoiseRobustness(repeats=8, **strengths[0]), x, kind, 1)
    )


def test_queries_to_the_unit(world: Any, binary_world: Any) -> None:
    for overfitted in (world, binary_world):
        attack = CPU.model_copy(update={"num_known": 90, "repeats": 7})
        known, service = overfitted.knowledge(attack, 0), overfitted.service("label")
        rows = overfitted.parts["eval"][:50]
        x, y = overfitted.x[rows], overfitted.y[rows]
        num_right = int((overfitted.service("label")(x) == y).sum())
        assert 0 < num_right < 50
        attack.score(service, known, x, y, seed=0)
        assert service.num_queries == 50 + 7 * num_right
        num_strengths = 10 if overfitted.binary else 7
        # All 45 members are right, and so are some of the 45 others.
        more = known.query.num_queries - 90 - 7 * num_strengths * 45
        assert more % (7 * num_strengths) == 0
        assert 0 < more < 7 * num_strengths * 45


def test_a_single_strength_is_not_chosen_so_nobody_known_is_asked(small_world: Any) -> None:
    attack = NoiseRobustness()
    known, rows = small_world.knowledge(attack, 0), small_world.parts["eval"]
    attack.score(
        small_world.service("label"), known, small_world.x[rows], small_world.y[rows], seed=0
    )
    assert known.query.num_queries == 0


def test_wrong_records_score_zero(small_world: Any) -> None:
    scores, _ = small_world.run(CPU)
    correct, _ = small_world.run(Gap())
    assert 0 < correct.sum() < len(correct)
    assert (scores[correct == 0] == 0).all()
    assert scores[correct == 1].mean() > 0.5


def test_what_is_asked_at_once_is_bounded() -> None:
    for num_features, most in ((10, 2**14), (2**12, 2**10)):
        service = Fixed(lambda x: np.zeros(len(x)))
        x = np.zeros((50 if num_features > 10 else 700, num_features), dtype=np.float32)
        attack = NoiseRobustness(num_flips=(2,))
        attack.score(
            service,
            SimpleNamespace(kind="binary"),
            x,
            np.zeros(len(x), dtype=np.int64),
            seed=0,
        )
        sizes = [len(asked) for asked in service.asked[1:]]
        assert max(sizes) <= most
        assert sum(sizes) == 100 * len(x)
        assert len(sizes) == -(-len(x) // (most // 100))


def test_known_records_of_one_side_only_are_refused() -> None:
    x = np.zeros((10, NUM_BITS), dtype=np.float32)
    service = Fixed(lambda x: np.zeros(len(x)))
    known = knowing(x, np.ones(10, dtype=bool), service, "binary")
    with pytest.raises(ValueError, match=r"hold 10 members among 10 records"):
        CPU.score(service, known, x, np.zeros(10, dtype=np.int64), seed=0)


def test_more_flips_than_bits_are_left_out_and_refused_if_none_is_left() -> None:
    x = np.zeros((4, 5), dtype=np.float32)
    attack = NoiseRobustness(num_flips=(5, 6, 7), repeats=3)
    assert (copies_of(attack, x, "binary") == 1).all()
    known: Any = SimpleNamespace(kind="binary")
    with pytest.raises(
        ValueError, match=r"flip 6 bits or more \(num_flips\) of records that have 5"
    ):
        NoiseRobustness(num_flips=(6, 7)).score(
            Fixed(lambda x: np.zeros(len(x))), known, x, np.zeros(4, dtype=np.int64), seed=0
        )


def test_presets_are_the_papers_sizes() -> None:
    paper = NoiseRobustness(**NoiseRobustness.PRESETS["paper"])
    assert (paper.repeats, paper.num_flips) == (100, tuple(range(1, 21)))
    assert paper.deviations == (0.025,)
    assert CPU.repeats == 25


@pytest.mark.parametrize(
    "fields",
    [
        {"repeats": 0},
        {"num_flips": ()},
        {"num_flips": (0,)},
        {"flip_probabilities": (1.0,)},
        {"deviations": (0.0,)},
        {"num_known": 1},
        {"law": "cauchy"},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NoiseRobustness(**fields)
