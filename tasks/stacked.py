"""Train many small models of one architecture together, along a leading model axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.architectures import Architecture, build
from tasks.base import stream
from tasks.training import TrainedModel, train

__all__ = ["train_many"]

# Fixed, not measured at run time: another size may move the last bits. From
# tests/bench/test_bench_training.py: four keep a core's caches, more gain nothing. The size on a
# GPU has not been measured; there a stack only has to be large enough to fill the device.
STACK_CPU = 4
STACK_GPU = 64
ALIGN = 16  # floats: every matrix starts on a cache line


def train_many(
    architecture: Architecture,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: Sequence[NDArray[np.int64]],
    *,
    num_classes: int,
    seeds: Sequence[int],
    device: str = "cpu",
) -> list[TrainedModel]:
    """Train one model on each of several row sets, as `training.train` would one after another.

    Model i starts from the very bits `train(..., seed=seeds[i])` starts from, sees the same batches
    and stops by its own loss. Only sums run in another order, which training amplifies as it does
    any rounding: weights and logits agree to about 1e-4 of the largest after 20 epochs, losses to
    1e-5, and early stops fall in the same epoch unless the loss grazes `min_loss`. The same call
    gives the same bits.

    MLPs without dropout train in stacks. Convolutions gain nothing from a model axis on a CPU
    (measured: `torch.func` 0.9, grouped convolutions 0.6 times the speed of one after another),
    and dropout draws from one stream per model, so these train one after another.

    Args:
        architecture: the network and its recipe.
        x: [n, ...] records. Not modified.
        y: [n] classes below `num_classes`.
        rows: for each model the rows of `x` it trains on, at least one each; counts may differ.
        num_classes: C.
        seeds: for each model the root of its streams target.init and target.batches.
        device: of torch.

    Returns:
        A model for each entry of `rows`, in that order.

    Raises:
        ValueError: if seeds and rows differ in number, or a model has no rows.
        FloatingPointError: if a loss becomes NaN or infinite.

    Source: methods.md section 3.2.
    """
    if len(rows) != len(seeds):
        raise ValueError(f"{len(rows)} row sets and {len(seeds)} seeds: every model needs both")
    if empty := [i for i, own in enumerate(rows) if len(own) == 0]:
        raise ValueError(f"models {empty} have no rows to train on; give each at least one")
    if not rows:
        return []
    if architecture.network != "mlp" or architecture.dropout:
        return [
            train(architecture, x[own], y[own], num_classes=num_classes, seed=seed, device=device)
            for own, seed in zip(rows, seeds, strict=True)
        ]
    used, places = np.unique(np.concatenate(rows), return_inverse=True)
    own_rows = np.split(places, np.cumsum([len(own) for own in rows])[:-1])
    x_ND = torch.from_numpy(x[used].reshape(len(used), -1)).to(device)
    # The longest first: then the models that still have a batch are always the first ones.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    size = STACK_CPU if torch.device(device).type == "cpu" else STACK_GPU
    models: dict[int, TrainedModel] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        modules = [_initial(architecture, x.shape[1:], num_classes, seeds[i]) for i in chosen]
        stack = _Stack(
            architecture,
            x_ND,
            y[used],
            [own_rows[i] for i in chosen],
            [torch.Generator().manual_seed(stream(seeds[i], "target.batches")) for i in chosen],
            modules,
        )
        models.update(zip(chosen, stack.run(), strict=True))
    return [models[i] for i in range(len(rows))]


def _initial(
    architecture: Architecture, shape: tuple[int, ...], num_classes: int, seed: int
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "target.init"))
        return build(architecture, shape, num_classes)


@dataclass(frozen=True)
class _Layer:
    """A linear layer: A models, W records a batch, I inputs, O outputs. All are views."""

    weight_AIO: Tensor
    bias_A1O: Tensor
    input_AWI: Tensor
    output_AWO: Tensor  # after the activation, which runs in place
    output: NDArray[np.float32] | None  # the same memory; None on a GPU
    grad_weight_AIO: Tensor
    grad_bias_AO: Tensor
    grad_output_AWO: Tensor
    activation: str | None
    flat: list[Tensor]
    rows: list[list[Tensor]]


@dataclass(frozen=True)
class _Step:
    """One batch of each of the first A models. All are views into buffers of the epoch."""

    num_models: int
    layers: list[_Layer]
    x_MD: Tensor  # M = A W
    rows_M: Tensor
    labels_AW1: Tensor
    scale_AW1: Tensor  # 1 / (records in this model's batch); 0 where it has fewer than W
    log_p_AW1: Tensor  # where the log confidence of the label goes


class _Stack:
    """Models that train side by side; those that stop early leave."""

    def __init__(
        self,
        architecture: Architecture,
        x_ND: Tensor,
        y_N: NDArray[np.int64],
        rows: list[NDArray[np.int64]],
        orders: list[torch.Generator],
        modules: list[nn.Module],
    ) -> None:
        self.architecture, self.x_ND, self.y_N = architecture, x_ND, y_N
        self.rows, self.orders = rows, orders
        self.device = x_ND.device
        linear = [
            (name, module)
            for name, module in modules[0].named_children()
            if isinstance(module, nn.Linear)
        ]
        self.names = [name for name, _ in linear]
        self.widths = [linear[0][1].in_features, *(module.out_features for _, module in linear)]
        self.offsets: list[tuple[int, int]] = []  # of each layer's weight and bias in a flat row
        end = 0
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            bias = _aligned(end + inputs * outputs)
            self.offsets.append((end, bias))
            end = _aligned(bias + outputs)

        def flat() -> Tensor:
            return torch.zeros(len(modules), end, device=self.device)

        self.weights = flat()
        bounds = [start for start, _ in self.offsets] + [end]
        self.parts = [slice(*pair) for pair in zip(bounds, bounds[1:], strict=False)]
        self.grads = torch.zeros(
            len(modules) * max(p.stop - p.start for p in self.parts), device=self.device
        )
        self.moments = [flat(), flat()] if architecture.optimizer == "adam" else [flat()]
        self.num_steps = torch.zeros(len(modules), device=self.device)
        # Another memory layout than nn.Linear's [O, I]: its gradient is the faster product.
        for i, module in enumerate(modules):
            state = module.state_dict()
            for name, (weight_IO, bias_O) in self._named(i).items():
                weight_IO.copy_(state[f"{name}.weight"].T)
                bias_O.copy_(state[f"{name}.bias"])
        most = len(modules) * min(architecture.batch_size, max(len(own) for own in rows))
        buffers = [torch.empty(most * width, device=self.device) for width in self.widths]
        self.activations, self.log_p = buffers, torch.empty_like(buffers[-1])
        self.grad_activations = [torch.empty_like(buffer) for buffer in buffers]
        self._lay_out()

    def run(self) -> list[TrainedModel]:
        """Train to every model's end."""
        recipe = self.architecture
        present = list(range(len(self.rows)))
        losses: list[list[float]] = [[] for _ in present]
        models: dict[int, TrainedModel] = {}
        for epoch in range(recipe.epochs):
            reached = sum(0 <= milestone <= epoch for milestone in recipe.milestones)
            stay = []
            for place, loss in enumerate(self._epoch(recipe.learning_rate * 0.1**reached)):
                model = present[place]
                losses[model].append(loss)
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"the training loss became {loss} in epoch {epoch + 1}; "
                        f"lower learning_rate (now {recipe.learning_rate})"
                    )
                if loss < recipe.min_loss or epoch + 1 == recipe.epochs:
                    models[model] = TrainedModel(self._export(place), np.asarray(losses[model]))
                else:
                    stay.append(place)
            if not stay:
                break
            if len(stay) < len(present):
                present = [present[place] for place in stay]
                self._keep(stay)
        return [models[model] for model in range(len(losses))]

    def _epoch(self, rate: float) -> list[float]:
        """One pass over every model's records; its mean loss over them."""
        for place, (own, order) in enumerate(zip(self.rows, self.orders, strict=True)):
            shuffled = torch.randperm(len(own), generator=order).numpy()
            self.shuffled[place, : len(own)] = own[shuffled]
        rows_E = self.shuffled.ravel()[self.places]
        self.epoch_rows.copy_(torch.from_numpy(rows_E))
        self.epoch_labels.copy_(torch.from_numpy(self.y_N[rows_E]))
        for step in self.steps:
            self.num_steps[: step.num_models].add_(1)
            self._gradients(step, rate)
        log_p_E = self.epoch_log_p.cpu().numpy()[self.valid].astype(np.float64)
        return [float(sums) for sums in -np.bincount(self.owner, log_p_E) / self.counts]

    def _gradients(self, step: _Step, rate: float) -> None:
        """Gradients of the mean cross-entropy of each model's batch, written out."""
        torch.index_select(self.x_ND, 0, step.rows_M, out=step.x_MD)
        for layer in step.layers:
            torch.baddbmm(layer.bias_A1O, layer.input_AWI, layer.weight_AIO, out=layer.output_AWO)
            if layer.activation == "relu":
                layer.output_AWO.relu_()
            elif layer.activation == "tanh" and layer.output is not None:
                np.tanh(layer.output, out=layer.output)  # seven times torch's speed on a CPU
            elif layer.activation == "tanh":
                layer.output_AWO.tanh_()
        last = step.layers[-1]
        grad_AWC = last.grad_output_AWO
        torch.log_softmax(last.output_AWO, -1, out=grad_AWC)
        torch.gather(grad_AWC, -1, step.labels_AW1, out=step.log_p_AW1)
        grad_AWC.exp_().mul_(step.scale_AW1)
        grad_AWC.scatter_add_(-1, step.labels_AW1, -step.scale_AW1)
        for i, layer in reversed(list(enumerate(step.layers))):
            grad_AWO = layer.grad_output_AWO
            if layer.activation == "relu":
                torch.ops.aten.threshold_backward.grad_input(
                    grad_AWO, layer.output_AWO, 0, grad_input=grad_AWO
                )
            elif layer.activation == "tanh":
                torch.ops.aten.tanh_backward.grad_input(
                    grad_AWO, layer.output_AWO, grad_input=grad_AWO
                )
            if i > 0:
                below = step.layers[i - 1]
                torch.bmm(grad_AWO, layer.weight_AIO.mT, out=below.grad_output_AWO)
            torch.bmm(layer.input_AWI.mT, grad_AWO, out=layer.grad_weight_AIO)
            torch.sum(grad_AWO, 1, out=layer.grad_bias_AO)
            # At once, while the gradient is in the core's cache.
            self._update(layer, step.num_models, rate)

    def _update(self, layer: _Layer, num: int, rate: float) -> None:
        """One step of the optimizer for the first `num` models, as torch.optim takes it."""
        decay = self.architecture.weight_decay
        if self.architecture.optimizer == "sgd":
            weights, grads, momentum = layer.flat
            momentum.mul_(0.9).add_(grads)
            if decay:
                momentum.add_(weights, alpha=decay)
            weights.sub_(momentum, alpha=rate)
            return
        torch._fused_adam_(
            *layer.rows,
            [],
            self.step_list[:num],
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _keep(self, stay: list[int]) -> None:
        for name in ("weights", "num_steps"):
            setattr(self, name, getattr(self, name)[stay])
        self.moments = [moment[stay] for moment in self.moments]
        for name in ("rows", "orders"):
            setattr(self, name, [getattr(self, name)[place] for place in stay])
        self._lay_out()

    def _lay_out(self) -> None:
        """Views and buffers of an epoch of the models present, made once: slicing takes time."""
        self.step_list = list(self.num_steps)
        batch = self.architecture.batch_size
        self.counts = np.array([len(own) for own in self.rows])
        longest = int(self.counts[0])
        # A record that fills a shorter model's last batch counts nothing; any of its own will do.
        self.shuffled = np.repeat(np.array([own[0] for own in self.rows])[:, None], longest, axis=1)
        shapes, places, valid, scales = [], [], [], []
        for start in range(0, longest, batch):
            num = int((self.counts > start).sum())
            width = min(batch, longest - start)
            own = np.minimum(self.counts[:num, None] - start, width)  # records each really has
            is_own = np.arange(width) < own
            shapes.append((num, width))
            places.append((np.arange(num)[:, None] * longest + start + np.arange(width)).ravel())
            valid.append(is_own.ravel())
            scales.append((is_own / own).ravel())
        self.places, self.valid = np.concatenate(places), np.concatenate(valid)
        self.owner = (self.places // longest)[self.valid]
        total = len(self.places)
        self.epoch_rows = torch.empty(total, dtype=torch.int64, device=self.device)
        self.epoch_labels = torch.empty_like(self.epoch_rows)
        self.epoch_log_p = torch.empty(total, device=self.device)
        scale_E = torch.from_numpy(np.concatenate(scales).astype(np.float32)).to(self.device)
        layers = {shape: self._layers(*shape) for shape in set(shapes)}
        self.steps, start = [], 0
        for num, width in shapes:
            part = slice(start, start + num * width)
            own_layers = layers[num, width]
            self.steps.append(
                _Step(
                    num,
                    own_layers,
                    own_layers[0].input_AWI.view(num * width, -1),
                    self.epoch_rows[part],
                    self.epoch_labels[part].view(num, width, 1),
                    scale_E[part].view(num, width, 1),
                    self.epoch_log_p[part].view(num, width, 1),
                )
            )
            start += num * width

    def _layers(self, num: int, width: int) -> list[_Layer]:
        def view(buffer: Tensor, features: int) -> Tensor:
            return buffer[: num * width * features].view(num, width, features)

        activations = [view(*pair) for pair in zip(self.activations, self.widths, strict=True)]
        grads = [view(*pair) for pair in zip(self.grad_activations, self.widths, strict=True)]
        last = len(self.names) - 1
        layers = []
        for i, (weight, bias) in enumerate(self._matrices(self.weights[:num])):
            part = self.parts[i]
            size = part.stop - part.start
            grads_ = self.grads[: num * size].view(num, size)
            wb = self.offsets[i][1] - part.start
            inputs, outputs = self.widths[i], self.widths[i + 1]
            grad_weight = grads_[:, : inputs * outputs].unflatten(-1, (inputs, outputs))
            grad_bias = grads_[:, wb : wb + outputs]
            flat = [self.weights[:num, part], grads_, *(m[:num, part] for m in self.moments)]
            output = activations[i + 1]
            activation: str | None = self.architecture.activation
            if i == last:
                activation = "tanh" if self.architecture.tanh_output else None
            layers.append(
                _Layer(
                    weight,
                    bias.unsqueeze(1),
                    activations[i],
                    output,
                    output.numpy() if self.device.type == "cpu" else None,
                    grad_weight,
                    grad_bias,
                    grads[i + 1],
                    activation,
                    flat,
                    [list(f) for f in flat],
                )
            )
        return layers

    def _matrices(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights [..., I, O] and biases [..., O] of every layer in rows [..., P]."""
        matrices = []
        for i, (weight, bias) in enumerate(self.offsets):
            inputs, outputs = self.widths[i], self.widths[i + 1]
            matrix = flat[..., weight : weight + inputs * outputs].unflatten(-1, (inputs, outputs))
            matrices.append((matrix, flat[..., bias : bias + outputs]))
        return matrices

    def _named(self, place: int) -> dict[str, tuple[Tensor, Tensor]]:
        return dict(zip(self.names, self._matrices(self.weights[place]), strict=True))

    def _export(self, place: int) -> dict[str, NDArray[Any]]:
        weights: dict[str, NDArray[Any]] = {}
        for name, (weight_IO, bias_O) in self._named(place).items():
            weights[f"{name}.weight"] = weight_IO.T.contiguous().cpu().numpy()
            weights[f"{name}.bias"] = bias_O.clone().cpu().numpy()
        return weights


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN
