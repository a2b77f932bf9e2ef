"""What is true of model inversion."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from attacks.base import Records
from attacks.inversion import Inversion, aligned, decoder

torch.set_num_threads(1)

# Small decoders learn fast with large steps.
SMALL = Inversion(width=8, epochs=40, learning_rates=(1e-2,))


class Service:
    """Answers, and counts what it was asked; a `Classifier`."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer, self.num_queries = answer, 0

    def __call__(self, x: Any) -> Any:
        self.num_queries += len(x)
        return self.answer(x)


def known(x: NDArray[Any], answer: Callable[[Any], Any], kind: str = "image") -> SimpleNamespace:
    """An attacker that holds these records and is told nothing of membership."""
    return SimpleNamespace(
        population=Records(x, np.zeros(len(x), dtype=np.int64)),
        query=Service(answer),
        kind=kind,
        device="cpu",
    )


def images(n: int, shape: tuple[int, ...] = (1, 8, 8), *, seed: int) -> NDArray[np.float32]:
    """Images that vary in four ways."""
    way = np.random.default_rng(0).normal(size=(4, int(np.prod(shape))))
    mixed = np.random.default_rng([1, seed]).normal(size=(n, 4)) @ way
    return (1 / (1 + np.exp(-mixed))).astype(np.float32).reshape(n, *shape)


def linear(x: NDArray[Any], num_classes: int = 12) -> NDArray[np.float64]:
    """Confidences that are a linear code of the record."""
    flat = x.reshape(len(x), -1)
    code = np.random.default_rng(2).normal(size=(flat.shape[1], num_classes))
    return np.asarray(softmax(flat.astype(np.float64) @ code / 4, axis=1))


def by_class(n: int, num_classes: int, *, seed: int) -> tuple[NDArray[np.float32], Any]:
    """Noisy images of a few classes, and their class means."""
    mean = np.random.default_rng(3).random((num_classes, 1, 8, 8))
    rng = np.random.default_rng([4, seed])
    y = rng.integers(num_classes, size=n)
    return np.clip(mean[y] + 0.1 * rng.normal(size=(n, 1, 8, 8)), 0, 1).astype(np.float32), mean


def label_of(x: NDArray[Any], mean: NDArray[Any]) -> NDArray[np.int64]:
    distance = ((x[:, None] - mean[None]) ** 2).sum(axis=(2, 3, 4))
    return np.asarray(distance.argmin(axis=1))


def mse(a: Any, b: Any) -> float:
    return float(np.mean((a - b) ** 2))


def test_what_the_decoder_reads_in_loops() -> None:
    rng = np.random.default_rng(0)
    answers = rng.dirichlet(np.full(7, 0.05), size=40)
    answers[::3] = np.round(answers[::3], 1)
    answers[1], answers[2], answers[3] = 0.0, answers[2] * 3, -answers[3]
    for top_k in (None, 1, 3, 7, 50):
        for floor in (-1000.0, -27.6):
            slow = np.zeros_like(answers)
            for i, row in enumerate(answers):
                order = sorted(range(7), key=lambda k: (-row[k], k))[:top_k]
                logs = [max(np.log(row[k]) if row[k] > 0 else -np.inf, floor) + 50 for k in order]
                raised = max(0.0, -min(logs))
                for k, value in zip(order, logs, strict=True):
                    slow[i, k] = value + raised
            code = aligned(answers, top_k=top_k, log_floor=floor)
            np.testing.assert_allclose(code, slow, rtol=1e-12, atol=1e-12)
            assert (code >= 0).all()


def test_a_label_reads_as_one_large_number_at_the_papers_floor() -> None:
    """log 1 + 50, raised by the 950 that log 0 lies below."""
    np.testing.assert_allclose(aligned(np.eye(5), log_floor=-1000.0), 1000 * np.eye(5))


def test_a_linear_code_is_inverted_on_images() -> None:
    own, judged = images(400, seed=1), images(200, seed=2)
    rebuilt = SMALL.reconstruct(linear(judged), known(own, linear), seed=0)
    assert rebuilt.shape == judged.shape
    assert rebuilt.dtype == np.float64
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1
    assert mse(rebuilt, judged) < 0.2 * mse(own.mean(axis=0), judged)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_a_linear_code_is_inverted_on_bits(loss: Any) -> None:
    own, judged = ((images(400, (40,), seed=s) > 0.5).astype(np.float32) for s in (1, 2))
    attack = Inversion(epochs=20, learning_rates=(1e-3,), loss=loss)
    rebuilt = attack.reconstruct(linear(judged), known(own, linear, "binary"), seed=0)
    assert mse(rebuilt, judged) < 0.35 * mse(own.mean(axis=0), judged)


