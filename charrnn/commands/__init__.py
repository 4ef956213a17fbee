"""The commands, a file each: options -> config -> one library call.

Like all that the command line needs to show its help, they import nothing heavy before they run.
"""

from __future__ import annotations

import contextlib
from typing import Any

import click


def note(text: str) -> None:
    """Tell the user something that is no result, if there is a way to."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print a result as indented JSON."""
    from charrnn.runlog import dump_json

    click.echo(dump_json(value, indent=2).decode())
