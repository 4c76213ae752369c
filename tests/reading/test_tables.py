from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nispa.reading.tables import render, settings_table
from nispa.runs.metrics import percent
from nispa.runs.record import (
    ConnectionCount,
    DataEntry,
    MetricValue,
    Record,
    ScenarioEntry,
    TaskEntry,
    TaskResult,
    UnitCount,
    decode,
    encode,
)
from tests.records import finetune, five_tasks, priced, record, twenty_tasks, without_metrics


def show(value: Record, width: int = 80, *, colour: bool = False) -> str:
    out = io.StringIO()
    system = "standard" if colour else None
    console = Console(file=out, width=width, color_system=system, force_terminal=colour)  # type: ignore[arg-type]
    console.print(render(value, width))
    return out.getvalue()


def lines(value: Record, width: int = 80) -> list[str]:
    return [line.rstrip() for line in show(value, width).splitlines()]


def rows(value: Record, width: int = 80) -> list[list[str]]:
    """The words of each line: cells without the blanks between columns."""
    return [line.split() for line in show(value, width).splitlines()]


def test_two_tasks_by_hand() -> None:
    found = rows(record())
    for line in (
        "split-digits, nispa, task-incremental (told the task), preset paper, seed 19",
        "Data: digits (canonical) [sha256 000000000000]",
        "Accuracy on each task (%) after each task",
        "after 1 2",
        "1 0-1   75.0   50.0",
        "2 2-3   62.5  100.0",
        "accuracy (acc)            81.25  mean of the last row",
        "backward transfer (bwt)  -12.50  last row minus diagonal",
        "forward transfer (fwt)     0.00  before learning minus chance",
        "forgetting                12.50  best earlier row minus last row",
        "1 0-1       7  0.904    9,100      1.5  accuracy fell",
        "2 2-3      12  0.050   15,540      2.0  schedule ended",
        "all                    24,640      3.5",
        "after  hidden1/40  hidden2/30",
        "1 0-1      10 25%       6 20%",
        "2 2-3      20 50%     30 100%",
        "fc1     512  2,560    0.200     256          50%",
        "Parameters: 652 live of 2,940 positions (density 0.222)",
        "Started: 2022-06-18T09:30:00Z, finished: 2022-06-18T09:31:00Z",
    ):
        assert line.split() in found, line


def many_groups() -> Record:
    base = five_tasks()
    tasks = [
        task.model_copy(
            update={"stable_units": {f"block{k}": UnitCount(stable=k, size=64) for k in range(12)}}
        )
        for task in base.per_task
    ]
    return five_tasks(per_task=tasks)


HUGE = [
    {
        "operations": {"forward": 999 * 10**15, "a purpose of somebody else's": 10**24},
        "inference_operations": 999 * 10**9,
        "train_cpu_s": 999_999.9,
        "eval_cpu_s": 99_999.9,
        "model_bytes": 987_654_321_000,
        "peak_bytes": 987_654_321_000,
    }
]


def test_settings_by_hand() -> None:
    config: dict[str, Any] = {
        "method": {
            "learning_rate": 0.01,
            "refill": True,
            "max_phases": None,
            "derived": ["epochs"],
        },
        "network": {"hidden": [40, 20], "density": 0.2},
    }
    config["method"]["epochs"] = config["method"]["batch_size"] = 5
    derived = ({"epochs": 9, "batch_size": 32}, {"epochs": 8, "batch_size": 32})
    run = record().model_copy(update={"config": config, "derived": derived})
    out = io.StringIO()
    Console(file=out, width=80).print(settings_table(run))
    assert [line.strip().split(None, 1) for line in out.getvalue().splitlines()[4:]] == [
        ["learning_rate", "0.01"],
        ["refill", "true"],
        ["max_phases", "none"],
        ["epochs", "9, 8 (from the data)"],
        ["batch_size", "32 (from the data)"],
        ["hidden", "40,20"],
        ["density", "0.2"],
    ]


def test_costs_by_hand() -> None:
    found = rows(priced())
    for line in (
        "task  train op. op./sample train CPU s eval CPU s model B peak B",
        "1 0-1     6.6 M      1.3 k         2.5        0.5   7.8 k  400 M",
        "2 2-3     5.4 M      1.3 k         3.5          1  7.82 k  300 M",
        "all        12 M      1.3 k           6        1.5  7.82 k  400 M",
        "Training operations: forward 8 M, weight gradients 2 M, updates 600 k, replay",
        "Evaluation took 0.75 s, all tasks together",
    ):
        assert line.split() in found, line
    assert not any(line.startswith("Cost") for line in lines(record()))


