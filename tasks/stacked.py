"""Train many small models of one architecture together, along a leading model axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.architectures import Architecture
from tasks.base import stream
from tasks.training import TrainedModel, initial, train

__all__ = ["joined", "one_of", "train_many"]

# Fixed, not chosen at run time: another size may move the last bits. On a core of a Zen 4 with
# 1 MB of second-level cache, 446-256-128-30 takes 0.71 ms per model and step alone, 0.66 in twos,
# 0.72 in threes and 0.73 in fours. On a GPU a stack must be large enough to fill it; not measured.
STACK_CPU = 2
STACK_GPU = 64


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
    any rounding. Promised (and tested) are 1e-4 of a matrix's largest entry for weights and for
    logits, and 1e-5 of a loss; found on location30 after 30 epochs are 3e-5, 7e-7 and 4e-7. So an
    early stop falls in the same epoch unless a loss grazes `min_loss`. The same call gives the same
    bits.

    MLPs without dropout train in stacks. Others train one after another: dropout draws from a
    stream of each model's own, and on a CPU a model axis makes convolutions slower (cnn_s, four
    models, 3x32x32: grouped convolutions 0.70, `torch.func.vmap` 0.67 times the speed of one after
    another; 1x28x28: 0.94 and 0.70; only on 8x8 images is it faster, 1.6 and 1.2).

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
    own_y = y[used]
    # The longest first: then the models that still have a batch are always the first ones.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    size = STACK_CPU if torch.device(device).type == "cpu" else STACK_GPU
    models: dict[int, TrainedModel] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        modules = [initial(architecture, x.shape[1:], num_classes, seeds[i]) for i in chosen]
        stack = _Stack(
            architecture,
            x_ND,
            own_y,
            [own_rows[i] for i in chosen],
            [torch.Generator().manual_seed(stream(seeds[i], "target.batches")) for i in chosen],
            modules,
        )
        models.update(zip(chosen, stack.run(), strict=True))
    return [models[i] for i in range(len(rows))]


def joined(models: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The weights of several models as one dictionary; `one_of` takes them apart."""
    return {f"{i}/{name}": weight for i, own in enumerate(models) for name, weight in own.items()}


