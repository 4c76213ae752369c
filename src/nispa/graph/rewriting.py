"""Operators of an exported graph written as others, whose rules hold for them, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_PARTS = ("slice", "narrow", "chunk", "split", "split_with_sizes", "getitem", "unbind", "alias")


def insert_before(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call before a node, with the shape of its result, as if the node's module had made it."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    values = fx.node.map_arg(args, lambda each: each.meta["val"])
    made.meta = {**node.meta, "val": target(*values)}
    return made


def write_computed_biases_as_sums(program: torch.export.ExportedProgram) -> None:
    """Takes biases out of layers where they are computed, and adds them afterwards."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is aten.linear.default:
            pixels = 0
        elif node.target in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
            pixels = node.args[1].meta["val"].dim() - 2
        else:
            continue
        bias = node.args[2] if len(node.args) > 2 else None
        if not isinstance(bias, fx.Node) or _whole(bias).op == "placeholder":
            continue
        made = insert_before(node, node.target, *node.args[:2], None, *node.args[3:])
        if pixels:
            bias = insert_before(node, aten.view.default, bias, [-1, *[1] * pixels])
        node.replace_all_uses_with(insert_before(node, aten.add.Tensor, made, bias))
        graph.erase_node(node)


def inline_disabled_autocast(module: fx.GraphModule) -> None:
    """Puts the operators of ``with torch.autocast(..., enabled=False)`` in place of the block.

    Outside of any other autocast, which a trace is, the block changes nothing.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_autocast or node.args[2]:
            continue
        _, _, _, _, block, *arguments = node.args
        inner = getattr(module, block.target)
        inline_disabled_autocast(inner)
        if any(each.op == "get_attr" for each in inner.graph.nodes):
            continue  # a block of another kind inside, which only the inner module has
        named = dict(zip(inner.graph.find_nodes(op="placeholder"), arguments, strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner.graph, named)
        assert isinstance(results, (tuple, list))
        for part in list(node.users):
            part.replace_all_uses_with(results[part.args[1]])
            graph.erase_node(part)
        graph.erase_node(node)
        graph.erase_node(block)


def _whole(node: fx.Node) -> fx.Node:
    """What a node is a part of."""
    while getattr(node.target, "__name__", "").partition(".")[0] in _PARTS:
        node = node.all_input_nodes[0]
    return node
