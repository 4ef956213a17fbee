"""``charrnn runs``."""

from __future__ import annotations

import time

import click

from charrnn.commands import echo, note, print_json

RUN_COLUMNS = ("name", "model", "parameters", "step", "best", "state", "age")


@click.command("runs")
@click.argument("folder", default="runs")
@click.option(
    "--sort",
    type=click.Choice(RUN_COLUMNS),
    default="age",
    help="Column to sort by: counts from the largest, all else from the smallest.  [default: age]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list of objects.")
def runs(folder: str, sort: str, as_json: bool) -> None:
    """List the runs below a folder.

    Shows model, steps, best validation loss, state and age of each: running, finished, patience
    (stopped by --patience), interrupted, diverged, killed (ended without saving), damaged. FOLDER
    is runs/ unless given.

    \b
    charrnn runs --sort best
    """
    from charrnn import listing

    runs = listing.ordered(listing.find(folder, time.time()), sort)
    if as_json:
        print_json(runs)
        return
    for line in listing.table(runs) if runs else ():
        echo(line)
    for run in runs:
        if run["problem"] is not None:
            note(run["problem"])
    if not runs:
        note(f"there are no runs below {folder}")
