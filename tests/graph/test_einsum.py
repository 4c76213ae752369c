"""``einsum`` with a matrix of connections is a linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nispa import sparsify
from nispa.errors import GraphError
from nispa.graph.trace import exported

IMAGES = torch.randn(3, 1, 6, 6)


class Mixed(nn.Module):
    """A convolution, and a sum over its channels."""

    def __init__(self, equation: str, shape: tuple[int, ...], *, turned: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(shape) / 3)
        self.equation, self.turned = equation, turned
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x, matrix = self.conv(x).relu(), self.matrix.t() if self.turned else self.matrix
        first = self.equation.startswith("oc") or self.equation.startswith("co")
        y = torch.einsum(self.equation, *((matrix, x) if first else (x, matrix))).relu()
        logits: Tensor = self.head(y.flatten(2).mean(2) if y.dim() > 2 else y)
        return logits


EQUATIONS = [
    ("bchw,oc->bohw", (5, 8), False),
    ("bchw,co->bohw", (8, 5), False),
    ("oc, bchw -> bohw", (5, 8), False),
    ("bchw,oc->bowh", (5, 8), False),
    ("bchw,co->bo", (8, 5), False),
    ("bchw,oc->boh", (8, 5), True),
    ("bchw,co->bohw", (5, 8), True),
]


@pytest.mark.parametrize(("equation", "shape", "turned"), EQUATIONS)
def test_it_computes_the_same_with_its_rows_as_units(
    equation: str, shape: tuple[int, ...], turned: bool
) -> None:
    model = Mixed(equation, shape, turned=turned).eval()
    program = exported(model, (IMAGES,), {})
    assert not [node for node in program.graph.nodes if "einsum" in str(node.target)]
    torch.testing.assert_close(program.module()(IMAGES), model(IMAGES))

    network = sparsify(model, IMAGES[:2], density=1.0, values="model", classes=4).eval()
    (group,) = [each for each in network.graph.groups if each.name == "matrix"]
    assert (group.size, group.writers, group.readers) == (5, ("matrix",), ("head",))
    torch.testing.assert_close(network(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("bchw,oc->bohc", (5, 8)), ("bchw,gco->bohw", (2, 8, 5)), ("bchw,oc->bohw", (5, 1))],
)
def test_other_sums_with_parameters_are_refused(equation: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(GraphError, match=r"einsum .* 'matrix'; use nn\.Linear"):
        sparsify(Mixed(equation, shape), IMAGES[:2], classes=4)
