"""What is true of LiRA."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from attacks._likelihood import lira, logit_confidence
from attacks.gap import Gap
from attacks.lira import Lira

IMAGE = (3, 6, 7)


@pytest.fixture(scope="module")
def image_world(make_world: Any) -> Any:
    return make_world(per_side=60, num_features=126, image=IMAGE)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("global_variance", [None, False])
def test_finds_more_than_the_gap(world: Any, mode: Any, global_variance: bool | None) -> None:
    scores, is_member = world.run(Lira(mode=mode, global_variance=global_variance))
    gap, _ = world.run(Gap())
    assert roc_auc_score(is_member, scores) > roc_auc_score(is_member, gap) + 0.02


def test_score_is_the_kernel_on_the_answers(world: Any) -> None:
    """Put together by hand: judged records, and the held ones for the common deviation."""
    rows, held = world.parts["eval"], world.known_rows
    shadows = world.shadows(16)

    def signals(rows: Any) -> Any:
        x, y = world.x[rows], world.y[rows]
        phi = np.stack([logit_confidence(m.answer(x), y) for m in shadows.models])[..., None]
        return phi, shadows.role(x) == 1, shadows.role(x) == 0

    target = logit_confidence(world.service()(world.x[rows]), world.y[rows])[:, None]
    for attack in (Lira(), Lira(mode="offline"), Lira(global_variance=False)):
        common = attack.global_variance is None
        expected = lira(
            target,
            *signals(rows),
            mode=attack.mode,
            global_variance=common,
            pool=signals(held) if common else None,
        )
        np.testing.assert_allclose(world.run(attack)[0], expected, rtol=1e-9)


def test_own_deviation_from_64_models_on(make_world: Any) -> None:
    few_records = make_world(per_side=30)
    for num_shadows, common in ((62, True), (64, False)):
        default, chosen, other = (
            few_records.run(Lira(num_shadows=num_shadows, global_variance=v))[0]
            for v in (None, common, not common)
        )
        np.testing.assert_array_equal(default, chosen)
        assert not np.allclose(default, other)


def test_asks_for_shadows_with_its_own_defense_if_adaptive(world: Any) -> None:
    for adaptive in (False, True):
        asked = Lira(num_shadows=6).trainings(world.outline(adaptive=adaptive), seed=0)
        assert len(asked) == 6
        assert {a["defended"] for a in asked} == {adaptive}


def test_presets_are_the_papers_sizes() -> None:
    assert {k: Lira(**v).num_shadows for k, v in Lira.PRESETS.items()} == {
        "paper": 256,
        "sound": 64,
        "cpu": 16,
    }


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_reference_records_of_defended_shadows_count_for_nothing(world: Any, mode: Any) -> None:
    attack, rows = Lira(mode=mode), world.parts["eval"][:40]
    known = world.knowledge(attack, 0, adaptive=True)
    honest = known.shadows
    roles = honest.role(world.x[rows])
    assert set(np.unique(roles)) == {-1, 0, 1}
    assert ((roles == 1).sum(axis=0) != (roles == 0).sum(axis=0)).all()

    class Planted:
        """Certain wherever a record was its defense's reference."""

        num_shadows = honest.num_shadows
        role = honest.role

        def __call__(self, x: Any) -> Any:
            certain = np.eye(world.num_classes)[np.zeros(len(x), dtype=int)]
            return np.where((honest.role(x) == -1)[..., None], certain, honest(x))

    planted = SimpleNamespace(shadows=Planted(), rows=known.rows, x_of=known.x_of, num_classes=8)
    first, second = (
        attack.score(world.service(), k, world.x[rows], world.y[rows], seed=0)  # type: ignore[arg-type]
        for k in (known, planted)
    )
    np.testing.assert_array_equal(first, second)


def test_defended_shadows_see_through_a_deterministic_defense(world: Any) -> None:
    """Flattened answers shift every signal; copies of the defense shift with it."""

    def flatten(confidence: Any) -> Any:
        return softmax(0.3 * np.log(confidence), axis=1)

    aucs = [
        roc_auc_score(*reversed(world.run(Lira(mode="offline"), defend=flatten, adaptive=adaptive)))
        for adaptive in (False, True)
    ]
    assert aucs[1] > aucs[0] + 0.05
    assert aucs[1] > 0.7


def watched(service: Any) -> tuple[Any, list[Any]]:
    """The service, and what it was asked."""
    seen: list[Any] = []

    def ask(x: Any) -> Any:
        seen.append(np.array(x))
        return service(x)

    return ask, seen


def test_versions_of_an_image_come_in_the_documented_order(image_world: Any) -> None:
    attack, rows = Lira(num_shadows=4, num_queries=18, shift=2), image_world.parts["eval"]
    service = image_world.service()
    ask, seen = watched(service)
    x = image_world.x[rows]
    attack.score(ask, image_world.knowledge(attack, 0), x, image_world.y[rows], seed=0)
    assert len(seen) == 18
    assert len({version.tobytes() for version in seen}) == 18
    np.testing.assert_array_equal(seen[0], x)
    np.testing.assert_array_equal(seen[1], x[..., ::-1])
    moves = [(2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, 2), (2, -2), (-2, -2)]
    for q, (right, down) in enumerate(moves, start=1):
        for version, before in ((seen[2 * q], seen[0]), (seen[2 * q + 1], seen[1])):
            for row in range(IMAGE[1]):
                for column in range(IMAGE[2]):
                    # Mirrored at the edge pixel, which is not repeated.
                    i, j = (
                        size - 1 - abs(size - 1 - abs(at))
                        for at, size in ((row - down, IMAGE[1]), (column - right, IMAGE[2]))
                    )
                    np.testing.assert_array_equal(version[..., row, column], before[..., i, j])


