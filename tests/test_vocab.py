"""Vocabularies: order, the unknown symbol, every code point, bytes, JSON."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn import vocab
from charrnn.errors import InputError
from charrnn.vocab import Vocabulary, describe

quick = settings(max_examples=50, deadline=None)
lone_surrogates = st.integers(0xD800, 0xDFFF).map(chr)
any_text = st.text(st.characters() | lone_surrogates)


def test_symbols_are_ascending_code_points():
    vocabulary = Vocabulary.build("b𝄞aé\na")
    assert vocabulary.symbols == ("\n", "a", "b", "é", "𝄞")
    assert (vocabulary.size, vocabulary.unknown) == (5, None)
    assert vocabulary.encode("aé𝄞b\n").tolist() == [1, 3, 4, 2, 0]


def test_bytes_are_ascending_numbers():
    vocabulary = Vocabulary.build(b"\xffa\x00a", "byte")
    assert vocabulary.symbols == (0, 97, 255)
    assert vocabulary.encode(b"a\xff").tolist() == [1, 2]
    assert vocabulary.decode([1, 2]) == b"a\xff"


def test_str_is_utf8_at_byte_level():
    vocabulary = Vocabulary.build("é", "byte")
    assert vocabulary == Vocabulary.build("é".encode(), "byte")
    assert vocabulary.decode(vocabulary.encode("éé")).decode() == "éé"


def test_bytes_are_refused_at_char_level():
    with pytest.raises(InputError, match="--level byte"):
        Vocabulary.build("a").encode(b"a")


def test_which_symbols_are_known(monkeypatch):
    monkeypatch.setattr(vocab, "CHUNK", 2)
    vocabulary = Vocabulary.build("aab", min_count=2)
    for text, known in (("", []), ("abéa", [True, False, False, True])):
        got = vocabulary.known(text)
        assert got.dtype == bool and got.tolist() == known


@quick
@given(any_text.filter(bool))
def test_round_trip_of_any_text(text):
    for level in ("char", "byte"):
        vocabulary = Vocabulary.build(text, level)
        ids = vocabulary.encode(text)
        back = vocabulary.decode(ids)
        assert (back if level == "char" else back.decode("utf-8", "surrogatepass")) == text
        assert sorted(set(ids.tolist())) == list(range(vocabulary.size))


@quick
@given(any_text.filter(bool), any_text)
def test_encode_agrees_with_a_loop(known, text):
    vocabulary = Vocabulary.build(known)
    place = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
    assert vocabulary.encode(text, "skip").tolist() == [place[c] for c in text if c in place]
    lacking = [c for c in text if c not in place]
    assert vocabulary.missing(text) == {c: lacking.count(c) for c in lacking}


def test_chunks_do_not_show(monkeypatch):
    text, known = "naïve ☃ text, 𝄞\r\n" * 5, "naïve text"
    whole = Vocabulary.build(text), Vocabulary.build(known).encode(text, "skip").tolist()
    monkeypatch.setattr(vocab, "CHUNK", 3)
    assert (Vocabulary.build(text), Vocabulary.build(known).encode(text, "skip").tolist()) == whole


@pytest.mark.parametrize(
    "size, dtype", [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16")]
)
def test_ids_take_the_smallest_unsigned_type(size, dtype):
    text = "".join(map(chr, range(size)))
    ids = Vocabulary.build(text).encode(text)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))


def test_every_code_point_at_once():
    text = "".join(map(chr, range(0x110000)))
    vocabulary = Vocabulary.build(text)
    assert vocabulary.size == 1_114_112
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint32
    assert np.array_equal(ids, np.arange(0x110000))
    assert vocabulary.decode(ids) == text


def test_encoding_needs_little_more_than_the_ids():
    text = "0123456789abcdef" * (1 << 19)  # 8 Mi characters
    vocabulary = Vocabulary.build(text)
    vocabulary.encode("")  # makes the table
    tracemalloc.start()
    try:
        vocabulary.encode(text)
        Vocabulary.build(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One array of 8-byte indices as long as the text would be 64 MiB.
    assert peak < 48 * 2**20


def test_rare_symbols_become_the_unknown_one():
    vocabulary = Vocabulary.build("aabbbc\n", min_count=2)
    assert vocabulary.symbols == ("a", "b", "\ufffd")
    assert vocabulary.unknown == 2
    assert vocabulary.encode("acb", "map").tolist() == [0, 2, 1]
    assert vocabulary.decode([0, 2, 1]) == "a\ufffdb"
    assert vocabulary.missing("acbdd") == {"d": 2, "c": 1}


def test_no_unknown_symbol_if_nothing_is_rare():
    assert Vocabulary.build("aabb", min_count=2) == Vocabulary.build("aabb")


def test_min_count_that_leaves_nothing():
    with pytest.raises(InputError, match="--min-count is 4, .* occurs 3 times: give at most"):
        Vocabulary.build("aaab", min_count=4)


def test_empty_text():
    with pytest.raises(InputError, match="empty"):
        Vocabulary.build("")


def test_unknown_symbol_is_not_a_real_replacement_character():
    vocabulary = Vocabulary.build("aa\ufffd\ufffdb", min_count=2)
    assert vocabulary.symbols == ("a", "\ufffd", "\ufffd")
    assert vocabulary.encode("\ufffdb", "map").tolist() == [1, 2]

    without = Vocabulary.build("aab", min_count=2)
    assert without.missing("\ufffd") == {"\ufffd": 1}
    assert without.encode("a\ufffd", "skip").tolist() == [0]
    assert without.extended("\ufffd").encode("a\ufffd").tolist() == [0, 2]


def test_unknown_byte_is_not_a_real_0xff():
    vocabulary = Vocabulary.build(b"aa\xff\xffb", "byte", min_count=2)
    assert vocabulary.symbols == (97, 255, 255)
    assert vocabulary.encode(b"\xffb", "map").tolist() == [1, 2]
    assert vocabulary.decoder().decode([0, 2], final=True) == "a\ufffd"


def test_unknown_characters_are_named():
    vocabulary = Vocabulary.build("abc")
    with pytest.raises(InputError, match=r"'x' \(2 times\), '\\t' \(once\): change the text"):
        vocabulary.encode("ax\txb")
    with pytest.raises(InputError, match="no unknown symbol to map to"):
        vocabulary.encode("ax", "map")
    with pytest.raises(InputError, match="must be error, map or skip"):
        vocabulary.encode("ax", "ignore")


def test_describe_is_short():
    assert describe({128: 1234}) == "byte 0x80 (1,234 times)"
    assert describe({"a": 1, "b": 1, "c": 1}, most=2) == "'a' (once), 'b' (once) and 1 other"
    assert len(describe(dict.fromkeys(map(chr, range(60, 999)), 1))) < 130


def test_extended_keeps_the_old_ids():
    old = Vocabulary.build("mma", min_count=2)
    new = old.extended("zebra m")
    assert new.symbols == ("m", "\ufffd", " ", "a", "b", "e", "r", "z")
    assert new.unknown == old.unknown == 1
    assert new.extended("zebra") == new


def test_size_in_utf8_of_several_chunks(monkeypatch):
    monkeypatch.setattr(vocab, "CHUNK", 3)
    text = "aé€😀" * 5
    vocabulary = Vocabulary.build(text)
    assert vocabulary.utf8_size(vocabulary.encode(text)) == len(text.encode())


def test_lone_surrogates_are_symbols_like_others():
    text = "a\udc80\ud83d\udc80"
    vocabulary = Vocabulary.build(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert Vocabulary.build("a").encode(text, "skip").tolist() == [0]
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize("ids", [[0, 3], [-1], np.array([200], np.uint8)])
def test_decode_refuses_foreign_ids(ids):
    with pytest.raises(InputError, match="allowed are 0 to 2"):
        Vocabulary.build("abc").decode(ids)


@quick
@given(st.text(min_size=1), st.integers(1, 5))
def test_streaming_gives_the_whole_text(text, step):
    for level in ("char", "byte"):
        vocabulary = Vocabulary.build(text, level)
        ids, decoder = vocabulary.encode(text), vocabulary.decoder()
        pieces = [decoder.decode(ids[i : i + step]) for i in range(0, len(ids), step)]
        assert "".join(pieces) + decoder.decode([], final=True) == text


def test_streamed_bytes_wait_for_their_sequence():
    vocabulary = Vocabulary.build("a€", "byte")  # € is e2 82 ac, so ids 3, 1, 2
    decoder = vocabulary.decoder()
    assert [decoder.decode([i]) for i in (3, 1, 2, 0, 3, 1)] == ["", "", "€", "a", "", ""]
    assert decoder.decode([], final=True) == "\ufffd"
    assert decoder.decode([2, 0]) == "\ufffda"


@pytest.mark.parametrize("level", ["char", "byte"])
def test_json_round_trip(level):
    vocabulary = Vocabulary.build("aabbc€", level, min_count=2)
    data = json.loads(json.dumps(vocabulary.to_json()))
    assert data["unknown"] == 2
    assert data["symbols"] == (["a", "b", "\ufffd"] if level == "char" else [97, 98, 255])
    assert Vocabulary.from_json(data) == vocabulary


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"level": "word"}, "not one of char, byte"),
        ({"level": ["char"]}, "level is no text"),
        ({"symbols": []}, "empty"),
        ({"symbols": "ab?"}, "symbols are no list"),
        ({"symbols": ["a", "bc", "\ufffd"]}, "symbol 1 is 'bc', not one character"),
        ({"symbols": ["a", 98, "\ufffd"]}, "symbol 1 is 98, not one character"),
        ({"symbols": ["a", "a", "\ufffd"]}, "occurs twice"),
        ({"symbols": ["\ufffd", "\ufffd", "\ufffd"]}, "occurs twice"),
        ({"unknown": 3}, "unknown is 3, not an id below 3"),
        ({"unknown": -1}, "unknown is -1"),
        ({"unknown": True}, "unknown is True"),
        ({"unknown": 0}, "the unknown symbol is not"),
        ({"level": "byte"}, "symbol 0 is 'a', not a number from 0 to 255"),
        ({"level": "byte", "symbols": [1, 256, 255]}, "symbol 1 is 256"),
        ({"level": "byte", "symbols": [1, True, 255]}, "symbol 1 is True"),
        ({"more": 1}, "not an object"),
    ],
)
def test_json_is_checked(changes, message):
    good = {"level": "char", "symbols": ["a", "b", "\ufffd"], "unknown": 2}
    assert Vocabulary.from_json(good).size == 3
    with pytest.raises(InputError, match=message):
        Vocabulary.from_json(good | changes)


@pytest.mark.parametrize("data", [None, [], ["a"], "ab", {}, {"level": "char", "symbols": ["a"]}])
def test_json_of_another_kind(data):
    with pytest.raises(InputError, match="not an object"):
        Vocabulary.from_json(data)
