"""Habits of users' own modules: each works as it does in the module, or is refused early."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nispa import Learner, compact, sparsify
from nispa.errors import GraphError, IsolationError
from nispa.methods.networks import without_path
from nispa.network.own import OwnModel
from nispa.network.sparsify import own_model

from .own_nets import EXAMPLE, IMAGES, LABELS, SHAPE, Net, assert_same, learned

pytestmark = pytest.mark.filterwarnings("ignore:the network is")


# Norms.


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Swish(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class Twice(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Unscaled(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, None, self.bias, self.eps)


class Tighter(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, 1.0)


@pytest.mark.parametrize(
    "norm",
    [
        functools.partial(Activated, 8), functools.partial(Swish, 2, 8),
        functools.partial(Twice, (8, 6, 6)), functools.partial(Unscaled, 2, 8),
        functools.partial(Tighter, 2, 8),
    ],
)  # fmt: skip
def test_a_norm_that_does_more_is_refused(norm: Callable[[], nn.Module]) -> None:
    with pytest.raises(GraphError, match="'norm' is a"):
        sparsify(Net(norm()), EXAMPLE)


class Named(nn.BatchNorm2d):
    """A norm whose forward is PyTorch's."""


class Cast(nn.GroupNorm):
    """A norm whose forward is the norm alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


@pytest.mark.parametrize("norm", [functools.partial(Named, 8), functools.partial(Cast, 2, 8)])
def test_a_norm_of_another_name_is_taken(norm: Callable[[], nn.Module]) -> None:
    assert_same(Net(norm()))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", [lambda: nn.BatchNorm2d(8), lambda: nn.GroupNorm(2, 8)])
def test_hooks_on_a_norm_stay(kind: Callable[[], nn.Module], before: bool) -> None:
    model = Net(kind())
    with torch.no_grad():
        for value in model.norm.parameters():
            value.normal_()
    if before:
        model.norm.register_forward_pre_hook(lambda _, given: (given[0].square(),))
    else:
        model.norm.register_forward_hook(lambda _, __, result: result * 3)
    assert_same(model)
    learner = learned("nispa", model)
    found = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(found, learner.scores(IMAGES, 0), rtol=1e-4, atol=1e-5)


class Listed(Net):
    """Its layers are in a plain list, too."""

    def more(self) -> None:
        self.steps = [self.a, self.norm, nn.ReLU(), self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("kind", [lambda: nn.BatchNorm2d(8), lambda: nn.GroupNorm(2, 8)])
def test_norms_in_a_plain_list_are_replaced(kind: Callable[[], nn.Module]) -> None:
    assert_same(Listed(kind()))
    learner = learned("nispa", Listed(kind()))
    alone = learner.scores(IMAGES[:1], 0)
    learner.learn(IMAGES[LABELS > 1], LABELS[LABELS > 1])
    assert np.array_equal(learner.scores(IMAGES[:1], 0), alone)
    other = np.concatenate([IMAGES[:1], 0 * IMAGES[:9]])  # an image does not depend on its batch
    np.testing.assert_allclose(learner.scores(other, 0)[:1], alone, rtol=1e-4, atol=1e-5)


class Again(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.norm(self.a(x)).relu()))
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


def test_a_batch_norm_that_is_used_twice() -> None:
    assert_same(Again())
    learned("nispa", Again(), tasks=2)


def test_a_batch_norm_without_momentum() -> None:
    norm = nn.BatchNorm2d(8, momentum=None)
    model = Net(norm)
    assert_same(model)
    assert vars(norm)["momentum"] is None
    compact(learned("nispa", model))


class TwoPaths(Net):
    """A norm has two names."""

    def more(self) -> None:
        self.all = nn.Sequential(self.a, self.norm)
        self.first = self.all[:2]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.b(self.first(x).relu()).relu().mean((2, 3)))
        return logits


def test_a_norm_at_two_paths_is_left_as_it_was_and_put_back_at_both() -> None:
    model = TwoPaths()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = sparsify(model, torch.randn(4, *SHAPE), density=1.0, values="model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(network.body.get_buffer("norm.running_var"), torch.ones(8))
    assert_same(model)
    learner = learned("nispa", TwoPaths())
    found = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(found, learner.scores(IMAGES, 0), rtol=1e-4, atol=1e-5)


class Sized(Net):
    """Reads what a norm says of itself."""

    def forward(self, x: Tensor) -> Tensor:
        x, norm = self.norm(self.a(x)), self.norm
        x = x.view(len(x), int(norm.num_features), -1).mean(2)  # type: ignore[arg-type]
        logits: Tensor = self.head(x)
        return logits


def test_a_norm_still_says_what_it_is() -> None:
    assert_same(Sized())


class Unused(Net):
    """Has norms that its logits do not depend on."""

    def more(self) -> None:
        self.spare = nn.BatchNorm2d(8)
        self.other = nn.InstanceNorm2d(8, track_running_stats=True)


@pytest.mark.parametrize("method", ["ewc", "nispa", "packnet"])
def test_norms_that_are_not_used_are_no_part_of_a_file(method: str, tmp_path: Path) -> None:
    learner = learned(method, Unused())
    learner.save(tmp_path / "net.nispa")
    again = Learner.load(tmp_path / "net.nispa", model=Unused())
    assert np.array_equal(again.scores(IMAGES, 0), learner.scores(IMAGES, 0))


# Tensors beside parameters.


class Waves(Net):
    """Has a tensor that is no buffer."""

    def __init__(self, seed: int = 0) -> None:
        self.seed_of_waves = seed
        super().__init__()

    def more(self) -> None:
        generator = torch.Generator().manual_seed(self.seed_of_waves)
        self.waves = torch.randn(36, 16, generator=generator)
        self.mix = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix((x.flatten(1) @ self.waves).sin()).relu())
        return logits


def test_a_constant_without_a_name_must_be_the_same(tmp_path: Path) -> None:
    learner = learned("nispa", Waves())
    learner.save(tmp_path / "net.nispa")
    again = Learner.load(tmp_path / "net.nispa", model=Waves())
    assert np.array_equal(again.scores(IMAGES, 0), learner.scores(IMAGES, 0))
    with pytest.raises(GraphError, match="constants"):
        Learner.load(tmp_path / "net.nispa", model=Waves(seed=1))


def test_a_file_from_before_constants_counted_fits() -> None:
    one, other = (OwnModel(Waves(seed), EXAMPLE, 4) for seed in (0, 1))
    older = one.fingerprint.partition(" ")[0]
    assert one.fits(older)
    assert other.fits(older)
    assert not other.fits(one.fingerprint)
    assert " " not in OwnModel(Net(), EXAMPLE, 4).fingerprint


class Gated(Net):
    def more(self) -> None:
        self.gate = nn.Parameter(torch.rand(8) + 0.5)
        self.register_buffer("mask", torch.ones(8))


@pytest.mark.parametrize("name", ["gate", "mask", "a.weight"])
def test_what_still_reaches_the_users_module_is_refused(name: str) -> None:
    model = Gated()
    value = model.state_dict(keep_vars=True)[name]
    reach: Callable[..., Tensor] = lambda _, __, result: result * value.flatten()[:8, None, None]  # noqa: E731
    model.b.register_forward_hook(reach)
    with pytest.raises(GraphError, match=f"'{name}' by another way"):
        sparsify(model, EXAMPLE)


# Parameters while it runs.


class Looks(Net):
    """Asks its parameters where and what they are."""

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.parameters())
        logits: Tensor = super().forward(x.to(first.device, first.dtype))
        return logits


def test_parameters_are_found_while_it_runs() -> None:
    assert_same(Looks())
    learner = learned("nispa", Looks(), tasks=2)
    assert not list(learner.method.network_for(learner.tasks[0]).body.parameters())


class Saving(Net):
    """Runs a part of it anew for its gradients."""

    def forward(self, x: Tensor) -> Tensor:
        run = lambda x: self.b(self.norm(self.a(x)).relu()).relu()  # noqa: E731
        x = checkpoint(run, x, use_reentrant=False)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_checkpoints_are_refused_before_training() -> None:
    with pytest.raises(GraphError, match="checkpoint"):
        sparsify(Saving(), EXAMPLE)
    with pytest.raises(GraphError, match="checkpoint"):
        own_model(Saving(), None, SHAPE, 4)


class Mixes(Net):
    """In evaluation, logits that depend on all others."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits if self.training else logits.softmax(1)


