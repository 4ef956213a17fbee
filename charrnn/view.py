"""What a screen shows of watched runs: curves, numbers, the newest sample."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from charrnn.chart import (
    Piece,
    Rule,
    Series,
    Style,
    chart,
    columns_of,
    cut,
    paint,
    printable,
    sparkline,
)
from charrnn.watched import AXES, Watched
from charrnn.words import units

BOLD, FAINT = "1", "2"
# Of runs: cyan, yellow, magenta, green, blue, red.
COLOURS = ("36", "33", "35", "32", "34", "31")
LN2 = math.log(2)


@dataclass(frozen=True)
class View:
    """What the keys change."""

    x: str = "steps"
    log: bool = False
    bits: bool = False
    help: bool = True
    leave: str = "quit"

    def pressed(self, key: str) -> View:
        """The view after a key; the same for one without meaning."""
        match key.lower():
            case "x":
                return dataclasses.replace(self, x=AXES[(AXES.index(self.x) + 1) % len(AXES)])
            case "l":
                return dataclasses.replace(self, log=not self.log)
            case "u":
                return dataclasses.replace(self, bits=not self.bits)
            case "?":
                return dataclasses.replace(self, help=not self.help)
        return self

    @property
    def unit(self) -> str:
        return "bits" if self.bits else "nats"

    def loss(self, nats: float) -> float:
        """A loss in the unit that is shown."""
        return nats / LN2 if self.bits else nats


def frame(
    runs: Sequence[Watched], view: View, width: int, height: int, style: Style, now: float
) -> list[str]:
    """A screen: ``height`` lines of ``width`` columns, whatever the size.

    ``now`` is that of `time.time`.
    """
    wide = width >= 120 and height >= 30  # room for charts of all that is measured
    if len(runs) == 1:
        title, facts = _title(runs[0], width, now), _facts(runs[0], width, style, not wide)
        facts += _advised(runs[0], width, height)
    else:
        title, facts = _titles(runs, now), _table(runs, view, width, style, now)
    facts = facts[: max(height - 8, 0)]
    room = height - 1 - len(facts) - view.help
    sample = _sample(runs, width, min(room - 12, max(height // 8, 3)), style)
    room = max(room - len(sample), 0)
    side = width * 2 // 5 if wide else 0
    charts = _losses(runs, view, width - side, room, style)
    if wide:
        measures = _measures(runs, view, side, room, style)
        charts = [left + right for left, right in zip(charts, measures, strict=True)]
    head, *texts = [paint(line, width, style) for line in [title, *facts, *sample]]
    help = [paint([(_keys(view), FAINT)], width, style)] if view.help else []
    return [head, *charts, *texts, *help][:height]


def _keys(view: View) -> str:
    scale = "logarithmic" if view.log else "linear"
    return f" q {view.leave}   x axis: {view.x}   l {scale}   u {view.unit}   ? hide this line"


def _title(run: Watched, width: int, now: float) -> list[Piece]:
    """The name and the model at the left, the state at the right."""
    state = run.state(now) + (f", bad lines: {run.bad}" if run.bad else "") + " "
    parameters = f", {run.start['parameters']:,} parameters" if run.start else ""
    name, about = f" {run.name}", f"  {run.about}{parameters}"
    about = cut(about, width - columns_of(name + state) - 2)
    name = cut(name, width - columns_of(about + state) - 2)
    gap = width - columns_of(name + about + state)
    return [(name, BOLD), (about + " " * gap, ""), (state, BOLD)]


def _titles(runs: Sequence[Watched], now: float) -> list[Piece]:
    running = sum(run.state(now).startswith("running") for run in runs)
    return [(f" {len(runs)} runs, {running} running", BOLD)]


def _losses(
    runs: Sequence[Watched], view: View, width: int, height: int, style: Style
) -> list[str]:
    """Training and validation losses of all runs."""
    alone, mark = len(runs) == 1, "●" if style.unicode else "o"
    label = f"{view.unit} per character"
    if not alone:
        label += f" ({mark} validation)" if style.colour else " (capitals: validation)"
    training, validation = [], []  # drawn above
    for i, run in enumerate(runs):
        x, y = run.training[view.x], [view.loss(nats) for nats in run.training["nats"]]
        val_x, val_y = run.validating[view.x], map(view.loss, run.validating["nats"])
        curve = Series("training", x, y, COLOURS[0], letter=".")
        points = Series("validation", val_x, list(val_y), COLOURS[1], mark, mark, style.colour)
        if not alone:
            c, letter = _sign(i)
            dots = "" if style.colour else letter  # without colours, letters tell runs apart
            curve = Series(run.name, x, y, c, dots, letter, style.colour)
            mark_of = mark if style.colour else letter.upper()
            points = Series("", val_x, points.y, c, mark_of, letter, style.colour)
        training.append(curve)
        validation.append(points)
    return _chart([*training, *validation], label, view, width, height, style, view.log)


def _sign(i: int) -> tuple[str, str]:
    """Colour and letter of the i-th of several runs."""
    return COLOURS[i % len(COLOURS)], chr(ord("a") + i % 26)


def _measures(
    runs: Sequence[Watched], view: View, width: int, height: int, style: Style
) -> list[str]:
    """Charts of the learning rate, the gradient's norm and the speed, one below the other."""
    clips = sorted({run.clip for run in runs if run.clip})
    charts = {
        "learning rate": ("rate", [], False),
        "gradient norm": ("norm", [Rule(clip, f"clip {clip:g}") for clip in clips], view.log),
        "characters per second": ("speed", [], False),
    }
    lines: list[str] = []
    for place, (label, (column, rules, log)) in enumerate(charts.items()):
        series = [
            Series(
                "", run.training[view.x], run.training[column], *_sign(i)[:1], letter=_sign(i)[1]
            )
            for i, run in enumerate(runs)
        ]
        share = height * (place + 1) // len(charts) - len(lines)
        lines += _chart(series, label, view, width, share, style, log, rules)
    return lines


