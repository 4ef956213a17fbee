"""The list of runs: states, numbers, damage, order; that a look at a lock keeps nobody out."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from charrnn import checkpoint, listing, runlog
from charrnn.cli import cli
from charrnn.commands.runs import RUN_COLUMNS
from charrnn.errors import InputError

MODEL = {"model": "gru", "num_layers": 2, "hidden_size": 8}
START = {"event": "start", "step": 0, "schema": 1, "total_steps": 400, "parameters": 12345}
TRAIN = {"event": "train", "step": 110}


def validation(step, best, best_step):
    return {
        "event": "validation",
        "step": step,
        "best_val_nats_per_char": best,
        "best_step": best_step,
    }


def end(reason, step=120):
    return {"event": "end", "step": step, "reason": reason}


def lines(*events):
    return b"".join(runlog.dump_json(event) + b"\n" for event in events)


BEFORE = lines(START, TRAIN | {"step": 50}, validation(100, 2.5, 100), TRAIN | {"step": 100})


def make(folder, *events, finished=None, kept=BEFORE):
    """A run with a checkpoint at step 100 and, behind its metrics, ``events``."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"model": MODEL}}), encoding="utf-8")
    (folder / "metrics.jsonl").write_bytes(kept + lines(*events))
    save(folder / "last.safetensors", finished=finished, kept=kept)
    return folder


def save(path, finished=None, kept=BEFORE, best=2.5, best_step=100):
    progress = {"step": 100, "total_steps": 400, "finished": finished}
    progress |= {"best_val_nats_per_char": best, "best_step": best_step}
    tensors = {"w": np.zeros(1000, np.float32)}
    checkpoint.save(path, tensors, {"progress": progress, "metrics_length": len(kept)})


def listed(folder):
    [run] = listing.find(folder, time.time())
    return run


@pytest.mark.parametrize(
    "events, finished, state",
    [
        ([], None, "interrupted"),
        ([TRAIN], None, "killed"),
        ([], "finished", "finished"),  # killed between the checkpoint and the last line
        ([], "patience", "patience"),
        ([end("finished")], "finished", "finished"),
        ([TRAIN, end("diverged")], None, "diverged"),
        ([TRAIN, end("diverged")], "finished", "diverged"),  # trained further
        ([TRAIN], "finished", "killed"),  # trained further
        ([TRAIN, end("a reason to come")], None, "a reason to come"),
    ],
)
def test_states(tmp_path, events, finished, state):
    folder = make(tmp_path / "book", *events, finished=finished)
    assert listed(folder)["state"] == state
    (folder / "lock").touch()  # a process that is gone
    assert listed(folder)["state"] == state
    with runlog.lock(folder):
        assert listed(folder)["state"] == "running"


def test_what_is_known_of_a_run(tmp_path):
    make(tmp_path / "a" / "book", TRAIN)
    now = (tmp_path / "a" / "book" / "last.safetensors").stat().st_mtime + 60
    [run] = listing.find(tmp_path, now)
    assert tuple(run) == listing.KEYS
    assert run.pop("age_seconds") == pytest.approx(60, abs=5)
    assert run == {
        "name": str(Path("a", "book")),
        "path": str(tmp_path / "a" / "book"),
        "state": "killed",
        "problem": None,
        "model": "gru",
        "num_layers": 2,
        "hidden_size": 8,
        "parameters": 12345,
        "step": 110,
        "total_steps": 400,
        "checkpoint_step": 100,
        "best_val_nats_per_char": 2.5,
        "best_step": 100,
    }
    assert listed(tmp_path / "a" / "book")["name"] == "book"


def test_the_best_loss_is_the_lowest_of_all_files(tmp_path):
    folder = make(tmp_path / "book", TRAIN)
    save(folder / "best.safetensors", best=2.25, best_step=105)
    assert (listed(folder)["best_val_nats_per_char"], listed(folder)["best_step"]) == (2.25, 105)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(lines(validation(115, 2.0, 112)))
    assert (listed(folder)["best_val_nats_per_char"], listed(folder)["best_step"]) == (2.0, 112)


def test_a_run_that_got_more_steps(tmp_path):
    """The new start event stands right behind the checkpoint."""
    folder = make(tmp_path / "book", START | {"step": 100, "total_steps": 900}, TRAIN)
    assert listed(folder)["total_steps"] == 900


def test_a_checkpoint_knows_more_than_the_first_start(tmp_path):
    """A finished run that was trained further and has finished again."""
    first = lines(START | {"total_steps": 50}, TRAIN | {"step": 50})
    folder = make(tmp_path / "book", end("finished", 100), finished="finished", kept=first)
    assert listed(folder)["total_steps"] == 400


def test_a_run_without_a_checkpoint(tmp_path):
    folder = make(tmp_path / "book", TRAIN)
    (folder / "last.safetensors").unlink()
    run = listed(folder)
    assert [run[k] for k in ("state", "step", "total_steps")] == ["killed", 110, 400]
    assert run["checkpoint_step"] is None
    (folder / "metrics.jsonl").write_bytes(b"")
    with runlog.lock(folder):  # before its first line
        run = listed(folder)
    assert [run[k] for k in ("state", "step", "parameters", "model")] == [
        "running", None, None, "gru",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="its files are not sparse by themselves")
