"""Fixtures of the compiled kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nispa.kernels import dispatch
from nispa.kernels.native import Library
from tests.kernels.links import fastest, instruction_sets, load


@pytest.fixture(params=instruction_sets() or ["none"])
def kernels(request: pytest.FixtureRequest) -> Library:
    """Each library that runs here, one after the other."""
    return load(request.param) if request.param != "none" else fastest()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The fastest library, and layers that run on it whatever NISPA_KERNELS says."""
    library = fastest()
    monkeypatch.setattr(dispatch, "library", lambda: (library, "by a test"))
    return library


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
