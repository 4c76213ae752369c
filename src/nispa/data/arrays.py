"""Images and labels from a user's arrays, tensors, data frames, pictures or nested lists."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nispa.base.modes import usual_modes
from nispa.data.dataset import BYTE_SCALE, ImageData, assemble, check_labels
from nispa.data.images import as_plain, check_brightness
from nispa.errors import DataError, either
from nispa.files import one_line

CHANNELS = (1, 3)
MOST = 100.0
"""The largest float accepted in an image. A network hardly learns from larger values."""

UNLIKE = 8.0
"""Factor by which the range of a later task may differ from that of the first without a warning."""

Array = np.ndarray[Any, Any]


def as_images(
    values: Any,
    *,
    name: str = "images",
    channels_first: bool | None = None,
    bounded: bool = True,
    series: bool = False,
) -> tuple[Tensor, float]:
    """Samples as the network takes them, and the factor that scales a pixel to [0, 1].

    Shapes: images become ``(n, channels, height, width)``. ``(n, height, width)`` is grey; with
    four dimensions the channels are the second or the last, whichever has size 1 or 3. If both or
    neither have, pass ``channels_first``. Five dimensions are volumes, likewise, with a depth
    before the height. ``(n, features)`` is a table and stays what it is, as does
    ``(n, channels, length)`` with ``series``.

    Types: whole numbers of images must be in [0, 255] and become uint8 with the scale 1/255; bool
    becomes uint8 with the scale 1; floats, and the whole numbers of tables and series, become
    float32 and are used unchanged.

    Args:
        values: An array, a tensor, a data frame, or nested lists.
        name: What to call it in an error.
        channels_first: True for ``(n, channels, height, width)``, False for
            ``(n, height, width, channels)``, None for the rule above.
        bounded: Whether to refuse images (not tables or series) with floats beyond ±:data:`MOST`.
        series: Whether three dimensions are ``(n, channels, length)``, and two ``(n, length)`` of
            one channel.

    Raises:
        DataError: The type or shape is not supported, or a value is not finite or out of range.
    """
    array = as_array(values, name)
    if series and array.ndim not in (2, 3):
        raise DataError(
            f"{name}: shape {array.shape} must be (n, channels, length), or (n, length) for series "
            "of one channel"
        )
    if not 2 <= array.ndim <= 5:
        raise DataError(
            f"{name}: shape {array.shape} must be (n, features), (n, height, width), "
            "(n, height, width, channels), (n, channels, height, width) or, for volumes, "
            "(n, channels, depth, height, width)"
        )
    plain = series or array.ndim == 2
    pixels, scale = _pixels(array, name, plain)
    if bounded and scale == 1.0 and not plain:
        _check_range(pixels, name)
    if plain:
        pixels = pixels[:, None] if series and pixels.ndim == 2 else pixels
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    else:
        if channels_first is None:
            channels_first = _channels_first(pixels.shape, name)
        if not channels_first:
            pixels = np.moveaxis(pixels, -1, 1)
    if 0 in pixels.shape:
        raise DataError(f"{name}: shape {pixels.shape} is empty")
    # A copy: the caller may go on writing to the array, but samples never change.
    return torch.from_numpy(np.array(pixels, order="C")), scale


def as_array(values: Any, name: str) -> Array:
    """Anything array-like as a NumPy array; Pillow images become pixels.

    Raises:
        DataError: It cannot be converted, or some values are masked.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{name}: some values are masked; leave those rows out or fill them")
    if is_picture(values):
        return _pictures([values], name)[0]
    if isinstance(values, (list, tuple)) and any(map(is_picture, values)):
        read = iter(_pictures([each for each in values if is_picture(each)], name))
        values = [next(read) if is_picture(each) else each for each in values]
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array: Array = np.asarray(values)
        return array
    except (ValueError, TypeError, RuntimeError) as error:
        if "inhomogeneous" in str(error):
            raise DataError(f"{name}: rows of different length; all must share one shape") from None
        kind, why = type(values).__name__, " ".join(str(error).split())[:200]
        raise DataError(f"{name}: {kind} cannot be read as an array ({why})") from None


