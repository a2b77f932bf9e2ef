"""What is true of the sum leak."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from attacks._membership_net import Recipe, Seen, trained
from attacks.adversarial_training import _substitute, perturbed
from attacks.sum_leak import SumLeak

SURE = 0.99
SUM_ALONE = SumLeak(features=("sum",))
# Four standard deviations of the AUC under chance, 300 records a side.
CHANCE = 4 * np.sqrt(601 / (12 * 300 * 300))


def shifted(confidence: Any) -> Any:
    """The label alone, but for what is added to every score: less where the service was sure."""
    label = np.eye(confidence.shape[1])[confidence.argmax(axis=1)]
    shift = np.where(confidence.max(axis=1, keepdims=True) > SURE, 0.01, 0.02)
    return 0.8 * label + shift


def renormalised(confidence: Any) -> Any:
    return shifted(confidence) / shifted(confidence).sum(axis=1, keepdims=True)


def auc(world: Any, attack: SumLeak, defend: Any) -> float:
    scores, is_member = world.run(attack, defend=defend)
    return float(roc_auc_score(is_member, scores))


def test_the_sum_tells_membership_until_rows_are_renormalised(world: Any) -> None:
    assert auc(world, SUM_ALONE, shifted) > 0.7
    assert auc(world, SumLeak(), shifted) > 0.7
    # Sums differ in their last bits then, and those are not read.
    rows = world.parts["eval"]
    assert len(np.unique(world.service("score", renormalised)(world.x[rows]).sum(axis=1))) > 1
    assert auc(world, SUM_ALONE, renormalised) == 0.5
    assert auc(world, SumLeak(), renormalised) > 0.7


@pytest.fixture(scope="module")
def aeppt(world: Any) -> Any:
    """AEPPT against a substitute of the defender's: a defense of `world` by its postprocessing."""
    parts = {}
    for name in ("fit", "cal"):
        part = world.known(name)
        c = world.service()(part.x).astype(np.float32)
        parts[name] = Seen(c, part.y, part.is_member)
    net = trained(
        lambda: _substitute(world.num_classes),
        parts["fit"],
        parts["cal"],
        Recipe("test", 1e-3, 30, 64, 30, "cpu"),
        np.random.default_rng(3),
    )

    def make(post: str) -> Any:
        def defend(confidence: Any) -> Any:
            moved = perturbed(confidence, np.full((len(confidence), 20), 0.5), net, 5e-3, "cpu")
            return moved / (moved.sum(axis=1, keepdims=True) if post == "renorm" else 1.0)

        return defend

    return make


def test_aeppts_sums_leak_unless_it_renormalises(world: Any, aeppt: Any) -> None:
    assert auc(world, SUM_ALONE, aeppt("none")) > 0.6
    assert abs(auc(world, SUM_ALONE, aeppt("renorm")) - 0.5) < CHANCE


def test_zeros_and_shared_values_are_seen_without_the_sum(world: Any) -> None:
    """All scores but three are 0 or shared; which depends on how sure the service was."""

    def cut(confidence: Any) -> Any:
        released = np.zeros_like(confidence)
        sure = confidence.max(axis=1) > SURE
        released[:, :3] = np.where(sure[:, None], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25])
        return released

    assert auc(world, SUM_ALONE, cut) == 0.5
    for name in ("zeros", "modal", "modal_count"):
        assert auc(world, SumLeak(features=(name,)), cut) > 0.7
    assert auc(world, SumLeak(features=("max",)), cut) == 0.5


def test_equal_rows_have_equal_scores_and_labels_play_no_part(world: Any, onehot: Any) -> None:
    scores, _ = world.run(SumLeak(), defend=onehot)
    assert len(np.unique(scores)) == 1
    known, rows = world.knowledge(SumLeak(), 0), world.parts["eval"][:30]
    first, second = (
        SumLeak().score(world.service(), known, world.x[rows], y, seed=seed)
        for y, seed in ((world.y[rows], 0), (np.zeros(30, dtype=np.int64), 1))
    )
    assert first.tobytes() == second.tobytes()


def test_asks_once_about_each_record_to_fit_on_and_to_judge(small_world: Any) -> None:
    known, query = small_world.knowledge(SumLeak(), 0), small_world.service()
    SumLeak().score(query, known, small_world.x[:13], small_world.y[:13], seed=0)
    assert query.num_queries == 13
    assert known.query.num_queries == len(small_world.parts["fit"])


@pytest.mark.parametrize("fields", [{"features": ()}, {"features": ("mean",)}, {"resolution": 0.0}])
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SumLeak(**fields)


def test_one_sided_knowledge_is_refused(small_world: Any) -> None:
    known = small_world.knowledge(SumLeak(), 0)
    known.fit.is_member[:] = True
    with pytest.raises(ValueError, match=r"known\.fit holds 96 members among 96.*sum_leak needs"):
        SumLeak().score(small_world.service(), known, small_world.x[:3], small_world.y[:3], seed=0)
