"""Chooses the compute device, with a clear error if it is not available."""

from __future__ import annotations

import torch

from nispa.errors import DeviceError, either


def choose_device(name: str | torch.device) -> torch.device:
    """The device called ``name``: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, or a ``torch.device``.

    Raises:
        DeviceError: It is not available.
    """
    if not isinstance(name, (str, torch.device)):
        raise DeviceError(
            f"device={name!r} must be 'cpu', 'cuda' or 'cuda:NUMBER', or a torch.device"
        )
    name = str(name)
    kind, _, number = name.partition(":")
    numbered = number.isascii() and number.isdecimal()
    if kind not in ("cpu", "cuda") or (":" in name and not numbered):
        raise DeviceError(f"device={name} must be cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    fix = either("device='cpu'", "--device cpu")
    if not torch.cuda.is_available():
        built = "finds no GPU" if torch.version.cuda else "is a build without CUDA"
        raise DeviceError(f"device={name} is not there: this PyTorch {built}; pass {fix}")
    there = torch.cuda.device_count()
    if int(number or 0) >= there:
        raise DeviceError(
            f"device={name} is not there: this machine has {there} "
            f"GPU{'s, numbered from 0' if there > 1 else ', cuda:0'}; pass cuda:0, or {fix}"
        )
    return torch.device("cuda", int(number)) if number else torch.device("cuda")
