"""What the processor allows the kernels, and how near to it each of their passes comes.

    NISPA_KERNELS=avx2 python -m benchmarks.bounds

One thread, in processor time, so that other work on the machine disturbs it less; the fastest fifth
of the rounds decides. Bounds are measured by ``bounds.cpp``, compiled here with the flags of the
kernels in use: multiply-adds between registers, and with one operand from memory at random places,
as a Linear layer reads its inputs. Passes are those of the MLP and the ConvNet, layer by layer.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import NETS, Case, Net, make_network
from nispa.base.seeding import stream
from nispa.kernels import native
from nispa.kernels.chain import Chain
from nispa.kernels.links import ConvolutionLink, WeightedLink
from nispa.kernels.native import Library
from nispa.network.fusion import segments

SOURCE = Path(native.__file__).parent / "cpp"
FLAGS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
}
SIZES = (24, 100, 200, 800)
"""KiB that operands lie in: a first cache, and what tiles of the MLP's layers read."""
SUMS, TIMES = 8, 20


def compiled(isa: str, folder: Path) -> ctypes.CDLL:
    """``bounds.cpp`` as a library.

    Raises:
        subprocess.CalledProcessError: It does not compile; what the compiler says goes to stderr.
    """
    path = folder / "bounds.so"
    flags = ["-O3", "-std=c++17", "-shared", "-fPIC", f"-I{SOURCE}", *FLAGS.get(isa, ())]
    subprocess.run(
        ["c++", *flags, str(Path(__file__).with_suffix(".cpp")), "-o", str(path)], check=True
    )
    return ctypes.CDLL(str(path))


def limits(loaded: ctypes.CDLL) -> dict[str, tuple[Callable[[], object], float]]:
    """What to time for the bounds, by name, and its multiply-adds of float32."""
    loaded.between_registers.argtypes = [ctypes.c_int64]
    loaded.from_memory.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4]
    width, rounds = loaded.width(), 1 << 17
    found: dict[str, tuple[Callable[[], object], float]] = {
        "registers alone": (lambda: loaded.between_registers(rounds), 12.0 * width * rounds)
    }
    generator = stream(0, "bounds")
    count = 1 << 14
    weights = torch.rand(count, generator=generator)
    for size in SIZES:
        for lanes in sorted({width, max(width, 16)}):
            slabs = SUMS * width // lanes
            places = size * 1024 // (4 * lanes * slabs)
            slab = (places + 16 // lanes) * lanes  # not a power of two
            pixels = torch.zeros(slab * slabs + 16)
            first = -pixels.data_ptr() % 64
            # Rising, as in a row, with gaps as at density 0.2.
            place = torch.randint(1, 10, (count,), generator=generator).cumsum(0) % places
            place = place.to(torch.int32)

            def call(
                pixels: torch.Tensor = pixels,
                first: int = first,
                place: torch.Tensor = place,
                slab: int = slab,
                lanes: int = lanes,
            ) -> None:
                at = pixels.data_ptr() + first
                loaded.from_memory(
                    at, place.data_ptr(), weights.data_ptr(), count, slab, lanes, TIMES
                )

            found[f"{size} KiB, {4 * lanes} bytes a place"] = (
                call,
                float(SUMS * width * count * TIMES),
            )
    return found


def passes(
    found: Library, case: Case
) -> tuple[dict[str, tuple[Callable[[], object], float]], list[Any]]:
    """What to time of a network's layers, by name, with its multiply-adds; what must live on.

    Backward is that of weights and inputs together, where both are needed, with the copying in of
    the output's gradient, which is timed on its own, too: ``copy``.
    """
    (whole,) = segments(make_network(case).body)
    chain = Chain(found, whole.links, NETS[case.net][0])
    images = min(chain.at_a_time(), case.batch)
    space = chain.forward(torch.rand(images, *NETS[case.net][0]))
    into = [torch.empty_like(values) for values in chain.parameters()]
    chain.backward(space, torch.rand(images, *chain.output_shape), into, fresh=True)
    start = ctypes.addressof(space.layers)
    step = ctypes.sizeof(space.layers) // len(chain.links)
    work: dict[str, tuple[Callable[[], object], float]] = {}
    keep: list[Any] = [chain, space, into]
    for number, link in enumerate(chain.links):
        if not isinstance(link, WeightedLink):
            continue
        out = chain.buffers[number + 1]
        pixels = out.pixels if isinstance(link, ConvolutionLink) else 1
        live = len(link.weight.plastic_index) * link.weights_each
        products = float(live * pixels * images)
        gradient = torch.rand(images, out.channels * out.pixels)
        keep.append(gradient)
        at, image = start + number * step, ctypes.addressof(space.images[number + 1])
        size, address = gradient.shape[1], gradient.data_ptr()

        def forward(at: int = at) -> None:
            found.forward(at, 1, images, True, 1)

        def backward(at: int = at, address: int = address) -> None:
            found.backward(at, 1, images, address, None, False, 1)

        def copy(
            image: int = image,
            channels: int = out.channels,
            address: int = address,
            size: int = size,
        ) -> None:
            found.fill(image, None, channels, address, size, None, images, 1)

        name = f"{case.net} {number} {type(link).__name__.removesuffix('Link').lower()}"
        work[f"{name} forward"] = (forward, products)
        work[f"{name} backward"] = (backward, products * (2 if number else 1))
        work[f"{name} copy"] = (copy, 0.0)
    return work, keep


def seconds(
    work: Mapping[str, tuple[Callable[[], object], float]], rounds: int
) -> dict[str, float]:
    """Processor seconds of each, in turn; a fifth of the rounds was faster."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, (call, _) in work.items():
            call()
            started = time.process_time()
            call()
            if number:
                taken[name].append(time.process_time() - started)
    return {name: sorted(times)[len(times) // 5] for name, times in taken.items()}


def rates(
    work: Mapping[str, tuple[Callable[[], object], float]], taken: Mapping[str, float]
) -> dict[str, float]:
    """GFLOP/s of each; what is only copying has none, and is taken from its backward pass."""
    return {
        name: 2e-9
        * products
        / (taken[name] - taken.get(name.replace("backward", "copy"), 0.0) * ("backward" in name))
        for name, (_, products) in work.items()
        if products
    }


def main() -> None:
    """Prints GFLOP/s of bounds and passes."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--rounds", type=int, default=25)
    given = made.parse_args()
    torch.set_num_threads(1)
    found, why = native.library()
    if found is None:
        made.error(f"there are no compiled kernels: {why}")
    with tempfile.TemporaryDirectory() as folder:
        work, keep = limits(compiled(found.isa, Path(folder))), []
        nets: tuple[tuple[Net, float], ...] = (("mlp", 0.2), ("convnet", 0.1))
        for net, density in nets:
            more, kept = passes(found, Case(net, density, NETS[net][2], threads=1))
            work |= more
            keep.append(kept)
        reached = rates(work, seconds(work, given.rounds))
    most = reached["registers alone"]
    for name, rate in reached.items():
        print(f"{name:34} {rate:6.1f} GFLOP/s  {rate / most:4.0%} of registers alone")


if __name__ == "__main__":
    main()
