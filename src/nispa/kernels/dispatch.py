"""Chooses the kernels that layers run on, and can say which and why."""

from __future__ import annotations

from dataclasses import dataclass

from nispa.kernels.reference import LiveValues, conv2d, linear, to_dense

__all__ = ["KernelChoice", "LiveValues", "conv2d", "in_use", "linear", "to_dense"]


@dataclass(frozen=True)
class KernelChoice:
    """The name of the kernels in use and the reason for that choice."""

    name: str
    reason: str


def in_use() -> KernelChoice:
    """The kernels that sparse layers run on in this process."""
    return KernelChoice("reference", "plain PyTorch over scattered live values, on CPU and CUDA")
