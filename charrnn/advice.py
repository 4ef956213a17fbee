"""What the numbers of a run say about it, in a plain sentence or two; mostly nothing.

`Course` keeps what is needed of a run's events, each rule is a function from a course and the run's
config to a sentence, empty if the numbers do not support it, and `advice` chooses among them. All
comes from the metrics, so that the trainer's summary and ``charrnn monitor`` say the same. The
thresholds were set by real runs; docs/advice.md has them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from charrnn import runlog
from charrnn.config import Config
from charrnn.errors import InputError
from charrnn.table import Table

Event = Mapping[str, Any]
Row = tuple[float, ...]

MOST = 2
"""Sentences at the most."""

FEWEST = 8
"""Validations, or training lines, below which a curve has no shape."""

SCATTERS = 4.0
"""How many times its scatter a change of the validation loss must be."""

OVERFIT, AFTER = 0.02, 3
"""A rise of the validation loss, as a share of the lowest, that is worth stopping for; and
validations that must have come since the lowest."""

MEMORISED = 0.05
"""Share of sampled passages in the training text beyond twice that of held-out text (a sample has a
lower temperature, which favours common phrases). Good runs had at most 0.01 in all."""

UNLEARNED = 0.25
"""A rise of the loss that undoes this share of what was learned is no noise: good runs have at most
0.05, ruined ones 0.9 and more."""

CLIPPED = 0.5
"""Share of steps: "most"."""

UNIFORM = ("sgd", "momentum")
"""Optimizers whose update is as small as clipping makes the gradient. The others divide by the
gradient's own size: lstm 1x128 with --grad-clip 0.02, which clipped every step, came to 1.812
with adamw, 1.817 without clipping; with sgd to 2.327, 1.938 without."""

STEADY = 3.0
"""How far the ninth decile of the gradient's norm may be above its median. Beyond, clipping catches
outbursts, which is what it is for."""

SLOW, STEEP = 0.008, 0.15
"""Update of the recurrent weights, as a share of their norm, and nats that the loss fell over the
last doubling of the steps. Where both held, two to four times the rate was better by 0.09 to 0.33
nats."""

SHORTEST, LONGEST = 16, 32
"""Characters back at which the gradient is looked at: a quarter of the window, within these."""

FAINT = 2e-4
"""Share of a gradient that is left there when it counts as vanished. After 16 characters gated
cells have 1e-3 to 3e-2, tanh 2e-3 and sigmoid 8e-5; after 32 gated cells have 5e-4 to 5e-3, tanh
4e-6."""

EARLY = 500
"""Steps in which the reach is still growing."""

FALLING = 0.05
"""Nats that the loss must have fallen over the last doubling of the steps at a high rate: twice the
run then gave 0.03 to 0.15."""

GAP, LATE = 0.5, 0.25
"""The gap between validation and training may have grown by this share of that fall, else it is
the training text alone that is still being learned; and the best validation must be in this last
part of the run."""


class Course:
    """What the rules need of a run; whatever its length, some hundred kilobytes.

    Attributes
    ----------
    vocab_size, steps_per_epoch : what the newest start event says
    reason : why the run ended; empty while it goes on
    sampled, held_out : shares of passages found in the training text, see `charrnn.memorised`
    training, validating, gradients : rows of numbers, those that are not finite left out
    taken : events so far
    """

    def __init__(self) -> None:
        self.vocab_size = self.steps_per_epoch = 0.0
        self.reason = ""
        self.sampled = self.held_out = 0.0
        self.training = Table("step", "nats", "norm", "clipped", "rate")
        self.validating = Table("step", "nats")
        self.gradients = Table("step", "lag", "share", "change")
        self.taken = 0

    def take(self, event: Event) -> None:
        """Keep what matters of an event.

        Raises
        ------
        KeyError, TypeError, ValueError, OverflowError
            If it is not as `charrnn.runlog` describes it.
        """
        self.taken += 1
        kind = event["event"]
        if kind in ("start", "train", "validation"):
            self.reason, self.sampled, self.held_out = "", 0.0, 0.0
        match kind:
            case "start":
                self.vocab_size = float(event.get("vocab_size", 0))
                self.steps_per_epoch = float(event["steps_per_epoch"])
            case "end":
                self.reason = str(event["reason"])
                shares = event.get("memorised") or {"sampled": 0, "held_out": 0}
                self.sampled, self.held_out = float(shares["sampled"]), float(shares["held_out"])
            case "train":
                names = ("step", "nats_per_char", "grad_norm", "clipped", "learning_rate")
                self._append(self.training, [event[name] for name in names])
            case "validation":
                self._append(self.validating, [event["step"], event["val_nats_per_char"]])
            case "gradients":
                row = [event["step"], *_left(event["reach"]), _change(event)]
                self._append(self.gradients, row)

    def _append(self, table: Table, values: Sequence[Any]) -> None:
        row = tuple(math.nan if value is None else float(value) for value in values)
        if all(map(math.isfinite, row)):
            table.append(row)


def _left(reach: Event) -> tuple[int, float]:
    """How far back the gradient is looked at, and the share of it there; 0 in short windows."""
    farthest = min(reach["window"] // 4, LONGEST)
    lag = max((lag for lag in reach["lags"] if SHORTEST <= lag <= farthest), default=0)
    if reach["shares"] is None:  # no gradient at all
        return lag, 0.0
    return lag, dict(zip(reach["lags"], reach["shares"], strict=True)).get(lag, 1.0)


def _change(event: Event) -> float | None:
    """Largest update of a layer's recurrent weights in one step, as a share of their norm."""
    updates, weights = event["update_norms"], event["weight_norms"]
    names = [name for name in weights if str(name).endswith(".Wh") and weights[name]]
    return max((updates[name] / weights[name] for name in names), default=None)


