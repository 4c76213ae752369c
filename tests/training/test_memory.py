"""The memory: which samples stay, how they come out again, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa.base.seeding import stream
from nispa.data.tasks import Samples
from nispa.errors import FormatError
from nispa.training.memory import Memory, herding

CPU = torch.device("cpu")
SHAPE = (1, 1, 2)


def pool(count: int, classes: int = 2, first: int = 0, **how: Any) -> Samples:
    """Image i has the pixels i and i + 1; its class is ``first`` + i mod ``classes``."""
    pixels = torch.arange(count, dtype=torch.uint8)
    images = torch.stack([pixels, pixels + 1], 1).view(count, *SHAPE)
    return Samples(images, torch.arange(count) % classes + first, **how)


def memory(size: int, **extras: tuple[int, ...]) -> Memory:
    return Memory(size, SHAPE, CPU, extras)


def numbers(kept: Memory) -> list[int]:
    """Which of the images of ``pool`` are kept, in the order of the memory."""
    return [int(image.flatten()[0]) for each in kept.batches(7) for image in each.images]


def offer_all(kept: Memory, samples: Samples, seed: int, size: int = 7, **extras: Tensor) -> None:
    for number, index in enumerate(torch.arange(len(samples)).split(size)):
        here = {name: values[index] for name, values in extras.items()}
        kept.offer(samples, index, 0, stream(seed, "offers", number), **here)


# The reservoir.


def chi_square(count: Tensor) -> float:
    expected = count.double().mean()
    return float(((count - expected) ** 2 / expected).sum())


def kept_how_often(of: int, size: int, runs: int, *, forgetful: bool = False) -> Tensor:
    """How often each of ``of`` samples is kept; ``forgetful`` loses count of what was offered."""
    count = torch.zeros(of)
    samples = pool(of)
    for run in range(runs):
        kept = memory(size)
        for number, index in enumerate(torch.arange(of).split(7)):
            kept.offer(samples, index, 0, stream(run, "offers", number))
            kept.offered = min(kept.offered, size) if forgetful else kept.offered
        count[numbers(kept)] += 1
    return count


# 30 samples, 10 kept, 600 runs: 200 each, with deviation sqrt(600 * 1/3 * 2/3). The sum of squares
# over the expectation is thus 2/3 of a chi-square with 29 degrees of freedom: 58.3 at 99.9 %.


def test_the_reservoir_keeps_every_sample_of_a_stream_with_equal_probability() -> None:
    assert chi_square(kept_how_often(30, 10, 600)) * 3 / 2 < 58.3


def test_a_reservoir_that_loses_count_would_fail_that_test() -> None:
    assert chi_square(kept_how_often(30, 10, 600, forgetful=True)) * 3 / 2 > 58.3


def by_hand(size: int, batches: list[int], seed: int) -> list[int]:
    """Algorithm R with the same numbers, one sample after the other."""
    kept: list[int] = []
    sample = 0
    for number, count in enumerate(batches):
        drawn = torch.rand(count, dtype=torch.float64, generator=stream(seed, "offers", number))
        for value in drawn.tolist():
            place = int(value * (sample + 1))
            if sample < size:
                kept.append(sample)
            elif place < size:
                kept[place] = sample
            sample += 1
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=6), st.integers(0, 99))
def test_a_batch_is_offered_one_sample_after_the_other(
    size: int, batches: list[int], seed: int
) -> None:
    samples, kept = pool(sum(batches)), memory(size, sums=(1,))
    start = 0
    for number, count in enumerate(batches):
        index = torch.arange(start, start + count)
        sums = 2.0 * index.view(-1, 1) + 1
        kept.offer(samples, index, number, stream(seed, "offers", number), sums=sums)
        start += count
        assert len(kept) <= size
    assert numbers(kept) == by_hand(size, batches, seed)
    assert kept.offered == sum(batches)
    drawn = kept.draw(size, stream(0, "draw"))
    assert torch.equal(drawn.extras["sums"][:, 0], drawn.images.flatten(1).sum(1))
    assert torch.equal(drawn.wanted[:, 0], samples.labels[drawn.images.flatten(1)[:, 0].long()])


def test_the_same_seed_keeps_the_same_samples() -> None:
    first, same, other = memory(10), memory(10), memory(10)
    for kept, seed in ((first, 3), (same, 3), (other, 4)):
        offer_all(kept, pool(90), seed)
    assert numbers(first) == numbers(same) != numbers(other)


# Shares of classes.


def counts(kept: Memory) -> dict[tuple[int, int], int]:
    pairs = list(zip(kept.places.tolist(), kept.labels.tolist(), strict=True))
    return {pair: pairs.count(pair) for pair in kept.groups()}


def test_the_size_is_shared_equally_and_the_first_classes_get_the_remainder() -> None:
    kept = memory(11)
    new = kept.balance(pool(40), 0, stream(0, "a"))
    assert counts(kept) == {(0, 0): 6, (0, 1): 5}
    assert new.tolist() == list(range(11))
    before = set(numbers(kept))
    assert len(before) == 11
    new = kept.balance(pool(40, first=2), 1, stream(0, "b"))
    assert counts(kept) == {(0, 0): 3, (0, 1): 3, (1, 2): 3, (1, 3): 2}
    assert new.tolist() == [6, 7, 8, 9, 10]
    assert set(numbers(kept)[:6]) < before
    assert len(set(numbers(kept)[6:])) == 5
    kept.balance(pool(40, classes=3, first=4), 2, stream(0, "c"))
    assert list(counts(kept).values()) == [2, 2, 2, 2, 1, 1, 1]


def test_a_class_with_few_samples_leaves_its_room_free() -> None:
    kept = memory(10)
    few = Samples(pool(9).images, torch.tensor([0] + [1] * 8))
    kept.balance(few, 0, stream(0, "a"))
    assert counts(kept) == {(0, 0): 1, (0, 1): 5}


def test_a_class_that_comes_again_counts_as_one_of_the_new_task() -> None:
    kept = memory(8)
    kept.balance(pool(40), 0, stream(0, "a"))
    kept.balance(pool(40), 1, stream(0, "b"))
    assert counts(kept) == {(0, 0): 2, (0, 1): 2, (1, 0): 2, (1, 1): 2}
    with pytest.raises(ValueError, match="task 1"):
        kept.balance(pool(40), 1, stream(0, "c"))


def test_what_stays_and_what_comes_is_drawn_with_equal_probability() -> None:
    came, stayed = torch.zeros(20), torch.zeros(20)
    for run in range(600):
        kept = memory(8)
        kept.balance(pool(20, classes=1), 0, stream(run, "a"))
        came[numbers(kept)] += 1
        kept.balance(pool(20, classes=1, first=1), 1, stream(run, "b"))
        stayed[numbers(kept)[:4]] += 1
    # 20 samples, 8 (then 4) kept: (1 - 8/20) (then 1 - 4/20) of a chi-square with 19 degrees of
    # freedom, whose 99.9 % point is 43.8.
    assert chi_square(came) / (1 - 8 / 20) < 43.8
    assert chi_square(stayed) / (1 - 4 / 20) < 43.8


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_the_memory_is_never_too_full_and_never_unfair(
    size: int, tasks: list[int], herd: bool
) -> None:
    kept, first = memory(size), 0
    for place, classes in enumerate(tasks):
        samples = pool(10 * classes, classes, first)
        if herd:
            kept.herd(samples, torch.randn(len(samples), 3, generator=stream(place, "f")), place)
        else:
            kept.balance(samples, place, stream(place, "balance"))
        first += classes
        assert len(kept) <= size
        shares = [int((kept.labels == label).sum()) for label in range(first)]
        room = [min(10, size // first + (label < size % first)) for label in range(first)]
        assert all(share <= most for share, most in zip(shares, room, strict=True))
        assert shares[-classes:] == room[-classes:]


# Herding.


def nearest_by_trial(features: Tensor, count: int) -> list[int]:
    """Algorithm 4 as it is written: try every sample, measure the distance of the means."""
    phi = features.double() / features.double().norm(dim=1, keepdim=True)
    mu = phi.mean(0) / phi.mean(0).norm()
    order: list[int] = []
    for k in range(1, count + 1):
        distance = {
            row: float((mu - phi[[*order, row]].sum(0) / k).norm())
            for row in range(len(phi))
            if row not in order
        }
        order.append(min(distance, key=lambda row: distance[row]))
    return order


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9), st.integers(2, 5))
def test_herding_is_what_trying_every_sample_finds(seed: int, rows: int, width: int) -> None:
    features = torch.randn(rows, width, generator=stream(seed, "features"))
    assert herding(features, rows).tolist() == nearest_by_trial(features, rows)


def test_herding_by_hand() -> None:
    # At length 1: (1, 0), (0, 1), (0.6, 0.8). The mean is (1.6, 1.8) / 3, and points to 48.4
    # degrees; nearest is the third at 53.1. With it, (1, 0) pulls the mean to 26.6 and (0, 1) to
    # 71.6 degrees; the first is nearer.
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [6.0, 8.0]])
    assert herding(features, 3).tolist() == [2, 0, 1]
    assert herding(features, 2).tolist() == [2, 0]


def test_herded_classes_keep_the_first_of_their_order() -> None:
    kept = memory(6)
    features = torch.randn(20, 3, generator=stream(1, "features"))
    kept.herd(pool(20), features, 0)
    even, odd = torch.arange(0, 20, 2), torch.arange(1, 20, 2)
    order = [even[herding(features[even], 3)].tolist(), odd[herding(features[odd], 3)].tolist()]
    assert numbers(kept) == order[0] + order[1]
    new = kept.herd(pool(20, first=2), features, 1)
    assert numbers(kept) == order[0][:2] + order[1][:2] + order[0][:1] + order[1][:1]
    assert new.tolist() == [4, 5]
    assert kept.labels.tolist() == [0, 0, 1, 1, 2, 3]


# Reading.


def test_a_draw_is_without_replacement_and_at_most_what_is_there() -> None:
    kept = memory(20)
    assert len(kept.draw(5, stream(0, "empty"))) == 0
    offer_all(kept, pool(12), 0)
    drawn = kept.draw(5, stream(0, "draw"))
    assert len(drawn) == len(set(drawn.index.tolist())) == 5
    everything = kept.draw(50, stream(0, "draw"))
    assert sorted(everything.index.tolist()) == list(range(12))
    assert everything.images.shape == (12, *SHAPE)
    assert everything.images.dtype == torch.float32
    assert everything.wanted.dtype == torch.int64
    again = kept.draw(5, stream(0, "draw"))
    assert torch.equal(again.index, drawn.index)


def test_every_sample_is_drawn_equally_often() -> None:
    kept, count = memory(10), torch.zeros(10)
    offer_all(kept, pool(10), 0)
    for run in range(600):
        count[kept.draw(4, stream(run, "draw")).index] += 1
    assert chi_square(count) / (1 - 4 / 10) < 27.9  # 9 degrees of freedom, 99.9 %


def test_samples_of_a_class_and_of_a_task() -> None:
    kept = memory(8)
    kept.balance(pool(40), 0, stream(0, "a"))
    kept.balance(pool(40), 3, stream(0, "b"))
    assert kept.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert kept.places.tolist() == [0, 0, 0, 0, 3, 3, 3, 3]
    assert kept.select(label=1).tolist() == [2, 3, 6, 7]
    assert kept.select(place=3).tolist() == [4, 5, 6, 7]
    assert kept.select(1, 3).tolist() == [6, 7]
    drawn = kept.draw(3, stream(0, "draw"), kept.select(1))
    assert set(drawn.index.tolist()) < {2, 3, 6, 7}
    assert drawn.wanted[:, 0].tolist() == [1, 1, 1]
    assert [len(batch) for batch in kept.batches(3)] == [3, 3, 2]
    assert [batch.index.tolist() for batch in kept.batches(2, kept.select(1))] == [[2, 3], [6, 7]]


def test_what_was_not_given_is_zero_and_can_be_written() -> None:
    kept = memory(4, logits=(2,))
    new = kept.balance(pool(20), 0, stream(0, "a"))
    assert kept.take(new).extras["logits"].tolist() == [[0.0, 0.0]] * 4
    kept.write("logits", new[1:3], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert kept.take(new).extras["logits"].tolist() == [[0, 0], [1, 2], [3, 4], [0, 0]]


# Forms.


def test_bytes_stay_bytes_and_come_out_as_a_network_sees_them() -> None:
    samples = pool(5, scale=0.5, mean=(1.0,), std=(2.0,), pixel_order=torch.tensor([1, 0]))
    kept = memory(5)
    kept.offer(samples, torch.arange(5), 0, stream(0, "a"))
    # Image 3 is (3, 4), read as (4, 3), scaled to (2, 1.5), less 1, over 2.
    assert kept.take(torch.tensor([3])).images.flatten().tolist() == [0.5, 0.25]
    assert torch.equal(kept.take(torch.arange(5)).images, samples.batch(torch.arange(5))[0])
    assert kept.bytes == 5 * (2 + 8 + 8)


def test_what_is_kept_is_counted_by_the_byte() -> None:
    kept = memory(100, logits=(3,))
    assert kept.bytes == 0
    offer_all(kept, pool(6), 0, logits=torch.zeros(6, 3))
    assert kept.bytes == 6 * (2 + 8 + 8 + 3 * 4)


@pytest.mark.parametrize(
    "other",
    [
        pool(8, scale=0.25, first=2),
        pool(8, scale=0.5, mean=(1.0,), first=2),
        pool(8, scale=0.5, std=(3.0,), first=2),
        Samples(torch.linspace(0, 1, 16).view(8, *SHAPE), torch.arange(8) % 2 + 2, scale=0.5),
    ],
    ids=["scale", "mean", "std", "type"],
)
def test_another_form_makes_the_whole_memory_floats(other: Samples) -> None:
    first = pool(8, scale=0.5)
    kept = memory(16)
    kept.offer(first, torch.arange(8), 0, stream(0, "a"))
    assert kept.bytes == 8 * (2 + 16)
    kept.offer(other, torch.arange(8), 1, stream(0, "b"))
    assert kept.bytes == 16 * (2 * 4 + 16)
    both = torch.cat([samples.batch(torch.arange(8))[0] for samples in (first, other)])
    assert torch.equal(kept.take(torch.arange(16)).images, both)
    again = memory(16)
    again.load(*kept.state(), outputs=4)
    assert torch.equal(again.take(torch.arange(16)).images, both)


def test_tasks_with_pixels_in_another_order_share_the_bytes() -> None:
    kept = memory(8)
    kept.offer(pool(4), torch.arange(4), 0, stream(0, "a"))
    turned = pool(4, pixel_order=torch.tensor([1, 0]))
    kept.offer(turned, torch.arange(4), 1, stream(0, "b"))
    assert kept.bytes == 8 * (2 + 16)
    images = kept.take(torch.tensor([2, 6])).images.flatten(1)
    assert images.tolist() == [[2.0, 3.0], [3.0, 2.0]]


# States.


def filled() -> Memory:
    kept = memory(6, logits=(2,))
    samples = pool(20, scale=0.5, mean=(0.1,), std=(0.3,))
    offer_all(kept, samples, 5, logits=torch.arange(40.0).view(20, 2))
    return kept


def test_a_state_loads_and_goes_on_identically() -> None:
    kept, loaded = filled(), memory(6, logits=(2,))
    loaded.load(*kept.state(), outputs=2)
    assert loaded.offered == 20
    assert loaded.form == kept.form
    for each in (kept, loaded):
        offer_all(each, pool(20, scale=0.5, mean=(0.1,), std=(0.3,)), 6)
    first, second = kept.state(), loaded.state()
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(tensor, second[0][name]) for name, tensor in first[0].items())


def test_a_state_is_a_copy() -> None:
    kept = filled()
    tensors, _ = kept.state("m.")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    offer_all(kept, pool(20, scale=0.5, mean=(0.1,), std=(0.3,)), 6)
    assert set(tensors) == {"m.images", "m.labels", "m.places", "m.logits"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_an_empty_memory_has_a_state() -> None:
    kept = memory(6)
    loaded = filled()
    with pytest.raises(FormatError):
        loaded.load(*kept.state(), outputs=2)  # which has no logits
    again = memory(6)
    again.load(*kept.state(), outputs=2)
    assert len(again) == 0


DAMAGE: dict[str, Any] = {
    "no labels": ("labels", lambda t: None),
    "a label too high": ("labels", lambda t: t + 1),
    "a label below 0": ("labels", lambda t: t - 1),
    "labels of another type": ("labels", lambda t: t.int()),
    "fewer labels": ("labels", lambda t: t[:-1]),
    "labels without a dimension": ("labels", lambda t: t[0]),
    "a task below 0": ("places", lambda t: t - 1),
    "more tasks": ("places", lambda t: torch.cat([t, t])),
    "images of another shape": ("images", lambda t: t.view(6, 1, 2, 1)),
    "images of another type": ("images", lambda t: t.short()),
    "pixels that are no numbers": ("images", lambda t: t.float() * torch.nan),
    "logits of another width": ("logits", lambda t: t[:, :1]),
    "logits of another type": ("logits", lambda t: t.double()),
    "logits without end": ("logits", lambda t: t / 0.0),
}
WRONG_VALUES: dict[str, Any] = {
    "no scale": ("scale", None),
    "no number": ("scale", "wide"),
    "scale 0": ("scale", 0.0),
    "scale without end": ("scale", float("inf")),
    "a mean too many": ("mean", [0.1, 0.2, 0.3]),
    "a mean that is a number": ("mean", 0.1),
    "no deviation": ("std", [0.0]),
    "too few offered": ("offered", 5),
    "offered below 0": ("offered", -1),
    "offered by halves": ("offered", 20.0),
    "nothing said": ("offered", None),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_state_with_damaged_tensors_is_refused(what: str) -> None:
    name, damage = DAMAGE[what]
    tensors, values = filled().state()
    tensors["memory." + name] = damage(tensors["memory." + name])
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(FormatError, match="memory"):
        memory(6, logits=(2,)).load(kept, values, outputs=2)


@pytest.mark.parametrize("what", WRONG_VALUES)
def test_a_state_with_damaged_values_is_refused(what: str) -> None:
    tensors, values = filled().state()
    name, value = WRONG_VALUES[what]
    with pytest.raises(FormatError, match="memory"):
        memory(6, logits=(2,)).load(tensors, values | {name: value}, outputs=2)
    values.pop(name)
    with pytest.raises(FormatError, match="memory"):
        memory(6, logits=(2,)).load(tensors, values, outputs=2)
    with pytest.raises(FormatError, match="memory"):
        memory(6, logits=(2,)).load(tensors, None, outputs=2)


def test_a_state_of_a_larger_memory_or_with_more_is_refused() -> None:
    tensors, values = filled().state()
    with pytest.raises(FormatError, match="more than 5"):
        memory(5, logits=(2,)).load(tensors, values, outputs=2)
    with pytest.raises(FormatError):
        memory(6).load(tensors, values, outputs=2)
    more = tensors | {"memory.more": torch.zeros(6)}
    with pytest.raises(FormatError):
        memory(6, logits=(2,)).load(more, values, outputs=2)


def test_a_refused_state_changes_nothing() -> None:
    kept = filled()
    before = numbers(kept)
    tensors, values = kept.state()
    tensors["memory.labels"] = tensors["memory.labels"] + 9
    with pytest.raises(FormatError):
        kept.load(tensors, values | {"scale": 7.0}, outputs=2)
    assert numbers(kept) == before
    assert kept.form.scale == 0.5


def test_a_size_that_is_never_filled_takes_no_room() -> None:
    memory = Memory(10_000_000, (3, 4096, 4096), torch.device("cpu"), {"logits": (1_000_000,)})
    assert (len(memory), memory.bytes) == (0, 0)
    memory.load(*memory.state(), outputs=2)
    assert len(memory) == 0
