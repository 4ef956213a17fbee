"""The commands, a file each: options -> config -> one library call.

Like all that the command line needs to show its help, they import nothing heavy before they run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from charrnn import signals

if TYPE_CHECKING:
    from charrnn.api import LanguageModel
    from charrnn.trainer import Run

VERBOSE = "charrnn.verbose"
"""Key of a context's ``meta``: with ``--verbose`` a clock of compilation."""


def echo(text: str) -> None:
    """Print a line of a result. Given its stream, click leaves the terminal's encoding alone."""
    click.echo(text, file=sys.stdout)


def note(text: str) -> None:
    """Tell the user something that is no result, if there is a way to."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        click.echo(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a result as indented JSON."""
    from charrnn.runlog import dump_json

    echo(dump_json(value, indent=2).decode())


def _start_clock(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        with signals.fatal():
            from charrnn.kernels.jit import watch_compiling

        ctx.meta[VERBOSE] = watch_compiling()


verbose = click.option(
    "--verbose",
    "-v",
    is_flag=True,
    expose_value=False,
    callback=_start_clock,
    help="Also show versions, processor, kernels, options; and where an error came from.",
)


def tell_details(work: Run | LanguageModel, options: Mapping[str, Any]) -> None:
    """With ``--verbose``: what a command works with, and when it ends what that took."""
    ctx = click.get_current_context()
    if VERBOSE in ctx.meta:
        from charrnn import details

        note("\n".join(details.work(work.model, options)))
        ctx.call_on_close(lambda: note(details.effort(ctx.meta[VERBOSE])))
