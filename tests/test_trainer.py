"""The training loop: exact resuming, every way to end, and what a run's folder holds.

The usual run here has 22 windows to an epoch, the last of one character, and 44 steps.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn import api, burst, checkpoint, data, evaluate, passes, runlog, runs, trainer
from charrnn.config import Config, TrainConfig
from charrnn.errors import Ended, InputError
from charrnn.progress import Progress
from charrnn.saving import way_back
from charrnn.schedules import learning_rate
from charrnn.trainer import Event, Run

BOOK = (Path(__file__).parent.parent / "data" / "timemachine.txt").read_text(encoding="utf-8")
TEXT = BOOK[:1500]
SMALL: dict[str, Any] = dict(hidden_size=16, batch_size=4, seq_length=16, epochs=2)
SMALL |= dict(dropout=0.0, threads=1)
EVERY: dict[str, Any] = dict(log_every=5, eval_every=7, checkpoint_every=6, sample_every=11)
EVERY |= dict(log_gradients=4)


def begin(
    folder: Path, text: str = TEXT, *, files: Iterable[Path | str] = (),
    init_from: Path | None = None, on_unknown: str = "add", **options: Any,
) -> Run:  # fmt: skip
    """A new run in ``folder``; its text lies beside it unless there are ``files``."""
    if not files:
        files = [folder.parent / "text.txt"]
        folder.parent.joinpath("text.txt").write_text(text, encoding="utf-8")
    parent = str(init_from) if init_from else None
    config = Config.from_options(SMALL | options)
    return runs.start([str(f) for f in files], config, str(folder), parent, on_unknown, options)


def go(run: Run, until: int | None = None, pace: float = 0.0) -> list[Event]:
    """The events of a run, which is interrupted in step ``until``, or the first one seen after."""
    events = []
    for event in run.events(pace):
        events.append(event)
        if event["event"] == "step" and until is not None and event["step"] >= until:
            run.interrupt()
    return events


def resume(folder: Path, files: Iterable[Path] = (), **changes: Any) -> Run:
    return runs.resume(str(folder), [str(f) for f in files], changes)


def content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, but for the metrics' length: it depends on the digits of times."""
    loaded = checkpoint.load(path)
    tensors = {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in loaded.tensors.items()}
    return tensors | {k: v for k, v in loaded.metadata.items() if k != "metrics_length"}


def tensors(folder: Path, name: str = "last") -> dict[str, bytes]:
    loaded = checkpoint.load(folder / f"{name}.safetensors").tensors
    return {name: array.tobytes() for name, array in loaded.items()}


def metrics(folder: Path) -> list[Event]:
    """The log without what depends on the clock."""
    events = list(runlog.read(folder / "metrics.jsonl"))
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves."""
    files = {path.name: content(path) for path in sorted(folder.glob("*.safetensors"))}
    return files | {"metrics": metrics(folder)}


def end(events: list[Event], reason: str = "finished") -> Event:
    """The last event, which says why the run ended; it is the only one of its kind."""
    assert [e["reason"] for e in events if e["event"] == "end"] == [reason]
    return events[-1]


def kinds(events: list[Event]) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in events]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Nobody pulls the plug here: no waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    end(go(begin(folder, **EVERY)))
    return folder


# --- going on, bit for bit -----------------------------------------------------------------------

POINTS = {
    "at a checkpoint": 6,
    "within a log interval": 8,
    "within an epoch": 15,
    "before an epoch's shorter window": 21,
    "at an epoch's end": 22,
    "after an epoch's first window": 23,
    "before the last step": 43,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": dict(optimizer="sgd", grad_clip_value=0.01),
    "momentum": dict(optimizer="momentum", lr_schedule="linear"),
    "adagrad": dict(optimizer="adagrad", lr_schedule="constant"),
    "rmsprop": dict(optimizer="rmsprop", lr_schedule="step", lr_decay_after=1, lr_decay=0.5),
    "adam": dict(optimizer="adam", warmup_steps=4),
    "dropout": dict(dropout=0.3, num_layers=2),
    "embedding": dict(embedding_size=16, residual=True, num_layers=2, grad_clip=0.05),
    "unknown symbol": dict(min_count=20),
    "no validation": dict(val_frac=0.0),
    "test part": dict(test_frac=0.1, text=BOOK[:1688]),  # leaves as much to train on
    "patience": dict(eval_every=2, patience=30),
    "kept": dict(keep=3),
    "gru": dict(model="gru"),
    "full": dict(bptt="full", dropout=0.2),
    "full, recomputed": dict(
        bptt="full", seq_length=None, batch_size=1, recompute="always", epochs=44
    ),
    "sliding": dict(bptt="sliding", k1=4, k2=10),
    "sliding over several windows": dict(bptt="sliding", k1=4, k2=40, dropout=0.2),
    "randomized": dict(bptt="randomized", epochs=9, max_steps=44),
    "randomized, recomputed": dict(
        bptt="randomized", recompute="always", dropout=0.2, epochs=9, max_steps=44
    ),
}


@pytest.mark.parametrize("point", POINTS)
def test_interrupted_and_resumed_is_never_stopped(point: str, whole: Path, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    end(go(begin(folder, files=[text], **EVERY), POINTS[point]), "interrupted")
    last = checkpoint.load(folder / "last.safetensors").metadata["progress"]
    assert (last["step"], last["finished"]) == (POINTS[point], None)
    end(go(resume(folder)))
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_everywhere_and_resumed(variant: str, tmp_path: Path) -> None:
    options = EVERY | VARIANTS[variant]
    one, many = tmp_path / "one", tmp_path / "many"
    end(go(begin(one, **options)))
    run = begin(many, **options)
    for step in POINTS.values():
        end(go(run, step), "interrupted")
        run = resume(many)
    end(go(run))
    assert outcome(many) == outcome(one)


LONG: dict[str, Any] = dict(log_every=3, eval_every=17, checkpoint_every=0)
GONE_ON: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradients": dict(log_gradients=5),
    "bf16": dict(precision="bf16"),
    "float64": dict(dtype="float64", model="rnn"),
    "shared units": dict(hidden_size=300, batch_size=2, num_layers=2, max_steps=14),
}
HOURS = 1e4  # a pace at which only what is due parts steps


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", [*GONE_ON, *VARIANTS])
def test_steps_in_one_go_are_the_same(
    variant: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SMALL", 0)  # no work is too little for several threads
    options = LONG | dict(threads=threads) | (GONE_ON | VARIANTS)[variant]
    one, many, asked = tmp_path / "one", tmp_path / "many", []
    end(go(begin(one, **options)))
    monkeypatch.setattr(
        trainer, "learning_rate", lambda *args: asked.append(args[1]) or learning_rate(*args)
    )
    run = begin(many, **options)
    run.tuner.stop()  # its search needs step by step
    events = go(run, pace=HOURS)
    end(events)
    assert outcome(many) == outcome(one)
    steps = [e["steps"] for e in events if e["event"] == "step"]
    assert sum(steps) == checkpoint.load(many / "last.safetensors").metadata["progress"]["step"]
    assert asked == list(range(sum(steps)))  # nothing is made ready in vain
    apart = options.get("bptt", "truncated") != "truncated"
    assert max(steps) == 1 if apart else max(steps) > 1


def test_steps_in_one_go_end_where_something_is_due(tmp_path: Path) -> None:
    """The first is alone: it says how long a step takes. An epoch's last window is shorter."""
    options = dict(eval_every=9, checkpoint_every=12, sample_every=20, log_gradients=32)
    events = go(begin(tmp_path / "run", **options), pace=HOURS)
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 9, 12, 18, 20, 21, 22, 24, 27, 31, 32, 36, 40, 43, 44]
    assert [e["steps"] for e in steps][:6] == [1, 8, 3, 6, 2, 1]
    seconds = [e["time"]["seconds"] for e in events if "time" in e]
    assert seconds == sorted(seconds)


