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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from charrnn import __version__, atomic, checkpoint, evaluate, runlog, sampling
from charrnn.api import LanguageModel, load, metadata_of, restore
from charrnn.config import Config, SampleConfig, flag
from charrnn.data import STDIN, Corpus, Streams, fit, read_corpus, split
from charrnn.errors import InputError
from charrnn.kernels import jit
from charrnn.model import Model
from charrnn.optim import Clipping, Optimizer
from charrnn.schedules import learning_rate
from charrnn.threads import available
from charrnn.vocab import Vocabulary

Event = dict[str, Any]

RATE_MEMORY = 50
"""Steps over which the speed is smoothed."""

SAMPLE_LENGTH = 200
"""Characters of a sample while training."""

ARCHITECTURE = ("model", "hidden_size", "num_layers", "embedding_size", "activation", "residual")
"""Options that ``--init-from`` takes from the checkpoint."""

CAUSES = (
    "usual causes: a learning rate that is too high (--learning-rate), no clipping (--grad-clip), "
    "or --activation relu or identity with large weights"
)


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
    finished: str | None = None
    """Why it ended: "finished" or "patience"."""


@dataclass
class Text:
    """The text of a run, as ids."""

    vocabulary: Vocabulary
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    facts: dict[str, Any]
    """sources, fingerprint, characters: what checkpoints say of it."""
    notes: list[str] = field(default_factory=list)


