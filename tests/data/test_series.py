"""Series of numbers: from arrays, tables, data sets; what is none gets one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import TensorDataset

from nispa.data.arrays import as_images, from_arrays
from nispa.data.named import build_scenario
from nispa.data.own_tasks import from_tasks
from nispa.data.permuted import pixel_order
from nispa.data.shaping import Shaping
from nispa.data.sources import load
from nispa.data.torch_dataset import from_torch
from nispa.errors import DataError, NispaError
from tests.data.test_pictures import write, write_folders

SERIES = np.random.default_rng(0).normal(0, 3, (80, 2, 5)).astype(np.float32)
LABELS = np.arange(80) % 4


def test_an_array_stays_what_it_is() -> None:
    stored, scale = as_images(SERIES, series=True)
    assert (tuple(stored.shape), scale) == ((80, 2, 5), 1.0)
    assert tuple(as_images(SERIES[:, 0], series=True)[0].shape) == (80, 1, 5)
    whole = (SERIES * 1000).astype(np.int64)  # as sound is stored: values, no pixels
    stored, scale = as_images(whole, series=True)
    assert (stored.dtype, scale) == (torch.float32, 1.0)
    assert stored.numpy().tolist() == whole.tolist()
    assert tuple(as_images(SERIES)[0].shape) == (80, 1, 2, 5)  # without the word it is grey
    with pytest.raises(DataError, match=r"must be \(n, channels, length\)"):
        as_images(SERIES[:, None], series=True)


def test_every_way_in_from_python() -> None:
    data = from_arrays(SERIES, LABELS, series=True)
    assert data.shape == (2, 5)
    same = from_torch(TensorDataset(torch.tensor(SERIES), torch.tensor(LABELS)), series=True)
    assert same.identity.sha256 == data.identity.sha256
    tasks = [(SERIES, LABELS % 2), (SERIES, 2 + LABELS % 2)]
    made = from_tasks(tasks, series=True)
    assert made.input_shape == (2, 5)
    assert made.tasks[1].train.batch(torch.tensor([0]))[0].shape == (1, 2, 5)


@pytest.mark.parametrize("kind", [".npz", ".npy", ".parquet"])
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    if kind == ".npz":
        np.savez(tmp_path / "own.npz", x=SERIES, y=LABELS)
    elif kind == ".npy":
        np.save(tmp_path / "x.npy", SERIES)
        np.save(tmp_path / "y.npy", LABELS)
    else:
        columns = {name: list(SERIES[:, place]) for place, name in enumerate("ab")}
        write(tmp_path / "own.parquet", pa.table({"label": LABELS} | columns))
    path = tmp_path / ("x.npy" if kind == ".npy" else f"own{kind}")
    data = load(path, series=True)
    assert data.shape == (2, 5)
    given = from_arrays(SERIES, LABELS, series=True)
    assert data.identity.sha256 == given.identity.sha256
    options: dict[str, Any] = {"dataset": str(path), "series": True}
    assert build_scenario("split", seed=0, options=options).input_shape == (2, 5)


def test_the_columns_of_a_table_are_steps_of_one_channel(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows = [
        f"{label},{','.join(map(str, row))}"
        for label, row in zip(LABELS, SERIES[:, 0], strict=True)
    ]
    path.write_text("label,t0,t1,t2,t3,t4\n" + "\n".join(rows))
    data = load(path, series=True)
    assert data.shape == (1, 5)
    alone = from_arrays(SERIES[:, 0], LABELS, series=True)
    assert data.identity.sha256 == alone.identity.sha256
    uneven = pa.table({"a": list(SERIES[:, 0]), "b": list(SERIES[:, 1, :4]), "y": LABELS})
    mixed = pa.table({"a": list(SERIES[:, 0]), "b": SERIES[:, 1, 0], "y": LABELS})
    for content, sizes in ((uneven, "a 5, b 4"), (mixed, "a 5, b 1")):
        with pytest.raises(DataError, match=f"must be equally long.*{sizes} numbers a row"):
            load(write(tmp_path / "wrong.parquet", content), series=True)


def test_images_are_no_series(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos", ["a", "b"])
    with pytest.raises(DataError, match="images, not series"):
        load(tmp_path / "photos", series=True)
    with pytest.raises(DataError, match="images, not series"):
        load("digits", series=True)
    np.savez(tmp_path / "own.npz", x=np.zeros((8, 3, 4, 4)), y=np.arange(8) % 2)
    with pytest.raises(DataError, match=r"must be \(n, channels, length\)"):
        load(tmp_path / "own.npz", series=True)


def test_what_is_for_images_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=SERIES, y=LABELS)
    for shaping in (Shaping(resize=(4, 4)), Shaping(crop=True), Shaping(grey=True)):
        with pytest.raises(DataError, match="series of 2 channels and 5 steps are no images"):
            load(tmp_path / "own.npz", series=True, shaping=shaping)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_steps_of_a_series_move_with_all_channels(normalise: bool, tmp_path: Path) -> None:
    order = pixel_order((2, 5), 1.0, seed=0, task=1).tolist()
    assert sorted(order[:5]) == list(range(5))
    assert [place - 5 for place in order[5:]] == order[:5]
    np.savez(tmp_path / "own.npz", x=SERIES, y=LABELS)
    options: dict[str, Any] = {"dataset": str(tmp_path / "own.npz"), "series": True, "tasks": 2}
    options |= {"normalise": normalise}
    first, second = build_scenario("permuted-mnist", seed=0, options=options).tasks
    # Both tasks draw their validation samples for themselves, so that only the test is the same.
    plain, moved = (task.test.batch(slice(None))[0].flatten(1) for task in (first, second))
    assert second.test.pixel_order is not None
    assert torch.equal(moved, plain[:, second.test.pixel_order])


def test_a_convnet_says_what_fits() -> None:
    from nispa.methods.presets import resolve
    from nispa.network.models import build_network

    for shape, words in (((64,), "rows of 64 features"), ((3, 100), "series of 3 channels")):
        settings = resolve("nispa", "default", "", shape, {})
        assert settings.network.architecture == "mlp"
        network = build_network(settings.network, shape, 4, seed=0)
        assert network(torch.zeros(2, *shape)).shape == (2, 4)
        forced = resolve("nispa", "default", "", shape, {"architecture": "convnet"}).network
        with pytest.raises(NispaError, match=f"a ConvNet reads images, not {words}.*=mlp"):
            build_network(forced, shape, 4, seed=0)
