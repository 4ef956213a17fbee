"""The benchmark: what it counts, what it prints, and PyTorch at the same work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from charrnn import bench, peer
from charrnn.cli import cli
from charrnn.config import Config, ModelConfig
from charrnn.peer import OPTIMIZERS, Task

SMALL: dict[str, Any] = dict(hidden_size=12, batch_size=3, seq_length=5, threads=1)
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")


def task(V: int = 7, **options: Any) -> Task:
    return Task(Config.from_options(SMALL | options), V)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.02)


def test_useful_operations_are_those_of_the_products() -> None:
    """A multiply-add for each weight, but for rows that are read by character."""
    for options in (
        dict(model="gru"),
        dict(num_layers=3),
        dict(embedding_size=4),
        dict(model="rnn"),
    ):
        ours = bench.Ours(task(**options))
        views = ours.model.params.views
        read = "embedding" if "embedding" in views else "layers.0.Wx"
        weights = sum(w.size for n, w in views.items() if w.ndim == 2 and n != read)
        assert bench.flop(ours.task.config.model, 7) == 2 * weights, options
        ours.close()
    assert bench.flop(ModelConfig(num_layers=2, hidden_size=128), 65) == 2 * 204_928


def test_a_report_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report = bench.measure(task(threads=2), torch=False)
    assert report["configuration"] == "lstm 1x12, B 3, T 5, V 7"
    assert report["parameters"] == 4 * 12 * (7 + 12 + 1) + 7 * 13
    assert report["problem"] == "PyTorch is left out" and report["compiled"] >= 0
    assert report["torch"] is report["ratio"] is report["loss_difference"] is None
    (row,) = report["charrnn"]
    assert row["threads"] == 2 and row["spread"] >= 0
    assert row["ms_per_step"] == pytest.approx(1e3 * 15 / row["chars_per_second"])
    useful = 3 * bench.flop(task().config.model, 7) * row["chars_per_second"]
    assert row["share"] == pytest.approx(useful / (1e9 * report["limit_gflops"]))
    assert not list(tmp_path.iterdir())


def test_threads_that_the_trainer_would_try_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.trainer.available", lambda: 2)
    report = bench.measure(task(threads="auto"), torch=False)
    assert [row["threads"] for row in report["charrnn"]] == [1, 2]


def test_slow_numbers_of_threads_get_one_turn() -> None:
    assert bench._worth({1: [], 2: []}) == [1, 2]
    assert bench._worth({1: [10.0], 2: [19.0], 4: [9.0], 8: [12.7, 3.0]}) == [2, 8]


REPORT: dict[str, Any] = {
    "configuration": "lstm 2x128, B 50, T 50, V 65", "parameters": 239297, "compiled": 29,
    "start_seconds": 17.94, "limit_gflops": 493.2,
    "charrnn": [
        dict(threads=1, chars_per_second=131e3, spread=None, ms_per_step=19.08, share=0.33),
        dict(threads=2, chars_per_second=249e3, spread=0.06, ms_per_step=10.04, share=0.628),
    ],
    "torch": [
        dict(threads=2, chars_per_second=800.0, spread=0.07, ms_per_step=3125.0, share=0.29)
    ],
    "ratio": 2.154, "loss_difference": 3.1e-8, "problem": None,
}  # fmt: skip


def test_the_table() -> None:
    assert bench.lines(REPORT) == [
        "lstm 2x128, B 50, T 50, V 65: 239,297 parameters",
        "           threads  chars/s  spread  ms a step  of the limit",
        "  charrnn        1  131,000               19.1           33%",
        "  charrnn        2  249,000      6%         10           63%",
        "  PyTorch        2      800      7%      3,125           29%",
        "  limit    493 GFLOP/s: multiply-adds on all threads",
        "  kernels  29 kernels compiled in 17.9 s, once per installation",
        "  ratio    2.15 times as fast as PyTorch, same loss within 3e-08",
    ]
    alone = REPORT | {"torch": None, "ratio": None, "problem": "there is none", "compiled": 0}
    assert bench.lines(alone)[4:] == [
        "  limit    493 GFLOP/s: multiply-adds on all threads",
        "  kernels  from the cache in 17.9 s",
        "  no ratio: there is none",
    ]


@pytest.mark.parametrize("module", ["charrnn.peer", "bench"])
def test_pytorch_s_processes_do_without_numba(module: str) -> None:
    """They are compared by their memory, too; ``bench`` is the script, whose children import it."""
    scripts = Path(__file__).parent.parent / "scripts"
    code = f"import sys, {module}; sys.exit('numba' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(scripts), str(scripts.parent)])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_what_pytorch_lacks() -> None:
    def lacking(**options: Any) -> str | None:
        return peer.lacking(task(**options).config)

    assert lacking() is lacking(model="rnn", activation="relu", num_layers=2) is None
    assert lacking(model="fastrnn") == "--model fastrnn"
    assert lacking(model="rnn", activation="identity") == "--activation identity"
    assert lacking(residual=True) == "--residual"
    report = bench.measure(task(model="fastrnn"), torch=True)
    assert report["problem"] == "PyTorch's modules have no --model fastrnn"


@needs_torch
@pytest.mark.parametrize(
    "options",
    [
        dict(model="lstm", num_layers=2, dropout=0.3),
        dict(model="gru", embedding_size=4, optimizer="adam"),
        dict(model="rnn", activation="relu", optimizer="sgd"),
        dict(model="rnn", num_layers=3, dtype="float64", grad_clip=0.0),
        *(dict(optimizer=name, dropout=0.0) for name in OPTIMIZERS),
    ],
    ids=str,
)
def test_pytorch_does_the_same_work(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loss, and its weights move; at its end the text begins again."""
    monkeypatch.setattr(peer, "CHARS", 0)
    ours = bench.Ours(task(**options))
    theirs = peer.Torch(ours.task, ours.weights())
    bound = bench.SAME[ours.task.config.model.dtype]
    assert theirs.window_loss() == pytest.approx(ours.window_loss(), rel=bound)
    theirs.use(1)
    before = theirs.window_loss()
    for _ in range(peer.WINDOWS):
        theirs.step()
    assert theirs.position == 0 and theirs.window_loss() != before
    ours.close()