def is_picture(value: Any) -> bool:
    """Whether something is a Pillow image; then its caller has imported Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _pictures(images: Sequence[Any], name: str) -> list[Array]:
    """Pillow images as 8-bit grey or RGB, as from files."""
    found = [as_plain(image, name) for image in images]
    check_brightness(max(brightest for *_, brightest in found), name)
    return [np.asarray(plain) for plain, *_ in found]


def _pixels(array: Array, name: str, plain: bool) -> tuple[Array, float]:
    """The array as uint8 or float32, and its scale; whole numbers of ``plain`` ones are values."""
    if array.dtype == np.uint8:
        return array, BYTE_SCALE
    if array.dtype == np.bool_:
        return array.astype(np.uint8), 1.0
    if array.dtype.kind in "iu" and not plain:
        outside = (array < 0) | (array > 255)
        if outside.any():
            low, high = array.min(), array.max()
            fix = f", such as images / {divisor_of(float(high))}" if low >= 0 else ""
            raise DataError(
                f"{name}: whole numbers are pixels from 0 to 255, but these go from {low} to "
                f"{high}; pass floats in [0, 1]{fix}"
            )
        return array.astype(np.uint8), BYTE_SCALE
    if array.dtype.kind == "O":
        array = _numbers(array, name)
    if array.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: type {array.dtype} must be uint8 (0 to 255, scaled by 1/255) or float "
            "(used as it is)"
        )
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not np.isfinite(floats).all():
        row = int(np.argwhere(~np.isfinite(floats))[0][0])
        what = "row" if plain else "image"
        raise DataError(f"{name}: {what} {row} has a value that is not a finite 32-bit float")
    if plain:
        check_rounding(array, name)
    return floats, 1.0


def check_rounding(values: Array, name: str) -> None:
    """Refuses values that differ by less than 32-bit floats of their size can tell.

    Args:
        values: ``(n, ...)``, finite numbers.
        name: What to call them in an error.

    Raises:
        DataError: One of the features, ``[:, i]``, does so.
    """
    wide = values.dtype.itemsize > (4 if values.dtype.kind == "f" else 2)
    if not wide or len(values) < 2:
        return
    largest = np.abs(values).max(axis=0)
    spread = values.std(axis=0, dtype=np.float64)
    lost = (spread > 0) & (largest * np.finfo(np.float32).eps > spread / 8)
    if lost.any():
        place = tuple(np.argwhere(lost)[0])
        where = f", feature {', '.join(map(str, place))}" if lost.size > 1 else ""
        raise DataError(
            f"{name}{where}: reaches {largest[place]:g} but varies by {spread[place]:.2g} only, "
            "which 32-bit floats cannot hold; subtract its mean first"
        )


def _numbers(array: Array, name: str) -> Array:
    """An object array of Python numbers as floats, as a frame with mixed columns gives."""
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        pass
    for place, value in np.ndenumerate(array):
        try:
            float(value)
        except (TypeError, ValueError):
            where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"image {place[0]}"
            shown = repr(value)[:40]
            raise DataError(
                f"{name}: {where} is {shown}, not a number; leave it out or pass numbers for it"
            ) from None
    raise DataError(f"{name}: type {array.dtype} must be numbers")


def reach_of(pixels: Array | Tensor) -> float:
    """The largest absolute value of some stored pixels."""
    if isinstance(pixels, Tensor):
        pixels = pixels.numpy()
    return max(abs(float(pixels.min())), abs(float(pixels.max()))) if pixels.size else 0.0


def divisor_of(reach: float) -> str:
    """The divisor that scales values up to ``reach`` to [0, 1], as text such as 255."""
    if 100 < reach <= 255:
        return "255"
    if 255 < reach <= 2**16 - 1:
        return "65535" if reach > 4095 else "4095" if reach > 1023 else "1023"
    return f"{math.ceil(reach)}" if reach < 1e6 else f"{reach:.3g}"


def longer(reach: float, first: float) -> str:
    """A warning if values reach much further than those of the first task; else empty."""
    if reach <= UNLIKE * first:
        return ""
    return (
        f"these images reach {reach:g}, those of the first task {first:g}; scale both alike, such "
        f"as images / {divisor_of(reach / first)}"
    )


def shorter(reach: float, first: float) -> str:
    """A warning if values reach much less far than those of the first task; else empty."""
    if not 0 < reach * UNLIKE < first:
        return ""
    return f"these images reach only {reach:g}, those of the first task {first:g}; scale both alike"


def _check_range(floats: Array, name: str) -> None:
    """Refuses floats that were probably meant to be scaled."""
    if (reach := reach_of(floats)) > MOST:
        raise DataError(
            f"{name}: floats are used as they are, but these reach {reach:g}; scale them to "
            f"[0, 1], such as images / {divisor_of(reach)}"
        )


def _channels_first(shape: tuple[int, ...], name: str) -> bool:
    first, last = shape[1] in CHANNELS, shape[-1] in CHANNELS
    if first == last:
        why = "both its second and last" if first else "neither its second nor its last"
        raise DataError(
            f"{name}: shape {shape} is ambiguous, {why} dimension can be the channels (1 or 3); "
            f"{either('pass', 'read them in Python with')} channels_first=True or False"
        )
    return first


def as_label_array(values: Any, name: str = "labels") -> Array:
    """Labels as a 1-dimensional array of int64 or of text.

    Raises:
        DataError: They are neither whole numbers nor texts, or have another shape.
    """
    if isinstance(values, (list, tuple)):  # NumPy would turn mixed lists into texts
        texts = [isinstance(label, str) for label in values]
        if any(texts) and not all(texts):
            values = np.array(values, dtype=object)
    array = as_array(values, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = ""
        if array.ndim == 2 and array.dtype.kind in "biuf" and (array.sum(1) == 1).all():
            hint = f"; for one column per class {either('pass', 'save')} labels.argmax(1)"
        raise DataError(f"{name}: shape {array.shape} must be (n,), one label per image{hint}")
    if array.dtype.kind == "T":  # NumPy's texts of any length
        array = array.astype(object)
    if array.dtype.kind == "O":
        array = _plain_labels(array, name)
    if array.dtype.kind in "bi" or (array.dtype.kind == "u" and array.dtype.itemsize < 8):
        return array.astype(np.int64)
    if array.dtype.kind == "u" and (not array.size or array.max() < 2**63):
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        return _writable(array, name)
    fix = ""
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array % 1 == 0).all():
        fix = f"; {either('pass', 'save')} labels.astype(int)"
    raise DataError(f"{name}: type {array.dtype} must be whole numbers or texts{fix}")


def _plain_labels(array: Array, name: str) -> Array:
    """Python objects as whole numbers or as texts."""
    for kinds, into in (((str,), np.str_), ((int, np.integer), np.int64)):
        if all(isinstance(label, kinds) for label in array):
            try:
                return array.astype(into)
            except OverflowError:
                break
    for row, label in enumerate(array):
        if not isinstance(label, (int, str, np.integer)):
            raise DataError(
                f"{name}: row {row} is {str(label)[:40]!r}, which is neither a whole number nor a "
                "text; leave that row out"
            )
        if isinstance(label, str) != isinstance(array[0], str):
            raise DataError(
                f"{name}: some are numbers and some are texts, such as {array[0]!r} and "
                f"{label!r}; use one kind"
            )
    raise DataError(f"{name}: type {array.dtype} must be whole numbers or texts")


def _writable(texts: Array, name: str) -> Array:
    """Refuses texts that cannot be encoded, since a file could not store them."""
    for text in np.unique(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name}: {text!a} holds a character that no file can hold") from None
    return texts


def kind_of(labels: Array) -> str:
    """``"texts"`` or ``"whole numbers"``, for messages."""
    return "texts" if labels.dtype.kind == "U" else "whole numbers"


def labelled(
    images: Any,
    labels: Any,
    *,
    names: tuple[str, str] = ("images", "labels"),
    channels_first: bool | None = None,
    bounded: bool = True,
    series: bool = False,
) -> tuple[Tensor, float, Array]:
    """Images and their labels, checked together.

    Args:
        images: See :func:`as_images`.
        labels: See :func:`as_label_array`.
        names: What to call them in an error.
        channels_first: See :func:`as_images`.
        bounded: See :func:`as_images`.
        series: See :func:`as_images`.

    Returns:
        What :func:`as_images` and :func:`as_label_array` give, of equal length.

    Raises:
        DataError: They cannot be used, or there is not one label for each image.
    """
    how: dict[str, Any] = {"channels_first": channels_first, "bounded": bounded, "series": series}
    stored, scale = as_images(images, name=names[0], **how)
    given = as_label_array(labels, names[1])
    if len(given) != len(stored):
        what = names[0].rpartition(": ")[0]
        raise DataError(
            f"{what + ': ' if what else ''}{len(stored)} images but {len(given)} labels: one label "
            "per image"
        )
    return stored, scale, given


def encode_labels(*groups: np.ndarray[Any, Any]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels as 0 to classes - 1 in sorted order over all groups, and the names of the classes.

    Raises:
        DataError: Some are numbers and some texts.
    """
    if len({group.dtype.kind for group in groups}) > 1:
        raise DataError("labels: some are numbers and some are texts; use one kind")
    known, place = np.unique(np.concatenate(groups), return_inverse=True)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    encoded = [torch.from_numpy(part.astype(np.int64)) for part in np.split(place, ends)]
    return encoded, tuple(str(label) for label in known.tolist())


