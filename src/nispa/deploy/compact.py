"""``nispa.compact``: a plain PyTorch module of what predicts some tasks of a learner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

import torch
from torch import fx, nn

from nispa.base.arguments import whole_number
from nispa.base.modes import usual_modes
from nispa.data.dataset import BYTE_SCALE
from nispa.data.standardise import Inputs
from nispa.data.tasks import TaskInfo
from nispa.deploy.condense import condense
from nispa.deploy.plain import plain
from nispa.errors import ConfigError, NotLearnedError
from nispa.methods.base import Method
from nispa.network.sparse_network import SparseNetwork
from nispa.network.traced import TracedNetwork


class Learned(Protocol):
    """What is needed of a :class:`nispa.learner.Learner`.

    Attributes:
        method: Between two tasks.
        labels: The user's name of each class, task by task.
    """

    method: Method
    labels: list[list[Any]]
    _inputs: Inputs


@dataclass
class Branch:
    """Tasks that one network predicts.

    Attributes:
        network: The network.
        tasks: The tasks, in order.
    """

    network: SparseNetwork
    tasks: list[TaskInfo]

    @property
    def classes(self) -> list[int]:
        """Outputs of the network that a prediction may choose, in rising order."""
        return sorted({label for task in self.tasks for label in task.classes})


def compact(
    learner: Learned, tasks: SupportsIndex | Iterable[SupportsIndex] | None = None
) -> nn.Sequential:
    """A plain PyTorch module that computes the logits of some tasks, and no others.

    Dead connections, units that no image changes and units that no chosen output reads are gone;
    what is left are dense layers of ``torch.nn``, for a module that was traced in a graph of its
    own operators. An operator that cannot be cut keeps its units. The logits equal the learner's
    within 1e-5, or that share of the largest. The module is a copy: the learner may go on learning.

    It takes ``(batch, channels, height, width)`` float32, scaled as the learner scales them, and
    has these attributes:

    - ``input_shape``: channels, height and width.
    - ``scale``: the factor of a pixel by its type: 1/255 for ``"uint8"``, 1 for ``"float32"``.
    - ``labels``: the label of each logit.
    - ``tasks``: for each task a dictionary with its number (``task``), the columns of its logits
      (``outputs``) and their ``labels``; where the learner evens out its inputs also the ``mean``
      to subtract from each channel or feature, once it is scaled, and the ``std`` to divide by.
    - ``needs_task``: whether logits of different tasks cannot be compared, so that a prediction
      must choose among the columns of one.

    Args:
        learner: A :class:`nispa.learner.Learner`.
        tasks: A task, or some of them, counted from 0; None for all.

    Raises:
        NotLearnedError: A task has not been learned.
        ConfigError: The method predicts from more than its network's outputs, or the network
            cannot be written down for any number of images.
    """
    method = learner.method
    with usual_modes():
        chosen = _chosen(method, tasks)
        if type(method).scores is not Method.scores:
            raise ConfigError(
                f"method '{method.name}' predicts from more than the outputs of its network, so it "
                "cannot be compacted"
            )
        branches = branches_of(method, chosen)
        module = _joined(_parts(branches))
        module.requires_grad_(False).eval()
        _describe(module, learner, branches)
        return module


def branches_of(method: Method, tasks: Sequence[TaskInfo]) -> list[Branch]:
    """The networks that predict some tasks, each with its tasks."""
    found: list[Branch] = []
    for task in tasks:
        network = method.network_for(task)
        if found and found[-1].network is network:
            found[-1].tasks.append(task)
        else:
            found.append(Branch(network, [task]))
    return found


def _parts(branches: Sequence[Branch]) -> list[nn.Sequential]:
    """Plain modules, one after another, that compute the outputs of each branch."""
    traced = [
        (branch.network, branch.classes)
        for branch in branches
        if isinstance(branch.network, TracedNetwork)
    ]
    if len(traced) == len(branches):
        return [nn.Sequential(made) for made in plain(traced)]
    return [nn.Sequential(*condense(branch.network, branch.classes)) for branch in branches]


def _chosen(
    method: Method, tasks: SupportsIndex | Iterable[SupportsIndex] | None
) -> list[TaskInfo]:
    """The tasks named, each once, in order."""
    learned = method.learned
    if not learned:
        raise NotLearnedError("nothing has been learned yet; call learn first")
    if tasks is None:
        return list(learned)
    numbers: Iterable[Any] = [tasks] if not isinstance(tasks, Iterable) else tasks
    found = set()
    for number in numbers:
        try:
            found.add(whole_number("task", number, 0, len(learned) - 1, ""))
        except ConfigError:
            raise NotLearnedError(
                f"task {number!r} has not been learned; learned are: 0 to {len(learned) - 1}"
            ) from None
    if not found:
        raise ConfigError("tasks names no task; pass a number, several, or None for all")
    return [learned[number] for number in sorted(found)]


def _joined(parts: list[nn.Sequential]) -> nn.Sequential:
    """One module: the only part, or all of them side by side, written down as a graph.

    A graph is a module of PyTorch alone, so that the result needs no class of nispa's.
    """
    if len(parts) == 1:
        return parts[0]
    root, graph = nn.Module(), fx.Graph()
    images = graph.placeholder("images")
    logits = []
    for number, part in enumerate(parts):
        root.add_module(f"part{number}", part)
        logits.append(graph.call_module(f"part{number}", (images,)))
    graph.output(graph.call_function(torch.cat, (logits, 1)))
    return nn.Sequential(fx.GraphModule(root, graph))


def _describe(module: nn.Sequential, learner: Learned, branches: list[Branch]) -> None:
    """Sets the attributes that tell what goes in and what comes out."""
    labels: list[Any] = []
    tasks: list[dict[str, Any]] = []
    inputs = learner._inputs
    of_bytes = inputs.forms[0].scale if inputs else 1.0
    for branch in branches:
        places = {label: len(labels) + place for place, label in enumerate(branch.classes)}
        named: dict[int, Any] = {}
        for task in branch.tasks:
            names = learner.labels[task.index]
            named |= dict(zip(task.classes, names, strict=True))
            outputs = [places[label] for label in task.classes]
            form = inputs.forms[task.index] if inputs else None
            known = {"task": task.index, "outputs": outputs, "labels": list(names)}
            if form is not None and form.mean is not None and form.std is not None:
                known |= {"mean": list(form.mean), "std": list(form.std)}
            tasks.append(known)
        labels += [named[label] for label in branch.classes]
    about: dict[str, Any] = {
        "input_shape": learner.method.problem.input_shape,
        "scale": {"uint8": BYTE_SCALE if of_bytes == 1.0 else of_bytes, "float32": 1.0},
        "labels": labels,
        "tasks": tasks,
        "needs_task": len(branches) > 1,
    }
    for name, value in about.items():
        setattr(module, name, value)
