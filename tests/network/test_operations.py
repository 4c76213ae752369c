"""Operations against hand counts, PyTorch's own counter, and the structure that kernels use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nispa.data.tasks import Samples
from nispa.errors import FormatError
from nispa.kernels import dispatch
from nispa.kernels.chain import Chain
from nispa.kernels.links import WeightedLink
from nispa.network.layers import SparseConv2d, SparseLinear, Units
from nispa.network.models import NetworkConfig, SparseNetwork, build_network
from nispa.network.operations import (
    PURPOSES,
    Ledger,
    PerSample,
    count_updates,
    counting,
    current,
    purpose,
    update_operations,
)
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from nispa.training.fit import (
    Batch,
    OptimiserConfig,
    Term,
    accuracy,
    batch_gradients,
    counted_once,
    fit,
    gradient_of,
    gradient_step,
    make_optimiser,
)
from tests.kernels.links import fastest

Paths = Callable[[str], None]
PATHS = pytest.mark.parametrize("path", ["kernels", "reference"])


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Chooses what layers run on."""

    def choose(path: str) -> None:
        library = fastest() if path == "kernels" else None
        monkeypatch.setattr(dispatch, "library", lambda: (library, "by a test"))

    return choose


def linear(name: str, source: str, target: str, rows: int, columns: int) -> SparseLinear:
    return SparseLinear(ConnectionLayer(name, source, target), (rows, columns))


def connect(layer: SparseLinear | SparseConv2d, *rows: str) -> None:
    """Makes connections live: a row of x and . per target unit."""
    pattern = torch.tensor([[mark == "x" for mark in row] for row in rows])
    layer.connect(pattern, torch.ones(int(pattern.sum()), *layer.spec.kernel))


def freeze(layer: SparseLinear | SparseConv2d, *rows: str, biases: str) -> None:
    pattern = torch.tensor([[mark == "x" for mark in row] for row in rows])
    layer.freeze(pattern, torch.tensor([mark == "x" for mark in biases]))


GROUPS = (UnitGroup("input", 3, "input"), UnitGroup("a", 3), UnitGroup("b", 2))
OUTPUT = UnitGroup("output", 2, "output")


def small(*between: nn.Module) -> SparseNetwork:
    """3 inputs, 3 units, 2 units, 2 outputs; unit 0 of each hidden group is stable.

    a: unit 0 reads inputs 0 and 1 (frozen), unit 1 reads 2, unit 2 reads 0 and 2: 5 live, 2 frozen.
    b: unit 0 reads a0 (frozen), unit 1 reads a0 (plastic), a1 and a2: 4 live, 1 frozen.
    head: output 0 reads b0 (frozen), output 1 reads b0 and b1: 3 live, 1 frozen.
    """
    a, b = linear("a", "input", "a", 3, 3), linear("b", "a", "b", 2, 3)
    head = linear("head", "b", "output", 2, 2)
    connect(a, "xx.", "..x", "x.x")
    freeze(a, "xx.", "...", "...", biases="x..")
    connect(b, "x..", "xxx")
    freeze(b, "x..", "...", biases="x.")
    connect(head, "x.", "xx")
    freeze(head, "x.", "..", biases="x.")
    body = nn.Sequential(
        nn.Flatten(), a, nn.ReLU(), Units("a"), *between, b, nn.ReLU(), Units("b"), head
    )
    specs = tuple(layer.spec for layer in (a, b, head))
    return SparseNetwork(body, Topology((*GROUPS, OUTPUT), specs), (1, 1, 3))


IMAGES, LABELS = torch.rand(7, 1, 1, 3), torch.arange(7) % 2
# Multiply-adds forward: 5 + 4 + 3. Plastic weights: 3 + 3 + 2. a1, a2 and b1 need a gradient: it
# flows back over the connections to b1 from a1 and a2, and over that of the head from b1.
BY_HAND = PerSample(2 * 12, 2 * 8, 2 * (2 + 1))


