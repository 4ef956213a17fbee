"""A list of runs: how far each is and how it ended, from little of its files.

Of a run's metrics only the first line, the one behind the last checkpoint and the last 64 KB are
read, of a checkpoint its header. Nothing is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from charrnn import checkpoint, facts, runlog
from charrnn.chart import columns_of, printable
from charrnn.errors import InputError

Listed = dict[str, Any]
"""What is known of a run, by `KEYS`: docs/options.md says what they mean. None is unknown."""

KEYS = (
    "name", "path", "state", "problem", "model", "num_layers", "hidden_size", "parameters", "step",
    "total_steps", "checkpoint_step", "best_val_nats_per_char", "best_step", "age_seconds",
)  # fmt: skip
MARKS = {"metrics.jsonl", "last.safetensors"}  # either makes a folder a run

HEAD: tuple[str, ...] = (
    "name", "model", "parameters", "steps", "of", "nats/char", "bits/char", "state", "age",
)  # fmt: skip

ORDERS = {
    "name": (("name",), False),
    "model": (("model", "num_layers", "hidden_size"), False),
    "parameters": (("parameters",), True),
    "step": (("step",), True),
    "best": (("best_val_nats_per_char",), False),
    "state": (("state",), False),
    "age": (("age_seconds",), False),
}
"""Column -> the keys that it is sorted by, and whether the largest comes first."""


def find(root: str | Path, now: float) -> list[Listed]:
    """The runs in and below a folder; ``now`` is that of `time.time`.

    A damaged run is in the state "damaged" and has a "problem".

    Raises
    ------
    InputError
        If there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        fault = "is no folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {fault}: name a folder with runs, as `charrnn train` makes them")
    try:
        os.listdir(root)
    except OSError as error:  # of a folder further below no more is known than that it is there
        raise InputError(f"cannot read {root}: {error.strerror or error}") from error
    folders = sorted(Path(at) for at, _, files in os.walk(root) if MARKS & set(files))
    return [_listed(folder, root, now) for folder in folders]


def ordered(runs: Sequence[Listed], by: str) -> list[Listed]:
    """Runs sorted by one of `ORDERS`; those of which that is unknown come last."""
    keys, largest_first = ORDERS[by]
    unknown = [run for run in runs if any(run[key] is None for key in keys)]
    known = [run for run in runs if all(run[key] is not None for key in keys)]
    known.sort(key=lambda run: [run[key] for key in keys], reverse=largest_first)
    return known + unknown


