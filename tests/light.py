"""An environment that has nispa and what it must have, and nothing of what its extras bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.cli_calls import Ended

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(extras: tuple[str, ...] = ()) -> set[str]:
    """Names of all distributions that an installation with some extras has, but for nispa."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += with_own(extra)
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        each = waiting.pop()
        if each.marker is not None and not any(
            each.marker.evaluate({"extra": extra}) for extra in (*each.extras, "")
        ):
            continue
        name = each.name.lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            waiting += map(Requirement, metadata.requires(each.name) or [])
        except metadata.PackageNotFoundError:
            continue
    return found


def with_own(extra: str) -> list[str]:
    """The requirements of an extra, those of the extras in it included."""
    lines = []
    for line in PROJECT["optional-dependencies"][extra]:
        each = Requirement(line)
        if each.name == "nispa":
            lines += [found for inner in sorted(each.extras) for found in with_own(inner)]
        else:
            lines.append(line)
    return lines


def link(folder: Path, names: set[str]) -> None:
    """Makes ``folder`` a folder of packages: links to those of this environment, and nispa."""
    for name in names:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            there = Path(str(metadata.distribution(name).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(there)
    (folder / "nispa").symlink_to(ROOT / "src" / "nispa")
    about = folder / "nispa-0.dist-info"
    about.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: nispa\nVersion: {PROJECT['version']}"]
    lines += [f"Requires-Dist: {line}" for line in PROJECT["dependencies"]]
    for extra, wanted in PROJECT["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for line in wanted:
            base, _, marker = line.partition(";")
            also = f"({marker.strip()}) and " if marker else ""
            lines.append(f'Requires-Dist: {base.strip()}; {also}extra == "{extra}"')
    (about / "METADATA").write_text("\n".join(lines) + "\n")


def run(packages: Path, code: str, *words: str, at: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that sees the standard library and ``packages`` alone."""
    begin = f"import sys; sys.path.append({str(packages)!r}); "
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", begin + code, *words],
        cwd=at,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )


ENDED = """
import contextlib, io, json
from nispa.cli import cli
ended = []
for line in json.loads(sys.argv[1]):
    code, out, err = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(args=line.split(), prog_name="nispa")
        except SystemExit as end:
            code = end.code
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


def commands(packages: Path, *lines: str, at: Path) -> list[Ended]:
    """How commands of ``nispa`` end there, one after the other in one process."""
    done = run(packages, ENDED, json.dumps(lines), at=at)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [Ended(*each) for each in json.loads(done.stdout)]