def test_continuous_features_keep_their_own_range() -> None:
    scale, shift = np.array([100.0, 1e-3] * 10), np.array([-5.0, 7.0] * 10)

    def measured(seed: int) -> Any:
        return (images(400, (20,), seed=seed) * scale + shift).astype(np.float32)

    own, judged = measured(1), measured(2)

    def answer(x: Any) -> Any:
        return linear((x - shift) / scale)

    attack = Inversion(epochs=20, learning_rates=(1e-3,))
    rebuilt = attack.reconstruct(answer(judged), known(own, answer, "continuous"), seed=0)
    assert (rebuilt >= own.min(axis=0) - 1e-5).all()
    assert (rebuilt <= own.max(axis=0) + 1e-5).all()
    for i in range(20):
        assert mse(rebuilt[:, i], judged[:, i]) < 0.3 * judged[:, i].var()


def test_a_label_gives_the_mean_image_of_its_class() -> None:
    own, mean = by_class(400, 4, seed=1)
    judged, _ = by_class(100, 4, seed=2)

    def answer(x: Any) -> Any:
        return np.eye(4)[label_of(x, mean)]

    rebuilt = SMALL.reconstruct(answer(judged), known(own, answer), seed=0)
    of_class = np.stack([own[label_of(own, mean) == c].mean(axis=0) for c in range(4)])
    expected = of_class[label_of(judged, mean)]
    assert mse(rebuilt, expected) < 0.05 * mse(own.mean(axis=0), expected)
    assert mse(rebuilt, judged) < 1.3 * mse(expected, judged)


def test_constant_answers_give_the_mean_of_all() -> None:
    own, judged = images(400, seed=1), images(50, seed=2)

    def constant(x: Any) -> Any:
        return np.tile([0.7, 0.2, 0.1, 0.0], (len(x), 1))

    rebuilt = SMALL.reconstruct(constant(judged), known(own, constant), seed=0)
    np.testing.assert_allclose(rebuilt, np.broadcast_to(rebuilt[:1], rebuilt.shape), atol=1e-6)
    assert mse(rebuilt[0], own.mean(axis=0)) < 0.03 * own.var(axis=0).mean()


def test_it_learns_the_defended_answers() -> None:
    """The service exchanges the first two scores; a decoder of clean answers would be wrong."""
    own, judged = images(400, seed=1), images(200, seed=2)
    swapped = [1, 0, *range(2, 12)]
    attack = SMALL.model_copy(update={"epochs": 20})

    def defended(x: Any) -> Any:
        return linear(x)[:, swapped]

    adaptive, clean = (
        mse(attack.reconstruct(defended(judged), known(own, f), seed=0), judged)
        for f in (defended, linear)
    )
    assert adaptive < 0.5 * clean


def test_scores_of_0_do_not_drown_the_others() -> None:
    """Of the top three scores all are read, in rows as of a top-k defense; at -1000 hardly."""
    own, judged = images(400, seed=1), images(200, seed=2)

    def top3(x: Any) -> Any:
        confidence = linear(x)
        rank = np.argsort(np.argsort(-confidence, axis=1), axis=1)
        return np.where(rank < 3, confidence, 0.0)

    attack = SMALL.model_copy(update={"epochs": 20})
    ours, published = (
        mse(
            attack.model_copy(update={"log_floor": floor}).reconstruct(
                top3(judged), known(own, top3), seed=0
            ),
            judged,
        )
        for floor in (None, -1000.0)
    )
    assert ours < 0.9 * published


def test_scores_however_small_are_told_apart() -> None:
    """With a floor of 1e-12 nothing would be left of what these rows tell."""
    own, judged = images(400, seed=1), images(200, seed=2)

    def tiny(x: Any) -> Any:
        confidence = np.hstack([np.ones((len(x), 1)), linear(x) * 1e-20])
        return confidence / confidence.sum(axis=1, keepdims=True)

    attack = SMALL.model_copy(update={"epochs": 20})
    rebuilt = attack.reconstruct(tiny(judged), known(own, tiny), seed=0)
    assert mse(rebuilt, judged) < 0.2 * mse(own.mean(axis=0), judged)


def test_only_the_largest_scores_count() -> None:
    own, judged = images(60, seed=1), images(20, seed=2)
    answers = linear(judged)
    few = SMALL.model_copy(update={"top_k": 2, "epochs": 2})
    others = answers.copy()
    third = np.argsort(-answers, axis=1)[:, 2:]
    np.put_along_axis(others, third, np.take_along_axis(answers, third, 1) / 2, 1)
    first, second = (few.reconstruct(a, known(own, linear), seed=0) for a in (answers, others))
    np.testing.assert_array_equal(first, second)


def test_asks_once_about_at_most_num_records() -> None:
    own = images(60, seed=1)
    for num_records, asked in ((None, 60), (20, 20), (500, 60)):
        attack = SMALL.model_copy(update={"num_records": num_records, "epochs": 1})
        attacker = known(own, linear)
        attack.reconstruct(linear(own[:3]), attacker, seed=0)
        assert attacker.query.num_queries == asked


