"""A user's module made sparse: what is live, what an optimiser sees, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nispa.backbones import BACKBONES
from nispa.base.config import build
from nispa.errors import ConfigError, GraphError
from nispa.network.backbone import Backbone
from nispa.network.isolation import check_isolation
from nispa.network.keeping import drop_into, freeze
from nispa.network.models import NetworkConfig, NetworkSpec, draw_first
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.sparsify import sparsify
from nispa.network.traced import TracedNetwork
from nispa.network.unit_values import UnitValues
from tests.mechanism.drawing import drawn, units


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def small() -> TracedNetwork:
    """Patterns by hand: rows are units written, columns are units read."""
    network = sparsify(two_layers(), torch.zeros(2, 3), density=1.0, values="model")
    for name, pattern in {
        "0": drawn("xx.", "x..", ".xx", "..x"),
        "2": drawn("xx..", "..xx"),
    }.items():
        layer = network.layers[name]
        nothing = torch.zeros(0, dtype=torch.int64)
        layer.rewire(pattern, nothing, torch.zeros(0))
    return network


def kept(hidden: str, outputs: str) -> dict[str, torch.Tensor]:
    return {"input": units("xxx"), "0": units(hidden), "output": units(outputs)}


def test_dead_places_are_zero_and_not_learned() -> None:
    plain, network = two_layers(), small()
    live = network.patterns()["0"]
    weight = network.layers["0"].dense_weight()
    assert torch.equal(weight, plain[0].weight.detach() * live)  # type: ignore[index]
    assert sum(value.numel() for value in network.parameters()) == 6 + 4 + 4 + 2
    x = torch.randn(5, 3)
    network(x).sum().backward()
    assert all(value.grad is not None for value in network.parameters())
    # The module has no weights of its own, and none stay behind after a pass.
    assert not list(network.body.parameters())
    assert network.body.get_submodule("0").weight is None
    assert "Linear(in_features=3, out_features=4, bias=False)" in repr(network)


def test_what_leads_from_others_is_dropped() -> None:
    network = small()
    assert drop_into(network, kept("x.x.", "x.")) == {"0": 0, "2": 1}  # from unit 1 into logit 0
    assert torch.equal(network.patterns()["2"], drawn("x...", "..xx"))
    assert torch.equal(network.patterns()["0"], drawn("xx.", "x..", ".xx", "..x"))


def test_frozen_values_are_no_parameters() -> None:
    network = small()
    drop_into(network, kept("x.x.", "x."))
    freeze(network, kept("x.x.", "x."))
    counts = {name: value.numel() for name, value in network.named_parameters()}
    assert counts == {"weights.0.weight": 2, "weights.0.bias": 2, "weights.2.weight": 2,
                      "weights.2.bias": 1}  # fmt: skip
    layer = network.layers["0"]
    before = layer.dense_weight(), layer.dense_bias()
    for value in network.parameters():
        value.data.normal_()
    for one, other in zip(before, (layer.dense_weight(), layer.dense_bias()), strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert not torch.equal(one[[1, 3]], other[[1, 3]])


@pytest.mark.parametrize("density", [0.1, 0.25, 1.0])
def test_the_share_of_live_connections(density: float) -> None:
    model = BACKBONES["mobilenet-small"].build((3, 16, 16), 4, width=8)
    network = sparsify(model, torch.zeros(2, 3, 16, 16), density=density, dense=("head",))
    assert network.dense == {"stem"}
    for name, pattern in network.patterns().items():
        share = 1.0 if name in ("stem", "head") else density
        assert int(pattern.sum()) == max(1, round(share * pattern.numel())), name


def test_the_same_seed_gives_the_same_network() -> None:
    images = torch.randn(3, 3, 8, 8)
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = BACKBONES["resnet18"].build((3, 8, 8), 4, width=4)
        network = sparsify(model, images, density=0.5, seed=seed).eval()
        logits.append(network(images))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("name", ["resnet18", "vit-tiny"])
def test_at_full_density_with_its_own_values_it_is_the_model(name: str) -> None:
    torch.manual_seed(0)
    size = {"width": 4} if name == "resnet18" else {"width": 12, "heads": 3, "blocks": 1}
    model = BACKBONES[name].build((3, 8, 8), 4, **size).eval()
    images = torch.randn(3, 3, 8, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = sparsify(model, images, density=1.0, values="model")
    assert not network.training
    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_what_is_refused() -> None:
    example = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"density=1.3 must be a number in \(0, 1\]"):
        sparsify(two_layers(), example, density=1.3)
    with pytest.raises(ConfigError, match="dense='fc' is no layer; there are 0, 2"):
        sparsify(two_layers(), example, dense=("fc",))
    with pytest.raises(GraphError, match="2 logits, not classes=5"):
        sparsify(two_layers(), example, classes=5)
    with pytest.raises(GraphError, match="sparse already"):
        sparsify(small(), example)
    shared = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    shared[2].weight = shared[0].weight
    with pytest.raises(GraphError, match=r"'0\.weight' and '2\.weight' are one parameter of two"):
        sparsify(shared, example)


class Closure(nn.Module):
    """Calls a layer by a function of its own, which a copy still calls on the first module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.step: Callable[[torch.Tensor], torch.Tensor] = lambda x: self.a(x).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.step(x))
        return logits


