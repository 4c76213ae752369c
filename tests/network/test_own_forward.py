"""What users' own forward passes do: they draw, branch, keep caches, compute complex numbers."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nispa import Learner, compact, sparsify
from nispa.errors import ConfigError, GraphError, IsolationError
from nispa.methods.nispa import Nispa

from .own_nets import BRIEF, EXAMPLE, IMAGES, LABELS, SHAPE, Net, assert_same, learned

pytestmark = pytest.mark.filterwarnings("ignore:the network is")


# First units that no layer writes.


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(36))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 36)

    def forward(self, x: Tensor) -> Tensor:
        whole: Tensor = self.table((x[:, :18] * 8).long().clamp(0, 7)).mean(1)
        return whole


def bright_halves() -> tuple[np.ndarray, np.ndarray]:
    """Images whose upper half is bright, or the lower one, and which it is."""
    lower = np.arange(40) % 2
    images = IMAGES * 0.3
    for image, half in zip(images, lower, strict=True):
        image[:, 3 * half : 3 * half + 3] += 0.6
    return images, lower


@pytest.mark.parametrize(
    "first", [lambda: nn.BatchNorm1d(36), lambda: nn.LayerNorm(36), Scaled, Table]
)
def test_a_task_may_rest_on_units_that_no_layer_writes(first: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), first(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4)]
    brief: dict[str, Any] = {"max_phases": 4, "epochs_per_phase": 10, "settle_epochs": 60}
    learner = Learner(
        model=nn.Sequential(*layers), input_shape=SHAPE, classes=4, density=0.5, **brief
    )
    images, bright = bright_halves()
    learner.learn(images, bright)
    before = learner.scores(images, 0)
    assert learner.accuracy(images, bright, task=0) > 0.9
    assert isinstance(learner.method, Nispa)
    assert all(int(units.sum()) for units in learner.method.stable.values())
    learner.learn(images, 2 + bright)
    assert np.array_equal(before, learner.scores(images, 0))


@pytest.mark.parametrize("method", ["nispa", "nispa-context", "clnp", "packnet"])
def test_a_network_without_hidden_units(method: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    brief = {**BRIEF, "epochs_per_phase": 40} if "nispa" in method else {"epochs": 60}
    learner = Learner(method, model=model, input_shape=SHAPE, classes=4, density=0.5, **brief)
    images, bright = bright_halves()
    learner.learn(images, bright)
    before = learner.scores(images, 0)
    learner.learn(images, 2 + bright)
    assert learner.accuracy(images, bright, task=0) > 0.8
    assert np.array_equal(before, learner.scores(images, 0))


@pytest.mark.parametrize("seed", range(6))
def test_layers_that_read_a_part_of_a_group(seed: int) -> None:
    groups = [nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=2)]
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), groups[0], nn.ReLU(), groups[1], nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    learner = learned("nispa", model, tasks=2, seed=seed)
    live = sum(layer.live_count for layer in learner.method.network.layers.values())
    assert isinstance(learner.method, Nispa)
    first = learned("nispa", model, seed=seed, tasks=0)
    drawn = sum(layer.live_count for layer in first.method.network.layers.values())
    assert live + sum(learner.method.owed.values()) == drawn


# Draws and branches.


class Skips(Net):
    """Leaves a layer out at random, as stochastic depth is often written."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        if not self.training or self.draw() < 0.5:
            x = x + self.b(x).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.random()])
def test_a_way_taken_by_pythons_or_numpys_draws_is_refused(draw: Callable[[], float]) -> None:
    for seed in range(4):
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.random()
        np.random.seed(seed)
        with pytest.raises(GraphError, match="another draw"):
            sparsify(Skips(draw), EXAMPLE)
        assert (random.getstate(), np.random.random()) == before


class Mirrors(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.flip(-1) if self.training and random.random() < 0.5 else x)


def test_draws_that_leave_the_units_alone_are_taken(tmp_path: Path) -> None:
    learner = learned("nispa", Mirrors())
    learner.save(tmp_path / "a.safetensors")
    for seed in range(3):
        random.seed(seed)
        again = Learner.load(tmp_path / "a.safetensors", model=Mirrors())
        assert np.array_equal(again.scores(IMAGES, 0), learner.scores(IMAGES, 0))


class Alone(Net):
    """Takes another way for a single sample."""

    def more(self) -> None:
        self.a, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x)).relu()
        y = y if len(x) == 1 else self.b(y).relu()
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def test_a_way_of_its_own_for_one_sample_is_found() -> None:
    with pytest.raises(IsolationError, match="number of samples"):
        sparsify(Alone(), EXAMPLE)


