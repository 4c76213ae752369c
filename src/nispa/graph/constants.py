"""Values of tensors that are computed from buffers and constants alone, such as a grid of places.

They are computed node by node in the graph's order and share memory as in the module, so what is
written into one of them, or into a view of it, is seen by the rest.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from nispa.graph.facts import CANNOT, at_random, within, writes_to


class Constants:
    """What is known of a graph's nodes so far."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._values: dict[fx.Node, Any] = {}
        self._buffers: dict[fx.Node, frozenset[str]] = {}

    def give(self, node: fx.Node, name: str, value: Tensor) -> None:
        """The value of an input of the graph, which ``name`` calls."""
        self._values[node] = value.detach().cpu().clone()
        self._buffers[node] = frozenset([name])

    def step(self, node: fx.Node) -> None:
        """Computes a call if all that it reads is known; what it changes otherwise is forgotten."""
        if node.op != "call_function":
            return
        read = node.all_input_nodes
        known = all(each in self._values for each in read) and not at_random(node)
        if known:
            args, named = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
            try:
                self._values[node] = node.target(*args, **named)  # type: ignore[operator]
            except CANNOT:
                known = False
            else:
                self._buffers[node] = frozenset().union(*(self._buffers[each] for each in read))
        if not known and any(map(writes_to, [node, *within(node)])):
            changed = {memory for each in read for memory in _memory(self._values.get(each))}
            for other, value in list(self._values.items()):
                if changed & _memory(value):
                    del self._values[other]

    def forget(self, node: fx.Node) -> None:
        """Gives back the memory of what nobody reads any more."""
        self._values.pop(node, None)

    def value(self, node: fx.Node) -> tuple[Tensor, frozenset[str]] | None:
        """A tensor, not to be changed, and the inputs it was computed from; None if unknown."""
        value = self._values.get(node)
        return (value, self._buffers[node]) if isinstance(value, Tensor) else None


def _memory(value: Any) -> set[int]:
    """Addresses of the memory of a tensor, or of several."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return {each.untyped_storage().data_ptr() for each in several if isinstance(each, Tensor)}
