"""Crops, scales and greys images before they become a data set."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nispa.base.shapes import in_words, is_image
from nispa.data.dataset import ImageData, Progress
from nispa.errors import ConfigError, DataError, either, needs

if TYPE_CHECKING:
    from PIL import Image

MOST_SIDE = 4096


def image_module() -> ModuleType:
    """Pillow's module ``Image``.

    Raises:
        MissingPackageError: Pillow is not installed.
    """
    with needs("data", "reading or changing images"):
        from PIL import Image
    return Image


@dataclass(frozen=True)
class Shaping:
    """Changes to each image, in this order.

    Attributes:
        crop: Cut out the largest centre with the proportions of ``resize``, or a square.
        grey: Turn colour into grey.
        resize: Height and width to scale to, or None.
    """

    resize: tuple[int, int] | None = None
    crop: bool = False
    grey: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and not all(1 <= side <= MOST_SIDE for side in self.resize):
            raise ConfigError(f"resize={self.resize} must have sides from 1 to {MOST_SIDE}")

    def __bool__(self) -> bool:
        return self != Shaping()

    @property
    def note(self) -> str:
        """A note for the record; empty if nothing is changed."""
        done = []
        if self.crop:
            done.append("cut to the centre")
        if self.grey:
            done.append("made grey")
        if self.resize:
            done.append(f"scaled to {self.resize[0]}×{self.resize[1]}")
        return f"its images were {', '.join(done)}" if done else ""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image cropped, greyed and scaled, bilinearly over all source pixels of each pixel."""
        if self.crop:
            image = image.crop(self._centre(image.width, image.height))
        if self.grey and image.mode == "RGB":
            image = image.convert("L")
        if self.resize and image.size != self.resize[::-1]:
            image = image.resize(self.resize[::-1], resample=image_module().Resampling.BILINEAR)
        return image

    def _centre(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the largest centred part with the wanted proportions."""
        rows, columns = self.resize or (1, 1)
        wide = max(1, min(width, height * columns // rows))
        high = max(1, min(height, width * rows // columns))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after these changes."""
        if self.resize:
            return self.resize
        if not self.crop:
            return height, width
        left, top, right, bottom = self._centre(width, height)
        return bottom - top, right - left


AS_STORED = Shaping()


@dataclass(frozen=True)
class Reading:
    """How to read a user's own data set.

    Attributes:
        seed: Determines the test split if there is none.
        progress: Called as ``progress(what, done, total)`` while images are decoded.
        shaping: How to crop and scale each image.
        only: Numbers of the classes to read; None for all. Tables and arrays are read whole.
        label: Name of a table's column of labels, if it has none of the usual names.
        series: Whether arrays and tables hold series.
    """

    seed: int = 0
    progress: Progress | None = None
    shaping: Shaping = AS_STORED
    only: Collection[int] | None = None
    label: str | None = None
    series: bool = False


def parse_resize(text: str) -> tuple[int, int]:
    """Parses a size, ``32`` for a square or ``HEIGHTxWIDTH``, as height and width.

    Raises:
        ConfigError: It is something else, or out of range.
    """
    match = re.fullmatch("([0-9]{1,5})(?:[xX×]([0-9]{1,5}))?", text.strip())
    if not match or not all(1 <= int(side) <= MOST_SIDE for side in match.groups() if side):
        raise ConfigError(
            f"resize={text} must be a side or HEIGHTxWIDTH in pixels, from 1 to {MOST_SIDE}, such "
            "as 32 or 32x48"
        )
    return int(match[1]), int(match[2] or match[1])


def shape_data(data: ImageData, shaping: Shaping) -> ImageData:
    """A data set of arrays with each image changed by ``shaping``.

    Raises:
        DataError: It holds no pictures.
    """
    if not shaping:
        return data
    if not is_image(data.shape):
        given = {"resize": shaping.resize, "crop": shaping.crop, "grey": shaping.grey}
        asked = [either(name, f"--{name}") for name, value in given.items() if value]
        raise DataError(
            f"{data.name}: {in_words(data.shape)} are no images to change; leave out "
            f"{' and '.join(asked)}"
        )
    return replace(
        data,
        train_images=_shape(data.train_images, shaping),
        test_images=_shape(data.test_images, shaping),
        canonical=None if data.canonical is None else False,
        note="; ".join(filter(None, (data.note, shaping.note))),
    )


def _shape(images: Tensor, shaping: Shaping) -> Tensor:
    """``(n, channels, height, width)``, plane by plane, which gives the same as whole colours."""
    pillow = image_module()
    channels, height, width = images.shape[1:]
    if shaping.grey and channels == 3:
        images = _grey(images)
    rows, columns = shaping.size(height, width)
    made = torch.empty((len(images), images.shape[1], rows, columns), dtype=images.dtype)
    plain = replace(shaping, grey=False)
    for target, image in zip(made, images, strict=True):
        for place, plane in enumerate(image):
            target[place] = torch.from_numpy(np.array(plain(pillow.fromarray(plane.numpy()))))
    return made


def _grey(images: Tensor) -> Tensor:
    """Colour to grey with the weights of ITU-R 601, as in Pillow."""
    if images.dtype == torch.uint8:
        pillow = image_module()
        grey = [
            np.asarray(pillow.fromarray(each.permute(1, 2, 0).numpy()).convert("L"))
            for each in images
        ]
        return torch.from_numpy(np.stack(grey)).unsqueeze(1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