def one_of(weights: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    """The weights of one of `joined` models, by their own names."""
    mine = f"{index}/"
    return {name.removeprefix(mine): w for name, w in weights.items() if name.startswith(mine)}


@dataclass(frozen=True)
class _Layer:
    """A linear layer of A models, W records a batch, I inputs, O outputs; all are views."""

    weight_AIO: Tensor
    bias_A1O: Tensor
    input_AWI: Tensor
    output_AWO: Tensor  # after the activation, which runs in place
    output: NDArray[np.float32] | None  # the same memory; None on a GPU
    activation: str | None
    grad_output_AWO: Tensor
    grad_weight_AIO: Tensor
    grad_bias_AO: Tensor
    optimized: list[list[Tensor]]  # parameters, gradients, moments; an entry per model


@dataclass(frozen=True)
class _Step:
    """One batch of each of the first A models. All are views into buffers of an epoch."""

    num_models: int
    layers: list[_Layer]
    x_MD: Tensor  # M = A W
    rows_M: Tensor
    labels_AW1: Tensor
    scale_AW1: Tensor  # 1 / (records of this model's batch); 0 where it has fewer than W
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
        states = [module.state_dict() for module in modules]
        self.names = [name for name in states[0] if name.endswith(".weight")]
        # Weights as [I, O] with the bias as one more row: one block of memory for the optimizer,
        # and the faster layout for the gradient of the weights.
        self.params = [
            torch.stack(
                [
                    torch.cat([state[name].T, state[_bias(name)][None]]).to(self.device)
                    for state in states
                ]
            )
            for name in self.names
        ]
        num_moments = 2 if architecture.optimizer == "adam" else 1
        self.moments = [[torch.zeros_like(p) for p in self.params] for _ in range(num_moments)]
        self.num_steps = torch.zeros(len(modules), device=self.device)
        self.widths = [x_ND.shape[1], *(params.shape[2] for params in self.params)]
        most = len(modules) * min(architecture.batch_size, max(len(own) for own in rows))
        self.values = [torch.empty(most * width, device=self.device) for width in self.widths]
        self.grad_values = [torch.empty_like(value) for value in self.values]
        # One for all layers: a gradient is used up before the next is made.
        self.grad = torch.empty(max(p.numel() for p in self.params), device=self.device)
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
                    models[model] = TrainedModel(self._weights(place), np.asarray(losses[model]))
                else:
                    stay.append(place)
            if not stay:
                break
            if len(stay) < len(present):
                present = [present[place] for place in stay]
                self._keep(stay)
        return [models[model] for model in range(len(losses))]

    def _epoch(self, rate: float) -> list[float]:
        """One pass over each model's records; returns each one's mean loss."""
        for place, (own, order) in enumerate(zip(self.rows, self.orders, strict=True)):
            shuffled = torch.randperm(len(own), generator=order).numpy()
            self.shuffled[place, : len(own)] = own[shuffled]
        rows_E = self.shuffled.ravel()[self.places]
        self.epoch_rows.copy_(torch.from_numpy(rows_E))
        self.epoch_labels.copy_(torch.from_numpy(self.y_N[rows_E]))
        for step in self.steps:
            self._step(step, rate)
        log_p_E = self.epoch_log_p.cpu().numpy()[self.is_own].astype(np.float64)
        return [float(loss) for loss in -np.bincount(self.owner, log_p_E) / self.counts]

    def _step(self, step: _Step, rate: float) -> None:
        """Forward, and the backward pass of the mean cross-entropy written out."""
        torch.index_select(self.x_ND, 0, step.rows_M, out=step.x_MD)
        for layer in step.layers:
            z_AWO = layer.output_AWO
            torch.baddbmm(layer.bias_A1O, layer.input_AWI, layer.weight_AIO, out=z_AWO)
            if layer.activation == "relu":
                z_AWO.relu_()
            elif layer.activation == "tanh" and layer.output is not None:
                np.tanh(layer.output, out=layer.output)  # seven times torch's speed on a CPU
            elif layer.activation == "tanh":
                z_AWO.tanh_()
        grad_AWC = step.layers[-1].grad_output_AWO
        torch.log_softmax(step.layers[-1].output_AWO, -1, out=grad_AWC)
        torch.gather(grad_AWC, -1, step.labels_AW1, out=step.log_p_AW1)
        grad_AWC.exp_().mul_(step.scale_AW1)
        grad_AWC.scatter_add_(-1, step.labels_AW1, -step.scale_AW1)
        self.num_steps[: step.num_models].add_(1)
        below: _Layer | None
        for layer, below in zip(step.layers[::-1], [*step.layers[-2::-1], None], strict=True):
            grad_AWO, output_AWO = layer.grad_output_AWO, layer.output_AWO
            if layer.activation == "relu":
                torch.ops.aten.threshold_backward.grad_input(
                    grad_AWO, output_AWO, 0, grad_input=grad_AWO
                )
            elif layer.activation == "tanh":
                torch.ops.aten.tanh_backward.grad_input(grad_AWO, output_AWO, grad_input=grad_AWO)
            if below is not None:
                torch.bmm(grad_AWO, layer.weight_AIO.mT, out=below.grad_output_AWO)
            torch.bmm(layer.input_AWI.mT, grad_AWO, out=layer.grad_weight_AIO)
            torch.sum(grad_AWO, 1, out=layer.grad_bias_AO)
            # Now, while the gradient is in the core's cache: a tenth of the whole time.
            self._update(layer, step.num_models, rate)

    def _update(self, layer: _Layer, num: int, rate: float) -> None:
        params, grads, first, *others = layer.optimized
        rule: dict[str, Any] = {"lr": rate, "weight_decay": self.architecture.weight_decay}
        if self.architecture.optimizer == "sgd":
            # The momentum starts at 0, which makes the first step like any other.
            rule |= {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "is_first_step": False}
            torch._fused_sgd_(params, grads, first, maximize=False, **rule)
        else:
            rule |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
            steps = self.step_list[:num]
            torch._fused_adam_(params, grads, first, others[0], [], steps, maximize=False, **rule)

    def _keep(self, stay: list[int]) -> None:
        self.rows = [self.rows[place] for place in stay]
        self.orders = [self.orders[place] for place in stay]
        self.params = [params[stay] for params in self.params]
        self.moments = [[moment[stay] for moment in moments] for moments in self.moments]
        self.num_steps = self.num_steps[stay]
        self._lay_out()

    def _lay_out(self) -> None:
        """Buffers of an epoch of the models present, and views of them: slicing takes time."""
        self.step_list = list(self.num_steps)
        batch = self.architecture.batch_size
        self.counts = np.array([len(own) for own in self.rows])
        longest = int(self.counts[0])
        # What fills up a shorter model's last batch counts nothing; any record of its own will do.
        self.shuffled = np.repeat(np.array([own[0] for own in self.rows])[:, None], longest, axis=1)
        shapes, places, is_own, scales = [], [], [], []
        for start in range(0, longest, batch):
            num = int((self.counts > start).sum())
            width = min(batch, longest - start)
            own = np.minimum(self.counts[:num, None] - start, width)  # records each really has
            shapes.append((num, width))
            places.append((np.arange(num)[:, None] * longest + start + np.arange(width)).ravel())
            is_own.append((np.arange(width) < own).ravel())
            scales.append(((np.arange(width) < own) / own).ravel())
        self.places, self.is_own = np.concatenate(places), np.concatenate(is_own)
        self.owner = (self.places // longest)[self.is_own]
        num_E = len(self.places)
        self.epoch_rows = torch.empty(num_E, dtype=torch.int64, device=self.device)
        self.epoch_labels = torch.empty_like(self.epoch_rows)
        self.epoch_log_p = torch.empty(num_E, device=self.device)
        scale_E = torch.from_numpy(np.concatenate(scales).astype(np.float32)).to(self.device)
        columns = (self.epoch_labels, scale_E, self.epoch_log_p)
        layers = {shape: self._layers(*shape) for shape in set(shapes)}
        self.steps, end = [], 0
        for num, width in shapes:
            part = slice(end, end := end + num * width)
            x_MD = layers[num, width][0].input_AWI.flatten(0, 1)
            views = [column[part].view(num, width, 1) for column in columns]
            self.steps.append(_Step(num, layers[num, width], x_MD, self.epoch_rows[part], *views))

    def _layers(self, num: int, width: int) -> list[_Layer]:
        def views(buffers: list[Tensor]) -> list[Tensor]:
            pairs = zip(buffers, self.widths, strict=True)
            return [b[: num * width * size].view(num, width, size) for b, size in pairs]

        values, grads = views(self.values), views(self.grad_values)
        layers = []
        for i, params in enumerate(self.params):
            activation: str | None = self.architecture.activation
            if i == len(self.params) - 1:
                activation = "tanh" if self.architecture.tanh_output else None
            own = params[:num]
            grad = self.grad[: own.numel()].view_as(own)
            moments = [moments[i][:num] for moments in self.moments]
            layers.append(
                _Layer(
                    weight_AIO=own[:, :-1],
                    bias_A1O=own[:, -1:],
                    input_AWI=values[i],
                    output_AWO=values[i + 1],
                    output=values[i + 1].numpy() if self.device.type == "cpu" else None,
                    activation=activation,
                    grad_output_AWO=grads[i + 1],
                    grad_weight_AIO=grad[:, :-1],
                    grad_bias_AO=grad[:, -1],
                    optimized=[list(tensor) for tensor in (own, grad, *moments)],
                )
            )
        return layers

    def _weights(self, place: int) -> dict[str, NDArray[Any]]:
        weights: dict[str, NDArray[Any]] = {}
        for name, params in zip(self.names, self.params, strict=True):
            own = params[place].cpu().numpy()
            weights[name], weights[_bias(name)] = own[:-1].T.copy(), own[-1].copy()
        return weights


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"
