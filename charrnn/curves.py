"""Loss curves of runs as a picture: validation strong, training faint, each with its options."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from charrnn import advice, plots
from charrnn.chart import printable
from charrnn.errors import InputError
from charrnn.view import View, time_unit
from charrnn.watched import Watched, find

UNTOLD = (
    "threads", "eval_every", "checkpoint_every", "log_every", "log_gradients", "sample_every",
    "keep", "recompute", "on_save_error",
)  # fmt: skip
"""Options that make no difference to a curve."""
MOST = 5  # differences in a label; runs that differ in more go by their names
BEYOND = 10
"""Times the median at which a linear axis ends: what a run writes as it diverges would flatten all
other curves. Runs begin at some 3 times theirs."""


def plot(names: Sequence[str], path: str, view: View) -> None:
    """Draw the curves of run folders into a .png or .svg file, replacing it.

    ``view`` says what the axes are.

    Raises
    ------
    InputError
        If a run is missing or has no losses yet, the picture cannot be made, or matplotlib is not
        installed.
    SaveError
        If the file cannot be written.
    """
    plots.check(path, "--output")
    folders = find(names)
    runs = [Watched(f, label) for f, label in zip(folders, labels(folders), strict=True)]
    for run in runs:
        for _ in run.news():
            pass
        if not (run.training.last or run.validating.last):
            raise InputError(f"{run.folder} has no losses yet: {run.fate()}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that no font here has
        plots.save(lambda figure: draw(figure, runs, view), path, "--output")


def labels(folders: Sequence[Path]) -> list[str]:
    """What to call runs: the options in which they differ; their names where that does not help."""
    options = [_options(folder) for folder in folders]
    keys = dict.fromkeys(key for each in options for key in each if key not in UNTOLD)
    differ = [key for key in keys if any(each.get(key) != options[0].get(key) for each in options)]
    texts = [", ".join(_fact(key, each[key]) for key in differ if key in each) for each in options]
    names = [str(folder) for folder in folders]
    if not differ or len(differ) > MOST:
        return names
    same = [texts.count(text) > 1 or not text for text in texts]
    return [
        f"{name}: {text}".removesuffix(": ") if twice else text
        for name, text, twice in zip(names, texts, same, strict=True)
    ]


def _options(folder: Path) -> dict[str, Any]:
    """A run's options; of ``epochs`` and ``max_steps`` only what limits the run is among them.

    None, if neither its checkpoint nor config.json can be read: the curves are worth seeing
    without.
    """
    config = advice.config_of(folder)
    if config is None:
        return {}
    limits = {"epochs": config.train.epoch_limit, "max_steps": config.train.max_steps}
    known = {name: value for name, value in config.options().items() if name not in limits}
    return known | {name: value for name, value in limits.items() if value is not None}


def _fact(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if value is None or isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, str):
        return value if name in ("model", "optimizer", "activation") else f"{words} {value}"
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {value:,}"


def draw(figure: Any, runs: Sequence[Watched], view: View) -> None:
    """Losses of ``runs`` on an empty figure."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes = figure.add_subplot()
    longest = max(max(table[view.x], default=0.0) for run in runs for table in _tables(run))
    unit, size = time_unit(longest) if view.x == "time" else (view.x, 1)
    drawn: list[float] = []
    for i, run in enumerate(runs):
        name = _plain(run.name)
        names = ["training", "validation"] if len(runs) == 1 else ["", name]
        faint, strong = _tables(run)
        if not strong["nats"]:
            names = [names[0] or f"{name} (training)", ""]
        styles: list[dict[str, Any]] = [{"alpha": 0.35, "linewidth": 1.0}, {"linewidth": 2.0}]
        if len(strong["nats"]) < 30:
            styles[1] |= {"marker": "o", "markersize": 4}
        for table, label, style in zip((faint, strong), names, styles, strict=True):
            x = [_drawn(value / size) for value in table[view.x]]
            y = [_drawn(view.loss(nats)) for nats in table["nats"]]
            axes.plot(x, y, color=f"C{i}", label=label or None, **style)
            drawn += y
    if len(runs) == 1:
        axes.set_title(_plain(f"{runs[0].name}  ({runs[0].about})"))
    if view.log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    elif known := [value for value in drawn if not math.isnan(value)]:
        low, high = min(known), BEYOND * median(known)
        if max(known) > high:
            axes.set_ylim(low - 0.05 * (high - low), high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.12g}"))
    axes.set_xlabel(f"time ({unit})" if view.x == "time" else unit)
    axes.set_ylabel(f"loss ({view.unit} per character)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(which="both", alpha=0.25, linewidth=0.6)
    title = "validation; faint: training" if len(runs) > 1 else None
    axes.legend(title=title, frameon=False)


def _plain(text: str) -> str:
    """A text as it is, and no formula."""
    return printable(text).replace("$", r"\$")


def _drawn(value: float) -> float:
    """NaN for what no run has and no axis holds."""
    return value if abs(value) < 1e100 else math.nan


def _tables(run: Watched) -> tuple[Any, Any]:
    return run.training, run.validating
