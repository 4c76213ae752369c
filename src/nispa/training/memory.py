"""A memory of samples of earlier tasks, for methods that rehearse.

One buffer on the method's device holds at most ``size`` samples: images as stored (bytes if the
data set has bytes), labels, the number of each sample's task, and further values per sample that a
method names (such as logits). One of three policies decides which samples stay; a memory keeps to
one:

- :meth:`Memory.offer`, the reservoir (Vitter 1985, "Random sampling with a reservoir", Algorithm
  R): after n samples each of them is kept with probability min(1, size / n), whatever the tasks.
- :meth:`Memory.balance`: the same number of each class, drawn at random at the end of a task.
- :meth:`Memory.herd`: the same number of each class, those whose mean is nearest to the class's
  (Rebuffi et al. 2017, "iCaRL", arXiv 1611.07725, Algorithms 4 and 5).

The last two divide the size among ``groups`` classes: each may have ``size // groups`` samples, and
the first ``size % groups`` of them, by task and number, one more. A class that returns in another
task counts as a class of that task. Room that a class cannot fill stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nispa.base.shapes import Shape
from nispa.data.tasks import Form, Samples, form_of
from nispa.errors import FormatError

Choice = Callable[[Tensor, int], Tensor]
"""From indices of samples, ``(n,)`` int64, and a number to at most so many indices that stay."""


@dataclass(frozen=True)
class Remembered:
    """Some samples of a memory.

    Attributes:
        images: ``(n, *shape)`` float32, as the network sees them.
        wanted: ``(n, 2)`` int64: class and task of each.
        extras: Further values of each, ``(n, ...)`` float32 by name.
        index: Their positions in the memory, ``(n,)`` int64.
    """

    images: Tensor
    wanted: Tensor
    extras: dict[str, Tensor]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Memory:
    """At most ``size`` samples of earlier tasks.

    Attributes:
        size: Number of samples, at most.
        offered: Number of samples offered to the reservoir so far.
        form: How stored pixels become the network's input.
    """

    def __init__(
        self,
        size: int,
        shape: Shape,
        device: torch.device,
        extras: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """An empty memory.

        Args:
            size: Number of samples, at most.
            shape: The shape of a sample.
            device: Where to keep them.
            extras: Shape of each further value per sample, by name, such as
                ``{"logits": (outputs,)}``; they are float32, and zero until set.
        """
        self.size, self.offered, self.form = size, 0, Form()
        self._device, self._count = device, 0
        # Rows are added as samples come: the size may far exceed the number of samples.
        self._images = torch.zeros((0, *shape), dtype=torch.uint8, device=device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=device)
        self._places = torch.zeros(0, dtype=torch.int64, device=device)
        self._extras = {
            name: torch.zeros((0, *each), device=device) for name, each in (extras or {}).items()
        }

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> Tensor:
        """Class of each sample, ``(len,)`` int64."""
        return self._labels[: self._count]

    @property
    def places(self) -> Tensor:
        """Number of each sample's task, ``(len,)`` int64."""
        return self._places[: self._count]

    @property
    def bytes(self) -> int:
        """Bytes of the samples, the filled part of the buffer."""
        return sum(kept[: self._count].nbytes for kept in self._buffers().values())

    # Policies.

    def offer(
        self, samples: Samples, index: Tensor, place: int, generator: torch.Generator, **extras: Any
    ) -> None:
        """Offers samples to the reservoir, one after the other.

        Args:
            samples: The data set they belong to, on the memory's device.
            index: Their indices in it, ``(n,)`` int64.
            place: Number of their task.
            generator: Source of ``n`` random numbers.
            extras: Further values of each sample, ``(n, ...)`` by name.
        """
        number = torch.arange(self.offered, self.offered + len(index))
        drawn = torch.rand(len(index), dtype=torch.float64, generator=generator)
        slots = torch.where(number < self.size, number, (drawn * (number + 1)).long())
        # Algorithm R: sample number k (from 0) gets a slot below k + 1 at random, and stays if the
        # memory has that slot. Of samples with the same slot, the last one stays.
        last = {slot: nth for nth, slot in enumerate(slots.tolist()) if slot < self.size}
        self.offered += len(index)
        if last:
            where = torch.tensor(list(last), device=self._device)
            chosen = torch.tensor(list(last.values()), device=self._device)
            kept = {name: values[chosen] for name, values in extras.items()}
            self._put(where, samples, index[chosen], place, kept)
        self._count = min(self.offered, self.size)

    def balance(self, samples: Samples, place: int, generator: torch.Generator) -> Tensor:
        """Makes room for the classes of a task and fills it with random samples of them.

        Surplus samples of older classes are removed at random.

        Args:
            samples: All samples of the task, on the memory's device.
            place: Number of the task.
            generator: Source of randomness for both.

        Returns:
            Positions of the new samples in the memory, ``(n,)`` int64.
        """

        def any_of(index: Tensor, most: int) -> Tensor:
            order = torch.randperm(len(index), generator=generator)[:most]
            return index[order.to(index.device)]

        return self._share(samples, place, any_of, any_of)

    def herd(self, samples: Samples, features: Tensor, place: int) -> Tensor:
        """Makes room for the classes of a task and fills it by :func:`herding`.

        Older classes keep the first samples of their order.

        Args:
            samples: All samples of the task, on the memory's device.
            features: The network's features of each of them, ``(samples, features)``.
            place: Number of the task.

        Returns:
            Positions of the new samples in the memory, ``(n,)`` int64, each class in its order.
        """

        def first_of(index: Tensor, most: int) -> Tensor:
            return index[:most]

        def nearest_of(index: Tensor, most: int) -> Tensor:
            return index[herding(features[index], most)]

        return self._share(samples, place, first_of, nearest_of)

    def _share(self, samples: Samples, place: int, old: Choice, new: Choice) -> Tensor:
        """Divides the size among all classes, and chooses among the old and the new samples."""
        new_groups = [(place, label) for label in samples.labels.unique().tolist()]
        groups = [*self.groups(), *new_groups]
        if len(set(groups)) < len(groups):
            raise ValueError(f"the memory has samples of task {place} already")
        room = {
            group: self.size // len(groups) + (rank < self.size % len(groups))
            for rank, group in enumerate(sorted(groups))
        }
        kept = [old(self.select(label, of), room[of, label]) for of, label in self.groups()]
        self._keep(torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64))
        index = torch.cat(
            [
                new((samples.labels == label).nonzero().squeeze(1), room[place, label])
                for _, label in new_groups
            ]
        )
        where = torch.arange(self._count, self._count + len(index), device=self._device)
        self._put(where, samples, index, place, {})
        self._count += len(index)
        return where

    def groups(self) -> list[tuple[int, int]]:
        """Task and class of all samples, each pair once, in rising order."""
        return sorted(set(zip(self.places.tolist(), self.labels.tolist(), strict=True)))

    def _keep(self, index: Tensor) -> None:
        """Only the samples at ``index`` stay, in this order."""
        index = index.to(self._device)
        for kept in self._buffers().values():
            kept[: len(index)] = kept[index]
        self._count = len(index)

    def _put(
        self,
        where: Tensor,
        samples: Samples,
        index: Tensor,
        place: int,
        extras: Mapping[str, Tensor],
    ) -> None:
        """Writes the samples at ``index`` to the positions ``where``."""
        if len(where):
            self._make_room(1 + int(where.max()))
        self._images[where] = self._in_form(samples, index)
        self._labels[where] = samples.labels[index]
        self._places[where] = place
        for name, kept in self._extras.items():
            kept[where] = extras[name].to(kept) if name in extras else 0.0

    def _make_room(self, count: int) -> None:
        """Makes the buffers long enough for ``count`` samples, and at least twice as long."""
        before = len(self._labels)
        if count <= before:
            return
        rows = min(self.size, max(count, 2 * before))
        self._images, self._labels, self._places = (
            _longer(kept, rows) for kept in (self._images, self._labels, self._places)
        )
        self._extras = {name: _longer(kept, rows) for name, kept in self._extras.items()}

    def _in_form(self, samples: Samples, index: Tensor) -> Tensor:
        """Images as the buffer keeps them: in the first samples' form, float32 once forms mix."""
        if self._count == 0:
            self.form = samples.form
            self._images = torch.zeros_like(self._images, dtype=samples.images.dtype)
        if (samples.form, samples.images.dtype) == (self.form, self._images.dtype):
            return samples.stored(index)
        self._images, self.form = self.form(self._images), Form()
        return samples.batch(index)[0]

    def write(self, name: str, index: Tensor, values: Tensor) -> None:
        """Sets a further value, ``(n, ...)``, of the samples at ``index``."""
        self._extras[name][index] = values.to(self._extras[name])

    # Reading.

    def draw(
        self, count: int, generator: torch.Generator, among: Tensor | None = None
    ) -> Remembered:
        """Random samples, each at most once: ``count``, or all if there are fewer.

        Args:
            count: Number of samples.
            generator: Source of randomness.
            among: Positions to draw from, such as those of ``select``; None draws from all.
        """
        total = self._count if among is None else len(among)
        index = torch.randperm(total, generator=generator)[:count].to(self._device)
        return self.take(index if among is None else among[index])

    def take(self, index: Tensor) -> Remembered:
        """The samples at ``index``, ``(n,)`` int64."""
        return Remembered(
            self.form(self._images[index]),
            torch.stack([self._labels[index], self._places[index]], 1),
            {name: kept[index] for name, kept in self._extras.items()},
            index,
        )

    def batches(self, size: int, among: Tensor | None = None) -> Iterator[Remembered]:
        """All samples (or those at ``among``) in order, ``size`` at a time."""
        places = torch.arange(self._count, device=self._device) if among is None else among
        for start in range(0, len(places), size):
            yield self.take(places[start : start + size])

    def select(self, label: int | None = None, place: int | None = None) -> Tensor:
        """Positions of the samples of a class, of a task, or of both, ``(n,)`` int64, rising."""
        chosen = torch.ones(self._count, dtype=torch.bool, device=self._device)
        if label is not None:
            chosen &= self.labels == label
        if place is not None:
            chosen &= self.places == place
        return chosen.nonzero().squeeze(1)

    # Saving.

    def _buffers(self) -> dict[str, Tensor]:
        own = {"images": self._images, "labels": self._labels, "places": self._places}
        return own | self._extras

    def state(self, prefix: str = "memory.") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of the samples as tensors under ``prefix``, and JSON values."""
        tensors = {
            prefix + name: kept[: self._count].cpu().clone()
            for name, kept in self._buffers().items()
        }
        form = self.form
        values = {"scale": form.scale, "mean": form.mean, "std": form.std, "offered": self.offered}
        return tensors, values

    def load(
        self, tensors: Mapping[str, Tensor], values: Any, outputs: int, prefix: str = "memory."
    ) -> None:
        """Restores what ``state`` returned, of a memory of the same size and shapes.

        Args:
            tensors: Those under ``prefix``, and any others.
            values: The JSON values.
            outputs: Upper bound of the labels, exclusive.
            prefix: Beginning of the tensors' names.

        Raises:
            FormatError: Something is missing or does not fit. Nothing has changed.
        """
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        try:
            form, offered = form_of(values, tuple(self._images.shape[1:])), values["offered"]
            self._check(found, outputs, offered)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"the saved memory '{prefix}' is damaged: {error}") from None
        self._count, self.offered, self.form = len(found["labels"]), offered, form
        self._images = self._images.to(found["images"].dtype)
        self._make_room(self._count)
        for name, kept in self._buffers().items():
            kept[: self._count] = found[name].to(self._device)

    def _check(self, found: Mapping[str, Tensor], outputs: int, offered: Any) -> None:
        """Raises ValueError unless ``found`` can fill the buffers."""
        buffers = self._buffers()
        if set(found) != set(buffers):
            raise ValueError(f"it has {sorted(found)}, not {sorted(buffers)}")
        count = len(found["labels"]) if found["labels"].dim() else -1
        for name, kept in buffers.items():
            types = (torch.uint8, torch.float32) if name == "images" else (kept.dtype,)
            tensor = found[name]
            if tensor.shape != (count, *kept.shape[1:]) or tensor.dtype not in types:
                raise ValueError(f"'{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"'{name}' holds values that are not finite")
        if count > self.size:
            raise ValueError(f"it holds {count} samples, more than {self.size}")
        if type(offered) is not int or offered < 0:
            raise ValueError(f"'offered' is {offered!r}, not a number of samples")
        if offered and count != min(offered, self.size):
            raise ValueError(f"{offered!r} samples offered do not leave {count}")
        labels, places = found["labels"], found["places"]
        if bool(((labels < 0) | (labels >= outputs) | (places < 0)).any()):
            raise ValueError(f"labels must lie in [0, {outputs}), places of tasks must not be < 0")


def _longer(kept: Tensor, rows: int) -> Tensor:
    """A copy with zeros appended, ``rows`` rows long."""
    return torch.cat([kept, kept.new_zeros(rows - len(kept), *kept.shape[1:])])


def herding(features: Tensor, count: int) -> Tensor:
    """Samples in an order in which their mean stays near the mean of all (iCaRL, Algorithm 4).

    With phi the normalised features and mu their normalised mean, the k-th sample is the one that
    brings the mean of the first k nearest to mu. As every phi has length 1, it has the largest

        phi . (k mu - sum of the phi before it)

    No sample is chosen twice, and the mean of the first k is not normalised.

    Args:
        features: ``(n, features)``.
        count: How many to choose, at most.

    Returns:
        Rows in order, ``(min(n, count),)`` int64; of equal ones the first.
    """
    phi = functional.normalize(features.double(), dim=1)
    mu = functional.normalize(phi.mean(0), dim=0)
    left = mu.clone()
    taken = torch.zeros(len(phi), dtype=torch.bool, device=phi.device)
    order = []
    for _ in range(min(count, len(phi))):
        best = (phi @ left).masked_fill(taken, -torch.inf).argmax()
        taken[best] = True
        order.append(best)
        left += mu - phi[best]
    return torch.stack(order) if order else torch.zeros(0, dtype=torch.int64, device=phi.device)
