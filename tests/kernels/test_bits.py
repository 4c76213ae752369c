"""What must be the same bit for bit, whatever happens around it. Numbers here are not whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.chain import Chain
from nispa.kernels.links import Link, WeightedLink
from nispa.kernels.native import Library
from nispa.kernels.reference import LiveValues
from tests.kernels.links import (
    POOL_LINK,
    Pattern,
    assert_same,
    instruction_sets,
    link,
    live_values,
    load,
    numbers,
    run_chain,
    seeded,
    shape_of,
)

Net = tuple[list[Link], tuple[int, ...]]
Make = Callable[..., Net]


def mlp(pattern: Pattern = Pattern(0.5, 0.5, 0.5), seed: int = 0) -> Net:  # noqa: B008
    generator = seeded(seed)
    sizes = (37, 23, 19, 5)
    return [
        link(rows, columns, generator, pattern, relu=rows != 5, whole=False)
        for columns, rows in itertools.pairwise(sizes)
    ], (37,)


def large_mlp() -> Net:
    """Large enough that work is shared out to threads; so is the next."""
    generator, pattern = seeded(), Pattern(0.9, 0.3, 0.5)
    return [
        link(150, 200, generator, pattern, relu=True, whole=False),
        link(130, 150, generator, pattern, relu=True, whole=False),
        link(5, 130, generator, pattern, whole=False),
    ], (200,)


def large_convnet() -> Net:
    generator, pattern = seeded(), Pattern(0.9, 0.3, 0.5)
    return [
        link(8, 6, generator, pattern, kernel=(3, 3), padding=1, relu=True, whole=False),
        POOL_LINK,
        link(7, 8, generator, pattern, kernel=(5, 5), padding=2, relu=True, whole=False),
        link(6, 7, generator, pattern, kernel=(3, 3), stride=2, padding=1, whole=False),
        link(5, 6 * 4 * 3, generator, pattern, whole=False),
    ], (6, 15, 13)


def convnet(pattern: Pattern = Pattern(0.6, 0.5, 0.5), seed: int = 0) -> Net:  # noqa: B008
    generator = seeded(seed)
    return [
        link(6, 3, generator, pattern, kernel=(3, 3), padding=1, relu=True, whole=False),
        POOL_LINK,
        link(5, 6, generator, pattern, kernel=(5, 5), padding=2, relu=True, whole=False),
        link(7, 5, generator, pattern, kernel=(3, 3), stride=2, padding=1, relu=True, whole=False),
        link(5, 7 * 3 * 2, generator, pattern, whole=False),
    ], (3, 11, 8)


NETS = pytest.mark.parametrize("make", [mlp, convnet])
LARGE_NETS = pytest.mark.parametrize("make", [large_mlp, large_convnet])


def outputs(chain: Chain, x: Tensor) -> Tensor:
    with torch.no_grad():
        return chain(x)


@NETS
def test_an_image_does_not_depend_on_its_batch(kernels: Library, make: Make) -> None:
    links, shape = make()
    x = numbers((70, *shape), seeded(1), whole=False)
    chain = Chain(kernels, links, shape_of(x))
    alone = torch.cat([outputs(chain, image[None]) for image in x])
    for size in (2, 7, 15, 16, 17, 31, 33, 48, 64, 70):
        for start in (0, 1, 70 - size):
            part = slice(start, start + size)
            assert torch.equal(outputs(chain, x[part]), alone[part])
    order = torch.randperm(70, generator=seeded(2))
    assert torch.equal(outputs(chain, x[order]), alone[order])


@NETS
def test_a_pass_with_gradients_has_the_same_outputs(kernels: Library, make: Make) -> None:
    links, shape = make()
    x = numbers((35, *shape), seeded(1), whole=False)
    expected = outputs(Chain(kernels, links, shape_of(x)), x)
    for input_gradient in (False, True):
        chain = Chain(kernels, links, shape_of(x), input_gradient)
        assert torch.equal(run_chain(chain, x, torch.ones(35, 5)).output, expected)


@LARGE_NETS
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing(kernels: Library, make: Make) -> None:
    links, shape = make()
    for batch in (1, 20, 260):
        x = numbers((batch, *shape), seeded(batch), whole=False)
        upstream = numbers((batch, 5), seeded(3), whole=False)
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            answer = run_chain(Chain(kernels, links, shape_of(x), True), x, upstream)
            found.append((answer.output, answer.input_gradient, *answer.gradients))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


@LARGE_NETS
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_are_one(kernels: Library, make: Make, count: int) -> None:
    torch.set_num_threads(count)
    links, shape = make()
    x = numbers((260, *shape), seeded(1), whole=False)
    labels = torch.arange(260) % 5
    found = []
    for _ in range(2):
        chain = Chain(kernels, links, shape_of(x))
        loss = chain.gradients(x, labels, functional.cross_entropy)
        found.append([loss, *(values.grad for values in chain.parameters())])
        for values in chain.parameters():
            values.grad = None
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def freeze(live: LiveValues, chosen: Tensor) -> LiveValues:
    """Turns the plastic values at ``chosen`` places among them into frozen ones."""
    index = torch.cat([live.frozen_index, live.plastic_index[chosen]])
    order = index.argsort()
    plastic = live.plastic.detach()
    return LiveValues(
        plastic[~chosen].clone().requires_grad_(),
        live.plastic_index[~chosen],
        torch.cat([live.frozen, plastic[chosen]])[order],
        index[order],
        live.shape,
    )


@NETS
def test_freezing_changes_no_output(kernels: Library, make: Make) -> None:
    links, shape = make(Pattern(0.5))
    x = numbers((21, *shape), seeded(1), whole=False)
    expected = outputs(Chain(kernels, links, shape_of(x)), x)
    generator = seeded(2)
    chain = Chain(kernels, links, shape_of(x))
    for share in (0.05, 0.1, 0.3, 0.5, 1.0):  # of what is left: more and more is frozen
        for number, each in enumerate(links):
            if isinstance(each, WeightedLink):
                chosen = [
                    torch.rand(len(live.plastic), generator=generator) < share
                    for live in (each.weight, each.bias)
                ]
                weight, bias = freeze(each.weight, chosen[0]), freeze(each.bias, chosen[1])
                links[number] = replace(each, weight=weight, bias=bias)
        chain.update(links)
        assert torch.equal(outputs(chain, x), expected)
        assert torch.equal(outputs(Chain(kernels, links, shape_of(x)), x), expected)
    assert not any(len(live.plastic) for each in links for live in each.live)


def keep_frozen(live: LiveValues, grown: Tensor, generator: torch.Generator) -> LiveValues:
    """Other plastic values at other places, some where ``grown`` allows; frozen ones stay."""
    free = torch.ones(grown.numel(), dtype=torch.bool)
    free[live.frozen_index] = False
    drawn = torch.rand(grown.numel(), generator=generator) < 0.5
    index = (free & drawn & grown.flatten()).nonzero().flatten()
    values = numbers((len(index), *live.plastic.shape[1:]), generator, whole=False)
    return live._replace(plastic=values.requires_grad_(), plastic_index=index)


@NETS
def test_constant_units_stay_through_any_training(kernels: Library, make: Make) -> None:
    """Half of each layer's units are frozen and fed by such units; all else is drawn anew."""
    links, shape = make(Pattern(0.7))
    x = numbers((21, *shape), seeded(1), whole=False)
    constant = torch.ones(shape[0], dtype=torch.bool)
    for number, each in enumerate(links):
        if not isinstance(each, WeightedLink):
            continue
        rows, columns = each.weight.shape
        fed = constant.repeat_interleave(columns // len(constant))
        constant = torch.arange(rows) < rows // 2
        kept = constant[:, None] & fed
        live = torch.zeros(rows * columns, dtype=torch.bool)
        live[each.weight.plastic_index] = True
        live = live.view(rows, columns) & ~(constant[:, None] & ~fed)
        values = numbers((*live.shape, *each.weight.plastic.shape[1:]), seeded(7), whole=False)
        weight = live_values(live, kept, values)
        bias = freeze(each.bias, constant)
        links[number] = replace(each, weight=weight, bias=bias)
    generator = seeded(3)

    def constants(links: Sequence[Link]) -> list[Tensor]:
        found = []
        for depth in range(1, len(links) + 1):
            out = outputs(Chain(kernels, links[:depth], shape_of(x)), x)
            found.append(out[:, : out.shape[1] // 2])
        return found

    before = constants(links)
    for _ in range(3):
        for number, each in enumerate(links):
            if not isinstance(each, WeightedLink):
                continue
            rows, columns = each.weight.shape
            changing = (torch.arange(rows) >= rows // 2)[:, None].expand(rows, columns)
            weight = keep_frozen(each.weight, changing, generator)
            learned = numbers((len(each.bias.plastic),), generator, whole=False).requires_grad_()
            links[number] = replace(each, weight=weight, bias=each.bias._replace(plastic=learned))
        for one, other in zip(before, constants(links), strict=True):
            assert torch.equal(one, other)
    assert all(bool(each.any()) for each in before)


@NETS
def test_instruction_sets_agree(make: Make, compiled: Library) -> None:
    """A ReLU or pool may see a sum on the other side of a tie: numbers are drawn where none is."""
    links, shape = make()
    x = numbers((35, *shape), seeded(1), whole=False)
    upstream = numbers((35, 5), seeded(2), whole=False)
    first = run_chain(Chain(compiled, links, shape_of(x), True), x, upstream)
    for isa in instruction_sets():
        found = run_chain(Chain(load(isa), links, shape_of(x), True), x, upstream)
        assert_same(found.output, first.output.double(), 1e-6)
        assert_same(found.input_gradient, first.input_gradient.double(), 1e-6)
        for one, other in zip(found.gradients, first.gradients, strict=True):
            assert_same(one, other.double(), 1e-5)
