"""The command line on real models: as real processes, and all its refusals."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from charrnn import api, checkpoint, runlog, runs
from charrnn.cli import cli
from charrnn.config import Config
from charrnn.kernels import jit
from charrnn.model import NO_BF16

ROOT = Path(__file__).parent.parent
BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")
TINY = ["--hidden-size=16", "--batch-size=4", "--seq-length=16"]
FOREVER = [*TINY, "--max-steps=10000000", "--lr-schedule=constant", "--warmup-steps=0"]
FOREVER += ["--log-every=1", "--checkpoint-every=50"]
PATIENCE = 120  # seconds; compiling takes some

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | more


def charrnn(
    *arguments: object, cwd: Path, stdin: bytes = b"", **more: str
) -> subprocess.CompletedProcess[bytes]:
    """A finished process."""
    return subprocess.run(
        [sys.executable, "-m", "charrnn", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        env=environment(**more),
        capture_output=True,
        timeout=PATIENCE,
    )


def started(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "charrnn", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        **pipes | options,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.01)


def here(*arguments: object, **options: Any) -> Any:
    """A command in this process."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a trained run, made by a process."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "book.txt").write_text(BOOK[:6000], encoding="utf-8")
    done = charrnn("train", "book.txt", *TINY, "--epochs=3", "--lr=0.02", cwd=folder)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    (folder / "shown").write_bytes(done.stderr)
    return folder


