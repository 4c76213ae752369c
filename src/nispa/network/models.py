"""Networks of sparse layers: the MLP and the ConvNet of the paper, with every size a parameter.

A network is any module built of sparse layers, together with its topology. :class:`Units` marks
where in the forward pass the activations of a unit group can be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.errors import ConfigError
from nispa.kernels.dispatch import LINEAR, Chain, Compiled, Feed, Given
from nispa.network.activity import total_activity, unit_activity
from nispa.network.fusion import Segment, hooked, segments
from nispa.network.initialise import (
    FanCount,
    FanMode,
    kaiming_values,
    layer_densities,
    random_pattern,
    uniform_bias,
)
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units
from nispa.network.operations import PerSample, current, per_sample, purpose
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup

MAX_UNITS = 1_000_000
MAX_LAYERS = 1_000  # of a kind
UNPOOLED = 100_000  # pool_to of networks from before there was such a setting
MAX_POSITIONS = 2**28  # of one layer: drawing its first pattern takes 8 bytes for each
MAX_ALL_POSITIONS = 2**30


@settings
class NetworkConfig:
    """The network: its shape, how sparse it is, and how it starts."""

    architecture: Literal["mlp", "convnet"] = setting("mlp", "fully connected, or convolutional")
    hidden: tuple[int, ...] = setting(
        (400, 400, 400), "units of each hidden Linear layer (of the MLP)"
    )
    channels: tuple[int, ...] = setting(
        (64, 64, 128, 128), "channels of each convolution (of the ConvNet)"
    )
    kernel_size: int = setting(3, "side of a convolution's kernel, in pixels", ge=1, le=15)
    pool_every: int = setting(2, "a 2x2 max-pool follows every so many convolutions", ge=1)
    pool_to: int = setting(
        8,
        "largest side of the maps that Linear layers read; more max-pools shrink those of large "
        "images",
        ge=1,
        le=100_000,
    )
    fc: tuple[int, ...] = setting((1024,), "units of each Linear layer after the convolutions")
    density: float = setting(
        0.2, "share of live connections", gt=0, le=1, hint="for 90 % sparsity pass 0.1"
    )
    distribution: Literal["uniform", "erk"] = setting(
        "uniform", "the same density in every layer, or Erdos-Renyi-Kernel"
    )
    mask: Literal["exact", "bernoulli"] = setting(
        "exact", "exactly the density's count of connections, or each by chance (published)"
    )
    fan: Literal["live", "positions"] = setting(
        "live", "Kaiming fan over live connections, or over all positions (published)"
    )
    gain: float = setting(1.0, "factor on the Kaiming deviation of first values", gt=0, le=100)
    init: Literal["fan_in", "fan_out"] = setting(
        "fan_in", "Kaiming-normal mode of the first values"
    )
    bias: Literal["zero", "uniform"] = setting(
        "zero", "first biases: zero, or as PyTorch makes them"
    )

    precision: Literal["float32", "tf32", "bfloat16"] = setting(
        "float32", "type of products, for GPUs; values and their updates stay float32"
    )

    def __post_init__(self) -> None:
        for name, sizes in (("hidden", self.hidden), ("channels", self.channels), ("fc", self.fc)):
            if len(sizes) > MAX_LAYERS:
                raise ValueError(
                    f"{name} names {len(sizes):,} layers, more than {MAX_LAYERS:,}; name fewer"
                )
            if any(not 1 <= size <= MAX_UNITS for size in sizes):
                shown = ",".join(map(str, sizes))
                raise ValueError(f"{name}={shown} must all be whole numbers in [1, {MAX_UNITS}]")
        if self.architecture == "mlp" and not self.hidden:
            raise ValueError("hidden must name at least one layer, such as 400,400,400")
        if self.architecture == "convnet" and not self.channels:
            raise ValueError("channels must name at least one layer, such as 64,64,128,128")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd, so that sizes are kept")


class DataSet(Protocol):
    """Labelled images, read batch by batch; see :class:`nispa.data.tasks.Samples`."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """Classes, ``(samples,)`` int64."""

    def batch(self, index: Tensor) -> tuple[Any, Tensor]:
        """Images and labels at ``index``, ``(n,)`` int64."""

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """All in order, at most ``size`` at a time."""


@dataclass(frozen=True)
class Prepared:
    """A data set as compiled kernels read it, for one network until what is frozen changes."""

    feed: Feed
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Given, Tensor]:
        """What stands for the images at ``index``, ``(n,)`` int64, and their labels."""
        return Given(self.feed, index), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Given, Tensor]]:
        """All in order, at most ``size`` at a time."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index)