class Squeezes(Net):
    """Does not run on one sample."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(x)).relu()).relu()
        logits: Tensor = self.head(x.mean((2, 3)).squeeze()[:, :])
        return logits


def test_a_module_that_does_not_run_on_one_sample_is_still_checked_on_more() -> None:
    assert_same(Squeezes())


# Places that are constants.


class Picks(Net):
    """Picks activations at places that it knows."""

    order: Tensor

    def __init__(self, pick: Callable[[Any, Tensor], Tensor], left: int = 8) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 2, 0, 7, 6, 5, 4]))
        self.register_buffer("mask", torch.tensor([True, False] * 4))
        self.pick, self.b = pick, nn.Conv2d(left, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pick(self, self.norm(self.a(x)).relu())
        logits: Tensor = self.head(self.b(x).relu().mean((2, 3)))
        return logits


def in_steps(self: Any, x: Tensor) -> Tensor:
    places = torch.arange(6)
    whole, late = places.view(2, 3), places[4:]
    places += 2
    whole[0] *= 0
    late -= self.order[3:5]
    return x[:, places]


PICKS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "a buffer": (lambda self, x: x[:, self.order], 8),
    "a view of it": (lambda self, x: x[:, self.order.view(2, 4).t().flatten()], 8),
    "a list": (lambda self, x: x[:, [3, 1, 2, 0]], 4),
    "a mask": (lambda self, x: x[:, self.mask], 4),
    "computed": (lambda self, x: x[:, torch.arange(8).flip(0)], 8),
    "in steps": (in_steps, 6),
    "index_select": (lambda self, x: x.index_select(1, self.order[:5]), 5),
    "pixels": (lambda self, x: x[..., self.order[1:3, None], self.order[1:3]], 8),
}


@pytest.mark.parametrize("name", PICKS)
def test_picking_at_constant_places(name: str) -> None:
    assert_same(Picks(*PICKS[name]))
    learner = learned("nispa", Picks(*PICKS[name]))
    before = learner.scores(IMAGES, 0)
    again = LABELS // 2 == 1
    learner.learn(IMAGES[again], LABELS[again])
    assert np.array_equal(before, learner.scores(IMAGES, 0))
    if name == "a mask":
        with pytest.raises(ConfigError, match=r"cannot be compacted.*a buffer of whole numbers"):
            compact(learner)
        return
    cut = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(cut[:, :2], before[:, :2], rtol=1e-4, atol=1e-5)


def by_draw(self: Any, x: Tensor) -> Tensor:
    return x[:, torch.randperm(8)]


def by_input(self: Any, x: Tensor) -> Tensor:
    return x[:, (x.sum((0, 2, 3)) > 0).long()]


def changed(self: Any, x: Tensor) -> Tensor:
    places = torch.zeros(8, dtype=torch.int64)
    places += x[0, 0, 0, 0].long().clamp(0, 7)
    return x[:, places]


def through_a_view(self: Any, x: Tensor) -> Tensor:
    places = torch.zeros(8, dtype=torch.int64)
    places[:4].copy_(x[0, 0, 0, :4].long().clamp(0, 7))
    return x[:, places]


@pytest.mark.parametrize(
    ("pick", "wrong"),
    [(by_draw, "picks among units"), (by_input, "places that depend on units"),
     (changed, "places that depend on units"), (through_a_view, "places that depend on units")],
)  # fmt: skip
def test_picking_at_other_places_is_refused(
    pick: Callable[[Any, Tensor], Tensor], wrong: str
) -> None:
    with pytest.raises(GraphError, match=wrong):
        sparsify(Picks(pick), EXAMPLE)


class Windows(nn.Module):
    """Attention with a bias that a table holds for each distance, as in Swin."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 48)
        self.end, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.table = nn.Parameter(torch.randn(5, 2))
        self.register_buffer(
            "places", (torch.arange(9)[:, None] - torch.arange(9)).clamp(-2, 2) + 2
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(x).reshape(len(x), 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.view(-1)].view(9, 9, 2).permute(2, 0, 1)
        shares = (query @ key.transpose(-2, -1) * 0.3 + bias).softmax(-1)
        x = x + self.end((shares @ value).transpose(1, 2).reshape(len(x), 9, 16))
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_a_table_of_biases_that_is_read_at_constant_places() -> None:
    assert_same(Windows())
    learner = learned("nispa", Windows())
    before = learner.scores(IMAGES, 0)
    again = LABELS // 2 == 1
    learner.learn(IMAGES[again], LABELS[again])
    assert np.array_equal(before, learner.scores(IMAGES, 0))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm(affine: bool) -> None:
    assert_same(Net(nn.InstanceNorm2d(8, affine=affine)))
    learned("nispa", Net(nn.InstanceNorm2d(8, affine=affine)), tasks=2)
    with pytest.raises(GraphError, match="track_running_stats=False"):
        sparsify(Net(nn.InstanceNorm2d(8, affine=affine, track_running_stats=True)), EXAMPLE)


# What forward keeps and computes.


class Remembers(Net):
    """Makes its table of waves when it first runs, as rotary embeddings do."""

    waves: Tensor | None
    phase: Tensor

    def more(self) -> None:
        self.size = 0
        self.register_buffer("waves", None, persistent=False)

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] > self.size:
            self.size = x.shape[-1]
            self.waves = torch.arange(self.size).float().cos()
            self.register_buffer("phase", torch.ones(1), persistent=False)
        assert self.waves is not None
        return super().forward(x * self.waves + self.phase)


