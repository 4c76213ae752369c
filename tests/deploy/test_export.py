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
from nispa.errors import ConfigError, ExportError, OutputError
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
    onnx, runtime = optional("onnx"), optional("onnxruntime")
    path = tmp_path / "net.onnx"
    told = learner.export(path)
    assert told.path == path
    assert told.size_bytes == path.stat().st_size
    assert told.difference <= 1e-5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["nispa"])
    assert_is_the_learner(about, lambda x: session.run(None, {"images": x})[0], learner)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds <= {"Conv", "Gemm", "Relu", "MaxPool", "Flatten", "Concat"}
    before = path.read_bytes()
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


def test_other_files_are_refused(learner: Learner, tmp_path: Path) -> None:
    for name in ("net", "net.pth", "net.onnx.gz"):
        with pytest.raises(ConfigError, match=r"\.onnx or \.pt2"):
            learner.export(tmp_path / name)
    with pytest.raises(OutputError):
        learner.export(tmp_path / "nowhere" / "net.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_says_what_to_install(
    package: str, learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "onnxruntime":
        optional("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"nispa\[onnx\]"):
        learner.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
