"""Tensors and a JSON header in one safetensors file, with a SHA-256 of both.

Reading executes nothing and allocates no more memory than the file's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nispa import __version__
from nispa.errors import FormatError, InputError
from nispa.files import one_line

_HEADER = "nispa"


def encode(form: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file; the same content always gives the same bytes.

    Args:
        form: Name and version of the format, such as ``"nispa-learner/1"``.
        header: JSON values.
        tensors: Tensors by name, on any device.
    """
    full = {"format": form, "nispa": __version__, **header}
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    full["sha256"] = digest(full, plain)
    text = json.dumps(full, sort_keys=True, allow_nan=False)
    return safetensors.torch.save(plain, {_HEADER: text})


def read(path: Path, form: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file, verified against their hash.

    Args:
        path: The file.
        form: The expected format.
        what: What to call it in messages, such as ``"learner"``.

    Raises:
        InputError: There is no such file.
        FormatError: It is damaged, of another kind, or of another version.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; pass one that a {what} was saved to")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged or not a {what}: {one_line(str(error))}") from None
    try:
        header = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise FormatError(f"{path} is not a {what}, or its header is damaged") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), str):
        raise FormatError(f"{path} is not a {what}, or its header is damaged")
    if header["format"] != form:
        raise FormatError(
            f"{path} has format {one_line(header['format'])}, written by nispa "
            f"{one_line(str(header.get('nispa')))}; this version reads {form}; "
            f"{_advice(header['format'], form)}"
        )
    try:
        whole = header.get("sha256") == digest(header, tensors)
    except RecursionError:  # nesting that no file of ours has
        whole = False
    if not whole:
        raise FormatError(f"{path} is damaged: its content does not match its checksum")
    return tensors, header


def _no_number(text: str) -> None:
    """Refuses NaN and infinities, which are not JSON and are never written."""
    raise ValueError(text)


def _advice(found: str, form: str) -> str:
    """What to do about a file of another format."""
    name, _, number = form.partition("/")
    other, _, version = found.partition("/")
    if other != name:
        return f"pass a file of {name}"
    newer = version.isdecimal() and len(version) < 9 and int(version) > int(number)
    return "update with: pip install --upgrade nispa" if newer else "read it with that nispa"


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header (without its hash) and of every tensor's name, type and bytes."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return found.hexdigest()