def number_labels(
    name: str, groups: Sequence[Array], class_names: tuple[str, ...] = ()
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Labels as 0 to classes - 1, and the names of the classes.

    Args:
        name: The data set's name, for the error.
        groups: Labels of the training images, and of the test images if there are any.
        class_names: The name of each class, if known: whole numbers then stay what they are.

    Raises:
        DataError: A number is no class, or a test label does not occur in training.
    """
    if class_names and all(group.dtype.kind != "U" for group in groups):
        encoded = [torch.from_numpy(group.astype(np.int64)) for group in groups]
        for labels in encoded:
            check_labels(name, labels, len(class_names))
        return encoded, class_names
    encoded, class_names = encode_labels(*groups)
    unseen = sorted(set(torch.cat(encoded).tolist()) - set(encoded[0].tolist()))
    if unseen:
        label = one_line(class_names[unseen[0]], 40)
        raise DataError(f"{name}: test label {label} does not occur among the training labels")
    return encoded, class_names


@usual_modes()
def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    name: str = "arrays",
    seed: int = 0,
    channels_first: bool | None = None,
    source: str = "arrays",
    series: bool = False,
) -> ImageData:
    """A data set from a user's own arrays; without a test set the seed holds out a fifth.

    Args:
        x_train: Images, see :func:`as_images`.
        y_train: Labels, ``(n,)``: any whole numbers or texts; they become 0, 1, … in sorted order.
        x_test: Test images, or None.
        y_test: Test labels, or None.
        name: The name of the data set.
        seed: Decides the test split where there is no test set.
        channels_first: See :func:`as_images`.
        source: What the arrays were read from, for the record.
        series: See :func:`as_images`.

    Raises:
        DataError: The arrays cannot be used, or do not fit together.
    """
    if (x_test is None) != (y_test is None):
        raise DataError(f"{name}: x_test and y_test must be given together")
    images, scale, labels = labelled(
        x_train,
        y_train,
        names=(f"{name}: x_train", f"{name}: y_train"),
        channels_first=channels_first,
        series=series,
    )
    parts = [(images, labels)]
    if x_test is not None:
        tests, test_scale, test_labels = labelled(
            x_test,
            y_test,
            names=(f"{name}: x_test", f"{name}: y_test"),
            channels_first=channels_first,
            series=series,
        )
        if scale != test_scale:
            raise DataError(f"{name}: x_train and x_test have different types; use one")
        parts.append((tests, test_labels))
    encoded, names = number_labels(name, [given for _, given in parts])
    pairs = [(stored, numbers) for (stored, _), numbers in zip(parts, encoded, strict=True)]
    return assemble(name, pairs, names, scale, seed=seed, source=source)
