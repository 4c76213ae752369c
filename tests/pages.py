"""The code blocks of a page, and a folder in which they run one after the other.

A comment right above a block says how it is run, and shows on no page::

    <!-- not run: it takes hours -->      not at all, and why
    <!-- interrupted after task 2 -->     Ctrl-C comes when the second task is learned
    <!-- file: plan.toml -->              what it holds becomes a file for the blocks below
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from nispa.base.config import describe
from nispa.cli import cli
from nispa.cli.progress import Display, PlainDisplay
from nispa.methods import METHODS
from nispa.runs.runner import RunEvent, TaskEnd

from .cli_calls import Ended

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELLS = ("sh", "console")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
COMMENT = re.compile(r"<!-- (?P<text>[^\n]*?) -->\n\s*\Z")
SHORT = {"hidden": "40,40", "channels": "8,16", "fc": "60", "batch_size": "64", "patience": "none"}
SHORT |= {"together": "32"}
FEW_EPOCHS = {"epochs": "1", "retrain_epochs": "1", "epochs_per_phase": "1", "max_phases": "3"}
FEW_EPOCHS |= {"settle_epochs": "1"}


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the comment above it, and the line it begins at."""

    language: str
    code: str
    mark: str = ""
    line: int = 0

    @property
    def runs(self) -> bool:
        if self.mark.startswith("file: "):
            return True
        return self.language in (*SHELLS, "python") and not self.mark.startswith(
            ("not run: ", "command: ")
        )


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    for match in FENCE.finditer(text):
        above = COMMENT.search(text[: match.start()])
        found.append(
            Block(
                match["language"],
                textwrap.dedent(match["code"]),
                above["text"] if above else "",
                text[: match.start()].count("\n") + 2,
            )
        )
    return found


@dataclass
class Said:
    """A command of a block, and what the page says that it prints."""

    args: list[str]
    shown: str = ""


def commands(block: Block) -> list[Said]:
    """What a shell would call, loops and all: ``nispa`` and ``python``, nothing else is there."""
    if block.language == "sh":
        return [Said(args) for args in _asked(block.code)]
    parts = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
    assert not parts[0], f"line {block.line}: begin with a command, after '$ '"
    found = []
    for part in parts[1:]:
        command, _, shown = part.partition("\n")
        (args,) = _asked(command)
        found.append(Said(args, shown))
    return found


def _asked(code: str) -> list[list[str]]:
    """Every call of a program with its arguments, in the order in which a shell comes to them."""
    with tempfile.TemporaryDirectory() as nothing:
        programs = [
            f"{name}() {{ printf '%s\\0' {name} \"$@\" $'\\n'; }}" for name in ("nispa", "python")
        ]
        script = "\n".join(["set -ef", *programs, code])
        done = subprocess.run(
            [_bash(), "-c", script], env={"PATH": nothing}, capture_output=True, encoding="utf-8"
        )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    calls = done.stdout.split("\0\n\0")
    assert calls.pop() == "", done.stdout
    return [call.split("\0") for call in calls]


