"""The convolution kernels alone, as a share of the machine's dense peak.

    python -m benchmarks.kernels --density 0.1 --threads 2

Each convolution of the ConvNet is a chain of one layer, with as many images as the network's own
chain takes at a time, so what it reads lies in the cache as it does in training. Forward is timed
as it is. The weight gradient is timed in a chain whose input needs no gradient, the input gradient
in a chain whose values are all frozen; from both is taken the time to copy in the gradient of the
output, which in a network the layer above leaves in place. Operations are two for each live weight,
pixel and image.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.networks import NETS, Case, make_network
from benchmarks.timing import (
    convolution,
    convolution_gflops,
    gflops,
    in_turn,
    medians,
    product,
)
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, WeightedLink
from nispa.kernels.native import Library, library
from nispa.kernels.reference import LiveValues
from nispa.network.fusion import segments
from nispa.network.models import SparseNetwork

PASSES = ("forward", "weight gradient", "input gradient")


def measure(case: Case) -> dict[str, Any]:
    """Seconds and operations of each convolution's passes, and the dense peaks.

    Returns:
        ``peak`` and ``peak_convolution`` in GFLOP/s, ``images`` at a time, and ``layers``: by name
        and pass, GFLOP and seconds; empty without compiled kernels.
    """
    torch.set_num_threads(case.threads)
    found, _ = library()
    network = make_network(case)
    work: dict[str, Callable[[], object]] = {"peak": product(), "convolution": convolution()}
    operations: dict[str, float] = {}
    images = 0
    if found is not None:
        images, operations = _add_passes(work, found, network, case)
    seconds = medians(in_turn(work, case.rounds))
    layers: dict[str, dict[str, dict[str, float]]] = {}
    for name, count in operations.items():
        layer, _, which = name.partition(" ")
        copying = 0.0 if which == "forward" else seconds[f"{layer} copy"]
        layers.setdefault(layer, {})[which] = {
            "gflop": count / 1e9,
            "seconds": seconds[name] - copying,
        }
    return {
        "density": case.density,
        "threads": case.threads,
        "images": images,
        "peak": gflops(seconds["peak"]),
        "peak_convolution": convolution_gflops(seconds["convolution"]),
        "layers": layers,
    }


def _add_passes(
    work: dict[str, Callable[[], object]], found: Library, network: SparseNetwork, case: Case
) -> tuple[int, dict[str, float]]:
    """Adds what is to be timed; gives the images at a time, and operations by layer and pass."""
    shape = NETS[case.net][0]
    (whole,) = segments(network.body)
    chain = Chain(found, whole.links, shape)
    images = min(chain.at_a_time(), case.batch)
    operations = {}
    for number, link in enumerate(whole.links):
        if not isinstance(link, ConvolutionLink):
            continue
        into, out = chain.buffers[number], chain.buffers[number + 1]
        size = (into.channels, into.height, into.width)
        live = len(link.weight.plastic_index) * link.weights_each
        name = whole_name(network, number)
        bare = replace(link, relu=False)  # so that copying is the same call
        for which, call in _passes(found, bare, size, images).items():
            work[f"{name} {which}"] = call
            if which != "copy" and (number or which != "input gradient"):
                operations[f"{name} {which}"] = 2.0 * live * out.height * out.width * images
        if number == 0:  # nothing learns before the first layer
            del work[f"{name} input gradient"]
    return images, operations


def whole_name(network: SparseNetwork, number: int) -> str:
    """The layer behind link ``number`` of the network's chain; pools are links, too."""
    (whole,) = segments(network.body)
    before = sum(isinstance(link, WeightedLink) for link in whole.links[:number])
    return list(network.layers)[before]


def _passes(
    found: Library, link: ConvolutionLink, shape: tuple[int, int, int], images: int
) -> dict[str, Callable[[], object]]:
    """The three passes of one convolution, and the copying that comes with the last two."""
    threads = torch.get_num_threads()
    learning = Chain(found, [link], shape)
    frozen = Chain(found, [_all_frozen(link)], shape, input_gradient=True)
    pixels = torch.rand(images, *shape)
    spaces = [(chain, chain.forward(pixels)) for chain in (learning, frozen)]
    gradient = torch.rand(images, *learning.output_shape)
    into = [torch.empty_like(values) for values in learning.parameters()]
    _, space = spaces[0]
    last = space.images[1]

    def forward() -> None:
        found.forward(ctypes.addressof(space.layers), 1, images, True, threads)

    def backward(which: int) -> Callable[[], None]:
        chain, own = spaces[which]
        to = into if which == 0 else [torch.empty_like(values) for values in chain.parameters()]
        return lambda: chain.backward(own, gradient, to, fresh=True)

    def copy() -> None:
        stride = math.prod(learning.output_shape)
        found.fill(
            ctypes.addressof(last),
            None,
            learning.output_shape[0],
            gradient.data_ptr(),
            stride,
            None,
            images,
            threads,
        )

    calls = (forward, backward(0), backward(1), copy)
    return dict(zip((*PASSES, "copy"), calls, strict=True))


def _all_frozen(link: ConvolutionLink) -> ConvolutionLink:
    """The same layer with nothing left to learn."""
    return replace(link, weight=_freeze(link.weight), bias=_freeze(link.bias))


def _freeze(live: LiveValues) -> LiveValues:
    return live._replace(
        plastic=live.plastic[:0].detach(),
        plastic_index=live.plastic_index[:0],
        frozen=live.plastic.detach(),
        frozen_index=live.plastic_index,
    )


def reached(result: dict[str, Any], which: str | None = None) -> float:
    """GFLOP/s of all convolutions together, or of one of their passes."""
    parts = [
        numbers
        for passes in result["layers"].values()
        for name, numbers in passes.items()
        if which in (None, name)
    ]
    return float(sum(n["gflop"] for n in parts) / sum(n["seconds"] for n in parts))


def main() -> None:
    """Prints GFLOP/s by layer and pass."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    batch = NETS["convnet"][2]
    result = measure(
        Case("convnet", given.density, batch, threads=given.threads, rounds=given.rounds)
    )
    if given.json:
        print(json.dumps(result))
        return
    for layer, passes in result["layers"].items():
        for name, numbers in passes.items():
            print(f"{layer} {name:16} {numbers['gflop'] / numbers['seconds']:6.0f} GFLOP/s")
    if result["layers"]:
        print(f"all {reached(result):28.0f} GFLOP/s, {result['images']} images at a time")
    print(f"dense product {result['peak']:18.0f} GFLOP/s")
    print(f"dense convolution {result['peak_convolution']:14.0f} GFLOP/s")


if __name__ == "__main__":
    main()
