"""Compares the ways to cut backpropagation through time on The Time Machine.

Two tables in Markdown. How the runs learn: the same network and number of characters with every
--bptt, validation loss on the way and speed. And what their gradients are: at fixed weights, the
mean over the steps of an epoch against the gradient of full BPTT (bias), and how far a single
step's is from that mean (spread). Takes some 15 minutes on 2 cores; --quick is a look.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import ROOT, machine, markdown, versions

from charrnn import runlog, runs
from charrnn.config import Config
from charrnn.trainer import Run

TEXT = ROOT / "data" / "timemachine.txt"
EPOCHS_OF_DRAWS = 10
"""Over which the mean of randomized truncation's gradients is taken."""


class Way(NamedTuple):
    name: str
    options: dict[str, Any]


WAYS = [
    Way("truncated, 64", dict(seq_length=64)),
    Way("truncated, 16", dict(seq_length=16)),
    Way("truncated, 4", dict(seq_length=4)),
    Way("sliding, k1 16, k2 64", dict(bptt="sliding", k1=16, k2=64)),
    Way("sliding, k1 1, k2 10", dict(bptt="sliding", k1=1, k2=10)),
    Way("randomized, mean 64", dict(bptt="randomized")),
    Way("randomized, mean 16", dict(bptt="randomized", seq_length=16)),
    Way("randomized, mean 4", dict(bptt="randomized", seq_length=4)),
    Way("full, pieces of 64", dict(bptt="full", seq_length=64)),
    Way("full, pieces of 1,000", dict(bptt="full", seq_length=1000)),
    Way("full, the whole stream", dict(bptt="full")),
]
REFERENCE = WAYS[-1]
SHARES = (0.1, 0.3, 1.0)
"""Of a run's characters, after which the validation loss is shown."""


def start(way: Way, folder: Path, seed: int, args: argparse.Namespace, **more: Any) -> Run:
    options = dict(
        model=args.model, hidden_size=args.hidden_size, batch_size=args.batch_size, seed=seed,
        epochs=args.epochs, threads=args.threads, checkpoint_every=0, eval_every=0,
    )  # fmt: skip
    config = Config.from_options(options | way.options | more)
    return runs.start([str(TEXT)], config, str(folder))


# -- learning -----------------------------------------------------------------------------------


