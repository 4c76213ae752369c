"""The rules from data to settings, worked out by hand, and where they apply."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nispa import Learner
from nispa.base.config import as_json, describe
from nispa.data.own_tasks import from_tasks
from nispa.data.sources import load
from nispa.errors import ConfigError, UnknownNameError
from nispa.methods import METHODS, method_class
from nispa.methods.defaults import (
    RULES,
    Facts,
    architecture,
    batch_size,
    epochs_per_phase,
    max_share_per_task,
    memory,
    min_phases,
    network,
    sentence,
    unit_share,
    width,
)
from nispa.methods.presets import resolve, settings_of
from nispa.runs.record import read_record
from nispa.runs.recording import derived_line
from nispa.runs.runner import Experiment, run


def facts(images: int, classes: int = 2, outputs: int = 10, optimiser: str = "adam") -> Facts:
    return Facts(images, classes, outputs, optimiser)


@pytest.mark.parametrize(
    ("images", "size"),
    [(1, 16), (127, 16), (255, 16), (256, 32), (270, 32), (1023, 64), (1024, 128), (10**6, 128)],
)
def test_a_batch_is_an_eighth_of_the_images(images: int, size: int) -> None:
    assert batch_size(facts(images)) == size


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 8, 8), "mlp"),
        ((1, 15, 40), "mlp"),
        ((1, 1, 784), "mlp"),
        ((1, 16, 16), "convnet"),
        ((3, 32, 32), "convnet"),
    ],
)
def test_images_from_16_pixels_on_get_a_convnet(shape: tuple[int, int, int], kind: str) -> None:
    assert architecture(shape) == kind
    found = resolve("nispa", "default", "split", shape)
    assert found.network.architecture == kind


@pytest.mark.parametrize(
    ("outputs", "tasks", "convnet", "mlp"),
    [
        (10, 5, 1.5, 1.0),  # 5 * sqrt(2) = 7.1 of thirty rooms
        (94, 5, 1.5, 1.0),  # 5 * sqrt(18.8) = 21.7
        (100, 20, 1.5, 1.491),  # 20 * sqrt(5) = 44.7
        (100, None, 1.5, 1.054),  # ten tasks of ten: 31.6
        (200, 20, 2.108, 2.108),  # 20 * sqrt(10) = 63.2
        (1000, 200, 3.0, 3.0),
    ],
)
def test_networks_are_as_wide_as_all_tasks_need(
    outputs: int, tasks: int | None, convnet: float, mlp: float
) -> None:
    assert width("convnet", outputs, tasks) == pytest.approx(convnet, abs=1e-3)
    assert width("mlp", outputs, tasks) == pytest.approx(mlp, abs=1e-3)


def test_a_wide_network_has_units_that_read_as_many_others() -> None:
    found = network("convnet", (1, 28, 28), 450, 8)  # 8 * sqrt(56.25) = 60 rooms, twice thirty
    assert found["channels"] == (128, 128, 256, 256)
    assert found["fc"] == (2048,)
    assert found["density"] == 0.05
    assert network("mlp", (1, 8, 8), 450, 8)["hidden"] == (800, 800, 800)
    assert network("convnet", (1, 28, 28), 10, 5)["channels"] == (96, 96, 192, 192)


def test_larger_images_get_more_convolutions() -> None:
    counts = [len(network("convnet", (3, side, side), 10, 5)["channels"]) for side in (16, 32, 48)]
    assert counts == [4, 4, 4]
    assert len(network("convnet", (3, 64, 64), 10, 5)["channels"]) == 6
    assert len(network("convnet", (3, 224, 224), 10, 5)["channels"]) == 10


def test_memory_is_a_hundred_a_class_within_bounds() -> None:
    assert [memory(outputs) for outputs in (2, 10, 57, 6000)] == [200, 1000, 5000, 6000]


def test_a_task_may_take_half_more_than_its_share_of_the_classes_to_come() -> None:
    assert unit_share(facts(100, 2, 10)) == pytest.approx(0.3)
    assert unit_share(facts(100, 2, 3)) == unit_share(facts(100, 2, 2)) == 1.0
    assert unit_share(facts(100, 0, 8)) == 0.1875  # classes all known: as if it had one
    half = replace(facts(100, 2, 10), share_factor=0.5)
    assert unit_share(half) == pytest.approx(0.1)
    assert unit_share(replace(half, outputs=2)) == 1.0  # the last task may keep all


def test_a_network_of_any_module_has_a_limit_for_each_task() -> None:
    own = replace(facts(100, 2, 6), kind="resnet18", all_outputs=10)
    assert max_share_per_task(own) == pytest.approx(0.2)
    assert max_share_per_task(replace(own, outputs=2)) == 1.0  # the last task
    assert max_share_per_task(replace(own, fresh=False)) == 1.0
    assert max_share_per_task(replace(own, incremental="class")) == 1.0
    assert max_share_per_task(replace(own, kind="convnet")) == 1.0


def test_a_phase_has_fifty_updates_and_a_whole_fit_eight_hundred() -> None:
    few = facts(270)  # batches of 32: nine updates an epoch
    assert (epochs_per_phase(few), RULES["epochs"](few), RULES["settle_epochs"](few)) == (6, 96, 96)
    usual = facts(6000)  # batches of 128: 47 updates
    assert (epochs_per_phase(usual), RULES["epochs"](usual)) == (5, 40)
    many = facts(60_000)  # 469 updates
    assert (epochs_per_phase(many), RULES["epochs"](many)) == (2, 16)


def test_the_learning_rate_is_the_optimisers() -> None:
    rule = RULES["learning_rate"]
    assert rule(facts(100)) == 0.003
    assert rule(facts(100, optimiser="sgd")) > rule(facts(100))
    assert rule(replace(facts(100), kind="mlp")) == 0.01


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ((1, 16, 16), "crop"),
        ((3, 64, 32), "crop"),
        ((3, 15, 40), "off"),
        ((784,), "off"),
        ((3, 100), "off"),
    ],
)
def test_images_for_a_convnet_are_varied(shape: tuple[int, ...], word: str) -> None:
    assert RULES["augment"](replace(facts(100), shape=shape)) == word


def test_the_line_tells_ranges_over_tasks() -> None:
    tasks = [{"batch_size": 32, "decay": "linear"}, {"batch_size": 16, "decay": "linear"}]
    line = sentence({"channels": (4, 8)}, tasks)
    assert line == (
        "network: channels 4-8; derived from the data: batch_size 16 to 32, decay linear"
    )
    assert sentence({"channels": (4, 8)}, []) == ""


# --- Where they apply ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_derives_what_it_has_and_nothing_that_was_set(name: str) -> None:
    fields = {field.name for field in describe(method_class(name).config_class)}
    found = resolve(name, "default", "split", (1, 28, 28), {"batch_size": 7})
    assert set(found.config.derived) == (set(RULES) & fields) - {"batch_size"}
    assert found.config.batch_size == 7


@pytest.mark.parametrize("preset", ["efmnist", "paper-cifar10", "paper"])
def test_published_presets_derive_nothing(preset: str) -> None:
    assert resolve("nispa", preset, "split", (1, 28, 28)).config.derived == ()


@pytest.mark.parametrize(
    "scenario", ["efmnist", "split-mnist", "split-digits", "split-cifar10", "split-cifar100"]
)
def test_scenarios_with_a_benchmark_derive_nothing(scenario: str) -> None:
    for name in METHODS:
        assert resolve(name, "default", scenario, (1, 28, 28)).config.derived == ()


TODAY: dict[str, dict[str, Any]] = {
    "efmnist": {
        "architecture": "mlp", "hidden": [400, 400, 400], "density": 0.2, "gain": 0.5,
        "optimiser": "adamw", "weight_decay": 0.1, "learning_rate": 0.01, "batch_size": 512,
        "epochs_per_phase": 5, "accuracy_drop": 0.75, "k": 30.0, "tau_min": 0.05,
        "min_phases": 2, "max_phases": None, "decay": "none", "keep": "best",
        "drop_errors": 0.0, "unit_share": 0.0, "derived": [],
    },
    "split-digits": {
        "architecture": "mlp", "hidden": [100, 100, 100], "density": 0.2, "gain": 1.0,
        "optimiser": "adam", "weight_decay": 0.0, "learning_rate": 0.01, "batch_size": 32,
        "epochs_per_phase": 5, "accuracy_drop": 2.0, "k": 30.0, "decay": "none", "keep": "best",
        "drop_errors": 0.0, "unit_share": 0.0, "derived": [],
    },
    "split-cifar10": {
        "architecture": "convnet", "channels": [64, 64, 128, 128], "fc": [1024], "density": 0.1,
        "gain": 1.0, "optimiser": "adam", "learning_rate": 0.002, "batch_size": 128,
        "epochs_per_phase": 5, "accuracy_drop": 0.75, "decay": "none", "keep": "best",
    },
}  # fmt: skip


@pytest.mark.parametrize("scenario", TODAY)
def test_benchmarks_keep_their_values(scenario: str) -> None:
    found = resolve("nispa", "default", scenario, (1, 28, 28))
    both = {**as_json(found.network), **as_json(found.config)}
    assert {name: both[name] for name in TODAY[scenario]} == TODAY[scenario]


def test_settings_go_through_a_file_unchanged() -> None:
    found = resolve("nispa", "default", "split", (1, 28, 28), {"epochs_per_phase": 3})
    values = found.as_json()
    assert values["method"]["batch_size"] is None
    assert values["method"]["epochs_per_phase"] == 3
    assert settings_of("nispa", "default", values["network"], values["method"]) == found


def test_settings_of_before_have_nothing_derived() -> None:
    values = resolve("nispa", "efmnist", "efmnist", (1, 28, 28)).as_json()
    for name in ("derived", "decay", "keep", "drop_errors", "unit_share"):
        del values["method"][name]
    found = settings_of("nispa", "efmnist", values["network"], values["method"])
    assert found == resolve("nispa", "efmnist", "efmnist", (1, 28, 28))


def test_only_what_a_rule_tells_can_be_derived() -> None:
    found = resolve("nispa", "efmnist", "", (1, 28, 28), {"derived": "batch_size"})
    assert found.config.derived == ("batch_size",)
    with pytest.raises(UnknownNameError, match="'growth'"):
        resolve("nispa", "efmnist", "", (1, 28, 28), {"derived": "growth"})


def test_sizes_of_the_other_architecture_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden is a setting of architecture=mlp"):
        resolve("nispa", "default", "", (1, 28, 28), {"architecture": "convnet", "hidden": "9"})
    with pytest.raises(ConfigError, match="fc is a setting of architecture=convnet"):
        Learner(input_shape=(1, 28, 28), classes=4, architecture="mlp", fc=(8,))
    with pytest.raises(ConfigError, match="leave one of the two out"):
        resolve("nispa", "cifar10", "", (3, 32, 32), {"channels": "9", "hidden": "9"})


def test_sizes_imply_their_architecture() -> None:
    assert (
        resolve("nispa", "default", "", (3, 32, 32), {"hidden": "9"}).network.architecture == "mlp"
    )
    found = resolve("nispa", "efmnist", "", (1, 28, 28), {"channels": "9,9"})
    assert found.network.architecture == "convnet"
    assert found.network.channels == (9, 9)


def toy(seed: int) -> tuple[Any, Any]:
    """Two classes of 8x8 images that differ in their halves."""
    labels = np.arange(60) % 2
    images = np.random.default_rng(seed).random((60, 8, 8)).astype(np.float32) * 0.5
    images[labels == 1, :4] += 0.5
    return images, labels


def test_a_learner_takes_what_follows_from_its_images() -> None:
    learner = Learner(input_shape=(1, 8, 8), classes=4, hidden=(32, 32), max_phases=3)
    learner.learn(*toy(0))
    expected = epochs_per_phase(facts(54, 2, 4))
    assert learner.method.config.epochs_per_phase == expected
    assert learner.method.config.batch_size == 16
    assert learner.method.config.unit_share == 0.75
    assert learner.method.config.learning_rate == 0.01
    assert learner.accuracy(*toy(1)) >= 0.9

    sparing = Learner(
        input_shape=(1, 8, 8), classes=4, hidden=(32, 32), max_phases=3, share_factor=0.5
    )
    sparing.learn(*toy(0))
    assert sparing.method.config.unit_share == 0.25


def test_a_saved_learner_goes_on_deriving(tmp_path: Path) -> None:
    made = [
        Learner(input_shape=(1, 8, 8), classes=4, hidden=(32, 32), max_phases=3) for _ in range(2)
    ]
    for learner in made:
        learner.learn(*toy(0))
    made[0].save(tmp_path / "half")
    again = Learner.load(tmp_path / "half")
    for learner in (again, made[1]):
        learner.learn(*toy(1))
    again.save(tmp_path / "a")
    made[1].save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert replace(again.method.config, **as_json(made[1].method.config)) == again.method.config


def test_the_record_keeps_what_each_task_derived(tmp_path: Path) -> None:
    tasks = []
    for index, count in enumerate((40, 80)):
        images, labels = toy(index)
        tasks.append((np.resize(images, (count, 8, 8)), np.resize(labels, count) + 2 * index))
    scenario = from_tasks(tasks, seed=0, shared_classes=False)
    given = {"hidden": (32, 32), "max_phases": 3, "batch_size": 8}
    settings = resolve("nispa", "default", scenario.name, scenario.input_shape, given, outputs=4)
    line = derived_line(scenario, settings)
    assert "architecture mlp, hidden 32-32" in line
    assert "unit_share 0.75 to 1" in line
    running = run(Experiment(scenario, settings, seed=0), tmp_path / "run")
    for _ in running:
        pass
    record = read_record(tmp_path / "run")
    assert [set(values) for values in record.derived] == [set(settings.config.derived)] * 2
    assert [values["unit_share"] for values in record.derived] == [0.75, 1.0]
    assert record.config["method"]["epochs_per_phase"] is None  # type: ignore[call-overload, index]
    assert record.config["method"]["batch_size"] == 8  # type: ignore[call-overload, index]


def test_a_value_that_is_set_follows_nothing() -> None:
    for given in ({"unit_share": 0.3}, {"unit_share": "0.3", "derived": "unit_share"}):
        found = resolve("nispa", "best", "efmnist", (1, 28, 28), given).config
        assert (found.unit_share, found.derived) == (0.3, ())  # type: ignore[attr-defined]


def test_a_run_without_rules_says_nothing() -> None:
    scenario = from_tasks([toy(0)], seed=0)
    settings = resolve("nispa", "digits", scenario.name, scenario.input_shape)
    assert derived_line(scenario, settings) == ""


def test_few_digits_are_learned_without_a_setting() -> None:
    """15 images of each of five digits; guessing gets a fifth right."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    few = np.concatenate([np.flatnonzero(labels == label)[:15] for label in range(5)])
    learner = Learner(input_shape=(1, 8, 8), classes=5)
    learner.learn(images[few], labels[few])
    rest = np.setdiff1d(np.flatnonzero(labels < 5), few)
    assert learner.accuracy(images[rest], labels[rest]) >= 0.75


