"""Work shared out to threads: teams of any size, asked for and got, give the bits of one thread.

Besides PyTorch's threads there is a team of the tests' own, whose threads come one after the other:
parts that are left out, done twice or reach into each other then show each time, not by chance.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nispa.kernels import native
from nispa.kernels.chain import Chain
from nispa.kernels.links import Link, WeightedLink
from nispa.kernels.native import Library
from nispa.kernels.reference import LiveValues
from tests.kernels.links import (
    LARGE,
    Answer,
    answer,
    assert_same,
    fastest,
    numbers,
    output_of,
    run_chain,
    seeded,
    shape_of,
)

COUNTS = (2, 3, 5)
BATCHES = (1, 20, 130)
MANY = 260  # so many images that every kernel shares out its work
Bytes = NDArray[np.uint8]
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def normal_nets() -> dict[str, tuple[tuple[int, ...], list[Link]]]:
    """The nets of LARGE, with numbers whose sums depend on their order."""
    generator, made = seeded(), {}
    for name, (shape, links) in LARGE.items():
        drawn: list[Link] = []
        for each in links:
            if isinstance(each, WeightedLink):
                each = replace(each, weight=normal(each.weight, generator))
            drawn.append(each)
        made[name] = (shape, drawn)
    return made


def normal(live: LiveValues, generator: torch.Generator) -> LiveValues:
    """Normal numbers at the same places."""
    plastic, frozen = (
        numbers(values.shape, generator, whole=False) for values in (live.plastic, live.frozen)
    )
    return live._replace(plastic=plastic.requires_grad_(), frozen=frozen)


NETS = normal_nets()


def everything(library: Library, name: str, batch: int) -> list[Tensor]:
    """All that the kernels compute: outputs, gradients, a step's gradients, sums of units."""
    shape, links = NETS[name]
    x = numbers((batch, *shape), seeded(batch), whole=False)
    upstream = numbers((batch, 5), seeded(3), whole=False)
    found = run_chain(Chain(library, links, shape_of(x), True), x, upstream)
    chain = Chain(library, links, shape_of(x))
    loss = chain.gradients(x, torch.arange(batch) % 5, functional.cross_entropy)
    steps = [each.grad for each in chain.parameters() if each.grad is not None]
    for each in chain.parameters():
        each.grad = None
    sums = chain.unit_sums([x], range(len(links) + 1))
    return [found.output, found.input_gradient, *found.gradients, loss, *steps, *sums]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# The threads of PyTorch.


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETS)
def test_any_number_of_threads_gives_the_bits_of_one(
    kernels: Library, name: str, batch: int
) -> None:
    torch.set_num_threads(1)
    alone = everything(kernels, name, batch)
    for count in COUNTS:
        torch.set_num_threads(count)
        assert_equal(everything(kernels, name, batch), alone)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", LARGE)
def test_any_number_of_threads_agrees_with_pytorch(kernels: Library, name: str, count: int) -> None:
    shape, links = LARGE[name]
    x = numbers((130, *shape), seeded())
    upstream = numbers(output_of(links, x), seeded(1))
    expected = answer(links, x, upstream)
    torch.set_num_threads(count)
    assert_answer(run_chain(Chain(kernels, links, shape_of(x), True), x, upstream), expected)


def assert_answer(found: Answer, expected: Answer) -> None:
    assert_same(found.output, expected.output)
    assert_same(found.input_gradient, expected.input_gradient, 1e-6)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_same(one, other, 1e-6)