class Run:
    """A run that is ready to train. `start` and `resume` make it.

    Attributes
    ----------
    folder : where its files are
    config : its options; batch size and window as they fit the text
    """

    def __init__(self, folder: Path, config: Config, text: Text, metrics_length: int = 0) -> None:
        self.folder, self.config, self.text = folder, config, text
        self.progress = Progress()
        self.metrics_length = metrics_length
        threads = config.train.threads or available()
        self.model = Model(config.model, text.vocabulary.size, threads)
        B, T = config.data.batch_size, config.data.seq_length
        self.streams = Streams(text.train, B, T)
        self.window = self.model.train_pass(min(T, self.streams.length), B, config.model.dropout)
        self.optimizer = Optimizer(
            config.train, self.model.params, self.model.grads, self.model.team
        )
        self.total_steps = _total_steps(config, self.streams.steps_per_epoch)
        self._interrupted = False
        self._before = self.window  # the window that ran last, whose end state is carried on

    def interrupt(self) -> None:
        """Ask to save and stop at the end of the step; safe in a signal handler."""
        self._interrupted = True

    # -- the loop -------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train, and say what happens: the events are described in `charrnn.runlog`."""
        self._started = self._tick = time.perf_counter()
        self._rate, self._steps_done = 0.0, 0  # smoothed characters per second
        atomic.sweep(self.folder)
        with runlog.RunLog(self.folder / "metrics.jsonl") as self.log:
            note = self.log.truncate(self.metrics_length)
            for text in [*self.text.notes, *([note] if note else []), *self._compile_note()]:
                yield {"event": "note", "step": self.progress.step, "text": text}
            yield self._logged(self._start_event(), log=self.metrics_length == 0)
            yield from self._steps()

    def _steps(self) -> Iterator[Event]:
        train, p = self.config.train, self.progress
        while p.step < self.total_steps and p.finished is None:
            loss, clipping = self._step()
            if not (math.isfinite(loss) and math.isfinite(clipping.norm)):
                yield self._diverged("loss" if not math.isfinite(loss) else "gradient")
                return
            rate = learning_rate(train, p.step, self.total_steps, self.streams.steps_per_epoch)
            self.optimizer.step(rate, p.step + 1, clipping)
            self.model.changed()
            p.step += 1
            event = self._step_event(loss, clipping, rate)
            yield event
            last = p.step == self.total_steps
            if _due(train.log_every, p.step) or (last and p.log_steps):
                yield self._logged(self._train_event(event))
            if len(self.text.val) and (_due(train.eval_every, p.step) or last):
                yield (event := self._validate())
                if not math.isfinite(event["val_nats_per_char"]):
                    yield self._diverged("validation loss")
                    return
            if _due(train.sample_every, p.step):
                yield self._sample()
            if last and p.finished is None:
                p.finished = "finished"
            due = _due(train.checkpoint_every, p.step)
            if due or p.finished or self._interrupted:
                if not np.isfinite(self.model.params.flat).all():
                    yield self._diverged("weights")
                    return
                yield from self._checkpoint(due)
            if self._interrupted and not p.finished:
                yield self._end("interrupted", log=False)
                return
        yield self._end(p.finished or "finished")

    def _step(self) -> tuple[float, Clipping]:
        """Forward and backward through the next window; its loss and the gradient's measure."""
        epoch, index = self.streams.position(self.progress.step)
        ids, targets = self.streams.window(index)
        window = self.window.of_length(len(ids))
        window.ids[:], window.targets[:] = ids, targets
        if index == 0:
            window.set_state(None)
        else:
            window.carry(self._before)
        self._before = window
        window.set_dropout_key(self.config.train.seed, self.progress.step)
        loss = window.run_gradients()
        return loss, self.optimizer.clip()

    def _validate(self) -> Event:
        """Loss of the validation text; keeps the best model."""
        p = self.progress
        nats, count = evaluate.evaluate(self.model, self.text.val)
        p.val_nats_per_char = nats / count
        best = p.best_val_nats_per_char is None or p.val_nats_per_char < p.best_val_nats_per_char
        best = best and math.isfinite(p.val_nats_per_char)
        if best:
            p.best_val_nats_per_char, p.best_step = p.val_nats_per_char, p.step
            p.validations_since_best = 0
        else:
            p.validations_since_best += 1
            patience = self.config.train.patience
            if patience and p.validations_since_best >= patience:
                p.finished = "patience"
        event = self._logged(
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
        if best:
            self._save("best.safetensors")
        return event

    def _sample(self) -> Event:
        config = SampleConfig(length=SAMPLE_LENGTH)
        seed = self.config.train.seed + self.progress.step
        text = sampling.sample(self.model, self.text.vocabulary, config, seed=seed)[0]
        return self._logged({"event": "sample", "step": self.progress.step, "text": text})

    # -- saving ---------------------------------------------------------------------------------

    def _checkpoint(self, due: bool) -> Iterator[Event]:
        keep, step = self.config.train.keep, self.progress.step
        names = ["last.safetensors"]
        if keep and due:
            names.insert(0, f"step-{step}.safetensors")
        for name in names:
            path = self._save(name)
        if keep:
            checkpoint.prune(self.folder, keep)
        yield {"event": "checkpoint", "step": step, "path": str(path)}

    def _save(self, name: str) -> Path:
        self.log.sync()
        model, states = self.model, self._before.state()
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
        if not isinstance(progress, dict) or not known <= set(progress):
            raise InputError(f"{source.path} does not say how far the run is: it is damaged")
        self.progress = Progress(**{name: progress[name] for name in known})
        try:
            self.window.set_state({s: source.tensors[f"state.{s}"] for s in self.model.cell.states})
        except KeyError as error:
            raise InputError(f"{source.path} lacks the tensor {error}: it is damaged") from error
        for w in self.window.window.w:  # where the window that ran last would have left it
            for s in self.model.cell.states:
                w[s][-1] = w[s][0]

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
            "steps_per_epoch": self.streams.steps_per_epoch,
            "parameters": self.model.params.count,
            "train_chars": len(self.text.train),
            "val_chars": len(self.text.val),
            "vocab_size": self.text.vocabulary.size,
            "batch_size": self.config.data.batch_size,
            "seq_length": self.config.data.seq_length,
        }

    def _step_event(self, loss: float, clipping: Clipping, rate: float) -> Event:
        p, now = self.progress, time.perf_counter()
        chars = self._before.ids.size
        speed = chars / max(now - self._tick, 1e-9)
        self._tick = now
        self._steps_done += 1
        if self._steps_done > 1:  # the first step also loads or compiles the kernels
            self._rate += (speed - self._rate) / min(self._steps_done - 1, RATE_MEMORY)
        p.log_steps += 1
        p.log_nats += loss
        limit = self.config.train.grad_clip
        clipped = bool(limit) and clipping.scale < 1
        p.log_clipped += clipped
        return {
            "event": "step",
            "step": p.step,
            "epoch": self._epoch(),
            "chars": self._chars(),
            "nats_per_char": loss,
            "grad_norm": clipping.norm,
            "clipped": float(clipped),
            "learning_rate": rate,
            "time": {"seconds": self._seconds(), "chars_per_second": self._rate},
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

    def _end(self, reason: str, *, log: bool = True, message: str | None = None) -> Event:
        p = self.progress
        test = self._test_loss() if p.finished and len(self.text.test) else None
        return self._logged(
            {
                "event": "end",
                "step": p.step,
                "epoch": self._epoch(),
                "reason": reason,
                "nats_per_char": p.nats_per_char,
                "val_nats_per_char": p.val_nats_per_char,
                "best_val_nats_per_char": p.best_val_nats_per_char,
                "best_step": p.best_step,
                "test_nats_per_char": test,
                "message": message,
                "time": {"seconds": self._seconds()},
            },
            log,
        )

    def _test_loss(self) -> float:
        """Loss of the test text under the best model, else the last."""
        best = load(self.folder, threads=self.model.team.size)
        nats, count = evaluate.evaluate(best.model, self.text.test)
        return nats / count

    def _diverged(self, what: str) -> Event:
        p = self.progress
        last = self.folder / "last.safetensors"
        kept = f"{last} is kept" if last.exists() else "there is no checkpoint yet"
        message = f"the {what} is no longer finite at step {p.step + 1}; {kept}; {CAUSES}"
        return self._end("diverged", message=message)

    def _compile_note(self) -> list[str]:
        """Word of the compilation that is to come, if there is any."""
        clipping = Clipping(1.0, 1.0)
        items = [
            *self.window.items(),
            *self.optimizer.items(1.0, 1, clipping),
            *self.optimizer.norm_items(math.inf),
        ]
        count = jit.uncompiled(call for item in items for call in item)
        if not count:
            return []
        return [f"compiling {count} kernels, once per installation: some ten seconds"]

    def _epoch(self) -> float:
        return self.progress.step / self.streams.steps_per_epoch

    def _chars(self) -> int:
        """Characters trained on so far."""
        epochs, steps = self.streams.position(self.progress.step)
        done = epochs * self.streams.length + steps * self.streams.seq_length
        return done * self.config.data.batch_size

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    limits = [config.train.max_steps]
    if config.train.epoch_limit is not None:
        limits.append(config.train.epoch_limit * steps_per_epoch)
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


# -- beginning and going on ---------------------------------------------------------------------


def start(
    files: Sequence[str],
    config: Config,
    out_dir: str | None = None,
    init_from: str | None = None,
    on_unknown: str = "add",
) -> Run:
    """Begin a run. Nothing is written before all input has been checked.

    Parameters
    ----------
    files : text files, folders, .gz files, or "-"
    config : its options
    out_dir : the run's folder; None is ``runs/<corpus>``
    init_from : a run or checkpoint whose weights and vocabulary to begin with
    on_unknown : what becomes of characters that this vocabulary lacks: "add", "map" or "error"
    """
    parent = load(init_from) if init_from is not None else None
    if parent is not None:
        config = _inherit(config, parent.config)
    corpus = read_corpus(files, level=config.data.level, encoding=config.data.encoding)
    vocabulary = _vocabulary(corpus, config, parent, on_unknown)
    text, config = _prepare(corpus, config, vocabulary)
    run = Run(Path(), config, text)
    run.model.initialize(config.train.seed)
    if parent is not None:
        _inherit_weights(run.model, parent.model)
    run.folder = runlog.new_run_folder(out_dir, corpus.name)
    if STDIN in corpus.sources:
        text.facts["sources"] = [str(_keep_text(run.folder, corpus))]
    facts = {
        "config": config.to_json(),
        "vocabulary": vocabulary.to_json(),
        "init_from": str(parent.path) if parent is not None else None,
        "on_unknown": on_unknown,
        "corpus": text.facts,
        "versions": versions(),
    }
    runlog.write_json(run.folder / "config.json", facts)
    return run


def _inherit(config: Config, parent: Config) -> Config:
    """``config`` with the parent's architecture; options that contradict it are refused."""
    changes = {}
    default = Config()
    for section, names in (("model", ARCHITECTURE), ("data", ("level",))):
        for name in names:
            given = getattr(getattr(config, section), name)
            theirs = getattr(getattr(parent, section), name)
            if given not in (theirs, getattr(getattr(default, section), name)):
                raise InputError(
                    f"{flag(name)} is {given}, but the model of --init-from has {theirs}: "
                    "leave the option out"
                )
            changes[name] = theirs
    return Config.from_options(config.options() | changes)


def _vocabulary(
    corpus: Corpus, config: Config, parent: LanguageModel | None, on_unknown: str
) -> Vocabulary:
    if parent is None:
        text = corpus.text
        if config.data.val_file:  # all characters of all splits
            text = text + _val_text(config)  # type: ignore[operator]
        return Vocabulary.build(text, config.data.level, config.data.min_count)
    if on_unknown == "add":
        return parent.vocabulary.extended(corpus.text)
    parent.vocabulary.encode(corpus.text, on_unknown)  # refuses what it must
    return parent.vocabulary


def _val_text(config: Config) -> str | bytes:
    data = config.data
    return read_corpus([str(data.val_file)], level=data.level, encoding=data.encoding).text


def _inherit_weights(model: Model, parent: Model) -> None:
    """Copy the parent's weights; rows and columns of new characters stay as drawn."""
    for name, old in parent.params.views.items():
        model.params.views[name][tuple(map(slice, old.shape))] = old
    model.changed()


def _prepare(corpus: Corpus, config: Config, vocabulary: Vocabulary) -> tuple[Text, Config]:
    """The text as ids and splits, and the config with a batch and window that fit it."""
    data = config.data
    ids = vocabulary.encode(corpus.text, "map" if vocabulary.unknown is not None else "error")
    notes = []
    train, val, test = split(ids, 0.0 if data.val_file else data.val_frac, data.test_frac)
    if data.val_file:
        val = vocabulary.encode(_val_text(config), "skip")
        if len(val) < 2:
            raise InputError(
                f"--val-file {data.val_file} has fewer than 2 characters: give a longer text"
            )
    for part, share, name in ((val, data.val_frac, "validation"), (test, data.test_frac, "test")):
        if share and not len(part) and not data.val_file:
            notes.append(f"the text is too short for a {name} part: there is none")
    batch, length, message = fit(len(train), data.batch_size, data.seq_length)
    if message:
        notes.append(message)
        config = Config.from_options(config.options() | {"batch_size": batch, "seq_length": length})
    facts = {
        "name": corpus.name,
        "sources": [s if s == STDIN else str(Path(s).resolve()) for s in corpus.sources],
        "fingerprint": corpus.fingerprint,
        "chars": len(corpus.text),
    }
    return Text(vocabulary, train, val, test, facts, notes), config


def _keep_text(folder: Path, corpus: Corpus) -> Path:
    """Keep a text that came through a pipe in the run, as it was decoded."""
    encoding = "utf-8"
    text = corpus.text
    data = text if isinstance(text, bytes) else text.encode(encoding, "surrogatepass")
    path = (folder / "text.txt").resolve()
    atomic.write(path, data)
    return path


def resume(run: str, files: Sequence[str] = (), changes: dict[str, Any] | None = None) -> Run:
    """Go on with a run exactly where its last checkpoint is.

    Parameters
    ----------
    run : its folder, or "latest": the newest below ``runs/``
    files : nothing, or the run's own text
    changes : options by field name; only the resumable ones may differ from the run's

    Raises
    ------
    InputError : no such run, another text, an option that may not change, or nothing left to do
    """
    folder = checkpoint.newest_run() if run == "latest" else Path(run)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder} holds no run: name the folder that charrnn train made")
    facts = runlog.parse_json(config_file.read_bytes(), str(config_file))
    last = folder / "last.safetensors"
    source = checkpoint.load(last) if last.is_file() else None
    try:
        old = Config.from_json(facts["config"])
        vocabulary = Vocabulary.from_json(facts["vocabulary"])
        known = facts["corpus"]
        sources, print_ = known["sources"], known["fingerprint"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{config_file} is damaged: {error} is missing") from error
    if source is not None:
        old = Config.from_json(source.metadata["config"])
    config = _changed(old, changes or {})
    corpus = read_corpus(
        files or sources, level=old.data.level, encoding=_encoding(old, folder, sources)
    )
    if corpus.fingerprint != print_:
        what = "the given text" if files else f"the text in {', '.join(sources)}"
        raise InputError(
            f"{what} is not the one that {folder} was trained on: give that one as FILE"
        )
    text, config = _prepare(corpus, config, vocabulary)
    text.facts = known
    text.notes = []
    length = source.metadata["metrics_length"] if source is not None else 0
    resumed = Run(folder, config, text, length)
    if source is not None:
        resumed.restore(source)
        _check_unfinished(resumed, changes or {})
    else:
        resumed.model.initialize(config.train.seed)
        if facts.get("init_from"):
            _inherit_weights(resumed.model, load(facts["init_from"]).model)
    return resumed


def _encoding(config: Config, folder: Path, sources: Sequence[str]) -> str:
    """A text that was kept in the run is UTF-8, whatever its encoding had been."""
    kept = str((folder / "text.txt").resolve())
    return "utf-8" if list(sources) == [kept] else config.data.encoding


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    """``config`` with the changes, which may concern resumable options alone."""
    fields = {
        f.name: f for section in Config.sections().values() for f in dataclasses.fields(section)
    }
    options = config.options()
    for name, value in changes.items():
        if not fields[name].metadata["resumable"] and value != options[name]:
            raise InputError(
                f"{flag(name)} cannot change when a run is resumed: it is {options[name]}; "
                "start a new run, or use --init-from"
            )
    return Config.from_options(options | changes)


def _check_unfinished(run: Run, changes: dict[str, Any]) -> None:
    """Refuse a run that has ended and of which nothing more is asked."""
    p = run.progress
    if p.step > run.total_steps:
        raise InputError(
            f"{run.folder} is at step {p.step:,} already, {run.total_steps:,} are asked for: "
            "give more --epochs or --max-steps"
        )
    if p.step < run.total_steps and (p.finished != "patience" or "patience" in changes):
        p.finished = None
        return
    path = run.folder / "metrics.jsonl"
    ended = path.is_file() and any(
        event["event"] == "end" and event["reason"] == p.finished for event in runlog.read(path)
    )
    if ended:  # else it was killed between its last checkpoint and its last line
        more = "--patience 0" if p.finished == "patience" else "--epochs or --max-steps"
        raise InputError(
            f"{run.folder} has ended after {p.step:,} steps: to train on, give more {more}"
        )


def train(
    files: str | Path | Sequence[str | Path],
    *,
    out_dir: str | Path | None = None,
    init_from: str | Path | None = None,
    on_unknown: str = "add",
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> LanguageModel:
    """Train a model and return its best version.

    Parameters
    ----------
    files : one or more text files, folders or .gz files
    out_dir : the run's folder; None is ``runs/<corpus>``, numbered if taken
    init_from : a run or checkpoint whose weights and vocabulary to begin with
    on_unknown : for ``init_from``: "add", "map" or "error"
    on_event : called with every event; `charrnn.runlog` describes them
    options : the command line's options under their field names, such as ``hidden_size=128``

    Raises
    ------
    InputError : something of this is wrong; nothing has been written
    Diverged : the loss is no longer finite
    """
    from charrnn.errors import Diverged

    paths = [files] if isinstance(files, (str, Path)) else files
    run = start(
        [str(path) for path in paths],
        Config.from_options(options),
        str(out_dir) if out_dir is not None else None,
        str(init_from) if init_from is not None else None,
        on_unknown,
    )
    for event in run.events():
        if on_event is not None:
            on_event(event)
        if event["event"] == "end" and event["reason"] == "diverged":
            raise Diverged(event["message"])
    return load(run.folder)