def advice(course: Course, config: Config) -> list[str]:
    """At most `MOST` sentences, the most important first."""
    fit = [rule(course, config) for rule in (overfitting, memorised)]
    # Of these each can be the consequence of one before it.
    causes = (too_high, clipped, too_low, vanishing, falling)
    cause = next(filter(None, (rule(course, config) for rule in causes)), "")
    return [sentence for sentence in [*fit, cause] if sentence][:MOST]


def of(folder: Path) -> list[str]:
    """`advice` on the run in a folder; none if its files cannot be read."""
    config, course = config_of(folder), Course()
    if config is None:
        return []
    try:
        for event in runlog.read(folder / "metrics.jsonl"):
            course.take(event)
    except (OSError, InputError, KeyError, TypeError, ValueError, OverflowError):
        return []
    return advice(course, config)


def config_of(folder: Path) -> Config | None:
    """The config of the run in a folder; None if it cannot be read.

    As its last checkpoint has it, because a resumed run may have got other options than those in
    config.json; as config.json has it, if there is no checkpoint.
    """
    from charrnn import checkpoint  # with it NumPy, which ``charrnn --help`` need not wait for

    readers: tuple[Callable[[], Any], ...] = (
        lambda: checkpoint.read_metadata(folder / "last.safetensors", "config")[0],
        lambda: runlog.read_json(folder / "config.json")["config"],
    )
    for read in readers:
        with contextlib.suppress(OSError, InputError, LookupError, TypeError):
            return Config.from_json(read())
    return None


# -- the rules ----------------------------------------------------------------------------------


def overfitting(course: Course, config: Config) -> str:
    """The validation loss rises, beyond its scatter, while the training loss falls."""
    rows = list(_rows(course.validating, "step", "nats"))
    best = min(range(len(rows)), key=lambda i: rows[i][1], default=0)
    if len(rows) - 1 - best < AFTER:
        return ""
    (step, lowest), (last, now) = rows[best], rows[-1]
    # Where the rate is high, the loss goes up and down by some 2 % within each epoch.
    epoch = [nats for at, nats in rows if at > last - course.steps_per_epoch]
    after = min([*epoch, *(nats for _, nats in rows[-AFTER:])])
    if after - lowest < max(OVERFIT * lowest, SCATTERS * _scatter(rows)):
        return ""
    then = [nats for at, nats in _rows(course.training, "step", "nats") if at <= step]
    newest = course.training["nats"][-5:]
    if len(then) < 5 or median(newest) >= median(then[-5:]):
        return ""
    train, model = config.train, config.model
    stop = "" if train.patience else f", or stop earlier (--patience {AFTER})"
    return (
        f"overfitting since step {step:,.0f}: validation rose from {lowest:.3f} to {now:.3f} "
        f"nats/char while training fell to {median(newest):.3f}; try more --dropout (now "
        f"{model.dropout:g}) or a smaller --hidden-size (now {model.hidden_size}){stop}"
    )


