"""``charrnn monitor``."""

from __future__ import annotations

import sys

import click


@click.command("monitor")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
def monitor(runs: tuple[str, ...]) -> None:
    """Watch runs, from another terminal or after the fact.

    Shows loss curves, learning rate, gradient norm, speed and the newest sample of RUN, a run
    folder; several are overlaid; without one it is the newest run. Keys: q quits, x changes the x
    axis, l is a linear or logarithmic loss, u nats or bits. Without a terminal, a line is written
    for each event until nobody trains the runs any more.

    \b
    charrnn monitor
    charrnn monitor runs/lstm runs/gru
    """
    from charrnn import live

    live.watch(runs, sys.stdin, sys.stdout)
