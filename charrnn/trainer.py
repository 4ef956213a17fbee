"""The training loop: a generator of events that prints nothing.

A run's numbers are a function of its config, its text and the machine. Here is the order of things:
a step, what is due after it, and the way back where a number is not finite. `charrnn.learner`
computes the step, `charrnn.progress` counts, `charrnn.saving` writes what a resumed run needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from charrnn import atomic, checkpoint, evaluate, facts, runlog, sampling
from charrnn.api import load, metadata_of
from charrnn.config import Config, SampleConfig
from charrnn.errors import InputError
from charrnn.kernels import jit
from charrnn.learner import Learner
from charrnn.memorised import memorised_shares
from charrnn.model import Model
from charrnn.optim import Clipping
from charrnn.passes import Inputs
from charrnn.probe import Norms
from charrnn.progress import Progress
from charrnn.saving import BEST, LAST, Saver, State, versions, way_back
from charrnn.schedules import learning_rate
from charrnn.threads import available
from charrnn.truncation import Piece, Plan
from charrnn.tuner import Tuner, sizes
from charrnn.vocab import Vocabulary

Event = dict[str, Any]

PACE = 0.1
"""Seconds between step events for who only shows them: a signal is not heard for as long."""

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


class Step(NamedTuple):
    """A training step: its loss, what became of its gradient, and its learning rate."""

    loss: float
    clipping: Clipping
    rate: float


class _Interrupted(Exception):
    """The run is to stop, and what is being computed can be computed again."""


class Run:
    """A run that is ready to train; `charrnn.runs` makes it.

    Attributes
    ----------
    folder : where its files are
    lock : keeps these to this process until the events have ended, or the run is forgotten
    config : its options
    progress : how far it is
    model, plan, learner : what it trains, on which pieces of the text, and the computing of it
    inherits : whether it began with another's weights, which are in `checkpoint.START`
    is_last : whether all of this is in the last checkpoint already
    goes_back : whether it is in another checkpoint, and what is newer will be abandoned
    abandoned : steps whose checkpoints are, as long as their names do not say so
    """

    def __init__(self, folder: Path, config: Config, text: Text) -> None:
        self.folder, self.config, self.text = folder, config, text
        self.lock = contextlib.ExitStack()
        self.inherits = self.is_last = self.goes_back = False
        self.abandoned: list[int] = []
        self.progress = Progress()
        self.metrics_length = 0  # where the metrics go on from this state
        threads = config.train.threads
        most = threads if isinstance(threads, int) and threads else available()
        self.model = Model(config.model, text.vocabulary.size, most)
        self.plan = text.plan
        self.learner = Learner(self.model, config, self.plan)
        counts = sizes(most) if threads == "auto" else [most]
        self.tuner = Tuner(self.model.team, counts, self.learner.by_units)
        self.tuner.begin()
        self.total_steps = _total_steps(config, self.plan)
        self._interrupted = False

    def interrupt(self) -> None:
        """Ask to save and stop at the end of the step; safe in a signal handler.

        A validation, and what is measured at the end of a run, is given up and made again when the
        run is resumed.
        """
        self._interrupted = True

    # -- the loop -------------------------------------------------------------------------------

    def events(self, pace: float = 0.0) -> Iterator[Event]:
        """Train, and say what happens: the events are described in `charrnn.runlog`.

        Those named "step", which are not logged, come after every step, or if ``pace`` is given,
        about so many seconds apart where several steps take less: these are then made in one go,
        quicker and to the same bits, and their ``nats_per_char`` and ``clipped`` are means.
        """
        self._pace, self._step_seconds = pace, math.inf
        self._started = self._tick = time.perf_counter()
        self._rate, self._steps_done = 0.0, 0  # smoothed characters per second
        path = self.folder / "metrics.jsonl"
        with self.lock, runlog.RunLog(path) as self.log:
            self.saver = Saver(self.folder, self.log, self.config.train)
            atomic.sweep(self.folder)
            notes = [*self.text.notes, *self.model.notes]
            if not self.is_last:  # before the metrics are cut back to it
                notes += self._become_last()
            notes += self._align_metrics()
            yield from map(self._note, notes)
            yield from self._compile()
            yield self._start_event()
            ended, p = False, self.progress
            if self._interrupted:
                ended = yield from self._stop()
            elif p.unvalidated or (p.step == self.total_steps and p.finished is None):
                ended = yield from self._after_step(new=False)
            while not ended:
                if self.progress.step >= self.total_steps or self.progress.finished is not None:
                    yield self._finish()
                    return
                ended = yield from self._train_step()

    def _become_last(self) -> list[str]:
        """Make this state the last checkpoint; returns what there is to tell.

        While newer ones are renamed, it lists them: one that was killed in between goes on with it,
        and one that is not listed is none of them, but was saved before its last was.
        """
        cuts, aside = self.metrics_length > 0, []
        if self.goes_back:
            self.abandoned = checkpoint.steps_after(self.folder, self.progress.step)
        if self.abandoned:
            self.saver.save(LAST, self.state(self.metrics_length), ending=True)
            aside = checkpoint.set_aside(self.folder, self.abandoned)
            self.abandoned = []
        self.saver.save(LAST, self.state(self.metrics_length), ending=cuts)
        if not aside:
            return []
        names = ", ".join(path.name for path in aside)
        return [
            f"goes on from step {self.progress.step:,}; newer checkpoints are set aside: {names}"
        ]

    def _align_metrics(self) -> list[str]:
        """Cut the metrics back to where this state is, and write what is to follow there.

        Returns what there is to tell.
        """
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
        return [note] if note else []

    def _train_step(self) -> Generator[Event, None, bool]:
        """A step, or some in one go, and what is due; returns whether the run has to stop."""
        p, learner, train = self.progress, self.learner, self.config.train
        norms = learner.norms if _due(train.log_gradients, p.step + 1) else None
        piece = self.plan.piece(p.step)
        window = learner.window_of(piece)
        reach = None if norms is None else learner.reach(piece, window, p.step)
        window.make_ready()
        began = time.perf_counter()
        made, fault = self._make_steps(piece, window, norms)
        taken = time.perf_counter() - began
        self._measure_speed(taken, len(made), piece)
        end = p.step + len(made)
        for step in made if fault else made[:-1]:
            p.stepped(step.loss, step.clipping.scale)
            if _due(train.log_every, p.step):
                event = self._step_event(step, end - p.step)
                yield self._log_step(event, later=p.step + train.log_every <= end)
        if fault is not None:
            return (yield from self._diverged(fault, p.step + 1))
        p.stepped(made[-1].loss, made[-1].clipping.scale)
        event = self._step_event(made[-1])
        yield event | _means(made)
        due = _due(train.log_every, p.step) or p.step == self.total_steps
        if norms is not None:
            yield self._logged(self._gradient_event(norms.measure(), reach), later=due)
        yield from self._tune(taken, piece)
        if due:
            yield self._log_step(event)
        return (yield from self._after_step())

    def _make_steps(
        self, piece: Piece, window: Inputs, norms: Norms | None
    ) -> tuple[list[Step], str | None]:
        """Steps from ``piece`` on, and what is not finite in the one after them, if anything."""
        p, learner = self.progress, self.learner
        ids, targets = self.plan.alike(p.step, self._steps_at_once())
        rates = [self._learning_rate(p.step + i) for i in range(max(1, len(ids)))]
        found = learner.steps(window, ids, targets, p.step, rates)
        single = not found
        if single:
            found = [learner.gradients(piece, window, p.step)]
        made: list[Step] = []
        for (loss, clipping), rate in zip(found, rates, strict=False):
            if (fault := _fault(loss, clipping)) is not None:
                return made, fault
            made.append(Step(loss, clipping, rate))
        if norms is not None:
            norms.begin()
        if single:
            learner.update(rates[0], p.step + 1, made[0].clipping)
        return made, None

    def _steps_at_once(self) -> int:
        """How many steps may be made before anybody has to look at the model, or at the clock."""
        p, train = self.progress, self.config.train
        if self.tuner.searching or _due(train.log_gradients, p.step + 1):
            return 1
        intervals = train.eval_every, train.checkpoint_every, train.sample_every
        left = [interval - p.step % interval for interval in intervals if interval]
        if train.log_gradients:
            left.append(train.log_gradients - 1 - p.step % train.log_gradients)
        return max(1, min(self.total_steps - p.step, int(self._pace / self._step_seconds), *left))

    def _learning_rate(self, step: int) -> float:
        """Of the step after ``step`` steps."""
        epoch, _ = self.plan.position(step)
        rate = learning_rate(self.config.train, step, self.total_steps, epoch)
        return rate * self.progress.learning_rate_scale

    def _measure_speed(self, taken: float, steps: int, piece: Piece) -> None:
        """Smooth the speed, all that was done since the last steps included."""
        now = time.perf_counter()
        speed = steps * piece.scored / max(now - self._tick, 1e-9)
        self._tick, self._step_seconds = now, taken / max(steps, 1)
        if self._steps_done:  # the first step also loads or compiles the kernels
            self._rate += (speed - self._rate) * min(1, steps / min(self._steps_done, RATE_MEMORY))
        self._steps_done += steps

    def _after_step(self, new: bool = True) -> Generator[Event, None, bool]:
        """What is due after a step; returns whether the run has to stop.

        It is not ``new`` if the run goes on from a step that is owed something still: its
        validation was put off, or it has become the last one.
        """
        train, p = self.config.train, self.progress
        last, owed = p.step == self.total_steps, new or p.unvalidated
        validates = len(self.text.val) > 0 and (_due(train.eval_every, p.step) or last)
        validates &= p.validated_step != p.step
        due, best, p.unvalidated = _due(train.checkpoint_every, p.step), False, False
        looked_at, stopping = validates or due or last, self._interrupted
        if (looked_at or stopping) and not self.learner.finite():
            if not looked_at and train.on_divergence == "rollback":
                # Resumed from the last checkpoint, it goes back from where it would have, anyway.
                yield self._end("interrupted", log=False)
                return True
            what = "weights, the optimizer's moments or the hidden state"
            return (yield from self._diverged(what, p.step))
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
        if owed and _due(train.sample_every, p.step):
            try:
                yield self._sample()
            except InputError:  # the weights are finite, but no logit is
                if best:  # a model that is named as the best one is there
                    self.saver.save(BEST, self.state())
                return (yield from self._diverged("logits of a sample", p.step))
        if best:
            self.saver.save(BEST, self.state())
        if last and p.finished is None:
            p.finished = "finished"
        if due or p.finished:
            yield from self._checkpoint(due)
        yield from map(self._note, self.saver.news())
        if stopping and not p.finished:
            return (yield from self._stop(saved=due))
        return False

    def _stop(self, saved: bool = False) -> Generator[Event, None, bool]:
        """End in the middle, as asked to."""
        if not saved:
            yield from self._checkpoint(False)
            yield from map(self._note, self.saver.news())
        yield self._end("interrupted", log=False)
        return True

    def _finish(self) -> Event:
        """The end of a run that has made all its steps."""
        try:
            return self._end(self.progress.finished or "finished")
        except _Interrupted:
            return self._end("interrupted", log=False)

    def _tune(self, seconds: float, piece: Piece) -> Iterator[Event]:
        """Choose the threads of the next step by the time of this one, unless it is a short one."""
        share = len(piece.targets) / self.plan.seq_length
        text = self.tuner.took(seconds / share) if share > 0.5 else None
        if text is not None:
            yield self._note(text)

    def _validate(self) -> Event:
        """Loss of the validation text."""
        p = self.progress
        nats, count = evaluate.evaluate(self.model, self.text.val, on_progress=self._look)
        best = p.validated(nats / count, self.config.train.patience)
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

    def _checkpoint(self, due: bool) -> Iterator[Event]:
        p = self.progress
        ending = p.finished is not None or self._interrupted
        if self.saver.checkpoint(p.step, self.state(), due, ending):
            path = self.folder / LAST
            yield {"event": "checkpoint", "step": p.step, "path": str(path)}

    def state(self, metrics_length: int | None = None) -> State:
        """What a checkpoint holds now.

        ``metrics_length``: where the metrics go on from this state, if not at their end.
        """
        metadata = metadata_of(
            self.config,
            self.text.vocabulary,
            progress=dataclasses.asdict(self.progress),
            corpus=self.text.facts,
            metrics_length=self.log.length if metrics_length is None else metrics_length,
            versions=versions(),
            **({"abandoned": self.abandoned} if self.abandoned else {}),
        )
        return self.learner.tensors(), metadata

    def begin(self) -> None:
        """Be as before the first step.

        Raises
        ------
        InputError
            If the weights that the run inherited are gone or damaged.
        """
        if self.inherits:
            self.restore(checkpoint.load(self.folder / checkpoint.START))
            return
        self.model.initialize(self.config.train.seed)
        self.model.changed()
        self.learner.forget()
        self.progress, self.metrics_length = Progress(total_steps=self.total_steps), 0

    def restore(self, source: checkpoint.Checkpoint) -> None:
        """Take weights, moments, hidden state and progress from a checkpoint of this run."""
        self.learner.restore(source)
        said, what = source.metadata["progress"], f"the progress of {source.path}"
        self.progress = Progress.from_json(said, what)
        where = f"the metadata of {source.path}"
        checked = facts.check(source.metadata, {"metrics_length": int}, where)
        self.metrics_length = checked["metrics_length"]
        facts.check(source.metadata, {"abandoned": list[int]}, where, lacking=True)
        self.abandoned = checked.get("abandoned", [])

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
        resumed.
        """
        before, source = self.progress, way_back(self.folder, self.progress, step)
        if source is not None:
            self.restore(source)
        else:
            self.begin()
        self.progress.went_back(before, step, what)
        self.saver.save(LAST, self.state(self.metrics_length))
        self._align_metrics()

    def _divergence(self, what: str, step: int) -> str:
        """What there is to say when it ends the run."""
        last, n = self.folder / LAST, len(self.progress.rollbacks)
        after = f" after {n} rollbacks" if n else ""
        return (
            f"the {what} {_is(what)} no longer finite at step {step:,}{after}; {last} is kept; "
            f"{CAUSES}"
        )

    # -- events ---------------------------------------------------------------------------------

    def _logged(self, event: Event, later: bool = False) -> Event:
        self.saver.append(event, later)
        return event

    def _log_step(self, event: Event, later: bool = False) -> Event:
        """The line on the steps since the last such line, of which this is the newest."""
        event = event | {"event": "train"} | self.progress.end_log_interval()
        return self._logged(event, later) if self.config.train.log_every else event

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

    def _step_event(self, step: Step, ago: int = 0) -> Event:
        """Of the newest step that is counted; ``ago``: how many have been made after it."""
        return {
            "event": "step",
            "step": self.progress.step,
            "epoch": self._epoch(),
            "chars": self.plan.chars(self.progress.step),
            "nats_per_char": step.loss,
            "grad_norm": step.clipping.norm,
            "clipped": float(step.clipping.scale < 1),
            "learning_rate": step.rate,
            "time": {
                "seconds": self._seconds() - ago * self._step_seconds,
                "chars_per_second": self._rate,
                "threads": self.model.team.size,
            },
        }

    def _gradient_event(self, norms: dict[str, Any], reach: dict[str, Any] | None) -> Event:
        """What there is to say of this step's gradient."""
        params, grads = self.model.params, self.model.grads
        limit = self.config.train.grad_clip_value
        beyond = np.count_nonzero(np.abs(grads.flat) > limit) if limit else 0
        return {
            "event": "gradients",
            "step": self.progress.step,
            "epoch": self._epoch(),
            **norms,
            **self.progress.end_gradient_interval(),
            "clipped_elements": beyond / params.count,
            "reach": reach,
        }

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
        kernels = self.uncompiled()
        if kernels:
            count, how_often = len(kernels), jit.how_often()
            yield self._note(f"compiling {count} kernels, {how_often}: some 20 seconds")
        for kernel in kernels:
            if self._interrupted:
                break
            kernel.address()  # compiles it

    def uncompiled(self) -> list[jit.Code]:
        """Kernels that the first step will have to compile."""
        return jit.uncompiled(self.learner.kernels())

    def _epoch(self) -> float:
        return self.plan.epochs(self.progress.step)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _means(steps: list[Step]) -> Event:
    """What an event says of all the steps since the one before."""
    n = len(steps)
    return {
        "steps": n,
        "nats_per_char": sum(step.loss for step in steps) / n,
        "clipped": sum(step.clipping.scale < 1 for step in steps) / n,
    }


def _fault(loss: float, clipping: Clipping) -> str | None:
    """What of a step is not finite, if anything."""
    if not math.isfinite(loss):
        return "loss"
    return None if math.isfinite(clipping.norm) else "gradient"


def _is(what: str) -> str:
    return "are" if what.startswith(("weights", "logits")) else "is"


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step > 0 and step % interval == 0


def _total_steps(config: Config, plan: Plan) -> int:
    limits = [config.train.max_steps]
    if config.train.epoch_limit is not None:
        limits.append(plan.steps(config.train.epoch_limit))
    return min(limit for limit in limits if limit is not None)
