"""Prepared data sets, gradients and activities: the quick ways give what the plain ways give."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.data.tasks import JoinedSamples, Samples, Task
from nispa.kernels import cached, chain, dispatch
from nispa.kernels.dispatch import CachedBatch
from nispa.methods.base import Problem
from nispa.methods.epochs import EpochsConfig
from nispa.methods.finetune import Finetune
from nispa.network.activity import total_activity, unit_activity
from nispa.network.fusion import segments
from nispa.network.layers import SparseConv2d, SparseLinear, Units
from nispa.network.models import DataSet, NetworkConfig, Prepared, SparseNetwork, build_network
from nispa.network.topology import (
    ConnectionLayer,
    Topology,
    UnitGroup,
    complement,
    live_between,
)
from nispa.training.fit import (
    Batch,
    ClassMask,
    OptimiserConfig,
    accuracy,
    batch_of,
    make_optimiser,
    network_step,
)
from tests.kernels.links import assert_same, fastest, seeded

PLENTY = 10**9
CONFIGS = {
    "mlp": NetworkConfig(architecture="mlp", hidden=(40, 30, 20), density=0.5),
    "convnet": NetworkConfig(
        architecture="convnet", channels=(8, 8, 6, 6), fc=(24,), density=0.6, pool_every=2
    ),
    "two pools at the end": NetworkConfig(
        architecture="convnet", channels=(8, 6), fc=(24,), density=0.6, pool_every=2, pool_to=1
    ),
}
NETWORKS = pytest.mark.parametrize("name", CONFIGS)
CACHES = pytest.mark.parametrize("cache", [1, chain.CACHE], ids=["small", "large"])


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run on the fastest kernels, whatever NISPA_KERNELS says."""
    library = fastest()
    monkeypatch.setattr(dispatch, "library", lambda: (library, "by a test"))


def run_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "library", lambda: (None, "by a test"))


def stabilise(network: SparseNetwork, share: float) -> None:
    """Makes the first units of each group stable, as NISPA does at the end of a task.

    Connections from plastic units into stable ones are dropped, those between stable ones and the
    biases of stable units are frozen.
    """
    topology = network.topology
    stable = {
        group.name: torch.arange(group.size) < round(share * group.size)
        if group.role == "hidden"
        else torch.full((group.size,), group.role == "input")
        for group in topology.groups
    }
    dropped = live_between(topology, network.patterns(), complement(stable), stable)
    nothing = torch.zeros(0, dtype=torch.int64)
    for name, layer in network.layers.items():
        values = torch.zeros(0, *layer.spec.kernel)
        layer.rewire(layer.pattern & ~dropped[name], nothing, values)
    frozen = live_between(topology, network.patterns(), stable, stable)
    for name, layer in network.layers.items():
        layer.freeze(frozen[name], stable[layer.spec.target])


def stable_network(name: str, share: float = 0.5) -> SparseNetwork:
    network = build_network(CONFIGS[name], (3, 9, 8), 5, seed=0)
    with torch.no_grad():  # so that biases count
        for layer in network.layers.values():
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=seeded(1)))
    stabilise(network, share)
    return network


def pool(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 9, 8), generator=seeded(seed)).to(torch.uint8)


def labels(count: int) -> Tensor:
    return torch.arange(count) % 5


DATA: dict[str, Callable[[], DataSet]] = {
    "pixels": lambda: Samples(pool(70).float() / 255, labels(70)),
    "rows, normalised": lambda: Samples(
        pool(90),
        labels(70),
        rows=torch.randperm(90, generator=seeded(2))[:70],
        scale=1 / 255,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.1),
    ),
    "permuted": lambda: Samples(
        pool(70), labels(70), scale=1 / 255, pixel_order=torch.randperm(216, generator=seeded(3))
    ),
    "joined": lambda: JoinedSamples(
        (
            Samples(pool(19), labels(19), scale=1 / 255),
            Samples(pool(50, 4), labels(50), scale=1 / 255, mean=(0.4, 0.5, 0.6)),
            Samples(pool(1, 5), labels(1), scale=0.5),
        )
    ),
}


