"""Nothing lost: kills, failing calls, signals; short forms of scripts/faults.py's campaigns."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner
from support import permissions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import faults  # noqa: E402
from faults import ROLLBACK, SMALL, compare, metrics, outcome  # noqa: E402
from faults_child import Calls, fail_at, losing  # noqa: E402

from charrnn import (  # noqa: E402
    api,
    atomic,
    cache,
    checkpoint,
    evaluate,
    memorised,
    monitor,
    runlog,
    runs,
)  # fmt: skip
from charrnn.cli import cli  # noqa: E402
from charrnn.config import Config  # noqa: E402
from charrnn.errors import InputError, SaveError  # noqa: E402
from charrnn.kernels import jit  # noqa: E402
from charrnn.learner import Learner  # noqa: E402
from charrnn.model import Model  # noqa: E402
from charrnn.progress import Progress  # noqa: E402
from charrnn.trainer import Event, Run  # noqa: E402

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and file systems of POSIX")

EVERY: dict[str, Any] = SMALL | dict(
    model="rnn", hidden_size=8, dropout=0.0, max_steps=30, log_every=3, eval_every=7,
    checkpoint_every=5, sample_every=11,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _no_power_cuts() -> Iterator[None]:
    """And validations of several windows, though models are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(evaluate, "NEAR_FLOATS", 0)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(faults.BOOK[:3000], encoding="utf-8")
    return path


def begin(folder: Path, text: Path, **options: Any) -> Run:
    return runs.start([str(text)], Config.from_options(EVERY | options), str(folder))


def resumed(folder: Path, **changes: Any) -> list[Event]:
    return list(runs.resume(str(folder), changes=changes).events())


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert list(begin(folder, text).events())[-1]["reason"] == "finished"
    return folder


def notes(events: list[Event]) -> list[str]:
    return [e["text"] for e in events if e["event"] == "note"]


# --- kills ---------------------------------------------------------------------------------------


def test_killed_and_resumed_again_and_again(tmp_path: Path) -> None:
    kinds = {"lstm": faults.KINDS["lstm"] | dict(epochs=1)}
    done = faults.kill_campaign(tmp_path, 4, 0, 7, lambda text: None, kinds, calls=150, most=4)
    assert done.kills >= 4 and done.ended >= 1


def test_the_campaign_sees_a_difference(whole: Path, tmp_path: Path) -> None:
    """What it says is worth something: each of these is found."""

    def edited(name: str, change: Any) -> Path:
        copy = shutil.copytree(whole, tmp_path / name)
        path = copy / "metrics.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
        return copy

    compare(edited("same", list), whole)
    for name, change in {
        "missing": lambda lines: lines[:3] + lines[4:],
        "duplicated": lambda lines: lines[:4] + lines[3:],
        "torn": lambda lines: [*lines[:-1], lines[-1][:-1]],
        "changed": lambda lines: [*lines[:-1], lines[-1].replace(b'"step": 30', b'"step": 31')],
    }.items():
        with pytest.raises(faults.Different):
            compare(edited(name, change), whole)
    copy = shutil.copytree(whole, tmp_path / "weights")
    found = checkpoint.load(copy / "last.safetensors")
    found.tensors["head.bias"][0] += 1e-7
    checkpoint.save(copy / "last.safetensors", found.tensors, found.metadata)
    with pytest.raises(faults.Different, match="last.safetensors"):
        compare(copy, whole)
    (copy / "best.safetensors").write_bytes(b"half")
    with pytest.raises(InputError):
        faults.check_readable(copy)


