"""Decodes image files with Pillow, on all cores, into one uint8 tensor, grey or colour."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nispa.data.dataset import BYTE_SCALE, ImageData, Progress, assemble, only_note
from nispa.data.shaping import AS_STORED, Reading, Shaping, image_module
from nispa.errors import DataError, either, needs
from nispa.files import wording

if TYPE_CHECKING:
    from PIL import Image

NOT_READ = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"))
"""Formats that Pillow lists but leaves to other programs."""

HEIC = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
LOSSY = {"AVIF": "AVIF", "HEIF": "HEIC", "JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}
MOVING = frozenset(("AVIF", "GIF", "PNG", "TIFF", "WEBP"))
MOST_PIXELS = 89_000_000  # of one image; Pillow warns from there on
GREY = frozenset(("1", "L", "LA", "La"))
DEEP = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))
COLOUR = frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"))
ORIENTATION = 0x0112
LEAST_DEEP = 4096  # below this brightest value, 16-bit images would hardly show in 8 bits
CHUNK = 32  # images that a thread decodes at a time

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Source = bytes | Path | Callable[[], bytes]
"""An image file: its bytes, its path, or a function that returns its bytes."""


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: ``(height, width)`` or ``(height, width, 3)`` uint8.
        kind: The format of the file.
        frames: Whether it has more frames than the one that was read.
        clear: Whether parts of it were transparent.
        brightest: The highest value of a 16-bit image; 0 for others.
    """

    pixels: Pixels
    kind: str
    frames: bool = False
    clear: bool = False
    brightest: int = 0


@functools.cache
def suffixes() -> dict[str, str]:
    """The file extensions that can be read, and the format of each."""
    pillow = image_module()
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = pillow.registered_extensions()
    return {
        end: kind for end, kind in known.items() if kind in pillow.OPEN and kind not in NOT_READ
    }


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that can be read; the content of a file decides, not its name."""
    suffixes()
    return tuple(sorted(set(image_module().OPEN) - NOT_READ))


def decode(content: Source, name: str, shaping: Shaping = AS_STORED) -> Decoded:
    """Decodes one image, turned upright.

    EXIF orientation is applied, palettes are resolved, transparency is laid over white, of 16 bits
    the upper 8 are used, and of several frames the first is read.

    Args:
        content: The file.
        name: What to call it in an error.
        shaping: How to crop and scale it.

    Raises:
        DataError: It is damaged, too large, or has an unsupported mode.
    """
    pillow = image_module()
    try:
        given = content() if callable(content) else content
        source = given if isinstance(given, Path) else io.BytesIO(given)
        with pillow.open(source, formats=formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{name}: {image.width}×{image.height} pixels is too large (at most "
                    f"{MOST_PIXELS:,} pixels)"
                )
            kind = image.format or ""
            plain, clear, brightest = as_plain(image, name)
            pixels = np.array(shaping(plain))  # a copy, since Pillow's is read-only
            return Decoded(pixels, kind, _frames(image, kind), clear, brightest)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow promises no more than "an exception"
        raise DataError(f"{name}: not a readable image ({wording(error)})") from None


def as_plain(image: Image.Image, name: str) -> tuple[Image.Image, bool, int]:
    """An opened image, upright, as ``L`` or ``RGB``; see :func:`decode`.

    Returns:
        The image, whether parts of it were transparent, and its largest 16-bit value.

    Raises:
        DataError: It has an unsupported mode.
    """
    if image.mode not in GREY | COLOUR | DEEP:
        raise DataError(f"{name}: mode {image.mode} must be grey or colour of 8 or 16 bits")
    image.load()
    return _plain(_upright(image), name)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data beside a good image
        return image
    with needs("data", "reading images"):
        from PIL import ImageOps
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _plain(image: Image.Image, name: str) -> tuple[Image.Image, bool, int]:
    if image.mode in DEEP:
        values = np.asarray(image)
        lowest, brightest = int(values.min()), int(values.max())
        if lowest < 0 or brightest > 0xFFFF:
            raise DataError(f"{name}: values from {lowest} to {brightest} do not fit into 16 bits")
        return image_module().fromarray((values >> 8).astype(np.uint8)), False, brightest
    mode = "L" if image.mode in GREY else "RGB"
    if image.has_transparency_data:
        full = image.convert("RGBA")
        if full.getchannel("A").getextrema() != (255, 255):
            ground = image_module().new("RGBA", full.size, "white")
            ground.alpha_composite(full)
            return ground.convert("RGB").convert(mode), True, 0
        if image.mode in ("P", "PA"):  # Pillow requires this detour for transparent palettes
            return full.convert("RGB"), False, 0
    return (image if image.mode == mode else image.convert(mode)), False, 0


def _frames(image: Image.Image, kind: str) -> bool:
    if kind not in MOVING:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - damaged after the first frame
        return True


def decoded(items: Iterable[tuple[Source, str]], shaping: Shaping = AS_STORED) -> Iterator[Decoded]:
    """Decodes ``items`` (files and what to call them) on all cores, in order.

    Raises:
        DataError: As :func:`decode`, for the first one that fails.
    """

    def some(chunk: Sequence[tuple[Source, str]]) -> list[Decoded]:
        return [decode(content, name, shaping) for content, name in chunk]

    formats()  # fill the cache before threads start
    workers = _cores()
    source = iter(items)
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while chunk := list(itertools.islice(source, CHUNK)):
            waiting.append(pool.submit(some, chunk))
            if len(waiting) > 2 * workers:  # bound the decoded images held in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ImageStack:
    """Collects images of one size.

    The first image sets the size. If any image is in colour, all become RGB (grey ones with three
    equal channels), so the result does not depend on their order.

    Attributes:
        met: How many images have each property that a note should mention.
        brightest: The largest value of all 16-bit images; 0 without any.
    """

    def __init__(self, count: int, name: str, shaping: Shaping = AS_STORED) -> None:
        """An empty stack for ``count`` images of the data set ``name``."""
        self.met: dict[str, int] = {}
        self.brightest = 0
        self.shaping = shaping
        self._count = count
        self._name = name
        self._filled = 0
        self._first = ""
        self._pixels = torch.empty(0, 1, 0, 0, dtype=torch.uint8)

    def fill(self, items: Iterable[tuple[Source, str]], progress: Progress | None = None) -> None:
        """Decodes images and adds them in order.

        Raises:
            DataError: An image cannot be decoded, or has another size than the first.
        """
        names: deque[str] = deque()

        def noted() -> Iterator[tuple[Source, str]]:
            for content, name in items:
                names.append(name)
                yield content, name

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about oddities beside a good image
            for image in decoded(noted(), self.shaping):
                self._add(image, names.popleft())
                if progress and self._filled % 256 == 0:
                    progress(f"decoding {self._name}", self._filled, self._count)

    def _add(self, image: Decoded, name: str) -> None:
        for met in (LOSSY.get(image.kind), image.frames and "frames", image.clear and "clear"):
            if met:
                self.met[met] = self.met.get(met, 0) + 1
        if image.brightest:
            self.met["deep"] = self.met.get("deep", 0) + 1
            self.brightest = max(self.brightest, image.brightest)
        height, width = image.pixels.shape[:2]
        channels = 1 if image.pixels.ndim == 2 else 3
        if not self._filled:
            self._first = name
            self._pixels = self._room(channels, height, width)
        _, known, *size = self._pixels.shape
        if size != [height, width]:
            raise DataError(
                f"{name}: {width}×{height} pixels, but {self._first} has {size[1]}×{size[0]}; all "
                "images must share one size; give one with "
                f"{either('Shaping(resize=(32, 32))', '--resize 32')}, and keep proportions with "
                f"{either('crop=True', '--crop')}"
            )
        if channels > known:
            grey = self._pixels[: self._filled]
            self._pixels = self._room(channels, height, width)
            self._pixels[: self._filled] = grey
        values = torch.from_numpy(image.pixels)
        self._pixels[self._filled] = values if channels == 1 else values.permute(2, 0, 1)
        self._filled += 1

    def _room(self, channels: int, height: int, width: int) -> Tensor:
        size = self._count * channels * height * width
        try:
            if size > _memory():
                raise MemoryError
            return torch.empty(self._count, channels, height, width, dtype=torch.uint8)
        except (RuntimeError, MemoryError):
            raise DataError(
                f"{self._name}: {self._count:,} images of {width}×{height} pixels need "
                f"{size / 2**30:.1f} GiB of memory, more than there is; make them smaller, such as "
                f"with {either('Shaping(resize=(64, 64))', '--resize 64')}"
            ) from None

    def finish(self) -> Tensor:
        """All images, ``(n, channels, height, width)``."""
        return self._pixels[: self._filled]


def _memory() -> int:
    """This machine's memory in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # unknown on this system
        return 1 << 40


