"""A graph of PyTorch's operators as part of an ONNX model."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nispa.deploy.onnx_model import Model, shape_of, unknown
from nispa.deploy.onnx_operators import RULES, Given


def write_graph(
    model: Model, module: fx.GraphModule, images: str, prefix: str, shape: Sequence[int]
) -> str:
    """What a graph computes of images of a shape.

    Raises:
        ConfigError: An operator is not known here.
    """
    ShapeProp(module).propagate(torch.zeros(2, *shape))
    names: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        path = f"{prefix}.{node.name}"
        if node.op == "placeholder":
            names[node] = images
        elif node.op == "get_attr":
            names[node] = model.tensor(_tensor_of(module, str(node.target)), path)
        elif node.op == "output":
            return str(names[node.args[0]])
        elif node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            (x,) = node.args
            names[node] = model.layer(layer, names[x], path, len(shape_of(x)))
        elif node.target is operator.getitem:
            names[node] = names[node.args[0]][node.args[1]]
        else:
            names[node] = _call(model, node, names)
    raise AssertionError("a graph has an output")


def _call(model: Model, node: fx.Node, names: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema is not None else target.__name__
    rule = RULES.get(name)
    if rule is None:
        raise unknown(name)
    given = Given(model, node, names, name)
    return rule(given)


def _tensor_of(module: nn.Module, path: str) -> Tensor:
    """A tensor of a module."""
    parent, _, name = path.rpartition(".")
    tensor = getattr(module.get_submodule(parent), name)
    assert isinstance(tensor, Tensor)
    return tensor
