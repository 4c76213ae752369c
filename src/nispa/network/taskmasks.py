"""Which connections belong to which task.

Two forms, with the same questions. In :class:`Owners` a connection has one owner, the task that
claimed it: PackNet. In :class:`TaskMasks` each task has a set of connections, and sets may overlap:
Winning SubNetworks, Piggyback, SupSup.

Both list connections per layer in an order that their user defines, such as the frozen ones by
position, or all positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from nispa.errors import FormatError

OWNER = torch.int16
"""Type of a task's place among the tasks, which is what is stored for each connection."""


class Owners:
    """One owner for each connection.

    Attributes:
        tasks: Numbers of the tasks, in the order in which they claimed connections.
        places: Per layer, the place in ``tasks`` of each connection's owner, ``(listed,)`` int16 on
            the CPU.
    """

    def __init__(self, layers: Iterable[str]) -> None:
        """No task, and no connection listed in any of the layers."""
        self.tasks: list[int] = []
        self.places = {name: torch.zeros(0, dtype=OWNER) for name in layers}

    def claim(self, task: int, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Makes a task the owner of every connection that was not listed before.

        Args:
            task: Its number.
            before: Positions of the connections listed so far, per layer, ``(listed,)``, rising.
            now: Those and the new ones, likewise.
        """
        for name, positions in now.items():
            places = torch.full((len(positions),), len(self.tasks), dtype=OWNER)
            places[torch.isin(positions, before[name])] = self.places[name]
            self.places[name] = places
        self.tasks.append(task)

    def of(self, task: int, *, earlier: bool = False) -> dict[str, Tensor]:
        """The connections of a task, per layer, ``(listed,)`` bool; those of earlier tasks, too?"""
        place = self.tasks.index(task)
        if earlier:
            return {name: places <= place for name, places in self.places.items()}
        return {name: places == place for name, places in self.places.items()}

    def counts(self) -> dict[int, int]:
        """Number of connections of each task."""
        return {task: _total(self.of(task)) for task in self.tasks}

    @property
    def nbytes(self) -> int:
        """Bytes of the owners."""
        return sum(places.nbytes for places in self.places.values())

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the owners, by layer."""
        return {name: places.clone() for name, places in self.places.items()}

    @classmethod
    def load(cls, tasks: object, saved: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Owners:
        """What ``tasks`` and :meth:`tensors` saved.

        Args:
            tasks: Numbers of the tasks.
            saved: Owners by layer.
            sizes: How many connections each layer lists.

        Raises:
            FormatError: They do not fit.
        """
        loaded = cls(sizes)
        loaded.tasks = task_numbers(tasks, "tasks")
        _check_layers(saved, sizes)
        for name, places in saved.items():
            if places.dtype != OWNER or places.shape != (sizes[name],):
                raise FormatError(f"layer {name}: each frozen connection must have one owner")
            if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(loaded.tasks):
                raise FormatError(f"layer {name}: a connection's owner is not a task learned")
        loaded.places = dict(saved)
        return loaded


class TaskMasks:
    """A set of connections for each task: in memory one bit for each connection.

    In a file the bits are entropy-coded, see :func:`coded`.

    Attributes:
        sizes: How many connections each layer lists.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """No task yet."""
        self.sizes = dict(sizes)
        self._bits: dict[int, dict[str, Tensor]] = {}

    @property
    def tasks(self) -> list[int]:
        """Numbers of the tasks, in the order in which they were added."""
        return list(self._bits)

    def add(self, task: int, masks: Mapping[str, Tensor]) -> None:
        """Stores the connections of a task, per layer, bool in the layer's order."""
        assert task not in self._bits, f"task {task} has a mask already"
        self._bits[task] = {
            name: torch.from_numpy(np.packbits(masks[name].flatten().cpu().numpy()))
            for name in self.sizes
        }

    def of(self, task: int, *, earlier: bool = False) -> dict[str, Tensor]:
        """The connections of a task, per layer, ``(listed,)`` bool; those of earlier tasks, too?"""
        last = self.tasks.index(task)
        chosen = self.tasks[0 if earlier else last : last + 1]
        masks = [{name: self._unpacked(each, name) for name in self.sizes} for each in chosen]
        return {name: torch.stack([mask[name] for mask in masks]).any(dim=0) for name in self.sizes}

    def _unpacked(self, task: int, name: str) -> Tensor:
        bits = np.unpackbits(self._bits[task][name].numpy(), count=self.sizes[name])
        return torch.from_numpy(bits).bool()

    def union(self) -> dict[str, Tensor]:
        """The connections of at least one task, per layer, ``(listed,)`` bool."""
        if self._bits:
            return self.of(self.tasks[-1], earlier=True)
        return {name: torch.zeros(size, dtype=torch.bool) for name, size in self.sizes.items()}

    def counts(self) -> dict[int, int]:
        """Number of connections of each task."""
        return {task: _total(self.of(task)) for task in self.tasks}

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return sum(bits.nbytes for masks in self._bits.values() for bits in masks.values())

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the bits, by layer: one row for each task, ``(tasks, bytes)`` uint8."""
        return {
            name: torch.stack([masks[name] for masks in self._bits.values()])
            if self._bits
            else torch.zeros(0, _bytes(size), dtype=torch.uint8)
            for name, size in self.sizes.items()
        }

    def coded(self) -> dict[str, Tensor]:
        """The bits as they are stored, by layer; see :func:`coded`."""
        return {name: coded(rows) for name, rows in self.tensors().items()}

    @classmethod
    def load_coded(
        cls, tasks: object, saved: Mapping[str, Tensor], sizes: Mapping[str, int]
    ) -> TaskMasks:
        """What ``tasks`` and :meth:`coded` saved; see :meth:`Owners.load`.

        Raises:
            FormatError: They do not fit.
        """
        numbers = task_numbers(tasks, "tasks")
        _check_layers(saved, sizes)
        rows = {
            name: decoded(data, len(numbers), _bytes(sizes[name])) for name, data in saved.items()
        }
        return cls.load(numbers, rows, sizes)

    @classmethod
    def load(
        cls, tasks: object, saved: Mapping[str, Tensor], sizes: Mapping[str, int]
    ) -> TaskMasks:
        """What ``tasks`` and :meth:`tensors` saved; see :meth:`Owners.load`.

        Raises:
            FormatError: They do not fit.
        """
        loaded, numbers = cls(sizes), task_numbers(tasks, "tasks")
        _check_layers(saved, sizes)
        for name, rows in saved.items():
            expected = (len(numbers), _bytes(sizes[name]))
            if rows.dtype != torch.uint8 or rows.shape != expected:
                raise FormatError(f"layer {name}: each task must have one bit for each connection")
            beyond = 2 ** (-sizes[name] % 8) - 1  # the bits that fill the last byte
            if rows.numel() and bool((rows[:, -1] & beyond).any()):
                raise FormatError(f"layer {name}: a task has a bit beyond the connections")
        for row, task in enumerate(numbers):
            loaded._bits[task] = {name: saved[name][row].clone() for name in sizes}
        return loaded


def coded(rows: Tensor) -> Tensor:
    """Rows of bits in few bytes: Deflate over the rows, or over what each changes of the last.

    The form that is shorter is taken; the first byte says which. Tasks that share most of their
    connections change few bits.

    Args:
        rows: ``(rows, bytes)`` uint8, as :meth:`TaskMasks.tensors` gives them.

    Returns:
        ``(coded bytes,)`` uint8.
    """
    plain = rows.numpy()
    changes = plain.copy()
    changes[1:] ^= plain[:-1]
    forms = [
        bytes([kind]) + zlib.compress(each.tobytes(), 9)
        for kind, each in enumerate((plain, changes))
    ]
    return torch.frombuffer(bytearray(min(forms, key=len)), dtype=torch.uint8)


def decoded(data: Tensor, rows: int, width: int) -> Tensor:
    """The rows of bits that :func:`coded` took.

    Args:
        data: ``(coded bytes,)`` uint8.
        rows: How many rows.
        width: Bytes of each.

    Raises:
        FormatError: ``data`` is not the code of such rows.
    """
    size = rows * width
    if data.dtype != torch.uint8 or data.dim() != 1 or len(data) == 0 or int(data[0]) > 1:
        raise FormatError("the masks of tasks must be coded bytes")
    reader = zlib.decompressobj()
    try:  # one byte more than expected is enough to see that there are too many
        found = reader.decompress(data[1:].numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise FormatError(f"the masks of tasks are damaged: {error}") from None
    if len(found) != size or not reader.eof or reader.unused_data:
        raise FormatError(f"the masks of {rows} tasks must be {size} bytes")
    bits = np.frombuffer(found, dtype=np.uint8).reshape(rows, width)
    if int(data[0]) == 1:
        bits = np.bitwise_xor.accumulate(bits, axis=0)
    return torch.from_numpy(bits.copy())


def task_numbers(value: object, name: str) -> list[int]:
    """The numbers of tasks in a saved value.

    Raises:
        FormatError: It is no list of whole numbers, or has one of them twice.
    """
    if not isinstance(value, list) or not all(type(task) is int for task in value):
        raise FormatError(f"'{name}' must list the tasks by number")
    if len(set(value)) != len(value):
        raise FormatError(f"'{name}' names a task twice")
    return list(value)


def _check_layers(saved: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    if set(saved) != set(sizes):
        raise FormatError("the masks of tasks do not fit the network's layers")


def _total(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _bytes(bits: int) -> int:
    return -(-bits // 8)
