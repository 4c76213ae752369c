"""Images varied at random: what is done to them, when, and again after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nispa import Learner
from nispa.base.seeding import stream
from nispa.data.augment import Augment, parse_augment
from nispa.data.digits import load_digits
from nispa.data.named import build_scenario
from nispa.data.own_tasks import from_tasks
from nispa.data.permuted import permuted
from nispa.data.scenarios import split
from nispa.data.tasks import JoinedSamples, Samples, Varied, pack, unpack
from nispa.errors import ConfigError, FormatError
from nispa.methods import METHODS
from nispa.methods.base import Problem
from nispa.methods.presets import resolve
from nispa.network.models import NetworkConfig, Prepared, build_network
from nispa.runs.record import read_record
from nispa.runs.runner import Experiment, resume, run
from nispa.training import fit as training
from tests.methods.toy import FAST
from tests.runs.test_resume import content, die, finish

IMAGE = torch.arange(1, 13).view(1, 1, 3, 4)


def applied(*drawn: int) -> list[list[int]]:
    """The image after shift down and right, crop down and right, flip."""
    made = Augment.apply(IMAGE.to(torch.uint8), torch.tensor([drawn]))
    return made[0, 0].tolist()


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((0, 0, 0, 0, 0), [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]),
        ((1, 0, 0, 0, 0), [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]),
        ((0, -2, 0, 0, 0), [[3, 4, 0, 0], [7, 8, 0, 0], [11, 12, 0, 0]]),
        ((0, 0, 1, 0, 0), [[5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]),
        ((0, 0, 0, -1, 0), [[2, 3, 4, 3], [6, 7, 8, 7], [10, 11, 12, 11]]),
        ((0, 0, 0, 0, 1), [[4, 3, 2, 1], [8, 7, 6, 5], [12, 11, 10, 9]]),
        ((0, 1, 0, 0, 1), [[3, 2, 1, 0], [7, 6, 5, 0], [11, 10, 9, 0]]),
    ],
)
def test_what_happens_to_an_image(drawn: tuple[int, ...], expected: list[list[int]]) -> None:
    assert applied(*drawn) == expected


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(0, 2), crop=st.integers(0, 2), flip=st.booleans(), seed=st.integers(0, 99))
def test_draws_stay_within_their_bounds(shift: int, crop: int, flip: bool, seed: int) -> None:
    drawn = Augment(shift, crop, flip).draw(300, stream(seed, "x"))
    assert torch.equal(drawn, Augment(shift, crop, flip).draw(300, stream(seed, "x")))
    for columns, most in (((0, 1), shift), ((2, 3), crop)):
        for column in columns:
            assert drawn[:, column].unique().tolist() == list(range(-most, most + 1))
    assert drawn[:, 4].unique().tolist() == ([0, 1] if flip else [0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shift", Augment(shift=4)),
        ("flip", Augment(flip=True)),
        (" crop:3 , flip", Augment(crop=3, flip=True)),
        ("shift:0", Augment()),
        (" off", Augment()),
    ],
)
def test_texts(text: str, expected: Augment) -> None:
    assert parse_augment(text, (1, 32, 40)) == expected
    assert parse_augment("shift", (3, 9, 5)) == Augment(shift=1)


@pytest.mark.parametrize("text", ["", "turn", "shift,shift", "flip:2", "shift:-1", "shift:x", ","])
def test_wrong_texts(text: str) -> None:
    with pytest.raises(ConfigError, match=r"augment=.* must be some of shift, crop and flip"):
        resolve("nispa", "default", "split-digits", (1, 8, 8), {"augment": text})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"shift": -1}, "shift=-1 must be a whole number of pixels"),
        ({"crop": 1.5}, "crop=1.5 must be a whole number"),
        ({"flip": 1}, "flip=1 must be True or False"),
    ],
)
def test_wrong_values(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Augment(**values)


@pytest.mark.parametrize("shape", [(9,), (1, 1, 9), (3, 9)])
def test_only_images_are_varied(shape: tuple[int, ...]) -> None:
    samples = Samples(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64), augment=Augment())
    for change in (Augment(flip=True), Augment(shift=1), Augment(crop=1)):
        with pytest.raises(ConfigError, match=r"augment must be off for (rows|series) of"):
            replace(samples, augment=change)


def whole(samples: Any) -> Tensor:
    return samples.batch(torch.arange(len(samples)))[0]  # type: ignore[no-any-return]


def test_training_images_alone_vary_and_only_in_an_epoch() -> None:
    plain = build_scenario("split-digits", seed=0).tasks[0]
    task = experiment("nispa", "shift:2,flip").method().varied(plain)
    for part in ("train", "validation", "test"):
        assert torch.equal(whole(getattr(task, part)), whole(getattr(plain, part)))
    assert (task.validation.augment, task.test.augment) == (None, None)
    one, other = (task.train.for_epoch(stream(0, name)) for name in "ab")
    assert not torch.equal(whole(one), whole(task.train))
    assert not torch.equal(whole(one), whole(other))
    assert torch.equal(whole(one), whole(task.train.for_epoch(stream(0, "a"))))
    assert torch.equal(whole(one.for_epoch(stream(0, "b"))), whole(other))
    parts = torch.cat([images for images, _ in one.batches(7)])
    assert torch.equal(parts, whole(one))
    assert plain.train.for_epoch(stream(0, "a")) is plain.train


def test_pixels_change_places_after_images_vary() -> None:
    augment = Augment(shift=1)
    scenario = permuted(load_digits(), tasks=2, seed=0)
    samples = [replace(task.train, augment=augment) for task in scenario.tasks]
    first, second = (each.for_epoch(stream(0, "a")) for each in samples)
    order = scenario.tasks[1].train.pixel_order
    assert order is not None
    rows = [task.train.rows for task in scenario.tasks]
    assert rows[0] is not None
    assert rows[1] is not None
    same = {int(row): place for place, row in enumerate(rows[0])}
    pairs = [(same[int(row)], place) for place, row in enumerate(rows[1]) if int(row) in same]
    assert isinstance(first, Varied)
    assert isinstance(second, Varied)
    mine, theirs = torch.tensor(pairs).T
    second = replace(second, drawn=second.drawn.index_copy(0, theirs, first.drawn[mine]))
    moved = whole(second)[theirs].flatten(1)
    assert torch.equal(moved, whole(first)[mine].flatten(1)[:, order])


def test_samples_keep_it_when_joined_packed_and_prepared() -> None:
    train = replace(split(load_digits()).tasks[0].train, augment=Augment(flip=True))
    tensors, values = pack(train, "x.")
    assert unpack(tensors, values, "x.").augment == Augment(flip=True)
    assert "augment" not in pack(replace(train, augment=None), "x.")[1]
    with pytest.raises(FormatError, match="damaged"):
        unpack(tensors, {**values, "augment": {"shift": "far"}}, "x.")
    plain = replace(train, augment=None)
    joined = JoinedSamples((plain, train))
    varied = joined.for_epoch(stream(0, "a"))
    assert torch.equal(whole(varied)[: len(plain)], whole(plain))
    assert torch.equal(whole(varied)[len(plain) :], whole(train.for_epoch(stream(0, "a"))))
    assert JoinedSamples((plain,)).for_epoch(stream(0, "a")) == JoinedSamples((plain,))
    network = build_network(NetworkConfig(hidden=(20,)), (1, 8, 8), 4, seed=0)
    assert network.prepare(train, 10**9) is train
    assert network.prepare(joined, 10**9) is joined
    assert isinstance(network.prepare(plain, 10**9), (Prepared, Samples))


def experiment(method: str, augment: str | None = "shift:1,flip") -> Experiment:
    scenario = build_scenario("split-digits", seed=0, options={"tasks": [[0, 1], [2, 3]]})
    given: dict[str, Any] = {"hidden": (16, 12), "density": 0.6, "batch_size": 64}
    given |= {} if augment is None else {"augment": augment}
    given |= FAST.get(method, {"epochs": 3})
    given |= {"epochs": 2} if "epochs" in given else {"epochs_per_phase": 2}
    if method.startswith("nispa"):
        given["max_phases"] = 3
    if method == "packnet":
        given["retrain_epochs"] = 2
    settings_ = resolve(method, "default", "split-digits", scenario.input_shape, given)
    return Experiment(scenario, settings_, seed=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_learns_from_varied_images(name: str) -> None:
    states = []
    for augment in ("shift:1,flip", "shift:1,flip", None):
        made = experiment(name, augment)
        method = made.method()
        assert isinstance(method.problem, Problem)
        for _ in method.learn(made.scenario.tasks[0]):
            pass
        states.append(method.state().tensors)
    first, again, plain = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    changed = [key for key in first if key in plain and not torch.equal(first[key], plain[key])]
    learned = any("weight" in key or key.startswith("mask.") for key in changed)
    assert learned or set(first) != set(plain)


@pytest.mark.parametrize("name", ["nispa", "der", "finetune"])
def test_a_run_that_dies_sees_the_same_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PAUSE_S", 0.0)  # between any two batches
    finish(run(experiment(name), tmp_path / "whole"))
    moment, dying = 3, run(experiment(name), tmp_path / "cut", checkpoint_every=0.0)
    while die(dying, moment):
        moment = 5
        dying = resume(experiment(name), tmp_path / "cut", checkpoint_every=0.0)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def photos(count: int = 40, side: int = 8) -> tuple[Any, Any]:
    """Two classes of grey images: bright above, bright below."""
    labels = np.arange(count) % 2
    images = np.random.default_rng(0).random((count, side, side)) * 0.3
    images[labels == 0, : side // 2] += 0.6
    images[labels == 1, side // 2 :] += 0.6
    return images, labels


QUICK: dict[str, Any] = {"hidden": (8,), "density": 0.5, "epochs": 2, "batch_size": 16}


def learned(method: str = "finetune", **more: Any) -> Learner:
    learner = Learner(method, input_shape=(1, 8, 8), classes=4, **{**QUICK, **more})
    images, labels = photos()
    learner.learn(images, labels)
    return learner


def weights(learner: Learner) -> Tensor:
    state = learner.method.network.state_dict()
    return torch.cat([state[name].flatten().float() for name in sorted(state)])


def test_a_learner_varies_the_images_that_it_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, off, varied = (learned(augment=word) for word in ("off", "shift:0", "shift:1,flip"))
    assert torch.equal(weights(plain), weights(off))
    assert not torch.equal(weights(plain), weights(varied))
    assert torch.equal(weights(varied), weights(learned(augment="flip,shift:1")))

    drawn: list[Varied] = []
    monkeypatch.setattr(Varied, "batch", _noting(Varied.batch, drawn))
    learned(augment="shift:1,flip")
    kinds = {each.augment for each in drawn}
    assert kinds == {Augment(shift=1, flip=True)}
    first, last = drawn[0].drawn, drawn[-1].drawn
    assert not torch.equal(first, last), "each epoch draws anew"


def _noting(batch: Any, seen: list[Varied]) -> Any:
    def noted(self: Varied, index: Tensor) -> Any:
        seen.append(self)
        return batch(self, index)

    return noted


def test_a_saved_learner_goes_on_varying(tmp_path: Path) -> None:
    images, labels = photos()
    learner = learned(augment="shift:1")
    learner.save(tmp_path / "a.safetensors")
    loaded = Learner.load(tmp_path / "a.safetensors")
    for each in (learner, loaded):
        each.learn(images, labels + 2)
    assert torch.equal(weights(learner), weights(loaded))


def test_a_run_that_is_loaded_goes_on_as_it_was_told(tmp_path: Path) -> None:
    """Not by what the data would say."""
    images = np.random.default_rng(0).random((40, 16, 16))
    scenario = from_tasks([(images, np.arange(40) % 2)], seed=0, shared_classes=True)
    network = {"channels": (4, 4, 4, 4), "fc": (8,), "density": 0.5, "epochs": 1}
    for word in ("off", "flip"):
        given = network | {"augment": word, "incremental": "domain"}
        chosen = resolve("finetune", "default", scenario.name, (1, 16, 16), given)
        assert "augment" not in chosen.config.derived
        finish(run(Experiment(scenario, chosen, 0), tmp_path / word))
        loaded = Learner.load(tmp_path / word)
        loaded.learn(images, np.arange(40) % 2)
        assert loaded.method.config.augment == word
        assert read_record(tmp_path / word).config["method"]["augment"] == word  # type: ignore[call-overload, index]


@pytest.mark.parametrize(
    ("shape", "word", "said"),
    [
        ((9,), "flip", "augment must be off for rows of"),
        ((2, 9), "crop", "augment must be off for series of 2 channels"),
        ((1, 8, 8), "shift:8", "shift=8 must be less than a side of images of 8x8"),
        ((1, 8, 8), "turn", "augment=turn must be some of shift, crop and flip"),
    ],
)
def test_a_learner_says_what_it_cannot_vary(shape: tuple[int, ...], word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Learner("finetune", input_shape=shape, classes=4, augment=word)
