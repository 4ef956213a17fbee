"""Watches runs from outside, by the metrics files they write: a full-screen view, or plain lines.

`Follower` reads what a file grows by, `Watched` keeps what is shown of one run, `frame` makes a
screen of it, and `watch` goes round; `beside` does so between the steps of a run of this process.
Nothing is written to a run, and no lock of it is taken.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from charrnn import advice, runlog
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
from charrnn.config import Config
from charrnn.errors import InputError
from charrnn.monitor import REASONS, duration, units
from charrnn.table import Table
from charrnn.terminal import Screen, style_of, usable

Event = dict[str, Any]

BLOCK = 2**20  # bytes read at once: a screen stays responsive while a long file is opened
TAIL = 1024  # bytes before the place read up to that must not have changed
PATIENCE = 10.0  # seconds without a line after which a run no longer counts as running
READ_EVERY, LOOK_EVERY = 0.5, 0.1  # seconds between looks at the files, and at the keys
PACE = 400.0  # so that beside a trainer drawing takes at most 0.25 % of the processor's time
SLOW = 0.05  # of that for what a drawing takes by the clock: a slow terminal costs some %, too
LONGEST = 4000  # characters of a sample that a screen may need
BOLD, FAINT = "1", "2"
# Of runs: cyan, yellow, magenta, green, blue, red.
COLOURS = ("36", "33", "35", "32", "34", "31")
AXES = ("steps", "characters", "time")
ORDER = ("start", "train", "validation", "sample", "end")  # events of one step, as they are written
LN2 = math.log(2)


# -- files --------------------------------------------------------------------------------------


class Follower:
    """The complete lines of a file that grows, each once.

    A resumed run cuts its file back and writes on, which may happen between two looks and leave the
    file longer than before. So the bytes before the place are compared: they hold times, which are
    not the same again. The file is not kept open, since Windows could then not delete it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = self.size = 0
        self.written = 0.0  # seconds since the epoch
        self._tail = b""

    def read(self) -> list[bytes] | None:
        """Lines that came since, a megabyte at most; None if the file begins anew.

        Raises OSError if it cannot be read, or is not there.
        """
        with open(self.path, "rb", opener=runlog.regular) as file:
            file.seek(self.place - len(self._tail))
            same = file.read(len(self._tail)) == self._tail
            block = file.read(BLOCK) if same else b""
            facts = self.path.stat()
        self.size, self.written = facts.st_size, facts.st_mtime
        if not same:
            self.place, self._tail = 0, b""
            return None
        end = block.rfind(b"\n") + 1
        if not end and len(block) == BLOCK:  # no line of ours is so long: it counts as a bad one
            end = BLOCK
        self.place += end
        self._tail = (self._tail + block[:end])[-TAIL:]
        return block[:end].removesuffix(b"\n").split(b"\n") if end else []


