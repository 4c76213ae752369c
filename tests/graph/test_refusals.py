"""What cannot be told apart into units is refused by name, with a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nispa.errors import GraphError, InputError
from nispa.graph.trace import find_units


class Between(nn.Module):
    """A Linear layer ``a``, anything, and a head."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(width, 3)
        self.square = nn.Parameter(torch.ones(8, 8))
        self.register_buffer("seen", torch.zeros(8))
        self.norm = nn.LayerNorm(8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.between(self, self.a(x).relu()))
        return logits


def grows(model: Any, y: Tensor) -> Tensor:
    model.seen.add_(y.mean(0))
    return y


def grows_in_part(model: Any, y: Tensor) -> Tensor:
    model.seen[2:].mul_(0.9).add_(y.mean(0)[2:])
    result: Tensor = y * model.seen
    return result


def clips(model: Any, y: Tensor) -> Tensor:
    model.square.data.clamp_(0, 1)
    return F.linear(y, model.square)


def without_gradient(model: Any, y: Tensor) -> Tensor:
    with torch.no_grad():
        z = y * 2
    return y + z


BETWEEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "softmax": (lambda m, y: y.softmax(-1), "softmax in the model's own forward .* units of 'a'"),
    "mean": (lambda m, y: y - y.mean(-1, keepdim=True), "mean .* over units of 'a'.*nn.LayerNorm"),
    "sum": (lambda m, y: y / y.sum(1, keepdim=True), "sum .* over units of 'a'"),
    "length": (lambda m, y: F.normalize(y, dim=1), "over units of 'a'"),
    "running sum": (lambda m, y: y.cumsum(1), "cumsum .* over units of 'a'"),
    "pooling": (lambda m, y: F.avg_pool1d(y[:, None], 3, 1, 1)[:, 0], "pools units of 'a'"),
    "argmax": (lambda m, y: y * y.argmax(1, keepdim=True), "argmax .* picks among elements"),
    "largest": (lambda m, y: y.topk(8, 1).values, "topk .* picks among elements"),
    "drawn from constants": (lambda m, y: y * torch.poisson(torch.ones(8)), "poisson .* is no"),
    "unknown": (lambda m, y: torch.special.i0(y), "special_i0 .* is no operator whose units"),
    "a matrix in front": (lambda m, y: (m.square @ y.T).T, "matmul .* 'square'; use nn.Linear"),
    "a computed weight": (
        lambda m, y: F.linear(y, m.square * 2),
        "weight of linear .* is computed",
    ),
    "a buffer": (grows, "add in .* changes 'seen' in every forward pass"),
    "a part of a buffer": (grows_in_part, "changes 'seen' in every forward pass"),
    "a parameter behind its back": (clips, "cannot be traced|changes 'square' in every"),
    "no gradient": (without_gradient, "has a block .* not looked into"),
    "a fixed mix": (lambda m, y: y @ torch.ones(8, 8), "matmul .* sums with fixed weights over"),
    "gram": (
        lambda m, y: torch.bmm(y[:, None], y[:, :, None])[:, 0] * y,
        "all 8 rows of 'a.weight' .* bmm in .* several heads",
    ),
    "a function for a norm": (
        lambda m, y: F.layer_norm(y, (8,), m.norm.weight, m.norm.bias),
        "layer_norm .* called as a function; .* nn.LayerNorm",
    ),
    "a value and a weight": (
        lambda m, y: F.linear(y, m.square) + m.square[0],
        "'square' is the weight of connections in one place and a value per unit .*tied weights",
    ),
    "writing elsewhere": (lambda m, y: torch.add(y, 1, out=torch.empty_like(y)), "writes into out"),
    "a number": (lambda m, y: y * y[0, 0].item(), "item in .*|cannot be traced"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_an_operator_that_mixes_units_is_refused(name: str) -> None:
    between, wrong = BETWEEN[name]
    with pytest.raises(GraphError, match=wrong):
        find_units(Between(between), torch.zeros(2, 6))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.core = kind(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.core(x)[0][:, -1])
        return logits


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError, match=r"'core' is recurrent: .* use|nn.Conv1d or attention"):
        find_units(Recurrent(kind), torch.zeros(2, 7, 4))


