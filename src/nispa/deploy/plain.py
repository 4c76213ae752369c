"""A traced network as a plain graph of PyTorch's own modules, norms folded into convolutions.

Units stay: which of them a sum or a view would take along is the module's business. What is gone
are the outputs that no chosen task has, batch norms behind a convolution, and nispa.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nispa.base.seeding import stream
from nispa.errors import ConfigError
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.traced import TracedNetwork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


@torch.no_grad()
def plain(network: TracedNetwork, outputs: Sequence[int]) -> fx.GraphModule:
    """Some logits of a network, as a graph that takes ``(batch, *shape)`` float32.

    Args:
        network: The network; it is not changed.
        outputs: The logits to compute, in the order in which they are to come.

    Raises:
        ConfigError: Its module cannot be written down as a graph of PyTorch's own modules.
    """
    images = torch.rand(8, *network.input_shape, generator=stream(0, "export"))
    source = copy.deepcopy(network).cpu().eval()
    source.precision = "float32"
    wanted = source(images)[:, list(outputs)]
    body = _with_values(source, images)
    try:
        made = fx.symbolic_trace(body)
        _fold(made)
        _cut(made, list(outputs))
        found = made(images)
    except Exception as error:  # noqa: BLE001 - what a module does with proxies is its own
        raise ConfigError(
            f"a network of {type(body).__name__} cannot be written down as a graph of PyTorch's "
            f"modules, so it cannot be compacted ({type(error).__name__})"
        ) from None
    size = max(1.0, float(wanted.abs().max()))
    if not float((found - wanted).abs().max()) <= 1e-4 * size:  # a branch that the trace left out
        raise ConfigError(
            f"a network of {type(body).__name__} computes something else as a graph of PyTorch's "
            "modules, so it cannot be compacted"
        )
    return made


def _with_values(network: TracedNetwork, images: Tensor) -> nn.Module:
    """The network's module with full weights as its parameters, and PyTorch's norms."""
    shapes: dict[str, int] = {}
    hooks = []
    for path, module in network.body.named_modules():
        if isinstance(module, GenerationNorm):
            raise ConfigError(
                "a network with a norm over units cannot be compacted: each unit has statistics of "
                "its own, which no norm of PyTorch's has"
            )
        if isinstance(module, UnitBatchNorm):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, given, path=path: shapes.__setitem__(path, given[0].dim())
                )
            )
    network(images)
    for hook in hooks:
        hook.remove()
    paths = {id(module): path for path, module in network.body.named_modules()}
    made = copy.deepcopy(network.body)
    for module, name, _, make in network._slots:
        owner = made.get_submodule(paths[id(module)])
        setattr(owner, name, nn.Parameter(make().detach().clone(), requires_grad=False))
    for path, dims in shapes.items():
        parent, _, name = path.rpartition(".")
        setattr(made.get_submodule(parent), name, _norm(made.get_submodule(path), dims))
    for each in made.modules():
        if isinstance(each, (nn.Linear, nn.Conv1d, nn.Conv2d)) and each.bias is None:
            zeros = torch.zeros(each.weight.shape[0])
            each.bias = nn.Parameter(zeros, requires_grad=False)
    return made.eval()


def _norm(norm: nn.Module, dims: int) -> nn.Module:
    assert isinstance(norm, UnitBatchNorm)
    made = NORMS[dims](len(norm.running_mean), norm.eps, affine=True)
    values = {"running_mean": norm.running_mean, "running_var": norm.running_var}
    if norm.weight is not None:
        values["weight"] = norm.weight
    if norm.bias is not None:
        values["bias"] = norm.bias
    made.load_state_dict(values, strict=False)
    return made.eval()


def _fold(made: fx.GraphModule) -> None:
    """Folds each batch norm into the convolution before it, if nothing else reads that one."""
    parts = dict(made.named_modules())
    calls = Counter(node.target for node in made.graph.nodes)
    for node in list(made.graph.nodes):
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node):
            continue
        norm, layer = parts[node.target], parts.get(str(before.target))
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            continue
        once = calls[node.target] == calls[before.target] == len(before.users) == 1
        if isinstance(layer, CONVOLUTIONS) and once:
            parent, _, name = str(before.target).rpartition(".")
            setattr(made.get_submodule(parent), name, fuse_conv_bn_eval(layer, norm))
            node.replace_all_uses_with(before)
            made.graph.erase_node(node)
    made.delete_all_unused_submodules()
    made.recompile()


def _cut(made: fx.GraphModule, outputs: list[int]) -> None:
    """Leaves of the last layer the rows of some outputs."""
    (end,) = (node for node in made.graph.nodes if node.op == "output")
    last = end.args[0]
    assert isinstance(last, fx.Node), "logits must be one tensor"
    head = made.get_submodule(str(last.target)) if last.op == "call_module" else None
    if type(head) is nn.Linear:
        head.weight = nn.Parameter(head.weight[outputs].clone(), requires_grad=False)
        head.bias = nn.Parameter(head.bias[outputs].clone(), requires_grad=False)
        head.out_features = len(outputs)
        return
    made.register_buffer("chosen_outputs", torch.tensor(outputs))
    with made.graph.inserting_before(end):
        chosen = made.graph.get_attr("chosen_outputs")
        logits = made.graph.call_function(torch.index_select, (last, 1, chosen))
    end.args = (logits,)
    made.recompile()
