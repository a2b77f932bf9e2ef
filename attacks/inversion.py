"""Adversarial model inversion: a decoder from the service's answer back to the record."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from torch import nn

from attacks.base import Attack, Knowledge

__all__ = ["Inversion", "aligned", "decoder"]

_HELD_OUT = 5  # one record in so many chooses learning rate and epoch
_MIN_BATCH = 16
_STEPS_PER_EPOCH = 20
_ROWS_AT_ONCE = 512
_NO_DEVIATION = 1e-9  # of answers that are all the same, but for rounding


class Inversion(Attack):
    """Train a decoder on records of one's own and what the service answers to them.

    The records are known to be no members, and they are asked about through the service as it is
    deployed: the decoder learns to invert the defended answers. What the answers do not tell, it
    fills in with the mean of the records that get such answers: the class's mean image from a
    label, the mean of all from a constant.

    A fifth of the records is held out. Its mean squared error chooses among `learning_rates` and
    epochs, so that a poor result is not for want of training. Fewer than 20 steps an epoch leave
    the decoder under-trained on small sets, so the batch shrinks with them.

    Source: Yang, Zhang, Chang & Liang, "Neural Network Inversion in Adversarial Setting via
        Background Knowledge Alignment", CCS 2019: training on auxiliary records, truncation
        (`top_k`). Decoder, optimiser, `log_shift` and `log_floor` are the authors' public code's,
        which trains at one learning rate and keeps the epoch that is best on records it reports;
        we hold out some of the attacker's own instead. Its floor of -1000 drowns what the other
        scores of a row tell where one is 0, as top-k and rounding leave it; ours lies just below
        the least score seen. They invert images only; the decoder of other records is ours. What
        a decoder reads is standardised: an image decoder hardly notices, as batch normalisation
        follows, but Tanh layers would start saturated.
    """

    VERSION: ClassVar[int] = 1
    THREAT_MODEL: ClassVar[str] = "BB-pop"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"learning_rates": (2e-4,), "log_floor": -1000.0},
        "sound": {},
        # Narrow decoders take, and in few epochs need, larger steps.
        "cpu": {
            "width": 16,
            "epochs": 25,
            "learning_rates": (1e-3, 5e-3, 2e-2),
            "num_records": 3000,
        },
    }

    top_k: int | None = Field(None, ge=1, description="how many of a row's scores count; all")
    log_shift: float = Field(50.0, description="added to the logarithms of the scores that count")
    log_floor: float | None = Field(
        None, lt=0, description="least logarithm of a score; else 1 below the least one seen"
    )
    width: int = Field(128, ge=1, description="channels g of an image decoder, of 8g, 4g, 2g, g")
    loss: Literal["mse", "bce"] = Field("mse", description="what the decoder descends on")
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (2e-4, 1e-3, 5e-3), min_length=1, description="Adam's steps to try"
    )
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's memory of the gradient (AMSGrad)")
    batch_size: int = Field(128, ge=2, description="most records a step")
    epochs: int = Field(100, ge=1, description="passes over the records at each learning rate")
    num_records: int | None = Field(None, ge=_HELD_OUT, description="most records to ask about")

    def reconstruct(
        self, answers: NDArray[np.float64], known: Knowledge, *, seed: int
    ) -> NDArray[np.float64]:
        """The decoder's records for the answers.

        Args:
            answers: [N, C], rows as released, which need not sum to 1.
            known: `population`, and `query`, asked once about each of at most `num_records`.
            seed: of the choice of records, the weights and the batches.

        Returns:
            [N, ...] of the shape of the attacker's own records; pixels and bits in [0, 1], others
            in the range each feature has among the attacker's records.

        Raises:
            ValueError: if there are fewer than 5 records in `known.population`.
            FloatingPointError: if training leaves the finite numbers at every learning rate.
        """
        own = known.population
        if len(own) < _HELD_OUT:
            raise ValueError(
                f"known.population holds {len(own)} records; inversion trains on four fifths of "
                f"them and chooses on the rest, so it needs {_HELD_OUT} or more"
            )
        rng = np.random.default_rng([seed, 0])
        rows = rng.permutation(len(own))[: self.num_records]
        x = own.x[rows]
        answers_MC = known.query(x)
        log_floor = _floor(answers_MC) if self.log_floor is None else self.log_floor
        code_MC, code_NC = (
            aligned(a, top_k=self.top_k, log_shift=self.log_shift, log_floor=log_floor)
            for a in (answers_MC, answers)
        )
        low, span = _range(x, bounded=known.kind != "continuous")
        decoded = self._trained(code_MC, (x - low) / span, known.device, seed)
        return low + span * decoded(code_NC)

    def _trained(
        self, code_MC: NDArray[np.float64], x: NDArray[np.float32], device: str, seed: int
    ) -> "_Decoder":
        """The decoder of the best learning rate and epoch on the first fifth of the records."""
        num_held_out = len(x) // _HELD_OUT
        best: tuple[float, dict[str, torch.Tensor]] | None = None
        for learning_rate in self.learning_rates:
            # The same weights and batches for each, so that it does not matter which others are
            # tried; drawn on the CPU, so that they do not depend on the device.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.default_rng([seed, 1]).integers(2**63)))
                net = decoder(code_MC.shape[1], x.shape[1:], width=self.width)
            run = _Decoder(net.to(device), code_MC[num_held_out:], x.shape[1:], device)
            optimiser = torch.optim.Adam(
                net.parameters(), lr=learning_rate, betas=(self.beta1, 0.999), amsgrad=True
            )
            rng = np.random.default_rng([seed, 2])
            for _ in range(self.epochs):
                self._epoch(run, optimiser, code_MC[num_held_out:], x[num_held_out:], rng)
                error = run.error(code_MC[:num_held_out], x[:num_held_out])
                if not np.isfinite(error):
                    break
                if best is None or error < best[0]:
                    best = error, {name: v.clone() for name, v in net.state_dict().items()}
        if best is None:
            raise FloatingPointError(
                "inversion's training left the finite numbers at every one of learning_rates "
                f"{list(self.learning_rates)}; use smaller ones"
            )
        net.load_state_dict(best[1])
        return run

    def _epoch(
        self,
        run: "_Decoder",
        optimiser: torch.optim.Optimizer,
        code_MC: NDArray[np.float64],
        x: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> None:
        run.net.train()
        batch_size = min(self.batch_size, max(_MIN_BATCH, len(x) // _STEPS_PER_EPOCH))
        for rows in np.array_split(rng.permutation(len(x)), max(1, round(len(x) / batch_size))):
            logit = run.logit(code_MC[rows])
            target = torch.from_numpy(x[rows]).to(run.device)
            if self.loss == "mse":
                loss = nn.functional.mse_loss(torch.sigmoid(logit), target)
            else:
                loss = nn.functional.binary_cross_entropy_with_logits(logit, target)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()


def aligned(
    answers: NDArray[np.float64],
    *,
    top_k: int | None = None,
    log_shift: float = 50.0,
    log_floor: float = -1000.0,
) -> NDArray[np.float64]:
    """What the decoder reads: the logarithms of a row's largest scores, moved to be positive.

    max(log p, log_floor) + log_shift, and where that is below 0 the row's are raised until its
    least is 0. Of equal scores the first count. The others are 0.

    Args:
        answers: [N, C], not modified; scores below 0 are read as 0.
        top_k: how many scores of a row count; None for all.
        log_shift: in nats.
        log_floor: in nats.

    Returns:
        float64 [N, C], none below 0.

    Source: the public code of Yang et al. 2019.
    """
    p_NC = np.asarray(answers, dtype=np.float64)
    largest_Nk = np.argsort(-p_NC, axis=1, kind="stable")[:, :top_k]
    kept_Nk = np.take_along_axis(p_NC, largest_Nk, axis=1)
    log_Nk = np.full_like(kept_Nk, -np.inf)
    np.log(kept_Nk, out=log_Nk, where=kept_Nk > 0)
    log_Nk = np.maximum(log_Nk, log_floor) + log_shift
    log_Nk += np.maximum(-log_Nk.min(axis=1, keepdims=True), 0)
    code_NC = np.zeros_like(p_NC)
    np.put_along_axis(code_NC, largest_Nk, log_Nk, axis=1)
    return code_NC


def decoder(num_classes: int, shape: tuple[int, ...], *, width: int = 128) -> nn.Sequential:
    """An untrained net from codes [N, C] to the logits [N, *shape] of records in [0, 1].

    Images [channels, height, width] grow from 4x4 by transposed convolutions that double them,
    of 8g, 4g, 2g, g, g, ... channels, until they are large enough; 64x64 takes five in all, 32x32
    four. Where the size is no power of two the middle is cut out: for 28x28 that is the padded
    32x32 image of the paper without its border, on which nothing depends.

    Other records come out of layers of 512 and 1024 units with Tanh.

    Args:
        num_classes: C.
        shape: of a record.
        width: g.

    Source: Yang et al. 2019, by their public code for 64x64.
    """
    if len(shape) != 3:
        layers: list[nn.Module] = [nn.Linear(num_classes, 512), nn.Tanh()]
        layers += [nn.Linear(512, 1024), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(1024, int(np.prod(shape))), nn.Unflatten(1, shape))
    num_doublings = max(1, int(np.ceil(np.log2(max(shape[1:]) / 4))))
    layers = [nn.Unflatten(1, (num_classes, 1, 1))]
    channels = num_classes
    for stage in range(num_doublings):
        channels_out = max(1, 8 >> stage) * width
        layers += [_grown(channels, channels_out, first=stage == 0)]
        layers += [nn.BatchNorm2d(channels_out), nn.Tanh()]
        channels = channels_out
    return nn.Sequential(*layers, _grown(channels, shape[0], first=False), _Middle(shape))


def _grown(channels: int, channels_out: int, *, first: bool) -> nn.ConvTranspose2d:
    """From 1x1 to 4x4, or to twice the size."""
    stride, padding = (1, 0) if first else (2, 1)
    return nn.ConvTranspose2d(channels, channels_out, 4, stride, padding)


class _Middle(nn.Module):
    """The middle of images that are larger than they need to be."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = shape[1:]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (height, width), (tall, wide) = self.size, image.shape[2:]
        top, left = (tall - height) // 2, (wide - width) // 2
        return image[:, :, top : top + height, left : left + width]