@PATHS
@pytest.mark.parametrize(
    "between", [(), (nn.Tanh(),), (nn.Dropout(0.5), nn.LayerNorm(3, elementwise_affine=False))]
)
def test_by_hand(path: str, between: tuple[nn.Module, ...], on: Paths) -> None:
    """The same numbers on every path, also where plain modules stand between sparse layers."""
    on(path)
    network, ledger = small(*between), Ledger()
    with counting(ledger):
        network(IMAGES)
    assert network.per_sample() == BY_HAND
    assert ledger.table() == {"importance": 7 * 24}  # a gradient could have followed
    ledger = Ledger()
    with counting(ledger), torch.no_grad():
        network(IMAGES)
    assert ledger.table() == {"other": 7 * 24}
    ledger = Ledger()
    with counting(ledger):
        ledger.step(5)
        network.gradients(IMAGES, LABELS, functional.cross_entropy)
    assert ledger.table() == {
        "forward": 5 * 24,
        "weight_gradients": 5 * 16,
        "input_gradients": 5 * 6,
        "replay": 2 * (24 + 16 + 6),
    }


@PATHS
def test_a_loss_of_ones_own(path: str, on: Paths) -> None:
    """A method that calls backward itself is counted, as often as it does."""
    on(path)
    network, ledger = small(nn.Identity()), Ledger()
    network.eval()
    with counting(ledger):
        logits = network(IMAGES)
        loss = functional.cross_entropy(logits, LABELS)
    loss.backward()  # whoever is in force then
    assert ledger.table() == {"importance": 7 * (24 + 16 + 6)}
    ledger = Ledger()
    with counting(ledger):
        optimiser = make_optimiser(OptimiserConfig(), network.parameters())
        step = gradient_step(lambda x, y: functional.cross_entropy(network(x), y), optimiser)
        ledger.step(7)
        step(Batch(IMAGES, LABELS, torch.arange(7), 1, 1))
    assert ledger.table()["weight_gradients"] == 7 * 16


def test_a_recorded_step_counts_once() -> None:
    """The passes that warm up a graph are none of the method's, and a replay runs no Python."""
    network, ledger = small(), Ledger()
    passes = iter([3, 1, 0, 0])

    def recorded(images: Tensor, labels: Tensor) -> Tensor:
        for _ in range(next(passes)):
            network.gradients(images, labels, functional.cross_entropy)
        return torch.zeros(())

    gradients = counted_once(network, recorded)
    with counting(ledger):
        for _ in range(4):
            ledger.step(7)
            gradients(IMAGES, LABELS)
    assert ledger.table() == {
        "forward": 4 * 7 * 24,
        "weight_gradients": 4 * 7 * 16,
        "input_gradients": 4 * 7 * 6,
    }


@PATHS
def test_gradients_into_images(path: str, on: Paths) -> None:
    """All units of a then read what needs a gradient, and so does all that follows them."""
    on(path)
    network, ledger = small(), Ledger()
    with counting(ledger):
        images = IMAGES.clone().requires_grad_()
        network(images).square().sum().backward()
    assert ledger.table() == {"importance": 7 * 2 * (12 + 8 + (5 + 4 + 3))}
    assert network.per_sample() == BY_HAND


def test_nothing_is_counted_where_no_ledger_is_in_force() -> None:
    ledger = Ledger()
    with counting(ledger), counting(None):
        small()(IMAGES)
    small()(IMAGES)
    assert current() is None
    assert ledger.table() == {}


@PATHS
def test_changes_of_the_pattern_count_from_the_next_pass_on(path: str, on: Paths) -> None:
    on(path)
    network, ledger = small(), Ledger()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with counting(ledger), torch.no_grad():
        network(IMAGES)
        b = network.layers["b"]
        b.rewire(torch.tensor([[True, False, False], [True, True, False]]), NONE, torch.zeros(0))
        network(IMAGES)
        assert ledger.table() == {"other": 7 * (24 + 22)}
        network.load_state_dict(state)
        network(IMAGES)
    assert ledger.table() == {"other": 7 * (24 + 22 + 24)}
    freeze(network.layers["a"], "...", "..x", "x.x", biases=".xx")  # type: ignore[arg-type]
    assert network.per_sample() == PerSample(24, 2 * 5, 2 * 1)  # b1 alone needs a gradient


NONE = torch.zeros(0, dtype=torch.int64)


