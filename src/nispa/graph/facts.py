"""What operators do, as their names and schemas say."""

from __future__ import annotations

import torch
from torch import fx

from nispa.graph.found import Call

CANNOT = (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError)
"""What an operator, or a rule for it, raises where it cannot be run."""
TRANSPOSES = ("t", "numpy_T", "mT", "transpose", "swapaxes", "swapdims", "permute", "adjoint")
_DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_RANDOM = ("bernoulli", "uniform", "normal", "rand", "randn", "randint", "randperm", "rand_like",
           "randn_like")  # fmt: skip


def draws(call: Call) -> bool:
    """Whether a known operator draws random numbers in training."""
    if call.name in _DROPOUTS:
        return bool(call["p"])
    return call.name in _RANDOM or bool(call["dropout_p"])


def at_random(node: fx.Node) -> bool:
    """Whether any operator, also one without a rule, may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def writes_to(node: fx.Node) -> list[str]:
    """Names of the arguments that an operator changes; to detach one changes no value."""
    if node.target is torch.ops.aten.detach_.default:
        return []
    schema = getattr(node.target, "_schema", None)
    arguments = schema.arguments if schema is not None else ()
    return [each.name for each in arguments if each.alias_info and each.alias_info.is_write]


def within(node: fx.Node) -> list[fx.Node]:
    """The operators in a block, and in blocks of it; none for an operator."""
    found = []
    for each in node.all_input_nodes:
        block = getattr(node.graph.owning_module, str(each.target), None)
        if each.op == "get_attr" and isinstance(block, fx.GraphModule):
            for inner in block.graph.nodes:
                if inner.op == "call_function":
                    found += [inner, *within(inner)]
    return found