@pytest.mark.parametrize("num_queries", [1, 2, 5, 18])
def test_asks_as_often_as_it_says(image_world: Any, num_queries: int) -> None:
    attack = Lira(num_shadows=4, num_queries=num_queries)
    service, rows = image_world.service(), image_world.parts["eval"][:13]
    known = image_world.knowledge(attack, 0)
    attack.score(service, known, image_world.x[rows], image_world.y[rows], seed=0)
    assert service.num_queries == num_queries * 13
    assert known.query.num_queries == 0


def test_several_queries_are_averaged_log_ratios(image_world: Any) -> None:
    """Each version against the same version's answers of the shadow models."""
    rows, shadows = image_world.parts["eval"], image_world.shadows(16)
    x, y = image_world.x[rows], image_world.y[rows]
    role = shadows.role(x)
    parts = []
    for version in (x, x[..., ::-1]):
        phi = np.stack([logit_confidence(m.answer(version), y) for m in shadows.models])
        target = logit_confidence(image_world.service()(version), y)
        parts.append(
            lira(
                target[:, None],
                phi[..., None],
                role == 1,
                role == 0,
                mode="online",
                global_variance=False,
            )
        )
    scores, _ = image_world.run(Lira(num_queries=2, global_variance=False))
    np.testing.assert_allclose(scores, np.mean(parts, axis=0), rtol=1e-9)


def test_several_queries_of_a_table_are_refused_before_any_is_asked(small_world: Any) -> None:
    attack, service = Lira(num_queries=2), small_world.service()
    with pytest.raises(ValueError, match=r"num_queries is 2 but records have shape \(40,\)"):
        attack.score(
            service, small_world.knowledge(attack, 0), small_world.x, small_world.y, seed=0
        )
    assert service.num_queries == 0


def test_shadow_answers_are_asked_for_in_pieces_of_bounded_memory() -> None:
    """Four models of 65,536 classes and 150 records do not fit in 128 MB at once."""
    num_classes, num_records = 2**16, 150
    rng = np.random.default_rng(0)
    level = rng.uniform(0.1, 0.9, size=(4, num_records))
    x = np.arange(num_records, dtype=np.float32)[:, None]
    y = np.zeros(num_records, dtype=np.int64)
    sizes = []

    def answer(level: Any) -> Any:
        confidence = np.zeros((*level.shape, num_classes))
        confidence[..., 0], confidence[..., 1] = level, 1 - level
        return confidence

    class Levels:
        num_shadows = 4

        def __call__(self, x: Any) -> Any:
            sizes.append(4 * len(x) * num_classes)
            return answer(level[:, x[:, 0].astype(int)])

        def role(self, x: Any) -> Any:
            return np.tile(np.array([1, 0, 1, 0], dtype=np.int8)[:, None], len(x))

    known: Any = SimpleNamespace(
        shadows=Levels(),
        rows=np.arange(num_records),
        x_of=lambda rows: (x[rows], y[rows]),
        num_classes=num_classes,
    )
    target = rng.uniform(0.1, 0.9, size=num_records)
    scores = Lira(num_shadows=4).score(
        lambda x: answer(target[x[:, 0].astype(int)]),  # type: ignore[arg-type]
        known,
        x,
        y,
        seed=0,
    )
    assert max(sizes) <= 2**24
    assert len(sizes) > 2
    phi = np.log(level / (1 - level))[..., None]
    is_in = known.shadows.role(x) == 1
    expected = lira(
        np.log(target / (1 - target))[:, None],
        phi,
        is_in,
        ~is_in,
        mode="online",
        global_variance=True,
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_records_outside_the_pool_have_no_in_models(world: Any) -> None:
    outside = np.setdiff1d(np.arange(len(world.x)), np.concatenate(list(world.parts.values())))[:3]
    x, y = world.x[outside], world.y[outside]
    attack = Lira()
    with pytest.raises(ValueError, match="3 of 3 records have no IN models among 16"):
        attack.score(world.service(), world.knowledge(attack, 0), x, y, seed=0)
    offline = Lira(mode="offline")
    scores = offline.score(world.service(), world.knowledge(offline, 0), x, y, seed=0)
    assert np.isfinite(scores).all()


def test_other_shadow_models_than_asked_for_are_refused(small_world: Any) -> None:
    known = small_world.knowledge(Lira(num_shadows=4), 0)
    with pytest.raises(ValueError, match=r"got 4 shadow models .* num_shadows = 16"):
        Lira().score(small_world.service(), known, small_world.x, small_world.y, seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_shadows": 2},
        {"num_shadows": 15},
        {"num_queries": 0},
        {"num_queries": 19},
        {"shift": 0},
        {"clip": 0.0},
        {"mode": "both"},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Lira(**fields)