class _Decoder:
    """A net on codes less their mean, over the one deviation of all their entries."""

    def __init__(
        self, net: nn.Module, like_MC: NDArray[np.float64], shape: tuple[int, ...], device: str
    ) -> None:
        self.net, self.shape, self.device = net, shape, device
        self.mean_C = like_MC.mean(axis=0)
        deviation = float((like_MC - self.mean_C).std())
        self.deviation = deviation if deviation > _NO_DEVIATION else 1.0

    def logit(self, code_NC: NDArray[np.float64]) -> torch.Tensor:
        read_NC = ((code_NC - self.mean_C) / self.deviation).astype(np.float32)
        logit: torch.Tensor = self.net(torch.from_numpy(read_NC).to(self.device))
        return logit

    @torch.no_grad()
    def __call__(self, code_NC: NDArray[np.float64]) -> NDArray[np.float64]:
        """Records [N, ...] in [0, 1]."""
        self.net.eval()
        decoded = np.empty((len(code_NC), *self.shape))
        for start in range(0, len(code_NC), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            decoded[part] = torch.sigmoid(self.logit(code_NC[part])).cpu().numpy()
        return decoded

    def error(self, code_NC: NDArray[np.float64], x: NDArray[np.float32]) -> float:
        """Mean squared error of the decoded records."""
        total = 0.0
        for start in range(0, len(x), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            total += float(np.sum((self(code_NC[part]) - x[part]) ** 2))
        return total / x.size


def _floor(answers: NDArray[np.float64]) -> float:
    """A logarithm below that of any score above 0, so that 0 is read as less than each."""
    return float(np.log(answers.min(where=answers > 0, initial=1.0))) - 1.0


def _range(x: NDArray[Any], *, bounded: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest value and span of each feature; 0 and 1 for pixels and bits."""
    if bounded:
        return np.zeros(x.shape[1:], np.float32), np.ones(x.shape[1:], np.float32)
    low, high = x.min(axis=0), x.max(axis=0)
    return low, np.where(high > low, high - low, np.float32(1))
