"""Generation: from logits to probabilities, to symbols, to text that streams.

A sample's random numbers depend on the seed, its index and the step alone, so that sample i is the
same whether it is made alone or among many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.vocab import StreamDecoder, Vocabulary, describe

PENALTY_REACH = 64  # symbols back to which the repetition penalty applies
PROMPT_WINDOW = 256  # symbols of the prompt per call of the model
DRAWN_AHEAD = 64  # steps whose random numbers are made together

Floats = NDArray[np.float64]


class NextModel(Protocol):
    """What `generate` needs of a model."""

    def next_logits(self, ids: NDArray[np.int32], state: Any = None) -> tuple[NDArray[Any], Any]:
        """Logits (B, V) after the last of ``ids`` (T, B), and the state there."""
        ...


def generate(
    model: NextModel,
    vocabulary: Vocabulary,
    config: SampleConfig,
    *,
    prompt: str | bytes = "",
    seed: int,
    stop: Sequence[str] = (),
    on_unknown: str = "skip",
) -> Iterator[list[str]]:
    """Generate samples side by side, step by step.

    Every step draws one symbol for each of the ``config.num_samples`` samples, which all go on
    from the same prompt. There are ``config.length`` steps, fewer if stop strings end all samples.

    No model has seen a "start of text" symbol. Without a prompt, or if none of it is known, samples
    begin as if after a newline, which is not shown: text from the start of a line. If the
    vocabulary has no newline, their first symbol is drawn uniformly, as ``seed`` says even at
    temperature 0, and counts as the first of ``length``.

    Parameters
    ----------
    prompt
        Text before the samples; not part of what is yielded.
    seed
        From 0 to 2**64 - 1. With the sample's index and the step it decides each random number.
    stop
        A sample ends where one of these strings comes in its new text; the string is left out.
    on_unknown
        What `Vocabulary.encode` does with prompt characters that the model does not know:
        "skip", "map" or "error"; `unknown_note` says which these are.

    Yields
    ------
    list of str
        The new text of each sample as far as it is certain: what may be the beginning of a stop
        string, or at level "byte" of a character, waits for a later step. A sample that has ended
        yields "". Joined, a sample has exactly ``length`` symbols unless a stop string ended it.

    Raises
    ------
    InputError
        At once, for what is wrong with the arguments; while iterating, if logits are not finite.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"--seed is {seed}: it must be a whole number from 0 to 2**64 - 1")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stop:
        raise InputError("--stop is empty: give at least one character, or leave it out")
    return _steps(model, vocabulary, config, vocabulary.encode(prompt, on_unknown), seed, stop)


def sample(
    model: NextModel,
    vocabulary: Vocabulary,
    config: SampleConfig,
    *,
    prompt: str | bytes = "",
    seed: int,
    stop: Sequence[str] = (),
    on_unknown: str = "skip",
) -> list[str]:
    """The whole samples that `generate` yields in pieces, each with the prompt before it."""
    steps = generate(
        model, vocabulary, config, prompt=prompt, seed=seed, stop=stop, on_unknown=on_unknown
    )
    start = prompt if isinstance(prompt, str) else prompt.decode("utf-8", "replace")
    return ["".join(pieces) for pieces in zip([start] * config.num_samples, *steps, strict=True)]


def unknown_note(vocabulary: Vocabulary, prompt: str | bytes, on_unknown: str) -> str | None:
    """A line that names the prompt's unknown characters and what became of them; None if none."""
    missing = vocabulary.missing(prompt)
    if not missing or on_unknown == "error":  # the error names them
        return None
    fate = "skipped" if on_unknown == "skip" else "mapped to the unknown symbol"
    return f"prompt characters unknown to the model {fate}: {describe(missing)}"


def _steps(
    model: NextModel,
    vocabulary: Vocabulary,
    config: SampleConfig,
    prompt: NDArray[np.unsignedinteger],
    seed: int,
    stop: tuple[str, ...],
) -> Iterator[list[str]]:
    """The steps of `generate`, whose arguments it has checked."""
    batch = config.num_samples
    samples = [_Sample(vocabulary.decoder(), stop) for _ in range(batch)]
    history = np.repeat(prompt[None, -PENALTY_REACH:].astype(np.int64), batch, axis=0)
    context = prompt if len(prompt) else vocabulary.encode("\n", "skip")
    # These two stand until the model has been asked: nothing known, so every symbol alike.
    logits, rule = np.zeros((batch, vocabulary.size)), SampleConfig(temperature=1)
    state = None
    for start in range(0, len(context), PROMPT_WINDOW):
        window = context[start : start + PROMPT_WINDOW, None].astype(np.int32)
        logits, state = model.next_logits(np.repeat(window, batch, axis=1), state)
        rule = config
    for step, u in zip(range(1, config.length + 1), _uniforms(seed, batch), strict=False):
        ids = _draw(probabilities(logits, history, rule, vocabulary.unknown), u)
        last = step == config.length
        yield [s.add(i, last) for s, i in zip(samples, ids.tolist(), strict=True)]
        if last or all(s.ended for s in samples):
            return
        history = np.concatenate([history[:, 1 - PENALTY_REACH :], ids[:, None]], axis=1)
        logits, state = model.next_logits(ids[None].astype(np.int32), state)
        rule = config


