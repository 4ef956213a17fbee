"""Reading, decoding, splits, streams and windows."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn import data, reading, store
from charrnn.data import Streams, fit, read_corpus, split
from charrnn.errors import InputError, SaveError
from charrnn.vocab import Vocabulary

quick = settings(max_examples=50, deadline=None)


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def fingerprint(text):
    """As it is defined: checkpoints hold it."""
    level, data = ("byte", text) if isinstance(text, bytes) else ("char", text.encode())
    return hashlib.sha256(f"{level} {len(text)}\n".encode() + data).hexdigest()


def feed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


# Reading


def test_one_file(tmp_path):
    path = write(tmp_path / "the.book.txt", "naïve\n")
    corpus = read_corpus([path])
    assert corpus.text == "naïve\n"
    assert corpus.sources == (path,)
    assert corpus.documents == (0,)
    assert corpus.name == "the.book"
    assert corpus.fingerprint == fingerprint("naïve\n")


def test_files_are_joined_as_they_come(tmp_path):
    paths = [write(tmp_path / n, t) for n, t in [("b.txt", "é1"), ("e.txt", ""), ("a.md", "23")]]
    corpus = read_corpus(paths)
    assert corpus.text == "é123"
    assert corpus.documents == (0, 2, 2)
    assert corpus.sources == tuple(paths)
    assert corpus.name == "b"
    assert read_corpus(paths, level="byte").documents == (0, 3, 3)


def test_folder_is_its_txt_files_sorted(tmp_path):
    folder = tmp_path / "some.texts"
    (folder / "inner.txt").mkdir(parents=True)
    for name, text in [("b.txt", "3"), ("a.TXT", "2"), ("C.txt", "1"), ("c.md", "x")]:
        write(folder / name, text)
    other = write(tmp_path / "a.md", "4")
    corpus = read_corpus([folder, other])
    assert corpus.sources == (*(str(folder / n) for n in ("C.txt", "a.TXT", "b.txt")), other)
    assert corpus.text == "1234"
    assert corpus.name == "some.texts"


def test_name_of_the_current_folder(tmp_path, monkeypatch):
    folder = tmp_path / "poems"
    folder.mkdir()
    write(folder / "a.txt", "a")
    monkeypatch.chdir(folder)
    assert read_corpus(["."]).name == "poems"


def test_gzip(tmp_path):
    path = write(tmp_path / "book.txt.gz", gzip.compress("naïve\r\n".encode()))
    assert read_corpus([path]).text == "naïve\n"
    assert read_corpus([path], level="byte").text == "naïve\r\n".encode()
    assert read_corpus([path]).name == "book"


def test_standard_input(tmp_path, monkeypatch):
    feed(monkeypatch, b"\xef\xbb\xbfab\r")
    corpus = read_corpus(["-"])
    assert (corpus.text, corpus.sources, corpus.name) == ("ab\n", ("-",), "stdin")
    with pytest.raises(InputError, match="only once"):
        read_corpus(["-", "-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        read_corpus(["-"])


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_empty_text(tmp_path, monkeypatch, data):
    feed(monkeypatch, data)
    path = write(tmp_path / "empty.txt", data)
    with pytest.raises(InputError, match=r"text is empty: .*empty\.txt, standard input"):
        read_corpus([path, "-"])


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="no text is given"):
        read_corpus([])
    for missing in (str(tmp_path / "none.txt"), str(tmp_path / "none.gz"), ""):
        with pytest.raises(InputError, match="does not exist: name text files"):
            read_corpus([missing])
    write(tmp_path / "a.md", "a")
    with pytest.raises(InputError, match=r"has no \.txt file"):
        read_corpus([tmp_path])


def test_bad_gzip(tmp_path):
    whole = gzip.compress(os.urandom(999))
    for bad in (b"no gzip", whole[:-20], whole[:50] + b"\xff" * 50 + whole[100:], whole + b"x"):
        path = write(tmp_path / "a.gz", bad)
        with pytest.raises(InputError, match=r"a\.gz is not a gzip file, or a damaged one"):
            read_corpus([path])


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_no_permission(tmp_path, monkeypatch, kind):
    path = tmp_path / "locked"
    if kind == "file":
        write(path, "a")
    else:
        path.mkdir()
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: act the refusal

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr("os.listdir", refuse)
    try:
        with pytest.raises(InputError, match="cannot read .*locked: Permission denied"):
            read_corpus([path])
    finally:
        path.chmod(0o700)


# Decoding


def test_newlines_become_one_kind(tmp_path):
    path = write(tmp_path / "a.txt", "a\r\nb\rc\n\r\r\n\u2028")
    assert read_corpus([path]).text == "a\nb\nc\n\n\n\u2028"
    assert read_corpus([path], level="byte").text == "a\r\nb\rc\n\r\r\n\u2028".encode()


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "UTF8"]
)
def test_byte_order_mark_of_each_file_is_removed(tmp_path, encoding, mark):
    text = "naïve 𝄞"
    # A codec that writes its own mark writes just one.
    data = (("\ufeff" if mark else "") + text).encode(encoding)
    if encoding in ("utf-16", "utf-32", "utf-8-sig"):
        data = text.encode(encoding)
    paths = [write(tmp_path / n, data) for n in ("a.txt", "b.txt")]
    assert read_corpus(paths, encoding=encoding).text == 2 * text


def test_mark_within_the_text_stays(tmp_path):
    assert read_corpus([write(tmp_path / "a.txt", "a\ufeffb")]).text == "a\ufeffb"


def test_byte_level_keeps_the_mark_and_knows_no_encoding(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf\xff")
    assert read_corpus([path], level="byte", encoding="nonsense").text == b"\xef\xbb\xbf\xff"


@pytest.mark.parametrize(
    "data, encoding, offset, advice",
    [
        ("ïv\n".encode() + b"\xe9", "utf-8", 4, "latin-1"),
        (b"\xef\xbb\xbfab\xff", "utf-8", 5, "latin-1"),
        (b"\xef\xbb\xbfab\xff", "utf-8-sig", 5, "latin-1"),
        (b"\xff\xfea\0b", "utf-16", 4, "latin-1"),
        ("naïve".encode("utf-16"), "utf-8", 0, "utf-16"),
        (b"abc\x81", "cp1252", 3, "latin-1"),
    ],
)
def test_undecodable_bytes(tmp_path, data, encoding, offset, advice):
    path = write(tmp_path / "odd.txt", data)
    message = (
        rf"odd\.txt is not {encoding}: byte 0x{data[offset]:02x} at offset {offset} "
        rf".*; try --encoding {advice} or --level byte$"
    )
    with pytest.raises(InputError, match=message):
        read_corpus([path], encoding=encoding)


@pytest.mark.parametrize("encoding", ["nonsense", "hex", "rot13", "undefined", "", "a\0b"])
def test_unknown_encoding(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "abc")
    with pytest.raises(InputError, match="--encoding is .*: it must be a text encoding"):
        read_corpus([path], encoding=encoding)


def test_messages_are_one_line(tmp_path):
    path = write(tmp_path / "a.txt", b"\xff")
    for paths, encoding in (([path], "utf-8"), ([path], "x"), ([tmp_path / "b"], "utf-8")):
        with pytest.raises(InputError) as error:
            read_corpus(paths, encoding=encoding)
        assert "\n" not in str(error.value)


def test_fingerprint_is_of_the_text_not_of_its_file(tmp_path):
    text = "naïve\ntext"
    path = write(tmp_path / "a.txt", text)
    other = write(tmp_path / "b.gz", gzip.compress(text.replace("\n", "\r\n").encode("utf-16")))
    same = read_corpus([path]).fingerprint
    assert read_corpus([other], encoding="utf-16").fingerprint == same
    assert len(same) == 64


def test_fingerprint_is_of_level_length_and_every_piece(tmp_path):
    for text in ("é" * (1 << 20), "é" * (1 << 19) + "a" + "é" * (1 << 19)):
        path = write(tmp_path / "a.txt", text)
        assert read_corpus([path]).fingerprint == fingerprint(text)
        assert read_corpus([path], level="byte").fingerprint == fingerprint(text.encode())


# In pieces, and from the cache


def as_a_whole(content, encoding):
    """What a text is, by its definition."""
    text = content.decode(encoding).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


ENCODINGS = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "ascii"),
    *("latin-1", "cp1252", "gb18030", "shift_jis", "iso2022_jp", "big5", "euc_kr", "koi8-r"),
)
SOME = "a\r\n\rb\n\ufeffé中😀 +-\x00\u3042\u0416"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.text(SOME, max_size=12),
    st.binary(max_size=3),
    st.integers(0, 40),
    st.integers(4, 9),  # the first piece has the mark, if there is one
)
def test_pieces_are_decoded_as_the_whole(tmp_path_factory, encoding, text, more, place, size):
    content = text.encode(encoding, "ignore")
    content = content[:place] + more + content[place:]
    path = tmp_path_factory.getbasetemp() / "pieces"
    path.write_bytes(content)
    try:
        want = as_a_whole(content, encoding)
    except UnicodeDecodeError as error:
        offset = len(content) - len(error.object) + error.start
        want = f" is not {encoding}: byte 0x{content[offset]:02x} at offset {offset} "
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", size)
        try:
            corpus = read_corpus([path], encoding=encoding)
        except InputError as error:
            assert want in str(error) if want else "empty" in str(error)
        else:
            assert corpus.text == want
            assert corpus.fingerprint == fingerprint(want)
            assert list(corpus.counts.items()) == sorted(Counter(want).items())


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """All texts are large; the folder where they are kept."""
    monkeypatch.setenv("CHARRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "SMALL", 0)
    return tmp_path / "cache" / "texts"


@pytest.fixture
def settled(monkeypatch):
    monkeypatch.setattr(data, "SETTLED", -1.0)


def is_mapped(array):
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def never(*args):
    raise AssertionError("it is read")


def same(a, b):
    return np.array_equal(a.ids, b.ids) and dataclasses.replace(a, ids=None) == dataclasses.replace(
        b, ids=None
    )


@pytest.mark.parametrize("level", ["char", "byte"])
def test_a_large_text_is_mapped_and_found_again(tmp_path, cached, settled, monkeypatch, level):
    paths = [write(tmp_path / n, t) for n, t in [("b.txt", "é1\r\n"), ("e", ""), ("a", "2中é3")]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SMALL", 99)
        small = read_corpus(paths, level=level)
    assert not is_mapped(small.ids) and not list(cached.iterdir())
    first = read_corpus(paths, level=level)
    assert is_mapped(first.ids) and same(first, small)
    assert sorted(p.suffix for p in cached.iterdir()) == [".ids", ".json"]
    assert cached.stat().st_mode & 0o077 == 0 or os.name == "nt"
    monkeypatch.setattr(reading.Source, "pieces", never)
    again = read_corpus(paths, level=level)
    assert is_mapped(again.ids) and same(again, small)


def test_what_else_is_not_found(tmp_path, cached, settled, monkeypatch):
    a, b = (write(tmp_path / name, "é" + name) for name in "ab")
    read_corpus([a])
    monkeypatch.setattr(reading.Source, "pieces", never)
    for paths, options in [
        ([b], {}),
        ([a, b], {}),
        ([a], {"level": "byte"}),
        ([a], {"encoding": "latin-1"}),
        ([a], {"kept": True}),
    ]:
        with pytest.raises(AssertionError, match="it is read"):
            read_corpus(paths, **options)
    read_corpus([a])


def test_a_changed_file_is_read_anew_and_its_old_ids_go(tmp_path, cached, settled):
    path = write(tmp_path / "a", "before")
    before = read_corpus([path])
    for change in ("behind", "behind it"):
        write(path_of := tmp_path / "a", change)
        assert read_corpus([path]).text == change
        assert len(list(cached.iterdir())) == 2
    os.replace(write(tmp_path / "new", "x" * len(change)), path_of)  # of the same size
    assert read_corpus([path]).text == "x" * len(change)
    assert before.text == "before" or os.name == "nt"  # still mapped


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, cached):
    """Its next change might bear the same time."""
    corpus = read_corpus([write(tmp_path / "a", "abc")])
    assert is_mapped(corpus.ids) and corpus.text == "abc"
    assert not list(cached.iterdir())


@pytest.mark.parametrize("suffix", [".ids", ".json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "swapped"])
def test_a_damaged_entry_costs_time_alone(tmp_path, cached, settled, suffix, damage):
    path = write(tmp_path / "a", "some text " * 50)
    whole = read_corpus([path])
    (file,) = cached.glob(f"*{suffix}")
    content = file.read_bytes()
    other = write(tmp_path / "b", "other text" * 50)
    read_corpus([other])
    (swapped,) = (p for p in cached.glob(f"*{suffix}") if p != file)
    if damage == "gone":
        file.unlink()
    else:
        write(
            tmp_path / "damaged",
            {
                "cut": content[:-7],
                "flip": content[:30] + bytes([content[30] ^ 1]) + content[31:],
                "empty": b"",
                "swapped": swapped.read_bytes(),
            }[damage],
        )
        os.replace(tmp_path / "damaged", file)  # what is mapped would break if it were cut
    found = read_corpus([path])
    assert same(found, whole)
    assert file.read_bytes() == content


def test_what_is_stale_goes(tmp_path, cached, settled):
    cached.mkdir(parents=True, mode=0o700)
    for name, days in [("a.ids", 31), ("a.json", 29), (".b.ids.9.charrnn-tmp", 2), ("c.txt", 99)]:
        file = cached / name
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    (cached / ".d.ids.8.charrnn-tmp").touch()
    read_corpus([write(tmp_path / "a", "abc")])
    left = {p.name for p in cached.iterdir() if len(p.stem) != 41}
    assert left == {"a.json", ".d.ids.8.charrnn-tmp", "c.txt"}


@pytest.mark.parametrize("why", ["a file", "others may write", "no home"])
def test_without_a_cache_it_is_mapped_all_the_same(tmp_path, cached, settled, why, monkeypatch):
    if why == "a file":
        cached.parent.write_text("")
    elif why == "others may write":
        cached.mkdir(parents=True)
        cached.chmod(0o777)
    else:
        monkeypatch.delenv("CHARRNN_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: never_a_home())
    corpus = read_corpus([write(tmp_path / "a", "abc")])
    assert is_mapped(corpus.ids) and corpus.text == "abc"
    assert not cached.is_dir() or not list(cached.iterdir())


def never_a_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_full_disk(tmp_path, cached, settled, monkeypatch):
    path = write(tmp_path / "a", "abc" * 99)

    def full(*args):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_write", full)
        with pytest.raises(SaveError, match="No space left on device; make room or let CHARRNN_C"):
            read_corpus([path])
        assert not list(cached.iterdir())
        feed(monkeypatch, b"abc")
        with pytest.raises(SaveError, match="No space left on device; make room or let CHARRNN_C"):
            read_corpus(["-"])
    usage = store.shutil.disk_usage(tmp_path)._replace(free=200)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SaveError, match="it takes 297 bytes or more, 200 are free"):
        read_corpus([path])


def test_ids_of_another_vocabulary(tmp_path, cached):
    corpus = read_corpus([write(tmp_path / "a", "abcab\n" * 3)])
    for known, on_unknown in [("abc\n", "error"), ("\nabcz", "error"), ("xb", "skip")]:
        vocabulary = Vocabulary.build(known)
        ids = corpus.encode(vocabulary, on_unknown)
        assert is_mapped(ids)
        assert ids.tolist() == vocabulary.encode(corpus.text, on_unknown).tolist()
    assert corpus.encode(Vocabulary.build("abc\nz")) is corpus.ids
    rare = Vocabulary.build(corpus.counts, min_count=4)
    assert rare == Vocabulary.build(corpus.text, min_count=4)
    assert corpus.encode(rare, "map").tolist() == rare.encode(corpus.text, "map").tolist()
    for on_unknown, message in [("error", r"'a' \(6 times\), 'c'"), ("map", "no unknown symbol")]:
        with pytest.raises(InputError, match=message):
            corpus.encode(Vocabulary.build("b\n"), on_unknown)


def test_progress(tmp_path, cached, settled, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 100)
    paths = [write(tmp_path / "a", "a" * 450), write(tmp_path / "b", "b" * 50)]
    told = []
    read_corpus(paths, on_progress=lambda *parts: told.append(parts))
    assert told == [(n, 1000) for n in (100, 200, 300, 400, 450, 500)] + [
        (n, 1000) for n in (600, 700, 800, 900, 950, 1000)
    ]
    told.clear()
    read_corpus(paths, on_progress=lambda *parts: told.append(parts))
    assert told == [(500, 500)]
    told.clear()
    feed(monkeypatch, b"abc" * 50)
    read_corpus(["-"], on_progress=lambda *parts: told.append(parts))
    assert told[:2] == [(100, None), (150, None)] and told[-1] == (300, 300)


# Splits


def test_split_is_training_validation_test_in_order():
    ids = np.arange(1000, dtype=np.uint16)
    train, val, test = split(ids, 0.1, 0.05)
    assert [len(part) for part in (train, val, test)] == [850, 100, 50]
    assert np.array_equal(np.concatenate([train, val, test]), ids)
    assert all(np.shares_memory(part, ids) for part in (train, val, test))


@pytest.mark.parametrize(
    "n, fractions, sizes",
    [
        (100, (0.1, 0.0), (90, 10, 0)),
        (100, (0.0, 0.1), (90, 0, 10)),
        (100, (0.05, 0.05), (90, 5, 5)),
        (14, (0.1, 0.0), (14, 0, 0)),  # a part of one character has no target
        (16, (0.1, 0.0), (14, 2, 0)),
        (5, (0.9, 0.0), (2, 3, 0)),
        (3, (0.9, 0.0), (3, 0, 0)),
        (10, (0.5, 0.49), (2, 5, 3)),
        (2, (0.9, 0.09), (2, 0, 0)),
        (1, (0.9, 0.0), (1, 0, 0)),
        (0, (0.1, 0.1), (0, 0, 0)),
    ],
)
def test_split_of_small_texts(n, fractions, sizes):
    assert tuple(map(len, split(np.arange(n), *fractions))) == sizes


@pytest.mark.parametrize("n", [0, 5, 3003, 179_000, 9_999_995, 10_000_000])
def test_by_default_a_tenth_is_validated_on(n):
    ids = np.zeros(n, np.uint8)
    assert [len(p) for p in split(ids, None, 0.05)] == [len(p) for p in split(ids, 0.1, 0.05)]


@pytest.mark.parametrize("n", [10_000_010, 2_000_000_000])
def test_by_default_no_more_than_a_million_is_validated_on(n):
    ids = np.broadcast_to(np.uint8(0), n)
    assert [len(p) for p in split(ids, None, 0.0)] == [n - 10**6, 10**6, 0]
    tenth = round(0.1 * n)
    assert [len(p) for p in split(ids, 0.1, 0.0)] == [n - tenth, tenth, 0]


@quick
@given(st.integers(2, 300), st.floats(0, 0.999), st.floats(0, 0.999))
def test_split_loses_nothing(n, val_frac, test_frac):
    if val_frac + test_frac >= 1:
        return
    parts = split(np.arange(n), val_frac, test_frac)
    assert np.concatenate(parts).tolist() == list(range(n))
    assert len(parts[0]) >= 2 and len(parts[1]) != 1 and len(parts[2]) != 1


@pytest.mark.parametrize("fractions", [(0.6, 0.5), (0.5, 0.5), (-0.1, 0.0), (float("nan"), 0.0)])
def test_split_leaves_something_to_train_on(fractions):
    with pytest.raises(InputError, match="--val-frac .* --test-frac .* must be below 1"):
        split(np.arange(100), *fractions)


# Fitting


def test_fit_leaves_what_fits():
    assert fit(32 * 64 + 1, 32, 64) == (32, 64, None)


@pytest.mark.parametrize(
    "n, batch, length, changes",
    [
        (32 * 64, 31, 64, "batch size 32 -> 31"),
        (65, 1, 64, "batch size 32 -> 1"),
        (50, 1, 49, "batch size 32 -> 1, window 64 -> 49"),
        (2, 1, 1, "batch size 32 -> 1, window 64 -> 1"),
    ],
)
def test_fit_shrinks_with_a_message(n, batch, length, changes):
    message = f"the text has {n:,} training characters: {changes}"
    assert fit(n, 32, 64) == (batch, length, message)


def test_fit_without_a_length_takes_whole_streams():
    assert fit(50, 4, None) == (4, 12, None)
    assert fit(3, 4, None) == (2, 1, "the text has 3 training characters: batch size 4 -> 2")


def test_fit_of_batch_one_shrinks_the_window_only():
    assert fit(10, 1, 64) == (1, 9, "the text has 10 training characters: window 64 -> 9")


@pytest.mark.parametrize("n, has", [(0, "0 training characters"), (1, "1 training character:")])
def test_fit_needs_two_characters(n, has):
    with pytest.raises(InputError, match=f"the text has {has}.* at least 2"):
        fit(n, 32, 64)


@quick
@given(st.integers(2, 500), st.integers(1, 100), st.integers(1, 300))
def test_whatever_fits_makes_streams(n, batch_size, seq_length):
    batch, length, message = fit(n, batch_size, seq_length)
    assert 1 <= batch <= batch_size and 1 <= length <= seq_length
    assert (message is None) == ((batch, length) == (batch_size, seq_length))
    ids, _ = Streams(np.arange(n), batch).part(0, length)
    assert ids.shape == (length, batch)


# Streams


def test_streams_by_hand():
    streams = Streams(np.arange(12, dtype=np.uint8), batch_size=2)
    assert (streams.length, streams.batch_size) == (5, 2)
    ids, targets = streams.part(0, 3)
    assert ids.tolist() == [[0, 5], [1, 6], [2, 7]]
    assert targets.tolist() == [[1, 6], [2, 7], [3, 8]]
    ids, targets = streams.part(3, 5)
    assert ids.tolist() == [[3, 8], [4, 9]]
    assert targets.tolist() == [[4, 9], [5, 10]]
    assert ids.dtype == targets.dtype == np.int32
    assert ids.flags.c_contiguous and targets.flags.c_contiguous


def test_parts_do_not_alias_the_text():
    text = np.arange(10, dtype=np.int32)
    Streams(text, 1).part(0, 4)[0].fill(0)
    assert text.tolist() == list(range(10))


@pytest.mark.parametrize("part", [(-1, 2), (3, 6), (2, 2)])
def test_part_outside_the_streams(part):
    with pytest.raises(IndexError, match="a stream has 5"):
        Streams(np.arange(12), 2).part(*part)


def test_streams_of_a_text_that_is_too_small():
    with pytest.raises(InputError, match="5 characters cannot be cut into 5 streams: at least 6"):
        Streams(np.arange(5), 5)


# The texts that come with the project


@pytest.mark.parametrize("name", ["timemachine.txt", "tinyshakespeare.txt"])
def test_readme_describes_the_texts(name):
    folder = Path(__file__).parent.parent / "data"
    data = (folder / name).read_bytes()
    text = read_corpus([folder / name]).text
    assert text.encode() == data  # plain ASCII, so that bytes are characters
    facts = f"| {len(data):,} | {text.count(chr(10)):,} | {len(set(text))} |"
    row = f"| `{name}` {facts} `{hashlib.sha256(data).hexdigest()}` |"
    assert row in (folder / "README.md").read_text(encoding="utf-8").splitlines()
