from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from nispa import errors
from nispa.errors import (
    InputError,
    NispaError,
    UnknownNameError,
    either,
    on_command_line,
    unknown_name,
)
from nispa.reading.imports import read_matrix
from nispa.reading.store import choose
from tests.cli_calls import call


def test_an_unknown_name_offers_the_nearest_one_and_lists_them_all() -> None:
    error = unknown_name("method", "nipsa", ["stl", "nispa", "joint"])
    assert isinstance(error, UnknownNameError)
    assert str(error) == "unknown method 'nipsa'; did you mean 'nispa'? Known: joint, nispa, stl"


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    assert str(unknown_name("preset", "zzz", ["paper"])) == "unknown preset 'zzz'. Known: paper"


def test_without_any_name_the_list_is_none() -> None:
    assert str(unknown_name("preset", "paper", [])) == "unknown preset 'paper'. Known: none"


def test_capitals_do_not_hide_a_name() -> None:
    assert "did you mean 'nispa'?" in str(unknown_name("method", "NISPA", ["nispa", "er"]))
    assert "did you mean 'CNN'?" in str(unknown_name("x", "cnn", ["CNN", "MLP"]))


def test_names_may_come_from_any_iterable() -> None:
    names = (name for name in ("beta", "other"))
    assert str(unknown_name("x", "bet", names)).endswith("'beta'? Known: beta, other")


@pytest.mark.parametrize(
    "name",
    [
        "ConfigError",
        "UnknownNameError",
        "DataError",
        "ScenarioError",
        "CapacityError",
        "DeviceError",
        "OutputError",
        "FormatError",
        "NotLearnedError",
    ],
)
def test_errors_of_input_are_value_errors_of_nispa(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, InputError)
    assert issubclass(error, NispaError)
    assert issubclass(error, ValueError)


def test_divergence_is_no_error_of_input() -> None:
    assert issubclass(errors.DivergedError, NispaError)
    assert not issubclass(errors.DivergedError, InputError)


def test_a_name_in_capitals_is_known_again() -> None:
    assert "did you mean 'nispa'?" in str(unknown_name("method", "NISPA", ["stl", "nispa"]))


# Who is spoken to.


def test_a_fix_is_in_the_words_of_whoever_made_the_call() -> None:
    def fix() -> str:
        return either("device='cpu'", "--device cpu")

    assert fix() == "device='cpu'"
    with on_command_line():
        assert fix() == "--device cpu"
    with pytest.raises(KeyError), on_command_line():
        raise KeyError
    assert fix() == "device='cpu'"


def test_the_same_fault_in_both_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = tmp_path / "m.csv"
    matrix.write_text("0.9,0.5\n,0.8\n")
    with pytest.raises(InputError, match=r"pass rows='task'"):
        read_matrix(matrix)
    told = ("--name", "x", "--method", "y", "--seed", "0", "--scenario", "split-digits")
    assert "pass --rows task" in call(capsys, "import", matrix, *told).err
    with pytest.raises(InputError, match=r"^method must be KEY=VALUE, such as 'method=ewc\*'"):
        choose([], ["method"])
    assert (
        "--where method must be KEY=VALUE"
        in call(capsys, "runs", tmp_path, "--where", "method").err
    )


SOURCE = Path(errors.__file__).parent
OF_OTHERS = re.compile(r"pip install|tensorboard --logdir|nispa run|^any data set \(--dataset")


def flags(path: Path) -> list[str]:
    """Texts of a module that name a flag, but for docstrings and what ``either`` chooses from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) == "either")
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for inner in ast.walk(node)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed
        if re.search(r"(^|\W)--[a-z]", node.value) and not OF_OTHERS.search(node.value)
    ]


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(SOURCE.rglob("*.py"))
        # A server is started on the command line alone.
        if {"cli", "serve"}.isdisjoint(path.relative_to(SOURCE).parts)
    ],
    ids=lambda path: path.relative_to(SOURCE).as_posix(),
)
def test_only_the_command_line_speaks_of_flags(path: Path) -> None:
    assert flags(path) == []
