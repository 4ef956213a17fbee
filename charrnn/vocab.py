"""Text <-> ids: which symbols a model knows, and in which order.

A symbol is a character (code point) or, at level "byte", a byte value; an id is its position in
`Vocabulary.symbols`. Texts are worked on in chunks, as arrays of code points: beside the ids
themselves nothing as long as the text is ever made. Of a text that is not in memory, its counts
will do: how often each symbol occurs, in ascending order.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.errors import InputError

Counts = Mapping[Any, int]
"""Symbol -> how often it occurs."""

CHUNK = 1 << 18  # symbols of a text that are looked at together: arrays of them fit the cache
CODES = {"char": 0x110000, "byte": 0x100}  # how many values a symbol can have
# How the unknown symbol is displayed. U+FFFD is Unicode's own sign for it; 0xff is no part of any
# UTF-8 sequence and so decodes to U+FFFD. Its id, not this, tells it from the real thing.
UNKNOWN: dict[str, str | int] = {"char": "\ufffd", "byte": 0xFF}


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model in id order; immutable.

    Parameters
    ----------
    level : "char" or "byte"
    symbols : tuple of str (one character each), or of int (0 to 255) at level "byte"
        All different, but for the unknown symbol, which is written ``UNKNOWN[level]`` whether
        that one occurs as itself or not.
    unknown : int or None
        Id of the unknown symbol, which stands for whatever is not in the vocabulary.

    Raises
    ------
    InputError
        If the parts do not make a vocabulary.
    """

    level: str
    symbols: tuple[str, ...] | tuple[int, ...]
    unknown: int | None = None

    def __post_init__(self) -> None:
        if self.level not in CODES:
            raise _invalid(f"level is {self.level!r}, not one of {', '.join(CODES)}")
        if not self.symbols:
            raise _invalid("it is empty")
        for i, symbol in enumerate(self.symbols):
            if not _is_symbol(symbol, self.level):
                kind = "one character" if self.level == "char" else "a number from 0 to 255"
                raise _invalid(f"symbol {i} is {symbol!r}, not {kind}")
        known = list(self.symbols)
        if self.unknown is not None:
            if type(self.unknown) is not int or not 0 <= self.unknown < self.size:
                raise _invalid(f"unknown is {self.unknown!r}, not an id below {self.size}")
            if known.pop(self.unknown) != UNKNOWN[self.level]:
                raise _invalid(f"the unknown symbol is not {UNKNOWN[self.level]!r}")
        if len(set(known)) < len(known):
            raise _invalid("a symbol occurs twice")

    @classmethod
    def build(
        cls, text: str | bytes | Counts, level: str = "char", min_count: int = 1
    ) -> Vocabulary:
        """The symbols of ``text`` in ascending order.

        Symbols that occur fewer than ``min_count`` times are left out; if there are any, the
        unknown symbol comes last and stands for them.

        Raises
        ------
        InputError
            If the text is empty or no symbol occurs ``min_count`` times.
        """
        counts = _counts(text, level)
        kept = tuple(s for s, count in counts.items() if count >= min_count)
        if not kept:
            raise InputError(
                f"--min-count is {min_count}, but the text's most frequent symbol occurs "
                f"{_times(max(counts.values()))}: give at most that"
                if counts
                else "the text is empty: there is nothing to build a vocabulary from"
            )
        if len(kept) == len(counts):
            return cls(level, kept)
        return cls(level, (*kept, UNKNOWN[level]), len(kept))

    @property
    def size(self) -> int:
        """Number of symbols (V), the unknown one included."""
        return len(self.symbols)

    def encode(self, text: str | bytes, on_unknown: str = "error") -> NDArray[np.unsignedinteger]:
        """The ids of a text.

        Parameters
        ----------
        text : str or bytes
            At level "byte" a str stands for its UTF-8 bytes.
        on_unknown : "error", "map" or "skip"
            What to do with a symbol that is not in the vocabulary: refuse it, make it the unknown
            symbol (or refuse it, if the vocabulary has none), or leave it out.

        Returns
        -------
        array (N,) of the smallest unsigned integer type that holds every id

        Raises
        ------
        InputError
            If a symbol is refused; the message names it.
        """
        _check_on_unknown(on_unknown)
        text = _at_level(text, self.level)
        ids = np.empty(len(text), np.min_scalar_type(self.size - 1))
        end = 0
        for codes in _chunks(text):
            found = self._number_of_code.take(codes) - 1  # several times quicker than an index
            lacking = found < 0
            if lacking.any():
                number = self._number_of_unknown(on_unknown, text)
                if number is None:
                    found = found[~lacking]
                else:
                    found[lacking] = number
            ids[end : end + len(found)] = found
            end += len(found)
        return ids[:end]

    def known(self, text: str | bytes) -> NDArray[np.bool_]:
        """Which symbols of a text (N,) are in the vocabulary."""
        text = _at_level(text, self.level)
        return np.concatenate(
            [np.zeros(0, bool), *(self._number_of_code[codes] > 0 for codes in _chunks(text))]
        )

    def translation(self, counts: Counts, on_unknown: str = "error") -> NDArray[np.int32]:
        """The id of each symbol of ``counts``; -1 of those that are to be left out.

        It turns ids that are places in ``counts`` into ids of this vocabulary. Unknown symbols are
        treated, or refused, as `encode` does.
        """
        _check_on_unknown(on_unknown)
        missing = self.missing(counts)
        number = self._number_of_unknown(on_unknown, counts) if missing else None
        found = self._number_of_code.take(_codes(_joined(counts, self.level))) - 1
        found[found < 0] = -1 if number is None else number
        return found

    def _number_of_unknown(self, on_unknown: str, text: str | bytes | Counts) -> int | None:
        """What becomes of the symbols of ``text`` that are not known: this id, None is none."""
        if on_unknown == "skip":
            return None
        if on_unknown == "map" and self.unknown is not None:
            return self.unknown
        raise InputError(
            f"not in the vocabulary: {describe(self.missing(text))}"
            + ("; it has no unknown symbol to map to" if on_unknown == "map" else "")
            + ": change the text or --on-unknown"
        )

    def missing(self, text: str | bytes | Counts) -> dict[Any, int]:
        """Symbols of ``text`` that are not in the vocabulary -> their counts, commonest first."""
        known = set(self.symbols)
        if self.unknown is not None:
            known = {s for i, s in enumerate(self.symbols) if i != self.unknown}
        lacking = [(s, n) for s, n in _counts(text, self.level).items() if s not in known]
        return dict(sorted(lacking, key=lambda item: -item[1]))

    def utf8_size(self, ids: NDArray[Any]) -> int:
        """Bytes of the text of ids (N,) in UTF-8; at level "byte" one of each."""
        if self.level == "byte":
            return len(ids)
        symbols: Any = self.symbols
        sizes = np.array([len(s.encode("utf-8", "surrogatepass")) for s in symbols], np.int64)
        counts = np.zeros(self.size, np.int64)
        for start in range(0, len(ids), CHUNK):
            counts += np.bincount(ids[start : start + CHUNK], minlength=self.size)
        return int(counts @ sizes)

    def decode(self, ids: ArrayLike) -> str | bytes:
        """The text of ids (N,): str, or bytes at level "byte"."""
        ids = np.asarray(ids, np.intp)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.size:
            raise InputError(
                f"ids run from {ids.min()} to {ids.max()}: allowed are 0 to {self.size - 1}"
            )
        data: bytes = self._codes[ids].tobytes()
        return data.decode("utf-32-le", "surrogatepass") if self.level == "char" else data

    def decoder(self) -> StreamDecoder:
        """A decoder for ids that come a few at a time."""
        return StreamDecoder(self)

    def extended(self, text: str | bytes | Counts) -> Vocabulary:
        """This vocabulary with the symbols that ``text`` adds to it, sorted, after the old ids."""
        return replace(self, symbols=(*self.symbols, *sorted(self.missing(text))))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready ``level``, ``symbols`` (a list in id order) and ``unknown``."""
        return {"level": self.level, "symbols": list(self.symbols), "unknown": self.unknown}

    @classmethod
    def from_json(cls, data: Any) -> Vocabulary:
        """Inverse of `to_json`; InputError if ``data`` is anything else."""
        if not isinstance(data, dict) or data.keys() != {"level", "symbols", "unknown"}:
            raise _invalid("it is not an object of level, symbols and unknown")
        if not isinstance(data["symbols"], list) or not isinstance(data["level"], str):
            raise _invalid("its symbols are no list or its level is no text")
        return cls(data["level"], tuple(data["symbols"]), data["unknown"])

    @cached_property
    def _codes(self) -> NDArray[Any]:
        """Code of each id (V,)."""
        return _codes(_joined(self.symbols, self.level)).astype(
            "<u4" if self.level == "char" else np.uint8
        )

    @cached_property
    def _number_of_code(self) -> NDArray[np.int32]:
        """One more than the id of each possible code; 0 if there is none, so not for the unknown.

        So most of a table of a million codes is never touched and takes no memory.
        """
        ids = np.arange(self.size)
        if self.unknown is not None:
            ids = np.delete(ids, self.unknown)
        table = np.zeros(CODES[self.level], np.int32)
        table[self._codes[ids]] = ids + 1
        return table


class StreamDecoder:
    """Decodes ids that come a few at a time; the pieces together are the whole text.

    Always gives str: at level "byte" the bytes are taken as UTF-8, an unfinished sequence waits for
    its other bytes, and what is no UTF-8 becomes U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bool:
        """Whether a character is not complete yet."""
        return bool(self._utf8.getstate()[0])

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        """The text of the next ids, as far as it is complete; all of it if ``final``."""
        symbols: Any = self._vocabulary.symbols  # quicker than an array for an id or two
        if self._vocabulary.level == "char":
            return "".join([symbols[i] for i in ids])
        return self._utf8.decode(bytes([symbols[i] for i in ids]), final)