@pytest.mark.parametrize("name", faults.CALLS_OF)
def test_stopped_at_any_call(name: str, tmp_path: Path) -> None:
    every = 17 if "rollbacks" in name else 7
    calls, copies = faults.stop_everywhere(tmp_path, every, **faults.CALLS_OF[name])
    assert copies >= calls // every > 4


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads what is being synced")
def test_the_power_may_go_at_any_call(tmp_path: Path) -> None:
    calls, cuts = faults.cut_everywhere(tmp_path, 11, **faults.DISK)
    assert cuts >= 2 * (calls // 11) > 20


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads what is being synced")
@pytest.mark.parametrize("lacking", ["files", "folder", "lines", "order"])
def test_a_sync_that_is_missing_is_found(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "folder":
        monkeypatch.setattr(atomic, "sync_folder", lambda folder: None)
    elif lacking == "lines":
        monkeypatch.setattr(runlog.RunLog, "sync", runlog.RunLog._write)
    else:  # not at all, or when the name is there already

        @contextlib.contextmanager
        def replacing(path: str | Path) -> Iterator[BinaryIO]:
            temporary = atomic._temporary(Path(path))
            with getattr(atomic, "open", open)(temporary, "wb") as file:
                yield file
                file.flush()
                os.replace(temporary, path)
                if lacking == "order":
                    os.fsync(file.fileno())
            atomic.sync_folder(Path(path).parent)

        monkeypatch.setattr(atomic, "replacing", replacing)
    with pytest.raises(faults.Different):
        faults.cut_everywhere(tmp_path, 2 if lacking == "order" else 9, **faults.DISK)


# --- calls that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", faults.DISK_WAYS)
def test_any_call_may_fail(name: str, tmp_path: Path) -> None:
    code = random.Random(name).choice(faults.CODES)
    found = faults.fail_everywhere(tmp_path, (code,), 13, **faults.DISK_WAYS[name])
    assert found.injected >= 9
    went_on = found.ends["went on and said so"]
    goes_on = [way for way in faults.DISK_WAYS if way.startswith("continue")]
    goes_on.remove("continue, full until the end")
    assert went_on > 2 if name in goes_on else went_on == 0


def test_a_sync_of_the_metrics_that_fails_once_loses_no_line(
    whole: Path, text: Path, tmp_path: Path
) -> None:
    """Although what it was for is lost, and the next sync says that all is well."""
    folder, failed = tmp_path / "run", []

    def act(name: str, number: int, place: str) -> None:
        step, path = event["step"], folder / "metrics.jsonl"
        if name != "fsync" or place != "before" or step not in {5, 7, 20}.difference(failed):
            return
        if os.path.samestat(os.fstat(calls.descriptor), os.stat(path)):
            failed.append(step)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    calls, event = Calls(folder, act), {"step": 0}
    calls.act = losing(calls, act)
    with calls.watched():
        for event in begin(folder, text, on_save_error="continue").events():
            if event["event"] == "checkpoint" and event["step"]:  # what it says is there
                length = checkpoint.load(folder / "last.safetensors").metadata["metrics_length"]
                assert len((folder / "metrics.jsonl").read_bytes()[:length]) == length
                assert b"\0" not in (folder / "metrics.jsonl").read_bytes()[:length]
    assert failed == [5, 7, 20]
    assert metrics(folder) == metrics(whole)


class Disk:
    """A disk that is full or not: an `Act` for `Calls`."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, name: str, number: int, place: str) -> None:
        if self.full and name in ("write", "open") and place != "after":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_while_the_disk_is_full_the_run_goes_on_and_nothing_is_missing(
    whole: Path, text: Path, tmp_path: Path
) -> None:
    folder, disk, told = tmp_path / "run", Disk(), []
    last = folder / "last.safetensors"
    run = begin(folder, text, on_save_error="continue")
    with Calls(folder, disk).watched():
        for event in run.events():
            if event["event"] == "step":
                disk.full = (
                    4 <= event["step"] < 19
                )  # the validations of 7 and 14, three checkpoints
            if event["event"] == "note":
                told.append((event["step"], event["text"]))
            if event["event"] == "step" and event["step"] == 17:
                assert checkpoint.load(last).metadata["progress"]["step"] == 0
                assert [e["step"] for e in runlog.read(folder / "metrics.jsonl")] == [0, 3]
    (at, first), (again, second) = told
    assert (at, again) == (5, 20)
    assert first == f"could not save {last}: No space left on device; going on, the next " + (
        "checkpoint tries again"
    )
    assert second == "saving works again"
    differing = ("config",)  # of --on-save-error
    for name in ("last.safetensors", "best.safetensors"):
        one, two = (faults.content(f / name) for f in (folder, whole))
        assert {k for k in one if one[k] != two[k]} == set(differing)
    assert metrics(folder) == metrics(whole)
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_best_model_waits_for_the_disk_while_the_run_trains_on(
    text: Path, tmp_path: Path
) -> None:
    """It is the weights of its own step that are saved then, not those of later."""
    options = dict(eval_every=4, checkpoint_every=5, max_steps=10, learning_rate=0.3)
    folder, disk = tmp_path / "run", Disk()
    list(begin(tmp_path / "whole", text, **options).events())
    run = begin(folder, text, on_save_error="continue", **options)
    with Calls(folder, disk).watched():
        for event in run.events():
            if event["event"] == "step":
                disk.full = event["step"] == 4
                if event["step"] == 5:
                    assert not (folder / "best.safetensors").exists()
            if event["event"] == "validation" and event["step"] == 4:
                want = {name: array.tobytes() for name, array in run.learner.tensors().items()}
            if event["event"] == "checkpoint" and event["step"] == 5:
                best = checkpoint.load(folder / "best.safetensors")
                assert best.metadata["progress"]["step"] == 4
                assert {name: a.tobytes() for name, a in best.tensors.items()} == want
    assert metrics(folder) == metrics(tmp_path / "whole")


def test_lines_do_not_wait_without_end(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "MOST_WAITING", 700)
    disk, options = Disk(), dict(log_every=1, checkpoint_every=0, eval_every=0)
    run = begin(tmp_path / "run", text, on_save_error="continue", **options)
    with (
        Calls(run.folder, disk).watched(),
        pytest.raises(SaveError, match="metrics.jsonl: No space left"),
    ):
        for event in run.events():
            disk.full = event["step"] >= 4
    assert event["step"] == 6


def test_a_run_that_cannot_be_saved_at_its_end_fails_whatever_was_asked(
    whole: Path, text: Path, tmp_path: Path
) -> None:
    folder, disk = tmp_path / "run", Disk()
    with Calls(folder, disk).watched():
        events = begin(folder, text, on_save_error="continue").events()
        with pytest.raises(SaveError, match="No space left"):
            for event in events:
                disk.full = event["step"] >= 22
    assert checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"] == 20
    resumed(folder)
    assert metrics(folder) == metrics(whole)


def test_what_could_not_be_removed_is_removed_when_saving_works_again(
    text: Path, tmp_path: Path
) -> None:
    folder, broken = tmp_path / "run", [False]

    def act(name: str, number: int, place: str) -> None:
        if broken[0] and name in ("replace", "unlink") and place == "before":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Calls(folder, act).watched():
        for event in begin(folder, text, on_save_error="continue", keep=1).events():
            broken[0] = event["step"] == 5
            if event["event"] == "step" and event["step"] == 6:
                assert len(list(folder.glob(".*charrnn-tmp"))) == 2
    assert not list(folder.glob(".*charrnn-tmp"))


def charrnn(*words: object, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    # Within a limit on the size of files CPython writes torn bytecode, and fails of it ever after.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= more.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "charrnn", *map(str, words)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **more,
    )  # fmt: skip


FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in EVERY.items()]


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_limit_of_the_system_on_the_size_of_files(
    policy: str, text: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))

    words = ["train", text, "--out-dir=run", *FLAGS, "--quiet", f"--on-save-error={policy}"]
    words[words.index("--hidden-size=8")] = "--hidden-size=32"
    done = charrnn(*words, cwd=tmp_path, preexec_fn=limit)
    name = "best" if policy == "continue" else "last"  # that waited, and is saved first
    assert done.returncode == 4
    assert done.stderr.startswith(f"Error: could not save run/{name}.safetensors: File too large; ")
    assert done.stderr.count("\n") == 1
    assert not [p for p in (tmp_path / "run").iterdir() if "safetensors" in p.name]
    assert charrnn("train", "--resume", "run", "--quiet", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_folder_that_is_removed_under_the_run(policy: str, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    gone = "could not save .*No such file or directory; its folder is gone$"
    with pytest.raises(SaveError, match=gone) as caught:
        for event in begin(folder, text, on_save_error=policy).events():
            if event["event"] == "step" and event["step"] == 6:
                shutil.rmtree(folder)
    assert "\n" not in str(caught.value) and not folder.exists()
    assert event["step"] == (30 if policy == "continue" else 7)


def test_a_folder_that_becomes_read_only(whole: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with permissions(), pytest.raises(SaveError, match="Permission denied"):
        for event in begin(folder, text).events():
            if event["event"] == "step" and event["step"] == 6:
                folder.chmod(0o500)
    folder.chmod(0o700)
    resumed(folder)
    assert outcome(folder) == outcome(whole)


def test_a_read_only_disk_at_the_start_is_one_line(text: Path, tmp_path: Path) -> None:
    begin(tmp_path / "run", text)
    with Calls(tmp_path, fail_at(1, errno.EROFS, 10**6)).watched():
        with pytest.raises(InputError, match="Read-only file system") as caught:
            resumed(tmp_path / "run")
        assert "\n" not in str(caught.value)


FORBIDDEN = {
    # what it is of, its mode, the command -> the error
    "resumed in a read-only folder": ("run", 0o500, "train --resume run --max-steps=40", 2,
        "cannot write to run: Permission denied; allow it, or go on with a copy of the run"),
    "a new run in a read-only folder": (".", 0o500, "train text.txt --out-dir new/run", 2,
        "cannot create the run folder new/run: Permission denied; name a folder that can be written"
        " with --out-dir"),
    "a new run without --out-dir": (".", 0o500, "train text.txt", 2,
        "cannot create the run folder runs: Permission denied; name a folder that can be written"
        " with --out-dir"),
    "an empty read-only folder": ("empty", 0o500, "train text.txt --out-dir empty", 2,
        "cannot create the run folder empty: Permission denied; name a folder that can be written"
        " with --out-dir"),
    "a picture": (".", 0o500, "plot run --output x.svg", 2, "--output x.svg cannot be written: "
        "Permission denied; name a file in a folder of yours"),
    "a lock": ("run/lock", 0o400, "train --resume run --max-steps=40", 2, "cannot write "
        "run/lock: Permission denied; allow writing it, or remove what is in the place of the run's"
        " own file"),
    "a text": ("text.txt", 0, "train text.txt --out-dir new", 2,
        "cannot read text.txt: Permission denied"),
    "the text of a run": ("text.txt", 0, "train --resume run --max-steps=40", 2,
        "cannot read {}/text.txt: Permission denied; if the text has moved, give it as FILE"),
    "a checkpoint to go on from": ("run/last.safetensors", 0, "train --resume run", 2,
        "cannot read the checkpoint run/last.safetensors: Permission denied"),
    "a checkpoint": ("run/best.safetensors", 0, "sample run", 2, "cannot read the checkpoint "
        "run/best.safetensors: Permission denied; there are run/last.safetensors"),
    "a config": ("run/config.json", 0, "train --resume run", 2,
        "cannot read run/config.json: Permission denied"),
    "a folder that lets nobody in: resumed": ("run", 0o600, "train --resume run", 2,
        "cannot read run/config.json: Permission denied"),
    "a folder that lets nobody in: info": ("run", 0, "info run", 2,
        "cannot read the checkpoint run: Permission denied"),
    "a folder that lets nobody in: runs": ("run", 0, "runs run", 2,
        "cannot read run: Permission denied"),
    "a folder that lets nobody in: monitor": ("run", 0, "monitor run", 2,
        "cannot read the metrics run/metrics.jsonl: Permission denied; allow reading it"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_forbidden_is_one_line_and_nothing_changes(
    name: str, whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "run")
    shutil.copy(text, "text.txt")
    Path("empty").mkdir()
    last = checkpoint.load("run/last.safetensors")
    last.metadata["corpus"]["sources"] = [str(tmp_path / "text.txt")]
    checkpoint.save("run/last.safetensors", last.tensors, last.metadata)
    place, mode, words, status, said = FORBIDDEN[name]

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before, usual = files(), os.stat(place).st_mode
    try:
        os.chmod(place, mode)
        with permissions():
            result = CliRunner().invoke(cli, words.split())
    finally:
        os.chmod(place, usual)
    assert (result.exit_code, result.stderr) == (status, f"Error: {said.format(tmp_path)}\n")
    assert files() == before


def test_a_run_that_lets_nobody_in_does_not_hide_the_others(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(whole, name)
    os.chmod("b", 0o600)
    try:
        with permissions():
            result = CliRunner().invoke(cli, ["runs", "."])
            newest = checkpoint.newest_run(".")
    finally:
        os.chmod("b", 0o700)
    assert result.exit_code == 0 and newest == Path("a")
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"name", "a", "b"}
    assert result.stderr == "cannot read b/config.json: Permission denied\n"


# --- divergence ----------------------------------------------------------------------------------

DIVERGING: dict[str, Any] = ROLLBACK | dict(hidden_size=16)


def rolled(folder: Path, text: Path, **options: Any) -> list[Event]:
    config = Config.from_options(DIVERGING | options)
    return list(runs.start([str(text)], config, str(folder)).events())


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "text.txt"
    path.write_text(faults.BOOK[:1500], encoding="utf-8")
    return path


def test_a_run_goes_back_with_half_the_rate(short: Path, tmp_path: Path) -> None:
    events = rolled(tmp_path / "run", short)
    assert events[-1]["reason"] == "finished"
    log = metrics(tmp_path / "run")
    back = [e for e in log if e["event"] == "rollback"]
    assert [(e["rollbacks"], e["learning_rate_scale"]) for e in back] == [
        (n, 0.5**n) for n in range(1, len(back) + 1)
    ]
    ways = [(3, 0), (4, 0), (6, 0), (9, 7), (9, 6)]
    assert [(e["diverged_step"], e["step"]) for e in back] == ways
    assert {e["what"] for e in back} == {
        "loss",
        "weights, the optimizer's moments or the hidden state",
    }
    assert len(notes(events)) == 5 and notes(events)[3] == (
        "the loss is no longer finite at step 9: back to step 7 with 0.0625 of the learning rate "
        "(4 of at most 10 times)"
    )
    steps = [e["step"] for e in log if e["event"] != "rollback"]
    assert steps == sorted(steps) and [e["event"] for e in log].count("start") == 1
    rates = {e["step"]: e["learning_rate"] for e in log if e["event"] == "train"}
    asked = {e["step"]: e["learning_rate"] for e in events if e["event"] == "step"}
    assert rates[10] == asked[10] and len({e["step"] for e in log if e["event"] == "train"}) == 5


def test_back_at_the_start_it_is_the_run_with_that_rate(short: Path, tmp_path: Path) -> None:
    options = dict(learning_rate=0.7, checkpoint_every=0, eval_every=0)
    assert rolled(tmp_path / "run", short, **options)[-1]["reason"] == "finished"
    log = metrics(tmp_path / "run")
    scales = [e["learning_rate_scale"] for e in log if e["event"] == "rollback"]
    assert scales and all(e["step"] == 0 for e in log if e["event"] == "rollback")
    rolled(tmp_path / "other", short, **options | dict(learning_rate=0.7 * scales[-1]))
    assert [e for e in log if e["event"] != "rollback"] == metrics(tmp_path / "other")
    one, two = (
        checkpoint.load(tmp_path / n / "last.safetensors").tensors for n in ("run", "other")
    )
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in two.items()}


def test_a_run_that_goes_back_is_resumed_exactly(short: Path, tmp_path: Path) -> None:
    """Interrupted after each of the first steps, those that come to nothing included."""
    events = rolled(tmp_path / "whole", short)
    for until in range(1, 26):
        folder = tmp_path / f"run-{until}"
        run = runs.start([str(short)], Config.from_options(DIVERGING), str(folder))
        done = 0
        for event in run.events():
            done += event["event"] == "step"
            if event["event"] == "step" and done == until:
                run.interrupt()
        assert event["reason"] == "interrupted"
        assert resumed(folder)[-1]["reason"] == "finished"
        assert outcome(folder) == outcome(tmp_path / "whole")
    assert sum(e["event"] == "step" for e in events) > 25


def test_back_to_inherited_weights(short: Path, tmp_path: Path) -> None:
    """They are the run's own: what they were inherited from may be gone."""
    parent, folder = tmp_path / "parent", tmp_path / "run"
    rolled(parent, short, max_steps=1, learning_rate=0.01)
    config = Config.from_options(DIVERGING | dict(checkpoint_every=0, eval_every=0))
    run = runs.start([str(short)], config, str(folder), str(parent))
    began = run.model.params.flat.copy()
    shutil.rmtree(parent)
    events = []
    for event in run.events():
        if event["event"] == "note" and "back to step 0" in event["text"]:
            assert run.model.params.flat.tobytes() == began.tobytes()
        events.append(event)
    assert sum(e["event"] == "rollback" for e in metrics(folder)) > 1
    assert events[-1]["reason"] == "finished"


def test_at_most_so_often(short: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    end = rolled(folder, short, max_rollbacks=3)[-1]
    assert end["reason"] == "diverged" and " after 3 rollbacks; " in end["message"]
    assert [e["event"] for e in metrics(folder)][-1] == "end"
    before = outcome(folder)
    assert resumed(folder)[-1]["message"] == end["message"]
    assert outcome(folder) == before
    assert resumed(folder, max_rollbacks=9)[-1]["reason"] == "finished"
    assert outcome(folder)["metrics"] == (rolled(tmp_path / "b", short), metrics(tmp_path / "b"))[1]


def test_a_run_that_diverged_can_go_back_when_it_is_resumed(short: Path, tmp_path: Path) -> None:
    assert rolled(tmp_path / "run", short, on_divergence="stop")[-1]["reason"] == "diverged"
    assert resumed(tmp_path / "run", on_divergence="rollback")[-1]["reason"] == "finished"
    rolled(tmp_path / "whole", short)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


class Diverging:
    """Makes the loss of given steps not finite, each once, in this order."""

    def __init__(self, patch: pytest.MonkeyPatch, *steps: int) -> None:
        left, gradients = list(steps), Learner.gradients

        def broken(learner: Learner, piece: Any, window: Any, step: int) -> Any:
            loss, clipping = gradients(learner, piece, window, step)
            if left and step + 1 == left[0]:
                del left[0]
                return float("nan"), clipping
            return loss, clipping

        patch.setattr(Learner, "gradients", broken)


def ways(folder: Path) -> list[tuple[int, int]]:
    return [(e["diverged_step"], e["step"]) for e in metrics(folder) if e["event"] == "rollback"]


def test_the_best_model_stays_the_best(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice not finite at step 14: back to 12, the best, then to 10."""
    Diverging(monkeypatch, 14, 14)
    folder = tmp_path / "run"
    options = dict(on_divergence="rollback", eval_every=3, max_steps=14, checkpoint_every=5)
    run, seen = begin(folder, text, **options), []
    for event in run.events():
        p = run.progress
        seen.append((event["event"], event["step"]))
        if event["event"] == "note" and len(p.rollbacks) == 2:
            assert (p.step, p.best_step, p.validations_since_best) == (10, 12, 0)
            best = checkpoint.load(folder / "best.safetensors").metadata["progress"]
            assert (best["step"], best["best_val_nats_per_char"]) == (12, p.best_val_nats_per_char)
            assert [s for s, _, _ in p.validations] == [3, 6, 9]
    assert ways(folder) == [(14, 12), (14, 10)]
    assert [seen.count(("step", n)) for n in (10, 11, 12, 13, 14)] == [1, 2, 2, 3, 1]
    assert [e["step"] for e in metrics(folder) if e["event"] == "validation"] == [3, 6, 9, 12, 14]


def test_what_a_run_that_went_back_knows() -> None:
    before = Progress(step=14, best_step=12, best_val_nats_per_char=1.0)
    now = Progress(
        step=10, best_step=3, best_val_nats_per_char=2.0, validations_since_best=2,
        finished="finished",
    )  # fmt: skip
    now.went_back(before, 14, "loss")
    best = now.best_step, now.best_val_nats_per_char, now.validations_since_best
    assert best == (12, 1.0, 0)
    assert now.finished is None and now.rollbacks == [(14, 10, "loss")]


def test_what_was_cut_off_is_no_way_back(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best, of step 8, is of a past that the run has left when it began anew."""
    losses = iter([3.0, 2.5, *[4.0] * 9])
    monkeypatch.setattr(
        faults.runs.Run._validate.__globals__["evaluate"], "evaluate",
        lambda *arguments, **more: (10 * next(losses), 10),
    )  # fmt: skip
    Diverging(monkeypatch, 10, 9, 19)
    folder = tmp_path / "run"
    options = dict(on_divergence="rollback", eval_every=4, max_steps=20, checkpoint_every=0)
    list(begin(folder, text, **options).events())
    assert ways(folder) == [(10, 8), (9, 0), (19, 0)]
    assert checkpoint.load(folder / "best.safetensors").metadata["progress"]["step"] == 8


def test_kept_checkpoints_that_were_cut_off_are_gone(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Diverging(monkeypatch, 29, 28)
    folder, names = tmp_path / "run", []
    options = dict(on_divergence="rollback", eval_every=0, keep=4)
    for event in begin(folder, text, **options).events():
        if event["event"] == "note":
            names.append(sorted(path.stem for path in folder.glob("step-*")))
    assert ways(folder) == [(29, 25), (28, 20)]
    assert names == [
        ["step-10", "step-15", "step-20", "step-25"],
        ["step-10", "step-15", "step-20"],
    ]


def test_damaged_checkpoints_are_passed_over(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Diverging(monkeypatch, 14)
    folder = tmp_path / "run"
    for event in begin(folder, text, on_divergence="rollback").events():
        if event["event"] == "step" and event["step"] == 13:
            for name, size in (("step-10", 100), ("best", -1)):  # the second looks whole at first
                path = folder / f"{name}.safetensors"
                path.write_bytes(path.read_bytes()[:size] + b"x" * (size < 0))
    assert ways(folder) == [(14, 5)]


# --- signals and surroundings --------------------------------------------------------------------


@pytest.mark.parametrize("step", [7, 14, 30])
def test_a_validation_gives_way_and_is_made_when_the_run_is_resumed(
    step: int, whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, losses, windows = tmp_path / "run", Model.losses, []
    run = begin(folder, text)

    def interrupted(model: Model, *arguments: Any) -> Any:
        if run.progress.step == step:
            windows.append(step)
            if len(windows) == 2:
                run.interrupt()
        return losses(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "losses", interrupted)
        assert list(run.events())[-1]["reason"] == "interrupted"
    assert len(windows) == 2  # of five
    kept = checkpoint.load(folder / "last.safetensors").metadata["progress"]
    assert (kept["step"], kept["unvalidated"], kept["finished"]) == (step, True, None)
    assert ("validation", step) == [(e["event"], e["step"]) for e in resumed(folder)][1]
    assert outcome(folder) == outcome(whole)


def test_the_test_part_gives_way_too(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(test_frac=0.3, eval_every=0, val_frac=0.0)
    list(begin(tmp_path / "whole", text, **options).events())
    run, losses = begin(tmp_path / "run", text, **options), Model.losses

    def interrupted(*arguments: Any) -> Any:
        run.interrupt()
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "losses", interrupted)
        assert list(run.events())[-1]["reason"] == "interrupted"
    assert [e["event"] for e in resumed(tmp_path / "run")] == ["start", "end"]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("place", ["sampling", "looking up"])
def test_the_look_for_memorised_passages_gives_way(
    place: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: between two pieces of its samples, and between two blocks of a long text."""
    list(begin(tmp_path / "whole", text).events())
    run, calls = begin(tmp_path / "run", text), []
    symbols, hashes = memorised.sampling.symbols, memorised._hashes

    def counted(last: int) -> None:
        calls.append(last)
        if len(calls) == last:
            run.interrupt()

    def sampled(model: Any, vocabulary: Any, config: Any, *more: Any) -> Iterator[Any]:
        for piece in symbols(model, vocabulary, config, *more):
            if config.num_samples == memorised.PIECES:
                counted(3)
            yield piece

    def hashed(ids: Any) -> Any:
        counted(memorised.PIECES + 3)  # all of the samples, three blocks of the text
        return hashes(ids)

    with monkeypatch.context() as patch:
        patch.setattr(memorised, "BLOCK", 100)
        if place == "sampling":
            patch.setattr(memorised.sampling, "symbols", sampled)
        else:
            patch.setattr(memorised, "_hashes", hashed)
        end = list(run.events())[-1]
    assert end["reason"] == "interrupted"
    assert len(calls) == calls[0]
    assert metrics(run.folder)[-1]["event"] != "end"
    assert [e["event"] for e in resumed(run.folder)] == ["start", "end"]
    assert metrics(run.folder)[-1]["memorised"] is not None
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_compilation_gives_way(
    whole: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path / "run", text)
    with monkeypatch.context() as patch:
        patch.setattr(jit, "uncompiled", lambda code: [None] * 3)
        events = run.events()
        assert next(events)["text"].startswith("compiling 3 kernels")
        run.interrupt()
        assert [e["event"] for e in events] == ["start", "checkpoint", "end"]
    resumed(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_resumed_run_knows_its_validation_loss_from_the_start(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path / "run", text)
    for event in run.events():
        if event["event"] == "validation":
            known = event["val_nats_per_char"]
        if event["event"] == "step" and event["step"] == 9:
            run.interrupt()
    start, step = resumed(tmp_path / "run")[:2]
    assert start["val_nats_per_char"] == known
    stream = io.StringIO()
    monitor.show([start, step], stream=stream)
    assert f"val {known:.3f} nats" in stream.getvalue()


LONG = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
LONG += [
    "--hidden-size=16",
    "--max-steps=100000",
    "--checkpoint-every=20",
    "--log-every=1",
    "--lr-schedule=constant",
    "--warmup-steps=0",
    "--quiet",
]


def started(folder: Path, text: Path, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    """A process that trains, after its first checkpoints."""
    command = [sys.executable, "-m", "charrnn", "train", str(text), f"--out-dir={folder}", *LONG]
    process = subprocess.Popen(
        [*more.pop("before", []), *command, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, **more,
    )  # fmt: skip
    begin, log = time.monotonic(), folder / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 50):
        assert process.poll() is None and time.monotonic() - begin < 100
        time.sleep(0.01)
    return process


def check_same(folder: Path, text: Path) -> None:
    """Two steps more, and it is the run that nobody disturbed."""
    step = checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"]
    assert step > 0
    resumed(folder, max_steps=step + 2)
    options = {w[2:].partition("=")[0].replace("-", "_"): w.partition("=")[2] for w in LONG[:-1]}
    given = {k: int(v) if v.isdigit() else v for k, v in options.items()}
    config = Config.from_options(given | dict(max_steps=step + 2))
    list(runs.start([str(text)], config, str(folder.parent / "undisturbed")).events())
    one, two = (
        checkpoint.load(f / "last.safetensors").tensors
        for f in (folder, folder.parent / "undisturbed")
    )
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in two.items()}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_saves(name: str, text: Path, tmp_path: Path) -> None:
    number = getattr(signal, name)
    process = started(tmp_path / "run", text, stderr=subprocess.PIPE)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said and b"go on with: charrnn train --resume" in said
    check_same(tmp_path / "run", text)


def test_a_signal_that_comes_twice_at_once_is_one(text: Path, tmp_path: Path) -> None:
    """`timeout` sends it to the process and to its group."""
    for _ in range(5):
        process = started(tmp_path / "run", text, stderr=subprocess.PIPE)
        for pause in (0.0001, 0.01, 0.02):
            process.send_signal(signal.SIGTERM)
            time.sleep(pause)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        assert b"go on with: charrnn train --resume" in said
        shutil.rmtree(tmp_path / "run")


def test_nohup_is_obeyed(text: Path, tmp_path: Path) -> None:
    process = started(
        tmp_path / "run", text, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_run_that_a_script_started_with_an_ampersand_hears_sigint(
    text: Path, tmp_path: Path
) -> None:
    process = started(
        tmp_path / "run", text, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT


def test_a_terminal_that_goes_away_leaves_a_saved_run(text: Path, tmp_path: Path) -> None:
    master, slave = os.openpty()
    process = started(
        tmp_path / "run", text, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.close(master)  # every write to it fails now
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    check_same(tmp_path / "run", text)


def test_suspended_and_continued(text: Path, tmp_path: Path) -> None:
    process = started(tmp_path / "run", text, stderr=subprocess.PIPE)
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    check_same(tmp_path / "run", text)


@pytest.mark.parametrize("surroundings", ["bare", "clock"])
def test_without_home_terminal_or_locale_and_with_a_clock_that_jumps(
    surroundings: str, whole: Path, text: Path, tmp_path: Path
) -> None:
    words = ["train", str(text), "--out-dir=run", *FLAGS]
    command = [sys.executable, "-m", "charrnn"]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PATH": ""}
    environment["CHARRNN_CACHE_DIR"] = str(cache.root("kernels"))
    environment |= {k: v for k, v in os.environ.items() if k.startswith("NUMBA_")}  # same bits
    if surroundings == "clock":
        command = [sys.executable, str(ROOT / "scripts" / "faults_child.py")]
        command += ["--folder=run", "--clock", "--"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, start_new_session=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"finished at step 30" in done.stderr
    assert outcome(tmp_path / "run") == outcome(whole)
    seconds = [e["time"]["seconds"] for e in runlog.read(tmp_path / "run" / "metrics.jsonl")
               if "time" in e]  # fmt: skip
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] < 100


def test_durations_are_of_a_clock_that_does_not_jump() -> None:
    """Only the ages of files, which are times of day themselves, are compared with the time.

    TensorBoard's events have the time of day.
    """
    users = {
        path.name
        for path in (ROOT / "charrnn").rglob("*.py")
        if "time.time()" in path.read_text(encoding="utf-8")
    }
    assert users <= {"jit.py", "runs.py", "live.py", "data.py", "store.py", "tensorboard.py"}


@pytest.mark.parametrize("command", ["sample", "info", "runs"])
def test_a_pipe_that_is_closed_is_no_error(command: str, whole: Path) -> None:
    words = {"sample": ["--length=2000000"], "info": [], "runs": []}[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "charrnn", command, str(whole), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    if command == "sample":
        assert len(process.stdout.read(100)) == 100
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait(60) == 0
    assert b"Traceback" not in said and b"Broken" not in said and b"Error" not in said


def test_a_damaged_best_names_the_other_checkpoints(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError) as caught:
        api.load(copy)
    assert str(caught.value).startswith(f"{copy / 'best.safetensors'} is damaged")
    assert str(caught.value).endswith(f"; there are {copy / 'last.safetensors'}")
    with pytest.raises(InputError) as caught:
        api.load(copy / "best.safetensors")
    assert "there are" not in str(caught.value)
    assert api.load(copy / "last.safetensors").metadata["progress"]["step"] == 30
