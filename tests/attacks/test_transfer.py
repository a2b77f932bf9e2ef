"""What is true of the transfer attack."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks.gap import Gap
from attacks.transfer import Transfer, _not_among


class Watched:
    """Knowledge that remembers what was labelled and what was trained."""

    def __init__(self, world: Any, attack: Transfer) -> None:
        self._known = world.knowledge(attack, 0)
        self.labelled: list[Any] = []
        self.trained_on: list[tuple[Any, Any, dict[str, Any]]] = []
        self.models: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._known, name)

    def query(self, x: Any) -> Any:
        self.labelled.append(np.array(x))
        return self._known.query(x)

    def train(self, x: Any, targets: Any, **options: Any) -> Any:
        self.trained_on.append((np.array(x), np.array(targets), options))
        epochs = {"epochs": options["epochs"]} if "epochs" in options else {}
        self.models = self._known.train(x, targets, seed=options["seed"], **epochs)
        return self.models


def judged(world: Any, attack: Transfer, num: int | None = None, seed: int = 0) -> Any:
    """Scores, the watched knowledge, and the service that was asked."""
    known: Any = Watched(world, attack)
    service, rows = world.service("label"), world.parts["eval"][:num]
    scores = attack.score(service, known, world.x[rows], world.y[rows], seed=seed)
    return scores, known, service


def test_shadow_learns_the_services_labels_and_not_the_true_ones(world: Any) -> None:
    _, known, _ = judged(world, Transfer(), num=5, seed=7)
    ((x, labels, options),) = known.trained_on
    target = world.service()(x).argmax(axis=1)
    np.testing.assert_array_equal(labels, target)
    assert labels.dtype == np.int64
    where = {record.tobytes(): row for row, record in enumerate(world.x)}
    true = world.y[[where[record.tobytes()] for record in x]]
    assert (labels != true).mean() > 0.1
    assert options == {"seed": 7}


def test_own_records_but_those_that_set_the_threshold_are_labelled_once(world: Any) -> None:
    _, known, service = judged(world, Transfer(), num=23)
    (labelled,) = known.labelled
    own = np.setdiff1d(world.known_rows, world.parts["cal"])
    assert len(labelled) == len(own) == len(world.parts["fit"])
    np.testing.assert_array_equal(
        np.sort([r.tobytes() for r in labelled]), np.sort([r.tobytes() for r in world.x[own]])
    )
    assert known._known.query.num_queries == len(own)
    assert service.num_queries == 23


def test_records_held_out_are_as_new_to_the_shadow_as_judged_ones(world: Any) -> None:
    """Else the threshold would be set on records that the shadow learned by heart."""
    _, known, _ = judged(world, Transfer())
    (shadow,) = known.models
    means = {}
    for part in ("fit", "cal", "eval"):
        rows = world.parts[part]
        means[part] = shadow.answer(world.x[rows]).max(axis=1)
    spread = means["eval"].std() * np.sqrt(1 / len(means["cal"]) + 1 / len(means["eval"]))
    assert abs(means["cal"].mean() - means["eval"].mean()) < 4 * spread
    assert means["fit"].mean() - means["eval"].mean() > 4 * spread


@pytest.mark.parametrize("most", [1, 50, 10_000])
def test_population_records_are_added_up_to_the_most(world: Any, most: int) -> None:
    _, known, _ = judged(world, Transfer(max_population=most), num=5)
    (labelled,) = known.labelled
    num_own = len(world.parts["fit"])
    # The population has the non-members to fit on besides, which are labelled already.
    added = labelled[num_own:]
    assert len(added) == min(most, len(world.population_rows))
    assert _not_among(added, world.x[world.known_rows]).all()
    assert not _not_among(added, world.x[world.population_rows]).any()
    contents = {record.tobytes() for record in labelled}
    assert len(contents) == len(labelled)


def test_score_is_the_shadows_log_confidence_in_the_true_label(world: Any) -> None:
    rows = world.parts["eval"]
    x, y = world.x[rows], world.y[rows]
    right = world.service("label")(x) == y
    for with_correctness in (True, False):
        scores, known, _ = judged(world, Transfer(with_correctness=with_correctness))
        (shadow,) = known.models
        log_p = np.log(np.clip(shadow.answer(x)[np.arange(len(x)), y], 1e-12, 1))
        wanted = np.where(right, log_p, -100.0) if with_correctness else log_p
        np.testing.assert_array_equal(scores, wanted)


def test_the_loss_alone_asks_nothing_about_the_judged_records(world: Any) -> None:
    _, known, service = judged(world, Transfer(with_correctness=False), num=40)
    assert service.num_queries == 0
    assert known._known.query.num_queries == len(world.parts["fit"])


def test_natural_decision_is_the_gap_attacks(world: Any) -> None:
    scores, _ = world.run(Transfer())
    gap, _ = world.run(Gap())
    np.testing.assert_array_equal(scores > Transfer.NATURAL_THRESHOLD, gap > Gap.THRESHOLD)
    loss, _ = world.run(Transfer(with_correctness=False))
    assert (loss > Transfer.NATURAL_THRESHOLD).all()


def test_finds_overfitting_and_more_with_correctness(world: Any) -> None:
    both, is_member = world.run(Transfer())
    alone, _ = world.run(Transfer(with_correctness=False))
    with_correctness, loss_only = (roc_auc_score(is_member, s) for s in (both, alone))
    assert with_correctness > loss_only + 0.05
    # Four standard deviations under chance, 300 records a side, would be 0.594.
    assert with_correctness > 0.6


@pytest.mark.parametrize("with_correctness", [True, False])
def test_nothing_is_found_where_nothing_is(independent_world: Any, with_correctness: bool) -> None:
    scores, is_member = independent_world.run(Transfer(with_correctness=with_correctness))
    bound = 4 * np.sqrt(601 / (12 * 300 * 300))
    assert abs(roc_auc_score(is_member, scores) - 0.5) < bound


def test_only_labels_count(world: Any, onehot: Any) -> None:
    scores, _ = world.run(Transfer())
    hidden, _ = world.run(Transfer(), defend=onehot)
    np.testing.assert_array_equal(scores, hidden)


def test_membership_of_known_records_is_not_used(small_world: Any) -> None:
    rows = small_world.parts["eval"]
    honest, flipped = (small_world.knowledge(Transfer(), 0) for _ in range(2))
    for part in flipped.told:
        np.logical_not(part.is_member, out=part.is_member)
    first, second = (
        Transfer().score(
            small_world.service("label"), known, small_world.x[rows], small_world.y[rows], seed=0
        )
        for known in (honest, flipped)
    )
    np.testing.assert_array_equal(first, second)


def test_recipe_is_the_targets_but_for_what_is_given(small_world: Any) -> None:
    recipes = {}
    for name in ("paper", "sound", "cpu"):
        attack = Transfer(**Transfer.PRESETS[name])
        recipes[name] = judged(small_world, attack, num=5)[1].trained_on[0][2]
    assert recipes["sound"] == recipes["cpu"] == {"seed": 0}
    # All 200 passes, though the target's recipe may stop at a small loss.
    assert recipes["paper"] == {
        "seed": 0,
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "min_loss": 0.0,
    }
    assert Transfer(**Transfer.PRESETS["paper"]).with_correctness is False
    slower = judged(small_world, Transfer(learning_rate=0.01), num=5)[1].trained_on[0][2]
    assert slower == {"seed": 0, "learning_rate": 0.01}


def test_another_seed_trains_another_shadow(small_world: Any) -> None:
    first, second = (small_world.run(Transfer(), seed=seed)[0] for seed in (0, 1))
    assert (first != second).any()


def test_without_records_of_its_own_it_says_what_is_missing(small_world: Any) -> None:
    known = small_world.knowledge(Transfer(), 0)
    cal_only = SimpleNamespace(rows=small_world.parts["cal"], x_of=known.x_of, cal=known.cal)
    with pytest.raises(ValueError, match=r"holds 24 known records, none of which is left"):
        Transfer().score(small_world.service("label"), cal_only, known.cal.x, known.cal.y, seed=0)  # type: ignore[arg-type]


def test_there_is_no_training_it_harder() -> None:
    assert Transfer().harder() == ()
    assert Transfer(epochs=5, learning_rate=0.1).harder() == ()


def test_records_are_compared_bit_for_bit() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    near = np.nextafter(x[:1], np.float32(np.inf))
    others = np.concatenate([x[[2, 0]], near])
    np.testing.assert_array_equal(_not_among(x, others), [False, True, False, True])
    assert _not_among(x, x[:0]).all()
    assert _not_among(x[:0], x).shape == (0,)


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"max_population": -1}],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Transfer(**fields)
