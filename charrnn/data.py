"""Files -> ids, and ids -> splits, streams and windows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn import cache, reading, store
from charrnn.errors import InputError
from charrnn.reading import STDIN, Progress, Source
from charrnn.vocab import CHUNK, Counter, Vocabulary

VAL_FRAC, MOST_VAL = 0.1, 1_000_000
"""What is validated on by default: a share of the text, and characters at the most."""
FORMAT = 1
"""Of what the cache says of a text; another one is not found."""
SETTLED = 2.0
"""Seconds from a file's last change after which any other one shows in its times."""


MOST_WHOLE = 100_000_000
"""Characters of a text that is needed in memory as a whole; with what is made of it, some 7 GB."""


def check_whole(length: int, name: str, instead: str = "name a part of it") -> None:
    """InputError if a text of so many characters is too long for what needs it as a whole."""
    if length > MOST_WHOLE:
        raise InputError(
            f"{name} has {length:,} characters: where a text is needed whole, in memory, it may "
            f"have {MOST_WHOLE:,}; {instead} (head -c {MOST_WHOLE} FILE)"
        )


@dataclass(frozen=True)
class Corpus:
    """A text as ids, and where it comes from.

    Attributes
    ----------
    ids : array (N,) of the smallest unsigned type
        Places in ``counts``. Those of a large text are mapped from a file.
    counts : mapping
        Each symbol of the text, ascending -> how often it occurs.
    level : "char" or "byte"
    documents : tuple of int
        Where each source begins in ``ids``.
    sources : tuple of str
        The files in the order in which they were joined; "-" is standard input.
    name : str
        What to call it: the first file without its suffixes, the first folder, or "stdin".
    fingerprint : str
        SHA-256 (hex) of the text's level, length and content, whatever encoding its files had.
    """

    ids: NDArray[np.unsignedinteger] = field(repr=False)
    counts: Mapping[Any, int] = field(repr=False)
    level: str
    documents: tuple[int, ...]
    sources: tuple[str, ...]
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> str | bytes:
        """All of it, str or at level "byte" bytes, in memory; InputError if it is too long."""
        check_whole(len(self), self.name)
        return self.vocabulary.decode(self.ids)

    @property
    def vocabulary(self) -> Vocabulary:
        """That of `ids`: all symbols of the text."""
        return Vocabulary(self.level, tuple(self.counts))

    def encode(
        self, vocabulary: Vocabulary, on_unknown: str = "error"
    ) -> NDArray[np.unsignedinteger]:
        """Ids in another vocabulary, as `Vocabulary.encode` has them; of a large text mapped."""
        table = vocabulary.translation(self.counts, on_unknown)
        if np.array_equal(table, np.arange(len(table))):
            return self.ids
        known = table >= 0
        left = int(np.array(list(self.counts.values())) @ known)
        table = table.astype(np.min_scalar_type(vocabulary.size - 1))

        def pieces() -> Iterator[NDArray[Any]]:
            for start in range(0, len(self), CHUNK):
                ids = self.ids[start : start + CHUNK]
                yield table.take(ids if known.all() else ids[known.take(ids)])

        return store.gathered(pieces(), left, table.dtype)

    def kept(self) -> Iterator[bytes]:
        """What to write, piece by piece, to have it again: see `read_corpus`."""
        vocabulary = self.vocabulary
        for start in range(0, len(self), CHUNK):
            yield _bytes(vocabulary.decode(self.ids[start : start + CHUNK]))


