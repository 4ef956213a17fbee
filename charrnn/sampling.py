"""Generation: from a prompt and random numbers to symbols, and to text that streams.

A sample's random numbers depend on the seed, its index and the step alone, so that sample i is the
same whether it is made alone or among many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.stepper import MOST
from charrnn.vocab import StreamDecoder, Vocabulary, describe

PATIENCE = 0.05  # seconds of steps that may be computed before the first of them is shown

Floats = NDArray[np.float64]


class Stepper(Protocol):
    """Draws symbols for all samples: see `charrnn.stepper.Stepper`."""

    def feed(self, ids: NDArray[np.integer], remember: bool = True) -> None: ...

    def draw(self, u: Floats) -> NDArray[np.integer]: ...


Random = np.random.Generator


class SteppingModel(Protocol):
    """What `generate` needs of a model."""

    def stepper(self, batch: int, config: SampleConfig, unknown: int | None) -> Stepper: ...


def generate(
    model: SteppingModel,
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
    check_seed(seed)
    ids = vocabulary.encode(prompt, on_unknown)
    return _steps(model, vocabulary, config, ids, seed, stop_strings(stop))


def sample(
    model: SteppingModel,
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


def check_seed(seed: int) -> None:
    """Refuse what is no seed of samples."""
    if not 0 <= seed < 2**64:
        raise InputError(f"--seed is {seed}: it must be a whole number from 0 to 2**64 - 1")


def stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """Stop strings, none of which may be empty; a single one may stand for itself."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stop:
        raise InputError("--stop is empty: give at least one character, or leave it out")
    return stop


def random_numbers(seed: int, index: int) -> Random:
    """The random numbers of one sample."""
    return np.random.Generator(np.random.Philox(key=seed + (index << 64)))


def unknown_note(vocabulary: Vocabulary, prompt: str | bytes, on_unknown: str) -> str | None:
    """A line that names the prompt's unknown characters and what became of them; None if none."""
    missing = vocabulary.missing(prompt)
    if not missing or on_unknown == "error":  # the error names them
        return None
    fate = "skipped" if on_unknown == "skip" else "mapped to the unknown symbol"
    return f"prompt characters unknown to the model {fate}: {describe(missing)}"


def _steps(
    model: SteppingModel,
    vocabulary: Vocabulary,
    config: SampleConfig,
    prompt: NDArray[np.unsignedinteger],
    seed: int,
    stop: tuple[str, ...],
) -> Iterator[list[str]]:
    """The steps of `generate`, whose arguments it has checked."""
    samples = [Outlet(vocabulary.decoder(), stop) for _ in range(config.num_samples)]
    done = 0
    for ids in symbols(model, vocabulary, config, prompt, seed):
        for row in ids.tolist():
            done += 1
            last = done == config.length
            yield [s.add(i, last) for s, i in zip(samples, row, strict=True)]
            if all(s.ended for s in samples):
                return


def symbols(
    model: SteppingModel,
    vocabulary: Vocabulary,
    config: SampleConfig,
    prompt: NDArray[np.unsignedinteger],
    seed: int,
) -> Iterator[NDArray[np.integer]]:
    """The symbols of all samples: ``config.length`` rows in pieces (n, B)."""
    left, random = config.length, [random_numbers(seed, i) for i in range(config.num_samples)]
    stepper = model.stepper(len(random), config, vocabulary.unknown)
    if len(prompt):
        stepper.feed(prompt[:, None])
    elif left:
        first = begin(stepper, vocabulary, random)
        yield first
        left -= len(first)
    yield from drawn(stepper, random, left)


def begin(
    stepper: Stepper, vocabulary: Vocabulary, random: Sequence[Random]
) -> NDArray[np.integer]:
    """Begin samples that have no prompt; their first symbols (1, B), or none (0, B)."""
    newline = vocabulary.encode("\n", "skip")
    if len(newline):
        stepper.feed(newline[:, None], remember=False)
        return np.zeros((0, len(random)), np.int64)
    known = np.array([i for i in range(vocabulary.size) if i != vocabulary.unknown])
    first = known[[[int(r.random() * len(known)) for r in random]]]
    stepper.feed(first)
    return first


def drawn(stepper: Stepper, random: Sequence[Random], left: int) -> Iterator[NDArray[np.integer]]:
    """The next ``left`` symbols of all samples in pieces (n, B), one stream of numbers for each.

    A piece is one row at first, for a quick start, and grows while it takes less than `PATIENCE`.
    """
    n = 1
    while left:
        n = min(n, left)
        began = time.perf_counter()
        yield stepper.draw(np.stack([r.random(n) for r in random], axis=1))
        left -= n
        n = min(2 * n, MOST) if time.perf_counter() - began < PATIENCE / 2 else max(1, n // 2)


class Outlet:
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
        return self.release(text, last) if self._stop else text

    def release(self, text: str, last: bool) -> str:
        """What is certain now that ``text`` has been decoded."""
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
