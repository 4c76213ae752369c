"""Named random streams: every random decision is drawn from (seed, purpose, coordinates).

A stream depends only on its name, never on earlier draws. So changing the data order does not
change the initial weights, and no random state needs to be saved: a resumed run derives the stream
of (seed, "batches", task 3, phase 2, epoch 4) again.
"""

from __future__ import annotations

import hashlib

import torch

MAX_SEED = 2**63 - 1


def derive(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream called ``name``, from SHA-256 (equal on every platform)."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, for example ``stream(0, "batches", task, epoch)``.

    PyTorch's CPU generator reads the low 32 bits of its seed.
    """
    generator = torch.Generator()
    generator.manual_seed(derive(seed, *name))
    return generator
