"""What is not a finite number shows where plain PyTorch shows it, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, LinearLink, Link
from nispa.kernels.native import Library
from tests.kernels.links import (
    POOL_LINK,
    Pattern,
    answer,
    link,
    live_values,
    numbers,
    run_chain,
    seeded,
)

DENSE = Pattern(1.0)  # where no connection is, nothing flows; through a dense layer, 0 * inf = NaN
NOT_FINITE = pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0, equal_nan=True)


def assert_equal_where_finite(found: Tensor, expected: Tensor) -> None:
    assert found.isfinite().tolist() == expected.isfinite().tolist()
    assert_equal(found[expected.isfinite()], expected[expected.isfinite()])


def small_network() -> list[Link]:
    return [
        link(3, 2, seeded(), DENSE, kernel=(3, 3), padding=1, relu=True),
        POOL_LINK,
        link(3, 12, seeded(1), DENSE, relu=True),
        link(2, 3, seeded(2), DENSE),
    ]


@NOT_FINITE
def test_in_an_image(kernels: Library, what: float) -> None:
    """The other images' outputs and gradients know nothing of it."""
    links = small_network()
    x = numbers((3, 2, 5, 4), seeded())
    x[1, 0, 2, 2] = what
    upstream = 2 * answer(links, x, torch.ones(3, 2)).output.float()  # of a sum of squares
    expected = answer(links, x, upstream)
    assert expected.output.isfinite().all(dim=1).tolist() == [True, False, True]
    found = run_chain(Chain(kernels, links, (2, 5, 4), True), x, upstream)
    assert_equal(found.output, expected.output)
    assert_equal(found.input_gradient[[0, 2]], expected.input_gradient[[0, 2]])
    assert not found.input_gradient[1].isfinite().all()
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_equal_where_finite(one, other)


@NOT_FINITE
@pytest.mark.parametrize("place", [0, 1], ids=["weight", "bias"])
@pytest.mark.parametrize("batch", [1, 16])
def test_in_a_value(kernels: Library, what: float, place: int, batch: int) -> None:
    """Lanes without an image, in which such a value makes NaN, must reach no gradient."""
    links = [
        link(3, 2, seeded(), DENSE, relu=True),
        link(3, 3, seeded(1), DENSE, relu=True),
        link(2, 3, seeded(2), DENSE),
    ]
    links[0].live[place].plastic.detach()[0] = what
    x = numbers((batch, 2), seeded()).abs() + 1
    upstream = torch.ones(batch, 2)
    expected = answer(links, x, upstream)
    found = run_chain(Chain(kernels, links, (2, 1, 1), True), x, upstream)
    assert_equal(found.output, expected.output)
    assert_equal_where_finite(found.input_gradient, expected.input_gradient)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_equal_where_finite(one, other)


@NOT_FINITE
@pytest.mark.parametrize("batch", [1, 16])
def test_in_a_kernel(kernels: Library, what: float, batch: int) -> None:
    links = small_network()
    links[0].live[0].plastic.detach()[0, 1, 1] = what
    x = numbers((batch, 2, 5, 4), seeded()).abs() + 1
    upstream = 2 * answer(links, x, torch.ones(batch, 2)).output.float()
    expected = answer(links, x, upstream)
    found = run_chain(Chain(kernels, links, (2, 5, 4)), x, upstream)
    assert_equal(found.output, expected.output)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_equal_where_finite(one, other)


def test_a_loss_of_nan_is_not_hidden(compiled: Library) -> None:
    links = [link(3, 2, seeded(), DENSE, relu=True), link(2, 3, seeded(1), DENSE)]
    chain = Chain(compiled, links, (2, 1, 1))
    x = torch.tensor([[1.0, 1.0], [math.nan, 1.0]])
    assert chain.gradients(x, torch.tensor([0, 1]), functional.cross_entropy).isnan()
    for values in chain.parameters():
        assert values.grad is not None
        assert values.grad.isnan().any()


def test_relu_and_pool_keep_nan(kernels: Library) -> None:
    """By hand: the weight is 1, so what goes in comes out, a ReLU and a pool later."""
    one = torch.ones(1, 1, dtype=torch.bool)
    weight = live_values(one, ~one, torch.ones(1, 1, 1, 1))
    bias = live_values(one[0], ~one[0], torch.zeros(1))
    layer = ConvolutionLink(weight, bias, relu=True)
    for place in range(4):
        image = torch.tensor([-1.0, 2.0, -3.0, 4.0])
        image[place] = math.nan
        x = image.view(1, 1, 2, 2)
        passed = Chain(kernels, [layer], (1, 2, 2))(x).flatten().tolist()
        assert [math.isnan(each) for each in passed] == [each == place for each in range(4)]
        assert Chain(kernels, [layer, POOL_LINK], (1, 2, 2))(x).isnan().all()


def test_dead_connections_carry_nothing(kernels: Library) -> None:
    """Unlike a dense weight's 0 * NaN: what is not connected cannot be harmed."""
    live = torch.tensor([[True, False], [False, True]])
    bias = live_values(torch.ones(2, dtype=torch.bool), ~live[0] & live[0], torch.zeros(2))
    chain = Chain(
        kernels, [LinearLink(live_values(live, ~live, torch.ones(2, 2)), bias)], (2, 1, 1)
    )
    found = run_chain(chain, torch.tensor([[math.nan, 3.0]]), torch.ones(1, 2))
    assert found.output[0, 0].isnan()
    assert found.output[0, 1] == 3
    assert found.gradients[0][0].isnan()
    assert found.gradients[0][1] == 3
