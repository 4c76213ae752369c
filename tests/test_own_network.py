"""Learners of a user's own module: learned, saved, loaded; what is refused, in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nispa
from nispa.errors import ConfigError, GraphError, InputError, IsolationError
from nispa.network.architecture import ARCHITECTURES

SHAPE, CLASSES = (1, 8, 8), 6


class Net(nn.Module):
    """A residual sum with batch norm, on patches."""

    shift: torch.Tensor

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(16 * width, classes)
        self.register_buffer("shift", torch.full((1,), 0.5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.bn1(self.conv1(x - self.shift)).relu()
        y = y + self.conv2(y).relu()
        return {"logits": self.head(nn.functional.avg_pool2d(y, 2).flatten(1))}


def build(shape: tuple[int, ...], classes: int, width: int = 4) -> nn.Module:
    """What ``tests.test_own_network:build`` names."""
    assert shape == SHAPE
    return Net(width, classes)


def data(task: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(task)
    which = np.arange(count) % 2
    images = random.random((count, 8, 8)) * 0.3
    for label in (0, 1):
        images[which == label, :, 3 * label + task] += 0.7
    return images.astype(np.float32), np.array(["left", "right"])[which]


QUICK: dict[str, Any] = {
    "density": 0.5, "epochs_per_phase": 4, "settle_epochs": 8, "k": 6, "batch_size": 16,
    "learning_rate": 0.01, "unit_share": 0.3,
}  # fmt: skip


def learned(tasks: int = 2, **given: Any) -> nispa.Learner:
    learner = nispa.Learner("nispa", classes=CLASSES, **{**QUICK, **given})
    for task in range(tasks):
        learner.learn(*data(task), progress=False)
    return learner


def test_a_module_learns_and_its_learner_comes_back(tmp_path: Path) -> None:
    learner = learned(model=Net(), example_input=torch.zeros(1, *SHAPE))
    images, labels = data(0)
    assert learner.accuracy(images, labels, task=0) > 0.9
    learner.save(tmp_path / "mine.nispa")
    again = nispa.Learner.load(tmp_path / "mine.nispa", model=Net())  # drawn anew: no matter
    assert (again.predict_proba(images, 0) == learner.predict_proba(images, 0)).all()
    for each in (learner, again):
        each.learn(*data(2), progress=False)
    learner.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for other in (Net(width=4), without_norm(), shifted()):
        with pytest.raises(GraphError, match=r"model=\w+ has other units, layers or constants"):
            nispa.Learner.load(tmp_path / "a", model=other)
    with pytest.raises(ConfigError, match=r"was learned with a module of your own.* pass model="):
        nispa.Learner.load(tmp_path / "a")


def without_norm() -> nn.Module:
    net = Net()
    net.bn1 = nn.Identity()  # type: ignore[assignment]
    return net


def shifted() -> nn.Module:
    net = Net()
    net.shift.fill_(0.25)
    return net


def test_a_function_is_imported_when_it_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tests.test_own_network:build"
    monkeypatch.setitem(ARCHITECTURES, name, ARCHITECTURES["mlp"])  # undone, it leaves nothing
    monkeypatch.delitem(ARCHITECTURES, name)
    learner = learned(1, model=name, input_shape=SHAPE, arguments=("width=6",))
    learner.save(tmp_path / "mine.nispa")
    del ARCHITECTURES[name]
    with pytest.raises(
        InputError, match=rf"{name} is a function of your own.* pass model='{name}'"
    ):
        nispa.Learner.load(tmp_path / "mine.nispa")
    again = nispa.Learner.load(tmp_path / "mine.nispa", model=name)
    images, _ = data(0)
    assert (again.predict_proba(images, 0) == learner.predict_proba(images, 0)).all()


def test_a_learner_of_a_backbone_needs_no_module(tmp_path: Path) -> None:
    learner = learned(1, model="resnet18", input_shape=SHAPE, arguments=("width=2",))
    learner.save(tmp_path / "mine.nispa")
    again = nispa.Learner.load(tmp_path / "mine.nispa")
    assert (again.predict(data(0)[0], 0) == learner.predict(data(0)[0], 0)).all()
    with pytest.raises(ConfigError, match="not learned with a module of your own; leave model out"):
        nispa.Learner.load(tmp_path / "mine.nispa", model=Net())


def test_its_own_values_are_the_first_ones() -> None:
    torch.manual_seed(0)
    net = Net()
    given: dict[str, Any] = {
        "model": net,
        "example_input": torch.zeros(1, *SHAPE),
        "classes": CLASSES,
    }
    learner = nispa.Learner(values="model", density=1.0, **given)
    layer = learner.method.network.layers["conv2"]
    assert torch.equal(layer.dense_weight(), net.conv2.weight.detach())
    assert torch.equal(layer.dense_bias(), net.conv2.bias.detach())  # type: ignore[union-attr]
    drawn = nispa.Learner(density=1.0, **given).method.network.layers["conv2"]
    assert not torch.equal(drawn.dense_weight(), net.conv2.weight.detach())


class Keeps(nn.Module):
    """Keeps something for the next call, where no trace can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(64, 8), nn.Linear(8, CLASSES)
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x.flatten(1))
        if self.training:
            self.seen = y.detach().mean()
        elif self.seen is not None:
            y = y + self.seen
        logits: torch.Tensor = self.head(y)
        return logits


