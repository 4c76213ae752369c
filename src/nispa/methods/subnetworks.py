"""A network that each task uses a part of: everything but the choice of the parts.

Winning SubNetworks, Piggyback and SupSup choose connections by a real number for each, which is
trained.
The pass of a training step multiplies every weight w by a bit m and gives the gradient g by the
product w m. From g follow the gradients of the weight, g m, and, as if the choice were the number
itself (*straight-through*), of the bit, g w. So g is needed where m is 0, too: training runs over
all connections of the pattern, prediction over those of the task alone.

A connection into a convolution is a whole kernel, chosen as one: its number's gradient is the sum
over the kernel.

In a network of any module, norms and all other values learn with the first task and are frozen at
its end, as hidden biases are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nispa.data.tasks import Task, TaskInfo
from nispa.errors import FormatError
from nispa.methods.base import Learning, Part
from nispa.methods.epochs import KeepConfig, learn_by_steps
from nispa.methods.parts import Derived, Network, TaskConnections, hidden_layers
from nispa.methods.task_networks import TaskNetworks
from nispa.network.layers import SparseLayer
from nispa.network.models import SparseNetwork
from nispa.network.taskmasks import TaskMasks
from nispa.network.traced import TracedNetwork
from nispa.training.fit import Batch, Loss, batch_gradients, make_optimiser

Choose = Callable[[Tensor], Tensor]
"""From the numbers of a layer's connections, ``(live,)``, to those chosen, ``(live,)`` bool."""

Slope = Callable[[Tensor, Tensor], Tensor]
"""From the numbers and the gradients of their bits, both ``(live,)``, to those of the numbers."""


class Numbered(nn.Module):
    """A network and a trained number for each connection of some layers, restored together.

    Attributes:
        network: The network; frozen connections have numbers, too.
        numbers: By layer, in the network's order.
    """

    def __init__(self, network: SparseNetwork, numbers: Mapping[str, Tensor]) -> None:
        """Copies of ``numbers``, by layer, ``(live,)`` each in order of position."""
        super().__init__()
        self.network = network
        self._names = list(numbers)
        self._numbers = nn.ParameterList(each.detach().clone() for each in numbers.values())

    @property
    def numbers(self) -> dict[str, nn.Parameter]:
        """By layer."""
        return dict(zip(self._names, self._numbers, strict=True))


class MaskedPass:
    """A copy of a network for passes in which weights are multiplied by bits.

    Attributes:
        network: The copy, all of it plastic, so that every connection gets a gradient.
    """

    def __init__(self, numbered: Numbered, empty: SparseNetwork, loss: Loss) -> None:
        """A copy, in the network ``empty``, that is trained on ``loss``."""
        self._of, self.network = numbered, empty
        load_others(numbered.network, empty)
        self._bits: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._plastic: dict[str, Tensor] = {}  # places of the plastic among the live connections
        for name, layer in numbered.network.layers.items():
            index = torch.cat([layer.plastic_index, layer.frozen_index])
            order = index.argsort()
            weights = torch.cat([layer.weight.detach(), layer.frozen_weight])[order]
            empty.layers[name].connect(layer.pattern, weights)
            self._weights[name] = weights
            self._plastic[name] = order.argsort()[: len(layer.plastic_index)]
        self._gradients = batch_gradients(empty, loss)

    @torch.no_grad()
    def take(self, bits: Mapping[str, Tensor]) -> None:
        """Makes the copy's weights those of now, times bits; layers without bits count as chosen.

        Args:
            bits: By layer, ``(live,)`` bool.
        """
        self._bits = dict(bits)
        for name, layer in self._of.network.layers.items():
            weights, copy = self._weights[name], self.network.layers[name]
            weights[self._plastic[name]] = layer.weight
            copy.weight.copy_(self._times_bits(name, weights))
            copy.bias.copy_(layer.dense_bias())
        share_others(self._of.network, self.network)

    @torch.no_grad()
    def gradients(self, batch: Batch, slope: Slope) -> Tensor:
        """Sets the ``grad`` of the network's plastic values and of the numbers, straight-through.

        Returns:
            The loss, a detached scalar.
        """
        self.network.train()
        with torch.enable_grad():
            loss = self._gradients(batch.images, batch.labels)
        share_others(self.network, self._of.network, gradients=True)
        for name, layer in self._of.network.layers.items():
            copy = self.network.layers[name]
            of_product, of_bias = _grad(copy.weight), _grad(copy.bias)
            of_weight = self._times_bits(name, of_product)
            layer.weight.grad = of_weight[self._plastic[name]]
            layer.bias.grad = of_bias[layer.bias_index]
            if name in self._of.numbers:
                number = self._of.numbers[name]
                of_bit = (of_product * self._weights[name]).view(-1, layer.weights_each).sum(1)
                number.grad = slope(number, of_bit)
        return loss

    def _times_bits(self, name: str, values: Tensor) -> Tensor:
        bits = self._bits.get(name)
        return values if bits is None else values * bits.view(-1, *(1,) * (values.dim() - 1))


