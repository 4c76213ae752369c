"""Prints the notes of a release: its part of CHANGELOG.md.

python .github/release_notes.py 0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def notes(version: str, changelog: str) -> str:
    """The text under the heading of a version.

    Raises:
        SystemExit: There is no such heading, or nothing under it.
    """
    parts = re.split(r"(?m)^## \[(.+?)\].*\n", changelog)
    found = dict(zip(parts[1::2], parts[2::2], strict=True)).get(version, "").strip()
    if not found:
        sys.exit(f"CHANGELOG.md has nothing under '## [{version}]'")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.write(notes(sys.argv[1].removeprefix("v"), CHANGELOG.read_text("utf-8")) + "\n")
