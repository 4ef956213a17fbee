"""Whole runs, for `tests/strict.py` to watch; and whether it would see anything.

`tests/test_portable.py` runs those that are marked ``strict`` with bounds checks and with fences.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from charrnn import api, runs
from charrnn.config import CELLS, Config

ROOT = Path(__file__).resolve().parent.parent
TEXT = "the time traveller (for so it will be convenient to speak of him)\n" * 8

# Sizes that no vector and no panel divides.
OPTIONS: dict[str, Any] = dict(
    hidden_size=21, batch_size=5, seq_length=7, max_steps=6, threads=2, val_frac=0.2, eval_every=3,
    log_gradients=2, sample_every=5,
)  # fmt: skip
DEEP: dict[str, Any] = dict(num_layers=3, embedding_size=21, residual=True, dropout=0.3)
WAYS: dict[str, dict[str, Any]] = {
    "truncated": DEEP | dict(optimizer="adamw", weight_decay=0.1, grad_clip_value=0.1),
    "one row": dict(batch_size=1, hidden_size=65, optimizer="sgd", learning_rate=0.5),
    "full": dict(bptt="full", recompute="always", num_layers=2, optimizer="rmsprop"),
    "sliding": DEEP | dict(bptt="sliding", k1=3, k2=8, seq_length=None, optimizer="adagrad"),
    "randomized": dict(bptt="randomized", truncation_prob="0.2", optimizer="momentum"),
    "bf16": DEEP | dict(precision="bf16"),
}


@pytest.mark.strict
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_run(cell: str, way: str, tmp_path: Path) -> None:
    """Training, validation, samples, gradient lines, scores: everything that calls kernels."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    options = {k: v for k, v in (OPTIONS | WAYS[way] | {"model": cell}).items() if v is not None}
    events = list(
        runs.start([str(text)], Config.from_options(options), str(tmp_path / "r")).events()
    )
    assert events[-1]["reason"] == "finished" and events[-1]["step"] == 6
    losses = [e["val_nats_per_char"] for e in events if e["event"] == "validation"]
    assert len(losses) == 2 and losses[1] < losses[0] < 1.5 * math.log(len(set(TEXT)))
    assert sum(e["event"] == "gradients" for e in events) == 3
    lm = api.load(tmp_path / "r")
    rules: list[dict[str, Any]] = [
        {}, dict(top_k=3, min_p=0.1), dict(top_p=0.5, repetition_penalty=1.3), dict(temperature=0)
    ]  # fmt: skip
    for rule in rules:
        samples = lm.sample("the ", length=23, num_samples=3, seed=1, **rule)
        assert [len(sample) for sample in samples] == [4 + 23] * 3
    assert lm.evaluate(TEXT, exact=True)["nats_per_char"] == pytest.approx(
        lm.evaluate(TEXT)["nats_per_char"], rel=0.1
    )


# -- does it see anything? ------------------------------------------------------------------------


def died(code: str, **environment: str) -> int:
    """The signal that ended a process with this code."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True,
        cwd=ROOT / "tests", timeout=120,
    )  # fmt: skip
    assert done.returncode < 0, done.stderr.decode()
    return -done.returncode


FENCED = """
import ctypes, sys
import numpy as np, strict
strict.Fence(at_end={}).install()
x = np.ones(7, np.float32)
assert ctypes.string_at(x.ctypes.data, x.nbytes) == 7 * np.float32(1).tobytes()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fences are for Linux")
@pytest.mark.parametrize("at_end", (True, False))
def test_fences(at_end: bool) -> None:
    first, other = (28, -1) if at_end else (-1, 28)
    fenced = FENCED.format(at_end)
    read = f"ctypes.string_at(x.ctypes.data + {first}, 1)"
    write = f"ctypes.memset(x.ctypes.data + {other}, 0, 1); del x"
    assert died(fenced + read) == signal.SIGSEGV
    assert died(fenced + write) == signal.SIGABRT


CHECKED = """
import numpy as np, strict
strict.die_of_exceptions()
from charrnn.kernels.jit import kernel
from charrnn.kernels.program import Table
@kernel
def read(out, x, i):
    out[0] = x[i]
out, x = np.zeros(1), np.ones(3)
Table([(read, (out, x, 2))]).walk()
assert out[0] == 1
Table([(read, (out, x, 3))]).walk()
"""


@pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="without the compiler it is an exception"
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has other ends of a process")
def test_a_failed_check_is_not_ignored(tmp_path: Path) -> None:
    settings = dict(NUMBA_BOUNDSCHECK="1", CHARRNN_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    assert died(CHECKED, **settings) in (signal.SIGILL, signal.SIGTRAP)
