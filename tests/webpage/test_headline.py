"""The first sentences of the page, its groups and intervals, names in the place of numbers."""

from __future__ import annotations

import re
from typing import Any

from nispa.reading.statistics import interval
from nispa.runs.metrics import percent
from nispa.runs.record import Record, TaskEntry
from nispa.webpage import Run, page
from nispa.webpage.headline import headline
from nispa.webpage.markup import render, tag
from nispa.webpage.problems import problems_of
from tests.records import finetune, five_tasks, priced, record
from tests.webpages import Page, harmless, made


def said(*records: Record) -> list[str]:
    """The sentences on top, without markup."""
    runs = [Run(f"run {k}", each) for k, each in enumerate(records)]
    return [
        Page(render(tag("main", each)).encode()).text
        for each in headline(runs, problems_of(runs))
        if each is not None
    ]


def reached(value: float, **changes: Any) -> Record:
    """A run of two tasks that kept what it learned: both at ``value``."""
    return record(accuracy_matrix=[[value, None], [value, value]], **changes)


# One run


def test_a_run_in_a_sentence() -> None:
    (text,) = said(five_tasks())
    assert "nispa learned 5 tasks of efmnist (task-incremental, told the task)" in text
    assert "mean accuracy 90.34 %, forgetting 0.00 points" in text
    assert "1,178 of its 1,200 hidden units are stable (98 %), 22 are left" in text


def test_a_run_that_is_not_complete() -> None:
    """Of three tasks learned to 0.9, 0.8 and 0.7, the first of which lost a tenth in the end."""
    rows = [[0.9, *[None] * 4], [0.9, 0.8, *[None] * 3], [0.8, 0.8, 0.7, None, None]]
    base = five_tasks(accuracy_matrix=rows, status="interrupted")
    (text,) = said(base)
    assert "learned 3 of 5 tasks" in text
    assert "mean accuracy 76.67 % over these, forgetting 5.00 points" in text
    assert "the run is interrupted" in made(base).text
    (text,) = said(record(accuracy_matrix=(), per_task=(), status="running"))
    assert "learned 0 of 2 tasks" in text
    assert "accuracy" not in text


def test_a_single_run_begins_with_its_matrix() -> None:
    found = made(five_tasks())
    tables = [attrs.get("id") for attrs in found.all("table")]
    assert tables[0] == "heat-1-0"
    assert not {"methods-1", "runs-table"} & set(tables)
    pictures = [attrs for attrs in found.all("svg") if attrs.get("role") == "img"]
    assert pictures[0]["data-table"] == "heat-1-0"


def test_a_full_network_is_told_of_before_the_run() -> None:
    """386, 399 and 393 of 400 units are stable: less than a tenth is left in each layer."""
    text = made(five_tasks()).text
    assert text.index("nearly full") < text.index("Accuracy on each task")
    half = five_tasks(per_task=five_tasks().per_task[:2])
    assert "full" not in made(half).text.lower()


# Many runs


def test_the_best_method_with_its_interval() -> None:
    runs = [reached(value, seed=k, method="er") for k, value in enumerate((0.9, 0.95, 0.97))]
    runs += [reached(value, seed=k, method="ewc") for k, value in enumerate((0.74, 0.76, 0.75))]
    (text,) = said(*runs)
    assert "split-digits, task-incremental (told the task): the best of 2 methods" in text
    ends = interval([0.9, 0.95, 0.97])
    assert ends is not None
    low, high = map(percent, ends)
    assert "is er, with a mean accuracy of 94.00 % over 2 tasks" in text
    assert f"(95 % interval {low} to {high}, 3 runs), forgetting 0.00 points." in text
    assert "Next is ewc with 75.00 %" in text
    assert "the intervals lie apart" in text
    assert text.endswith("6 runs, 3 seeds.")
    (text,) = said(*runs, reached(0.2, seed=3, method="er"))
    assert "the intervals overlap" in text


def test_one_run_of_a_method_has_no_interval() -> None:
    (text,) = said(reached(0.9, method="er"), reached(0.8, method="ewc"))
    assert "er, with a mean accuracy of 90.00 % over 2 tasks (one run, so no interval)" in text
    assert "does not tell which is better" in text


def test_bounds_are_not_the_best_method() -> None:
    (text,) = said(reached(0.99, method="joint"), reached(0.9), reached(0.8, method="ewc"))
    assert "best of 2 methods" in text
    assert "is nispa, with a mean accuracy of 90.00 %" in text
    assert "joint, a bound, has 99.00 %" in text
    (text,) = said(reached(0.99, method="avalanche:joint"), reached(0.9))
    assert "nispa reached a mean accuracy of 90.00 %" in text
    (text,) = said(reached(0.99, method="joint"), reached(0.98, method="joint", seed=3))
    assert "joint reached a mean accuracy of 98.50 % over 2 tasks" in text


