"""Counts what someone new has to find their way in: ``python -m tests.structure [src/nispa]``.

Entries are the modules and packages at the top; arrows the imports between them; floors the longest
chain of imports downward; a circle is a set of modules that import each other.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "nispa"


def dotted(path: Path, source: Path) -> str:
    """A module's name below the package, such as ``data.tasks``."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: Path, known: set[str]) -> set[str]:
    """The modules that a file imports, those for annotations alone left out."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name for name in inner if name.partition(".")[2] in known} or {node.module}
    return {name.partition(".")[2] for name in found if name.startswith("nispa.")} & known


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that lie on a circle."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        open_ = set(graph[start])
        while open_:
            node = open_.pop()
            seen.add(node)
            open_ |= graph[node] - seen
        return seen

    return {node for node in graph if node in reached(node)}


def floors(graph: dict[str, set[str]]) -> int:
    """Nodes on the longest chain of imports; those in circles do not count."""
    left = {node: set(graph[node]) for node in graph if node not in in_circles(graph)}
    count = 0
    while left:
        ready = {node for node, below in left.items() if not below & set(left)}
        left = {node: below for node, below in left.items() if node not in ready}
        count += 1
    return count


def main(source: Path) -> None:
    """Prints the lines of each entry, then the counts."""
    files = sorted(path for path in source.rglob("*.py") if path.parent != source.parent)
    known = {dotted(path, source) for path in files} - {"", "__main__"}
    modules = {dotted(path, source): imports(path, source, known) for path in files}
    modules = {name: below for name, below in modules.items() if name in known}
    entries: dict[str, set[str]] = {}
    lines: dict[str, int] = {}
    for path in files:
        name = dotted(path, source)
        top = name.partition(".")[0] or "nispa"
        lines[top] = lines.get(top, 0) + len(path.read_text(encoding="utf-8").splitlines())
        if name in modules:
            below = {other.partition(".")[0] for other in modules[name]} - {top}
            entries.setdefault(top, set()).update(below)
    largest_first = sorted(lines.items(), key=lambda item: -item[1])
    rows = [f"{number:7,}  {name}" for name, number in largest_first]
    rows.append(
        f"{sum(lines.values()):7,}  lines in {len(files)} files; {len(entries)} entries, "
        f"{floors(entries)} floors, {sum(map(len, entries.values()))} arrows; in circles: "
        f"{len(in_circles(entries))} entries, {len(in_circles(modules))} modules"
    )
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
