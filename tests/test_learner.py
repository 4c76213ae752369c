"""The learner: arrays in, labels out, one file."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import nispa
from nispa.errors import (
    CapacityError,
    ConfigError,
    DataError,
    DeviceError,
    DivergedError,
    FormatError,
    InputError,
    NotLearnedError,
    OutputError,
    ScenarioError,
    UnknownNameError,
)
from nispa.learner import Learner
from tests.extent import optional

Arrays = tuple[NDArray[Any], NDArray[Any]]
FAST: dict[str, Any] = {
    "batch_size": 8,
    "hidden": (16, 12),
    "density": 0.6,
    "epochs_per_phase": 5,
    "k": 6,
}


def arrays(index: int, count: int = 60, names: tuple[Any, Any] = (0, 1)) -> Arrays:
    """Images (n, 4, 4) uint8 that are bright in one of two columns, and their labels."""
    random = np.random.default_rng(index)
    which = np.arange(count) % 2
    images = random.integers(0, 60, (count, 4, 4), dtype=np.uint8)
    for label in (0, 1):
        images[which == label, :, (2 * label + index) % 4] += 160
    return images, np.array([names[label] for label in which])


def learner(tasks: int = 2, **values: Any) -> Learner:
    made = Learner(input_shape=(1, 4, 4), classes=2 * 6, seed=1, **(FAST | values))
    for index in range(tasks):
        made.learn(*arrays(index, names=("left", "right")))
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learner") / "two.safetensors"
    learner().save(path)
    return path


def test_is_offered_by_the_package() -> None:
    assert nispa.Learner is Learner
    with pytest.raises(AttributeError, match="Lerner"):
        nispa.Lerner  # noqa: B018


def test_learns_and_predicts_the_users_labels() -> None:
    made = learner()
    for index in range(2):
        images, labels = arrays(index, names=("left", "right"))
        assert made.accuracy(images, labels, task=index) >= 0.9
        assert set(made.predict(images, task=index)) <= {"left", "right"}
    assert made.predict(arrays(0)[0]).shape == (60,)


def test_the_same_label_means_another_thing_in_another_task() -> None:
    made = Learner(input_shape=(1, 4, 4), classes=4, seed=1, **FAST)
    made.learn(*arrays(0, names=(7, 3)))
    made.learn(*arrays(1, names=(3, 7)))
    assert made.accuracy(*arrays(0, names=(7, 3)), task=0) >= 0.9
    assert made.accuracy(*arrays(1, names=(3, 7)), task=1) >= 0.9


def test_goes_on_in_a_new_process_as_if_it_had_never_stopped(saved: Path, tmp_path: Path) -> None:
    script = """
import sys, torch
torch.set_num_threads(1)
from nispa import Learner
from tests.test_learner import arrays
made = Learner.load(sys.argv[1])
for index in range(2, 4):
    made.learn(*arrays(index, names=("left", "right")))
