"""The training loop: a generator of events that prints nothing.

A run's numbers are a function of its config, its text and the machine. Where it stands is one
number, the step; what else a resumed run needs is in the checkpoint: weights, moments, the carried
hidden state, the best loss, and the sums behind the next line of the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from charrnn import (
    __version__,
    atomic,
    checkpoint,
    evaluate,
    facts,
    probe,
    recompute,
    runlog,
    sampling,
)
from charrnn.api import load, metadata_of, restore
from charrnn.config import Config, SampleConfig
from charrnn.errors import InputError, SaveError
from charrnn.kernels import jit
from charrnn.kernels.program import code
from charrnn.memorised import memorised_shares
from charrnn.model import Model
from charrnn.optim import Clipping, Optimizer
from charrnn.passes import Inputs, Pass
from charrnn.schedules import learning_rate
from charrnn.sliding import Sliding
from charrnn.threads import available
from charrnn.truncation import Piece, Plan
from charrnn.tuner import Tuner
from charrnn.vocab import Vocabulary

Event = dict[str, Any]

RATE_MEMORY = 50
"""Steps over which the speed is smoothed."""

SAMPLE_LENGTH = 200
"""Characters of a sample while training."""

WAYS_BACK = 2
"""Checkpoints step-<n> that are kept at the least for going back to."""

MOST_VALIDATIONS = 1000
"""That checkpoints list; they would grow without end, beyond what is read from a file."""

CAUSES = (
    "usual causes: a learning rate that is too high (--learning-rate), no clipping (--grad-clip), "
    "or --activation relu or identity with large weights"
)


@dataclass
class Text:
    """The text of a run, as ids, and how it is read."""

    vocabulary: Vocabulary
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    plan: Plan
    facts: dict[str, Any]
    """sources, fingerprints, characters: what checkpoints say of it."""
    notes: list[str]


@dataclass
class Progress:
    """What a resumed run must know beside weights, moments and hidden state."""

    step: int = 0
    nats_per_char: float | None = None
    """Mean training loss of the last logged interval."""
    val_nats_per_char: float | None = None
    best_val_nats_per_char: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    log_steps: int = 0
    log_nats: float = 0.0
    log_clipped: int = 0
    gradient_steps: int = 0
    gradient_clipped: int = 0
    gradient_scales: float = 0.0
    """Sums since the last line on the gradient: steps, those clipped, the factors of clipping."""
    total_steps: int | None = None
    """What the newest start event in the metrics says."""
    finished: str | None = None
    """Why it ended: "finished" or "patience"."""
    validations: list[list[Any]] = field(default_factory=list)
    """[step, training loss, validation loss], in nats per character. When there are more than
    `MOST_VALIDATIONS`, every other one is left out: the first and the newest always stand there."""
    unvalidated: bool = False
    """Whether what is due after this step has been put off, because its validation was stopped."""
    rollbacks: list[tuple[int, int, str]] = field(default_factory=list)
    """[step that diverged, step gone back to, what was not finite] of each."""
    rollbacks_noted: int = 0
    """How many of these are in the metrics."""

    @property
    def learning_rate_scale(self) -> float:
        """What the rollbacks have left of the learning rate."""
        return 0.5 ** len(self.rollbacks)


ADDED = {
    "gradient_steps", "gradient_clipped", "gradient_scales",
    "unvalidated", "rollbacks", "rollbacks_noted",
}  # fmt: skip
"""Fields of `Progress` that checkpoints of version 0.1 may lack."""


class _Interrupted(Exception):
    """The run is to stop, and what is being computed can be computed again."""


class Run:
    """A run that is ready to train; `charrnn.runs` makes it.

    Attributes
    ----------
    folder : where its files are
    config : its options
    progress : how far it is
    draw_weights : fills the model with the weights that the run begins with
    """

    draw_weights: Callable[[], None]

    def __init__(self, folder: Path, config: Config, text: Text) -> None:
        self.folder, self.config, self.text = folder, config, text
        self.progress = Progress()
        self.metrics_length = 0  # where the metrics go on from this state
        threads = config.train.threads
        most = threads if isinstance(threads, int) and threads else available()
        self.model = Model(config.model, text.vocabulary.size, most)
        self.plan = text.plan
        self.window = self._new_window(self.plan.longest)
        self.optimizer = Optimizer(
            config.train, self.model.params, self.model.grads, self.model.team
        )
        self.tuner = Tuner(self.model.team)
        if threads == "auto":
            self.tuner.begin()
        self.total_steps = _total_steps(config, self.plan)
        self._interrupted = False
        self._before, self._slot = self.window, 0  # where the state is that is carried on
        self._norms = probe.Norms(self.model) if config.train.log_gradients else None
        self._reaches: dict[Pass, probe.Reach] = {}
        self._trouble: str | None = None  # why the last save failed
        self._troubled = False  # has it been said?
        self._owed: tuple[dict[str, np.ndarray], Mapping[str, Any]] | None = None
        """The best state, while it could not be saved."""

    def _new_window(self, T: int) -> Inputs:
        """A pass for windows of at most T steps."""
        data, B, dropout = self.config.data, self.plan.batch_size, self.config.model.dropout
        if data.bptt == "sliding":
            return Sliding(self.model, T, B, dropout, *data.look_back)
        return recompute.train_pass(self.model, T, B, dropout, data.recompute)

    def interrupt(self) -> None:
        """Ask to save and stop at the end of the step; safe in a signal handler.

        A validation, and what is measured at the end of a run, is given up and made again when the
        run is resumed.
        """
        self._interrupted = True

    # -- the loop -------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train, and say what happens: the events are described in `charrnn.runlog`."""
        self._started = self._tick = time.perf_counter()
        self._rate, self._steps_done = 0.0, 0  # smoothed characters per second
        path = self.folder / "metrics.jsonl"
        with runlog.lock(self.folder), runlog.RunLog(path) as self.log:
            atomic.sweep(self.folder)
            note = self._align_metrics()
            for text in [*self.text.notes, *self.model.notes, *([note] if note else [])]:
                yield self._note(text)
            yield from self._compile()
            yield self._start_event()
            if not (self.folder / "last.safetensors").exists():
                self._save("last.safetensors")  # from now on there is one to go on from
            ended = False
            if self._interrupted:
                ended = yield from self._stop()
            elif self.total_steps == 0 or self.progress.unvalidated:
                ended = yield from self._after_step(None)
            while not ended:
                if self.progress.step >= self.total_steps or self.progress.finished is not None:
                    yield self._finish()
                    return
                ended = yield from self._train_step()

    def _align_metrics(self) -> str | None:
        """Cut the metrics back to where this state is, and write what is to follow there."""
        p = self.progress
        note = self.log.truncate(self.metrics_length)
        if p.total_steps != self.total_steps or not self.metrics_length:
            p.total_steps = self.total_steps
            self._logged(self._start_event())
        if p.rollbacks_noted < len(p.rollbacks):
            for n in range(p.rollbacks_noted, len(p.rollbacks)):
                self._logged(self._rollback_event(n))
            p.rollbacks_noted = len(p.rollbacks)
            checkpoint.remove_after(self.folder, p.step)
        return note

    def _train_step(self) -> Generator[Event, None, bool]:
        """One step and what is due after it; returns whether the run has to stop."""
        p = self.progress
        looked_at = self._norms if _due(self.config.train.log_gradients, p.step + 1) else None
        piece, window = self._next_window()
        reach = None if looked_at is None else self._reach(piece, window)
        began = time.perf_counter()
        loss, clipping = self._gradients(piece, window)
        for what, number in (("loss", loss), ("gradient", clipping.norm)):
            if not math.isfinite(number):
                return (yield from self._diverged(what, p.step + 1))
        epoch, _ = self.plan.position(p.step)
        rate = learning_rate(self.config.train, p.step, self.total_steps, epoch)
        rate *= p.learning_rate_scale
        if looked_at is not None:
            looked_at.begin()
        self.optimizer.step(rate, p.step + 1, clipping)
        self.model.changed()
        taken = time.perf_counter() - began
        p.step += 1
        event = self._step_event(loss, clipping, rate)
        yield event
        if looked_at is None:
            yield from self._tune(taken, piece)
        else:
            soon = _due(self.config.train.log_every, p.step)
            yield self._logged(self._gradient_event(looked_at.measure(), reach), later=soon)
        return (yield from self._after_step(event))

    def _after_step(self, step: Event | None) -> Generator[Event, None, bool]:
        """What is due after a step, or in a run of none; returns whether the run has to stop."""
        train, p = self.config.train, self.progress
        last = p.step == self.total_steps
        if step is not None and (_due(train.log_every, p.step) or last):
            yield self._logged(self._train_event(step), log=train.log_every > 0)
        validates = len(self.text.val) > 0 and (_due(train.eval_every, p.step) or last)
        due, best, p.unvalidated = _due(train.checkpoint_every, p.step), False, False
        looked_at, stopping = validates or due or last, self._interrupted
        if (looked_at or stopping) and not self._finite():
            if not looked_at and train.on_divergence == "rollback":
                # Resumed from the last checkpoint, it goes back from where it would have, anyway.
                yield self._end("interrupted", log=False)
                return True
            return (yield from self._diverged("weights or the optimizer's moments", p.step))
        if validates:
            try:
                event = self._validate()
            except _Interrupted:
                p.unvalidated = True
                return (yield from self._stop())
            yield event
            if not math.isfinite(event["val_nats_per_char"]):
                return (yield from self._diverged("validation loss", p.step))
            best = event["best"]
        if _due(train.sample_every, p.step):
            yield self._sample()
        if best:
            self._save("best.safetensors")
        if last and p.finished is None:
            p.finished = "finished"
        if due or p.finished:
            yield from self._checkpoint(due)
        if self._trouble is not None and not self._troubled:
            self._troubled = True
            yield self._note(f"{self._trouble}; going on, the next checkpoint tries again")
        if stopping and not p.finished:
            return (yield from self._stop(saved=due))
        return False

    def _stop(self, saved: bool = False) -> Generator[Event, None, bool]:
        """End in the middle, as asked to."""
        if not saved:
            yield from self._checkpoint(False)
        yield self._end("interrupted", log=False)
        return True

    def _finish(self) -> Event:
        """The end of a run that has made all its steps."""
        try:
            return self._end(self.progress.finished or "finished")
        except _Interrupted:
            return self._end("interrupted", log=False)

    def _next_window(self) -> tuple[Piece, Inputs]:
        """What this step reads, and its pass with the state before it."""
        piece = self.plan.piece(self.progress.step)
        T = len(piece.ids)
        if len(self.window.ids) < T:  # the plan's longest was but an expectation
            self.window = self._new_window(2 * T)
        window = self.window.of_length(T, len(piece.targets))
        if piece.carried:
            window.carry(self._before, self._slot)
        else:
            window.set_state(None)
        return piece, window

    def _reach(self, piece: Piece, window: Inputs) -> dict[str, Any]:
        """The `probe.Reach` of the first characters of the piece that have losses."""
        new, model = len(piece.targets), self.model
        T = min(new, probe.STEPS)
        run = model.train_pass(T, self.plan.batch_size, self.config.model.dropout)
        before, ids = piece.ids[:-new], piece.ids[-new:]
        if len(before):
            run.set_state(model.advance(before, window.state(0)))
        elif run is not window:
            run.carry(window, 0)
        run.set_dropout_key(self.config.train.seed, self.progress.step)
        if run not in self._reaches:
            self._reaches[run] = probe.Reach(run)
        return self._reaches[run].measure(ids[:T], piece.targets[:T])

    def _gradients(self, piece: Piece, window: Inputs) -> tuple[float, Clipping]:
        """Forward and backward; the window's loss and the gradient's measure."""
        window.load(piece.ids, piece.targets, piece.weight, piece.scored)
        if piece.ways is not None:
            window.ways[:] = piece.ways
        self._before, self._slot = window, piece.shift
        window.set_dropout_key(self.config.train.seed, self.progress.step)
        loss = window.run_gradients()
        return loss, self.optimizer.clip()

    def _tune(self, seconds: float, piece: Piece) -> Iterator[Event]:
        """Choose the threads of the next step by the time of this one, unless it is a short one."""
        share = len(piece.targets) / self.plan.seq_length
        text = self.tuner.took(seconds / share) if share > 0.5 else None
        if text is not None:
            yield {"event": "note", "step": self.progress.step, "text": text}

    def _validate(self) -> Event:
        """Loss of the validation text."""
        p = self.progress
        nats, count = evaluate.evaluate(self.model, self.text.val, on_progress=self._look)
        p.val_nats_per_char = nats / count
        best = math.isfinite(nats) and (
            p.best_val_nats_per_char is None or p.val_nats_per_char < p.best_val_nats_per_char
        )
        if best:
            p.best_val_nats_per_char, p.best_step = p.val_nats_per_char, p.step
            p.validations_since_best = 0
        else:
            p.validations_since_best += 1
            patience = self.config.train.patience
            if patience and p.validations_since_best >= patience:
                p.finished = "patience"
        # A loss that is not finite ends the run before anything is saved.
        p.validations.append([p.step, p.nats_per_char, p.val_nats_per_char])
        if len(p.validations) > MOST_VALIDATIONS:
            p.validations = p.validations[::2]
        return self._logged(
            {
                "event": "validation",
                "step": p.step,
                "epoch": self._epoch(),
                "val_nats_per_char": p.val_nats_per_char,
                "best": best,
                "best_val_nats_per_char": p.best_val_nats_per_char,
                "best_step": p.best_step,
                "time": {"seconds": self._seconds()},
            }
        )

    def _look(self, *progress: int) -> None:
        """Give up what can be made again, if the run is to stop."""
        if self._interrupted:
            raise _Interrupted

    def _sample(self) -> Event:
        config = SampleConfig(length=SAMPLE_LENGTH)
        seed = self.config.train.seed + self.progress.step
        text = sampling.sample(self.model, self.text.vocabulary, config, seed=seed)[0]
        return self._logged({"event": "sample", "step": self.progress.step, "text": text})

    # -- saving ---------------------------------------------------------------------------------

    def _finite(self) -> bool:
        """Whether what a checkpoint holds is finite."""
        arrays = [self.model.params, *self.optimizer.moments.values()]
        return all(bool(np.isfinite(params.flat).all()) for params in arrays)

    def _checkpoint(self, due: bool) -> Iterator[Event]:
        keep, p = self.config.train.keep, self.progress
        if self.config.train.on_divergence == "rollback":
            keep = max(keep, WAYS_BACK)
        kept = True
        if keep and due:
            kept = self._save(f"step-{p.step}.safetensors")
            checkpoint.prune(self.folder, keep)
        ending = p.finished is not None or self._interrupted
        if self._save("last.safetensors", ending):
            path = self.folder / "last.safetensors"
            yield {"event": "checkpoint", "step": p.step, "path": str(path)}
            if kept and self._trouble is not None:
                atomic.sweep(self.folder)  # what could not be removed then
                if self._troubled:
                    yield self._note("saving works again")
                self._trouble, self._troubled = None, False

    def _save(self, name: str, ending: bool = False, metrics_length: int | None = None) -> bool:
        """Save the state under a name; returns whether that worked.

        If it fails, the run ends, or goes on if it is asked to and not ``ending`` anyway. A best
        state is then kept until it can be saved. ``metrics_length``: where the metrics go on from
        this state, if not at their end.
        """
        tensors, metadata = self._state(metrics_length)
        best = name == "best.safetensors"
        if best:
            self._owed = None
        try:
            self.log.sync()
            if self._owed is not None:
                checkpoint.save(self.folder / "best.safetensors", *self._owed)
                self._owed = None
            checkpoint.save(self.folder / name, tensors, metadata)
        except SaveError as error:
            if ending or not self._goes_on_after(error):
                raise
            if best:
                self._owed = {name: array.copy() for name, array in tensors.items()}, metadata
            return False
        return True

    def _goes_on_after(self, error: SaveError) -> bool:
        """Whether the run goes on without what could not be saved; if so, it is to be said."""
        if self.config.train.on_save_error == "stop" or self.log.waiting > runlog.MOST_WAITING:
            return False
        if self._trouble is None:
            self._trouble = str(error).partition("; ")[0]
        return True

    def _state(self, metrics_length: int | None) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
        """What a checkpoint holds: tensors and metadata."""
        model, states = self.model, self._before.state(self._slot)
        tensors = dict(model.to_torch(model.params))
        for moment, params in self.optimizer.moments.items():
            for tensor, array in model.to_torch(params).items():
                tensors[f"optimizer.{moment}.{tensor}"] = array
        tensors |= {f"state.{s}": array for s, array in states.items()}
        metadata = metadata_of(
            self.config,
            self.text.vocabulary,
            progress=dataclasses.asdict(self.progress),
            corpus=self.text.facts,
            metrics_length=self.log.length if metrics_length is None else metrics_length,
            versions=versions(),
        )
        return tensors, metadata

    def restore(self, source: checkpoint.Checkpoint) -> None:
        """Take weights, moments, hidden state and progress from a checkpoint of this run."""
        restore(self.model, self.model.params, source, "")
        for moment, params in self.optimizer.moments.items():
            restore(self.model, params, source, f"optimizer.{moment}.")
        known = {f.name for f in dataclasses.fields(Progress)}
        progress = source.metadata["progress"]
        shape, what = get_type_hints(Progress), f"the progress of {source.path}"
        facts.check(progress, {n: shape[n] for n in ADDED}, what, lacking=True)
        facts.check(progress, {**{n: shape[n] for n in known - ADDED}, **facts.PROGRESS}, what)
        self.progress = Progress(**{name: progress[name] for name in known & set(progress)})
        try:
            self.window.set_state({s: source.tensors[f"state.{s}"] for s in self.model.cell.states})
        except (KeyError, InputError) as error:
            fault = f"it lacks the tensor {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{source.path} is damaged: {fault}; use another one") from error
        self._before, self._slot = self.window, 0
        where = f"the metadata of {source.path}"
        checked = facts.check(source.metadata, {"metrics_length": int}, where)
        self.metrics_length = checked["metrics_length"]

    # -- divergence -----------------------------------------------------------------------------

    def _diverged(self, what: str, step: int) -> Generator[Event, None, bool]:
        """A number is not finite: end, or go back; returns whether the run has to stop."""
        p, train = self.progress, self.config.train
        if train.on_divergence == "stop" or len(p.rollbacks) >= train.max_rollbacks:
            yield self._end("diverged", message=self._divergence(what, step))
            return True
        self._roll_back(what, step)
        n = len(self.progress.rollbacks)
        yield self._note(
            f"the {what} {_is(what)} no longer finite at step {step:,}: back to step "
            f"{self.progress.step:,} with {self.progress.learning_rate_scale:g} of the learning "
            f"rate ({n} of at most {train.max_rollbacks} times)"
        )
        return False

    def _roll_back(self, what: str, step: int) -> None:
        """Go back to a good state with half the learning rate.

        All of that is in the checkpoint that is written here: metrics follow it, as when a run is
        resumed. The best model so far stays the best.
        """
        old, source = self.progress, self._way_back(step)
        if source is not None:
            self.restore(source)
        else:
            self._restart()
        p = self.progress
        p.finished = None
        p.rollbacks = [*old.rollbacks, (step, p.step, what)]
        if old.best_step != p.best_step:
            p.best_val_nats_per_char, p.best_step = old.best_val_nats_per_char, old.best_step
            p.validations_since_best = 0
        self._save("last.safetensors", metrics_length=self.metrics_length)
        self._align_metrics()

    def _way_back(self, step: int) -> checkpoint.Checkpoint | None:
        """The newest checkpoint to go back to; None is the run's start.

        One with the very state that diverged is no good. Nor is one from which the run, with half
        the rate, came no further than the last time: then it goes further back. What rollbacks
        have cut off is not looked at. Nor is the last checkpoint, which may be of an interruption:
        that must not change what comes of the run.
        """
        p = self.progress
        before = p.step
        if p.rollbacks and step <= p.rollbacks[-1][0]:
            before = min(before, p.rollbacks[-1][1])
        found = []
        paths = [path for path in checkpoint.of_run(self.folder) if path.stem != "last"]
        for path in paths:
            with contextlib.suppress(InputError, LookupError, TypeError):  # a damaged one
                (progress,) = checkpoint.read_metadata(path, "progress")
                since = p.rollbacks[len(progress.get("rollbacks", [])) :]
                if progress["step"] < before and all(progress["step"] <= r[1] for r in since):
                    found.append((progress["step"], path.name != "best.safetensors", path))
        for _, _, path in sorted(found, reverse=True):
            with contextlib.suppress(InputError):
                return checkpoint.load(path)
        return None

    def _restart(self) -> None:
        """The state before the first step."""
        self.draw_weights()
        self.model.changed()
        for params in self.optimizer.moments.values():
            params.flat[:] = 0
        self.window.set_state(None)
        self._before, self._slot = self.window, 0
        self.progress, self.metrics_length = Progress(total_steps=self.total_steps), 0

    def _divergence(self, what: str, step: int) -> str:
        """What there is to say when it ends the run."""
        last, n = self.folder / "last.safetensors", len(self.progress.rollbacks)
        after = f" after {n} rollbacks" if n else ""
        return (
            f"the {what} {_is(what)} no longer finite at step {step:,}{after}; {last} is kept; "
            f"{CAUSES}"
        )

    # -- events ---------------------------------------------------------------------------------

    def _logged(self, event: Event, log: bool = True, later: bool = False) -> Event:
        if log:
            try:
                self.log.append(event, later=later)
            except SaveError as error:
                if not self._goes_on_after(error):
                    raise
        return event

    def _note(self, text: str) -> Event:
        return {"event": "note", "step": self.progress.step, "text": text}

    def _start_event(self) -> Event:
        return {
            "event": "start",
            "step": self.progress.step,
            "schema": runlog.SCHEMA,
            "total_steps": self.total_steps,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "parameters": self.model.params.count,
            "train_chars": len(self.text.train),
            "val_chars": len(self.text.val),
            "vocab_size": self.text.vocabulary.size,
            "batch_size": self.plan.batch_size,
            "seq_length": self.plan.seq_length,
            "val_nats_per_char": self.progress.val_nats_per_char,
        }

    def _rollback_event(self, number: int) -> Event:
        diverged, step, what = self.progress.rollbacks[number]
        return {
            "event": "rollback",
            "step": step,
            "diverged_step": diverged,
            "what": what,
            "rollbacks": number + 1,
            "learning_rate_scale": 0.5 ** (number + 1),
        }

    def _step_event(self, loss: float, clipping: Clipping, rate: float) -> Event:
        p, now = self.progress, time.perf_counter()
        speed = self._before.count / max(now - self._tick, 1e-9)
        self._tick = now
        self._steps_done += 1
        if self._steps_done > 1:  # the first step also loads or compiles the kernels
            self._rate += (speed - self._rate) / min(self._steps_done - 1, RATE_MEMORY)
        clipped = clipping.scale < 1
        p.log_steps += 1
        p.log_nats += loss
        p.log_clipped += clipped
        p.gradient_steps += 1
        p.gradient_clipped += clipped
        p.gradient_scales += clipping.scale
        return {
            "event": "step",
            "step": p.step,
            "epoch": self._epoch(),
            "chars": self._chars(),
            "nats_per_char": loss,
            "grad_norm": clipping.norm,
            "clipped": float(clipped),
            "learning_rate": rate,
            "time": {
                "seconds": self._seconds(),
                "chars_per_second": self._rate,
                "threads": self.model.team.size,
            },
        }

    def _train_event(self, step: Event) -> Event:
        p = self.progress
        p.nats_per_char = p.log_nats / p.log_steps
        event = step | {
            "event": "train",
            "nats_per_char": p.nats_per_char,
            "clipped": p.log_clipped / p.log_steps,
        }
        p.log_steps, p.log_nats, p.log_clipped = 0, 0.0, 0
        return event

    def _gradient_event(self, norms: dict[str, Any], reach: dict[str, Any] | None) -> Event:
        """What there is to say of this step's gradient."""
        p, params, grads = self.progress, self.model.params, self.model.grads
        limit = self.config.train.grad_clip_value
        beyond = np.count_nonzero(np.abs(grads.flat) > limit) if limit else 0
        event = {
            "event": "gradients",
            "step": p.step,
            "epoch": self._epoch(),
            **norms,
            "clipped": p.gradient_clipped / p.gradient_steps,
            "clip_scale": p.gradient_scales / p.gradient_steps,
            "clipped_elements": beyond / params.count,
            "reach": reach,
        }
        p.gradient_steps, p.gradient_clipped, p.gradient_scales = 0, 0, 0.0
        return event

    def _end(self, reason: str, *, log: bool = True, message: str | None = None) -> Event:
        p = self.progress
        done = reason not in ("interrupted", "diverged")
        test = self._test_loss() if done and len(self.text.test) else None
        event = {
            "event": "end",
            "step": p.step,
            "epoch": self._epoch(),
            "reason": reason,
            "nats_per_char": p.nats_per_char,
            "val_nats_per_char": p.val_nats_per_char,
            "best_val_nats_per_char": p.best_val_nats_per_char,
            "best_step": p.best_step,
            "test_nats_per_char": test,
            "memorised": self._memorised() if done and p.finished else None,
            "message": message,
            "time": {"seconds": self._seconds()},
        }
        if log:
            self._logged(event)
            self.log.sync()
        return event

    def _test_loss(self) -> float:
        """Loss of the test text under the best model, else the last."""
        best = self._best_model()
        nats, count = evaluate.evaluate(best, self.text.test, on_progress=self._look)
        return nats / count

    def _best_model(self) -> Model:
        """The best model of the run's files, else the last."""
        best = load(self.folder, threads=self.model.team.size)
        if best.vocabulary != self.text.vocabulary:
            raise InputError(
                f"{best.path} is of another vocabulary than this run: put its own back, or remove"
                " it, and resume the run"
            )
        return best.model

    def _memorised(self) -> dict[str, float] | None:
        """Of what ``charrnn sample`` would take: the best model, else the last."""
        p, text, model = self.progress, self.text, self.model
        if p.best_step not in (None, p.step):
            model = self._best_model()
        seed = self.config.train.seed
        return memorised_shares(model, text.vocabulary, text.train, text.val, seed, self._look)

    def _compile(self) -> Iterator[Event]:
        """Compile what the steps need; with a word of it, if there is anything to compile."""
        kernels = self._kernels()
        count = jit.uncompiled(kernels)
        if count:
            how_often = "once per installation"
            if jit.CACHE_PROBLEM:
                how_often = f"at every start, as they are not kept: {jit.CACHE_PROBLEM}"
            yield self._note(f"compiling {count} kernels, {how_often}: some 20 seconds")
        for kernel in kernels if count else ():
            if self._interrupted:
                break
            kernel.address()  # compiles it

    def uncompiled(self) -> int:
        """Kernels that the first step will have to compile."""
        return jit.uncompiled(self._kernels())

    def _kernels(self) -> Iterable[jit.Code]:
        """The code that a step runs, each once."""
        optimizer = self.optimizer
        phases = [*self.window.phases(), optimizer.norm_phase(math.inf), optimizer.step_phase()]
        calls = [call for phase in phases for item in phase for call in item]
        return dict.fromkeys(part for call in calls for part in code(call))

    def _epoch(self) -> float:
        return self.plan.epochs(self.progress.step)

    def _chars(self) -> int:
        """Characters trained on so far."""
        return self.plan.chars(self.progress.step)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _is(what: str) -> str:
    return "are" if what.startswith("weights") else "is"


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step > 0 and step % interval == 0


def _total_steps(config: Config, plan: Plan) -> int:
    limits = [config.train.max_steps]
    if config.train.epoch_limit is not None:
        limits.append(plan.steps(config.train.epoch_limit))
    return min(limit for limit in limits if limit is not None)


def versions() -> dict[str, str]:
    """What made a checkpoint."""
    return {
        "charrnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **jit.versions(),
        "machine": f"{sys.platform} {platform.machine()}",
    }
