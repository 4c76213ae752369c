"""A training step of a network of any module, beside the same module masked and dense.

    python -m benchmarks.any_model --model resnet18 --density 0.1 --threads 2
    python -m benchmarks.any_model --model vit-tiny --device cuda --batch 128
    python -m benchmarks.any_model --arguments width=8 --side 8 --rounds 1     # to try it

``masked`` is the module of PyTorch with its parameters times masks in every forward pass, by
parametrisations, and Adam over all of it; images of more than one channel also lie channels-last,
in ``masked, channels-last``. ``dense`` is the module as it is. Each has its turn in every round;
medians are printed, one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from benchmarks.contestants import ADAM
from benchmarks.timing import in_turn, medians
from nispa.backbones import BACKBONES
from nispa.base.config import build
from nispa.kernels.dispatch import in_use
from nispa.network.backbone import parsed
from nispa.network.models import NetworkConfig, NetworkSpec
from nispa.network.traced import TracedNetwork
from nispa.training.fit import make_optimiser, network_step
from nispa.training.steps import Batch


class Mask(nn.Module):
    """Times a mask."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(module: nn.Module, network: TracedNetwork) -> nn.Module:
    """A module whose weights are live where those of a network are."""
    for name, layer in network.layers.items():
        owner = module.get_submodule(name)
        shape = (*layer.shape, *[1] * len(layer.spec.kernel))
        parametrize.register_parametrization(owner, "weight", Mask(layer.pattern.view(shape)))
    return module


def plain_step(module: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """An update of a module by Adam, as it comes."""
    optimiser = torch.optim.Adam(module.parameters(), lr=ADAM.learning_rate)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(module(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def measure(
    model: str,
    *,
    arguments: Sequence[str] = (),
    density: float = 0.1,
    batch: int = 16,
    side: int = 32,
    classes: int = 10,
    device: str = "cpu",
    rounds: int = 5,
) -> dict[str, Any]:
    """Seconds of a step, by contestant."""
    shape, place = (3, side, side), torch.device(device)
    config = build(
        NetworkConfig,
        {"architecture": model, "arguments": tuple(arguments), "density": density},
    )
    network = NetworkSpec(config, shape, classes).draw(0)
    assert isinstance(network, TracedNetwork)
    images = torch.randn(batch, *shape, device=place)
    labels = torch.randint(0, classes, (batch,), device=place)

    def module() -> nn.Module:
        return BACKBONES[model].build(shape, classes, **parsed(arguments))

    found = {
        "masked": plain_step(masked(module(), network).to(place).train(), images, labels),
        "masked, channels-last": plain_step(
            masked(module(), network).to(place, memory_format=torch.channels_last).train(),  # type: ignore[call-overload]
            images.contiguous(memory_format=torch.channels_last),
            labels,
        ),
        "dense": plain_step(module().to(place).train(), images, labels),
    }
    network.to(place).train()
    optimiser = make_optimiser(ADAM, network.parameters())
    ours = network_step(network, functional.cross_entropy, optimiser)
    index = torch.arange(batch, device=place)
    found["nispa"] = lambda: ours(Batch(images, labels, index, 1, 1))

    def timed(work: Callable[[], Tensor]) -> Callable[[], float]:
        return lambda: float(work())  # waits for a GPU

    seconds = medians(in_turn({name: timed(work) for name, work in found.items()}, rounds))
    best = min(seconds["masked"], seconds["masked, channels-last"])
    return {
        "model": model,
        "arguments": list(arguments),
        "density": density,
        "batch": batch,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "kernels": in_use().name if device == "cpu" else "PyTorch's",
        "live": network.live_count(),
        "positions": network.position_count(),
        "seconds": seconds,
        "times as fast as masked": best / seconds["nispa"],
    }


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18", choices=sorted(BACKBONES))
    parser.add_argument("--arguments", default="", help="such as width=20,blocks=4")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    given = vars(parser.parse_args())
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    given["arguments"] = [part for part in given["arguments"].split(",") if part]
    print(json.dumps(measure(given.pop("model"), **given)))


if __name__ == "__main__":
    main()
