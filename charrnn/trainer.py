"""The training loop: a generator of events that prints nothing.

A run's numbers are a function of its config, its text and the machine. Where it stands is one
number, the step; what else a resumed run needs is in the checkpoint: weights, moments, the carried
hidden state, the best loss, and the sums behind the next line of the log.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
import time
from collections.abc import Generator, Iterator
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
from charrnn.errors import InputError
from charrnn.kernels import jit
from charrnn.kernels.program import code
from charrnn.memorised import memorised_shares
from charrnn.model import Model
from charrnn.optim import Clipping, Optimizer
from charrnn.passes import Inputs
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
    """[step, training loss, validation loss] of each, in nats per character."""


ADDED = {"gradient_steps", "gradient_clipped", "gradient_scales"}
"""Fields of `Progress` that checkpoints of version 0.1 may lack."""


class Run:
    """A run that is ready to train; `charrnn.runs` makes it.

    Attributes
    ----------
    folder : where its files are
    config : its options
    progress : how far it is
    """

    def __init__(self, folder: Path, config: Config, text: Text, metrics_length: int = 0) -> None:
        self.folder, self.config, self.text = folder, config, text
        self.progress = Progress()
        self.metrics_length = metrics_length
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

    def _new_window(self, T: int) -> Inputs:
        """A pass for windows of at most T steps."""
        data, B, dropout = self.config.data, self.plan.batch_size, self.config.model.dropout
        if data.bptt == "sliding":
            return Sliding(self.model, T, B, dropout, *data.look_back)
        return recompute.train_pass(self.model, T, B, dropout, data.recompute)

    def interrupt(self) -> None:
        """Ask to save and stop at the end of the step; safe in a signal handler."""
        self._interrupted = True

    # -- the loop -------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train, and say what happens: the events are described in `charrnn.runlog`."""
        self._started = self._tick = time.perf_counter()
        self._rate, self._steps_done = 0.0, 0  # smoothed characters per second
        p, path = self.progress, self.folder / "metrics.jsonl"
        with runlog.lock(self.folder), runlog.RunLog(path) as self.log:
            atomic.sweep(self.folder)
            note = self.log.truncate(self.metrics_length)
            notes = [*self.text.notes, *self.model.notes, *([note] if note else [])]
            for text in [*notes, *self._compile_note()]:
                yield {"event": "note", "step": p.step, "text": text}
            yield self._logged(self._start_event(), log=p.total_steps != self.total_steps)
            p.total_steps = self.total_steps
            if self.total_steps == 0:
                yield from self._after_step(None)
            while p.step < self.total_steps and p.finished is None:
                ended = yield from self._train_step()
                if ended:
                    return
            yield self._end(p.finished or "finished")

    def _train_step(self) -> Generator[Event, None, bool]:
        """One step and what is due after it; returns whether the run has to stop."""
        p = self.progress
        looked_at = _due(self.config.train.log_gradients, p.step + 1)
        piece, window = self._next_window()
        reach = self._reach(piece, window) if looked_at else None
        began = time.perf_counter()
        loss, clipping = self._gradients(piece, window)
        for what, number in (("loss", loss), ("gradient", clipping.norm)):
            if not math.isfinite(number):
                yield self._diverged(what, p.step + 1)
                return True
        epoch, _ = self.plan.position(p.step)
        rate = learning_rate(self.config.train, p.step, self.total_steps, epoch)
        before = self.model.params.flat.copy() if looked_at else None
        self.optimizer.step(rate, p.step + 1, clipping)
        self.model.changed()
        taken = time.perf_counter() - began
        p.step += 1
        event = self._step_event(loss, clipping, rate)
        yield event
        if not looked_at:
            yield from self._tune(taken, piece)
        if before is not None:
            yield self._logged(self._gradient_event(before, reach))
        return (yield from self._after_step(event))

    def _after_step(self, step: Event | None) -> Generator[Event, None, bool]:
        """What is due after a step, or in a run of none; returns whether the run has to stop."""
        train, p = self.config.train, self.progress
        last = p.step == self.total_steps
        if step is not None and (_due(train.log_every, p.step) or last):
            yield self._logged(self._train_event(step), log=train.log_every > 0)
        if len(self.text.val) and (_due(train.eval_every, p.step) or last):
            event = self._validate()
            yield event
            if not math.isfinite(event["val_nats_per_char"]):
                yield self._diverged("validation loss", p.step)
                return True
            if event["best"] and self._finite():
                self._save("best.safetensors")
        if _due(train.sample_every, p.step):
            yield self._sample()
        if last and p.finished is None:
            p.finished = "finished"
        due = _due(train.checkpoint_every, p.step)
        if due or p.finished or self._interrupted:
            if not self._finite():
                yield self._diverged("weights or the optimizer's moments", p.step)
                return True
            yield from self._checkpoint(due)
        if self._interrupted and not p.finished:
            yield self._end("interrupted", log=False)
            return True
        return False

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
        """`probe.reach` of the first characters of the piece that have losses."""
        new, model = len(piece.targets), self.model
        T = min(new, probe.STEPS)
        run = model.train_pass(T, self.plan.batch_size, self.config.model.dropout)
        before, ids = piece.ids[:-new], piece.ids[-new:]
        if len(before):
            run.set_state(model.advance(before, window.state(0)))
        else:
            run.carry(window, 0)
        run.set_dropout_key(self.config.train.seed, self.progress.step)
        return probe.reach(run, ids[:T], piece.targets[:T])

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
        nats, count = evaluate.evaluate(self.model, self.text.val)
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
        keep, step = self.config.train.keep, self.progress.step
        if keep and due:
            self._save(f"step-{step}.safetensors")
            checkpoint.prune(self.folder, keep)
        path = self._save("last.safetensors")
        yield {"event": "checkpoint", "step": step, "path": str(path)}

    def _save(self, name: str) -> Path:
        self.log.sync()
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
            metrics_length=self.log.length,
            versions=versions(),
        )
        path = self.folder / name
        checkpoint.save(path, tensors, metadata)
        return path

    def restore(self, source: checkpoint.Checkpoint) -> None:
        """Take weights, moments, hidden state and progress from a checkpoint of this run."""
        restore(self.model, self.model.params, source, "")
        for moment, params in self.optimizer.moments.items():
            restore(self.model, params, source, f"optimizer.{moment}.")
        known = {f.name for f in dataclasses.fields(Progress)}
        progress = source.metadata["progress"]
        shape = {n: hint for n, hint in get_type_hints(Progress).items() if n not in ADDED}
        facts.check(progress, {**shape, **facts.PROGRESS}, f"the progress of {source.path}")
        self.progress = Progress(**{name: progress[name] for name in known & set(progress)})
        try:
            self.window.set_state({s: source.tensors[f"state.{s}"] for s in self.model.cell.states})
        except (KeyError, InputError) as error:
            fault = f"it lacks the tensor {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{source.path} is damaged: {fault}; use another one") from error

    # -- events ---------------------------------------------------------------------------------

    def _logged(self, event: Event, log: bool = True) -> Event:
        if log:
            self.log.append(event)
        return event

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

    def _gradient_event(self, before: np.ndarray, reach: dict[str, Any] | None) -> Event:
        """What there is to say of this step's gradient; ``before``, a copy of the weights that it
        changed, is overwritten."""
        p, params, grads = self.progress, self.model.params, self.model.grads
        update = np.subtract(params.flat, before, out=before)
        limit = self.config.train.grad_clip_value
        beyond = np.count_nonzero(np.abs(grads.flat) > limit) if limit else 0
        event = {
            "event": "gradients",
            "step": p.step,
            "epoch": self._epoch(),
            "gradient_norms": probe.norms(params, grads.flat),
            "update_norms": probe.norms(params, update),
            "weight_norms": probe.norms(params, params.flat),
            "clipped": p.gradient_clipped / p.gradient_steps,
            "clip_scale": p.gradient_scales / p.gradient_steps,
            "clipped_elements": beyond / params.count,
            "reach": reach,
        }
        p.gradient_steps, p.gradient_clipped, p.gradient_scales = 0, 0, 0.0
        return event

    def _end(self, reason: str, *, log: bool = True, message: str | None = None) -> Event:
        p = self.progress
        test = self._test_loss() if p.finished and len(self.text.test) else None
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
            "memorised": self._memorised() if p.finished else None,
            "message": message,
            "time": {"seconds": self._seconds()},
        }
        return self._logged(event, log)

    def _test_loss(self) -> float:
        """Loss of the test text under the best model, else the last."""
        best = load(self.folder, threads=self.model.team.size)
        nats, count = evaluate.evaluate(best.model, self.text.test)
        return nats / count

    def _memorised(self) -> dict[str, float] | None:
        """Of what ``charrnn sample`` would take: the best model, else the last."""
        p, text, model = self.progress, self.text, self.model
        if p.best_step not in (None, p.step):
            model = load(self.folder, threads=model.team.size).model
        seed = self.config.train.seed
        return memorised_shares(model, text.vocabulary, text.train, text.val, seed)

    def _diverged(self, what: str, step: int) -> Event:
        last = self.folder / "last.safetensors"
        kept = f"{last} is kept" if last.exists() else "there is no checkpoint yet"
        verb = "are" if what.startswith("weights") else "is"
        message = f"the {what} {verb} no longer finite at step {step:,}; {kept}; {CAUSES}"
        return self._end("diverged", message=message)

    def _compile_note(self) -> list[str]:
        """Word of the compilation that is to come, if there is any."""
        count = self.uncompiled()
        if not count:
            return []
        how_often = "once per installation"
        if jit.CACHE_PROBLEM:
            how_often = f"at every start, as they are not kept: {jit.CACHE_PROBLEM}"
        return [f"compiling {count} kernels, {how_often}: some 20 seconds"]

    def uncompiled(self) -> int:
        """Kernels that the first step will have to compile."""
        optimizer = self.optimizer
        phases = [*self.window.phases(), optimizer.norm_phase(math.inf), optimizer.step_phase()]
        calls = [call for phase in phases for item in phase for call in item]
        return jit.uncompiled(part for call in calls for part in code(call))

    def _epoch(self) -> float:
        return self.plan.epochs(self.progress.step)

    def _chars(self) -> int:
        """Characters trained on so far."""
        return self.plan.chars(self.progress.step)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


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
