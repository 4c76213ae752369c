"""The command line: parses arguments, calls the other packages, prints results.

The modules of this package import PyTorch, rich and most of nispa inside their functions, so that
``nispa --help`` and a mistyped command answer at once.
"""

from __future__ import annotations

import click

from nispa import __version__
from nispa.cli.compact import compact
from nispa.cli.compare import compare
from nispa.cli.doctor import doctor
from nispa.cli.exits import Commands
from nispa.cli.lists import list_known
from nispa.cli.plan import plan
from nispa.cli.play import play
from nispa.cli.predict import predict
from nispa.cli.report import report
from nispa.cli.resume import resume
from nispa.cli.run import run
from nispa.cli.runs import export, import_matrix, runs
from nispa.cli.search import search
from nispa.cli.serve import serve
from nispa.cli.show import show
from nispa.cli.sweep import reproduce, sweep

__all__ = ["cli", "main"]


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "\b\nExample, under a minute on two cores and without a download:\n"
        "  nispa run split-digits\n\n'nispa COMMAND --help' tells more about a command."
    ),
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Continual learning in sparse networks that never forget."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    run,
    resume,
    sweep,
    reproduce,
    search,
    plan,
    show,
    predict,
    compact,
    serve,
    play,
    report,
    runs,
    compare,
    export,
    import_matrix,
    list_known,
    doctor,
):
    cli.add_command(_command)


def main() -> None:
    """The entry point of ``nispa`` and ``python -m nispa``; does not return."""
    cli.main(prog_name="nispa")
