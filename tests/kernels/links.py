"""What tests of the compiled kernels share: libraries, random layers, and plain PyTorch's answers.

Most layers here hold small whole numbers. Sums of those are exact in float32 in whatever order they
are added, so results must be equal bit by bit, and ties under a ReLU or a max-pool, which such
numbers make plenty of, are the same ones for both sides.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels import native
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, LinearLink, Link, PoolLink, WeightedLink
from nispa.kernels.native import Library
from nispa.kernels.reference import LiveValues

REQUIRE = "NISPA_REQUIRE_KERNELS"
POOL_LINK = PoolLink()
EXACT = 2**24
"""Float32 holds every whole number up to this one."""


def instruction_sets() -> list[str]:
    """Those that are compiled and that this processor has."""
    return [isa for isa in native.ISAS if native.compiled(isa) and native._supported(isa)]


@functools.cache
def load(isa: str) -> Library:
    path = native.compiled(isa)
    assert path is not None
    return Library(path)


def without_kernels(reason: str) -> None:
    """Skips the test, or fails it where kernels must be there."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason}, though {REQUIRE}=1")
    pytest.skip(reason)


def fastest() -> Library:
    """The library that suits this processor best."""
    found = instruction_sets()
    if not found:
        without_kernels("no compiled kernels are installed")
    return load(found[0])


# Random layers.


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(shape: Sequence[int], generator: torch.Generator, *, whole: bool = True) -> Tensor:
    """Normal numbers, or whole ones in [-2, 2]."""
    if whole:
        return torch.randint(-2, 3, tuple(shape), generator=generator).float()
    return torch.randn(tuple(shape), generator=generator)


class Pattern(NamedTuple):
    """How live values are drawn: shares of positions, and of the live ones."""

    density: float = 0.5
    frozen: float = 0.0
    frozen_bias: float = 0.0


def live_values(live: Tensor, frozen: Tensor, values: Tensor) -> LiveValues:
    """The values at ``live`` positions, in order; those also in ``frozen`` do not learn.

    Args:
        live: ``shape`` bool.
        frozen: ``shape`` bool.
        values: ``(*shape, *kernel)``.
    """
    rows = values.flatten(0, live.dim() - 1)
    plastic_index = (live & ~frozen).flatten().nonzero().flatten()
    frozen_index = (live & frozen).flatten().nonzero().flatten()
    return LiveValues(
        rows[plastic_index].clone().requires_grad_(),
        plastic_index,
        rows[frozen_index].clone(),
        frozen_index,
        tuple(live.shape),
    )


def link(
    rows: int,
    columns: int,
    generator: torch.Generator,
    pattern: Pattern = Pattern(),  # noqa: B008  # a tuple
    *,
    kernel: tuple[int, ...] = (),
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    whole: bool = True,
) -> WeightedLink:
    """A random layer, a convolution where there is a kernel. All units have a bias."""
    live, frozen = (
        torch.rand(rows, columns, generator=generator) < share
        for share in (pattern.density, pattern.frozen)
    )
    frozen_bias = torch.rand(rows, generator=generator) < pattern.frozen_bias
    weight = numbers((rows, columns, *kernel), generator, whole=whole)
    bias = numbers((rows,), generator, whole=whole)
    values = (
        live_values(live, frozen, weight),
        live_values(torch.ones(rows, dtype=torch.bool), frozen_bias, bias),
    )
    return ConvolutionLink(*values, relu, stride, padding) if kernel else LinearLink(*values, relu)


