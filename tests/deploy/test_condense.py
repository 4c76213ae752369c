"""What is folded and cut: drawn by hand, and for random networks against their own passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nispa.base.config import build
from nispa.base.seeding import stream
from nispa.deploy.condense import condense
from nispa.errors import ConfigError
from nispa.network.models import NetworkConfig, SparseNetwork, empty_network


def network(shape: tuple[int, int, int], outputs: int, **settings: object) -> SparseNetwork:
    return empty_network(build(NetworkConfig, settings), shape, outputs)


def connect(made: SparseNetwork, name: str, weight: list[list[float]], bias: list[float]) -> None:
    layer, values = made.layers[name], torch.tensor(weight)
    kernels = values.view(*values.shape, *[1] * len(layer.spec.kernel)).expand(
        *values.shape, *layer.spec.kernel
    )
    layer.connect(values != 0, kernels[values != 0])
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(bias))


def weights(modules: list[nn.Module]) -> list[list[list[float]]]:
    return [each.weight.tolist() for each in modules if isinstance(each, nn.Linear)]


def test_what_reaches_no_output_is_cut_and_constants_are_folded() -> None:
    made = network((1, 1, 2), 3, hidden=(4, 2))
    # Units of fc1: 0 moves; 1 is constant 5; 2 is constant, cut off by ReLU; 3 moves, only fc2's
    # unit 1 reads it, which only output 2 reads.
    connect(made, "fc1", [[1, 2], [0, 0], [0, 0], [3, 0]], [0.5, 5, -7, 0])
    connect(made, "fc2", [[1, 10, 100, 0], [0, 0, 0, 1]], [1, 0])
    connect(made, "head", [[2, 0], [0, 0], [0, 4]], [0.25, 9, 0])
    found = condense(made, [1, 0])
    kinds = [type(module) for module in found]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert weights(found) == [[[1, 2]], [[1]], [[0], [2]]]
    biases = [each.bias.tolist() for each in found if isinstance(each, nn.Linear)]
    assert biases == [[0.5], [1 + 5 * 10], [9, 0.25]]


def test_outputs_that_nothing_reaches_are_their_biases() -> None:
    made = network((1, 1, 2), 2, hidden=(2,))
    connect(made, "fc1", [[0, 0], [0, 0]], [3, -1])
    connect(made, "head", [[1, 1], [0, 0]], [0.5, 9])
    found = nn.Sequential(*condense(made, [0, 1]))
    assert found(torch.rand(4, 1, 1, 2)).tolist() == 4 * [[3.5, 9]]


def test_a_constant_stays_where_a_padded_convolution_reads_it() -> None:
    made = network((1, 4, 4), 2, architecture="convnet", channels=(3, 2), fc=())
    # Of conv1, unit 0 moves, 1 is constant 2, 2 is constant 0. Of conv2, unit 1 is constant 3.
    connect(made, "conv1", [[1], [0], [0]], [0, 2, -1])
    connect(made, "conv2", [[1, 1, 1], [0, 0, 0]], [0, 3])
    connect(made, "head", [[1.0] * 8, [0.0] * 8], [0, 0])  # 4 pixels a channel
    found = condense(made, [0, 1])
    convolutions = [each for each in found if isinstance(each, nn.Conv2d)]
    assert [each.weight.shape[:2] for each in convolutions] == [(2, 1), (1, 2)]
    head = found[-1]
    assert isinstance(head, nn.Linear)
    assert head.weight.shape == (2, 4)
    assert head.bias.tolist() == [4 * 3, 0]
    assert_equal(made, found, [0, 1])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_random_networks_compute_the_same(kind: str, density: float, seed: int) -> None:
    random = stream(seed, "condense")
    settings: dict[str, object] = (
        {"hidden": (12, 9, 7)}
        if kind == "mlp"
        else {"architecture": "convnet", "channels": (5, 6, 7), "pool_every": 1, "fc": (8,)}
    )
    made = network((2, 8, 9), 5, **settings)
    for layer in made.layers.values():
        pattern = torch.rand(layer.shape, generator=random) < density
        layer.connect(
            pattern, torch.randn(int(pattern.sum()), *layer.spec.kernel, generator=random)
        )
        with torch.no_grad():
            layer.bias.copy_(torch.randn(layer.shape[0], generator=random))
    outputs = torch.randperm(5, generator=random)[: 1 + seed % 5].tolist()
    assert_equal(made, condense(made, outputs), outputs)


def assert_equal(made: SparseNetwork, found: list[nn.Module], outputs: list[int]) -> None:
    images = torch.rand(7, *made.input_shape, generator=stream(0, "images"))
    with torch.no_grad():
        wanted: Tensor = made.eval()(images)[:, outputs]
        close = nn.Sequential(*found)(images) - wanted
    assert float(close.abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_network_of_other_modules_is_refused() -> None:
    made = network((1, 1, 2), 2, hidden=(2,))
    made.body = nn.Sequential(*made.body.children(), nn.Tanh())
    with pytest.raises(ConfigError, match="Tanh"):
        condense(made, [0])
