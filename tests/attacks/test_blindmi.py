"""What is true of BlindMI."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

from attacks._mmd import survived
from attacks.blindmi import Blindmi, _batches

VARIANTS = ("diff_w", "diff_wo", "one_class")


@pytest.fixture(scope="module")
def image_world(make_world: Any) -> Any:
    return make_world(per_side=60, num_features=108, image=(3, 6, 6))


@pytest.fixture(scope="module")
def bit_world(make_world: Any) -> Any:
    return make_world(per_side=120, binary=True)


def score(
    attack: Any, answers: Any, y: Any, *, made: Any = None, seed: int = 0, kind: Any = "continuous"
) -> Any:
    """Scores of records that are their own numbers; made-up inputs are answered with `made`."""
    x = np.arange(len(y), dtype=np.float32)[:, None]
    asked = []

    def service(x: Any) -> Any:
        asked.append(x)
        return answers[x[:, 0].astype(int)] if len(asked) == 1 else made

    known: Any = SimpleNamespace(kind=kind)
    return attack.score(service, known, x, y, seed=seed)


def planted(seed: int = 0, num: int = 1000, num_made: int = 20) -> tuple[Any, Any, Any, Any]:
    """Two clusters of answers, members the surer ones, and made-up inputs like the others."""
    rng = np.random.default_rng(seed)

    def answers(first: Any) -> Any:
        first = np.clip(first + rng.normal(scale=0.03, size=len(first)), 0, 1)
        rest = 1 - first
        return np.stack([first, 0.6 * rest, 0.3 * rest, 0.1 * rest], axis=1)

    is_member = rng.random(num) < 0.5
    return answers(np.where(is_member, 0.95, 0.5)), is_member, answers(np.full(num_made, 0.5)), rng


def decided(scores: Any, is_member: Any) -> float:
    return float(((scores > Blindmi.THRESHOLD) == is_member).mean())


@pytest.mark.parametrize("variant", ["diff_w", "diff_wo"])
@pytest.mark.parametrize("batch_size", [20, None])
def test_two_planted_clusters_are_recovered(variant: Any, batch_size: int | None) -> None:
    answers, is_member, made, _ = planted()
    y = np.zeros(1000, dtype=np.int64)
    attack = Blindmi(variant=variant, batch_size=batch_size)
    scores = score(attack, answers, y, made=made)
    assert decided(scores, is_member) >= 0.95


def test_where_members_are_few_fewer_of_them_stay() -> None:
    """Published batches are half members; two in a batch of 20 leave with the rest."""
    answers, is_member, made, rng = planted(num=4000)
    members, others = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    found = []
    for share in (1, 9):
        rows = rng.permutation(np.concatenate([members[: len(others) // share], others]))
        y = np.zeros(len(rows), dtype=np.int64)
        scores = score(Blindmi(), answers[rows], y, made=made)
        found.append(((scores > 0)[is_member[rows]].mean(), roc_auc_score(is_member[rows], scores)))
    (most, even), (few, scarce) = found
    assert few < most - 0.4
    assert even > 0.99
    assert scarce > 0.75


@pytest.mark.parametrize("variant", ["diff_w", "diff_wo"])
def test_one_cluster_is_all_members(variant: Any) -> None:
    answers = np.tile([0.7, 0.2, 0.1], (50, 1))
    y = np.arange(50) % 3
    scores = score(Blindmi(variant=variant, features="top3"), answers, y, made=answers[:20])
    assert (scores > 0).all()
    # The true label's confidence decides what the comparison leaves open.
    np.testing.assert_allclose(scores, 0.25 + 0.5 * answers[np.arange(50), y])


def test_scores_count_sweeps_and_ties_go_to_the_surer() -> None:
    rng = np.random.default_rng(6)
    answers, made = rng.dirichlet(np.ones(4), size=20), rng.dirichlet(np.full(4, 5.0), size=20)
    y = rng.integers(4, size=20)
    scores = score(Blindmi(features="top3"), answers, y, made=made)
    top3, made_top3 = (-np.sort(-p, axis=1)[:, :3] for p in (answers, made))
    sweeps = survived(top3[None], np.ones((1, 20), dtype=bool), made_top3)[0]
    assert len(set(sweeps)) > 2
    np.testing.assert_allclose(scores, sweeps - 20 + 0.25 + 0.5 * answers[np.arange(20), y])
    # Who left has less than 0, whatever the tie: the threshold is the comparison's decision.
    np.testing.assert_array_equal(scores > Blindmi.THRESHOLD, sweeps == 20)


@pytest.mark.parametrize("variant", VARIANTS)
def test_overfitting_is_found(world: Any, variant: Any) -> None:
    scores, is_member = world.run(Blindmi(variant=variant))
    assert roc_auc_score(is_member, scores) > 0.7
    called = scores > Blindmi.THRESHOLD
    # Its own decision, with no record of known membership: four standard deviations from chance.
    advantage = called[is_member].mean() - called[~is_member].mean()
    assert advantage > 4 * np.sqrt(0.5 / 300)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_found_where_nothing_is(independent_world: Any, variant: Any) -> None:
    scores, is_member = independent_world.run(Blindmi(variant=variant))
    bound = 4 * np.sqrt(601 / (12 * 300 * 300))
    assert abs(roc_auc_score(is_member, scores) - 0.5) < bound


@pytest.mark.parametrize("num_generated", [20, 33])
@pytest.mark.parametrize(("variant", "makes"), [("diff_w", 1), ("diff_wo", 0), ("one_class", 1)])
def test_asks_once_a_record_and_once_a_made_up_input(
    small_world: Any, variant: Any, makes: int, num_generated: int
) -> None:
    attack = Blindmi(variant=variant, num_generated=num_generated)
    known, service = small_world.knowledge(attack, 0), small_world.service()
    rows = small_world.parts["eval"][:27]
    attack.score(service, known, small_world.x[rows], small_world.y[rows], seed=0)
    assert service.num_queries == 27 + makes * num_generated
    assert known.query.num_queries == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_but_the_kind_of_records_is_known(small_world: Any, variant: Any) -> None:
    rows = small_world.parts["eval"]
    x, y = small_world.x[rows], small_world.y[rows]
    attack = Blindmi(variant=variant)
    blind: Any = SimpleNamespace(kind="continuous")
    first = attack.score(small_world.service(), blind, x, y, seed=0)
    np.testing.assert_array_equal(first, small_world.run(attack)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_records_tells_nothing(small_world: Any, variant: Any) -> None:
    rows = small_world.parts["eval"]
    x, y = small_world.x[rows], small_world.y[rows]
    attack, known = Blindmi(variant=variant), small_world.knowledge(Blindmi(), 0)
    scores = attack.score(small_world.service(), known, x, y, seed=0)
    order = np.random.default_rng(0).permutation(len(rows))
    again = attack.score(small_world.service(), known, x[order], y[order], seed=0)
    np.testing.assert_array_equal(again, scores[order])


def test_other_seeds_make_other_batches(world: Any) -> None:
    first, second = (
        world.run(Blindmi(variant="diff_wo", batch_size=20), seed=s)[0] for s in (0, 1)
    )
    assert ((first > 0) != (second > 0)).any()


def test_batches_hold_everybody_once_and_are_as_equal_as_can_be() -> None:
    for num in (1, 19, 20, 21, 45, 300):
        order = np.random.default_rng(num).permutation(num)
        place = _batches(order, 20)
        assert place.shape[1] <= 20
        sizes = (place >= 0).sum(axis=1)
        assert sizes.max() - sizes.min() <= 1
        assert len(place) == -(-num // 20)
        np.testing.assert_array_equal(np.sort(place[place >= 0]), np.arange(num))


def test_more_batches_than_fit_in_memory_are_compared_piece_by_piece() -> None:
    """Three, as first published, have 6 million kernel values, and 4.2 million are held at once."""
    answers, is_member, made, _ = planted(num=3000, num_made=1000)
    y = np.zeros(3000, dtype=np.int64)
    scores = score(Blindmi(batch_size=1000, num_generated=1000), answers, y, made=made)
    assert decided(scores, is_member) >= 0.95
    # Nobody was left out: the tie is that of the record.
    tie = 0.25 + 0.5 * answers[:, 0]
    np.testing.assert_allclose((scores - tie) - np.round(scores - tie), 0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_classes_leave_the_third_confidence_zero(make_world: Any, variant: Any) -> None:
    world = make_world(num_classes=2, per_side=60)
    for features in ("top3", "true_label"):
        scores, _ = world.run(Blindmi(variant=variant, features=features))
        assert np.isfinite(scores).all()
    found = Blindmi(features="top3")._features(np.array([[0.2, 0.8]]), np.array([0]))
    np.testing.assert_array_equal(found, [[0.8, 0.2, 0]])


def test_features_are_the_true_labels_confidence_and_the_largest() -> None:
    p, y = np.array([[0.2, 0.1, 0.4, 0.3], [0.7, 0.1, 0.2, 0.0]]), np.array([1, 0])
    np.testing.assert_array_equal(Blindmi()._features(p, y), [[0.1, 0.4, 0.3], [0.7, 0.7, 0.2]])
    for variant in ("diff_wo", "one_class"):
        np.testing.assert_array_equal(
            Blindmi(variant=variant)._features(p, y), [[0.4, 0.3, 0.2], [0.7, 0.2, 0.1]]
        )


@pytest.mark.parametrize(
    "generator", ["sobel", "scharr", "laplace", "gaussian", "salt_pepper", None]
)
def test_images_are_filtered_or_noised(image_world: Any, generator: Any) -> None:
    seen = made_by(image_world, Blindmi(generator=generator, salt_pepper_share=0.05))
    x = image_world.x[image_world.parts["eval"]]
    assert seen.shape == (20, 3, 6, 6)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not any((record == x).all(axis=(1, 2, 3)).any() for record in seen)
    if generator is None:
        sobel = made_by(image_world, Blindmi(generator="sobel"))
        np.testing.assert_array_equal(seen, sobel)


def made_by(world: Any, attack: Any) -> Any:
    """What the attack asks about besides the judged records."""
    seen: list[Any] = []
    service, rows = world.service(), world.parts["eval"]

    def ask(x: Any) -> Any:
        seen.append(np.array(x))
        return service(x)

    attack.score(ask, world.knowledge(attack, 0), world.x[rows], world.y[rows], seed=0)
    assert len(seen) == 2
    return seen[1]


def test_tables_are_shuffled_by_column_or_made_of_random_bits(bit_world: Any) -> None:
    rows = bit_world.parts["eval"]
    made = made_by(bit_world, Blindmi())
    assert set(np.unique(made)) == {0, 1}
    # 20 of 120 records: a column keeps their count of ones.
    assert np.abs(made.mean(axis=0) - bit_world.x[rows].mean(axis=0)).max() < 4 * 0.5 / np.sqrt(20)
    bits = made_by(bit_world, Blindmi(generator="random_bits", num_generated=300))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)


def test_more_can_be_made_up_than_there_are_records(small_world: Any) -> None:
    attack, rows = Blindmi(num_generated=50), small_world.parts["eval"][:7]
    known = small_world.knowledge(attack, 0)
    x, y = small_world.x[rows], small_world.y[rows]
    scores = attack.score(small_world.service(), known, x, y, seed=0)
    assert np.isfinite(scores).all()
    assert len(attack.score(small_world.service(), known, x[:0], y[:0], seed=0)) == 0


def test_image_filters_are_refused_for_tables_before_anything_is_asked(small_world: Any) -> None:
    attack, service = Blindmi(generator="sobel"), small_world.service()
    assert "generator sobel is for images" in attack.fault((40,), adaptive=False)
    assert attack.fault((3, 6, 6), adaptive=False) == ""
    assert Blindmi(generator="sobel", variant="diff_wo").fault((40,), adaptive=False) == ""
    with pytest.raises(ValueError, match=r"records have shape \[40\]: use random_bits"):
        attack.score(
            service, small_world.knowledge(attack, 0), small_world.x, small_world.y, seed=0
        )
    assert service.num_queries == 0


def test_one_class_is_the_machines_decision_function() -> None:
    answers, is_member, made, _ = planted()
    answers[500:] = answers[:500]
    y = np.zeros(1000, dtype=np.int64)
    scores = score(Blindmi(variant="one_class"), answers, y, made=made)
    machine = OneClassSVM(kernel="sigmoid", gamma="scale", nu=0.9)
    top3 = -np.sort(-made, axis=1)[:, :3]
    expected = machine.fit(top3).decision_function(-np.sort(-answers, axis=1)[:, :3])
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    np.testing.assert_array_equal(scores[500:], scores[:500])
    # It accepts what is surer than what it was fitted on.
    assert roc_auc_score(is_member[:500], scores[:500]) >= 0.99
    assert (scores[:500][is_member[:500]] > 0).all()


def test_onehot_answers_leave_the_gap_attack(world: Any, onehot: Any) -> None:
    """Made-up inputs and records get alike answers; at most whether the label is right remains."""
    scores, _ = world.run(Blindmi(variant="diff_wo"), defend=onehot)
    assert set(scores) == {0.25, 0.75}


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "diff"},
        {"num_generated": 1},
        {"batch_size": 1},
        {"generator": "canny"},
        {"sigmas": ()},
        {"sigmas": (0.0,)},
        {"nu": 0.0},
        {"salt_pepper_share": 0.6},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Blindmi(**fields)
