"""Options that several commands share, and those made from the scenarios' settings."""

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
MAX_SEED = 2**63 - 1  # equals seeding.MAX_SEED, whose module needs PyTorch
MAX_THREADS = 1024
MAX_CACHE_MB = 2**24


class _AnyPath(click.Path):
    """A path that is checked where it is used, with better messages than click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # of a variable that is not set; as a path it would be this folder
            self.fail("is empty; give a path", param, ctx)
        return super().convert(value, param, ctx)


PATH = _AnyPath(readable=False, path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def parse_whole_number(text: str, low: int, high: int) -> int | None:
    """A whole number in ``[low, high]``, or None for anything else, such as ``1_000``."""
    digits = text.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal() and len(digits) < 30
    return int(text) if plain and low <= int(text) <= high else None


def whole_number(
    low: int, high: int, span: str, hint: str
) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """A click callback for options that take a whole number from ``low`` to ``high``.

    Args:
        low: The least.
        high: The most.
        span: Both in mathematical notation, for the error message.
        hint: The fix, for the error message.
    """

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        number = parse_whole_number(value, low, high)
        if number is None:
            raise InputError(f"{param.opts[0]}={value} must be a whole number in {span}; {hint}")
        return number

    return convert


def _check_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Names the environment variable if the folder comes from it; the data package checks more."""
    from_variable = ctx.get_parameter_source(param.name or "")
    if from_variable is click.core.ParameterSource.ENVIRONMENT and value and not value.is_dir():
        raise DataError(
            f"{DATA_VARIABLE}={value} is not a folder; set it to the folder of your data sets, "
            "unset it, or pass --data DIR"
        )
    return value


