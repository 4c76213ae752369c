"""A network gives what its modules give one by one, whatever they are and wherever hooks sit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from nispa.kernels import dispatch
from nispa.kernels.links import CONVOLUTION, LINEAR, POOL
from nispa.methods import METHODS, method_class
from nispa.network import fusion
from nispa.network.activity import total_activity, unit_activity
from nispa.network.fusion import segments
from nispa.network.layers import SparseConv2d, SparseLayer, SparseLinear, Units
from nispa.network.models import NetworkConfig, NetworkSpec, SparseNetwork, build_network
from nispa.network.topology import ConnectionLayer, Topology, UnitGroup
from tests.kernels.links import assert_same, fastest, seeded

AnyLayer = TypeVar("AnyLayer", bound=SparseLayer)
Make = Callable[[], list[nn.Module]]
C, L, P = CONVOLUTION, LINEAR, POOL


def run_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run on the fastest kernels, whatever NISPA_KERNELS says."""
    library = fastest()
    monkeypatch.setattr(dispatch, "library", lambda: (library, "by a test"))


def run_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run on the reference."""
    monkeypatch.setattr(dispatch, "library", lambda: (None, "by a test"))


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_fused(monkeypatch)


# Networks of any modules, of whole numbers, for images of 2 x 6 x 5.


def filled(layer: AnyLayer) -> AnyLayer:
    """Six in ten connections are live, three in ten of those and of the biases frozen."""
    generator = seeded(sum(map(ord, layer.spec.name)))
    pattern = torch.rand(layer.shape, generator=generator) < 0.6
    size = (int(pattern.sum()), *layer.spec.kernel)
    layer.connect(pattern, torch.randint(-2, 3, size, generator=generator).float())
    with torch.no_grad():
        layer.bias.copy_(torch.randint(-2, 3, layer.bias.shape, generator=generator))
    layer.freeze(
        torch.rand(layer.shape, generator=generator) < 0.3,
        torch.rand(layer.shape[0], generator=generator) < 0.3,
    )
    return layer


def spec(name: str, kernel: tuple[int, ...] = ()) -> ConnectionLayer:
    return ConnectionLayer(name, "input", "output", kernel=kernel)


def conv(name: str, rows: int, columns: int, **options: Any) -> SparseConv2d:
    how = {"padding": 1, **options}
    return filled(SparseConv2d(spec(name, (3, 3)), (rows, columns), **how))


def linear(name: str, rows: int, columns: int) -> SparseLinear:
    return filled(SparseLinear(spec(name), (rows, columns)))


def norm(kind: Callable[..., nn.Module], channels: int) -> nn.Module:
    """A batch norm without parameters and buffers, which a network would refuse."""
    return kind(channels, affine=False, track_running_stats=False)


def network(*modules: nn.Module) -> SparseNetwork:
    """A network of these modules. Who feeds whom is of no matter here, and not told."""
    body = nn.Sequential(*modules)
    layers = tuple(each.spec for each in body.modules() if isinstance(each, SparseLayer))
    marked = sorted({each.group for each in body.modules() if isinstance(each, Units)})
    groups = [UnitGroup("input", 1, "input"), *(UnitGroup(name, 1) for name in marked)]
    groups.append(UnitGroup("output", 1, "output"))
    return SparseNetwork(body, Topology(tuple(groups), layers), (2, 6, 5))


def images(batch: int = 8) -> Tensor:
    return torch.randint(-2, 3, (batch, 2, 6, 5), generator=seeded(1)).float()


class Residual(nn.Module):
    """A body's block that is not a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv("c9", 2, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class ShiftedReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class SmallestPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(-x)  # type: ignore[no-any-return]


