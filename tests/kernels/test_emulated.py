"""The C++ kernels without Python, for every instruction set that can be compiled for here.

``emulated.cpp`` checks a small chain, forward and backward, against plain loops. Where there are a
compiler for arm64 and QEMU, NEON is tested on any machine: on Debian ``g++-aarch64-linux-gnu`` and
``qemu-user-static``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nispa.kernels import native
from tests.kernels.test_sanitizers import FLAGS, SOURCE, X86

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("emulated.cpp")
ARM = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")


def commands(isa: str) -> tuple[list[str], list[str]] | None:
    """What compiles for an instruction set, and what runs the program; None if nothing does."""
    if isa == "neon" and X86:
        found = [name for name in EMULATORS if shutil.which(name)]
        return ([ARM, "-static"], found[:1]) if shutil.which(ARM) and found else None
    if not native._supported(isa) or not shutil.which("g++"):
        return None
    return ["g++"], []


@pytest.mark.parametrize("isa", native.ISAS)
def test_a_chain_agrees_with_plain_loops(isa: str, tmp_path: Path) -> None:
    found = commands(isa)
    if found is None:
        pytest.skip(f"nothing here compiles {isa} and runs it")
    compiler, emulator = found
    program = tmp_path / "program"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-w", *FLAGS[isa], f"-I{SOURCE.parent}"]
    subprocess.run([*compiler, *flags, str(DRIVER), "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program)], stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{isa} agrees\n")
