"""A network of sparse layers: its passes, its gradients, and a way to watch its units.

A network is any module built of sparse layers, together with its topology. :class:`.Units` marks
where in the forward pass the activations of a unit group can be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nispa.base.shapes import Shape
from nispa.errors import ConfigError
from nispa.kernels.dispatch import Chain, Compiled, Images
from nispa.network.activity import total_activity, unit_activity
from nispa.network.fusion import Segment, hooked, segments
from nispa.network.layers import SparseConv2d, SparseLayer, Units
from nispa.network.operations import PerSample, current, per_sample, purpose
from nispa.network.prepared import DataSet, Prepared, Ready
from nispa.network.topology import Topology, UnitSets


class SparseNetwork(nn.Module):
    """A module of sparse layers, its topology, and a way to watch its units.

    Attributes:
        topology: Groups and layers.
        layers: The sparse layers by name.
        input_shape: The shape of one sample.
        precision: Type of products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
        records: Whether a GPU may record a step and replay it.
        dense: Layers that stay full at any density.
        dense_if_full: Whether layers without a dead connection run as dense products on a CPU, too,
            which is faster. Both ways round differently: where connections may go later, logits
            that must stay the same need one of them.
    """

    records = True
    dense: frozenset[str] = frozenset()
    dense_if_full = False

    def __init__(
        self,
        body: nn.Module,
        topology: Topology,
        input_shape: Shape,
        precision: str = "float32",
    ) -> None:
        """A network.

        Args:
            body: From images, ``(batch, channels, height, width)``, to logits.
            topology: Of the sparse layers and unit marks in ``body``, all of them.
            input_shape: The shape of one sample.
            precision: Type of products.

        Raises:
            ConfigError: ``body`` has parameters or buffers outside its sparse layers.
        """
        super().__init__()
        self.body = body
        self.topology = topology
        self.input_shape = input_shape
        self.precision = precision
        self._compiled_segments: dict[int, Compiled] = {}
        self._current_segments: list[Segment] = []
        self._segments_key: tuple[int, ...] = ()
        self._costs: dict[bool, tuple[list[int], PerSample]] = {}
        self.layers = {
            module.spec.name: module for module in body.modules() if isinstance(module, SparseLayer)
        }
        marked = {module.group for module in body.modules() if isinstance(module, Units)}
        assert set(self.layers) == {layer.name for layer in topology.layers}
        assert marked == {group.name for group in topology.hidden}
        self._refuse_foreign_values()

    def _refuse_foreign_values(self) -> None:
        """Refuses a body in which something learns, or is updated, that no sparse layer owns.

        Freezing reaches sparse layers alone. An optimiser would move a foreign parameter, and
        training mode a foreign buffer, while outputs that must not change are computed from it.
        """
        owned = {id(value) for layer in self.layers.values() for value in layer.values()}
        for path, module in self.body.named_modules():
            values = (*module.named_parameters("", False), *module.named_buffers("", False))
            for name, value in values:
                if id(value) not in owned:
                    raise ConfigError(
                        f"{type(module).__name__} '{path or 'body'}' has a value '{name}' of its "
                        "own, which freezing cannot reach: learning a task would change what was "
                        "learned before; use a module without parameters and buffers, or a layer "
                        "of nispa.network.layers"
                    )

    def forward(self, images: Images) -> Tensor:
        """Logits of every output, ``(batch, channels, height, width)`` to ``(batch, outputs)``."""
        if self.precision != "bfloat16":
            with _rounding(self.precision):
                logits = self._run(images)
        else:
            assert isinstance(images, Tensor), "only float32 reads cached data"
            with torch.autocast(images.device.type, torch.bfloat16):
                logits = self._run(images).float()
        self._count(images, logits)
        return logits

    def _count(self, images: Images, logits: Tensor) -> None:
        """Enters a forward pass into the ledger, and the backward pass when it comes."""
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

    def _run(self, images: Images) -> Tensor:
        x = images
        if isinstance(x, Tensor) and self._wants_channels_last(x.device) and x.dim() == 4:
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
            assert isinstance(x, Tensor), "only compiled kernels read cached data"
            out = segment.blocks(x)
            if out is not None:
                x = out
                continue
            for module in segment.modules:
                x = module(x)
        assert isinstance(x, Tensor)
        return x

    def _wants_channels_last(self, device: torch.device) -> bool:
        """Whether images go in channels-last, the layout that GPUs convolve fastest."""
        return device.type == "cuda" and any(
            isinstance(layer, SparseConv2d) for layer in self.layers.values()
        )

    def gradients(
        self,
        images: Images,
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
                called for some of the batch at a time. If it has an attribute ``outputs``, it reads
                the logits of these outputs alone; the others may be 0.
            reuse: Whether the tensors that are the ``grad`` of now may be written over.

        Returns:
            The loss, a detached scalar.
        """
        chain = self._whole(images, getattr(loss, "outputs", None))
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
        """Lays out a data set for many passes, with cached activations of constant units.

        The activations of a constant unit (one whose inputs are all frozen) are computed once and
        cached where that saves work; on a GPU, the scaled images are cached. The result is valid
        until values are frozen or redrawn. All results are bit for bit the same as without it.

        Args:
            samples: The data set.
            budget: Bytes that the result may take.

        Returns:
            The prepared data set; or ``samples`` itself if compiled kernels do not run, the pixels
            do not fit the budget, or images are augmented in each epoch.
        """
        if getattr(samples, "augment", None):
            return samples
        if len(samples) and samples.labels.is_cuda:
            return self._ready(samples, budget)
        chain = self._whole(next(iter(samples.batches(1)))[0]) if len(samples) else None
        if chain is None or budget <= 0:
            return samples
        batches = (images for images, _ in samples.batches(chain.at_a_time()))
        marks = self._segments()[0].marks.values()
        cached = chain.cache(batches, len(samples), budget, marks)
        return samples if cached is None else Prepared(cached, samples.labels)

    def _ready(self, samples: DataSet, budget: int) -> DataSet:
        """For a GPU: the data set scaled and laid out, if that fits a budget of bytes."""
        if len(samples) * math.prod(self.input_shape) * torch.float32.itemsize > budget:
            return samples
        channels_last = self._wants_channels_last(samples.labels.device)
        parts = (images for images, _ in samples.batches(4096))
        if channels_last:
            parts = (images.permute(0, 2, 3, 1) for images in parts)
        return Ready(torch.cat(list(parts)), samples.labels, channels_last)

    def activity(self, batches: Iterable[Images]) -> dict[str, Tensor]:
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
        all_batches = itertools.chain([first], batches)
        with purpose("activity"):
            if chain is not None and set(whole.marks) == {g.name for g in self.topology.hidden}:
                sums = chain.unit_sums(self._counted(all_batches), list(whole.marks.values()))
                return dict(zip(whole.marks, sums, strict=True))
            totals = total_activity(
                self.observe(images, unit_activity)
                for images in all_batches
                if isinstance(images, Tensor)
            )
            return {group: total.cpu() for group, total in totals.items()}

    def _counted(self, batches: Iterable[Images]) -> Iterator[Images]:
        """Passes batches on and enters each into the ledger, as :meth:`forward` would."""
        for images in batches:
            ledger = current()
            if ledger is not None:
                ledger.forward(len(images), self.per_sample(), learning=False)
            yield images

    def _whole(self, images: Images, outputs: tuple[int, ...] | None = None) -> Chain | None:
        """The network as one chain, or None if it is not one.

        Args:
            images: The input.
            outputs: The outputs that are read; None for all.
        """
        first, *more = self._segments()
        if more or hooked(self.body) or hooked(self) or self.precision != "float32":
            return None
        if first.ends_flat_without_linear:
            return None  # the output must still be flattened, which a chain does not do
        return first.chain(images, self._compiled(0), outputs)

    def _segments(self) -> list[Segment]:
        """The body cut into chains; cut again only after a module, hook or tensor was replaced."""
        modules = [module for module in self.body._modules.values() if module is not None]
        tensors = [
            id(tensor)
            for layer in self.layers.values()
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
        ]
        key = (id(self.body), *map(id, modules), *map(hooked, modules), *tensors)
        if key != self._segments_key:
            found = segments(self.body, dense_if_full=self.dense_if_full)
            self._current_segments, self._segments_key = found, key
        return self._current_segments

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

    # What a network has beside connections and biases; here it is nothing.

    def settle(self, units: UnitSets) -> None:
        """Makes units, chosen to be kept, independent of others in whatever is no connection."""

    def hold(self, units: UnitSets) -> None:
        """Keeps all of some units that is neither connection nor bias as it is now, for good."""

    def restart(self) -> None:
        """Starts all of plastic units that is neither connection nor bias anew."""

    def holds(self, units: UnitSets) -> bool:
        """Whether :meth:`hold` keeps exactly these units."""
        del units
        return True

    def thaw(self, units: UnitSets) -> None:
        """Makes plastic what :meth:`hold` kept of some units."""

    def tied(self, units: UnitSets) -> dict[str, Tensor]:
        """Units, and those that they depend on by whatever is no connection."""
        return dict(units)

    def renew(self, units: UnitSets) -> list[tuple[nn.Parameter, Tensor]]:
        """Starts all of some plastic units that is neither connection nor bias anew.

        Returns:
            The parameters that this touches, and which of their values, bool.
        """
        del units
        return []

    def patterns(self) -> dict[str, Tensor]:
        """The live connections of each layer, ``(target, source * block)`` bool."""
        return {name: layer.pattern for name, layer in self.layers.items()}

    def sources(self) -> UnitSets:
        """Units that are active without a connection, ``(units,)`` bool per group: the inputs."""
        return self.topology.no_units()

    def unreached(self) -> tuple[int, ...]:
        """Outputs without a live path from the input: no image can change their logits."""
        reached = self.topology.no_units()  # the whole input, nothing else yet
        for spec in self.topology.layers:
            layer = self.layers[spec.name]
            index = torch.cat([layer.plastic_index, layer.frozen_index]).cpu().long()
            leads = reached[spec.source][index % layer.shape[1] // spec.block]
            reached[spec.target][index[leads] // layer.shape[1]] = True
        return tuple(torch.nonzero(~reached[self.topology.output.name]).flatten().tolist())

    def stored_bytes(self) -> int:
        """Bytes of the network in a file: live values and their positions."""
        return sum(int(value.nbytes) for value in self.state_dict().values())

    def live_count(self) -> int:
        """Number of live weights and biases."""
        return sum(
            layer.live_count * layer.weights_each + layer.biases for layer in self.layers.values()
        )

    def position_count(self) -> int:
        """Number of weights and biases a dense network of this shape would have."""
        return sum(
            layer.position_count * layer.weights_each + layer.biases
            for layer in self.layers.values()
        )


@contextmanager
def _rounding(precision: str) -> Iterator[None]:
    """With ``"tf32"``, lets float32 products round their factors to TF32 while it is active."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