class BackwardsFlatten(nn.Flatten):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class DoubledLinear(SparseLinear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class NegatedUnits(Units):
    def forward(self, x: Tensor) -> Tensor:
        return -x


BODIES: dict[str, tuple[Make, list[list[int]]]] = {
    "convnet": (
        lambda: [
            *(conv("c1", 3, 2), nn.ReLU(), nn.MaxPool2d(2), Units("a"), nn.Flatten()),
            *(linear("f1", 4, 18), nn.ReLU(), Units("b"), linear("f2", 3, 4)),
        ],
        [[C, P, L, L]],
    ),
    "MLP": (
        lambda: [nn.Flatten(), linear("f1", 4, 60), nn.ReLU(), Units("a"), linear("f2", 3, 4)],
        [[L, L]],
    ),
    "marks before a pool": (
        lambda: [
            *(conv("c1", 3, 2), nn.ReLU(), Units("a"), nn.MaxPool2d(2), nn.Flatten()),
            linear("f1", 3, 18),
        ],
        [[C, P, L]],
    ),
    "marks at two places": (
        lambda: [
            *(conv("c1", 3, 2), nn.ReLU(), Units("a"), conv("c2", 3, 3), nn.ReLU()),
            *(Units("a"), nn.Flatten(), linear("f1", 3, 90)),
        ],
        [[C, C], [], [L]],
    ),
    "a mark where numbers may be negative": (
        lambda: [nn.Flatten(), linear("f1", 4, 60), Units("a"), linear("f2", 3, 4)],
        [[L], [], [L]],
    ),
    "a ReLU in place": (
        lambda: [conv("c1", 3, 2), nn.ReLU(inplace=True), nn.Flatten(), linear("f1", 3, 90)],
        [[C, L]],
    ),
    "two ReLUs": (
        lambda: [conv("c1", 3, 2), nn.ReLU(), nn.ReLU(), nn.Flatten(), linear("f1", 3, 90)],
        [[C, L]],
    ),
    "no ReLU": (
        lambda: [conv("c1", 3, 2), conv("c2", 2, 3), nn.Flatten(), linear("f1", 3, 60)],
        [[C, C, L]],
    ),
    "a pool, then a ReLU": (
        lambda: [conv("c1", 3, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), linear("f1", 3, 18)],
        [[C, P], [], [L]],
    ),
    "a ReLU, a pool, a ReLU": (
        lambda: [
            *(conv("c1", 3, 2), nn.ReLU(), nn.MaxPool2d((2, 2), (2, 2)), nn.ReLU()),
            *(nn.Flatten(), linear("f1", 3, 18)),
        ],
        [[C, P, L]],
    ),
    "a flatten, then a dropout": (
        lambda: [conv("c1", 3, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), linear("f1", 3, 90)],
        [[C], [], [L]],
    ),
    "a flatten at the end": (lambda: [conv("c1", 3, 2), nn.ReLU(), nn.Flatten()], [[C]]),
    "a pool at the end": (lambda: [conv("c1", 3, 2), nn.ReLU(), nn.MaxPool2d(2)], [[C, P]]),
    "two flattens": (lambda: [nn.Flatten(), nn.Flatten(), linear("f1", 3, 60)], [[L]]),
    "a flatten of the pixels alone": (
        lambda: [conv("c1", 3, 2), nn.Flatten(2), linear("f1", 4, 30), nn.Flatten()],
        [[C], [], [L]],
    ),
    "no flatten": (lambda: [linear("f1", 4, 5), nn.ReLU(), nn.Flatten()], [[L]]),
    "batch norms": (
        lambda: [
            *(conv("c1", 3, 2), norm(nn.BatchNorm2d, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(linear("f1", 4, 18), norm(nn.BatchNorm1d, 4), nn.ReLU(), linear("f2", 3, 4)),
        ],
        [[C], [], [], [], [L], [], [], [L]],
    ),
    "other activations": (
        lambda: [
            *(conv("c1", 3, 2), nn.LeakyReLU(0.5), conv("c2", 2, 3), nn.ReLU6(), nn.Flatten()),
            *(linear("f1", 4, 60), nn.Identity(), linear("f2", 3, 4)),
        ],
        [[C], [], [C], [], [L], [], [L]],
    ),
    "sequences in sequences": (
        lambda: [
            nn.Sequential(conv("c1", 3, 2), nn.ReLU(), Units("a")),
            nn.Sequential(nn.Flatten(), linear("f1", 3, 90)),
        ],
        [[], []],
    ),
    "a block of one's own": (
        lambda: [conv("c1", 2, 2), nn.ReLU(), Residual(), nn.Flatten(), linear("f1", 3, 60)],
        [[C], [], [L]],
    ),
    "nothing sparse at first": (
        lambda: [nn.ReLU(), nn.Identity(), conv("c1", 3, 2), nn.Flatten(), linear("f1", 3, 90)],
        [[], [], [C, L]],
    ),
    "a ReLU of one's own": (
        lambda: [nn.Flatten(), linear("f1", 4, 60), ShiftedReLU(), linear("f2", 3, 4)],
        [[L], [], [L]],
    ),
    "a pool of one's own": (
        lambda: [conv("c1", 3, 2), SmallestPool(2), nn.Flatten(), linear("f1", 3, 18)],
        [[C], [], [L]],
    ),
    "a flatten of one's own": (
        lambda: [conv("c1", 3, 2), BackwardsFlatten(), linear("f1", 3, 90)],
        [[C], [], [L]],
    ),
    "a layer of one's own": (
        lambda: [nn.Flatten(), filled(DoubledLinear(spec("f1"), (4, 60))), linear("f2", 3, 4)],
        [[], [], [L]],
    ),
    "marks of one's own": (
        lambda: [
            *(nn.Flatten(), linear("f1", 4, 60), nn.ReLU(), NegatedUnits("a")),
            linear("f2", 3, 4),
        ],
        [[L], [], [L]],
    ),
    "one layer twice": (
        lambda: [*[conv("c1", 2, 2)] * 2, nn.Flatten(), linear("f1", 3, 60)],
        [[C], [C, L]],
    ),
}
POOLS: dict[str, nn.Module] = {
    "3 x 3": nn.MaxPool2d(3),
    "1 x 2": nn.MaxPool2d((1, 2)),
    "stride 1": nn.MaxPool2d(2, stride=1),
    "stride (2, 1)": nn.MaxPool2d(2, stride=(2, 1)),
    "padded": nn.MaxPool2d(2, padding=1),
    "rounded up": nn.MaxPool2d(2, ceil_mode=True),
    "dilated": nn.MaxPool2d(2, dilation=2),
    "average": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveMaxPool2d(2),
}


def with_pool(pool: nn.Module) -> list[nn.Module]:
    body: list[nn.Module] = [conv("c1", 3, 2), nn.ReLU(), copy.deepcopy(pool), nn.Flatten()]
    features = nn.Sequential(*body)(images()).shape[1]
    return [*body, linear("f1", 3, features)]


def all_bodies() -> Iterator[Any]:
    for name, (make, kinds) in BODIES.items():
        yield pytest.param(make, kinds, id=name)
    for name, pool in POOLS.items():
        yield pytest.param(lambda pool=pool: with_pool(pool), [[C], [], [L]], id=f"pool, {name}")


ALL = pytest.mark.parametrize(("make", "kinds"), list(all_bodies()))


def gradients_of(made: nn.Module) -> Tensor:
    """All as one vector, since some are only what rounding leaves of zero; None are zeros."""
    return torch.cat(
        [
            (torch.zeros_like(values) if values.grad is None else values.grad).flatten()
            for values in made.parameters()
        ]
    )


class Everything:
    """What comes out of a network: logits, gradients of the input and of values, activities."""

    def __init__(self, made: SparseNetwork, run: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)  # for dropout
        x = images().requires_grad_()
        logits = run(x)
        self.logits = logits.detach()
        square(logits, torch.zeros(8)).backward()
        assert x.grad is not None
        self.input_gradient = x.grad
        self.gradients = gradients_of(made)


def square(logits: Tensor, _labels: Tensor) -> Tensor:
    return logits.square().flatten(1).sum(1).mean()


@ALL
def test_a_network_is_its_modules_one_by_one(
    monkeypatch: pytest.MonkeyPatch, make: Make, kinds: list[list[int]]
) -> None:
    del kinds
    made = network(*make())
    other = copy.deepcopy(made)
    found = Everything(made, made)
    run_plain(monkeypatch)
    expected = Everything(other, other.body)
    assert_same(found.logits, expected.logits.double(), 1e-5)
    assert_same(found.input_gradient, expected.input_gradient.double(), 1e-5)
    assert_same(found.gradients, expected.gradients.double(), 1e-5)
    for one, right in zip(made.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, right)


@ALL
def test_its_gradients_are_those_of_its_modules(
    monkeypatch: pytest.MonkeyPatch, make: Make, kinds: list[list[int]]
) -> None:
    del kinds
    made = network(*make())
    other = copy.deepcopy(made)
    shapes: list[torch.Size] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        shapes.append(logits.shape)
        return square(logits, labels)

    torch.manual_seed(0)
    found = made.gradients(images(), torch.zeros(8), loss)
    run_plain(monkeypatch)
    torch.manual_seed(0)
    expected = loss(other.body(images()), torch.zeros(8))
    expected.backward()
    assert shapes[0] == shapes[1]
    assert not found.requires_grad
    assert_same(found, expected.detach().double(), 1e-5)
    assert_same(gradients_of(made), gradients_of(other).double(), 1e-5)


@ALL
def test_its_activity_is_that_of_its_modules(
    monkeypatch: pytest.MonkeyPatch, make: Make, kinds: list[list[int]]
) -> None:
    del kinds
    made = network(*make())
    made.eval()
    found = made.activity([images(), images(3)])
    run_plain(monkeypatch)
    expected = total_activity(made.observe(x, unit_activity) for x in (images(), images(3)))
    assert set(found) == set(expected)
    for group, activity in expected.items():
        torch.testing.assert_close(found[group], activity)


@ALL
def test_what_is_fused(make: Make, kinds: list[list[int]]) -> None:
    modules = make()
    found = segments(nn.Sequential(*modules))
    assert [[link.kind for link in segment.links] for segment in found] == kinds
    assert [module for segment in found for module in segment.modules] == modules


def test_a_body_that_is_no_sequence_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)  # type: ignore[no-any-return, no-untyped-call]

    modules = [nn.Flatten(), linear("f1", 3, 60)]
    made = network(*modules)
    before = made(images())
    made.body = Own(*modules)
    assert torch.equal(made(images()), -before)


# Hooks.


def forward_record(module: nn.Module, seen: list[Any]) -> Any:
    return module.register_forward_hook(
        lambda _module, given, output: seen.append((given[0].clone(), output.clone()))
    )


def before_record(module: nn.Module, seen: list[Any]) -> Any:
    return module.register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone()))


