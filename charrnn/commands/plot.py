"""``charrnn plot``."""

from __future__ import annotations

import click

AXES = ("steps", "characters", "time")


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--output", "-o", required=True, metavar="FILE", help="The .png or .svg file to draw."
)
@click.option("--x", type=click.Choice(AXES), default="steps", help="The x axis.  [default: steps]")
@click.option("--log", is_flag=True, help="Make the loss axis logarithmic.")
@click.option("--bits", is_flag=True, help="Losses in bits per character instead of nats.")
def plot(runs: tuple[str, ...], output: str, x: str, log: bool, bits: bool) -> None:
    """Draw the loss curves of runs.

    Validation losses are strong lines, training losses faint ones. RUN is a run folder; several are
    told apart by the options in which they differ; without one it is the newest run.

    \b
    charrnn plot runs/lstm runs/gru -o curves.svg
    """
    from charrnn import curves
    from charrnn.view import View

    curves.plot(runs, output, View(x, log, bits))
