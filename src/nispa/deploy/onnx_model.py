"""An ONNX model while it is written, and the layers of PyTorch in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nispa.deploy.rounded import WINDOW, Rounded
from nispa.errors import ConfigError, needs


class Model:
    """Nodes and tensors of an ONNX model, while it is written.

    Attributes:
        nodes: Of the ``onnx`` package.
        tensors: Likewise.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        with needs("onnx", "an ONNX file"):
            from onnx import helper, numpy_helper
        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._names: set[str] = set()

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        free, number = wanted, 1
        while free in self._names:
            number += 1
            free = f"{wanted}.{number}"
        self._names.add(free)
        return free

    def tensor(self, value: Any, name: str = "constant") -> str:
        """A constant; numbers are float32 unless they come as an array."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        array = array if isinstance(array, np.ndarray) else np.array(array, dtype=np.float32)
        name = self.name(name)
        self.tensors.append(self._numpy.from_array(array.copy(order="C"), name))
        return name

    def whole(self, values: Sequence[int]) -> str:
        """A constant of whole numbers."""
        return self.tensor(np.array(list(values), dtype=np.int64), "numbers")

    def add(
        self, kind: str, *inputs: str, end: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """A node; the name of what it computes, or the names if there are several."""
        ends = [self.name(end or kind.lower()) for _ in range(outputs)]
        self.nodes.append(self._helper.make_node(kind, list(inputs), ends, **attributes))
        return ends[0] if outputs == 1 else ends

    # Layers.

    def layer(self, layer: nn.Module, x: str, path: str, dims: int) -> str:
        """A module of PyTorch's, on a tensor of some dimensions.

        Raises:
            ConfigError: It is not known here.
        """
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, Rounded)):
            return self._weighted(layer, x, path, dims)
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            first = torch.ones(layer.num_features), torch.zeros(layer.num_features)
            given = [part if part is not None else first[place] for place, part in enumerate(parts)]
            names = [self.tensor(part, f"{path}.{place}") for place, part in enumerate(given)]
            return str(self.add("BatchNormalization", x, *names, end=path, epsilon=layer.eps))
        if isinstance(layer, nn.MaxPool2d):
            pads = pair(layer.padding)
            return str(
                self.add(
                    "MaxPool",
                    x,
                    end=path,
                    kernel_shape=pair(layer.kernel_size),
                    strides=pair(layer.stride),
                    pads=[*pads, *pads],
                    dilations=pair(layer.dilation),
                    ceil_mode=int(layer.ceil_mode),
                )
            )
        if isinstance(layer, nn.Flatten):
            return str(self.add("Flatten", x, end=path, axis=1))
        if isinstance(layer, nn.ReLU):
            return str(self.add("Relu", x, end=path))
        raise unknown(f"a layer {type(layer).__name__}")

    def _weighted(self, layer: Any, x: str, path: str, dims: int) -> str:
        whole = not isinstance(layer, Rounded)
        weight: Tensor = layer.weight if whole else layer.values
        product = weight.dim() == 2 and dims != 2
        if whole:
            name = self.tensor(weight.t() if product else weight, f"{path}.weight")
        else:
            parts = (
                self.tensor(layer.values, f"{path}.values"),
                self.tensor(layer.scale, f"{path}.scale"),
            )
            name = self.add("DequantizeLinear", *parts, end=f"{path}.weight", axis=0)
            if product:
                name = self.add("Transpose", name, perm=[1, 0])
        bias = self.tensor(layer.bias, f"{path}.bias")
        if product:
            return str(self.add("Add", self.add("MatMul", x, name), bias, end=path))
        if weight.dim() == 2:
            return str(self.add("Gemm", x, name, bias, end=path, transB=1))
        window = layer.window if not whole else {each: getattr(layer, each) for each in WINDOW}
        padding = window["padding"]
        pads: dict[str, Any] = {"pads": [*padding, *padding]}
        if isinstance(padding, str):
            pads = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[padding]}
        return str(
            self.add(
                "Conv",
                x,
                name,
                bias,
                end=path,
                kernel_shape=list(weight.shape[2:]),
                strides=list(window["stride"]),
                dilations=list(window["dilation"]),
                group=window["groups"],
                **pads,
            )
        )


def unknown(what: str) -> ConfigError:
    """The refusal of something that is not known here."""
    return ConfigError(f"{what} cannot be written to an ONNX file; write a .pt2 file instead")


def shape_of(node: fx.Node) -> Sequence[int]:
    """The shape of a node's result."""
    return tuple(node.meta["tensor_meta"].shape)


def pair(value: int | tuple[int, ...], count: int = 2) -> list[int]:
    """A number for each side."""
    if isinstance(value, int):
        return [value] * count
    return list(value) if len(value) == count else list(value) * count
