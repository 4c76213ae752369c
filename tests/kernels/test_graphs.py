"""What is recorded and what is kept on a GPU, with PyTorch's part played on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from nispa.base.config import build
from nispa.kernels import adam, dense, dispatch, graphs
from nispa.kernels.dense import FullTensor
from nispa.kernels.reference import LiveValues, to_dense
from nispa.network.models import NetworkConfig, SparseNetwork, build_network
from nispa.network.operations import Ledger, count_updates, counting
from nispa.network.topology import live_between
from nispa.training import steps
from nispa.training.fit import Batch, OptimiserConfig, make_optimiser, network_step

from ..methods.toy import NETWORKS

SHAPE = (1, 8, 8)
OUTPUTS = 5


def network_of(kind: str, **settings: object) -> SparseNetwork:
    config = build(NetworkConfig, NETWORKS[kind] | settings)
    return build_network(config, SHAPE, OUTPUTS, seed=0)


def frozen(network: SparseNetwork) -> SparseNetwork:
    """The network with half of each group stable."""
    units = {
        group.name: torch.arange(group.size) < group.size // 2 for group in network.topology.groups
    }
    settled = live_between(network.topology, network.patterns(), units, units)
    for name, layer in network.layers.items():
        layer.freeze(settled[name], units[layer.spec.target])
    return network


def batch(size: int, number: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(size, *SHAPE, generator=generator)
    labels = torch.randint(0, OUTPUTS, (size,), generator=generator)
    return Batch(images, labels, torch.arange(size), 1, number)


class Player:
    """Plays a graph: what is recorded is done again as code."""

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.parameters = list(network.parameters())
        self.optimiser = optimiser
        self.recorded = 0

    def held(self) -> list[Tensor]:
        states = [s for state in self.optimiser.state.values() for s in state.values()]
        return [*self.parameters, *(s for s in states if isinstance(s, Tensor))]

    def capture(
        self, work: Callable[[], Tensor], device: torch.device
    ) -> tuple[Tensor, Callable[[], None]]:
        del device
        self.recorded += 1
        before = [each.detach().clone() for each in self.held()]
        found = work()
        gradients = [values.grad for values in self.parameters]
        with torch.no_grad():
            for each, value in zip(self.held(), before, strict=True):
                each.copy_(value)

        def replay() -> None:
            hooks = dict(self.optimiser._optimizer_step_post_hooks)
            self.optimiser._optimizer_step_post_hooks.clear()  # a graph calls no Python
            found.copy_(work())
            self.optimiser._optimizer_step_post_hooks.update(hooks)
            for values, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    assert values.grad is not None
                    gradient.copy_(values.grad)

        return found, replay


@pytest.fixture
def full_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers keep their full weights, as on a GPU."""
    monkeypatch.setattr(dense, "keeps", lambda values: True)
    monkeypatch.setattr(dispatch, "library", lambda: (None, "asked for"))


