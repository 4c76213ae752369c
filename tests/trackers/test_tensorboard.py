"""Event files as TensorBoard's own reader sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nispa.runs.record import read_record
from nispa.trackers import open_trackers
from tests.trackers.runs import broken_run, content, follow, points_of

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("default")  # what the library warns of is not ours


def read(out: Path) -> Any:
    """What TensorBoard reads, with no sampling."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point, by name, less those that come at the end."""
    found = read(out)
    return {
        name: [(each.step, each.value) for each in found.Scalars(name)]
        for name in found.Tags()["scalars"]
        if not name.startswith("final/")
    }


def wanted(out: Path) -> dict[str, list[tuple[int, Any]]]:
    """The same from the run's events; files hold 32-bit numbers."""
    curves: dict[str, list[tuple[int, Any]]] = {}
    for point in points_of(out):
        for name, value in point.values.items():
            curves.setdefault(name, []).append((point.step, pytest.approx(value, rel=1e-6)))
    return curves


def test_every_point_is_in_the_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert follow(out, *open_trackers(["tensorboard"])) == []
    assert scalars(out) == wanted(out)
    found = read(out)
    loss = found.Scalars("train/loss")[0]
    assert loss.wall_time == points_of(out)[0].seconds
    (settings,) = found.Tensors("settings/text_summary")
    assert b"| method.epochs_per_phase | 2 |" in settings.tensor_proto.string_val[0]
    (final,) = found.Scalars("final/forgetting")
    assert final.value == read_record(out).metrics["forgetting"].value


def test_a_resumed_run_has_no_point_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer import event_file_writer

    # names of files end in a count of the process's files, and 10 sorts before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    out = tmp_path / "run"
    broken_run(out, (9, 30), *open_trackers(["tensorboard"]))
    assert follow(out, *open_trackers(["tensorboard"])) == []
    assert scalars(out) == wanted(out)
    assert len(list((out / "tensorboard").iterdir())) >= 3
    follow(tmp_path / "without")
    assert content(out) == content(tmp_path / "without")
