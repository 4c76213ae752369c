"""Builds the compiled kernels: one C++ source, one shared library for each instruction set.

Everything else about the package is in pyproject.toml; docs/decisions/0008 tells why this file is
as it is. The libraries are loaded with ctypes: they need neither Python's nor PyTorch's headers.
"""

from __future__ import annotations

import gzip
import io
import os
import platform
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

KERNELS = Path("src", "nispa", "kernels")
SUFFIX = ".dll" if os.name == "nt" else ".so"
REQUIRE = "NISPA_REQUIRE_KERNELS"
"""Environment variable: with 1, a library that cannot be built ends the build."""

WARNINGS = ("-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized")
GNU = (
    *("-O3", "-std=c++17", "-fvisibility=hidden", *WARNINGS),
    "-ffp-contract=off",  # a product and a sum are rounded together only where the source says so
    *("-g0", "-fno-wrapv"),  # take back what Python itself was compiled with
)
# -march takes back one from outside: a library must run on every processor that has its set.
GNU_SETS = {
    ("x86_64", "avx512"): (
        *("-march=x86-64", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
        *("-mavx2", "-mfma"),
    ),
    ("x86_64", "avx2"): ("-march=x86-64", "-mavx2", "-mfma"),
    ("x86_64", "plain"): ("-march=x86-64",),
    ("arm64", "plain"): ("-U__ARM_NEON",),  # every arm64 compiler defines it
}
MSVC = ("/O2", "/std:c++17")
MSVC_SETS = {"avx512": ("/arch:AVX512",), "avx2": ("/arch:AVX2",)}


def processor(target: str) -> str:
    """The kind of processor of a platform: x86_64, arm64, or another's own name."""
    name = target.rpartition("-")[2]
    if name == "universal2":  # a Mac's Python that runs on both kinds
        name = platform.machine()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(name, name)


def instruction_sets(target: str) -> tuple[str, ...]:
    """Those to compile for on a platform, one library each."""
    kind = processor(target)
    if kind == "x86_64":
        return "avx512", "avx2", "plain"
    if kind == "arm64" and not target.startswith("win"):  # MSVC does not tell the source of NEON
        return "neon", "plain"
    return ("plain",)


def compile_flags(compiler: str, isa: str, target: str) -> list[str]:
    """Flags for a compiler, of setuptools' type ``msvc`` or any other, and an instruction set."""
    if compiler == "msvc":
        return [*MSVC, *MSVC_SETS.get(isa, ())]
    return [*GNU, *GNU_SETS.get((processor(target), isa), ()), *_architecture(target)]


def link_flags(target: str) -> list[str]:
    """Flags that link a library; on Linux without the names that only a debugger reads."""
    return ["-s"] if target.startswith("linux") else _architecture(target)


def _architecture(target: str) -> list[str]:
    # A Mac's compiler may be set up for two, but flags for instructions suit one.
    return ["-arch", processor(target)] if target.startswith("macosx") else []


def libraries(target: str) -> list[Extension]:
    """What to build for a platform. A library that does not compile is left out."""
    cpp = KERNELS / "cpp"
    return [
        Extension(
            f"nispa.kernels._live_{isa}",
            sources=[str(cpp / "chain.cpp")],
            depends=sorted(map(str, cpp.glob("*.hpp"))),
            language="c++",
            optional=os.environ.get(REQUIRE) != "1",
        )
        for isa in instruction_sets(target)
    ]


class BuildLibraries(build_ext):
    """Builds shared libraries side by side; they are no extension modules of Python."""

    def finalize_options(self) -> None:
        """Lets all libraries compile at once."""
        super().finalize_options()
        self.parallel = self.parallel or True

    def get_ext_filename(self, fullname: str) -> str:
        """A name without Python's version, since the library does not depend on it."""
        return str(Path(*fullname.split("."))) + SUFFIX

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links one library, always anew."""
        target, isa = sysconfig.get_platform(), ext.name.rpartition("_")[2]
        room = str(Path(self.build_temp, isa))  # they have their source in common
        objects = self.compiler.compile(
            ext.sources,
            output_dir=room,
            extra_postargs=compile_flags(self.compiler.compiler_type, isa, target),
        )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            export_symbols=[],  # the source says what it exports; there is no PyInit
            extra_postargs=link_flags(target),
            build_temp=room,
            target_lang=ext.language,
        )

    def copy_extensions_to_source(self) -> None:
        """Puts the libraries beside the source, and leaves none there from an earlier build."""
        for old in KERNELS.glob("_live_*"):
            old.unlink()
        super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI, platform."""
        return "py3", "none", super().get_tag()[2]


class SameSdist(sdist):
    """An sdist whose bytes depend on its files alone, not on who builds it, where or when."""

    def make_archive(self, *args: Any, **named: Any) -> str:
        """Packs the files, and packs them again without times, owners and their order."""
        made = str(super().make_archive(*args, **named))
        if made.endswith(".tar.gz"):
            even_out(Path(made), int(os.environ.get("SOURCE_DATE_EPOCH", YEAR_1980)))
        return made


YEAR_1980 = 315_532_800
"""The least time that a zip file can hold, in seconds since 1970."""


def even_out(path: Path, time: int) -> None:
    """Packs a ``.tar.gz`` anew: in the order of names, with one time, no owner, usual rights."""
    packed = io.BytesIO()
    with (
        tarfile.open(path) as before,
        gzip.GzipFile("", "wb", fileobj=packed, mtime=time) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    path.write_bytes(packed.getvalue())


if __name__ == "__main__":
    # In a folder of its own: from one that stays, files since removed would get into the wheel.
    with tempfile.TemporaryDirectory(prefix="nispa-build-") as folder:
        setup(
            ext_modules=libraries(sysconfig.get_platform()),
            cmdclass={
                "build_ext": BuildLibraries,
                "bdist_wheel": PlatformWheel,
                "sdist": SameSdist,
            },
            options={"build": {"build_base": folder}},
        )