def test_settings_of_a_method_are_told_apart() -> None:
    runs = [reached(0.8 + d / 10, config={"density": d, "epochs": 5}) for d in (0.1, 0.5)]
    (text,) = said(*runs)
    assert "best of 2 methods and settings is nispa density=0.5" in text
    assert "Next is nispa density=0.1" in text


def test_runs_that_do_not_count_are_not_the_best() -> None:
    cut = reached(0.99, status="interrupted", method="er")
    (text,) = said(cut, reached(0.8), reached(0.8, seed=3))
    assert "nispa reached a mean accuracy of 80.00 % over 2 tasks" in text
    assert "2 of 3 runs" in text
    (text,) = said(cut, reached(0.7, status="failed"))
    assert "none of 2 runs has learned all tasks yet" in text


def test_runs_of_different_kinds_stand_apart() -> None:
    kinds = ("task", "class", "task", "domain")
    rows = [[0.5, None], [0.5, 0.5]]
    runs = [
        reached(0.9, method=f"m{k}", incremental=kind, accuracy_matrix_task_agnostic=rows)
        for k, kind in enumerate(kinds)
    ]
    *sentences, warning = said(*runs)
    assert [text.split("(")[0].split(", ")[1].strip() for text in sentences] == [
        "task-incremental",
        "class-incremental",
        "domain-incremental",
    ]
    assert "best of 2 methods" in sentences[0]
    assert "m1 reached a mean accuracy of 50.00 % over 2 tasks" in sentences[1]
    assert "not told the task" in sentences[1]
    assert "nothing is averaged or ranked over more than one kind" in warning
    found = Page(page([Run(f"run {k}", each) for k, each in enumerate(runs)]))
    names = [str(attrs.get("id")) for attrs in found.all("table")]
    assert [name for name in names if name.startswith("methods-")] == [
        "methods-1",
        "methods-2",
        "methods-3",
    ]
    assert "different questions" not in made(reached(0.9), reached(0.8, method="er")).text


# One picture with a choice of axes


def test_one_of_the_costs_is_chosen_and_drawn() -> None:
    found = made(priced(five_tasks()), priced(five_tasks(seed=1)), priced(finetune()))
    buttons = [attrs for attrs in found.all("input") if attrs["type"] == "radio"]
    assert len(buttons) > 5
    assert len({attrs["name"] for attrs in buttons}) == 1
    assert ["checked" in attrs for attrs in buttons] == [True] + [False] * (len(buttons) - 1)
    pictures = [attrs for attrs in found.all("svg") if attrs.get("data-table") == "costs-1"]
    assert len(pictures) == len(buttons)  # the style pairs them by their order
    style = found.raw["style"]
    assert f"nth-of-type({len(buttons)}):checked ~ svg:nth-of-type({len(buttons)})" in style


# Names


def test_tasks_and_methods_are_named_where_they_are_drawn() -> None:
    found = page([Run("a", five_tasks()), Run("b", finetune()), Run("c", finetune(seed=2))])
    pictures = re.findall(r"<svg.*?</svg>", found.decode(), re.DOTALL)
    texts = {
        name: re.findall(r"<text[^>]*>(.*?)</text>", picture)
        for picture in pictures
        for name in re.findall(r'aria-labelledby="([a-z-]+)', picture)
    }
    for name in ("acc-", "sofar-", "train"):
        (drawn,) = (words for key, words in texts.items() if key.startswith(name))
        assert {"nispa", "finetune"} <= set(drawn)
    for name in ("sofar-", "time-", "units-"):
        (drawn,) = (words for key, words in texts.items() if key.startswith(name))
        assert {"emnist-0", "fashion-mnist"} <= set(drawn)


class Named(Record):
    """A record that has the names of its classes."""

    class_names: tuple[str, ...] = ()


def named(**changes: Any) -> Record:
    return Named(**{**record().model_dump(by_alias=True), **changes})


def test_classes_are_named_where_the_record_has_names() -> None:
    names = ("cat", "dog", "<b>owl</b>", "3")
    found = made(named(class_names=names))
    harmless(found)
    for text in ("cat, dog", "<b>owl</b>, 3"):
        assert text in found.text
    assert "1 0-1" not in found.text  # called after numbers that nobody has to look up now
    own = [TaskEntry(name=name, classes=(0, 9), train=1, validation=1, test=1) for name in "ab"]
    found = made(named(class_names=names, tasks=own))
    assert "1 a" in found.text
    assert "cat, 9" in found.text
    assert "1 0-1" in made(named(class_names=("0", "1", "2", "3"))).text