def test_what_is_not_known_says_so() -> None:
    base = record(parameters=None, started=None, finished=None, per_task=())
    unknown = base.environment.model_copy(update={"threads": None})
    text = show(base.model_copy(update={"environment": unknown}))
    for words in ("Parameters: not known", "When it ran is not known", "unknown threads"):
        assert words in text
    assert "None" not in text


@pytest.mark.parametrize(
    "value",
    [
        *(record(), five_tasks(), twenty_tasks(), twenty_tasks(0.1), finetune(), many_groups()),
        *(priced(), priced(five_tasks(), HUGE), priced(twenty_tasks(), HUGE)),
    ],
)
def test_nothing_is_cut_or_too_wide_at_80_columns(value: Record) -> None:
    text = show(value)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text  # how rich marks a cell that had no room


def test_data_that_are_not_canonical_are_shouted() -> None:
    text = show(five_tasks())
    assert "Data: emnist-balanced NOT THE CANONICAL DATA: 112,800 of 131,600" in text
    assert "Data: fashion-mnist (canonical) [sha256 cdcdcdcdcdcd]" in text
    assert "NOT THE CANONICAL" not in show(record())


def test_twenty_tasks_fit_without_decimals() -> None:
    found = [" ".join(line) for line in rows(twenty_tasks())]
    assert "20 70 84 75 89 80 71 85 76 90 81 72 86 77 91 82 73 87 78 92 83" in found
    assert " ".join(["after", *map(str, range(1, 21))]) in found


def test_more_tasks_than_columns_get_a_line_each() -> None:
    count = 30
    rows = [[0.5 if j <= i else None for j in range(count)] for i in range(count)]
    rows[29][0] = 0.375
    tasks = twenty_tasks().tasks[:1] * count
    found = lines(twenty_tasks(tasks=tasks, accuracy_matrix=rows, per_task=[]))
    assert "Accuracy on each task (%); the whole matrix is in record.json" in found
    cells = [line.split() for line in found]
    assert ["1", "0-1-2-3-4", "50.00", "37.50", "-12.50"] in cells
    assert ["30", "0-1-2-3-4", "50.00", "50.00", "0.00"] in cells
    wide = lines(twenty_tasks(tasks=tasks, accuracy_matrix=rows, per_task=[]), width=250)
    assert "Accuracy on each task (%) after each task" in wide


def test_a_method_without_stable_units_has_no_empty_tables() -> None:
    text = show(finetune())
    assert "Stable units" not in text
    assert "Connections" not in text
    assert "5 fashion-mnist 1 - 540,000 3.0 -" in " ".join(text.split())


def test_many_groups_get_a_line_each() -> None:
    found = lines(many_groups())
    assert "Stable units after the last task" in found
    assert ["block11", "11", "64", "17%"] in rows(many_groups())


def test_shares_never_round_to_all_or_nothing() -> None:
    units = {"a": UnitCount(stable=399, size=400), "b": UnitCount(stable=1, size=1000)}
    units |= {"c": UnitCount(stable=0, size=9), "d": UnitCount(stable=0, size=0)}
    task = TaskResult(phases=1, samples_trained=0, train_s=0, eval_s=0, stable_units=units)
    text = show(record(per_task=[task]))
    assert "1 0-1 399 99% 1 1% 0 0% 0 -" in " ".join(text.split())


def test_a_layer_without_positions_has_no_density() -> None:
    task = TaskResult(
        phases=1,
        samples_trained=0,
        train_s=0,
        eval_s=0,
        connections={"fc1": ConnectionCount(live=0, frozen=0, total=0)},
    )
    assert ["fc1", "0", "0", "-", "0", "-"] in rows(record(per_task=[task]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (0.90343, "+90.34"),
        (-0.125, "-12.50"),
        (0.125, "+12.50"),
        (0.00001, "+0.001"),
        (-0.00001, "-0.001"),
    ],
)
def test_zero_means_exactly_zero(value: float | None, text: str) -> None:
    assert percent(value, signed=True) == text
    assert percent(value) == text.removeprefix("+")


