"""The one home of every option: its default, its range and its help text.

Four frozen dataclasses. The command line makes its flags from their fields, the run folder's
`config.json` is their JSON, and every value is checked here, whichever door it came through.
Field ``hidden_size`` is the flag ``--hidden-size``.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charrnn.errors import InputError

CELLS = tuple(
    sorted(p.stem for p in (Path(__file__).parent / "cells").glob("*.py"))
)  # file names, read without importing numba
CELLS = tuple(name for name in CELLS if name not in ("__init__", "base"))

HUGE = 1e38
"""Bound of what the update computes with: float32 must hold it, and its reciprocal."""

OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw")
LEARNING_RATES = {
    "sgd": 8.0,
    "momentum": 1.0,
    "adagrad": 0.1,
    "rmsprop": 5e-3,
    "adam": 0.01,
    "adamw": 0.01,
}


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    word: str | None = None,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    aliases: tuple[str, ...] = (),
    resumable: bool = False,
) -> Any:
    """One option. ``min`` and ``max`` are allowed values, ``above`` and ``below`` are not.

    ``word`` is allowed beside numbers; ``aliases`` are other names of the flag (without dashes);
    ``resumable`` options may change when a run is resumed.
    """
    meta = dict(
        help=help,
        choices=choices,
        word=word,
        min=min,
        max=max,
        above=above,
        below=below,
        aliases=aliases,
        resumable=resumable,
    )
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Section:
    """A group of options whose values are checked when it is made."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = _checked(f, hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)


