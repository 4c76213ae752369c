"""The registry of architectures, and what a network must not hold beside its sparse layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nispa.base.config import _described, as_json, build
from nispa.errors import ConfigError, UnknownNameError
from nispa.files import write_atomic
from nispa.methods.base import Problem
from nispa.methods.presets import resolve
from nispa.methods.saving import decode, encode, make_method
from nispa.network.architecture import Architecture, ArchitectureSettings, LayerStack, Shape
from nispa.network.layers import SparseLinear, Units
from nispa.network.models import ARCHITECTURES, NetworkConfig, NetworkSpec, SparseNetwork
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from tests.methods.toy import accuracy_on, finish, toy_task


class OneLayer(Architecture):
    """A single hidden layer of as many units as the image has pixels."""

    name = "one-layer"
    config_class = ArchitectureSettings
    sizes = ()

    def build(self, config: Any, input_shape: Shape, outputs: int) -> SparseNetwork:
        pixels = input_shape[0] * input_shape[1] * input_shape[2]
        stack = LayerStack(UnitGroup("input", pixels, "input"))
        stack.flatten()
        stack.linear(UnitGroup("middle", pixels))
        stack.linear(UnitGroup("output", outputs, "output"), "head")
        return stack.network(input_shape, "smaller images")

    def suggest(self, input_shape: Shape, width: float) -> dict[str, Any]:
        return {"density": 0.5}


@pytest.fixture
def one_layer() -> Iterator[str]:
    ARCHITECTURES[OneLayer.name] = OneLayer()
    yield OneLayer.name
    del ARCHITECTURES[OneLayer.name]
    _described.cache_clear()  # which lists the names of the registry


@pytest.mark.parametrize("method", ["nispa", "ewc", "packnet"])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_an_architecture_entered_is_known_everywhere(
    one_layer: str, tmp_path: Path, method: str, preset: str
) -> None:
    shape = toy_task(0).train.shape
    given: dict[str, Any] = {"architecture": one_layer, "density": 0.8, "optimiser": "adam"}
    settings = resolve(method, preset, "", shape, given, outputs=4, tasks=2)
    made = make_method(settings, Problem(shape, 4, 2), seed=0, device="cpu")
    made.start()
    finish(made.learn(toy_task(0)))
    assert accuracy_on(made, toy_task(0)) > 0.8
    write_atomic(tmp_path / "file", encode(made, settings))
    again, found, _ = decode(tmp_path / "file")
    assert found.network.architecture == one_layer
    assert accuracy_on(again, toy_task(0)) == accuracy_on(made, toy_task(0))


def test_an_architecture_that_nobody_entered_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'one-layer'.*mlp"):
        build(NetworkConfig, {"architecture": OneLayer.name})


def test_settings_of_a_network_keep_their_order() -> None:
    """Records list them in this order."""
    names = list(as_json(NetworkConfig()))
    assert names[:4] == ["architecture", "hidden", "channels", "kernel_size"]
    assert names[4:8] == ["pool_every", "pool_to", "fc", "density"]
    assert names[8:] == [
        "distribution",
        "min_inputs",
        "mask",
        "fan",
        "gain",
        "init",
        "bias",
        "precision",
        "arguments",
    ]


def test_a_specification_tells_of_a_network_without_building_it() -> None:
    mlp = NetworkSpec(NetworkConfig(hidden=(7, 5), density=0.3), (1, 4, 4), 3)
    assert mlp.describe() == {"architecture": "mlp", "hidden": (7, 5), "density": 0.3}
    assert mlp.units == 7 + 5 + 3
    config = NetworkConfig(architecture="convnet", channels=(2, 3), fc=(6,))
    convnet = NetworkSpec(config, (1, 8, 8), 4)
    assert convnet.describe() == {
        "architecture": "convnet",
        "channels": (2, 3),
        "fc": (6,),
        "density": 0.2,
    }
    assert convnet.units == 2 + 3 + 6 + 4
    assert convnet.at_density(0.5).config.density == 0.5


# Values outside sparse layers.


def network_with(extra: nn.Module) -> SparseNetwork:
    """A network of one hidden group of four units with ``extra`` between its layers."""
    groups = (
        UnitGroup("in", 2, "input"),
        UnitGroup("a", 4),
        UnitGroup("out", 3, "output"),
    )
    specs = (ConnectionLayer("first", "in", "a"), ConnectionLayer("head", "a", "out"))
    first, head = SparseLinear(specs[0], (4, 2)), SparseLinear(specs[1], (3, 4))
    body = nn.Sequential(nn.Flatten(), first, extra, nn.ReLU(), Units("a"), head)
    return SparseNetwork(body, Topology(groups, specs), (1, 1, 2))


class Scaled(nn.Module):
    """A module with a parameter, in a module without one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ParameterDict({"gain": nn.Parameter(torch.ones(1))})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.inner["gain"]
        return out


class Biased(SparseLinear):
    """A sparse layer with a parameter that freezing does not know."""

    def __init__(self) -> None:
        super().__init__(ConnectionLayer("third", "a", "a"), (4, 4))
        self.shift = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (nn.BatchNorm1d(4), r"BatchNorm1d '2' has a value 'weight'"),
        (nn.BatchNorm1d(4, affine=False), r"BatchNorm1d '2' has a value 'running_mean'"),
        (nn.Linear(4, 4), r"Linear '2' has a value 'weight'"),
        (nn.PReLU(), r"PReLU '2' has a value 'weight'"),
        (nn.Sequential(nn.Identity(), nn.LayerNorm(4)), r"LayerNorm '2\.1' has a value 'weight'"),
        (Scaled(), r"ParameterDict '2\.inner' has a value 'gain'"),
    ],
)
def test_a_value_that_no_sparse_layer_owns_is_refused(extra: nn.Module, named: str) -> None:
    """An optimiser would move it after a task was frozen, and forget in silence."""
    with pytest.raises(ConfigError, match=named):
        network_with(extra)


def test_a_parameter_of_its_own_in_a_derived_layer_is_refused() -> None:
    groups = (UnitGroup("a", 4, "input"), UnitGroup("out", 4, "output"))
    layer = Biased()
    layer.spec = ConnectionLayer("third", "a", "out")
    with pytest.raises(ConfigError, match="Biased 'body' has a value 'shift'"):
        SparseNetwork(layer, Topology(groups, (layer.spec,)), (4, 1, 1))


@pytest.mark.parametrize(
    "extra", [nn.Dropout(), nn.Tanh(), nn.LayerNorm(4, elementwise_affine=False)]
)
def test_modules_without_values_are_welcome(extra: nn.Module) -> None:
    network_with(extra)