def test_an_undefined_metric_is_a_dash() -> None:
    found = rows(without_metrics(record()))
    assert ["forgetting", "-", "best", "earlier", "row", "minus", "last", "row"] in found


def test_another_formula_is_shown_as_recorded() -> None:
    metrics = {"bwt": MetricValue(value=0.5, formula="some other mean", source="Somebody 2030")}
    text = show(record(metrics=metrics))
    assert "some other mean" in text
    assert "last row minus diagonal" not in text


def test_accuracy_without_the_task_stands_beside_it() -> None:
    matrix = [[0.75, None], [0.25, 0.5]]
    other = {"acc": MetricValue(value=0.375, formula="f", source="s")}
    value = record(accuracy_matrix_task_agnostic=matrix, metrics_task_agnostic=other)
    found = lines(value)
    assert "Accuracy without knowing the task (%) after each task" in found
    cells = rows(value)
    assert ["2", "2-3", "25.0", "50.0"] in cells
    assert ["accuracy", "(acc)", "81.25", "37.50", "mean", "of", "the", "last", "row"] in cells
    assert ["forgetting", "12.50", "-", "best", "earlier", "row", "minus", "last", "row"] in cells


def test_a_run_that_did_not_finish_says_so() -> None:
    value = record(status="interrupted", finished=None, accuracy_matrix=[[0.75, None]])
    text = show(value)
    assert "INTERRUPTED after 1 of 2 tasks" in text
    assert "finished: no" in text
    assert "INTERRUPTED" not in show(record())


def test_a_run_that_learned_nothing_yet() -> None:
    text = show(record(status="running", accuracy_matrix=[], per_task=[], metrics={}))
    assert "RUNNING after 0 of 2 tasks" in text
    assert "No task was measured yet." in text


def test_a_strangers_texts_do_nothing_to_the_terminal() -> None:
    evil = "\x1b[31m[bold]x[/bold]\n\x07:smile:" + "y" * 500
    value = record(
        scenario=ScenarioEntry(name=evil),
        method=evil,
        preset=evil,
        notes=[evil] * 30,
        tasks=[TaskEntry(name=evil, classes=(0,), train=1, validation=1, test=1)] * 2,
        metrics={evil: MetricValue(value=1.0, formula=evil, source=evil)},
        per_task=[
            TaskResult(
                phases=1,
                samples_trained=1,
                train_s=1,
                eval_s=1,
                stop_reason=evil,
                stable_units={evil: UnitCount(stable=1, size=2)},
                connections={evil: ConnectionCount(live=1, frozen=1, total=2)},
            )
        ],
    )
    text = show(value)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold]" in text
    assert ":smile:" in text
    assert "... and 10 more notes in the record" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_colour_marks_what_was_forgotten() -> None:
    coloured = show(record(), colour=True)
    assert re.findall(r"\x1b\[31m *([\d.]+)", coloured) == ["62.5"]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_record_that_can_be_read_can_be_shown(data: st.DataObject) -> None:
    found = json.loads(encode(record()))
    tasks = data.draw(st.integers(1, 5))
    entry = st.none() | st.floats(0, 1)
    found["tasks"] = [found["tasks"][0] | {"name": data.draw(st.text())}] * tasks
    found["accuracy_matrix"] = data.draw(
        st.lists(st.lists(entry, min_size=tasks, max_size=tasks), max_size=tasks)
    )
    found["per_task"] = found["per_task"][: data.draw(st.integers(0, tasks))]
    found["notes"] = data.draw(st.lists(st.text(), max_size=3))
    found["preset"] = data.draw(st.none() | st.text())
    assert "Ran on" in show(decode(json.dumps(found).encode()))


def test_reports_work_without_torch() -> None:
    code = "import sys, nispa.reading.tables, nispa.reading.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_own_data_are_not_shouted_at() -> None:
    own = record(data=[DataEntry(name="photos", canonical=None, sha256="0" * 64)])
    assert "Data: photos (own data) [sha256 000000000000]" in lines(own)


def test_classes_are_shown_by_name() -> None:
    """Where they have names that are no numbers; a stranger's are one short line."""
    plain = show(record(class_names=("0", "1", "2", "3")))
    assert "Classes:" not in plain
    text = show(record(class_names=("bird", "cat", "d\x1b[31mog", "x" * 500)))
    assert "Classes:" in text
    assert "1 bird, cat" in text
    assert "\x1b" not in text
    assert "x" * 50 not in text
