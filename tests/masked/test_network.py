"""A user's module made sparse: what is live, what an optimiser sees, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nispa.backbones import BACKBONES
from nispa.errors import ConfigError, GraphError
from nispa.masked.isolation import check_isolation
from nispa.masked.network import MaskedNetwork, sparsify
from nispa.masked.norms import GenerationNorm
from tests.mechanism.drawing import drawn, units


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def small() -> MaskedNetwork:
    """Patterns by hand: rows are units written, columns are units read."""
    network = sparsify(two_layers(), torch.zeros(2, 3), density=1.0, values="model")
    network.connect("0", drawn("xx.", "x..", ".xx", "..x"))
    network.connect("2", drawn("xx..", "..xx"))
    return network


def kept(hidden: str, outputs: str) -> dict[str, torch.Tensor]:
    return {"input": units("xxx"), "0": units(hidden), "output": units(outputs)}


def test_dead_places_are_zero_and_not_learned() -> None:
    plain, network = two_layers(), small()
    weight = network.weight("0")
    live = network.patterns()["0"]
    assert torch.equal(weight, plain[0].weight.detach() * live)  # type: ignore[index]
    assert sum(value.numel() for value in network.parameters()) == 6 + 4 + 4 + 2
    x = torch.randn(5, 3)
    network(x).sum().backward()
    assert all(value.grad is not None for value in network.parameters())


def test_what_leads_from_others_is_dropped() -> None:
    network = small()
    assert network.drop_into(kept("x.x.", "x.")) == 1  # from unit 1 into logit 0
    assert torch.equal(network.patterns()["2"], drawn("x...", "..xx"))
    assert torch.equal(network.patterns()["0"], drawn("xx.", "x..", ".xx", "..x"))


def test_freezing_before_dropping_is_refused() -> None:
    network = small()
    with pytest.raises(ConfigError, match=r"1 live connections of '2' .* call drop_into first"):
        network.freeze(kept("x.x.", "x."))
    assert not network.stable["0"].any()


def test_frozen_values_are_no_parameters() -> None:
    network = small()
    network.drop_into(kept("x.x.", "x."))
    network.freeze(kept("x.x.", "x."))
    body = network.body
    places = {name: value.numel() for name, value in body.named_parameters()}
    assert places["0.parametrizations.weight.original"] == 2  # rows 1 and 3
    assert places["2.parametrizations.weight.original"] == 2  # row 1
    before = network.weight("0"), network.body.get_submodule("0").bias
    for value in network.parameters():
        value.data.normal_()
    after = network.weight("0"), network.body.get_submodule("0").bias
    for one, other in zip(before, after, strict=True):
        assert isinstance(one, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert not torch.equal(one[[1, 3]], other[[1, 3]])


def test_a_frozen_connection_cannot_be_lost() -> None:
    network = small()
    network.drop_into(kept("x.x.", "x."))
    network.freeze(kept("x.x.", "x."))
    with pytest.raises(AssertionError, match="frozen connection would be lost"):
        network.connect("0", drawn("...", "xxx", "...", "xxx"))
    network.connect("0", drawn("xx.", "xxx", ".xx", "xxx"), torch.ones(4, 3))
    assert network.weight("0")[[1, 3]].eq(1).all()
    assert not network.weight("0")[[0, 2]].eq(1).any()


@pytest.mark.parametrize("density", [0.1, 0.25, 1.0])
def test_the_share_of_live_connections(density: float) -> None:
    model = BACKBONES["mobilenet-small"].build((3, 16, 16), 4, width=8)
    network = sparsify(model, torch.zeros(2, 3, 16, 16), density=density, dense=("stem", "head"))
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
    with pytest.raises(ConfigError, match=r"density=1.3 must be in \(0, 1\]"):
        sparsify(two_layers(), example, density=1.3)
    with pytest.raises(ConfigError, match="dense='fc' is no layer; there are 0, 2"):
        sparsify(two_layers(), example, dense=("fc",))
    with pytest.raises(GraphError, match="2 logits, not classes=5"):
        sparsify(two_layers(), example, classes=5)
    with pytest.raises(GraphError, match="sparse already"):
        sparsify(small(), example)
    shared = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    shared[2].weight = shared[0].weight
    with pytest.raises(GraphError, match=r"'2.weight' and '0.weight' are one parameter in two"):
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
    with pytest.raises(GraphError, match=r"linear in .* is computed, not a parameter as it lies"):
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
    network.drop_into(units_kept)
    network.freeze(units_kept)
    check_isolation(network, torch.randn(5, 3))


def test_groups_as_text() -> None:
    assert small().groups().splitlines()[2].split() == ["0", "hidden", "4", "0", "2"]