def test_a_module_that_no_copy_is_of_is_refused() -> None:
    with pytest.raises(GraphError, match=r"'a\.weight' by another way"):
        sparsify(Closure(), torch.zeros(2, 3))


class TwoNames(nn.Module):
    """One norm and one layer, each under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.b, self.again = nn.Linear(4, 4), self.norm
        self.c = self.b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.a(x))
        x = self.again(x + self.b(x))
        logits: torch.Tensor = self.head(x + self.c(x).relu())
        return logits


def test_a_module_under_two_names_is_replaced_under_both() -> None:
    torch.manual_seed(0)
    network = sparsify(TwoNames(), torch.zeros(2, 3), density=1.0)
    assert isinstance(network.body.norm, GenerationNorm)
    assert network.body.again is network.body.norm
    assert network.body.c is network.body.b
    units_kept = {"input": units("xxx"), "a": units("xx.."), "output": units("x.")}
    drop_into(network, units_kept)
    freeze(network, units_kept)
    check_isolation(network, units_kept, torch.randn(5, 3))


def test_groups_as_text() -> None:
    assert small().groups().splitlines()[2].split() == ["0", "hidden", "4", "0", "2"]


def net(name: str, *arguments: str, shape: tuple[int, int, int] = (3, 8, 8)) -> TracedNetwork:
    config = build(NetworkConfig, {"architecture": name, "arguments": arguments, "density": 0.5})
    made = NetworkSpec(config, shape, 4).draw(0)
    assert isinstance(made, TracedNetwork)
    return made


def test_an_mlp_is_the_one_that_is_built_by_hand() -> None:
    shape, config = (1, 3, 4), build(NetworkConfig, {"hidden": (6, 5), "density": 0.5})
    fast = NetworkSpec(config, shape, 4).draw(3)
    traced = Backbone("mlp", BACKBONES["mlp"].build).build(
        build(NetworkConfig, {"architecture": "own", "arguments": ("hidden=6x5",)}), shape, 4
    )
    draw_first(traced, config, frozenset(), 3)
    for name, layer in fast.layers.items():
        assert torch.equal(layer.dense_weight(), traced.layers[name].dense_weight())
    images = torch.rand(7, *shape)
    torch.testing.assert_close(fast(images), traced(images))
    for name, sums in fast.activity([images]).items():
        torch.testing.assert_close(sums, traced.activity([images])[name], rtol=1e-5, atol=1e-6)
    assert fast.per_sample() == traced.per_sample()
    assert fast.live_count() == traced.live_count()


@pytest.mark.parametrize("name", ["resnet18", "vit-tiny"])
def test_a_state_makes_the_same_network(name: str) -> None:
    size = {"resnet18": ("width=4",), "vit-tiny": ("width=12", "heads=3", "blocks=1")}[name]
    one, other = net(name, *size), net(name, *size)
    images = torch.randn(5, 3, 8, 8)
    one.train()
    one(images)
    half = {group.name: torch.arange(group.size) % 2 == 0 for group in one.topology.groups}
    stable = {**half, "input": one.topology.no_units()["input"]}
    drop_into(one, stable)
    freeze(one, stable)
    state = {key: value.clone() for key, value in one.state_dict().items()}
    other.load_state_dict(state)
    one.eval()
    other.eval()
    assert torch.equal(one(images), other(images))
    assert torch.equal(one.layers["head"].frozen, other.layers["head"].frozen)
    del state["values.norm/weight.value" if name == "vit-tiny" else "values.bn1/weight.value"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


def test_values_restart_where_they_are_plastic() -> None:
    network = net("resnet18", "width=4").train()
    for value in network.parameters():
        value.data.add_(1.0)
    network(torch.randn(6, 3, 8, 8))
    norm, scale = network.body.bn1, network.values["bn1/weight"]
    kept = network.topology.no_units()
    kept["conv1"][0] = True
    network.hold(kept)
    network.restart()
    assert isinstance(norm, UnitBatchNorm)
    assert isinstance(scale, UnitValues)
    assert scale.full().tolist() == [2.0, 1.0, 1.0, 1.0]
    assert (norm.running_var == 1).tolist() == [False, True, True, True]


class Dropped(nn.Module):
    """A network that draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.head = nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.drop(self.a(x).relu()))
        return logits