def table(runs: Sequence[Listed]) -> list[str]:
    """A line for each run, below one that names the columns."""
    rows = [HEAD, *map(_row, runs)]
    sizes = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    left = {0, 1, 7}  # columns of words
    lines = []
    for row in rows:
        gaps = [" " * (size - columns_of(text)) for text, size in zip(row, sizes, strict=True)]
        texts = [
            text + gap if i in left else gap + text
            for i, (text, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        lines.append("  ".join(texts))
    return lines


def _row(run: Listed) -> tuple[str, ...]:
    nats = run["best_val_nats_per_char"]
    model = run["model"] and f"{run['model']} {run['num_layers']}x{run['hidden_size']}"
    counts = [run[key] for key in ("parameters", "step", "total_steps")]
    return (
        printable(run["name"]),
        printable(model or "-"),
        *("-" if count is None else f"{count:,}" for count in counts),
        *("-" if nats is None else f"{loss:.4f}" for loss in (nats, (nats or 0) / math.log(2))),
        printable(run["state"]),
        _age(run["age_seconds"]),
    )


def _age(seconds: float) -> str:
    """In the largest unit of which there are two."""
    units = ((86400, "days"), (3600, "h"), (60, "min"))
    return next((f"{seconds / n:.0f} {unit}" for n, unit in units if seconds >= 2 * n), "") or (
        f"{seconds:.0f} s"
    )


# -- one run ------------------------------------------------------------------------------------


def _listed(folder: Path, root: Path, now: float) -> Listed:
    name = folder.resolve().name if folder == root else str(folder.relative_to(root))
    run: Listed = dict.fromkeys(KEYS) | {"name": name, "path": str(folder)}
    problem = _Reader(folder, run).read()
    if problem is not None:
        run |= {"state": "damaged", "problem": problem}
    written = [os.stat(path).st_mtime for mark in MARKS if os.path.exists(path := folder / mark)]
    run["age_seconds"] = max(now - max(written, default=now), 0.0)
    return run


class _Reader:
    """Fills in what the files of one run say of it."""

    def __init__(self, folder: Path, run: Listed) -> None:
        self.folder, self.run = folder, run
        self.kept = 0  # bytes of metrics up to the last checkpoint

    def read(self) -> str | None:
        """The first of the problems, all that can be read having been read."""
        # The lock comes first: a run that ends meanwhile must not look killed.
        parts: dict[str, Callable[[Path], None]] = {
            "lock": self.lock,
            "config.json": self.config,
            "last.safetensors": self.last,
            "best.safetensors": self.best,
            "metrics.jsonl": self.metrics,
        }
        problems = []
        for name, part in parts.items():
            path = self.folder / name
            try:
                part(path)
            except InputError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"cannot read {path}: {error.strerror or error}")
            except (LookupError, TypeError, ValueError, OverflowError):
                problems.append(f"{path} is damaged: what it should say is missing or no number")
        return problems[0] if problems else None

    def lock(self, path: Path) -> None:
        self.run["state"] = "running" if runlog.held(path.parent) else "killed"

    def config(self, path: Path) -> None:
        model = runlog.read_json(path)["config"]["model"]
        self.run["model"] = _word(model["model"])
        for key in ("num_layers", "hidden_size"):
            self.run[key] = _count(model[key])

    def last(self, path: Path) -> None:
        if not path.exists():
            return
        progress, kept = checkpoint.read_metadata(path, "progress", "metrics_length")
        self.kept, run = _count(kept), self.run
        run["step"] = run["checkpoint_step"] = _count(progress["step"])
        run["total_steps"] = _count(progress["total_steps"])
        self._take_best(progress)
        if run["state"] != "running":
            run["state"] = _word(progress["finished"] or "interrupted")

    def best(self, path: Path) -> None:
        if path.exists():  # it may be newer than the last one
            self._take_best(*checkpoint.read_metadata(path, "progress"))

    def metrics(self, path: Path) -> None:
        run, end = self.run, {}
        # A start event is written where the length of the run is new: the first is older than the
        # checkpoint, the one behind the checkpoint is newer.
        for place in dict.fromkeys((0, self.kept)):
            start = runlog.event_at(path, place)
            if start is not None and start["event"] == "start":
                run["parameters"] = _count(start["parameters"])
                if place == self.kept:
                    run["total_steps"] = _count(start["total_steps"])
        for event in runlog.tail(path):
            run["step"] = max(_count(event["step"]), run["checkpoint_step"] or 0)
            if event["event"] == "validation":
                self._take_best(event)
            end = event if event["event"] == "end" else {}
        if run["state"] != "running":
            if end:
                run["state"] = _word(end["reason"])
            elif path.stat().st_size > self.kept:
                run["state"] = "killed"

    def _take_best(self, said: dict[str, Any]) -> None:
        """The lowest validation loss that any file knows of."""
        nats, known = said["best_val_nats_per_char"], self.run["best_val_nats_per_char"]
        if nats is None:
            return
        if not facts.fits(nats, float):
            raise ValueError(nats)
        if known is None or nats < known:
            self.run["best_val_nats_per_char"] = float(nats)
            self.run["best_step"] = _count(said["best_step"])


def _count(value: Any) -> int:
    if not facts.fits(value, int):
        raise ValueError(value)
    return int(value)


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError(value)
    return value
