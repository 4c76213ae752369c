"""``einsum`` with a matrix that is learned, written as a linear layer.

``torch.einsum("bchw,oc->bohw", x, self.weight)`` is a linear layer along one dimension. In an
exported graph it becomes one, between two permutations, so that the rules for linear layers hold.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import fx

from nispa.graph.facts import TRANSPOSES
from nispa.graph.rewriting import insert_before

aten = torch.ops.aten


class _Product(NamedTuple):
    """What a sum of products reads, its matrix, and the letters of both and of the result."""

    read: fx.Node
    matrix: fx.Node
    letters: str
    pair: str
    wanted: str


def write_einsum_as_linear(program: torch.export.ExportedProgram) -> None:
    """Changes the graph of an exported program."""
    graph = program.graph
    learned = {
        node
        for node in graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.inputs_to_parameters
    }
    for node in list(graph.nodes):
        found = _product(node, learned) if node.target is aten.einsum.default else None
        if found is not None:
            node.replace_all_uses_with(_linear(node, found))
            graph.erase_node(node)


def _product(node: fx.Node, learned: set[fx.Node]) -> _Product | None:
    """The sum, if it is over one dimension that a learned matrix shares with the other factor."""
    equation, tensors, *_ = node.args
    given, _, wanted = str(equation).replace(" ", "").partition("->")
    factors: Any = list(zip(given.split(","), tensors, strict=False))  # type: ignore[arg-type]
    matrices = [each for each in factors if len(each[0]) == 2 and _first(each[1]) in learned]
    if len(factors) != 2 or len(matrices) != 1 or "." in given:
        return None
    (pair, matrix), (letters, read) = matrices[0], factors[1 - factors.index(matrices[0])]
    shared = set(pair) & set(letters) - set(wanted)
    alone = set(pair) - set(letters)
    plain = all(len(set(each)) == len(each) for each in (pair, letters, wanted))
    if not plain or len(shared) != 1 or len(alone) != 1 or not alone <= set(wanted):
        return None
    (column,) = shared
    if _size(read, letters, column) != _size(matrix, pair, column):  # one of them is spread out
        return None
    return _Product(read, matrix, letters, pair, wanted)


def _size(node: fx.Node, letters: str, letter: str) -> int:
    return int(node.meta["val"].shape[letters.index(letter)])


def _first(node: fx.Node) -> fx.Node:
    """The node that a matrix was before it was transposed."""
    while (
        node.op == "call_function"
        and getattr(node.target, "__name__", "").split(".")[0] in TRANSPOSES
    ):
        (node,) = node.all_input_nodes
    return node


def _linear(node: fx.Node, product: _Product) -> fx.Node:
    """Writes permutation, linear layer, sum and permutation before a node."""
    read, matrix, letters, pair, wanted = product
    (column,) = set(pair) & set(letters)
    row = pair.replace(column, "")

    call = functools.partial(insert_before, node)
    order = letters.replace(column, "")
    lying = call(aten.permute.default, read, [letters.index(letter) for letter in order + column])
    rows_first = pair.startswith(row)
    made = call(aten.linear.default if rows_first else aten.matmul.default, lying, matrix)
    over = [place for place, letter in enumerate(order) if letter not in wanted]
    if over:
        made = call(aten.sum.dim_IntList, made, over)
        order = "".join(letter for letter in order if letter in wanted)
    order += row
    return call(aten.permute.default, made, [order.index(letter) for letter in wanted])
