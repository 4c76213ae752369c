"""Volumes and films: convolutions, norms and pools over depth, height and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import nispa
from nispa.errors import CapacityError, ConfigError
from tests.cli_calls import call

SHAPE = (1, 4, 8, 8)


class Volumes(nn.Module):
    """A bit of everything that has three sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm3d(12)
        self.depthwise = nn.Conv3d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv3d(12, 16, (1, 3, 3), (1, 2, 2), (0, 1, 1), groups=2)
        self.point = nn.Conv3d(16, 16, 1)
        self.pool = nn.Sequential(nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(2), nn.Flatten())
        self.head = nn.Linear(16 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of volumes ``(batch, 1, depth, height, width)``."""
        x = self.norm(self.first(x)).relu()
        x = self.grouped(x + self.depthwise(x)).relu()
        x = functional.interpolate(x, scale_factor=2, mode="trilinear")
        x = functional.avg_pool3d(self.point(x).relu(), 2)
        logits: Tensor = self.head(self.pool(x))
        return logits


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """Volumes of four classes, each brighter in another half."""
    labels = np.arange(240) % 4
    values = np.random.default_rng(0).normal(size=(len(labels), *SHAPE)).astype("float32")
    values[labels == 1, :, :2] += 1
    values[labels == 2, :, :, :4] += 1
    values[labels == 3, :, :, :, :4] += 1
    return values, labels


SHORT: dict[str, dict[str, Any]] = {
    "nispa": {"max_phases": 3, "settle_epochs": 20},
    "clnp": {"epochs": 20},
    "packnet": {"epochs": 20, "retrain_epochs": 10},
}


def learned(method: str = "nispa") -> nispa.Learner:
    """A learner of the first two classes."""
    values, labels = volumes()
    torch.manual_seed(0)  # depthwise kernels begin with the module's values
    learner = nispa.Learner(
        model=Volumes(), input_shape=SHAPE, classes=4, method=method, density=0.5, **SHORT[method]
    )
    learner.learn(values[labels < 2], labels[labels < 2])
    return learner


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.filterwarnings("ignore:the network is")
def test_volumes_are_learned_kept_saved_and_shipped(method: str, tmp_path: Path) -> None:
    values, labels = volumes()
    learner, first = learned(method), labels < 2
    told = learner.predict_proba(values, task=0)
    assert learner.accuracy(values[first], labels[first], task=0) > 0.9
    learner.learn(values[~first], labels[~first])
    assert (learner.predict_proba(values, task=0) == told).all()

    learner.save(tmp_path / "net.nispa")
    again = nispa.Learner.load(tmp_path / "net.nispa", model=Volumes())
    assert (again.predict_proba(values, task=0) == told).all()
    for name, rounded in (("net.pt2", False), ("small.pt2", True)):
        shipped = again.export(tmp_path / name, tasks=0, images=values, int8=rounded)
        assert shipped.agreement > 0.95
        assert shipped.difference < (0.1 if rounded else 1e-4)


@pytest.mark.filterwarnings("ignore:the network is")
def test_volumes_come_in_every_usual_form() -> None:
    values, _ = volumes()
    learner = learned()
    told = learner.predict_proba(values[:8], task=0)
    items = [(torch.from_numpy(volume), 0) for volume in values[:8]]
    for given in (torch.from_numpy(values[:8]), np.moveaxis(values[:8], 1, -1), ListData(items)):
        assert (learner.predict_proba(given, task=0) == told).all()
    assert (
        learner.predict_proba(values[0], task=0) == learner.predict_proba(values[:1], task=0)
    ).all()


class ListData(Dataset[tuple[Tensor, int]]):
    """A PyTorch data set."""

    def __init__(self, items: list[tuple[Tensor, int]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


@pytest.mark.filterwarnings("ignore:the network is")
def test_what_is_no_such_volume_is_one_clear_line() -> None:
    values, labels = volumes()
    with pytest.raises(CapacityError, match=r"built for \(1, 4, 8, 8\)"):
        learned().learn(values[:, :, :3], labels)
    batch = nispa.Learner(input_shape=(2, 3, 8, 8), classes=2)
    with pytest.raises(CapacityError, match=r"build it with input_shape=\(3, 8, 8\)"):
        batch.learn(np.zeros((4, 3, 8, 8), "float32"), [0, 1, 0, 1])
    with pytest.raises(ConfigError, match=r"volumes of 4x8x8 voxels"):
        nispa.Learner(input_shape=SHAPE, classes=2, architecture="convnet")


def test_a_plain_learner_takes_volumes() -> None:
    values, labels = volumes()
    learner = nispa.Learner(input_shape=SHAPE, classes=4, hidden=(64,), max_phases=3)
    learner.learn(values, labels)
    assert learner.accuracy(values, labels) > 0.5


def test_the_command_line_takes_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, labels = volumes()
    np.savez(tmp_path / "data.npz", images=values, labels=labels)
    words = ["run", "split", "--dataset", str(tmp_path / "data.npz"), "--classes-per-task", "2"]
    brief = ["--set", "max_phases=3", "--set", "settle_epochs=1", "--out", str(tmp_path / "run")]
    assert call(capsys, *words, *brief).code == 0
    np.save(tmp_path / "new.npy", values[:3])
    told = call(capsys, "predict", tmp_path / "run", tmp_path / "new.npy", "--task", "1")
    assert told.code == 0
    assert "new.npy[2]" in told.out