def _settle(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    from nispa.runs.folder import settled

    return None if value is None else settled(value)


# --- Options of several commands -----------------------------------------------------------------

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
augment_option = click.option(
    "--augment",
    metavar="WORDS",
    help="Random changes to training images: shift, crop and flip, such as crop:3,flip; or off. "
    "The same as --set augment=WORDS.",
)
data_option = click.option(
    "--data",
    type=PATH,
    envvar=DATA_VARIABLE,
    metavar="DIR",
    callback=_check_folder,
    help=f"Folder to look for data sets in, three levels deep; ${DATA_VARIABLE} by default.",
)
cache_option = click.option(
    "--cache-mb",
    callback=whole_number(0, MAX_CACHE_MB, f"[0, {MAX_CACHE_MB}]", "0 keeps nothing"),
    default="512",
    metavar="N",
    show_default=True,
    help="Memory for prepared images and for the outputs of stable units; changes no result.",
)
checkpoint_option = click.option(
    "--checkpoint-every",
    callback=whole_number(0, 86_400, "[0, 86400]", "30 is the default"),
    default="30",
    metavar="SECONDS",
    show_default=True,
    help="The most training time lost if the process dies; each phase also ends with a checkpoint.",
)
track_option = click.option(
    "--track",
    multiple=True,
    metavar="NAME",
    help="Also show the curve live in tensorboard, wandb or mlflow; may be repeated.",
)
no_download_option = click.option(
    "--no-download", is_flag=True, help="Fail where data would have to be downloaded."
)


def _known_model(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Imports functions of the user's, from the present folder, too."""
    for name in value if isinstance(value, tuple) else (value,):
        if name is not None and ":" in name:
            from nispa.network.backbone import enter

            enter(name, Path())
    return value


def model_option(text: str) -> Decorator:
    """``--model NAME``, with its help."""
    return click.option("--model", metavar="NAME", callback=_known_model, help=text)


def models_option(text: str) -> Decorator:
    """``--model NAME``, which may be repeated, with its help."""
    return click.option(
        "--model", "models", multiple=True, metavar="NAME", callback=_known_model, help=text
    )


def set_option(text: str) -> Decorator:
    """``--set KEY=VALUE``, with its help."""
    return click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help=text)


def out_option(text: str) -> Decorator:
    """``--out DIR`` for a new folder, with its help."""
    return click.option("--out", type=PATH, metavar="DIR", callback=_settle, help=text)


def device_option(text: str, default: str | None = "cpu") -> Decorator:
    """``--device NAME``, with its help."""
    shown = default is not None
    return click.option("--device", default=default, metavar="NAME", show_default=shown, help=text)


def threads_option(text: str) -> Decorator:
    """``--threads N``, with its help, which says what the default is."""
    return click.option(
        "--threads",
        callback=whole_number(1, MAX_THREADS, f"[1, {MAX_THREADS}]", "leave it out"),
        metavar="N",
        help=text,
    )


def quiet_option(what: str) -> Decorator:
    """``--quiet``, which prints only the folder of ``what``."""
    return click.option("--quiet", is_flag=True, help=f"Print nothing but the folder of {what}.")


def seed_option(text: str, name: str = "--seed", default: str | None = "0") -> Decorator:
    """A seed, with its help; required without a default."""
    hint = "the one that the tool ran with" if default is None else "0 is usual"
    return click.option(
        name,
        callback=whole_number(0, MAX_SEED, "[0, 2^63)", hint),
        default=default,
        required=default is None,
        metavar="N",
        show_default=default is not None,
        help=text,
    )


# --- Options of scenarios ------------------------------------------------------------------------


@functools.cache  # click compares options by identity
def scenario_options() -> tuple[click.Option, ...]:
    """An option for each setting of any scenario; which scenario takes which is checked later."""
    from nispa.base.config import describe
    from nispa.data.named import SCENARIOS

    fields: dict[str, dict[str, Setting]] = {}
    for cls in dict.fromkeys(known.options for known in SCENARIOS.values()):
        kind = cls.__name__.removesuffix("Options").lower()
        for field in describe(cls):
            fields.setdefault(field.name, {})[kind] = field
    return tuple(_option(name, kinds) for name, kinds in fields.items())


def flag_of(name: str) -> str:
    """The option of a scenario's setting, such as ``--classes-per-task``."""
    return "--" + name.replace("_", "-")


def _option(name: str, fields: Mapping[str, Setting]) -> click.Option:
    flag = flag_of(name)
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


# --- KEY=VALUE -----------------------------------------------------------------------------------


def pairs_given(option: str, pairs: tuple[str, ...], example: str) -> dict[str, str]:
    """Keys and values of a repeated option such as ``--set KEY=VALUE``.

    Args:
        option: The option.
        pairs: Its values.
        example: The form to ask for, such as ``KEY=VALUE, such as --set density=0.1``.

    Raises:
        InputError: One is not a pair, or a key is given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise InputError(f"{option} {pair} must be {example}")
        if key in values:
            raise InputError(
                f"{option} {key}={value} comes after {key}={values[key]}; keep one of them"
            )
        values[key] = value
    return values


def with_model(settings: dict[str, str], model: str | None) -> dict[str, str]:
    """Settings with the network that ``--model`` names.

    Raises:
        ConfigError: They name another one.
    """
    if model is None:
        return settings
    if settings.setdefault("architecture", model) != model:
        raise ConfigError(
            f"--model {model} and --set architecture={settings['architecture']} name two networks; "
            "leave one of them out"
        )
    return settings


def with_models(
    settings: dict[str, str], lists: dict[str, Any], models: tuple[str, ...]
) -> dict[str, str]:
    """Settings with the network that ``--model`` names; several become a list of values to try.

    Raises:
        ConfigError: As :func:`with_model`.
        InputError: Networks are named in two ways.
    """
    if len(models) < 2:
        return with_model(settings, models[0] if models else None)
    if "architecture" in {*lists, *settings}:
        raise InputError("--model and architecture name networks; keep one of the two")
    lists["architecture"] = list(models)
    return settings


def settings_given(
    pairs: tuple[str, ...], kind: str | None, augment: str | None = None
) -> dict[str, str]:
    """The settings of ``--set``, ``--incremental`` and ``--augment`` together.

    Raises:
        InputError: They contradict each other, or see :func:`pairs_given`.
    """
    settings = pairs_given("--set", pairs, "KEY=VALUE, such as --set density=0.1")
    for name, value in (("incremental", kind), ("augment", augment)):
        if value is not None and settings.setdefault(name, value) != value:
            raise ConfigError(
                f"--{name} {value} and --set {name}={settings[name]} contradict each other; give "
                "one of them"
            )
    return settings


def lists_given(option: str, pairs: tuple[str, ...]) -> dict[str, list[str]]:
    """Lists given as ``KEY=V1,V2,...``, or with semicolons between values that hold commas.

    Raises:
        InputError: One has another form, or a key is given twice.
    """
    example = f"KEY=V1,V2, such as {option} density=0.1,0.2"
    lists = {}
    for key, values in pairs_given(option, pairs, example).items():
        if not values:
            raise InputError(f"{option} {key}= must be {example}")
        between = ";" if ";" in values else ","
        lists[key] = [value.strip() for value in values.split(between)]
    return lists
