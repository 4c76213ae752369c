from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any, Literal

import pytest

from nispa.base.config import Setting, as_json, build, canonical_keys, describe, setting, settings
from nispa.errors import ConfigError, UnknownNameError


@settings
class Base:
    """What two methods share."""

    density: float = setting(
        0.1, "share of live connections", gt=0, le=1, hint="for 90 % sparsity pass 0.1"
    )


@settings
class Example(Base):
    """Every kind of field."""

    epochs: int = setting(5, "epochs", ge=1, aliases=("e", "n_epochs"))
    rate: float = setting(0.5, "a rate", lt=2)
    kind: Literal["adam", "sgd"] = setting("adam", "update rule")
    sizes: tuple[int, ...] = setting((4, 3), "units of each layer")
    shares: tuple[float, ...] = setting((), "some shares")
    limit: int | None = setting(None, "a limit", ge=3)
    fast: bool = setting(True, "whether to hurry")
    label: str = setting("x", "a name")

    def __post_init__(self) -> None:
        if self.epochs > 10 and self.fast:
            raise ValueError(f"epochs={self.epochs} is not fast; pass fast=false")


def test_defaults() -> None:
    example = Example()
    assert example.density == 0.1
    assert example.epochs == 5
    assert example.sizes == (4, 3)
    assert example.limit is None


def test_texts_become_values() -> None:
    example = build(
        Example,
        {
            "density": "0.25",
            "epochs": "7",
            "kind": "sgd",
            "sizes": "8, 9",
            "shares": "[0.5,1e-3]",
            "limit": "12",
            "fast": "false",
            "label": "none",
        },
    )
    assert example == Example(
        density=0.25,
        epochs=7,
        kind="sgd",
        sizes=(8, 9),
        shares=(0.5, 0.001),
        limit=12,
        fast=False,
        label="none",  # a text that may not be none stays a text
    )


@pytest.mark.parametrize("text", ["none", "None", "null"])
def test_none_where_none_is_allowed(text: str) -> None:
    assert build(Example, {"limit": text}).limit is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", (10,)), ("1,2", (1, 2)), ("[1, 2]", (1, 2)), ("(1,2,)", (1, 2)), ("", ()), ("[]", ())],
)
def test_lists_as_texts(text: str, expected: tuple[int, ...]) -> None:
    assert build(Example, {"sizes": text}).sizes == expected


def test_lists_as_json_hands_them_over() -> None:
    assert build(Example, {"sizes": [1, 2]}).sizes == (1, 2)


def test_aliases_name_the_field() -> None:
    assert build(Example, {"e": "3"}).epochs == 3
    assert canonical_keys(Example, {"n_epochs": 4, "rate": 1}) == {"epochs": 4, "rate": 1}


@pytest.mark.parametrize("keys", [("e", "epochs"), ("epochs", "e"), ("n_epochs", "e")])
def test_a_setting_given_twice_is_refused_by_both_names(keys: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Example, dict.fromkeys(keys, 2))
    assert str(refused.value) == (
        f"'{keys[0]}' and '{keys[1]}' are the same setting; keep one of the two"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 1.3}, "density=1.3 must be a number in (0, 1]; for 90 % sparsity pass 0.1"),
        ({"density": 0}, "density=0 must be a number in (0, 1]; for 90 % sparsity pass 0.1"),
        ({"density": "a"}, "density=a must be a number in (0, 1]; for 90 % sparsity pass 0.1"),
        ({"density": "nan"}, "density=nan must be a number in (0, 1]; for 90 % sparsity pass 0.1"),
        ({"rate": "-inf"}, "rate=-inf must be a number in (-inf, 2); the default is 0.5"),
        ({"rate": 2}, "rate=2 must be a number in (-inf, 2); the default is 0.5"),
        ({"epochs": 0}, "epochs=0 must be a whole number in [1, inf); the default is 5"),
        ({"e": 0}, "epochs=0 must be a whole number in [1, inf); the default is 5"),
        ({"epochs": 2.5}, "epochs=2.5 must be a whole number in [1, inf); the default is 5"),
        ({"epochs": None}, "epochs=None must be a whole number in [1, inf); the default is 5"),
        (
            {"limit": 2},
            "limit=2 must be a whole number or none in [3, inf); the default is None",
        ),
        ({"sizes": "4,x"}, "sizes=4,x must be a list of whole numbers; the default is 4,3"),
        ({"sizes": 4}, "sizes=4 must be a list of whole numbers; the default is 4,3"),
        ({"shares": "a"}, "shares=a must be a list of numbers; the default is "),
        ({"fast": "maybe"}, "fast=maybe must be true or false; the default is True"),
        ({"label": 3}, "label=3 must be a text; the default is x"),
        ({"epochs": 11}, "epochs=11 is not fast; pass fast=false"),
    ],
)
def test_a_mistake_is_one_line_with_value_bound_and_fix(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Example, values)
    assert str(refused.value) == message