def learn(way: Way, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: the validation loss after shares of its characters, and its speed."""
    with tempfile.TemporaryDirectory() as folder:
        steps = start(way, Path(folder) / "plan", seed, args).total_steps
        every = max(1, steps // 10)
        run = start(way, Path(folder) / "run", seed, args, eval_every=every)
        events = list(run.events())
    losses = [e for e in events if e["event"] == "validation"]
    trained = {e["step"]: e for e in events if e["event"] == "step"}
    at = [min(losses, key=lambda e: abs(e["step"] - share * steps)) for share in SHARES]
    speed = trained[steps]["time"]["chars_per_second"]
    chars = run.plan.chars(steps)
    return {
        "val": [e["val_nats_per_char"] for e in at],
        "updates": steps,
        "chars": chars,
        "seconds": chars / speed,
        "curve": [[trained[e["step"]]["chars"], e["val_nats_per_char"]] for e in losses],
    }


def learning(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for way in args.ways:
        results = [learn(way, seed, args) for seed in range(1, args.seeds + 1)]
        one = {"name": way.name, "updates": results[0]["updates"], "chars": results[0]["chars"]}
        one["val"] = [statistics.mean(r["val"][i] for r in results) for i in range(len(SHARES))]
        one["val_range"] = [f(r["val"][-1] for r in results) for f in (min, max)]
        one["seconds"] = statistics.median(r["seconds"] for r in results)
        one["curve"] = results[0]["curve"]  # of the first seed, over characters
        progress(one)
        found.append(one)
    return found


# -- gradients ----------------------------------------------------------------------------------


def epoch_gradient(run: Run, epoch: int) -> tuple[np.ndarray, float]:
    """The mean over an epoch's steps of their gradients, and their spread around it."""
    total = np.zeros(run.model.grads.flat.size)
    square = weights = 0.0
    for step in range(run.plan.steps(epoch), run.plan.steps(epoch + 1)):
        piece = run.plan.piece(step)
        run.learner.gradients(piece, run.learner.window_of(piece), step)
        # A step's gradient is of the mean loss; what adds up to the text's is that times its size.
        weight = piece.scored / run.plan.batch_size
        gradient = run.model.grads.flat.astype(np.float64) * (weight / piece.weight)
        total += gradient
        square += float(gradient @ gradient) / weight
        weights += weight
    mean = total / weights
    return mean, max(0.0, square / weights - float(mean @ mean)) ** 0.5


def gradients(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Bias and spread at the weights that a short truncated run has reached."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trained = start(WAYS[0], Path(folder) / "trained", 1, args, epochs=args.gradient_epochs)
        for _ in trained.events():
            pass
        weights = trained.model.params.flat.copy()

        def measured(number: int, way: Way) -> tuple[np.ndarray, float, float]:
            """The mean gradient, its standard error, and a step's spread."""
            run = start(way, Path(folder) / str(number), 1, args, dropout=0.0)
            run.model.params.flat[:] = weights
            run.model.changed()
            epochs = EPOCHS_OF_DRAWS if way.options.get("bptt") == "randomized" else 1
            means, spreads = zip(*(epoch_gradient(run, i) for i in range(epochs)), strict=True)
            mean = np.mean(means, axis=0)
            variance = sum(float((m - mean) @ (m - mean)) for m in means) / max(1, epochs - 1)
            return mean, (variance / epochs) ** 0.5, statistics.mean(spreads)

        full, _, _ = measured(len(args.ways), REFERENCE)
        size = float(np.linalg.norm(full))
        for number, way in enumerate(args.ways):
            mean, error, spread = measured(number, way)
            bias = float(np.linalg.norm(mean - full)) / size
            cosine = float(mean @ full) / size / float(np.linalg.norm(mean))
            one = {"name": way.name, "bias": bias, "error": error / size, "cosine": cosine}
            one["spread"] = spread / size
            progress(one)
            found.append(one)
    return found


# -- output -------------------------------------------------------------------------------------


def progress(one: dict[str, Any]) -> None:
    print(json.dumps(one), file=sys.stderr, flush=True)


def learning_table(found: Sequence[dict[str, Any]]) -> str:
    head = ["--bptt", "updates", *(f"{share:.0%} of the characters" for share in SHARES)]
    lines = []
    for one in found:
        low, high = one["val_range"]
        losses = [f"{val:.3f}" for val in one["val"]]
        losses[-1] += f" ({low:.3f} to {high:.3f})"
        rate = one["chars"] / one["seconds"]
        lines.append([one["name"], f"{one['updates']:,}", *losses, f"{one['seconds']:.1f}",
                      f"{rate:,.0f}"])  # fmt: skip
    return markdown([*head, "seconds", "chars/s"], lines)


def gradient_table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        [one["name"], f"{one['bias']:.2g}", f"{one['error']:.2g}",
         f"{one['cosine']:.4f}", f"{one['spread']:.2g}"]
        for one in found
    ]  # fmt: skip
    head = ["--bptt", "bias", "its standard error", "cosine to full", "spread of a step"]
    return markdown(head, lines)


def draw(found: Sequence[dict[str, Any]], path: str) -> None:
    """Validation loss of the first seed against characters and against time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from lesson_base import COLOURS, STYLE

    colours = {"truncated": "lstm", "sliding": "gru", "randomized": "rnn", "full": "grey"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
        seen: dict[str, int] = {}
        for one in found:
            kind = one["name"].partition(",")[0]
            line = ("-", "--", ":")[seen.setdefault(kind, 0)]
            seen[kind] += 1
            chars, nats = np.array(one["curve"]).T
            for axis, x in zip(
                axes, (chars / 1e6, chars * one["seconds"] / one["chars"]), strict=True
            ):
                axis.plot(x, nats, line, color=COLOURS[colours[kind]], label=one["name"])
        axes[0].set(xlabel="characters, millions", ylabel="validation loss, nats per character")
        axes[1].set(xlabel="seconds of training", xscale="log")
        axes[0].set_ylim(top=2.6)
        axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lstm")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--gradient-epochs", type=int, default=2, help="before gradients are taken")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--only", help="ways whose names begin so")
    parser.add_argument("--quick", action="store_true", help="small network, one seed, two epochs")
    parser.add_argument("--json", help="write the numbers to this file, too")
    parser.add_argument("--plot", help="draw the curves into this file (the extra `plot`)")
    args = parser.parse_args()
    if args.quick:
        args.hidden_size, args.seeds, args.epochs = 32, 1, 2
    args.ways = [way for way in WAYS if way.name.startswith(args.only or "")]
    table = {"gradients": gradients(args), "learning": learning(args)}
    print(learning_table(table["learning"]))
    print(gradient_table(table["gradients"]))
    print(
        f"{args.model} 1x{args.hidden_size}, B {args.batch_size}, {args.epochs} epochs, "
        f"{args.seeds} seeds (means; the range of the last); gradients after "
        f"{args.gradient_epochs} epochs; {machine()}; {versions()}."
    )
    if args.plot:
        draw(table["learning"], args.plot)
    if args.json:
        args_used = {k: v for k, v in vars(args).items() if k != "ways"}
        Path(args.json).write_text(runlog.dump_json(table | {"args": args_used}).decode())


if __name__ == "__main__":
    main()
