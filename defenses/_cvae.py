"""The confidence reformer: a conditional variational auto-encoder, and its training.

Knows tensors and arrays only; which confidences it sees, and why, is the plugin's business.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot

from defenses._prepared import once_per

__all__ = ["Recipe", "Reformer", "kl_divergence", "loaded", "reform", "tensors", "train_reformer"]

_VALIDATION_DRAWS = 5
_INFERENCE_CHUNK = 1024  # its activations stay in a core's cache


@dataclass(frozen=True)
class Recipe:
    """All that decides a reformer's weights besides the confidences and the seed.

    Attributes:
        objective: the loss, see `_loss`.
        hidden: widths h1, h2, h3 of the encoder; the decoder has them reversed.
        latent: L, the dimensions of the latent.
        decoder_norm: batch normalisation and ReLU after the decoder's first layer too.
        published_init: weights and Adam as in the public code instead of PyTorch's defaults.
    """

    objective: Literal["text", "code", "elbo"]
    hidden: tuple[int, int, int]
    latent: int
    epochs: int
    batch_size: int
    learning_rate: float
    label_loss_weight: float
    kl_weight: float
    decoder_norm: bool
    published_init: bool


class Reformer(nn.Module):
    """G(c | l): encodes [c; onehot(l)] to a Gaussian, decodes [v; onehot(l)] to a confidence.

    Source: PURIFIER section 4.2 and the layer lists of section 5.1. The input is 2C wide and the
        output C wide for the C at hand; the printed output of 2C has no meaning for C scores.
    """

    def __init__(self, num_classes: int, recipe: Recipe) -> None:
        super().__init__()
        h1, h2, h3 = recipe.hidden
        self.encoder = nn.Sequential(*_block(2 * num_classes, h1), *_block(h1, h2), *_block(h2, h3))
        self.mean = nn.Linear(h3, recipe.latent)
        # Without a KL term a free variance would shrink to nothing, and the noise with it.
        self.log_variance = None if recipe.objective == "text" else nn.Linear(h3, recipe.latent)
        first = recipe.latent + num_classes
        self.decoder = nn.Sequential(
            *(_block(first, h3) if recipe.decoder_norm else [nn.Linear(first, h3)]),
            *_block(h3, h2),
            *_block(h2, h1),
            nn.Linear(h1, num_classes),
        )

    def encode(self, c_NC: Tensor, condition_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, [N, L] each."""
        hidden = self.encoder(torch.cat([c_NC, condition_NC], dim=1))
        mean_NL = self.mean(hidden)
        if self.log_variance is None:
            return mean_NL, torch.zeros_like(mean_NL)
        return mean_NL, self.log_variance(hidden).clamp(-20, 10)

    def decode(self, v_NL: Tensor, condition_NC: Tensor) -> Tensor:
        """Logits [N, C] of the reformed confidence."""
        logits: Tensor = self.decoder(torch.cat([v_NL, condition_NC], dim=1))
        return logits


def train_reformer(
    fit_confidence: NDArray[np.float64],
    val_confidence: NDArray[np.float64],
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
) -> dict[str, NDArray[Any]]:
    """Train on the confidences of reference records and keep the best epoch.

    The condition is the predicted label; true labels are never used.

    Args:
        fit_confidence: [N, C] with N >= 2, confidences to learn to reproduce.
        val_confidence: [M, C] with M >= 1; the epoch with the least loss on them is kept, judged
            with the same five noise draws a record every epoch.
        recipe: the hyper-parameters.
        seed: initial weights, batches and noise derive from it.
        device: where to train.

    Returns:
        Parameters and batch-norm statistics by name.

    Raises:
        ValueError: if there are too few records, or the loss is never finite.

    Source: PURIFIER algorithm 1. Public code keeps the epoch best on the evaluation's
        non-members, which a defender does not have.
    """
    if len(fit_confidence) < 2 or len(val_confidence) < 1:
        raise ValueError(
            f"a reformer needs at least 2 records to fit on and 1 to validate on, got "
            f"{len(fit_confidence)} and {len(val_confidence)}; enlarge the reference split"
        )
    generator = torch.Generator().manual_seed(seed)
    model = _initialised(fit_confidence.shape[1], recipe, generator).to(device)
    adam = torch.optim.Adam(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.5, 0.999) if recipe.published_init else (0.9, 0.999),
        amsgrad=recipe.published_init,
        fused=True,
    )
    c_NC, label_N, condition_NC = tensors(fit_confidence, torch.float32, device)
    val = tensors(val_confidence, torch.float32, device)
    val_noise = torch.randn(
        (_VALIDATION_DRAWS, len(val_confidence), recipe.latent), generator=generator
    ).to(device)
    best, best_loss = None, math.inf
    for _ in range(recipe.epochs):
        model.train()
        order_N = torch.randperm(len(c_NC), generator=generator).to(device)
        noise_NL = torch.randn((len(c_NC), recipe.latent), generator=generator).to(device)
        epoch_data = c_NC[order_N], label_N[order_N], condition_NC[order_N], noise_NL
        for c, label, condition, noise in zip(
            *(torch.split(data, recipe.batch_size) for data in epoch_data), strict=True
        ):
            if len(c) < 2:  # batch normalisation has no variance of one record
                continue
            latent = model.encode(c, condition)
            loss = _loss(model, latent, c, label, condition, noise, recipe, batch_size=len(c))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        model.eval()
        with torch.no_grad():
            latent = model.encode(val[0], val[2])
            losses = [_loss(model, latent, *val, xi, recipe, recipe.batch_size) for xi in val_noise]
            val_loss = float(torch.stack(losses).mean())
        if val_loss < best_loss:
            best_loss = val_loss
            best = {name: value.clone() for name, value in model.state_dict().items()}
    if best is None:
        raise ValueError(
            f"the reformer's validation loss was not finite in any of {recipe.epochs} epochs; "
            f"lower learning_rate (it is {recipe.learning_rate})"
        )
    return {name: value.cpu().numpy() for name, value in best.items()}


