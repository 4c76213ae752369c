"""Suspends PyTorch modes that a caller may have set while nispa computes.

Some PyTorch modes apply to a whole thread or process: whether gradients are recorded, the type and
device of new tensors, automatic mixed precision. Code written for the default modes fails under
others, at once or much later: a tensor made under ``torch.inference_mode`` can never be trained. So
public functions run inside :func:`usual_modes` or :func:`in_usual_modes`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Y = TypeVar("Y")
S = TypeVar("S")
R = TypeVar("R")


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Inside this context PyTorch's modes have their defaults; afterwards the caller's return.

    Gradients are recorded, new tensors are float32 on the CPU, and nothing is cast automatically.
    Numbers below 1.2e-38 count as 0, as in compiled kernels: where a task is known by heart its
    gradients are as small, and a processor takes far longer for each of them. Modes that only
    reorder sums, such as ``torch.use_deterministic_algorithms``, stay.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if not flushes():
            torch.set_flush_denormal(True)
            stack.callback(torch.set_flush_denormal, False)
        before = torch.get_default_dtype()
        if before != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, before)
        yield


def flushes() -> bool:
    """Whether this thread takes numbers that are nearly 0 for 0."""
    return sys.float_info.min / 2 == 0.0


def in_usual_modes(
    function: Callable[P, Generator[Y, S, R]],
) -> Callable[P, Generator[Y, S, R]]:
    """Makes every step of a generator function run in the default modes.

    Between steps, while the caller's code runs, the caller's modes apply.
    """

    @functools.wraps(function)
    def stepping(*args: P.args, **more: P.kwargs) -> Generator[Y, S, R]:
        inner = function(*args, **more)
        step: Callable[[], Y] = functools.partial(next, inner)
        while True:
            try:
                with usual_modes():
                    value = step()
            except StopIteration as end:
                result: R = end.value
                return result
            try:
                sent = yield value
            except GeneratorExit:
                with usual_modes():
                    inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is passed on into the generator
                step = functools.partial(inner.throw, error)
            else:
                step = functools.partial(inner.send, sent)

    return stepping