@pytest.mark.slow
@pytest.mark.skipif("NISPA_DATA" not in os.environ, reason="needs real images; set NISPA_DATA")
def test_few_letters_are_learned_without_a_setting() -> None:
    """15 images of each of five letters."""
    data = load("emnist-balanced", folder=Path(os.environ["NISPA_DATA"]), download=False)
    learner = Learner(input_shape=(1, 28, 28), classes=5)
    rows = [torch.nonzero(data.train_labels == label).flatten()[:15] for label in range(10, 15)]
    chosen = torch.cat(rows)
    learner.learn(data.train_images[chosen].numpy(), data.train_labels[chosen].numpy())
    test = (data.test_labels >= 10) & (data.test_labels < 15)
    found = learner.accuracy(data.test_images[test].numpy(), data.test_labels[test].numpy())
    assert found >= 0.8


@pytest.mark.parametrize(("k", "phases"), [(30, 7), (60, 7), (29, 6), (15, 3), (9, 2), (1, 2)])
def test_a_faster_schedule_may_end_a_task_earlier(k: float, phases: int) -> None:
    shared = replace(facts(1000), k=k, incremental="class")
    assert min_phases(shared) == phases
    assert min_phases(replace(shared, incremental="task")) == 2, "its last fit starts afresh"
    assert min_phases(replace(shared, fresh=True)) == 2
    assert min_phases(replace(shared, incremental="task", fresh=False)) == phases


@pytest.mark.parametrize(
    ("given", "phases"),
    [({}, 2), ({"settle_epochs": 0}, 7), ({"settle_fresh": False}, 7), ({"settle_epochs": 3}, 2)],
)
def test_without_a_last_fit_afresh_a_task_needs_more_phases(
    given: dict[str, Any], phases: int
) -> None:
    learner = Learner(input_shape=(1, 8, 8), classes=4, hidden=(8,), max_phases=3, **given)
    learner.learn(*toy(0))
    assert learner.method.config.min_phases == phases


def test_a_memory_follows_the_number_of_classes() -> None:
    for method in ("er", "nispa-replay"):
        found = resolve(method, "default", "split", (1, 16, 16), outputs=30)
        assert getattr(found.config, "memory") == memory(30) == 3000  # noqa: B009
        given = resolve(method, "default", "split", (1, 16, 16), {"memory": 77}, outputs=30)
        assert getattr(given.config, "memory") == 77  # noqa: B009