def read_corpus(
    paths: Sequence[str | os.PathLike[str]],
    *,
    level: str = "char",
    encoding: str = "utf-8",
    kept: bool = False,
    on_progress: Progress | None = None,
    options: Collection[str] = ("encoding", "level"),
) -> Corpus:
    """Read files and join them as they come.

    They are read twice, to count and to encode their characters, a piece at a time. The ids of
    large texts are kept in the cache, and found there while the files have not changed.

    Parameters
    ----------
    paths : sequence of str or path
        Text files, ``.gz`` files, folders (their ``.txt`` files, sorted by name), "-" for
        standard input.
    level : "char" or "byte"
        "char" decodes, removes a byte order mark at the start of each file and makes every line
        end a ``\\n``; "byte" leaves the bytes as they are.
    encoding : str
        Name of a Python text encoding; of no meaning at level "byte".
    kept : bool
        Whether they are what `Corpus.kept` gave, to be taken as it is.
    options : collection of str
        Those of ``encoding`` and ``level`` that whoever names the files may choose: what the error
        for a file that cannot be decoded advises.
    on_progress : callable or None
        Is told how much of the work is done, and of how much, or None while a pipe is read.

    Raises
    ------
    InputError
        If something cannot be read or decoded or changes meanwhile, or the text is empty.
    SaveError
        If there is no room for a large text.
    """
    given = [os.fspath(path) for path in paths]
    if not given:
        raise InputError(f"no text is given: name {reading.READABLE}")
    if given.count(STDIN) > 1:
        raise InputError(f"{STDIN} is given twice: standard input can be read only once")
    told = on_progress or (lambda done, total: None)
    with contextlib.ExitStack() as opened:
        sources = [
            opened.enter_context(
                closing(Source(file, level, encoding, told, kept=kept, options=options))
            )
            for path in given
            for file in reading.files(path)
        ]
        entry = _entry(sources)
        found = entry.find(told) if entry is not None else None
        ids, facts = found or _encoded(sources, entry, told)
    symbols = map(chr, facts["codes"]) if level == "char" else facts["codes"]
    return Corpus(
        ids=ids,
        counts=dict(zip(symbols, facts["counts"], strict=True)),
        level=level,
        documents=tuple(accumulate(facts["lengths"][:-1], initial=0)),
        sources=tuple(source.path for source in sources),
        name=_name(given[0]),
        fingerprint=facts["fingerprint"],
    )


def _entry(sources: Sequence[Source]) -> store.Entry | None:
    """Where the cache has, or may have, the ids of these files."""
    folder = cache.texts()
    if folder is None or not all(source.stamp for source in sources):
        return None
    first = sources[0]
    files = [os.path.abspath(source.path) for source in sources]
    return store.Entry(
        folder,
        [FORMAT, first.level, first.encoding, first.kept, files],
        [source.stamp for source in sources],
    )


