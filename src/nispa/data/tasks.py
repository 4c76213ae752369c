"""Tasks: labelled images for training, validation and test.

Everything here is immutable. Images stay as stored (usually uint8) and are shared between tasks. A
batch is gathered, scaled and converted to float32 when it is needed, without worker processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nispa.base.shapes import Shape
from nispa.data.augment import Augment
from nispa.errors import ConfigError, FormatError, ScenarioError


@dataclass(frozen=True)
class Form:
    """Converts stored pixels to network inputs; attributes as in :class:`Samples`."""

    scale: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, stored: Tensor) -> Tensor:
        """Values ``(n, *shape)`` of any type as float32."""
        pixels = stored.to(torch.float32)
        if self.scale != 1.0:
            pixels = pixels * self.scale
        if self.mean is not None:
            pixels = pixels - _per_channel(pixels, self.mean)
        if self.std is not None:
            pixels = pixels / _per_channel(pixels, self.std)
        return pixels


def form_of(values: Any, shape: Shape) -> Form:
    """The form in JSON values for samples of a shape.

    Raises:
        ValueError, TypeError, KeyError: They hold none.
    """
    sizes = (shape[0], math.prod(shape))
    scale = float(values["scale"])
    mean, std = (
        None if values[name] is None else tuple(float(part) for part in values[name])
        for name in ("mean", "std")
    )
    numbers = (scale, *(mean or ()), *(std or ()))
    if not all(map(math.isfinite, numbers)) or 0.0 in (scale, *(std or ())):
        raise ValueError("scale, mean and std must be finite, scale and std not 0")
    if any(each is not None and len(each) not in sizes for each in (mean, std)):
        raise ValueError(f"mean and std must have {sizes[0]} values, or {sizes[1]}")
    return Form(scale, mean, std)


def _per_channel(pixels: Tensor, values: tuple[float, ...]) -> Tensor:
    """Values per channel, or per input, in a shape that broadcasts over ``pixels``."""
    tensor = pixels.new_tensor(values)
    if len(values) == pixels.shape[1]:
        return tensor.view(1, -1, *(1,) * (pixels.dim() - 2))
    return tensor.view(1, *pixels.shape[1:])


@dataclass(frozen=True)
class Samples:
    """Labelled images: rows of a shared pool of images, read batch by batch.

    Attributes:
        images: The pool, ``(pool, channels, height, width)``, ``(pool, channels, length)`` or
            ``(pool, features)``, uint8 or float32; never written to.
        labels: Network output of each sample's class, ``(samples,)`` int64.
        rows: Row of each sample in the pool, ``(samples,)`` int64; None means all, in order.
        scale: Factor that scales a stored pixel to [0, 1] (1/255 for bytes).
        pixel_order: For permuted tasks, the index of the stored value that each input reads,
            int64 over the flattened sample; None keeps the order.
        mean: Subtracted after scaling, per channel or per input, or None.
        std: Divided by after that, per channel or per input, or None.
        augment: Random changes to images during training, or None. Only :meth:`for_epoch` applies
            them; every other method returns images unchanged.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None
    scale: float = 1.0
    pixel_order: Tensor | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.images.dim() < 2:
            raise ScenarioError(
                f"images of shape {tuple(self.images.shape)} must be (n, channels, height, width), "
                "(n, channels, length) or (n, features)"
            )
        rows = self.images.shape[0] if self.rows is None else self.rows.shape[0]
        if self.labels.shape != (rows,):
            raise ScenarioError(
                f"{rows} images but labels of shape {tuple(self.labels.shape)}: one label per image"
            )
        if self.labels.dtype != torch.int64:
            raise ScenarioError(f"labels of type {self.labels.dtype} must be {torch.int64}")
        inputs = math.prod(self.shape)
        if self.pixel_order is not None and self.pixel_order.shape != (inputs,):
            raise ScenarioError(
                f"pixel_order of shape {tuple(self.pixel_order.shape)} must name {inputs} inputs"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (self.shape[0], inputs):
                raise ScenarioError(
                    f"{name}={values} must have one value per channel ({self.shape[0]}) or per "
                    f"input ({inputs})"
                )
        if self.augment is not None:
            self.augment.check(self.shape)

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def shape(self) -> Shape:
        """The shape of one sample."""
        return tuple(self.images.shape[1:])

    def subset(self, index: Tensor) -> Samples:
        """The samples at ``index`` (``(n,)`` int64), sharing the pool of images."""
        rows = index if self.rows is None else self.rows[index]
        return replace(self, rows=rows, labels=self.labels[index])

    @property
    def form(self) -> Form:
        """The conversion from stored pixels to network inputs."""
        return Form(self.scale, self.mean, self.std)

    def stored(self, index: Tensor | slice) -> Tensor:
        """Images at ``index`` in the pool's type, their pixels in the network's order."""
        return self.ordered(self.in_pool(index))

    def in_pool(self, index: Tensor | slice) -> Tensor:
        """Images at ``index`` as stored in the pool."""
        if self.rows is not None:
            return self.images.index_select(0, self.rows[index])
        if isinstance(index, slice):
            return self.images[index]
        return self.images.index_select(0, index)

    def ordered(self, images: Tensor) -> Tensor:
        """Images from the pool with their pixels in the network's order."""
        if self.pixel_order is not None:
            images = images.flatten(1).index_select(1, self.pixel_order).view(-1, *self.shape)
        return images

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Samples ``(n, *shape)`` float32 and labels ``(n,)`` at ``index``."""
        return self.form(self.stored(index)), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, ``size`` at a time (the last batch may be smaller)."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def for_epoch(self, generator: torch.Generator) -> Samples | Varied:
        """The samples of one epoch, with random changes drawn from ``generator``, if any."""
        if not self.augment:
            return self
        drawn = self.augment.draw(len(self), generator)
        return Varied(self, self.augment, drawn.to(self.labels.device))

    def to(self, device: torch.device) -> Samples:
        """The same samples with their tensors on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            rows=move(self.rows),
            pixel_order=move(self.pixel_order),
        )


