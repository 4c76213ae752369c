from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from nispa.reading.plots import BLUE, draw, picture
from nispa.runs.record import DataEntry, Record, ScenarioEntry, TaskResult, UnitCount
from tests.records import finetune, five_tasks, record, twenty_tasks


def panel(figure: Figure, title: str) -> Axes:
    found = [axes for axes in figure.axes if title in axes.get_title(loc="left")]
    assert len(found) == 1, [axes.get_title(loc="left") for axes in figure.axes]
    return found[0]


def numbers(axes: Axes) -> dict[tuple[int, int], str]:
    """What stands in each cell (row, column) of the heat map, counted from 1."""
    texts = [(text.get_position(), text.get_text()) for text in axes.texts]
    return {(round(y), round(x)): text for (x, y), text in texts}


def heading(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_it_is_a_png_of_the_size_promised() -> None:
    with Image.open(io.BytesIO(picture(record()))) as image:
        assert image.format == "PNG"
        assert image.size == (1736, 868)
        assert image.info.get("Software") is None


def test_the_same_record_gives_the_same_bytes() -> None:
    assert picture(five_tasks()) == picture(five_tasks())
    assert picture(five_tasks()) != picture(five_tasks(seed=1))


def test_the_users_own_settings_of_matplotlib_change_nothing() -> None:
    plain = picture(record())
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "savefig.bbox": "tight", "axes.facecolor": "red"}):
        assert picture(record()) == plain
    assert dict(mpl.rcParams) == before


def test_each_cell_holds_its_accuracy() -> None:
    cells = numbers(panel(draw(record()), "Accuracy"))
    assert cells == {(1, 1): "75.0", (1, 2): "50.0", (2, 1): "62.5", (2, 2): "100.0"}


def test_what_was_measured_before_learning_is_not_coloured() -> None:
    axes = panel(draw(record()), "Accuracy")
    shown = axes.images[0].get_array()
    assert shown is not None
    assert np.ma.getmaskarray(shown).tolist() == [[False, True], [False, False]]


def test_twenty_tasks_are_rounded_and_all_named() -> None:
    axes = panel(draw(twenty_tasks()), "Accuracy")
    cells = numbers(axes)
    assert len(cells) == 210
    assert cells[20, 20] == "83"
    assert axes.get_yticklabels()[19].get_text() == "20 · 95-96-97-98-99"


def test_the_heading_says_what_was_run_and_what_came_out() -> None:
    assert heading(draw(record())) == [
        "split-digits  ·  nispa  ·  preset paper  ·  task-incremental  ·  seed 19",
        "mean accuracy 81.25 %  ·  forgetting 12.50 %",
        "Data: digits (canonical)",
    ]


def test_data_that_are_not_canonical_are_named() -> None:
    found = heading(draw(five_tasks()))[2]
    assert found == "Not the canonical data: emnist-balanced (112,800 of 131,600 images: a subset)"


def test_a_run_cut_short_says_so_and_ends_with_its_last_task() -> None:
    full = five_tasks()
    value = five_tasks(
        status="interrupted", accuracy_matrix=full.accuracy_matrix[:3], per_task=full.per_task[:3]
    )
    figure = draw(value)
    assert heading(figure)[1] == "interrupted after 3 of 5 tasks"
    learned, end = panel(figure, "Learned and kept").get_lines()
    expected = [97.2, 89.69, 93.69, np.nan, np.nan]
    assert np.asarray(learned.get_ydata()) == pytest.approx(expected, nan_ok=True)
    assert np.asarray(end.get_ydata()) == pytest.approx(expected, nan_ok=True)


def test_rings_and_dots_tell_what_was_lost() -> None:
    learned, end = panel(draw(record()), "Learned and kept").get_lines()
    assert list(np.asarray(learned.get_ydata())) == [75.0, 100.0]
    assert list(np.asarray(end.get_ydata())) == [62.5, 100.0]


def test_stable_units_rise_from_below() -> None:
    figure = draw(record())
    bars = {
        axes.get_xlabel(): [
            round(bar.get_height(), 6)  # type: ignore[attr-defined]
            for bar in axes.patches
            if mpl.colors.to_hex(bar.get_facecolor()).upper() == BLUE
        ]
        for axes in figure.axes
        if "hidden" in axes.get_xlabel()
    }
    assert bars == {"hidden1 (40)": [25.0, 50.0], "hidden2 (30)": [20.0, 100.0]}


def test_a_method_without_stable_units_has_two_panels() -> None:
    assert [axes.get_title(loc="left") for axes in draw(finetune()).axes] == [
        "Accuracy (%) on each task, after each task",
        "Learned and kept (%)",
    ]


def test_many_groups_share_one_panel() -> None:
    task = TaskResult(
        phases=1,
        samples_trained=1,
        train_s=1,
        eval_s=1,
        stable_units={f"block{k}": UnitCount(stable=k, size=10) for k in range(9)},
    )
    figure = draw(record(per_task=[task]))
    assert len(figure.axes) == 3
    shown = panel(figure, "Stable units per group").images[0].get_array()
    assert shown is not None
    assert shown[:, 0].tolist() == pytest.approx([k / 10 for k in range(9)])


def empty() -> Record:
    return record(status="running", accuracy_matrix=[], per_task=[], metrics={})


def hundred() -> Record:
    rows = [[0.5 if j <= i else None for j in range(100)] for i in range(100)]
    return twenty_tasks(tasks=twenty_tasks().tasks * 5, accuracy_matrix=rows)


def joint() -> Record:
    return finetune(accuracy_matrix=[[None] * 5] * 4 + [[0.1, 0.0, 0.9, 0.3, 1.0]])


def strange() -> Record:
    name = "$x_{1$ \\frac 数字 \x1b[0m\n" + "y" * 300
    data = DataEntry(name=name, canonical=False, sha256="0" * 64, note=name)
    return record(scenario=ScenarioEntry(name=name), method=name, preset=name, data=[data])


def no_size() -> Record:
    units = {"a": UnitCount(stable=0, size=0)}
    task = TaskResult(phases=0, samples_trained=0, train_s=0, eval_s=0, stable_units=units)
    return record(per_task=[task], accuracy_matrix=[[0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("make", [empty, hundred, joint, strange, no_size])
def test_unusual_records_are_drawn_without_a_warning(make: object) -> None:
    assert callable(make)
    assert picture(make()).startswith(b"\x89PNG")


def test_a_strange_text_stays_inside_the_picture() -> None:
    figure = draw(strange())
    picture(strange())
    assert all(text.isprintable() and len(text) <= 160 for text in heading(figure))
    assert "$x_{1$" in heading(figure)[0]


def test_no_window_and_no_global_figure(tmp_path: Path) -> None:
    code = (
        "import sys, nispa.reading.plots\n"
        "from records import record\n"
        "nispa.reading.plots.picture(record())\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, check=False)
    assert done.returncode == 0