def flag(name: str) -> str:
    """The command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")


def allowed(meta: Mapping[str, Any]) -> str:
    """The allowed values of an option, in words; empty if any will do."""
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"])
    low, high = meta["min"], meta["max"]
    if low is not None and high is not None:
        return f"from {_number(low)} to {_number(high)}"
    words = {"at least": low, "above": meta["above"], "at most": high, "below": meta["below"]}
    return " and ".join(f"{w} {_number(x)}" for w, x in words.items() if x is not None)


def _number(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:g}"


def _checked(f: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """``value`` in the field's type, or InputError."""
    kinds = typing.get_args(hint) or (hint,)
    if (value is None and type(None) in kinds) or (str in kinds and value == f.metadata["word"]):
        return value
    kind = kinds[0]
    wrong = InputError(f"{flag(f.name)} is {value!r}: it must be {_kind(kind, f.metadata)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise wrong from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong
    meta = f.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise wrong
    if kind is int and abs(value) >= 2**63:
        raise InputError(f"{flag(f.name)} has {len(str(value))} digits: it must be below 2**63")
    if kind in (int, float) and not (
        math.isfinite(value)
        and (meta["min"] is None or value >= meta["min"])
        and (meta["max"] is None or value <= meta["max"])
        and (meta["above"] is None or value > meta["above"])
        and (meta["below"] is None or value < meta["below"])
    ):
        raise wrong
    return value


def _kind(kind: type, meta: Mapping[str, Any]) -> str:
    if meta["choices"]:
        return allowed(meta)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    word = f"{meta['word']} or " if meta["word"] else ""
    return f"{word}{names[kind]} {allowed(meta)}".rstrip()


@dataclass(frozen=True)
class ModelConfig(Section):
    """What is trained."""

    model: str = option("lstm", "Recurrent cell.", choices=CELLS)
    hidden_size: int = option(
        256, "Units per layer (H).", min=1, max=65536, aliases=("rnn-size", "rnn_size")
    )
    num_layers: int = option(1, "Stacked layers (L).", min=1, max=1000)
    embedding_size: int = option(
        0, "Width of a trained character embedding (E); 0 = one-hot input.", min=0, max=65536
    )
    activation: str = option(
        "tanh",
        "Activation of the plain rnn; the other cells have their own.",
        choices=("tanh", "relu", "sigmoid", "identity"),
    )
    residual: bool = option(False, "Add a layer's input to its output where the widths agree.")
    dropout: float = option(
        0.4,
        "Share of activations dropped between layers and before the output.",
        min=0,
        below=1,
    )
    init: str = option(
        "uniform",
        "Initial recurrent weights; others are uniform within 1/sqrt(H), those that read "
        "characters (one-hot rows, the embedding) within sqrt(3).",
        choices=("uniform", "orthogonal", "identity"),
    )
    precision: str = option(
        "float32",
        "Factors of matrix products; bf16, on processors that multiply it, is up to twice as fast, "
        "with a matrix unit more (sums and weights stay float32).",
        choices=("float32", "bf16"),
    )
    dtype: str = option(
        "float32", "Arithmetic; float64 is for gradient checks.", choices=("float32", "float64")
    )


@dataclass(frozen=True)
class DataConfig(Section):
    """How the text becomes ids, splits, streams and windows."""

    level: str = option("char", "What a symbol is.", choices=("char", "byte"))
    encoding: str = option("utf-8", "Encoding of the text files.")
    min_count: int = option(
        1, "Characters seen fewer times than this become one unknown symbol.", min=1
    )
    val_frac: float | None = option(
        None,
        "Share of the text held out for validation.  "
        "[default: 0.1, but at most 1,000,000 characters]",
        min=0,
        below=1,
    )
    test_frac: float = option(0.0, "Share of the text, its end, held out as test.", min=0, below=1)
    val_file: str | None = option(None, "Validate on this file instead of a share of the text.")
    batch_size: int = option(
        16, "Parallel streams of text (B).", min=1, max=1_000_000, aliases=("batch",)
    )
    seq_length: int | None = option(
        None,
        "Characters of a window (T): how far back the gradient goes.  "
        "[default: 64, or with --bptt full no limit]",
        min=1,
        max=10_000_000,
        aliases=("seq-len", "bptt-steps"),
    )
    bptt: str = option(
        "truncated",
        "How the gradient's way back through time is cut: at the window's edge, nowhere (a file or "
        "stream is a window), k2 steps back for every k1 losses, or at random.",
        choices=("truncated", "full", "sliding", "randomized"),
    )
    k1: int | None = option(
        None, "Losses that go back together, with --bptt sliding.  [default: 16]", min=1
    )
    k2: int | None = option(
        None, "Steps that they go back, with --bptt sliding.  [default: 4 k1]", min=1
    )
    truncation_prob: str | None = option(
        None,
        "With --bptt randomized, the probability that a window ends after a character; N:P spares "
        "its first N.  [default: half of --seq-length is spared, the mean is --seq-length]",
    )
    recompute: str = option(
        "auto",
        "Keep few states of a window and compute the others again on the way back: less memory, "
        "some 1.4 times the time, the same bits. auto: windows that need over 256 MB; not with "
        "--bptt sliding.",
        choices=("auto", "never", "always"),
        resumable=True,
    )

    LENGTH: typing.ClassVar[int] = 64
    K1: typing.ClassVar[int] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, plan in (("k1", "sliding"), ("k2", "sliding"), ("truncation_prob", "randomized")):
            value = getattr(self, name)
            if value is not None and self.bptt != plan:
                raise InputError(
                    f"{flag(name)} is {value} with --bptt {self.bptt}: it goes with --bptt {plan}"
                )
        k1, k2 = self.look_back
        if k2 < k1:
            raise InputError(
                f"--k2 is {k2} with --k1 {k1}: it must be at least --k1, or losses would not reach "
                "their own step"
            )
        self.truncation(self.LENGTH)

    @property
    def window_length(self) -> int | None:
        """``seq_length`` or its default; None is no limit."""
        if self.seq_length is None and self.bptt != "full":
            return self.LENGTH
        return self.seq_length

    @property
    def look_back(self) -> tuple[int, int]:
        """k1 and k2 of sliding truncation."""
        k1 = self.k1 or self.K1
        return k1, self.k2 or 4 * k1

    def truncation(self, length: int) -> tuple[int, float]:
        """Of randomized truncation: characters that a window has at least, and the probability
        that it ends after the last of these or any further one, for windows of ``length``."""
        if self.truncation_prob is None:
            spared = max(1, length // 2)
            return spared, 1 / (length - spared + 1)
        first, colon, last = self.truncation_prob.rpartition(":")
        try:
            spared, probability = int(first) if colon else 1, float(last)
        except ValueError:
            spared, probability = 0, 0.0
        if spared < 1 or not 0 <= probability <= 1:
            raise InputError(
                f"--truncation-prob is {self.truncation_prob!r}: it must be a probability P from 0 "
                "to 1, or N:P with a number of spared characters N of at least 1, such as 32:0.03"
            )
        return spared, probability


@dataclass(frozen=True)
class TrainConfig(Section):
    """How it is trained and watched."""

    epochs: int | None = option(
        None,
        "Passes over the text.  [default: 10, or no limit with --max-steps]",
        min=1,
        resumable=True,
        aliases=("max-epochs", "num-epochs"),
    )
    max_steps: int | None = option(
        None, "Training steps at the most.  [default: no limit]", min=0, resumable=True
    )
    optimizer: str = option("adamw", "Update rule.", choices=OPTIMIZERS)
    learning_rate: float | None = option(
        None,
        "Peak learning rate.  [default: by optimizer: "
        + ", ".join(f"{k} {v:g}" for k, v in LEARNING_RATES.items())
        + "]",
        above=0,
        max=HUGE,
        aliases=("lr",),
    )
    lr_schedule: str = option(
        "cosine",
        "How the learning rate changes over the run.",
        choices=("constant", "step", "cosine", "linear"),
    )
    warmup_steps: int = option(
        100, "Steps of linear warm-up; at most a tenth of the run is used.", min=0
    )
    lr_final: float = option(
        0.0, "Where cosine and linear end, as a share of the peak.", min=0, max=1
    )
    lr_decay: float = option(
        0.97,
        "Factor of the step schedule, applied after each epoch.",
        above=0,
        max=1,
        aliases=("learning-rate-decay",),
    )
    lr_decay_after: int = option(
        10,
        "Epochs before the step schedule begins to decay.",
        min=0,
        aliases=("learning-rate-decay-after",),
    )
    momentum: float = option(0.9, "Decay of momentum's velocity.", min=0, below=1)
    beta1: float = option(0.5, "Decay of Adam's first moment.", min=0, below=1)
    beta2: float = option(0.99, "Decay of Adam's and rmsprop's second moment.", min=0, below=1)
    epsilon: float = option(1e-8, "Added to the root of the second moment.", min=1 / HUGE, max=HUGE)
    weight_decay: float | None = option(
        None,
        "Weight decay of the matrices (adamw: decoupled; others: L2).  "
        "[default: 0.01 with adamw, else 0]",
        min=0,
        max=HUGE,
    )
    grad_clip: float = option(
        1.0, "Largest global norm of the gradient; 0 = off.", min=0, aliases=("clip",)
    )
    grad_clip_value: float = option(
        0.0, "Largest absolute value of a gradient element; 0 = off.", min=0, max=HUGE
    )
    eval_every: int = option(
        500,
        "Steps between validations; 0 = only at the end.",
        min=0,
        resumable=True,
        aliases=("eval-val-every",),
    )
    checkpoint_every: int = option(
        500, "Steps between checkpoints; 0 = only at the end.", min=0, resumable=True
    )
    log_every: int = option(
        10,
        "Steps between lines of metrics.jsonl; 0 = off.",
        min=0,
        resumable=True,
        aliases=("print-every",),
    )
    log_gradients: int = option(
        0,
        "Steps between lines of metrics.jsonl on the gradient: norms, clipping, reach; 0 = off.",
        min=0,
        resumable=True,
    )
    sample_every: int = option(0, "Steps between samples; 0 = off.", min=0, resumable=True)
    keep: int = option(
        0, "How many step-<n> checkpoints to keep beside last and best.", min=0, resumable=True
    )
    on_save_error: str = option(
        "stop",
        "When a checkpoint or the metrics cannot be written: stop, or continue and try again at "
        "the next checkpoint.",
        choices=("stop", "continue"),
        resumable=True,
    )
    on_divergence: str = option(
        "stop",
        "When a loss or a number of the model is no longer finite: stop, or rollback to the last "
        "good state, halve the learning rate and go on.",
        choices=("stop", "rollback"),
        resumable=True,
    )
    max_rollbacks: int = option(
        10, "How often at most, with --on-divergence rollback.", min=1, resumable=True
    )
    patience: int = option(
        0, "Stop after so many validations without a better one; 0 = off.", min=0, resumable=True
    )
    seed: int = option(1, "Seed of weights, dropout and samples.", min=0, max=2**32 - 1)
    threads: int | str = option(
        "auto",
        "Threads; auto = the fastest number, by the time of the first steps; 0 = one per core.",
        word="auto",
        min=0,
        max=1024,
        resumable=True,
    )

    DEFAULT_EPOCHS: typing.ClassVar[int] = 10

    @property
    def epoch_limit(self) -> int | None:
        """The limit on epochs that holds: ``max_steps`` alone lifts the default one."""
        if self.epochs is None and self.max_steps is None:
            return self.DEFAULT_EPOCHS
        return self.epochs

    @property
    def decay(self) -> float:
        """``weight_decay``, or the optimizer's own default."""
        if self.weight_decay is None:
            return 0.01 if self.optimizer == "adamw" else 0.0
        return self.weight_decay

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, or the optimizer's own default."""
        if self.learning_rate is None:
            return LEARNING_RATES[self.optimizer]
        return self.learning_rate


@dataclass(frozen=True)
class SampleConfig(Section):
    """How text is generated."""

    length: int = option(1000, "New characters.", min=0, max=10**9, aliases=("num-chars",))
    temperature: float = option(
        0.8, "Below 1 safer, above 1 bolder; 0 = always the likeliest.", min=0
    )
    top_k: int = option(0, "Choose among the k likeliest only; 0 = off.", min=0)
    top_p: float = option(
        1.0, "Choose among the likeliest that together reach this probability.", above=0, max=1
    )
    min_p: float = option(
        0.0, "Choose among those at least this share as likely as the likeliest.", min=0, max=1
    )
    repetition_penalty: float = option(
        1.0, "Divide the odds of the last 64 characters' symbols by this; 1 = off.", min=1
    )
    num_samples: int = option(1, "Samples, computed together.", min=1, max=100_000)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Section name -> its class, in order."""
        return {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Config:
        """A config from flat ``field name -> value`` options; the rest are defaults."""
        parts, left = {}, dict(options)
        for name, section in cls.sections().items():
            names = [f.name for f in dataclasses.fields(section)]
            parts[name] = section(**{n: left.pop(n) for n in names if n in left})
        if left:
            raise InputError(f"unknown options: {', '.join(map(flag, left))}")
        return cls(**parts)  # type: ignore[arg-type]

    def options(self) -> dict[str, Any]:
        """The flat ``field name -> value`` of all sections: inverse of `from_options`."""
        return {k: v for part in dataclasses.asdict(self).values() for k, v in part.items()}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """JSON-ready nested dictionary: section -> field -> value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Config:
        """Inverse of `to_json`; fields that are missing (older files) take their defaults."""
        if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
            raise InputError("the config is not a JSON object of sections")
        unknown = set(data) - set(cls.sections())
        if unknown:
            raise InputError(f"unknown config sections: {', '.join(sorted(unknown))}")
        return cls.from_options({k: v for part in data.values() for k, v in part.items()})
