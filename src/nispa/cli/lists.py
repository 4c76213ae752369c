"""``nispa list``: the names of scenarios, methods and so on, read from their definitions."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from nispa.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from nispa.base.config import Setting
    from nispa.methods.base import Method

FACTS = (
    "incremental",
    "must be told the task",
    "stores samples",
    "forgets nothing",
    "works on",
    "published",
)
"""What :func:`facts` says of a method."""

NARROWEST = 24  # narrower columns of text are harder to read than lines that are too long


@click.command(
    name="list",
    short_help="List scenarios, methods, models, presets, datasets or settings.",
    epilog="\b\nExamples:\n  nispa list scenarios\n  nispa list settings --method nispa",
)
@click.argument("what", metavar="scenarios|methods|models|presets|datasets|settings")
@click.option("--method", metavar="NAME", help="With settings: those of this method alone.")
def list_known(what: str, method: str | None) -> None:
    """List everything that has a name."""
    if what not in _TABLES:
        raise unknown_name("list", what, _TABLES)
    if method is not None and what != "settings":
        raise ConfigError(f"--method={method} goes with 'nispa list settings' alone; leave it out")
    for line in _TABLES[what](method):
        click.echo(line)


def _scenarios(method: str | None) -> Iterable[str]:
    from nispa.data.named import SCENARIOS

    yield from rows([(known.name, known.doc) for known in SCENARIOS.values()])


def facts(method: type[Method]) -> tuple[str, ...]:
    """What a method needs and promises, by its class; see :data:`FACTS`."""
    return (
        ", ".join(method.incremental),
        "no" if method.task_agnostic else "yes",
        "yes" if method.stores_samples() else "no",
        method.forgets_nothing,
        "any" if method.any_network else "mlp, convnet",
        method.published or "-",
    )


def _methods(method: str | None) -> Iterable[str]:
    from nispa.methods import METHODS

    table = [(name, *facts(m), _first_line(m)) for name, m in METHODS.items()]
    yield from rows(table, ("method", *FACTS, "what it is"))


def _models(method: str | None) -> Iterable[str]:
    from nispa.backbones import BACKBONES

    table = [
        (name, "x".join(map(str, each.example)), each.description, _arguments(each.build))
        for name, each in BACKBONES.items()
    ]
    yield from rows(table, ("model", "made for", "what it is", "arguments, with their defaults"))
    yield ""
    yield "For --model NAME, with --set arguments=width=20,blocks=4 and so on; of mlp and convnet"
    yield "they are settings. Your own: --model package.module:function."


def _arguments(build: Callable[..., Any]) -> str:
    """The arguments of a model beside shape and classes."""
    found = []
    for name, argument in list(inspect.signature(build).parameters.items())[2:]:
        default = argument.default
        shown = "x".join(map(str, default)) if isinstance(default, tuple) else str(default)
        found.append(f"{name}={shown}")
    return ", ".join(found)


def _presets(method: str | None) -> Iterable[str]:
    from nispa.methods.presets import preset_names

    yield from rows(list(preset_names().items()))


def _datasets(method: str | None) -> Iterable[str]:
    from nispa.data.catalog import CATALOG

    table = [("digits", "10", "1,797", "1x8x8", "ships with scikit-learn")]
    table += [
        (
            entry.name,
            str(len(entry.class_names)),
            f"{entry.train + entry.test:,}",
            "x".join(map(str, entry.shape)),
            "read from --data, or downloaded",
        )
        for entry in CATALOG.values()
    ]
    yield from rows(table, ("data set", "classes", "images", "shape", "where from"))
    yield ""
    yield "Your own: an .npz or .parquet file, a folder of Parquet or IDX files, or a folder with a"
    yield "folder of images per class: nispa run split --dataset PATH. See also: nispa doctor."


def _settings(method: str | None) -> Iterable[str]:
    from nispa.base.config import describe
    from nispa.methods import METHODS, method_class
    from nispa.methods.base import MethodConfig
    from nispa.network.models import NetworkConfig

    yield "Settings for --set KEY=VALUE. Presets change some of these defaults."
    shared = {field.name for field in describe(MethodConfig)}
    owners: dict[type[Any], list[str]] = {}
    for name in METHODS if method is None else [method]:
        owners.setdefault(method_class(name).config_class, []).append(name)
    sections = [("the network", describe(NetworkConfig))]
    sections.append(("training, of every method", describe(MethodConfig)))
    for config_class, names in owners.items():
        own = [field for field in describe(config_class) if field.name not in shared]
        sections.append((", ".join(names), own))
    for title, fields in sections:
        yield ""
        yield title
        yield from rows([_row(field) for field in fields])


def _row(field: Setting) -> tuple[str, str, str]:
    default = field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
    allowed = ", ".join(field.choices) if field.choices else field.kind
    if field.interval:
        allowed += f" in {field.interval}"
    also = f"; also called {', '.join(field.aliases)}" if field.aliases else ""
    return f"  {field.name}", shown, f"{field.doc}: {allowed}{also}"


_TABLES: dict[str, Callable[[str | None], Iterable[str]]] = {
    "scenarios": _scenarios,
    "methods": _methods,
    "models": _models,
    "presets": _presets,
    "datasets": _datasets,
    "settings": _settings,
}


def _first_line(found: type[Any]) -> str:
    module = inspect.getdoc(sys.modules[found.__module__]) or ""
    return module.partition("\n")[0].rstrip(".")


def rows(table: Sequence[Sequence[str]], head: Sequence[str] | None = None) -> Iterable[str]:
    """The lines of a table with columns of the smallest width.

    On a terminal the last column is wrapped to fit; elsewhere a row is always one line.
    """
    table = [head, *table] if head else list(table)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = sys.maxsize
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - indent, NARROWEST)
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        first, *more = textwrap.wrap(row[-1], room) or [""]
        yield "  ".join([*cells, first]).rstrip()
        yield from (" " * indent + line for line in more)
