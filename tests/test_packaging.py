"""What the build makes: sdist, wheel and compiled kernels, with a compiler and without."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from nispa.kernels import native

ROOT = Path(__file__).parents[1]
CPP = ROOT / "src" / "nispa" / "kernels" / "cpp"
HERE = sysconfig.get_platform()
COMPILER = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
HAS_COMPILER = os.name == "posix" and shutil.which(COMPILER) is not None
chooses_compiler = pytest.mark.skipif(os.name == "nt", reason="MSVC is not chosen through CXX")
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason=f"{COMPILER} is not here")

# Stands in for a compiler: writes down how it was called, and makes what it was told to make
# except where FAKE_FAILS stands in the command.
FAKE = f"""#!{sys.executable}
import os, pathlib, sys
given = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(given) + "\\n")
if any(os.environ["FAKE_FAILS"] in word for word in given):
    sys.exit("what is that?")
if "-c" in given:
    pathlib.Path(given[given.index("-c") + 1]).read_text()
pathlib.Path(given[given.index("-o") + 1]).write_text("made")
"""


@pytest.fixture(scope="module")
def setup_file() -> ModuleType:
    """``setup.py`` as a module."""
    pytest.importorskip("setuptools", "77.0.3")
    spec = importlib.util.spec_from_file_location("setup_of_nispa", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the project in which an earlier build left its libraries."""
    pytest.importorskip("setuptools", "77.0.3")
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"
    for name in ("src", ".ci", ".github", "conda", "docs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("_live_avx2.so", "_live_neon.so", "_live_plain.dll", "gone.pyc"):
        (copy / "src" / "nispa" / "kernels" / name).write_text("left over")
    build("build_sdist", copy, folder)
    return next(folder.glob("*.tar.gz"))


def build(what: str, source: Path, to: Path, **variables: str) -> None:
    """Calls the build backend as pip does, where torch cannot be imported.

    Raises:
        subprocess.CalledProcessError: The build failed.
    """
    torch = to / "no torch" / "torch.py"
    torch.parent.mkdir(parents=True)
    torch.write_text("raise ImportError('the build imports torch')")
    outside = {
        name: text
        for name, text in os.environ.items()
        if not name.endswith("FLAGS") and name != "NISPA_REQUIRE_KERNELS"
    }
    subprocess.run(
        [
            *(sys.executable, "-c"),
            f"from setuptools import build_meta; build_meta.{what}({str(to)!r})",
        ],
        cwd=source,
        env={**outside, "PYTHONPATH": str(torch.parent), **variables},
        check=True,
        capture_output=True,
    )


def unpacked(sdist: Path, to: Path) -> Path:
    """The folder that an sdist unpacks to."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # 3.10 and 3.11 have it in later releases only
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(to / "source")
    (source,) = (to / "source").iterdir()
    return source


def wheel(source: Path, to: Path, **variables: str) -> Path:
    """Builds a wheel in the folder ``to``."""
    build("build_wheel", source, to, **variables)
    (made,) = to.glob("*.whl")
    return made


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def compiled(wheel: Path) -> set[str]:
    """The instruction sets that a wheel has libraries for."""
    names = (re.fullmatch(r"nispa/kernels/_live_(\w+)\.(so|dll)", name) for name in contents(wheel))
    return {name[1] for name in names if name}


def says(library: Path) -> str:
    """The instruction set that a library says it was compiled for."""
    name = ctypes.CDLL(str(library)).nispa_isa
    name.restype = ctypes.c_char_p
    return str(name().decode())


@pytest.mark.parametrize(
    ("target", "sets"),
    [
        ("linux-x86_64", ["avx512", "avx2", "plain"]),
        ("macosx-10.13-x86_64", ["avx512", "avx2", "plain"]),
        ("win-amd64", ["avx512", "avx2", "plain"]),
        ("linux-aarch64", ["neon", "plain"]),
        ("macosx-11.0-arm64", ["neon", "plain"]),
        ("win-arm64", ["plain"]),
        ("linux-riscv64", ["plain"]),
    ],
)
def test_each_platform_has_its_instruction_sets(
    setup_file: ModuleType, target: str, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NISPA_REQUIRE_KERNELS", raising=False)
    found = setup_file.libraries(target)
    assert [library.name for library in found] == [f"nispa.kernels._live_{isa}" for isa in sets]
    assert set(sets) <= set(native.ISAS)
    assert all(library.optional for library in found)


def test_a_mac_python_for_both_processors_builds_for_the_one_it_runs_on(
    setup_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    target = "macosx-10.13-universal2"
    assert setup_file.instruction_sets(target) == ("neon", "plain")
    assert setup_file.compile_flags("unix", "neon", target)[-2:] == ["-arch", "arm64"]
    assert setup_file.link_flags(target) == ["-arch", "arm64"]


@pytest.mark.parametrize(
    ("compiler", "isa", "target", "wanted", "unwanted"),
    [
        ("unix", "avx512", "linux-x86_64", {"-mavx512f", "-mavx512bw", "-mfma"}, set()),
        ("unix", "avx2", "linux-x86_64", {"-mavx2", "-mfma"}, {"-mavx512f"}),
        ("unix", "plain", "linux-x86_64", {"-march=x86-64"}, {"-mavx2", "-mfma"}),
        ("unix", "plain", "linux-aarch64", {"-U__ARM_NEON"}, {"-march=x86-64"}),
        ("unix", "neon", "linux-aarch64", {"-O3"}, {"-U__ARM_NEON", "-march=x86-64"}),
        ("msvc", "avx512", "win-amd64", {"/arch:AVX512", "/std:c++17"}, {"-O3"}),
        ("msvc", "avx2", "win-amd64", {"/arch:AVX2", "/O2"}, {"/arch:AVX512"}),
        ("msvc", "plain", "win-amd64", {"/O2"}, {"/arch:AVX2", "/arch:AVX512"}),
    ],
)
def test_flags_suit_compiler_and_instruction_set(
    setup_file: ModuleType,
    compiler: str,
    isa: str,
    target: str,
    wanted: set[str],
    unwanted: set[str],
) -> None:
    flags = set(setup_file.compile_flags(compiler, isa, target))
    assert wanted <= flags
    assert not flags & (unwanted | {"-march=native", "-mcpu=native", "-g"})


def test_the_sdist_has_the_kernels_sources_and_all_that_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    included = {
        header
        for source in CPP.iterdir()
        for header in re.findall(r'#include "(.*)"', source.read_text())
    }
    assert {"linear.hpp", "vector.hpp"} <= included
    assert {f"src/nispa/kernels/cpp/{name}" for name in (*included, "chain.cpp")} <= names
    assert {"setup.py", "constraints.txt", ".ci/run", "tests/conftest.py", "LICENSE"} <= names
    assert {"docs/README.md", ".github/workflows/wheels.yml", "src/nispa/py.typed"} <= names
    assert not [name for name in names if "_live_" in name or name.endswith((".pyc", ".so"))]


def test_an_sdist_is_the_same_bytes_whenever_it_is_packed(
    setup_file: ModuleType, tmp_path: Path
) -> None:
    made = []
    for number, names in enumerate((("b", "a"), ("a", "b"))):
        folder = tmp_path / f"files{number}"
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
            os.utime(folder / name, (1000 + number, 1000 + number))
        (folder / "a").chmod(0o640 if number else 0o664)
        packed = tmp_path / f"{number}.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            for name in names:
                archive.add(folder / name, f"x/{name}")
        setup_file.even_out(packed, 1_700_000_000)
        made.append(packed.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.tar.gz") as archive:
        assert [(each.name, each.mtime, each.mode) for each in archive.getmembers()] == [
            ("x/a", 1_700_000_000, 0o644),
            ("x/b", 1_700_000_000, 0o644),
        ]


def test_two_sdists_are_the_same_bytes(sdist: Path, tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        build("build_sdist", unpacked(sdist, tmp_path / name), tmp_path / name)
        made.append(next((tmp_path / name).glob("*.tar.gz")).read_bytes())
    assert made[0] == made[1]


@chooses_compiler
def test_without_a_compiler_the_wheel_is_python_alone(sdist: Path, tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    made = wheel(unpacked(sdist, tmp_path), tmp_path, PATH=nothing, CC=nothing, CXX=nothing)
    assert compiled(made) == set()
    assert {"nispa/py.typed", "nispa/kernels/native.py", "nispa/cli/doctor.py"} <= contents(made)
    assert not [name for name in contents(made) if name.endswith((".cpp", ".hpp", ".o", ".pyc"))]


@chooses_compiler
def test_what_one_compiler_cannot_build_is_left_out(
    sdist: Path, setup_file: ModuleType, tmp_path: Path
) -> None:
    log, fake = tmp_path / "log", tmp_path / "c++"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    commands = {"CC": str(fake), "CXX": str(fake), "FAKE_LOG": str(log), "FAKE_FAILS": "/plain/"}
    made = wheel(unpacked(sdist, tmp_path), tmp_path, **commands)

    sets = set(setup_file.instruction_sets(HERE))
    assert compiled(made) == sets - {"plain"}
    assert made.name.startswith("nispa-")
    assert "-py3-none-" in made.name
    assert not made.name.endswith("-any.whl")
    calls = [line for line in log.read_text().splitlines() if " -c " in f" {line}"]
    for isa in sets:
        (call,) = (line for line in calls if f"/{isa}/" in line)
        assert " ".join(setup_file.compile_flags("unix", isa, HERE)) in call


@chooses_compiler
def test_a_build_takes_nothing_from_the_one_before(sdist: Path, tmp_path: Path) -> None:
    nothing, source = str(tmp_path / "nothing"), unpacked(sdist, tmp_path)
    soon_gone = source / "src" / "nispa" / "soon_gone.py"
    soon_gone.write_text("")
    first = wheel(source, tmp_path / "first", CC=nothing, CXX=nothing)
    soon_gone.unlink()
    second = wheel(source, tmp_path / "second", CC=nothing, CXX=nothing)
    assert contents(first) - contents(second) == {"nispa/soon_gone.py"}


@chooses_compiler
def test_a_release_must_not_leave_anything_out(sdist: Path, tmp_path: Path) -> None:
    nothing, source = str(tmp_path / "nothing"), unpacked(sdist, tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        wheel(source, tmp_path, CC=nothing, CXX=nothing, NISPA_REQUIRE_KERNELS="1")
    assert nothing in failed.value.stderr.decode() + failed.value.stdout.decode()


@needs_compiler
def test_this_installation_has_its_libraries(setup_file: ModuleType) -> None:
    found = {isa: native.compiled(isa) for isa in setup_file.instruction_sets(HERE)}
    assert found["plain"], "install again: `pip install` compiles the kernels"
    assert {isa: says(path) for isa, path in found.items() if path} == {
        isa: isa for isa, path in found.items() if path
    }


@pytest.mark.slow
@needs_compiler
def test_libraries_are_compiled_for_what_their_names_say(
    sdist: Path, setup_file: ModuleType, tmp_path: Path
) -> None:
    outside = {"CXXFLAGS": "-march=native", "CFLAGS": "-march=native", "NISPA_REQUIRE_KERNELS": "1"}
    made = wheel(unpacked(sdist, tmp_path), tmp_path, **outside)
    assert compiled(made) == set(setup_file.instruction_sets(HERE))
    shutil.unpack_archive(made, tmp_path / "made", "zip")
    for isa in compiled(made):
        assert says(tmp_path / "made" / "nispa" / "kernels" / f"_live_{isa}.so") == isa
