from __future__ import annotations

from typing import Any

import pytest
import torch

from nispa.base.devices import choose_device
from nispa.errors import DeviceError, on_command_line


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name: str) -> None:
    assert choose_device(name) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_are_there() -> None:
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    assert choose_device("cuda:01") == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last() -> None:
    with pytest.raises(DeviceError, match="device=cuda:2 is not there: this machine has 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("cuda", [None, "12.8"])
def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(DeviceError) as refused:
        choose_device("cuda")
    why = "finds no GPU" if cuda else "is a build without CUDA"
    words = f"device=cuda is not there: this PyTorch {why}; pass "
    assert str(refused.value) == f"{words}device='cpu'"
    with on_command_line(), pytest.raises(DeviceError) as refused:
        choose_device("cuda")
    assert str(refused.value) == f"{words}--device cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    "name",
    ["gpu", "", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cuda:\u0661", "cpu:", ":0"],
)
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(DeviceError, match="must be cpu, cuda or cuda:NUMBER"):
        choose_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_a_device_of_pytorch() -> None:
    for device in (torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 1)):
        assert choose_device(device) == device


@pytest.mark.parametrize("device", [None, 0, ["cpu"], torch.device("meta")])
def test_what_is_no_device_of_ours(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"device=.* must be"):
        choose_device(device)
