"""Random chains held against plain PyTorch in float64, bit by bit.

A few hundred run by default, many more as ``pytest -m slow``, or as many as NISPA_FUZZ says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from nispa.kernels import cached
from nispa.kernels.cached import CachedBatch
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, Link, PoolLink, WeightedLink
from nispa.kernels.native import Library
from tests.kernels.links import (
    EXACT,
    POOL_LINK,
    Answer,
    Pattern,
    answer,
    assert_same,
    instruction_sets,
    largest_sum,
    link,
    load,
    numbers,
    output_of,
    run_chain,
    seeded,
    shape_of,
    without_kernels,
)

SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
PATTERNS = st.builds(Pattern, st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), SHARES, SHARES)
BATCHES = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 40, 65])
MANY = int(os.environ.get("NISPA_FUZZ", "5000"))


@dataclass(frozen=True)
class Case:
    """A chain, what goes in, and how it is run."""

    links: list[Link]
    x: Tensor
    upstream: Tensor
    isa: str
    threads: int
    input_gradient: bool

    def __repr__(self) -> str:
        layers = ", ".join(map(describe, self.links))
        how = f"{self.isa}, {self.threads} threads, input gradient {self.input_gradient}"
        return f"Case({tuple(self.x.shape)} -> [{layers}], {how})"


def describe(each: Link) -> str:
    if not isinstance(each, WeightedLink):
        return "pool"
    name = "conv" if isinstance(each, ConvolutionLink) else "linear"
    kernel = tuple(each.weight.plastic.shape[1:])
    counts = [len(values) for live in each.live for values in (live.plastic, live.frozen)]
    how = (
        f"stride {each.stride} padding {each.padding}" if isinstance(each, ConvolutionLink) else ""
    )
    return f"{name} {each.weight.shape} {kernel} {how} relu {each.relu} plastic, frozen {counts}"


@st.composite
def convolutions(draw: st.DrawFn, shape: tuple[int, int, int], seed: int) -> Link | None:
    """A convolution or a pool that takes images of a shape, or None where none is drawn."""
    channels, height, width = shape
    if min(height, width) >= 2 and draw(st.integers(0, 3)) == 0:
        return POOL_LINK
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (2, 2), (5, 5), (1, 3), (4, 2)]))
    padding = draw(st.integers(0, max(kernel)))
    if height + 2 * padding < kernel[0] or width + 2 * padding < kernel[1]:
        return None
    return link(
        draw(st.integers(1, 6)),
        channels,
        seeded(seed),
        draw(PATTERNS),
        kernel=kernel,
        relu=draw(st.booleans()),
        stride=draw(st.sampled_from([1, 1, 1, 2, 3])),
        padding=padding,
    )


def shape_after(each: Link, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    _, channels, height, width = output_of([each], torch.zeros(1, *shape))
    return channels, height, width


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One to four layers; images may have any size up to 19, and a chain may start flat."""
    seed = draw(st.integers(0, 2**31))
    links: list[Link] = []
    side = st.integers(1, 19)
    shape = draw(st.tuples(st.integers(1, 4), side, side))
    flat = draw(st.booleans())
    if flat:
        shape = (draw(st.integers(1, 40)), 1, 1)
    threads = draw(st.sampled_from([1, 1, 1, 2]))
    batch = draw(BATCHES if threads == 1 else st.sampled_from([130, 300]))  # else one does it all
    x = numbers((batch, *(shape[:1] if flat else shape)), seeded(seed))
    for number in range(draw(st.integers(1, 4))):
        here = None if flat else draw(convolutions(shape, seed + number))
        if here is not None:
            links.append(here)
            shape = shape_after(here, shape)
            flat = draw(st.integers(0, 3)) == 0
            continue
        columns = shape[0] * shape[1] * shape[2]
        rows = draw(st.integers(1, 24))
        relu = draw(st.booleans())
        links.append(link(rows, columns, seeded(seed + number), draw(PATTERNS), relu=relu))
        shape, flat = (rows, 1, 1), True
    upstream = numbers(output_of(links, x), seeded(seed + 9))
    assume(largest_sum(links, x, upstream) < EXACT)
    isa = draw(st.sampled_from(instruction_sets() or [""]))
    return Case(links, x, upstream, isa, threads, draw(st.booleans()))


def assert_answers(found: Answer, expected: Answer, case: Case) -> None:
    assert_same(found.output, expected.output)
    if case.input_gradient:
        assert_same(found.input_gradient, expected.input_gradient)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_same(one, other)


def library_of(case: Case) -> Library:
    if not case.isa:
        without_kernels("no compiled kernels are installed")
    return load(case.isa)


