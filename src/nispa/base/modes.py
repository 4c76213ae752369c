"""PyTorch's modes that a caller may have set, put aside while nispa computes.

PyTorch keeps some choices for a whole thread or process: whether gradients are recorded, the type
and device of new tensors, automatic mixed precision. Code written for the usual ones goes wrong
under others, at once or much later: what ``torch.inference_mode`` made can never be learned again.
So whoever calls from outside comes in through :func:`usual_modes` or :func:`in_usual_modes`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Y = TypeVar("Y")
S = TypeVar("S")
R = TypeVar("R")


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Within it PyTorch is as it starts; then the caller's modes are back.

    Gradients are recorded, new tensors are float32 and on the CPU, nothing is cast on its own. What
    asks for another order of the same sums, such as ``torch.use_deterministic_algorithms``, stays.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        before = torch.get_default_dtype()
        if before != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, before)
        yield


def in_usual_modes(
    function: Callable[P, Generator[Y, S, R]],
) -> Callable[P, Generator[Y, S, R]]:
    """A generator function each of whose steps runs in the usual modes.

    Between two steps, when the caller's code runs, the caller's modes hold.
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
