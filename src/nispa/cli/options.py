"""Options that several commands share, and those that come from the scenarios' settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nispa.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from nispa.base.config import Setting

DATA_VARIABLE = "NISPA_DATA"


def whole_number(
    low: int, high: int, span: str, hint: str
) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """A callback for options that take a whole number from ``low`` to ``high``.

    Args:
        low: The least.
        high: The most.
        span: Both in mathematical notation, for the error.
        hint: The fix to offer.
    """

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        digits = value.removeprefix("-")
        plain = digits.isascii() and digits.isdecimal() and len(digits) < 30
        if plain and low <= int(value) <= high:
            return int(value)
        raise InputError(f"{param.opts[0]}={value} must be a whole number in {span}; {hint}")

    return convert


def _check_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Names the environment variable where it is to blame; other checks are the data package's."""
    from_variable = ctx.get_parameter_source(param.name or "")
    if from_variable is click.core.ParameterSource.ENVIRONMENT and value and not value.is_dir():
        raise DataError(
            f"{DATA_VARIABLE}={value} is not a folder; set it to the folder of your data sets, "
            "unset it, or pass --data DIR"
        )
    return value


def settle(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """An output path that stays right whatever is made and removed on the way."""
    from nispa.runs.folder import settled

    return None if value is None else settled(value)


data_option = click.option(
    "--data",
    type=click.Path(readable=False, path_type=Path),
    envvar=DATA_VARIABLE,
    metavar="DIR",
    callback=_check_folder,
    help=f"Folder to look for data sets in, three levels deep; ${DATA_VARIABLE} by default.",
)


@functools.cache  # click compares options by identity
def scenario_options() -> tuple[click.Option, ...]:
    """An option for each setting of any scenario; which scenario takes which is checked later."""
    from nispa.base.config import describe
    from nispa.data.named import SCENARIOS

    found: dict[str, dict[str, Setting]] = {}
    for cls in dict.fromkeys(known.options for known in SCENARIOS.values()):
        kind = cls.__name__.removesuffix("Options").lower()
        for field in describe(cls):
            found.setdefault(field.name, {})[kind] = field
    return tuple(_option(name, fields) for name, fields in found.items())


def _option(name: str, fields: Mapping[str, Setting]) -> click.Option:
    flag = "--" + name.replace("_", "-")
    helps = dict.fromkeys(_help(field) for field in fields.values())
    if len(helps) > 1:
        text = "; ".join(f"{kind}: {_help(field)}" for kind, field in fields.items())
    else:
        text = next(iter(helps))
    field = next(iter(fields.values()))
    if field.kind == "true or false":
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=f"{text}.")
    metavar = "|".join(field.choices) or "VALUE"
    return click.Option([flag, name], metavar=metavar, help=f"{text}.")


def _help(field: Setting) -> str:
    return f"{field.doc}, in {field.interval}" if field.interval else field.doc


def settings_given(pairs: tuple[str, ...]) -> dict[str, str]:
    """What ``--set KEY=VALUE`` said.

    Raises:
        InputError: One is no pair, or a key is given twice.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {pair} must be KEY=VALUE, such as --set density=0.1")
        if key in given:
            raise InputError(
                f"--set {key}={value} comes after {key}={given[key]}; keep one of them"
            )
        given[key] = value.strip()
    return given


def settings_of_kind(pairs: tuple[str, ...], kind: str | None) -> dict[str, str]:
    """What ``--set`` and ``--incremental`` said, together.

    Raises:
        InputError: They contradict each other, or see :func:`settings_given`.
    """
    chosen = settings_given(pairs)
    if kind is not None and chosen.setdefault("incremental", kind) != kind:
        raise ConfigError(
            f"--incremental {kind} and --set incremental={chosen['incremental']} contradict each "
            "other; give one of them"
        )
    return chosen


MAX_SEED = 2**63 - 1  # as seeding.MAX_SEED, which is not imported: it would need PyTorch
MAX_THREADS = 1024
MAX_CACHE_MB = 2**24

method_option = click.option(
    "--method", default="nispa", metavar="NAME", show_default=True, help="See: nispa list methods."
)
preset_option = click.option(
    "--preset",
    default="default",
    metavar="NAME",
    show_default=True,
    help="See: nispa list presets.",
)
incremental_option = click.option(
    "--incremental",
    metavar="KIND",
    help="What a task adds: task (outputs of its own), class (new classes among all seen) or "
    "domain (other images of the same classes); the method's own choice by default.",
)
cache_option = click.option(
    "--cache-mb",
    callback=whole_number(0, MAX_CACHE_MB, f"[0, {MAX_CACHE_MB}]", "0 keeps nothing"),
    default="512",
    metavar="N",
    show_default=True,
    help="Memory of a run for prepared training and validation data and what stable units make of "
    "them; changes no result.",
)


def threads_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """CPU threads of a run; ``text`` is the help, which says what holds by default."""
    return click.option(
        "--threads",
        callback=whole_number(1, MAX_THREADS, f"[1, {MAX_THREADS}]", "leave it out"),
        metavar="N",
        help=text,
    )


checkpoint_option = click.option(
    "--checkpoint-every",
    callback=whole_number(0, 86_400, "[0, 86400]", "30 is the default"),
    default="30",
    metavar="SECONDS",
    show_default=True,
    help="At most so much is lost when the process dies; there is one at each phase's end, too.",
)


track_option = click.option(
    "--track",
    multiple=True,
    metavar="NAME",
    help="Show the curve live in tensorboard, wandb or mlflow, too; may be repeated.",
)