def backward_record(module: nn.Module, seen: list[Any]) -> Any:
    def record(_module: nn.Module, given: Any, output: Any) -> None:
        seen.append((given[0], output[0]))

    return module.register_full_backward_hook(record)


HOOKS = pytest.mark.parametrize("hook", [forward_record, before_record, backward_record])


@HOOKS
@pytest.mark.parametrize("place", range(9))
def test_a_hook_on_a_module_fires(
    monkeypatch: pytest.MonkeyPatch, hook: Callable[..., Any], place: int
) -> None:
    make, _ = BODIES["convnet"]
    made = network(*make())
    before = made(images())
    other = copy.deepcopy(made)
    found: list[Any] = []
    expected: list[Any] = []
    handle = hook(made.body[place], found)  # type: ignore[index]
    hook(other.body[place], expected)  # type: ignore[index]
    answer = Everything(made, made)
    assert torch.equal(answer.logits, before)
    run_plain(monkeypatch)
    Everything(other, other.body)
    assert len(found) == len(expected) == 1
    torch.testing.assert_close(found, expected)
    run_fused(monkeypatch)
    handle.remove()
    assert len(segments(made.body)) == 1
    assert torch.equal(made(images()), before)
    assert len(found) == 1


def test_a_hook_that_goes_leaves_nothing_behind() -> None:
    """With it a layer runs without its ReLU, and with its ReLU afterwards."""
    relu = nn.ReLU()
    made = network(conv("c1", 3, 2), relu)
    handle = relu.register_forward_hook(lambda *_: None)
    with torch.no_grad():  # so that both use the same memory
        hooked = made(images())
        handle.remove()
        assert (hooked == 0).any()
        assert torch.equal(made(images()), hooked)


@HOOKS
@pytest.mark.parametrize("which", ["body", "network"])
def test_a_hook_on_the_whole_fires(hook: Callable[..., Any], which: str) -> None:
    make, _ = BODIES["convnet"]
    made = network(*make())
    seen: list[Any] = []
    hook(made.body if which == "body" else made, seen)
    Everything(made, made)
    assert len(seen) == 1


def test_a_hook_that_changes_an_output_changes_it() -> None:
    made = network(nn.Flatten(), linear("f1", 4, 60), nn.ReLU(), linear("f2", 3, 4))
    made.body[2].register_forward_hook(  # type: ignore[index]
        lambda _module, _given, output: torch.zeros_like(output)
    )
    bias = made.layers["f2"].dense_bias()
    assert made(images()).tolist() == [bias.tolist()] * 8
    assert made.gradients(images(), torch.zeros(8), square) == bias.square().sum()


def test_a_hook_on_every_module_fires_on_each() -> None:
    """As profilers hook them."""
    make, _ = BODIES["convnet"]
    modules = make()
    made = network(*modules)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _given, _output: seen.append(module)
    )
    try:
        made(images())
    finally:
        handle.remove()
    assert set(modules) <= set(seen)


# Input that does not fit.


CONFIGS = {
    "mlp": NetworkConfig(architecture="mlp", hidden=(5,), density=0.5),
    "convnet": NetworkConfig(architecture="convnet", channels=(4, 3), fc=(5,), density=0.5),
}
SHAPES = [
    *[(4, 3, 6, 5), (4, 90), (3, 6, 5), (4, 3, 30), (4, 30, 3), (4, 3, 5, 6), (4, 3, 7, 5)],
    *[(4, 3, 6, 6), (4, 2, 6, 5), (4, 3, 6, 5, 1), (4, 3, 6, 5, 2), (4, 1, 3, 6, 5), (3, 3, 5)],
    *[(4, 3, 2, 1), (4, 3, 1, 1), (90,), (3, 90, 1), (4, 0, 6, 5), (4, 3, 0, 5), (0, 3, 6, 5)],
    *[(0, 3, 6, 6), (), (1,), (3, 3, 3), (3, 3, 3, 10), (4, 90, 1, 1), (4, 90, 1)],
]


