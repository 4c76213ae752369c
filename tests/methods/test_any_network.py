"""Methods on networks of any module: nothing is forgotten, and a learner comes back as it was."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nispa.backbones import BACKBONES
from nispa.base.config import build
from nispa.base.seeding import stream
from nispa.data.tasks import Samples, Task
from nispa.errors import ConfigError, FormatError, IsolationError
from nispa.methods import METHODS, method_class
from nispa.methods.base import Method, MethodState, Problem
from nispa.methods.nispa import Nispa
from nispa.methods.presets import resolve
from nispa.methods.stable import is_frozen
from nispa.network.architecture import ARCHITECTURES
from nispa.network.backbone import Backbone
from nispa.network.models import NetworkConfig
from nispa.network.norms import GenerationNorm, UnitBatchNorm
from nispa.network.traced import TracedNetwork
from nispa.network.unit_values import UnitValues
from tests.methods.toy import finish

TASKS = 5
FEW = 3
SMALL: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "mlp": ((1, 3, 4), ("hidden=12x10",)),
    "convnet": ((2, 8, 8), ("channels=4x6", "fc=8x")),
    "resnet18": ((3, 8, 8), ("width=4",)),
    "vgg11-bn": ((3, 32, 32), ("width=2",)),
    "mobilenet-small": ((3, 8, 8), ("width=4",)),
    "vit-tiny": ((3, 8, 8), ("width=24", "heads=6", "blocks=1", "dropout=0.1")),
    "conv1d": ((5, 3, 4), ("channels=8x8", "kernels=5x3")),
}
QUICK: dict[str, dict[str, Any]] = {
    "nispa": {"epochs_per_phase": 1, "max_phases": 4, "k": 8},
    "clnp": {"epochs": 1, "margin": 20.0},
    "packnet": {"epochs": 1, "retrain_epochs": 1},
    "wsn": {"epochs": 1},
    "piggyback": {"epochs": 1},
    "supsup": {"epochs": 1},
    "nispa-context": {"epochs_per_phase": 1, "max_phases": 4, "k": 8, "growth": "gradient"},
}
NEVER = tuple(QUICK)
MOVES = ("nispa", "nispa-context")  # connections


def test_a_case_for_each_backbone() -> None:
    assert set(SMALL) == set(BACKBONES)


def samples(shape: tuple[int, ...], index: int, count: int, part: str) -> Samples:
    """Two classes, a random pattern each, with noise."""
    labels = torch.arange(count) % 2
    noise = torch.randn(count, *shape, generator=stream(7, "noise", index, part))
    patterns = torch.randn(2, *shape, generator=stream(7, "patterns", index))
    return Samples(0.3 * noise + patterns[labels], labels + 2 * index)


def task_of(shape: tuple[int, ...], index: int, count: int = 16) -> Task:
    return Task(
        index,
        f"task {index}",
        (2 * index, 2 * index + 1),
        samples(shape, index, count, "train"),
        samples(shape, index, 8, "validation"),
        samples(shape, index, 16, "test"),
    )


def made(name: str, backbone: str, **settings: Any) -> Method:
    """A method that has started, on a backbone that is traced."""
    shape, arguments = SMALL[backbone]
    density = settings.pop("density", 0.5)
    network = {"architecture": f"{backbone} traced", "arguments": arguments, "density": density}
    quick = {"learning_rate": 0.01, "batch_size": 8, **QUICK.get(name, {}), **settings}
    cls = method_class(name)
    problem = Problem(shape, 2 * TASKS, TASKS)  # type: ignore[arg-type, unused-ignore]
    method = cls(problem, build(NetworkConfig, network), build(cls.config_class, quick), seed=1)
    method.start()
    return method


def series(shape: tuple[int, ...], classes: int, **arguments: Any) -> nn.Module:
    """A network of series, which are read from images line by line."""
    channels, height, width = shape
    net = BACKBONES["conv1d"].build((channels, height * width), classes, **arguments)
    return nn.Sequential(nn.Flatten(2), net)


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All backbones are traced, those with kernels of their own, too."""
    for name, backbone in BACKBONES.items():
        entry = f"{name} traced"
        build = series if name == "conv1d" else backbone.build
        monkeypatch.setitem(ARCHITECTURES, entry, Backbone(entry, build))


