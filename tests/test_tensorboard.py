"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import sys

import pytest
from click.testing import CliRunner

from charrnn import runs, tensorboard
from charrnn.cli import cli
from charrnn.config import Config
from charrnn.errors import SaveError

OPTIONS = dict(
    hidden_size=8, batch_size=4, seq_length=8, max_steps=12, log_every=2, eval_every=4,
    checkpoint_every=6, sample_every=5, log_gradients=4, test_frac=0.2,
)  # fmt: skip


def reader(folder):
    """What TensorBoard's server reads of a folder: `tensorboard` and its plugins show this."""
    module = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    found = module.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    found.Reload()
    return found


def pairs(found, tag):
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in found.Tensors(tag)]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the time traveller said, " * 40)
    return str(tmp_path / "text.txt")


def logged(folder, kind, *keys):
    """(step, value) of all that metrics.jsonl has, None left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = []
    for event in lines:
        if event["event"] == kind:
            value = event
            for key in keys:
                value = value[key]
            found += [] if value is None else [(event["step"], pytest.approx(value, rel=1e-6))]
    return found


def test_tensorboard_reads_what_the_metrics_say(text, tmp_path):
    pytest.importorskip("tensorboard")
    run = runs.start((text,), Config.from_options(OPTIONS), str(tmp_path / "run"))
    folder = run.folder
    kinds = [event["event"] for event in tensorboard.written(run.events(), folder)]
    assert {"start", "step", "train", "validation", "gradients", "sample", "end"} <= set(kinds)
    found = reader(folder)
    train = logged(folder, "train", "nats_per_char")
    assert [step for step, _ in train] == [2, 4, 6, 8, 10, 12]
    assert pairs(found, "nats_per_char/train") == train
    bits = [x / math.log(2) for _, x in pairs(found, "nats_per_char/train")]
    assert [x for _, x in pairs(found, "bits_per_char/train")] == pytest.approx(bits, rel=1e-6)
    wanted = {
        "train/grad_norm": ("train", "grad_norm"),
        "train/learning_rate": ("train", "learning_rate"),
        "chars_per_second/train": ("train", "time", "chars_per_second"),
        "nats_per_char/validation": ("validation", "val_nats_per_char"),
        "nats_per_char/test": ("end", "test_nats_per_char"),
        "gradient_norms/layers.0.Wh": ("gradients", "gradient_norms", "layers.0.Wh"),
        "update_norms/head.by": ("gradients", "update_norms", "head.by"),
        "reach_chars/first_below_1_percent": ("gradients", "reach", "chars"),
    }
    for tag, place in wanted.items():
        values = logged(folder, *place)
        assert (pairs(found, tag) if values else []) == values, tag
    samples = [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors("sample")]
    assert [step for step, _ in samples] == [5, 10]
    assert found.SummaryMetadata("sample").plugin_data.plugin_name == "text"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first = next(e for e in map(json.loads, lines) if e["event"] == "sample")
    assert samples[0][1].replace("\n    ", "\n").removeprefix("    ") == first["text"]


def test_a_resumed_run_drops_what_it_does_again(text, tmp_path):
    pytest.importorskip("tensorboard")
    run = runs.start((text,), Config.from_options(OPTIONS), str(tmp_path / "run"))
    folder, events = run.folder, []
    for event in tensorboard.written(run.events(), run.folder):
        events.append(event)
        if event["step"] == 11:
            break  # killed: the checkpoint is of step 6
    del run
    resumed = runs.resume(str(folder))
    list(tensorboard.written(resumed.events(), folder))
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    found = reader(folder)
    assert pairs(found, "nats_per_char/train") == logged(folder, "train", "nats_per_char")
    values = logged(folder, "validation", "val_nats_per_char")
    assert pairs(found, "nats_per_char/validation") == values
    assert [event.step for event in found.Tensors("sample")] == [5, 10]


def test_a_file_that_can_no_longer_be_written_is_given_up(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    taken = []

    def take(self, event):
        taken.append(event)
        if event["step"] == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard._Writer, "take", take)
    events = [{"event": "step", "step": i} for i in range(4)]
    got = list(tensorboard.written(events, tmp_path))
    assert [e["step"] for e in taken] == [0, 1]
    assert [e for e in got if e["event"] == "step"] == events
    assert [(e["event"], e["step"]) for e in got if e["event"] != "step"] == [("note", 1)]
    assert "No space left on device" in got[2]["text"]
    with pytest.raises(SaveError, match="could not write"):
        list(tensorboard.written(events, tmp_path / "no"))


def test_without_the_package_nothing_begins(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = tmp_path / "run"
    done = CliRunner().invoke(cli, ["train", text, "--tensorboard", "--out-dir", str(folder)])
    assert done.exit_code == 2
    assert done.stderr == (
        "Error: --tensorboard needs tensorboard: pip install 'charrnn[tensorboard]', "
        "or leave --tensorboard out\n"
    )
    assert not folder.exists()


def test_the_command_writes_one(text, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    line = ["train", text, "--tensorboard", "--quiet", "--out-dir", str(folder), "--max-steps=3"]
    done = CliRunner().invoke(cli, [*line, "--hidden-size=8", "--log-every=1"])
    assert done.exit_code == 0, done.output
    assert [step for step, _ in pairs(reader(folder), "train/epoch")] == [1, 2, 3]