def describe(symbols: Mapping[Any, int], most: int = 8) -> str:
    """Symbols and their counts in words, such as ``'é' (3 times), '\\t' (once) and 2 others``."""
    shown = [
        f"{s!r} ({_times(n)})" if isinstance(s, str) else f"byte 0x{s:02x} ({_times(n)})"
        for s, n in list(symbols.items())[:most]
    ]
    rest = len(symbols) - len(shown)
    return ", ".join(shown) + (f" and {rest} other{'s' if rest > 1 else ''}" if rest else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _check_on_unknown(value: str) -> None:
    if value not in ("error", "map", "skip"):
        raise InputError(f"--on-unknown is {value!r}: it must be error, map or skip")


def _invalid(reason: str) -> InputError:
    return InputError(f"this is not a vocabulary: {reason}")


def _is_symbol(symbol: Any, level: str) -> bool:
    if level == "char":
        return isinstance(symbol, str) and len(symbol) == 1
    return type(symbol) is int and 0 <= symbol < CODES["byte"]


def _at_level(text: str | bytes, level: str) -> str | bytes:
    """``text`` as str for level "char", as bytes for level "byte"."""
    if level == "byte":
        return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if isinstance(text, str):
        return text
    raise InputError('bytes need a vocabulary of level "byte": decode them, or use --level byte')


def _codes(text: str | bytes) -> NDArray[Any]:
    """Code points (uint8 or uint32) or bytes (uint8) of a text (N,); a surrogate is one, too."""
    if isinstance(text, bytes):
        return np.frombuffer(text, np.uint8)
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _chunks(text: str | bytes) -> Iterator[NDArray[Any]]:
    """The codes of a text, piece by piece: indexing makes 8 bytes of each."""
    for start in range(0, len(text), CHUNK):
        yield _codes(text[start : start + CHUNK])


class Counter:
    """Counts the symbols of a text that comes in pieces."""

    def __init__(self, level: str) -> None:
        self.level = level
        self._counts = np.zeros(CODES[level], np.int64)

    def add(self, text: str | bytes) -> None:
        for codes in _chunks(text):
            found = np.bincount(codes)  # as long as its largest code asks for
            self._counts[: len(found)] += found

    def counts(self) -> dict[Any, int]:
        """Symbol -> how often it has come, ascending; none that has not."""
        codes = np.flatnonzero(self._counts)
        symbols = _symbols(codes, self.level)
        return dict(zip(symbols, self._counts[codes].tolist(), strict=True))


def _counts(text: str | bytes | Counts, level: str) -> Counts:
    """How often each symbol of a text occurs, in ascending order."""
    if isinstance(text, Mapping):
        return text
    counter = Counter(level)
    counter.add(_at_level(text, level))
    return counter.counts()


def _joined(symbols: Iterable[Any], level: str) -> str | bytes:
    """The text that consists of these symbols."""
    return "".join(symbols) if level == "char" else bytes(symbols)


def _symbols(codes: NDArray[Any], level: str) -> tuple[Any, ...]:
    """The symbols that have these codes."""
    return tuple(map(chr, codes.tolist())) if level == "char" else tuple(codes.tolist())
