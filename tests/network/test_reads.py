"""What units of any module say, by hand, and units that begin anew with all that is theirs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.methods.cbp import CbpConfig, ContinualBackprop, no_records
from nispa.methods.renewing import drawing, renew, renewable, sizes
from nispa.network.models import NetworkConfig
from nispa.network.norms import UnitBatchNorm
from nispa.network.reads import head_reads, told_groups, unit_means, unit_reads
from nispa.network.sparsify import sparsify
from nispa.network.traced import TracedNetwork
from nispa.network.unit_values import UnitValues


class Flat(nn.Module):
    """A convolution whose maps are flattened: a unit has four columns in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().flatten(1))
        return logits


class Tokens(nn.Module):
    """A head over tokens, whose logits are averaged; tokens may come first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.a, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) if self.first else x
        logits: Tensor = self.head(self.a(y).relu()).mean(0 if self.first else 1)
        return logits


def test_a_channel_behind_a_flatten() -> None:
    torch.manual_seed(0)
    model, x = Flat(), torch.randn(5, 1, 2, 2)
    network = sparsify(model, x, density=1.0, values="model")
    said = model.conv(x).relu().detach()
    reads = unit_reads(network, x)
    assert list(reads.units) == told_groups(network) == ["conv"]
    ours, theirs = reads.units["conv"].sort(0).values, said.transpose(0, 1).flatten(1).T.sort(0)
    torch.testing.assert_close(ours, theirs.values)
    torch.testing.assert_close(head_reads(network, x), said.flatten(1))
    torch.testing.assert_close(unit_means(network, x)["conv"], said.mean((2, 3)))
    assert reads.means is not None
    torch.testing.assert_close(reads.means["head"], said.flatten(1).mean(0))
    torch.testing.assert_close(reads.means["conv"], x.mean().view(1))


def test_samples_are_told_apart_where_tokens_come_first() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3)
    for first in (True, False):
        model = Tokens(first)
        network = sparsify(model, x, density=1.0, values="model")
        said = model.a(x).relu().detach()
        torch.testing.assert_close(head_reads(network, x), said.flatten(1))
        torch.testing.assert_close(unit_means(network, x)["a"], said.mean(1))


def resnet(density: float = 0.5) -> TracedNetwork:
    torch.manual_seed(0)
    body = BACKBONES["resnet18"].build((1, 8, 8), 3, width=4)
    return sparsify(body, torch.zeros(2, 1, 8, 8), density=density)


FIRST = NetworkConfig(architecture="resnet18")


def test_sizes_of_weights_at_a_unit() -> None:
    network = resnet()
    inputs, outputs = sizes(network)
    stream = network.graph.group("conv1")
    for found, names, dim in ((inputs, stream.writers, 1), (outputs, stream.readers, 0)):
        weights = [network.layers[name].dense_weight() for name in names]
        lying = [each.movedim(1 - dim, 0).flatten(1) for each in weights]
        wanted = torch.cat(lying, 1).abs().mean(1)
        torch.testing.assert_close(found["conv1"], wanted)


def test_a_unit_of_a_stream_begins_anew_everywhere() -> None:
    network = resnet()
    for each in network.modules():  # as if trained
        if isinstance(each, UnitValues):
            each.value.data.fill_(0.7)
        if isinstance(each, UnitBatchNorm):
            each.running_mean.fill_(0.3)
    for layer in network.layers.values():
        layer.bias.data.fill_(0.2)
    optimiser = torch.optim.Adam(network.parameters())
    network.gradients(torch.randn(4, 1, 8, 8), torch.arange(4) % 3, nn.functional.cross_entropy)
    optimiser.step()
    before = {name: layer.dense_weight() for name, layer in network.layers.items()}
    assert bool(renewable(network)["conv1"].all())
    chosen = {"conv1": torch.tensor([False, True, False, False])}
    draw = drawing(FIRST, lambda name: torch.Generator().manual_seed(len(name)))
    renew(network, chosen, draw, optimiser)
    stream, norms = network.graph.group("conv1"), network.graph.norms_of("conv1")
    for name, layer in network.layers.items():
        now = layer.dense_weight()
        entered = torch.zeros(layer.shape, dtype=torch.bool)
        left = entered.clone()
        if name in stream.writers:
            entered[1] = True
        if name in stream.readers:
            left[:, 1] = True
        live = layer.pattern
        assert torch.equal(now[~entered & ~left], before[name][~entered & ~left])
        assert not bool(now[left].any())
        changed = entered & ~left & live
        assert bool((now[changed] != before[name][changed]).all())
        moment = optimiser.state[layer.weight]["exp_avg"]
        touched = (entered | left).flatten()[layer.plastic_index]
        assert not bool(moment[touched].any())
    for norm in norms:
        found = {}
        for kind in ("weight", "bias"):
            value = network.values[f"{norm.module}.{kind}".replace(".", "/")]
            assert isinstance(value, UnitValues)
            found[kind] = value.full().detach()
        assert (float(found["weight"][1]), float(found["bias"][1])) == (1.0, 0.0)
        assert bool((found["weight"][[0, 2, 3]] != 1.0).all())
        module = network.body.get_submodule(norm.module)
        assert isinstance(module, UnitBatchNorm)
        assert float(module.running_mean[1]) == 0.0
        assert bool((module.running_mean[[0, 2, 3]] != 0.0).all())


def test_the_mean_moves_into_biases() -> None:
    torch.manual_seed(0)
    model, x = Flat(), torch.randn(64, 1, 2, 2)
    network = sparsify(model, x, density=1.0, values="model")
    before = network(x).mean(0)
    config = CbpConfig(maturity=0, replacement_rate=0.4)
    cbp = ContinualBackprop(network, config, FIRST, no_records(network))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    seen = unit_reads(network, x)
    chosen = cbp.after(seen, optimiser, lambda _: torch.Generator().manual_seed(0))
    assert int(chosen["conv"].sum()) == 1
    torch.testing.assert_close(network(x).mean(0), before, rtol=1e-4, atol=1e-5)
