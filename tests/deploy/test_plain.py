"""Traced networks as plain modules and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nispa
from nispa import Learner
from nispa.errors import ConfigError
from tests.extent import optional

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore:the network is")

IMAGES = RNG.random((60, 3, 8, 8), dtype=np.float32)
LABELS = np.arange(60) % 4


def learned(method: str = "nispa", **values: Any) -> Learner:
    """A learner of two tasks of two classes each."""
    brief: dict[str, Any] = {"max_phases": 3, "epochs_per_phase": 1, "settle_epochs": 1}
    if method != "nispa":
        brief = {"epochs": 1} | ({"retrain_epochs": 1} if method == "packnet" else {})
    made = Learner(method, input_shape=(3, 8, 8), classes=4, tasks=2, seed=0, **brief, **values)
    for pair in ((0, 1), (2, 3)):
        chosen = np.isin(LABELS, pair)
        made.learn(IMAGES[chosen], LABELS[chosen])
    return made


SMALL = {
    "resnet18": ("width=4",),
    "vit-tiny": ("width=12", "heads=3", "blocks=1"),
    "mobilenet-small": ("width=4",),
}


@pytest.fixture(scope="module")
def resnet() -> Learner:
    return learned(model="resnet18", arguments=SMALL["resnet18"])


@pytest.fixture(scope="module")
def vit() -> Learner:
    return learned(model="vit-tiny", arguments=SMALL["vit-tiny"])


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


def test_a_task_takes_less_than_all(resnet: Learner, vit: Learner) -> None:
    for learner in (resnet, vit):
        sizes = [numbers(nispa.compact(learner, tasks)) for tasks in (0, 1, None)]
        assert sizes[0] < sizes[2]  # what was learned later is not read by the first task
        assert sizes[1] <= sizes[2]


def numbers(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("packnet", "vit-tiny"),
        pytest.param("clnp", "resnet18", marks=pytest.mark.ci),
        pytest.param("nispa", "mobilenet-small", marks=pytest.mark.slow),
        pytest.param("finetune", "vit-tiny", marks=pytest.mark.slow),
        pytest.param("packnet", "mobilenet-small", marks=pytest.mark.slow),
        pytest.param("wsn", "vit-tiny", marks=pytest.mark.slow),
        pytest.param("stl", "resnet18", marks=pytest.mark.slow),
    ],
)
def test_other_methods_and_networks(method: str, network: str) -> None:
    learner = learned(method, model=network, arguments=SMALL[network])
    module: Any = nispa.compact(learner)
    images = torch.from_numpy(IMAGES)
    logits = module(images)
    for task in module.tasks:  # which takes long: a network of its own is built for each
        found, wanted = (
            logits[:, task["outputs"]],
            learner.method.scores(images, learner.tasks[task["task"]]),
        )
        assert (found.argmax(1) == wanted.argmax(1)).all()
        size = max(1.0, float(wanted.abs().max()))
        assert float((found - wanted).abs().max()) <= 1e-5 * size


class Causal(nn.Module):
    """Attention whose result is viewed as it lies, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.packed = nn.Linear(24, 8), nn.Linear(8, 24)
        self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.flatten(2).unflatten(2, (8, 8)).movedim(2, 1).flatten(2))
        q, k, v = (each.unflatten(2, (4, 2)).transpose(1, 2) for each in self.packed(x).split(8, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.last(y.contiguous().view(x.shape))
        logits: Tensor = self.head(x[:, -1])
        return logits


def test_a_view_of_what_attention_computes() -> None:
    learner = learned(model=Causal(), example_input=torch.from_numpy(IMAGES[:2]), density=0.8)
    module: Any = nispa.compact(learner)
    for count in (1, 3, 60):
        images = torch.from_numpy(IMAGES[:count])
        found = module(images)[:, module.tasks[0]["outputs"]]
        torch.testing.assert_close(found, learner.method.scores(images, learner.tasks[0]))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_a_traced_network_as_a_file(
    network: str, ending: str, int8: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if ending == "onnx":
        optional("onnxscript"), optional("onnxruntime")
    learner: Learner = request.getfixturevalue(network)
    told = learner.export(tmp_path / f"net.{ending}", images=IMAGES, int8=int8)
    assert told.images == 60
    assert told.agreement > 0.9 if int8 else told.difference <= 1e-5


class Counting(nn.Module):
    """A network that does something else for one number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.celu(self.first(x.flatten(1)))
        if not self.training and len(x) == 3:
            x = x * 2
        logits: torch.Tensor = self.last(x)
        return logits


def test_a_module_that_counts_its_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="another number of images"):
        nispa.compact(learned(model=Counting()))
