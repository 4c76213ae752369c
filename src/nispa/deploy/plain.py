"""A traced network as a plain graph of PyTorch's own modules, of the units that reach some logits.

The module is written down operator by operator (``recorded.py``). What no image changes is found
(``constants.py``), then which units the logits read (``kept.py``); what is kept is written anew
(``cutter.py``, ``rules.py``). An operator that cannot be cut keeps all of its units.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from nispa.base.seeding import stream
from nispa.deploy.constants import constants
from nispa.deploy.cutter import Cutter, Whole
from nispa.deploy.kept import Kept
from nispa.deploy.recorded import Recorded
from nispa.deploy.rules import write
from nispa.errors import ConfigError
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.replacing import become
from nispa.network.traced import TracedNetwork

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WANTED, CLOSE = 1e-5, 1e-4
"""How far logits should be off at most, and how far before the graph must mean something else."""


@torch.no_grad()
def plain(wanted: Sequence[tuple[TracedNetwork, Sequence[int]]]) -> list[fx.GraphModule]:
    """Some logits of networks of one module, as graphs that take ``(batch, *shape)`` float32.

    Args:
        wanted: Each network, and the logits to compute, in the order in which they are to come.

    Raises:
        ConfigError: Their module cannot be written down as a graph of PyTorch's own modules.
    """
    made: list[fx.GraphModule] = []
    recorded: Recorded | None = None
    for network, outputs in wanted:
        source = copy.deepcopy(network).cpu().eval()
        source.precision = "float32"
        body = _with_values(source)
        # What the module keeps while it is evaluated must be there before it is written down.
        body(torch.zeros(1, *source.input_shape))
        if recorded is None:
            recorded = Recorded(body, source.input_shape, source.graph.shared)
        else:
            recorded = recorded.of(body)
        made.append(_compacted(source, recorded, list(outputs)))
    return made


def _compacted(source: TracedNetwork, recorded: Recorded, outputs: list[int]) -> fx.GraphModule:
    """A graph that is checked against its network."""
    norms = {
        norm.module: module for norm, module in source.norms if isinstance(module, GenerationNorm)
    }
    images = torch.rand(8, *source.input_shape, generator=stream(0, "export"))
    found: list[tuple[float, fx.GraphModule]] = []
    # A norm of tiny variance makes rounding large where it is folded; a place that is filled with 0
    # may be divided by.
    for fill, fold in ((True, True), (True, False), (False, False)):
        made = compacted(recorded, norms, outputs, fill=fill, fold=fold)
        off = max(_off(made(some), source(some)[:, outputs]) for some in (images, images[:1]))
        if off <= WANTED:
            return made
        found.append((off, made))
    off, made = min(found, key=lambda each: each[0])
    if off <= CLOSE:
        return made
    raise ConfigError(
        f"a network of {type(recorded.body).__name__} computes something else as a graph of "
        "PyTorch's modules, so it cannot be compacted"
    )


def _off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number or of 1."""
    off = float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    return torch.inf if math.isnan(off) else off


def compacted(
    recorded: Recorded,
    norms: dict[str, GenerationNorm],
    outputs: Sequence[int],
    *,
    fill: bool,
    fold: bool,
) -> fx.GraphModule:
    """The graph of some logits of a module.

    Args:
        recorded: The module's operators.
        norms: How the norms over units at some paths count.
        outputs: The logits.
        fill: See :class:`.Kept`.
        fold: Whether batch norms become part of the layers before them.

    Raises:
        ConfigError: It cannot be written down.
    """
    reads = constants(recorded)
    kept = Kept(recorded, reads, norms, outputs, fill=fill)
    while True:
        try:
            made = Cutter(recorded, kept, reads, norms).written(write, outputs)
            break
        except Whole as whole:
            # All units that the operator moves are kept; if they are already, those that decide how
            # much its operands keep, further back.
            if not any(kept.add(units) for units in _units_before(recorded, whole.node)):
                raise ConfigError(
                    f"a network of {type(recorded.body).__name__} cannot be compacted: {whole} "
                    "cannot be written down for any number of images"
                ) from None
    if fold:
        _fold(made)
    return made.eval()


def _units_before(recorded: Recorded, node: fx.Node) -> Iterator[list[Tensor]]:
    """Units of what an operator reads and computes, then of what comes before, step by step."""
    seen, nodes = {node}, [node]
    while nodes:
        read = [each for each in dict.fromkeys(_inputs(nodes)) if each not in seen]
        found: list[Tensor] = []
        for each in (*nodes, *read):
            _add_units(recorded, recorded.noted(each), found)
        yield found
        seen.update(read)
        nodes = read


def _inputs(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    for node in nodes:
        yield from node.all_input_nodes


def _add_units(recorded: Recorded, known: Any, found: list[Tensor]) -> None:
    if isinstance(known, (list, tuple)):
        for each in known:
            _add_units(recorded, each, found)
    elif isinstance(known, Tensor):
        found.append(recorded.walk.ids.labels(known))


def _with_values(network: TracedNetwork) -> nn.Module:
    """The network's module with full weights as its parameters, and PyTorch's norms."""
    paths = {id(module): path for path, module in network.body.named_modules()}
    made = copy.deepcopy(network.body)
    values: dict[str, nn.Parameter] = {}
    for module, name, path, make in network._slots:
        if path not in values:
            values[path] = nn.Parameter(make().detach().clone(), requires_grad=False)
        setattr(made.get_submodule(paths[id(module)]), name, values[path])
    for module in list(made.modules()):
        if isinstance(module, (UnitBatchNorm, GenerationNorm)):
            become(module, module.plain())
    return made.eval().requires_grad_(False)


def _fold(made: fx.GraphModule) -> None:
    """Folds each batch norm into the layer before it, if nothing else reads that one."""
    parts = dict(made.named_modules())
    calls = Counter(node.target for node in made.graph.nodes)
    for node in list(made.graph.nodes):
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node):
            continue
        norm, layer = parts[node.target], parts.get(str(before.target))
        if not isinstance(norm, BATCH_NORMS) or before.op != "call_module":
            continue
        flat = node.meta["dims"] == 2
        if calls[node.target] != 1 or calls[before.target] != 1 or len(before.users) != 1:
            continue
        parent, _, name = str(before.target).rpartition(".")
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fused: nn.Module = fuse_conv_bn_eval(layer.double(), norm.double())
        elif isinstance(layer, nn.Linear) and flat:
            fused = fuse_linear_bn_eval(layer.double(), norm.double())
        else:
            continue
        setattr(made.get_submodule(parent), name, fused.float())
        node.replace_all_uses_with(before)
        made.graph.erase_node(node)
    made.delete_all_unused_submodules()
    made.recompile()
