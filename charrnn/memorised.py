"""How much of what a model writes stands word for word in its training text.

Passages of `LENGTH` symbols are looked up by their hashes, so that a text of 100 MB takes about a
second and no memory to speak of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from charrnn import sampling
from charrnn.config import SampleConfig
from charrnn.errors import InputError
from charrnn.sampling import SteppingModel
from charrnn.vocab import Vocabulary

LENGTH = 20
"""Symbols of a passage: some four words, which seldom come twice by chance."""

PIECES, CHARS = 16, 256
"""Samples, and characters of each: 3,792 passages."""

BLOCK = 2**16  # symbols of the text that are hashed at once: some 3 MB of numbers
BITS = 20  # of a hash, by which nearly all of the text is passed over
FACTOR = 0x9E3779B97F4A7C15  # odd, without pattern: the golden ratio's

Ids = NDArray[np.integer]
Look = Callable[[], object]


def memorised_shares(
    model: SteppingModel,
    vocabulary: Vocabulary,
    train: Ids,
    val: Ids,
    seed: int,
    look: Look = lambda: None,
) -> dict[str, float] | None:
    """Shares of passages found in the training text; None if there is nothing to compare.

    Parameters
    ----------
    train, val
        The texts (N,) as ids. Without validation text the last tenth of the training text takes its
        place, and is looked up in what comes before.
    look
        Is called often; what it raises ends the search.

    Returns
    -------
    dict
        ``sampled``, of the model's samples at the default temperature; ``held_out``, of as much
        text that it was not trained on: what is found without any memory.
    """
    pieces: list[Ids] = []
    with contextlib.suppress(InputError):  # weights that are too large to sample from
        pieces = _samples(model, vocabulary, seed, look)
    sampled = share(pieces, train, look)
    known = train
    if not len(val):
        known, val = np.split(train, [len(train) * 9 // 10])
    starts = np.linspace(0, max(len(val) - CHARS, 0), PIECES).astype(int)
    held_out = share([val[start : start + CHARS] for start in starts], known, look)
    if sampled is None or held_out is None:
        return None
    return {"sampled": sampled, "held_out": held_out}


def _samples(model: SteppingModel, vocabulary: Vocabulary, seed: int, look: Look) -> list[Ids]:
    """Ids, and not text: decoded, bytes that are no UTF-8 would become others."""
    config = SampleConfig(length=CHARS, num_samples=PIECES)
    rows: list[Ids] = []
    for ids in sampling.symbols(model, vocabulary, config, np.zeros(0, np.uint8), seed):
        rows.append(ids)
        look()
    return list(np.concatenate(rows).T)


def share(pieces: Sequence[Ids], text: Ids, look: Look = lambda: None) -> float | None:
    """Share of the pieces' passages that occur in ``text``; None if there are no passages."""
    wanted = np.concatenate([_hashes(piece) for piece in pieces] or [_hashes(text[:0])])
    if not len(wanted):
        return None
    shift = np.uint64(64 - BITS)
    likely = np.zeros(1 << BITS, bool)
    likely[wanted >> shift] = True
    found = np.zeros(len(wanted), bool)
    for start in range(0, len(text), BLOCK):
        look()
        hashes = _hashes(text[start : start + BLOCK + LENGTH - 1])
        found |= np.isin(wanted, hashes[likely[hashes >> shift]])
    return float(found.mean())


def _hashes(ids: Ids) -> NDArray[np.uint64]:
    """A hash of every passage of ids (N,): a polynomial of its symbols, modulo 2^64.

    Two that differ agree with probability 2^-64 or so. Passages of 2, 4, 8 and 16 are made of two
    halves each, 20 of 16 and 4.
    """
    if len(ids) < LENGTH:
        return np.zeros(0, np.uint64)
    hashes = {1: ids.astype(np.uint64) + np.uint64(1)}
    for n, m in ((1, 1), (2, 2), (4, 4), (8, 8), (16, 4)):
        left, right = hashes[n], hashes[m]
        size = len(right) - n
        factor = np.uint64(pow(FACTOR, m, 2**64))
        hashes[n + m] = left[:size] * factor + right[n : n + size]
    return hashes[LENGTH]
