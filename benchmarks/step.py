"""One training step over live connections, beside the same step in dense PyTorch with masks.

    python -m benchmarks.step --net mlp --density 0.2 --batch 512 --threads 2

``masked`` multiplies a dense weight by its mask in every forward pass and lets Adam update all of
it, which is how published code and other frameworks train sparse networks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import gflops, in_turn, product
from nispa.layers import SparseConv2d, SparseLayer
from nispa.models import NetworkConfig, SparseNetwork, build_network
from nispa.training import OptimiserConfig, gradient_step, make_optimiser

NETS = {
    "mlp": (NetworkConfig(architecture="mlp"), (1, 28, 28), 57, 512),
    "convnet": (NetworkConfig(architecture="convnet", density=0.1), (3, 32, 32), 10, 128),
}


class Masked(nn.Module):
    """A sparse layer as a dense weight times a mask."""

    mask: Tensor

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__()
        dense = layer.dense_weight()
        self.weight = nn.Parameter(dense)
        self.bias = nn.Parameter(layer.dense_bias())
        self.register_buffer("mask", (dense != 0).float())
        self.padding = layer.padding if isinstance(layer, SparseConv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        if self.padding is None:
            return functional.linear(x, weight, self.bias)
        return functional.conv2d(x, weight, self.bias, padding=self.padding)


def masked(network: SparseNetwork) -> nn.Sequential:
    """The same network, dense with masks."""
    assert isinstance(network.body, nn.Sequential)
    return nn.Sequential(
        *[Masked(part) if isinstance(part, SparseLayer) else part for part in network.body]
    )


def freeze_share(network: SparseNetwork, share: float) -> None:
    """Freezes all connections into the first ``share`` of each hidden group's units."""
    for name, layer in network.layers.items():
        if name == "head":
            continue
        units = torch.arange(layer.shape[0]) < share * layer.shape[0]
        layer.freeze(units.unsqueeze(1).expand(layer.shape), units)


def adam_step(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """One step of ``net`` with Adam on one batch."""
    optimiser = make_optimiser(OptimiserConfig(learning_rate=1e-4), net.parameters())
    step = gradient_step(lambda x, y: functional.cross_entropy(net(x), y), optimiser)
    return lambda: step(images, labels)


def main() -> None:
    """Prints milliseconds a step, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", choices=NETS, default="mlp")
    parser.add_argument("--density", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--stable", type=float, default=0.0, help="share of units that are stable")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config, shape, outputs, batch = NETS[given.net]
    density = config.density if given.density is None else given.density
    config = NetworkConfig(architecture=config.architecture, density=density)
    images = torch.rand(given.batch or batch, *shape)
    labels = torch.randint(outputs, (len(images),))
    network = build_network(config, shape, outputs, seed=0)
    dense = masked(network)
    contestants = {"peak": product(), "masked": adam_step(dense, images, labels)}
    if given.net == "convnet":
        last = masked(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        lying = images.contiguous(memory_format=torch.channels_last)
        contestants["masked, channels-last"] = adam_step(last, lying, labels)
    freeze_share(network, given.stable)
    contestants["nispa, reference"] = adam_step(network, images, labels)
    seconds = in_turn(contestants, given.rounds)

    print(f"{given.net}, density {density}, batch {len(images)}, {given.threads} threads, ", end="")
    print(f"peak {gflops(seconds.pop('peak')):.0f} GFLOP/s")
    best = min(taken for name, taken in seconds.items() if name.startswith("masked"))
    for name, taken in seconds.items():
        print(f"{name:24} {taken * 1e3:8.1f} ms   {best / taken:5.2f} x masked at its best")
    weights = sum(math.prod(layer.shape) * layer.weights_each for layer in network.layers.values())
    live = sum(layer.live_count * layer.weights_each for layer in network.layers.values())
    print(f"weights stored: {live:,} of {weights:,}")


if __name__ == "__main__":
    main()
