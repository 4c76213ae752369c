"""A chain as PyTorch's autograd sees it, and the gradient of a loss by its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nispa.kernels.cached import Images
from nispa.kernels.links import Link
from nispa.kernels.native import CHOICE
from nispa.kernels.versions import change_count
from nispa.kernels.workspace import FLOATS

if TYPE_CHECKING:
    from nispa.kernels.chain import Chain


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A loss and its gradient, ``(batch, outputs)``, both detached.

    A loss with a method ``value_and_gradient(logits, labels)`` computes them itself, which is
    faster than recording a graph.
    """
    in_closed_form = getattr(loss, "value_and_gradient", None)
    if in_closed_form is not None:
        value, gradient = in_closed_form(logits, labels)
        return value, gradient
    logits.requires_grad_()
    value = loss(logits.clone(), labels)  # a loss may change its argument in place
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


class RunChain(torch.autograd.Function):
    """A chain as one operation of autograd, for passes that :meth:`Chain.gradients` cannot make.

    The workspace goes with the operation until its backward pass, which uses the activations up.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Chain, images: Images, form: Sequence[int] | None, *parameters: Tensor
    ) -> Tensor:
        """The chain's output; ``parameters`` are its plastic values, for autograd to see."""
        ctx.chain, ctx.count = chain, len(images)
        ctx.shape = images.shape if isinstance(images, Tensor) else None
        ctx.workspace = chain.forward(images)
        ctx.version, ctx.parameters = chain.version, parameters
        ctx.links, ctx.state = chain.links, _value_versions(chain.links)
        return chain.output(ctx.workspace, len(images), form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of the images, where one is needed, and of all plastic values.

        Raises:
            RuntimeError: It was called before, or the values have changed since forward.
        """
        chain, workspace = ctx.chain, ctx.workspace
        if workspace is None:
            raise RuntimeError(
                "backward was called twice over the same sparse layers, whose activations are gone "
                f"after the first; run forward again, or set {CHOICE}=reference"
            )
        if ctx.version != chain.version or ctx.state != _value_versions(ctx.links):
            raise RuntimeError("live values or patterns were changed between forward and backward")
        ctx.workspace = None
        into = [torch.empty_like(values) for values in ctx.parameters]
        shape = ctx.shape if ctx.needs_input_grad[1] else None
        input_gradient = None if shape is None else torch.empty(shape, **FLOATS)
        gradient = gradients[0].reshape(ctx.count, *chain.output_shape)
        chain.backward(workspace, gradient, into, fresh=True, input_gradient=input_gradient)
        chain.give_back(workspace)
        return None, input_gradient, None, *into


def _value_versions(links: Sequence[Link]) -> list[tuple[int, int]]:
    """Address and change count of each value tensor: equal only if all values are as they were."""
    return [
        (values.data_ptr(), change_count(values))
        for link in links
        for live in link.live
        for values in (live.plastic, live.frozen)
    ]
