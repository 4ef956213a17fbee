"""Runs by their metrics: files that grow, are cut and vanish, and what is known of a run."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from watching import (
    END,
    HISTORY,
    SAID,
    START,
    overfitting,
    run_folder,
    screen,
    text_of,
    train,
    validation,
    watched,
)

from charrnn import runlog
from charrnn.cli import cli
from charrnn.errors import InputError
from charrnn.watched import Follower, Watched, find


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


# --- files ---------------------------------------------------------------------------------------


def test_a_file_that_grows(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthr")
    follower = Follower(path)
    assert follower.read() == [b"one", b"two"]
    assert follower.read() == []
    with open(path, "ab") as file:
        file.write(b"ee\n\nfour\n")
    assert follower.read() == [b"three", b"", b"four"]
    assert follower.size == follower.place == path.stat().st_size


def test_a_file_that_is_cut_begins_anew(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = Follower(path)
    follower.read()
    with open(path, "r+b") as file:
        file.truncate(4)
    assert follower.read() is None
    assert follower.read() == [b"one"]


def test_a_file_that_was_cut_and_has_grown_beyond_begins_anew(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = Follower(path)
    follower.read()
    path.write_bytes(b"one\nTWO\nTHREE\nfour\nfive\n")
    assert follower.read() is None
    assert follower.read() == [b"one", b"TWO", b"THREE", b"four", b"five"]


def test_a_line_without_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("charrnn.watched.BLOCK", 10)
    path = tmp_path / "m"
    path.write_bytes(b"x" * 25 + b"\none\n")
    follower = Follower(path)
    assert [follower.read() for _ in range(4)] == [[b"x" * 10], [b"x" * 10], [b"xxxxx", b"one"], []]


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"",
        b"[1",
        b"2]",
        b"7",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"event": "train"}',
        b'{"event": ["train"], "step": 1}',
        b'{"event": "train", "step": Infinity}',
        json.dumps(train(5) | {"chars": "many"}).encode(),
        json.dumps(train(5) | {"time": {"seconds": None, "chars_per_second": 1}}).encode(),
        json.dumps(train(5) | {"chars": 10**400}).encode(),
    ],
)
def test_bad_lines_are_counted_and_left_out(folder, bad):
    good = text_of([START, train(10)]), text_of([train(20)])
    (folder / "metrics.jsonl").write_bytes(good[0] + bad + b"\n" + good[1])
    run = watched(folder)
    assert (run.bad, run.training["steps"]) == (1, [10, 20])
    assert screen(folder)[0].endswith("bad lines: 1")


def test_events_of_a_newer_version_are_left_out(folder):
    (folder / "metrics.jsonl").write_bytes(text_of([START, {"event": "moon", "step": 1}]))
    assert watched(folder).bad == 0


def test_another_schema_is_refused(folder):
    (folder / "metrics.jsonl").write_bytes(text_of([START | {"schema": 2}]))
    with pytest.raises(InputError, match=r"has schema 2; this charrnn reads 1: upgrade charrnn"):
        watched(folder)


# --- one run -------------------------------------------------------------------------------------


def test_a_run_is_followed_through_its_life(folder):
    path, run = folder / "metrics.jsonl", watched(folder)
    assert run.step == 200 and run.best == {"nats": 3.5, "step": 200}
    assert (run.clip, run.about) == (0.5, "gru 2x8")

    with open(path, "ab") as file:
        file.write(text_of([train(210)])[:-20])  # torn
    assert list(run.news()) == []

    path.write_bytes(text_of([*HISTORY[:11], train(110, 1.0, seconds=0.5)]))  # resumed
    assert next(run.news()) is None
    list(run.news())
    assert run.step == 110 and run.best == {} and run.sample == {}
    assert run.training["time"][-2:] == [10.0, 10.5]  # over both sessions

    path.unlink()
    assert list(run.news()) == [] and run.state(time.time()) == "deleted"
    assert run.step == 110

    path.write_bytes(text_of([START]))
    assert next(run.news()) is None
    list(run.news())
    assert run.step == 0 and run.trouble == ""


def test_states(folder):
    path = folder / "metrics.jsonl"
    run = watched(folder)
    written = run.follower.written
    with runlog.lock(folder):
        assert run.state(written + 3) == "running, 40 s left"
        assert run.state(written + 300) == "no news for 5 min 00 s"
    assert run.state(written + 1) == "running, 40 s left"  # the first lines of a resumed run
    assert run.state(written + 3) == "stopped 3 s ago"
    assert run.interval == pytest.approx(1.0, rel=0.05)
    path.write_bytes(text_of([*HISTORY, END]))
    assert watched(folder).state(written + 300) == "finished after 40 s"
    path.write_bytes(text_of([*HISTORY, END, START | {"total_steps": 800}, train(410)]))
    assert watched(folder).state(time.time()).startswith("running")
    path.write_bytes(text_of([*HISTORY, END, train(410)]))  # more --patience: no start is written
    assert watched(folder).state(time.time()).startswith("running")
    path.unlink()
    assert watched(folder).state(time.time()) == "waiting for its first line"


def test_reading_a_long_file_does_not_block(folder, monkeypatch):
    monkeypatch.setattr("charrnn.watched.BLOCK", 500)
    run = Watched(folder, "book")
    assert len(list(run.news(deadline=0.0))) == 2  # a block
    assert run.unread and run.state(time.time()).startswith("reading ")
    assert len(list(run.news())) == len(HISTORY) - 2 and not run.unread


def test_which_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "deep" / "other"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_bytes(b"")  # no checkpoint yet
    os.utime(folder / "metrics.jsonl", (1, 1))
    assert find([]) == [Path("runs/deep/other")]
    os.utime(other / "metrics.jsonl", (0, 0))
    assert find([]) == [Path("runs/book")]
    names = ["runs/book", "runs/book/metrics.jsonl", "runs/deep/other"]
    assert find(names) == [Path("runs/book"), Path("runs/deep/other")]


def test_what_cannot_be_watched_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "s.txt").touch()
    for arguments, message in (
        (["nothing"], "nothing does not exist: name the folder of a run"),
        (["runs"], "runs holds no run: name the folder that charrnn train made"),
        (["s.txt"], "s.txt is no file of a run: name the folder that charrnn train made"),
        ([""], "'' does not exist: name the folder of a run"),
        (["broken"], "cannot read the metrics broken.metrics.jsonl: .*; allow reading it"),
    ):
        result = CliRunner().invoke(cli, ["monitor", *arguments])
        assert result.exit_code == 2 and result.stdout == ""
        assert re.fullmatch(f"Error: {message}\n", result.stderr)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, ["monitor"])
    assert result.stderr.startswith("Error: there are no runs below runs: make one with ")


def test_advice_is_that_of_the_newest_numbers(folder):
    run = watched(overfitting(folder))
    assert run.advice == [SAID] and run.advice is run.advice
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(text_of([train(510, 2.4), validation(550, 1.6)]))
    for _ in run.news():
        pass
    assert run.advice == []
