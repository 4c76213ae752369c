"""A compacted module as an ONNX model, written with the ``onnx`` package alone.

Every operator is one that all versions of ONNX Runtime of the last years know: Conv, Gemm, Relu,
MaxPool, Flatten and Concat, in opset 17; with rounded weights also DequantizeLinear, and for traced
modules Add, ReduceMean, GlobalAveragePool and Identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from nispa.deploy.compact import parts_of
from nispa.deploy.rounded import WINDOW, Rounded
from nispa.errors import ConfigError, needs

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
    name = "images"
    for place, layer in enumerate(part):
        end = f"{prefix}.{place}"
        if isinstance(layer, fx.GraphModule):
            name = _graph(layer, name, end, nodes, tensors)
        else:
            _add(layer, [name], end, nodes, tensors)
            name = end
    return name


def _graph(
    module: fx.GraphModule, name: str, prefix: str, nodes: list[Any], tensors: list[Any]
) -> str:
    """Adds what a graph computes from ``name``; returns the name of what it ends in."""
    names: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        given = [names[each] for each in node.all_input_nodes]
        names[node] = end = f"{prefix}.{node.name}"
        if node.op == "placeholder":
            names[node] = name
        elif node.op == "output":
            return given[0]
        elif node.op == "call_module":
            _add(module.get_submodule(str(node.target)), given, end, nodes, tensors)
        else:
            _add(_as_layer(node), given, end, nodes, tensors)
    raise AssertionError("a graph has an output")


def _as_layer(node: fx.Node) -> nn.Module | str:
    """What a function or method of a graph is: a layer, or the name of an operator."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    numbers = [each for each in node.args if not isinstance(each, fx.Node)]
    if target == "relu":
        return nn.ReLU()
    if target == "add" and len(node.all_input_nodes) == 2 and not numbers:
        return "Add"
    if target == "flatten" and numbers == [1] and not node.kwargs:
        return nn.Flatten()
    if target == "mean" and numbers in ([(2, 3)], [[2, 3]]) and not node.kwargs:
        return "ReduceMean"
    raise _unknown(f"{target}{tuple(numbers)}")


def _unknown(what: str) -> ConfigError:
    return ConfigError(f"{what} cannot be written to an ONNX file; write a .pt2 file instead")


def _add(
    layer: nn.Module | str, given: list[str], end: str, nodes: list[Any], tensors: list[Any]
) -> None:
    """Adds the node of a layer, and its tensors."""
    with needs("onnx", "an ONNX file"):
        from onnx import helper, numpy_helper

    inputs = list(given)
    if isinstance(layer, nn.Module):
        kind, attributes = _operator(layer)
        for what, value in (*layer.named_parameters(), *layer.named_buffers()):
            inputs.append(f"{end}.{what}")
            tensors.append(numpy_helper.from_array(value.detach().cpu().numpy(), inputs[-1]))
        if isinstance(layer, Rounded):
            weight = f"{end}.weight"
            nodes.append(helper.make_node("DequantizeLinear", inputs[1:3], [weight], axis=0))
            inputs[1:3] = [weight]
    else:
        kind = layer
        attributes = {"axes": [2, 3], "keepdims": 0} if layer == "ReduceMean" else {}
    nodes.append(helper.make_node(kind, inputs, [end], **attributes))


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """The operator of a layer, and its attributes."""
    if isinstance(layer, Rounded):
        return _weighted(layer.values, **layer.window)
    if isinstance(layer, nn.Linear):
        return _weighted(layer.weight)
    if isinstance(layer, nn.Conv2d):
        return _weighted(layer.weight, **{name: getattr(layer, name) for name in WINDOW})
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
    if isinstance(layer, (nn.Identity, nn.Dropout)):
        return "Identity", {}
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return "GlobalAveragePool", {}
    if not isinstance(layer, nn.ReLU):
        raise _unknown(f"a layer {type(layer).__name__}")
    return "Relu", {}


def _weighted(weight: Tensor, **window: Any) -> tuple[str, dict[str, Any]]:
    """The operator of a linear layer, or of a convolution over a window."""
    if not window:
        return "Gemm", {"transB": 1}
    pads = [int(each) for each in _pair(window["padding"])]
    return "Conv", {
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(window["stride"]),
        "pads": [*pads, *pads],
        "dilations": list(window["dilation"]),
        "group": window["groups"],
    }


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
