"""A trained network as the first task: it is kept as it is, and more is learned beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nispa
from nispa.backbones import BACKBONES
from nispa.errors import ConfigError, DataError, InputError
from nispa.methods.events import Adoption
from nispa.methods.stable import is_frozen
from nispa.network.traced import TracedNetwork

CLASSES = 6
NETS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "resnet18": ((3, 8, 8), {"width": 8}),
    "vit-tiny": ((3, 8, 8), {"width": 24, "heads": 6, "blocks": 1}),
}
QUICK: dict[str, dict[str, Any]] = {
    "nispa": {"epochs_per_phase": 1, "k": 6, "max_phases": 3, "settle_epochs": 1},
    "clnp": {"epochs": 1},
}


def module_of(name: str) -> nn.Module:
    """As if trained: its logits differ from sample to sample around the same mean."""
    torch.manual_seed(0)
    shape, arguments = NETS[name]
    module = BACKBONES[name].build(shape, CLASSES, **arguments).eval()
    with torch.no_grad():
        module.head.bias -= module(2 * torch.randn(500, *shape)).mean(0)  # type: ignore[union-attr]
    return module


def told(module: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Labels that the module gets all right: what it says itself, among three classes."""
    with torch.no_grad():
        labels: np.ndarray = module(images)[:, :3].argmax(1).numpy()
    return labels


def examples(module: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images = 2 * torch.randn(400, *shape, generator=torch.Generator().manual_seed(1))
    labels = told(module, images)
    assert set(labels) == {0, 1, 2}
    return images.numpy(), labels


def learner_of(method: str, module: nn.Module, shape: tuple[int, ...], **given: Any) -> Any:
    settings = {"density": 1.0, "values": "model", **QUICK.get(method, {}), **given}
    return nispa.Learner(
        method, model=module, input_shape=shape, classes=CLASSES, batch_size=64, **settings
    )


@pytest.mark.parametrize("backbone", NETS)
@pytest.mark.parametrize("method", QUICK)
def test_what_it_knew_stays_while_it_learns_more(
    method: str, backbone: str, tmp_path: Path
) -> None:
    module, shape = module_of(backbone), NETS[backbone][0]
    images, labels = examples(module, shape)
    learner = learner_of(method, module, shape)
    setting = {"nispa": "accuracy_drop", "clnp": "margin"}[method]
    adoption = learner.adopt(images, labels)
    assert adoption.before == 1.0
    assert adoption.after >= 1.0 - getattr(learner.settings.config, setting) / 100
    assert adoption.after == learner.accuracy(images, labels, task=0)
    assert adoption.units == learner.method.census().stable
    assert is_frozen(learner.method.network, learner.method.stable)
    kept = learner.predict_proba(images, 0)
    learner.save(tmp_path / "a")
    again = nispa.Learner.load(tmp_path / "a", model=module_of(backbone))
    for each in (learner, again):
        each.learn(images, np.where(labels == 0, "left", "right"), progress=False)
        assert (each.predict_proba(images, 0) == kept).all()
        assert set(each.predict(images, 1)) <= {"left", "right"}
        each.save(tmp_path / f"b{each is again}")
    assert (tmp_path / "bFalse").read_bytes() == (tmp_path / "bTrue").read_bytes()


class Half(nn.Module):
    """Tells by the sign of the first feature; four of its eight units say nothing, ever."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 8), nn.Linear(8, CLASSES)
        with torch.no_grad():
            for value in self.parameters():
                value.zero_()
            self.a.weight[:4, 0] = torch.tensor([1.0, -1.0, 3.0, -2.0])
            self.head.weight[0, [0, 2]] = 1.0
            self.head.weight[1, [1, 3]] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.a(x).relu())
        return logits


def rows(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    return x, np.where(x[:, 0] > 0, "plus", "minus")


def test_no_more_units_are_kept_than_the_accuracy_needs() -> None:
    learner = learner_of("nispa", Half(), (3,))
    x, labels = rows()
    adoption = learner.adopt(x, labels, classes=["plus", "minus"])
    assert adoption == Adoption(1.0, 1.0, {"a": (2, 8)})
    kept = learner.method.stable["a"]
    assert kept.nonzero().flatten().tolist() == [2, 3]  # one for each sign, the most active ones
    assert (learner.predict(x, 0) == labels).all()
    assert learner.classes_of(0) == ["plus", "minus"]


def test_all_units_compute_what_the_module_does() -> None:
    module, shape = module_of("resnet18"), NETS["resnet18"][0]
    images, labels = examples(module, shape)
    learner = learner_of("nispa", module, shape, accuracy_drop=0.0, tau_min=0.98, k=1e4)
    with pytest.warns(UserWarning, match=r"no unit of .* is plastic.* a larger accuracy_drop"):
        learner.adopt(images, labels)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images))[:, :3].softmax(1)
    torch.testing.assert_close(
        torch.from_numpy(learner.predict_proba(images, 0)).float(), wanted, rtol=1e-3, atol=1e-5
    )


def test_connections_to_keep_are_the_largest() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    learner = learner_of("nispa", module, (5,), density=0.5)
    layer = learner.method.network.layers["0"]
    weight = next(module.parameters()).detach()
    assert torch.equal(layer.pattern, weight.abs() >= weight.abs().flatten().sort().values[10])
    assert torch.equal(layer.dense_weight(), weight * layer.pattern)


def state_of(learner: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.method.state().tensors.items()}


@pytest.mark.parametrize(
    ("method", "given", "arguments", "kind", "said"),
    [
        ("packnet", {}, {}, ConfigError, "method 'packnet' cannot adopt a trained network; nispa"),
        ("nispa", {"values": "draw"}, {}, ConfigError, "values='model' and density=1.0"),
        ("nispa", {"standardise": True}, {}, ConfigError, "leave standardise out"),
        ("nispa", {"density": 0.05}, {}, ConfigError, r"density=0\.05 .* only .* larger density"),
        ("clnp", {"density": 0.05}, {}, ConfigError, r"density=0\.05 .*larger density.*, margin"),
        ("nispa", {}, {"classes": ["plus"]}, DataError, r"classes=\['plus'\] must list"),
        ("nispa", {}, {"classes": ["a", "b"]}, DataError, r"the labels are \['minus', 'plus'\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_refused_and_changes_nothing(
    method: str, given: Any, arguments: Any, kind: type[InputError], said: str
) -> None:
    learner = learner_of(method, Half(), (3,), **given)
    before, order = state_of(learner), {"classes": ["plus", "minus"], **arguments}
    with pytest.raises(kind, match=said):
        learner.adopt(*rows(), **order)
    assert learner.tasks == []
    assert all(torch.equal(value, before[name]) for name, value in state_of(learner).items())


def test_adopting_comes_first() -> None:
    learner = learner_of("nispa", Half(), (3,))
    learner.adopt(*rows(), classes=["plus", "minus"])
    assert isinstance(learner.method.network, TracedNetwork)
    with pytest.raises(ConfigError, match="adopt is for the first task, and 1 are learned"):
        learner.adopt(*rows())
