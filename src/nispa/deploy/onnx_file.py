"""A compacted module as an ONNX model, written with the ``onnx`` package alone.

Every operator is one that all versions of ONNX Runtime of the last years know: Conv, Gemm, Relu,
MaxPool, Flatten and Concat, in opset 17; with rounded weights also DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nispa.deploy.compact import parts_of
from nispa.deploy.rounded import Rounded
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

    nodes: list[Any] = []
    tensors: list[Any] = []
    ends = [
        _chain(part, f"part{number}", nodes, tensors)
        for number, part in enumerate(parts_of(module))
    ]
    if len(ends) == 1:
        nodes[-1].output[0] = "logits"
    else:
        nodes.append(helper.make_node("Concat", ends, ["logits"], axis=1))
    shape: Any = module.input_shape
    labels: Any = module.labels
    graph = helper.make_graph(
        nodes,
        "nispa",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        tensors,
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


def _chain(part: nn.Sequential, prefix: str, nodes: list[Any], tensors: list[Any]) -> str:
    """Adds the nodes and tensors of a chain of layers; returns the name of what it ends in."""
    with needs("onnx", "an ONNX file"):
        from onnx import helper, numpy_helper

    name = "images"
    for place, layer in enumerate(part):
        inputs, end = [name], f"{prefix}.{place}"
        for what, value in (*layer.named_parameters(), *layer.named_buffers()):
            inputs.append(f"{end}.{what}")
            tensors.append(numpy_helper.from_array(value.detach().cpu().numpy(), inputs[-1]))
        if isinstance(layer, Rounded):
            weight = f"{end}.weight"
            nodes.append(helper.make_node("DequantizeLinear", inputs[1:3], [weight], axis=0))
            inputs[1:3] = [weight]
        kind, attributes = _operator(layer)
        nodes.append(helper.make_node(kind, inputs, [end], **attributes))
        name = end
    return name


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """The operator of a layer, and its attributes."""
    if isinstance(layer, Rounded):
        return _weighted(layer.values, **layer.window)
    if isinstance(layer, nn.Linear):
        return _weighted(layer.weight)
    if isinstance(layer, nn.Conv2d):
        return _weighted(layer.weight, stride=layer.stride, padding=layer.padding)
    if isinstance(layer, nn.MaxPool2d):
        pads = _pair(layer.padding)
        return "MaxPool", {
            "kernel_shape": _pair(layer.kernel_size),
            "strides": _pair(layer.stride),
            "pads": [*pads, *pads],
            "dilations": _pair(layer.dilation),
            "ceil_mode": int(layer.ceil_mode),
        }
    if isinstance(layer, nn.Flatten):
        return "Flatten", {"axis": 1}
    assert isinstance(layer, nn.ReLU)
    return "Relu", {}


def _weighted(weight: Tensor, stride: Any = (), padding: Any = ()) -> tuple[str, dict[str, Any]]:
    """The operator of a linear layer, or of a convolution."""
    if not stride:
        return "Gemm", {"transB": 1}
    pads = [int(each) for each in padding]
    return "Conv", {
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(stride),
        "pads": [*pads, *pads],
    }


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