def _bash() -> str:
    found = shutil.which("bash")
    assert found, "no bash here"
    return found


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The working folder, until the end."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass
class Page:
    """A page whose blocks run in one folder, with one set of Python names.

    Attributes:
        path: The page.
        folder: Where it runs.
        data: What the placeholder DIR stands for; None to run everything as it is written. With
            it, runs are made short: a tiny network, few epochs and tasks, one seed of several, one
            thread.
        names: What its Python blocks have defined.
    """

    path: Path
    folder: Path
    data: Path | None = None
    names: dict[str, Any] = field(default_factory=dict)
    _seen: set[tuple[str, ...]] = field(default_factory=set)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The folder is the working one, and the page is a module that can be looked up."""
        module = types.ModuleType("page")
        self.names = module.__dict__
        sys.modules["page"] = module  # classes of a page are looked up there by their names
        try:
            with working_in(self.folder):
                yield
        finally:
            del sys.modules["page"]

    def run(self, block: Block) -> list[tuple[Said, Ended]]:
        """Runs a block: for each command what the page shows, and what came of it."""
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(block.code, encoding="utf-8")
            return []
        if block.language == "python":
            return [(Said(["python"]), Ended(0, self._python(block), ""))]
        return [(said, self._call(block, said.args)) for said in commands(block)]

    def _python(self, block: Block) -> str:
        code = compile(
            "\n" * (block.line - 1) + block.code,
            str(self.path),
            "exec",
            flags=annotations.compiler_flag,
            dont_inherit=True,
        )
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, self.names)
        return out.getvalue()

    def _call(self, block: Block, args: Sequence[str]) -> Ended:
        program, *args = [part for arg in args for part in _unfold(arg)]
        if program == "python":
            return _python(args)
        if self.data is not None:
            args = one_thread([str(self.data) if arg == "DIR" else arg for arg in args])
            if args[0] == "run":
                if not block.mark and self._known(args):
                    return Ended(0, "", "")
                args += shortened(args)
            if args[0] == "reproduce":  # all is checked, the data included, and nothing started
                args.append("--dry-run")
            if args[0] == "sweep":
                args = [*one_seed(args), "--workers=1", "--threads=1"]
                if "split-digits" in args:
                    args.append("--set=tasks=[[0,1],[2,3]]")
                if not args[1].endswith(".toml"):
                    args += [f"--set={name}={SHORT[name]}" for name in ("hidden", "batch_size")]
        after = re.fullmatch(r"interrupted after task (\d+)", block.mark)
        with interrupted(int(after[1])) if after else contextlib.nullcontext():
            return call(args)

    def _known(self, args: Sequence[str]) -> bool:
        """Whether the same was run before, with another seed."""
        text = " ".join(args)
        if seed := re.search(r" --seed (\d+)", text):
            text = text.replace(seed[0], "").replace(f"-s{seed[1]}", "")
        key = tuple(text.split())
        known = bool(seed) and key in self._seen
        self._seen.add(key)
        return known


def _python(args: Sequence[str]) -> Ended:
    """Python in a process of its own, with the repository to import from."""
    done = subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "COLUMNS": "100"},
        capture_output=True,
        encoding="utf-8",
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def _unfold(arg: str) -> list[str]:
    """What a shell makes of a pattern: the files that fit, or the pattern itself."""
    return sorted(map(str, Path().glob(arg))) or [arg] if "*" in arg else [arg]


def shortened(args: Sequence[str]) -> list[str]:
    """What to add to ``nispa run`` so that it takes a second; nothing that is said is changed."""
    pairs = list(itertools.pairwise(args))
    chosen = dict(pairs)
    method = METHODS[chosen.get("--method", "nispa")]
    said = {value.partition("=")[0] for flag, value in pairs if flag == "--set"}
    fields = [each for each in describe(method.config_class) if each.name in SHORT | FEW_EPOCHS]
    known = {each.name: {each.name, *each.aliases} for each in fields}
    convnet = "architecture=convnet" in args or said & {"channels", "fc"}
    sizes = () if "--model" in args else ("channels", "fc") if convnet else ("hidden",)
    for name in sizes:
        known[name] = {name}
    few = [
        f"--set={name}={value}"
        for name, value in (SHORT | FEW_EPOCHS).items()
        if name in known and not known[name] & said
    ]
    if args[1].startswith("permuted-") and "--tasks" not in chosen:
        few.append("--tasks=2")
    return few


def one_thread(args: Sequence[str]) -> list[str]:
    """One after ``--threads``: tests run side by side, and more would stay for what follows."""
    return [
        "1" if before == "--threads" else arg
        for before, arg in zip(["", *args], args, strict=False)
    ]


def call(args: Sequence[str]) -> Ended:
    """Calls the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(args=list(args), prog_name="nispa")
        except SystemExit as ending:
            code = ending.code
    return Ended(code, out.getvalue(), err.getvalue())


def one_seed(args: Sequence[str]) -> list[str]:
    """The first seed of those after ``--seeds``."""
    return [
        re.split("[,-]", arg)[0] if before == "--seeds" else arg
        for before, arg in zip(["", *args], args, strict=False)
    ]


@contextlib.contextmanager
def interrupted(tasks: int) -> Iterator[None]:
    """Ctrl-C comes when so many tasks are learned."""
    show = PlainDisplay.show

    def stop(self: PlainDisplay, event: RunEvent) -> None:
        show(self, event)
        if isinstance(event, TaskEnd) and event.task == tasks - 1:
            signal.raise_signal(signal.SIGINT)

    assert issubclass(PlainDisplay, Display)
    with mock.patch.object(PlainDisplay, "show", stop):
        yield