class _Sample:
    """The text of one sample on its way out: decoded, and ended where a stop string comes."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""  # the longest end of the text that begins a stop string
        self.ended = False

    def add(self, id: int, last: bool) -> str:
        """The text that is certain now that symbol ``id`` has come; all of it if ``last``."""
        if self.ended:
            return ""
        text = self._decoder.decode([id], last)
        if not self._stop:
            return text
        released = ""
        for char in text:
            self._held += char
            found = max((len(s) for s in self._stop if self._held.endswith(s)), default=0)
            if found:
                self.ended = True
                return released + self._held[:-found]
            certain = next(
                n
                for n in range(len(self._held) + 1)
                if any(s.startswith(self._held[n:]) for s in self._stop)
            )
            released += self._held[:certain]
            self._held = self._held[certain:]
        return released + self._held if last else released


def probabilities(
    logits: NDArray[Any],
    history: NDArray[np.integer],
    config: SampleConfig,
    unknown: int | None = None,
) -> Floats:
    """The distribution that the next symbols are drawn from.

    In this order: repetition penalty, temperature, top-k, top-p, min-p. Each looks at what the one
    before has left over. Ties go to the lowest ids, so that ``top_k=1`` is the greedy choice.

    Parameters
    ----------
    logits
        (B, V), finite.
    history
        (B, any) ids of each sample so far; the last 64 are penalised, each id once.
    unknown
        Id of the unknown symbol, which gets probability 0.

    Returns
    -------
    ndarray
        (B, V), each row sums to 1.

    Raises
    ------
    InputError
        If a row has no finite maximum.
    """
    z = logits.astype(np.float64, order="C")  # sums have the same order for any B
    if unknown is not None:
        z[:, unknown] = -np.inf
    if config.repetition_penalty > 1 and history.size:
        recent = history[:, -PENALTY_REACH:]
        # A difference of log-odds, unlike a factor on logits, ignores their arbitrary zero point.
        penalised = np.take_along_axis(z, recent, 1) - math.log(config.repetition_penalty)
        np.put_along_axis(z, recent, penalised, 1)
    top = z.max(1, keepdims=True)
    if not np.isfinite(top).all():
        raise InputError(
            "the model gives no character a finite logit: it diverged, is damaged, or knows none "
            "but the unknown symbol; take another checkpoint"
        )
    if config.temperature == 0:
        greedy = np.zeros_like(z)
        np.put_along_axis(greedy, z.argmax(1, keepdims=True), 1.0, 1)
        return greedy
    z -= top
    with np.errstate(over="ignore"):  # tiny temperatures: -inf is right
        z /= config.temperature
    p = np.exp(z, out=z)
    if 0 < config.top_k < p.shape[1] or config.top_p < 1:
        p = _likeliest(p, config.top_k or p.shape[1], config.top_p)
    if config.min_p > 0:
        p[p < config.min_p * p.max(1, keepdims=True)] = 0
    p /= p.sum(1, keepdims=True)
    return p


def _likeliest(p: Floats, top_k: int, top_p: float) -> Floats:
    """``p`` (B, V) with zeros outside the k likeliest and, among those, outside the nucleus.

    The nucleus is the smallest set of the likeliest that reaches the share ``top_p`` of the sum.
    """
    order = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(p, order, 1)
    reached = np.cumsum(kept, axis=1)
    kept[:, 1:][reached[:, :-1] >= top_p * reached[:, -1:]] = 0
    p = np.zeros_like(p)
    np.put_along_axis(p, order, kept, 1)
    return p


def _uniforms(seed: int, samples: int) -> Iterator[Floats]:
    """For every step the samples' random numbers (B,) in [0, 1), one stream for each sample."""
    streams = [np.random.Generator(np.random.Philox(key=seed + (i << 64))) for i in range(samples)]
    while True:
        yield from np.stack([stream.random(DRAWN_AHEAD) for stream in streams], axis=1)


def _draw(p: Floats, u: Floats) -> NDArray[np.intp]:
    """The ids (B,) at which the cumulated ``p`` (B, V) first exceeds ``u`` (B,) of its sum."""
    cumulated = np.cumsum(p, axis=1)
    return np.argmax(cumulated > u[:, None] * cumulated[:, -1:], axis=1)