def _chart(
    series: Sequence[Series],
    label: str,
    view: View,
    width: int,
    height: int,
    style: Style,
    log: bool,
    rules: Sequence[Rule] = (),
) -> list[str]:
    """A chart over the x axis that the view has; time in a unit that suits its length."""
    x_label = view.x
    if view.x == "time":
        longest = max((x for s in series for x in s.x), default=0.0)
        x_label, unit = time_unit(longest)
        series = [dataclasses.replace(s, x=[x / unit for x in s.x]) for s in series]
    labels = {"x_label": x_label, "y_label": f" {label}"}
    return chart(series, width, height, **labels, log=log, rules=rules, style=style)


def time_unit(longest: float) -> tuple[str, int]:
    """The unit that suits an axis of so many seconds, and its seconds."""
    units = ((120, "seconds", 1), (7200, "minutes", 60), (172800, "hours", 3600))
    return next(((name, unit) for most, name, unit in units if longest <= most), ("days", 86400))


def _facts(run: Watched, width: int, style: Style, sparks: bool) -> list[list[Piece]]:
    """The newest numbers of a run, each measure with its course."""
    start, table, best = run.start, run.training, run.best
    train, val = table.last, run.validating.last
    rows: list[tuple[str, str, str]] = []  # name, facts, column of the table
    if start:
        total, per_epoch = start["total_steps"], start["steps_per_epoch"]
        epochs = f"epoch {run.step / per_epoch:,.1f} of {total / per_epoch:,.1f}"
        rows.append(("step", f"{run.step:,} of {total:,}, {epochs}", ""))
    if train:
        rows.append(("training", units(train["nats"]), ""))
    if val:
        rows.append(("validation", f"{units(val['nats'])}  step {val['steps']:,}", ""))
        ago = run.step - best["step"]
        when = f"step {best['step']:,}"
        when += f", {ago:,} steps ago" if ago and width >= 100 else ""
        rows.append(("best", f"{units(best['nats'])}  {when}", ""))
    if not math.isnan(run.end.get("test", math.nan)):
        rows.append(("test", units(run.end["test"]), ""))
    if train:
        norm = f"{train['norm']:.3g}"
        if run.clip:
            clipped = [share for share in table["clipped"] if share >= 0]
            share = sum(clipped) / max(len(clipped), 1)
            norm += f", clip {run.clip:g}, {share:.0%} of steps clipped"
        rows.append(("learning rate", f"{train['rate']:.3g}", "rate"))
        rows.append(("gradient norm", norm, "norm"))
        rows.append(("speed", f"{train['speed']:,.0f} characters/s", "speed"))
    lines: list[list[Piece]] = []
    for name, text, column in rows:
        spark = sparkline(table[column], min(width - 56, 60), style) if column and sparks else ""
        lines.append([(f" {name:<14}", FAINT), (f"{text:<38}  " if spark else text, "")])
        lines[-1].append((spark, COLOURS[0]))
    return lines