def test_buffers_made_by_the_first_pass(tmp_path: Path) -> None:
    assert_same(Remembers())
    learner = learned("nispa", Remembers(), tasks=2)
    learner.save(tmp_path / "a.safetensors")
    again = Learner.load(tmp_path / "a.safetensors", model=Remembers())
    assert np.array_equal(again.scores(IMAGES, 0), learner.scores(IMAGES, 0))


class Spectrum(Net):
    """Reads the size of a transform with complex numbers of its own."""

    waves: Tensor

    def more(self) -> None:
        angles = 2 * math.pi * torch.arange(6)[:, None] * torch.arange(6) / 6
        self.register_buffer("waves", torch.exp(1j * angles))

    def forward(self, x: Tensor) -> Any:
        return super().forward((x[..., None, :] * self.waves).sum(-1).abs())


def test_complex_constants_keep_their_imaginary_part() -> None:
    assert_same(Spectrum())


@functools.cache
def scripted() -> Callable[[Tensor], Tensor]:
    return torch.jit.script(swish)


class Scripted(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = scripted()(self.b(scripted()(self.norm(self.a(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_functions_behind_convolutions() -> None:
    assert_same(Scripted())
    learned("nispa", Scripted(), tasks=2)


class Tied(Net):
    """One weight in two modules, and of an embedding, one of which the forward pass reads."""

    def more(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.c.weight = self.b.weight
        self.table, self.again = nn.Embedding(8, 8), nn.Embedding(8, 8)
        self.again.weight = self.table.weight

    def forward(self, x: Tensor) -> Any:
        y = self.again((x[:, 0, 0] * 8).long().clamp(0, 7)).mean(1)[..., None, None]
        x = self.b(self.norm(self.a(x) + y).relu()).relu()
        return self.head(self.c(x).mean((2, 3)))


def test_a_parameter_of_two_modules(tmp_path: Path) -> None:
    assert_same(Tied())
    learner = learned("nispa", Tied())
    before = learner.scores(IMAGES, 0)
    learner.learn(IMAGES[LABELS > 1], LABELS[LABELS > 1])
    assert np.array_equal(before, learner.scores(IMAGES, 0))
    learner.save(tmp_path / "a.safetensors")
    again = Learner.load(tmp_path / "a.safetensors", model=Tied())
    assert np.array_equal(before, again.scores(IMAGES, 0))
    cut = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(cut[:, :2], before[:, :2], rtol=1e-4, atol=1e-5)


class Keeps(Net):
    """Keeps what it computes of its values while it is evaluated, until it is told to train."""

    def more(self) -> None:
        self.bias = nn.Parameter(torch.zeros(8))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Keeps:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        bias = self.bias.exp()
        if not self.training:
            bias = self.kept.setdefault("bias", bias.detach())
        x = self.b(self.norm(self.a(x)).relu() + bias[:, None, None]).relu()
        return self.head(x.mean((2, 3)))


def test_what_a_module_keeps_until_it_trains() -> None:
    learner = learned("nispa", Keeps())
    before = learner.scores(IMAGES, 0)
    cut = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(cut[:, :2], before[:, :2], rtol=1e-4, atol=1e-5)
    learner.learn(IMAGES[LABELS > 1], LABELS[LABELS > 1])
    assert np.array_equal(before, learner.scores(IMAGES, 0))


class Precise(Net):
    """Leaves autocast for what must be exact, once inside of itself; ``mixed`` enters it."""

    mixed = False

    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            x = self.norm(self.a(x).float())
            with torch.autocast("cuda", enabled=False):
                y = x.relu()
        return self.head((self.b(y) + x).mean((2, 3)))


def test_autocast_in_the_forward_pass_may_be_left_but_not_entered() -> None:
    assert_same(Precise())
    entered = Precise()
    entered.mixed = True
    with pytest.raises(GraphError, match=r"wrap_with_autocast.*take torch.no_grad, autocast"):
        sparsify(entered, EXAMPLE)