class Branches(Net):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x if x.mean() > 0 else -x)


EXAMPLE: dict[str, Any] = {"example_input": torch.zeros(1, *SHAPE)}


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"model": Branches(), **EXAMPLE}, GraphError, "cannot be traced.*torch.where"),
        ({"model": Net(classes=4), **EXAMPLE}, GraphError, "has 4 logits, not classes=6"),
        ({"model": Net(), "example_input": torch.zeros(1, 3, 8, 8)}, GraphError, "does not run"),
        ({"model": Net()}, ConfigError, "input_shape is missing"),
        (
            {"model": Net(), **EXAMPLE, "input_shape": (1, 4, 4)},
            ConfigError,
            "leave one of the two out",
        ),
        ({"model": Keeps(), **EXAMPLE}, IsolationError, "keeps for the next call"),
        ({"model": "resnet19", "input_shape": SHAPE}, InputError, "did you mean 'resnet18'"),
        ({"model": 3, "input_shape": SHAPE}, ConfigError, "model=int must be a torch.nn.Module"),
        ({"model": "no_module:f", "input_shape": SHAPE}, ConfigError, "cannot be imported"),
        ({"architecture": "a:b", "input_shape": SHAPE}, ConfigError, "function of your own"),
        (
            {"architecture": "own", "input_shape": SHAPE},
            ConfigError,
            "is a module of your own: pass it as Learner",
        ),
        (
            {"model": "resnet18", "architecture": "mlp", "input_shape": SHAPE},
            ConfigError,
            "are the same; leave one out",
        ),
        (
            {"model": "resnet18", "arguments": ("size=3",), "input_shape": SHAPE},
            ConfigError,
            "model resnet18 cannot be built: .*size",
        ),
        (
            {"model": "resnet18", "arguments": ("3",), "input_shape": SHAPE},
            ConfigError,
            "arguments=3 must be a name and a value",
        ),
        ({"arguments": ("width=3",), "input_shape": SHAPE}, ConfigError, "are for a model such as"),
        ({"model": "resnet18", **EXAMPLE, "values": "model"}, ConfigError, "go with a module"),
        ({"model": Net(), **EXAMPLE, "values": "keep"}, ConfigError, "must be 'draw'.*'model'"),
    ],
)
def test_what_is_refused(given: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        nispa.Learner(classes=CLASSES, **given)


def test_a_model_that_is_sparse_already_is_refused() -> None:
    sparse = nispa.sparsify(Net(), torch.zeros(2, *SHAPE), density=0.5)
    with pytest.raises(GraphError, match="sparse already"):
        nispa.Learner(model=sparse, classes=CLASSES, input_shape=SHAPE)


def test_a_trained_module_learns_more() -> None:
    torch.manual_seed(0)
    net, (images, labels) = Net(), data(0)
    x, y = torch.tensor(images)[:, None], torch.tensor((labels == "right").astype(np.int64))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x)["logits"], y).backward()
        optimiser.step()
    net.eval()
    trained = net(x)["logits"]
    learner = nispa.Learner(
        model=net, example_input=torch.zeros(1, *SHAPE), classes=CLASSES, values="model",
        **{**QUICK, "density": 1.0, "settle_fresh": False, "max_share_per_task": 0.4},
    )  # fmt: skip
    network = learner.method.network.eval()
    torch.testing.assert_close(network(x), trained, rtol=1e-4, atol=1e-4)
    learner.learn(images, labels, progress=False)
    before = learner.predict_proba(images, 0)
    assert learner.accuracy(images, labels, task=0) > 0.9
    learner.learn(*data(1), progress=False)
    assert (learner.predict_proba(images, 0) == before).all()
    assert learner.accuracy(*data(1), task=1) > 0.7