def memorised(course: Course, config: Config) -> str:
    """Samples repeat the training text clearly more often than held-out text does."""
    if course.sampled < MEMORISED + 2 * course.held_out:
        return ""
    return (
        f"memorised passages: {course.sampled:.0%} of the 20-character passages that it writes "
        f"stand in the training text (of held-out text {course.held_out:.0%}); try more "
        f"--dropout (now {config.model.dropout:g}), a smaller --hidden-size (now "
        f"{config.model.hidden_size}) or more text"
    )


def too_high(course: Course, config: Config) -> str:
    """The loss lost a good part of what had been learned: in training, and in validation or above
    that of guessing, because a change of the text's kind can do the first alone."""
    if len(course.training["step"]) < FEWEST or course.vocab_size < 2:
        return ""
    guessing = math.log(course.vocab_size)
    smooth = list(_smooth(list(_rows(course.training, "step", "nats"))))
    (step, low), (top, high) = _rise(smooth)
    (_, val_low), (_, val_high) = _rise(list(_rows(course.validating, "step", "nats")))
    if high - low < UNLEARNED * (guessing - low):
        return ""
    if high < guessing and val_high - val_low < UNLEARNED * (guessing - val_low):
        return ""
    return (
        f"learning rate too high: the training loss rose from {low:.3f} nats/char at step "
        f"{step:,.0f} to {high:.3f} at step {top:,.0f}; try a third of --learning-rate (now "
        f"{config.train.peak_learning_rate:g})"
    )