made.save(sys.argv[2])
"""
    there = tmp_path / "there.safetensors"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, saved, there], check=True, cwd=root)
    here = Learner.load(saved)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index in range(2, 4):
            here.learn(*arrays(index, names=("left", "right")))
    finally:
        torch.set_num_threads(threads)
    here.save(tmp_path / "here.safetensors")
    assert there.read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    assert len(Learner.load(there).tasks) == 4


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    Learner.load(saved).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("method", ["stl", "stl-iso", "joint", "finetune"])
def test_other_methods_live_in_the_same_file(method: str, tmp_path: Path) -> None:
    made = Learner(
        method, input_shape=(1, 4, 4), classes=6, tasks=3, hidden=(12, 10), density=0.6, epochs=3
    )
    for index in range(2):
        made.learn(*arrays(index))
    made.save(tmp_path / "m.safetensors")
    loaded = Learner.load(tmp_path / "m.safetensors")
    images, _ = arrays(1)
    assert (loaded.predict(images, task=1) == made.predict(images, task=1)).all()
    made.learn(*arrays(2))
    loaded.learn(*arrays(2))
    made.save(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_an_interrupted_task_leaves_the_learner_as_it_was(saved: Path, tmp_path: Path) -> None:
    made = Learner.load(saved)

    def interrupt(event: object) -> None:
        if type(event).__name__ == "PhaseEnd":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.learn(*arrays(2), watch=interrupt)
    made.save(tmp_path / "after.safetensors")
    assert (tmp_path / "after.safetensors").read_bytes() == saved.read_bytes()


def test_float_images_and_channels_are_taken(tmp_path: Path) -> None:
    made = Learner(input_shape=(3, 4, 4), classes=2, architecture="mlp", **FAST)
    images, labels = arrays(0)
    made.learn(np.repeat(images[..., None] / 255, 3, axis=3), labels)
    assert made.accuracy(np.repeat(images[:, None] / 255, 3, axis=1), labels, task=0) >= 0.9


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"method": "nipsa"}, UnknownNameError, "did you mean 'nispa'"),
        ({"preset": "papr"}, UnknownNameError, "did you mean 'paper'"),
        ({"densty": 0.1}, UnknownNameError, "did you mean 'density'"),
        ({"density": 1.3}, ConfigError, r"density=1.3 must be a number in \(0, 1\]"),
        ({"density": 0.0}, ConfigError, "for 90 % sparsity pass 0.1"),
        ({"learning_rate": -1}, ConfigError, "learning_rate=-1 must be"),
        ({"k": 0}, ConfigError, "k=0 must be"),
        ({"e": 0}, ConfigError, "epochs_per_phase=0 must be"),
        ({"seed": -1}, ConfigError, "seed=-1 must be"),
        ({"classes": 1}, ConfigError, "classes=1 must be"),
        ({"input_shape": (28, 28, 28, 1)}, ConfigError, r"input_shape=\(28, 28, 28, 1\)"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99 is not there"),
        ({"device": "tpu"}, DeviceError, "must be cpu, cuda"),
        ({"method": "stl-iso"}, ConfigError, "number of tasks"),
        ({"epochs": 3}, ConfigError, "not of this method"),
    ],
)
def test_bad_settings_are_named(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    base: dict[str, Any] = {"input_shape": (1, 4, 4), "classes": 4}
    with pytest.raises(error, match=message):
        Learner(**(base | values))


def test_bad_tasks_are_named_and_change_nothing(saved: Path, tmp_path: Path) -> None:
    made = Learner.load(saved)
    images, labels = arrays(2)
    with pytest.raises(CapacityError, match=r"\(1, 4, 3\).*\(1, 4, 4\)"):
        made.learn(images[:, :, :3], labels)
    with pytest.raises(DataError, match="60 images but 59 labels"):
        made.learn(images, labels[:59])
    with pytest.raises(ScenarioError, match="at least 2"):
        made.learn(images, np.zeros(60, dtype=int))
    with pytest.raises(CapacityError, match="only 8 of 12 outputs are free"):
        made.learn(np.concatenate([images] * 2), np.arange(120))
    with pytest.raises(NotLearnedError, match="learned are: 0 to 1"):
        made.predict(images, task=2)
    with pytest.raises(NotLearnedError, match="task=-1"):
        made.predict(images, task=-1)
    made.save(tmp_path / "after.safetensors")
    assert (tmp_path / "after.safetensors").read_bytes() == saved.read_bytes()


def test_a_method_that_must_be_told_the_task_says_so() -> None:
    made = Learner("stl", input_shape=(1, 4, 4), classes=2, hidden=(4,), epochs=1)
    made.learn(*arrays(0))
    with pytest.raises(NotLearnedError, match="must be told the task"):
        made.predict(arrays(0)[0])


def test_saving_where_one_cannot_is_an_error(saved: Path, tmp_path: Path) -> None:
    made = Learner.load(saved)
    with pytest.raises(OutputError):
        made.save(tmp_path / "no" / "such" / "folder.safetensors")
    with pytest.raises(OutputError):
        made.save(tmp_path)


def test_loading_what_is_no_learner_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        Learner.load(tmp_path / "none.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not a learner")
    with pytest.raises(FormatError):
        Learner.load(text)


def rewrite(path: Path, out: Path, change: Any) -> None:
    """A copy of a learner's file whose header went through ``change``, its checksum made anew."""
    import safetensors.torch

    from nispa.methods.saving import _read
    from nispa.tensorfile import digest

    tensors, checked = _read(path)
    header = checked.model_dump(mode="json")
    change(header, tensors)
    header["sha256"] = digest(header, tensors)
    out.write_bytes(safetensors.torch.save(tensors, {"nispa": json.dumps(header)}))


