"""Bodies of requests as arrays: pictures in PNG or JPEG, and JSON. Nothing here knows of HTTP."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nispa.base.shapes import Shape, in_words, is_image
from nispa.data.arrays import Array, as_array
from nispa.data.images import decode
from nispa.data.shaping import AS_STORED, Shaping
from nispa.data.unlabelled import fitting
from nispa.errors import DataError, InputError, needs
from nispa.files import one_line, too_deep, wording

with needs("serve", "serving"):
    from PIL import Image

PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG"}
MAX_DEPTH = 8
MAX_LABEL = 200
MAX_VALUES = 2**28
"""Values of all images of one request once they are decoded."""

TYPES = ("uint8", "float32")


class TooLargeError(InputError):
    """A body, a picture or a number of images is over its limit."""


@dataclass(frozen=True)
class Intake:
    """What a server takes.

    Attributes:
        shape: The shape of a sample of the network's input.
        max_pixels: Most pixels of one picture.
        fit: Whether to cut, scale and grey pictures until they fit the network.
    """

    shape: Shape
    max_pixels: int
    fit: bool = False

    def picture(self, content: bytes, name: str = "image") -> Array:
        """One PNG or JPEG picture, ``(channels, height, width)`` uint8.

        Raises:
            TooLargeError: It has more pixels than allowed.
            DataError: It is no picture, or does not fit the network.
        """
        if not is_image(self.shape):
            raise DataError(
                f"the network learned {in_words(self.shape)}, not pictures; send JSON arrays"
            )
        channels, height, width = self.shape
        self._check_pixels(content, name)
        shaping = AS_STORED
        if self.fit:
            shaping = Shaping((height, width), crop=True, grey=channels == 1)
        pixels = torch.from_numpy(decode(content, name, shaping).pixels)
        planes = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        found: Array = fitting(planes, name, self.shape).numpy()
        return found

    def _check_pixels(self, content: bytes, name: str) -> None:
        """Reads the size alone, before anything is decoded."""
        try:
            with Image.open(io.BytesIO(content), formats=tuple(PICTURES.values())) as image:
                width, height = image.size
        except Exception as error:  # noqa: BLE001 - Pillow promises no more than "an exception"
            raise DataError(f"{name}: not a readable PNG or JPEG ({wording(error)})") from None
        if width * height > self.max_pixels:
            raise TooLargeError(
                f"{name}: {width}×{height} pixels are more than {self.max_pixels:,}, the most taken"
            )

    def images(self, values: Any, kind: str | None = None) -> tuple[Array, bool | None]:
        """Images from JSON, each an array or a picture in base64, and whether channels come first.

        Raises:
            DataError: They are none, or of different kinds.
            TooLargeError: They are too many.
        """
        if not isinstance(values, list) or not values:
            raise DataError("images must be a list that is not empty")
        encoded = [isinstance(each, str) for each in values]
        if not any(encoded):
            return _typed(as_array(values, "images"), kind), None
        if not all(encoded):
            raise DataError("images must be all arrays or all pictures in base64, not both")
        most = MAX_VALUES // math.prod(self.shape)
        if len(values) > most:
            raise TooLargeError(f"{len(values):,} images are more than {most:,}, the most taken")
        pictures = [
            self.picture(_plain(each, f"image {place}"), f"image {place}")
            for place, each in enumerate(values, start=1)
        ]
        return np.stack(pictures), True


def _plain(text: str, name: str) -> bytes:
    """The bytes of base64, also of a ``data:`` address."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{name}: a text must be a PNG or JPEG picture in base64") from None


def _typed(array: Array, kind: str | None) -> Array:
    """An array as the type that a request names: JSON writes 1.0 and 1 alike."""
    if kind is None:
        return array
    if kind not in TYPES:
        raise DataError(f"type={one_line(str(kind), 40)} must be {' or '.join(TYPES)}")
    if array.dtype.kind not in "iuf":
        raise DataError("images must be arrays of numbers")
    if kind == "float32":
        return array.astype(np.float32)
    if array.dtype.kind == "f" and not bool((array == np.floor(array)).all()):
        raise DataError("type=uint8 needs whole numbers from 0 to 255; float32 takes others")
    return array.astype(np.int64)


def parse(content: bytes) -> Any:
    """A JSON value without NaN or infinities.

    Raises:
        DataError: It is none, or nested too deeply.
    """
    try:
        value = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise DataError(f"the body nests deeper than {MAX_DEPTH} lists") from None
    except ValueError as error:
        raise DataError(f"the body is not JSON: {one_line(str(error), 100)}") from None
    if too_deep(value, MAX_DEPTH):
        raise DataError(f"the body nests deeper than {MAX_DEPTH} lists")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def entries(value: Any, known: Sequence[str], example: str) -> dict[str, Any]:
    """A JSON object with no other keys than the known ones.

    Raises:
        DataError: It is something else.
    """
    if not isinstance(value, dict):
        raise DataError(f"the body must be a JSON object, such as {example}")
    foreign = sorted(set(value) - set(known))
    if foreign:
        raise DataError(
            f"unknown entry '{one_line(foreign[0], 40)}'; known: {', '.join(known)}; such as "
            f"{example}"
        )
    return value


EXAMPLE = '{"name": "letters", "examples": [{"label": "a", "image": [[0, 255], [0, 255]]}, …]}'


@dataclass(frozen=True)
class Lesson:
    """A task to learn.

    Attributes:
        name: Its name.
        images: An array of all images.
        labels: Whole numbers or texts.
        channels_first: See :meth:`nispa.learner.Learner.learn`; None if the shape tells.
    """

    name: str
    images: Array
    labels: list[int] | list[str]
    channels_first: bool | None


def lesson(intake: Intake, value: Any) -> Lesson:
    """A task from JSON: ``examples``, or ``images`` and ``labels``.

    Raises:
        DataError: It is something else.
        TooLargeError: It has too many images.
    """
    given = entries(value, ("name", "examples", "images", "labels", "type"), EXAMPLE)
    name, examples = given.get("name", ""), given.get("examples")
    if examples is not None:
        if "images" in given or "labels" in given:
            raise DataError("give examples, or images and labels, not both")
        if not isinstance(examples, list):
            raise DataError("examples must be a list of objects with a label and an image")
        pairs = [entries(each, ("label", "image"), EXAMPLE) for each in examples]
        if any(len(each) < 2 for each in pairs):
            raise DataError("each example needs a label and an image")
        given = {"images": [e["image"] for e in pairs], "labels": [e["label"] for e in pairs]} | {
            "type": given.get("type")
        }
    images, first = intake.images(given.get("images"), given.get("type"))
    labels = _labels(given.get("labels"))
    if len(labels) != len(images):
        raise DataError(f"{len(images):,} images have {len(labels):,} labels; give one for each")
    return Lesson(name, images, labels, first)


def _labels(values: Any) -> list[Any]:
    """Labels, all texts or all whole numbers."""
    if not isinstance(values, list):
        raise DataError("labels must be a list of texts or whole numbers, one for each image")
    texts = [isinstance(each, str) for each in values]
    numbers = [isinstance(each, int) and not isinstance(each, bool) for each in values]
    if not (all(texts) or all(numbers)):
        raise DataError("labels must be all texts or all whole numbers")
    if all(numbers) and any(abs(each) >= 2**63 for each in values):
        raise DataError("labels in whole numbers must fit into 64 bits")
    if any(texts) and any(len(each) > MAX_LABEL or not each.strip() for each in values):
        raise DataError(f"labels must have from 1 to {MAX_LABEL} characters")
    return values
