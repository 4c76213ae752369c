"""A run's network predicts right on samples as they are, and runs of older versions go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nispa import Learner, tensorfile
from nispa.data.arrays import from_arrays
from nispa.data.scenarios import Scenario, efmnist, split
from nispa.data.standardise import standardised
from nispa.errors import DataError, DataWarning
from nispa.files import seal
from nispa.methods.presets import resolve
from nispa.methods.saving import FORMAT
from nispa.runs.folder import NETWORK
from nispa.runs.inputs import in_older_shape
from nispa.runs.prediction import Predictor
from nispa.runs.record import RECORD, read_record
from nispa.runs.runner import Experiment, TaskEnd, resume, run
from nispa.training.pausing import EpochEnd

ROWS = 200
LABELS = np.arange(ROWS) % 4
QUICK = {"hidden": (12,), "density": 0.7, "epochs": 4, "batch_size": 16}


def table(seed: int = 0) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).normal(0, 1, (ROWS, 6))
    made[:, 0] += 4 * (LABELS % 2)
    made[:, 1] += 3 * (LABELS // 2)
    return (made * [0.01, 1, 40, 2, 0.5, 7]).astype(np.float32)


def pictures(seed: int = 0) -> NDArray[np.uint8]:
    made = np.random.default_rng(seed).integers(100, 140, (ROWS, 4, 4), dtype=np.uint8)
    for row, label in enumerate(LABELS):
        made[row, label] += 60
    return made


def scenario(kind: str, prepared: str) -> Scenario:
    samples = {"table": table, "pictures": pictures}[kind]
    data = from_arrays(samples(), LABELS, samples(1), LABELS)
    made = split(data, normalise=prepared == "normalise")
    return standardised(made) if prepared == "standardise" else made


def experiment(tasks: Scenario, method: str = "er", **given: Any) -> Experiment:
    settings = resolve(method, "default", "", tasks.input_shape, QUICK | given)
    return Experiment(tasks, settings, 0)


def carry_out(made: Experiment, out: Path) -> None:
    for _ in run(made, out):
        pass


@pytest.mark.parametrize("prepared", ["normalise", "standardise"])
@pytest.mark.parametrize("kind", ["table", "pictures"])
def test_a_loaded_run_predicts_right_on_samples_as_they_are(
    kind: str, prepared: str, tmp_path: Path
) -> None:
    tasks = scenario(kind, prepared)
    carry_out(experiment(tasks, incremental="class", epochs=15), tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record.input_shape == tasks.input_shape
    assert record.inputs[1].mean == tasks.tasks[0].train.mean is not None
    raw = table(1) if kind == "table" else pictures(1)
    np.save(tmp_path / "raw.npy", raw)
    found = Predictor(tmp_path / "run").predict([tmp_path / "raw.npy"])
    made = Learner.load(tmp_path / "run")
    assert made.predict(raw).tolist() == [int(each.classes[0]) for each in found]
    measured = record.accuracy_matrix_task_agnostic
    assert measured is not None
    each = [made.accuracy(raw[rows], LABELS[rows]) for rows in (LABELS < 2, LABELS >= 2)]
    assert each == pytest.approx(measured[-1], abs=1e-9)
    assert min(each) > 0.6
    made.save(tmp_path / "again")  # a copy does so as well
    assert (Learner.load(tmp_path / "again").predict(raw) == made.predict(raw)).all()


def test_unscaled_images_are_doubted_as_ever(tmp_path: Path) -> None:
    carry_out(experiment(scenario("pictures", "normalise")), tmp_path / "run")
    made = Learner.load(tmp_path / "run")
    with pytest.raises(DataError, match="images / 255"):
        made.learn(pictures().astype(np.float32), LABELS + 4)
    with pytest.raises(DataError, match="images / 255"):
        made.predict(pictures().astype(np.float32), 0)


def test_whole_numbers_to_predict_mean_what_they_meant_to_the_run(tmp_path: Path) -> None:
    values = (pictures() // 8).astype(np.float32)
    values[LABELS >= 2] *= 2  # of the second task
    data = from_arrays(values, LABELS, values, LABELS)
    carry_out(experiment(split(data), incremental="class"), tmp_path / "run")
    assert Learner.load(tmp_path / "run")._reach == values[LABELS < 2].max()
    shares = []
    for kind in (np.float32, np.uint8, np.int64):
        np.save(tmp_path / "asked.npy", values.astype(kind))
        shares.append(
            [each.shares for each in Predictor(tmp_path / "run").predict([tmp_path / "asked.npy"])]
        )
    assert shares[0] == shares[1] == shares[2]


def test_what_a_run_never_saw_is_doubted_in_predictions(tmp_path: Path) -> None:
    carry_out(experiment(scenario("pictures", "")), tmp_path / "pixels")
    np.save(tmp_path / "floats.npy", pictures().astype(np.float32))
    with pytest.raises(DataError, match="images / 255"):
        Predictor(tmp_path / "pixels").predict([tmp_path / "floats.npy"], 1)
    carry_out(experiment(scenario("table", "standardise")), tmp_path / "rows")
    np.save(tmp_path / "far.npy", 100 * table())
    with pytest.warns(DataWarning, match="scale both alike"):
        Predictor(tmp_path / "rows").predict([tmp_path / "far.npy"], 1)


def without_inputs(folder: Path) -> None:
    """The network's file as older versions wrote it."""
    tensors, header = tensorfile.read(folder / NETWORK, FORMAT, "learner")
    kept = {k: v for k, v in header.items() if k not in ("inputs", "sha256", "format", "nispa")}
    (folder / NETWORK).write_bytes(tensorfile.encode(FORMAT, kept, tensors))