def openmp() -> ctypes.CDLL:
    """The OpenMP library that the kernels' threads come from."""
    if fastest().threads != "PyTorch's OpenMP threads":
        pytest.skip("kernels run on one thread here")
    found = native._openmp()[0]
    assert found is not None
    for path in [*sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")), None]:
        loaded = ctypes.CDLL(path if path is None else str(path))
        if hasattr(loaded, "GOMP_parallel") and hasattr(loaded, "omp_set_dynamic"):
            return loaded
    pytest.skip("this OpenMP's settings are not found")


def team_size(loaded: ctypes.CDLL, asked: int) -> int:
    """How many threads come when so many are asked for."""
    sizes: list[int] = []
    work = WORK(lambda _: sizes.append(loaded.omp_get_num_threads()))
    loaded.GOMP_parallel(work, None, ctypes.c_uint(asked), ctypes.c_uint(0))
    assert len(sizes) == sizes[0]
    return sizes[0]


@pytest.fixture
def one_comes() -> Iterator[ctypes.CDLL]:
    """OpenMP gives a single thread, however many are asked for."""
    loaded = openmp()
    before = loaded.omp_get_max_active_levels()
    loaded.omp_set_max_active_levels(0)
    yield loaded
    loaded.omp_set_max_active_levels(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", NETS)
def test_a_single_thread_does_the_work_of_all(
    compiled: Library, one_comes: ctypes.CDLL, name: str
) -> None:
    torch.set_num_threads(1)
    alone = everything(compiled, name, 130)
    torch.set_num_threads(5)
    assert team_size(one_comes, 5) == 1
    assert_equal(everything(compiled, name, 130), alone)


LIMITED = """
import torch

from nispa.kernels import native
from tests.kernels import test_threads as tests

library = native.library()[0]
torch.set_num_threads(1)
alone = {name: tests.everything(library, name, 130) for name in tests.NETS}
torch.set_num_threads(5)
print(tests.team_size(tests.openmp(), 5))
for name, expected in alone.items():
    tests.assert_equal(tests.everything(library, name, 130), expected)
print("equal")
"""


def test_a_team_that_a_limit_of_openmp_makes_smaller() -> None:
    openmp()
    environment = {**os.environ, "OMP_THREAD_LIMIT": "2"}
    environment.pop(native.CHOICE, None)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("2\nequal\n", 0), done.stderr


# A team of the tests' own.


class Team:
    """Stands in for OpenMP: its threads run one after the other.

    Attributes:
        size: How many come at most.
        backwards: Whether the last thread comes first.
        forks: How many were asked for, each time.
        memory: What kernels write to. If there is any, each thread works on it as it was before the
            first began; what they changed is put together afterwards.
        clashes: How often two threads changed the same byte.
    """

    def __init__(self) -> None:
        self.size, self.backwards, self.clashes = 1, False, 0
        self.forks: list[int] = []
        self.memory: list[Bytes] = []
        self._number = self._count = 0
        asking = ctypes.CFUNCTYPE(ctypes.c_int)
        forking = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_uint] * 2)
        self.runtime = (
            forking(self._fork),
            asking(lambda: self._number),
            asking(lambda: self._count),
        )

    def _fork(self, function: int, given: int, asked: int, flags: int) -> None:
        self.forks.append(asked)
        self._count = min(asked, self.size)
        before = [each.copy() for each in self.memory]
        joined = [each.copy() for each in self.memory]
        changed = [np.zeros(each.shape, dtype=np.bool_) for each in self.memory]
        for member in range(self._count):
            self._number = self._count - 1 - member if self.backwards else member
            for each, start in zip(self.memory, before, strict=True):
                each[:] = start
            WORK(function)(given)
            for each, start, whole, seen in zip(self.memory, before, joined, changed, strict=True):
                here = each != start
                self.clashes += int((here & seen).sum())
                seen |= here
                whole[here] = each[here]
        for each, whole in zip(self.memory, joined, strict=True):
            each[:] = whole

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Takes all arrays and tensors of floats made from here on into :attr:`memory`."""
        for module, name in (
            (torch, "zeros"),
            (torch, "empty"),
            (torch, "empty_like"),
            (np, "zeros"),
            (np, "empty"),
        ):
            monkeypatch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            made = make(*given, **named)
            array = made.detach().numpy() if isinstance(made, Tensor) else made
            if array.dtype.kind == "f" and array.size:
                self.memory.append(array.reshape(-1).view(np.uint8))
            return made

        return watched


@pytest.fixture
def team(
    compiled: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Library, Team]:
    """The fastest kernels on a team."""
    path = native.compiled(compiled.isa)
    assert path is not None
    copy = tmp_path / f"copy{path.suffix}"  # another file, so that it is loaded once more
    shutil.copy(path, copy)
    made = Team()
    runtime = tuple(ctypes.cast(function, ctypes.c_void_p) for function in made.runtime)
    monkeypatch.setattr(native, "_openmp", lambda: (runtime, "a team of the tests"))
    return Library(copy), made


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("asked", COUNTS)
@pytest.mark.parametrize("name", NETS)
def test_a_team_smaller_than_asked_for_does_all(
    team: tuple[Library, Team], name: str, asked: int
) -> None:
    library, members = team
    torch.set_num_threads(1)
    alone = everything(library, name, MANY)
    assert not members.forks
    torch.set_num_threads(asked)
    for members.size in range(1, asked + 1):
        for members.backwards in (False, True):
            members.forks.clear()
            assert_equal(everything(library, name, MANY), alone)
            assert max(members.forks) == asked


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [20, MANY])  # a few images are shared out by rows
@pytest.mark.parametrize("name", NETS)
def test_no_thread_touches_what_another_one_makes(
    team: tuple[Library, Team], monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    library, members = team
    torch.set_num_threads(1)
    alone = everything(library, name, batch)
    torch.set_num_threads(3)
    members.size = 3
    with monkeypatch.context() as patched:
        members.watch(patched)
        found = everything(library, name, batch)
    assert len(members.forks) > 10
    assert sum(map(len, members.memory)) > 100_000
    assert members.clashes == 0
    assert_equal(found, alone)