def test_little_of_a_long_file_is_read(tmp_path):
    folder = make(tmp_path / "book")
    with open(folder / "metrics.jsonl", "r+b") as file:
        file.seek(2**36)
        file.write(b"\n" + lines(*[TRAIN] * 5000, end("diverged", 900)))
    run = listed(folder)
    assert (run["state"], run["step"], run["parameters"]) == ("diverged", 900, 12345)


def test_a_line_being_written_is_left_out(tmp_path):
    folder = make(tmp_path / "book", TRAIN)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"event": "end", "st')
    assert (listed(folder)["state"], listed(folder)["step"]) == ("killed", 110)


def test_a_last_line_longer_than_the_tail(tmp_path):
    folder = make(tmp_path / "book", {"event": "sample", "step": 333, "text": "x" * 3 * 2**16})
    assert (listed(folder)["state"], listed(folder)["step"]) == ("killed", 333)


DAMAGE = {
    "config.json": [None, b"", b"{}", b'{"config": {"model": []}}', b"\xff", b"[" * 100000],
    "metrics.jsonl": [
        None, b"x\n", b"{}\n", b'{"event": "train", "step": "x"}\n',
        b'{"event": "train", "step": 1e999}\n',
        b'{"event": "start", "step": 0, "schema": 2}\n', b'{"event": "end", "step": 1}\n',
    ],
    "last.safetensors": [b"", b"x" * 9, b"\xff" * 100, b"cut"],
    "best.safetensors": [b"x"],
}  # fmt: skip


@pytest.mark.parametrize("name, data", [(n, d) for n, all in DAMAGE.items() for d in all])
def test_a_damaged_run_is_a_row_that_says_so(tmp_path, name, data):
    make(tmp_path / "whole")
    path = make(tmp_path / "bad", TRAIN) / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if data == b"cut" else data)
    bad, whole = listing.find(tmp_path, time.time())
    assert (whole["state"], whole["problem"]) == ("interrupted", None)
    assert bad["state"] == "damaged" and name in bad["problem"]
    assert bad["step"] == (100 if name == "metrics.jsonl" else 110)  # as far as it is known
    assert len(listing.table([bad, whole])) == 3


def test_order(tmp_path):
    runs = [
        dict.fromkeys(listing.KEYS) | {"name": name, "step": step, "best_val_nats_per_char": nats}
        for name, step, nats in (("b", 10, None), ("c", 30, 1.5), ("d", None, 1.0), ("a", 20, 2.0))
    ]
    for column, names in {"name": "abcd", "step": "cabd", "best": "dcab", "model": "bcda"}.items():
        assert "".join(run["name"] for run in listing.ordered(runs, column)) == names
    assert tuple(listing.ORDERS) == RUN_COLUMNS


def invoke(*arguments):
    return CliRunner().invoke(cli, ["runs", *map(str, arguments)])


def test_the_table(tmp_path):
    folder = make(tmp_path / "名 \x1b[2J", TRAIN)
    for path in folder.iterdir():
        os.utime(path, (time.time() - 7300, time.time() - 7300))
    make(tmp_path / "bad", TRAIN)
    (tmp_path / "bad" / "config.json").unlink()
    result = invoke(tmp_path, "--sort", "state")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "name     model    parameters  steps   of  nats/char  bits/char  state    age",
        "bad      -            12,345    110  400     2.5000     3.6067  damaged  0 s",
        "名 ?[2J  gru 2x8      12,345    110  400     2.5000     3.6067  killed   2 h",
    ]
    assert result.stderr.startswith("cannot read ") and result.stderr.count("\n") == 1


def test_json(tmp_path):
    make(tmp_path / "b", kept=b"")
    make(tmp_path / "a", TRAIN)
    runs = json.loads(invoke(tmp_path, "--json", "--sort=name").stdout)
    assert [run["name"] for run in runs] == ["a", "b"]
    assert all(tuple(run) == listing.KEYS for run in runs)
    (tmp_path / "empty").mkdir()
    assert json.loads(invoke(tmp_path / "empty", "--json").stdout) == []


def test_wrong_input(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder, message in ((tmp_path / "none", "does not exist"), (file, "is no folder")):
        result = invoke(folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
        assert message in result.stderr
    assert invoke(tmp_path, "--sort=size").exit_code == 2
    assert invoke(tmp_path).stderr == f"there are no runs below {tmp_path}\n"


def test_every_key_is_documented():
    document = (Path(__file__).parent.parent / "docs" / "options.md").read_text(encoding="utf-8")
    chapter = document.partition("\n## charrnn runs\n")[2].partition("\n## ")[0]
    assert [key for key in listing.KEYS if f"`{key}`" not in chapter] == []


def test_looking_keeps_no_trainer_out(tmp_path):
    (tmp_path / "lock").touch()
    done, looks = threading.Event(), []

    def look():
        while not done.is_set():
            looks.append(runlog.held(tmp_path))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            with runlog.lock(tmp_path):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(looks) > 200


@pytest.mark.skipif(os.name == "nt", reason="it has no shared locks")
def test_two_who_look_do_not_take_each_other_for_a_trainer(tmp_path):
    import fcntl

    assert not runlog.held(tmp_path)
    assert not (tmp_path / "lock").exists()  # nothing is written
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not runlog.held(tmp_path)


def test_a_trainer_is_refused_while_another_one_trains(tmp_path):
    with runlog.lock(tmp_path), contextlib.ExitStack() as stack:
        with pytest.raises(InputError, match=f"is being trained by process {os.getpid()}:"):
            stack.enter_context(runlog.lock(tmp_path))
        assert runlog.held(tmp_path)
    assert not runlog.held(tmp_path)