@needs_torch
def test_a_report_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    report = bench.measure(task(), torch=True)
    ours, theirs = report["charrnn"][0], report["torch"][0]
    assert report["problem"] is None and report["loss_difference"] < 1e-5
    assert 0.2 < report["ratio"] / (ours["chars_per_second"] / theirs["chars_per_second"]) < 5


@needs_torch
def test_another_loss_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.Ours, "window_loss", lambda self: 1.0)
    report = bench.measure(task(), torch=True)
    assert re.match(r"PyTorch's loss is [\d.]+ where ours is 1$", report["problem"])
    assert report["torch"] is None and report["charrnn"]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[Task, bool]]]:
    asked: list[tuple[Task, bool]] = []

    def measure(task: Task, torch: bool) -> dict[str, Any]:
        asked.append((task, torch))
        return REPORT

    monkeypatch.setattr(bench, "measure", measure)
    return CliRunner().invoke(cli, ["bench", *arguments]), asked


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = run(
        "--model=gru", "--hidden_size=64", "--threads=3", "--vocab-size=90", "--no-torch",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert result.exit_code == 0
    assert [task.title for task, _ in asked] == [
        "gru 1x64, B 16, T 64, V 90", "lstm 2x128, B 50, T 50, V 65",
    ]  # fmt: skip
    assert [(task.config.train.threads, torch) for task, torch in asked] == [(3, False)] * 2
    head, *blocks = result.stdout.split("\n\n")
    assert "numba" in head and blocks == [
        "\n".join(bench.lines(REPORT)) + end for end in ("", "\n")
    ]
    result, asked = run("--json", monkeypatch=monkeypatch)
    assert json.loads(result.stdout)["reports"] == [REPORT, REPORT]
    assert asked[0][1] == (find_spec("torch") is not None)


def test_the_field_s_configuration_is_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in bench.FIELD.items()]
    assert len(run(*options, monkeypatch=monkeypatch)[1]) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--threads=many",
            "--threads is 'many': it must be auto or a whole number from 0 to 1,024",
        ),
        ("--threads=-1", "--threads is -1: it must be auto or a whole number"),
        ("--vocab-size=1", "from 2 to 65,536"),
        ("--learning-rate=1", "No such option"),
        ("text.txt", "unexpected extra argument"),
    ],
)
def test_nonsense(option: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = run(option, monkeypatch=monkeypatch)
    assert result.exit_code == 2 and message in result.stderr and not asked


def test_torch_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.commands.bench.find_spec", lambda name: None)
    result, _ = run("--torch", monkeypatch=monkeypatch)
    assert result.exit_code == 2 and "PyTorch is not installed" in result.stderr
    assert run(monkeypatch=monkeypatch)[1][0][1] is False
