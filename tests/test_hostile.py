"""Files that a stranger made: one line each, nothing run, nothing written outside, no endless wait.

scripts/fuzz.py does the many; here are the kinds by name, some through the commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, run_python

from charrnn import api, checkpoint, facts, listing, runlog, runs, saving, watched
from charrnn.config import Config, ModelConfig
from charrnn.errors import LONGEST, CharRNNError, InputError, SaveError
from charrnn.model import Model
from charrnn.progress import Progress
from charrnn.vocab import Vocabulary

TEXT = "the quick brown fox jumps over the lazy dog. " * 8
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
posix = pytest.mark.skipif(os.name == "nt", reason="needs pipes and links")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    options = dict(
        model="rnn", hidden_size=4, batch_size=2, seq_length=8, max_steps=4, threads=1, log_every=1
    )
    config = Config.from_options(options)
    for _ in runs.start([str(folder / "text.txt")], config, str(folder / "run")).events():
        pass
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "runs" / "run")


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """A checkpoint with other metadata or tensors, and the right checksum."""
    loaded = checkpoint.load(path)
    change(loaded)
    checkpoint.save(path, loaded.tensors, loaded.metadata)


def charrnn(*words: object, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-m", "charrnn", *map(str, words)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, **options
    )


# -- the commands ---------------------------------------------------------------------------------


def is_one_line(done: subprocess.CompletedProcess, status: int = 2) -> None:
    assert done.returncode == status, (done.args, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), done.stderr
    assert lines[0].isprintable() and len(lines[0]) < 2 * LONGEST


def test_every_command_says_one_line_of_a_damaged_checkpoint(run: Path, trained: Path) -> None:
    for path in run.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    text = trained / "text.txt"
    for words in (
        ("sample", run),
        ("eval", run, text),
        ("info", run),
        ("gradients", run),
        ("train", "--resume", run),
        ("train", text, "--init-from", run, "--out-dir", run / "new"),
    ):
        done = charrnn(*words)
        is_one_line(done)
        assert "checksum is wrong" in done.stderr
    assert not (run / "new").exists()
    listed = charrnn("runs", run.parent)
    assert listed.returncode == 0 and " finished " in listed.stdout  # its metrics are whole


@posix
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "last.safetensors", "best.safetensors", "lock"]
)
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_pipes_and_devices_are_not_waited_for(name: str, kind: str, run: Path) -> None:
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    began = time.monotonic()
    listing.find(run.parent, time.time())
    for use in (
        lambda: runs.resume(str(run), (), {"max_steps": 6}).events(),
        lambda: api.load(run).sample("a", length=3, seed=1),
        lambda: [list(watched.Watched(f, "a").news()) for f in watched.find([str(run)])],
    ):
        try:
            for _ in use():
                pass
        except CharRNNError as error:
            assert str(error).isprintable()
    assert time.monotonic() - began < 60


@posix
@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "last.safetensors", "config.json"])
def test_links_are_not_written_through(
    name: str, link: Callable[[Path, Path], None], run: Path
) -> None:
    """Cutting back the metrics or naming the lock's owner would empty a file elsewhere."""
    outside = run.parent / "diary.txt"
    outside.write_text("dear diary\n" * 100)
    content = (run / name).read_bytes()
    (run / name).unlink()
    if name == "last.safetensors" or link is os.link:
        outside.write_bytes(content)
    link(outside, run / name)
    before = outside.read_bytes()
    try:
        for _ in runs.resume(str(run), (), {"max_steps": 6}).events():
            pass
    except (InputError, SaveError) as error:
        assert str(error).isprintable() and name != "last.safetensors"
    else:  # what is replaced is the link itself; a hard one may be read
        assert name == "last.safetensors" or (name, link) == ("config.json", os.link)
    assert outside.read_bytes() == before


