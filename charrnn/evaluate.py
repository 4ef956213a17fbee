"""Loss of a text under a model, in every unit.

A text of N ids has N - 1 targets and each is counted exactly once, whatever the streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from charrnn.errors import InputError

MAX_STREAMS = 64
FULL = 32  # more streams are a multiple of these rows, a tile of the matrix unit
MIN_STREAM_CHARS = 4000  # every stream's state before its first target is off by a little
WARMUP = 250
MAX_WINDOW = 64
NEAR_FLOATS = 1 << 18  # of longer windows' work arrays: those of small models are quicker
WORK_FLOATS = 1 << 22  # of a window's work arrays, 16 MB in float32: longer ones gain nothing


class LossModel(Protocol):
    """What `evaluate` needs of a model."""

    @property
    def work_per_char(self) -> int:
        """Numbers that it keeps for every character of a window."""
        ...

    def losses(
        self, ids: NDArray[np.int32], targets: NDArray[np.int32], state: Any = None
    ) -> tuple[NDArray[Any], Any]:
        """Nats of ``targets`` (T, B) after ``ids`` (T, B), and the state after them."""
        ...


def evaluate(
    model: LossModel,
    ids: NDArray[Any],
    *,
    streams: int | None = None,
    window: int | None = None,
    warmup: int = WARMUP,
    out: NDArray[Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[float, int]:
    """Sum of the losses of all targets of a text.

    The text is cut into contiguous streams that run side by side, each from a zero state and
    warmed on the ``warmup`` characters before its first target (up to ``streams - 1`` more for
    the last stream). The first stream has none before it and counts from its first target. All
    streams have the same length, so every position is computed and none is padding.

    Parameters
    ----------
    ids
        (N,) ids of the text, N at least 2.
    streams
        Number of streams B; chosen from N if None. One is exact.
    window
        Time steps T of one call of the model; chosen to keep its memory small if None.
    warmup
        Characters before a stream whose losses are not counted.
    out
        (N - 1,) takes the nats of every target.
    on_progress
        Called after every window with the targets counted so far and their final number.

    Returns
    -------
    nats, count
        Sum over the targets, accumulated in float64, and their number N - 1.
    """
    count = len(ids) - 1
    if count < 1:
        raise InputError(
            f"nothing to score: the text has {len(ids)} characters known to the model, "
            "at least 2 are needed"
        )
    if streams is None:
        streams = streams_for(count)

    if window is None:
        window = window_for(streams, model.work_per_char)

    # `length` solves: all targets of the first stream + (length - warmup) of each other one.
    warmup = min(warmup, count)
    length = -(-(count + (streams - 1) * warmup) // streams)
    starts = np.minimum(np.arange(streams) * (length - warmup), count - length)
    counted_from = np.concatenate([[0], starts[:-1] + length])  # where the stream before ended

    nats, done, state = 0.0, 0, None
    for begin in range(0, length, window):
        positions = starts + np.arange(begin, min(begin + window, length))[:, None]  # (T, B)
        losses, state = model.losses(
            ids[positions].astype(np.int32), ids[positions + 1].astype(np.int32), state
        )
        counted = positions >= counted_from
        nats += float(np.sum(losses, where=counted, dtype=np.float64))
        done += int(np.count_nonzero(counted))
        if out is not None:
            out[positions[counted]] = losses[counted]
        if on_progress:
            on_progress(done, count)
    return nats, count


def streams_for(count: int) -> int:
    """Streams for so many targets."""
    streams = min(MAX_STREAMS, max(1, count // MIN_STREAM_CHARS))
    return streams if streams < FULL else streams // FULL * FULL


def window_for(streams: int, work_per_char: int) -> int:
    """Steps of a window that are quick and need little memory."""
    work = streams * work_per_char
    return max(1, min(max(MAX_WINDOW, NEAR_FLOATS // work), WORK_FLOATS // work))


def report(nats: float, count: int, utf8_bytes: int) -> dict[str, float]:
    """The loss of a text in every unit.

    Parameters
    ----------
    nats, count
        As `evaluate` returns them.
    utf8_bytes
        Length of the targets, all of the text but its first character, in UTF-8.

    Returns
    -------
    dict
        ``nats_per_char``, ``bits_per_char``, ``bits_per_byte``, ``perplexity`` (inf where a
        float64 cannot hold it) and ``chars``, the number of targets.
    """
    nats_per_char = nats / count
    try:
        perplexity = math.exp(nats_per_char)
    except OverflowError:
        perplexity = math.inf
    return {
        "nats_per_char": nats_per_char,
        "bits_per_char": nats_per_char / math.log(2),
        "bits_per_byte": nats / math.log(2) / utf8_bytes,
        "perplexity": perplexity,
        "chars": count,
    }
