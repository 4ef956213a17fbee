"""Texts of every kind through the command line: what docs/texts.md says becomes of them."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import ROOT, same_bits

from charrnn import checkpoint, data, reading, runs, store
from charrnn.cli import cli
from charrnn.config import Config

PROSE = "It was a dark and stormy night;\nthe rain fell in torrents.\n" * 20
TINY = ("--hidden-size=4", "--threads=1", "--max-steps=2", "--eval-every=1", "--out-dir=run")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments: str, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(cli, ["train", *TINY, *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if result.exit_code:
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
        assert not Path("run").exists()
    return result


def vocabulary_of(run: str = "run") -> list[Any]:
    import charrnn

    return list(charrnn.load(run).vocabulary.symbols)


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


NOISE = packed(random.Random(1).randbytes(3000).hex().encode())

REFUSED = {
    "empty": (b"", "the text is empty: nothing is in text"),
    "only a mark": (b"\xef\xbb\xbf", "the text is empty"),
    "one character": ("é".encode(), "has 1 training character: at least 2 are needed"),
    "invalid UTF-8 at the start": (b"\xffabc" * 99, "not utf-8: byte 0xff at offset 0 "),
    "invalid UTF-8 far inside": (
        b"a" * 300_000 + b"\xff" + b"b" * 99,
        r"not utf-8: byte 0xff at offset 300000 \(invalid start byte\); try --encoding latin-1",
    ),
    "invalid UTF-8 across two pieces": (
        b"a" * (reading.PIECE - 1) + b"\xe2\x82" + b"b" * 99,
        rf"byte 0xe2 at offset {reading.PIECE - 1} \(invalid continuation byte\)",
    ),
    "cut off within a character": (
        "torrents €".encode()[:-1],
        r"byte 0xe2 at offset 9 \(unexpected end of data\)",
    ),
    "lone surrogate": (b"ab\xed\xa0\x80", "not utf-8: byte 0xed at offset 2 "),
    "UTF-16 with a mark": (
        PROSE.encode("utf-16"),
        "byte 0xff at offset 0 .*try --encoding utf-16 ",
    ),
    "UTF-32 with a mark": (
        PROSE.encode("utf-32"),
        "byte 0xff at offset 0 .*try --encoding utf-32 ",
    ),
    "Latin-1": ("naïve ".encode("latin-1") * 99, "offset 2 .*; try --encoding latin-1 or"),
    "binary": (bytes(range(256)) * 9, "byte 0x80 at offset 128 .* or --level byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, place: Path) -> None:
    content, message = REFUSED[case]
    Path("text").write_bytes(content)
    assert re.search(message, (result := train("text")).stderr), result.stderr
    assert result.exit_code == 2
    same = train("-", stdin=content)
    assert same.stderr.replace("standard input", "text") == result.stderr
    assert same.exit_code == 2


TRAINED = {
    "two characters": (b"ab", (), "ab"),
    "one kind of character": (b"a" * 500, (), "a"),
    "NUL": (b"a\0b" * 200, (), "\0ab"),
    "mark at the start": (b"\xef\xbb\xbfab" * 99, (), "ab\ufeff"),
    "CR line ends": (b"one\rtwo\r" * 40, (), "\nenotw"),
    "CR LF line ends": (b"one\r\ntwo\r\n" * 40, (), "\nenotw"),
    "combining marks": ("e\u0301a\u0308".encode() * 99, (), "ae\u0301\u0308"),
    "right to left": ("שלום\u200f ".encode() * 99, (), " \u200fולםש"),
    "emoji": ("👩\u200d👧🇩🇪".encode() * 99, (), "\u200d🇩🇪👧👩"),
    "UTF-16 with a mark": (PROSE.encode("utf-16"), ("--encoding=utf-16",), None),
    "UTF-16 without": (PROSE.encode("utf-16-be"), ("--encoding=utf-16-be",), None),
    "UTF-16 without, in this machine's order": (
        PROSE.encode(f"utf-16-{sys.byteorder[0]}e"),
        ("--encoding=utf-16",),
        None,
    ),
    "Latin-1": (b"na\xefve " * 99, ("--encoding=latin-1",), " aenvï"),
    "binary": (bytes(range(256)) * 9, ("--level=byte",), list(range(256))),
    "lone surrogate as bytes": (b"a\xed\xa0\x80" * 99, ("--level=byte",), [97, 128, 160, 237]),
    "lone surrogate in UTF-7": (b"+2AA-a" * 99, ("--encoding=utf-7",), "a\ud800"),
}


@pytest.mark.parametrize("case", TRAINED)
def test_trained(case: str) -> None:
    content, options, symbols = TRAINED[case]
    Path("text").write_bytes(content)
    result = train("text", *options)
    assert result.exit_code == 0, result.stderr
    assert vocabulary_of() == sorted(set(PROSE) if symbols is None else symbols)
    assert ("NUL" in result.stderr) == (case == "NUL")
    # The same through a pipe, which is kept and read again.
    result = train("-", "--out-dir=piped", *options, stdin=content)
    assert result.exit_code == 0, result.stderr
    assert vocabulary_of("piped") == vocabulary_of()
    resumed = CliRunner().invoke(cli, ["train", "--resume=piped", "--max-steps=4"])
    assert resumed.exit_code == 0, resumed.stderr


def test_utf16_without_a_mark_read_as_utf8_is_doubted() -> None:
    Path("text").write_bytes(PROSE.encode("utf-16-le"))
    result = train("text")
    assert result.exit_code == 0
    note = "50% of the characters are NUL: if the text is UTF-16, give --encoding utf-16-le or"
    assert note in result.stderr


def test_a_vocabulary_of_100_000() -> None:
    symbols = [chr(c) for c in range(0x100, 0x100 + 102_048) if not 0xD800 <= c < 0xE000]
    Path("text").write_text("".join(symbols), encoding="utf-8")
    result = train("text", "--val-frac=0")
    assert result.exit_code == 0, result.stderr
    assert "100,000 symbols" in result.stderr
    assert vocabulary_of() == symbols
    sampled = CliRunner().invoke(cli, ["sample", "run", "--length=9", "--seed=1"])
    assert sampled.exit_code == 0 and len(sampled.stdout) == 10


def test_a_vocabulary_of_one_writes_it() -> None:
    Path("text").write_text("a" * 99)
    assert train("text").exit_code == 0
    result = CliRunner().invoke(cli, ["sample", "run", "--length=5"])
    assert result.stdout == "aaaaa\n"


BAD_GZIP = {
    "cut off": NOISE[:-30],
    "damaged": NOISE[:500] + b"\xff\0\xff" + NOISE[503:],
    "something else": b"no gzip",
    "followed by something": NOISE + b"junk",
}


@pytest.mark.parametrize("case", BAD_GZIP)
def test_a_damaged_gzip_file(case: str) -> None:
    Path("text.gz").write_bytes(BAD_GZIP[case])
    result = train("text.gz")
    assert "text.gz is not a gzip file, or a damaged one" in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize("content", [b"", packed(b"")])
def test_an_empty_gzip_file(content: bytes) -> None:
    Path("text.gz").write_bytes(content)
    assert "the text is empty: nothing is in text.gz" in train("text.gz").stderr


def test_a_gzip_file_larger_than_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused while its characters are counted, before anything is written."""
    usage = store.shutil.disk_usage(".")._replace(free=3_000_000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(store, "SMALL", 1_000_000)
    Path("bomb.gz").write_bytes(packed(b"\n" * 50_000_000))
    read = []
    monkeypatch.setattr(data.Counter, "add", lambda self, piece: read.append(len(piece)))
    result = train("bomb.gz")
    assert result.exit_code == 4
    assert re.search(r"it takes 3,\d+,\d+ bytes or more, 3,000,000 are free", result.stderr)
    assert "CHARRNN_CACHE_DIR" in result.stderr
    assert sum(read) < 4_000_000


def test_a_folder_without_texts() -> None:
    Path("folder").mkdir()
    Path("folder/a.md").write_text(PROSE)
    result = train("folder")
    assert (result.exit_code, "has no .txt file" in result.stderr) == (2, True)


def test_a_pipe_without_anything() -> None:
    result = train("-", stdin=b"")
    assert "the text is empty: nothing is in standard input" in result.stderr


def test_a_pipe_that_ends_early_is_the_text_that_came() -> None:
    assert train("-", stdin=PROSE[:100].encode()).exit_code == 0
    assert Path("run/text.txt").read_text() == PROSE[:100]


def test_a_pipe_is_not_kept_in_the_place_of_a_file() -> None:
    Path("run").mkdir()
    Path("run/text.txt").write_text("precious")
    line = ["train", "-", *TINY]
    result = CliRunner().invoke(cli, line, input=PROSE.encode())
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: --out-dir run holds a text.txt already, where standard input would be kept: name "
        "another folder\n"
    )
    assert [(p.name, p.read_text()) for p in Path("run").iterdir()] == [("text.txt", "precious")]
    Path("run/text.txt").write_text(PROSE)
    assert train("run/text.txt").exit_code == 0  # whose own place that is
    assert Path("run/text.txt").read_text() == PROSE


