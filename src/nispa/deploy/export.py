"""``Learner.export``: a compacted network as a file, checked against the learner before it is kept.

The file's metadata has one entry, ``nispa``: a JSON text with what goes in, what comes out, the
labels and the tasks. An ONNX model has it among its properties, a PyTorch program (``.pt2``) among
its extra files.
"""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import nispa
from nispa.base.arguments import path_of
from nispa.base.modes import usual_modes
from nispa.base.seeding import stream
from nispa.data.intake import read_images
from nispa.deploy.compact import Learned, compact
from nispa.deploy.onnx_file import onnx_bytes, onnx_runner
from nispa.deploy.rounded import rounded
from nispa.errors import ConfigError, ExportError
from nispa.files import write_atomic
from nispa.methods.base import Method
from nispa.methods.presets import Settings
from nispa.network.sparse_network import SparseNetwork

FORMAT = "nispa-network/1"
ENTRY = "nispa"
TOLERANCE = 1e-5
CHECKED = 64

Array = NDArray[Any]
Run = Callable[[Array], Array]


class Exporting(Learned, Protocol):
    """What is needed of a :class:`nispa.learner.Learner`.

    Attributes:
        settings: Its settings.
    """

    settings: Settings


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        size_bytes: Its size.
        images: How many images it was checked on.
        difference: The largest difference of a logit from the learner's, as a share of the
            largest logit, or of 1 if all are smaller.
        agreement: The share of predictions that are the learner's, over images and tasks.
    """

    path: Path
    size_bytes: int
    images: int
    difference: float
    agreement: float


def export(
    learner: Exporting,
    path: str | os.PathLike[str],
    tasks: SupportsIndex | Iterable[SupportsIndex] | None,
    images: Any,
    reach: float | None,
    int8: bool = False,
) -> Exported:
    """Writes the network of some tasks to a file; see :meth:`nispa.learner.Learner.export`.

    Args:
        learner: The learner.
        path: A name that ends in ``.onnx`` or ``.pt2``.
        tasks: As for :func:`nispa.deploy.compact.compact`.
        images: What to check the file on, or None for random images.
        reach: The largest value of a random image.
        int8: Whether to round weights to 8 bits; see :mod:`nispa.deploy.rounded`.

    Raises:
        ConfigError: The ending is another one, or a package is missing.
        ExportError: The file does not compute what the learner does. It was not written.
        OutputError: It could not be written; an older file of that name is untouched.
    """
    where = path_of(path)
    if where.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{where.name} must end in .onnx or .pt2, the kinds of files there are")
    with usual_modes():
        module = compact(learner, tasks)
        samples = _images(learner, module, images, reach)
        about = json.dumps({**_about(learner, module), "int8": int8}, ensure_ascii=True)
        kept = rounded(module) if int8 else module
        if where.suffix == ".onnx":
            content = onnx_bytes(kept, {ENTRY: about}, nispa.__version__)
            run = onnx_runner(content)
        else:
            content = _program(kept, about)
            run = _program_runner(content)
        wanted = scores_of(learner.method, module, samples)
        held = wanted
        if int8:  # the file must compute what it holds; how good that is, the learner tells
            with torch.no_grad():
                logits = kept(samples)
            held = [logits[:, task["outputs"]] for task in module.tasks]  # type: ignore[union-attr]
        check(module, held, run, samples)
        difference, agreement = compare(module, wanted, run, samples)
    write_atomic(where, content)
    return Exported(where, len(content), len(samples), difference, agreement)


@torch.no_grad()
def scores_of(method: Method, module: nn.Module, images: Tensor) -> list[Tensor]:
    """The logits ``(n, classes)`` of each task of a compacted module, as a method computes them."""
    tasks: Any = module.tasks
    infos = [method.learned[task["task"]] for task in tasks]
    return [_reference(method.network_for(i))(images)[:, list(i.classes)] for i in infos]


def check(module: nn.Module, wanted: Sequence[Tensor], run: Run, images: Tensor) -> None:
    """Holds logits against those wanted, at two sizes of batch.

    Args:
        module: The compacted module, for its tasks.
        wanted: The logits of each task.
        run: From images to logits.
        images: ``(n, channels, height, width)``.

    Raises:
        ExportError: A logit differs by more than 1e-5 of the largest, or so as to change a
            prediction.
    """
    logits = torch.from_numpy(run(images.numpy()).copy())
    one = torch.from_numpy(run(images[:1].numpy()).copy())
    tasks: Any = module.tasks
    for task, scores in zip(tasks, wanted, strict=True):
        size = max(1.0, float(scores.abs().max()))
        for part, right in ((logits, scores), (one, scores[:1])):
            found = part[:, task["outputs"]]
            difference = float((found - right).abs().max()) / size
            best = right.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
            lost = float((right.max(1).values - best).max()) / size
            # A prediction may differ where the learner itself all but draws between two classes.
            if not (difference <= TOLERANCE and lost <= 2 * TOLERANCE):
                raise ExportError(
                    f"task {task['task']}: a logit of the exported network differs by "
                    f"{difference:.1e} of the largest from the learner's, more than "
                    f"{TOLERANCE:g}; nothing was written"
                )


def compare(
    module: nn.Module, wanted: Sequence[Tensor], run: Run, images: Tensor
) -> tuple[float, float]:
    """How far logits are from those wanted, and how often they predict the same.

    Args:
        module: As for :func:`check`.
        wanted: As for :func:`check`.
        run: As for :func:`check`.
        images: As for :func:`check`.

    Returns:
        The difference and the agreement; see :class:`Exported`.
    """
    logits = torch.from_numpy(run(images.numpy()).copy())
    tasks: Any = module.tasks
    worst, same = 0.0, 0
    for task, scores in zip(tasks, wanted, strict=True):
        found = logits[:, task["outputs"]]
        size = max(1.0, float(scores.abs().max()))
        worst = max(worst, float((found - scores).abs().max()) / size)
        same += int((found.argmax(1) == scores.argmax(1)).sum())
    return worst, same / (len(tasks) * len(images))


def _reference(network: SparseNetwork) -> SparseNetwork:
    """A copy of a network that computes in float32 on the CPU, as the files do."""
    copied = copy.deepcopy(network).cpu().eval()
    copied.precision = "float32"
    return copied


def _images(learner: Exporting, module: nn.Module, images: Any, reach: float | None) -> Tensor:
    """Images as the network sees them: those given, or random ones."""
    shape = learner.method.problem.input_shape
    if images is None:
        return (reach or 1.0) * torch.rand(CHECKED, *shape, generator=stream(0, "export"))
    tasks: Any = module.tasks
    given = read_images(images, shape, channels_first=None, first=reach)
    samples = learner._inputs.of(tasks[0]["task"], given)
    return torch.cat([batch for batch, _ in samples.batches(CHECKED)])


def _about(learner: Exporting, module: nn.Module) -> dict[str, Any]:
    """The metadata of a file."""
    return {
        "format": FORMAT,
        "nispa": nispa.__version__,
        "method": learner.settings.method,
        "incremental": learner.settings.config.incremental,
        "input": {
            "name": "images",
            "shape": ["batch", *learner.method.problem.input_shape],
            "type": "float32",
            "scale": module.scale,
        },
        "output": {"name": "logits", "labels": module.labels},
        "tasks": module.tasks,
        "needs_task": module.needs_task,
    }


def _program(module: nn.Module, about: str) -> bytes:
    """The file of ``torch.export``."""
    shape: Any = module.input_shape
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own code
        program = torch.export.export(
            module, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},)
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names files of the machine it was made on
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={ENTRY: about})
    return content.getvalue()


def _program_runner(content: bytes) -> Run:
    """A function that runs a file of ``torch.export``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of older releases, of their own code
        module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Array) -> Array:
        logits: Array = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return run