def play(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, optimiser: torch.optim.Optimizer
) -> Player:
    player = Player(network, optimiser)
    monkeypatch.setattr(graphs, "capture", player.capture)
    monkeypatch.setattr(graphs, "on_side_stream", lambda work, device: work())
    monkeypatch.setattr(steps, "_on_gpu", lambda network: True)
    return player


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "adadelta"])
@pytest.mark.usefixtures("full_weights")
def test_recorded_steps_are_the_steps_one_by_one(
    kind: str, optimiser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [8, 8, 8, 3, 8, 3, 8, 3, 3, 5]
    config = OptimiserConfig(optimiser=optimiser, learning_rate=2**-7)
    plain = frozen(network_of(kind))
    seen = []
    for network, recorded in ((plain, False), (copy.deepcopy(plain), True)):
        update = make_optimiser(config, network.parameters())
        ledger, player = Ledger(), None
        if recorded:
            player = play(monkeypatch, network, update)
        step = network_step(network, functional.cross_entropy, update)
        count_updates(ledger, update)
        losses = []
        with counting(ledger):
            for number, size in enumerate(sizes, 1):
                ledger.step(size)
                if number > 5:  # a rate that falls
                    update.param_groups[0]["lr"] = 2.0**-number
                losses.append(float(step(batch(size, number))))
        if player is not None:
            assert player.recorded == 2  # the shapes that came again
        seen.append((losses, ledger.table(), network.state_dict()))
    (before, costs, values), (after, recorded_costs, recorded_values) = seen
    assert before == after
    assert costs == recorded_costs
    assert all(torch.equal(values[name], recorded_values[name]) for name in values)


@pytest.mark.usefixtures("full_weights")
def test_a_replay_leaves_gradients_and_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("mlp")
    play(monkeypatch, network, make_optimiser(OptimiserConfig(), network.parameters()))
    gradients = steps.batch_gradients(network, functional.cross_entropy)
    for number in range(1, 5):
        gradients(batch(8, number).images, batch(8, number).labels)
        found = [values.grad for values in network.parameters() if values.numel()]
        assert all(each is not None for each in found)
        again = copy.deepcopy(network)
        again.gradients(batch(8, number).images, batch(8, number).labels, functional.cross_entropy)
        for values, other in zip(network.parameters(), again.parameters(), strict=True):
            assert values.grad is None or torch.equal(values.grad, other.grad)  # type: ignore[arg-type]
    before = [values._version for values in network.parameters() if values.numel()]
    gradients(batch(8).images, batch(8).labels)
    after = [values._version for values in network.parameters() if values.numel()]
    assert all(one < other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("full_weights")
def test_full_weights_give_what_the_reference_gives(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(kind, precision=precision)
    relative, absolute = 2e-2, 1e-2
    if precision == "float32":
        network, relative, absolute = network.double(), 1e-10, 1e-12
    images, labels = batch(6).images.to(next(network.parameters()).dtype), batch(6).labels
    for changed in ("at first", "trained", "frozen", "drawn anew", "loaded"):
        if changed == "trained":
            with torch.no_grad():
                for values in network.parameters():
                    values.mul_(1.5)
        elif changed == "frozen":
            frozen(network)
        elif changed == "drawn anew":
            for layer in network.layers.values():
                live = torch.ones(layer.live_count, *layer.spec.kernel)
                layer.restart_plastic(live, torch.zeros(layer.shape[0]))
        elif changed == "loaded":
            state = {name: value * 2 for name, value in network.state_dict().items()}
            state |= {k: v for k, v in network.state_dict().items() if k.endswith("index")}
            network.load_state_dict(state)
        found = []
        for keeps in (True, False):
            monkeypatch.setattr(dense, "keeps", lambda values, keeps=keeps: keeps)
            assert all(layer.places for layer in network.layers.values()) or changed == "at first"
            loss = network.gradients(images, labels, functional.cross_entropy)
            found.append([loss, network(images).detach()])
            found[-1] += [v.grad for v in network.parameters() if v.grad is not None]
        assert len(found[0]) == len(found[1])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=relative, atol=absolute)


def values_of(plastic: list[int], fixed: list[int], shape: tuple[int, ...]) -> LiveValues:
    generator = torch.Generator().manual_seed(len(plastic))
    return LiveValues(
        nn.Parameter(torch.rand(len(plastic), generator=generator)),
        torch.tensor(plastic, dtype=torch.int64),
        torch.rand(len(fixed), generator=generator),
        torch.tensor(fixed, dtype=torch.int64),
        shape,
    )


def test_a_full_tensor_is_written_anew_where_the_pattern_or_the_size_is_another() -> None:
    full = FullTensor()
    for live in (
        values_of([0, 3], [5], (2, 3)),
        values_of([1, 3], [4], (2, 3)),
        values_of([], [4], (2, 3)),
        values_of([], [], (2, 3)),
        values_of([2], [4], (3, 3)),
        values_of([0, 1, 2, 3], [], (2, 2)),
    ):
        assert torch.equal(full(live), to_dense(live))
    live = values_of([0], [1, 2], (2, 2))
    full(live)
    live.frozen.mul_(2)
    assert torch.equal(full(live), to_dense(live))


def test_a_full_tensor_serves_inside_and_outside_inference_mode() -> None:
    full, live = FullTensor(), values_of([0, 3], [5], (2, 3))
    with torch.inference_mode():
        assert torch.equal(full(live), to_dense(live))
    full(live).sum().backward()
    assert live.plastic.grad is not None
    assert live.plastic.grad.tolist() == [1.0, 1.0]


def test_a_full_tensor_of_kernels_lies_pixel_by_pixel() -> None:
    full, live = FullTensor(), values_of([0, 3], [5], (2, 3))
    kernels = live._replace(plastic=nn.Parameter(torch.rand(2, 3, 3)), frozen=torch.rand(1, 3, 3))
    found = full(kernels)
    assert torch.equal(found, to_dense(kernels))
    assert found.is_contiguous(memory_format=torch.channels_last)
    scale = torch.rand(2, 3, 3, 3)
    (found * scale).sum().backward()
    assert kernels.plastic.grad is not None
    assert torch.equal(kernels.plastic.grad, scale.flatten(0, 1)[[0, 3]])


@pytest.mark.parametrize(
    ("mine", "theirs"), [(adam.AdamInPieces, optim.Adam), (adam.AdamWInPieces, optim.AdamW)]
)
def test_adam_in_pieces_is_adam(mine: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "LEAST", 8)
    monkeypatch.setattr(adam, "PIECES", 5)
    ends = []
    for rule in (mine, theirs):
        torch.manual_seed(0)
        values = [nn.Parameter(torch.rand(size)) for size in ((50,), (3, 3, 3), (1,))]
        optimiser = rule(values, lr=0.1, weight_decay=0.01, fused=True)
        for step in range(6):
            if step == 3:  # taken up from a saved state
                for each in values:
                    state = optimiser.state[each]
                    optimiser.state[each] = {name: held.clone() for name, held in state.items()}
            for each in values:
                each.grad = torch.rand_like(each)
            optimiser.step()
        ends.append([*values, *(optimiser.state[each]["step"] for each in values)])
        ledger = Ledger()
        count_updates(ledger, optimiser)
        optimiser.step()
        ends[-1].append(torch.tensor(ledger.table()["updates"]))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("full_weights")
def test_blocks_tell_layers_their_places() -> None:
    network = network_of("convnet")
    network(batch(2).images)
    whole = network_of("convnet")
    for module in whole.body:  # type: ignore[attr-defined]
        module.register_forward_hook(lambda *_: None)
    whole(batch(2).images)
    for name, layer in network.layers.items():
        assert layer.places == whole.layers[name].places > 0