@dataclass(frozen=True)
class Ready:
    """A data set as a network on a GPU reads it: scaled, float32, in that device's memory.

    Attributes:
        pixels: ``(images, channels, height, width)``, or ``(images, height, width, channels)``.
        labels: ``(images,)`` int64.
        lying: Whether the channels of a pixel lie side by side.
    """

    pixels: Tensor
    labels: Tensor
    lying: bool

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(n, channels, height, width)`` and labels at ``index``, ``(n,)`` int64."""
        return self._seen(self.pixels.index_select(0, index)), self.labels.index_select(0, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All in order, at most ``size`` at a time."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield self._seen(pixels), labels

    def _seen(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2) if self.lying else pixels


class SparseNetwork(nn.Module):
    """A module of sparse layers, its topology, and a way to watch its units.

    Attributes:
        topology: Groups and layers.
        layers: The sparse layers by name.
        input_shape: Channels, height and width of an image.
        precision: Type of products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
    """

    def __init__(
        self,
        body: nn.Module,
        topology: Topology,
        input_shape: tuple[int, int, int],
        precision: str = "float32",
    ) -> None:
        """A network whose sparse layers and unit marks, found in ``body``, match ``topology``."""
        super().__init__()
        self.body = body
        self.topology = topology
        self.input_shape = input_shape
        self.precision = precision
        self._compiled_segments: dict[int, Compiled] = {}
        self._found: list[Segment] = []
        self._found_for: tuple[int, ...] = ()
        self._costs: dict[bool, tuple[list[int], PerSample]] = {}
        self.layers = {
            module.spec.name: module for module in body.modules() if isinstance(module, SparseLayer)
        }
        marked = {module.group for module in body.modules() if isinstance(module, Units)}
        assert set(self.layers) == {layer.name for layer in topology.layers}
        assert marked == {group.name for group in topology.hidden}

    def forward(self, images: Tensor | Given) -> Tensor:
        """Logits of every output, ``(batch, channels, height, width)`` to ``(batch, outputs)``."""
        if self.precision != "bfloat16":
            with _rounding(self.precision):
                logits = self._run(images)
        else:
            assert isinstance(images, Tensor), "only float32 reads a feed"
            with torch.autocast(images.device.type, torch.bfloat16):
                logits = self._run(images).float()
        self._count(images, logits)
        return logits

    def _count(self, images: Tensor | Given, logits: Tensor) -> None:
        """Tells the ledger of a pass forward, and of the one back when it comes."""
        ledger = current()
        if ledger is None:
            return
        learning, samples = logits.requires_grad, len(images)
        into_input = learning and isinstance(images, Tensor) and images.requires_grad
        cost = self.per_sample(into_input=into_input)
        ledger.forward(samples, cost, learning=learning)
        if learning:
            logits.register_hook(lambda _: ledger.backward(samples, cost))

    def per_sample(self, *, into_input: bool = False) -> PerSample:
        """Operations of one sample's pass as the pattern is now, see :mod:`.operations`.

        Args:
            into_input: Whether a gradient flows into the images, too.
        """
        key: list[int] = []
        for layer in self.layers.values():
            key += (layer.changes, layer.places)
        known = self._costs.get(into_input)
        if known is None or known[0] != key:
            known = key, per_sample(self.layers, self.topology, into_input=into_input)
            self._costs[into_input] = known
        return known[1]

    def _run(self, images: Tensor | Given) -> Tensor:
        x = images
        if isinstance(x, Tensor) and self._lies(x.device) and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if hooked(self.body):
            logits: Tensor = self.body(x)
            return logits
        for number, segment in enumerate(self._segments()):
            chain = segment.chain(x, self._compiled(number))
            if chain is not None:
                x = chain(x)
                x = x.flatten(1) if segment.flat else x
                continue
            assert isinstance(x, Tensor), "only compiled kernels read a feed"
            found = segment.blocks(x)
            if found is not None:
                x = found
                continue
            for module in segment.modules:
                x = module(x)
        assert isinstance(x, Tensor)
        return x

    def _lies(self, device: torch.device) -> bool:
        """Whether the channels of a pixel should lie side by side: what GPUs convolve fastest."""
        return device.type == "cuda" and any(
            isinstance(layer, SparseConv2d) for layer in self.layers.values()
        )

    def gradients(
        self,
        images: Tensor | Given,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reuse: bool = False,
    ) -> Tensor:
        """Replaces the ``grad`` of every plastic value by the gradient of a loss.

        Args:
            images: ``(batch, channels, height, width)``.
            labels: ``(batch,)``.
            loss: From logits ``(n, outputs)`` and labels ``(n,)`` to a mean over samples; it may be
                called for some of the batch at a time.
            reuse: Whether the tensors that are the ``grad`` of now may be written over.

        Returns:
            The loss, a detached scalar.
        """
        chain = self._whole(images)
        if chain is not None and not any(
            values._backward_hooks or values._post_accumulate_grad_hooks
            for values in chain.parameters()
        ):
            value = chain.gradients(images, labels, loss, reuse=reuse)
            ledger = current()
            if ledger is not None:
                cost = self.per_sample()
                ledger.forward(len(labels), cost, learning=True)
                ledger.backward(len(labels), cost)
            return value
        self.zero_grad(set_to_none=True)
        with _rounding(self.precision):
            value = loss(self(images), labels)
            if value.requires_grad:  # not where every value is frozen
                value.backward()
        return value.detach()

    def prepare(self, samples: DataSet, budget: int) -> DataSet:
        """A data set ready for many passes, with the activations of constant units.

        What a constant unit (one whose inputs are all frozen) computes for an image is computed
        once and kept where that saves work; on a GPU, the images are kept scaled. The result holds
        until a value is frozen or drawn anew; every number that comes out of it is the same, bit
        for bit, as without.

        Args:
            samples: The data set.
            budget: Bytes that it may take.

        Returns:
            The data set, or ``samples`` where compiled kernels do not run, it would not fit, or
            images vary from epoch to epoch.
        """
        if getattr(samples, "augment", None) is not None:
            return samples
        if len(samples) and samples.labels.is_cuda:
            return self._ready(samples, budget)
        chain = self._whole(next(iter(samples.batches(1)))[0]) if len(samples) else None
        if chain is None or budget <= 0:
            return samples
        batches = (images for images, _ in samples.batches(chain.at_a_time()))
        marks = self._segments()[0].marks.values()
        feed = chain.feed(batches, len(samples), budget, marks)
        return samples if feed is None else Prepared(feed, samples.labels)

    def _ready(self, samples: DataSet, budget: int) -> DataSet:
        """A data set scaled and laid out, if it fits a budget of bytes."""
        if len(samples) * math.prod(self.input_shape) * torch.float32.itemsize > budget:
            return samples
        lying = self._lies(samples.labels.device)
        parts = (images for images, _ in samples.batches(4096))
        if lying:
            parts = (images.permute(0, 2, 3, 1) for images in parts)
        return Ready(torch.cat(list(parts)), samples.labels, lying)

    def activity(self, batches: Iterable[Tensor | Given]) -> dict[str, Tensor]:
        """Total activation of each hidden group's units over a data set, ``(units,)`` float64.

        Args:
            batches: Images, ``(batch, channels, height, width)`` each.
        """
        whole = self._segments()[0]
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return {
                group.name: torch.zeros(group.size, dtype=torch.float64)
                for group in self.topology.hidden
            }
        chain = self._whole(first)
        together = itertools.chain([first], batches)
        with purpose("activity"):
            if chain is not None and set(whole.marks) == {g.name for g in self.topology.hidden}:
                sums = chain.unit_sums(self._counted(together), list(whole.marks.values()))
                return dict(zip(whole.marks, sums, strict=True))
            totals = total_activity(
                self.observe(images, unit_activity)
                for images in together
                if isinstance(images, Tensor)
            )
            return {group: total.cpu() for group, total in totals.items()}

    def _counted(self, batches: Iterable[Tensor | Given]) -> Iterator[Tensor | Given]:
        """Batches that pass forward by another way than :meth:`forward`, told to the ledger."""
        for images in batches:
            ledger = current()
            if ledger is not None:
                ledger.forward(len(images), self.per_sample(), learning=False)
            yield images

    def _whole(self, images: Tensor | Given) -> Chain | None:
        """The network as one chain, where it is one."""
        found = self._segments()
        if len(found) > 1 or hooked(self.body) or hooked(self) or self.precision != "float32":
            return None
        if found[0].flat and found[0].links[-1:] and found[0].links[-1].kind != LINEAR:
            return None  # what comes out is flattened, which a chain does not do
        return found[0].chain(images, self._compiled(0))

    def _segments(self) -> list[Segment]:
        """The body in chains, found anew only where a module, a hook or a tensor is another."""
        modules = [module for module in self.body._modules.values() if module is not None]
        tensors = [
            id(tensor)
            for layer in self.layers.values()
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
        ]
        key = (id(self.body), *map(id, modules), *map(hooked, modules), *tensors)
        if key != self._found_for:
            self._found, self._found_for = segments(self.body), key
        return self._found

    def _compiled(self, number: int) -> Compiled:
        return self._compiled_segments.setdefault(number, Compiled())

    def observe(self, images: Tensor, measure: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Runs ``images`` through and measures each hidden group's activations, without gradients.

        Args:
            images: ``(batch, channels, height, width)``.
            measure: From activations ``(batch, units)`` or ``(batch, units, height, width)`` to a
                tensor; where a group is marked at several places, the measures are summed.
        """
        seen: dict[str, Tensor] = {}

        def watch(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, Units)
            measured = measure(output)
            seen[module.group] = seen[module.group] + measured if module.group in seen else measured

        marks = [module for module in self.body.modules() if isinstance(module, Units)]
        handles = [mark.register_forward_hook(watch) for mark in marks]
        try:
            with torch.no_grad():
                self(images)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def patterns(self) -> dict[str, Tensor]:
        """The live connections of each layer, ``(target, source * block)`` bool."""
        return {name: layer.pattern for name, layer in self.layers.items()}

    def unreached(self) -> tuple[int, ...]:
        """The outputs that no live path leads to from the input: no image can move them."""
        met = self.topology.no_units()  # of the input all, of the others none yet
        for spec in self.topology.layers:
            layer = self.layers[spec.name]
            index = torch.cat([layer.plastic_index, layer.frozen_index]).cpu().long()
            leads = met[spec.source][index % layer.shape[1] // spec.block]
            met[spec.target][index[leads] // layer.shape[1]] = True
        return tuple(torch.nonzero(~met[self.topology.output.name]).flatten().tolist())

    def stored_bytes(self) -> int:
        """Bytes of what is stored: live values and where each of them stands."""
        return sum(int(value.nbytes) for value in self.state_dict().values())

    def live_count(self) -> int:
        """Number of live weights and of biases, as they are stored."""
        return sum(
            layer.live_count * layer.weights_each + layer.shape[0] for layer in self.layers.values()
        )

    def position_count(self) -> int:
        """Number of weights and biases a dense network of this shape would have."""
        return sum(
            layer.position_count * layer.weights_each + layer.shape[0]
            for layer in self.layers.values()
        )


@contextmanager
def _rounding(precision: str) -> Iterator[None]:
    """Inside it, factors of float32 products are rounded to TF32, if that is the type wanted."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def empty_network(
    config: NetworkConfig, input_shape: tuple[int, int, int], outputs: int
) -> SparseNetwork:
    """The network that ``config`` describes, without any live connection: to load values into.

    Args:
        config: Its shape.
        input_shape: Channels, height and width of an image.
        outputs: Number of logits, one per class of all tasks.
    """
    make = {"mlp": _mlp, "convnet": _convnet}[config.architecture]
    network = make(config, input_shape, outputs)
    network.precision = config.precision
    return network


def build_network(
    config: NetworkConfig, input_shape: tuple[int, int, int], outputs: int, *, seed: int
) -> SparseNetwork:
    """The network that ``config`` describes, with its first pattern and values drawn from ``seed``.

    Args:
        config: Its shape and sparsity. The first convolution is always dense.
        input_shape: Channels, height and width of an image.
        outputs: Number of logits, one per class of all tasks.
        seed: Seed of the streams "pattern" and "initialisation".
    """
    network = empty_network(config, input_shape, outputs)
    dense = frozenset({network.topology.layers[0].name} if config.architecture == "convnet" else ())
    shares = layer_densities(network.topology, config.density, config.distribution, dense)
    for name, layer in network.layers.items():
        pattern = random_pattern(
            layer.shape, shares[name], config.mask, stream(seed, "pattern", name)
        )
        values = kaiming_values(
            layer.spec,
            pattern,
            config.init,
            config.fan,
            stream(seed, "initialisation", name),
            config.gain,
        )
        layer.connect(pattern, values)
        if config.bias == "uniform":
            start = stream(seed, "initialisation", name, "bias")
            with torch.no_grad():
                layer.bias.copy_(uniform_bias(pattern, layer.weights_each, config.fan, start))
    return network


def restart_plastic(
    network: SparseNetwork,
    mode: FanMode,
    fan: FanCount,
    *,
    seed: int,
    task: int,
    gain: float = 1.0,
) -> None:
    """Draws every plastic weight anew (Kaiming-normal) and sets every plastic bias to zero."""
    for name, layer in network.layers.items():
        start = stream(seed, "restart", task, name)
        values = kaiming_values(layer.spec, layer.pattern, mode, fan, start, gain)
        layer.restart_plastic(values, torch.zeros(layer.shape[0]))


def _mlp(config: NetworkConfig, input_shape: tuple[int, int, int], outputs: int) -> SparseNetwork:
    """Flatten, then Linear and ReLU for each hidden size, then the head."""
    chain = _Chain(UnitGroup("input", math.prod(input_shape), "input"))
    chain.modules.append(nn.Flatten())
    for number, units in enumerate(config.hidden, start=1):
        chain.linear(f"fc{number}", UnitGroup(f"fc{number}", units))
    chain.linear("head", UnitGroup("output", outputs, "output"))
    return chain.network(input_shape, "a smaller hidden, or smaller images (resize)")


def _convnet(
    config: NetworkConfig, input_shape: tuple[int, int, int], outputs: int
) -> SparseNetwork:
    """Convolutions with 2x2 max-pools, Linear layers, then the head."""
    channels, height, width = input_shape
    chain = _Chain(UnitGroup("input", channels, "input"))
    pools = _pools(config, height, width)
    for number, size in enumerate(config.channels, start=1):
        height, width = height >> pools[number - 1], width >> pools[number - 1]
        if height < 1 or width < 1:
            raise ConfigError(
                f"images of {input_shape[1]}x{input_shape[2]} pixels are too small for a max-pool "
                f"after convolution {number}; pass fewer channels or a larger pool_every"
            )
        group = UnitGroup(f"conv{number}", size)
        chain.conv(group.name, group, config.kernel_size, pools[number - 1])
    chain.modules.append(nn.Flatten())
    chain.block = height * width
    for number, units in enumerate(config.fc, start=1):
        chain.linear(f"fc{number}", UnitGroup(f"fc{number}", units))
    chain.linear("head", UnitGroup("output", outputs, "output"))
    return chain.network(
        input_shape, "a smaller fc, channels or pool_to, or smaller images (resize)"
    )


def _pools(config: NetworkConfig, height: int, width: int) -> list[int]:
    """How many max-pools follow each convolution.

    One follows every ``pool_every``. Where the last map would be larger than ``pool_to``, more come
    after the first convolutions that have none, which spares the most work, then after the last.
    """
    count = len(config.channels)
    pools = [int(number % config.pool_every == 0) for number in range(1, count + 1)]
    free = [place for place, pool in enumerate(pools) if not pool]
    halved = sum(pools)
    while max(height, width) >> halved > config.pool_to and min(height, width) >> halved > 1:
        pools[free.pop(0) if free else -1] += 1
        halved += 1
    return pools


class _Chain:
    """Collects modules, groups and layers of a network whose layers follow each other."""

    def __init__(self, first: UnitGroup) -> None:
        self.modules: list[nn.Module] = []
        self.groups = [first]
        self.layers: list[ConnectionLayer] = []
        self.block = 1

    def _join(self, name: str, target: UnitGroup, kernel: tuple[int, ...]) -> ConnectionLayer:
        layer = ConnectionLayer(name, self.groups[-1].name, target.name, self.block, kernel)
        self.groups.append(target)
        self.layers.append(layer)
        return layer

    def linear(self, name: str, target: UnitGroup) -> None:
        columns = self.groups[-1].size * self.block
        layer = self._join(name, target, ())
        self.block = 1
        self.modules.append(SparseLinear(layer, (target.size, columns)))
        if target.role == "hidden":
            self.modules += [nn.ReLU(), Units(target.name)]

    def conv(self, name: str, target: UnitGroup, side: int, pools: int) -> None:
        shape = (target.size, self.groups[-1].size)
        layer = self._join(name, target, (side, side))
        self.modules += [SparseConv2d(layer, shape, padding=side // 2), nn.ReLU()]
        self.modules += [nn.MaxPool2d(2) for _ in range(pools)]
        self.modules.append(Units(target.name))

    def network(self, input_shape: tuple[int, int, int], smaller: str) -> SparseNetwork:
        """What was collected; ``smaller`` says what to pass where a layer is too large."""
        topology = Topology(tuple(self.groups), tuple(self.layers))
        total = 0
        for layer in self.layers:
            rows, columns = topology.pattern_shape(layer)
            total += rows * columns
            if rows * columns > MAX_POSITIONS:
                raise ConfigError(
                    f"layer {layer.name} would join {columns:,} features to {rows:,} units, more "
                    f"than {MAX_POSITIONS:,} positions; pass {smaller}"
                )
        if total > MAX_ALL_POSITIONS:
            raise ConfigError(
                f"the network would have {total:,} positions for connections, more than "
                f"{MAX_ALL_POSITIONS:,}; pass fewer or smaller layers"
            )
        return SparseNetwork(nn.Sequential(*self.modules), topology, input_shape)
