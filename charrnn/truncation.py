"""BPTT plans: which window comes next, how far back its gradient goes, what state it begins with.

Every loss's gradient is a sum over the steps before it. The plans differ in which of these terms
they compute:

full        all: a window is a whole sequence and begins with a zero state. A sequence is a file if
            there are several, else a stream of the text; cut into pieces of ``seq_length``
            characters if that is given.
truncated   those in the loss's own window: windows of ``seq_length`` characters, the hidden state
            is carried from one to the next, the gradient ends at the window's edge.
sliding     those less than k2 - k1 to k2 steps back: see `charrnn.sliding`. A window begins k2 - k1
            characters before its first loss, where the window before left the state.
randomized  those in the loss's own window, which ends at random (Tallec and Ollivier 2017, ARTBP):
            after every character, the window goes on with a probability p, and then the gradient on
            its way back between the two characters is divided by p. So every term, however far, has
            its full size in the mean.

Where a run is in the text follows from its step (and seed) alone.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import DataConfig
from charrnn.data import Streams, fit
from charrnn.errors import InputError

Ids = NDArray[np.int32]


ENDLESS = 2**53
"""Characters that no text has."""
NONE: Ids = np.zeros((0, 0, 0), np.int32)


class Piece(NamedTuple):
    """What a training step reads."""

    ids: Ids
    """(T, B)."""
    targets: Ids
    """(N, B), those of the last N steps; a negative one is none."""
    carried: bool
    """Whether the state before it is one that the step before has left, else it is zero."""
    shift: int
    """The next piece begins so many steps after this one."""
    scored: int
    """Targets that are some."""
    weight: float = 1.0
    """Factor of the gradient of the mean loss."""
    ways: NDArray[Any] | None = None
    """(T, 1), by which the gradient that comes back into the state after a step is multiplied;
    None is 1 everywhere."""


class Plan(ABC):
    """The training steps of a text.

    Attributes
    ----------
    batch_size : rows of every window (B)
    seq_length : characters of a window, the usual or mean one
    longest : steps of the longest window that is to be expected
    steps_per_epoch : windows of an epoch, of the first if their numbers differ
    """

    batch_size: int
    seq_length: int
    longest: int
    steps_per_epoch: int

    def steps(self, epochs: int) -> int:
        """Training steps of the first ``epochs`` epochs."""
        return epochs * self.steps_per_epoch

    def position(self, step: int) -> tuple[int, int]:
        """The epoch, from 0, and the window within it of a training step, from 0."""
        return divmod(step, self.steps_per_epoch)

    @abstractmethod
    def piece(self, step: int) -> Piece:
        """What training step ``step``, from 0, reads."""

    def alike(self, step: int, most: int) -> tuple[Ids, Ids]:
        """Ids and targets (n, T, B) of n <= ``most`` steps from ``step`` on.

        Their pieces are as long as the first, and each is carried from the one before. There are
        none where a plan's pieces differ in more than their characters.
        """
        return NONE, NONE

    @abstractmethod
    def chars(self, step: int) -> int:
        """Losses of the first ``step`` training steps."""

    def epochs(self, step: int) -> float:
        """Passes over the text after ``step`` training steps."""
        epoch, index = self.position(step)
        size = self.steps(epoch + 1) - self.steps(epoch)
        return (epoch * size + index) / size


def plan(
    data: DataConfig, ids: NDArray[Any], documents: Sequence[int] = (0,), seed: int = 0
) -> tuple[Plan, str | None]:
    """The plan that a config asks for, and what of it had to be changed to fit the text, or None.

    Parameters
    ----------
    ids : (N,) of the training text
    documents : where each file begins in it
    seed : of randomized truncation

    Raises
    ------
    InputError : there are fewer than 2 characters
    """
    length = data.window_length
    if data.bptt == "full" and len(documents) > 1:
        return Documents(ids, documents, data.batch_size, length), None
    if data.truncation_prob is not None:  # then this alone says how long windows are
        length = _mean_length(*data.truncation(0))
    batch, length, note = fit(len(ids), data.batch_size, length)
    streams = Streams(ids, batch)
    if data.bptt == "randomized":
        return Randomized(streams, *data.truncation(length), seed), note
    if data.bptt == "sliding":
        k1, k2 = data.look_back
        return Windows(streams, length, overlap=k2 - k1), note
    return Windows(streams, length, carried=data.bptt == "truncated"), note


def _mean_length(spared: int, probability: float) -> int | None:
    """Characters of a window that ends at random, on average; None if it does not."""
    if not probability:
        return None
    return round(min(spared, ENDLESS) - 1 + min(1 / probability, ENDLESS))


class Windows(Plan):
    """Windows of equal length but for an epoch's last: truncated, sliding, and full on streams.

    ``overlap``: characters before its first loss with which a window begins.
    """

    def __init__(
        self, streams: Streams, seq_length: int, carried: bool = True, overlap: int = 0
    ) -> None:
        self.streams, self.seq_length = streams, seq_length
        self.carried, self.overlap = carried, overlap
        self.batch_size = streams.batch_size
        self.steps_per_epoch = -(-streams.length // seq_length)
        self.longest = min(streams.length, seq_length + overlap)

    def piece(self, step: int) -> Piece:
        _, index = self.position(step)
        t0 = index * self.seq_length
        t1 = min(t0 + self.seq_length, self.streams.length)
        begin, next_begin = max(0, t0 - self.overlap), max(0, t1 - self.overlap)
        ids, targets = self.streams.part(begin, t1)
        targets = targets[t0 - begin :]
        return Piece(ids, targets, self.carried and begin > 0, next_begin - begin, targets.size)

    def alike(self, step: int, most: int) -> tuple[Ids, Ids]:
        _, index = self.position(step)
        n = min(most, self.streams.length // self.seq_length - index)
        if n < 1 or not self.carried or self.overlap:
            return NONE, NONE
        t0 = index * self.seq_length
        shape = n, self.seq_length, self.batch_size
        ids, targets = self.streams.part(t0, t0 + n * self.seq_length)
        return ids.reshape(shape), targets.reshape(shape)

    def chars(self, step: int) -> int:
        epoch, index = self.position(step)
        done = epoch * self.streams.length + index * self.seq_length
        return done * self.batch_size


class Randomized(Plan):
    """Windows that end after ``spared`` characters or, with a probability, any one after that.

    Their gradients are those of the summed loss over the mean length, so that the sum over an
    epoch's windows is that of full BPTT in the mean, also where lengths differ.
    """

    def __init__(self, streams: Streams, spared: int, probability: float, seed: int) -> None:
        self.streams, self.batch_size, self.seed = streams, streams.batch_size, seed
        self.spared, self.probability = min(spared, streams.length + 1), probability
        self.seq_length = min(_mean_length(spared, probability) or streams.length, streams.length)
        self.longest = min(4 * self.seq_length, streams.length)
        self._first_steps = [0]  # of every epoch
        self._bounds: list[NDArray[np.int64]] = []  # of every epoch's windows
        self.steps_per_epoch = self.steps(1)

    def bounds(self, epoch: int) -> NDArray[np.int64]:
        """Where the windows of an epoch begin, and its end."""
        while len(self._bounds) <= epoch:
            name = zlib.crc32(b"truncation of epoch %d" % len(self._bounds))
            generator = np.random.Generator(np.random.Philox([self.seed, name]))
            drawn = self._drawn(generator)
            self._bounds.append(drawn)
            self._first_steps.append(self._first_steps[-1] + len(drawn) - 1)
        return self._bounds[epoch]

    def _drawn(self, generator: np.random.Generator) -> NDArray[np.int64]:
        n = self.streams.length
        ends = np.zeros(1, np.int64)
        while self.probability and ends[-1] < n:
            drawn = generator.geometric(self.probability, 1 + n // self.spared)
            lengths = self.spared - 1 + np.minimum(drawn, n)  # their sum may be beyond any integer
            ends = np.append(ends, ends[-1] + np.cumsum(lengths))
        return np.append(ends[ends < n], n)

    def steps(self, epochs: int) -> int:
        self.bounds(epochs)
        return self._first_steps[epochs]

    def position(self, step: int) -> tuple[int, int]:
        while self._first_steps[-1] <= step:
            self.bounds(len(self._bounds))
        epoch = bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def piece(self, step: int) -> Piece:
        epoch, index = self.position(step)
        t0, t1 = (int(t) for t in self.bounds(epoch)[index : index + 2])
        ids, targets = self.streams.part(t0, t1)
        ways = np.ones((t1 - t0, 1))
        ways[self.spared - 1 :] /= 1 - self.probability or 1
        weight = (t1 - t0) / self.seq_length
        return Piece(ids, targets, t0 > 0, t1 - t0, targets.size, weight, ways)

    def chars(self, step: int) -> int:
        epoch, index = self.position(step)
        return (epoch * self.streams.length + int(self.bounds(epoch)[index])) * self.batch_size


class Documents(Plan):
    """Full BPTT over files: each is a sequence, or several if it is longer than ``seq_length``.

    B sequences at a time, in order, make a window, the shorter ones filled up with steps that have
    no loss. A file's last character has no target; a file of one has none at all.
    """

    def __init__(
        self, ids: NDArray[Any], documents: Sequence[int], batch_size: int, seq_length: int | None
    ) -> None:
        self.ids = ids
        ends = [*documents[1:], len(ids)]
        limit = seq_length or len(ids)
        self.sequences = [
            (t0, min(t0 + limit, end - 1))
            for begin, end in zip(documents, ends, strict=True)
            for t0 in range(begin, min(end, len(ids)) - 1, limit)
        ]
        if not self.sequences:
            raise InputError("no file has 2 training characters: give longer ones")
        self.batch_size = min(batch_size, len(self.sequences))
        self.steps_per_epoch = -(-len(self.sequences) // self.batch_size)
        lengths = [end - begin for begin, end in self.sequences]
        self.longest = max(lengths)
        self.seq_length = round(sum(lengths) / len(lengths))
        sums = np.concatenate([[0], np.cumsum(lengths)])
        self._chars = [int(s) for s in sums[:: self.batch_size]] + [int(sums[-1])]

    def piece(self, step: int) -> Piece:
        _, index = self.position(step)
        B = self.batch_size
        rows = self.sequences[index * B : (index + 1) * B]
        shape = max(end - begin for begin, end in rows), B
        ids, targets = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        for b, (begin, end) in enumerate(rows):
            ids[: end - begin, b] = self.ids[begin:end]
            targets[: end - begin, b] = self.ids[begin + 1 : end + 1]
        count = sum(end - begin for begin, end in rows)
        return Piece(ids, targets, False, len(ids), count)

    def chars(self, step: int) -> int:
        epoch, index = self.position(step)
        return epoch * self._chars[-1] + self._chars[index]
