"""What its metrics file tells of a run that somebody else trains: followed as it grows.

Nothing is written to a run; its lock is looked at when it falls silent, see `runlog.held`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from charrnn import advice, runlog
from charrnn.config import Config
from charrnn.errors import InputError
from charrnn.opening import regular
from charrnn.table import Table
from charrnn.words import REASONS, duration

Event = dict[str, Any]

BLOCK = 2**20  # bytes read at once: a screen stays responsive while a long file is opened
TAIL = 1024  # bytes before the place read up to that must not have changed
LULL = 1.0  # seconds without a line after which it is asked whether a process still trains
PATIENCE = 10.0  # and after which it is said that there were none
LONGEST = 4000  # characters of a sample that a screen may need
AXES = ("steps", "characters", "time")
ORDER = ("start", "train", "validation", "sample", "end")  # events of one step, as they are written


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
        with open(self.path, "rb", opener=regular) as file:
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
    folders = [Path(name).parent if os.path.isfile(name) else Path(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        if not name or not os.path.isdir(folder):
            raise InputError(f"{name or repr(name)} does not exist: name the folder of a run")
        if not _readable(folder / "metrics.jsonl") and not (folder / "config.json").exists():
            what = "is no file of a run" if os.path.isfile(name) else "holds no run"
            raise InputError(f"{name} {what}: name the folder that charrnn train made")
    return list(dict.fromkeys(folders))


def _readable(path: Path) -> bool:
    """Whether there is such a file; InputError if it may not be read."""
    try:
        open(path, "rb", opener=regular).close()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(
            f"cannot read the metrics {path}: {error.strerror or error}; allow reading it"
        ) from error
    return True


def _newest(root: Path) -> Path:
    paths = (path for path in root.rglob("metrics.jsonl") if os.path.isfile(path))
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

    def fate(self) -> str:
        """What becomes of a run that has nothing to show, and what to do about it."""
        if runlog.held(self.folder):
            return "wait for its first line"
        return f"it ended before its first line, go on with charrnn train --resume {self.folder}"

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
        if not self.alive and silence > LULL + self.interval:
            if not runlog.held(self.folder):
                return f"stopped {duration(silence)} ago"
            if silence > PATIENCE + 5 * self.interval:
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
