"""What is true of the augmentation attack."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from attacks.augmentation import Augmentation
from attacks.base import Known
from attacks.gap import Gap

SHAPE = (2, 5, 6)


@pytest.fixture(scope="module")
def image_world(make_world: Any) -> Any:
    return make_world(per_side=120, image=(1, 6, 6), num_features=36)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).random((400, *SHAPE)).astype(np.float32)


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


def knowing(x: Any, is_member: Any, query: Any) -> Any:
    """An attacker who is told three quarters of the records as `fit` and the rest as `cal`."""
    y, cal = np.zeros(len(x), dtype=np.int64), np.arange(len(x)) % 4 == 0
    fit, held = (Known(x[part], y[part], is_member[part]) for part in (~cal, cal))
    return SimpleNamespace(fit=fit, cal=held, query=query, num_classes=2, device="cpu")


def copies_of(attack: Augmentation, x: Any) -> list[Any]:
    """What is asked about the records: one array a copy."""
    service, is_member = Fixed(lambda x: np.zeros(len(x))), np.arange(len(x)) % 8 < 4
    y = np.zeros(len(x), dtype=np.int64)
    attack.score(service, knowing(x, is_member, Fixed(service.label_of)), x, y, seed=0)
    return service.asked


@pytest.mark.parametrize("combine", ["net", "sum"])
def test_finds_more_than_the_gap(image_world: Any, combine: Any) -> None:
    scores, is_member = image_world.run(Augmentation(combine=combine))
    gap, _ = image_world.run(Gap())
    # Seen: 0.05 and 0.04 more, on the same records.
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, gap) + 0.02


@pytest.mark.parametrize("combine", ["net", "sum"])
def test_nothing_is_found_where_nothing_is(make_world: Any, combine: Any) -> None:
    world = make_world(independent=True, image=(1, 6, 6), num_features=36)
    scores, is_member = world.run(Augmentation(combine=combine))
    # Four standard deviations of the AUC under chance, 300 records a side.
    assert abs(roc_auc_score(is_member, scores) - 0.5) < 4 * np.sqrt(601 / (12 * 300 * 300))


@pytest.mark.parametrize(("rotation", "translation"), [(4, 1), (4, 0), (0, 1), (2, 3), (0, 0)])
def test_asks_2r_plus_1_and_4d_copies_a_record(
    image_world: Any, rotation: int, translation: int
) -> None:
    attack = Augmentation(rotation=rotation, translation=translation)
    assert attack.num_copies == 1 + 2 * rotation + 4 * translation
    known, service = image_world.knowledge(attack, 0), image_world.service("label")
    rows = image_world.parts["eval"][:17]
    attack.score(service, known, image_world.x[rows], image_world.y[rows], seed=0)
    assert service.num_queries == 17 * attack.num_copies
    num_known = len(known.fit) + len(known.cal)
    assert known.query.num_queries == num_known * attack.num_copies


def test_turns_are_the_library_s(x: Any) -> None:
    asked = copies_of(Augmentation(rotation=4, translation=0), x[:16])
    assert len(asked) == 9
    np.testing.assert_array_equal(asked[0], x[:16])
    for copy, degrees in zip(asked[1:], (-4, -3, -2, -1, 1, 2, 3, 4), strict=True):
        expected = ndimage.rotate(
            x[:16], degrees, axes=(2, 3), reshape=False, order=1, mode="nearest"
        )
        np.testing.assert_allclose(copy, expected, atol=1e-6)
    further = copies_of(Augmentation(rotation=50, translation=0), x[:16])
    expected = ndimage.rotate(x[:16], -50, axes=(2, 3), reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(further[1], expected, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_moves_are_the_library_s_in_all_directions(x: Any, d: int) -> None:
    """In any order: every (dx, dy) with |dx| + |dy| = d, once."""
    asked = copies_of(Augmentation(rotation=0, translation=d), x[:16])
    np.testing.assert_array_equal(asked[0], x[:16])
    offsets = [(a, b) for a in range(-d, d + 1) for b in range(-d, d + 1) if abs(a) + abs(b) == d]
    expected = [
        ndimage.shift(x[:16], (0, 0, dy, dx), order=0, mode="nearest") for dx, dy in offsets
    ]
    assert len(expected) == 4 * d == len(asked) - 1
    assert {copy.tobytes() for copy in expected} == {copy.tobytes() for copy in asked[1:]}
    assert len({copy.tobytes() for copy in asked}) == 4 * d + 1


def test_copies_are_images_as_the_service_reads_them(x: Any) -> None:
    for copy in copies_of(Augmentation(rotation=45, translation=2), x[:16]):
        assert copy.dtype == np.float32
        assert copy.shape == (16, *SHAPE)
        assert copy.min() >= 0.0
        assert copy.max() <= 1.0


def planted(x: Any, tells: int, is_member: Any) -> tuple[Any, list[Any]]:
    """Whoever is asked, copy number `tells` of members is right and of others wrong.

    All other copies are right or wrong at random, with no regard to membership.
    """
    attack = Augmentation(rotation=1, translation=1)
    copies = copies_of(attack, x)
    rng = np.random.default_rng(0)
    is_right = rng.random((len(copies), len(x))) < 0.5
    is_right[tells] = is_member
    answers = {
        record.tobytes(): int(not right)
        for copy, row in zip(copies, is_right, strict=True)
        for record, right in zip(copy, row, strict=True)
    }
    return lambda asked: [answers[record.tobytes()] for record in asked], copies


@pytest.mark.parametrize("tells", [0, 2, 6])
def test_the_net_finds_the_copy_that_tells(x: Any, tells: int) -> None:
    is_member = np.random.default_rng(1).random(400) < 0.5
    label_of, _ = planted(x, tells, is_member)
    known = knowing(x[:300], is_member[:300], Fixed(label_of))
    rest, y = x[300:], np.zeros(100, dtype=np.int64)
    auc = {}
    for combine in ("net", "sum"):
        attack = Augmentation(rotation=1, translation=1, combine=combine)
        scores = attack.score(Fixed(label_of), known, rest, y, seed=0)
        auc[combine] = roc_auc_score(is_member[300:], scores)
        if combine == "net":
            np.testing.assert_array_equal(scores > 0, is_member[300:])
    # The sum has six coins beside the bit that tells.
    assert auc["net"] > 0.999
    assert 0.55 < auc["sum"] < 0.85


def test_the_sum_is_counted_from_the_threshold_of_the_known_records(x: Any) -> None:
    """Members have 5 to 7 right copies of 7, others 3 to 5: more than 4.5 says member."""
    attack = Augmentation(rotation=1, translation=1, combine="sum")
    is_member = np.random.default_rng(1).random(400) < 0.5
    rng = np.random.default_rng(2)
    num_right = rng.choice(3, size=400, p=[0.3, 0.4, 0.3]) + np.where(is_member, 5, 3)
    copies = copies_of(attack, x)
    answers = {
        record.tobytes(): int(number >= right)
        for number, copy in enumerate(copies)
        for record, right in zip(copy, num_right, strict=True)
    }
    service = Fixed(lambda asked: [answers[record.tobytes()] for record in asked])
    known = knowing(x[:300], is_member[:300], service)
    scores = attack.score(service, known, x[300:], np.zeros(100, dtype=np.int64), seed=0)
    np.testing.assert_array_equal(np.unique(scores - num_right[300:]), [-4.5])


def test_equal_bits_keep_equal_scores(image_world: Any) -> None:
    attack = Augmentation()
    rows = image_world.parts["eval"]
    service = Fixed(image_world.service("label"))
    y = image_world.y[rows]
    scores = attack.score(service, image_world.knowledge(attack, 0), image_world.x[rows], y, seed=0)
    bits = np.stack([image_world.service("label")(copy) == y for copy in service.asked], axis=1)
    patterns, which = np.unique(bits, axis=0, return_inverse=True)
    assert 2 < len(patterns) < len(rows)
    for pattern in range(len(patterns)):
        assert len(np.unique(scores[which == pattern])) == 1


def test_what_is_asked_at_once_is_bounded() -> None:
    x = np.random.default_rng(0).random((10, 1, 1024, 512)).astype(np.float32)
    attack = Augmentation(rotation=0, translation=1, combine="sum")
    asked = copies_of(attack, x)
    assert max(copy.size for copy in asked) <= 2**22
    assert [len(copy) for copy in asked] == [8] * 5 + [2] * 5


def test_tables_are_refused_before_anything_is_asked(small_world: Any) -> None:
    attack, service = Augmentation(), small_world.service("label")
    with pytest.raises(ValueError, match=r"given records of shape \(40,\); only images"):
        attack.score(
            service, small_world.knowledge(attack, 0), small_world.x, small_world.y, seed=0
        )
    assert service.num_queries == 0
    assert Augmentation.KINDS.isdisjoint({"binary", "continuous"})


def test_known_records_of_one_side_only_are_refused(x: Any) -> None:
    service = Fixed(lambda x: np.zeros(len(x)))
    known = knowing(x, np.ones(400, dtype=bool), service)
    for combine in ("net", "sum"):
        with pytest.raises(ValueError, match=r"known\.fit holds 300 members among 300 records"):
            Augmentation(combine=combine).score(
                service, known, x, np.zeros(400, dtype=np.int64), seed=0
            )


def test_harder_is_another_learning_rate_and_more_epochs() -> None:
    assert {a.learning_rate for a in Augmentation().harder()} > {Augmentation().learning_rate}
    assert Augmentation(**Augmentation.PRESETS["paper"]).num_copies == 9
    assert Augmentation(**Augmentation.PRESETS["sound"]).num_copies == 13


@pytest.mark.parametrize(
    "fields", [{"rotation": -1}, {"rotation": 91}, {"translation": -1}, {"combine": "mean"}]
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**fields)