def test_a_strangers_file_is_held_to_its_size(saved: Path, tmp_path: Path) -> None:
    """Headers that promise more than the file holds must not make anything large."""
    out = tmp_path / "bad.safetensors"

    def huge(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["config"]["network"]["hidden"] = [10**6, 10**2]

    rewrite(saved, out, huge)
    with pytest.raises(FormatError, match="too small for the network"):
        Learner.load(out)

    def other(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["config"]["network"]["hidden"] = [15, 12]

    rewrite(saved, out, other)
    with pytest.raises(FormatError, match="do not fit"):
        Learner.load(out)

    def newer(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["format"], header["nispa"] = "nispa-learner/9", "9.0"

    rewrite(saved, out, newer)
    with pytest.raises(FormatError, match=r"nispa-learner/9, written by nispa 9\.0.*update with"):
        Learner.load(out)

    def older(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["format"], header["nispa"] = "nispa-learner/0", "0.0.1"

    rewrite(saved, out, older)
    with pytest.raises(FormatError, match=r"/0, written by nispa 0\.0\.1.*read it with that nispa"):
        Learner.load(out)

    def kind(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["format"] = "nispa-checkpoint/1"

    rewrite(saved, out, kind)
    with pytest.raises(FormatError, match="pass a file of nispa-learner"):
        Learner.load(out)

    def outside(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["network.body.1.plastic_index"][0] = 2**31 - 1

    rewrite(saved, out, outside)
    with pytest.raises(FormatError, match="outside the layer"):
        Learner.load(out)


HEADER_CHANGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_header_of_nonsense_is_refused_or_understood(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    out = tmp_path / "bad.safetensors"

    def change(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        place: Any = header
        while True:
            key = data.draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(HEADER_CHANGES)
            return

    rewrite(saved, out, change)
    with contextlib.suppress(InputError):
        Learner.load(out).predict(arrays(0)[0], task=0)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_or_missing_bytes_are_noticed(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # Half of the flips hit the header, which is small beside the values.
        last = 8 + length if data.draw(st.booleans(), label="header") else len(content)
        content[data.draw(st.integers(0, last - 1))] ^= 1 << data.draw(st.integers(0, 7))
    out = tmp_path / "bad.safetensors"
    out.write_bytes(content)
    with pytest.raises(InputError):
        Learner.load(out)


# What a task adds.


def sequential(incremental: str) -> Learner:
    return Learner(
        "finetune",
        input_shape=(1, 4, 4),
        classes=4,
        incremental=incremental,
        hidden=(16, 12),
        batch_size=8,
        learning_rate=0.02,
        epochs=5,
    )


def test_class_incremental_labels_are_new_and_told_from_all() -> None:
    made = sequential("class")
    made.learn(*arrays(0, names=("a", "b")))
    with pytest.raises(ScenarioError, match=r"labels \['b'\] were learned before; with increm"):
        made.learn(*arrays(1, names=("b", "c")))
    made.learn(*arrays(1, names=("c", "d")))
    images, labels = arrays(1, names=("c", "d"))
    assert made.accuracy(images, labels) >= 0.9
    # plain training on new classes among all seen forgets the old ones entirely
    assert set(made.predict(arrays(0)[0])) <= {"c", "d"}


def test_domain_incremental_tasks_share_their_labels(tmp_path: Path) -> None:
    made = sequential("domain")
    made.learn(*arrays(0, names=("a", "b")))
    with pytest.raises(ScenarioError, match=r"labels \['a', 'c'\] differ"):
        made.learn(*arrays(1, names=("a", "c")))
    made.save(tmp_path / "one")
    again = Learner.load(tmp_path / "one")
    again.learn(*arrays(1, names=("a", "b")))
    assert [task.classes for task in again.tasks] == [(0, 1), (0, 1)]
    images, labels = arrays(1, names=("a", "b"))
    assert again.accuracy(images, labels) >= 0.9
    assert set(again.predict(images)) == {"a", "b"}


def test_a_kind_that_the_method_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="'nispa' cannot learn with incremental=class; it can"):
        Learner("nispa", input_shape=(1, 4, 4), classes=4, incremental="class")


# Scores, names, looks.


def test_probabilities_are_a_softmax_whose_best_is_the_prediction() -> None:
    made = learner()
    images, _ = arrays(1)
    for task in (1, None):
        shares, names = made.predict_proba(images, task), made.classes_of(task)
        assert shares.shape == (60, len(names))
        np.testing.assert_allclose(shares.sum(1), 1)
        assert [names[best] for best in shares.argmax(1)] == made.predict(images, task).tolist()
    assert made.classes_of(1) == ["left", "right"]
    assert made.classes_of() == ["left", "right"] * 2
    with pytest.raises(NotLearnedError):
        made.classes_of(2)


def test_a_prediction_names_a_label_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published soft-max may choose an output of another task, or one that nobody uses."""
    made = learner()
    images, _ = arrays(1)
    expected = made.predict(images, 1)

    def elsewhere(images: torch.Tensor, task: object) -> torch.Tensor:
        return torch.arange(len(images)) % 2 * 5  # output 0 is of task 0, 5 of no task yet

    monkeypatch.setattr(made.method, "predict", elsewhere)
    assert (made.predict(images, 1) == expected).all()


def test_a_learner_says_what_it_is() -> None:
    made = learner()
    units = made.method.census().stable.values()
    share = f"{100 * sum(s for s, _ in units) / 28:.0f} %"
    for part in ("nispa", "incremental='task'", "(1, 4, 4)", "tasks=2", "4 of 12 classes", share):
        assert part in repr(made)
    page = made._repr_html_()
    assert page.startswith("<table>")
    assert all(part in page for part in ("nispa", "(1, 4, 4)", "4 of 12", share))
    assert "stable" not in repr(sequential("class"))


def test_the_package_shows_its_public_names_and_stays_light() -> None:
    code = "import sys, nispa; print(*dir(nispa)); print('torch' in sys.modules, nispa.errors)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, rest = done.stdout.splitlines()
    shown = [name for name in names.split() if not name.startswith("__")]
    assert shown == ["Learner", "compact", "errors", "show", "sparsify"]
    assert "__version__" in names
    assert rest.startswith("False <module 'nispa.errors'")


def test_an_event_watcher_that_fails_undoes_the_task() -> None:
    made = learner(0)

    def stop(event: object) -> None:
        raise StopIteration

    with pytest.raises(StopIteration):
        made.learn(*arrays(0), watch=stop)
    assert made.tasks == []
    assert made.labels == []
    made.learn(*arrays(0))


# Values that are not finite.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["finetune", "ewc", "si", "icarl", "joint", "stl", "packnet"])
def test_values_that_are_not_finite_are_refused(method: str, value: float, tmp_path: Path) -> None:
    given: dict[str, Any] = {"memory": 12, "incremental": "class"} if method == "icarl" else {}
    made = Learner(method, input_shape=(1, 4, 4), classes=4, hidden=(6,), epochs=1, **given)
    images, labels = arrays(0)
    made.learn(images / 255, labels)
    made.save(tmp_path / "good")
    from nispa.tensorfile import read

    tensors, _ = read(tmp_path / "good", "nispa-learner/1", "learner")
    floats = [n for n, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    assert {name.partition(".")[0] for name in floats} >= {
        "ewc": {"network", "importance", "anchor"},
        "si": {"network", "importance", "anchor"},
        "icarl": {"network", "memory"},
        "joint": {"network", "train", "validation"},
        "stl": {"network0"},
    }.get(method, {"network"})
    for name in floats:

        def spoil(
            header: dict[str, Any], tensors: dict[str, torch.Tensor], name: str = name
        ) -> None:
            tensors[name].view(-1)[-1] = value

        rewrite(tmp_path / "good", tmp_path / "bad", spoil)
        with pytest.raises(FormatError, match=f"'{re.escape(name)}' holds a value that is not fin"):
            Learner.load(tmp_path / "bad")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", True])
def test_a_header_that_is_not_finite_is_refused(saved: Path, tmp_path: Path, value: Any) -> None:
    def spoil(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["values"]["reach"] = value

    rewrite(saved, tmp_path / "bad", spoil)
    with pytest.raises(FormatError):
        Learner.load(tmp_path / "bad")


def test_learning_that_diverges_leaves_the_learner_as_it_was(tmp_path: Path) -> None:
    made = sequential("task")
    made.learn(*arrays(0))
    made.save(tmp_path / "before")

    def spoil(event: object) -> None:
        with torch.no_grad():
            made.method.network.layers["head"].weight.fill_(torch.inf)

    with pytest.raises(DivergedError, match="smaller learning_rate"):
        made.learn(*arrays(1), watch=spoil)
    made.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


# Runs.


@pytest.mark.parametrize("normalise", [False, True])
def test_the_network_of_a_run_is_a_learner(normalise: bool, tmp_path: Path) -> None:
    from nispa.data.arrays import from_arrays
    from nispa.data.scenarios import split
    from nispa.methods.presets import resolve
    from nispa.runs.runner import Experiment, run

    images, labels = arrays(0)
    data = from_arrays(np.concatenate([images, images]), np.concatenate([labels, labels + 2]))
    settings = resolve("finetune", "default", "", data.shape, {"hidden": (8,), "epochs": 1})
    for _ in run(Experiment(split(data, normalise=normalise), settings, 0), tmp_path / "run"):
        pass
    for path in (tmp_path / "run", str(tmp_path / "run" / "network.safetensors")):
        made = Learner.load(path)
        assert len(made.tasks) == 2
        assert made.predict(images, 0).shape == (60,)
    with pytest.raises(InputError, match="not a file"):
        Learner.load(tmp_path)


def test_tasks_keep_their_names_and_a_file_without_any_is_as_before(
    saved: Path, tmp_path: Path
) -> None:
    named = Learner(input_shape=(1, 4, 4), classes=4, seed=1, **FAST)
    named.learn(*arrays(0), name="columns")
    named.learn(*arrays(1))
    assert named.task_names == ["columns", ""]
    named.save(tmp_path / "named.safetensors")
    loaded = Learner.load(tmp_path / "named.safetensors")
    assert loaded.task_names == ["columns", ""]
    with pytest.raises(ConfigError, match="one line"):
        loaded.learn(*arrays(2), name="two\nlines")
    assert loaded.task_names == ["columns", ""]
    assert Learner.load(saved).task_names == ["", ""]
    assert b"task_names" not in saved.read_bytes()


def test_labels_are_ranked_by_their_probability() -> None:
    made = learner()
    images, _ = arrays(0, count=6)
    for task in (0, None):
        shares, labels = made.predict_proba(images, task), made.classes_of(task)
        for best, row in zip(made.ranked(images, task, top=2), shares, strict=True):
            assert [label for label, _ in best] == [labels[k] for k in np.argsort(-row)[:2]]
            assert [share for _, share in best] == sorted(row, reverse=True)[:2]
    assert len(made.ranked(images, 0, top=9)[0]) == 2
    with pytest.raises(ConfigError, match="top=0"):
        made.ranked(images, 0, top=0)


def test_a_method_without_scores_ranks_one_label_of_each_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = learner()
    images, _ = arrays(0, count=6)
    monkeypatch.setattr(type(made.method), "has_scores", False)
    assert made.ranked(images, 0) == [[(label, None)] for label in made.predict(images, 0)]
    with pytest.raises(ConfigError, match="top=2 must be 1"):
        made.ranked(images, 0, top=2)


def test_scores_are_what_probabilities_are_made_of_and_never_change() -> None:
    made = learner(tasks=1)
    images, _ = arrays(0)
    scores = made.scores(images, 0)
    assert scores.dtype == np.float32
    shares = torch.from_numpy(scores).double().softmax(1).numpy()
    assert np.array_equal(shares, made.predict_proba(images, 0))
    made.learn(*arrays(1))
    assert np.array_equal(made.scores(images, 0), scores)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_columns_of_a_table_may_come_in_any_order(kind: str, tmp_path: Path) -> None:
    library = optional(kind)
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 3)).astype(np.float32)
    x[:, 1] *= 4
    labels = (x[:, 0] > 0).astype(int)
    table = library.DataFrame({name: x[:, place] for place, name in enumerate("abc")})
    moved = table[["c", "a", "b"]]
    learner = Learner(
        "finetune", input_shape=(3,), classes=4, hidden=(12,), density=0.5, epochs=2, batch_size=8
    )
    learner.learn(table, labels)
    learner.save(tmp_path / "table.nispa")
    for each in (learner, Learner.load(tmp_path / "table.nispa")):
        wanted = each.predict_proba(x, 0)
        assert np.array_equal(each.predict_proba(moved, 0), wanted)
        assert np.array_equal(each.predict(moved, 0), each.predict(table, 0))
        assert each.accuracy(moved, labels, 0) == each.accuracy(x, labels, 0)
        other = library.DataFrame({name: x[:, place] for place, name in enumerate("abd")})
        with pytest.raises(DataError, match=r"lacks c and adds d; .* learned: a, b, c"):
            each.predict(other, 0)
        with pytest.raises(DataError, match="the table lacks c; "):
            each.learn(table[["a", "b"]], labels)
    again = Learner(
        "finetune", input_shape=(3,), classes=4, hidden=(12,), density=0.5, epochs=2, batch_size=8
    )
    for task in (table, moved):
        again.learn(task, labels)
    learner.learn(x, labels)
    assert np.array_equal(again.predict_proba(x, 1), learner.predict_proba(x, 1))
