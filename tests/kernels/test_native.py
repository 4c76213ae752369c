from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from nispa.kernels import native
from nispa.kernels.chain import Chain
from nispa.kernels.native import FIELDS, Library
from tests.kernels.links import (
    CHAINS,
    LARGE,
    answer,
    assert_same,
    instruction_sets,
    numbers,
    output_of,
    run_chain,
    seeded,
    shape_of,
)


def choose() -> tuple[Library | None, str]:
    """What a fresh process would choose."""
    return native.library.__wrapped__()


def pretend(monkeypatch: pytest.MonkeyPatch, capability: str, wanted: str = "") -> None:
    """Another processor, as PyTorch calls it, and another wish."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv(native.CHOICE, wanted)


def c_library(folder: Path, text: str) -> Path:
    """A library compiled from C."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler is at hand")
    source, made = folder / "stub.c", folder / "stub.so"
    source.write_text(text)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source], check=True)
    return made


def stub(fields: int) -> str:
    """Kernels that say how many fields they think structures have."""
    names = (
        *("fill", "empty", "sums", "forward", "backward", "use_threads", "fill_gradient"),
        *("convolve", "convolve_backward", "scale", "statistics", "norm_sums", "means"),
    )
    return "".join(f"void nispa_{name}(void) {{}}\n" for name in names) + (
        f"long long nispa_fields(void) {{ return {fields}; }}\n"
        "long long nispa_lanes(void) { return 4; }\n"
        'const char *nispa_isa(void) { return "stub"; }\n'
    )


# Which one is chosen.


@pytest.mark.parametrize(
    ("capability", "isa"), [("AVX512", "avx512"), ("AVX2", "avx2"), ("DEFAULT", "plain")]
)
def test_the_fastest_that_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, capability: str, isa: str
) -> None:
    if isa not in instruction_sets() or "neon" in instruction_sets():
        pytest.skip(f"{isa} is not the one for such a processor here")
    pretend(monkeypatch, capability)
    library, reason = choose()
    assert library is not None
    assert library.isa == isa
    assert reason == f"compiled for {isa}"


@pytest.mark.parametrize("isa", instruction_sets())
def test_a_wish_is_granted(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv(native.CHOICE, isa)
    library, reason = choose()
    assert library is not None
    assert library.isa == isa
    assert isa in reason


def test_the_reference_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE, "reference")
    assert choose() == (None, "NISPA_KERNELS=reference")


def test_an_unknown_wish_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE, "avx3")
    library, reason = choose()
    assert library is None
    assert "NISPA_KERNELS=avx3" in reason
    assert all(name in reason for name in (*native.ISAS, "reference"))


