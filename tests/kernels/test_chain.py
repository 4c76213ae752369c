from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels import chain as chain_module
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, LinearLink
from nispa.kernels.native import Library
from nispa.training.fit import ClassMask
from tests.kernels.links import (
    CHAINS,
    PATTERNS,
    POOL_LINK,
    Pattern,
    answer,
    assert_agrees,
    assert_same,
    check,
    conv,
    full,
    link,
    live_values,
    numbers,
    output_of,
    run_chain,
    seeded,
    shape_of,
    spread_out,
)

BATCHES = (1, 15, 16, 17, 33, 130)
KERNELS = ((1, 1), (2, 2), (3, 3), (5, 5), (1, 3), (3, 1), (2, 5))


# One layer.


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_agrees_with_pytorch(kernels: Library, name: str, batch: int) -> None:
    for inputs, outputs in ((1, 1), (7, 1), (19, 13), (40, 9)):
        generator = seeded(batch + inputs)
        layer = link(outputs, inputs, generator, PATTERNS[name])
        check(kernels, [layer], numbers((batch, inputs), generator))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv2d_agrees_with_pytorch(kernels: Library, kernel: tuple[int, int], stride: int) -> None:
    patterns = itertools.cycle(PATTERNS.values())
    sizes = itertools.cycle([(5, 6), (7, 5), (9, 10), (13, 8), (6, 19)])
    for padding in range(max(kernel) + 1):
        generator = seeded(padding)
        options: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
        layer = link(4, 3, generator, next(patterns), **options)
        check(kernels, [layer], numbers((17, 3, *next(sizes)), generator))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2)], ids=str)
def test_conv2d_agrees_for_every_pattern(
    kernels: Library, name: str, kernel: tuple[int, int]
) -> None:
    for seed, batch in enumerate((3, 33)):
        generator = seeded(seed)
        layer = link(5, 4, generator, PATTERNS[name], kernel=kernel, padding=1)
        check(kernels, [layer], numbers((batch, 4, 6, 5), generator))


@pytest.mark.parametrize("side", range(1, 20))
def test_conv2d_agrees_for_every_size(kernels: Library, side: int) -> None:
    generator = seeded(side)
    for padding in (0, 1, 2):
        size = (side, 20 - side)
        if min(size) + 2 * padding < 3:
            continue
        layer = link(3, 2, generator, PATTERNS["mixed"], kernel=(3, 3), padding=padding)
        check(kernels, [layer], numbers((BATCHES[side % 6] % 40, 2, *size), generator))


@pytest.mark.parametrize("batch", BATCHES)
def test_conv2d_agrees_for_every_batch(kernels: Library, batch: int) -> None:
    generator = seeded(batch)
    for kernel, stride in (((3, 3), 1), ((3, 3), 2), ((5, 5), 1)):
        layer = link(3, 2, generator, PATTERNS["mixed"], kernel=kernel, padding=1, stride=stride)
        check(kernels, [layer], numbers((batch, 2, 5, 7), generator))


def test_normal_numbers_agree_up_to_rounding(kernels: Library) -> None:
    generator = seeded()
    dense = link(30, 90, generator, PATTERNS["mixed"], whole=False)
    check(kernels, [dense], numbers((130, 90), generator, whole=False), 1e-6)
    for kernel, stride in (((3, 3), 1), ((5, 5), 1), ((3, 3), 2)):
        layer = link(
            8, 6, generator, PATTERNS["mixed"], kernel=kernel, stride=stride, padding=1, whole=False
        )
        check(kernels, [layer], numbers((33, 6, 11, 9), generator, whole=False), 2e-6)


