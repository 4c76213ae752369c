"""Any PyTorch module made sparse, in one call."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nispa.base.arguments import seed_of
from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.errors import ConfigError, GraphError, NispaError
from nispa.network.backbone import enter
from nispa.network.isolation import called, check_isolation
from nispa.network.keeping import drop_into, freeze
from nispa.network.models import OWN, NetworkConfig, draw_first
from nispa.network.operations import counting
from nispa.network.own import Example, OwnModel, Values
from nispa.network.topology import union
from nispa.network.traced import TracedNetwork


def sparsify(
    model: nn.Module,
    example: Example,
    *,
    density: float = 0.1,
    classes: int | None = None,
    values: Values = "draw",
    dense: tuple[str, ...] = (),
    seed: int = 0,
) -> TracedNetwork:
    """A sparse copy of a module, checked: units that are kept do not depend on others.

    Args:
        model: Any module whose units ``find_units`` can tell apart.
        example: What it is called with.
        density: Share of live connections of each layer. Convolutions of the input stay dense.
        classes: How many logits it must have.
        values: First values of connections: drawn anew, or the model's. Biases likewise; all else
            starts as the model has it.
        dense: Names of further layers that stay dense.
        seed: Of all that is drawn.

    Raises:
        GraphError: It cannot be made sparse.
        ConfigError: A setting is out of range.
        IsolationError: Units that are kept depend on others, by a way that the trace did not show.
    """
    config, seed = NetworkConfig(architecture=OWN, density=density), seed_of(seed)
    if not isinstance(dense, (tuple, list, set, frozenset)):
        raise ConfigError(f"dense={dense!r} must be names of layers in a tuple, such as ('fc1',)")
    own = OwnModel(model, example, classes, values)
    with usual_modes():
        network = own.network(own.input_shape)
        wrong = [name for name in dense if name not in network.layers]
        if wrong:
            known = ", ".join(network.layers)
            raise ConfigError(f"dense={wrong[0]!r} is no layer; there are {known}")
        draw_first(network, config, frozenset(dense), seed, own.first_values)
        try_isolation(network, example, seed=seed)
        network.train(model.training)
        return network


def own_model(
    model: object,
    example: Tensor | None,
    shape: tuple[int, ...],
    classes: int,
    values: Values = "draw",
) -> OwnModel | None:
    """A user's module, traced and tried; None where ``model`` is a name or nothing.

    Args:
        model: A module, the name of an architecture, or ``package.module:function``.
        example: What the module is called with; None takes samples of ``shape``.
        shape: Of a sample.
        classes: Logits.
        values: First values of connections.

    Raises:
        GraphError: It cannot be made sparse.
        ConfigError: It is none of these, or arguments contradict each other.
        IsolationError: See :func:`try_isolation`.
    """
    if isinstance(model, nn.Module):
        if example is not None and tuple(example.shape[1:]) != shape:
            raise ConfigError(
                f"example_input of shape {tuple(example.shape)} has samples of another shape than "
                f"input_shape={shape}; leave one of the two out"
            )
        try:
            own = OwnModel(model, torch.zeros(2, *shape), classes, values)
        except GraphError as error:
            if example is None or example.is_floating_point():
                raise
            raise GraphError(f"{error}; {_FLOATS}") from error
        with usual_modes():
            network = own.network(shape)
            draw_first(network, NetworkConfig(architecture=OWN, density=0.5), frozenset(), 0)
            try_isolation(network, torch.zeros(8, *shape))
        return own
    if example is not None or values != "draw":
        raise ConfigError("example_input and values go with a module of your own; leave them out")
    if isinstance(model, str) and ":" in model:
        enter(model)
    elif model is not None and not isinstance(model, str):
        raise ConfigError(
            f"model={type(model).__name__} must be a torch.nn.Module, a network's name such as "
            "'resnet18', or 'package.module:function'"
        )
    return None


def shape_of_example(example: object) -> tuple[int, ...]:
    """The shape of a sample.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(example, Tensor) or example.dim() < 2:
        given = "is missing" if example is None else "must be a tensor of samples"
        raise ConfigError(
            f"input_shape is missing, and example_input {given}; pass one, such as "
            "input_shape=(3, 32, 32)"
        )
    return tuple(example.shape[1:])


def try_isolation(network: TracedNetwork, example: Example, *, seed: int = 0) -> None:
    """Keeps a random half of a copy's units and checks that nothing else reaches them.

    A step of training is taken, too. Values of the example do not matter.

    Raises:
        IsolationError: Something does.
        GraphError: The network does not run, where the module did.
    """
    tried = copy.deepcopy(network)
    start = stream(seed, "trial")
    half = {
        group.name: torch.rand(group.size, generator=start) < 0.5 for group in tried.topology.groups
    }
    kept = union(tried.topology.no_units(), half)
    for group in tried.topology.groups:
        units = kept[group.name]
        if group.role != "input" and len(units) > 1:  # some of each are kept, some are not
            units[0] |= group.role == "output" or not units.any()
            units[-1] &= not units.all()
    drop_into(tried, kept)
    freeze(tried, kept)
    given = _drawn(example, start)
    with torch.random.fork_rng([]), counting(None):
        try:
            check_isolation(tried, kept, given, seed=seed)
            logits = called(tried.train(), given)
        except NispaError:
            raise
        except Exception as error:  # whatever the module's own code raises
            cure = "let forward read parameters and norms as attributes, and no more of them"
            if isinstance(error, IndexError):
                cure = _FLOATS
            raise GraphError(
                f"the module does not run once it is sparse: {_of(error)}; {cure}"
            ) from error
        try:
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), list(tried.parameters()), allow_unused=True)
        except Exception as error:
            raise GraphError(
                f"the module cannot be trained once it is sparse: {_of(error)}; leave out "
                "torch.utils.checkpoint and whatever else runs parts of forward anew for gradients"
            ) from error


_FLOATS = (
    "a learner hands on float32 numbers of any size, so let forward make places in a table of them,"
    " such as x.long().clamp(0, 99)"
)


def _of(error: Exception) -> str:
    """An error of the module's own code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _drawn(example: Example, start: torch.Generator) -> Example:
    """Random numbers in place of those of an example, which may all be zero."""
    if isinstance(example, Mapping):
        return {name: _drawn(value, start) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(_drawn(value, start) for value in example)
    if isinstance(example, Tensor) and example.is_floating_point():
        return torch.randn(example.shape, generator=start)
    return example