def rewrite(folder: Path, **changes: Any) -> None:
    """The record with other values; None leaves one out."""
    values = json.loads((folder / RECORD).read_bytes())
    values = {k: v for k, v in (values | changes).items() if v is not None and k != "sha256"}
    (folder / RECORD).write_bytes(seal(json.dumps(values).encode()))


def test_the_record_helps_a_network_of_an_older_version(tmp_path: Path) -> None:
    carry_out(experiment(scenario("table", "normalise")), tmp_path / "run")
    expected = Learner.load(tmp_path / "run").predict(table(1), 0)
    without_inputs(tmp_path / "run")
    assert (Learner.load(tmp_path / "run").predict(table(1), 0) == expected).all()
    rewrite(tmp_path / "run", inputs=[])
    with pytest.warns(DataWarning, match="this run normalised its images"):
        Learner.load(tmp_path / "run")


def test_tasks_of_unlike_data_are_told_apart(tmp_path: Path) -> None:
    shape, rng = (1, 4, 4), np.random.default_rng(0)
    sets = []
    for classes, level in ((47, 100), (10, 200)):
        labels = np.arange(20 * classes) % classes
        images = rng.integers(0, level, (len(labels), *shape[1:]), dtype=np.uint8)
        sets.append(from_arrays(images, labels))
    tasks = efmnist(*sets, normalise=True)
    carry_out(experiment(tasks, "finetune", incremental="class", epochs=1), tmp_path / "run")
    made = Learner.load(tmp_path / "run")
    raw = rng.integers(0, 200, (6, 4, 4), dtype=np.uint8)
    with pytest.raises(DataError, match="prepared in different ways; say which one with task="):
        made.predict(raw)
    mean, std = tasks.tasks[4].train.mean, tasks.tasks[4].train.std
    assert mean is not None
    assert std is not None
    ready = (torch.tensor(raw)[:, None] / 255 - mean[0]) / std[0]
    scores = made.method.scores(ready, tasks.tasks[4].info).double().softmax(1)
    np.testing.assert_allclose(made.predict_proba(raw, 4), scores.numpy(), atol=1e-6)


@pytest.mark.parametrize("prepared", ["", "normalise"])
@pytest.mark.parametrize("method", ["er", "joint", "nispa"])
@pytest.mark.parametrize("stop", ["in the first task", "in the second", "between"])
def test_an_older_run_on_a_table_goes_on(
    prepared: str, method: str, stop: str, tmp_path: Path
) -> None:
    """Its files hold rows as (1, 1, features), and its record no shape."""
    given: dict[str, Any] = {}
    if method == "nispa":
        given = {"epochs": None, "max_phases": 3, "epochs_per_phase": 2, "settle_epochs": 2}
    tasks = scenario("table", prepared)
    quick = {k: v for k, v in (QUICK | given).items() if v is not None}
    settings = resolve(method, "default", "", tasks.input_shape, quick)
    older = Experiment(in_older_shape(tasks), settings, 0)
    assert older.scenario.identity == tasks.identity  # the same content keeps its hash
    carry_out(older, tmp_path / "whole")
    begun = run(older, tmp_path / "run", checkpoint_every=0.0)
    ends = 0
    for event in begun:
        ends += isinstance(event, TaskEnd)
        wanted = EpochEnd if stop != "between" else TaskEnd
        if isinstance(event, wanted) and ends == (stop != "in the first task"):
            begun.close()
            break
    rewrite(tmp_path / "run", input_shape=None)
    for _ in resume(Experiment(tasks, settings, 0), tmp_path / "run"):
        pass
    assert (tmp_path / "run" / NETWORK).read_bytes() == (tmp_path / "whole" / NETWORK).read_bytes()
    found, whole = (read_record(tmp_path / name) for name in ("run", "whole"))
    assert found.accuracy_matrix == whole.accuracy_matrix


def test_older_rows_learn_the_same_bits(tmp_path: Path) -> None:
    tasks = scenario("table", "normalise")
    for name, given in (("new", tasks), ("old", in_older_shape(tasks))):
        carry_out(experiment(given), tmp_path / name)
    new, old = (
        tensorfile.read(tmp_path / n / NETWORK, FORMAT, "learner")[0] for n in ("new", "old")
    )
    assert set(new) == set(old)
    assert all(torch.equal(new[key].flatten(), old[key].flatten()) for key in new)
