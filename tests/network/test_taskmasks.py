"""Which connections belong to which task, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nispa.errors import FormatError
from nispa.network.taskmasks import Owners, TaskMasks, coded, decoded


def listed(**positions: list[int]) -> dict[str, Tensor]:
    return {name: torch.tensor(each, dtype=torch.int64) for name, each in positions.items()}


def owners() -> Owners:
    """Task 5 claims positions 1 and 4 of layer a and 0 of b; task 2 then 0 and 3 of a."""
    made = Owners(["a", "b"])
    first, second = listed(a=[1, 4], b=[0]), listed(a=[0, 1, 3, 4], b=[0])
    made.claim(5, listed(a=[], b=[]), first)
    made.claim(2, first, second)
    return made


def masks() -> TaskMasks:
    """Two tasks on nine and three connections; they share one connection of each layer."""
    made = TaskMasks({"a": 9, "b": 3})
    made.add(5, {"a": marks(9, 0, 8), "b": marks(3, 1)})
    made.add(2, {"a": marks(9, 0, 4, 5), "b": marks(3, 1, 2)})
    return made


def marks(size: int, *places: int) -> Tensor:
    marked = torch.zeros(size, dtype=torch.bool)
    marked[list(places)] = True
    return marked


def as_lists(found: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: mask.nonzero().squeeze(1).tolist() for name, mask in found.items()}


def test_a_connection_belongs_to_the_task_that_claimed_it() -> None:
    made = owners()
    assert made.tasks == [5, 2]
    assert {name: places.tolist() for name, places in made.places.items()} == {
        "a": [1, 0, 1, 0],
        "b": [0],
    }
    assert as_lists(made.of(5)) == {"a": [1, 3], "b": [0]}
    assert as_lists(made.of(2)) == {"a": [0, 2], "b": []}
    assert as_lists(made.of(5, earlier=True)) == as_lists(made.of(5))
    assert as_lists(made.of(2, earlier=True)) == {"a": [0, 1, 2, 3], "b": [0]}
    assert made.counts() == {5: 3, 2: 2}
    assert made.nbytes == 2 * 5


def test_sets_of_connections_may_overlap() -> None:
    made = masks()
    assert made.tasks == [5, 2]
    assert as_lists(made.of(5)) == {"a": [0, 8], "b": [1]}
    assert as_lists(made.of(2)) == {"a": [0, 4, 5], "b": [1, 2]}
    assert as_lists(made.of(2, earlier=True)) == {"a": [0, 4, 5, 8], "b": [1, 2]}
    assert made.counts() == {5: 3, 2: 5}
    assert made.nbytes == 2 * (2 + 1)  # nine bits are two bytes, three bits one


def test_owners_are_saved_and_loaded() -> None:
    made = owners()
    sizes = {"a": 4, "b": 1}
    again = Owners.load(made.tasks, made.tensors(), sizes)
    assert again.tasks == made.tasks
    assert as_lists(again.of(2)) == as_lists(made.of(2))
    made.places["a"][0] = 0  # what was saved is a copy
    assert as_lists(again.of(2)) == {"a": [0, 2], "b": []}


def test_sets_are_saved_and_loaded() -> None:
    made = masks()
    again = TaskMasks.load(made.tasks, made.tensors(), made.sizes)
    for task in (5, 2):
        assert as_lists(again.of(task)) == as_lists(made.of(task))
    none = TaskMasks({"a": 9, "b": 3})
    assert {name: tuple(rows.shape) for name, rows in none.tensors().items()} == {
        "a": (0, 2),
        "b": (0, 1),
    }
    assert TaskMasks.load([], none.tensors(), none.sizes).tasks == []


@pytest.mark.parametrize("kind", [Owners, TaskMasks])
@pytest.mark.parametrize("tasks", [None, "52", [5, "2"], [5, 5], [5, True], [5]])
def test_a_list_of_tasks_that_does_not_fit_is_refused(kind: Any, tasks: object) -> None:
    made, sizes = (owners(), {"a": 4, "b": 1}) if kind is Owners else (masks(), {"a": 9, "b": 3})
    with pytest.raises(FormatError, match="task"):
        kind.load(tasks, made.tensors(), sizes)


@pytest.mark.parametrize("kind", [Owners, TaskMasks])
@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("b"),
        lambda tensors: tensors.update(c=tensors["b"]),
        lambda tensors: tensors.update(a=tensors["a"].float()),
        lambda tensors: tensors.update(a=tensors["a"][:-1]),
    ],
)
def test_tensors_that_do_not_fit_are_refused(kind: Any, damage: Any) -> None:
    made, sizes = (owners(), {"a": 4, "b": 1}) if kind is Owners else (masks(), {"a": 9, "b": 3})
    tensors = made.tensors()
    damage(tensors)
    with pytest.raises(FormatError, match="layer"):
        kind.load(made.tasks, tensors, sizes)


@pytest.mark.parametrize("place", [-1, 2])
def test_an_owner_that_is_no_task_is_refused(place: int) -> None:
    made = owners()
    tensors = made.tensors()
    tensors["a"][0] = place
    with pytest.raises(FormatError, match="not a task learned"):
        Owners.load(made.tasks, tensors, {"a": 4, "b": 1})


@given(
    rows=st.integers(0, 5),
    width=st.integers(0, 40),
    seed=st.integers(0, 99),
    density=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_coded_rows_come_back(rows: int, width: int, seed: int, density: float) -> None:
    random = torch.Generator().manual_seed(seed)
    bits = (torch.rand((rows, 8 * width), generator=random) < density).numpy()
    packed = torch.from_numpy(np.packbits(bits, axis=1)).view(rows, width)
    assert torch.equal(decoded(coded(packed), rows, width), packed)


def test_what_tasks_share_takes_few_bytes() -> None:
    random = torch.Generator().manual_seed(0)
    row = torch.randint(0, 256, (1, 1000), generator=random, dtype=torch.uint8)
    once, same = len(coded(row)), len(coded(row.repeat(10, 1)))
    assert 1000 < once < 1020  # bits without order cannot be coded in less
    assert same < once + 100
    changed = row.repeat(10, 1)
    changed[:, ::50] ^= 1 << 3  # the second row changes nothing of the first ...
    for task in range(1, 10):
        changed[task, task::50] ^= 1  # ... but one bit of every 50th byte
    other = torch.randint(0, 256, (10, 1000), generator=random, dtype=torch.uint8)
    assert len(coded(changed)) < 0.3 * len(coded(other))


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(0, dtype=torch.uint8),
        coded(torch.ones(2, 3, dtype=torch.uint8)).float(),
        coded(torch.ones(2, 3, dtype=torch.uint8))[:-1],
        coded(torch.ones(2, 3, dtype=torch.uint8))[1:],
        torch.cat([coded(torch.ones(2, 3, dtype=torch.uint8)), torch.zeros(1, dtype=torch.uint8)]),
        coded(torch.ones(2, 4, dtype=torch.uint8)),
        coded(torch.ones(3, 3, dtype=torch.uint8)),
        coded(torch.zeros(1000, 1000, dtype=torch.uint8)),  # far more than was promised
    ],
)
def test_a_damaged_code_is_refused(data: Tensor) -> None:
    with pytest.raises(FormatError, match="masks of"):
        decoded(data, 2, 3)


def test_a_bit_beyond_the_connections_is_refused() -> None:
    made = masks()
    tensors = made.tensors()
    tensors["a"][1, 1] |= 1
    with pytest.raises(FormatError, match="beyond"):
        TaskMasks.load(made.tasks, tensors, made.sizes)


def test_sets_are_saved_in_code_and_loaded() -> None:
    made = masks()
    again = TaskMasks.load_coded(made.tasks, made.coded(), made.sizes)
    for task in (5, 2):
        assert as_lists(again.of(task)) == as_lists(made.of(task))
    assert as_lists(made.union()) == {"a": [0, 4, 5, 8], "b": [1, 2]}
    assert as_lists(TaskMasks({"a": 3}).union()) == {"a": []}
    with pytest.raises(FormatError, match="layers"):
        TaskMasks.load_coded(made.tasks, {"a": made.coded()["a"]}, made.sizes)