def bits(network: SparseNetwork, images: Any, wanted: Tensor) -> list[Tensor]:
    """Logits, the loss and the gradients of a batch."""
    loss = network.gradients(images, wanted, functional.cross_entropy)
    gradients = [values.grad.clone() for values in network.parameters() if values.grad is not None]
    with torch.no_grad():
        logits = network(images)
    network.zero_grad(set_to_none=True)
    return [logits, loss, *gradients]


def assert_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# Prepared data.


@NETWORKS
@CACHES
@pytest.mark.parametrize("kind", DATA)
def test_prepared_data_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: int, kind: str
) -> None:
    monkeypatch.setattr(chain, "CACHE", cache)
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = stable_network(name), DATA[kind]()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    assert len(prepared.cached.columns) > 3
    assert len(prepared) == len(samples) == 70
    assert torch.equal(prepared.labels, samples.labels)
    shuffled = torch.randperm(70, generator=seeded(4))
    for index in (*shuffled.split(33), shuffled[:1]):
        images, wanted = samples.batch(index)
        given, same = prepared.batch(index)
        assert torch.equal(wanted, same)
        assert_bits(bits(network, given, same), bits(network, images, wanted))


@NETWORKS
def test_training_on_prepared_data_gives_the_same_network(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    samples = DATA["rows, normalised"]()
    networks = [stable_network(name), stable_network(name)]
    sets = [samples, networks[1].prepare(samples, PLENTY)]
    assert isinstance(sets[1], Prepared)
    losses: list[list[Tensor]] = [[], []]
    mask = ClassMask((1, 3, 0, 2, 4), 5, "slice", torch.device("cpu"))
    for network, data, seen in zip(networks, sets, losses, strict=True):
        optimiser = make_optimiser(OptimiserConfig(), network.parameters())
        step = network_step(network, mask.loss, optimiser)
        for seed in range(3):
            for index in torch.randperm(70, generator=seeded(seed)).split(32):
                seen.append(step(batch_of(data, index)))
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    before = stable_network(name).state_dict()
    for key, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[key])
        moved = not torch.equal(value, before[key])
        assert moved == (key.endswith((".weight", ".bias")) and value.numel() > 0)
    assert accuracy(networks[0], mask.predict, sets[0]) == accuracy(
        networks[1], mask.predict, sets[1]
    )


