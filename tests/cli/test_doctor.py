"""``nispa doctor`` with other builds of PyTorch than the one at hand."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cli_calls import call

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("build", ["2.13.0+cu130", "2.13.0+cpu", "2.13.0"])
def test_the_build_of_torch_is_told_though_pip_does_not_know_it(
    build: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.metadata.version
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(build))
    monkeypatch.setattr(
        sys.modules["nispa.cli.doctor"],
        "version",
        lambda name: "2.13.0" if name == "torch" else known(name),
    )
    ended = call(capsys, "doctor")
    assert ended.code == 0
    assert re.search(rf"^  torch +{re.escape(build)}$", ended.out, re.MULTILINE)
    assert re.search(rf"^  numpy +{re.escape(known('numpy'))}$", ended.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("found", "cuda", "says"),
    [
        (False, None, "not available: this PyTorch is a build without CUDA"),
        (False, "13.0", "PyTorch is built for CUDA 13.0, but finds no GPU or driver"),
        (True, "13.0", "A card, 80 GiB (use it with --device cuda:0)"),
    ],
)
def test_every_build_of_torch_says_what_it_computes_on(
    found: bool, cuda: str | None, says: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Card:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(found))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Card())
    ended = call(capsys, "doctor")
    assert ended.code == 0
    assert says in ended.out


def test_a_report_holds_no_folder_and_no_name_of_user_or_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "jo-anne doe"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("USER", "joanne99")
    monkeypatch.setattr(platform, "node", lambda: "secretbox.example.org")
    monkeypatch.setattr(platform, "platform", lambda: "Linux-6.1-secretbox-x86_64")
    monkeypatch.setenv("OMP_NUM_THREADS", f"{home}/x")
    reason = f"cannot load {home}/lib/live.so (of joanne99); see /opt/private/lib/other.so"
    monkeypatch.setattr(
        "nispa.kernels.dispatch.in_use", lambda: SimpleNamespace(name="plain", reason=reason)
    )
    ended = call(capsys, "doctor", "--report", "--data", str(home / "data"))
    assert ended.code == 0
    for word in (str(tmp_path), "jo-anne", "joanne99", "secretbox", "/opt", "private"):
        assert word not in ended.out
    assert "live.so" in ended.out
    assert re.search(rf"^  torch +{re.escape(str(torch.__version__))}$", ended.out, re.MULTILINE)


def test_doctor_names_the_extras_that_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pyarrow":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.13.0" if name == "torch" else known(name)

    doctor = sys.modules["nispa.cli.doctor"]
    lines = ["torch>=2.10", 'pillow>=10; extra == "data"', 'pyarrow>=15; extra == "data"']
    lines += ['nispa[data]; extra == "all"', 'click>=8; extra == "words"']
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "version", version)
    ended = call(capsys, "doctor")
    assert ended.code == 0
    assert re.search(r"^  pillow +\S+$", ended.out, re.MULTILINE)
    (line,) = (line for line in ended.out.splitlines() if "extras missing" in line)
    assert line.split(maxsplit=2)[2] == 'data; install one with: pip install "nispa[NAME]"'
