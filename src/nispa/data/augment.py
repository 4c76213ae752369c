"""Random shifts, crops and flips, so that a network sees many variants of each image.

The caller's stream draws the changes of all images at the beginning of an epoch. So they do not
depend on batches, and a run that resumes in the middle of an epoch sees the same images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from nispa.base.shapes import Shape, in_words, is_image
from nispa.errors import ConfigError

EIGHTH = 8
"""Without a number, images move by at most this fraction (1/8) of their shorter side."""

OFF = "off"
"""The word for no changes."""

_WORD = re.compile("(shift|crop)(?::([0-9]{1,5}))?|flip")


@dataclass(frozen=True)
class Augment:
    """Random changes to an image.

    Attributes:
        shift: Most pixels to move it up, down, left or right; the gap is filled with 0.
        crop: As ``shift``, but the gap is filled with the image mirrored at its edge: a random crop
            of the image padded by so many pixels.
        flip: Whether to mirror it left to right, with probability 1/2.
    """

    shift: int = 0
    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("shift", "crop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name}={value} must be a whole number of pixels, 0 or more")
        if not isinstance(self.flip, bool):
            raise ConfigError(f"flip={self.flip} must be True or False")

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return self != Augment()

    def check(self, shape: Shape) -> None:
        """Checks these changes against the shape of the samples.

        Raises:
            ConfigError: They are no images, or a side is not larger than ``shift`` or ``crop``.
        """
        if not self:
            return
        if not is_image(shape):
            raise ConfigError(
                f"augment must be off for {in_words(shape)}: it shifts, crops and flips images"
            )
        height, width = shape[1:]
        for name in ("shift", "crop"):
            if getattr(self, name) >= min(height, width):
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be less than a side of images of "
                    f"{height}x{width} pixels"
                )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws the changes of ``count`` images.

        Returns:
            ``(count, 5)`` int64: shift down and right, crop down and right, flip or not.
        """
        drawn = torch.zeros((count, 5), dtype=torch.int64)
        for place, most in ((0, self.shift), (2, self.crop)):
            if most:
                size = (count, 2)
                drawn[:, place : place + 2] = torch.randint(
                    -most, most + 1, size, generator=generator
                )
        if self.flip:
            drawn[:, 4] = torch.randint(0, 2, (count,), generator=generator)
        return drawn

    @staticmethod
    def apply(images: Tensor, drawn: Tensor) -> Tensor:
        """Images ``(n, channels, height, width)`` of any type, changed as ``drawn`` says."""
        count, channels, height, width = images.shape
        rows = torch.arange(height, device=images.device).expand(count, -1)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        columns = torch.where(drawn[:, 4:] > 0, width - 1 - columns, columns)
        rows, seen_rows = _source(rows, drawn[:, 0:1], drawn[:, 2:3], height)
        columns, seen_columns = _source(columns, drawn[:, 1:2], drawn[:, 3:4], width)
        shape = (count, channels, height, width)
        made = images.gather(2, rows.view(count, 1, height, 1).expand(shape))
        made = made.gather(3, columns.view(count, 1, 1, width).expand(shape))
        seen = seen_rows.view(count, 1, height, 1) & seen_columns.view(count, 1, 1, width)
        return made * seen.to(images.dtype)


def _source(places: Tensor, shift: Tensor, crop: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Source index of each row or column, and whether it lies inside the image."""
    shifted = places - shift
    inside = (shifted >= 0) & (shifted < side)
    moved = (shifted.clamp(0, side - 1) - crop).abs()
    return (side - 1) - ((side - 1) - moved).abs(), inside


def parse_augment(text: str, shape: Shape = ()) -> Augment:
    """Parses a text such as ``shift,flip`` or ``crop:4,flip``.

    Args:
        text: ``shift``, ``crop`` (both optionally with pixels) and ``flip``, separated by commas;
            or ``off``.
        shape: The shape of an image; without pixels, images move by an eighth of its shorter side.

    Raises:
        ConfigError: It is something else.
    """
    if text.strip() == OFF:
        return Augment()
    found: dict[str, int | bool] = {}
    for word in (part.strip() for part in text.split(",")):
        match = _WORD.fullmatch(word)
        name = match[1] or "flip" if match else ""
        if match is None or name in found:
            raise ConfigError(
                f"augment={text} must be some of shift, crop and flip, each once, the first two "
                "maybe with pixels, such as shift:3,flip; or off"
            )
        usual = max(1, min(shape[1:], default=1) // EIGHTH)
        found[name] = True if name == "flip" else int(match[2]) if match[2] else usual
    return Augment(**found)  # type: ignore[arg-type]