def outcome(module: nn.Module, x: Tensor) -> Tensor | type[Exception]:
    """The output, or the kind of error."""
    try:
        output: Tensor = module(x)
    except Exception as error:  # noqa: BLE001  # which one is what is compared
        return type(error)
    return output.detach()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_input_of_any_shape_meets_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]
) -> None:
    made = build_network(CONFIGS[name], (3, 6, 5), 4, seed=0)
    x = torch.rand(shape, generator=seeded())
    found = outcome(made, x)
    run_plain(monkeypatch)
    expected = outcome(made.body, x)
    if isinstance(expected, type):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(3, 3, 5), (3, 3, 1), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_one_image_is_not_a_batch(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], pool: bool
) -> None:
    """PyTorch takes three dimensions as channels, height and width."""
    made = network(conv("c1", 3, 3), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))
    x = torch.rand(shape, generator=seeded())
    found = outcome(made, x)
    run_plain(monkeypatch)
    expected = outcome(made.body, x)
    if isinstance(expected, type):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected)


def test_labels_that_do_not_fit_the_images_are_refused() -> None:
    made = build_network(CONFIGS["mlp"], (3, 6, 5), 4, seed=0)
    for count in (3, 5):
        with pytest.raises(ValueError, match="batch_size"):
            made.gradients(
                torch.ones(4, 3, 6, 5),
                torch.zeros(count, dtype=torch.int64),
                nn.functional.cross_entropy,
            )


