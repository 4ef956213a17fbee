"""What a run writes, its checkpoints and the lines of its metrics, and which one it goes back to.

The files themselves are made by `charrnn.checkpoint` and `charrnn.runlog`. Here is when, under what
names, and what becomes of the run where it fails.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from charrnn import __version__, atomic, checkpoint, runlog
from charrnn.config import TrainConfig
from charrnn.errors import InputError, SaveError
from charrnn.kernels import jit
from charrnn.progress import Progress

LAST = "last.safetensors"
BEST = "best.safetensors"

WAYS_BACK = 2
"""Checkpoints step-<n> that are kept at the least for going back to."""

State = tuple[dict[str, np.ndarray], Mapping[str, Any]]
"""What a checkpoint holds: tensors and metadata."""


class Saver:
    """Saves what a run hands it. Where that fails the run ends, or goes on if it was asked to.

    Lines that could not be written wait in the log, and a best state waits here, until they can be.
    """

    def __init__(self, folder: Path, log: runlog.RunLog, train: TrainConfig) -> None:
        self.folder, self._log = folder, log
        self._goes_on = train.on_save_error == "continue"
        rollback = train.on_divergence == "rollback"
        self._keep = max(train.keep, WAYS_BACK) if rollback else train.keep
        self._owed: State | None = None  # the best one, while it could not be saved
        self._trouble: str | None = None  # why something could not be saved
        self._told = False  # is that known to who asked for news?

    def append(self, event: Mapping[str, Any], later: bool = False) -> None:
        """Write a line of the metrics; ``later``: with the next one."""
        try:
            self._log.append(event, later=later)
        except SaveError as error:
            self._go_on(error)

    def save(self, name: str, state: State, ending: bool = False) -> bool:
        """Save a state under a name; returns whether that worked.

        If it fails the run does not go on where it is ``ending`` anyway.
        """
        tensors, metadata = state
        best = name == BEST
        if best:
            self._owed = None
        try:
            self._log.sync()
            if self._owed is not None:
                checkpoint.save(self.folder / BEST, *self._owed)
                self._owed = None
            checkpoint.save(self.folder / name, tensors, metadata)
        except SaveError as error:
            self._go_on(error, ending)
            if best:
                self._owed = {name: array.copy() for name, array in tensors.items()}, metadata
            return False
        return True

    def checkpoint(self, step: int, state: State, due: bool, ending: bool) -> bool:
        """Save the state after a step as the last, and where one is ``due`` also to be kept.

        Returns whether there is a new last one. When all of it worked, saving works again.
        """
        kept = True
        if self._keep and due:
            kept = self.save(f"step-{step}.safetensors", state)
            checkpoint.prune(self.folder, self._keep)
        saved = self.save(LAST, state, ending)
        if saved and kept and self._trouble is not None:
            atomic.sweep(self.folder)  # what could not be removed then
            self._trouble = None
        return saved

    def news(self) -> Iterator[str]:
        """That something could not be saved, or that all is well again, each once."""
        told, self._told = self._told, self._trouble is not None
        if self._told and not told:
            yield f"{self._trouble}; going on, the next checkpoint tries again"
        elif told and not self._told:
            yield "saving works again"

    def _go_on(self, error: SaveError, ending: bool = False) -> None:
        """Go on without what could not be saved, which is to be told, or raise the error."""
        if ending or not self._goes_on or self._log.waiting > runlog.MOST_WAITING:
            raise error
        if self._trouble is None:
            self._trouble = str(error).partition("; ")[0]


def way_back(folder: Path, progress: Progress, step: int) -> checkpoint.Checkpoint | None:
    """The newest checkpoint to go back to from a step that diverged; None is the run's start.

    One with the very state that diverged is no good. Nor is one from which the run, with half the
    rate, came no further than the last time: then it goes further back. What rollbacks have cut off
    is not looked at. Nor is the last checkpoint, which may be of an interruption: that must not
    change what comes of the run.
    """
    rollbacks, before = progress.rollbacks, progress.step
    if rollbacks and step <= rollbacks[-1][0]:
        before = min(before, rollbacks[-1][1])
    found = []
    paths = [path for path in checkpoint.of_run(folder) if path.stem != "last"]
    for path in paths:
        with contextlib.suppress(InputError):  # a damaged one
            (said,) = checkpoint.read_metadata(path, "progress")
            then = Progress.from_json(said, f"'progress' of {path}")
            if path.name == BEST and then.step > (progress.best_step or 0):
                continue  # of a future that was abandoned
            since = rollbacks[len(then.rollbacks) :]
            if then.step < before and all(then.step <= r[1] for r in since):
                found.append((then.step, path.name != "best.safetensors", path))
    for _, _, path in sorted(found, reverse=True):
        with contextlib.suppress(InputError):
            return checkpoint.load(path)
    return None


def versions() -> dict[str, str]:
    """What made a checkpoint."""
    return {
        "charrnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **jit.versions(),
        "machine": f"{sys.platform} {platform.machine()}",
    }
