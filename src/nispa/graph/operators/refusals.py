"""Operators that are refused by name, with a way out."""

from __future__ import annotations

from typing import NoReturn

from nispa.graph.found import Call, Refused
from nispa.graph.operators.registry import operators
from nispa.graph.walk import Walk


@operators(
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell",
    "rnn_relu_cell",
    does="recurrent layers: a state mixes all units from step to step",
    refused=True,
)  # fmt: skip
def recurrent(walk: Walk, call: Call) -> NoReturn:
    """Refuses recurrent layers."""
    raise Refused(
        f"{call.by} is recurrent: its state mixes all units from step to step; read the series "
        "with nn.Conv1d or attention instead"
    )


@operators(
    "argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "median", "multinomial", "nonzero",
    "unique_consecutive", "one_hot",
    does="picks by size: which element is taken depends on all of them",
    refused=True,
)  # fmt: skip
def picking(walk: Walk, call: Call) -> NoReturn:
    """Refuses what picks among elements."""
    raise Refused(
        f"{call.by} picks among elements, so each result depends on all of them; return the logits "
        "and pick outside of the module, or use pooling"
    )


@operators(
    "wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop",
    does="blocks of torch.no_grad, control flow, and autocast unless it has enabled=False",
    refused=True,
)  # fmt: skip
def wrapped(walk: Walk, call: Call) -> NoReturn:
    """Refuses blocks that the trace does not look into."""
    raise Refused(
        f"{call.where} has a block ({call.name}) that is not looked into; take torch.no_grad, "
        "autocast, checkpoints or control flow out of what the logits depend on"
    )


@operators("item", "_local_scalar_dense", does="numbers taken out of tensors", refused=True)
def item(walk: Walk, call: Call) -> NoReturn:
    """Refuses numbers that depend on data."""
    raise Refused(
        f"{call.by} takes a number out of a tensor, which depends on the data; compute with tensors"
    )
