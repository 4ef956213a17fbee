"""What a text costs without a network: a Kneser-Ney n-gram model and xz.

Both learn from the training text alone, so a network that does not beat them has learned little.
"""

from __future__ import annotations

import lzma
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDER = 5  # a 5-gram: four characters of context and the next one
DEFAULT_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # where the counts of counts are too few for an estimate
DICTIONARY_RANGE = 1 << 12, 3 << 29  # bytes, as liblzma allows


def ngram_bits_per_char(
    training: NDArray[np.integer],
    ids: NDArray[np.integer],
    vocab_size: int,
    order: int = ORDER,
) -> float:
    """Mean bits of the N - 1 targets of ``ids`` (N,) under a `KneserNey` model of ``training``."""
    losses = KneserNey(training, vocab_size, order).losses(ids)
    return float(losses.mean() / np.log(2))


def xz_bits_per_char(training: str | bytes, text: str | bytes) -> float:
    """Bits that xz needs for a character of ``text`` if it has seen ``training``.

    That is the size of both compressed together minus the size of the training text compressed,
    over ``len(text)`` (for bytes: bits per byte). The strongest preset, with a dictionary that
    reaches back over both, and without the container, whose padding would count.
    """
    seen, new = _utf8(training), _utf8(text)
    low, high = DICTIONARY_RANGE
    xz = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": min(max(len(seen) + len(new), low), high),
    }
    alone, together = (
        len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=[xz]))
        for data in (seen, seen + new)
    )
    return 8 * (together - alone) / len(text)


def _utf8(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


class KneserNey:
    """Character n-grams with interpolated modified Kneser-Ney smoothing.

    Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998,
    section 3; for a context u of n-1 characters, and u' the same without its first one::

        p(w | u) = (c(uw) - D(c(uw))) / sum_v c(uv)  +  gamma(u) p(w | u')
        gamma(u) = sum_v D(c(uv)) / sum_v c(uv)

    c counts occurrences for the longest n-grams and, for all shorter ones, how many different
    characters come before them. D(1), D(2) and D(3 or more) follow for every length from its
    counts of counts. Below the single characters lies the uniform distribution over the
    vocabulary, so that every character has a probability. A context never seen leaves the
    choice to the shorter one.

    Parameters
    ----------
    training
        (N,) ids below ``vocab_size``; any N, a short text only leaves the long n-grams unseen.
    vocab_size
        V, the number of symbols over which probabilities sum to 1.
    order
        Length of the longest n-grams: the context plus one.
    """

    def __init__(self, training: NDArray[np.integer], vocab_size: int, order: int = ORDER) -> None:
        self.vocab_size = vocab_size
        ids = training.astype(np.int64)
        # An n-gram's key is (index of its context among the (n-1)-grams) * V + its last symbol:
        # below N * V whatever its length.
        keys, suffixes = [], []
        grams = np.zeros(len(ids) + 1, np.int64)  # the n-gram ending at each place; at first ""
        for n in range(order):
            unique, first, longer, occurrences = np.unique(
                grams[:-1] * vocab_size + ids[n:],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            keys.append(unique)
            suffixes.append(grams[1:][first])  # each n-gram without its first character
            grams = longer
        counts = [
            np.bincount(s, minlength=len(k)) for k, s in zip(keys, suffixes[1:], strict=False)
        ]
        contexts = [1, *map(len, keys)]
        self._levels = [
            _level(k, c, m, vocab_size)
            for k, c, m in zip(keys, [*counts, occurrences], contexts, strict=False)
        ]

    def losses(self, ids: NDArray[np.integer]) -> Floats:
        """Nats (N-1,) of the targets ``ids[1:]``, each after the characters before it."""
        ids = ids.astype(np.int64)
        probabilities = np.full(len(ids) - 1, 1 / self.vocab_size)
        contexts = np.zeros(len(ids), np.int64)  # before each id, -1 = never seen; at first ""
        for level in self._levels:
            grams = level.find(contexts * self.vocab_size + ids)
            probabilities *= level.backoff[contexts[1:]]
            probabilities += level.share[grams[1:]]
            contexts = np.concatenate([[-1], grams[:-1]])
        return -np.log(probabilities)


class _Level(NamedTuple):
    """All n-grams of one length n. The last element of each array stands for "never seen"."""

    keys: Ints  # ascending, of each n-gram
    share: Floats  # discounted count of each n-gram over the count of its context
    backoff: Floats  # gamma of each context

    def find(self, keys: Ints) -> Ints:
        """Index of each n-gram, -1 for those never seen."""
        at = np.searchsorted(self.keys, keys)
        return np.where(self.keys[at] == keys, at, -1)


def _level(keys: Ints, counts: Ints, contexts: int, vocab_size: int) -> _Level:
    context = keys // vocab_size
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    # Shorter n-grams found only where the text starts have a count of 0, so a context's total
    # may be 0: it then leaves all to the shorter one, like a context never seen.
    total = np.bincount(context, counts, minlength=contexts)
    taken = np.where(total > 0, np.bincount(context, discounts, minlength=contexts), 1.0)
    total = np.maximum(total, 1.0)
    return _Level(
        keys=np.append(keys, np.iinfo(np.int64).max),
        share=np.append((counts - discounts) / total[context], 0.0),
        backoff=np.append(taken / total, 1.0),
    )


def _discounts(counts: Ints) -> Floats:
    """D(0), D(1), D(2) and D(3 or more) from the counts of counts."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].tolist()
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        discounts = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if min(discounts[1:]) > 0:  # each is at most its count by construction
            return np.array(discounts)
    return np.array(DEFAULT_DISCOUNTS)
