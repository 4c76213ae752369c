"""Numbers that are nearly 0 count as 0 within kernels, and as they were around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nispa.base.modes import flushes
from nispa.kernels.chain import Chain
from nispa.kernels.links import Link
from nispa.kernels.native import Library
from tests.kernels.links import Pattern, link, run_chain, seeded

TINY = 1e-40
"""Below the smallest number that float32 holds with all its digits."""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pixels", [1, 12])
def test_numbers_that_are_nearly_0_are_0(kernels: Library, pixels: int, threads: int) -> None:
    size: dict[str, Any] = {} if pixels == 1 else {"kernel": (3, 3), "padding": 1}
    links: list[Link] = [link(64, 32, seeded(), Pattern(1.0), **size)]
    shape = (32, 1, 1) if pixels == 1 else (32, pixels, pixels)
    x = torch.full((96, *shape), TINY)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chain = Chain(kernels, links, shape, True)
        upstream = torch.full((96, 64, *shape[1:]) if pixels > 1 else (96, 64), TINY)
        found = run_chain(chain, x if pixels > 1 else x.flatten(1), upstream)
    finally:
        torch.set_num_threads(before)
    assert not bool(found.output[found.output.abs() < 1e-30].any())  # where the bias is 0
    assert not bool(found.input_gradient.any())
    assert not flushes()
