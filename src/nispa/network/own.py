"""Modules that networks are made of: a user's own, or a backbone's, each traced once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nispa.base.modes import usual_modes
from nispa.errors import ConfigError, GraphError
from nispa.graph.logits import logits_of
from nispa.graph.units import UnitGraph
from nispa.network.agreement import refuse_other_logits
from nispa.network.layers import SparseLayer
from nispa.network.replacing import replaced_norms
from nispa.network.traced import TracedNetwork, fingerprint
from nispa.network.written_norms import recognise_norms

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
        from nispa.graph.trace import arguments_of, find_units  # take long to import

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
            called_with = arguments_of(example)
            recognise_norms(self._module, *called_with)
            self.graph: UnitGraph = find_units(self._module, example, classes, original=module)
            self.network(self.input_shape)  # refuses what the trace alone does not
            other = copied(self._module)
            replaced_norms(other, self.graph)
            refuse_other_logits(copied(self._module), other, *called_with)

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
        """See :func:`.traced.fingerprint`; constants that have no name follow it."""
        named = fingerprint(self._module, self.graph)
        return f"{named} {self.graph.constants}" if self.graph.constants else named

    def fits(self, known: object) -> bool:
        """Whether a state of the module with some fingerprint is one of this module.

        Older ones leave out the constants that have no name.
        """
        return known in (self.fingerprint, fingerprint(self._module, self.graph))

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
    """A copy on the CPU, in float32; complex numbers become pairs of these.

    Raises:
        GraphError: There can be none.
    """
    try:
        made = copy.deepcopy(module)
        made._apply(_single)
        return made
    except Exception as error:  # whatever the module's own code raises
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        for path, part in module.named_modules():
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    raise GraphError(
                        f"the module cannot be copied: '{path + '.' if path else ''}{name}' is "
                        "computed from parameters; compute it in forward, or detach() it"
                    ) from error
        raise GraphError(f"the module cannot be copied: {text}; pass one that can be") from error


def _single(value: Tensor) -> Tensor:
    """A tensor in single precision; ``nn.Module.to`` would cut off imaginary parts."""
    if value.is_complex():
        return value.to("cpu", torch.complex64)
    return value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype)


def refuse_sparse(module: nn.Module) -> None:
    """Refuses a module whose parameters are not its own, or are not there yet.

    Raises:
        GraphError: It is parametrised, or sparse already, or is no plain module.
    """
    for path, part in module.named_modules():
        place = f"'{path}'" if path else "the model"
        if isinstance(part, (SparseLayer, TracedNetwork)):
            raise GraphError(f"{place} is sparse already; pass a plain module")
        if isinstance(part, torch.jit.ScriptModule):
            raise GraphError(f"{place} is TorchScript; pass the module that it was made of")
        if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise GraphError(f"{place} is a {type(part).__name__}; pass its attribute 'module'")
        if "_orig_mod" in part._modules:
            raise GraphError(f"{place} is compiled; pass its attribute '_orig_mod'")
        if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():  # type: ignore[misc]
            raise GraphError(
                f"{place} is lazy and has no parameters yet; run the model once on an example"
            )
        if parametrize.is_parametrized(part):
            name = next(iter(part.parametrizations))
            raise GraphError(
                f"{place} is parametrised; take that off first: "
                f"torch.nn.utils.parametrize.remove_parametrizations({path or 'model'}, '{name}')"
            )
        for hook in part._forward_pre_hooks.values():
            for kind, remove in _COMPUTE_WEIGHTS.items():
                if isinstance(hook, kind):
                    raise GraphError(
                        f"the weight of {place} is computed ({kind.__name__}); take that off "
                        f"first: torch.nn.utils.{remove}"
                    )


_COMPUTE_WEIGHTS: dict[type, str] = {
    WeightNorm: "remove_weight_norm(module)",
    SpectralNorm: "remove_spectral_norm(module)",
    prune.BasePruningMethod: "prune.remove(module, 'weight')",
}