def test_a_state_of_equal_sizes_is_counted_anew() -> None:
    """Indices are then written in place: from a0 to a1, which needs a gradient."""
    network = small()
    with torch.no_grad():
        network(IMAGES)
    assert network.per_sample() == BY_HAND
    state = network.state_dict()
    assert state["body.4.plastic_index"].tolist() == [3, 4, 5]
    state["body.4.frozen_index"] = torch.tensor([1])  # b0 reads a1 now
    network.load_state_dict(state)
    # b0 is no longer constant, so the head's two connections from it need a gradient, too.
    assert network.per_sample() == PerSample(24, 16, 2 * (1 + 2 + 3))


def residual() -> SparseNetwork:
    """A stream of two units that a block of two feeds again: groups in a circle."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = linear("stem", "input", "stream", 2, 3)
            self.down = linear("down", "stream", "inner", 2, 2)
            self.up = linear("up", "inner", "stream", 2, 2)
            self.head = linear("head", "stream", "output", 2, 2)
            self.stream, self.inner = Units("stream"), Units("inner")

        def forward(self, images: Tensor) -> Tensor:
            x = torch.relu(self.stem(images.flatten(1)))
            inner = self.inner(torch.relu(self.down(x)))
            return self.head(self.stream(torch.relu(x + self.up(inner))))  # type: ignore[no-any-return]

    body = Body()
    groups = (UnitGroup("input", 3, "input"), UnitGroup("stream", 2), UnitGroup("inner", 2), OUTPUT)
    specs = tuple(each.spec for each in (body.stem, body.down, body.up, body.head))
    network = SparseNetwork(body, Topology(groups, specs), (1, 1, 3))
    connect(body.stem, "xxx", "xxx")
    connect(body.down, "xx", ".x")
    connect(body.up, "x.", ".x")
    connect(body.head, "xx", "xx")
    freeze(body.stem, "xxx", "xxx", biases="xx")
    freeze(body.down, "xx", "..", biases="x.")
    freeze(body.up, "xx", "xx", biases="xx")
    freeze(body.head, "..", "..", biases="..")
    return network


@PATHS
def test_groups_in_a_circle(path: str, on: Paths) -> None:
    """inner 1 learns; through it stream 1 changes, so inner 0 that reads it, so stream 0."""
    on(path)
    network = residual()
    with torch.no_grad():
        network(IMAGES)
    # Forward 6 + 3 + 2 + 4. Plastic: one of down, four of the head. Back over all but the stem.
    assert network.per_sample() == PerSample(2 * 15, 2 * 5, 2 * (3 + 2 + 4))


@PATHS
def test_a_convolution_by_hand(path: str, on: Paths) -> None:
    """5 x 6 pixels, kernels of 3 x 3 without padding: 3 x 4 places; pooled to 1 x 2 features."""
    on(path)
    conv = SparseConv2d(ConnectionLayer("conv", "input", "maps", kernel=(3, 3)), (2, 2))
    head = SparseLinear(ConnectionLayer("head", "maps", "output", block=2), (2, 4))
    connect(conv, "xx", ".x")
    freeze(conv, "xx", "..", biases="x.")
    connect(head, "x.xx", ".xx.")
    body = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), Units("maps"), nn.Flatten(), head)
    groups = (UnitGroup("input", 2, "input"), UnitGroup("maps", 2), OUTPUT)
    network = SparseNetwork(body, Topology(groups, (conv.spec, head.spec)), (2, 5, 6))
    ledger = Ledger()
    with counting(ledger):
        ledger.step(4)
        labels = torch.zeros(4, dtype=torch.int64)
        network.gradients(torch.rand(4, 2, 5, 6), labels, functional.cross_entropy)
    # Three live kernels, one plastic, of 9 weights at 12 places. Channel 1 alone needs a gradient:
    # of the head's five connections those from features 2 and 3, which are three.
    forward, weights, inputs = 2 * (3 * 9 * 12 + 5), 2 * (1 * 9 * 12 + 5), 2 * 3
    assert ledger.table() == {
        "forward": 4 * forward,
        "weight_gradients": 4 * weights,
        "input_gradients": 4 * inputs,
    }


DENSE: Mapping[str, tuple[NetworkConfig, tuple[int, int, int]]] = {
    "mlp": (NetworkConfig(hidden=(9, 7), density=1.0), (1, 4, 5)),
    "convnet": (
        NetworkConfig(
            architecture="convnet", channels=(3, 4, 5), fc=(6,), density=1.0, pool_every=2
        ),
        (2, 8, 6),
    ),
}


def plain(network: SparseNetwork) -> nn.Sequential:
    """The same network of PyTorch's own dense layers."""
    modules: list[nn.Module] = []
    for module in network.body.children():
        if isinstance(module, SparseLinear):
            modules.append(nn.Linear(module.shape[1], module.shape[0]))
        elif isinstance(module, SparseConv2d):
            side = module.spec.kernel[0]
            modules.append(nn.Conv2d(module.shape[1], module.shape[0], side, padding=side // 2))
        elif not isinstance(module, Units):
            modules.append(module)
    return nn.Sequential(*modules)


@PATHS
@pytest.mark.parametrize("name", DENSE)
def test_dense_networks_as_pytorch_counts_them(name: str, path: str, on: Paths) -> None:
    """With every connection live, operations are those of PyTorch's dense layers."""
    on(path)
    config, shape = DENSE[name]
    network = build_network(config, shape, 3, seed=0)
    images, labels = torch.rand(5, *shape), torch.arange(5) % 3
    dense, ledger = plain(network), Ledger()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        dense(images)
    with counting(ledger), torch.no_grad():
        network(images)
    assert sum(ledger.table().values()) == forward.get_total_flops() > 0
    with FlopCounterMode(display=False) as both:
        functional.cross_entropy(dense(images), labels).backward()
    ledger = Ledger()
    with counting(ledger):
        network.gradients(images, labels, functional.cross_entropy)
    assert sum(ledger.table().values()) == both.get_total_flops()
    images.requires_grad_()
    with FlopCounterMode(display=False) as into_images:
        functional.cross_entropy(dense(images), labels).backward()
    ledger = Ledger()
    with counting(ledger):
        functional.cross_entropy(network(images), labels).backward()
    assert sum(ledger.table().values()) == into_images.get_total_flops()


@st.composite
def networks(draw: st.DrawFn) -> SparseNetwork:
    """Networks with anything frozen, whether it makes sense or not."""
    kind = draw(st.sampled_from(["mlp", "convnet"]))
    seed = draw(st.integers(0, 2**31))
    config = (
        NetworkConfig(hidden=(6, 5, 4), density=0.5)
        if kind == "mlp"
        else NetworkConfig(architecture="convnet", channels=(4, 3), fc=(5,), density=0.5)
    )
    network = build_network(config, (2, 4, 4), 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    share = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    for layer in network.layers.values():
        layer.freeze(
            torch.rand(layer.shape, generator=generator) < share,
            torch.rand(layer.shape[0], generator=generator) < share,
        )
    return network


@given(networks())
def test_what_kernels_go_over_is_what_is_counted(network: SparseNetwork) -> None:
    """Connections in the tables that the kernels run over, forward and back."""
    images = torch.rand(1, 2, 4, 4)
    chain = Chain(fastest(), network._segments()[0].links, (2, 4, 4))
    with torch.no_grad():
        network(images)
    forward = weights = inputs = 0
    for link, structure, out in zip(chain.links, chain.structures, chain.buffers[1:], strict=True):
        if not isinstance(link, WeightedLink):
            continue
        each = 2 * link.weights_each * out.pixels
        forward += each * int(structure.live_per_row.sum())  # type: ignore[union-attr]
        weights += each * structure.plastic.count  # type: ignore[union-attr]
        inputs += each * len(structure.back.origin)  # type: ignore[union-attr]
    assert network.per_sample() == PerSample(forward, weights, inputs)


# What passes are for.


def samples(count: int) -> Samples:
    return Samples(torch.rand(count, 1, 1, 3), torch.arange(count) % 2)


def fitted(ledger: Ledger, extra: bool = False) -> None:
    """Two epochs of 10 samples in batches of 4, 6 validation images, perhaps 3 more in a step."""
    network = small()
    optimiser = make_optimiser(OptimiserConfig(optimiser="sgd"), network.parameters())
    validation, more = samples(6), samples(3)

    def step(batch: Batch) -> Tensor:
        terms = [Term(batch.images, batch.labels, functional.cross_entropy)]
        terms += [Term(*more.batch(slice(0, 3)), functional.cross_entropy)] if extra else []
        value = gradient_of(network, terms)
        optimiser.step()
        return value

    def validate() -> float | None:
        with torch.no_grad():
            network(validation.batch(slice(0, 2))[0])  # beside `accuracy`, which says it itself
        return accuracy(network, lambda logits: logits.argmax(1), validation)

    with counting(ledger):
        events = fit(
            network,
            step,
            samples(10),
            epochs=2,
            batch_size=4,
            order=lambda epoch: torch.Generator().manual_seed(epoch),
            validate=validate,
            optimiser=optimiser,
        )
        for _ in events:
            pass
        network.activity([IMAGES])
        batch_gradients(network, functional.cross_entropy)(IMAGES, LABELS)
        optimiser.step()  # of no fit
        with torch.no_grad():
            network(IMAGES)


@PATHS
def test_a_fit_and_what_follows(path: str, on: Paths) -> None:
    on(path)
    plain_fit, ledger = Ledger(), Ledger()
    fitted(plain_fit)
    assert plain_fit.table() == {
        "forward": 20 * 24,
        "weight_gradients": 20 * 16,
        "input_gradients": 20 * 6,
        # Six updates of 8 plastic weights and 4 plastic biases: descent and momentum.
        "updates": 6 * 12 * 4,
        "importance": 7 * (24 + 16 + 6),
        "validation": 2 * (6 + 2) * 24,
        "activity": 7 * 24,
        "other": 7 * 24,
    }
    fitted(ledger, extra=True)
    assert ledger.table() == plain_fit.table() | {"replay": 6 * 3 * (24 + 16 + 6)}


def test_a_purpose_of_ones_own_and_its_end() -> None:
    ledger, cost = Ledger(), PerSample(100, 10, 1)
    with counting(ledger):
        ledger.step(2)
        with purpose("projection"):
            ledger.forward(3, cost, learning=True)
            ledger.backward(3, cost)
        ledger.forward(2, cost, learning=True)
        ledger.forward(4, cost, learning=False)  # such as outputs of a copy
        ledger.backward(2, cost)
        with purpose("validation"), purpose("activity"):
            ledger.forward(1, cost, learning=False)
    assert ledger.table() == {
        "forward": 200,
        "weight_gradients": 20,
        "input_gradients": 2,
        "projection": 333,
        "activity": 100,
        "other": 400,
    }
    assert list(ledger.table()) == [name for name in PURPOSES if name in ledger.table()]


def test_a_ledger_goes_on_from_another() -> None:
    first, second = Ledger(), Ledger()
    first.add("updates", 5)
    before = first.table()
    first.add("updates", 2)
    first.add("replay", 1)
    assert first.since(before) == {"updates": 2, "replay": 1}
    second.take(first.since(before))
    assert second.table() == {"updates": 2, "replay": 1}


@pytest.mark.parametrize("values", [None, [], {"x": 1}, {"replay": -1}, {"replay": 1.0},
                                    {"replay": True}, {"replay": 10**31}])  # fmt: skip
def test_saved_operations_that_are_none(values: object) -> None:
    with pytest.raises(FormatError, match="saved operations"):
        Ledger().take(values)


@pytest.mark.parametrize(
    ("config", "each"),
    [
        # Moments 3 and 4, denominator 3, move 3; decay adds 2, or 1 where it is apart.
        (OptimiserConfig(optimiser="adam"), 13),
        (OptimiserConfig(optimiser="adam", weight_decay=0.1), 15),
        (OptimiserConfig(optimiser="adamw", weight_decay=0.1), 14),
        (OptimiserConfig(optimiser="sgd", momentum=0.0), 2),
        (OptimiserConfig(optimiser="sgd", momentum=0.9, weight_decay=0.1), 6),
        # Two means of squares 8, two roots 4, quotient and product 2, move 2.
        (OptimiserConfig(optimiser="adadelta"), 16),
    ],
)
def test_updates(config: OptimiserConfig, each: int) -> None:
    optimiser = make_optimiser(config, small().parameters())
    assert update_operations(optimiser) == 12 * each
    ledger = Ledger()
    handle = count_updates(ledger, optimiser)
    optimiser.step()
    optimiser.step()
    assert handle is not None
    handle.remove()
    optimiser.step()
    assert ledger.table() == {"updates": 2 * 12 * each}
