"""``nispa doctor``: the details that a bug report needs, and what is missing on this machine."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.options import DATA_VARIABLE, data_option
from nispa.errors import MissingPackageError

if TYPE_CHECKING:
    from nispa.data.sources import Availability

Lines = Iterable[tuple[str, str]]

DEVELOPING = frozenset(("all", "dev", "docs", "test"))
"""Extras that only collect others, or that only developers need."""


@click.command(
    epilog="\b\nExamples:\n  nispa doctor --data ~/data\n  nispa doctor --report > report.txt"
)
@data_option
@click.option(
    "--report",
    is_flag=True,
    help="For a bug report: without folders, and without the names of user and machine.",
)
def doctor(data: Path | None, report: bool) -> None:
    """Tell what is installed, what computes, and which data are at hand."""
    from nispa.data.sources import available

    known = available(data)
    parts = [("Versions", _versions()), ("Computing", _computing())]
    if report:
        parts.append(("Data", _found(data, known)))
        private = _private(data)
        for line in _lines(parts):
            click.echo(without(line, private))
        return
    for line in _lines([*parts, ("Data", _data(data, known))]):
        click.echo(line)
    _tell_what_is_missing(known)


def _lines(parts: Iterable[tuple[str, Lines]]) -> Iterator[str]:
    from nispa.cli.lists import rows

    for title, table in parts:
        yield title
        yield from rows([(f"  {name}", what) for name, what in table])


def _tell_what_is_missing(known: Sequence[Availability]) -> None:
    from nispa.cli.lists import rows

    missing: dict[str, list[str]] = {}
    for data_set in known:
        if not data_set.found:
            missing.setdefault(data_set.how, []).append(data_set.name)
    if missing:
        click.echo("What is missing is downloaded when a run needs it. Without a network:")
        for how, names in missing.items():
            for line in rows([("  -", f"{', '.join(names)}: {how}")]):
                click.echo(line)


def _versions() -> Lines:
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    needed, extras = _packages()
    for package in ("nispa", *needed):
        yield package, _version(package) or f"MISSING; install it with: pip install {package}"
    names = {package for packages in extras.values() for package in packages}
    found = {each: _version(each) for each in sorted(names - {*needed})}
    yield from ((package, known) for package, known in found.items() if known)
    lacking = [extra for extra, packages in extras.items() if not all(map(_version, packages))]
    if lacking:
        yield "extras missing", f'{", ".join(lacking)}; install one with: pip install "nispa[NAME]"'


def _version(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return _build_of_torch() if package == "torch" else version(package)
    except (PackageNotFoundError, ModuleNotFoundError):
        return None


def _packages() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that every installation has, and those of each extra."""
    try:
        lines = requires("nispa") or []
    except PackageNotFoundError:  # not installed, but run from its source
        return ["torch"], {}
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        wanted, _, marker = line.partition(";")
        package = re.split(r"[^\w.-]", wanted)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None:
            needed += [package] * (not marker)
        elif extra[1] not in DEVELOPING and package != "nispa" and "python_version" not in marker:
            extras.setdefault(extra[1], []).append(package)
    return needed, extras


def _build_of_torch() -> str:
    """PyTorch's version with its build, such as ``+cu130``, which package metadata may lack."""
    import torch

    return str(torch.__version__)


def _computing() -> Lines:
    import torch

    from nispa.kernels.dispatch import in_use
    from nispa.runs.recording import environment

    here = environment()
    yield "processor", here.cpu
    named = os.environ.get("OMP_NUM_THREADS")
    why = f"OMP_NUM_THREADS={named}" if named else "PyTorch's own choice"
    yield "threads", f"{here.threads} ({why}; change it with --threads)"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            name = torch.cuda.get_device_name(number)
            yield f"cuda:{number}", f"{name}, {memory:.0f} GiB (use it with --device cuda:{number})"
    elif torch.version.cuda:
        yield "cuda", f"PyTorch is built for CUDA {torch.version.cuda}, but finds no GPU or driver"
    else:
        yield "cuda", "not available: this PyTorch is a build without CUDA"
    kernels = in_use()
    yield "kernels", f"{kernels.name}: {kernels.reason}"


def _data(folder: Path | None, known: Sequence[Availability]) -> Lines:
    from nispa.data.download import cache_folder

    yield "folder", str(folder) if folder else f"none; pass --data DIR or set {DATA_VARIABLE}"
    try:
        yield "downloads", str(cache_folder())
    except MissingPackageError as error:
        yield "downloads", str(error)
    for data_set in known:
        yield data_set.name, data_set.where


def _found(folder: Path | None, known: Sequence[Availability]) -> Lines:
    """Which data are at hand, without telling where."""
    yield "folder", "given" if folder else "none"
    yield "found", ", ".join(each.name for each in known if each.found) or "none"


def _private(data: Path | None) -> dict[str, str]:
    """What a report must not hold, and what stands there instead."""
    found: dict[str, str] = {}
    # The longest paths first: one may lie in another.
    folders = {"DATA": data, "HERE": Path.cwd(), "TEMP": Path(tempfile.gettempdir())}
    with_home = {**folders, "HOME": Path.home()}
    for name, folder in with_home.items():
        for path in (folder, folder and folder.resolve()):
            if path is not None and len(path.parts) > 1:
                found[str(path)] = name
    for variable in ("USER", "LOGNAME", "USERNAME"):
        found[os.environ.get(variable, "")] = "USER"
    found[Path.home().name] = "USER"
    found[platform.node()] = found[platform.node().partition(".")[0]] = "HOST"
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def without(text: str, private: dict[str, str]) -> str:
    """A text with whole words and paths replaced; of other paths the last part is left.

    Args:
        text: A line.
        private: What to replace, and by what; the first is replaced first.
    """
    for word, instead in private.items():
        if word:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", f"<{instead}>", text)
    # A path that is left, such as that of a library, may hold a name, too.
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s'\":,;]*[/\\]", "<...>/", text)