def check_case(case: Case) -> None:
    """Output and gradients, of a chain used twice, and of its gradients part by part."""
    expected = answer(case.links, case.x, case.upstream)
    chain = Chain(library_of(case), case.links, shape_of(case.x), case.input_gradient)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        for _ in range(2):
            assert_answers(run_chain(chain, case.x, case.upstream), expected, case)
        check_parts(chain, case, expected)
        check_some_outputs(case)
    finally:
        torch.set_num_threads(before)


def check_parts(chain: Chain, case: Case, expected: Answer) -> None:
    """Forward and backward of some images at a time, added up."""
    size = chain.library.lanes * (1 + len(case.x) % 2)
    into = [torch.full_like(values, 3.0) for values in chain.parameters()]
    for number, (x, above) in enumerate(
        zip(case.x.split(size), case.upstream.split(size), strict=True)
    ):
        workspace = chain.forward(x)
        chain.backward(workspace, above, into, fresh=number == 0)
        chain.give_back(workspace)
    for one, other in zip(into, expected.gradients, strict=True):
        assert_same(one, other)


def check_some_outputs(case: Case) -> None:
    """Every other output is read: the others' share of the upstream gradient must not count."""
    outputs = tuple(range(0, case.upstream.shape[1], 2))
    upstream = torch.zeros_like(case.upstream)
    upstream[:, ::2] = case.upstream[:, ::2]
    expected = answer(case.links, case.x, upstream)
    chain = Chain(library_of(case), case.links, shape_of(case.x), outputs=outputs)
    into = [torch.zeros_like(values) for values in chain.parameters()]
    workspace = chain.forward(case.x)
    found = chain.output(workspace, len(case.x))
    assert_same(found[:, ::2], expected.output[:, ::2])
    chain.backward(workspace, upstream, into, fresh=True)
    for one, other in zip(into, expected.gradients, strict=True):
        assert_same(one, other)


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@examples(
    deadline=None, max_examples=300, suppress_health_check=QUIET, derandomize=True, database=None
)
@given(case=cases())
def test_random_chains(case: Case) -> None:
    check_case(case)


@pytest.mark.slow
@examples(
    deadline=None,
    max_examples=MANY,
    suppress_health_check=QUIET,
    phases=[Phase.generate, Phase.shrink],
    database=None,
)
@given(case=cases())
def test_many_random_chains(case: Case) -> None:
    check_case(case)


@examples(deadline=None, max_examples=60, suppress_health_check=QUIET, derandomize=True)
@given(case=cases(), data=st.data())
def test_random_feeds(case: Case, data: st.DataObject) -> None:
    """What is kept of constant units changes no bit, whatever is kept."""
    chain = Chain(library_of(case), case.links, shape_of(case.x))
    worth, cached.WORTH_KEEPING = cached.WORTH_KEEPING, 0
    try:
        count = len(case.x)
        pixels = 4 * case.x.numel()
        feed = chain.cache(case.x.split(7), count, pixels + data.draw(st.integers(0, 99)) * count)
    finally:
        cached.WORTH_KEEPING = worth
    assert feed is not None
    size = data.draw(st.integers(1, 40))
    index = torch.randint(count, (size,), generator=seeded(size))
    found = []
    for images in (case.x[index], CachedBatch(feed, index)):
        workspace = chain.forward(images)
        output = chain.output(workspace, size)
        into = [torch.full_like(values, 3.0) for values in chain.parameters()]
        chain.backward(workspace, case.upstream[index], into, fresh=True)
        chain.give_back(workspace)
        found.append([output, *into])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_cases_are_of_every_kind() -> None:
    """The strategy reaches what it is meant to reach; counted over what it draws."""
    kinds: set[str] = set()

    @examples(
        deadline=None, max_examples=200, suppress_health_check=QUIET, derandomize=True,
        database=None, phases=[Phase.generate],
    )  # fmt: skip
    @given(case=cases())
    def collect(case: Case) -> None:
        for number, each in enumerate(case.links):
            kinds.add({ConvolutionLink: "conv", PoolLink: "pool"}.get(type(each), "linear"))
            kinds.add(f"layer {number}")
            if isinstance(each, WeightedLink):
                some = bool(len(each.weight.plastic)), bool(len(each.weight.frozen))
                kinds.add({(True, True): "mixed", (False, False): "empty"}.get(some, "pure"))
            if isinstance(each, ConvolutionLink):
                kinds.add(f"stride {each.stride}")
        kinds.add(f"threads {case.threads}")

    collect()
    assert kinds >= {"conv", "pool", "linear", "mixed", "empty", "pure", "layer 3"}
    assert kinds >= {"stride 1", "stride 2", "stride 3", "threads 1", "threads 2"}
