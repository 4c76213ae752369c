"""Finds the compiled kernels that suit this processor, and PyTorch's threads for them.

The kernels are one C++ source compiled once for each instruction set, without PyTorch's headers;
they are called through ctypes, which lets other Python threads run meanwhile. They run on the
OpenMP threads that PyTorch already has, whose functions are looked up among the loaded libraries.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ISAS = ("avx512", "avx2", "neon", "plain")
"""Instruction sets that kernels may be compiled for, fastest first."""

CHOICE = "NISPA_KERNELS"
"""Environment variable that names an instruction set, or ``reference``."""

_HERE = Path(__file__).parent


# The structures below are those of the C++ source, field by field in the same order: the names may
# differ, the order may not. Each field is 8 bytes wide. A pointer keeps nothing alive: whoever
# writes one here must hold on to the array.


class Rows(ctypes.Structure):
    """Live connections row by row; see ``layout.hpp``."""

    _fields_ = (
        ("start", ctypes.c_void_p),  # int32: row r has connections start[r] to start[r + 1]
        ("source", ctypes.c_void_p),  # int32: the channel, or place, that each reads
        ("value", ctypes.c_void_p),  # float32: a weight, or a kernel, each
    )


class Image(ctypes.Structure):
    """A buffer of activations; see ``layout.hpp``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("pad", ctypes.c_int64),  # width of the zero border
    )


