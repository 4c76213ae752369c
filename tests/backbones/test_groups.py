"""Units of all backbones by hand, and that kept ones stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nispa.backbones import BACKBONES
from nispa.graph.trace import find_units
from nispa.graph.units import Span, UnitMap
from tests.graph.isolation import check_isolated, random_sets
from tests.graph.test_foreign import groups_of

SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((1, 3, 4), {"hidden": (6, 5)}),
    "convnet": ((2, 16, 16), {"channels": (4, 4, 6, 6), "fc": (8,)}),
    "resnet18": ((3, 16, 16), {"width": 4}),
    "vgg11-bn": ((3, 32, 32), {"width": 2}),
    "mobilenet-small": ((3, 16, 16), {"width": 4}),
    "vit-tiny": ((3, 8, 8), {"width": 12, "heads": 3, "blocks": 2}),
    "conv1d": ((5, 20), {"channels": (4, 6), "kernels": (5, 3)}),
}
CLASSES = 3


def test_a_case_for_each_backbone() -> None:
    assert set(SMALL) == set(BACKBONES)


def chain(*layers: tuple[str, int], inputs: int) -> tuple[tuple[str, str, int, str, str], ...]:
    """Groups of layers that follow each other; the head comes last."""
    names = [*(name for name, _ in layers), "head"]
    hidden = [
        (name, "hidden", size, name, names[place + 1]) for place, (name, size) in enumerate(layers)
    ]
    return (
        ("input", "input", inputs, "", names[0]),
        *hidden,
        ("output", "output", CLASSES, "head", ""),
    )


GROUPS = {
    "mlp": chain(("fc1", 6), ("fc2", 5), inputs=12),
    "convnet": chain(("conv1", 4), ("conv2", 4), ("conv3", 6), ("conv4", 6), ("fc1", 8), inputs=2),
    "vgg11-bn": chain(
        ("features.0", 2),
        ("features.4", 4),
        ("features.8", 8),
        ("features.11", 8),
        ("features.15", 16),
        ("features.18", 16),
        ("features.22", 16),
        ("features.25", 16),
        inputs=3,
    ),
    "conv1d": chain(("features.0", 4), ("features.3", 6), inputs=5),
    "resnet18": (
        ("input", "input", 3, "", "conv1"),
        (
            "conv1",
            "stream",
            4,
            "conv1 layer1.0.conv2 layer1.1.conv2",
            "layer1.0.conv1 layer1.1.conv1 layer2.0.conv1 layer2.0.shortcut.0",
        ),
        ("layer1.0.conv1", "hidden", 4, "layer1.0.conv1", "layer1.0.conv2"),
        ("layer1.1.conv1", "hidden", 4, "layer1.1.conv1", "layer1.1.conv2"),
        ("layer2.0.conv1", "hidden", 8, "layer2.0.conv1", "layer2.0.conv2"),
        (
            "layer2.0.conv2",
            "stream",
            8,
            "layer2.0.conv2 layer2.0.shortcut.0 layer2.1.conv2",
            "layer2.1.conv1 layer3.0.conv1 layer3.0.shortcut.0",
        ),
        ("layer2.1.conv1", "hidden", 8, "layer2.1.conv1", "layer2.1.conv2"),
        ("layer3.0.conv1", "hidden", 16, "layer3.0.conv1", "layer3.0.conv2"),
        (
            "layer3.0.conv2",
            "stream",
            16,
            "layer3.0.conv2 layer3.0.shortcut.0 layer3.1.conv2",
            "layer3.1.conv1 layer4.0.conv1 layer4.0.shortcut.0",
        ),
        ("layer3.1.conv1", "hidden", 16, "layer3.1.conv1", "layer3.1.conv2"),
        ("layer4.0.conv1", "hidden", 32, "layer4.0.conv1", "layer4.0.conv2"),
        (
            "layer4.0.conv2",
            "stream",
            32,
            "layer4.0.conv2 layer4.0.shortcut.0 layer4.1.conv2",
            "layer4.1.conv1 head",
        ),
        ("layer4.1.conv1", "hidden", 32, "layer4.1.conv1", "layer4.1.conv2"),
        ("output", "output", CLASSES, "head", ""),
    ),
    "vit-tiny": (
        ("input", "input", 3, "", "patches"),
        (
            "patches",
            "stream",
            12,
            "patches blocks.0.attention.proj blocks.0.fc2 blocks.1.attention.proj blocks.1.fc2",
            "blocks.0.attention.qkv blocks.0.fc1 blocks.1.attention.qkv blocks.1.fc1 head",
        ),
        (
            "blocks.0.attention.qkv",
            "head",
            3,
            "blocks.0.attention.qkv",
            "blocks.0.attention.proj",
        ),
        ("blocks.0.fc1", "hidden", 48, "blocks.0.fc1", "blocks.0.fc2"),
        (
            "blocks.1.attention.qkv",
            "head",
            3,
            "blocks.1.attention.qkv",
            "blocks.1.attention.proj",
        ),
        ("blocks.1.fc1", "hidden", 48, "blocks.1.fc1", "blocks.1.fc2"),
        ("output", "output", CLASSES, "head", ""),
    ),
}


def mobilenet() -> tuple[tuple[str, str, int, str, str], ...]:
    """Of width 4: channels after blocks 4, 6, 6, 10, 10; within them 16, 16, 24, 24, 40."""
    first = ["blocks.0.expand", "blocks.1.expand"]
    second = ["blocks.2.expand", "blocks.3.expand"]
    third = ["blocks.4.expand", "last"]

    def inside(block: int, size: int) -> list[tuple[str, str, int, str, str]]:
        path = f"blocks.{block}"
        gate = f"{path}.gate"
        return [
            (
                f"{path}.expand",
                "stream",  # its gate writes it, too
                size,
                f"{path}.expand {gate}.excite",
                f"{gate}.squeeze {path}.project",
            ),
            (f"{gate}.squeeze", "hidden", max(8, size // 4), f"{gate}.squeeze", f"{gate}.excite"),
        ]

    return (
        ("input", "input", 3, "", "stem"),
        ("stem", "stream", 4, "stem blocks.0.project", " ".join(first)),
        *inside(0, 16),
        *inside(1, 16),
        ("blocks.1.project", "stream", 6, "blocks.1.project blocks.2.project", " ".join(second)),
        *inside(2, 24),
        *inside(3, 24),
        ("blocks.3.project", "stream", 10, "blocks.3.project blocks.4.project", " ".join(third)),
        *inside(4, 40),
        ("last", "hidden", 40, "last", "head"),
        ("output", "output", CLASSES, "head", ""),
    )


@pytest.mark.parametrize("name", SMALL)
def test_groups_of_a_backbone(name: str) -> None:
    shape, settings = SMALL[name]
    model = BACKBONES[name].build(shape, CLASSES, **settings)
    graph = find_units(model, torch.zeros(2, *shape), CLASSES)
    expected = mobilenet() if name == "mobilenet-small" else GROUPS[name]
    assert groups_of(graph) == expected
    assert all(layer.calls == 1 for layer in graph.layers)
    assert all(layer.module == layer.name for layer in graph.layers)  # all can be replaced


@pytest.mark.parametrize("name", SMALL)
def test_kept_units_of_a_backbone_stay(name: str) -> None:
    shape, settings = SMALL[name]
    torch.manual_seed(0)
    model = BACKBONES[name].build(shape, CLASSES, **settings)
    graph = find_units(model, torch.zeros(2, *shape))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, *shape, generator=generator)
    moved = [
        check_isolated(model, graph, images, random_sets(graph, generator), generator)
        for _ in range(3)
    ]
    assert any(moved)


def test_depthwise_kernels_are_values_of_units() -> None:
    shape, settings = SMALL["mobilenet-small"]
    graph = find_units(
        BACKBONES["mobilenet-small"].build(shape, CLASSES, **settings), torch.zeros(2, *shape)
    )
    kernels = {values.name: values for values in graph.values}["blocks.0.depthwise.weight"]
    assert (kernels.kind, kernels.dim) == ("depthwise", 0)
    assert kernels.units == UnitMap((Span("blocks.0.expand", 0, 16),))


def test_features_of_a_flattened_map() -> None:
    shape, settings = SMALL["convnet"]
    graph = find_units(
        BACKBONES["convnet"].build(shape, CLASSES, **settings), torch.zeros(2, *shape)
    )
    assert graph.layer("fc1").columns == UnitMap((Span("conv4", 0, 6, repeat=16),))  # of 4x4
