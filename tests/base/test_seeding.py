from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nispa.base.seeding import MAX_SEED, derive, stream

NAMES = st.lists(st.one_of(st.integers(0, 99), st.sampled_from(["batches", "growth"])), max_size=3)


def test_derived_seeds_are_the_same_on_every_platform() -> None:
    # The first eight bytes of SHA-256("0/batches/3/2"), halved:
    # printf 0/batches/3/2 | sha256sum
    assert derive(0, "batches", 3, 2) == int("1a9c15228bb651a8", 16) >> 1
    assert derive(0) == int("5feceb66ffc86f38", 16) >> 1


@examples(deadline=None)
@given(seed=st.integers(0, MAX_SEED), name=NAMES)
def test_derived_seeds_fit_63_bits(seed: int, name: list[str | int]) -> None:
    assert 0 <= derive(seed, *name) <= MAX_SEED


def test_streams_of_different_names_differ() -> None:
    names: list[tuple[int, tuple[str | int, ...]]] = [
        (0, ("batches", 0)),
        (1, ("batches", 0)),
        (0, ("batches", 1)),
        (0, ("growth", 0)),
        (0, ("batches", 0, 0)),
        (0, ("batches",)),
        (0, ()),
        (0, ("batches", 11)),
        (0, ("batches", 1, 1)),
    ]
    drawn = [torch.randn(4, generator=stream(seed, *name)) for seed, name in names]
    for place, first in enumerate(drawn):
        assert not any(torch.equal(first, second) for second in drawn[:place])


def test_a_stream_depends_on_its_name_alone() -> None:
    other = stream(0, "growth")
    torch.rand(100, generator=other)
    first = torch.rand(5, generator=stream(7, "batches", 1))
    torch.rand(3)
    assert torch.equal(first, torch.rand(5, generator=stream(7, "batches", 1)))


def test_a_stream_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(5, generator=stream(7, "batches"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thousand_streams_have_a_thousand_seeds() -> None:
    # As the generator uses them: PyTorch reads the low 32 bits.
    seeds = {derive(0, "batches", task, epoch) % 2**32 for task in range(20) for epoch in range(50)}
    assert len(seeds) == 1000
