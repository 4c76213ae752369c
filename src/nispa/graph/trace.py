"""From a module and an example to its units.

The module runs once on the example, then ``torch.export`` writes down its operators, without
compiling, and a walk through them finds the units. The module itself is left as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import random
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nispa.base.modes import usual_modes
from nispa.errors import GraphError
from nispa.graph.assemble import assemble
from nispa.graph.einsum import write_einsum_as_linear
from nispa.graph.found import Collapsed, Refused
from nispa.graph.logits import logits_of
from nispa.graph.operators import rule_of
from nispa.graph.rewriting import inline_disabled_autocast, write_computed_biases_as_sums
from nispa.graph.units import UnitGraph
from nispa.graph.walk import Walk

SAMPLES = 2  # of the example: a batch of one is often a case of its own
TRIES = 6  # traces of a module that draws by itself


def find_units(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    classes: int | None = None,
    *,
    original: nn.Module | None = None,
) -> UnitGraph:
    """The units of a module, from a trace of its forward pass in training mode.

    Args:
        model: Any module whose logits are ``(batch, classes)``: what it returns, the first of a
            tuple, or ``logits`` of a dictionary or an output class.
        example: What it is called with: a tensor, a tuple of arguments, or a mapping of keyword
            arguments. Its first tensor tells the number of samples, the first dimension of all
            tensors that have so many; values do not matter.
        classes: How many logits it must have; None takes any number.
        original: The module that ``model`` is a copy of, whose tensors it must not reach.

    Raises:
        GraphError: Its units cannot be told apart, or it does not run on the example.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(
            f"model={_short(model)} must be a torch.nn.Module, such as nn.Sequential(...)"
        )
    with usual_modes():
        return _found_units(model, example, classes, original)


def _found_units(
    model: nn.Module, example: Any, classes: int | None, original: nn.Module | None
) -> UnitGraph:
    arguments, named = arguments_of(example)
    with in_mode(model, training=True), seeded(0):
        before = _draws()
        _try(model, arguments, named, classes)
        drew = _draws() != before
        graph = _units(model, exported(model, arguments, named), original)
    for seed in range(1, TRIES if drew else 1):
        with in_mode(model, training=True), seeded(seed):
            again = _units(model, exported(model, arguments, named), original)
        if again != graph:
            raise GraphError(
                "the module takes another way at another draw of Python's or NumPy's random "
                "numbers, which no trace can follow; draw with torch.rand and multiply by the "
                "result, as dropout does, so that every way is always computed"
            )
    return graph


