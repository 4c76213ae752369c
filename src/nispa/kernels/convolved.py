"""A convolution over live kernels with the norm, the sum and the ReLU behind it.

Together they are one operation of autograd, so that a slab of activations passes through all of
them while it lies in the cache, forward and backward.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nispa.kernels.autograd import _value_versions
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, Shape
from nispa.kernels.native import Affine, Back, Statistics
from nispa.kernels.slabs import Form, Place
from nispa.kernels.workspace import FLOATS, Workspace

DOUBLES: Any = {"dtype": torch.float64, "device": "cpu"}
"""Type and device of sums, whatever PyTorch's defaults."""


class Convolution:
    """A layer for inputs of one shape: its index arrays, laid out again when its pattern changes.

    Attributes:
        chain: The layer as a chain of one link.
    """

    def __init__(self, place: Place, link: ConvolutionLink, shape: Shape, gradient: bool) -> None:
        """For activations of ``shape``, into which a ``gradient`` flows or does not."""
        self.place = place
        self.chain = Chain(place.library, [link], shape, gradient)
        self._workspaces: dict[int, Workspace] = {}

    def ready(self, count: int) -> Workspace:
        """The layer as the kernels read it, for a number of images, with the values of now."""
        slabs = -(-count // self.place.lanes)
        workspace = self._workspaces.get(slabs)
        if workspace is None:
            if len(self._workspaces) > 3:  # sizes of batches are few
                self._workspaces.clear()
            workspace = self._workspaces[slabs] = Workspace(self.chain, slabs, own=False)
        workspace.prepare(self.chain, None)
        return workspace


@dataclass(frozen=True)
class Norm:
    """A norm by channels as it is for one batch.

    Attributes:
        values: Rows of float32, one number a channel: mean, one over the standard deviation, scale
            and shift with what is learned, running mean and variance after this batch.
        held: Which channels use running statistics all the same, bool; None if none does.
        learns: Whether the statistics are this batch's.
    """

    values: Tensor
    held: Tensor | None
    learns: bool


def norm_of(
    convolved: Convolved,
    running: tuple[Tensor, Tensor],
    learned: tuple[Tensor | None, Tensor | None],
    held: Tensor | None,
    epsilon: float,
    share: float | None,
) -> Norm:
    """The norm of a convolution's output.

    Args:
        convolved: The output.
        running: Mean and variance so far, ``(channels,)`` float32.
        learned: Scale and shift.
        held: Which channels use ``running`` whatever ``share`` is.
        epsilon: Added to the variance.
        share: Of this batch in what is running; None to use that alone.
    """
    form = convolved.form
    values = torch.empty(6, form.channels, **FLOATS)
    moments = convolved.moments if share is not None else None
    if share is not None:
        assert moments is not None
    job = Statistics(
        mean=None if moments is None else moments.data_ptr(),
        squares=None if moments is None else moments[1].data_ptr(),
        running_mean=running[0].data_ptr(),
        running_square=running[1].data_ptr(),
        held=None if held is None else held.data_ptr(),
        weight=None if learned[0] is None else learned[0].data_ptr(),
        bias=None if learned[1] is None else learned[1].data_ptr(),
        to=values.data_ptr(),
        channels=form.channels,
        count=form.count * form.height * form.width,
        epsilon=epsilon,
        share=share or 0.0,
    )
    convolved.layer.place.library.statistics(ctypes.byref(job))
    return Norm(values, held, share is not None)


class Convolved:
    """The output of a convolution, and what is known of what follows it.

    Attributes:
        layer: The convolution.
        x_form: The form of its input.
        form: The form of the output.
        raw: The output.
        moments: Mean of each channel and sum of squared distances from it, ``(2, channels)``
            float64, where they were wanted.
    """

    def __init__(self, layer: Convolution, x: Tensor, x_form: Form, *, moments: bool) -> None:
        """Runs the convolution over ``x``, in slabs."""
        self.layer, self.x_form = layer, x_form
        place, chain = layer.place, layer.chain
        out = chain.buffers[1]
        self.form = Form(x_form.count, out.channels, out.height, out.width)
        self.link = chain.links[0]
        self.version, self.values = chain.version, _value_versions(chain.links)
        self.raw = place.take(self.form)
        workspace = layer.ready(x_form.count)
        slabs = self.form.slabs(place.lanes)
        room = torch.empty(slabs * out.channels * 2 if moments else 0, **DOUBLES)
        found = torch.empty(2, out.channels, **DOUBLES)
        data = workspace.layers[0]
        data.input, data.output = x_form.image(x), self.form.image(self.raw)
        place.library.convolve(
            ctypes.byref(data),
            x_form.count,
            shares(slabs),
            room.data_ptr() if moments else None,
            found.data_ptr() if moments else None,
            torch.get_num_threads(),
        )
        self.moments = found if moments else None

    def finished(
        self,
        x: Tensor,
        norm: Norm | None,
        scale: Tensor | None,
        shift: Tensor | None,
        skip: tuple[Tensor, Form] | None,
        relu: bool,
        pad: int,
    ) -> tuple[Tensor, Form]:
        """What is left to do: ``relu(norm(raw) * scale + shift + skip)``, in slabs.

        Args:
            x: The input, as autograd knows it.
            norm: The norm that follows.
            scale: Its learned scale, ``(channels,)``.
            shift: Its learned shift.
            skip: What is added, in slabs.
            relu: Whether a ReLU follows.
            pad: Width of the border of the result.
        """
        result = Form.of(self.form.shape, pad)
        finish = _Finish(self, norm, scale, shift, skip[1] if skip else None, relu, result)
        live = self.link.live
        tensors = (x, skip[0] if skip else None, scale, shift, *(v.plastic for v in live))
        out: Tensor = _Finished.apply(finish, *tensors)  # type: ignore[no-untyped-call]
        return out, result


def shares(slabs: int) -> int:
    """Into how many shares the slabs of a batch are cut, one a thread; 0 if threads share each."""
    threads = torch.get_num_threads()
    return threads if slabs % threads == 0 or slabs >= 4 * threads else 0


class _Finish:
    """How a convolution's output is finished, and the way back."""

    def __init__(
        self,
        convolved: Convolved,
        norm: Norm | None,
        scale: Tensor | None,
        shift: Tensor | None,
        skip: Form | None,
        relu: bool,
        form: Form,
    ) -> None:
        self.of, self.norm, self.skip, self.relu, self.form = convolved, norm, skip, relu, form
        if norm is None:
            values = torch.zeros(4, form.channels, **FLOATS)
            values[1:3] = 1.0
        else:
            values = norm.values
        self.mean, self.inverse, self.scale, self.shift = (
            values.data_ptr() + 4 * form.channels * row for row in range(4)
        )
        self.values = values  # which these are the addresses in

    def forward(self, skip: Tensor | None) -> Tensor:
        of, place = self.of, self.of.layer.place
        result = place.take(self.form)
        job = Affine(
            of.form.image(of.raw),
            (self.skip or self.form).image(skip),
            self.form.image(result),
            self.scale,
            self.shift,
            self.relu,
        )
        place.library.scale(ctypes.byref(job), self.form.count, torch.get_num_threads())
        return result

    def backward(
        self, x: Tensor, result: Tensor | None, gradient: Tensor, needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of input, skip, scale, shift, weights and biases, where they are needed."""
        of, place = self.of, self.of.layer.place
        into, skip, of_scale, of_shift, of_weight, of_bias = needed
        count, threads = self.form.count, torch.get_num_threads()
        slabs = self.form.slabs(place.lanes)
        job = Back(
            gradient=self.form.image(gradient),
            raw=of.form.image(of.raw),
            result=self.form.image(result),
            relu=self.relu,
            scale=self.scale,
            shift=self.shift,
            mean=self.mean,
            inverse=self.inverse,
            count=count * self.form.height * self.form.width,
            parts=shares(slabs),
        )
        found: list[Tensor | None] = [None] * 6
        norm, channels = self.norm, self.form.channels
        found_of_norm = torch.zeros(4, channels, **FLOATS)
        if norm is not None and (norm.learns or of_scale or of_shift):
            job.learns, job.held = norm.learns, None if norm.held is None else norm.held.data_ptr()
            room = torch.empty(slabs * 2 * channels, **DOUBLES)
            place.library.norm_sums(
                ctypes.byref(job), count, room.data_ptr(), found_of_norm.data_ptr(), threads
            )
            found[2] = found_of_norm[0] if of_scale else None
            found[3] = found_of_norm[1] if of_shift else None
        job.slope = found_of_norm.data_ptr() + 4 * channels * 2
        job.offset = found_of_norm.data_ptr() + 4 * channels * 3
        if skip:
            assert self.skip is not None
            found[1] = place.take(self.skip)
            job.skip = self.skip.image(found[1])
        if into:
            found[0] = place.take(of.x_form)
            job.into = of.x_form.image(found[0])
        workspace = of.layer.ready(count)
        layer, live = workspace.layers[0], of.link.live
        # The kernels compute all gradients of values at once, also those nobody asked for.
        for number, values in enumerate(live):
            found[4 + number] = torch.empty_like(values.plastic)
        weight, bias = found[4:]
        assert weight is not None
        assert bias is not None
        layer.weight_gradient, layer.bias_gradient = weight.data_ptr(), bias.data_ptr()
        parts = layer.bias_parts
        if not bias.numel():
            layer.bias_parts = None
        room_form = Form(
            (job.parts or slabs) * place.lanes, *of.form.shape[1:], of.layer.chain.buffers[1].pad
        )
        space = place.take(room_form)
        job.room = room_form.image(space)
        layer.input = of.x_form.image(x)
        layer.output = of.form.image(None)
        place.library.convolve_backward(ctypes.byref(layer), ctypes.addressof(job), count, threads)
        layer.bias_parts = parts
        return (*found[:4], weight if of_weight else None, bias if of_bias else None)


class _Finished(torch.autograd.Function):
    """A convolution and what follows it, once its output is there."""

    @staticmethod
    def forward(
        ctx: Any,
        finish: _Finish,
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        ctx.finish = finish
        result = finish.forward(skip)
        stored = finish.relu and finish.skip is not None
        ctx.save_for_backward(x, result if stored else None)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """See :meth:`_Finish.backward`.

        Raises:
            RuntimeError: Values have changed since forward.
        """
        finish = ctx.finish
        of, chain = finish.of, finish.of.layer.chain
        if of.version != chain.version or of.values != _value_versions([of.link]):
            raise RuntimeError("live values or patterns were changed between forward and backward")
        x, result = ctx.saved_tensors
        return None, *finish.backward(
            x, result, gradients[0].contiguous(), ctx.needs_input_grad[1:]
        )
