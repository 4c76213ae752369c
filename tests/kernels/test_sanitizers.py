"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

The source is compiled anew with both, and the tests of this room and of networks run in a process
of its own on that library, with every buffer in memory of its own: a read or a write past the end
of one, even into its neighbour, ends the process.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from nispa.kernels import native

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SOURCE = Path(native.__file__).parent / "cpp" / "chain.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "neon": [],
    "plain": [] if X86 else ["-U__ARM_NEON"],
}
SANITIZE = [
    *("-O1", "-g", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-w"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
]
RUN = ["test_chain.py", "test_passes.py", "test_bits.py", "test_structure.py", "test_fuzz.py"]
RUN = [f"kernels/{name}" for name in (*RUN, "test_not_finite.py", "test_dispatch.py")]
RUN += ["network/test_fusion.py", "network/test_prepared.py", "network/test_passes.py"]
LEFT_OUT = "not borders and not environment"  # which need all in one buffer; other processes

START = """
import sys
from pathlib import Path

import torch

from nispa.kernels import native, workspace

isa, path, *arguments = sys.argv[1:]
native.compiled = lambda wanted: Path(path) if wanted == isa else None
together = workspace.Workspace.__init__


def apart(self, owner, slabs, *, own=True):
    together(self, owner, slabs, own=own)
    if not own:
        return
    sizes = [buffer.vectors * owner.library.lanes * slabs for buffer in owner.buffers]
    self.apart = [torch.zeros(size, dtype=torch.float32, device="cpu") for size in sizes]
    for image, memory in zip(self.images, self.apart, strict=True):
        image.data = memory.data_ptr()


workspace.Workspace.__init__ = apart
"""
RUN_TESTS = """
import pytest

sys.exit(pytest.main(arguments))
"""
OVERRUN = """
import ctypes

library = native.Library(Path(path))
memory = torch.zeros(library.lanes * 3)
image = native.Image(memory.data_ptr(), 3, 1, 1, 0)
room = torch.zeros(3 * 2 - int(arguments[0]))
library.empty(ctypes.addressof(image), room.data_ptr(), 2, 1)
print("done")
"""


class Compiler(NamedTuple):
    """A compiler, more flags for it, and the libraries that must be loaded first."""

    command: str
    flags: list[str]
    preload: str


def compilers() -> list[Compiler]:
    """Those that are here. PyTorch throws C++ errors, which the sanitizer must know of early."""
    kind = "x86_64" if X86 else "aarch64"
    found = []
    for command, flags, runtime in (
        ("g++", [], "libasan.so"),
        ("clang++", ["-shared-libasan"], f"libclang_rt.asan-{kind}.so"),
    ):
        if shutil.which(command):
            paths = [where_is(command, name) for name in (runtime, "libstdc++.so.6")]
            if all(path.is_absolute() and path.is_file() for path in paths):
                found.append(Compiler(command, flags, " ".join(map(str, paths))))
    return found


def where_is(command: str, name: str) -> Path:
    """Where a compiler finds a library; the bare name where it does not."""
    words = [command, f"-print-file-name={name}"]
    return Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module", params=[isa for isa in native.ISAS if native._supported(isa)])
def sanitized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Compiler]:
    """An instruction set, its library with sanitizers, and who compiled it."""
    isa = request.param
    if isa == "neon" and X86:
        pytest.skip("neon is of another processor")
    path = tmp_path_factory.mktemp(isa) / "sanitized.so"
    for compiler in compilers():
        words = [
            compiler.command,
            *SANITIZE,
            *FLAGS[isa],
            *compiler.flags,
            "-o",
            str(path),
            str(SOURCE),
        ]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return isa, path, compiler
    pytest.skip("no compiler here has sanitizers")


def run(
    program: str, sanitized: tuple[str, Path, Compiler], *arguments: str
) -> subprocess.CompletedProcess[str]:
    isa, path, compiler = sanitized
    quiet = "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0"
    environment = {
        **os.environ,
        "LD_PRELOAD": compiler.preload,
        "ASAN_OPTIONS": quiet,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "NISPA_REQUIRE_KERNELS": "1",
    }
    environment.pop(native.CHOICE, None)
    return subprocess.run(
        [sys.executable, "-c", START + program, isa, str(path), *arguments],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def complaint(output: str) -> str:
    """What the sanitizers say, or else how the output ends."""
    places = [output.find(mark) for mark in ("runtime error:", "AddressSanitizer")]
    found = [place for place in places if place >= 0]
    return output[max(0, min(found) - 200) :][:3000] if found else output[-6000:]


def test_an_overrun_is_caught(sanitized: tuple[str, Path, Compiler]) -> None:
    """The sanitizers are at work: one number too few to write to ends the process."""
    fits, overruns = (run(OVERRUN, sanitized, missing) for missing in "01")
    assert fits.returncode == 0, fits.stdout
    assert fits.stdout == "done\n"
    assert overruns.returncode != 0
    assert "heap-buffer-overflow" in overruns.stdout
    assert "chain.cpp" in overruns.stdout


def test_all_tests_pass_with_sanitizers(sanitized: tuple[str, Path, Compiler]) -> None:
    files = [str(TESTS / name) for name in RUN]
    options = ["-q", "-s", "-p", "no:cacheprovider", "-k", LEFT_OUT, "--tb=short"]
    done = run(RUN_TESTS, sanitized, *options, *files)
    assert done.returncode == 0, complaint(done.stdout)
