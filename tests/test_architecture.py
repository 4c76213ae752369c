"""The imports of ``src/`` held against the table of packages in ``ARCHITECTURE.md``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nispa"
ROW = re.compile(r"^\| `(?P<room>[a-z_/]+)` \|[^|]*\| (?P<imports>[^|]*) \|$")


def table() -> dict[str, set[str]]:
    """Room to the rooms it may import."""
    rows: dict[str, set[str]] = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        if match := ROW.match(line):
            named = set(re.findall(r"`([a-z_]+)`", match["imports"]))
            every = match["imports"] == "all of the above"
            rows[match["room"].rstrip("/")] = set(rows) if every else named
    return rows


def room_of(module: str) -> str:
    """The room of a dotted module name: the part after ``nispa``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "nispa"


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            rooms |= {room_of(name.name) for name in node.names if name.name.startswith("nispa")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "nispa":
                rooms |= {
                    name.name if (SOURCE / f"{name.name}.py").exists() else "nispa"
                    for name in node.names
                }
            elif node.module and node.module.startswith("nispa."):
                rooms.add(room_of(node.module))
    return rooms


def test_the_table_names_every_room() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in modules()}
    assert set(table()) == rooms - {"__main__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_keep_to_the_table(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py").replace("__main__", "cli")
    allowed = table()[own] | {own, "nispa"}
    assert imported_rooms(path) <= allowed


def test_the_table_has_no_circle() -> None:
    rows = table()
    done: set[str] = set()
    while len(done) < len(rows):
        ready = {room for room, imports in rows.items() if room not in done and imports <= done}
        assert ready, f"these rooms import each other in a circle: {sorted(set(rows) - done)}"
        done |= ready


def imported_modules(path: Path) -> set[str]:
    """The modules of ``src/`` that a file imports when it runs, anywhere in it, by dotted name."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]  # names for annotations alone: never imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names} & set(NAMED)
            found |= inner or {node.module}
    return found & set(NAMED)


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMED = {dotted(path): path for path in modules()}
"""All modules but ``nispa`` itself, which everybody may ask for the version."""


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports within functions count, too: putting them off does not break a circle."""
    left = {name: imported_modules(path) for name, path in NAMED.items()}
    while ready := {name for name, imports in left.items() if not imports & set(left)}:
        left = {name: imports for name, imports in left.items() if name not in ready}
    assert not left, f"in a circle, or importing one: {sorted(left)}"


WITHOUT_TORCH = [
    *sorted((SOURCE / "reading").glob("*.py")),
    *sorted((SOURCE / "webpage").glob("*.py")),
    *(SOURCE / "runs" / f"{name}.py" for name in ("capacity", "costs", "curve", "folder")),
    *(SOURCE / "runs" / f"{name}.py" for name in ("metrics", "origin", "record")),
    *(SOURCE / f"{name}.py" for name in ("errors", "files")),
]


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=lambda path: str(path.relative_to(SOURCE)))
def test_records_and_reports_need_no_torch(path: Path) -> None:
    assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.MULTILINE)


def test_nothing_unpickles_or_runs_code_from_files() -> None:
    forbidden = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec", "marshal.loads"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, path
                for keyword in node.keywords:
                    pickled = keyword.arg == "allow_pickle"
                    assert not (pickled and ast.unparse(keyword.value) != "False"), path