def test_steps_in_one_go_are_told_of_as_means(tmp_path: Path) -> None:
    options = dict(eval_every=9, grad_clip=0.25, learning_rate=0.1)
    single = [e for e in go(begin(tmp_path / "one", **options)) if e["event"] == "step"]
    for event in go(begin(tmp_path / "many", **options), pace=HOURS):
        if event["event"] != "step":
            continue
        span = single[event["step"] - event["steps"] : event["step"]]
        for name in ("nats_per_char", "clipped"):
            assert event[name] == pytest.approx(np.mean([e[name] for e in span]))
        for name in ("grad_norm", "learning_rate", "chars", "epoch"):
            assert event[name] == span[-1][name]
    assert 0 < sum(e["clipped"] for e in single) < len(single)


def test_as_many_steps_in_one_go_as_there_is_time_and_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(eval_every=0, checkpoint_every=0)
    end(go(begin(tmp_path / "one", **options)))
    ticks = itertools.count()  # a second between any two looks at the clock
    with monkeypatch.context() as patch:
        patch.setattr(trainer.time, "perf_counter", lambda: float(next(ticks)))
        events = go(begin(tmp_path / "time", **options), pace=2.0)
    steps = [e["steps"] for e in events if e["event"] == "step"]
    assert steps[:3] == [1, 2, 4] and max(steps) > 4  # two steps take a second, then four
    monkeypatch.setattr(burst, "CHARS", 3 * 64)
    events = go(begin(tmp_path / "room", **options), pace=HOURS)
    assert max(e["steps"] for e in events if e["event"] == "step") == 3
    for name in ("time", "room"):
        assert outcome(tmp_path / name) == outcome(tmp_path / "one")


def test_interrupted_in_one_go_and_resumed(whole: Path, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    run = begin(folder, files=[text], **EVERY)
    for step, pace in ((2, HOURS), (9, 0.0), (23, HOURS), (30, HOURS)):
        end(go(run, step, pace), "interrupted")
        run = resume(folder)
    end(go(run, pace=HOURS))
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("options", [dict(), dict(on_divergence="rollback", max_rollbacks=3)])
def test_divergence_within_steps_in_one_go(options: dict[str, Any], tmp_path: Path) -> None:
    """The same step, the same words, the same way back."""
    options |= dict(optimizer="sgd", learning_rate=1.0, grad_clip=0.0, model="rnn", log_every=2)
    options |= dict(activation="identity", eval_every=0, checkpoint_every=0)
    one, many = (
        go(begin(tmp_path / name, **options), pace=pace)
        for name, pace in (("one", 0.0), ("many", HOURS))
    )
    assert any("loss is no longer finite at step 9" in str(e) for e in one)
    assert str(outcome(tmp_path / "many")).replace("many", "one") == str(outcome(tmp_path / "one"))
    notes = [[e for e in events if e["event"] == "note"] for events in (one, many)]
    assert notes[0] == notes[1]
    assert sum(e["event"] == "step" for e in many) < 9


def test_any_number_of_threads_on_either_side_of_a_resume(whole: Path, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    run = begin(folder, files=[text], **EVERY | dict(threads=2))
    for step, threads in ((9, 1), (17, 3), (30, 7)):
        end(go(run, step), "interrupted")
        run = resume(folder, threads=threads)
    end(go(run))
    assert tensors(folder) == tensors(whole)
    assert tensors(folder, "best") == tensors(whole, "best")
    assert metrics(folder) == metrics(whole)


def test_the_search_for_the_fastest_threads_changes_no_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "available", lambda: 7)
    ticks = itertools.count()  # all numbers of threads take the same time
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: float(next(ticks)))
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    run = begin(folder, files=[text], **EVERY | dict(threads="auto"))
    events = go(run, 25)
    run = resume(folder)
    assert run.config.train.threads == "auto" and run.tuner.searching
    events += go(run)
    sizes = {event["time"]["threads"] for event in events if event["event"] == "step"}
    assert sizes == {1, 2, 3, 4, 5, 6, 7}
    assert tensors(folder) == tensors(whole)
    assert tensors(folder, "best") == tensors(whole, "best")
    assert metrics(folder) == metrics(whole)


@pytest.mark.parametrize("bptt", ["full", "sliding", "randomized", "recompute"])
def test_teams_of_any_size_take_turns(bptt: str, tmp_path: Path) -> None:
    """Also where windows differ in length, and where a pass has passes within."""
    options = dict(recompute="always") if bptt == "recompute" else dict(bptt=bptt)
    options |= dict(dropout=0.3, num_layers=2, max_steps=12, seq_length=20, log_every=1)
    end(go(begin(tmp_path / "one", **options)))
    run = begin(tmp_path / "many", **options | dict(threads=7))
    sizes = itertools.cycle((7, 2, 1, 3))
    for event in run.events():
        if event["event"] == "step":
            assert run.learner._last.way.threads == run.model.team.size
            run.model.team.resize(next(sizes))
    assert tensors(tmp_path / "many") == tensors(tmp_path / "one")
    assert metrics(tmp_path / "many") == metrics(tmp_path / "one")


@pytest.mark.parametrize("every", [1, 2])
def test_steps_whose_gradient_is_looked_at_are_timed_too(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "available", lambda: 2)
    run = begin(tmp_path / "run", threads="auto", log_gradients=every, max_steps=2)
    heard = []
    monkeypatch.setattr(run.tuner, "took", heard.append)
    go(run)
    assert len(heard) == 2