def parsed(lines: Sequence[bytes]) -> list[Any]:
    """The JSON values of lines; None for a line that is none.

    Not `runlog.read`, which looks at each number by itself: a million lines are to open in seconds.
    """
    try:  # all at once is faster
        values = json.loads(b"[" + b",".join(lines) + b"]")
        if len(values) == len(lines):
            return values
    except (ValueError, RecursionError):
        pass
    return [_parsed(line) for line in lines]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def find(names: Sequence[str], root: str | Path = "runs") -> list[Path]:
    """The folders of the named runs; of none, the run below ``root`` that wrote metrics last.

    A name is that of a folder, or of a file in it.

    Raises
    ------
    InputError
        If there is no such run.
    """
    if not names:
        return [_newest(Path(root))]
    folders = [Path(name).parent if Path(name).is_file() else Path(name) for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist: name the folder of a run")
        metrics = folder / "metrics.jsonl"
        if metrics.exists():
            _check_readable(metrics)
        elif not (folder / "config.json").exists():
            raise InputError(f"{folder} holds no run: name the folder that charrnn train made")
    return list(dict.fromkeys(folders))


def _check_readable(path: Path) -> None:
    try:
        open(path, "rb", opener=runlog.regular).close()
    except OSError as error:
        raise InputError(
            f"cannot read the metrics {path}: {error.strerror or error}; allow reading it"
        ) from error


def _newest(root: Path) -> Path:
    paths = (path for path in root.rglob("metrics.jsonl") if path.is_file())
    newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
    if newest is None:
        raise InputError(
            f"there are no runs below {root}: make one with `charrnn train FILE`,"
            " or name a run folder"
        )
    return newest.parent


# -- one run ------------------------------------------------------------------------------------


class Watched:
    """What its files tell of one run.

    Attributes
    ----------
    start, best, sample, end : the newest of each, empty before there is one
    training : steps, characters, seconds (over all sessions) and what the ``train`` lines measure
    validating : steps, characters, seconds and validation losses, in nats per character
    alive : whether it is known to go on, however long it writes nothing
    reached : a step that it is known to have reached, whatever it has written
    advice : what its numbers say about it
    bad : lines that are no events
    trouble : why the file cannot be read, such as that it is gone
    """

    def __init__(self, folder: Path, name: str, alive: bool = False) -> None:
        self.folder, self.name, self.alive = folder, name, alive
        self.follower = Follower(folder / "metrics.jsonl")
        self._handlers = {kind: getattr(self, f"_on_{kind}") for kind in ORDER}
        self._begin()

    def _begin(self) -> None:
        self._config, self._course = advice.config_of(self.folder), advice.Course()
        self.clip, self.about = _described(self._config)
        self._advice: tuple[int, list[str]] = 0, []  # after so many events
        self.start: Event = {}
        self.best: Event = {}
        self.sample: Event = {}
        self.end: Event = {}
        self.training = Table(*AXES, "nats", "norm", "clipped", "rate", "speed")
        self.validating = Table(*AXES, "nats")
        self.bad = self.reached = 0
        self.trouble = ""
        self._earlier = self._seconds = self.interval = 0.0

    def news(self, deadline: float = math.inf) -> Iterator[Event | None]:
        """Each new event, once it is taken; None where the file begins anew.

        Stops at the end of the file, or a megabyte after the ``deadline`` (of `time.monotonic`).
        """
        while True:
            try:
                lines = self.follower.read()
            except OSError as error:
                gone = isinstance(error, FileNotFoundError)
                begun = bool(self.follower.place)
                self.trouble = "" if gone and not begun else "deleted" if gone else str(error)
                return
            self.trouble = ""
            if lines is None:
                self._begin()
                yield None
                continue
            for event in parsed(lines):
                if self._take(event):
                    yield event
            if not lines or time.monotonic() > deadline:
                return

    def _take(self, event: Any) -> bool:
        """Keep an event that is one of ours."""
        try:
            event["step"] = int(_finite(event["step"]))
            handler = self._handlers.get(event["event"])
            if handler is not None:  # else it is of a newer charrnn
                handler(event)
            self._course.take(event)
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError):
            self.bad += 1
            return False
        return True

    def _on_start(self, e: Event) -> None:
        if e["schema"] != runlog.SCHEMA:
            raise InputError(
                f"{self.follower.path} has schema {e['schema']!r}; this charrnn reads "
                f"{runlog.SCHEMA}: upgrade charrnn"
            )
        names = ("total_steps", "steps_per_epoch", "parameters", "batch_size", "seq_length")
        self.start = {name: max(int(_finite(e[name])), 1) for name in names}
        self.end = {}

    def _on_train(self, e: Event) -> None:
        chars, seconds = _finite(e["chars"]), self._clock(e)
        nats, norm = _real(e["nats_per_char"]), _real(e["grad_norm"])
        clipped, rate = _real(e["clipped"]), _real(e["learning_rate"])
        speed = _real(e["time"]["chars_per_second"])
        self.training.append((e["step"], chars, seconds, nats, norm, clipped, rate, speed))
        self.end = {}

    def _on_validation(self, e: Event) -> None:
        nats, best = _real(e["val_nats_per_char"]), _real(e["best_val_nats_per_char"])
        best_step = int(e["best_step"] or 0)
        seconds = self._clock(e)
        self.validating.append((e["step"], self._chars(e["step"]), seconds, nats))
        self.best = {"nats": best, "step": best_step}
        self.end = {}

    def _on_sample(self, e: Event) -> None:
        self.sample = {"step": e["step"], "text": str(e["text"])[:LONGEST]}

    def _on_end(self, e: Event) -> None:
        test, reason = _real(e["test_nats_per_char"]), str(e["reason"])
        self.end = {"reason": reason, "seconds": self._clock(e), "test": test}

    def _clock(self, event: Event) -> float:
        """Seconds of training so far; each session of a run counts its own from zero."""
        seconds = _finite(event["time"]["seconds"])
        if seconds < self._seconds:
            self._earlier += self._seconds
        elif self._seconds:  # a run that has begun; validations take longer than other lines
            self.interval = max(seconds - self._seconds, 0.97 * self.interval)
        self._seconds = seconds
        return self._earlier + seconds

    def _chars(self, step: int) -> float:
        """Characters that were trained on up to a step."""
        last = self.training.last
        if last and last["steps"]:
            return step * last["characters"] / last["steps"]
        return step * self.start.get("batch_size", 1) * self.start.get("seq_length", 1)

    @property
    def step(self) -> int:
        """How far the run is."""
        tables = self.training, self.validating
        return int(max(self.reached, *(table.last.get("steps", 0) for table in tables)))

    @property
    def advice(self) -> list[str]:
        """See `charrnn.advice`; none while much of the file is still to be read."""
        taken = self._course.taken
        if self._config is not None and self._advice[0] != taken and not self.unread:
            self._advice = taken, advice.advice(self._course, self._config)
        return self._advice[1]

    @property
    def unread(self) -> bool:
        """Whether much of the file is still to be read."""
        return not self.trouble and self.follower.size - self.follower.place > BLOCK

    def left(self) -> float | None:
        """Seconds to go, by the newest speed; None if there is no telling."""
        speed = self.training.last.get("speed", math.nan)
        if not (self.start and speed > 0):
            return None
        steps = max(self.start["total_steps"] - self.step, 0)
        seconds = steps * self.start["batch_size"] * self.start["seq_length"] / speed
        return seconds if math.isfinite(seconds) else None

    def state(self, now: float) -> str:
        """In words, at ``now`` (of `time.time`), whether it goes on."""
        silence, size = now - self.follower.written, self.follower.size
        if self.trouble:
            return self.trouble
        if self.unread:
            return f"reading {100 * self.follower.place // size}%"
        if self.end:
            reason = REASONS.get(self.end["reason"], self.end["reason"])
            return f"{reason} after {duration(self.end['seconds'])}"
        if not self.follower.written:
            return "waiting for its first line"
        if not self.alive and silence > PATIENCE + 5 * self.interval:
            return f"no news for {duration(silence)}"
        left = self.left()
        return "running" if left is None else f"running, {duration(left)} left"


