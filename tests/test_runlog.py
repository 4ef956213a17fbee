"""The run folder: metrics that survive crashes, and folders that never overwrite a run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from charrnn import runlog
from charrnn.errors import InputError, SaveError
from charrnn.runlog import RunLog, new_run_folder, parse_json, read, write_json

EVENTS = [
    {"event": "start", "step": 0, "schema": runlog.SCHEMA, "vocab_size": 7},
    {"event": "train", "step": 10, "nats_per_char": 1.5, "time": {"seconds": 0.1}},
    {"event": "sample", "step": 10, "text": 'a\n"é中😀\u2028\u0085\r\ud800'},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, events=EVENTS):
    with RunLog(path) as log:
        for event in events:
            log.append(event)
        return log.length


# --- Writing and reading -------------------------------------------------------------------------


def test_roundtrip(path):
    length = write(path)
    assert list(read(path)) == EVENTS
    assert path.stat().st_size == length
    assert path.read_bytes().count(b"\n") == len(EVENTS)
    assert "é中😀".encode() in path.read_bytes()


def test_a_log_is_appended_to(path):
    write(path, EVENTS[:1])
    write(path, EVENTS[1:])
    assert list(read(path)) == EVENTS


def test_an_event_can_be_read_at_once(path):
    with RunLog(path) as log:
        log.append(EVENTS[0])
        assert list(read(path)) == EVENTS[:1]


def test_numbers_that_are_not_finite_become_null(path):
    nan, inf = float("nan"), float("inf")
    write(path, [{"event": "end", "step": 1, "a": nan, "time": {"b": [inf, 1.0, (-inf,)]}}])
    expected = {"event": "end", "step": 1, "a": None, "time": {"b": [None, 1.0, [None]]}}
    assert list(read(path)) == [expected]


def test_a_torn_last_line_is_left_out(path):
    write(path)
    whole = path.read_bytes()
    for cut in range(whole.rfind(b"\n", 0, -1) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(read(path)) == EVENTS[:-1]
    path.write_bytes(b"")
    assert list(read(path)) == []


@pytest.mark.parametrize(
    "line, match",
    [
        (b"{", "line 2 of .* not valid JSON"),
        (b"", "line 2 of .* not valid JSON"),
        (b"\xff", "line 2 of .* not valid JSON .*codec"),
        (b"[" * 100_000, "line 2 of .*nested too deeply"),
        (b'{"event":"train","step":1,"x":NaN}', "line 2 of .*not finite: NaN"),
        (b"[1]", "line 2 of .* is no event"),
        (b'{"step":1}', "line 2 of .* is no event"),
        (b"[" * 102 + b"]" * 102, "line 2 of .*nested too deeply"),
        (b'{"event":["end"],"step":1}', "'event' of line 2 of .* is damaged: it is \\['end'\\]"),
        (b'{"event":"x","step":"1"}', "'step' of line 2 of .* is damaged: it is '1'"),
        (b'{"event":"x","step":-1}', "'step' of line 2 of .* is damaged"),
        (b'{"event":"end","step":1}', "line 2 of .* is damaged: it lacks 'reason'"),
        (b'{"event":"end","step":1,"reason":7}', "'reason' of line 2 of .* is damaged: it is 7"),
        (b'{"event":"start","step":0,"schema":2}', "line 2 of .* schema 2.* reads 1: upgrade"),
        (b'{"event":"start","step":0,"schema":"x"}', "line 2 of .* schema 'x'"),
    ],
)
def test_damaged_lines(path, line, match):
    write(path, EVENTS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    events = read(path, {"end": {"reason": str}})
    assert next(events) == EVENTS[0]
    with pytest.raises(InputError, match=match) as caught:
        next(events)
    assert "\n" not in str(caught.value)


def test_a_missing_log(path):
    with pytest.raises(InputError, match="cannot read the metrics .*No such file"):
        list(read(path))


# --- Resuming ------------------------------------------------------------------------------------


def test_truncate_to_the_recorded_length(path):
    length = write(path, EVENTS[:2])
    write(path, EVENTS[2:])
    with RunLog(path) as log:
        assert log.truncate(length) is None
        assert log.length == length
        log.append(EVENTS[2])
    assert list(read(path)) == EVENTS


def test_truncate_at_the_very_length_and_to_nothing(path):
    length = write(path)
    with RunLog(path) as log:
        assert log.truncate(length) is None
        assert log.length == length
        assert log.truncate(0) is None
        assert log.length == 0


@pytest.mark.parametrize("lost", [1, 5, None])
def test_lost_metrics_do_not_stop_a_run(path, lost):
    length = write(path)
    path.write_bytes(path.read_bytes()[:-lost] if lost else b"")
    with RunLog(path) as log:
        note = log.truncate(length)
        log.append(EVENTS[0])
    assert "events are lost" in note and str(path) in note and "\n" not in note
    assert list(read(path)) == [*(EVENTS[:-1] if lost else []), EVENTS[0]]


def test_missing_metrics_do_not_stop_a_run(path):
    with RunLog(path) as log:
        assert f"{path} ends 1000 bytes before the checkpoint" in log.truncate(1000)


def test_a_line_may_wait_for_the_next(path):
    with RunLog(path) as log:
        log.append(EVENTS[0], later=True)
        assert path.stat().st_size == 0 < log.waiting == log.length
        log.append(EVENTS[1])
        assert log.waiting == 0
        log.append(EVENTS[2], later=True)
        log.sync()
        assert log.waiting == 0
    assert list(read(path)) == EVENTS


def test_sync_reaches_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with RunLog(path) as log:
        log.append(EVENTS[0])
        log.sync()
    assert len(synced) == 1


# --- Failures ------------------------------------------------------------------------------------


class FullDisk:
    """A raw file with room for ten more bytes."""

    def __init__(self, file):
        self.file, self.room = file, 10

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_lines_and_loses_none(path):
    with RunLog(path) as log:
        log.append(EVENTS[0])
        file, log._file = log._file, FullDisk(log._file)
        with pytest.raises(SaveError, match="could not write .*No space left.*resume") as caught:
            log.append(EVENTS[1])
        assert "\n" not in str(caught.value)
        log._file = file
        assert list(read(path)) == EVENTS[:1] and path.read_bytes().endswith(b"}\n")
        length = log.length
        log.append(EVENTS[2])  # it waits behind the other
        assert list(read(path)) == EVENTS[:1]
        assert path.stat().st_size < length < log.length == log.waiting + path.stat().st_size
        log.sync()
        assert log.length == path.stat().st_size and log.waiting == 0
    assert list(read(path)) == EVENTS


def test_a_torn_line_that_could_not_be_cut_off_is_cut_off_later(path):
    class Broken(FullDisk):
        def truncate(self, size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with RunLog(path) as log:
        log.append(EVENTS[0])
        file, log._file = log._file, Broken(log._file)
        with pytest.raises(SaveError, match="No space left"):
            log.append(EVENTS[1])
        assert not path.read_bytes().endswith(b"\n")
        with pytest.raises(SaveError, match="Input/output error"):
            log.sync()
        log._file = file
        log.sync()
    assert list(read(path)) == EVENTS[:2]


def test_lines_that_wait_go_with_what_is_cut_off(path):
    with RunLog(path) as log:
        log.append(EVENTS[0])
        length, file = log.length, log._file
        log._file = FullDisk(file)
        with pytest.raises(SaveError):
            log.append(EVENTS[1])
        log._file = file
        assert log.truncate(length) is None
        log.append(EVENTS[2])
    assert list(read(path)) == [EVENTS[0], EVENTS[2]]


def test_failures_are_save_errors(path, tmp_path, monkeypatch):
    with pytest.raises(SaveError, match="could not write"):
        RunLog(tmp_path / "gone" / "metrics.jsonl")

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with RunLog(path) as log:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(SaveError, match="Input/output error"):
            log.sync()


# --- JSON ----------------------------------------------------------------------------------------


def test_write_json(tmp_path):
    value = {"name": "é\udcff", "loss": float("inf"), "sections": {"a": [1, None, True]}}
    write_json(tmp_path / "config.json", value)
    text = (tmp_path / "config.json").read_bytes()
    assert parse_json(text, "config") == {**value, "loss": None}
    assert text.count(b"\n") > 3 and text.endswith(b"}\n")
    assert os.listdir(tmp_path) == ["config.json"]


def test_write_json_is_atomic(tmp_path, monkeypatch):
    write_json(tmp_path / "config.json", 1)

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SaveError, match="No space left"):
        write_json(tmp_path / "config.json", 2)
    assert json.loads((tmp_path / "config.json").read_text()) == 1
    assert os.listdir(tmp_path) == ["config.json"]


# --- Run folders ---------------------------------------------------------------------------------


def test_folders_are_numbered(tmp_path):
    root = tmp_path / "runs"
    folders = [new_run_folder(None, "timemachine", root) for _ in range(3)]
    assert folders == [root / n for n in ("timemachine", "timemachine-2", "timemachine-3")]
    assert all(folder.is_dir() for folder in folders)
    (root / "a").touch()
    assert new_run_folder(None, "a", root) == root / "a-2"


@pytest.mark.parametrize(
    "name, safe",
    [
        ("Ulysses 1922", "Ulysses-1922"),
        ("../../etc/passwd", "etc-passwd"),
        ('a<b>:"c"|d?*\\e\n', "a-b-c-d-e"),
        ("война и мир", "война-и-мир"),
        ("v1.2", "v1.2"),
        ("--help", "help"),
        ("trailing. ", "trailing"),
        ("", "text"),
        ("...", "text"),
        ("\udcff\udcfe", "text"),
        ("con", "text-con"),
        ("NUL.old", "text-NUL.old"),
        ("console", "console"),
        ("中" * 300, "中" * 60),
    ],
)
def test_names_are_made_safe(tmp_path, name, safe):
    assert new_run_folder(None, name, tmp_path) == tmp_path / safe


def test_a_named_folder_is_created(tmp_path):
    folder = tmp_path / "a" / "b"
    assert new_run_folder(str(folder), "corpus") == folder
    assert folder.is_dir()
    (folder / "notes.txt").touch()
    assert new_run_folder(folder, "corpus") == folder


def test_a_named_folder_with_a_run_is_refused(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match="already holds a run.*--resume"):
        new_run_folder(str(tmp_path), "corpus")
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "last.safetensors", "step-3.safetensors"])
def test_files_of_a_run_without_its_config_are_named(tmp_path, file):
    """They cannot be resumed, but they are not overwritten."""
    (tmp_path / file).touch()
    with pytest.raises(InputError, match=f"holds a {file}, .*: name another folder") as caught:
        new_run_folder(str(tmp_path), "corpus")
    assert "--resume" not in str(caught.value)
    assert (f"--init-from {tmp_path / file}" in str(caught.value)) == (file != "metrics.jsonl")
    assert os.listdir(tmp_path) == [file]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    for out_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot create the run folder.*--out-dir"):
            new_run_folder(out_dir, "corpus")
    with pytest.raises(InputError, match="cannot create the run folder"):
        new_run_folder(None, "corpus", tmp_path / "file")


def test_one_process_trains_a_run(tmp_path):
    with runlog.lock(tmp_path):
        taken = subprocess.run(
            [sys.executable, "-c", LOCKER, str(tmp_path)], capture_output=True, text=True
        )
        assert taken.stdout.strip() == f"{tmp_path} is being trained by process {os.getpid()}: " + (
            "wait for it, or stop it first"
        )
    free = subprocess.run(
        [sys.executable, "-c", LOCKER, str(tmp_path)], capture_output=True, text=True
    )
    assert free.stdout.strip() == "taken"


def test_a_lock_names_its_newest_owner_alone(tmp_path):
    for _ in range(2):
        with runlog.lock(tmp_path):
            assert (tmp_path / "lock").read_text() == f"process {os.getpid()}\n"


LOCKER = """
import sys
from pathlib import Path
from charrnn import errors, runlog
try:
    with runlog.lock(Path(sys.argv[1])):
        print("taken")