def test_same_seed_same_bits_and_no_trace(small_world: Any) -> None:
    """On the world all attacks are tried on: membership is not told to it."""
    x = small_world.x[small_world.parts["eval"][:30]]
    answers = small_world.service()(x)
    attack = Inversion(epochs=2)
    before = answers.tobytes(), str(np.random.get_state())  # noqa: NPY002
    state = torch.get_rng_state()
    found = [
        attack.reconstruct(answers, small_world.knowledge(attack, 0), seed=seed)
        for seed in (3, 3, 4)
    ]
    assert found[0].shape == x.shape
    assert np.isfinite(found[0]).all()
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].tobytes() != found[2].tobytes()
    assert (answers.tobytes(), str(np.random.get_state())) == before  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)


def test_a_record_does_not_depend_on_the_others() -> None:
    own, answers = images(60, seed=1), linear(images(20, seed=2))
    attack = SMALL.model_copy(update={"epochs": 2})
    together = attack.reconstruct(answers, known(own, linear), seed=0)
    alone = attack.reconstruct(answers[7:8], known(own, linear), seed=0)
    np.testing.assert_allclose(alone[0], together[7], atol=1e-6)


def test_the_learning_rate_is_chosen_on_records_held_out() -> None:
    own, answers = images(200, seed=1), linear(images(20, seed=2))

    def tried(*learning_rates: float) -> bytes:
        attack = Inversion(width=8, epochs=8, learning_rates=learning_rates)
        return attack.reconstruct(answers, known(own, linear), seed=0).tobytes()

    # 1e-7 learns nothing in so few steps, and 1e38 leaves the finite numbers at once.
    assert tried(1e-7, 1e-2) == tried(1e-2) == tried(1e38, 1e-2, 1e-7)
    assert tried(1e-7) != tried(1e-2)
    with pytest.raises(FloatingPointError, match=r"1e\+38"):
        tried(1e38)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((1, 64, 64), [10, 64, 32, 16, 8, 1]),
        ((3, 32, 32), [10, 64, 32, 16, 3]),
        ((1, 28, 28), [10, 64, 32, 16, 1]),
        ((1, 8, 8), [10, 64, 1]),
        ((3, 40, 96), [10, 64, 32, 16, 8, 8, 3]),
        ((2, 3, 1), [10, 64, 2]),
    ],
)
def test_image_decoders_are_the_papers(shape: tuple[int, ...], channels: list[int]) -> None:
    net = decoder(10, shape, width=8)
    assert net(torch.zeros(5, 10)).shape == (5, *shape)
    grown = [m for m in net.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [grown[0].in_channels, *(m.out_channels for m in grown)] == channels
    assert {(m.kernel_size, m.stride, m.padding) for m in grown[1:]} == {((4, 4), (2, 2), (1, 1))}
    assert (grown[0].kernel_size, grown[0].stride, grown[0].padding) == ((4, 4), (1, 1), (0, 0))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == len(grown) - 1


def test_the_decoder_of_other_records_has_two_hidden_layers() -> None:
    net = decoder(10, (600,))
    sizes = [tuple(m.weight.shape) for m in net if isinstance(m, nn.Linear)]
    assert sizes == [(512, 10), (1024, 512), (600, 1024)]
    assert sum(isinstance(m, nn.Tanh) for m in net) == 2


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 32), (1, 28, 28), (40,)])
def test_records_of_any_size_come_back(shape: tuple[int, ...]) -> None:
    own = images(12, shape, seed=1)
    attack = Inversion(width=2, epochs=1, learning_rates=(1e-3,))
    assert attack.reconstruct(linear(own[:7]), known(own, linear), seed=0).shape == (7, *shape)


@pytest.mark.parametrize("num_classes", [2, 530])
@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_any_rows_are_read(num_classes: int, factor: float) -> None:
    own = images(20, seed=1)

    def answer(x: Any) -> Any:
        return factor * linear(x, num_classes)

    attack = Inversion(width=2, epochs=1)
    rebuilt = attack.reconstruct(answer(own), known(own, answer), seed=0)
    assert np.isfinite(rebuilt).all()


def test_too_few_records_of_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match="holds 4 records"):
        SMALL.reconstruct(linear(images(2, seed=2)), known(images(4, seed=1), linear), seed=0)


def test_the_paper_trains_one_wide_decoder() -> None:
    paper = Inversion(**Inversion.PRESETS["paper"])
    assert (paper.width, paper.epochs, paper.batch_size) == (128, 100, 128)
    assert (paper.learning_rates, paper.beta1) == ((2e-4,), 0.5)
    assert (paper.log_shift, paper.log_floor, paper.top_k) == (50.0, -1000.0, None)
    for preset in ("sound", "cpu"):
        assert len(Inversion(**Inversion.PRESETS[preset]).learning_rates) >= 3