@dataclass(frozen=True)
class Varied:
    """The randomly changed samples of one epoch.

    Attributes:
        samples: The unchanged samples.
        augment: The kinds of changes.
        drawn: The changes drawn for each, ``(samples, 5)`` int64.
    """

    samples: Samples
    augment: Augment
    drawn: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        """Classes, ``(samples,)`` int64."""
        return self.samples.labels

    @property
    def shape(self) -> Shape:
        """The shape of one sample."""
        return self.samples.shape

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(n, *shape)`` float32 and labels ``(n,)`` at ``index``."""
        images = self.augment.apply(self.samples.in_pool(index), self.drawn[index])
        return self.samples.form(self.samples.ordered(images)), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, at most ``size`` at a time."""
        for index in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(index)

    def for_epoch(self, generator: torch.Generator) -> Samples | Varied:
        """The samples of another epoch."""
        return self.samples.for_epoch(generator)

    def to(self, device: torch.device) -> Varied:
        """The same with tensors on ``device``."""
        return Varied(self.samples.to(device), self.augment, self.drawn.to(device))


def pack(samples: Samples, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Samples as tensors under ``prefix`` and JSON values; the pool is reduced to their rows."""
    images = samples.images if samples.rows is None else samples.images[samples.rows]
    tensors = {prefix + "images": images.cpu(), prefix + "labels": samples.labels.cpu()}
    if samples.pixel_order is not None:
        # A copy: training and validation images share theirs, which a file cannot.
        tensors[prefix + "pixel_order"] = samples.pixel_order.cpu().clone()
    values: dict[str, Any] = {"scale": samples.scale, "mean": samples.mean, "std": samples.std}
    if samples.augment is not None:
        values["augment"] = asdict(samples.augment)
    return tensors, values


def unpack(tensors: Mapping[str, Tensor], values: Any, prefix: str) -> Samples:
    """The samples that :func:`pack` packed.

    Raises:
        FormatError: A part is missing or invalid.
    """
    try:
        mean, std = (
            None if values[name] is None else tuple(float(part) for part in values[name])
            for name in ("mean", "std")
        )
        scale = float(values["scale"])
        if not all(map(math.isfinite, (scale, *(mean or ()), *(std or ())))):
            raise ValueError("scale, mean and std must be finite")
        return Samples(
            tensors[prefix + "images"],
            tensors[prefix + "labels"],
            scale=scale,
            pixel_order=tensors.get(prefix + "pixel_order"),
            mean=mean,
            std=std,
            augment=Augment(**values["augment"]) if "augment" in values else None,
        )
    except (KeyError, TypeError, ValueError, ScenarioError, ConfigError) as error:
        raise FormatError(f"the saved samples '{prefix}' are damaged: {error}") from None


@dataclass(frozen=True)
class JoinedSamples:
    """Several sets of samples as one, part after part; all images have one shape."""

    parts: tuple[Samples | Varied, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def labels(self) -> Tensor:
        """Classes of all samples, ``(samples,)`` int64."""
        return torch.cat([part.labels for part in self.parts])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(n, *shape)`` float32 and labels ``(n,)`` at ``index``."""
        images = torch.empty((len(index), *self.parts[0].shape), device=index.device)
        labels = torch.empty_like(index)
        start = 0
        for part in self.parts:
            here = (index >= start) & (index < start + len(part))
            images[here], labels[here] = part.batch(index[here] - start)
            start += len(part)
        return images, labels

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, at most ``size`` at a time."""
        for part in self.parts:
            yield from part.batches(size)

    @property
    def augment(self) -> Augment | None:
        """The random changes of the first part that has any, or None."""
        return next((part.augment for part in self.parts if part.augment), None)

    def for_epoch(self, generator: torch.Generator) -> JoinedSamples:
        """The samples of one epoch, with the random changes of each part."""
        if not self.augment:
            return self
        return JoinedSamples(tuple(part.for_epoch(generator) for part in self.parts))

    def to(self, device: torch.device) -> JoinedSamples:
        """The same samples with their tensors on ``device``."""
        return JoinedSamples(tuple(part.to(device) for part in self.parts))


@dataclass(frozen=True)
class TaskInfo:
    """Identifies a task for prediction: its position in the sequence and its classes."""

    index: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        index: Position in the sequence, from 0.
        name: Short label for tables and plots, such as ``"0-1"`` or ``"fashion-mnist"``.
        classes: The network outputs that this task uses, ascending.
        train: Samples to learn from.
        validation: Samples that decide when to stop and which epoch to keep; may be empty only if
            the method says so.
        test: Samples to report on; never seen during learning.
        note: A remark for readers of its numbers, such as a class too small to validate on.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    train: Samples
    validation: Samples
    test: Samples
    note: str = ""

    @property
    def info(self) -> TaskInfo:
        """The task without its data."""
        return TaskInfo(self.index, self.classes)

    @property
    def title(self) -> str:
        """The task in a sentence; a learner's are called ``"task 0"`` already."""
        return self.name if self.name.startswith("task ") else f"task {self.name}"
