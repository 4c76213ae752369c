"""A compacted module as an ONNX model, written with the ``onnx`` package alone.

Every operator is one that all versions of ONNX Runtime of the last years know: Conv, Gemm, Relu,
MaxPool, Flatten and Concat, in opset 17; with rounded weights also DequantizeLinear, and for traced
modules those of ``onnx_operators.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from nispa.deploy.compact import parts_of
from nispa.deploy.onnx_graph import write_graph
from nispa.deploy.onnx_model import Model
from nispa.errors import needs

OPSET = 17
IR_VERSION = 8


def onnx_bytes(module: nn.Sequential, metadata: dict[str, str], version: str) -> bytes:
    """The ONNX model of a compacted module: ``images`` in, ``logits`` out, any batch.

    Args:
        module: What :func:`nispa.deploy.compact.compact` returned.
        metadata: Properties of the model.
        version: Of nispa.

    Raises:
        MissingPackageError: The package ``onnx`` is not installed.
    """
    with needs("onnx", "an ONNX file"):
        import onnx
        from onnx import TensorProto, helper

    written = Model()
    shape: Any = module.input_shape
    ends = [
        _chain(written, part, f"part{number}", shape)
        for number, part in enumerate(parts_of(module))
    ]
    if len(ends) == 1:
        last = next(node for node in written.nodes if ends[0] in node.output)
        last.output[0] = "logits"
    else:
        written.nodes.append(helper.make_node("Concat", ends, ["logits"], axis=1))
    labels: Any = module.labels
    graph = helper.make_graph(
        written.nodes,
        "nispa",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        written.tensors,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nispa",
        producer_version=version,
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


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


def _chain(written: Model, part: nn.Sequential, prefix: str, shape: tuple[int, ...]) -> str:
    """Adds a chain of layers; returns the name of what it ends in."""
    name = "images"
    for place, layer in enumerate(part):
        path = f"{prefix}.{place}"
        if isinstance(layer, fx.GraphModule):
            name = write_graph(written, layer, name, path, shape)
        else:  # what a linear layer reads was flattened before
            name = written.layer(layer, name, path, 2)
    return name