@dataclass(frozen=True, eq=False)
class _Layer:
    """A linear layer with its batch normalisation folded in; [in, out] and [out], float32."""

    weight: Tensor
    bias: Tensor

    def of(self, inputs: Tensor) -> Tensor:
        return torch.addmm(self.bias, inputs, self.weight)


class Folded:
    """A trained reformer arranged for answering.

    Batch normalisation with frozen statistics is part of the layer before it; mean and log
    variance are one product; and the one-hot condition is not multiplied but looked up, as one row
    of the weights. Products are in float32, where a row's answer hangs on the rest of its batch
    to about 1e-7; folding and softmax are in float64.
    """

    def __init__(
        self, num_classes: int, parameters: Mapping[str, NDArray[Any]], recipe: Recipe
    ) -> None:
        model = loaded(num_classes, parameters, recipe)
        self._num_classes, self._latent = num_classes, recipe.latent
        encoder, decoder = _folded(model.encoder), _folded(model.decoder)
        first, *self._encoder = encoder
        self._encode = _Layer(first.weight[:num_classes].contiguous(), first.bias)
        self._encode_label = first.weight[num_classes:] + first.bias
        heads = [model.mean] if model.log_variance is None else [model.mean, model.log_variance]
        self._heads = _Layer(
            torch.cat([head.weight.T for head in heads], dim=1).float().contiguous(),
            torch.cat([head.bias for head in heads]).float(),
        )
        first, *self._decoder = decoder
        self._decode = first.weight[: recipe.latent].contiguous()
        self._decode_label = first.weight[recipe.latent :] + first.bias
        self._decode_relu = recipe.decoder_norm

    def answer(self, c_NC: NDArray[np.float64], noise_NL: NDArray[np.float64]) -> Tensor:
        """Logits float32 [N, C]."""
        label_N = torch.from_numpy(c_NC.argmax(axis=1))
        c = torch.from_numpy(c_NC.astype(np.float32))
        hidden = torch.addmm(self._encode_label[label_N], c, self._encode.weight).relu_()
        for layer in self._encoder:
            hidden = layer.of(hidden).relu_()
        heads = self._heads.of(hidden)
        mean_NL, xi_NL = heads[:, : self._latent], torch.from_numpy(noise_NL.astype(np.float32))
        if heads.shape[1] > self._latent:
            xi_NL = xi_NL * torch.exp(0.5 * heads[:, self._latent :].clamp(-20, 10))
        hidden = torch.addmm(self._decode_label[label_N], mean_NL + xi_NL, self._decode)
        if self._decode_relu:
            hidden = hidden.relu_()
        for layer in self._decoder[:-1]:
            hidden = layer.of(hidden).relu_()
        return self._decoder[-1].of(hidden)


def _folded(layers: nn.Sequential) -> list[_Layer]:
    """The linear layers of a network in order, each with the batch normalisation behind it."""
    found: list[_Layer] = []
    weight, bias = torch.empty(0), torch.empty(0)
    modules = [*layers, nn.Identity()]
    for module, following in itertools.pairwise(modules):
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight.detach(), module.bias.detach()
        if isinstance(following, nn.BatchNorm1d):
            assert following.running_mean is not None
            assert following.running_var is not None
            scale = following.weight.detach() / torch.sqrt(following.running_var + following.eps)
            weight = weight * scale[:, None]
            bias = (bias - following.running_mean) * scale + following.bias.detach()
        found.append(_Layer(weight.T.float().contiguous(), bias.float()))
    return found