def _finite(value: Any) -> float:
    """A number without which an event has no place; ValueError if it is not finite."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _real(value: Any) -> float:
    """A number of an event; NaN for the null that stands for one that is not finite."""
    return math.nan if value is None else float(value)


def _described(config: Config | None) -> tuple[float, str]:
    """The clipping threshold, 0 for none, and the model in words."""
    if config is None:
        return 0.0, ""  # the curves are worth seeing without
    model = config.model
    return config.train.grad_clip, f"{model.model} {model.num_layers}x{model.hidden_size}"


# -- the screen ---------------------------------------------------------------------------------


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


# -- going round --------------------------------------------------------------------------------


def watch(names: Sequence[str], keys: TextIO | None, stream: TextIO) -> None:
    """Show runs until the user quits; without a terminal, until nobody trains them.

    Parameters
    ----------
    names : run folders; none is the newest run below ``runs/``
    keys, stream : where keys come from, and where the view goes

    Raises
    ------
    InputError
        If there is no such run, or one was written by a newer charrnn.
    """
    folders = find(names)
    short = [folder.resolve().name for folder in folders]
    alone = len(folders) == 1 or len(set(short)) < len(short)
    runs = [Watched(f, str(f) if alone else n) for f, n in zip(folders, short, strict=True)]
    if keys is not None and usable(keys, stream):
        _show(runs, keys, stream)
    else:
        _write_lines(runs, stream)


def _show(runs: Sequence[Watched], keys: TextIO, stream: TextIO) -> None:
    with Screen(keys, stream) as screen:
        display = _Display(runs, screen)
        while display.turn(LOOK_EVERY):
            pass


def beside(
    events: Iterable[Event], folder: Path, keys: TextIO | None, stream: TextIO
) -> Iterator[Event]:
    """Show a run of this process while its events come; they are passed on when the view closes.

    It opens with the first step and closes at the end of the run, by ``q`` or by a signal. What was
    passed by meanwhile is passed on then, the steps and what else is in the metrics left out: a bar
    behind it writes what it would have written, and goes on. Without a terminal it never opens.
    """
    source = iter(events)
    held: list[Event] = []
    if keys is not None and usable(keys, stream):
        for event in source:
            yield event
            if event["event"] == "step":
                break
        else:
            return
        try:
            _accompany(source, held, Watched(folder, str(folder), True), keys, stream)
        except Exception:
            yield from held
            raise
    yield from held
    yield from source


def _accompany(
    events: Iterator[Event], held: list[Event], run: Watched, keys: TextIO, stream: TextIO
) -> None:
    """Show ``run`` while events come; those that a bar would show are added to ``held``."""
    for _ in run.news(time.monotonic() + READ_EVERY):  # what a resumed run did before
        pass
    with Screen(keys, stream) as screen:
        display, due = _Display([run], screen, View(leave="to the bar"), PACE), 0.0
        for event in events:
            run.reached = event["step"]
            if event["event"] in ("note", "validation", "sample", "checkpoint", "end"):
                held.append(event)
            if event["event"] == "end" or screen.left:
                return
            now = time.monotonic()
            if now >= due:
                due = now + LOOK_EVERY
                try:
                    if not display.turn(0.0):
                        return
                except OSError:  # the terminal is gone; the run goes on
                    return


class _Display:
    """Runs on a screen. After a second's work it rests ``pace`` seconds, unless a key comes.

    Work is the processor's: on a busy machine the clock would make the rests many seconds long.
    """

    def __init__(
        self, runs: Sequence[Watched], screen: Screen, view: View = View(), pace: float = 0.0
    ) -> None:
        self.runs, self.screen, self.view, self.pace = runs, screen, view, pace
        self.style = style_of(screen.stream)
        self.due = self.rested = 0.0  # when to read, and when to work at all
        self.version = 0  # of what has been read
        self.shown: tuple[Any, ...] = ()  # what the lines were made of
        self.lines: list[str] = []

    def turn(self, seconds: float) -> bool:
        """Read, draw, and wait so long for keys; False if the user quits."""
        begin, size, worked = time.monotonic(), self.screen.size(), time.thread_time()
        if begin >= max(self.due, self.rested):
            self.version += sum(1 for run in self.runs for _ in run.news(begin))
            unread = any(run.unread for run in self.runs)
            self.due = begin if unread else time.monotonic() + READ_EVERY
        if self.shown and size != self.shown[0]:
            self.screen.clear()
        wanted = size, self.view, self.version, int(time.time())
        asked = wanted[:2] != self.shown[:2]
        if asked or (wanted != self.shown and begin >= self.rested):
            self.lines = frame(self.runs, self.view, *size, self.style, time.time())
            self.shown = wanted
        self.screen.show(self.lines)
        now, worked = time.monotonic(), time.thread_time() - worked
        self.rested = max(self.rested, now + self.pace * (worked + SLOW * (now - begin)))
        for key in self.screen.keys(max(min(seconds, self.due - now), 0.0)):
            if key in "qQ":
                return False
            self.view = self.view.pressed(key)
        return True


def _write_lines(runs: Sequence[Watched], stream: TextIO) -> None:
    logs = [_Lines(run, f"{run.name}: " if len(runs) > 1 else "") for run in runs]
    while True:
        going_on = any([runlog.held(run.folder) for run in runs])  # before the last lines are read
        for log in logs:
            for line in log.new():
                stream.write(line + "\n")
        stream.flush()
        if not going_on:
            return
        time.sleep(READ_EVERY)


class _Lines:
    """The events of a run as lines, each once also where a resumed run repeats them."""

    def __init__(self, run: Watched, prefix: str) -> None:
        self.run, self.prefix = run, prefix
        self.last = (-1, 0)  # step and kind of the last line
        self.repeating = False
        self.trouble = ""

    def new(self) -> Iterator[str]:
        for event in self.run.news():
            if event is None:
                self.repeating = True
            elif event["event"] in ORDER:
                at = event["step"], ORDER.index(event["event"])
                if not self.repeating or at > self.last:
                    self.repeating, self.last = False, at
                    yield self.prefix + _line(self.run, event["event"])
                    if event["event"] == "end":
                        yield from (f"{self.prefix}advice: {line}" for line in self.run.advice)
        if self.run.trouble:
            if self.run.trouble != self.trouble:
                yield f"{self.prefix}{self.run.follower.path}: {self.run.trouble}"
            self.last = (-1, 0)  # what comes in its place is another run
        self.trouble = self.run.trouble


def _line(run: Watched, kind: str) -> str:
    """The event that a run has just taken, in one line."""
    start, train, val, end = run.start, run.training.last, run.validating.last, run.end
    match kind:
        case "start":
            size = f"{start['batch_size']} x {start['seq_length']} characters"
            return f"{start['total_steps']:,} steps of {size}, {start['parameters']:,} parameters"
        case "train":
            return (
                f"step {train['steps']:,}  training {units(train['nats'])}  "
                f"learning rate {train['rate']:.3g}  gradient norm {train['norm']:.3g}  "
                f"{train['speed']:,.0f} chars/s"
            )
        case "validation":
            best = "  (best)" if run.best["step"] == val["steps"] else ""
            return f"step {val['steps']:,}  validation {units(val['nats'])}{best}"
        case "sample":
            text = json.dumps(run.sample["text"], ensure_ascii=False)
            return f"step {run.sample['step']:,}  sample {text}"
    return f"{REASONS.get(end['reason'], end['reason'])} after {duration(end['seconds'])}"
