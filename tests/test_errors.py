from __future__ import annotations

import pytest

from nispa import errors
from nispa.errors import InputError, NispaError, UnknownNameError, unknown_name


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
