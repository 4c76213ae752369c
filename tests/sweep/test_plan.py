"""Plans: what a TOML file means, run by run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nispa.cli.sweep import plans
from nispa.errors import ConfigError, FormatError, InputError
from nispa.sweep.plan import (
    MAX_CELLS,
    MAX_GRIDS,
    MAX_PLAN_BYTES,
    MAX_SETTINGS,
    Cell,
    Grid,
    Plan,
    make_plan,
    read_plan,
)

EXAMPLE = """
about = "an example"
scenario = "split-digits"
seed = [0, 19]
[set]
density = 0.1
batch_size = 16

[[runs]]
method = ["nispa", "packnet"]
[runs.grid]
learning_rate = [0.003, 0.01]

[[runs]]
method = "er"
seed = 19
set = { memory = 100, batch_size = 8 }
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "plan.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, EXAMPLE))
    shared = {"density": 0.1, "batch_size": 16}
    both = [
        Cell(
            "split-digits",
            method,
            "default",
            seed,
            {**shared, "learning_rate": rate},
            ("learning_rate",),
        )
        for seed in (0, 19)
        for method in ("nispa", "packnet")
        for rate in (0.003, 0.01)
    ]
    given = {"density": 0.1, "batch_size": 8, "memory": 100}
    last = Cell("split-digits", "er", "default", 19, given, ("memory", "batch_size"))
    assert list(plan.cells()) == [*both, last]
    assert len(plan) == 9
    assert plan.about == "an example"


def test_a_seed_comes_after_the_other() -> None:
    plan = make_plan({"scenario": ["a", "b"], "seed": [3, 1], "method": ["x", "y"]})
    assert [(cell.seed, cell.scenario, cell.method) for cell in plan.cells()] == [
        (3, "a", "x"),
        (3, "a", "y"),
        (3, "b", "x"),
        (3, "b", "y"),
        (1, "a", "x"),
        (1, "a", "y"),
        (1, "b", "x"),
        (1, "b", "y"),
    ]


def test_a_part_goes_before_what_all_share() -> None:
    shared = {"density": [0.1, 0.2], "gain": [1.0]}
    values = {
        "scenario": "a",
        "set": {"k": 1},
        "grid": shared,
        "runs": [{"set": {"density": 0.5}}, {"grid": {"k": [2, 3]}}],
    }
    first, second = make_plan(values).grids
    assert dict(first.set) == {"k": 1, "density": 0.5}
    assert dict(first.grid) == {"gain": [1.0]}
    assert dict(second.set) == {}
    assert dict(second.grid) == {**shared, "k": [2, 3]}


def test_lists_are_values_of_a_setting_in_set_alone() -> None:
    (grid,) = make_plan({"scenario": "a", "set": {"hidden": [40, 40]}}).grids
    (cell,) = grid.cells(0)
    assert cell.given == {"hidden": [40, 40]}


def test_titles_tell_runs_apart() -> None:
    cell = Cell(
        "s", "m", "paper", 7, {"hidden": [40, 40], "density": 0.1, "k": True}, ("hidden", "k")
    )
    assert cell.title == "s, m, preset paper, hidden=40,40, k=true, seed 7"


def test_a_plan_can_be_cut_to_some_methods() -> None:
    plan = make_plan({"scenario": "a", "runs": [{"method": ["x", "y"]}, {"method": "z"}]})
    assert [cell.method for cell in plan.only(["x"]).cells()] == ["x"]
    assert plan.only([]) is plan
    with pytest.raises(InputError, match="unknown method of this plan 'w'"):
        plan.only(["w"])


BAD: list[tuple[str, tuple[str, ...]]] = [
    ("scenario = [", ("is not TOML",)),
    ("", ("the scenario is missing", 'scenario = "efmnist"')),
    ("scenario = 3", ("scenario=3 must be a name",)),
    ('scenario = "a"\nscenaro = "b"', ("unknown key 'scenaro'", "did you mean 'scenario'?")),
    ('scenario = "a"\nmethod = []', ("method=[] holds no value",)),
    ('scenario = "a"\nseed = [1, 1]', ("seed holds 1 twice",)),
    ('scenario = "a"\nseed = -1', ("seed=-1", "[0, 2^63)")),
    ('scenario = "a"\nseed = true', ("seed=true", "whole number")),
    ('scenario = "a"\nseed = 1.5', ("seed=1.5", "whole number")),
    ('scenario = "a"\nset = 3', ("set must be a table",)),
    ('scenario = "a"\ngrid = { k = 3 }', ("grid.k=3 must be a list",)),
    ('scenario = "a"\ngrid = { k = [] }', ("k=[] holds no value",)),
    ('scenario = "a"\nset = { k = 2020-01-01 }', ("k=2020-01-01 must be a text, a number",)),
    ('scenario = "a"\nset = { k = { a = 1 } }', ("k=", "must be a text, a number")),
    ('scenario = "a"\nset = { k = 1 }\ngrid = { k = [1] }', ("k is in set and in grid",)),
    ('scenario = "a"\nruns = 3', ("runs must be tables",)),
    ('scenario = "a"\n[[runs]]\nabout = "x"', ("unknown key 'about'",)),
    ('scenario = "a"\nabout = 3', ("about=3 must be a text",)),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_bad_plans_are_refused_by_name(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, FormatError)) as refused:
        read_plan(written(tmp_path, text))
    for words in ("plan.toml", *says):
        assert words in str(refused.value)