class Mixer(nn.Module):
    """Linear layers over tokens: each of them reads every channel in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.token = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.token(self.norm(x).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_token_mixing_is_refused() -> None:
    wrong = (
        "all 8 rows of 'patches.weight' .* linear in 'token.0'.* depthwise convolution over tokens"
    )
    with pytest.raises(GraphError, match=wrong):
        find_units(Mixer(), torch.zeros(2, 3, 8, 8))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.mean() > 0:
            y = y * 2
        logits: Tensor = self.head(y)
        return logits


def test_a_branch_on_data_is_refused_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = r"branches on values .*test_refusals.py, line \d+: if y.mean\(\) > 0:.*torch.where"
    with pytest.raises(GraphError, match=wrong):
        find_units(Branches(), torch.zeros(2, 6))
    assert capsys.readouterr() == ("", "")  # PyTorch's graphs are no help


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.mark.parametrize(
    ("example", "wrong"),
    [
        (torch.zeros(2, 1, 8, 8), r"does not run on an example of shape \(2, 1, 8, 8\): RuntimeE"),
        (torch.zeros(2, 3, 9, 9), r"does not run on an example of shape \(2, 3, 9, 9\)"),
        (torch.zeros(0, 3, 8, 8), "at least one sample"),
        ("images", "example='images' must be a tensor"),
        (None, "example=None must be a tensor"),
        ({"picture": torch.zeros(2, 3, 8, 8)}, "does not run on an example .* 'picture'"),
    ],
)
def test_an_example_that_does_not_fit(example: Any, wrong: str) -> None:
    with pytest.raises(GraphError, match=wrong):
        find_units(net(), example)


def test_another_number_of_classes() -> None:
    with pytest.raises(GraphError, match="5 logits, not classes=10; pass classes=5"):
        find_units(net(), torch.zeros(2, 3, 8, 8), 10)
    assert find_units(net(), torch.zeros(1, 3, 8, 8), 5).output.size == 5


class Ends(nn.Module):
    def __init__(self, end: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.head, self.last = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 3)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.a(x).relu())


@pytest.mark.parametrize(
    ("end", "wrong"),
    [
        (lambda m, y: {"a": y, "b": m.head(y)}, r"returns \{'a': .*; let it return logits"),
        (lambda m, y: m.head(y)[0], r"have the shape \(3,\); it must be \(2, classes\)"),
        (lambda m, y: m.head(y)[:, :, None], r"have the shape \(2, 3, 1\)"),
        (lambda m, y: m.head(y).log_softmax(1), "log_softmax .* return them as they are"),
        (lambda m, y: m.last(m.head(y)) + m.head(y), "reads the logits"),
        (lambda m, y: m.head(y)[:, [0, 0, 1]], "several logits are of one unit"),
        (lambda m, y: m.head(y)[:, :1].expand(-1, 3), "several logits are of one unit"),
        (lambda m, y: y[:, :3], "'a' computes logits and other units"),
        (lambda m, y: torch.zeros(2, 3), "depends on no weight|constants"),
    ],
)
def test_logits_that_are_none(end: Callable[[Any, Tensor], Any], wrong: str) -> None:
    with pytest.raises(GraphError, match=wrong):
        find_units(Ends(end), torch.zeros(2, 6))


def test_what_the_logits_do_not_need_is_not_refused() -> None:
    graph = find_units(Ends(lambda m, y: (m.head(y), y.softmax(1).argmax(1))), torch.zeros(2, 6))
    assert [group.name for group in graph.groups] == ["input", "a", "output"]


def test_no_module_at_all() -> None:
    with pytest.raises(GraphError, match="must be a torch"):
        find_units("resnet18", torch.zeros(2, 3))  # type: ignore[arg-type]


def test_a_batch_norm_without_statistics() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)
    )
    with pytest.raises(GraphError, match=r"no running statistics.*track_running_stats=True"):
        find_units(model, torch.zeros(2, 4))


class Hidden(nn.Module):
    """Reaches a parameter by a list that the trace does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.scales = [self.scale]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.a(x) * self.scales[0])
        return logits


def test_a_parameter_that_looks_constant_is_refused() -> None:
    with pytest.raises(GraphError, match="'scale' by another way"):
        find_units(Hidden(), torch.zeros(2, 6))


class Peeks(nn.Module):
    """Reads statistics of a batch norm as if they were constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.head = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) - self.bn.running_mean
        logits: Tensor = self.head(self.bn(y))
        return logits


def test_reading_what_batch_norm_changes_is_refused() -> None:
    with pytest.raises(GraphError, match=r"reads 'bn.running_mean', which batch norm changes"):
        find_units(Peeks(), torch.zeros(2, 6))


def test_an_error_is_one_of_bad_input() -> None:
    assert issubclass(GraphError, InputError)


class Views(nn.Module):
    """Writes a constant's part by way of a copy that may be a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(len(x), 2, 2)
        flat = room.reshape(len(x), 4)
        flat.copy_(self.a(x))
        logits: Tensor = self.head(room.flatten(1))
        return logits


def test_writing_into_what_may_be_a_copy_is_refused() -> None:
    with pytest.raises(GraphError, match="may or may not share its memory"):
        find_units(Views(), torch.zeros(2, 6))