class Biases(ctypes.Structure):
    """Biases of some units; see ``chain.cpp``."""

    _fields_ = (
        ("unit", ctypes.c_void_p),  # int64, the tensor of positions itself
        ("value", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class Merged(ctypes.Structure):
    """Frozen and plastic connections in one order; see ``chain.cpp``."""

    _fields_ = (
        ("rows", Rows),  # whose values are room that the kernels copy into
        ("origin", ctypes.c_void_p),  # place among the plastic values, or -1 - place among frozen
        ("count", ctypes.c_int64),
    )


class Layer(ctypes.Structure):
    """One layer of a chain; see ``chain.cpp``. Row lists are those of ``structure.py``."""

    _fields_ = (
        # The layer itself.
        ("kind", ctypes.c_int64),
        ("relu", ctypes.c_int64),  # whether its output has passed a ReLU
        ("input_relu", ctypes.c_int64),  # and its input: backward then masks the gradient
        ("kernel_height", ctypes.c_int64),
        ("kernel_width", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("padding", ctypes.c_int64),
        ("pool_follows", ctypes.c_int64),  # with the same rows: both can be computed at once
        # Its input and output. Backward writes gradients over the activations.
        ("input", Image),
        ("output", Image),
        # Its values, where the layer stores them.
        ("frozen", Rows),
        ("plastic", Rows),
        ("frozen_bias", Biases),
        ("plastic_bias", Biases),
        ("bias_scratch", ctypes.c_void_p),  # room for all biases in order
        # Forward: rows whose connections are of one kind, then rows of both.
        ("pure_rows", ctypes.c_void_p),
        ("pure_places", ctypes.c_void_p),  # where their output goes
        ("pure_row_count", ctypes.c_int64),
        ("mixed", Merged),
        ("mixed_rows", ctypes.c_void_p),
        ("mixed_places", ctypes.c_void_p),
        ("mixed_row_count", ctypes.c_int64),
        # Backward: the gradient of inputs, then that of values.
        ("back", Merged),
        ("needed_inputs", ctypes.c_void_p),
        ("needed_input_places", ctypes.c_void_p),
        ("needed_input_count", ctypes.c_int64),
        ("plastic_rows", ctypes.c_void_p),
        ("plastic_row_count", ctypes.c_int64),
        ("plastic_count", ctypes.c_int64),
        ("weight_gradient", ctypes.c_void_p),
        ("bias_gradient", ctypes.c_void_p),
        ("weight_parts", ctypes.c_void_p),  # a convolution's sums, slab by slab
        ("bias_parts", ctypes.c_void_p),
    )


class Statistics(ctypes.Structure):
    """A norm by channels for one batch; see ``norm.hpp``."""

    _fields_ = (
        ("mean", ctypes.c_void_p),  # float64, of this batch; None where running ones are used
        ("squares", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),  # float32, as the following
        ("running_square", ctypes.c_void_p),
        ("held", ctypes.c_void_p),  # bool: channels that use the running ones all the same
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("epsilon", ctypes.c_double),
        ("share", ctypes.c_double),
    )


class Affine(ctypes.Structure):
    """Scale, sum and ReLU behind a convolution; see ``norm.hpp``."""

    _fields_ = (
        ("raw", Image),
        ("skip", Image),  # without data where nothing is added
        ("result", Image),
        ("scale", ctypes.c_void_p),  # float32, one a channel
        ("shift", ctypes.c_void_p),
        ("relu", ctypes.c_int64),
    )


class Back(ctypes.Structure):
    """What a convolution with a norm needs on its way back; see ``norm.hpp``."""

    _fields_ = (
        ("gradient", Image),
        ("raw", Image),
        ("result", Image),  # without data where the ReLU is computed again
        ("skip", Image),  # where the gradient of what was added goes
        ("room", Image),  # where the gradient of the convolution's own output goes
        ("into", Image),  # where the gradient of its input goes
        ("relu", ctypes.c_int64),
        ("scale", ctypes.c_void_p),  # float32, one a channel, as the following
        ("shift", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("slope", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("inverse", ctypes.c_void_p),
        ("held", ctypes.c_void_p),  # bool: channels whose statistics are not this batch's
        ("learns", ctypes.c_int64),  # whether any are this batch's
        ("count", ctypes.c_int64),  # numbers of a channel
        ("parts", ctypes.c_int64),  # slabs of ``room``, one a thread; 0: one for each of the batch
    )


FIELDS = sum(ctypes.sizeof(kind) // 8 for kind in (Layer, Statistics, Affine, Back))
"""Of all structures that Python fills; a library says how many it knows."""


class Library:
    """Compiled kernels for one instruction set.

    Attributes:
        isa: One of :data:`ISAS`.
        lanes: Images side by side in one vector.
        threads: Where its threads come from, in words.
    """

    def __init__(self, path: Path) -> None:
        """Loads a compiled library.

        Raises:
            OSError: It does not load here.
        """
        loaded = ctypes.CDLL(str(path))
        # The functions are described in ``cpp/chain.cpp``; the last argument of those that compute
        # is the number of threads.
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self.fill = _function(
            loaded, "nispa_fill", [pointer, pointer, size, pointer, size, pointer, size, size]
        )
        self.empty = _function(loaded, "nispa_empty", [pointer, pointer, size, size])
        self.sums = _function(loaded, "nispa_sums", [pointer, size, pointer, size])
        self.forward = _function(loaded, "nispa_forward", [pointer, size, size, size, size])
        self.backward = _function(
            loaded, "nispa_backward", [pointer, size, size, pointer, pointer, size, size]
        )
        self.fill_gradient = _function(
            loaded, "nispa_fill_gradient", [pointer, pointer, size, size]
        )
        self.convolve = _function(
            loaded, "nispa_convolve", [pointer, size, size, pointer, pointer, size]
        )
        self.scale = _function(loaded, "nispa_scale", [pointer, size, size])
        self.means = _function(loaded, "nispa_means", [pointer, pointer, size, size])
        self.statistics = _function(loaded, "nispa_statistics", [pointer])
        self.norm_sums = _function(
            loaded, "nispa_norm_sums", [pointer, size, pointer, pointer, size]
        )
        self.convolve_backward = _function(
            loaded, "nispa_convolve_backward", [pointer, pointer, size, size]
        )
        use_threads = _function(loaded, "nispa_use_threads", [pointer, pointer, pointer])
        # A library left from before a structure changed would read other fields than were meant.
        if _function(loaded, "nispa_fields", [], size)() != FIELDS:
            raise OSError(f"{path.name} was compiled from another version of its source")
        self.lanes: int = _function(loaded, "nispa_lanes", [], size)()
        self.isa: str = _function(loaded, "nispa_isa", [], ctypes.c_char_p)().decode()
        runtime, self.threads = _openmp()
        if runtime is not None:
            use_threads(*runtime)


def _function(
    loaded: ctypes.CDLL, name: str, arguments: list[Any], result: Any = None
) -> Callable[..., Any]:
    function = getattr(loaded, name)
    function.argtypes, function.restype = arguments, result
    return function  # type: ignore[no-any-return]


def _openmp() -> tuple[tuple[Any, Any, Any] | None, str]:
    """PyTorch's OpenMP: fork, number of this thread, size of the team; and its name.

    A second runtime would start threads of its own, which compete with PyTorch's for the cores.
    """
    # Three entry points that both GNU's and LLVM's runtime have.
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    bundled = sorted(
        path
        for pattern in ("lib*omp*.so*", "lib*omp*.dylib")
        for path in (Path(torch.__file__).parent / "lib").glob(pattern)
    )
    for library in [*map(str, bundled), None]:  # None: whatever the process has loaded
        try:
            loaded = ctypes.CDLL(library)
            functions = tuple(ctypes.cast(getattr(loaded, name), ctypes.c_void_p) for name in names)
        except (OSError, AttributeError, TypeError):
            continue
        return functions, "PyTorch's OpenMP threads"  # type: ignore[return-value]
    return None, "one thread: PyTorch's OpenMP was not found"


def _supported(isa: str) -> bool:
    """Whether this processor, and the operating system, can run an instruction set."""
    # PyTorch has asked the operating system, too, which may not save wide registers.
    capability = torch.backends.cpu.get_cpu_capability()
    if isa == "avx512":
        return capability == "AVX512"
    if isa == "avx2":
        return capability in ("AVX2", "AVX512")
    return True


def compiled(isa: str) -> Path | None:
    """Path of the library for an instruction set, or None if it was not compiled."""
    path = _HERE / f"_live_{isa}{'.dll' if os.name == 'nt' else '.so'}"
    return path if path.is_file() else None


@functools.cache
def library() -> tuple[Library | None, str]:
    """The fastest kernels that this processor can run, or None; and the reason, in words."""
    wanted = os.environ.get(CHOICE, "")
    if wanted == "reference":
        return None, f"{CHOICE}=reference"
    if wanted and wanted not in ISAS:
        names = ", ".join((*ISAS, "reference"))
        return None, f"{CHOICE}={wanted} is not one of {names}"
    problems = []
    for isa in (wanted,) if wanted else ISAS:
        path = compiled(isa)
        if path is None or not _supported(isa):
            # Whoever named a set is told why it is not used; otherwise the next best is tried.
            if wanted:
                lack = "was not compiled" if path is None else "is more than this processor has"
                problems.append(f"{CHOICE}={wanted} {lack}")
            continue
        try:
            return Library(path), f"compiled for {isa}"
        except (OSError, AttributeError) as error:
            problems.append(str(error))
    if problems:
        return None, "; ".join(problems)
    return None, "no compiled kernels: install with a C++ compiler at hand"
