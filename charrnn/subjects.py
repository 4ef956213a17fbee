"""Which models are looked at, and over which text: a run's, or fresh ones before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from charrnn import api
from charrnn.config import DataConfig, ModelConfig
from charrnn.data import read_corpus
from charrnn.errors import InputError
from charrnn.model import Model
from charrnn.vocab import Vocabulary, describe

KINDS: dict[str, dict[str, Any]] = {
    "rnn tanh": dict(model="rnn"),
    "rnn relu": dict(model="rnn", activation="relu"),
    "rnn sigmoid": dict(model="rnn", activation="sigmoid"),
    "rnn relu, identity": dict(model="rnn", activation="relu", init="identity"),
    "rnn tanh, orthogonal": dict(model="rnn", init="orthogonal"),
    "gru": dict(model="gru"),
    "lstm": dict(model="lstm"),
    "fastrnn": dict(model="fastrnn"),
    "rnn tanh, 4 residual": dict(model="rnn", num_layers=4, residual=True),
}
"""Fresh models that are compared if none is named."""


class Subject(NamedTuple):
    """A model, what it reads, and where it comes from if it is trained."""

    name: str
    model: Model
    vocabulary: Vocabulary
    text: str | bytes
    lm: api.LanguageModel | None = None


class Source(NamedTuple):
    """The text that the options name; neither files nor a prompt is a run's own."""

    files: Sequence[str] = ()
    prompt: str | None = None
    encoding: str | None = None

    def read(self, data: DataConfig) -> str | bytes | None:
        if not self.files:
            return self.prompt
        encoding = self.encoding or data.encoding
        return read_corpus(
            self.files, level=data.level, encoding=encoding, options=["encoding"]
        ).text


def trained(paths: Sequence[str], source: Source, untrained: bool = False) -> list[Subject]:
    """Runs or checkpoints; with ``untrained`` each behind what it was before its first step."""
    subjects = []
    for path in paths:
        lm = api.load(path, threads=1)
        own = not source.files and source.prompt is None
        text = lm.training_text() if own else source.read(lm.config.data)
        if text is None:
            raise InputError(
                f"the text that {lm.path} was trained on is gone or has changed: "
                "name one with --text"
            )
        if untrained:
            c = lm.config
            name = f"untrained {kind(c.model)}"
            subjects.append(_untrained(c.model, c.train.seed, lm.vocabulary, text, name))
        subjects.append(Subject(str(lm.path), lm.model, lm.vocabulary, text, lm))
    return subjects


def fresh(config: ModelConfig, seed: int, source: Source, several: bool = False) -> list[Subject]:
    """A model of this configuration before any training; or all `KINDS`, of its hidden size."""
    text = source.read(DataConfig())
    if text is None:
        raise InputError(
            "a fresh model has no text of its own: name one with --text or --prompt, or name a RUN"
        )
    vocabulary = Vocabulary.build(text)
    if not several:
        return [_untrained(config, seed, vocabulary, text, f"untrained {kind(config)}")]
    H = config.hidden_size
    subjects = []
    for name, options in KINDS.items():
        embedding = H if options.get("residual") else 0
        of_kind = ModelConfig(hidden_size=H, embedding_size=embedding, **options)
        subjects.append(_untrained(of_kind, seed, vocabulary, text, name))
    return subjects


def _untrained(
    config: ModelConfig, seed: int, vocabulary: Vocabulary, text: str | bytes, name: str
) -> Subject:
    model = Model(config, vocabulary.size)
    model.initialize(seed)
    return Subject(name, model, vocabulary, text)


def kind(c: ModelConfig) -> str:
    """A model in few words."""
    words = [c.model, f"{c.num_layers}x{c.hidden_size}"]
    words += [c.activation] if c.activation != "tanh" else []
    words += [c.init] if c.init != "uniform" else []
    words += ["residual"] if c.residual else []
    return " ".join(words)


def notes(subjects: Sequence[Subject], on_unknown: str) -> list[str]:
    """What a person should know beside the numbers."""
    found: list[str] = []
    for subject in subjects:
        found += subject.lm.notes if subject.lm else []
        missing = subject.vocabulary.missing(subject.text)
        if missing:
            fate = "skipped" if on_unknown == "skip" else "mapped to the unknown symbol"
            count = sum(missing.values())
            found.append(f"{count:,} unknown characters {fate}: {describe(missing)}")
    return list(dict.fromkeys(found))
