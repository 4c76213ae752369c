"""Weights & Biases: what its client is asked for, and what the real one writes offline."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nispa.errors import ConfigError
from nispa.runs.folder import TRACKERS
from nispa.runs.record import read_record
from nispa.trackers import open_trackers
from tests.trackers.runs import broken_run, content, follow, points_of


@dataclass
class FakeRun:
    """What ``wandb.init`` gives, as far as it is used."""

    id: str
    url: str | None = None
    metrics: list[Any] = field(default_factory=list)
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None

    def define_metric(
        self, name: str, step_metric: str | None = None, hidden: bool | None = None
    ) -> None:
        self.metrics.append((name, step_metric))

    def log(self, data: dict[str, float], step: int) -> None:
        self.rows.append((step, data))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb(ModuleType):
    """The parts of the library that are used, with the same names and arguments."""

    class Error(Exception):
        pass

    class Settings:
        model_fields = ("console", "disable_git", "init_timeout")  # an older version has fewer

        def __init__(self, *, console: str, disable_git: bool, init_timeout: float) -> None:
            assert (console, disable_git, init_timeout) == ("off", True, 30.0)

    def __init__(self, mode: str = "online", key: bool = True) -> None:
        super().__init__("wandb")
        self.mode, self.key = mode, key
        self.runs: list[FakeRun] = []
        self.given: list[dict[str, Any]] = []

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, verify: bool) -> bool:
        assert not verify
        if not self.key:
            raise self.Error("no-tty")
        return True

    def init(
        self, *, project: str, id: str, resume: str, name: str, dir: str, config: Any, settings: Any
    ) -> FakeRun:
        assert isinstance(settings, self.Settings)
        self.given.append({"project": project, "id": id, "resume": resume, "name": name})
        self.given[-1] |= {"dir": dir, "config": config}
        self.runs.append(FakeRun(id))
        return self.runs[-1]


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb) -> FakeWandb:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def rows_wanted(out: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of a run's history, from its events."""
    return [
        (point.number, {**point.values, "train/samples": point.step}) for point in points_of(out)
    ]


def test_what_the_client_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, out = use(monkeypatch, FakeWandb()), tmp_path / "my run"
    broken_run(out, (9,), *open_trackers(["wandb"]))
    follow(out, *open_trackers(["wandb"]))
    first, second = fake.given
    assert (first["project"], first["name"], first["dir"]) == ("nispa", "my run", str(out))
    assert first["config"]["method.epochs_per_phase"] == 2
    assert first["config"]["seed"] == 0
    assert second["id"] == first["id"] == json.loads((out / TRACKERS).read_text())["wandb"]["id"]
    assert first["resume"] == "allow"
    assert [row for run in fake.runs for row in run.rows] == rows_wanted(out)
    assert all(run.metrics[-1] == ("*", "train/samples") for run in fake.runs)
    assert [run.exit_code for run in fake.runs] == [1, 0]
    forgetting = read_record(out).metrics["forgetting"].value
    assert fake.runs[0].summary == {}
    assert fake.runs[1].summary["final/forgetting"] == forgetting


def test_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeWandb("offline", key=False))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    follow(tmp_path / "run", *open_trackers(["wandb"]))
    assert (fake.given[0]["project"], fake.given[0]["dir"]) == ("mine", "elsewhere")


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeWandb(key=False))
    with pytest.raises(ConfigError, match=r"has no API key; set WANDB_API_KEY or .*offline"):
        open_trackers(["wandb"])


# The library itself.


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    if find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    yield
    import wandb

    wandb.teardown()


def history(out: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows in the files of a run, one folder for each time that it went on."""
    rows = []
    for file in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file.read_bytes()):
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                step = items.pop("_step")
                rows.append((step, {key: items[key] for key in items if not key.startswith("_")}))
    return rows


def records(data: bytes) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    at, parts, block = 7, b"", 32768
    while at + 7 <= len(data):
        left = block - at % block
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("offline")
def test_what_the_library_writes_offline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    broken_run(out, (9,), *open_trackers(["wandb"]))
    assert follow(out, *open_trackers(["wandb"])) == []
    assert history(out) == rows_wanted(out)
    known = json.loads((out / TRACKERS).read_text())["wandb"]["id"]
    folders = list((out / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(known) for folder in folders)
    follow(tmp_path / "without")
    assert content(out) == content(tmp_path / "without")
    assert capfd.readouterr() == ("", "")
