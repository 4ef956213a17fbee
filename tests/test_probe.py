"""What --log-gradients says of a run, and that it leaves the run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import naive
import networks
import numpy as np
import pytest
from networks import KINDS

from charrnn import probe, runlog, runs
from charrnn.config import Config
from charrnn.optim import Clipping
from charrnn.trainer import Run

SMALL: dict[str, Any] = dict(
    hidden_size=12, num_layers=2, batch_size=3, seq_length=20, max_steps=6, threads=1, dropout=0.2,
    log_every=1, eval_every=0, checkpoint_every=0,
)  # fmt: skip
TEXT = (Path(__file__).parent.parent / "data" / "timemachine.txt").read_text("utf-8")[:2000]


def begin(folder: Path, **options: Any) -> Run:
    text = folder.parent / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return runs.start([str(text)], Config.from_options(SMALL | options), str(folder))


def gradient_events(folder: Path) -> list[dict[str, Any]]:
    return [e for e in runlog.read(folder / "metrics.jsonl") if e["event"] == "gradients"]


def train_losses(folder: Path) -> list[float]:
    events = runlog.read(folder / "metrics.jsonl")
    return [e["nats_per_char"] for e in events if e["event"] == "train"]


PLANS = {
    "truncated": dict(),
    "full": dict(bptt="full", seq_length=40),
    "recomputed": dict(bptt="full", recompute="always"),
    "sliding": dict(bptt="sliding", k1=5, k2=30),
    "randomized": dict(bptt="randomized"),
}


@pytest.mark.parametrize("plan", PLANS)
def test_looking_changes_nothing(plan: str, tmp_path: Path) -> None:
    runs_ = {n: begin(tmp_path / str(n), log_gradients=n, **PLANS[plan]) for n in (0, 2)}
    for run in runs_.values():
        assert list(run.events())[-1]["reason"] == "finished"
    assert np.array_equal(runs_[0].model.params.flat, runs_[2].model.params.flat)
    losses = [train_losses(tmp_path / str(n)) for n in runs_]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
    assert gradient_events(tmp_path / "0") == []
    assert [e["step"] for e in gradient_events(tmp_path / "2")] == [2, 4, 6]


def test_norms_of_gradient_update_and_weights(tmp_path: Path) -> None:
    options = dict(optimizer="sgd", weight_decay=0.0, lr_schedule="constant", warmup_steps=0)
    run = begin(tmp_path / "run", log_gradients=1, learning_rate=0.5, grad_clip=0.1, **options)
    scales: list[float] = []
    step = run.learner.optimizer.step

    def spy(rate: float, number: int, clipping: Clipping, parts: int) -> None:
        scales.append(clipping.scale)
        step(rate, number, clipping, parts)

    run.learner.optimizer.step = spy  # type: ignore[method-assign]
    for event in run.events():
        if event["event"] != "gradients":
            continue
        for name, view in run.model.params.views.items():
            gradient = np.linalg.norm(run.model.grads.views[name].astype(float))
            weight = np.linalg.norm(view.astype(float))
            assert event["gradient_norms"][name] == pytest.approx(gradient, rel=1e-6)
            assert event["weight_norms"][name] == pytest.approx(weight, rel=1e-6)
            update = 0.5 * scales[-1] * gradient
            assert event["update_norms"][name] == pytest.approx(update, rel=1e-3)
        assert event["clip_scale"] == pytest.approx(scales[-1])
        assert event["clipped"] == float(scales[-1] < 1)
        assert event["clipped_elements"] == 0
    assert len(scales) == 6 and min(scales) < 1


def test_clipping_is_summed_up_between_lines(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", log_gradients=3, grad_clip=0.9, grad_clip_value=1e-3)
    events = list(run.events())
    lines = [e for e in events if e["event"] == "gradients"]
    clipped = [e["clipped"] for e in events if e["event"] == "step"]
    for line, steps in zip(lines, (clipped[:3], clipped[3:]), strict=True):
        assert line["clipped"] == sum(steps) / 3
        assert (line["clip_scale"] < 1) == (sum(steps) > 0)
        assert 0 < line["clipped_elements"] < 1
    beyond = np.abs(run.model.grads.flat) > 1e-3
    assert lines[-1]["clipped_elements"] == beyond.sum() / run.model.params.count


@pytest.mark.parametrize(("cell", "activation"), KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("B", [3, 4])
def test_reach_is_that_of_the_components(cell: str, activation: str, layers: int, B: int) -> None:
    """The first layer's biases stand where its gates do, so their components have its norms."""
    T = 9
    model = networks.make(cell, activation, num_layers=layers)
    data = networks.window(model, T, B)
    run = model.train_pass(T, B)
    run.load(data.ids, data.targets)
    run.run_gradients()  # what it leaves must not matter
    run.set_state(data.state)
    found = probe.Reach(run).measure(data.ids, data.targets)
    by_row = np.empty((T, B))
    for b in range(B):
        states = [{n: s[i, b : b + 1] for n, s in data.state.items()} for i in range(layers)]
        terms = naive.components(
            model.params.views, data.ids[:, b : b + 1], data.targets[:, b : b + 1], states,
            cell=cell, activation=activation,
        )[-1]  # fmt: skip
        names = [n for n in ("layers.0.b", "layers.0.bhn") if n in terms[0]]
        by_row[:, b] = [sum((term[n] ** 2).sum() for n in names) ** 0.5 for term in terms]
    shares = np.median(by_row, axis=1)[::-1] / np.median(by_row[-1])
    assert (found["window"], found["lags"]) == (T, [1, 2, 4, 8])
    assert found["shares"] == pytest.approx(shares[[1, 2, 4, 8]], rel=1e-9)
    below = np.flatnonzero(shares < probe.FAR)
    assert found["chars"] == (below[0] if len(below) else None)


def test_reach_without_a_gradient() -> None:
    """A dead network: no unit of the relu is above zero."""
    model = networks.make("rnn", "relu")
    model.params.views["layers.0.b"][:] = -100
    model.changed()
    data = networks.window(model)
    run = model.train_pass(networks.T, networks.B)
    found = probe.Reach(run).measure(data.ids, data.targets)
    assert found == {"chars": None, "window": networks.T, "lags": [1, 2], "shares": None}
