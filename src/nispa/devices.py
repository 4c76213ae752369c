"""Compute devices: which there are, and a clear word where one is not."""

from __future__ import annotations

import torch

from nispa.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device called ``name``: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        DeviceError: It is not there.
    """
    kind, _, number = name.partition(":")
    numbered = number.isascii() and number.isdecimal()
    if kind not in ("cpu", "cuda") or (":" in name and not numbered):
        raise DeviceError(f"device={name} must be cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is a build without CUDA"
        raise DeviceError(f"device={name} is not there: this PyTorch {built}; pass --device cpu")
    if int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device={name} is not there: this machine has {torch.cuda.device_count()} GPUs, "
            "numbered from 0"
        )
    return torch.device("cuda", int(number)) if number else torch.device("cuda")
