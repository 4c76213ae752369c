"""Backbones as networks: shapes, sizes, and clear words about shapes they do not take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nispa.backbones import BACKBONES
from nispa.network.models import NetworkConfig, build_network


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_of_a_batch(name: str) -> None:
    backbone = BACKBONES[name]
    model = backbone.build(backbone.example, 7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *backbone.example)).shape == (2, 7)
    assert backbone.description
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
    ("name", "shape", "settings", "wrong"),
    [
        ("resnet18", (32, 32), {}, r"resnet18 takes images of shape \(channels, height, width\)"),
        ("conv1d", (3, 32, 32), {}, r"conv1d takes series of shape \(channels, length\)"),
        ("conv1d", (3, 32), {"kernels": (3,)}, "must be equally many"),
        ("vgg11-bn", (3, 16, 16), {}, "at least 32x32 pixels, not 16x16"),
        ("vit-tiny", (3, 30, 32), {}, "patch=4 must divide both sides of 30x32"),
        ("vit-tiny", (3, 32, 32), {"heads": 5}, "heads=5"),
        ("convnet", (3, 2, 2), {}, "too small for 2 max-pools"),
    ],
)
def test_shapes_that_a_backbone_does_not_take(
    name: str, shape: tuple[int, ...], settings: dict[str, object], wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        BACKBONES[name].build(shape, 10, **settings)


def test_the_usual_resnet_has_the_usual_number_of_parameters() -> None:
    model = BACKBONES["resnet18"].build((3, 32, 32), 10)
    assert sum(value.numel() for value in model.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("mlp", (1, 6, 5), NetworkConfig(hidden=(7, 6), density=1.0)),
        ("convnet", (3, 16, 16), NetworkConfig(architecture="convnet", density=1.0)),
        (
            "convnet",
            (1, 40, 33),
            NetworkConfig(
                architecture="convnet", channels=(3, 4, 5), pool_every=3, fc=(9, 8), density=1.0
            ),
        ),
    ],
)
def test_the_papers_networks_are_the_sparse_ones_at_full_density(
    name: str, shape: tuple[int, int, int], config: NetworkConfig
) -> None:
    sparse = build_network(config, shape, 4, seed=0)
    settings = (
        {"hidden": config.hidden}
        if name == "mlp"
        else {"channels": config.channels, "pool_every": config.pool_every, "fc": config.fc}
    )
    plain = BACKBONES[name].build(shape, 4, **settings)
    with torch.no_grad():
        for layer_name, layer in sparse.layers.items():
            module = plain.get_submodule(layer_name)
            assert isinstance(module, nn.Linear | nn.Conv2d)
            module.weight.copy_(layer.dense_weight())
            module.bias.copy_(layer.bias)  # type: ignore[union-attr]
        images = torch.randn(2, *shape)
        assert torch.allclose(plain(images), sparse(images), atol=1e-5)