def test_tables_of_calls_are_made_before_a_step_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a new length of window would look like a slow number of threads."""
    made, run_gradients = [], passes.Pass.run_gradients

    def run_ready(self: passes.Pass) -> float:
        made.append("gradient_program" in vars(self))
        return run_gradients(self)

    monkeypatch.setattr(passes.Pass, "run_gradients", run_ready)
    for i, options in enumerate((dict(bptt="randomized"), dict(recompute="always", bptt="full"))):
        end(go(begin(tmp_path / f"{i}", max_steps=9, **options)))
    assert len(made) > 9 and all(made)


def test_a_number_of_threads_is_kept(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", threads=2, max_steps=3)
    threads = [e["time"]["threads"] for e in go(run) if e["event"] == "step"]
    assert threads == [2, 2, 2] and not run.tuner.searching
    resumed = resume(tmp_path / "run", threads="auto", max_steps=5)
    assert resumed.tuner.searching == (resumed.model.team.most > 1)


def test_a_choice_of_fewer_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "available", lambda: 2)
    clock = [0.0]

    def now() -> float:
        """A clock by which two threads take twice as long."""
        clock[0] += 1e-3 * run.model.team.size
        return clock[0]

    run = begin(tmp_path / "run", threads="auto")
    monkeypatch.setattr(trainer.time, "perf_counter", now)
    events = go(run)
    notes = [e["text"] for e in events if e["event"] == "note" and "threads" in e["text"]]
    assert notes == ["trains with 1 of 2 threads (ms a step: 2 with 2, 1 with 1)"]
    assert events[-2]["event"] != "note" and run.model.team.size == 1


def test_killed_at_any_instant(whole: Path, tmp_path: Path) -> None:
    """Each copy of the folder is what a kill at that instant leaves behind."""
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    copies = []
    for i, event in enumerate(begin(folder, files=[text], **EVERY).events()):
        if event["event"] != "step" or event["step"] in (1, 20, 44):
            copies.append(shutil.copytree(folder, tmp_path / f"copy-{i}"))
    for i, copy in enumerate(copies[:-1]):
        if i % 2:
            with open(copy / "metrics.jsonl", "ab") as file:
                file.write(b'{"event":"train","st')  # killed while writing
            (copy / ".last.safetensors.1.charrnn-tmp").write_bytes(b"half")
        end(go(resume(copy)))
        assert outcome(copy) == outcome(whole)
        assert {p.name for p in copy.iterdir()} == {p.name for p in whole.iterdir()}
    assert len(copies) > 25
    with pytest.raises(Ended, match="has ended after 44 steps"):
        resume(copies[-1])


def test_killed_between_the_last_checkpoint_and_the_last_line(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    events = go(resume(copy))
    assert [e["event"] for e in events] == ["start", "end"]
    assert outcome(copy) == outcome(whole)


def test_metrics_that_are_cut_or_gone_are_noted_and_cost_no_weights(
    whole: Path, tmp_path: Path
) -> None:
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    go(begin(folder, files=[text], **EVERY), 30)
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:300]), Path.unlink):
        copy = shutil.copytree(folder, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")
        damage(copy / "metrics.jsonl")
        events = go(resume(copy))
        assert any(e["event"] == "note" and "are lost" in e["text"] for e in events)
        assert tensors(copy) == tensors(whole)


def test_a_run_without_a_checkpoint_starts_again(whole: Path, tmp_path: Path) -> None:
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    begin(folder, files=[text], **EVERY)
    (folder / "metrics.jsonl").write_bytes(b'{"event": "start", "st')  # killed in its first line
    assert not (folder / "last.safetensors").exists()
    found = go(resume(folder))
    assert ("step", 1) in kinds(found)
    assert outcome(folder) == outcome(whole)


def test_there_is_a_checkpoint_before_the_first_step(whole: Path, tmp_path: Path) -> None:
    """So whatever is saved first, best or kept, a run that is killed then can go on."""
    folder, text = tmp_path / "run", whole.parent / "text.txt"
    for event in begin(folder, files=[text], **EVERY | dict(eval_every=2)).events():
        if event["event"] == "step" and event["step"] == 3:
            break
    assert {p.name for p in folder.glob("*.safetensors")} == {
        "last.safetensors",
        "best.safetensors",
    }
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == 0
    go(begin(tmp_path / "whole", files=[text], **EVERY | dict(eval_every=2)))
    end(go(resume(folder)))
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_the_same_run_again_is_the_same(whole: Path, tmp_path: Path) -> None:
    text = whole.parent / "text.txt"
    go(begin(tmp_path / "again", files=[text], **EVERY))
    assert outcome(tmp_path / "again") == outcome(whole)
    go(begin(tmp_path / "seed", files=[text], **EVERY | dict(seed=2)))
    assert tensors(tmp_path / "seed") != tensors(whole)


def test_watching_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    nothing = dict(log_every=0, eval_every=0, checkpoint_every=0, sample_every=0)
    events = go(begin(folder, files=[whole.parent / "text.txt"], **nothing))
    assert tensors(folder) == tensors(whole)
    shown = [e["event"] for e in events if e["event"] not in ("step", "train")]
    assert shown == ["start", "validation", "checkpoint", "end"]
    assert {e["step"] for e in events if e["event"] in ("train", "validation")} <= {44}


def test_what_is_not_finished_may_change_its_intervals(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(begin(folder, files=[whole.parent / "text.txt"], **EVERY), 8)
    go(resume(folder, eval_every=4, sample_every=0, checkpoint_every=10, keep=2, patience=99))
    assert tensors(folder) == tensors(whole)
    found = kinds(metrics(folder))
    assert [s for kind, s in found if kind == "validation"] == [7, *range(12, 45, 4)]
    assert not [s for kind, s in found if kind == "sample"]
    assert {p.stem for p in folder.glob("step-*")} == {"step-30", "step-40"}


def _overtaken(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Run:
    """The run as it is resumed, but that another process trains it to step 20 in the meantime."""
    read = runs._resumed

    def slow(*args: Any) -> Run:
        found = read(*args)
        monkeypatch.setattr(runs, "_resumed", read)
        go(resume(folder), 20)
        return found

    monkeypatch.setattr(runs, "_resumed", slow)
    return resume(folder, **changes)


@pytest.mark.parametrize("first", [5, None], ids=["after a checkpoint", "before the first one"])
def test_what_another_process_has_saved_until_the_lock_was_free_counts(
    first: int | None, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run = begin(folder, files=[whole.parent / "text.txt"], **EVERY)
    if first is not None:
        go(run, first)
    del run  # it has the lock
    run = _overtaken(folder, monkeypatch)
    assert run.progress.step == 20
    end(go(run))
    assert outcome(folder) == outcome(whole)


def test_what_another_process_has_saved_may_be_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(begin(tmp_path / "run"), 5)
    with pytest.raises(InputError, match="is at step 20 already, 12 are asked for"):
        _overtaken(tmp_path / "run", monkeypatch, max_steps=12)
    assert resume(tmp_path / "run").progress.step == 20


def test_a_run_has_its_folder_for_itself_before_it_begins(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = begin(folder)
    with pytest.raises(InputError, match=f"is being trained by process {os.getpid()}"):
        resume(folder)
    go(run, 3)
    assert resume(folder).progress.step == 3


class _Killed(BaseException):
    pass


def _killed(*args: Any, **options: Any) -> Any:
    raise _Killed


@pytest.mark.parametrize("call", ["checkpoint.save", "runlog.RunLog.truncate"])
def test_killed_while_it_goes_back_to_an_older_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics of what it goes back from are whole as long as the last checkpoint is of it."""
    folder, options = tmp_path / "run", EVERY | dict(keep=9)
    end(go(begin(tmp_path / "whole", **options)))
    go(begin(folder, **options), 20)
    before = outcome(folder)
    run = runs.resume(str(folder / "step-6.safetensors"))
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(f"charrnn.{call}", _killed)
        go(run)
    if call == "checkpoint.save":
        assert outcome(folder) == before
    run = resume(folder)
    assert run.progress.step == (20 if call == "checkpoint.save" else 6)
    events = go(run)
    assert not [e for e in events if e["event"] == "note"]
    found = outcome(folder)
    aside = [found.pop(name) for name in sorted(found) if name.startswith("abandoned-")]
    assert aside == (
        [] if call == "checkpoint.save" else [before[f"step-{n}.safetensors"] for n in (12, 18)]
    )
    assert found == outcome(tmp_path / "whole")


def test_newer_checkpoints_are_set_aside(tmp_path: Path) -> None:
    """They are neither gone back to nor pruned, and --keep counts only the run's own."""
    folder = tmp_path / "run"
    go(begin(folder, **EVERY | dict(keep=9)), 26)
    newer = [12, 18, 24]
    before = {n: (folder / f"step-{n}.safetensors").read_bytes() for n in newer}
    for suffix in ("", "-2"):
        run = runs.resume(str(folder / "step-6.safetensors"), changes=dict(keep=2))
        names = [f"abandoned-step-{n}{suffix}.safetensors" for n in newer]
        notes = [e["text"] for e in go(run, 15) if e["event"] == "note"]
        assert notes == [
            f"goes on from step 6; newer checkpoints are set aside: {', '.join(names)}"
        ]
        assert sorted(p.name for p in folder.glob("step-*")) == [
            "step-12.safetensors", "step-6.safetensors"
        ]  # fmt: skip
        newer = [12]
    assert "abandoned" not in checkpoint.load(folder / "last.safetensors").metadata
    for n, saved in before.items():
        assert (folder / f"abandoned-step-{n}.safetensors").read_bytes() == saved
    run = runs.resume(str(folder / "abandoned-step-24.safetensors"))
    assert run.progress.step == 24
    end(go(run))
    end(go(begin(tmp_path / "whole", **EVERY)))
    assert tensors(folder) == tensors(tmp_path / "whole")


