"""A data set in memory, and its identity: the exact content behind a measured number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from nispa.base.seeding import stream
from nispa.base.shapes import Shape
from nispa.errors import DataError, ScenarioError
from nispa.files import one_line

BYTE_SCALE = 1.0 / 255.0
TEST_SHARE = 0.2
MOST_NAMED = 5
"""How many classes, files or kinds a note names before it says "and N more"."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``; ``total`` is 0 if unknown."""


@dataclass(frozen=True)
class DataIdentity:
    """The identity of a data set, as a record stores it.

    Attributes:
        name: Its name, such as ``"mnist"``; for a user's own data the name of the file or folder.
        canonical: True only if the content is proven to be the published one; None for a user's
            own data, which has no published version.
        sha256: Of the decoded arrays (see :func:`digest`): the same content has the same value,
            whatever files it came in.
        source: The kind of files it was read from, such as ``"IDX files"``.
        note: How canonical content was proven, or how this content differs.
    """

    name: str
    canonical: bool | None
    sha256: str
    source: str
    note: str

    def as_json(self) -> dict[str, str | bool | None]:
        """The identity as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images for training and test, as stored; batches are scaled when they are needed.

    Attributes:
        name: The name of the data set.
        train_images: ``(n, channels, height, width)``, ``(n, channels, length)`` of series or
            ``(n, features)`` of tables; uint8 or float32.
        train_labels: ``(n,)`` int64, from 0 to ``len(class_names) - 1``.
        test_images: As ``train_images``.
        test_labels: As ``train_labels``.
        class_names: The name of each class, in the order of the labels.
        scale: Factor that scales a stored pixel to [0, 1]; 1 for float images.
        source: The kind of files it was read from.
        canonical: Whether the content is proven to be the published one; None for a user's data.
        note: How it was proven, or what differs.
        columns: Names of the columns that a table's samples were read from, in order.

    Raises:
        DataError: Images and labels do not match, or a label is not a class.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    scale: float
    source: str
    canonical: bool | None = None
    note: str = ""
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_pair(f"{self.name} (training)", self.train_images, self.train_labels)
        check_pair(f"{self.name} (test)", self.test_images, self.test_labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {_size(self.train_images)} but test images "
                f"{_size(self.test_images)}; all must share one shape"
            )
        if self.train_images.dtype != self.test_images.dtype:
            raise DataError(
                f"{self.name}: training images are {self.train_images.dtype} but test images "
                f"{self.test_images.dtype}; all must share one type"
            )
        for labels in (self.train_labels, self.test_labels):
            check_labels(self.name, labels, len(self.class_names))

    @cached_property
    def identity(self) -> DataIdentity:
        """The identity of the data set, with the hash of its content."""
        # Rows are hashed in the shape they always were, so that the same content keeps its value.
        train, test = (
            images[:, None, None] if images.dim() == 2 else images
            for images in (self.train_images, self.test_images)
        )
        arrays = (train, self.train_labels, test, self.test_labels)
        note = "; ".join(filter(None, (self._unmeasured(), self.note)))
        return DataIdentity(self.name, self.canonical, digest(*arrays), self.source, note)

    def _unmeasured(self) -> str:
        """Names the classes that have training images but no test images."""
        tested = set(self.test_labels.unique().tolist())
        lacking = [label for label in self.train_labels.unique().tolist() if label not in tested]
        if not lacking:
            return ""
        names = listed([self.class_names[label] for label in lacking])
        return f"no test images of class {names}: what is learned of it is not measured"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> Shape:
        """The shape of one sample."""
        return tuple(self.train_images.shape[1:])


def listed(names: Sequence[str]) -> str:
    """Names for a note: the first few, and how many more there are."""
    more = len(names) - MOST_NAMED
    shown = ", ".join(one_line(name, 40) for name in names[:MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _size(images: Tensor) -> str:
    return "×".join(str(side) for side in images.shape[1:])


def check_pair(name: str, images: Tensor, labels: Tensor) -> None:
    """Checks that images have 2 to 5 dimensions, are not empty, and have one label each.

    Raises:
        DataError: They are not.
    """
    if not 2 <= images.dim() <= 5 or 0 in images.shape[1:]:
        raise DataError(
            f"{name}: images of shape {tuple(images.shape)} must be (n, channels, height, width), "
            "(n, channels, length), (n, features) or (n, channels, depth, height, width)"
        )
    if labels.dim() != 1 or images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{name}: {images.shape[0]} images but {labels.numel()} labels; each image needs one"
        )
    if not labels.numel():
        raise DataError(f"{name}: there are no images")


def check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Checks that labels are between 0 and ``classes`` - 1.

    Raises:
        DataError: One is not; the message names it and its position.
    """
    wrong = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if wrong.numel():
        place = int(wrong[0])
        raise DataError(
            f"{name}: label {int(labels[place])} of image {place} is outside its {classes} classes "
            f"(0 to {classes - 1}); the file is damaged or belongs to another data set"
        )