except errors.InputError as error:
    print(error)
"""


# --- Syncs that fail -----------------------------------------------------------------------------


class Disk:
    """Drops what is not synced when a sync fails, and says that the next one is good."""

    def __init__(self, patch):
        self.broken, self.syncs, self.synced = False, 0, b""
        patch.setattr(os, "fsync", self.sync)

    def sync(self, descriptor):
        self.syncs += 1
        if self.broken:
            self.broken = False
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, len(self.synced))
            os.ftruncate(descriptor, size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        with open(self.path, "rb") as file:
            self.synced = file.read()


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("between", [0, 1])
def test_after_a_sync_that_failed_its_lines_are_written_again(path, monkeypatch, before, between):
    disk = Disk(monkeypatch)
    disk.path = path
    with RunLog(path) as log:
        for event in EVENTS[:before]:
            log.append(event)
        log.sync()
        log.append(EVENTS[before])
        disk.broken, length = True, log.length
        with pytest.raises(SaveError, match="could not write .*Input/output error"):
            log.sync()
        assert log.length == length and log.waiting == length - len(disk.synced)
        for _ in range(between):
            log.append(EVENTS[0])
        log.sync()
        assert log.waiting == 0 and log.length == len(disk.synced)
    assert disk.synced == path.read_bytes()
    assert list(read(path)) == [*EVENTS[: before + 1], *EVENTS[:1] * between]


def test_lines_are_not_kept_without_end(path, monkeypatch):
    """A run that makes no checkpoints syncs them when they become many."""
    monkeypatch.setattr(runlog, "MOST_WAITING", 1000)
    disk = Disk(monkeypatch)
    disk.path = path
    with RunLog(path) as log:
        for _ in range(100):
            log.append(EVENTS[1])
            assert len(log._lines) <= 1000
            assert log.length == path.stat().st_size and log.waiting == 0
        line = log.length // 100
        assert disk.syncs == 100 // (1000 // line + 1)
        log.truncate(5 * line)
        log.append(EVENTS[0])
        log.sync()
    assert list(read(path)) == [*EVENTS[1:2] * 5, EVENTS[0]]