def _units(
    model: nn.Module, program: torch.export.ExportedProgram, original: nn.Module | None
) -> UnitGraph:
    """The units of a module, from its operators."""
    constants = _constants(program)
    _no_hidden_parameters(model, constants, original)
    parameters, buffers = state_names(model, program)
    shared: frozenset[str] = frozenset()
    while True:
        walk = Walk(model, rule_of, program.constants, shared=shared)
        try:
            inputs = walk.run(program.graph, parameters, buffers)
            logits = walk.result(logits_node(program))
            graph = assemble(walk.ids, walk.found, inputs, logits[0], SAMPLES)
            return dataclasses.replace(graph, constants=_digest(constants))
        except Refused as refused:
            more = refused.shared if isinstance(refused, Collapsed) else frozenset()
            if more <= shared:
                raise GraphError(f"this module's units cannot be told apart: {refused}") from None
            shared |= more


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


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, with two samples each."""
    if isinstance(example, Tensor):
        example = (example,)
    values = example.values() if isinstance(example, Mapping) else example
    if not isinstance(example, (tuple, list, Mapping)):
        values = ()
    tensors = [each for each in values if isinstance(each, Tensor) and each.dim()]
    if not tensors:
        raise GraphError(
            f"example={_short(example)} must be a tensor, a tuple of arguments or a mapping of "
            "keyword arguments, such as torch.zeros(2, 3, 32, 32); torch.as_tensor makes one of an "
            "array"
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
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of Python and NumPy, and puts them back afterwards.

    A module that takes its way by them would have other units at each trace.
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _draws() -> tuple[object, ...]:
    """Where the generators of Python and NumPy stand."""
    numpy: Any = np.random.get_state(legacy=False)["state"]
    return random.getstate(), numpy["key"].tobytes(), numpy["pos"]


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation, quietly; modes of all modules and random state are put back.

    A batch norm without a momentum would read how many batches it has seen, as a number; the units
    are the same with one.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [each for each, _ in modes if isinstance(each, nn.modules.batchnorm._NormBase)]
    averaging = [norm for norm in norms if norm.momentum is None]
    quiet = logging.root.manager.disable
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")
        logging.disable()
        model.train(training)
        for norm in averaging:
            norm.momentum = 0.1
        try:
            yield
        finally:
            logging.disable(quiet)
            for norm in averaging:
                norm.momentum = None
            for module, mode in modes:
                module.training = mode


def _try(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], classes: int | None
) -> None:
    """Runs the module once, on copies of its buffers, and looks at the logits."""
    try:
        with torch.no_grad(), _copied_buffers(model):
            result = model(*arguments, **named)
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


@contextlib.contextmanager
def _copied_buffers(model: nn.Module) -> Iterator[None]:
    """Copies of its buffers in their places, which are put back: a pass moves statistics.

    Buffers that the first pass makes, such as a cache of positions, stay: forward counts on them.
    """
    places = [(module, dict(module._buffers)) for module in model.modules()]
    copies: dict[int, Tensor] = {}
    for module, buffers in places:
        for name, buffer in buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for module, buffers in places:
            module._buffers.update({name: b for name, b in buffers.items() if b is not None})


def exported(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> torch.export.ExportedProgram:
    """The operators of a module in the mode that it is in.

    Of an output class that PyTorch does not know only the logits are written down.

    Raises:
        GraphError: They cannot be written down.
    """
    said = io.StringIO()  # PyTorch prints whole graphs where it fails
    known = model.register_forward_hook(_known_result)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            program = torch.export.export(model, arguments, named, strict=False)
    except Exception as error:  # whatever the module's own code raises
        why = f"{_short(error)}"
        if "DataDependent" in type(error).__name__:
            why = "it branches on values of tensors, or shapes depend on them"
        raise GraphError(
            f"the module cannot be traced by torch.export: {why}{_line(error)}; compute with "
            "tensors alone (torch.where in place of if), in plain PyTorch"
        ) from error
    finally:
        known.remove()
    inline_disabled_autocast(program.graph_module)
    write_einsum_as_linear(program)
    write_computed_biases_as_sums(program)
    return program


def _known_result(model: nn.Module, arguments: Any, result: Any) -> Any:
    """The logits alone, in place of a result with objects that a trace cannot return."""
    packages = {type(leaf).__module__.partition(".")[0] for leaf in pytree.tree_leaves(result)}
    return logits_of(result) if packages - {"builtins", "torch"} else None


def _constants(program: torch.export.ExportedProgram) -> list[Tensor]:
    """The tensors that code holds without their being parameters or buffers."""
    names = program.graph_signature.inputs_to_lifted_tensor_constants.values()
    found = [program.constants[name] for name in names]
    return [each for each in found if isinstance(each, Tensor)]


def _digest(constants: Iterable[Tensor]) -> str:
    """A hash of tensors, whatever a trace calls them."""
    each = []
    for constant in constants:
        value = constant.detach().cpu().contiguous()
        code = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
        code.update(value.flatten().view(torch.uint8).numpy().tobytes())
        each.append(code.hexdigest())
    return hashlib.sha256(" ".join(sorted(each)).encode()).hexdigest() if each else ""


def _no_hidden_parameters(
    model: nn.Module, constants: Iterable[Tensor], original: nn.Module | None
) -> None:
    """Refuses what is learned but looks constant in the trace, since it is not reached by name.

    A hook or a closure still reaches the module that a copy was made of.
    """
    learned: list[tuple[str, Tensor]] = list(model.named_parameters())
    if original is not None:
        learned += [*original.named_parameters(), *original.named_buffers()]
    memory = {value.untyped_storage().data_ptr(): name for name, value in learned}
    for constant in constants:
        name = memory.get(constant.untyped_storage().data_ptr())
        if name is not None and constant.numel():
            raise GraphError(
                f"the forward pass reaches '{name}' by another way than its name, such as a list, "
                "a hook or a closure, which no copy of the module has; read it as an attribute of "
                "its module"
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
