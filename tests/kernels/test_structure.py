"""What is computed at all: every expected list here is read off the drawings by hand."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nispa.kernels import cached
from nispa.kernels.cached import CachedBatch, CachedData, Candidate, FrozenSnapshot, candidates
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, LinearLink, Link, WeightedLink
from nispa.kernels.native import Library
from nispa.kernels.structure import PoolStructure, backward_reach
from tests.kernels.links import POOL_LINK, live_values


def drawn(rows: list[str], biases: str, *, relu: bool = True, kernel: int = 0) -> WeightedLink:
    """A layer of ones, biases zero: ``p`` is plastic, ``f`` frozen, ``.`` not connected."""
    marks = np.array([list(row) for row in rows])
    side = (kernel, kernel) if kernel else ()
    bias = np.array(list(biases))
    values = (
        live_values(
            torch.from_numpy(marks != "."),
            torch.from_numpy(marks == "f"),
            torch.ones(*marks.shape, *side),
        ),
        live_values(
            torch.ones(len(bias), dtype=torch.bool),
            torch.from_numpy(bias == "f"),
            torch.zeros(len(bias)),
        ),
    )
    if kernel:
        return ConvolutionLink(*values, relu, padding=kernel // 2)
    return LinearLink(*values, relu)


def mlp() -> list[Link]:
    """Constant are units 0 and 3 of the first layer, 0 of the second, and output 1."""
    return [
        drawn(["ff.", "f.f", "fp.", "..."], "fpff"),
        drawn(["f..f", "f.f.", "p..."], "fff"),
        drawn(["fpp", "f.."], "pf", relu=False),
    ]


def lists(structure: Any, *names: str) -> list[list[Any]]:
    return [getattr(structure, name).tolist() for name in names]


def test_the_lists_of_an_mlp(compiled: Library) -> None:
    first, second, third = Chain(compiled, mlp(), (3, 1, 1)).structures
    names = ("needs_gradient", "plastic_rows", "pure_rows", "mixed_rows", "needed_inputs")
    assert lists(first, *names) == [[False, True, True, False], [1, 2], [0, 1, 3], [2], []]
    assert lists(second, *names) == [[False, True, True], [2], [0, 1, 2], [], [1, 2]]
    assert lists(third, *names) == [[True, False], [0], [1], [0], [1, 2]]


def test_gradients_flow_along_listed_connections_alone(compiled: Library) -> None:
    """``origin`` is a place among plastic values, or -1 less a place among frozen ones."""
    first, second, third = Chain(compiled, mlp(), (3, 1, 1)).structures
    names = ("start", "source", "origin")
    assert not isinstance(first, PoolStructure)
    assert not isinstance(second, PoolStructure)
    assert not isinstance(third, PoolStructure)
    assert lists(first.back, *names) == [[0, 0, 0, 0], [], []]
    assert lists(second.back, *names) == [[0, 0, 0, 1, 1], [1], [-4]]
    assert lists(third.back, *names) == [[0, 0, 1, 2], [0, 0], [0, 1]]


def test_mixed_rows_are_merged_in_order_of_their_sources(compiled: Library) -> None:
    links = [drawn(["pfpf", "pp..", "..ff", "fp.f"], "ffff")]
    (structure,) = Chain(compiled, links, (4, 1, 1)).structures
    assert not isinstance(structure, PoolStructure)
    assert lists(structure, "pure_rows", "mixed_rows") == [[1, 2], [0, 3]]
    assert structure.mixed.start.tolist() == [0, 4, 4, 4, 7]
    assert structure.mixed.source.tolist() == [0, 1, 2, 3, 0, 1, 3]
    assert structure.mixed.origin.tolist() == [0, -1, 1, -2, -5, 4, -6]


def test_an_input_gradient_makes_every_unit_that_reads_one_changing(compiled: Library) -> None:
    first, second, third = Chain(compiled, mlp(), (3, 1, 1), True).structures
    names = ("needs_gradient", "plastic_rows", "needed_inputs")
    assert lists(first, *names) == [[True, True, True, False], [1, 2], [0, 1, 2]]
    assert lists(second, *names) == [[True, True, True], [2], [0, 1, 2]]
    assert lists(third, *names) == [[True, True], [0], [0, 1, 2]]


def test_what_no_output_reads_is_not_computed(compiled: Library) -> None:
    """Output 1 reads unit 0 of the second layer, which reads units 0 and 3 of the first."""
    layers = mlp()
    first, second, third = Chain(compiled, layers, (3, 1, 1), outputs=(1,)).structures
    names = ("plastic_rows", "pure_rows", "mixed_rows", "needed_inputs")
    assert lists(first, *names) == [[], [0, 3], [], []]
    assert lists(second, *names) == [[], [0], [], []]
    assert lists(third, *names) == [[], [1], [], []]

    first, second, third = Chain(compiled, layers, (3, 1, 1), outputs=(0,)).structures
    assert lists(first, *names) == [[2], [0, 3], [2], []]  # nothing reads unit 1
    assert lists(second, *names) == [[2], [0, 1, 2], [], [2]]
    assert lists(third, *names) == [[0], [], [0], [1, 2]]


def test_values_that_nothing_reads_get_a_gradient_of_zero(compiled: Library) -> None:
    """Output 1 has a frozen row alone: no layer learns, and all gradients of before are gone."""
    chain = Chain(compiled, mlp(), (3, 1, 1), outputs=(1,))
    for values in chain.parameters():
        values.grad = torch.full_like(values, math.nan)
    chain.gradients(torch.ones(5, 3), torch.ones(5), lambda logits, _: logits.mean(), reuse=True)
    assert len(chain.parameters()) == 6
    for values in chain.parameters():
        assert values.grad is not None
        assert not values.grad.count_nonzero()


def convnet() -> list[Link]:
    """Of 2 x 2 images; channel 0 is constant, and so is what reads it alone."""
    return [
        drawn(["f", "p"], "ff", kernel=3),
        drawn(["f." + "." * 6, "f...f...", "...p...."], "fff", relu=False),
    ]


def test_features_of_a_channel_are_constant_together(compiled: Library) -> None:
    """Pixels of 2 x 2 images within a border of 1: a line has 4 places, a channel 16."""
    chain = Chain(compiled, convnet(), (1, 2, 2))
    first, second = chain.structures
    assert chain.buffers[1].pad == 1
    assert chain.buffers[1].places().tolist() == [5, 6, 9, 10, 21, 22, 25, 26]
    assert lists(first, "needs_gradient", "plastic_rows", "needed_inputs") == [
        [False, True],
        [1],
        [],
    ]
    names = ("needs_gradient", "plastic_rows", "needed_inputs", "needed_input_places")
    expected = [[False, True, True], [2], [4, 5, 6, 7], [21, 22, 25, 26]]
    assert lists(second, *names) == expected
    assert not isinstance(second, PoolStructure)
    assert second.plastic.source.tolist() == [10]
    assert lists(second.back, "start", "source", "origin") == [
        [0, 0, 0, 0, 0, 1, 1, 1, 1],
        [1],
        [-3],
    ]


def test_a_pool_passes_on_what_is_needed(compiled: Library) -> None:
    links = [drawn(["f", "p", "f"], "ffp", kernel=3), POOL_LINK, drawn(["fff"], "f")]
    _, pool, last = Chain(compiled, links, (1, 2, 2)).structures
    assert lists(pool, "pure_rows", "needed_inputs") == [[0, 1, 2], [1, 2]]
    assert lists(last, "needs_gradient", "plastic_rows", "needed_inputs") == [[True], [], [1, 2]]


def test_a_channel_is_read_if_one_of_its_pixels_is(compiled: Library) -> None:
    links = [
        drawn(["f", "p", "p"], "ffp", kernel=3),
        POOL_LINK,
        drawn([".p.....f....", "........p..."], "pp", relu=False),
    ]
    conv, pool, last = Chain(compiled, links, (1, 4, 4), outputs=(0,)).structures
    assert lists(conv, "pure_rows", "plastic_rows") == [[0, 1], [1]]
    assert lists(pool, "pure_rows", "varying_rows", "needed_inputs") == [[0, 1], [1, 2], [1]]
    assert lists(last, "mixed_rows", "needed_inputs") == [[0], [4, 5, 6, 7]]


def test_nothing_plastic_means_no_work_backward(compiled: Library) -> None:
    links = [drawn(["ff", "f."], "ff"), drawn(["ff"], "f")]
    for structure in Chain(compiled, links, (2, 1, 1)).structures:
        assert not isinstance(structure, PoolStructure)
        assert lists(structure, "plastic_rows", "needed_inputs") == [[], []]
        assert not len(structure.back.origin)


# Feeds.


def parts_of(feed: CachedData | None) -> list[tuple[int, list[int], int, int]]:
    assert feed is not None
    return [(part.buffer, part.channels.tolist(), part.start, part.width) for part in feed.columns]


def computed_of(feed: CachedData | None) -> list[list[int] | None]:
    assert feed is not None
    return [None if rows is None else rows.tolist() for rows in feed.computed_rows]


def found_in(chain: Chain) -> list[Candidate]:
    return candidates(chain.links, chain.structures, chain.buffers, ())


def five_images() -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0]) + torch.arange(5.0).view(5, 1)


def test_constant_units_are_kept_best_worth_first(
    compiled: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worth, 2 operations a connection over 4 bytes a unit: 4/8, 4/4 and 2/4."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    chain = Chain(compiled, mlp(), (3, 1, 1))
    assert [
        stage.worth for stage in candidates(chain.links, chain.structures, chain.buffers, ())
    ] == [1.0, 0.5, 0.5]
    feed = chain.cache([five_images()], 5, 10**6)
    pixels = (0, [0, 1, 2], 0, 3)
    assert parts_of(feed) == [pixels, (2, [0], 3, 1), (1, [0, 3], 4, 2), (3, [1], 6, 1)]
    assert computed_of(feed) == [[1, 2], [1, 2], [0]]
    assert feed is not None
    assert feed.rows[0].tolist() == [1, 2, 3, 3, 3, 0, 3]  # 1 + 2; then 3 + 0; then 3
    assert feed.rows[4].tolist() == [5, 6, 7, 11, 11, 0, 11]
    assert feed.nbytes == 4 * 5 * 7


@pytest.mark.parametrize(
    ("numbers_each", "buffers"),
    [(2, None), (3, [0]), (4, [0, 2]), (5, [0, 2, 3]), (6, [0, 2, 1]), (7, [0, 2, 1, 3])],
)
def test_a_budget_takes_what_fits(
    compiled: Library,
    monkeypatch: pytest.MonkeyPatch,
    numbers_each: int,
    buffers: list[int] | None,
) -> None:
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    chain = Chain(compiled, mlp(), (3, 1, 1))
    feed = chain.cache([five_images()], 5, 4 * 5 * numbers_each)
    assert (feed and [part.buffer for part in feed.columns]) == buffers
    if feed is not None and buffers is not None:
        assert feed.nbytes <= 4 * 5 * numbers_each
        kept = [rows is not None for rows in feed.computed_rows]
        assert kept == [number + 1 in buffers for number in range(3)]
    if numbers_each == 4:
        just_less = chain.cache([five_images()], 5, 4 * 5 * 4 - 1)
        assert parts_of(just_less) == [(0, [0, 1, 2], 0, 3)]


def test_what_a_pool_makes_of_a_constant_channel_is_kept_instead_of_it(compiled: Library) -> None:
    """Worth: 2 * 5 * 9 operations for each of 16 pixels, over 4 bytes for each of 4."""
    links = [
        drawn(["f....", "fffff", "pffff"], "fff", kernel=3),
        POOL_LINK,
        drawn(["p" * 12], "p"),
    ]
    chain = Chain(compiled, links, (5, 4, 4))
    (stage,) = found_in(chain)
    assert (stage.links, stage.buffer, stage.width) == ((0, 1), 2, 2 * 4)
    assert stage.worth == 2 * (1 + 5) * 9 * 16 / (4 * 2 * 4)
    feed = chain.cache([torch.ones(1, 5, 4, 4)], 1, 10**6)
    assert parts_of(feed) == [(0, [0, 1, 2, 3, 4], 0, 80), (2, [0, 1], 80, 8)]
    assert computed_of(feed) == [[2], [2], None]
    assert feed is not None  # a window within the image has 9 pixels, one at its corner 4
    assert feed.rows[0, 80:].tolist() == [9, 9, 9, 9, 45, 45, 45, 45]


def test_where_the_pool_reads_is_kept_if_others_read_it_too(compiled: Library) -> None:
    """Worth: 2 * 5 * 9 operations for each pixel, over its 4 bytes."""
    links = [drawn(["fffff", "pffff"], "ff", kernel=3), POOL_LINK, drawn(["p" * 8], "p")]
    chain = Chain(compiled, links, (5, 4, 4))
    feed = chain.cache([torch.ones(1, 5, 4, 4)], 1, 10**6, marked=[1])
    assert parts_of(feed) == [(0, [0, 1, 2, 3, 4], 0, 80), (1, [0], 80, 16)]
    assert computed_of(feed) == [[1], None, None]
    assert feed is not None
    assert feed.rows[0, 80:84].tolist() == [20, 30, 30, 20]


@pytest.mark.parametrize(("marked", "at_once"), [((), True), ((1,), False)])
def test_a_pool_is_computed_at_once_unless_it_takes_kept_channels(
    compiled: Library, marked: tuple[int, ...], at_once: bool
) -> None:
    """Marked, channel 0 is kept before the pool, which then takes more than is computed."""
    links = [drawn(["fffff", "pffff"], "ff", kernel=3), POOL_LINK, drawn(["p" * 8], "p")]
    chain = Chain(compiled, links, (5, 4, 4))
    images = torch.rand(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    feed = chain.cache([images], 3, 10**6, marked=marked)
    assert chain.pools_next(0, None)
    assert chain.pools_next(0, feed) is at_once
    assert not chain.pools_next(1, feed)
    assert not chain.pools_next(2, feed)
    assert feed is not None
    given = CachedBatch(feed, torch.arange(3))
    for every in (False, True):
        workspace = chain.forward(given, every=every)
        assert torch.equal(chain.output(workspace, 3), chain(images))
        chain.give_back(workspace)


def test_before_a_pool_computed_at_once_lies_which_is_the_largest(compiled: Library) -> None:
    """One channel in, its own weight 1, so that each pixel comes out as it is."""
    layer = drawn(["p"], "p", kernel=3)
    with torch.no_grad():
        layer.weight.plastic.zero_()[0, 1, 1] = 1.0
    chain = Chain(compiled, [layer, POOL_LINK], (1, 4, 6))
    pixels = [[1, 9, 3, 3, -5, -4], [5, 2, 3, 2, -3, -2], [0, 0, 7, 8, 1, 1], [0, 0, 8, 9, 2, 1]]
    image = torch.tensor(pixels, dtype=torch.float32).view(1, 1, 4, 6)
    workspace = chain.forward(image)
    assert chain.read(workspace, 2, 1).flatten().tolist() == [9, 3, 0, 0, 9, 2]
    numbers = chain.read(workspace, 1, 1)[0, 0, ::2, ::2]  # by row, the first of equals
    assert numbers.tolist() == [[1, 0, 3], [0, 3, 2]]
    chain.give_back(workspace)


@pytest.mark.parametrize(("connections", "kept"), [(19, False), (20, True)])
def test_what_is_sooner_computed_is_not_kept(
    compiled: Library, connections: int, kept: bool
) -> None:
    """A unit of 20 connections saves 40 operations for 4 bytes, 10 for each."""
    links = [drawn(["f" * connections + "." * (20 - connections), "p" * 20], "fp")]
    feed = Chain(compiled, links, (20, 1, 1)).cache([torch.ones(2, 20)], 2, 10**6)
    assert len(parts_of(feed)) == 1 + kept
    assert computed_of(feed) == [[1] if kept else None]


def test_what_is_kept_is_not_computed_again(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen values of constant units become NaN behind the feed's back: nobody reads them."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    monkeypatch.setattr(FrozenSnapshot, "matches", lambda *_: True)
    links = mlp()
    chain = Chain(kernels, links, (3, 1, 1))
    images, labels = five_images(), torch.zeros(5)
    feed = chain.cache([images], 5, 10**6)
    assert feed is not None
    given = CachedBatch(feed, torch.tensor([3, 0, 4]))

    def loss(logits: Tensor, _labels: Tensor) -> Tensor:
        return logits.square().mean()

    workspace = chain.forward(given)
    rows = [(layer.pure_row_count, layer.mixed_row_count) for layer in workspace.layers]
    assert rows == [(1, 1), (2, 0), (0, 1)]
    chain.give_back(workspace)
    outputs, losses, gradients = [], [], []
    for x in (images[given.index], given):
        outputs.append(chain(x).detach())
        losses.append(chain.gradients(x, labels[:3], loss))
        gradients.append([values.grad for values in chain.parameters() if values.grad is not None])
        for values in chain.parameters():
            values.grad = None
        for each, places in zip(links, ([0, 1], [0, 1], [1]), strict=True):
            assert isinstance(each, WeightedLink)
            each.weight.frozen[places] = math.nan
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(losses[0], losses[1])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert chain(images).isnan().any()


@pytest.mark.parametrize(
    "index",
    [torch.arange(39, -1, -1), torch.tensor([5, 5, 0]), torch.arange(40)[::2]],
    ids=["backward", "twice", "every other"],
)
def test_a_feed_gives_the_rows_asked_for(kernels: Library, index: Tensor) -> None:
    chain = Chain(kernels, mlp(), (3, 1, 1))
    images = torch.arange(120.0).view(40, 3)
    feed = chain.cache(images.split(7), 40, 10**6)
    assert feed is not None
    with torch.no_grad():
        assert torch.equal(chain(CachedBatch(feed, index)), chain(images[index]))


def test_a_feed_no_longer_used_is_let_go(compiled: Library) -> None:
    """A task's data set must not stay behind while the next one is learned."""
    chain = Chain(compiled, mlp(), (3, 1, 1))
    images = torch.ones(100, 3)
    feed = chain.cache([images], 100, 10**6)
    assert feed is not None
    with torch.no_grad():
        for count in (100, 5):
            chain(CachedBatch(feed, torch.arange(count)))
    gone = weakref.ref(feed)
    del feed
    gc.collect()
    chain.update(mlp())
    with torch.no_grad():
        chain(images)
    assert gone() is None


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_how_far_backward_reads(kernel: int, stride: int) -> None:
    for padding in range(3):
        for size in range(max(1, kernel - 2 * padding), 12):
            out = (size + 2 * padding - kernel) // stride + 1
            read = [
                (x + padding - weight) // stride
                for x in range(size)
                for weight in range(kernel)
                if (x + padding - weight) % stride == 0
            ]
            wanted = max([0, *(-place for place in read), *(place - out + 1 for place in read)])
            assert backward_reach(size, out, kernel, stride, padding) == wanted
