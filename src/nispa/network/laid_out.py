"""Weights and activations of a pass that runs on compiled kernels, as the module's code sees them.

While a traced module runs, :class:`Placed` tensors stand where it reads its weights, and what a
convolution by one of them computes is a :class:`LaidOut` tensor, which stays in the layout of the
kernels. Both have the shape that the module expects, but no memory of their own. The operations
that residual networks consist of know them (:mod:`.laid_out_operators`); for any other they become
ordinary tensors, once, and stay so.

A norm, a sum and a ReLU behind a convolution only note what is to be done: it is done when
somebody reads the result, in one pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from nispa.kernels.convolved import Convolution, Convolved, Norm
from nispa.kernels.links import ConvolutionLink
from nispa.kernels.reference import to_dense
from nispa.kernels.slabs import Bordered, Form, FromSlabs, Place, ToSlabs
from nispa.network.layers import SparseLayer


class NeedsPlainError(Exception):
    """The module does something with activations that only plain tensors allow."""


class Session:
    """What the passes of a network have in common. A copy of a network starts without.

    Attributes:
        place: Kernels and memory.
        needs_plain: Whether the pass of now met :class:`NeedsPlainError`, which TorchScript turns
            into an error of its own.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.needs_plain = place, False
        self._convolutions: dict[tuple[Any, ...], Convolution] = {}

    def convolution(
        self, layer: SparseLayer, link: ConvolutionLink, form: Form, gradient: bool
    ) -> Convolution:
        """A layer, laid out for an input of a form."""
        key = layer, form.shape[1:], link.form, gradient
        found = self._convolutions.get(key)
        if found is None:
            found = Convolution(self.place, link, form.shape[1:], gradient)
            self._convolutions[key] = found
        else:
            found.chain.update([link])
        return found


class Unreal(Tensor):
    """A tensor without memory of its own.

    Attributes:
        session: Of the network.
    """

    session: Session

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation in the way that is known for it, or on plain tensors."""
        kwargs = kwargs or {}
        if func in _SHAPES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        known = OPERATORS.get(func)
        if known is not None:
            result = known(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(
            *tree_map_only(Unreal, _plain, tuple(args)), **tree_map_only(Unreal, _plain, kwargs)
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Nothing gets here but what goes round PyTorch's own calls."""
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Unreal):
                each.session.needs_plain = True
        raise NeedsPlainError

    def plain(self) -> Tensor:
        """An ordinary tensor, the same at each call."""
        raise NotImplementedError


def _plain(tensor: Unreal) -> Tensor:
    return tensor.plain()


OPERATORS: dict[Any, Callable[..., Any]] = {}
"""What to call for an operation of PyTorch; it may answer NotImplemented."""

_SHAPES = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.get_device),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")),
    *(getattr(Tensor, name).__get__ for name in ("layout", "is_sparse", "is_quantized")),
}


def _new(cls: type[Unreal], shape: Sequence[int]) -> Any:
    return Tensor._make_wrapper_subclass(
        cls, tuple(shape), dtype=torch.float32, device=torch.device("cpu")
    )


class Placed(Unreal):
    """A weight, or all biases, of a layer or of several that share a tensor of the module.

    Attributes:
        parts: The layers, in order of their rows.
        moments: Whether norms want the moments of what is computed.
    """

    parts: list[SparseLayer]
    moments: bool
    _bias: bool
    _full: Tensor | None

    @staticmethod
    def of(parts: list[SparseLayer], session: Session, *, bias: bool, moments: bool) -> Placed:
        """Stands where a module reads a weight, or biases."""
        rows = sum(part.shape[0] for part in parts)
        shape = (rows,) if bias else (rows, parts[0].shape[1], *parts[0].spec.kernel)
        placed: Placed = _new(Placed, shape)
        placed.parts, placed.session = parts, session
        placed.moments, placed._bias, placed._full = moments, bias, None
        return placed

    def plain(self) -> Tensor:
        """The full tensor."""
        if self._full is None:
            self._full = full_bias(self.parts) if self._bias else full_weight(self.parts)
        return self._full

    def layer(self, bias: Any) -> SparseLayer | None:
        """The one layer that this weight with these biases is, if it is one."""
        if self._bias or len(self.parts) != 1:
            return None
        (layer,) = self.parts
        if bias is None:
            return None if layer.biases else layer
        mine = isinstance(bias, Placed) and len(bias.parts) == 1 and bias.parts[0] is layer
        return layer if mine else None


