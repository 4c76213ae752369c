"""``nispa doctor`` with other builds of PyTorch than the one at hand."""

from __future__ import annotations

import importlib.metadata
import re
import sys

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