@posix
def test_a_text_that_never_ends_is_not_read(run: Path) -> None:
    """The names of the texts come from the file, too."""

    def name_a_device(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["corpus"]["sources"] = ["/dev/zero"]

    for path in run.glob("*.safetensors"):
        rewrite(path, name_a_device)
    lm = api.load(run)
    assert lm.training_text() is None
    assert "xz_bits_per_char" not in lm.evaluate(TEXT, baselines=True)
    with pytest.raises(InputError, match="'/dev/zero' does not exist or is no file; if the text"):
        runs.resume(str(run), (), {"max_steps": 6})

    def validate_on_a_device(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["corpus"]["sources"] = [str(run / "config.json")]
        loaded.metadata["config"]["data"]["val_file"] = "/dev/zero"

    rewrite(run / "last.safetensors", validate_on_a_device)
    with pytest.raises(InputError, match="--val-file /dev/zero of .* is no file"):
        runs.resume(str(run), (), {"max_steps": 6})


@posix
def test_a_kept_text_that_is_a_pipe(run: Path) -> None:
    def keep(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["corpus"]["sources"] = ["-"]

    rewrite(run / "last.safetensors", keep)
    os.mkfifo(run / "text.txt")
    with pytest.raises(InputError, match="cannot read .*text.txt: it is no regular file"):
        runs.resume(str(run), (), {"max_steps": 6})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("file", ["/proc/self/pagemap", "/proc/cpuinfo"])
def test_files_of_the_system_without_a_size(file: str, run: Path, trained: Path) -> None:
    """They call themselves regular files, and the first never ends."""
    text = trained / "text.txt"

    def name(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["corpus"]["sources"] = [file]

    def validate(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["corpus"]["sources"] = [str(text)]
        loaded.metadata["config"]["data"]["val_file"] = file

    began = time.monotonic()
    for change in (name, validate):
        for path in run.glob("*.safetensors"):
            rewrite(path, change)
        with pytest.raises(InputError, match=f"cannot read {file}: "):
            runs.resume(str(run), (), {"max_steps": 6})
    lm = api.load(run)
    assert lm.validation_text() is None
    with pytest.raises(InputError, match=f"cannot read {file}: "):
        runs.start([file], Config(), str(run.parent / "new"))
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(file)
    (listed,) = listing.find(run.parent, time.time())
    assert listed["state"] == "damaged" and "metrics.jsonl" in listed["problem"]
    with pytest.raises(InputError, match=r"cannot read the metrics"):
        watched.find([str(run)])
    follower = watched.Watched(run, "a")
    assert list(follower.news()) == [] and follower.trouble
    assert time.monotonic() - began < 60


@posix
@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "best.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_stands_in_a_files_place_is_bad_input(
    name: str, kind: str, run: Path, trained: Path
) -> None:
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).symlink_to(run / "nothing")
    last = (run / "last.safetensors").read_bytes()
    done = charrnn("train", trained / "text.txt", "--resume", run, "--max-steps", 6, "--quiet")
    if name == "best.safetensors" and kind != "folder":  # a better one takes its place
        assert done.returncode == 0 and not (run / name).is_fifo()
        return
    is_one_line(done)
    assert f"{run / name}" in done.stderr and (run / "last.safetensors").read_bytes() == last


@pytest.mark.parametrize(
    "line",
    [
        {"event": "end"},
        {"event": "end", "reason": ["finished"]},
        {"event": ["end"], "reason": "finished"},
        {"event": {}, "reason": "finished"},
        {"event": "gradients", "clip_scale": 1.0},
        {"event": "gradients", "clip_scale": "a", "clipped_elements": 0.0},
        {"event": "train", "nats_per_char": 1, "grad_norm": "1", "clipped": 0, "learning_rate": 1},
        {"event": "end", "reason": "finished", "step": "4"},
    ],
)
def test_lines_of_the_metrics_that_lack_something(line: dict[str, Any], run: Path) -> None:
    metrics = run / "metrics.jsonl"
    lines = [line for line in metrics.read_bytes().splitlines(True) if b'"end"' not in line]
    metrics.write_bytes(b"".join(lines) + runlog.dump_json({"step": 4} | line) + b"\n")
    reads = [("gradients", run, "--show", "clipping")]
    if "reason" in line or line["event"] == "end":  # all that a resumed run looks at
        reads = [("train", "--resume", run)]
    for words in reads:
        done = charrnn(*words)
        is_one_line(done)
        assert "of " in done.stderr and "metrics.jsonl is damaged: it " in done.stderr
    assert charrnn("monitor", run).returncode == 0


def test_a_way_back_that_says_nothing(run: Path) -> None:
    """A damaged checkpoint is no way back from a divergence; the others are."""
    shutil.copy(run / "last.safetensors", run / "step-3.safetensors")
    rewrite(run / "step-3.safetensors", lambda loaded: put(loaded.metadata, ("progress",), []))
    found = saving.way_back(run, Progress(step=9, best_step=4), 9)
    assert found is not None and found.path.name == "best.safetensors"


def test_nothing_of_a_file_moves_the_cursor(run: Path) -> None:
    def paint(loaded: checkpoint.Checkpoint) -> None:
        loaded.metadata["versions"]["\x1b[2J"] = "\x1b]0;title\x07"
        loaded.metadata["corpus"]["name"] = "a\r\nb\x1b[31m"

    for path in run.glob("*.safetensors"):
        rewrite(path, paint)
    done = charrnn("info", run)
    assert done.returncode == 0 and "?[2J" in done.stdout
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    with open(run / "metrics.jsonl", "ab") as file:
        end = {
            "event": "end",
            "step": 4,
            "reason": "\x1b]0;a\x07\nb\x9b2J",
            "time": {"seconds": 1.0},
        }
        file.write(runlog.dump_json(end | {"test_nats_per_char": None}) + b"\n")
    done = charrnn("monitor", run)
    assert done.returncode == 0 and "?]0;a??b?2J after 1 s" in done.stdout
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    error = InputError("a\nb\x1b[2J" + "x" * 10_000)
    assert str(error).isprintable() and str(error).startswith("a b\\x1b[2Jxxx")
    assert len(str(error)) < LONGEST + 20


# -- checkpoints ----------------------------------------------------------------------------------

METADATA: list[tuple[tuple[str, ...], Any, str]] = [
    (("config",), [], "'config' of the metadata .* is damaged: it is \\[\\]"),
    (("config", "model"), 3, "config is not a JSON object of sections"),
    (("config", "model", "hidden_size"), 10**9, "--hidden-size is 1000000000: it must be"),
    (("config", "model", "hidden_size"), -3, "--hidden-size is -3: it must be"),
    (("config", "model", "hidden_size"), "4", "--hidden-size is '4': it must be"),
    (("config", "model", "hidden_size"), 10**400, "--hidden-size has 401 digits"),
    (("config", "model", "hidden_size"), 5, "tensor|its config is of .* weights"),
    (("config", "model", "hidden_size"), 65536, "its config is of 4,.* weights, more than it has"),
    (("config", "model", "num_layers"), 1000, "its config is of .* weights, more than it has"),
    (("config", "model", "dropout"), 10**400, "--dropout is 10+.*: it must be a number"),
    (("config", "model", "model"), "../../evil", "--model is '../../evil': it must be one of"),
    (("config", "model", "model"), "transformer", "--model is 'transformer': it must be one of"),
    (("config", "model", "heads"), 8, "unknown options: --heads"),
    (("config", "future"), {}, "unknown config sections: future"),
    (("vocabulary",), "abc", "'vocabulary' of the metadata .* is damaged"),
    (("vocabulary", 0), "ab", "symbol 0 is 'ab', not one character"),
    (("vocabulary", 0), 7, "symbol 0 is 7, not one character"),
    (("vocabulary", 0), "b", "a symbol occurs twice"),
    (("vocabulary", 0), None, "symbol 0 is None, not one character"),
    (("unknown",), 10**6, "unknown is 1000000, not an id below"),
    (("unknown",), "x", "'unknown' of the metadata .* is damaged: it is 'x'"),
    (("progress",), [], "'progress' of the metadata .* is damaged: it is \\[\\]"),
    (("progress", "step"), -1, "'step' of 'progress' .* is damaged: it is -1"),
    (("progress", "step"), 10**30, "'step' of 'progress' .* is damaged: it is 10+"),
    (("progress", "validations"), [[1, 2]], "'validations' of .* is damaged"),
    (("progress", "finished"), "often", "'finished' of .* is damaged: it is 'often'"),
    (("corpus", "sources"), "text.txt", "'sources' of 'corpus' .* is damaged: it is 'text.txt'"),
]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    *way, last = path
    for key in way:
        value = value[key]
    value[last] = new


@pytest.mark.parametrize("path, value, match", METADATA, ids=lambda part: str(part)[:40])
def test_metadata_that_fit_nothing(
    path: tuple[Any, ...], value: Any, match: str, run: Path
) -> None:
    rewrite(run / "last.safetensors", lambda loaded: put(loaded.metadata, path, value))
    for use in (
        lambda: api.load(run / "last.safetensors"),
        lambda: runs.resume(str(run), (), {"max_steps": 6}),
        lambda: runs.start([str(run / "config.json")], Config(), None, str(run), "add"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            (run / "best.safetensors").unlink(missing_ok=True)
            use()
        assert str(caught.value).isprintable() and str(run) in str(caught.value)


RESUMED: list[tuple[tuple[str, ...], Any, str]] = [
    (("progress", "log_steps"), -1, "'log_steps' of the progress .* is damaged: it is -1"),
    (("progress", "log_nats"), "0", "'log_nats' of .* is damaged: it is '0'"),
    (("progress", "total_steps"), [], "'total_steps' of .* is damaged"),
    (("metrics_length",), -5, "'metrics_length' of .* is damaged: it is -5"),
    (("metrics_length",), "0", "'metrics_length' of .* is damaged: it is '0'"),
    (("corpus", "fingerprint"), None, "'fingerprint' of 'corpus' .* is damaged: it is None"),
]


@pytest.mark.parametrize("path, value, match", RESUMED, ids=lambda part: str(part)[:40])
def test_metadata_that_cannot_be_resumed(
    path: tuple[Any, ...], value: Any, match: str, run: Path
) -> None:
    rewrite(run / "last.safetensors", lambda loaded: put(loaded.metadata, path, value))
    before = {p: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(InputError, match=match):
        runs.resume(str(run), (), {"max_steps": 6})
    assert {p: p.read_bytes() for p in run.iterdir()} == before


def test_files_of_another_run(run: Path) -> None:
    """Tensors that fit by chance do not make a run."""
    said = json.loads((run / "config.json").read_text())
    said["vocabulary"]["symbols"].reverse()
    (run / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="config.json is of another vocabulary than .*last"):
        runs.resume(str(run), (), {"max_steps": 6})


def test_a_best_model_of_another_run(run: Path, tmp_path: Path) -> None:
    """It is what the run's end measures: its ids would be no symbols of this run."""
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "0123456789" * 9)
    options = dict(model="rnn", hidden_size=4, batch_size=2, seq_length=8, max_steps=2, threads=1)
    config = Config.from_options(options)
    for _ in runs.start([str(other)], config, str(tmp_path / "other")).events():
        pass
    shutil.copy(tmp_path / "other" / "best.safetensors", run)
    changes = {"max_steps": 6, "eval_every": 0}
    resumed = runs.resume(str(run), (), changes)
    resumed.progress.best_val_nats_per_char = 0.0  # the best one is an earlier one
    with pytest.raises(InputError, match="best.safetensors is of another vocabulary than this run"):
        for _ in resumed.events():
            pass
    assert checkpoint.load(run / "last.safetensors").metadata["progress"]["step"] == 6
    (run / "best.safetensors").unlink()
    for _ in runs.resume(str(run), (), changes).events():
        pass
    (listed,) = listing.find(run.parent, 0.0)
    assert (listed["state"], listed["step"]) == ("finished", 6)


TENSORS: list[tuple[str, Callable[[dict[str, np.ndarray]], Any], str]] = [
    ("lacking", lambda t: t.pop("head.bias"), "the weights lack the tensor head.bias"),
    ("one more", lambda t: t.update({"x": np.ones(1, "f4")}), "tensor x is no part of this model"),
    (
        "transposed",
        lambda t: t.update({"head.weight": t["head.weight"].T}),
        "head.weight has shape",
    ),
    ("of integers", lambda t: t.update({"head.bias": t["head.bias"].astype("i4")}), "int32, not"),
    ("longer", lambda t: t.update({"head.bias": np.ones(10**6, "f4")}), "head.bias has shape"),
]


@pytest.mark.parametrize("change, match", [t[1:] for t in TENSORS], ids=[t[0] for t in TENSORS])
def test_tensors_that_fit_nothing(change: Callable[[Any], Any], match: str, run: Path) -> None:
    rewrite(run / "last.safetensors", lambda loaded: change(loaded.tensors))
    for use in (
        lambda: api.load(run / "last.safetensors"),
        lambda: runs.resume(str(run), (), {"max_steps": 6}),
    ):
        with pytest.raises(InputError, match=match):
            use()


def test_states_that_fit_nothing(run: Path) -> None:
    changes: list[tuple[Callable[[dict[str, np.ndarray]], Any], str]] = [
        (lambda t: t.pop("state.h"), "it lacks the tensor 'state.h'"),
        (lambda t: t.update({"state.h": np.ones((9, 9), "f4")}), r"shape \(9, 9\): needed is"),
        (lambda t: t.pop("optimizer.m.head.bias"), "lack the tensor head.bias"),
        (lambda t: t.update({"state.h": t["state.h"].astype("i8")}), "state.h is int64, not"),
        (lambda t: t.update({"state.h": t["state.h"] > 0}), "state.h is bool, not"),
        (lambda t: t["optimizer.v.head.bias"].fill(-1), "a mean of squares is negative"),
    ]
    for i, (change, match) in enumerate(changes):
        copy = shutil.copytree(run, run.parent / f"copy{i}")
        rewrite(copy / "last.safetensors", lambda loaded, c=change: c(loaded.tensors))
        with pytest.raises(InputError, match=match):
            runs.resume(str(copy), (), {"max_steps": 6})


def test_weights_too_large_to_multiply(run: Path) -> None:
    """Finite, and yet no probabilities come of them."""
    huge = np.finfo("f4").max

    def inflate(loaded: checkpoint.Checkpoint) -> None:
        loaded.tensors["head.weight"] = np.full_like(loaded.tensors["head.weight"], huge)
        loaded.tensors["head.weight"][::2] *= -1

    rewrite(run / "last.safetensors", inflate)
    lm = api.load(run / "last.safetensors")
    try:
        text = lm.sample("t", length=10, seed=1)[0]
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert len(text) == 11


def test_many_tensors_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {f"t{i}": np.ones(0, "f4") for i in range(50)}, {})
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 49)
    with pytest.raises(InputError, match="it has 50 tensors"):
        checkpoint.load(path)


# -- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[" + "[]," * 5_000_000 + "[]]", "[" + "0," * 8_000_000 + "0]", '{"a":' * 2_000_000],
    ids=["lists", "numbers", "deep"],
)  # fmt: skip
def test_short_json_of_many_objects_takes_no_memory(text: str) -> None:
    """A file of 15 MB could otherwise become objects of 1 GB."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="too long"):
            runlog.parse_json(text, "it")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_vocabulary_is_no_long_json() -> None:
    symbols = [chr(code) for code in range(0x110000)]
    assert runlog.parse_json(json.dumps(symbols, ensure_ascii=False).encode("utf-8", "replace"), "")


def test_a_line_of_metrics_without_an_end(run: Path) -> None:
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b"x" * (runlog.LONGEST + 10))
    with pytest.raises(InputError, match="is not valid JSON .*too long"):
        list(runlog.read(run / "metrics.jsonl"))


def test_a_config_that_is_too_long(run: Path) -> None:
    (run / "config.json").write_bytes(b" " * (runlog.LONGEST + 1))
    with pytest.raises(InputError, match="config.json is not valid JSON .*too long"):
        runs.resume(str(run))
    (listed,) = listing.find(run.parent, 0.0)
    assert listed["state"] == "damaged" and "too long" in listed["problem"]


@pytest.mark.parametrize("step", [-1, 10**30, 1.5, "7", True, None, [1], float("nan")])
def test_steps_that_are_none(step: Any, run: Path) -> None:
    event = {"event": "validation", "step": step, "best_val_nats_per_char": 1.0, "best_step": 1}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    (listed,) = listing.find(run.parent, 0.0)
    assert listed["state"] == "damaged" and "metrics.jsonl" in listed["problem"]
    assert listing.table([listed])


def test_shapes() -> None:
    shape = {"n": int, "x": float | None, "names": list[str], "pair": tuple[int, str]}
    good = {"n": 3, "x": None, "names": ["a"], "pair": [1, "b"], "more": object()}
    assert facts.check(good, shape, "it") is good
    for name, bad in (
        ("n", True), ("n", 1.0), ("n", 2**63), ("x", float("inf")), ("x", "1"), ("x", 10**400),
        ("names", "ab"), ("names", [1]), ("pair", [1]), ("pair", ["b", 1]), ("pair", None),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"'{name}' of it is damaged: it is"):
            facts.check(good | {name: bad}, shape, "it")
        with pytest.raises(InputError, match=f"it is damaged: it lacks '{name}'"):
            facts.check({k: v for k, v in good.items() if k != name}, shape, "it")
    with pytest.raises(InputError, match="it is damaged: it is no object"):
        facts.check([], shape, "it")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from([2**63, 10**400, 1e308, "\ud800", "lstm", "byte"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)  # fmt: skip
OPTIONS = [(name, key) for name, part in Config().to_json().items() for key in part]


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), VALUES), min_size=1, max_size=3), VALUES)
def test_any_json_is_a_config_or_an_input_error(changes: list[Any], value: Any) -> None:
    said = Config().to_json()
    for (section, key), new in changes:
        said[section][key] = new
    for read in (
        Config.from_json,
        Vocabulary.from_json,
        lambda v: facts.check(v, facts.CORPUS, ""),
    ):
        for what in (said, value, {"level": "char", "symbols": value, "unknown": value}):
            try:
                config = read(what)
            except InputError as error:
                assert str(error).isprintable()
            else:
                if isinstance(config, Config):
                    assert Config.from_json(config.to_json()) == config


def test_a_model_larger_than_the_machine(run: Path) -> None:
    with pytest.raises(InputError, match="--hidden-size 65,536 .* needs .* GiB for its weights"):
        Model(ModelConfig(hidden_size=65536, num_layers=1000), 10)
    for path in run.glob("*.safetensors"):
        path.unlink()
    said = json.loads((run / "config.json").read_text())
    said["config"]["model"] |= {"hidden_size": 65536, "num_layers": 1000}
    (run / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="config.json: --hidden-size 65,536 .* GiB"):
        runs.resume(str(run))


# -- all of it ------------------------------------------------------------------------------------


@posix
def test_a_short_campaign(tmp_path: Path) -> None:
    """The same cases every time; scripts/fuzz.py --count 10000 is the long one."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fuzz.py", "--count", "300", "--seed", "0"],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases" in done.stdout and " 0 failed" in done.stdout


# -- two at once ----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from charrnn import runlog
with runlog.lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(run: Path) -> Any:
    """Another process that trains in the run's folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_trainer_is_refused_by_the_name_of_the_first(run: Path, holder: Any) -> None:
    before = {p: p.read_bytes() for p in run.iterdir() if p.name != "lock"}
    done = charrnn("train", "--resume", run, "--max-steps", 6)
    is_one_line(done)
    assert f"is being trained by process {holder.pid}: wait for it" in done.stderr
    assert {p: p.read_bytes() for p in run.iterdir() if p.name != "lock"} == before
    (listed,) = listing.find(run.parent, time.time())
    assert listed["state"] == "running"
    holder.kill()  # as kill -9: the file stays, the lock does not
    holder.wait()
    assert (run / "lock").read_text() == f"process {holder.pid}\n"
    done = charrnn("train", "--resume", run, "--max-steps", 6)
    assert done.returncode == 0 and "finished at step 6" in done.stderr


def test_two_begin_in_one_folder(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    command = [
        sys.executable, "-m", "charrnn", "train", trained / "text.txt", "--out-dir", folder,
        "--model", "rnn", "--hidden-size", "4", "--max-steps", "4", "--threads", "1",
    ]  # fmt: skip
    both = [
        subprocess.Popen([*command, "--seed", str(seed)], env=ENVIRONMENT, stderr=-1, text=True)
        for seed in (1, 2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    won = next(i for i, process in enumerate(both) if process.returncode == 0)
    refused = errors[1 - won].splitlines()
    assert len(refused) == 1 and (
        "already holds a run" in refused[0] or "is being trained by process" in refused[0]
    )
    said = json.loads((folder / "config.json").read_text())
    assert said["config"]["train"]["seed"] == won + 1  # nobody wrote over the winner's files
    assert api.load(folder).config.train.seed == won + 1


@posix
def test_a_lock_that_is_none(run: Path) -> None:
    (run / "lock").unlink(missing_ok=True)
    (run / "lock").mkdir()
    assert not runlog.held(run)
    with (
        pytest.raises(InputError, match="cannot write .*lock: .*; allow writing it, or remove"),
        runlog.lock(run),
    ):
        pass
    (run / "lock").rmdir()
    (run / "lock").write_bytes(b"\xff\x1b[2J" * 1000)
    with runlog.lock(run):
        assert (run / "lock").read_text() == f"process {os.getpid()}\n"


def test_an_owner_that_cannot_be_shown(run: Path, holder: Any) -> None:
    (run / "lock").write_bytes(b"\xff\x1b[2J" * 1000)
    with pytest.raises(InputError, match="is being trained by") as caught, runlog.lock(run):
        pass
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500 + len(str(run))


# -- supply chain ---------------------------------------------------------------------------------

OFFLINE = """
import sys

def refuse(event, args):
    if event.startswith("socket.") or event in ("os.system", "subprocess.Popen", "os.exec"):
        raise AssertionError(event)

sys.addaudithook(refuse)
import charrnn
lm = charrnn.train(sys.argv[1], out_dir=sys.argv[2], model="rnn", hidden_size=4, max_steps=4)
lm.sample("t", length=5)
lm.evaluate("the dog", baselines=True)
print("done")
"""


def test_no_network_and_no_process_at_run_time(trained: Path, tmp_path: Path) -> None:
    code = OFFLINE.replace("sys.argv[1]", repr(str(trained / "text.txt")))
    assert run_python(code.replace("sys.argv[2]", repr(str(tmp_path / "run")))) == "done\n"