def _encoded(
    sources: Sequence[Source], entry: store.Entry | None, on_progress: Progress
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The ids of the sources in their own vocabulary, and the facts that belong to them."""
    size = sum(source.size for source in sources)
    counter, lengths = _counted(sources, lambda done: on_progress(done, 2 * size))
    counts, count, level = counter.counts(), sum(lengths), counter.level
    if not count:
        titles = ", ".join(source.title for source in sources)
        raise InputError(f"the text is empty: nothing is in {titles}")
    vocabulary = Vocabulary.build(counts, level)
    digest = hashlib.sha256(f"{level} {count}\n".encode())

    def pieces() -> Iterator[NDArray[Any]]:
        before = size
        for source, left in zip(sources, lengths, strict=True):
            for piece in source.pieces():
                digest.update(_bytes(piece))
                ids = vocabulary.encode(piece, "skip")
                left -= len(ids)
                if left < 0:
                    raise source.changed()
                yield ids
                on_progress(before + source.place, 2 * size)
            if left:
                raise source.changed()
            before += source.size

    newest = max(max(source.stamp[1:3], default=0) for source in sources)
    path = entry.path if entry is not None and time.time() - newest / 1e9 > SETTLED else None
    ids = store.gathered(pieces(), count, np.min_scalar_type(vocabulary.size - 1), path)
    facts = {
        "codes": [ord(s) for s in counts] if level == "char" else list(counts),
        "counts": list(counts.values()),
        "lengths": lengths,
        "fingerprint": digest.hexdigest(),
    }
    if entry is not None and path is not None and not store.is_small(ids.nbytes):
        entry.keep(ids, facts)
    return ids, facts


def _counted(
    sources: Sequence[Source], on_progress: Callable[[int], None]
) -> tuple[Counter, list[int]]:
    """How often each symbol occurs, and how many there are in each source."""
    counter, lengths, before, count = Counter(sources[0].level), [], 0, 0
    for source in sources:
        begin = count
        for piece in source.pieces():
            counter.add(piece)
            count += len(piece)
            store.check_room(count)  # a .gz may hold more than any disk
            on_progress(before + source.place)
        lengths.append(count - begin)
        before += source.size
    return counter, lengths


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _name(path: str) -> str:
    """What to call a corpus whose first path is this."""
    if path == STDIN:
        return "stdin"
    absolute = Path(os.path.abspath(path))
    if absolute.is_dir():
        return absolute.name or "text"  # a root has no name
    return Path(absolute.stem).stem if absolute.suffix.lower() == ".gz" else absolute.stem


def split(
    ids: NDArray[Any], val_frac: float | None, test_frac: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Cut a text's ids (N,) into training, validation and test part, in this order, as views.

    See `part_sizes`.
    """
    train, val, _ = part_sizes(len(ids), val_frac, test_frac)
    return ids[:train], ids[train : train + val], ids[train + val :]


def part_sizes(n: int, val_frac: float | None, test_frac: float) -> tuple[int, int, int]:
    """Characters of the training, validation and test part of a text of ``n``.

    Validation and test get their share of it, rounded, but leave two characters for training; a
    part of one character has no target and is left empty. Without a ``val_frac`` it is `VAL_FRAC`
    for validation, but at most `MOST_VAL` characters.

    Raises
    ------
    InputError
        If the fractions leave nothing for training.
    """
    most_val = n
    if val_frac is None:
        val_frac, most_val = VAL_FRAC, MOST_VAL
    if not (val_frac >= 0 and test_frac >= 0 and val_frac + test_frac < 1):
        raise InputError(
            f"--val-frac {val_frac:g} and --test-frac {test_frac:g} leave nothing to train on: "
            "together they must be below 1"
        )

    def share(fraction: float, available: int) -> int:
        size = min(round(fraction * n), available)
        return size if size >= 2 else 0

    val = share(val_frac, min(n - 2, most_val))
    test = share(test_frac, n - 2 - val)
    return n - val - test, val, test


def fit(n_ids: int, batch_size: int, seq_length: int | None) -> tuple[int, int, str | None]:
    """The batch size and window length that a text of ``n_ids`` characters allows.

    The batch shrinks first, until each stream fills a window; then the window. Without a
    ``seq_length`` it is as long as a stream.

    Returns
    -------
    batch_size, seq_length : int
        As given, or smaller.
    message : str or None
        What was changed and why; None if nothing was.

    Raises
    ------
    InputError
        If there are fewer than 2 characters, so nothing to predict.
    """
    has = f"the text has {n_ids:,} training character{'' if n_ids == 1 else 's'}"
    if n_ids < 2:
        raise InputError(f"{has}: at least 2 are needed, give a longer text")
    batch = min(batch_size, max(1, (n_ids - 1) // (seq_length or 1)))
    length = (n_ids - 1) // batch
    seq_length = seq_length or length
    length = min(seq_length, length)
    changes = [
        f"{what} {old} -> {new}"
        for what, old, new in (("batch size", batch_size, batch), ("window", seq_length, length))
        if new != old
    ]
    return batch, length, f"{has}: {', '.join(changes)}" if changes else None


class Streams:
    """B contiguous streams of a text, read side by side.

    Of N ids, stream b reads ``ids[b*n : (b+1)*n]`` with n = (N - 1) // B; its targets are the same,
    one further.

    Parameters
    ----------
    ids : array (N,) of integers
    batch_size : int
        Streams (B), at most N - 1; see `fit`.

    Attributes
    ----------
    length : int
        Characters of a stream (n).
    """

    def __init__(self, ids: NDArray[Any], batch_size: int) -> None:
        self.batch_size = batch_size
        self.length = (len(ids) - 1) // batch_size
        if self.length < 1:
            raise InputError(
                f"a text of {len(ids):,} characters cannot be cut into {batch_size} streams: "
                f"at least {batch_size + 1:,} are needed"
            )
        used = self.length * batch_size
        self._ids = ids[:used].reshape(batch_size, self.length)
        self._targets = ids[1 : used + 1].reshape(batch_size, self.length)

    def part(self, t0: int, t1: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids and targets (t1 - t0, B) of the characters t0 <= t < t1, int32 and C-contiguous."""
        if not 0 <= t0 < t1 <= self.length:
            raise IndexError(f"characters {t0} to {t1}: a stream has {self.length}")
        return (
            np.array(self._ids[:, t0:t1].T, np.int32, order="C"),
            np.array(self._targets[:, t0:t1].T, np.int32, order="C"),
        )
