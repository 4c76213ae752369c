"""From a module and an example to its units.

The module runs once on the example, then ``torch.export`` writes down its operators, without
compiling, and a walk through them finds the units. The module itself is left as it was.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nispa.base.modes import usual_modes
from nispa.errors import GraphError
from nispa.graph.assemble import assemble
from nispa.graph.found import Refused
from nispa.graph.logits import logits_of
from nispa.graph.operators import RULES
from nispa.graph.operators.refusals import unknown
from nispa.graph.units import UnitGraph
from nispa.graph.walk import Walk

SAMPLES = 2  # of the example: a batch of one is often a case of its own


def find_units(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    classes: int | None = None,
) -> UnitGraph:
    """The units of a module, from a trace of its forward pass in training mode.

    Args:
        model: Any module whose logits are ``(batch, classes)``: what it returns, the first of a
            tuple, or ``logits`` of a dictionary or an output class.
        example: What it is called with: a tensor, a tuple of arguments, or a mapping of keyword
            arguments. Its first tensor tells the number of samples, the first dimension of all
            tensors that have so many; values do not matter.
        classes: How many logits it must have; None takes any number.

    Raises:
        GraphError: Its units cannot be told apart, or it does not run on the example.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(
            f"model={_short(model)} must be a torch.nn.Module, such as nn.Sequential(...)"
        )
    with usual_modes():
        return _found_units(model, example, classes)


def _found_units(model: nn.Module, example: Any, classes: int | None) -> UnitGraph:
    arguments, named = _arguments(example)
    with _training(model):
        _try(model, arguments, named, classes)
        program = exported(model, arguments, named)
    _no_hidden_parameters(model, program)
    parameters, buffers = state_names(model, program)
    walk = Walk(model, RULES, unknown)
    try:
        inputs = walk.run(program.graph, parameters, buffers)
        logits = walk.result(logits_node(program))
        return assemble(walk.ids, walk.found, inputs, logits[0], SAMPLES)
    except Refused as refused:
        raise GraphError(f"this module's units cannot be told apart: {refused}") from None


def state_names(
    model: nn.Module, program: torch.export.ExportedProgram
) -> tuple[dict[str, str], dict[str, str]]:
    """Which inputs of a program's graph are parameters and buffers, and their first paths.

    Constants of the code count as buffers; their paths are keys of ``program.constants``.
    """
    signature = program.graph_signature
    first_name = _first_names(model)
    parameters = {name: first_name[path] for name, path in signature.inputs_to_parameters.items()}
    buffers = {
        **{name: first_name.get(path, path) for name, path in signature.inputs_to_buffers.items()},
        **signature.inputs_to_lifted_tensor_constants,
    }
    return parameters, buffers


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, with two samples each."""
    if isinstance(example, Tensor):
        example = (example,)
    values = example.values() if isinstance(example, Mapping) else example
    tensors = [each for each in values or () if isinstance(each, Tensor) and each.dim()]
    if not isinstance(example, (tuple, list, Mapping)) or not tensors:
        raise GraphError(
            f"example={_short(example)} must be a tensor, a tuple of arguments or a mapping of "
            "keyword arguments, such as torch.zeros(2, 3, 32, 32)"
        )
    batch = len(tensors[0])
    if batch == 0:
        raise GraphError("the example must have at least one sample, in its first dimension")

    def two(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or len(value) != batch:
            return value
        return torch.cat([value[:SAMPLES]] * SAMPLES)[:SAMPLES].detach()

    if isinstance(example, Mapping):
        return (), {str(name): two(value) for name, value in example.items()}
    return tuple(map(two, example)), {}


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode, quietly; modes of all modules and random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    quiet = logging.root.manager.disable
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")
        logging.disable()
        model.train()
        try:
            yield
        finally:
            logging.disable(quiet)
            for module, mode in modes:
                module.training = mode


def _try(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], classes: int | None
) -> None:
    """Runs the module once, on copies of its buffers, and looks at the logits."""
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            result = torch.func.functional_call(model, state, arguments, named)
    except Exception as error:
        shapes = ", ".join(
            str(tuple(each.shape))
            for each in (*arguments, *named.values())
            if torch.is_tensor(each)
        )
        raise GraphError(
            f"the module does not run on an example of shape {shapes}: {_short(error)}"
            f"{_line(error)}; pass an example that it takes, samples first"
        ) from error
    logits = logits_of(result)
    if not isinstance(logits, Tensor):
        raise GraphError(
            f"the module returns {_short(result)}; let it return logits, a tuple that begins with "
            "them, or a dictionary with 'logits'"
        )
    if logits.dim() != 2 or len(logits) != SAMPLES:
        raise GraphError(
            f"the logits of {SAMPLES} samples have the shape {tuple(logits.shape)}; it must be "
            f"({SAMPLES}, classes)"
        )
    if classes is not None and logits.shape[1] != classes:
        raise GraphError(
            f"the module has {logits.shape[1]} logits, not classes={classes}; pass "
            f"classes={logits.shape[1]}, or give it another last layer"
        )


def exported(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> torch.export.ExportedProgram:
    """The operators of a module in the mode that it is in.

    Raises:
        GraphError: They cannot be written down.
    """
    said = io.StringIO()  # PyTorch prints whole graphs where it fails
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return torch.export.export(model, arguments, named, strict=False)
    except Exception as error:  # whatever the module's own code raises
        why = f"{_short(error)}"
        if "DataDependent" in type(error).__name__:
            why = "it branches on values of tensors, or shapes depend on them"
        raise GraphError(
            f"the module cannot be traced by torch.export: {why}{_line(error)}; compute with "
            "tensors alone (torch.where in place of if), in plain PyTorch"
        ) from error


def _no_hidden_parameters(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Refuses what is learned but looks constant in the trace, since it is not reached by name."""
    memory = {value.untyped_storage().data_ptr(): name for name, value in model.named_parameters()}
    for constant in program.constants.values():
        if isinstance(constant, Tensor):
            name = memory.get(constant.untyped_storage().data_ptr())
            if name is not None and constant.numel():
                raise GraphError(
                    f"the forward pass reaches the parameter '{name}' by another way than its "
                    "name, such as a list or a closure; read it as an attribute of its module"
                )


def logits_node(program: torch.export.ExportedProgram) -> fx.Node:
    """The node of the logits among those that the graph returns.

    A module whose logits depend on no input is refused.
    """
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    kinds = program.graph_signature.output_specs
    mine = [
        node
        for node, spec in zip(results, kinds, strict=True)
        if spec.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT
    ]
    node = logits_of(pytree.tree_unflatten(mine, program.call_spec.out_spec))
    if not isinstance(node, fx.Node):
        raise Refused("the logits are constants in the trace; compute them from the input")
    return node


def _first_names(model: nn.Module) -> dict[str, str]:
    """The first path of each parameter and buffer by any of its paths."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    everything = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in everything:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _short(value: Any) -> str:
    """A value or an error in one short line."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _line(error: BaseException) -> str:
    """Where in the user's code an error came up, if anywhere."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*inside, "<"))
        and frame.name not in ("inner", "__exit__", "__enter__")
    ]
    if not frames:
        return ""
    last = frames[-1]
    return (
        f" ({Path(last.filename).name}, line {last.lineno}: {' '.join((last.line or '').split())})"
    )
