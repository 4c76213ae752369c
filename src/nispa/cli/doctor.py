"""``nispa doctor``: the details that a bug report needs, and what is missing on this machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nispa.cli.options import DATA_VARIABLE, data_option

if TYPE_CHECKING:
    from nispa.data.sources import Availability


@click.command(epilog="\b\nExample:\n  nispa doctor --data ~/data")
@data_option
def doctor(data: Path | None) -> None:
    """Tell what is installed, what computes, and which data are at hand."""
    from nispa.cli.lists import rows
    from nispa.data.sources import available

    known = available(data)
    for title, table in (
        ("Versions", _versions()),
        ("Computing", _computing()),
        ("Data", _data(data, known)),
    ):
        click.echo(title)
        for line in rows([(f"  {name}", what) for name, what in table]):
            click.echo(line)
    missing: dict[str, list[str]] = {}
    for data_set in known:
        if not data_set.found:
            missing.setdefault(data_set.how, []).append(data_set.name)
    if missing:
        click.echo("What is missing is downloaded when a run needs it. Without a network:")
        for how, names in missing.items():
            for line in rows([("  -", f"{', '.join(names)}: {how}")]):
                click.echo(line)


def _versions() -> Iterable[tuple[str, str]]:
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in ("nispa", *_needed()):
        try:
            yield package, _build_of_torch() if package == "torch" else version(package)
        except (PackageNotFoundError, ModuleNotFoundError):
            yield package, f"MISSING; install it with: pip install {package}"


def _needed() -> list[str]:
    """The packages that every installation has."""
    try:
        lines = requires("nispa") or []
    except PackageNotFoundError:  # not installed, but run from its source
        return ["torch"]
    return [re.split(r"[^\w.-]", line)[0] for line in lines if ";" not in line]


def _build_of_torch() -> str:
    """PyTorch's version with its build, such as ``+cu130``, which package metadata may lack."""
    import torch

    return str(torch.__version__)


def _computing() -> Iterable[tuple[str, str]]:
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


def _data(folder: Path | None, known: Sequence[Availability]) -> Iterable[tuple[str, str]]:
    from nispa.data.download import cache_folder

    yield "folder", str(folder) if folder else f"none; pass --data DIR or set {DATA_VARIABLE}"
    yield "downloads", str(cache_folder())
    for data_set in known:
        yield data_set.name, data_set.where