@pytest.mark.parametrize("instant", range(5))
def test_killed_while_newer_checkpoints_are_set_aside(
    instant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint knows which are; none of what is saved later is among them."""
    folder, options = tmp_path / "run", EVERY | dict(keep=9)
    go(begin(folder, **options), 20)
    calls, rename, save = itertools.count(1), Path.rename, checkpoint.save

    def killing(call: Any) -> Any:
        def killed(*arguments: Any) -> Any:
            if next(calls) == instant:
                raise _Killed
            return call(*arguments)

        return killed

    run = runs.resume(str(folder / "step-6.safetensors"))
    with monkeypatch.context() as patch, contextlib.suppress(_Killed):
        patch.setattr(Path, "rename", killing(rename))
        patch.setattr(checkpoint, "save", killing(save))
        go(run, 8)
    run = resume(folder)
    assert run.progress.step == {0: 8, 1: 20}.get(instant, 6)
    go(run, 13)
    aside = sorted(path.name for path in folder.glob("abandoned-*"))
    newer = [] if instant == 1 else [12, 18]
    assert aside == [f"abandoned-step-{n}.safetensors" for n in newer]

    def save_but_last(path: Path, *state: Any) -> None:
        if path.name == "last.safetensors" and (folder / "step-18.safetensors").exists():
            raise _Killed
        save(path, *state)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(checkpoint, "save", save_but_last)
        go(resume(folder))
    end(go(resume(folder)))
    end(go(begin(tmp_path / "whole", **options)))
    found = outcome(folder)
    for name in aside:
        del found[name]
    assert found == outcome(tmp_path / "whole")


def test_the_best_model_of_an_abandoned_future_is_no_way_back(tmp_path: Path) -> None:
    go(begin(tmp_path / "run", eval_every=7), 15)
    for best_step, found in ((14, 14), (7, None), (None, None)):
        back = way_back(tmp_path / "run", Progress(step=20, best_step=best_step), 21)
        assert (None if back is None else back.metadata["progress"]["step"]) == found


def test_an_extension_that_was_killed_at_once_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    end(go(begin(folder, max_steps=5)))
    next(resume(folder, max_steps=9).events())
    run = resume(folder)
    assert run.progress.step == 5
    assert end(go(run))["step"] == 9


@pytest.mark.parametrize("step", [13, 14, 18], ids=["at nothing", "at a validation", "at a save"])
def test_a_run_may_end_where_it_stands(step: int, tmp_path: Path) -> None:
    """It gets what any run's last step gets, and nothing twice."""
    folder = tmp_path / "run"
    go(begin(folder, **EVERY, test_frac=0.1), step)
    last = end(go(resume(folder, max_steps=step)))
    assert None not in (last["val_nats_per_char"], last["test_nats_per_char"], last["memorised"])
    events = metrics(folder)
    assert [e["step"] for e in events if e["event"] == "validation"] == [
        *range(7, step, 7), step
    ]  # fmt: skip
    assert [e["step"] for e in events if e["event"] == "sample"] == [*range(11, step + 1, 11)]
    progress = checkpoint.load(folder / "last.safetensors").metadata["progress"]
    assert (progress["step"], progress["finished"]) == (step, "finished")
    with pytest.raises(Ended, match=f"has ended after {step} steps"):
        resume(folder)


def test_the_best_checkpoint_of_the_last_step_may_be_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    end(go(begin(folder, **EVERY, max_steps=28)))
    before = outcome(folder)
    assert checkpoint.read_metadata(folder / "best.safetensors", "progress")[0]["step"] == 28
    end(go(runs.resume(str(folder / "best.safetensors"))))
    assert outcome(folder) == before


# --- the arithmetic of a step --------------------------------------------------------------------


def test_every_step_is_clip_decay_update_on_the_next_window(tmp_path: Path) -> None:
    """Each kept state follows from the one before by the public gradients."""
    folder = tmp_path / "run"
    rules = dict(optimizer="sgd", learning_rate=0.5, weight_decay=0.1, warmup_steps=3)
    options = rules | dict(grad_clip=0.3, keep=100, checkpoint_every=1, log_every=1)
    run = begin(folder, **options)
    go(run)
    logged = {e["step"]: e for e in metrics(folder) if e["event"] == "train"}
    config, scales = run.config.train, []
    for step in range(1, 44):
        before = api.load(folder / f"step-{step}.safetensors", threads=1)
        after = api.load(folder / f"step-{step + 1}.safetensors", threads=1)
        epoch, index = divmod(step, 22)
        state = checkpoint.load(before.path).tensors
        names = before.model.cell.states
        carried = None if index == 0 else {name: state[f"state.{name}"] for name in names}
        piece = run.plan.piece(step)
        g = before.gradients(piece.ids, piece.targets, carried)

        # Of PyTorch's two biases ours is the first.
        gradients = {n: a for n, a in g.weights.items() if "bias_hh" not in n}
        norm = math.sqrt(sum(np.square(a, dtype=float).sum() for a in gradients.values()))
        rate = learning_rate(config, step, 44, epoch)
        e = logged[step + 1]
        assert e["nats_per_char"] == pytest.approx(g.loss, rel=1e-6)
        assert e["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert e["learning_rate"] == rate
        assert (e["epoch"], e["clipped"]) == ((step + 1) / 22, float(norm > 0.3))
        scale = min(1.0, 0.3 / norm)
        scales.append(scale)
        olds, news = (m.model.to_torch(m.model.params) for m in (before, after))
        for name, old in olds.items():
            decay = 0.1 * old if old.ndim > 1 else 0.0
            expected = old - rate * (scale * gradients.get(name, 0) + decay)
            assert np.abs(news[name] - expected).max() < 1e-6, name
        final = checkpoint.load(after.path).tensors
        for name in names:
            assert np.abs(final[f"state.{name}"] - g.final_state[name]).max() < 1e-6
    assert min(scales) < 1 and max(scales) == 1.0  # some are clipped, some are not


def test_events_and_their_numbers(whole: Path, tmp_path: Path) -> None:
    events = go(begin(tmp_path / "run", files=[whole.parent / "text.txt"], **EVERY))
    steps = [e for e in events if e["event"] == "step"]
    start = next(e for e in events if e["event"] == "start")
    assert {
        k: start[k] for k in ("total_steps", "steps_per_epoch", "train_chars", "val_chars")
    } == {
        "total_steps": 44,
        "steps_per_epoch": 22,
        "train_chars": 1350,
        "val_chars": 150,
    }
    V, H = start["vocab_size"], 16
    assert start["parameters"] == 4 * H * (V + H + 1) + V * (H + 1)
    assert [e["step"] for e in steps] == list(range(1, 45))
    chars = [0, *(e["chars"] for e in steps)]
    assert [b - a for a, b in itertools.pairwise(chars)] == ([64] * 21 + [4]) * 2
    assert steps[0]["nats_per_char"] == pytest.approx(math.log(V), abs=0.15)
    for e in (e for e in events if e["event"] == "train"):
        mean = np.mean(
            [s["nats_per_char"] for s in steps if e["step"] - 5 < s["step"] <= e["step"]]
        )
        if e["step"] < 44:
            assert e["nats_per_char"] == pytest.approx(mean)
    assert [e["step"] for e in events if e["event"] == "train"] == [*range(5, 41, 5), 44]
    assert [e["step"] for e in events if e["event"] == "validation"] == [*range(7, 43, 7), 44]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [*range(6, 43, 6), 44]
    samples = [e for e in events if e["event"] == "sample"]
    assert [e["step"] for e in samples] == [11, 22, 33, 44]
    assert all(len(e["text"]) == 200 and set(e["text"]) <= set(TEXT) for e in samples)
    logged = [e for e in events if e["event"] not in ("step", "note", "checkpoint")]
    assert [{k: v for k, v in e.items() if k != "time"} for e in logged] == metrics(whole)


def test_max_steps_and_epochs_whichever_comes_first(tmp_path: Path) -> None:
    for i, (options, steps) in enumerate(
        [
            (dict(epochs=2, max_steps=50), 44),
            (dict(epochs=2, max_steps=5), 5),
            (dict(epochs=None, max_steps=400), 400),
            (dict(epochs=None), 22 * TrainConfig.DEFAULT_EPOCHS),
        ]
    ):
        assert begin(tmp_path / str(i), **options).total_steps == steps


def test_no_steps_at_all_still_leave_a_model(tmp_path: Path) -> None:
    """The end of training always writes ``last`` and evaluates."""
    folder = tmp_path / "run"
    event = end(go(begin(folder, max_steps=0)))
    lm = api.load(folder)
    V = lm.vocabulary.size
    assert event["val_nats_per_char"] == pytest.approx(math.log(V), abs=0.2)


# --- refusing to go on ---------------------------------------------------------------------------


def test_a_finished_run_is_refused_and_untouched(whole: Path) -> None:
    before = {p: p.read_bytes() for p in whole.iterdir()}
    for changes in ({}, {"threads": 2}, {"epochs": 2}, {"max_steps": 44}, {"eval_every": 1}):
        with pytest.raises(Ended, match="has ended after 44 steps: to train on, give more"):
            resume(whole, **changes)
    with pytest.raises(InputError, match="at step 44 already, .*22 .*asked for"):
        resume(whole, epochs=1)
    assert {p: p.read_bytes() for p in whole.iterdir()} == before


def test_a_finished_run_goes_on_with_more_epochs(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    events = go(resume(copy, epochs=3))
    assert next(e for e in events if e["event"] == "start")["step"] == 44
    assert end(events)["step"] == 66
    ends = [e for e in metrics(copy) if e["event"] == "end"]
    assert [e["step"] for e in ends] == [66]  # the first end is no end any more
    assert metrics(copy)[: len(metrics(whole)) - 1] == metrics(whole)[:-1]
    assert checkpoint.load(copy / "last.safetensors").metadata["config"]["train"]["epochs"] == 3
    with pytest.raises(Ended, match="has ended after 66 steps"):
        resume(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 17},
        {"optimizer": "sgd"},
        {"learning_rate": 0.5},
        {"dropout": 0.1},
        {"batch_size": 5},
        {"seed": 2},
        {"val_frac": 0.2},
        {"dtype": "float64"},
        {"encoding": "latin-1"},
        {"level": "byte"},
    ],
)
def test_what_may_not_change_is_refused_by_name(
    changes: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    go(begin(folder, files=[whole.parent / "text.txt"]), 3)
    ((name, _),) = changes.items()
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"^{flag} cannot change when a run is resumed: it is"):
        resume(folder, **changes)
    same = resume(folder).config.options()[name]
    assert resume(folder, **{name: same}).progress.step == 3  # saying it again is no change


def test_the_default_share_may_be_said_where_it_is_the_same_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    go(begin(folder), 3)
    run = resume(folder, val_frac=0.1)
    assert run.progress.step == 3 and run.config.data.val_frac is None
    with pytest.raises(InputError, match="it is 0.1, but at most 1,000,000 characters; "):
        resume(folder, val_frac=0.11)
    for module in (data, runs):
        monkeypatch.setattr(module, "MOST_VAL", 100)
    with pytest.raises(InputError, match="it is 0.1, but at most 100 characters; start a new run"):
        resume(folder, val_frac=0.1)


def test_the_text_must_be_the_run_s(tmp_path: Path) -> None:
    folder, text, moved = tmp_path / "run", tmp_path / "text.txt", tmp_path / "moved.txt"
    go(begin(folder), 3)
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("Time", "Tame"), encoding="utf-8")
    with pytest.raises(InputError, match="the text is not the one that .*run was trained on"):
        resume(folder, [other])
    assert resume(folder, [text]).progress.step == 3
    text.rename(moved)
    with pytest.raises(InputError, match="text.txt' does not exist"):
        resume(folder)
    assert resume(folder, [moved]).progress.step == 3
    text.write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(InputError, match="the text is not the one that"):
        resume(folder)
    assert resume(folder, [moved]).progress.step == 3


