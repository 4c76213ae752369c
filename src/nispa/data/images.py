"""Image files decoded with Pillow into one uint8 tensor: one size, grey or colour."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nispa.errors import DataError
from nispa.files import wording

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"))
MOST_PIXELS = 1 << 24
GREY = frozenset(("1", "L", "LA", "La"))
COLOUR = frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"))

# What Pillow's readers raise on damaged files; it promises no more than "an exception".
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode(content: bytes | Path, name: str) -> tuple[Pixels, str]:
    """One image as ``(height, width)`` or ``(height, width, 3)`` uint8, and the format it came in.

    Transparency is dropped and palettes are resolved; 16-bit and float images are refused, since
    bringing them to 8 bits would change them.

    Args:
        content: The bytes of the file, or its path.
        name: What to call it in an error.

    Raises:
        DataError: It is damaged, too large, or of a mode that is not supported.
    """
    try:
        source = content if isinstance(content, Path) else io.BytesIO(content)
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{name}: {image.width}×{image.height} pixels is too large (at most "
                    f"{MOST_PIXELS} pixels)"
                )
            if image.mode not in GREY | COLOUR:
                raise DataError(f"{name}: mode {image.mode} must be 8-bit grey or colour")
            mode = "L" if image.mode in GREY else "RGB"
            kind = image.format or ""
            if image.mode in ("P", "PA"):  # Pillow asks for this detour where a palette is clear
                return np.asarray(image.convert("RGBA").convert("RGB")), kind
            return np.asarray(image if image.mode == mode else image.convert(mode)), kind
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{name}: not a readable image ({wording(error)})") from None


class ImageStack:
    """Images of one size, collected one after another.

    The first image sets the size. As soon as one image is in colour all become RGB, a grey one with
    three equal channels, so that the result does not depend on the order. ``formats`` holds the
    file formats met.
    """

    def __init__(self, count: int, name: str) -> None:
        self.formats: set[str] = set()
        self._count = count
        self._name = name
        self._filled = 0
        self._first = ""
        self._pixels = torch.empty(0, 1, 0, 0, dtype=torch.uint8)

    def add(self, content: bytes | Path, name: str) -> None:
        """Decodes the next image.

        Raises:
            DataError: It cannot be decoded, or has another size than the first.
        """
        image, kind = decode(content, name)
        self.formats.add(kind)
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else 3
        if not self._filled:
            self._first = name
            self._pixels = self._room(channels, height, width)
        _, known, *size = self._pixels.shape
        if size != [height, width]:
            raise DataError(
                f"{name}: {width}×{height} pixels, but {self._first} has {size[1]}×{size[0]}; all "
                "images must share one size"
            )
        if channels > known:
            grey = self._pixels[: self._filled]
            self._pixels = self._room(channels, height, width)
            self._pixels[: self._filled] = grey
        values = torch.from_numpy(np.array(image))  # a copy, since Pillow's is read-only
        self._pixels[self._filled] = values if channels == 1 else values.permute(2, 0, 1)
        self._filled += 1

    def _room(self, channels: int, height: int, width: int) -> Tensor:
        try:
            return torch.empty(self._count, channels, height, width, dtype=torch.uint8)
        except RuntimeError:
            size = self._count * channels * height * width / 2**30
            raise DataError(
                f"{self._name}: {self._count} images of {width}×{height} pixels need {size:.1f} "
                "GiB of memory, which is not there; make the images smaller"
            ) from None

    def finish(self) -> Tensor:
        """All images, ``(n, channels, height, width)``."""
        return self._pixels[: self._filled]


def lossy_note(*stacks: ImageStack) -> str:
    """What a record says of images that were stored with loss; empty for others."""
    lossy = sorted(set().union(*(stack.formats for stack in stacks)) & {"JPEG", "WEBP"})
    return f"its images were stored as {' and '.join(lossy)}, which is lossy" if lossy else ""


def same_channels(*groups: Tensor) -> list[Tensor]:
    """The groups with grey turned into colour where another group is in colour."""
    channels = max(group.shape[1] for group in groups)
    return [
        group if group.shape[1] == channels else group.repeat(1, channels, 1, 1) for group in groups
    ]