def check_brightness(brightest: int, name: str) -> None:
    """Refuses 16-bit images that are too dark to show in 8 bits.

    Args:
        brightest: The largest value of all 16-bit images; 0 without any.
        name: What to call them in the error.

    Raises:
        DataError: They are.
    """
    if 0 < brightest < LEAST_DEEP:
        raise DataError(
            f"{name}: 16-bit images reach {brightest} of 65535 at most, which 8 bits cannot show; "
            "scale them to the whole range, or pass arrays of floats"
        )


def remarks(*stacks: ImageStack) -> list[str]:
    """Notes for the record: how images were stored and what was done to them.

    Raises:
        DataError: 16-bit images are too dark to show in 8 bits.
    """
    met: dict[str, int] = {}
    for stack in stacks:
        for word, count in stack.met.items():
            met[word] = met.get(word, 0) + count
    brightest = max(stack.brightest for stack in stacks)
    check_brightness(brightest, stacks[0]._name)
    notes = []
    lossy = sorted(set(met) & set(LOSSY.values()))
    if lossy:
        notes.append(f"its images were stored as {' and '.join(lossy)}, which is lossy")
    if "deep" in met:
        notes.append(f"of {met['deep']:,} images of 16 bits the upper 8 are used")
    if "clear" in met:
        notes.append(f"what is transparent in {met['clear']:,} images was laid over white")
    if "frames" in met:
        notes.append(f"of {met['frames']:,} images with several frames the first was read")
    return [*notes, *filter(None, [stacks[0].shaping.note])]


def data_of(
    name: str,
    parts: Sequence[tuple[ImageStack, Tensor]],
    names: Sequence[str],
    how: Reading,
    *,
    source: str,
    notes: Iterable[str] = (),
) -> ImageData:
    """A data set of decoded images and their labels; see :func:`nispa.data.dataset.assemble`."""
    stacks = [stack for stack, _ in parts]
    images = [stack.finish() for stack in stacks]
    channels = max(part.shape[1] for part in images)
    # Grey images become colour where those of the other part are in colour.
    images = [part.expand(-1, channels, -1, -1).contiguous() for part in images]
    return assemble(
        name,
        [(part, labels) for part, (_, labels) in zip(images, parts, strict=True)],
        tuple(names),
        BYTE_SCALE,
        seed=how.seed,
        source=source,
        notes=[*remarks(*stacks), *notes, only_note(how.only, len(names))],
    )
