"""Checkpoints: what is taken back of them, and what is passed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nispa import tensorfile
from nispa.errors import FormatError
from nispa.runs.checkpoints import FOLDER, FORMAT, Checkpoints
from nispa.training.pausing import FitPause, FitState

VALUES = {"over": False, "epoch": 1}


def write(run: Path, fits: int = 1, *, over: bool = False, identity: str = "mine") -> list[Path]:
    """Checkpoints of task 2: the first fits whole, the last as ``over`` says."""
    checkpoints = Checkpoints(run, 0.0, identity)
    checkpoints.begin(2)
    for fit in range(1, fits + 1):
        checkpoints.fit()
        done = over or fit < fits
        state = FitState({"x": torch.full((2,), float(fit))}, {**VALUES, "over": done, "fit": fit})
        checkpoints.reached(FitPause(done, lambda state=state: state))  # type: ignore[misc]
    return sorted((run / FOLDER).iterdir())


def found(run: Path, task: int = 2, identity: str = "mine") -> list[int]:
    """Which fits are taken up again."""
    return [state.values["fit"] for state in Checkpoints(run, 0.0, identity).begin(task)]


def test_fits_come_back_in_order(tmp_path: Path) -> None:
    paths = write(tmp_path, 3)
    assert [path.name for path in paths] == [
        "task2-fit1-over.safetensors",
        "task2-fit2-over.safetensors",
        "task2-fit3-part.safetensors",
    ]
    states = list(Checkpoints(tmp_path, 0.0, "mine").begin(2))
    assert [state.tensors["x"].tolist() for state in states] == [[1, 1], [2, 2], [3, 3]]


def test_those_of_another_run_or_task_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path)
    assert found(tmp_path, identity="another") == []
    assert found(tmp_path) == [1]
    assert found(tmp_path, task=1) == []
    assert not list((tmp_path / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("source", "target", "taken"),
    [
        ("task2-fit1-over", "task2-fit2-over", [1]),  # else the first fit's values twice
        ("task2-fit3-part", "task2-fit1-over", []),
        ("task2-fit1-over", "task2-fit3-part", [1, 2]),
        ("task2-fit3-part", "task2-fit3-b", [1, 2, 3]),  # of an earlier version
    ],
)
def test_a_file_in_the_place_of_another_is_not_taken(
    tmp_path: Path, source: str, target: str, taken: list[int]
) -> None:
    write(tmp_path, 3)
    folder = tmp_path / FOLDER
    shutil.copy(folder / f"{source}.safetensors", folder / f"{target}.safetensors")
    assert found(tmp_path) == taken


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a header and makes its checksum anew."""
    tensors, header = tensorfile.read(path, FORMAT, "checkpoint")
    change(header)
    header["sha256"] = tensorfile.digest(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"nispa": json.dumps(header)}))


NONSENSE: list[Callable[[dict[str, Any]], None]] = [
    lambda header: header["values"].pop("task_seconds"),
    lambda header: header["values"].pop("over"),
    lambda header: header.update(values=[1]),
    lambda header: header.pop("run"),
    lambda header: header.update(format="nispa-checkpoint/1"),
]


@pytest.mark.parametrize("change", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_passed_over(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = write(tmp_path)
    rewrite(path, change)
    assert found(tmp_path) == []


def test_another_version_says_which_one_wrote_it(tmp_path: Path) -> None:
    (path,) = write(tmp_path)
    rewrite(path, lambda header: header.update(format="nispa-checkpoint/9", nispa="9.0"))
    says = r"nispa-checkpoint/9, written by nispa 9\.0; this version reads nispa-checkpoint/2; upd"
    with pytest.raises(FormatError, match=says):
        tensorfile.read(path, FORMAT, "checkpoint")


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / FOLDER / ".nispa-0123456789abcdef.part").write_bytes(b"half")
    Checkpoints(tmp_path).clear()
    assert not list(tmp_path.iterdir())
    Checkpoints(tmp_path).clear()


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_short_fits_wait_for_the_disk_no_more_often_than_checkpoints_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr("nispa.runs.checkpoints.time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(now[0]))
    checkpoints = Checkpoints(tmp_path, 30.0)
    checkpoints.begin(0)
    state = FitState({}, {"over": True})
    for now[0] in (10.0, 20.0, 31.0, 50.0, 62.0):
        checkpoints.fit()
        checkpoints.reached(FitPause(True, lambda: state))
    assert sorted(set(synced)) == [31.0, 62.0]
    now[0] = 63.0
    checkpoints.fit()
    checkpoints.reached(FitPause(False, lambda: state), last=True)
    assert synced[-1] == 63.0
    assert len(list((tmp_path / FOLDER).iterdir())) == 6
