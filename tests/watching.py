"""A run as its files tell of it, for the tests of what watches runs."""

from __future__ import annotations

import json

from charrnn.chart import Style
from charrnn.view import View, frame
from charrnn.watched import Watched

PLAIN = Style(unicode=False, colour=False)
CONFIG = {"model": {"model": "gru", "num_layers": 2, "hidden_size": 8}, "train": {"grad_clip": 0.5}}
START = {
    "event": "start",
    "step": 0,
    "schema": 1,
    "total_steps": 400,
    "steps_per_epoch": 100,
    "parameters": 12345,
    "batch_size": 10,
    "seq_length": 20,
}


def train(step, nats=2.0, seconds=None, **more):
    return {
        "event": "train",
        "step": step,
        "epoch": step / 100,
        "chars": step * 200,
        "nats_per_char": nats,
        "grad_norm": 0.25,
        "clipped": 0.5,
        "learning_rate": 1e-3,
        "time": {"seconds": step / 10 if seconds is None else seconds, "chars_per_second": 1000.0},
    } | more


def validation(step, nats, best=None, best_step=None):
    return {
        "event": "validation",
        "step": step,
        "epoch": step / 100,
        "val_nats_per_char": nats,
        "best": best is None,
        "best_val_nats_per_char": nats if best is None else best,
        "best_step": best_step or step,
        "time": {"seconds": step / 10},
    }


SAMPLE = {"event": "sample", "step": 200, "text": "It was \x1b[2Jred\nand then"}
END = {
    "event": "end",
    "step": 400,
    "reason": "finished",
    "test_nats_per_char": None,
    "time": {"seconds": 40.0},
}
HISTORY = [
    START,
    *(train(i, 4 - i / 200) for i in range(10, 101, 10)),
    validation(100, 3.75),
    *(train(i, 4 - i / 200) for i in range(110, 201, 10)),
    validation(200, 3.5),
    SAMPLE,
]


def text_of(events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def run_folder(tmp_path):
    """The folder of a run with `CONFIG` and `HISTORY`."""
    folder = tmp_path / "runs" / "book"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": CONFIG}), encoding="utf-8")
    (folder / "metrics.jsonl").write_bytes(text_of(HISTORY))
    return folder


def watched(folder, name="book"):
    run = Watched(folder, name)
    for _ in run.news():
        pass
    return run


FIRST = View()


def screen(folder, view=FIRST, width=80, height=24, style=PLAIN):
    run = watched(folder)
    lines = frame([run], view, width, height, style, run.follower.written)
    assert [len(line) for line in lines] == [width] * height
    return [line.rstrip() for line in lines]


# --- a run that overfits -------------------------------------------------------------------------

OVERFIT = [2.5, 2.2, 2.0, 1.9, 1.8, 1.7, 1.9, 2.0, 2.1, 2.2]
SAID = (
    "overfitting since step 300: validation rose from 1.700 to 2.200 nats/char while training "
    "fell to 2.560; try more --dropout (now 0.4) or a smaller --hidden-size (now 8), or stop "
    "earlier (--patience 3)"
)


def overfitting(folder):
    """Gives the run a history of which `SAID` is said."""
    events = [START | {"steps_per_epoch": 50}]
    for i, nats in enumerate(OVERFIT, 1):
        events += [train(step, 4 - 0.003 * step) for step in range(50 * i - 40, 50 * i + 1, 10)]
        events.append(validation(50 * i, nats, 1.7, 300))
    (folder / "metrics.jsonl").write_bytes(text_of(events))
    return folder