def test_dropout_has_a_stream_of_its_own() -> None:
    torch.manual_seed(0)
    model, x = Dropped(), torch.randn(6, 3)
    logits = []
    for outside in (1, 2):
        network = sparsify(model, x, density=1.0, values="model").train()
        torch.manual_seed(outside)
        logits.append([network(x) for _ in range(3)])
        state = network.state_dict()
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))
    assert not torch.equal(logits[0][0], logits[0][1])
    network(x)
    network.load_state_dict(state)  # of after three passes
    again = sparsify(model, x, density=1.0, values="model").train()
    again.load_state_dict(state)
    assert torch.equal(network(x), again(x))


class Packed(nn.Module):
    """Attention of PyTorch's own, whose weights it reads as functions do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        logits: torch.Tensor = self.head(y.mean(1))
        return logits


def test_units_are_measured_where_they_are_read() -> None:
    torch.manual_seed(0)
    model, x = Packed().eval(), torch.randn(6, 4, 5)
    network = sparsify(model, x, density=1.0, values="model")
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)
    activity = network.activity([x])
    assert sorted(len(each) for each in activity.values()) == [4, 12]  # heads, and the stream
    assert all(bool((each > 0).all()) for each in activity.values())
    embedded = model.embed(x)
    stream = embedded + model.attention(embedded, embedded, embedded, need_weights=False)[0]
    marks = [embedded.flatten(0, 1), stream.mean(1)]
    wanted = torch.zeros(12, dtype=torch.float64)
    for mark in marks:
        each = (mark - mark.mean(0)).abs().sum(0).double()
        wanted += (each / each.sum()).detach()
    torch.testing.assert_close(activity["embed"], wanted, rtol=1e-4, atol=1e-6)


def test_rows_of_a_grouped_convolution_are_layers_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)
    )
    x = torch.randn(5, 2, 4, 4)
    network = sparsify(model, x, density=1.0, values="model")
    assert {name: layer.shape for name, layer in network.layers.items()} == {
        "0": (4, 2), "2/1": (3, 2), "2/2": (3, 2), "4": (3, 24)
    }  # fmt: skip
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_operations_beside_connections() -> None:
    network = net("vit-tiny", "width=12", "heads=3", "blocks=1")
    tokens, width = 5, 12
    attention = 4 * tokens * tokens * width
    norms = 8 * 3 * tokens * width
    assert network.graph.operations == attention + norms
    places = {name: layer.places for name, layer in network.layers.items()}
    assert places["patches"] == 4
    assert places["blocks.0.fc1"] == tokens
    assert places["head"] == 1


class TwoHeads(nn.Module):
    """Computes more than its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.a(x).relu()
        return self.head(y), self.other(y)


def test_every_value_has_a_gradient() -> None:
    network = sparsify(TwoHeads(), torch.zeros(2, 3), density=1.0)
    labels = torch.zeros(5, dtype=torch.int64)
    network.gradients(torch.randn(5, 3), labels, nn.functional.cross_entropy)
    assert all(value.grad is not None for value in network.parameters())
    gradient = network.layers["other"].weight.grad
    assert gradient is not None
    assert not gradient.any()
    head = network.layers["head"].weight.grad
    assert head is not None
    assert head.any()


class Named(nn.Module):
    """Its parts are called as those of a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.items = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((self.keys(x) + self.values(x)).relu() * self.items)
        return logits


def test_names_are_free() -> None:
    network = sparsify(Named(), torch.zeros(2, 3), density=1.0)
    assert list(network.layers) == ["keys", "values", "head"]
    assert {"weights.keys/.weight", "values.items/.value"} <= set(network.state_dict())
