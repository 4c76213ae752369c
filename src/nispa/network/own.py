"""Modules that networks are made of: a user's own, or a backbone's, each traced once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nispa.base.modes import usual_modes
from nispa.errors import ConfigError, GraphError
from nispa.graph.logits import logits_of
from nispa.graph.units import UnitGraph
from nispa.network.layers import SparseLayer
from nispa.network.traced import TracedNetwork, fingerprint

Values = Literal["draw", "model"]
"""First values of connections, drawn or those of the module."""

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


class OwnModel:
    """A module that networks are made of, which stays as it is.

    Attributes:
        values: First values of connections. All else begins as the module has it.
        example: What the module is called with.
    """

    def __init__(
        self, module: Any, example: Example, classes: int | None, values: Values = "draw"
    ) -> None:
        """Traces a module.

        Raises:
            GraphError: It cannot be made sparse.
            ConfigError: ``values`` is no such word.
        """
        from nispa.graph.trace import find_units  # takes long to import

        if values not in ("draw", "model"):
            raise ConfigError(
                f"values={values!r} must be 'draw', for new first values, or 'model', for the "
                "module's own"
            )
        if not isinstance(module, nn.Module):
            find_units(module, example)  # refuses it
        refuse_sparse(module)
        self.values, self.example = values, example
        with usual_modes():
            self._module = copied(module)
            self.graph: UnitGraph = find_units(self._module, example, classes)
            self.network(self.input_shape)  # refuses what the trace alone does not

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of a sample, of the first tensor it is called with."""
        given = self.example
        values = given.values() if isinstance(given, Mapping) else given
        first = given if isinstance(given, Tensor) else next(filter(torch.is_tensor, values))
        return tuple(first.shape[1:])

    @property
    def first_values(self) -> dict[str, Tensor] | None:
        """The module's parameters, if connections begin with them."""
        return dict(self._module.named_parameters()) if self.values == "model" else None

    @property
    def fingerprint(self) -> str:
        """See :func:`.traced.fingerprint`."""
        return fingerprint(self._module, self.graph)

    def as_given(self) -> nn.Module:
        """The module itself, from samples to logits."""
        return _Logits(copied(self._module))

    def network(self, input_shape: tuple[int, ...]) -> TracedNetwork:
        """A network of it without any live connection."""
        return TracedNetwork(copied(self._module), self.graph, input_shape)


class _Logits(nn.Module):
    """A module of which only the logits count."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = logits_of(self.module(inputs))
        return logits


def copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32."""
    try:
        return copy.deepcopy(module).to("cpu", torch.float32)
    except Exception as error:  # whatever the module's own code raises
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GraphError(f"the module cannot be copied: {text}; pass one that can be") from error


def refuse_sparse(module: nn.Module) -> None:
    """Refuses a module whose parameters are not its own.

    Raises:
        GraphError: It is parametrised, or sparse already.
    """
    parts = list(module.modules())
    if any(isinstance(part, (SparseLayer, TracedNetwork)) for part in parts) or any(
        map(parametrize.is_parametrized, parts)
    ):
        raise GraphError("the model is parametrised or sparse already; pass a plain module")
