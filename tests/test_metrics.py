"""docs/metrics.md against what a run writes, and read as it says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from support import ROOT

from charrnn import runlog, runs
from charrnn.config import Config

DOCUMENT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with runs/timemachine, and the events that were logged there."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "text.txt").write_text("the time traveller said, " * 60)
    options = dict(
        hidden_size=8, batch_size=4, seq_length=8, max_steps=24, log_every=2, eval_every=6,
        sample_every=8, log_gradients=5, test_frac=0.2,
    )  # fmt: skip
    happened = begin(folder, "timemachine", options)
    diverging = dict(model="rnn", activation="identity", learning_rate=1e6, grad_clip=0.0)
    diverging |= dict(on_divergence="rollback", max_rollbacks=1)
    return folder, happened + begin(folder, "diverged", options | diverging)


def begin(folder, name, options):
    run = runs.start(
        (str(folder / "text.txt"),), Config.from_options(options), str(folder / "runs" / name)
    )
    return list(run.events())


def documented(kind):
    """The fields that the document has for an event; those of an object by its name and a dot."""
    section = re.search(rf"^## {kind}\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M)
    assert section, kind
    rows = [row.split("|")[1] for row in re.findall(r"^\| `.*", section[1], re.M)]
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


def fields(event):
    """The fields of an event but for those that all have."""
    found = set(event) - {"event", "step"}
    for name in {"time", "reach", "memorised"} & found:
        found |= {f"{name}.{key}" for key in event[name]}
    return found


def test_every_field_is_documented_and_every_documented_one_is_written(trained):
    folder, happened = trained
    events = list(runlog.read(folder / "runs" / "timemachine" / "metrics.jsonl"))
    diverged = runlog.read(folder / "runs" / "diverged" / "metrics.jsonl")
    events += [event for event in diverged if event["event"] == "rollback"]
    kinds = {event["event"] for event in events}
    assert kinds == set(re.findall(r"^## (\w+)$", DOCUMENT, re.M))
    for event in events:
        assert fields(event) == documented(event["event"])
        for name in fields(event):
            assert name.partition(".")[0] in runlog.__doc__, f"{name} is not in runlog's docstring"
    assert {event["event"] for event in happened} - kinds <= {"step", "checkpoint", "note"}
    assert f"schema {runlog.SCHEMA}" in DOCUMENT and events[0]["schema"] == runlog.SCHEMA


def test_pandas_reads_it(trained, monkeypatch):
    pandas = pytest.importorskip("pandas")
    folder, happened = trained
    monkeypatch.chdir(folder)
    logged = [event for event in happened if event["event"] == "train"]
    events = pandas.read_json("runs/timemachine/metrics.jsonl", lines=True)
    train = events[events.event == "train"]
    assert train.step.tolist() == [event["step"] for event in logged] == list(range(2, 25, 2))
    nats = [event["nats_per_char"] for event in logged]  # pandas' own parser is quick, not exact
    assert train.nats_per_char.tolist() == pytest.approx(nats, rel=1e-12)
    assert [time["seconds"] for time in train.time] == pytest.approx(
        [event["time"]["seconds"] for event in logged], rel=1e-12
    )
    assert events.schema.dropna().tolist() == [1]
    names = {}
    exec(re.search(r"```python\n(.*?)```", DOCUMENT, re.S)[1], names)
    assert names["validation"].index.tolist() == [6, 12, 18, 24]
    assert names["speed"] > 0


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_reads_it(trained):
    folder, happened = trained
    line = re.search(r"```sh\n(.*?)```", DOCUMENT, re.S)[1]
    shown = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, check=True).stdout
    rows = [row.split("\t") for row in shown.decode().splitlines()]
    validations = [event for event in happened if event["event"] == "validation"]
    assert [(int(a), float(b)) for a, b in rows] == [
        (event["step"], pytest.approx(event["val_nats_per_char"], rel=1e-12))
        for event in validations
    ]