def test_rows_and_columns_without_a_connection(kernels: Library) -> None:
    live = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    frozen = torch.tensor(
        [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool
    )
    no, generator = torch.zeros(4, dtype=torch.bool), seeded()
    bias = live_values(~no, ~no & torch.tensor([False, True, False, False]), torch.arange(1.0, 5.0))
    dense = LinearLink(live_values(live, frozen, numbers((4, 4), generator)), bias)
    check(kernels, [dense], numbers((5, 4), generator))
    values = numbers((4, 4, 3, 3), generator)
    layer = ConvolutionLink(live_values(live, frozen, values), bias, padding=1)
    check(kernels, [layer], numbers((5, 4, 5, 6), generator))


def strided(x: Tensor) -> dict[str, Tensor]:
    """The same numbers in other orders of memory."""
    every = torch.zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    return {
        "every other": every.copy_(x),
        "turned": turned,
        "one image many times": x[:1].expand_as(x),
        "within a row": torch.cat([x, x], dim=1)[:, x.shape[1] :],
        "reversed": x.flip(0),
    }


@pytest.mark.parametrize(
    "how", ["every other", "turned", "one image many times", "within a row", "reversed"]
)
def test_any_order_of_memory(compiled: Library, how: str) -> None:
    generator = seeded()
    dense = link(5, 8, generator, PATTERNS["mixed"])
    check(compiled, [dense], strided(numbers((17, 8), generator))[how])
    layer = link(5, 4, generator, PATTERNS["mixed"], kernel=(3, 3), padding=1)
    check(compiled, [layer], strided(numbers((17, 4, 6, 5), generator))[how])


def test_channels_last_images(compiled: Library) -> None:
    generator = seeded()
    links = [link(4, 3, generator, kernel=(3, 3), relu=True), POOL_LINK]
    images = numbers((17, 3, 9, 7), generator).to(memory_format=torch.channels_last)
    upstream = numbers(output_of(links, images), generator).to(memory_format=torch.channels_last)
    assert_agrees(compiled, links, images, upstream)


def test_an_output_gradient_without_memory_of_its_own(compiled: Library) -> None:
    """As the gradient of a sum is: one number, seen everywhere."""
    generator = seeded()
    layer = link(4, 3, generator, kernel=(3, 3))
    images = numbers((5, 3, 6, 6), generator)
    assert_agrees(compiled, [layer], images, torch.ones(1).expand(5, 4, 4, 4))


def test_an_input_that_needs_no_gradient_gets_none(kernels: Library) -> None:
    generator = seeded()
    links = [
        link(4, 3, generator, PATTERNS["mixed"], kernel=(3, 3), relu=True),
        link(2, 64, generator, PATTERNS["mixed"]),
    ]
    images = numbers((17, 3, 6, 6), generator)
    assert_agrees(kernels, links, images, numbers((17, 2), generator), input_gradient=False)
    chain = Chain(kernels, links, (3, 6, 6))
    assert not images.requires_grad
    chain(images).sum().backward()
    assert images.grad is None


def test_nothing_that_learns_gives_no_graph(compiled: Library) -> None:
    generator = seeded()
    layer = link(4, 3, generator, PATTERNS["frozen"])
    x = numbers((5, 3), generator)
    assert not Chain(compiled, [layer], shape_of(x))(x).requires_grad
    with torch.no_grad():
        assert not Chain(compiled, [link(4, 3, generator)], shape_of(x))(x).requires_grad


# Several layers.


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch", [1, 16, 35])
def test_chains_agree_with_pytorch(kernels: Library, name: str, batch: int) -> None:
    shape, links = CHAINS[name]
    generator = seeded(batch)
    x = numbers((batch, *shape), generator)
    upstream = numbers(output_of(links, x), generator)
    assert_agrees(kernels, links, x, upstream)
    assert_agrees(kernels, links, x, upstream, input_gradient=False)


def test_a_chain_answers_the_same_when_used_again(kernels: Library) -> None:
    """Buffers are used again, their borders with them; other sizes come between."""
    shape, links = CHAINS["kernel 5 after kernel 3"]
    chain = Chain(kernels, links, (2, 9, 8), True)
    for seed, batch in enumerate((5, 17, 5, 40, 17, 5, 1)):
        x = numbers((batch, *shape), seeded(seed))
        upstream = numbers(output_of(links, x), seeded(seed))
        expected, found = answer(links, x, upstream), run_chain(chain, x, upstream)
        assert_same(found.output, expected.output)
        assert_same(found.input_gradient, expected.input_gradient)
        for one, other in zip(found.gradients, expected.gradients, strict=True):
            assert_same(one, other)


def test_borders_stay_zero(kernels: Library) -> None:
    shape, links = CHAINS["kernel 5 after kernel 3"]
    chain = Chain(kernels, links, (2, 9, 8), True)
    x = numbers((17, *shape), seeded())
    run_chain(chain, x, numbers(output_of(links, x), seeded()))
    (workspace,) = chain._free[-(-17 // kernels.lanes)]
    start = 0
    for buffer in chain.buffers:
        high, wide = buffer.height + 2 * buffer.pad, buffer.width + 2 * buffer.pad
        size = buffer.vectors * kernels.lanes * workspace.slabs
        pixels = workspace.activations[start : start + size].view(-1, high, wide, kernels.lanes)
        start += size
        inner = slice(buffer.pad, -buffer.pad or None)
        inside = pixels[:, inner, inner].abs().sum()
        assert float(pixels.abs().sum()) == float(inside)
    assert start == len(workspace.activations)


# Gradients part by part.


def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets chains work on as few images at a time as they can."""
    monkeypatch.setattr(chain_module, "CACHE", 1)


def squares(logits: Tensor, labels: Tensor) -> Tensor:
    """A mean over samples whose gradient is exact for whole numbers and 2^k samples."""
    return (logits.square().sum(dim=1) * labels).mean()


@pytest.mark.parametrize("count", [1, 16, 64, 128])
def test_gradients_part_by_part_are_those_of_the_whole_batch(
    kernels: Library, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    small_cache(monkeypatch)
    links = [conv(3, 2, padding=1, relu=True), POOL_LINK, full(2, 12, 1)]
    chain = Chain(kernels, links, (2, 5, 4))
    assert chain.at_a_time() == kernels.lanes * torch.get_num_threads()
    x, labels = numbers((count, 2, 5, 4), seeded()), torch.arange(count) % 3

    dense = [spread_out(live).requires_grad_() for each in links for live in each.live]
    hidden = functional.relu(functional.conv2d(x.double(), dense[0], dense[1], padding=1))
    logits = functional.linear(functional.max_pool2d(hidden, 2).flatten(1), dense[2], dense[3])
    expected = squares(logits, labels)
    expected.backward()

    for _ in range(2):  # the second time over the first one's
        value = chain.gradients(x, labels, squares)
        assert not value.requires_grad
        assert float(value) == pytest.approx(expected.item(), rel=1e-6)
        for values, whole, live in zip(
            chain.parameters(), dense, (live for each in links for live in each.live), strict=True
        ):
            assert values.grad is not None
            assert whole.grad is not None
            assert_same(
                values.grad, whole.grad.flatten(0, len(live.shape) - 1)[live.plastic_index], 1e-7
            )


@pytest.mark.parametrize("how", ["slice", "zero"])
def test_a_loss_with_a_gradient_of_its_own_gives_the_same_bits(
    compiled: Library, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    small_cache(monkeypatch)
    chain = Chain(compiled, [full(3, 5, 1)], (5, 1, 1))
    x, loss = numbers((50, 5), seeded()), ClassMask((0, 2), 3, how, torch.device("cpu")).loss
    found = []
    for each in (loss, lambda logits, labels: loss(logits, labels)):
        value = chain.gradients(x, 2 * (torch.arange(50) % 2), each)
        found.append([value, *(values.grad for values in chain.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["slice", "zero"])
@pytest.mark.parametrize("shape", [(5,), (2, 5, 4)])
def test_reading_some_outputs_changes_no_bit(
    compiled: Library, how: str, shape: tuple[int, ...]
) -> None:
    """Also where gradients of an earlier pass are written over, and another wrote into them."""
    flat = len(shape) == 1
    first = full(8, 5, relu=True) if flat else conv(8, 2, padding=1, relu=True)
    links = [first, link(6, 8 if flat else 160, seeded(1), Pattern(0.3, 0.3, 0.3))]
    loss = ClassMask((1, 4), 6, how, torch.device("cpu")).loss
    x, labels = numbers((50, *shape), seeded()), 1 + 3 * (torch.arange(50) % 2)
    found = []
    for outputs in (None, (1, 4)):
        chain = Chain(compiled, links, shape_of(x), outputs=outputs)
        for values in chain.parameters():
            values.grad = torch.full_like(values, 7.0)
        value = chain.gradients(x, labels, loss, reuse=True)
        found.append([value, *(values.grad for values in chain.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_parts_of_an_uneven_batch_weigh_by_their_images(
    compiled: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image more than a part holds: a mean of means would count it many times."""
    small_cache(monkeypatch)
    weight = live_values(
        torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1).bool(), torch.ones(1, 1)
    )
    bias = live_values(torch.ones(1, dtype=torch.bool), torch.zeros(1).bool(), torch.zeros(1))
    chain = Chain(compiled, [LinearLink(weight, bias)], (1, 1, 1))
    count = chain.at_a_time() + 1
    x = torch.zeros(count, 1)
    x[-1] = count
    value = chain.gradients(x, torch.zeros(count), lambda logits, _: logits.mean())
    assert float(value) == pytest.approx(1.0)
    assert weight.plastic.grad is not None
    assert weight.plastic.grad.item() == pytest.approx(1.0)


def test_backward_adds_to_what_is_there_unless_told_to_start_afresh(kernels: Library) -> None:
    for shape, links in (
        ((5,), [full(4, 5, relu=True), full(3, 4, 1)]),
        ((2, 5, 4), [conv(3, 2, relu=True), conv(2, 3, side=2, seed=1, stride=2)]),
    ):
        x = numbers((17, *shape), seeded())
        above = numbers(output_of(links, x), seeded(1))
        expected = answer(links, x, above).gradients
        chain = Chain(kernels, links, shape_of(x))
        into = [torch.full_like(values, 7.0) for values in chain.parameters()]
        for fresh, passes in ((True, 1), (False, 2), (False, 3), (True, 1)):
            workspace = chain.forward(x)
            chain.backward(workspace, above, into, fresh=fresh)
            chain.give_back(workspace)
            for found, once in zip(into, expected, strict=True):
                assert_same(found, passes * once)
