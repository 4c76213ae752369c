"""Settings: frozen dataclasses whose fields have a line of documentation, a range and a fix.

A settings class is written as ::

    @settings
    class Example:
        density: float = setting(0.1, "share of live connections", gt=0, le=1,
                                 hint="for 90 % sparsity pass 0.1")

and built from untrusted values by :func:`build`, which reports every mistake as a
:class:`~nispa.errors.ConfigError` of one line. The command line, the documentation and the record
are generated from these classes.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from nispa.errors import ConfigError, InputError, unknown_name

T = TypeVar("T")


def setting(
    default: Any,
    doc: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    aliases: tuple[str, ...] = (),
    hint: str = "",
    choices: Callable[[], Iterable[str]] | None = None,
) -> Any:
    """A field of a settings class.

    Args:
        default: Its value unless another is given.
        doc: One line of documentation, with the unit.
        gt: Lower bound, excluded.
        ge: Lower bound, included.
        lt: Upper bound, excluded.
        le: Upper bound, included.
        aliases: Other names for it, such as the paper's symbol.
        hint: The fix to suggest if the value is out of range.
        choices: Names from a registry, for documentation; the class's ``__post_init__`` checks
            them. For a fixed choice use a ``Literal`` type.
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    extra: dict[str, Any] = {"bounds": bounds, "aliases": list(aliases), "hint": hint}
    extra["choices"] = choices
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return Field(default, description=doc, json_schema_extra=extra, **given)  # type: ignore[call-overload]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Makes a class a frozen, validated settings class."""
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(frozen=True, config=rules, kw_only=True)(cls)
    checked_init = made.__init__

    @functools.wraps(checked_init)
    def init(self: Any, **values: Any) -> None:
        try:
            checked_init(self, **values)
        except ValidationError as error:
            raise _explain(made, values, error) from None

    made.__init__ = init
    return cast("type[T]", made)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, for command lines and documentation."""

    name: str
    default: Any
    doc: str
    bounds: Mapping[str, float | None]
    aliases: tuple[str, ...]
    hint: str
    choices: tuple[str, ...]
    kind: str

    @property
    def interval(self) -> str:
        """The range in mathematical notation, such as ``(0, 1]``; empty if there is none."""
        gt, ge, lt, le = (self.bounds[bound] for bound in ("gt", "ge", "lt", "le"))
        if gt is None and ge is None and lt is None and le is None:
            return ""
        low = f"[{_plain(ge)}" if ge is not None else f"({_plain(gt)}"
        high = f"{_plain(le)}]" if le is not None else f"{_plain(lt)})"
        return f"{low}, {high}".replace("(None", "(-inf").replace("None)", "inf)")


def _plain(bound: float | None) -> str:
    """A bound without an exponent: 1000000, not 1e+06."""
    return str(bound if bound is None or bound % 1 else int(bound))


def _kind(hint: Any) -> tuple[str, tuple[str, ...]]:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of", tuple(str(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        kind, choices = _kind(inner[0])
        return f"{kind} or none", choices
    if origin is tuple:
        return f"list of {_kind(get_args(hint)[0])[0]}s", ()
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(hint, str(hint)), ()


def describe(cls: type[Any]) -> list[Setting]:
    """The fields of a settings class, in order."""
    return list(_described(cast("Any", cls)))


@functools.cache  # a sweep calls this a hundred thousand times
def _described(cls: Any) -> tuple[Setting, ...]:
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        info = field.default
        extra = info.json_schema_extra  # type: ignore[union-attr]
        kind, choices = _kind(hints[field.name])
        if extra["choices"] is not None:
            kind, choices = "one of", tuple(extra["choices"]())
        found.append(
            Setting(
                name=field.name,
                default=info.default,  # type: ignore[union-attr]
                doc=info.description or "",  # type: ignore[union-attr]
                bounds=extra["bounds"],
                aliases=tuple(extra["aliases"]),
                hint=extra["hint"],
                choices=choices,
                kind=kind,
            )
        )
    return tuple(found)


def canonical_keys(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with aliases replaced by field names; unknown keys raise UnknownNameError."""
    fields = describe(cls)
    names = {field.name: field.name for field in fields}
    names |= {alias: field.name for field in fields for alias in field.aliases}
    result: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_name("setting", key, names)
        first = given_as.setdefault(names[key], key)
        if first != key:
            raise ConfigError(f"'{first}' and '{key}' are the same setting; keep one of the two")
        result[names[key]] = value
    return result


def _parse(text: str, field: Setting) -> Any:
    """Converts a text from the command line for the field's type."""
    if text.lower() in ("none", "null") and field.kind.endswith("or none"):
        return None
    if field.kind.startswith("list of"):
        inner = text.strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")")
        return tuple(part.strip() for part in inner.split(",") if part.strip())
    return text


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds a settings class from untrusted ``values``; texts are converted.

    Raises:
        UnknownNameError: A key is neither a field nor an alias.
        ConfigError: A value has the wrong type or is out of range; names value, bound and fix.
    """
    fields = {field.name: field for field in describe(cls)}
    given = {
        name: _parse(value, fields[name]) if isinstance(value, str) else plain(value)
        for name, value in canonical_keys(cls, values).items()
    }
    for name, value in given.items():
        if isinstance(value, bool) and not fields[name].kind.startswith("true or false"):
            raise _refused(fields[name], value)  # Python would take it as 0 or 1
    return cls(**given)


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy or PyTorch as Python's own, at any depth."""
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return tuple(plain(each) for each in value) if isinstance(value, (tuple, range)) else value


def _refused(field: Setting, value: Any) -> ConfigError:
    """The error for a value that a setting cannot have."""
    shown = value if isinstance(value, str) else _show(value)
    want = field.kind if field.kind.startswith("true") else f"a {field.kind}"
    bounds = f" in {field.interval}" if field.interval else ""
    fix = field.hint or f"the default is {_show(field.default)}"
    return ConfigError(f"{field.name}={shown} must be {want}{bounds}; {fix}")


def _explain(cls: type[Any], values: Mapping[str, Any], error: ValidationError) -> InputError:
    """Turns a pydantic error into one line with the value, the bound and the fix."""
    first = error.errors(include_url=False)[0]
    fields = {field.name: field for field in describe(cls)}
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "value_error":  # raised by the class's own __post_init__
        if isinstance(first["ctx"]["error"], InputError):
            return first["ctx"]["error"]
        return ConfigError(first["msg"].removeprefix("Value error, "))
    if name not in fields:
        return unknown_name("setting", name, fields)
    field, value = fields[name], values[name]
    if field.choices:
        return unknown_name(name, str(value), field.choices)
    return _refused(field, value)


def _show(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def as_json(config: Any) -> dict[str, Any]:
    """All fields of a settings object as JSON values, including defaults."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped
