"""The gradient of a loss by every connection that a layer could have, live or dead.

With x what a Linear layer reads and d the gradient of the loss by what it computes, the gradient by
its weight from j to i is the sum over samples of d_i x_j, whether or not the weight exists. Of a
convolution it is that of the dense kernel. This takes as many operations as the gradient by the
weights of a dense layer, so it is for once in a while, not for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from nispa.network.layers import SparseConv2d, SparseLayer
from nispa.network.operations import current, purpose
from nispa.network.sparse_network import SparseNetwork
from nispa.network.traced import TracedNetwork


def position_gradients(
    network: SparseNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The size of the mean gradient by each possible connection.

    Args:
        network: The network; neither its values nor their ``grad`` change.
        batches: Images ``(batch, channels, height, width)`` and labels ``(batch,)``.
        loss: From logits and labels to the mean over samples.

    Returns:
        For each layer ``(target, source * block)`` float32 on the CPU: the absolute value; of a
        whole kernel, the root of the sum of squares.
    """
    if isinstance(network, TracedNetwork):
        return _of_full(network, batches, loss)
    sums: dict[str, Tensor] = {}
    read: dict[str, tuple[SparseLayer, Tensor, Tensor]] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, SparseLayer)
        # A zero whose gradient is that of the output, also where all that leads to it is frozen.
        zero = torch.zeros_like(output, requires_grad=True)
        read[module.spec.name] = module, inputs[0].detach(), zero
        return output + zero

    handles = [layer.register_forward_hook(watch) for layer in network.layers.values()]
    samples, ledger = 0, current()
    try:
        with purpose("importance"), torch.enable_grad():
            for images, labels in batches:
                read.clear()
                value = loss(network(images), labels)
                zeros = [zero for _, _, zero in read.values()]
                deltas = torch.autograd.grad(value, zeros, allow_unused=True)
                samples += len(labels)
                for (layer, x, _), delta in zip(read.values(), deltas, strict=True):
                    if delta is not None:
                        _add(sums, layer, x, delta * len(labels))
                    if ledger is not None:
                        each = 2 * layer.position_count * layer.weights_each * layer.places
                        ledger.add("importance", each * len(labels))
    finally:
        for handle in handles:
            handle.remove()
    return _sizes(network, sums, samples)


def _of_full(
    network: TracedNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The same of a network of any module: by its weights while all are live, the dead ones 0."""
    modes = [(module, module.training) for module in network.modules()]
    others = [(value, value.grad) for value in network.parameters()]
    sums: dict[str, Tensor] = {}
    samples = 0
    with ExitStack() as stack, purpose("importance"):
        for layer in network.layers.values():
            stack.enter_context(layer.full())
        network.eval()
        for images, labels in batches:
            network.gradients(images, labels, loss)
            samples += len(labels)
            for name, layer in network.layers.items():
                assert layer.weight.grad is not None
                gradient = layer.weight.grad.view(*layer.shape, *layer.spec.kernel) * len(labels)
                sums[name] = sums[name] + gradient if name in sums else gradient
    for module, mode in modes:
        module.training = mode
    for value, gradient_before in others:
        value.grad = gradient_before
    return _sizes(network, sums, samples)


def _sizes(network: SparseNetwork, sums: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
    sizes = {}
    for name, layer in network.layers.items():
        gradient = sums.get(name, torch.zeros(layer.shape)) / max(1, samples)
        sizes[name] = gradient.flatten(2).norm(dim=2) if gradient.dim() > 2 else gradient.abs()
    return {name: size.cpu() for name, size in sizes.items()}


@torch.no_grad()
def _add(sums: dict[str, Tensor], layer: SparseLayer, x: Tensor, delta: Tensor) -> None:
    x, delta = x.float(), delta.float()
    if isinstance(layer, SparseConv2d):
        shape = (*layer.shape, *layer.spec.kernel)
        found = conv2d_weight(x, shape, delta, layer.stride, layer.padding)
    else:
        found = delta.flatten(0, -2).T @ x.flatten(0, -2)
    name = layer.spec.name
    sums[name] = sums[name] + found if name in sums else found