def test_a_wish_for_what_the_processor_lacks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than running it, or asking for a compiler that would not help."""
    if native.compiled("avx512") is None:
        pytest.skip("avx512 is not compiled")
    pretend(monkeypatch, "AVX2", wanted="avx512")
    library, reason = choose()
    assert library is None
    assert "avx512" in reason
    assert "compiler" not in reason


def test_a_wish_for_what_was_not_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", lambda isa: None)
    monkeypatch.setenv(native.CHOICE, "plain")
    library, reason = choose()
    assert library is None
    assert "plain" in reason


def test_without_any_library_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled", lambda isa: None)
    monkeypatch.delenv(native.CHOICE, raising=False)
    library, reason = choose()
    assert library is None
    assert "install with a C++ compiler" in reason


# What does not load.


def test_a_damaged_library_leaves_the_next_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = instruction_sets()
    if len(here) < 2:
        pytest.skip("fewer than two instruction sets run here")
    damaged = tmp_path / "damaged.so"
    damaged.write_text("no library")
    found = native.compiled
    monkeypatch.setattr(native, "compiled", lambda isa: damaged if isa == here[0] else found(isa))
    monkeypatch.delenv(native.CHOICE, raising=False)
    library, _ = choose()
    assert library is not None
    assert library.isa == here[1]


def test_a_damaged_library_that_was_wished_for_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_text("no library")
    monkeypatch.setattr(native, "compiled", lambda isa: damaged)
    monkeypatch.setenv(native.CHOICE, "plain")
    library, reason = choose()
    assert library is None
    assert "damaged.so" in reason


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"stub\.so was compiled from another version"):
        Library(c_library(tmp_path, stub(FIELDS - 1)))


def test_a_library_of_this_version_is_taken(tmp_path: Path) -> None:
    """So that the test above refuses for the reason it gives."""
    library = Library(c_library(tmp_path, stub(FIELDS)))
    assert (library.isa, library.lanes) == ("stub", 4)


def test_a_library_that_lacks_a_function_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lacking = c_library(tmp_path, "void nispa_fill(void) {}\n")
    with pytest.raises(AttributeError):
        Library(lacking)
    monkeypatch.setattr(native, "compiled", lambda isa: lacking if isa == "plain" else None)
    monkeypatch.delenv(native.CHOICE, raising=False)
    library, reason = choose()
    assert library is None
    assert "nispa_empty" in reason


# What is loaded.


def test_a_library_says_what_it_is(kernels: Library) -> None:
    assert kernels.lanes == {"avx512": 16, "avx2": 16, "neon": 16, "plain": 8}[kernels.isa]
    if sys.platform == "linux":
        assert kernels.threads == "PyTorch's OpenMP threads"


def test_every_field_is_as_wide_as_a_pointer() -> None:
    structures = (native.Rows, native.Image, native.Biases, native.Merged, native.Layer)
    for each in (*structures, native.Statistics, native.Affine, native.Back):
        names = [field[0] for field in each._fields_]
        sizes = [getattr(each, name).size for name in names]
        assert all(size % 8 == 0 for size in sizes)
        assert sum(sizes) == ctypes.sizeof(each)


def assert_answers(library: Library, name: str, batch: int) -> None:
    """Holds two threads' work against what plain PyTorch makes with one."""
    shape, links = LARGE[name]
    x = numbers((batch, *shape), seeded())
    upstream = numbers(output_of(links, x), seeded(1))
    expected = answer(links, x, upstream)
    torch.set_num_threads(2)
    found = run_chain(Chain(library, links, shape_of(x), True), x, upstream)
    assert_same(found.output, expected.output)
    assert_same(found.input_gradient, expected.input_gradient, 1e-6)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert_same(one, other, 1e-6)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("batch", [1, 20, 260])
def test_two_threads_agree_with_pytorch(kernels: Library, name: str, batch: int) -> None:
    assert_answers(kernels, name, batch)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", LARGE)
def test_without_openmp_one_thread_does_it_all(
    compiled: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = native.compiled(compiled.isa)
    assert path is not None
    copy = tmp_path / "copy.so"  # another file, so that it is loaded once more
    shutil.copy(path, copy)
    monkeypatch.setattr(native, "_openmp", lambda: (None, "one thread"))
    alone = Library(copy)
    assert alone.threads == "one thread"
    assert_answers(alone, name, 20)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_may_share_a_chain(compiled: Library, count: int) -> None:
    """As a server does that predicts for several callers at once."""
    torch.set_num_threads(count)
    shape, links = CHAINS["pools drop a row and a column"]
    chain = Chain(compiled, links, (2, 11, 9))
    batches = [numbers((1 + 16 * (seed % 3), *shape), seeded(seed)) for seed in range(6)]
    expected = [answer(links, x, torch.ones(len(x), 3)) for x in batches]

    def one(number: int) -> None:
        x, right = batches[number % 6], expected[number % 6]
        with torch.no_grad():
            assert_same(chain(x), right.output)
        found = run_chain(chain, x, torch.ones(len(x), 3))
        for gradient, other in zip(found.gradients, right.gradients, strict=True):
            assert_same(gradient, other)

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(one, range(120)))) == 120


def test_the_environment_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process does not change kernels in the middle of its work."""
    before = native.library()
    monkeypatch.setenv(native.CHOICE, "reference" if before[0] else "plain")
    assert native.library() == before
    assert os.environ[native.CHOICE]
