"""PyTorch's optimisers, without the compiler.

Each method of an optimiser that a compiler must not look into imports all of ``torch._dynamo`` at
its first call: a second and more, as long as PyTorch itself takes. Nothing here is compiled. So
these call what PyTorch has wrapped, which does the same to the same bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD as _SGD
from torch.optim import Adadelta as _Adadelta
from torch.optim import Adam as _Adam
from torch.optim import AdamW as _AdamW
from torch.optim import Optimizer


def _bare(method: Callable[..., Any]) -> Callable[..., Any]:
    """What decorators have wrapped, or the method itself."""
    bare: Callable[..., Any] = inspect.unwrap(method)
    return bare


class _Lean(Optimizer):
    add_param_group = _bare(Optimizer.add_param_group)
    zero_grad = _bare(Optimizer.zero_grad)
    state_dict = _bare(Optimizer.state_dict)
    load_state_dict = _bare(Optimizer.load_state_dict)


def _step(kind: type[Optimizer]) -> Callable[..., Any]:
    # PyTorch's own wrapper switches gradients off, too.
    return torch.no_grad()(_bare(kind.step))


class Adam(_Lean, _Adam):
    """Adam."""

    step = _step(_Adam)


class AdamW(_Lean, _AdamW):
    """AdamW."""

    step = _step(_AdamW)


class SGD(_Lean, _SGD):
    """Plain gradient steps, with momentum."""

    step = _step(_SGD)


class Adadelta(_Lean, _Adadelta):
    """Adadelta."""

    step = _step(_Adadelta)
