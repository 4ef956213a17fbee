"""The library's door: load a model, sample, evaluate, look at its gradients."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from charrnn import checkpoint, evaluate, facts, sampling
from charrnn.config import Config, SampleConfig
from charrnn.data import Corpus, check_whole, read_corpus, split
from charrnn.errors import InputError
from charrnn.model import Gradients, Model, State, weights_of
from charrnn.reading import STDIN
from charrnn.runlog import KEPT_TEXT
from charrnn.threads import available
from charrnn.vocab import Vocabulary

SHAPE = {
    "config": dict,
    "vocabulary": list[Any],
    "unknown": int | None,
    "progress": dict,
    "corpus": dict,
}
"""What the metadata of a checkpoint has at least."""

TRAINING_FACTS = (
    "step", "nats_per_char", "val_nats_per_char", "best_val_nats_per_char", "best_step",
)  # fmt: skip


class LanguageModel:
    """A trained model with its vocabulary.

    Attributes
    ----------
    path : the checkpoint it came from
    config : how it was made and trained
    vocabulary : text <-> ids
    metadata : everything else that the checkpoint says
    model : the network itself
    """

    def __init__(
        self, source: checkpoint.Checkpoint, threads: int = 0, precision: str | None = None
    ) -> None:
        self.path, self.metadata = source.path, source.metadata
        self.config, self.vocabulary = described(source)
        config = self.config.model
        config = dataclasses.replace(config, precision=precision or config.precision)
        self.model = Model(config, self.vocabulary.size, threads or available())
        restore(self.model, self.model.params, source, "")

    @property
    def notes(self) -> list[str]:
        """What a person should know of how this machine runs the model."""
        return self.model.notes

    def sample(
        self,
        prompt: str = "",
        *,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_unknown: str = "skip",
        **options: Any,
    ) -> list[str]:
        """Samples, each with the prompt before it.

        ``options`` are the fields of `charrnn.config.SampleConfig`: ``length``, ``temperature``,
        ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``, ``num_samples``.
        """
        drawn = secrets.randbelow(2**32) if seed is None else seed
        return sampling.sample(
            self.model, self.vocabulary, SampleConfig(**options),
            prompt=prompt, seed=drawn, stop=stop, on_unknown=on_unknown,
        )  # fmt: skip

    def evaluate(
        self,
        text: str | bytes | Corpus,
        *,
        exact: bool = False,
        baselines: bool = False,
        losses: bool = False,
        on_unknown: str = "skip",
    ) -> dict[str, Any]:
        """How well the model predicts a text: see `charrnn.evaluate.report`.

        ``exact`` scores it as one stream from a zero state. ``baselines`` adds
        ``ngram_bits_per_char`` and ``xz_bits_per_char``, unless the training text is gone or has
        changed. ``losses`` adds the nats of every target, an array (N - 1,).
        """
        training = self.training_text() if baselines else None
        if training is not None:  # before the scoring: either text may be too long
            whole = text.text if isinstance(text, Corpus) else text
        if isinstance(text, Corpus):
            ids = text.encode(self.vocabulary, on_unknown)
        else:
            ids = self.vocabulary.encode(text, on_unknown)
        each = np.empty(max(0, len(ids) - 1), self.config.model.dtype) if losses else None
        nats, count = evaluate.evaluate(self.model, ids, streams=1 if exact else None, out=each)
        size = self._target_bytes(text, ids, on_unknown)
        report: dict[str, Any] = evaluate.report(nats, count, size)
        if each is not None:
            report["losses"] = each
        if training is not None:
            from charrnn.baselines import ngram_bits_per_char, xz_bits_per_char

            # As it was trained on, whatever becomes of unknown characters in the other text.
            known = "error" if self.vocabulary.unknown is None else "map"
            train_ids = self.vocabulary.encode(training, known)
            report["ngram_bits_per_char"] = ngram_bits_per_char(
                train_ids, ids, self.vocabulary.size
            )
            report["xz_bits_per_char"] = xz_bits_per_char(training, whole)
        return report

    def _target_bytes(self, text: str | bytes | Corpus, ids: np.ndarray, on_unknown: str) -> int:
        """Bytes of a text's targets in UTF-8: characters that are mapped have their own size."""
        if on_unknown == "map" and self.vocabulary.level == "char":
            if isinstance(text, Corpus):
                return text.vocabulary.utf8_size(text.ids[1:])
            if isinstance(text, str):
                return len(text[1:].encode("utf-8", "surrogatepass"))
        return self.vocabulary.utf8_size(ids[1:])

    def training_text(self) -> str | bytes | None:
        """The part of the text that the model was trained on, if it is still there."""
        found = self._text()
        return None if found is None else self._decoded(found, self._parts(found)[0])

    def validation_text(self) -> str | bytes | None:
        """What the model was validated on, if anything and if it is still there."""
        corpus, data = self.metadata["corpus"], self.config.data
        if data.val_file:
            validated = self._read([data.val_file], corpus.get("val_fingerprint"))
            return None if validated is None else validated.text
        found = self._text()
        return None if found is None else self._decoded(found, self._parts(found)[1]) or None

    def _decoded(self, text: Corpus, part: np.ndarray) -> str | bytes:
        instead = "leave --baselines out, or name a part of it with --text"
        check_whole(len(part), f"the text of {self.path}", instead)
        return text.vocabulary.decode(part)

    def _text(self) -> Corpus | None:
        """All of the text that training was given, if it is still there."""
        corpus = self.metadata["corpus"]
        if not {"sources", "fingerprint"} <= corpus.keys():
            return None
        if STDIN in corpus["sources"]:
            return self._read([str(self.path.parent / KEPT_TEXT)], corpus["fingerprint"], kept=True)
        return self._read(corpus["sources"], corpus["fingerprint"])

    def _read(
        self, sources: Sequence[str], fingerprint: str | None, kept: bool = False
    ) -> Corpus | None:
        """A text, if it can be read and is still the same."""
        if not are_files(sources):
            return None
        data = self.config.data
        try:
            found = read_corpus(sources, level=data.level, encoding=data.encoding, kept=kept)
        except InputError:
            return None
        return found if found.fingerprint == fingerprint else None

    def _parts(self, text: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of what was trained, validated and tested on, in the text's own vocabulary."""
        data = self.config.data
        return split(text.ids, 0.0 if data.val_file else data.val_frac, data.test_frac)

    def forward(
        self, ids: np.ndarray, state: State | None = None
    ) -> tuple[dict[str, np.ndarray], State]:
        """``output`` (T, B, H) and ``logits`` (T, B, V) of ids (T, B): see `Model.forward`."""
        return self.model.forward(ids, state)

    def gradients(
        self, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> Gradients:
        """Exact gradients of a window's mean loss: see `Model.gradients`."""
        return self.model.gradients(ids, targets, state)

    def describe(self) -> dict[str, Any]:
        """What `charrnn info` shows: nested, JSON-ready."""
        tensors = {
            name: " x ".join(map(str, array.shape))
            for name, array in self.model.to_torch(self.model.params).items()
        }
        options = self.config.to_json()
        options["train"]["learning_rate"] = self.config.train.peak_learning_rate
        return {
            "path": str(self.path),
            "parameters": self.model.params.count,
            "pytorch": self._pytorch(),
            "tensors": tensors,
            "vocabulary": {
                "level": self.vocabulary.level,
                "size": self.vocabulary.size,
                "symbols": [shown(s) for s in self._symbols()],
            },
            "training": self._training(),
            "corpus": self.metadata["corpus"],
            "config": options,
            "versions": self.metadata.get("versions", {}),
        }

    def _training(self) -> dict[str, Any]:
        """How far training was, and the validations until then (nats per character)."""
        progress = self.metadata["progress"]
        history = {
            f"step {step}": f"training {_loss(train)}  validation {_loss(val)}"
            for step, train, val in progress.get("validations", [])
        }
        return {k: progress.get(k) for k in TRAINING_FACTS} | {"history": history}

    def _symbols(self) -> list[Any]:
        symbols: list[Any] = list(self.vocabulary.symbols)
        if self.vocabulary.unknown is not None:
            symbols[self.vocabulary.unknown] = "<unknown>"
        return symbols

    def _pytorch(self) -> str:
        """Which PyTorch module takes the recurrent weights as they are."""
        c, cell = self.config.model, self.model.cell
        if not cell.torch_module or c.activation in ("sigmoid", "identity") or c.residual:
            why = "residual links" if c.residual else f"the {c.activation} activation"
            return f"has no module for {why if cell.torch_module else f'the {c.model} cell'}"
        return f"torch.nn.{cell.torch_module} loads the rnn tensors"


def _loss(nats: float | None) -> str:
    return "-" if nats is None else f"{nats:.4f}"


def shown(symbol: str | int) -> str:
    """A symbol as `info` prints it: bytes in hexadecimal, nothing invisible."""
    if isinstance(symbol, int):
        return f"{symbol:02x}"
    return "' '" if symbol == " " else repr(symbol)[1:-1]


def are_files(sources: Sequence[str]) -> bool:
    """Whether all of these are files or folders: a pipe would be waited for, a device never ends.

    A checkpoint that names them may come from anywhere.
    """
    return all(os.path.isfile(source) or os.path.isdir(source) for source in sources)


def described(source: checkpoint.Checkpoint) -> tuple[Config, Vocabulary]:
    """The config and the vocabulary of a checkpoint; all that it says has the right shape.

    Raises
    ------
    InputError : something is missing or wrong, or the weights are not as many as the config needs
    """
    said, what = source.metadata, f"the metadata of {source.path}"
    facts.check(said, SHAPE, what)
    for name, shape in (("progress", facts.PROGRESS), ("corpus", facts.CORPUS)):
        facts.check(said[name], shape, f"{name!r} of {what}", lacking=True)
    try:
        config = Config.from_json(said["config"])
        vocabulary = Vocabulary.from_json(
            {
                "level": config.data.level,
                "symbols": said["vocabulary"],
                "unknown": said["unknown"],
            }
        )
    except InputError as error:
        raise InputError(f"{source.path}: {error}; the checkpoint is damaged") from error
    needed = weights_of(config.model, vocabulary.size)
    if needed > sum(array.size for array in source.tensors.values()):  # before room is made for it
        raise InputError(
            f"{source.path}: its config is of {needed:,} weights, more than it has; "
            "the checkpoint is damaged"
        )
    return config, vocabulary


def restore(model: Model, into: Any, source: checkpoint.Checkpoint, prefix: str) -> None:
    """Fill ``into`` (Params of ``model``) from a checkpoint.

    ``prefix`` says from which tensors: "" are the weights, "optimizer.m." a moment.
    """
    tensors = {
        name[len(prefix) :]: array
        for name, array in source.tensors.items()
        if name.startswith(prefix) and (prefix or not name.startswith(("optimizer.", "state.")))
    }
    check_types(model, source, [f"{prefix}{name}" for name in model.to_torch(into)])
    try:
        model.from_torch(tensors, into)
    except InputError as error:
        raise InputError(f"{source.path}: {error}; the checkpoint is damaged") from error


def check_types(model: Model, source: checkpoint.Checkpoint, names: Iterable[str]) -> None:
    """InputError if one of these tensors is there and not of the model's type."""
    for name in names:
        found = source.tensors.get(name)
        if found is not None and found.dtype != model.config.dtype:
            raise InputError(
                f"{source.path}: tensor {name} is {found.dtype}, not {model.config.dtype}: "
                "the checkpoint is damaged"
            )


def load(
    path: str | Path | None = None, *, threads: int = 0, precision: str | None = None
) -> LanguageModel:
    """Load a trained model.

    Parameters
    ----------
    path : a checkpoint file or a run folder (its best model, else the last); None is the newest
        run below ``runs/``
    threads : 0 is one per core
    precision : factors of its products, "float32" or "bf16"; None is as it was trained

    Raises
    ------
    InputError : there is none, or it is damaged
    """
    found = checkpoint.run_checkpoint(path)
    try:
        source = checkpoint.load(found)
        described(source)
    except InputError as error:
        others = [str(other) for other in checkpoint.of_run(found.parent) if other != found]
        if not others or (path is not None and Path(path) == found):  # that one was asked for
            raise
        raise InputError(f"{error}; there are {', '.join(others)}") from error
    return LanguageModel(source, threads, precision)


def metadata_of(config: Config, vocabulary: Vocabulary, **more: Any) -> Mapping[str, Any]:
    """The metadata that `LanguageModel` reads."""
    return {
        "config": config.to_json(),
        "vocabulary": list(vocabulary.symbols),
        "unknown": vocabulary.unknown,
        **more,
    }
