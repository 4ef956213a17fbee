"""Make tests/fixtures/advice: metrics of real runs that deserve advice, and of some that do not.

    python scripts/make_advice.py [NAME]...

Trains them on the texts in data/, some minutes in all, and keeps what `charrnn.advice` reads, with
four digits. Without names all are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from charrnn import runs  # noqa: E402
from charrnn.config import Config  # noqa: E402

FOLDER = ROOT / "tests" / "fixtures" / "advice"
TIME_MACHINE, SHAKESPEARE = "timemachine.txt", "tinyshakespeare.txt"
OFTEN = dict(eval_every=50, log_gradients=50, log_every=20)
USUAL = dict(**OFTEN, hidden_size=128)
SHORT = dict(**USUAL, max_steps=1000)
SMALL = 20_000
"""Characters of a text that is too small."""

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": (TIME_MACHINE, OFTEN),
    "shakespeare": (SHAKESPEARE, dict(hidden_size=128, eval_every=200, log_every=50)),
    "too-long": (TIME_MACHINE, dict(epochs=20, eval_every=100, log_every=20)),
    "overfit": ("small", dict(**SHORT, dropout=0.0)),
    "memorised": ("small", dict(hidden_size=256, max_steps=1500, dropout=0.0, val_frac=0.0)),
    "rnn-0.1": (SHAKESPEARE, dict(**SHORT, model="rnn", learning_rate=0.1)),
    "rnn-0.03": (SHAKESPEARE, dict(**SHORT, model="rnn", learning_rate=0.03)),
    "sgd-80": (SHAKESPEARE, dict(**SHORT, optimizer="sgd", learning_rate=80.0)),
    "lstm-0.1": (SHAKESPEARE, dict(**SHORT, learning_rate=0.1)),
    "lstm-0.00033": (SHAKESPEARE, dict(**SHORT, learning_rate=3.3e-4)),
    "sgd-clip-0.02": (SHAKESPEARE, dict(**SHORT, optimizer="sgd", grad_clip=0.02)),
    "adamw-clip-0.02": (SHAKESPEARE, dict(**SHORT, grad_clip=0.02)),
    "sigmoid": (SHAKESPEARE, dict(**SHORT, model="rnn", activation="sigmoid")),
    "tanh": (SHAKESPEARE, dict(**SHORT, model="rnn")),
    "tanh-256": (SHAKESPEARE, dict(**SHORT, model="rnn", seq_length=256)),
    "lstm-256": (SHAKESPEARE, dict(**SHORT, seq_length=256)),
    "constant": (SHAKESPEARE, dict(**SHORT, lr_schedule="constant")),
    "no-dropout": (TIME_MACHINE, dict(**USUAL, dropout=0.0)),
    "300-steps": (SHAKESPEARE, dict(**USUAL, max_steps=300)),
}

KEPT = {
    "start": ("total_steps", "steps_per_epoch", "vocab_size"),
    "train": ("nats_per_char", "grad_norm", "clipped", "learning_rate"),
    "validation": ("val_nats_per_char",),
    "gradients": (),
    "end": ("reason", "memorised"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    names = parser.parse_args().names or list(RUNS)
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        text, options = RUNS[name]
        with tempfile.TemporaryDirectory() as folder:
            events = trained(text, options, Path(folder))
        first = {"event": "config", "step": 0, "options": options}
        lines = [json.dumps(rounded(event)) for event in [first, *events]]
        (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} lines")


def trained(text: str, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The events of a run that advice needs."""
    path = ROOT / "data" / text
    if text == "small":
        path = folder / "small.txt"
        begin = (ROOT / "data" / TIME_MACHINE).read_text(encoding="utf-8")[:SMALL]
        path.write_text(begin, encoding="utf-8")
    run = runs.start([str(path)], Config.from_options(options), str(folder / "run"))
    return [kept(event) for event in run.events() if event["event"] in KEPT]


def kept(event: dict[str, Any]) -> dict[str, Any]:
    """What `charrnn.advice` reads of an event."""
    kind = event["event"]
    names = ("event", "step", *KEPT[kind])
    few = {name: event[name] for name in names}
    if kind == "gradients":
        for norms in ("update_norms", "weight_norms"):
            few[norms] = {k: v for k, v in event[norms].items() if k.endswith(".Wh")}
        reach = event["reach"]
        at = [i for i, lag in enumerate(reach["lags"]) if lag in (16, 32)]
        shares = reach["shares"] and [reach["shares"][i] for i in at]
        few["reach"] = {"window": reach["window"], "lags": [16, 32][: len(at)], "shares": shares}
    return few


def rounded(value: Any) -> Any:
    """``value`` with four digits of every number."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