def reform(
    confidence: NDArray[np.float64],
    noise: NDArray[np.float64],
    parameters: Mapping[str, NDArray[Any]],
    recipe: Recipe,
) -> NDArray[np.float64]:
    """Reformed confidences G(c | argmax c) with latent v = mean + sigma * noise.

    Args:
        confidence: [N, C] float64, rows sum to 1. Not modified.
        noise: [N, L], standard normal, or 0 for the answer at the latent mean.
        parameters: as returned by `train_reformer`.
        recipe: the one it was trained with.

    Returns:
        [N, C] float64, rows sum to 1.
    """
    num_classes = confidence.shape[1]
    folded = once_per(
        parameters["encoder.0.weight"],
        f"reform/{recipe}",
        lambda: Folded(num_classes, parameters, recipe),
    )
    p_NC = np.empty_like(confidence, dtype=np.float64)
    with torch.inference_mode():
        for start in range(0, len(confidence), _INFERENCE_CHUNK):
            rows = slice(start, start + _INFERENCE_CHUNK)
            logits_NC = folded.answer(confidence[rows], noise[rows])
            p_NC[rows] = torch.softmax(logits_NC.double(), dim=1).numpy()
    return p_NC


def _block(width_in: int, width_out: int) -> list[nn.Module]:
    return [nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), nn.ReLU()]


def _initialised(num_classes: int, recipe: Recipe, generator: torch.Generator) -> Reformer:
    model = _built(num_classes, recipe)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)  # PyTorch's own, but from our generator
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            if recipe.published_init:
                nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
            else:
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm1d) and recipe.published_init:
            nn.init.normal_(module.weight, 1.0, 0.01, generator=generator)
    return model


def loaded(num_classes: int, parameters: Mapping[str, NDArray[Any]], recipe: Recipe) -> Reformer:
    """The trained network, in float64 and with frozen batch-norm statistics."""
    model = _built(num_classes, recipe)
    model.load_state_dict({name: torch.tensor(value) for name, value in parameters.items()})
    return model.double().eval()


def _built(num_classes: int, recipe: Recipe) -> Reformer:
    with torch.random.fork_rng(devices=[]):  # PyTorch fills new layers from the global generator
        return Reformer(num_classes, recipe)


def tensors(
    confidence: NDArray[np.float64], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Confidences [N, C], predicted labels [N] and the condition, their one-hot [N, C]."""
    label_N = torch.tensor(confidence.argmax(axis=1), device=device)
    c_NC = torch.tensor(confidence, dtype=dtype, device=device)
    return c_NC, label_N, one_hot(label_N, confidence.shape[1]).to(dtype)


def _loss(
    model: Reformer,
    latent: tuple[Tensor, Tensor],
    c_NC: Tensor,
    label_N: Tensor,
    condition_NC: Tensor,
    noise_NL: Tensor,
    recipe: Recipe,
    batch_size: int,
) -> Tensor:
    """The objective of one batch.

    text: ||p - c||² + 1e-3 ||mean||² with sigma fixed to 1, PURIFIER equation 1. The draft has
        no term against a mean that outgrows the noise; the small penalty is ours.
    code: ||p - c||² / C + B KL. Public code adds the mean over B·C of the first to the sum over
        the batch of the second. So nothing but a prototype a label is worth sending:
        the optimum has KL <= 2 / (B C).
    elbo: ||p - c||² + kl_weight KL.

    All are means over the batch; label_loss_weight times the cross-entropy of the predicted label
    is added to each (public code computes it and leaves it out: weight 0).
    """
    mean_NL, log_variance_NL = latent
    v_NL = mean_NL + torch.exp(0.5 * log_variance_NL) * noise_NL
    log_p_NC = torch.log_softmax(model.decode(v_NL, condition_NC), dim=1)
    error = (log_p_NC.exp() - c_NC).square().sum(dim=1).mean()
    if recipe.objective == "text":
        loss = error + 1e-3 * mean_NL.square().sum(dim=1).mean()
    elif recipe.objective == "code":
        loss = error / c_NC.shape[1] + batch_size * kl_divergence(mean_NL, log_variance_NL).mean()
    else:
        loss = error + recipe.kl_weight * kl_divergence(mean_NL, log_variance_NL).mean()
    if recipe.label_loss_weight:
        loss = loss + recipe.label_loss_weight * nn.functional.nll_loss(log_p_NC, label_N)
    return loss


def kl_divergence(mean_NL: Tensor, log_variance_NL: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)) of each row, nats [N]."""
    variance_NL = log_variance_NL.exp()
    return 0.5 * (mean_NL.square() + variance_NL - 1 - log_variance_NL).sum(dim=1)