def test_a_plan_of_other_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not TOML"):
        read_plan(written(tmp_path, b"\xff\xfe"))
    with pytest.raises(FormatError, match="is not TOML"):
        read_plan(written(tmp_path, "a = " + "[" * 100_000))
    with pytest.raises(FormatError, match="larger than"):
        read_plan(written(tmp_path, b"#" * (2**20 + 1)))


def test_a_plan_has_a_most() -> None:
    values = tuple(range(1000))
    Plan((Grid(("a",), seed=values, grid={"k": values[:100]}),))
    with pytest.raises(ConfigError, match=f"more than {MAX_CELLS:,}"):
        Plan((Grid(("a",), seed=values, grid={"k": values[:101]}),))


A = 'scenario = "a"\n'
MANY = ",".join(map(str, range(90_000)))
LARGE: dict[str, tuple[str, str]] = {
    "many seeds": (f"seed = [{MANY}]", ""),
    "many values": (f"grid.k = [{MANY}]", ""),
    "many texts": ("set.k = [" + '"x",' * 100_000 + "]", ""),
    "seeds for many tables": (f"seed = [{MANY}]\n" + "[[runs]]\n" * 9_000, "180,000 runs, more"),
    "a list for many tables": ("set.k = [" + "1," * 400_000 + "]\n" + "[[runs]]\n" * 9_000, ""),
    "many tables": ("[[runs]]\n" * (MAX_GRIDS + 1), f"more than {MAX_GRIDS:,}"),
    "many settings": (
        "[set]\n" + "".join(f"k{n} = 1\n" for n in range(MAX_SETTINGS + 1)),
        f"more than {MAX_SETTINGS}",
    ),
    "many combinations": (
        "[grid]\n" + "".join(f"k{n} = [1, 2]\n" for n in range(MAX_SETTINGS)),
        f"more than {MAX_CELLS:,}",
    ),
    "a name of many parts": ("set." + ".".join(["a"] * 300_000) + " = 1", "more than 64 parts"),
    "such a name in quotes": ("set." + " . ".join(['"a"'] * 90_000) + " = 1", "64 parts"),
    "such a head": (
        "[set." + ".".join(["a"] * 60_000) + "]\n" + "".join(f"b{n} = 1\n" for n in range(60_000)),
        "more than 64 parts",
    ),
    "a name of some parts": ("set." + ".".join(["a"] * 60) + " = 1", "more than 8 lists"),
    "a long name": ("a" * 900_000 + " = 1", "unknown key"),
    "a long setting": ("set." + "a" * 900_000 + " = [[1]]", "must be a text, a number"),
    "words": ("a " * 450_000, "is not TOML"),
    "names": ("a" * 900_000, "is not TOML"),
    "quotes": ("'a" * 450_000, "is not TOML"),
    "a large number": ("set.k = 0x" + "f" * 500_000, "(-2^63, 2^63)"),
    "a large seed": ("seed = 0x" + "f" * 500_000, "whole number in [0, 2^63)"),
    "a large number in a table": ("set.k = { a = 0x" + "f" * 500_000 + " }", "must be a text"),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_plans_are_checked_in_seconds(tmp_path: Path, name: str) -> None:
    """What takes the square of a plan's length, or the stack, would take minutes here."""
    text, says = LARGE[name]
    path = written(tmp_path, A + text)
    assert path.stat().st_size <= MAX_PLAN_BYTES
    began = time.process_time()
    if says:
        with pytest.raises((ConfigError, FormatError)) as refused:
            read_plan(path)
        assert says in str(refused.value)
    else:
        assert len(list(read_plan(path).cells())) in (1, 9_000, 90_000)
    assert time.process_time() - began < 15


@pytest.mark.parametrize("depth", [9, 100, 320, 330, 400, 500, 1000])
@pytest.mark.parametrize("form", [("[", "", "]"), ("{ a = ", "1", " }")])
def test_values_that_nest_are_refused(
    tmp_path: Path, depth: int, form: tuple[str, str, str]
) -> None:
    """At each depth: some readers of TOML come to the end of the stack, what follows must not."""
    first, middle, last = form
    path = written(tmp_path, A + "set.k = " + first * depth + middle + last * depth)
    with pytest.raises((ConfigError, FormatError), match=r"nests more than 8|is not TOML"):
        read_plan(path)


def test_plans_that_come_along_are_sound() -> None:
    from nispa.methods.presets import resolve
    from nispa.sweep.jobs import split_options

    found = plans()
    assert {"efmnist", "cifar10", "cifar100", "mnist-cil"} <= set(found)
    for path in found.values():
        plan = read_plan(path)
        assert plan.about
        cells = list(plan.cells())
        assert len(cells) == len({cell.title for cell in cells})
        for cell in cells:
            shape = (3, 32, 32) if "cifar" in cell.scenario else (1, 28, 28)
            _, given = split_options(cell)
            resolve(cell.method, cell.preset, cell.scenario, shape, given)
