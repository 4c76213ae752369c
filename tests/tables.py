"""The generated tables of the documentation: settings, presets, and the names of each module.

A page holds them after a comment such as ``<!-- table: settings nispa -->``; they are written by
``python -m tests.test_docs``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nispa
from nispa.base.config import Setting, describe
from nispa.cli.lists import FACTS, facts
from nispa.methods import METHODS
from nispa.methods.base import MethodConfig
from nispa.methods.presets import preset_names
from nispa.methods.published import BENCHMARKS, PAPER_METHODS, PAPER_NETWORK, Values
from nispa.methods.tuned import BEST, DEFAULT
from nispa.network.models import NetworkConfig

SOURCE = Path(nispa.__file__).parent
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
MARKER = re.compile(r"(<!-- table: ([\w. -]+) -->)\n(?:\|.*\n)*")


def shown(value: object) -> str:
    """A setting's value as a command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _settings(fields: list[Setting]) -> str:
    rows = ["| setting | default | what it is | values |", "|---|---|---|---|"]
    for field in fields:
        names = ", ".join(f"`{name}`" for name in (field.name, *field.aliases))
        allowed = ", ".join(f"`{choice}`" for choice in field.choices) or field.kind
        interval = f" in {field.interval}" if field.interval else ""
        rows.append(f"| {names} | `{shown(field.default)}` | {field.doc} | {allowed}{interval} |")
    return "\n".join(rows)


def settings_table(cls: type[Any]) -> str:
    """The settings of a class as a table."""
    return _settings(describe(cls))


def preset_table(method: str) -> str:
    """What each benchmark sets for a method and its network, and what ``default`` sets instead."""

    def row(title: str, network: Values, config: Values) -> str:
        sets = [
            ", ".join(f"`{key}={shown(value)}`" for key, value in values.items())
            for values in (network, config)
        ]
        return f"| {title} | {sets[0]} | {sets[1]} |"

    rows = ["| preset | network | method |", "|---|---|---|"]
    for name, benchmark in BENCHMARKS.items():
        network = {**benchmark.network, **benchmark.networks.get(method, {})}
        rows.append(row(f"`{name}`", network, benchmark.methods.get(method, {})))
        for preset, table, base in (("default", DEFAULT, name), ("best", BEST, "default")):
            if tuned := table.get((name, method)):
                rows.append(row(f"`{preset}`: as `{base}`, but", tuned.network, tuned.method))
    return "\n".join(rows)


def paper_table() -> str:
    """What the behaviour ``paper`` sets, and what the correct version has instead."""
    rows = ["| setting | `paper` | `default` |", "|---|---|---|"]
    for values, cls, where in (
        (PAPER_NETWORK["mlp"], NetworkConfig, "MLP"),
        (PAPER_NETWORK["convnet"], NetworkConfig, "ConvNet"),
        (PAPER_METHODS["nispa"], METHODS["nispa"].config_class, ""),
    ):
        usual = {field.name: field.default for field in describe(cls)}
        for key, value in values.items():
            label = f"`{key}` ({where})" if where else f"`{key}`"
            rows.append(f"| {label} | `{shown(value)}` | `{shown(usual[key])}` |")
    return "\n".join(rows)


def presets_table() -> str:
    """Every preset with a line about it."""
    rows = ["| preset | what it sets |", "|---|---|"]
    return "\n".join(rows + [f"| `{name}` | {doc} |" for name, doc in preset_names().items()])


def own_settings_table() -> str:
    """For each method the settings that not every method has, with their defaults."""
    shared = {field.name for field in describe(MethodConfig)}
    rows = ["| method | settings of its own |", "|---|---|"]
    for name, method in METHODS.items():
        own = [field for field in describe(method.config_class) if field.name not in shared]
        cells = ", ".join(f"`{field.name}={shown(field.default)}`" for field in own)
        rows.append(f"| [{name}](methods/{name}.md#settings) | {cells} |")
    return "\n".join(rows)


def methods_table() -> str:
    """What each method needs and promises, as its class says."""
    rows = [_row(["method", *FACTS]), _row(["---"] * (1 + len(FACTS)))]
    for name, method in METHODS.items():
        rows.append(_row([f"[{name}](methods/{name}.md)", *facts(method)]))
    return "\n".join(rows)


def results_table(method: str) -> str:
    """What ``docs/results.md`` says of a method: its rows in the tables that compare methods."""
    columns = ("seeds", "accuracy, %", "told the task", "forgetting", "live parameters",
               "kept beside, kB", "training, s")  # fmt: skip
    rows = [_row(["where", "method", *columns]), _row(["---"] * (2 + len(columns)))]
    for section in re.split(r"^## ", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        lines = [_cells(line) for line in section.splitlines() if line.startswith("| ")]
        heads = next((cells for cells in lines if cells[0] == "method"), [])
        for cells in lines:
            if "accuracy, %" in heads and re.split(r"[ ,]", cells[0])[0] == method:
                found = dict(zip(heads, cells, strict=False))
                link = f"[{title}](../results.md#{slug(title)})"
                rows.append(_row([link, cells[0], *(found.get(name, "–") for name in columns)]))
    return "\n".join(rows)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def slug(title: str) -> str:
    """The anchor of a heading, as code hosts and the site make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def source_of(module: str) -> Path:
    """The file of a module of nispa."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> Iterator[tuple[str, str]]:
    """The public names that a module defines and describes, each with its docstring, in order.

    As the site's generator sees them: classes and functions with a docstring, and variables with a
    text after them.
    """
    body = ast.parse(source_of(module).read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        text: str | None = None
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name, text = node.name, ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(after.value, ast.Constant):
                name, text = target.id, str(after.value.value)
        if text and not name.startswith("_"):
            yield name, text


def first_sentence(docstring: str) -> str:
    """What a docstring says first, in Markdown."""
    text = " ".join(docstring.partition("\n\n")[0].split())
    text = re.split(r"(?<=[.:]) (?=[A-Z])", text)[0].rstrip(".:")
    text = re.sub(r":\w+:`~?\.?(?:[\w.]+\.)?(\w+)`", r"`\1`", text.replace("``", "`"))
    return text.replace("|", r"\|")


def names_table(module: str) -> str:
    """The public names of a module, with a line about each."""
    rows = ["| name | what it is |", "|---|---|"]
    return "\n".join(
        rows + [f"| `{name}` | {first_sentence(text)} |" for name, text in public_names(module)]
    )


def tables() -> Mapping[str, str]:
    """Every generated table but those of modules, by the name that its marker carries."""
    made = {
        "settings network": settings_table(NetworkConfig),
        "settings shared": settings_table(MethodConfig),
        "settings own": own_settings_table(),
        "presets": presets_table(),
        "paper": paper_table(),
        "methods": methods_table(),
    }
    for name, method in METHODS.items():
        made[f"settings {name}"] = settings_table(method.config_class)
        made[f"presets {name}"] = preset_table(name)
        made[f"results {name}"] = results_table(name)
    return made


def with_tables(text: str) -> str:
    """A page with the tables after its markers as they should be."""
    made = tables()

    def put(match: re.Match[str]) -> str:
        kind, _, module = match[2].partition(" ")
        table = names_table(module) if kind == "api" else made[match[2]]
        return f"{match[1]}\n{table}\n"

    return MARKER.sub(put, text)
