"""The line that shows learning: where it appears, and what it says."""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import pytest

from nispa import Learner
from nispa.methods import progress
from nispa.methods.base import LearnReport, PhaseEnd, PhaseStart
from nispa.methods.progress import Notebook, Plain, Progress, Terminal, find_place
from nispa.training.pausing import EpochEnd
from tests.test_learner import arrays


class Screen(io.StringIO):
    """A terminal, or a file that looks like one."""

    def isatty(self) -> bool:
        return True


class Shown:
    """A place that keeps what it was given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.closed = False

    def show(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    place = Shown()
    monkeypatch.setattr(progress, "find_place", lambda wanted: lambda: place)
    return place


def drive(wanted: bool | None, seconds_each: float) -> None:
    """Two phases of two epochs, each of which takes so long."""
    now = [0.0]
    with Progress("task 0", wanted, clock=lambda: now[0]) as line:
        for phase in (1, 2):
            line.update(PhaseStart(phase, 2, 4, tau=0.5, stable_share=0.25))
            for epoch in (1, 2):
                now[0] += seconds_each
                line.update(EpochEnd(epoch, 1.0, 0.5 + epoch / 10, 10, seconds_each))
            line.update(PhaseEnd(phase, 0.75, 1.0))
        line.end(LearnReport(2, 40, 0.5, "epochs"))


def test_a_quick_task_shows_nothing(shown: Shown) -> None:
    drive(None, 0.2)
    assert shown.lines == []


def test_a_slow_task_shows_where_it_stands(shown: Shown) -> None:
    drive(None, 40.0)
    assert shown.lines[0] == (
        "task 0: phase 1 of at most 4, epoch 2/2, validation 60.0 %, 40.0 s, "
        "25 % stable or candidates"
    )
    assert shown.lines[-1] == ("task 0: learned in 2 phases, validation 75.0 %, 2 min 40 s")
    assert shown.closed


def test_one_can_ask_for_it(shown: Shown) -> None:
    drive(True, 0.2)
    assert len(shown.lines) > 1


def test_where_the_line_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert find_place(None) is None
    assert find_place(False) is None
    assert find_place(True) is Plain
    monkeypatch.setattr(sys, "stderr", Screen())
    assert find_place(None) is Terminal
    assert find_place(False) is None
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console
    assert find_place(True) is None


def test_a_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    place = Terminal()
    place.show("first [bold]")
    place.show("second")
    place.close()
    assert "first [bold]" in screen.getvalue()
    assert screen.getvalue().rstrip("\x1b[?25h\n").endswith("second")


def test_a_pipe_gets_the_last_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    place = Plain()
    place.show("first")
    place.show("second")
    place.close()
    assert pipe.getvalue() == "second\n"


class Handle:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def update(self, content: Any, raw: bool) -> None:
        self.log.append(("update", content))


def test_a_notebook_gets_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    def display(content: Any, raw: bool, display_id: bool) -> Handle:
        log.append(("display", content))
        return Handle(log)

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    there = types.ModuleType("IPython.display")
    there.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", there)
    make = find_place(None)
    assert make is not None
    place = make()
    assert isinstance(place, Notebook)
    place.show("first")
    place.show("second")
    place.close()
    assert log == [("display", {"text/plain": "first"}), ("update", {"text/plain": "second"})]
    shell.kernel = None  # IPython on a terminal or in a pipe
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert find_place(None) is None


def test_a_window_that_closed_ends_no_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "AFTER_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    made = Learner("finetune", input_shape=(1, 4, 4), classes=2, hidden=(4,), epochs=2)
    made.learn(*arrays(0, 24), watch=lambda event: screen.close())
    assert len(made.tasks) == 1


def test_learning_is_silent_into_a_pipe_and_speaks_when_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "AFTER_S", 0.0)
    for wanted in (None, False, True):
        made = Learner("finetune", input_shape=(1, 4, 4), classes=2, hidden=(4,), epochs=2)
        made.learn(*arrays(0, 24), progress=wanted)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("task 0: learned" in err) == (wanted is True)