def full_weight(parts: Sequence[SparseLayer]) -> Tensor:
    """The weights of layers, as the module reads them."""
    return _joined([to_dense(part.live_weight()) for part in parts])


def turned_weight(parts: Sequence[SparseLayer]) -> Tensor:
    """The same where the module's parameter holds columns first."""
    return full_weight(parts).transpose(0, 1).contiguous()


def full_bias(parts: Sequence[SparseLayer]) -> Tensor:
    """Their biases."""
    return _joined([to_dense(part.live_bias()) for part in parts])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Pending:
    """A convolution that has run, and what is still to be done behind it.

    Attributes:
        convolved: The convolution.
        x: Its input in slabs.
        norm: The norm behind it.
        scale: What that learns.
        shift: What that learns.
        skip: What is added, in slabs.
        relu: Whether a ReLU comes last.
    """

    convolved: Convolved
    x: Tensor
    norm: Norm | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    skip: tuple[Tensor, Form] | None = None
    relu: bool = False

    @property
    def bare(self) -> bool:
        """Whether nothing follows it yet."""
        return self.norm is None and self.skip is None and not self.relu


class LaidOut(Unreal):
    """Activations, ``(batch, channels, height, width)``, in slabs or still to be computed."""

    pending: Pending | None
    _slabs: tuple[Tensor, Form] | None
    _plain: Tensor | None
    _learning: bool

    @staticmethod
    def of(
        session: Session,
        shape: Sequence[int],
        pending: Pending | None = None,
        slabs: tuple[Tensor, Form] | None = None,
    ) -> LaidOut:
        """Activations that are pending or in slabs."""
        made: LaidOut = _new(LaidOut, shape)
        made.session, made.pending = session, pending
        made._slabs, made._plain, made._learning = slabs, None, torch.is_grad_enabled()
        return made

    def plain(self) -> Tensor:
        """An ordinary tensor, which from now on is what the activations are."""
        if self._plain is None:
            if self._learning and not torch.is_grad_enabled() and _in_a_function():
                raise NeedsPlainError  # the function's gradient could not reach what comes before
            slabs, form = self.slabs()
            place = self.session.place
            self._plain = FromSlabs.apply(slabs, place, form)  # type: ignore[no-untyped-call]
            self.pending = self._slabs = None
        assert self._plain is not None
        return self._plain

    def slabs(self, pad: int = 0) -> tuple[Tensor, Form]:
        """The activations in slabs with a border at least ``pad`` wide."""
        if self._plain is not None:  # somebody may have changed it since
            return to_slabs(self.session.place, self._plain, pad)
        if self._slabs is None:
            left = self.pending
            assert left is not None
            self._slabs = left.convolved.finished(
                left.x, left.norm, left.scale, left.shift, left.skip, left.relu, pad
            )
            self.pending = None
        slabs, before = self._slabs
        if before.pad < pad:
            after = Form.of(before.shape, pad)
            slabs = Bordered.apply(  # type: ignore[no-untyped-call]
                slabs, self.session.place, before, after
            )
            self._slabs = slabs, after
        return self._slabs

    @property
    def is_plain(self) -> bool:
        """Whether somebody has asked for an ordinary tensor."""
        return self._plain is not None

    def then(self, **changes: Any) -> LaidOut:
        """What comes of a pending convolution with more behind it."""
        assert self.pending is not None
        return LaidOut.of(self.session, self.shape, replace(self.pending, **changes))

    def becomes(self, other: Tensor) -> LaidOut:
        """Takes over what another one is, as an operation in place does."""
        assert isinstance(other, LaidOut)
        assert self._plain is None
        self.pending, self._slabs = other.pending, other._slabs
        return self

    @property
    def convolved(self) -> Convolved | None:
        """The convolution whose output this is, if nothing follows it yet."""
        return self.pending.convolved if self.pending and self.pending.bare else None

    def normed(self, norm: Norm, scale: Tensor | None, shift: Tensor | None) -> LaidOut:
        """The output of a convolution behind a norm."""
        return self.then(norm=norm, scale=scale, shift=shift)


def to_slabs(place: Place, images: Tensor, pad: int) -> tuple[Tensor, Form]:
    """Plain activations in slabs."""
    form = Form.of(images.shape, pad)
    slabs: Tensor = ToSlabs.apply(images, place, form)  # type: ignore[no-untyped-call]
    return slabs, form


def _in_a_function() -> bool:
    """Whether an autograd function of somebody's own is on the stack."""
    apply = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not apply:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