def digest(*arrays: Tensor) -> str:
    """SHA-256 of each array's type, shape and bytes (row by row, little-endian), in hex."""
    total = hashlib.sha256()
    for array in arrays:
        values = array.contiguous().numpy()
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        total.update(f"{values.dtype.name}{tuple(values.shape)}".encode())
        total.update(values.data if values.size else b"")
    return total.hexdigest()


def check_wanted(name: str, only: Collection[int] | None, classes: int) -> None:
    """Checks that the requested classes exist.

    Raises:
        ScenarioError: One does not.
    """
    for label in sorted(only or ()):
        if not 0 <= label < classes:
            raise ScenarioError(
                f"class {label} is unknown; {name} has the classes 0 to {classes - 1}"
            )


def only_note(only: Collection[int] | None, classes: int) -> str:
    """A note for the record if not all classes were read; else empty."""
    if only is None or len(only) >= classes:
        return ""
    return f"{len(only)} of its {classes} classes were read, which sha256 is over"


def sort_names(names: Iterable[str]) -> list[str]:
    """Class names sorted as numbers if all are whole numbers, else as texts."""
    known = list(names)
    if all(re.fullmatch("-?[0-9]+", name) for name in known):
        return sorted(known, key=lambda name: (int(name), name))
    return sorted(known)


def share_of(share: float, count: int) -> int:
    """The whole part of ``share * count``, computed in decimal.

    So 0.29 of 100 is 29, although ``0.29 * 100`` is 28.999… in binary floats.
    """
    return int(Fraction(str(share)) * count)


def hold_out(
    labels: Tensor, *, seed: int, name: str, class_names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to test on: a random fifth of each class is for testing.

    Args:
        labels: Class of each image, ``(n,)`` int64.
        seed: The split depends only on this and the labels.
        name: The data set's name, for the error.
        class_names: Names of the classes, for the error.

    Returns:
        Rows of the training and of the test images, both ascending.

    Raises:
        DataError: A class has only one image.
    """
    held = torch.zeros(labels.shape[0], dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == label).flatten()
        if rows.numel() < 2:
            known = one_line(class_names[label])
            raise DataError(
                f"{name}: class '{known}' has one image; to be split into training and test it "
                "needs two (or give a test set)"
            )
        order = torch.randperm(rows.numel(), generator=stream(seed, "test split", label))
        held[rows[order[: max(1, share_of(TEST_SHARE, rows.numel()))]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def assemble(
    name: str,
    parts: Sequence[tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    scale: float,
    *,
    seed: int,
    source: str,
    notes: Iterable[str] = (),
) -> ImageData:
    """A data set from its images and labels.

    Args:
        name: Name of the data set.
        parts: Images and labels to train on, and those to test on if there are any; otherwise the
            seed holds out a fifth of each class.
        class_names: Names of the classes, in the order of the labels.
        scale: Factor that scales a stored pixel to [0, 1].
        seed: Determines the test split if there is none.
        source: The kind of files it was read from.
        notes: Remarks for the record; empty ones are left out.

    Raises:
        DataError: Images and labels do not match, or a class has too few images to split.
    """
    said = [note for note in notes if note]
    train, *tests = parts
    if not tests:
        images, labels = train
        check_pair(name, images, labels)
        check_labels(name, labels, len(class_names))
        rows, held = hold_out(labels, seed=seed, name=name, class_names=class_names)
        train, tests = (images[rows], labels[rows]), [(images[held], labels[held])]
        said.append(f"no test set given: a fifth of each class was held out by seed {seed}")
    return ImageData(name, *train, *tests[0], class_names, scale, source, note="; ".join(said))
