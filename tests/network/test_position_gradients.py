"""The gradient by absent connections, against dense networks with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nispa.backbones import BACKBONES
from nispa.base.config import build
from nispa.network.models import NetworkConfig, SparseNetwork, build_network
from nispa.network.operations import Ledger, counting
from nispa.network.position_gradients import position_gradients
from nispa.network.sparsify import sparsify
from tests.mechanism.drawing import drawn


def test_by_hand() -> None:
    # Inputs (1, 2). Unit 0 = relu(2 a) = 2, unit 1 = relu(-b) = 0. Outputs 3 u0, 0. The loss is the
    # sum of the outputs: by the weights into outputs 2 (unit 0) and 0 (unit 1), for both; by those
    # into unit 0 3 x (1, 2), into unit 1, which is silent, 0.
    made = build_network(NetworkConfig(hidden=(2,), density=1.0), (1, 1, 2), 2, seed=0)
    made.layers["fc1"].connect(drawn("x.", ".x"), torch.tensor([2.0, -1.0]))
    made.layers["head"].connect(drawn("x.", ".."), torch.tensor([3.0]))
    images = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    found = position_gradients(made, [(images, torch.zeros(1))], lambda z, _: z.sum())
    assert {name: sizes.tolist() for name, sizes in found.items()} == {
        "fc1": [[3.0, 6.0], [0.0, 0.0]],
        "head": [[2.0, 0.0], [2.0, 0.0]],
    }


def network(kind: str) -> SparseNetwork:
    sizes: dict[str, tuple[int, ...]] = {"hidden": (6, 5)}
    if kind == "convnet":
        sizes = {"channels": (3, 4), "fc": (5,)}
    shared = {"architecture": kind, "density": 0.4, "bias": "uniform"}
    config = build(NetworkConfig, {**shared, **sizes})
    made = build_network(config, (2, 6, 6), 4, seed=3)
    first = made.layers[made.topology.layers[0].name]  # frozen whole: no gradient flows there
    first.freeze(torch.ones(first.shape, dtype=torch.bool), torch.ones(first.shape[0]) > 0)
    return made


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_equals_that_of_a_dense_network(kind: str) -> None:
    made, generator = network(kind), torch.Generator().manual_seed(1)
    images = torch.rand(7, 2, 6, 6, generator=generator)
    labels = torch.randint(0, 4, (7,), generator=generator)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    ledger = Ledger()
    with counting(ledger):
        found = position_gradients(made, batches, functional.cross_entropy)

    weights: dict[str, Tensor] = {}
    x = images
    for spec in made.topology.layers:
        layer = made.layers[spec.name]
        weight = layer.dense_weight().requires_grad_()
        weights[spec.name] = weight
        if spec.kernel:
            x = functional.conv2d(x, weight, layer.dense_bias(), padding=1).relu()
            if spec.name == "conv2":
                x = functional.max_pool2d(x, 2)
        else:
            x = functional.linear(x.flatten(1), weight, layer.dense_bias())
            x = x if spec.target == made.topology.output.name else x.relu()
    assert torch.allclose(x, made(images), atol=1e-5)
    functional.cross_entropy(x, labels).backward()
    for name, weight in weights.items():
        assert weight.grad is not None
        expected = weight.grad.flatten(2).norm(dim=2) if weight.dim() > 2 else weight.grad.abs()
        assert torch.allclose(found[name], expected, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(value.grad is None for value in made.parameters())
    assert not any(layer._forward_hooks for layer in made.layers.values())
    # The products over all positions are counted, beside the passes.
    dense = sum(
        2 * 7 * layer.position_count * layer.weights_each * layer.places
        for layer in made.layers.values()
    )
    assert ledger.table()["importance"] > dense


def test_of_any_module_equals_that_of_the_dense_one() -> None:
    torch.manual_seed(0)
    module = BACKBONES["resnet18"].build((2, 8, 8), 3, width=3).eval()
    made = sparsify(module, torch.zeros(2, 2, 8, 8), density=0.5, values="model")
    first = made.layers["conv1"]  # frozen: it has gradients all the same
    first.freeze(torch.ones(first.shape, dtype=torch.bool), torch.ones(first.shape[0]) > 0)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    images, labels = torch.randn(7, 2, 8, 8), torch.arange(7) % 3
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = position_gradients(made, batches, functional.cross_entropy)
    weights = {name: layer.dense_weight() for name, layer in made.layers.items()}
    for name, weight in weights.items():
        module.get_submodule(name).weight.data.copy_(weight)  # type: ignore[operator]
    functional.cross_entropy(module(images), labels).backward()
    for name, sizes in found.items():
        gradient = module.get_submodule(name).weight.grad
        assert isinstance(gradient, Tensor)
        wanted = gradient.flatten(2).norm(dim=2) if gradient.dim() > 2 else gradient.abs()
        torch.testing.assert_close(sizes, wanted, rtol=1e-3, atol=1e-6)
        dead = ~made.layers[name].pattern
        assert not dead.any() or bool((sizes[dead] > 0).any())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
