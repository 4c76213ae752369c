"""Traced networks as plain modules and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import nispa
from nispa import Learner
from nispa.errors import ConfigError
from tests.extent import optional

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore:the network is")

IMAGES = RNG.random((60, 3, 8, 8), dtype=np.float32)
LABELS = np.arange(60) % 4


def learned(**values: Any) -> Learner:
    """A learner of two tasks of two classes each."""
    brief: dict[str, Any] = {"max_phases": 3, "epochs_per_phase": 1, "settle_epochs": 1}
    made = Learner(input_shape=(3, 8, 8), classes=4, seed=0, **brief, **values)
    for pair in ((0, 1), (2, 3)):
        chosen = np.isin(LABELS, pair)
        made.learn(IMAGES[chosen], LABELS[chosen])
    return made


@pytest.fixture(scope="module")
def resnet() -> Learner:
    return learned(model="resnet18", arguments=("width=4",))


def assert_is_the_learner(logits: Any, tasks: Any, learner: Learner) -> None:
    for task in tasks:
        found = np.array(task["labels"])[logits[:, task["outputs"]].argmax(1)]
        assert (found == learner.predict(IMAGES, task=task["task"])).all()


def test_a_resnet_becomes_a_graph_of_pytorchs_own_modules(resnet: Learner) -> None:
    for tasks in (None, 1):
        module: Any = nispa.compact(resnet, tasks)
        logits = module(torch.from_numpy(IMAGES)).numpy()
        assert_is_the_learner(logits, module.tasks, resnet)
        assert len(logits[0]) == len(module.labels)
        inside = [type(each) for each in module.modules() if not list(each.children())]
        assert {each.__module__.partition(".")[0] for each in inside} == {"torch"}
        assert nn.BatchNorm2d not in inside  # folded
        module(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_resnet_as_a_file(resnet: Learner, ending: str, int8: bool, tmp_path: Path) -> None:
    if ending == "onnx":
        optional("onnx"), optional("onnxruntime")
    told = resnet.export(tmp_path / f"net.{ending}", images=IMAGES, int8=int8)
    assert told.images == 60
    assert told.agreement > 0.9 if int8 else told.difference <= 1e-5


class Odd(nn.Module):
    """A network with what a graph or ONNX cannot say."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.norm, self.last = nn.Linear(192, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        if self.how == "norm":
            x = self.norm(x)
        elif self.how == "operator":
            x = torch.sigmoid(x)
        logits: torch.Tensor = self.last(x)
        return logits


@pytest.mark.parametrize("how", ["norm", "operator"])
def test_what_cannot_be_said_is_refused(how: str, tmp_path: Path) -> None:
    optional("onnx")
    learner = learned(model=Odd(how))
    with pytest.raises(ConfigError, match=r"sigmoid.*\.pt2|norm over units"):
        learner.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_of_ones_own_with_an_operator_of_its_own_goes_as_a_program(tmp_path: Path) -> None:
    learner = learned(model=Odd("operator"))
    assert learner.export(tmp_path / "net.pt2").difference <= 1e-5
    (only,) = nispa.compact(learner)
    assert isinstance(only, fx.GraphModule)
