from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nispa.kernels.reference import LiveValues, conv2d, linear, to_dense


def live_values(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    density: float,
    frozen: float,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> tuple[LiveValues, Tensor, Tensor]:
    """Random live values, their dense tensor, and which of its entries learn."""
    full = torch.randn(*shape, *kernel, generator=generator, dtype=dtype)
    live = torch.rand(shape, generator=generator) < density
    plastic = live & (torch.rand(shape, generator=generator) >= frozen)
    places = {
        name: mask.flatten().nonzero().flatten()
        for name, mask in (("plastic", plastic), ("frozen", live & ~plastic))
    }
    # The order in which values are stored must not matter.
    places = {
        name: place[torch.randperm(len(place), generator=generator)]
        for name, place in places.items()
    }
    rows = full.view(-1, *kernel)
    values = LiveValues(
        rows[places["plastic"]].requires_grad_(),
        places["plastic"],
        rows[places["frozen"]],
        places["frozen"],
        shape,
    )
    return values, full * spread(live, kernel), plastic


def spread(mask: Tensor, kernel: tuple[int, ...]) -> Tensor:
    return mask.view(*mask.shape, *[1] * len(kernel))


def in_order(values: LiveValues, dense: Tensor) -> Tensor:
    """The entries of a dense tensor at the plastic places, as they are stored."""
    return dense.flatten(0, len(values.shape) - 1)[values.plastic_index]


def test_to_dense_by_hand() -> None:
    live = LiveValues(
        torch.tensor([5.0, 7.0]), torch.tensor([4, 0]), torch.tensor([9.0]), torch.tensor([2]),
        (2, 3),
    )  # fmt: skip
    assert to_dense(live).tolist() == [[7.0, 0.0, 9.0], [0.0, 5.0, 0.0]]


def test_to_dense_of_kernels_by_hand() -> None:
    kernel = torch.tensor([[[1.0, 2.0]]])
    none = torch.zeros(0, 1, 2)
    live = LiveValues(kernel, torch.tensor([1]), none, torch.zeros(0, dtype=torch.int64), (1, 2))
    assert to_dense(live).tolist() == [[[[0.0, 0.0]], [[1.0, 2.0]]]]


def test_nothing_live_gives_zeros() -> None:
    none, nowhere = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert to_dense(LiveValues(none, nowhere, none, nowhere, (2, 2))).tolist() == [[0, 0], [0, 0]]


@examples(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 5),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 7),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    frozen=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_linear_agrees_with_a_masked_dense_layer(
    batch: int, inputs: int, outputs: int, density: float, frozen: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, dense, plastic = live_values((outputs, inputs), (), density, frozen, generator)
    bias, dense_bias, plastic_bias = live_values((outputs,), (), 1.0, frozen, generator)
    x = torch.randn(batch, inputs, generator=generator, dtype=torch.float64)
    compare(
        lambda x: linear(x, weight, bias),
        lambda x, w, b: functional.linear(x, w, b),
        x,
        (weight, dense, plastic),
        (bias, dense_bias, plastic_bias),
    )


@examples(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    side=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    frozen=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_conv2d_agrees_with_a_masked_dense_convolution(
    batch: int,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    side: int,
    stride: int,
    padding: int,
    density: float,
    frozen: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = (side, side)
    weight, dense, plastic = live_values((outputs, inputs), kernel, density, frozen, generator)
    bias, dense_bias, plastic_bias = live_values((outputs,), (), 1.0, frozen, generator)
    x = torch.randn(batch, inputs, *size, generator=generator, dtype=torch.float64)
    compare(
        lambda x: conv2d(x, weight, bias, stride, padding),
        lambda x, w, b: functional.conv2d(x, w, b, stride, padding),
        x,
        (weight, dense, plastic),
        (bias, dense_bias, plastic_bias),
    )


def compare(
    sparse: Any,
    dense: Any,
    x: Tensor,
    weight: tuple[LiveValues, Tensor, Tensor],
    bias: tuple[LiveValues, Tensor, Tensor],
) -> None:
    """Holds output, input gradient and the gradients of plastic values against dense ones."""
    sparse_x, dense_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    full = [values[1].clone().requires_grad_() for values in (weight, bias)]
    found, expected = sparse(sparse_x), dense(dense_x, *full)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(sparse_x.grad, dense_x.grad)
    for (live, _, plastic), reference_values in zip((weight, bias), full, strict=True):
        assert reference_values.grad is not None
        if not plastic.any():
            assert live.plastic.grad is None or live.plastic.grad.numel() == 0
        else:
            assert live.plastic.grad is not None
            torch.testing.assert_close(live.plastic.grad, in_order(live, reference_values.grad))
        assert live.frozen.grad is None


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, _, _ = live_values((3, 4), (), 0.6, 0.4, generator)
    bias, _, _ = live_values((3,), (), 1.0, 0.4, generator)
    x = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def of_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear(x, weight._replace(plastic=w), bias._replace(plastic=b))

    values = (x, weight.plastic, bias.plastic)
    assert torch.autograd.gradcheck(of_linear, values)
    assert torch.autograd.gradgradcheck(of_linear, values)

    kernels, _, _ = live_values((3, 2), (3, 3), 0.6, 0.4, generator)
    images = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def of_conv2d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return conv2d(x, kernels._replace(plastic=w), bias._replace(plastic=b), 2, 1)

    assert torch.autograd.gradcheck(of_conv2d, (images, kernels.plastic, bias.plastic))


def test_where_nothing_learns_no_gradient_is_asked_for() -> None:
    frozen = LiveValues(
        torch.zeros(0, requires_grad=True),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(2),
        torch.tensor([0, 3]),
        (2, 2),
    )
    bias = frozen._replace(frozen_index=torch.tensor([0, 1]), shape=(2,))
    assert not linear(torch.ones(1, 2), frozen, bias).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_keep_their_type(dtype: torch.dtype) -> None:
    live, _, _ = live_values((2, 3), (), 0.5, 0.5, torch.Generator().manual_seed(1), dtype)
    assert to_dense(live).dtype == dtype
