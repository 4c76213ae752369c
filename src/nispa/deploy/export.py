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
from collections.abc import Callable, Iterable
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
    """

    path: Path
    size_bytes: int
    images: int
    difference: float


def export(
    learner: Exporting,
    path: str | os.PathLike[str],
    tasks: SupportsIndex | Iterable[SupportsIndex] | None,
    images: Any,
    reach: float | None,
) -> Exported:
    """Writes the network of some tasks to a file; see :meth:`nispa.learner.Learner.export`.

    Args:
        learner: The learner.
        path: A name that ends in ``.onnx`` or ``.pt2``.
        tasks: As for :func:`nispa.deploy.compact.compact`.
        images: What to check the file on, or None for random images.
        reach: The largest value of a random image.

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
        samples = _images(learner.method, images, reach)
        about = json.dumps(_about(learner, module), ensure_ascii=True)
        if where.suffix == ".onnx":
            content = onnx_bytes(module, {ENTRY: about}, nispa.__version__)
            run = onnx_runner(content)
        else:
            content = _program(module, about)
            run = _program_runner(content)
        difference = check(learner.method, module, run, samples)
    write_atomic(where, content)
    return Exported(where, len(content), len(samples), difference)


@torch.no_grad()
def check(method: Method, module: nn.Module, run: Run, images: Tensor) -> float:
    """Holds logits against those of a method, at two sizes of batch.

    Args:
        method: What the module was compacted from.
        module: The compacted module, for its tasks.
        run: From images to logits.
        images: ``(n, channels, height, width)``.

    Returns:
        The largest difference; see :class:`Exported`.

    Raises:
        ExportError: A logit differs by more than 1e-5 of the largest, or so as to change a
            prediction.
    """
    logits = torch.from_numpy(run(images.numpy()).copy())
    one = torch.from_numpy(run(images[:1].numpy()).copy())
    tasks: Any = module.tasks
    worst = 0.0
    for task in tasks:
        info = method.learned[task["task"]]
        scores = _reference(method.network_for(info))(images)[:, list(info.classes)]
        size = max(1.0, float(scores.abs().max()))
        for part, wanted in ((logits, scores), (one, scores[:1])):
            found = part[:, task["outputs"]]
            difference = float((found - wanted).abs().max()) / size
            best = wanted.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
            lost = float((wanted.max(1).values - best).max()) / size
            worst = max(worst, difference)
            # A prediction may differ where the learner itself all but draws between two classes.
            if not (difference <= TOLERANCE and lost <= 2 * TOLERANCE):
                raise ExportError(
                    f"task {task['task']}: a logit of the exported network differs by "
                    f"{difference:.1e} of the largest from the learner's, more than "
                    f"{TOLERANCE:g}; nothing was written"
                )
    return worst


def _reference(network: SparseNetwork) -> SparseNetwork:
    """A copy of a network that computes in float32 on the CPU, as the files do."""
    copied = copy.deepcopy(network).cpu().eval()
    copied.precision = "float32"
    return copied


def _images(method: Method, images: Any, reach: float | None) -> Tensor:
    """Images as the network sees them: those given, or random ones."""
    shape = method.problem.input_shape
    if images is not None:
        samples = read_images(images, shape, channels_first=None)
        return torch.cat([batch for batch, _ in samples.batches(CHECKED)])
    return (reach or 1.0) * torch.rand(CHECKED, *shape, generator=stream(0, "export"))


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
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Array) -> Array:
        logits: Array = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return run
