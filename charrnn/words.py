"""Numbers of a run in words, as all that shows them says them."""

from __future__ import annotations

import math

REASONS = {
    "finished": "finished",
    "patience": "stopped by --patience",
    "interrupted": "interrupted",
    "diverged": "stopped: diverged",
}


def units(nats: float) -> str:
    """A loss, given in nats per character, in every unit."""
    perplexity = math.inf if nats > 700 else math.exp(nats)  # e^710 overflows
    return (
        f"{number(nats)} nats/char  {number(nats / math.log(2))} bits/char  "
        f"perplexity {perplexity:.3g}"
    )


def duration(seconds: float) -> str:
    """``43 s``, ``2 min 05 s`` or ``3 h 07 min``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{m} min {s:02d} s" if m else f"{s} s"


def number(value: float, digits: int = 3) -> str:
    """With so many digits behind the point, or three in all if it is large."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"