def test_the_class_itself_refuses_as_build_does() -> None:
    with pytest.raises(ConfigError, match=r"^density=2 must be a number in \(0, 1\]"):
        Example(density=2)
    with pytest.raises(ConfigError, match=r"^epochs=11 is not fast"):
        replace(Example(), epochs=11)
    with pytest.raises(UnknownNameError, match="unknown setting 'densty'; did you mean 'density'"):
        Example(densty=2)  # type: ignore[call-arg]


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        build(Example, {"epoch": 3})


@pytest.mark.parametrize("value", ["adm", "Adam"])
def test_an_unknown_choice_offers_the_nearest(value: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown kind '{value}'; did you mean 'adam'"):
        build(Example, {"kind": value})


def test_settings_are_frozen_and_compared_by_value() -> None:
    example = Example()
    with pytest.raises(FrozenInstanceError):
        example.epochs = 4  # type: ignore[misc]
    assert replace(example, epochs=4) == Example(epochs=4)
    assert example != Example(epochs=4)


def test_settings_are_named_not_counted() -> None:
    with pytest.raises(TypeError):
        Example(0.5)  # type: ignore[call-arg]


def test_a_subclass_has_the_fields_of_its_base_first() -> None:
    assert [field.name for field in describe(Example)] == [
        "density",
        "epochs",
        "rate",
        "kind",
        "sizes",
        "shares",
        "limit",
        "fast",
        "label",
    ]


def test_the_description_of_a_field() -> None:
    found = {field.name: field for field in describe(Example)}
    assert found["density"] == Setting(
        name="density",
        default=0.1,
        doc="share of live connections",
        bounds={"gt": 0, "ge": None, "lt": None, "le": 1},
        aliases=(),
        hint="for 90 % sparsity pass 0.1",
        choices=(),
        kind="number",
    )
    assert found["epochs"].aliases == ("e", "n_epochs")
    assert found["kind"].choices == ("adam", "sgd")
    kinds = {name: field.kind for name, field in found.items()}
    assert kinds == {
        "density": "number",
        "epochs": "whole number",
        "rate": "number",
        "kind": "one of",
        "sizes": "list of whole numbers",
        "shares": "list of numbers",
        "limit": "whole number or none",
        "fast": "true or false",
        "label": "text",
    }


def test_ranges_in_mathematical_notation() -> None:
    found = {field.name: field.interval for field in describe(Example)}
    assert found["density"] == "(0, 1]"
    assert found["epochs"] == "[1, inf)"
    assert found["rate"] == "(-inf, 2)"
    assert found["sizes"] == ""


def test_json_is_complete_and_builds_the_same_settings_again() -> None:
    example = Example(density=0.25, sizes=(1,), limit=7)
    dumped = as_json(example)
    assert dumped == {
        "density": 0.25,
        "epochs": 5,
        "rate": 0.5,
        "kind": "adam",
        "sizes": [1],
        "shares": [],
        "limit": 7,
        "fast": True,
        "label": "x",
    }
    assert build(Example, json.loads(json.dumps(dumped))) == example