def test_files_and_a_pipe_are_documents_also_when_resumed() -> None:
    Path("b.txt").write_text(PROSE[:50])
    options = ["-", "b.txt", "--bptt=full", "--batch-size=1", "--val-frac=0"]
    options += ["--lr-schedule=constant", "--warmup-steps=0"]
    assert train(*options, "--max-steps=6", stdin=PROSE[:90].encode()).exit_code == 0
    assert (
        train(*options, "--max-steps=3", "--out-dir=two", stdin=PROSE[:90].encode()).exit_code == 0
    )
    result = CliRunner().invoke(cli, ["train", "--resume=two", "--max-steps=6"])
    assert result.exit_code == 0, result.stderr
    assert "2 to an epoch" in result.stderr
    ends = [checkpoint.load(f"{run}/last.safetensors").tensors for run in ("run", "two")]
    assert all(same_bits(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe() -> None:
    os.mkfifo("fifo")
    writer = threading.Thread(target=lambda: Path("fifo").write_text(PROSE))
    writer.start()
    result = train("fifo")
    writer.join()
    assert result.exit_code == 0, result.stderr
    assert vocabulary_of() == sorted(set(PROSE))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_device_has_no_end() -> None:
    result = train("/dev/zero")
    assert (result.exit_code, "/dev/zero is a device" in result.stderr) == (2, True)


@pytest.mark.parametrize("when", ["counting", "between", "encoding"])
@pytest.mark.parametrize("change", ["grows", "shrinks", "is replaced"])
def test_a_file_that_changes_while_it_is_read(
    when: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("text")
    path.write_text(PROSE)
    calls = {"counting": 0, "encoding": 1}
    original, opened = reading.Source.pieces, []

    def alter() -> None:
        if change == "is replaced":
            Path("new").write_text(PROSE.upper())
            os.replace("new", path)
        else:
            path.write_text(PROSE + "more" if change == "grows" else PROSE[:-9])

    def pieces(self: reading.Source) -> Any:
        opened.append(self)
        if when == "between" and len(opened) == 2:
            alter()
        for piece in original(self):
            if calls.get(when) == len(opened) - 1:
                alter()
            yield piece

    monkeypatch.setattr(reading.Source, "pieces", pieces)
    result = train("text")
    assert result.exit_code == 2, result.stderr
    assert result.stderr == (
        "Error: text changed while it was read: wait until nothing writes to it, or copy it\n"
    )


@pytest.mark.parametrize("change", [PROSE + "more", PROSE[:-9], PROSE.upper(), None])
def test_a_file_that_changes_while_it_is_trained_on(
    change: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with what it has read; going on later is refused by name."""
    monkeypatch.setattr(store, "SMALL", 0)  # also if it is mapped
    path = Path("text")
    path.write_text(PROSE)
    options = dict(hidden_size=4, max_steps=6, eval_every=2)
    whole = [e for e in runs.start(["text"], Config.from_options(options), "whole").events()]
    found = []
    for event in runs.start(["text"], Config.from_options(options), "run").events():
        found.append(event)
        if event["step"] == 1 and change is None:
            path.unlink(missing_ok=True)
        elif event["step"] == 1:
            path.write_text(str(change))
    for event in (*whole, *found):
        event.pop("time", None), event.pop("path", None)
    assert found == whole
    result = CliRunner().invoke(cli, ["train", "--resume=run", "--max-steps=9"])
    assert result.exit_code == 2
    message = "text' does not exist" if change is None else "the text is not the one that run was"
    assert message in result.stderr
    path.write_text(PROSE)
    result = CliRunner().invoke(cli, ["train", "--resume=run", "--max-steps=9"])
    assert result.exit_code == 0, result.stderr


MEASURED = """
import os, pathlib, re, sys, threading, time
from charrnn import cache

root = cache.root
cache.root = lambda kind: pathlib.Path("cache") if kind == "texts" else root(kind)

def anonymous():
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

from charrnn import runs
from charrnn.config import Config
thread = threading.Thread(target=watch)
thread.start()
config = Config.from_options(dict(hidden_size=4, max_steps=2, threads=1, eval_every=0))
for event in runs.start(sys.argv[1:2], config, sys.argv[2]).events():
    pass
done.set()
thread.join()
print(max(peak[0], anonymous()))
"""


def memory_for(path: str) -> int:
    """Most anonymous memory of a process that trains on this file, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, path, f"run{time.time_ns()}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux says it")
def test_one_line_of_40_mb_takes_no_memory() -> None:
    Path("small").write_bytes(b"abcdefgh" * (1 << 19))
    Path("large").write_bytes(b"abcdefgh" * (5 << 20))
    memory_for("small")  # compiles what is not in the cache
    before = memory_for("small")
    assert memory_for("large") < before + 12e6
    time.sleep(max(0, os.stat("large").st_ctime + data.SETTLED + 0.1 - time.time()))
    for _ in range(2):  # into the cache, and from it
        assert memory_for("large") < before + 12e6
        assert len(list(Path("cache").glob("*.ids"))) == 1
