"""A compacted module as an ONNX model, written by ``torch.onnx``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nispa.errors import ConfigError, needs

OPSET = 18
IR_VERSION = 8
"""What every ONNX Runtime since 1.14 reads."""


def onnx_bytes(module: nn.Sequential, metadata: dict[str, str], version: str) -> bytes:
    """The ONNX model of a compacted module: ``images`` in, ``logits`` out, any batch.

    Args:
        module: What :func:`nispa.deploy.compact.compact` returned.
        metadata: Properties of the model.
        version: Of nispa.

    Raises:
        ConfigError: ONNX has no equal of an operator.
        MissingPackageError: The packages ``onnx`` and ``onnxscript`` are not installed.
    """
    with needs("onnx", "an ONNX file"):
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    shape: Any = module.input_shape
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (torch.zeros(2, *shape),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"the network cannot be written to an ONNX file ({_cause(error)}); write a .pt2 "
            "file instead"
        ) from error
    model = program.model_proto
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (graph, *graph.node, *values):
        part.ClearField("metadata_props")  # names files of the machine it was made on
        part.ClearField("doc_string")
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "nispa", version
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def onnx_runner(content: bytes, threads: int = 1) -> Callable[[Any], Any]:
    """A function from images to logits, both NumPy arrays, that runs a model in ONNX Runtime.

    Raises:
        MissingPackageError: The package ``onnxruntime`` is not installed.
    """
    with needs("onnx", "checking an ONNX file"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself, such as of packages that it could use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The first line of the error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