def shape_of(x: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of images or of vectors of features."""
    channels, height, width = (*x.shape[1:], 1, 1)[:3]
    return channels, height, width


PATTERNS = {
    "plastic": Pattern(0.4),
    "mixed": Pattern(0.6, 0.5, 0.5),
    "frozen": Pattern(0.5, 1.0, 1.0),
    "dense": Pattern(1.0),
    "dense and mixed": Pattern(1.0, 0.5, 0.5),
    "empty": Pattern(0.0),
    "empty, biases frozen": Pattern(0.0, 0.0, 1.0),
    "frozen weights, plastic biases": Pattern(0.5, 1.0, 0.0),
    "plastic weights, frozen biases": Pattern(0.5, 0.0, 1.0),
}


def conv(rows: int, columns: int, side: int = 3, seed: int = 0, **options: Any) -> WeightedLink:
    return link(
        rows, columns, seeded(seed), PATTERNS["mixed"], kernel=(side, side), **options
    )  # fmt: skip


def full(rows: int, columns: int, seed: int = 0, **options: Any) -> WeightedLink:
    return link(rows, columns, seeded(seed), Pattern(0.3, 0.4, 0.4), **options)


CHAINS: dict[str, tuple[tuple[int, ...], list[Link]]] = {
    "MLP": ((11,), [full(9, 11, relu=True), full(7, 9, 1, relu=True), full(3, 7, 2)]),
    "MLP without ReLU": ((6,), [full(5, 6), full(4, 5, 1), full(3, 4, 2)]),
    "MLP, ReLU at the end": ((6,), [full(5, 6), full(4, 5, 1, relu=True)]),
    "pools drop a row and a column": (
        (2, 11, 9),
        [
            conv(3, 2, padding=1, relu=True),
            POOL_LINK,
            conv(4, 3, seed=1, padding=1, relu=True),
            POOL_LINK,
            full(3, 4 * 2 * 2, 2),
        ],
    ),
    "a pool drops a row": ((2, 7, 6), [conv(3, 2, padding=1, relu=True), POOL_LINK]),
    "a pool drops a column": ((2, 6, 7), [conv(3, 2, padding=1, relu=True), POOL_LINK]),
    "a pool without a ReLU": ((2, 7, 7), [conv(3, 2, padding=1), POOL_LINK, full(3, 27, 1)]),
    "a pool at the start": ((2, 7, 6), [POOL_LINK, conv(3, 2, relu=True)]),
    "pools in a row": (
        (1, 17, 13),
        [conv(3, 1, padding=1), POOL_LINK, POOL_LINK, POOL_LINK, full(4, 6, 1)],
    ),
    "a pool down to one pixel": ((2, 3, 3), [conv(3, 2, padding=1), POOL_LINK, full(2, 3, 1)]),
    "flatten without a pool": ((2, 5, 4), [conv(3, 2, padding=1, relu=True), full(4, 60, 1)]),
    "flatten, no ReLU": ((2, 5, 4), [conv(3, 2, side=2), full(4, 36, 1, relu=True)]),
    "kernel 5 after kernel 3": (
        (2, 9, 8),
        [conv(3, 2, padding=1, relu=True), conv(2, 3, side=5, seed=1, padding=2), full(2, 144, 2)],
    ),
    "kernel 3 after kernel 5": (
        (2, 9, 8),
        [conv(3, 2, side=5, relu=True), conv(2, 3, seed=1, padding=1), full(2, 40, 2)],
    ),
    "padding above the next kernel": (
        (1, 4, 5),
        [conv(2, 1, side=1, padding=3, relu=True), conv(2, 2, side=2, seed=1, padding=3)],
    ),
    "stride after stride": (
        (2, 19, 17),
        [
            conv(3, 2, stride=2, padding=1, relu=True),
            conv(3, 3, seed=1, stride=3, padding=2, relu=True),
            full(2, 48, 2),
        ],
    ),
    "a window wider than the image": ((1, 2, 2), [conv(2, 1, side=5, padding=2, relu=True)]),
    "one layer, ReLU": ((4,), [full(3, 4, relu=True)]),
}


# Large enough that work is shared out to threads.
LARGE: dict[str, tuple[tuple[int, ...], list[Link]]] = {
    "MLP": (
        (200,),
        [
            link(150, 200, seeded(), Pattern(0.9, 0.5, 0.5), relu=True),
            link(130, 150, seeded(1), Pattern(0.9, 0.1, 0.5), relu=True),
            link(5, 130, seeded(2), Pattern(0.1)),
        ],
    ),
    "convnet": (
        (6, 15, 13),
        [
            conv(8, 6, padding=1, relu=True),
            POOL_LINK,
            conv(7, 8, side=5, seed=1, padding=2, relu=True),
            conv(6, 7, seed=2, stride=2, padding=1, relu=True),
            full(5, 6 * 4 * 3, 3),
        ],
    ),
}


# What plain PyTorch makes of them.


class Answer(NamedTuple):
    """An output, and the gradients of the input and of plastic values, layer by layer."""

    output: Tensor
    input_gradient: Tensor
    gradients: list[Tensor]


def spread_out(live: LiveValues) -> Tensor:
    """Live values at their places in a tensor of zeros, float64."""
    full = torch.zeros(*live.shape, *live.plastic.shape[1:], dtype=torch.float64)
    rows = full.view(-1, *live.plastic.shape[1:])
    rows[live.plastic_index] = live.plastic.detach().double()
    rows[live.frozen_index] = live.frozen.double()
    return full


def run_dense(links: Sequence[Link], x: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Plain PyTorch through dense weights and biases."""
    places = iter(leaves)
    for each in links:
        if isinstance(each, PoolLink):
            x = functional.max_pool2d(x, 2)
        elif isinstance(each, LinearLink):
            x = functional.linear(x.flatten(1), next(places), next(places))
        else:
            assert isinstance(each, ConvolutionLink)
            x = functional.conv2d(x, next(places), next(places), each.stride, each.padding)
        x = functional.relu(x) if each.relu else x
    return x


def answer(links: Sequence[Link], x: Tensor, upstream: Tensor) -> Answer:
    """What plain PyTorch gives in float64."""
    x = x.detach().double().requires_grad_()
    lives = [live for each in links for live in each.live]
    leaves = [spread_out(live).requires_grad_() for live in lives]
    output = run_dense(links, x, leaves)
    input_gradient, *gradients = torch.autograd.grad(
        output, [x, *leaves], upstream.double(), materialize_grads=True
    )
    picked = [
        gradient.flatten(0, len(live.shape) - 1)[live.plastic_index]
        for live, gradient in zip(lives, gradients, strict=True)
    ]
    return Answer(output.detach(), input_gradient, picked)


def largest_sum(links: Sequence[Link], x: Tensor, upstream: Tensor) -> float:
    """A bound on every partial sum, forward and backward: nothing cancels, pools add."""
    x = x.detach().abs().double().requires_grad_()
    leaves = [spread_out(live).abs().requires_grad_() for each in links for live in each.live]
    places = iter(leaves)
    seen = [x]
    for each in links:
        here = seen[-1]
        if isinstance(each, PoolLink):
            here = 4 * functional.avg_pool2d(here, 2)
        elif isinstance(each, LinearLink):
            here = functional.linear(here.flatten(1), next(places), next(places))
        else:
            assert isinstance(each, ConvolutionLink)
            here = functional.conv2d(here, next(places), next(places), each.stride, each.padding)
        seen.append(here)
    gradients = torch.autograd.grad(
        seen[-1], [*seen, *leaves], upstream.abs().double(), materialize_grads=True
    )
    return max(each.max().item() for each in (*seen, *gradients) if each.numel())


def output_of(links: Sequence[Link], x: Tensor) -> tuple[int, ...]:
    """Shape of the output."""
    leaves = [spread_out(live) for each in links for live in each.live]
    return tuple(run_dense(links, x.detach().double(), leaves).shape)


def run_chain(chain: Chain, x: Tensor, upstream: Tensor) -> Answer:
    """What the kernels give."""
    x = x.detach().requires_grad_(chain.input_gradient)
    output = chain(x)
    inputs = [x, *chain.parameters()]
    found = [torch.zeros_like(each) for each in inputs]
    if output.requires_grad:
        chosen = inputs if chain.input_gradient else inputs[1:]
        found[-len(chosen) :] = torch.autograd.grad(
            output, chosen, upstream, materialize_grads=True
        )
    return Answer(output.detach(), found[0], found[1:])


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Equal up to a share of the largest entry; NaN nowhere."""
    assert found.shape == expected.shape
    if found.numel():
        most = float(expected.abs().max())
        assert float((found.double() - expected).abs().max()) <= tolerance * most


def assert_agrees(
    library: Library,
    links: Sequence[Link],
    x: Tensor,
    upstream: Tensor,
    *,
    tolerance: float = 0.0,
    input_gradient: bool = True,
) -> None:
    """Holds a chain against plain PyTorch: output and all gradients."""
    expected = answer(links, x, upstream)
    chain = Chain(library, links, shape_of(x), input_gradient)
    found = run_chain(chain, x, upstream)
    assert_same(found.output, expected.output, tolerance)
    if input_gradient:
        assert_same(found.input_gradient, expected.input_gradient, tolerance)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_same(one, other, tolerance)


def check(library: Library, links: list[Link], x: Tensor, tolerance: float = 0.0) -> None:
    """The same for a random gradient of the output, whole numbers where all are."""
    upstream = numbers(output_of(links, x), seeded(99), whole=tolerance == 0)
    assert_agrees(library, links, x, upstream, tolerance=tolerance)