class Subnetworks(TaskNetworks):
    """Task-incremental; a task is predicted with its own connections, which no later one changes.

    Attributes:
        masks: The live connections of each task: chosen ones in hidden layers, and all into the
            task's outputs.
    """

    any_network = True
    carries: ClassVar[tuple[Part, ...]] = (
        Network(),
        TaskConnections("masks", "masks"),
        Derived("_view"),
    )
    config: KeepConfig
    masks: TaskMasks

    def train_masked(
        self,
        task: Task,
        numbered: Numbered,
        choose: Choose,
        slope: Slope,
        config: KeepConfig,
        loss: Loss | None = None,
    ) -> Learning:
        """Trains all plastic values of the network together with the numbers.

        Args:
            task: The task.
            numbered: The network and the numbers.
            choose: The connections that compute.
            slope: The gradients of the numbers.
            config: How long, and with which optimiser.
            loss: By default the cross-entropy among the task's classes.
        """
        classes = self.class_mask(task.classes)
        empty = self.spec().empty().to(self.device)
        masked = MaskedPass(numbered, empty, classes.loss if loss is None else loss)
        optimiser = make_optimiser(config, numbered.parameters())
        train, validation = self.prepare_both(masked.network, task)
        measure = self.validator(masked.network, classes, validation)

        def step(batch: Batch) -> Tensor:
            masked.take(chosen(numbered, choose))
            loss = masked.gradients(batch, slope)
            optimiser.step()
            return loss

        def validate() -> float | None:
            masked.take(chosen(numbered, choose))
            return measure()

        return learn_by_steps(
            numbered, step, train, validate, config, self.shuffle(task), optimiser, config.keep
        )

    def own(self, task: Task, bits: Mapping[str, Tensor]) -> None:
        """Freezes connections with the task's outputs, and gives them to the task.

        Args:
            task: The task.
            bits: Its connections by hidden layer, ``(live,)`` bool in order of position.
        """
        output, every = self.network.topology.output, {}
        outputs = torch.zeros(output.size, dtype=torch.bool)
        outputs[list(task.classes)] = True
        for name, layer in self.network.layers.items():
            into_output = output.name in layer.spec.targets
            live, marks = live_index(layer), torch.zeros(layer.position_count, dtype=torch.bool)
            every[name] = outputs[live // layer.shape[1]] if into_output else bits[name].cpu()
            marks[live[every[name]]] = True
            # Hidden biases are frozen after the first task.
            biases = outputs if into_output else torch.ones(layer.shape[0], dtype=torch.bool)
            layer.freeze(marks.view(layer.shape), biases)
        self.masks.add(task.index, every)
        self.hold_shared(task.classes)
        self.check_isolated(task)

    def task_network(self, task: TaskInfo) -> SparseNetwork:
        """The connections of the task."""
        found = {}
        for name, bits in self.masks.of(task.index).items():
            layer = self.network.layers[name]
            own = torch.isin(layer.frozen_index, live_index(layer)[bits].to(self.device))
            found[name] = layer.frozen_index[own], layer.frozen_weight[own]
        return self.part_with(found)

    def check_parts(self, parts: dict[str, Any]) -> None:
        """What is frozen is what tasks own: their connections, with hidden or their own biases."""
        network, masks = parts["network"], parts["masks"]
        hidden = hidden_layers(network)
        for name, bits in masks.union().items():
            layer = network.layers[name]
            rows = torch.zeros(layer.shape[0], dtype=torch.bool)
            rows[layer.frozen_bias_index.cpu()] = True
            if name in hidden:
                right = not layer.biases or bool((rows == bool(masks.tasks)).all())
            else:  # an output is frozen with all its connections
                rows = rows if layer.biases else layer.frozen.any(1)
                right = torch.equal(layer.frozen, layer.pattern & rows[:, None])
            if not right or not torch.equal(live_index(layer)[bits], layer.frozen_index.cpu()):
                raise FormatError("what is frozen does not fit the connections of the tasks")
        if not self.shared_held(network):
            raise FormatError("norms and values are not kept as after the first task")


def chosen(numbered: Numbered, choose: Choose) -> dict[str, Tensor]:
    """The connections chosen by their numbers of now, by layer, ``(live,)`` bool."""
    return {name: choose(each.detach()) for name, each in numbered.numbers.items()}


def slope_by_size(score: Tensor, of_bit: Tensor) -> Tensor:
    """The straight-through gradient of scores whose size decides, from that of their bits."""
    return of_bit * score.sign()


def largest(sizes: Tensor, share: float) -> Tensor:
    """Which are the largest ``share``; at least one, if there is any.

    Args:
        sizes: ``(n,)``. Among equal ones, the first count as larger.
        share: In (0, 1].

    Returns:
        ``(n,)`` bool.
    """
    if not len(sizes):
        return sizes.bool()
    count = max(1, round(share * len(sizes)))
    place = len(sizes) - count
    if sizes.is_cuda:
        least = sizes.kthvalue(place + 1).values
    else:  # a tenth of the time
        least = torch.from_numpy(np.partition(sizes.numpy(), place))[place]
    marks = sizes > least
    equal = (sizes == least).nonzero().squeeze(1)
    marks[equal[: count - int(marks.sum())]] = True
    return marks


def live_index(layer: SparseLayer) -> Tensor:
    """Flat positions of a layer's live connections, ``(live,)`` int64, ascending, on the CPU."""
    return torch.cat([layer.plastic_index, layer.frozen_index]).cpu().sort().values


def _grad(values: nn.Parameter) -> Tensor:
    return torch.zeros_like(values) if values.grad is None else values.grad


def others(network: SparseNetwork) -> dict[str, Tensor]:
    """All tensors of a network that belong to no sparse layer; of those built by hand, none."""
    mine = {id(value) for layer in network.layers.values() for value in layer.values()}
    every = (*network.named_parameters(), *network.named_buffers())
    return {name: value for name, value in every if id(value) not in mine}


def load_others(network: SparseNetwork, copy: SparseNetwork) -> None:
    """Gives a copy what a network has beside its layers: values, norms, random numbers."""
    names, state = [*others(network), "_extra_state"], network.state_dict()
    found = {name: state[name] for name in names if name in state}
    if found:
        copy.load_state_dict({**copy.state_dict(), **found})


@torch.no_grad()
def share_others(network: SparseNetwork, copy: SparseNetwork, *, gradients: bool = False) -> None:
    """Gives a copy what a network has beside its layers, which is of the same sizes there.

    Args:
        network: The network.
        copy: The copy.
        gradients: Whether of parameters to give the gradients, not the values.
    """
    for value, theirs in zip(others(network).values(), others(copy).values(), strict=True):
        if gradients and isinstance(value, nn.Parameter):
            theirs.grad = None if value.grad is None else value.grad.clone()
        else:
            theirs.copy_(value)
    if isinstance(network, TracedNetwork) and isinstance(copy, TracedNetwork):
        copy.draws = network.draws
