from __future__ import annotations

import functools
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nispa.kernels import workspace
from nispa.kernels.chain import Chain
from nispa.kernels.links import Link
from nispa.kernels.native import Library
from tests.kernels.links import (
    CHAINS,
    Pattern,
    answer,
    assert_same,
    full,
    link,
    live_values,
    numbers,
    output_of,
    run_chain,
    seeded,
    shape_of,
)

# Two passes at once, twice, and changes between.


def small_chain(library: Library) -> tuple[Chain, list[Link], Tensor]:
    shape, links = CHAINS["pools drop a row and a column"]
    return Chain(library, links, (2, 11, 9)), links, numbers((18, *shape), seeded(3))


def test_two_forwards_before_two_backwards(compiled: Library) -> None:
    chain, links, x = small_chain(compiled)
    parts = [x[:9], x[9:]]
    upstream = [numbers((9, 3), seeded(seed)) for seed in (1, 2)]
    outputs = [chain(part) for part in parts]
    for part, output, above in reversed(list(zip(parts, outputs, upstream, strict=True))):
        found = torch.autograd.grad(output, chain.parameters(), above)
        for one, other in zip(found, answer(links, part, above).gradients, strict=True):
            assert_same(one, other)


def test_a_loss_of_two_passes(compiled: Library) -> None:
    chain, links, x = small_chain(compiled)
    above = torch.ones(9, 3)
    (chain(x[:9]).sum() + chain(x[9:]).sum()).backward()
    expected = zip(
        answer(links, x[:9], above).gradients, answer(links, x[9:], above).gradients, strict=True
    )
    for values, (first, second) in zip(chain.parameters(), expected, strict=True):
        assert values.grad is not None
        assert_same(values.grad, first + second)
        values.grad = None


def test_a_second_backward_says_what_to_do(compiled: Library) -> None:
    chain, _, x = small_chain(compiled)
    total = chain(x).sum()
    torch.autograd.grad(total, chain.parameters(), retain_graph=True)
    with pytest.raises(RuntimeError, match=r"backward was called twice .* NISPA_KERNELS=reference"):
        torch.autograd.grad(total, chain.parameters())


def test_a_changed_value_is_noticed(compiled: Library) -> None:
    for number in range(2):
        links = [full(4, 5, relu=True), full(3, 4, 1)]
        chain = Chain(compiled, links, (5, 1, 1))
        total = chain(numbers((6, 5), seeded())).sum()
        with torch.no_grad():
            chain.parameters()[2 * number].mul_(2)
        with pytest.raises(RuntimeError, match="changed between forward and backward"):
            torch.autograd.grad(total, chain.parameters())


def expect_or_notice(output: Tensor, x: Tensor, above: Tensor, expected: Tensor) -> None:
    """A backward must give what is right for the forward, or say that it cannot."""
    try:
        (found,) = torch.autograd.grad(output, [x], above)
    except RuntimeError as error:
        noticed = str(error)
    else:
        noticed = ""
        assert_same(found, expected)
    assert not noticed or "changed between forward and backward" in noticed


def test_a_changed_frozen_value_is_noticed_or_does_not_matter(compiled: Library) -> None:
    layer = full(4, 5)
    chain = Chain(compiled, [layer], (5, 1, 1), True)
    x, above = numbers((6, 5), seeded()).requires_grad_(), torch.ones(6, 4)
    expected = answer([layer], x, above).input_gradient
    output = chain(x)
    layer.weight.frozen.mul_(2)
    expect_or_notice(output, x, above, expected)


def test_values_moved_in_memory_are_noticed_or_do_not_matter(compiled: Library) -> None:
    """As ``module.double().float()`` moves them: PyTorch does not count that as a change."""
    layer = link(64, 64, seeded(), Pattern(1.0))
    chain = Chain(compiled, [layer], (64, 1, 1), True)
    x, above = numbers((6, 64), seeded()).requires_grad_(), torch.ones(6, 64)
    expected = answer([layer], x, above).input_gradient
    output = chain(x)
    before = layer.weight.plastic.data
    layer.weight.plastic.data = before.clone()
    before.fill_(math.nan)  # as memory that is freed would be used for something else
    expect_or_notice(output, x, above, expected)


def test_a_changed_pattern_is_noticed(compiled: Library) -> None:
    first, second = full(4, 5, 0), full(4, 5, 7)
    chain = Chain(compiled, [first], (5, 1, 1))
    x = numbers((6, 5), seeded())
    total = chain(x).sum()
    chain.update([second])
    assert_same(chain(x).detach(), answer([second], x, torch.ones(6, 4)).output)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        total.backward()