@NETWORKS
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything_stable(
    monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = stable_network(name, share), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    hidden = len(network.topology.hidden)
    assert len(prepared.cached.columns) == (1 if share == 0 else 1 + hidden)
    index = torch.arange(69, -1, -3)
    images, wanted = samples.batch(index)
    given, _ = prepared.batch(index)
    assert_bits(bits(network, given, wanted), bits(network, images, wanted))


@NETWORKS
def test_a_small_budget_keeps_fewer_parts_or_none(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = stable_network(name), DATA["pixels"]()
    pixels = 4 * 70 * 216
    most = network.prepare(samples, PLENTY)
    assert isinstance(most, Prepared)
    found = []
    for budget in range(pixels, most.cached.nbytes + 1, 70 * 16):
        prepared = network.prepare(samples, budget)
        assert isinstance(prepared, Prepared)
        assert prepared.cached.nbytes <= budget
        found.append(len(prepared.cached.columns))
        index = torch.arange(17)
        with torch.no_grad():
            expected = network(samples.batch(index)[0])
            assert torch.equal(network(prepared.batch(index)[0]), expected)
    assert found[0] == 1
    assert len(set(found)) > 2
    exactly = network.prepare(samples, most.cached.nbytes)
    assert isinstance(exactly, Prepared)
    assert len(exactly.cached.columns) == len(most.cached.columns)
    for budget in (pixels - 1, 1, 0, -1):
        assert network.prepare(samples, budget) is samples


def test_where_kernels_do_not_run_the_samples_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, network = DATA["pixels"](), stable_network("mlp")
    assert network.double().prepare(samples, PLENTY) is samples
    network.float()
    nothing = Samples(torch.zeros(0, 3, 9, 8), torch.zeros(0, dtype=torch.int64))
    assert network.prepare(nothing, PLENTY) is nothing
    assert isinstance(network.prepare(samples, PLENTY), Prepared)
    handle = network.body[1].register_forward_hook(lambda *_: None)  # type: ignore[index]
    assert network.prepare(samples, PLENTY) is samples
    handle.remove()
    run_plain(monkeypatch)
    assert network.prepare(samples, PLENTY) is samples


@NETWORKS
def test_batches_come_in_order(name: str) -> None:
    network, samples = stable_network(name), DATA["joined"]()
    prepared = network.prepare(samples, PLENTY)
    found, wanted = [], []
    for images, some in prepared.batches(32):
        assert len(images) == len(some) <= 32
        with torch.no_grad():
            found.append(network(images))
        wanted.append(some)
    assert torch.equal(torch.cat(wanted), samples.labels)
    images, _ = samples.batch(torch.arange(70))
    with torch.no_grad():
        assert torch.equal(torch.cat(found), network(images))


@pytest.mark.parametrize("index", [[-1], [70], [3, -70], [1000]], ids=str)
def test_what_is_not_there_cannot_be_read(index: list[int]) -> None:
    network, samples = stable_network("mlp"), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    for data in (samples, prepared):
        with pytest.raises((IndexError, RuntimeError)):
            network(data.batch(torch.tensor(index))[0])


@pytest.mark.parametrize(
    "index",
    [torch.arange(70)[::7], torch.arange(70).view(7, 10).t()[3], torch.arange(9).int()],
    ids=["every seventh", "a column", "int32"],
)
def test_an_index_of_any_layout_is_understood(index: Tensor) -> None:
    network, samples = stable_network("mlp"), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    with torch.no_grad():
        images, wanted = samples.batch(index)
        given, same = prepared.batch(index)
        assert torch.equal(wanted, same)
        assert torch.equal(network(given), network(images))


@pytest.mark.parametrize(
    "index",
    [torch.ones(70) > 0, torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)],
    ids=["a mask", "float32", "a matrix"],
)
def test_what_is_no_list_of_numbers_is_refused(index: Tensor) -> None:
    prepared = stable_network("mlp").prepare(DATA["pixels"](), PLENTY)
    with pytest.raises((IndexError, TypeError)):
        prepared.batch(index)


@NETWORKS
def test_a_prepared_set_lives_as_long_as_it_is_used(name: str) -> None:
    """The next task's training must not hold the last task's images in memory."""
    network, samples = stable_network(name), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    for index in (torch.arange(64), torch.arange(6)):
        network.gradients(*prepared.batch(index), functional.cross_entropy)
    rows = weakref.ref(prepared.cached.rows)
    del prepared
    stabilise(network, 0.7)
    other = network.prepare(DATA["permuted"](), PLENTY)
    network.gradients(*other.batch(torch.arange(64)), functional.cross_entropy)
    gc.collect()
    assert rows() is None


@NETWORKS
def test_a_prepared_set_that_holds_no_longer_is_refused_or_right(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Units that were constant when it was prepared get new connections that learn."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = stable_network(name), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    for layer in network.layers.values():
        grown = (~layer.pattern).flatten().nonzero().flatten()
        everything = torch.ones(layer.shape, dtype=torch.bool)
        values = torch.randn(len(grown), *layer.spec.kernel, generator=seeded())
        layer.rewire(everything, grown, values)
    index = torch.arange(20)
    with torch.no_grad():
        expected = network(samples.batch(index)[0])
        try:
            found = network(prepared.batch(index)[0])
        except (RuntimeError, ValueError, AssertionError):
            return
    assert torch.equal(found, expected)


def test_other_frozen_values_at_the_same_place_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As new memory may lie where old memory lay."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = by_hand()
    memory = np.array([2.0], dtype=np.float32)
    first = network.layers["f1"]
    first.frozen_weight = torch.from_numpy(memory)
    prepared = network.prepare(samples, PLENTY)
    with torch.no_grad():
        assert network(prepared.batch(torch.arange(3))[0]).flatten().tolist() == [6, 10, 24]
        memory[0] = 20
        first.frozen_weight = torch.from_numpy(memory)
        assert network(samples.batch(torch.arange(3))[0]).flatten().tolist() == [60, 10, 240]
        with pytest.raises(RuntimeError, match="prepare it again"):
            network(prepared.batch(torch.arange(3))[0])


@NETWORKS
def test_a_prepared_set_of_a_network_used_otherwise_meanwhile(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Passes over plain images, other prepared sets and other batch sizes come between."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples, others = stable_network(name), DATA["pixels"](), DATA["permuted"]()
    sets = [(samples, network.prepare(samples, PLENTY)), (others, network.prepare(others, PLENTY))]
    for turn in range(8):
        plain, prepared = sets[turn % 2]
        index = torch.arange(turn, turn + (17, 5, 33)[turn % 3])
        assert_bits(
            bits(network, *prepared.batch(index)),
            bits(network, *plain.batch(index)),
        )


# Activities.


def expected_activity(network: SparseNetwork, batches: Iterator[Tensor]) -> dict[str, Tensor]:
    return total_activity(network.observe(images, unit_activity) for images in batches)


@NETWORKS
@CACHES
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_activity_is_what_observing_gives(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: int, share: float
) -> None:
    monkeypatch.setattr(chain, "CACHE", cache)
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = stable_network(name, share), DATA["joined"]()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    found = [
        network.activity(images for images, _ in data.batches(32)) for data in (samples, prepared)
    ]
    run_plain(monkeypatch)
    expected = expected_activity(network, (images for images, _ in samples.batches(32)))
    assert set(expected) == {group.name for group in network.topology.hidden}
    for each in found:
        assert set(each) == set(expected)
        for group, activity in expected.items():
            assert each[group].dtype == torch.float64
            assert each[group].shape == activity.shape
            assert_same(each[group], activity, 1e-6)


def by_hand() -> tuple[SparseNetwork, Samples]:
    """One pixel; the first unit is constant and doubles it, the second is plastic, as is what
    reads both."""
    first = SparseLinear(ConnectionLayer("f1", "input", "a"), (2, 1))
    first.connect(torch.ones(2, 1, dtype=torch.bool), torch.tensor([2.0, -1.0]))
    first.freeze(torch.tensor([[True], [False]]), torch.tensor([True, False]))
    head = SparseLinear(ConnectionLayer("f2", "a", "output"), (1, 2))
    head.connect(torch.ones(1, 2, dtype=torch.bool), torch.tensor([3.0, 5.0]))
    groups = UnitGroup("input", 1, "input"), UnitGroup("a", 2), UnitGroup("output", 1, "output")
    body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), Units("a"), head)
    network = SparseNetwork(body, Topology(groups, (first.spec, head.spec)), (1, 1, 1))
    images = torch.tensor([1.0, -2.0, 4.0]).view(3, 1, 1, 1)
    return network, Samples(images, torch.zeros(3, dtype=torch.int64))


def test_activity_and_gradients_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units: 2, 0, 8 and 0, 2, 0. Logits: 6, 10, 24. The loss is their mean."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network, samples = by_hand()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    assert prepared.cached.rows.tolist() == [[1, 2], [-2, 0], [4, 8]]
    for data in (samples, prepared):
        images, wanted = data.batch(torch.arange(3))
        assert network.activity([images])["a"].tolist() == [10, 2]
        with torch.no_grad():
            assert network(images).flatten().tolist() == [6, 10, 24]
        loss = network.gradients(images, wanted, lambda logits, _: logits.mean())
        assert loss.item() == pytest.approx(40 / 3)
        first, head = network.layers["f1"], network.layers["f2"]
        for values, expected in (
            (first.weight, [5 * -2 / 3]),  # the second unit alone, where it is not zero
            (first.bias, [5 / 3]),
            (head.weight, [10 / 3, 2 / 3]),
            (head.bias, [1.0]),
        ):
            assert values.grad is not None
            assert values.grad.tolist() == pytest.approx(expected)


def test_activity_of_nothing() -> None:
    network = stable_network("mlp")
    assert not any(activity.any() for activity in network.activity([]).values())


def test_marks_before_a_pool_with_constant_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepared set holds what the pool makes of them; the units are what goes in."""
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    conv = SparseConv2d(ConnectionLayer("c1", "input", "a", kernel=(3, 3)), (4, 3), padding=1)
    conv.connect(torch.ones(4, 3, dtype=torch.bool), torch.randn(12, 3, 3, generator=seeded()))
    head = SparseLinear(ConnectionLayer("f1", "a", "output", block=16), (5, 64))
    head.connect(torch.ones(5, 64, dtype=torch.bool), torch.randn(320, generator=seeded()))
    groups = UnitGroup("input", 3, "input"), UnitGroup("a", 4), UnitGroup("output", 5, "output")
    modules = [conv, nn.ReLU(), Units("a"), nn.MaxPool2d(2), nn.Flatten(), head]
    network = SparseNetwork(
        nn.Sequential(*modules), Topology(groups, (conv.spec, head.spec)), (3, 9, 8)
    )
    stabilise(network, 0.5)
    samples = DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    found = network.activity(images for images, _ in prepared.batches(32))
    expected = expected_activity(network, (images for images, _ in samples.batches(32)))
    assert_same(found["a"], expected["a"], 1e-6)


# Gradients and steps.


@NETWORKS
@CACHES
def test_gradients_are_those_of_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: int
) -> None:
    monkeypatch.setattr(chain, "CACHE", cache)
    network = stable_network(name)
    other = copy.deepcopy(network).double()
    images, wanted = DATA["pixels"]().batch(torch.arange(70))
    found = network.gradients(images, wanted, functional.cross_entropy)
    run_plain(monkeypatch)
    expected = functional.cross_entropy(other(images.double()), wanted)
    expected.backward()
    assert not found.requires_grad
    assert_same(found, expected.detach(), 1e-6)
    for one, right in zip(network.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert right.grad is not None
        assert_same(one.grad, right.grad, 1e-5)


@NETWORKS
def test_gradients_replace_what_was_there(name: str) -> None:
    network = stable_network(name)
    images, wanted = DATA["pixels"]().batch(torch.arange(40))
    expected = bits(network, images, wanted)
    for values in network.parameters():
        values.grad = torch.full_like(values, 7.0)
    assert_bits(bits(network, images, wanted), expected)


def test_gradients_kept_aside_stay_as_they_are() -> None:
    """A method may compare the gradients of two batches, as projections onto a memory do."""
    network = stable_network("mlp")
    sets = [DATA["pixels"]().batch(torch.arange(10 * part, 10 * part + 10)) for part in (0, 1)]
    network.gradients(*sets[0], functional.cross_entropy)
    aside = [values.grad for values in network.parameters()]
    before = [gradient.clone() for gradient in aside if gradient is not None]
    network.gradients(*sets[1], functional.cross_entropy)
    for gradient, same in zip(aside, before, strict=True):
        assert gradient is not None
        assert torch.equal(gradient, same)


def test_gradients_may_be_written_over_the_last_ones() -> None:
    network = stable_network("mlp")
    sets = [DATA["pixels"]().batch(torch.arange(10 * part, 10 * part + 10)) for part in (0, 1)]
    expected = bits(network, *sets[1])[2:]
    network.gradients(*sets[0], functional.cross_entropy)
    places = [values.grad for values in network.parameters()]
    network.gradients(*sets[1], functional.cross_entropy, reuse=True)
    for values, place, gradient in zip(network.parameters(), places, expected, strict=True):
        assert values.grad is place
        assert values.grad is not None
        assert torch.equal(values.grad, gradient)


@pytest.mark.parametrize("reuse", [False, True])
def test_gradients_over_a_place_of_any_layout(reuse: bool) -> None:
    network = stable_network("mlp")
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    expected = bits(network, images, wanted)[2:]
    for values in network.parameters():
        values.grad = torch.zeros(*values.shape, 2)[..., 0]
    network.gradients(images, wanted, functional.cross_entropy, reuse=reuse)
    for values, gradient in zip(network.parameters(), expected, strict=True):
        assert values.grad is not None
        assert torch.equal(values.grad, gradient)


def test_gradients_where_everything_is_frozen() -> None:
    network = stable_network("mlp", 1.0)
    everything = {name: torch.ones(layer.shape) > 0 for name, layer in network.layers.items()}
    for name, layer in network.layers.items():
        layer.freeze(everything[name], torch.ones(layer.shape[0]) > 0)
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    loss = network.gradients(images, wanted, functional.cross_entropy)
    assert_same(loss, functional.cross_entropy(network(images), wanted).double(), 1e-6)
    for values in network.parameters():
        assert values.grad is None or not values.grad.numel()


def test_gradients_of_values_that_shall_not_learn() -> None:
    """As where a user holds a layer fixed for a while."""
    network = stable_network("mlp")
    network.layers["fc1"].requires_grad_(False)
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    network.gradients(images, wanted, functional.cross_entropy)
    for name, layer in network.layers.items():
        for values in layer.parameters():
            assert (values.grad is None) == (name == "fc1")


def test_what_listens_to_a_value_hears_of_its_gradient() -> None:
    """As where a user clips gradients one by one."""
    network = stable_network("mlp")
    values = network.layers["fc2"].weight
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    values.register_hook(torch.zeros_like)
    heard: list[Tensor] = []
    values.register_post_accumulate_grad_hook(lambda each: heard.append(each))
    network.gradients(images, wanted, functional.cross_entropy)
    assert values.grad is not None
    assert not values.grad.any()
    assert len(heard) == 1


def test_a_loss_may_change_the_logits_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits[:, 3:] = -9.0
        return functional.cross_entropy(logits, labels % 3)

    network = stable_network("mlp")
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    found = network.gradients(images, wanted, loss)
    run_plain(monkeypatch)
    assert_same(found, network.gradients(images, wanted, loss).double(), 1e-6)


def test_a_step_adds_the_penalty() -> None:
    """Plain gradient descent on the loss and half the square of every value, a tenth at a time."""
    network = stable_network("mlp")
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    _, loss, *gradients = bits(network, images, wanted)
    before = [values.detach().clone() for values in network.parameters()]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)

    def penalty() -> Tensor:
        return sum((values.square().sum() for values in network.parameters()), torch.zeros(())) / 2

    extra = penalty().detach()
    step = network_step(network, functional.cross_entropy, optimiser, penalty)
    value = step(Batch(images, wanted, torch.arange(10), 1, 1))
    assert not value.requires_grad
    assert value.item() == pytest.approx((loss + extra).item())
    for values, old, gradient in zip(network.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(values.detach(), old - 0.1 * (gradient + old))


def test_a_penalty_that_holds_nothing_yet() -> None:
    networks = [stable_network("mlp"), stable_network("mlp")]
    images, wanted = DATA["pixels"]().batch(torch.arange(10))
    for network, penalty in zip(networks, (None, lambda: torch.tensor(2.0)), strict=True):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        step = network_step(network, functional.cross_entropy, optimiser, penalty)
        step(Batch(images, wanted, torch.arange(10), 1, 1))
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_given_batch_is_split_without_loss() -> None:
    network, samples = stable_network("mlp"), DATA["pixels"]()
    prepared = network.prepare(samples, PLENTY)
    assert isinstance(prepared, Prepared)
    given, _ = prepared.batch(torch.arange(50, 0, -1))
    assert isinstance(given, CachedBatch)
    parts = given.split(16)
    assert [len(part) for part in parts] == [16, 16, 16, 2]
    assert torch.cat([part.index for part in parts]).tolist() == list(range(50, 0, -1))


def test_a_network_made_here_is_one_chain() -> None:
    for name in CONFIGS:
        assert len(segments(stable_network(name).body)) == 1


@pytest.mark.parametrize("validation", [0, 10, 69])
def test_training_and_validation_images_share_the_memory(
    monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    monkeypatch.setattr(cached, "WORTH_KEEPING", 0)
    network = stable_network("mlp")
    samples = Samples(pool(70), labels(70), scale=1 / 255)
    held_back = samples.subset(torch.arange(validation))
    train = samples.subset(torch.arange(validation, 70))
    task = Task(0, "a task", tuple(range(5)), train, held_back, held_back)
    method = Finetune(Problem((3, 9, 8), 5), CONFIGS["mlp"], EpochsConfig(), seed=0)
    most = network.prepare(samples, PLENTY)
    assert isinstance(most, Prepared)
    kept, pixels = [], 4 * 70 * 216
    for budget in (pixels, (pixels + most.cached.nbytes) // 2, most.cached.nbytes):
        method.cache_bytes = budget
        prepared = [images for images in method.prepare_both(network, task) if len(images)]
        feeds = [images.cached for images in prepared if isinstance(images, Prepared)]
        assert sum(len(images) for images in prepared) == 70
        assert len(feeds) == len(prepared)
        assert sum(feed.nbytes for feed in feeds) <= budget
        kept.append({len(feed.columns) for feed in feeds})
    assert [len(each) for each in kept] == [1, 1, 1]  # an image of either set keeps the same
    assert min(kept[0]) < min(kept[1]) < min(kept[2])
