"""Tables on a terminal, or as plain lines in a file or pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def show(parts: Iterable[RenderableType], console: Console) -> None:
    """Prints what rich renders; in a file or pipe without the blanks that pad lines of tables."""
    if console.is_terminal:
        for part in parts:
            console.print(part)
        return
    with console.capture() as caught:
        for part in parts:
            console.print(part)
    for line in caught.get().splitlines():
        click.echo(line.rstrip())