@pytest.fixture
def in_shop(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    return shop


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- train, as a process -------------------------------------------------------------------------


def test_without_a_terminal_there_are_plain_lines(shop: Path) -> None:
    shown = (shop / "shown").read_bytes()
    assert b"\r" not in shown and b"\x1b" not in shown
    text = shown.decode()
    for part in (
        " symbols\ntext   5,400 characters to train on, 600 to validate on\n",
        "\nrun    255 steps of 4 x 16 characters, 85 to an epoch\n",
        "finished at step 255",
        "bits/char  perplexity",
        "(best)",
        f"model in    {Path('runs', 'book')}\n",
        f"charrnn sample {Path('runs', 'book')}\n",
    ):
        assert part in text, text


def test_the_same_process_leaves_the_same_numbers(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes((shop / "book.txt").read_bytes())
    arguments = [*TINY, "--epochs=3", "--lr=0.02", "--threads=2", "--out_dir=again", "--quiet"]
    done = charrnn("train", "book.txt", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for name in ("last.safetensors", "best.safetensors"):
        one = checkpoint.load(shop / "runs" / "book" / name).tensors
        two = checkpoint.load(tmp_path / "again" / name).tensors
        assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in two.items()}


def stopped(folder: Path, number: int) -> tuple[int, str]:
    """A training process that got a signal: its status, and what it wrote."""
    (folder / "book.txt").write_text(BOOK[:3000], encoding="utf-8")
    process = started("train", "book.txt", *FOREVER, cwd=folder)
    metrics = folder / "runs" / "book" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 60, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors.decode()


def check_resumed(folder: Path) -> None:
    """Go on for ten steps; the weights are those of a run that was never stopped."""
    last = folder / "runs" / "book" / "last.safetensors"
    step = checkpoint.load(last).metadata["progress"]["step"]
    assert step > 0
    done = charrnn("train", "--resume", "latest", f"--max-steps={step + 10}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"going on after step {step:,}" in done.stderr.decode()
    options = dict(a.removeprefix("--").split("=") for a in FOREVER)
    given: dict[str, Any] = {k.replace("-", "_"): json.loads(v) if v[0].isdigit() else v
                             for k, v in options.items()}  # fmt: skip
    config = Config.from_options(given | {"max_steps": step + 10})
    run = runs.start([str(folder / "book.txt")], config, str(folder / "whole"))
    assert list(run.events())[-1]["reason"] == "finished"
    one, two = (checkpoint.load(p).tensors for p in (last, folder / "whole" / "last.safetensors"))
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in two.items()}
    logs = [runlog.read(f / "metrics.jsonl") for f in (last.parent, folder / "whole")]
    skipped = ("time", "total_steps")
    one_log, two_log = ([{k: v for k, v in e.items() if k not in skipped} for e in log]
                        for log in logs)  # fmt: skip
    # A resumed run of another length says so in a second start event.
    one_log = [e for e in one_log if e["event"] != "start" or e["step"] == 0]
    # Until it was stopped, the first run validated every 500 steps, as did the second.
    assert one_log == two_log


@posix
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_says_how_to_go_on(name: str, status: int, tmp_path: Path) -> None:
    code, errors = stopped(tmp_path, getattr(signal, name))
    assert code == status
    assert "saving at the end of this step; once more to end at once\n" in errors
    assert errors.endswith(f"go on with: charrnn train --resume {Path('runs', 'book')}\n")
    assert "interrupted at step" in errors and "Traceback" not in errors
    check_resumed(tmp_path)


@posix
def test_killed_and_resumed(tmp_path: Path) -> None:
    code, _ = stopped(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    check_resumed(tmp_path)


SLOW = """
import time
from charrnn.cli import cli
from charrnn.learner import Learner

fast = Learner.gradients
slow = lambda *args: (print("step", flush=True), time.sleep(60), fast(*args))[-1]
Learner.gradients = slow
cli(["train", "book.txt", "--out-dir", "run"], prog_name="charrnn")
"""


@posix
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK[:3000], encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"step\n"
        process.send_signal(signal.SIGINT)
        while b"once more" not in process.stderr.readline():
            pass
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
        assert time.monotonic() - start < 5


def test_divergence_is_status_3(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK[:3000], encoding="utf-8")
    options = ["--optimizer=sgd", "--lr=1e38", "--warmup-steps=0", "--quiet"]
    done = charrnn("train", "book.txt", *TINY, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    error = done.stderr.decode()
    assert error.startswith("Error: the ") and error.count("\n") == 1
    assert "no longer finite" in error and "--learning-rate" in error and "--grad-clip" in error


def test_a_text_through_a_pipe(tmp_path: Path) -> None:
    text = BOOK[:2000].encode()
    options = [*TINY, "--max-steps=5", "--quiet"]
    done = charrnn("train", "-", *options, cwd=tmp_path, stdin=text)
    assert done.returncode == 0, done.stderr
    done = charrnn("train", "--resume", "runs/stdin", "--max-steps=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"finished at step 9" in done.stderr


def test_a_text_that_is_not_ascii_in_the_c_locale(tmp_path: Path) -> None:
    text = "Füße, naïve → 漢字 😀\n" * 60
    name = "Straße 漢.txt"
    (tmp_path / name).write_text(text, encoding="utf-8")
    plain: dict[str, Any] = {"LC_ALL": "C", "LANG": "C"}
    done = charrnn("train", name, *TINY, "--epochs=30", "--lr=0.02", "--sample-every=100",
                   cwd=tmp_path, **plain)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["Straße-漢"]
    done = charrnn("sample", "--prompt=→ é漢", "--length=80", "--seed=1", cwd=tmp_path, **plain)
    assert done.returncode == 0, done.stderr
    sample = done.stdout.decode("utf-8")
    assert sample.startswith("→ é漢") and len(sample) == 4 + 80 + 1
    assert set(sample) <= set(text) | {"é"}
    assert b"unknown to the model skipped" in done.stderr
    assert charrnn("info", "runs/Straße-漢", cwd=tmp_path, **plain).returncode == 0


@posix
def test_a_terminal_has_a_bar(shop: Path, tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with started("train", shop / "book.txt", *TINY, "--epochs=40", cwd=tmp_path, stderr=theirs,
                 stdout=theirs) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], PATIENCE)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                break
        assert process.wait(timeout=PATIENCE) == 0
    os.close(ours)
    assert b"\rep " in shown and b"|" in shown and b"k/s" in shown
    assert max(map(len, re.split("[\r\n]", shown.decode()))) <= 120
    assert shown.rstrip().endswith(f"charrnn sample {Path('runs', 'book')}".encode())


# --- texts that are too long to be had whole -----------------------------------------------------

WHOLE = "characters: where a text is needed whole, in memory, it may have 5,000; "


@pytest.mark.parametrize(
    "words, name",
    [
        ("eval runs/book book.txt --heatmap", "book has 6,000"),
        ("eval runs/book book.txt --html page.html", "book has 6,000"),
        ("eval runs/book end.txt --baselines", "best.safetensors has 5,400"),
        ("gradients runs/book", "best.safetensors has 5,400"),
        ("gradients runs/book --text book.txt", "book has 6,000"),
        ("gradients --text book.txt", "book has 6,000"),
        ("inspect runs/book --text book.txt", "book has 6,000"),
        ("sample runs/book --prompt-file book.txt", "book has 6,000"),
    ],
)
def test_what_is_needed_whole_may_not_be_too_long(
    words: str, name: str, in_shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is refused before anything is scored."""
    (in_shop / "end.txt").write_text(BOOK[5000:6000], encoding="utf-8")
    monkeypatch.setattr("charrnn.data.MOST_WHOLE", 5000)
    monkeypatch.setattr("charrnn.evaluate.evaluate", None)
    before = files(in_shop)
    result = here(*words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: ") and f"{name} {WHOLE}" in line
    assert line.endswith(" (head -c 5000 FILE)")
    assert files(in_shop) == before


def test_what_is_read_in_pieces_may_be_of_any_length(
    in_shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.data.MOST_WHOLE", 5000)
    assert here("eval", "runs/book", "book.txt").exit_code == 0
    monkeypatch.setattr("charrnn.data.MOST_WHOLE", 6000)
    assert here("eval", "runs/book", "book.txt", "--heatmap").exit_code == 0


# --- sample --------------------------------------------------------------------------------------


def test_sample_uses_the_newest_run_s_best_model(shop: Path) -> None:
    done = charrnn("sample", "--length=200", "--seed=3", cwd=shop)
    best = Path("runs", "book", "best.safetensors")
    assert (done.returncode, done.stderr.decode().splitlines()) == (0, [f"model {best}"])
    text = done.stdout.decode("utf-8")
    assert len(text) == 201 and text.endswith("\n")
    assert text[:-1] == api.load(shop / best).sample(length=200, seed=3)[0]


@posix
def test_sample_into_head_ends_quietly(shop: Path) -> None:
    with started("sample", "--length=1000000", "--prompt=The ", cwd=shop) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(100).startswith(b"The ")
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read().count(b"\n") == 1


@posix
def test_sample_interrupted_is_130(shop: Path) -> None:
    with started("sample", "--length=1000000", cwd=shop) as process:
        assert process.stdout and process.stderr
        process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=20) == 130
        assert b"Traceback" not in process.stderr.read()


def test_several_samples_are_separated_by_a_line(in_shop: Path) -> None:
    one = here("sample", "--prompt", "The ", "--length", 30, "--seed", 5)
    three = here("sample", "--prompt", "The ", "--length", 30, "--seed", 5, "--num-samples", 3)
    parts = three.stdout.removesuffix("\n").split("\n---\n")
    assert len(parts) == 3 and len(set(parts)) == 3
    assert all(part.startswith("The ") and len(part) == 34 for part in parts)
    assert one.stdout == parts[0] + "\n"


def test_temperature_0_needs_no_luck(in_shop: Path) -> None:
    samples = {
        here("sample", "--prompt=The ", "--temperature=0", f"--seed={seed}").stdout
        for seed in range(3)
    }
    assert len(samples) == 1


def test_sample_in_another_precision(in_shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("sample", "--length=30", "--seed=1", "--precision")
    plain = here(*arguments, "float32")
    monkeypatch.setattr(jit, "HAS_BF16", False)
    told = here(*arguments, "bf16")
    assert told.stdout == plain.stdout
    assert NO_BF16 in told.stderr and NO_BF16 not in plain.stderr
    refused = here(*arguments, "fp8")
    assert refused.exit_code == 2 and "'fp8' is not one of 'float32', 'bf16'" in refused.stderr


def test_stop_leaves_the_string_out(in_shop: Path) -> None:
    whole = here("sample", "--prompt=a", "--seed=1", "--length=300").stdout
    cut = here("sample", "--prompt=a", "--seed=1", "--length=300", "--stop", "e", "--stop", "zq")
    assert cut.stdout == whole[: whole.index("e")] + "\n"
    assert here("sample", "--length=0", "--prompt", "x\n").stdout == "x\n\n"


def test_prompt_and_output_files(in_shop: Path, tmp_path: Path) -> None:
    prompt, output = tmp_path / "prompt.txt", tmp_path / "out.txt"
    prompt.write_text("The Time", encoding="utf-8")
    arguments = ["--length=20", "--seed=1", "--prompt-file"]
    result = here("sample", *arguments, prompt, "--output", output)
    assert (result.exit_code, result.stdout) == (0, "")
    text = output.read_text(encoding="utf-8")
    assert text.startswith("The Time") and len(text) == 29
    assert here("sample", *arguments, "-", input="The Time").stdout == text
    assert here("sample", "runs/book", *arguments, prompt).stdout == text


def test_unknown_prompt_characters(in_shop: Path) -> None:
    result = here("sample", "--prompt", "漢a漢", "--length=5", "--seed=1")
    assert (result.exit_code, result.stdout[:3], len(result.stdout)) == (0, "漢a漢", 9)
    assert "prompt characters unknown to the model skipped: '漢' (2 times)\n" in result.stderr
    known = here("sample", "--prompt", "a", "--length=5", "--seed=1").stdout
    assert result.stdout[3:] == known[1:]


# --- eval and info -------------------------------------------------------------------------------


def test_eval_reports_every_unit(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(BOOK[7000:9000].replace("q", "é"), encoding="utf-8")
    done = charrnn("eval", "runs/book", file, "--json", cwd=shop)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    expected = {"model", "nats_per_char", "bits_per_char", "bits_per_byte", "perplexity", "chars"}
    assert set(scores) == expected
    nats = scores["nats_per_char"]
    assert 1 < nats < 4
    assert scores["bits_per_char"] == pytest.approx(nats / math.log(2))
    assert scores["perplexity"] == pytest.approx(math.exp(nats))
    assert scores["model"] == str(Path("runs", "book", "best.safetensors"))
    assert b"unknown characters skipped: " in done.stderr


def test_eval_of_two_files_is_of_the_joined_one(in_shop: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "1.txt", tmp_path / "2.txt", tmp_path / "joined"]
    for part, text in zip(parts, (BOOK[:500], BOOK[500:900], BOOK[:900]), strict=True):
        part.write_text(text, encoding="utf-8")
    two = json.loads(here("eval", "runs/book", *parts[:2], "--json").stdout)
    one = json.loads(here("eval", "runs/book", parts[2], "--json").stdout)
    assert two == one and one["chars"] == 899
    exact = json.loads(here("eval", "runs/book", parts[2], "--json", "--exact").stdout)
    assert exact["nats_per_char"] == pytest.approx(one["nats_per_char"], abs=1e-4)


def test_eval_with_baselines(in_shop: Path) -> None:
    result = here("eval", "runs/book", "book.txt", "--baselines")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["model", "5-gram", "xz"]
    scores = json.loads(here("eval", "runs/book", "book.txt", "--baselines", "--json").stdout)
    assert {"ngram_bits_per_char", "xz_bits_per_char"} <= set(scores)


def test_json_is_strict_whatever_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perplexity may be too large for a number."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(BOOK[:3000], encoding="utf-8")
    options = ["--optimizer=sgd", "--lr=1e6", "--warmup-steps=0", "--max-steps=2"]
    assert here("train", "book.txt", *TINY, *options, "--quiet").exit_code == 0
    text = here("eval", "runs/book", "book.txt", "--json").stdout

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refuse)["nats_per_char"] > 710


def test_info(shop: Path) -> None:
    done = charrnn("info", "runs/book", "--json", cwd=shop)
    facts = json.loads(done.stdout)
    assert facts["corpus"]["chars"] == 6000
    assert facts["config"]["model"]["hidden_size"] == 16
    shown = charrnn("info", "runs/book", cwd=shop).stdout.decode()
    assert "torch.nn.LSTM" in shown and "rnn.weight_hh_l0" in shown


# --- refusals ------------------------------------------------------------------------------------

REFUSED = {
    "train none.txt": "'none.txt' does not exist: name text files",
    "train empty.txt": "the text is empty: nothing is in empty.txt",
    "train one.txt": "at least 2 are needed",
    "train latin.txt": "latin.txt is not utf-8: byte 0xe9 at offset 3",
    "train book.txt --encoding klingon": "--encoding is 'klingon'",
    "train nothing": "the folder nothing has no .txt file",
    "train fake.gz": "fake.gz is not a gzip file",
    "train book.txt --out-dir runs/book": "runs/book already holds a run: continue it with",
    "train book.txt --out-dir book.txt/x": "cannot create the run folder",
    "train book.txt --model lstm --activation relu": "--activation relu with --model lstm",
    "train book.txt --val-frac 0.6 --test-frac 0.6": "together they must be below 1",
    "train book.txt --val-file none.txt": "'none.txt' does not exist",
    "train book.txt --min-count 100000": "--min-count is 100000",
    "train book.txt --init-from none": "none does not exist: name a run folder",
    "train book.txt --init-from book.txt": "book.txt",
    "train other.txt --init-from runs/book --on-unknown error": "not in the vocabulary: '字'",
    "train other.txt --init-from runs/book --hidden-size 17": "--hidden-size is 17",
    "train other.txt --init-from runs/book --hidden-size 256": "--hidden-size is 256",
    "train other.txt --init-from runs/book --no-residual --num-layers 2": "--num-layers is 2",
    "train --resume none": "none holds no run",
    "train --resume runs/book other.txt": "the text is not the one",
    "train --resume runs/book --epochs 9 --seed 2": "--seed cannot change when a run is resumed",
    "train --resume runs/book --epochs 1": "beyond|asked for",
    "sample none": "none does not exist",
    "sample book.txt": "book.txt",
    "sample nothing": "nothing holds no checkpoint",
    "sample runs/book --prompt 漢 --on-unknown error": "not in the vocabulary: '漢' (once)",
    "sample runs/book --prompt 漢 --on-unknown map": "it has no unknown symbol to map to",
    "sample runs/book --prompt-file none.txt": "'none.txt' does not exist",
    "sample runs/book --prompt-file latin.txt": "byte); convert it to utf-8, perhaps from latin-1",
    "eval runs/book latin.txt": "try --encoding latin-1\n",
    "inspect runs/book --text latin.txt": "try --encoding latin-1\n",
    "gradients runs/book --text latin.txt": "try --encoding latin-1\n",
    "train packed": "(invalid start byte); it is gzip: name it .gz, or pipe it through gunzip",
    "sample runs/book --output nothing/a/b": "--output nothing/a/b: there is no such folder",
    "sample runs/book --temperature -1": "--temperature is -1.0",
    "eval runs/book none.txt": "'none.txt' does not exist",
    "eval runs/book one.txt": "at least 2 are needed",
    "eval runs/book chinese.txt": "at least 2 are needed",
    "eval runs/book other.txt --on-unknown error": "not in the vocabulary",
    "eval runs/book other.txt --on-unknown map": "it has no unknown symbol to map to",
    "eval none book.txt": "none does not exist",
    "info none": "none does not exist",
    "info nothing": "nothing holds no checkpoint",
}
NOTED = {"eval runs/book chinese.txt"}  # what has been skipped is said first


@pytest.fixture(scope="module")
def oddities(shop: Path) -> Iterator[Path]:
    for name, data in {
        "empty.txt": b"",
        "one.txt": b"a",
        "latin.txt": b"caf\xe9s",
        "fake.gz": b"no gzip",
        "packed": gzip.compress(b"a text"),
        "other.txt": "漢字 and more\n".encode() * 50,
        "chinese.txt": "漢字漢字".encode(),
    }.items():
        (shop / name).write_bytes(data)
    (shop / "nothing").mkdir()
    yield shop


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line_with_nothing_written(
    line: str, oddities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(oddities)
    before = files(oddities)
    result = here(*line.split())
    message = REFUSED[line]
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *notes, error = result.stderr.splitlines(keepends=True)
    assert error.startswith("Error: ") and len(notes) == (line in NOTED)
    assert any(part in error for part in message.split("|")), error
    assert files(oddities) == before
    assert not list((oddities / "nothing").iterdir())


@pytest.mark.parametrize("line", ["train none.txt", "sample none", "train --resume none"])
def test_refused_by_a_process(line: str, oddities: Path) -> None:
    before = files(oddities)
    done = charrnn(*line.split(), cwd=oddities)
    assert (done.returncode, done.stdout) == (2, b"")
    error = done.stderr.decode()
    assert error.startswith("Error: ") and error.count("\n") == 1 and REFUSED[line] in error
    assert files(oddities) == before


@pytest.mark.parametrize("options", [[], ["--threads", "2"], ["--quiet"]])
def test_resuming_a_run_that_has_ended_is_no_error(shop: Path, options: list[str]) -> None:
    """Whoever resumes in a loop until it is done may have killed it behind its last line."""
    before = files(shop)
    done = charrnn("train", "--resume", "runs/book", *options, cwd=shop)
    said = "runs/book has ended after 255 steps: to train on, give more --epochs\n"
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == ("" if "--quiet" in options else said)
    assert files(shop) == before


def test_no_run_at_all(tmp_path: Path) -> None:
    for line in ("sample", "train --resume latest"):
        done = charrnn(*line.split(), cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(b"Error: there are no runs below runs: make one with")
    assert not list(tmp_path.iterdir())
