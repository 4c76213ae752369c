"""Exported files: the learner's logits in other programs, or no file at all."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nispa import Learner
from nispa.deploy import export as exporting
from nispa.deploy.compact import compact
from nispa.deploy.onnx_file import onnx_bytes
from nispa.deploy.rounded import rounded
from nispa.errors import ConfigError, ExportError, MissingPackageError, OutputError
from tests.deploy.nets import toy_learner
from tests.extent import optional
from tests.methods.toy import toy_images

IMAGES, _ = toy_images(1, 64, "test").batch(slice(None))


@pytest.fixture(scope="module", params=[("finetune", "convnet"), ("packnet", "mlp")])
def learner(request: pytest.FixtureRequest) -> Learner:
    return toy_learner(*request.param)


def assert_is_the_learner(about: Any, run: Any, learner: Learner) -> None:
    assert about["format"] == "nispa-network/1"
    assert about["input"]["shape"] == ["batch", 1, 4, 4]
    assert about["input"]["scale"] == {"uint8": 1 / 255, "float32": 1.0}
    assert [task["task"] for task in about["tasks"]] == [0, 1]
    for count in (1, 2, 64):
        logits = run(IMAGES[:count].numpy())
        assert logits.shape == (count, len(about["output"]["labels"]))
        for task in about["tasks"]:
            best = logits[:, task["outputs"]].argmax(1)
            found = np.array(task["labels"])[best]
            wanted = learner.predict(IMAGES[:count].numpy(), task=task["task"])
            assert (found == wanted).all()


def test_an_onnx_file_predicts_as_the_learner_does(learner: Learner, tmp_path: Path) -> None:
    onnx, runtime, _ = (optional(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    path = tmp_path / "net.onnx"
    told = learner.export(path)
    assert told.path == path
    assert told.size_bytes == path.stat().st_size
    assert told.difference <= 1e-5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["nispa"])
    assert_is_the_learner(about, lambda x: session.run(None, {"images": x})[0], learner)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds <= {"Conv", "Gemm", "Relu", "MaxPool", "Reshape", "Shape", "Concat"}
    before = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in before
    learner.export(path)
    assert path.read_bytes() == before  # the same learner gives the same file


def test_a_program_predicts_as_the_learner_does(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    learner.export(path, images=IMAGES.numpy())
    extra = {"nispa": ""}
    module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    run = lambda x: module(torch.from_numpy(x)).numpy()  # noqa: E731
    assert_is_the_learner(json.loads(extra["nispa"]), run, learner)
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()


def test_a_file_of_one_task(learner: Learner, tmp_path: Path) -> None:
    learner.export(tmp_path / "net.pt2", 1)
    extra = {"nispa": ""}
    torch.export.load(io.BytesIO((tmp_path / "net.pt2").read_bytes()), extra_files=extra)
    about = json.loads(extra["nispa"])
    assert about["output"]["labels"] == ["left1", "right1"]
    assert about["needs_task"] is False


def test_a_network_of_coarse_products_is_held_against_itself_in_float32(tmp_path: Path) -> None:
    coarse = toy_learner("finetune", tasks=1, precision="bfloat16")
    assert coarse.export(tmp_path / "net.pt2").difference <= 1e-5
    assert coarse.method.network.precision == "bfloat16"


def test_a_file_that_computes_something_else_is_not_written(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_program_runner", lambda _: lambda images: _wrong(images))
    path = tmp_path / "net.pt2"
    path.write_bytes(b"older")
    with pytest.raises(ExportError, match="task 0"):
        learner.export(path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def _wrong(images: Any) -> Any:
    return np.full((len(images), 4), 100, dtype=np.float32)


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_rounded_weights_take_a_quarter_and_say_how_often_they_agree(
    ending: str, learner: Learner, tmp_path: Path
) -> None:
    if ending == "onnx":
        optional("onnxscript"), optional("onnxruntime")
    whole, small = tmp_path / f"whole.{ending}", tmp_path / f"small.{ending}"
    assert learner.export(whole, images=IMAGES.numpy()).agreement == 1.0
    told = learner.export(small, images=IMAGES.numpy(), int8=True)
    assert 1e-5 < told.difference < 0.05
    run, about = _opened(small)
    assert about["int8"] is True
    logits, same = run(IMAGES.numpy()), []
    for task in about["tasks"]:
        found = np.array(task["labels"])[logits[:, task["outputs"]].argmax(1)]
        same.append(found == learner.predict(IMAGES.numpy(), task=task["task"]))
    assert told.agreement == np.mean(same) > 0.9
    held = sum(each.numel() for each in compact(learner).parameters())
    if held > 5000:
        assert small.stat().st_size < 0.5 * whole.stat().st_size


def _opened(path: Path) -> tuple[Any, Any]:
    """A file of a network as a function, and what it says of itself."""
    if path.suffix == ".onnx":
        session = optional("onnxruntime").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        about = session.get_modelmeta().custom_metadata_map["nispa"]
        return (lambda x: session.run(None, {"images": x})[0]), json.loads(about)
    extra = {"nispa": ""}
    module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    return (lambda x: module(torch.from_numpy(x)).numpy()), json.loads(extra["nispa"])


@pytest.mark.parametrize("method", ["finetune", "packnet"])
def test_a_rounded_weight_is_off_by_half_a_step_at_most(method: str) -> None:
    plain = compact(toy_learner(method))
    for layer, small in zip(_weighted(plain), _weighted(rounded(plain)), strict=True):
        step = layer.weight.flatten(1).abs().amax(1) / 127
        off = (layer.weight - small.weight).flatten(1).abs().amax(1)
        assert (off <= 0.5001 * step).all()
        assert small.values.dtype == torch.int8


def _weighted(module: torch.nn.Module) -> list[Any]:
    return [each for each in module.modules() if hasattr(each, "weight")]


def test_the_mean_and_deviation_of_inputs_are_told(tmp_path: Path) -> None:
    images, labels = IMAGES.numpy(), np.arange(64) % 2
    learner = Learner("finetune", input_shape=(1, 4, 4), classes=2, epochs=2, standardise=True)
    learner.learn(images, labels)
    path = tmp_path / "net.pt2"
    learner.export(path, images=images)
    run, about = _opened(path)
    (task,) = about["tasks"]
    ready = (images - np.float32(task["mean"])) / np.float32(task["std"])
    found = np.array(task["labels"])[run(ready)[:, task["outputs"]].argmax(1)]
    assert (found == learner.predict(images)).all()


def test_other_files_are_refused(learner: Learner, tmp_path: Path) -> None:
    for name in ("net", "net.pth", "net.onnx.gz"):
        with pytest.raises(ConfigError, match=r"\.onnx or \.pt2"):
            learner.export(tmp_path / name)
    with pytest.raises(OutputError):
        learner.export(tmp_path / "nowhere" / "net.pt2")


class Bessel(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.special.i0(x.flatten(1))


def test_an_operator_that_onnx_has_not_is_refused() -> None:
    optional("onnxscript")
    module: Any = torch.nn.Sequential(Bessel())
    module.input_shape = (1, 4, 4)
    with pytest.raises(ConfigError, match=r"bessel_i0.*\.pt2"):
        onnx_bytes(module, {}, "0")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_says_what_to_install(
    package: str, learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {"onnx", "onnxruntime", "onnxscript"} - {package}:
        optional(name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"nispa\[onnx\]"):
        learner.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
