"""``nispa compact``: a run's network as a file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nispa import Learner
from tests.cli_calls import call

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a learner of two tasks, and images of theirs."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    images = rng.integers(0, 60, (80, 8, 8), dtype=np.uint8)
    images[np.arange(80), labels] += 150  # a bright row
    learner = Learner("finetune", input_shape=(1, 8, 8), classes=4, epochs=3, hidden=(16,))
    for first in (0, 2):
        chosen = np.isin(labels, (first, first + 1))
        learner.learn(images[chosen], labels[chosen])
    learner.save(folder / "learner.safetensors")
    np.savez(folder / "images.npz", images=images)
    return folder


def outputs(path: Path) -> int:
    extra = {"nispa": ""}
    torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    return len(json.loads(extra["nispa"])["output"]["labels"])


def test_a_file_is_written_and_checked(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file, learner = tmp_path / "net.pt2", str(run / "learner.safetensors")
    images = str(run / "images.npz")
    ended = call(capsys, "compact", learner, "--to", str(file), "--images", images)
    assert ended.code == 0
    assert "predicts as the run does, checked on 80 of the images given" in ended.out
    assert outputs(file) == 4
    ended = call(capsys, "compact", learner, "--to", str(file), "--task", "2", "--int8")
    assert ended.code == 0
    assert "% of its predictions are the run's, on 64 random images" in ended.out
    assert outputs(file) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "net.txt"), "must end in .onnx or .pt2"),
        (("--to", "net.pt2", "--task", "3"), "learned are 1 to 2"),
        (("--to", "net.pt2", "--task", "0"), "must be a whole number"),
        (("--to", "net.pt2", "--images", "nothing"), "does not exist"),
        ((), "--to"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(
    words: tuple[str, ...],
    says: str,
    run: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call(capsys, "compact", str(run / "learner.safetensors"), *words)
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not list(tmp_path.glob("*.pt2"))
