"""Pictures of loss curves: what is drawn, what it is called, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from charrnn import curves, runlog, watched
from charrnn.cli import cli
from charrnn.commands.plot import AXES
from charrnn.config import Config
from charrnn.view import LN2, View
from charrnn.watched import Watched


def make(folder, steps=40, validations=True, **options):
    folder.mkdir(parents=True)
    config = Config.from_options(options).to_json()
    (folder / "config.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    events = [
        {"event": "start", "step": 0, "schema": 1, "total_steps": 400, "steps_per_epoch": 100,
         "parameters": 12345, "batch_size": 10, "seq_length": 20},
    ]  # fmt: skip
    for step in range(10, steps + 1, 10):
        clock = {"seconds": step * 60, "chars_per_second": 9.0}
        event = {"step": step, "epoch": 1.0, "chars": step * 200, "nats_per_char": 3 - step / 100}
        event |= {"grad_norm": 0.5, "clipped": 0.0, "learning_rate": 1e-3, "time": clock}
        events.append({"event": "train"} | event)
        if validations and step % 20 == 0:
            losses = dict.fromkeys(("val_nats_per_char", "best_val_nats_per_char"), 3.5 - step / 50)
            events.append(
                {"event": "validation", "step": step, "best_step": step, "time": clock} | losses
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


@pytest.mark.parametrize(
    "options, want",
    [
        ([{"model": "gru"}, {"hidden_size": 1024}],
         ["gru, hidden size 256", "lstm, hidden size 1,024"]),
        ([{"beta1": 0.02}, {"beta1": 0.3}], ["beta1 0.02", "beta1 0.3"]),
        ([{"residual": True}, {}], ["residual", "no residual"]),
        ([{"threads": 1, "log_every": 3}, {}], ["0", "1"]),
        ([{"seed": 2}, {"seed": 2}, {"seed": 3}], ["0: seed 2", "1: seed 2", "seed 3"]),
        ([{"max_steps": 5}, {}], ["max steps 5", "epochs 10"]),
        ([{"epochs": 20}, {}], ["epochs 20", "epochs 10"]),
        ([{"hidden_size": 1, "seed": 2, "dropout": 0.1, "beta1": 0.1, "num_layers": 3,
           "beta2": 0.5}, {}], ["0", "1"]),
    ],
)  # fmt: skip
def test_labels_tell_what_differs(tmp_path, monkeypatch, options, want):
    monkeypatch.chdir(tmp_path)
    folders = [make(tmp_path / str(i), **o).relative_to(tmp_path) for i, o in enumerate(options)]
    assert curves.labels(folders) == want


def test_a_resumed_run_is_told_by_what_it_was_resumed_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the time traveller " * 60)
    small = ["--hidden-size=4", "--batch-size=4", "--seq-length=8", "-q"]
    for line in (
        ["text.txt", "--out-dir=a", "--epochs=1", *small],
        ["text.txt", "--out-dir=b", "--epochs=2", *small],
        ["--resume=a", "--epochs=3", "-q"],
    ):
        assert CliRunner().invoke(cli, ["train", *line]).exit_code == 0
    assert curves.labels([Path("a"), Path("b")]) == ["epochs 3", "epochs 2"]


def test_a_config_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make(tmp_path / name).relative_to(tmp_path) for name in "ab"]
    (folders[0] / "config.json").unlink()
    assert curves.labels(folders) == ["a", "b"]


def drawn(folders, view):
    """The axes with the curves of folders."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    runs = [Watched(folder, folder.name) for folder in folders]
    for run in runs:
        list(run.news())
    figure = Figure()
    curves.draw(figure, runs, view)
    figure.canvas.draw()  # a bad label is found when it is drawn
    return figure.axes[0]


def test_one_run(tmp_path):
    axes = drawn([make(tmp_path / "$x_y^{")], View())
    training, validation = axes.lines
    assert list(training.get_xdata()) == [10, 20, 30, 40]
    assert list(training.get_ydata()) == pytest.approx([2.9, 2.8, 2.7, 2.6])
    assert list(validation.get_xdata()) == [20, 40]
    assert list(validation.get_ydata()) == pytest.approx([3.1, 2.7])
    assert (training.get_label(), validation.get_label()) == ("training", "validation")
    assert training.get_alpha() < 0.5 and training.get_linewidth() < validation.get_linewidth()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "loss (nats per character)")
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize(
    "x, label, first", [("characters", "characters", 2000), ("time", "time (minutes)", 10)]
)
def test_axes(tmp_path, x, label, first):
    axes = drawn([make(tmp_path / "a")], View(x, log=True, bits=True))
    assert axes.get_xlabel() == label and axes.lines[0].get_xdata()[0] == first
    assert axes.lines[0].get_ydata()[0] == pytest.approx(2.9 / LN2)
    assert axes.get_ylabel() == "loss (bits per character)" and axes.get_yscale() == "log"
    assert "4" in [text.get_text() for text in axes.get_yticklabels(which="both")]


def test_large_numbers_are_written_out(tmp_path):
    axes = drawn([make(tmp_path / "a", steps=20_000)], View("characters"))
    assert "4,000,000" in [text.get_text() for text in axes.get_xticklabels()]


@pytest.mark.parametrize("log", [False, True])
def test_a_run_that_diverged_does_not_flatten_the_others(tmp_path, log):
    wild = make(tmp_path / "wild", steps=10)
    metrics = wild / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"nats_per_char": 2.9', '"nats_per_char": 3e17'))
    axes = drawn([make(tmp_path / "tame"), wild], View(log=log))
    low, high = axes.get_ylim()
    assert 0 < low < 2.6 if log else -2 < low < 2.6
    assert high > 3e17 if log else 20 < high < 40


def test_several_runs(tmp_path):
    axes = drawn([make(tmp_path / "a"), make(tmp_path / "b", validations=False)], View())
    assert [line.get_color() for line in axes.lines] == ["C0", "C0", "C1", "C1"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["a", "b (training)"]


def invoke(*arguments):
    return CliRunner().invoke(cli, ["plot", *map(str, arguments)])


@pytest.mark.parametrize("name, head", [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_the_file(tmp_path, name, head):
    pytest.importorskip("matplotlib")
    folders = [make(tmp_path / "a"), make(tmp_path / "b", seed=7)]
    contents = []
    for _ in range(2):
        result = invoke(*folders, "-o", tmp_path / name)
        assert (result.exit_code, result.output) == (0, "")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0].startswith(head) and contents[0] == contents[1]


def test_wrong_input(tmp_path, monkeypatch):
    folder, empty = make(tmp_path / "a"), make(tmp_path / "empty", steps=0)

    def refused(*arguments):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").rstrip()

    assert refused(folder, "-o", "a.gif") == "--output is 'a.gif': it must end in .png or .svg"
    assert "there is no such folder" in refused(folder, "-o", tmp_path / "no" / "a.png")
    assert "Missing option '--output' / '-o'" in refused(folder)
    picture = tmp_path / "a.svg"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert refused(folder, "-o", picture) == (
        "--output needs matplotlib: pip install 'charrnn[plot]'"
    )
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert "does not exist" in refused(tmp_path / "none", "-o", picture)
    with runlog.lock(empty):
        assert "has no losses yet: wait for" in refused(folder, empty, "-o", picture)
    assert refused(folder, empty, "-o", picture) == (
        f"{empty} has no losses yet: it ended before its first line, go on with charrnn train "
        f"--resume {empty}"
    )
    assert not picture.exists()


def test_the_axes_that_can_be_chosen():
    assert watched.AXES == AXES