def test_a_chain_takes_over_other_patterns_and_values(kernels: Library) -> None:
    """The number of live connections may be another; a workspace in use is laid out anew."""
    x = numbers((17, 5), seeded())
    above = numbers((17, 3), seeded())
    chain = Chain(kernels, [full(4, 5, 0, relu=True), full(3, 4, 1)], (5, 1, 1))
    for seed in range(6):
        pattern = Pattern(seed / 5, (5 - seed) / 5, 0.5)
        links = [link(4, 5, seeded(seed), pattern, relu=True), link(3, 4, seeded(seed), pattern)]
        chain.update(links)
        expected, found = answer(links, x, above), run_chain(chain, x, above)
        assert_same(found.output, expected.output)
        for one, other in zip(found.gradients, expected.gradients, strict=True):
            assert_same(one, other)


def test_a_pattern_changed_in_place_is_noticed(compiled: Library) -> None:
    """As loading a state of equal size does."""
    layer = link(2, 3, seeded(), Pattern(1.0))
    live = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    layer = replace(layer, weight=live_values(live, ~live, torch.ones(2, 3)))
    chain = Chain(compiled, [layer], (3, 1, 1))
    x = torch.tensor([[1.0, 10.0, 100.0]])
    before = chain(x).detach()
    layer.weight.plastic_index.copy_(torch.tensor([2, 3]))
    chain.update([layer])
    assert (chain(x).detach() - before).tolist() == [[99.0, -9.0]]


# Memory.


def test_what_is_done_is_let_go(compiled: Library) -> None:
    """A pass whose backward never comes, and a chain itself, keep nothing alive."""
    chain, _, x = small_chain(compiled)
    output = chain(x)
    room = weakref.ref(output.grad_fn.workspace)  # type: ignore[union-attr]
    assert room() is not None
    del output
    gc.collect()
    assert room() is None
    gone = weakref.ref(chain)
    del chain
    gc.collect()
    assert gone() is None


def test_passes_without_gradients_use_one_workspace(compiled: Library) -> None:
    chain, _, x = small_chain(compiled)
    for _ in range(3):
        with torch.no_grad():
            chain(x)
        chain(x).sum().backward()
    assert [len(free) for free in chain._free.values()] == [1]


# What surrounds a pass.


@pytest.mark.parametrize("name", CHAINS)
def test_nothing_is_read_before_it_is_written(
    kernels: Library, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """New memory holds NaN here, and so does memory used before; borders are zeros all along."""
    full_of = functools.partial(np.full, fill_value=np.nan)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: full_of(shape, dtype=dtype))
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))
    shape, links = CHAINS[name]
    x = numbers((18, *shape), seeded())
    upstream = numbers(output_of(links, x), seeded(1))
    expected = answer(links, x, upstream)
    chain = Chain(kernels, links, shape_of(x), True)
    for images in (x, torch.full_like(x, math.nan), x):
        found = run_chain(chain, images, upstream)
    assert_same(found.output, expected.output)
    assert_same(found.input_gradient, expected.input_gradient)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_type_does_not_matter(
    compiled: Library, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    chain, links, x = small_chain(compiled)
    expected = answer(links, x, torch.ones(18, 3))
    labels = torch.zeros(18)
    before = torch.get_default_dtype()
    with torch.no_grad():
        right = chain(x)
    torch.set_default_dtype(dtype)
    try:
        chain = Chain(compiled, links, (2, 11, 9))
        room = workspace.Workspace(chain, 2).activations
        assert room.dtype == torch.float32  # or the kernels would write past its end
        with torch.no_grad():
            found = chain(x)
        again = run_chain(chain, x, torch.ones(18, 3))
        value = chain.gradients(x, labels, lambda logits, _: logits.mean())
        feed = chain.cache([x], 18, 10**6)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == again.output.dtype == value.dtype == torch.float32
    assert torch.equal(found, right)
    assert_same(again.output, expected.output)
    for one, other in zip(again.gradients, expected.gradients, strict=True):
        assert_same(one, other)
    assert feed is not None
    assert feed.rows.dtype == torch.float32


def test_the_default_device_does_not_matter(compiled: Library) -> None:
    chain, links, x = small_chain(compiled)
    expected = answer(links, x, torch.ones(18, 3)).output
    with torch.device("meta"):
        room = workspace.Workspace(chain, 2).activations
        assert room.device.type == "cpu"  # or the kernels would write nowhere
        with torch.no_grad():
            found = chain(x)
    assert found.device.type == "cpu"
    assert_same(found, expected)