# Copies.


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_go_their_own_ways(name: str) -> None:
    made = build_network(CONFIGS[name], (3, 6, 5), 4, seed=0)
    x = torch.rand(5, 3, 6, 5, generator=seeded())
    before = made(x)
    made.gradients(x, torch.arange(5) % 4, nn.functional.cross_entropy)
    other = copy.deepcopy(made)
    fresh = build_network(CONFIGS[name], (3, 6, 5), 4, seed=1)
    assert not torch.equal(fresh(x), before)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(other(x), before)
    assert torch.equal(fresh(x), before)
    for copied in (other, fresh):
        with torch.no_grad():
            for values in copied.parameters():
                values.zero_()
        assert not copied(x).any()
    assert torch.equal(made(x), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_network_turned_to_float64_and_back(name: str) -> None:
    made = build_network(CONFIGS[name], (3, 6, 5), 4, seed=0)
    x = torch.rand(5, 3, 6, 5, generator=seeded())
    before = made(x)
    torch.testing.assert_close(made.double()(x.double()), before.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(made.float()(x), before)


# Layers without a dead connection.


def full_network(architecture: str, *, dense_if_full: bool) -> SparseNetwork:
    """A network with all connections live, some of them and of the biases frozen."""
    sizes: dict[str, Any] = (
        {"hidden": (9, 7)} if architecture == "mlp" else {"channels": (4, 5), "fc": (6,)}
    )
    config = NetworkConfig(architecture=architecture, density=1.0, **sizes)
    network = NetworkSpec(config, (2, 8, 8), 3, dense_if_full=dense_if_full).draw(1)
    for number, layer in enumerate(network.layers.values()):
        generator = seeded(number)
        layer.freeze(
            torch.rand(layer.shape, generator=generator) < 0.4,
            torch.rand(layer.shape[0], generator=generator) < 0.4,
        )
    return network


@pytest.mark.parametrize("architecture", ["mlp", "convnet"])
def test_a_full_network_is_the_same_by_dense_products(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "LEAST_DENSE", 1)
    images, labels = torch.randn(7, 2, 8, 8, generator=seeded()), torch.arange(7) % 3
    found = []
    for dense in (False, True):
        network = full_network(architecture, dense_if_full=dense)
        assert (network._whole(images) is None) == dense
        network.gradients(images, labels, nn.functional.cross_entropy)
        found.append((network(images).detach(), [value.grad for value in network.parameters()]))
    (logits, gradients), (dense_logits, dense_gradients) = found
    assert_same(dense_logits, logits.double(), 1e-6)
    for one, other in zip(dense_gradients, gradients, strict=True):
        assert one is not None
        assert other is not None
        assert_same(one, other.double(), 1e-5)


def test_a_network_that_lost_a_connection_runs_on_kernels() -> None:
    images = torch.randn(7, 2, 8, 8)
    config = NetworkConfig(architecture="mlp", density=1.0, hidden=(1000, 100))
    network = NetworkSpec(config, (2, 8, 8), 3, dense_if_full=True).draw(1)
    assert network._whole(images) is None
    layer = network.layers["fc2"]
    pattern = layer.pattern
    pattern[:, 3] = False
    layer.rewire(pattern, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert network._whole(images) is not None


def test_methods_that_drop_connections_have_one_way_for_all_tasks() -> None:
    dropping = {name for name in METHODS if method_class(name).drops_connections}
    assert dropping == {"nispa", "nispa-replay", "nispa-context", "clnp", "nice"}