def test_documents_must_be_the_run_s(tmp_path: Path) -> None:
    """The same text in other files is another plan, where a file is a sequence."""
    folder, files = tmp_path / "run", [tmp_path / f"{i}.txt" for i in range(5)]
    parts = [TEXT[:700], TEXT[700:], TEXT, TEXT[:800], TEXT[800:]]
    for file, part in zip(files, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    options: dict[str, Any] = dict(files=files[:2], batch_size=1, val_frac=0.0)
    go(begin(folder, bptt="full", **options), 2)
    advice = "each a sequence of --bptt full: give the same files as FILE, or start a new run"
    with pytest.raises(InputError, match=f"is in 1 file, but was in 2 files, {advice}"):
        resume(folder, [files[2]])
    with pytest.raises(InputError, match="is in 2 files, but was in other ones"):
        resume(folder, files[3:])
    moved = [shutil.copy(file, file.with_suffix(".moved")) for file in files[:2]]
    assert resume(folder, moved).progress.step == 2
    end(go(resume(folder)))
    go(begin(tmp_path / "truncated", **options), 2)
    assert resume(tmp_path / "truncated", [files[2]]).progress.step == 2


def test_no_run_or_a_damaged_one(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "s.txt").touch()
    for name, message in {
        "nothing": "nothing holds no run",
        "": "--resume is empty: name the folder of a run",
        str(tmp_path / "s.txt"): r"s\.txt is no file of a run",
        str(whole / "step-5.safetensors"): r"step-5.safetensors does not exist: name .*run, or a "
        r"checkpoint in it \(there are best.safetensors, last.safetensors.*\)",
    }.items():
        with pytest.raises(InputError, match=message):
            runs.resume(name)
    with pytest.raises(InputError, match="holds no run"):
        resume(tmp_path)
    for name in ("last.safetensors", "config.json"):
        copy = shutil.copytree(whole, tmp_path / name)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        advice = ".*go on from another one with --resume .*best.safetensors"
        with pytest.raises(InputError, match=name + advice * name.startswith("last")):
            resume(copy, epochs=3)
    copy = shutil.copytree(whole, tmp_path / "empty object")
    (copy / "config.json").write_text("{}")
    with pytest.raises(InputError, match="config.json is damaged"):
        resume(copy, epochs=3)


def test_latest_is_the_newest_below_runs(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there are no runs below runs"):
        runs.resume("latest")
    for name in ("a", "z", "b"):
        go(begin(Path("runs") / name, files=[whole.parent / "text.txt"]), 3)
    assert runs.resume("latest").folder == Path("runs/b")


def test_a_folder_with_a_run_is_refused(whole: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in whole.iterdir()}
    with pytest.raises(InputError, match="already holds a run: continue it with --resume"):
        begin(whole, files=[whole.parent / "text.txt"])
    assert {p: p.read_bytes() for p in whole.iterdir()} == before
    run = begin(tmp_path, files=[whole.parent / "text.txt"])  # an empty folder will do
    assert run.folder == tmp_path


# --- the folder ----------------------------------------------------------------------------------


def test_config_json_says_what_the_run_is(whole: Path) -> None:
    facts = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    config = Config.from_options(SMALL | EVERY)
    resolved = {
        "learning_rate": config.train.peak_learning_rate,
        "weight_decay": config.train.decay,
    }
    assert Config.from_json(facts["config"]).options() == config.options() | resolved
    assert facts["vocabulary"]["symbols"] == sorted(set(TEXT))
    corpus = facts["corpus"]
    assert corpus["sources"] == [str((whole.parent / "text.txt").resolve())]
    assert (corpus["chars"], corpus["name"], len(corpus["fingerprint"])) == (1500, "text", 64)
    assert {"charrnn", "numba", "numpy", "python", "machine"} <= set(facts["versions"])


def test_a_run_s_default_folder_is_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my book.txt").write_text(TEXT, encoding="utf-8")
    found = [
        runs.start(["my book.txt"], Config.from_options(SMALL)).folder.as_posix() for _ in range(3)
    ]
    assert found == ["runs/my-book", "runs/my-book-2", "runs/my-book-3"]


def test_keep_keeps_the_latest(tmp_path: Path) -> None:
    go(begin(tmp_path / "run", keep=2, checkpoint_every=10))
    assert {p.name for p in (tmp_path / "run").glob("*.safetensors")} == {
        "best.safetensors",
        "last.safetensors",
        "step-30.safetensors",
        "step-40.safetensors",
    }
    step = checkpoint.load(tmp_path / "run" / "step-30.safetensors").metadata["progress"]["step"]
    assert step == 30


def test_checkpoints_list_so_many_validations(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a long run would make them larger and larger, and then too large to be read."""
    listed = checkpoint.load(whole / "last.safetensors").metadata["progress"]["validations"]
    monkeypatch.setattr("charrnn.progress.MOST_VALIDATIONS", 4)
    options = EVERY | {"eval_every": 1, "patience": 0}
    end(go(begin(tmp_path / "one", **options)))
    go(begin(tmp_path / "two", **options), until=17)
    end(go(resume(tmp_path / "two")))
    steps = []
    for run in ("one", "two"):
        progress = checkpoint.load(tmp_path / run / "last.safetensors").metadata["progress"]
        steps.append([step for step, _, _ in progress["validations"]])
    made = [e["step"] for e in metrics(tmp_path / "one") if e["event"] == "validation"]
    assert len(made) > len(listed) > 4 >= len(steps[0]) > 2 and steps[0] == steps[1]
    assert steps[0][0] == made[0] and steps[0][-1] == made[-1]


def test_wrong_input_leaves_nothing(tmp_path: Path) -> None:
    folder, text = tmp_path / "run", tmp_path / "text.txt"
    for message, options in {
        "does not exist": dict(files=[tmp_path / "none.txt"]),
        "activation sigmoid with --model lstm": dict(activation="sigmoid"),
        "must be below 1": dict(val_frac=0.5, test_frac=0.5),
        "min-count is 5000": dict(min_count=5000),
        "init-from|no run|does not exist": dict(init_from=tmp_path / "none"),
        "none.txt' does not exist": dict(val_file=str(tmp_path / "none.txt")),
    }.items():
        with pytest.raises(InputError, match=message):
            begin(folder, **options)
        assert set(tmp_path.iterdir()) <= {text}


# --- how a run ends ------------------------------------------------------------------------------


def worsening(folder: Path, **options: Any) -> Run:
    """A run whose validation text has nothing to do with its text: its first loss is the best."""
    other = folder.parent / "other.txt"
    other.write_text("cd" * 50)
    options = {"eval_every": 3, "epochs": 50, "learning_rate": 0.01, **options}
    return begin(folder, "ab" * 300, val_file=str(other), log_every=1, **options)


def test_patience_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = worsening(folder, patience=4)
    event = end(go(run), "patience")
    validations = [e for e in metrics(folder) if e["event"] == "validation"]
    losses = [e["val_nats_per_char"] for e in validations]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 and event["step"] == 3 * len(losses) < run.total_steps
    assert [e["best"] for e in validations] == [
        x == min(losses[: i + 1]) for i, x in enumerate(losses)
    ]
    assert event["best_val_nats_per_char"] == losses[best]
    assert event["best_step"] == validations[best]["step"]
    assert (
        checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == event["step"]
    )


def test_a_run_out_of_patience_goes_on_only_with_more_of_it(tmp_path: Path) -> None:
    go(worsening(tmp_path / "run", patience=2))
    ended = len(metrics(tmp_path / "run"))
    for changes in ({}, {"epochs": 99}):
        with pytest.raises(Ended, match="has ended after .*--patience"):
            resume(tmp_path / "run", **changes)
    assert len(metrics(tmp_path / "run")) == ended
    go(resume(tmp_path / "run", patience=4))
    go(worsening(tmp_path / "at once", patience=4))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "at once")


def test_patience_is_counted_across_a_resume(tmp_path: Path) -> None:
    go(worsening(tmp_path / "one", patience=3))
    go(worsening(tmp_path / "two", patience=3), 7)
    go(resume(tmp_path / "two"))
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_interrupted_in_the_last_step_has_its_end_to_come(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    end(go(begin(folder, files=[whole.parent / "text.txt"], **EVERY), 44), "interrupted")
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["unvalidated"]
    found = kinds(go(resume(folder)))
    assert found == [("start", 44), ("validation", 44), ("sample", 44), ("checkpoint", 44),
                     ("end", 44)]  # fmt: skip
    assert outcome(folder) == outcome(whole)


def test_patience_counts_anew_after_a_better_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 4.0, 4.0, 2.0, 2.0, 9.0, 1.0, 2.0, 2.0, 1.0])
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments, **more: (10 * next(losses), 10))
    folder = tmp_path / "run"
    event = end(go(begin(folder, eval_every=1, patience=3)), "patience")
    assert (event["step"], event["best_step"], event["best_val_nats_per_char"]) == (10, 7, 1.0)
    found = [e["best"] for e in metrics(folder) if e["event"] == "validation"]
    assert [i for i, best in enumerate(found, 1) if best] == [1, 4, 7]
    assert checkpoint.load(folder / "best.safetensors").metadata["progress"]["step"] == 7


def test_best_is_what_evaluating_it_gives(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    event = end(go(worsening(folder, epochs=3, test_frac=0.1)))
    lm, last = api.load(folder), api.load(folder / "last.safetensors")
    assert lm.path == folder / "best.safetensors"
    assert lm.metadata["progress"]["step"] == event["best_step"] < event["step"]
    val, test = "cd" * 50, "ab" * 30
    assert lm.evaluate(val)["nats_per_char"] == event["best_val_nats_per_char"]
    assert lm.evaluate(test)["nats_per_char"] == event["test_nats_per_char"]
    assert last.evaluate(test)["nats_per_char"] != event["test_nats_per_char"]
    losses = [e["val_nats_per_char"] for e in metrics(folder) if e["event"] == "validation"]
    assert min(losses) == event["best_val_nats_per_char"]
    assert last.evaluate(val)["nats_per_char"] == event["val_nats_per_char"] == losses[-1]


def test_the_parts_of_a_text(tmp_path: Path) -> None:
    """Train, then validation, then test."""
    folder = tmp_path / "run"
    event = end(go(begin(folder, test_frac=0.2)))
    lm = api.load(folder)
    assert lm.evaluate(TEXT[1050:1200])["nats_per_char"] == event["val_nats_per_char"]
    assert lm.evaluate(TEXT[1200:])["nats_per_char"] == event["test_nats_per_char"]


def test_a_file_to_validate_on(tmp_path: Path) -> None:
    folder, val = tmp_path / "run", tmp_path / "val.txt"
    val.write_text("Æ" + BOOK[2000:2200], encoding="utf-8")
    run = begin(folder, val_file=str(val))
    assert len(run.text.train) == 1500
    assert run.text.vocabulary.symbols == tuple(sorted({*TEXT, *val.read_text(encoding="utf-8")}))
    event = end(go(run))
    found = api.load(folder).evaluate(val.read_text(encoding="utf-8"))
    assert found["chars"] == 200
    assert found["nats_per_char"] == event["best_val_nats_per_char"]


def test_the_file_to_validate_on_must_not_change(tmp_path: Path) -> None:
    folder, val = tmp_path / "run", tmp_path / "val.txt"
    val.write_text(BOOK[2000:2200], encoding="utf-8")
    go(begin(folder, val_file=str(val)), 5)
    val.write_text(BOOK[3000:3200], encoding="utf-8")
    with pytest.raises(InputError, match="val-file|val.txt"):
        resume(folder)


def test_the_file_to_validate_on_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "val.txt").write_text(BOOK[2000:2200], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    go(begin(folder, val_file="val.txt"), 5)
    monkeypatch.chdir("/")
    assert resume(folder).progress.step == 5


@pytest.mark.parametrize(
    "options",
    [
        dict(optimizer="sgd", learning_rate=1e38),
        dict(optimizer="momentum", learning_rate=1e38, grad_clip=0.0),
        dict(model="rnn", activation="identity", learning_rate=3.0, grad_clip=0.0),
    ],
)
def test_divergence_keeps_the_last_good_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = begin(folder, checkpoint_every=1, log_every=1, seq_length=64, **options)
    event = end(go(run), "diverged")
    last = folder / "last.safetensors"
    for part in ("no longer finite", f"at step {event['step'] + 1}", f"{last} is kept",
                 "--learning-rate", "--grad-clip"):  # fmt: skip
        assert part in event["message"]
    kept = checkpoint.load(last)
    assert kept.metadata["progress"]["step"] == event["step"]
    assert all(np.isfinite(a).all() for a in kept.tensors.values())
    assert metrics(folder)[-1]["reason"] == "diverged"
    before = outcome(folder)
    end(go(resume(folder)), "diverged")
    assert outcome(folder) == before


def test_a_validation_loss_that_is_not_finite_is_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, math.nan])
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments, **more: (10 * next(losses), 10))
    event = end(go(begin(tmp_path / "run", **EVERY)), "diverged")
    assert (event["step"], event["best_step"], event["best_val_nats_per_char"]) == (14, 7, 3.0)
    assert "the validation loss is no longer finite at step 14;" in event["message"]
    last = checkpoint.load(tmp_path / "run" / "last.safetensors").metadata["progress"]
    assert (last["step"], last["val_nats_per_char"]) == (12, 3.0)


def test_divergence_before_any_other_checkpoint_leaves_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    event = end(go(begin(folder, optimizer="sgd", learning_rate=1e38)), "diverged")
    assert f"{folder / 'last.safetensors'} is kept" in event["message"]
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == 0


def test_moments_that_overflow_are_divergence_too(tmp_path: Path) -> None:
    """Their squares overflow long before the weights do."""
    folder = tmp_path / "run"
    run = begin(
        folder, model="rnn", activation="identity", optimizer="adagrad", learning_rate=1.0,
        grad_clip=0.0, seq_length=64, checkpoint_every=1,
    )  # fmt: skip
    end(go(run), "diverged")
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] > 0


@pytest.mark.parametrize("going_back", ["stop", "rollback"])
def test_a_hidden_state_that_overflows_is_divergence_too(going_back: str, tmp_path: Path) -> None:
    """No loss need show it: dropout may have kept it from them."""
    folder = tmp_path / "run"
    run = begin(folder, checkpoint_every=4, keep=2, on_divergence=going_back)
    events = []
    for event in run.events():
        events.append(event)
        if (event["event"], event["step"]) == ("step", 8) and not run.progress.rollbacks:
            learner = run.learner
            learner._last.states_at(learner._slot)[0]["h"][0, 0] = np.inf
    what = "the weights, the optimizer's moments or the hidden state are no longer finite at step 8"
    if going_back == "stop":
        assert what in end(events, "diverged")["message"]
        assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == 4
    else:
        end(events)
        assert [e["text"] for e in events if e["event"] == "note" and what in e["text"]]


@pytest.mark.parametrize("going_back", ["stop", "rollback"])
def test_a_sample_without_finite_logits_is_divergence(going_back: str, tmp_path: Path) -> None:
    """Weights are finite after the first step, but their products are not."""
    folder = tmp_path / "run"
    run = begin(
        folder, model="rnn", activation="identity", learning_rate=1e30, warmup_steps=0,
        sample_every=1, on_divergence=going_back, max_rollbacks=2,
    )  # fmt: skip
    event = end(go(run), "diverged")
    after = "" if going_back == "stop" else " after 2 rollbacks"
    assert f"the logits of a sample are no longer finite at step 1{after};" in event["message"]
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == 0
    before = outcome(folder)
    end(go(resume(folder)), "diverged")
    assert outcome(folder) == before


def test_the_best_model_is_saved_though_its_sample_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*arguments: Any, **options: Any) -> list[str]:
        raise InputError("logits are not finite")

    monkeypatch.setattr(trainer.sampling, "sample", sample)
    folder = tmp_path / "run"
    event = end(go(begin(folder, eval_every=5, sample_every=5)), "diverged")
    best = checkpoint.load(folder / "best.safetensors").metadata["progress"]
    assert event["best_step"] == best["step"] == best["best_step"] == 5
    assert event["best_val_nats_per_char"] == best["best_val_nats_per_char"]


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 7, 10, 19, 20, 21, 64, 65, 66, 130])
def test_tiny_texts(size: int, tmp_path: Path) -> None:
    """With the usual batch size and window."""
    folder = tmp_path / "run"
    run = begin(folder, TEXT[100 : 100 + size], batch_size=32, seq_length=64, epochs=3)
    events = go(run)
    assert math.isfinite(end(events)["nats_per_char"])
    notes = " ".join(e["text"] for e in events if e["event"] == "note")
    assert "batch size 32 -> 1" in notes
    assert ("too short for a validation part" in notes) == (size < 15) == (not len(run.text.val))
    assert (folder / "best.safetensors").exists() == (len(run.text.val) > 0)
    assert len(api.load(folder).sample(length=5, seed=1)[0]) == 5


@pytest.mark.parametrize("option", ["val_frac", "eval_every"])
def test_patience_without_validations_is_noted(option: str, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", patience=2, **{option: 0})
    assert any("--patience has no effect: " in note for note in run.text.notes)
    assert not begin(tmp_path / "other", patience=2).text.notes


@pytest.mark.parametrize("text, message", [("a", "at least 2 are needed"), ("", "is empty")])
def test_a_text_without_anything_to_predict(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        begin(tmp_path / "run", text)
    assert not (tmp_path / "run").exists()


def test_a_text_of_one_symbol(tmp_path: Path) -> None:
    event = end(go(begin(tmp_path / "run", "a" * 500)))
    assert event["val_nats_per_char"] == 0
    assert api.load(tmp_path / "run").sample(length=3, seed=1) == ["aaa"]


def test_rare_characters_are_one_unknown_symbol(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", min_count=20)
    common = sorted(c for c in set(TEXT) if TEXT.count(c) >= 20)
    assert run.text.vocabulary.symbols == (*common, "\ufffd")
    go(run)
    text = api.load(tmp_path / "run").sample(length=500, temperature=5, seed=1)[0]
    assert set(text) <= set(common)


def test_bytes(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    data = ("naïve → 漢字\r\n" * 40).encode()
    file.write_bytes(data)
    run = begin(tmp_path / "run", files=[file], level="byte")
    assert run.text.vocabulary.symbols == tuple(sorted(set(data)))
    assert len(run.text.train) + len(run.text.val) == len(data)
    go(run, 9)
    end(go(resume(tmp_path / "run")))
    assert isinstance(api.load(tmp_path / "run").sample("→", length=20, seed=1)[0], str)


def pipe(text: str, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode(encoding))))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_a_text_from_a_pipe_can_be_resumed(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, folder = TEXT + "äöü", tmp_path / "run"
    pipe(text.replace("\n", "\r\n"), monkeypatch, encoding)
    run = begin(folder, files=["-"], encoding=encoding, **EVERY)
    assert (folder / "text.txt").read_text(encoding="utf-8") == text
    go(run, 9)
    monkeypatch.setattr(sys, "stdin", None)
    end(go(resume(folder)))
    (tmp_path / "text.txt").write_text(text, encoding=encoding)
    go(begin(tmp_path / "file", files=[tmp_path / "text.txt"], encoding=encoding, **EVERY))
    assert tensors(folder) == tensors(tmp_path / "file")
    assert metrics(folder) == metrics(tmp_path / "file")


def test_a_pipe_s_run_takes_the_same_text_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT + "äöü"
    pipe(text, monkeypatch, "latin-1")
    go(begin(tmp_path / "run", files=["-"], encoding="latin-1"), 9)
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="latin-1")
    assert resume(tmp_path / "run", [file]).progress.step == 9


def test_a_pipe_s_run_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(TEXT, monkeypatch)
    go(begin(tmp_path / "run", files=["-"]), 9)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert resume(tmp_path / "moved").progress.step == 9


def test_folders_and_packed_files(tmp_path: Path) -> None:
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "2.txt").write_text(TEXT[700:], encoding="utf-8")
    (folder / "1.txt").write_text(TEXT[:700], encoding="utf-8")
    (folder / "notes.md").write_text("no part of it")
    with gzip.open(tmp_path / "end.gz", "wt", encoding="utf-8") as file:
        file.write("THE END")
    run = begin(tmp_path / "run", files=[folder, tmp_path / "end.gz"])
    go(run, 5)
    go(resume(tmp_path / "run"))
    go(begin(tmp_path / "joined", TEXT + "THE END"))
    assert tensors(tmp_path / "run") == tensors(tmp_path / "joined")
    (folder / "1a.txt").write_text("one more", encoding="utf-8")  # the files are known by name
    assert resume(tmp_path / "run", epochs=3).progress.step > 40


def test_memorises_a_hundred_characters(tmp_path: Path) -> None:
    text = BOOK[5000:5100]
    run = begin(
        tmp_path / "run", text, hidden_size=32, batch_size=1, seq_length=100, val_frac=0.0,
        epochs=300, learning_rate=0.02, log_every=1,
    )  # fmt: skip
    assert end(go(run))["nats_per_char"] < 0.1
    lm = api.load(tmp_path / "run")
    assert lm.sample(text[:1], length=99, temperature=0, seed=1) == [text]


# --- beginning from another model ----------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "run"
    go(begin(folder, num_layers=2, dropout=0.1))
    return folder


NEW = "é¡!" + TEXT.replace("a", "ß")  # two new characters sort below others, one above


def test_new_characters_are_added_after_the_old(parent: Path, tmp_path: Path) -> None:
    old = api.load(parent)
    run = begin(tmp_path / "run", NEW, init_from=parent)
    added = tuple(sorted(set(NEW) - set(old.vocabulary.symbols)))
    assert {"é", "¡", "ß"} <= set(added)
    assert run.text.vocabulary.symbols == old.vocabulary.symbols + added
    ids = np.random.default_rng(1).integers(old.vocabulary.size, size=(20, 3))
    logits, _ = run.model.forward(ids)
    V = old.vocabulary.size
    np.testing.assert_allclose(
        logits["logits"][..., :V], old.forward(ids)[0]["logits"], rtol=1e-6, atol=1e-6
    )
    fresh = begin(tmp_path / "fresh", NEW, init_from=parent).model.params.views["head.Wy"]
    assert np.ptp(fresh[:, V:]) > 0.1  # drawn, as usual
    end(go(run))
    found = api.load(tmp_path / "run").vocabulary
    assert found == run.text.vocabulary


def test_without_new_characters_the_model_is_the_same(parent: Path, tmp_path: Path) -> None:
    for on_unknown in ("add", "map", "error"):
        folder = tmp_path / on_unknown
        run = begin(folder, TEXT[200:1200], init_from=parent, on_unknown=on_unknown)
        weights = api.load(parent).model.params.flat
        assert run.model.params.flat.tobytes() == weights.tobytes()
        assert not any(m.flat.any() for m in run.learner.optimizer.moments.values())
        assert run.progress.step == 0


def test_new_characters_refused_or_mapped(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not in the vocabulary: 'ß'"):
        begin(tmp_path / "run", NEW, init_from=parent, on_unknown="error")
    with pytest.raises(InputError, match="no unknown symbol to map to"):
        begin(tmp_path / "run", NEW, init_from=parent, on_unknown="map")
    assert not (tmp_path / "run").exists()
    go(begin(tmp_path / "rare", min_count=5))
    old = api.load(tmp_path / "rare").vocabulary
    mapped = begin(tmp_path / "run", NEW, init_from=tmp_path / "rare", on_unknown="map")
    assert mapped.text.vocabulary == old
    assert mapped.text.train[:2].tolist() == [old.unknown] * 2
    added = begin(tmp_path / "added", NEW, init_from=tmp_path / "rare").text.vocabulary
    assert (added.symbols[: old.size], added.unknown) == (old.symbols, old.unknown)


def test_the_architecture_is_the_parent_s(parent: Path, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", init_from=parent)
    assert (run.config.model.num_layers, run.config.model.dropout) == (2, 0.0)
    for options in (
        dict(hidden_size=17),
        dict(model="gru"),
        dict(num_layers=3),
        dict(level="byte"),
    ):
        ((name, value),) = options.items()
        flag = "--" + name.replace("_", "-")
        with pytest.raises(InputError, match=f"{flag} is {value}, but the model of --init-from"):
            begin(tmp_path / "no", init_from=parent, **options)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("until", [3, 8])
def test_a_run_from_another_model_is_resumed(parent: Path, until: int, tmp_path: Path) -> None:
    """At step 3 there is no checkpoint yet."""
    end(go(begin(tmp_path / "one", NEW, init_from=parent, **EVERY)))
    run = begin(tmp_path / "two", NEW, init_from=parent, **EVERY)
    for event in run.events():
        if event["event"] == "step" and event["step"] == until:
            break
    end(go(resume(tmp_path / "two")))
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_keeps_the_weights_that_it_began_with(
    steps: int, parent: Path, tmp_path: Path
) -> None:
    """The model that they came from may be trained on, or removed."""
    mother, folder = tmp_path / "mother", tmp_path / "run"
    shutil.copytree(parent, mother)
    options = EVERY | dict(keep=2)
    end(go(begin(tmp_path / "whole", NEW, init_from=parent, **options)))
    run = begin(folder, NEW, init_from=mother, **options)
    if steps:
        go(run, steps)
        (folder / "last.safetensors").unlink()
        (folder / "metrics.jsonl").unlink()
    del run
    shutil.rmtree(mother)
    end(go(resume(folder)))
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert (folder / "step-0.safetensors").is_file()  # not one of those that --keep counts


def test_a_run_without_the_weights_that_it_began_with(parent: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, NEW, init_from=parent)
    (folder / "step-0.safetensors").unlink()
    with pytest.raises(InputError, match="cannot read .*step-0.safetensors: there is no such file"):
        resume(folder)
    assert not (folder / "last.safetensors").exists()


def test_what_was_killed_before_config_json_is_no_run(parent: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, NEW, init_from=parent)
    (folder / "config.json").unlink()
    end(go(begin(folder, NEW, init_from=parent)))


def test_float64_from_float32(parent: Path, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", init_from=parent, dtype="float64")
    assert run.model.params.flat.dtype == np.float64
    old = api.load(parent).model.params.views
    assert all((view == old[name]).all() for name, view in run.model.params.views.items())


def test_validation_counts_every_target_once(whole: Path) -> None:
    lm = api.load(whole)
    ids = lm.vocabulary.encode(TEXT)
    assert evaluate.evaluate(lm.model, ids)[1] == 1499


def test_a_lost_last_checkpoint_never_starts_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(begin(folder, **EVERY, keep=2))
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "last.safetensors"}
    (folder / "last.safetensors").unlink()
    with pytest.raises(InputError, match="has lost its last.safetensors: .*best.safetensors"):
        resume(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    run = runs.resume(str(folder / "step-36.safetensors"))
    assert run.progress.step == 36
    assert go(run)[-1]["reason"] == "finished"


def test_new_characters_are_named(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    go(begin(parent, max_steps=2))
    run = begin(tmp_path / "child", TEXT + "é" * 9, init_from=parent, max_steps=2)
    notes = [e["text"] for e in go(run) if e["event"] == "note"]
    assert any("are added: 'é' (9 times)" in text for text in notes)


def test_a_text_that_has_moved_is_found_the_next_time(tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved.txt"
    go(begin(folder), 3)
    (tmp_path / "text.txt").rename(moved)
    go(resume(folder, [moved]), 5)
    assert resume(folder).progress.step == 5