def logits(method: Method, task: Task, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = method.network_for(task.info).eval()(images)
    return found[:, list(task.classes)]


CASES = [(name, backbone) for name in ("nispa", "clnp", "packnet") for backbone in SMALL] + [
    (name, backbone)
    for name in ("wsn", "piggyback", "supsup", "nispa-context")
    for backbone in ("resnet18", "vit-tiny")
]
APART = [
    *(("nispa", backbone) for backbone in SMALL),
    *(("clnp", backbone) for backbone in ("convnet", "resnet18", "vit-tiny")),
    *(("packnet", backbone) for backbone in ("mlp", "resnet18", "vit-tiny")),
    *(("wsn", "vit-tiny"), ("piggyback", "resnet18"), ("supsup", "vit-tiny")),
    ("nispa-context", "resnet18"),
]
"""Each backbone and each method once, and what freezes by units, by weights and by masks on
batch norms, which keep statistics, and on norms over units. The others add no code of their own."""


def test_each_method_and_each_backbone_is_among_them() -> None:
    assert set(APART) <= set(CASES)
    assert {name for name, _ in APART} == set(NEVER)
    assert {backbone for _, backbone in APART} == set(SMALL)


@pytest.mark.parametrize(
    ("name", "backbone", "tasks"),
    [
        *((*case, FEW) for case in APART),
        *(pytest.param(*case, TASKS, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_nothing_is_forgotten(name: str, backbone: str, tasks: int) -> None:
    shape = SMALL[backbone][0]
    method, images = made(name, backbone), torch.randn(6, *shape)
    network = method.network
    assert isinstance(network, TracedNetwork)
    owed = getattr(method, "owed", {})
    constant = sum(layer.live_count for layer in network.layers.values())
    known: list[tuple[Task, Tensor]] = []
    for index in range(tasks):
        task = task_of(shape, index)
        finish(method.learn(task))
        for earlier, then in known:
            assert torch.equal(logits(method, earlier, images), then)
        known.append((task, logits(method, task, images)))
        if name in MOVES:
            assert is_frozen(method.network, method.stable)  # type: ignore[attr-defined]
            assert method.network.holds(method.stable)  # type: ignore[attr-defined]
            owed = method.owed  # type: ignore[attr-defined]
        if name != "clnp":  # in which no connection grows in place of one that is cut
            live = sum(layer.live_count for layer in method.network.layers.values())
            assert live + sum(owed.values()) == constant
    other = made(name, backbone)
    other.learned = list(method.learned)
    other.load_state(method.state())
    for earlier, then in known:
        assert torch.equal(logits(other, earlier, images), then)


@pytest.mark.parametrize(
    "name", [*NEVER, "nispa-replay", "ewc", "er", "stl", "icarl", "cbp", "redo"]
)
def test_a_task_is_learned(name: str) -> None:
    by_class = name in ("nispa-replay", "icarl")
    incremental = {"incremental": "class"} if by_class else {}
    longer: dict[str, Any] = {"epochs": 12}
    if name == "piggyback":
        longer["mask_rate"] = 0.01
    backbone = "conv1d"
    if name == "supsup":  # with fixed weights and no statistics, the series are hard
        backbone, longer["density"], longer["learning_rate"] = "mlp", 1.0, 0.1
    if name.startswith("nispa"):
        longer = {"epochs_per_phase": 4, "max_phases": None, "k": 6, "accuracy_drop": 10}
    method = made(name, backbone, **longer, **incremental)
    for index in range(2):
        task = task_of(SMALL[backbone][0], index, 48)
        finish(method.learn(task))
        images, labels = task.test.batch(slice(None))
        right = method.predict(images, task.info) == labels
        assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize(
    ("backbone", "index"),
    [
        ("resnet18", 2),
        ("vit-tiny", 0),
        ("vit-tiny", 2),
        *(
            pytest.param(backbone, index, marks=pytest.mark.slow)
            for backbone, index in (("resnet18", 0), ("mobilenet-small", 0), ("mobilenet-small", 2))
        ),
    ],
)
def test_a_task_is_forgotten_on_purpose(backbone: str, index: int) -> None:
    shape = SMALL[backbone][0]
    method = made("nispa", backbone, max_share_per_task=0.3)
    assert isinstance(method, Nispa)
    tasks, images = [task_of(shape, each) for each in range(4)], torch.randn(6, *shape)
    for task in tasks[:3]:
        finish(method.learn(task))
    known = {task.index: logits(method, task, images) for task in tasks[:3]}
    plastic = {name: ~units for name, units in method.stable.items()}
    promised = method.forget(tasks[index].info, dry_run=True)
    assert method.forget(tasks[index].info) == promised
    freed = {name: int((~method.stable[name] & ~plastic[name]).sum()) for name in promised}
    assert freed == promised
    if index == 2:  # no other task's norms read its units
        assert sum(promised.values()) > 0
    others = [task for task in tasks[:3] if task.index != index]
    assert is_frozen(method.network, method.stable)
    assert method.network.holds(method.stable)
    assert all(torch.equal(logits(method, task, images), known[task.index]) for task in others)
    other = made("nispa", backbone, max_share_per_task=0.3)
    other.learned = list(method.learned)
    other.load_state(method.state())
    for each in (method, other):
        finish(each.learn(tasks[3]))
        for task in others:
            assert torch.equal(logits(each, task, images), known[task.index])
    left, right = method.state().tensors, other.state().tensors
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("name", ["nispa", "packnet"])
@pytest.mark.parametrize(("kind", "backbone"), [(UnitBatchNorm, "conv1d"), (UnitValues, "conv1d")])
def test_what_is_not_held_is_found(
    name: str, kind: type[Any], backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "hold", lambda *_: None)
    method = made(name, backbone)
    with pytest.raises(IsolationError, match="logits of kept classes change"):
        finish(method.learn(task_of(SMALL[backbone][0], 0)))


@pytest.mark.parametrize("backbone", ["resnet18", "vit-tiny"])
def test_predicting_before_learning_changes_nothing_learned(backbone: str) -> None:
    shape, states = SMALL[backbone][0], []
    for online in (False, True):  # batch norm takes statistics, dropout draws: in training alone
        method = made("finetune", backbone, epochs=2, online=online)
        _, report = finish(method.learn(task_of(shape, 0)))
        assert (report.online_accuracy is not None) == online
        states.append(method.state().tensors)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_norm_over_all_units_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GenerationNorm, "settle", lambda *_: None)
    with pytest.raises(IsolationError, match="logits of kept classes change"):
        finish(made("nispa", "vit-tiny").learn(task_of(SMALL["vit-tiny"][0], 0)))


def test_a_method_that_cannot_says_so() -> None:
    hand = {name for name, method in METHODS.items() if not method.any_network}
    assert "hat" in hand
    assert hand.isdisjoint({"wsn", "piggyback", "supsup", "icarl", "cbp", "redo", "nispa-context"})
    for name in hand:
        with pytest.raises(ConfigError, match=rf"method '{name}' works on mlp and convnet alone"):
            resolve(name, "default", "", (3, 32, 32), {"architecture": "resnet18"})
    for name in METHODS.keys() - hand:
        settings = resolve(
            name, "default", "split-mnist", (3, 32, 32), {"architecture": "resnet18"}
        )
        assert settings.network.architecture == "resnet18"
        assert "learning_rate" in settings.config.derived  # not tuned for another network


@functools.cache
def learned_once(name: str, backbone: str) -> Method:
    """A method that has learned a task, for tests that change nothing of it."""
    method = made(name, backbone)
    finish(method.learn(task_of(SMALL[backbone][0], 0)))
    return method


def first_of(state: MethodState, end: str) -> str:
    return next(name for name in state.tensors if name.endswith(end))


@pytest.mark.parametrize(
    ("name", "backbone", "end", "change", "said"),
    [
        ("nispa", "resnet18", "bn1.stable", torch.zeros_like, "norms and values are not kept"),
        ("clnp", "resnet18", "bn1.stable", torch.logical_not, "what is frozen is not what joins"),
        ("packnet", "resnet18", "bn1.stable", torch.zeros_like, "as after the first task"),
        ("wsn", "vit-tiny", "norm1.stable", torch.zeros_like, "as after the first task"),
        ("nispa", "resnet18", "bn1.stable", torch.Tensor.long, "must say yes or no"),
        ("nispa", "resnet18", "running_var", torch.neg, "running_var holds a negative number"),
        ("nispa", "resnet18", "batches_tracked", lambda x: x - 10**9, "holds a negative number"),
        ("nispa", "vit-tiny", "generation", lambda x: x + 10**12, "whole numbers from 0 to 24"),
        ("nispa", "vit-tiny", "generation", torch.Tensor.float, "whole numbers from 0 to 24"),
        ("nispa", "resnet18", "bn1.running_mean", lambda x: x[:-1], "size mismatch"),
        ("nispa", "vit-tiny", "base", lambda x: x[:-1], "values in all, not"),
        ("nispa", "vit-tiny", "norm1.generation", None, "Missing key"),
        ("nispa", "resnet18", "bn1/bias.value", None, "Missing key"),
    ],
)
def test_norms_and_values_of_a_file_are_checked(
    name: str, backbone: str, end: str, change: Any, said: str
) -> None:
    method, other = learned_once(name, backbone), made(name, backbone)
    state = method.state()
    place = first_of(state, end)
    if change is None:
        del state.tensors[place]
    else:
        state.tensors[place] = change(state.tensors[place])
    other.learned = list(method.learned)
    with pytest.raises(FormatError, match=said) as found:
        other.load_state(state)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500
