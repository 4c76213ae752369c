"""The HTML page of runs: what stands on it, that no record can break it, that it can be read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest

from nispa.reading.phases import phases_of
from nispa.runs.record import (
    DataEntry,
    Record,
    ScenarioEntry,
    TaskEntry,
    TaskResult,
    UnitCount,
    decode,
    encode,
)
from nispa.webpage import Run, page
from nispa.webpage.charts import COLOURS
from nispa.webpage.markup import raw, render, tag
from nispa.webpage.problems import problems_of
from nispa.webpage.scales import Scale, percent_range, scale_of, short
from tests.records import COSTS, finetune, five_tasks, priced, record, twenty_tasks
from tests.webpages import Page, harmless, made

HOSTILE = "<script>alert(1)</script>\"'&--></style></svg>\x00\x1b[31m\u202e" + "x" * 5_000


def hostile_record(**changes: Any) -> Record:
    """A valid record whose every text is hostile."""
    base = record()
    values: dict[str, Any] = {
        "scenario": ScenarioEntry(name=HOSTILE, settings={HOSTILE: HOSTILE}),
        "data": [
            DataEntry(name=HOSTILE, canonical=False, sha256="0" * 64, source=HOSTILE, note=HOSTILE)
        ],
        "method": HOSTILE,
        "preset": HOSTILE,
        "config": {HOSTILE: {HOSTILE: [HOSTILE, None, True, 1e308]}},
        "tasks": [task.model_copy(update={"name": HOSTILE}) for task in base.tasks],
        "per_task": [
            task.model_copy(
                update={
                    "stop_reason": HOSTILE,
                    "stable_units": {HOSTILE: UnitCount(stable=1, size=1)},
                    "connections": {HOSTILE: task.connections["fc1"]},
                    "storage": {HOSTILE: 10**15},
                    "train_s": 1e12,
                    "train_cpu_s": 1e12,
                    "operations": {HOSTILE: 10**24, "forward": 10**24},
                    "inference_operations": 10**24,
                    "model_bytes": 10**15,
                    "peak_bytes": 10**15,
                    "tau": 0.0,
                }
            )
            for task in base.per_task
        ],
        "environment": base.environment.model_copy(update={"cpu": HOSTILE, "torch": HOSTILE}),
        "notes": [HOSTILE] * 50,
    }
    return decode(encode(record(**(values | changes))))


def end(task: Any, phase: Any, **more: Any) -> dict[str, Any]:
    return {"event": "phase_end", "task": task, "phase": phase, **more}


# Strangers


def test_texts_of_a_record_stay_texts() -> None:
    base = hostile_record()
    events = [end(0, k, kept={HOSTILE: 1}, tau=0.5, dropped={HOSTILE: 3}) for k in (1, 2, 3)]
    run = Run(HOSTILE, base, phases_of(events, base), HOSTILE)
    found = Page(page([run, Run(HOSTILE, hostile_record(seed=3)), run]))
    harmless(found)
    assert "<script>alert(1)</script>" in found.text
    longest = max(re.findall(r"x+", found.text), key=len)
    assert len(longest) < 600


NOTHING: tuple[tuple[None, ...], ...] = ((None, None), (None, None))
ODD = [
    record(accuracy_matrix=(), metrics={}, per_task=(), status="running", finished=None),
    record(accuracy_matrix=NOTHING),
    record(accuracy_matrix=((0.5, None),), per_task=(), status="interrupted"),
    record(per_task=()),
    record(
        tasks=[TaskEntry(name="", classes=(), train=0, validation=0, test=0)],
        accuracy_matrix=((1.0,),),
        per_task=(),
    ),
    record(
        per_task=[
            TaskResult(
                phases=0,
                samples_trained=0,
                train_s=0.0,
                eval_s=0.0,
                stable_units={name: UnitCount(stable=0, size=0) for name in "abc"},
            )
        ]
    ),
    record(config={}, data=[], parameters={"live": 0, "total": 0}),
    record(parameters=None, started=None, finished=None),
    record(
        tasks=[TaskEntry(name=n, classes=(), train=None, validation=None, test=None) for n in "ab"]
    ),
    priced(),
    five_tasks(),
    twenty_tasks(loss=0.1),
    twenty_tasks(per_task=twenty_tasks().per_task[:3], status="failed"),
    finetune(),
]


@pytest.mark.parametrize("place", range(len(ODD)))
def test_odd_records_make_a_page(place: int) -> None:
    harmless(made(ODD[place]))


def test_odd_records_together_make_a_page() -> None:
    found = made(*ODD)
    harmless(found)
    assert "not complete" in found.text.lower()


def test_a_thousand_tasks_and_layers_stay_small() -> None:
    tasks = 300
    layers = {f"layer {k}": UnitCount(stable=1, size=2) for k in range(500)}
    one = TaskResult(phases=1, samples_trained=1, train_s=1.0, eval_s=0.0, stable_units=layers)
    many = record(
        tasks=[TaskEntry(name="t", classes=(0, 1), train=1, validation=1, test=1)] * tasks,
        accuracy_matrix=[[0.5] * tasks] * tasks,
        per_task=[one] * tasks,
        config={f"key {k}": k for k in range(5_000)},
    )
    found = page([Run("many", many)])
    assert len(found) < 1_000_000
    assert "40 of 300 tasks are shown" in Page(found).text
    assert "12 of 500 layers are shown" in Page(found).text


def test_a_hundred_runs_stay_light() -> None:
    methods = [f"method-{k}" for k in range(10)]
    runs = [
        Run(f"{method}-s{seed}", priced(five_tasks(seed=seed, method=method)))
        for method in methods
        for seed in range(10)
    ]
    assert len(page(runs)) < 2_100_000


def test_a_page_stays_below_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nispa.webpage.document.MAX_BYTES", 300_000)
    data = page([Run(f"run {k}", twenty_tasks(loss=0.1, seed=k)) for k in range(12)])
    found = Page(data)
    assert 200_000 < len(data) < 300_000
    assert "pass fewer runs" in found.text
    assert "12. run 11: left out" in found.text
    assert re.search(r"From run \d on, single runs are left out", found.text)
    ids = [attrs.get("id") for _, attrs in found.tags]
    assert {f"run-{k}" for k in range(1, 13)} <= set(ids)  # every link leads somewhere


@pytest.mark.parametrize(
    "event",
    [
        end("0", 1),
        end(0, -1),
        end(7, 1),
        end(0, 1, tau=float("nan")),
        end(0, 1, tau=1.5),
        end(0, 1, kept={"hidden1": -4}),
        end(0, 1, kept=[1]),
        end(True, 1),
        {"event": ["phase_end"]},
        {},
    ],
)
def test_events_that_do_not_fit_are_passed_over(event: dict[str, Any]) -> None:
    assert phases_of([event], record()) == ()


# Numbers


def test_phases_hold_stable_candidates_and_all_units() -> None:
    kept = {"hidden1": 25, "hidden2": 6}
    events = [
        {"event": "epoch", "task": 1, "phase": 1},
        end(1, 1, kept=kept, tau=0.9, dropped={"a": 5, "b": 2}, grown={"a": 3}, revived={"b": 1},
            ungrown={"a": 3}),
        end(1, 2),
    ]  # fmt: skip
    first, last = phases_of(events, record())
    # Stable after the first task: 10 of 40 and 6 of 30.
    assert first.units == {"hidden1": (10, 15, 40), "hidden2": (6, 0, 30)}
    assert (first.dropped, first.grown, first.owed) == (7, 4, 3)
    assert last.units == {"hidden1": (20, 0, 40), "hidden2": (30, 0, 30)}
    assert last.dropped is None


def test_runs_that_differ_in_the_seed_alone_are_one_group() -> None:
    settings: dict[str, Any] = {"scenario": "efmnist", "seed": 1, "resolved": {"seed": 1}}
    other = ScenarioEntry(name="split-digits", settings={"classes_per_task": 2, "seed": 9})
    same = ScenarioEntry(name="split-digits", settings={"classes_per_task": 2})
    runs = [
        Run("a", record(scenario=same, seed=1)),
        Run("b", record(scenario=other, seed=2)),
        Run("c", record(scenario=same, seed=1, config={"density": 0.5})),
        Run("d", record(scenario=ScenarioEntry(name="split-digits", settings=settings))),
        Run("e", five_tasks()),
    ]
    problems = problems_of(runs)
    assert [[[k for k, _ in g.members] for g in p.groups] for p in problems] == [
        [[1, 2], [3]],
        [[4]],
        [[5]],
    ]
    labels = [group.label for group in problems[0].groups]
    assert "density=0.2" in labels[0]
    assert "density=0.5" in labels[1]
    assert problems[0].label != problems[1].label


def test_a_seed_given_twice_counts_once() -> None:
    runs = [Run("a", record()), Run("b", record(version="0.2.0")), Run("c", record(seed=20))]
    (problem,) = problems_of(runs)
    assert [k for k, _ in problem.groups[0].counted] == [1, 3]


def test_other_data_at_the_same_seed_are_told_of() -> None:
    def own(letter: str) -> list[DataEntry]:
        return [DataEntry(name="photos", canonical=None, sha256=letter * 64)]

    text = made(record(data=own("1")), record(data=own("2"), method="ewc")).text
    assert "Tasks or data differ between runs of the same seed: at seed 19" in text
    assert "differ between runs" not in made(*(record(data=own("1"), seed=k) for k in (1, 2))).text


def test_means_stand_on_the_page() -> None:
    rows = ([[0.5, None], [0.5, 0.7]], [[0.5, None], [0.5, 0.9]])  # acc 0.6 and 0.7
    found = made(*(record(accuracy_matrix=matrix, seed=k) for k, matrix in enumerate(rows)))
    text = found.text
    assert "65.007.071.47 to 100.00" in text  # 12.706 * 7.07 / sqrt(2) is 63.53


def test_costs_stand_on_the_page() -> None:
    """Means over the runs of a method, with units; nothing where nothing is known."""
    twice = [{**COSTS[0], "operations": {"forward": 12_000_000}}]
    runs = (priced(five_tasks()), priced(five_tasks(seed=1), twice), priced(finetune()))
    text = made(*runs).text
    # 6.6 + 4 * 5.4 = 28.2 and 5 * 12 = 60 million: 44.1 on average.
    assert "nispa90.3444.1 MFLOP" in text
    assert "finetune50.0928.2 MFLOP1.3 kFLOP16.5 s15.0 s6527.82 kB1 kB400 MB" in text
    assert "training operations (FLOP)" in text
    assert "bytes of the model (B)" in text
    assert "What the training operations were for, all tasks" in text
    unpriced = made(five_tasks(), finetune()).text
    assert "training operations" not in unpriced
    assert "seconds of training" in unpriced


def test_what_counts_comes_first() -> None:
    untold = [[0.25, None], [0.125, 0.375]]
    base = record(accuracy_matrix_task_agnostic=untold)
    told = made(base).text
    assert told.index("told the task. This is what counts") < told.index("not told the task. For")
    both = made(base.model_copy(update={"incremental": "class"})).text
    assert "not told the task. This is what counts" in both
    assert "25.00" in both  # (0.125 + 0.375) / 2


def test_marks_of_the_data() -> None:
    text = made(five_tasks(), record(data=[DataEntry(name="m", canonical=None, sha256="0" * 64)]))
    assert "Not the canonical data: emnist-balanced (112,800 of 131,600" in text.text
    assert "✓ canonical" in text.text
    assert "own data" in text.text
    assert "Not the canonical data" not in made(record()).text


def test_a_network_that_is_nearly_full_is_told_of() -> None:
    text = made(five_tasks()).text  # 386, 399 and 393 of 400 units are stable
    assert "The network is nearly full: few units are plastic in" in text
    assert "hidden2 (1 of 400)" in text
    assert "The network is full: no unit of hidden2 is plastic" in made(record()).text  # 30 of 30
    free = record(per_task=record().per_task[:1])
    assert "full" not in made(free).text.lower()


def test_settings_that_differ() -> None:
    base = record()
    other = record(config={**base.config, "density": 0.5, "extra": "yes"})
    text = made(base, other).text
    section = text[text.index("Settings that differ on") :]
    assert "density0.20.5" in section
    assert "extra–yes" in section
    assert "optimizer.name" not in section


def test_an_accuracy_that_is_not_that_of_the_matrix_is_told_of() -> None:
    base = record()
    wrong = {**base.metrics, "acc": base.metrics["acc"].model_copy(update={"value": 0.99})}
    assert "not that of the matrix" in made(base.model_copy(update={"metrics": wrong})).text
    assert "not that of the matrix" not in made(base).text


def test_the_same_runs_make_the_same_bytes() -> None:
    runs = [Run("a", five_tasks()), Run("b", twenty_tasks())]
    assert page(runs) == page(runs)


# Reading it


def test_nothing_may_be_fetched_and_no_other_script_may_run() -> None:
    found = made(record())
    (policy,) = [
        str(attrs["content"])
        for attrs in found.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for kind in ("script", "style"):
        digest = hashlib.sha256(found.raw[kind].encode()).digest()
        assert rules.pop(f"{kind}-src") == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules == {}
    names = [name for name, _ in found.tags]
    assert names.index("meta") < names.index("style")
    own = found.raw["script"] + found.raw["style"]
    assert not re.search(
        r"innerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp|@import|import\s*[({]", own
    )
    assert "//www" not in own.replace("http://www.w3.org/2000/svg", "")


def test_headings_ids_and_names() -> None:
    records = (five_tasks(), five_tasks(seed=1), twenty_tasks(), finetune(), record())
    found = made(*records)
    levels = [int(name[1]) for name, _ in found.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert found.all("html")[0]["lang"] == "en"
    ids = Counter(attrs["id"] for _, attrs in found.tags if "id" in attrs)
    assert max(ids.values()) == 1
    for attrs in found.all("a"):
        assert str(attrs["href"])[1:] in ids
    labelled = {attrs["for"] for attrs in found.all("label")}
    for attrs in found.all("input"):
        assert attrs.get("aria-label") or attrs["id"] in labelled


def test_every_picture_has_words_and_a_table_of_its_values() -> None:
    found = made(five_tasks(), five_tasks(seed=1), finetune(), twenty_tasks(loss=0.1))
    pictures = [attrs for attrs in found.all("svg") if attrs.get("role") == "img"]
    assert len(pictures) > 10
    ids = {attrs.get("id") for _, attrs in found.tags}
    tables = {attrs.get("id") for attrs in found.all("table")}
    for attrs in pictures:
        assert set(str(attrs["aria-labelledby"]).split()) <= ids
        assert attrs["data-table"] in tables
    for attrs in found.all("svg"):
        assert attrs.get("role") == "img" or attrs.get("aria-hidden") == "true"
    boxes = [attrs for attrs in found.all("div") if attrs.get("class") == "scroll"]
    assert len(boxes) == len(found.all("table"))
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in boxes)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    style = (files("nispa.webpage") / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme]))
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    texts = [("ink", "page"), ("soft", "page"), ("link", "page"), ("good", "page")]
    texts += [("warn-ink", "warn-page"), ("ink", "box")]
    colours |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))
    texts += [("hlow", f"h{k}") for k in range(7)] + [("hhigh", f"h{k}") for k in (7, 8, 9)]
    texts += [(f"c{k}", "page") for k in range(COLOURS)]  # signs are written in these
    for ink, ground in texts:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for shape in ("full", "edge"):
        assert contrast(colours[shape], colours["page"]) >= 3
    assert contrast(colours["full"], colours["pale"]) >= 3


# Parts


def test_markup_escapes() -> None:
    element = tag("p", "<b>&", tag("i", "x"), "y\x07", None, class_="\"'<", data_x=1, hidden=None)
    assert render(element) == ('<p class="&quot;\'<" data-x="1">&lt;b&gt;&amp;<i>x</i>y?</p>')
    with pytest.raises(ValueError, match="would end"):
        raw("script", "</script>")


def test_scales() -> None:
    linear = Scale(0, 10, 100, 200)
    assert (linear(0), linear(5), linear(99)) == (100, 150, 200)
    assert linear.ticks() == [0, 2, 4, 6, 8, 10]
    log = scale_of([10, 1000, 0], 0, 100)
    assert log.log
    assert log(0) == 0  # zero stands apart from the rest
    assert log(10) > 12
    assert log(100) == pytest.approx((log(10) + log(1000)) / 2)
    assert log.ticks()[0] == 0
    assert not scale_of([5, 20], 0, 100).log
    assert not scale_of([], 0, 100).log
    assert percent_range([27.0, 92.0]) == (20, 100)
    assert percent_range([91.0, 93.0]) == (90, 94)
    assert percent_range([100.0]) == (98, 100)
    assert percent_range([]) == (0, 100)
    assert [short(v) for v in (0, 950, 1_500, 2e6, 3e9)] == ["0", "950", "1.5k", "2M", "3G"]
    assert [short(v) for v in (4e12, 5e15, 6e18)] == ["4T", "5P", "6E"]


def test_records_as_json_numbers_need_no_float() -> None:
    base = json.loads(encode(record()))
    base["accuracy_matrix"] = [[1, None], [1, 0]]
    found = made(decode(json.dumps(base).encode()))
    assert "50.00" in found.text