@pytest.mark.parametrize("seed", range(20))
def test_no_draw_of_the_trial_misses_what_mixes_logits(seed: int) -> None:
    with pytest.raises(IsolationError):
        sparsify(Mixes(), EXAMPLE, seed=seed)


# Tokens.


class Tokens(nn.Module):
    def __init__(self, whole: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(17, width), nn.Linear(width, 4)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(self.whole(x)).mean(1))
        return logits


def clamped(x: Tensor) -> Tensor:
    return x.long().clamp(0, 16)


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_tables_are_paths_from_the_input(density: float) -> None:
    model = Tokens(clamped)
    network = sparsify(model, torch.zeros(2, 36), density=density)
    assert network.unreached() == ()
    Learner("finetune", model=model, input_shape=(36,), classes=4, density=density)


class FromTokens(nn.Module):
    """A stream that a table and a layer write."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.step, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(clamped(x).clamp(0, 4)).mean(1)
        logits: Tensor = self.head(x + self.step(x).relu())
        return logits


def test_a_stream_that_begins_in_a_table() -> None:
    assert sparsify(FromTokens(), torch.zeros(2, 6), density=1.0).unreached() == ()


def test_no_density_is_named_where_none_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner("finetune", model=Tokens(clamped), input_shape=(36,), classes=4)
    network = learner.method.spec().draw(0)
    monkeypatch.setattr(type(network), "unreached", lambda self: (1,))
    assert "no density" in without_path(learner.method, (1,), 0)


@pytest.mark.parametrize("whole", [lambda x: x.long(), lambda x: x])
def test_a_learner_says_what_tokens_need(whole: Callable[[Tensor], Tensor]) -> None:
    tokens = torch.zeros(2, 36, dtype=torch.int64)
    with pytest.raises(GraphError, match="clamp"):
        Learner(model=Tokens(whole), example_input=tokens, classes=4)
    sparsify(Tokens(whole), tokens)


# What comes out.


@dataclass
class Output:
    """What other libraries return."""

    logits: Tensor
    loss: Tensor | None = None


class Returns(Net):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def test_an_output_class_that_pytorch_does_not_know() -> None:
    assert_same(Returns(Output), lambda result: result.logits)
    assert_same(Returns(lambda logits: (logits, Output(logits))), lambda result: result[0])
    learner = learned("nispa", Returns(Output))
    found = compact(learner)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(found, learner.scores(IMAGES, 0), rtol=1e-4, atol=1e-5)