def clipped(course: Course, config: Config) -> str:
    """Most steps are clipped, without outbursts, and the optimizer's updates shrink by it."""
    train = config.train
    rows = list(_rows(course.training, "clipped", "norm"))
    rows = rows[len(rows) // 2 :]
    if len(rows) < FEWEST or not train.grad_clip or train.optimizer not in UNIFORM:
        return ""
    share = sum(share for share, _ in rows) / len(rows)
    norms = sorted(norm for _, norm in rows)
    middle, ninth = median(norms), norms[len(norms) * 9 // 10]
    if share <= CLIPPED or middle <= train.grad_clip or ninth > STEADY * middle:
        return ""
    return (
        f"the gradient was clipped in {share:.0%} of the steps of the second half: its norm is "
        f"{middle:.2g}, so {train.optimizer} moves only {train.grad_clip / middle:.0%} as far; try "
        f"--grad-clip {2 * ninth:.1g} (now {train.grad_clip:g})"
    )


def too_low(course: Course, config: Config) -> str:
    """The weights hardly change where the rate is high, and the loss falls steeply all the same."""
    last = _last_fast(course, config)
    changes = [
        change
        for step, change in _rows(course.gradients, "step", "change")
        if last / 2 <= step <= last
    ]
    fall = _fall(course, config)
    if len(changes) < 4 or fall < STEEP or median(changes) >= SLOW:
        return ""
    return (
        f"learning rate too low: a step changes the recurrent weights by {median(changes):.1%}, "
        f"while from step {last / 2:,.0f} to {last:,.0f} validation fell by {fall:.2f} nats/char; "
        f"try three times --learning-rate (now {config.train.peak_learning_rate:g})"
    )


def vanishing(course: Course, config: Config) -> str:
    """Hardly anything of the gradient is left 16 or 32 characters back."""
    rows = list(_rows(course.gradients, "step", "lag", "share"))
    rows = rows[len(rows) // 2 :]
    if len(rows) < FEWEST // 2:
        return ""
    step, lag, left = (median(column) for column in zip(*rows, strict=True))
    if step < EARLY or not lag or left >= FAINT:
        return ""
    model = config.model
    return (
        f"the gradient vanishes: {lag:.0f} characters back only {left:.1g} of it is left; see "
        f"charrnn gradients, and try another --model or --activation (now {model.model}, "
        f"{model.activation}), or a shorter --seq-length"
    )


def falling(course: Course, config: Config) -> str:
    """The run ended while training and validation losses fell together.

    Asked where the rate was still high: at the end of a schedule the loss falls because the rate
    does, and is level because the rate is zero; neither says what more steps would give.
    """
    rows = list(_rows(course.validating, "step", "nats"))
    fall, last = _fall(course, config), _last_fast(course, config)
    if course.reason != "finished" or fall < max(FALLING, SCATTERS * _scatter(rows)):
        return ""
    steps = rows[-1][0]
    best, _ = min(rows, key=lambda row: row[1])
    gaps = [_gap(course, step, _width(course, last)) for step in (last / 2, steps)]
    if best < steps * (1 - LATE) or not gaps[1] - gaps[0] < GAP * fall:
        return ""
    return (
        f"still falling: validation fell by {fall:.2f} nats/char from step {last / 2:,.0f} to "
        f"{last:,.0f}, and training is not ahead of it; train longer (--max-steps "
        f"{2 * steps:.0f}, now {steps:.0f})"
    )


# -- curves -------------------------------------------------------------------------------------


def _rows(table: Table, *names: str) -> Iterator[Row]:
    return zip(*(table[name] for name in names), strict=True)


def _scatter(rows: Sequence[Row]) -> float:
    """Standard deviation of the latest losses around their trend, robustly: by second differences,
    in which a straight line is nothing and white noise of deviation 1 has root 6."""
    nats = [row[1] for row in rows[-2 * FEWEST :]]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(nats, nats[1:], nats[2:], strict=False)]
    return 1.4826 * median(bends) / math.sqrt(6) if bends else 0.0


def _smooth(rows: Sequence[Row]) -> Iterator[Row]:
    """The median of every three successive losses, at the middle one's step."""
    for before, (step, nats), after in zip(rows, rows[1:], rows[2:], strict=False):
        yield step, median((before[1], nats, after[1]))


def _rise(rows: Sequence[Row]) -> tuple[Row, Row]:
    """The row of a minimum and a later row: of all such pairs, the one that rises most."""
    low: Row = (0.0, math.inf)
    most: tuple[Row, Row] = ((0.0, 0.0), (0.0, 0.0))
    for row in rows:
        low = min(low, row, key=lambda row: row[1])
        most = max(most, (low, row), key=lambda pair: pair[1][1] - pair[0][1])
    return most


def _last_fast(course: Course, config: Config) -> float:
    """The last step at which the rate was at least half of its peak; 0 if there is none."""
    peak = config.train.peak_learning_rate
    fast = (step for step, rate in _rows(course.training, "step", "rate") if rate >= peak / 2)
    return max(fast, default=0.0)


def _fall(course: Course, config: Config) -> float:
    """Nats that the validation loss fell while the steps doubled, the rate being high all the time.

    Zero if there are too few validations, or the first half of that was in the warm-up.
    """
    rows, last = list(_rows(course.validating, "step", "nats")), _last_fast(course, config)
    if len(rows) < FEWEST:
        return 0.0
    width, warmup = _width(course, last), min(config.train.warmup_steps, rows[-1][0] / 10)
    before, after = (_mean(rows, step, width) for step in (last / 2, last))
    if last / 2 - width < warmup or not math.isfinite(before - after):
        return 0.0
    return before - after


def _width(course: Course, last: float) -> float:
    """Steps over which losses are taken together: an epoch, over which a loss goes up and down as
    the text does that was read last, or less if the run has little of it."""
    return min(course.steps_per_epoch, last / 4)


def _gap(course: Course, step: float, width: float) -> float:
    """How far validation is above training at a step."""
    tables = course.validating, course.training
    val, train = (_mean(list(_rows(t, "step", "nats")), step, width) for t in tables)
    return val - train


def _mean(rows: Sequence[Row], step: float, width: float) -> float:
    """Mean of the losses in the ``width`` steps up to ``step``; NaN if there are none."""
    losses = [nats for at, nats in rows if step - width < at <= step]
    return sum(losses) / len(losses) if losses else math.nan


Rule = Callable[[Course, Config], str]
RULES: tuple[Rule, ...] = (overfitting, memorised, too_high, clipped, too_low, vanishing, falling)