def _advised(run: Watched, width: int, height: int) -> list[list[Piece]]:
    """What the numbers of a run say about it, in a sixth of the screen at the most."""
    lines: list[list[Piece]] = []
    for sentence in run.advice:
        for i, text in enumerate(textwrap.wrap(sentence, max(width - 16, 20))):
            lines.append([(f" {'' if i else 'advice':<14}", FAINT), (text, "")])
    return lines[: height // 6]


def _table(
    runs: Sequence[Watched], view: View, width: int, style: Style, now: float
) -> list[list[Piece]]:
    """A line for each run, below one that names the columns."""
    head = ["step", "training", "validation", "best", "at step"]
    head += ["learning rate", "gradient norm", "chars/s"] if width >= 120 else []
    rows = [head]
    for run in runs:
        train, val, best = run.training.last, run.validating.last, run.best
        losses = [table.get("nats") for table in (train, val, best)]
        row = [f"{run.step:,}"]
        row += ["-" if nats is None else f"{view.loss(nats):.3f}" for nats in losses]
        row += [f"{best['step']:,}" if best else "-"]
        if len(head) > len(row):
            row += [f"{train[name]:.3g}" if train else "-" for name in ("rate", "norm")]
            row += [f"{train['speed']:,.0f}" if train else "-"]
        rows.append(row)
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *texts = ["  ".join(map(str.rjust, row, sizes)) for row in rows]
    size = min(max(columns_of(run.name) for run in runs), width // 5)
    lines: list[list[Piece]] = [[(" " * (size + 5) + f"{first}  {view.unit}/char", FAINT)]]
    for i, (run, text) in enumerate(zip(runs, texts, strict=True)):
        colour, letter = _sign(i)
        sign = "⠤" if style.colour and style.unicode else letter
        name = cut(run.name, size)
        name += " " * (size - columns_of(name))
        lines.append([(f" {sign} {name}", colour), (f"  {text}  {run.state(now)}", "")])
    return lines


def _sample(runs: Sequence[Watched], width: int, height: int, style: Style) -> list[list[Piece]]:
    """The newest sample, as much of it as ``height`` lines hold below their heading."""
    sampled = [run for run in runs if run.sample]
    if height < 2 or not sampled:
        return []
    run = max(sampled, key=lambda run: (run.follower.written, run.sample["step"]))
    of = f" of {run.name}" if len(runs) > 1 else ""
    lines: list[list[Piece]] = [[(f" sample{of} at step {run.sample['step']:,}", FAINT)]]
    for line in run.sample["text"].splitlines():
        line = printable(line, style)
        while line and len(lines) < height:
            piece = cut(line, max(width - 2, 2))
            lines.append([(f" {piece}", "")])
            line = line[len(piece) :]
    return lines
