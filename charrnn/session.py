"""A text that a person and a model write in turns: what the model goes on from, and its moves.

What the model has read is at any time exactly what was fed and what was handed out: a turn that is
ended by a stop string, or left in the middle, is taken back to there.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn import checkpoint
from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.model import Model
from charrnn.sampling import (
    Outlet,
    Random,
    begin,
    check_seed,
    drawn,
    random_numbers,
    stop_strings,
)
from charrnn.stepper import Place
from charrnn.vocab import Vocabulary

FILE_SUFFIX = ".safetensors"
TAIL = 60  # characters that remind a person of where the text is
MOST_UNDONE = 100
MANY = 10_000  # symbols of a turn that are read again rather than a state kept
LONGEST_SYMBOL = 4  # bytes of a character in UTF-8


class Piece(NamedTuple):
    """New text, and the surprise of each of its characters."""

    text: str
    bits: list[float]


class Moment(NamedTuple):
    """Where a session is: what `Session.return_to` needs."""

    place: Place | None
    tail: str


class Session:
    """One sample that goes on turn by turn.

    The random numbers of turn i are those of sample i (from 0) of the same seed: the first turn
    after a prompt gives what `charrnn.sampling.generate` gives, and what came of a turn depends on
    the seed, its number and the text, not on how long the turns before it were.

    A character's surprise is -log2 of the probability that the model gave it, at temperature 1 and
    without filters: what `charrnn eval` would say of the text, whatever made it.

    Parameters
    ----------
    config : how symbols are drawn, and how many a turn has; may be set anew at any time
    seed : from 0 to 2**64 - 1; setting it begins with turn 0
    stop : a turn ends before one of these strings

    Attributes
    ----------
    turn : number of the next turn
    kept : moments that `save` keeps in memory, by name
    tail : the end of the text
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        config: SampleConfig,
        *,
        seed: int,
        stop: Sequence[str] = (),
    ) -> None:
        self.model, self.vocabulary = model, vocabulary
        self._stepper = model.stepper(1, config, vocabulary.unknown, surprise=True)
        self.config, self.seed, self.stop = config, seed, stop
        self.kept: dict[str, Moment] = {}
        self.tail = ""
        self._marks: deque[Moment] = deque(maxlen=MOST_UNDONE)

    @property
    def config(self) -> SampleConfig:
        return self._config

    @config.setter
    def config(self, config: SampleConfig) -> None:
        self._config = config
        self._stepper.set_rule(config)

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        check_seed(seed)
        self._seed, self.turn = seed, 0

    @property
    def stop(self) -> tuple[str, ...]:
        return self._stop

    @stop.setter
    def stop(self, stop: Sequence[str]) -> None:
        self._stop = stop_strings(stop)

    def feed(self, text: str | bytes, on_unknown: str = "skip") -> None:
        """Let the model read ``text`` after all that there is; see `Vocabulary.encode`."""
        ids = self.vocabulary.encode(text, on_unknown)
        if len(ids):
            self._stepper.feed(ids[:, None])
        self._append(text if isinstance(text, str) else text.decode("utf-8", "replace"))

    def go_on(self) -> Iterator[Piece]:
        """A turn: ``config.length`` new symbols, in pieces, fewer if a stop string comes.

        Bytes are drawn on until a character is complete. Whoever stops iterating stops the turn.

        Raises
        ------
        InputError : while iterating, if logits are not finite
        """
        random = random_numbers(self.seed, self.turn)
        self.turn += 1
        first: NDArray[np.integer] = np.zeros((0, 1), np.int64)
        start = self._stepper.place()
        if start is None and self.config.length:
            first = begin(self._stepper, self.vocabulary, [random])
            start = None if len(first) else self._stepper.place()
        turn = _Turn(self.vocabulary, self.stop)
        try:
            for ids, bits in self._symbols(first, random, turn):
                piece = turn.take(ids, bits)
                self._append(piece.text)
                if len(turn.ids) > MANY and turn.symbols_out == len(turn.ids):
                    start = self._stepper.place()
                    turn.forget()
                yield piece
                if turn.outlet.ended:
                    return
            piece = turn.take([], [], last=True)
            if piece.text:
                self._append(piece.text)
                yield piece
        finally:
            if turn.symbols_out < len(turn.ids):
                self._stepper.return_to(start)
                if turn.symbols_out:
                    self._stepper.feed(np.array(turn.ids)[: turn.symbols_out, None])

    def _symbols(
        self, first: np.ndarray, random: Random, turn: _Turn
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Symbols as they are drawn, and their bits."""
        if len(first):
            known = self.vocabulary.size - (self.vocabulary.unknown is not None)
            yield first[:, 0].tolist(), [float(np.log2(known))]
        for ids in drawn(self._stepper, [random], self.config.length - len(first)):
            yield self._with_bits(ids)
        for _ in range(LONGEST_SYMBOL - 1):
            if turn.decoder.pending:
                yield self._with_bits(self._stepper.draw(random.random((1, 1))))

    def _with_bits(self, ids: np.ndarray) -> tuple[list[int], list[float]]:
        nats = self._stepper.nats[: len(ids), 0]
        return ids[:, 0].tolist(), (nats / np.log(2)).tolist()

    def _append(self, text: str) -> None:
        self.tail = (self.tail + text)[-TAIL:]

    # -- going back -----------------------------------------------------------------------------

    def moment(self) -> Moment:
        """Where the session is now."""
        return Moment(self._stepper.place(), self.tail)

    def return_to(self, moment: Moment) -> None:
        """Go back, or over, to a moment of a session with this model."""
        now = self._stepper.place()
        try:
            self._stepper.return_to(moment.place)
        except InputError:
            self._stepper.return_to(now)
            raise
        self.tail = moment.tail

    def mark(self, moment: Moment | None = None) -> None:
        """Remember a moment, this one if None: `undo` comes back to it."""
        self._marks.append(moment or self.moment())

    def undo(self) -> None:
        """Take back all since the last mark that was not undone."""
        if not self._marks:
            raise InputError("there is nothing to undo")
        self.return_to(self._marks.pop())

    def reset(self) -> None:
        """Forget the text; the settings stay."""
        self.return_to(Moment(None, ""))

    def save(self, name: str) -> None:
        """Keep this moment under a name, or in a file if the name ends in ``.safetensors``.

        Raises
        ------
        InputError : the file is there and holds something else
        SaveError : it cannot be written
        """
        place, tail = self.moment()
        if not name.endswith(FILE_SUFFIX):
            self.kept[name] = Moment(place, tail)
            return
        if place is None:
            raise InputError("there is no text yet: nothing to save")
        if Path(name).exists():
            _header(name, "save under another name")
        tensors = {f"state.{s}": array for s, array in place.state.items()}
        tensors |= {"last": place.last, "recent": place.recent}
        header = {"model": fingerprint(self.model, self.vocabulary), "tail": tail}
        checkpoint.save(name, tensors, {"session": header})

    def load(self, name: str) -> None:
        """Go to what was saved under a name.

        Raises
        ------
        InputError : there is no such name or file, it is damaged, or of another model
        """
        if not name.endswith(FILE_SUFFIX):
            if name not in self.kept:
                names = ", ".join(self.kept) or f"nothing yet; names of files end in {FILE_SUFFIX}"
                raise InputError(f"{name} is not saved: there is {names}")
            self.return_to(self.kept[name])
            return
        moment = self._read(name)
        try:
            self.return_to(moment)
        except InputError as error:
            raise InputError(f"{name} is damaged: {error}") from error

    def _read(self, name: str) -> Moment:
        """The moment that a file holds."""
        header = _header(name, "name one that was saved in a session")
        if header.get("model") != fingerprint(self.model, self.vocabulary):
            raise InputError(f"{name} was saved with another model: load it with that one")
        tensors = dict(checkpoint.load(name).tensors)
        if not {"last", "recent"} <= set(tensors):
            raise InputError(f"{name} is damaged: it lacks symbols")
        last, recent = tensors.pop("last"), tensors.pop("recent")
        state = {key.removeprefix("state."): array for key, array in tensors.items()}
        return Moment(Place(state, last, recent), str(header.get("tail", "")))


class _Turn:
    """The text of a turn on its way out, with what each of its characters cost."""

    def __init__(self, vocabulary: Vocabulary, stop: tuple[str, ...]) -> None:
        self.decoder = vocabulary.decoder()
        self.outlet = Outlet(self.decoder, stop)
        self.ids: list[int] = []
        self._costs: list[tuple[float, int]] = []  # bits and symbols of each decoded character
        self._out = 0
        self._open = (0.0, 0)  # of one that is not complete

    def take(self, ids: Sequence[int], bits: Sequence[float], last: bool = False) -> Piece:
        """What is certain now that these symbols have come."""
        self.ids += ids
        text = ""
        for id, cost in zip(ids, bits, strict=True):
            self._open = self._open[0] + cost, self._open[1] + 1
            text += self._release(self.decoder.decode([id]))
            if self.outlet.ended:
                break
        if last:
            text += self._release(self.decoder.decode([], True), True)
        begin, self._out = self._out, self._out + len(text)
        return Piece(text, [cost for cost, _ in self._costs[begin : self._out]])

    def _release(self, text: str, last: bool = False) -> str:
        if text:  # several: bytes that turned out to be broken come with what followed them
            self._costs += [(0.0, 0)] * (len(text) - 1) + [self._open]
            self._open = (0.0, 0)
        return self.outlet.release(text, last)

    def forget(self) -> None:
        """Begin to count anew, when all symbols are out."""
        self.ids, self._costs, self._out = [], [], 0

    @property
    def symbols_out(self) -> int:
        """How many symbols the text that is out was made of, of those that are counted."""
        return sum(count for _, count in self._costs[: self._out])


def fingerprint(model: Model, vocabulary: Vocabulary) -> str:
    """SHA-256 of all that decides how a model goes on: architecture, weights, vocabulary."""
    c = model.config
    facts = [c.model, c.activation, c.residual, c.dtype, vocabulary.to_json()]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, array in sorted(model.to_torch(model.params).items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _header(name: str, advice: str) -> dict[str, Any]:
    """What a file says of the session that it is from."""
    try:
        (header,) = checkpoint.read_metadata(name, "session")
    except InputError as error:
        reason = f"{name} does not hold the state of a session: {advice}"
        raise InputError(reason if Path(name).is_file() else str(error)) from error
    return header if isinstance(header, dict) else {}
