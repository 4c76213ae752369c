"""``python -m nispa`` is the command line, too."""

from __future__ import annotations

from nispa.cli import main

if __name__ == "__main__":
    main()
