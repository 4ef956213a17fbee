"""Peak memory of whole training processes, as the operating system counts it, and its formula.

Every row is trained for three steps by the command line, with validation and checkpoint, in a fresh
process with a warm kernel cache. `predicted` is the formula of docs/performance.md: the exit status
is 1 unless it agrees with every measurement within 10 %.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import ROOT, ROWS, Row, markdown

from charrnn.evaluate import streams_for, window_for

TEXT = 200_000
"""Characters of the text, at the least."""

BASE = 161.0
"""MB of Python, NumPy, Numba with LLVM, the loaded kernels and a text of `TEXT` characters."""

LOGITS = 1 << 21
"""Logits that exist at a time, about."""

VAL_SHARE = 0.1
"""Of the text, held out for validation."""


def train_command(row: Row, folder: Path, threads: int, precision: str = "float32") -> list[str]:
    """A command that trains this row on a random text, which it writes into ``folder``."""
    text = folder / "text.txt"
    symbols = ["\n", *(chr(0x4E00 + i) for i in range(1, row.V))]
    length = max(TEXT, 4 * row.B * row.T)
    text.write_text("".join(symbols + random.Random(1).choices(symbols, k=length)), "utf-8")
    command = [sys.executable, "-m", "charrnn", "train", str(text), "--out-dir", f"{folder}/run"]
    for name, value in row.options(threads, precision).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return [*command, "--quiet"]


def peak_of(command: list[str]) -> float:
    """MB that a process had resident at its peak. POSIX only."""
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def measured(row: Row, threads: int, precision: str = "float32") -> float:
    """Peak of a training process of this row, in MB, when the kernel cache has all it needs."""
    peak = 0.0
    for each in (row._replace(T=2), row):  # the first one compiles
        with tempfile.TemporaryDirectory() as folder:
            command = train_command(each, Path(folder), threads, precision)
            peak = peak_of([*command, "--max-steps", "3"])
    return peak


def predicted(row: Row, threads: int) -> float:
    """The formula of docs/performance.md for Adam, in MB."""
    from charrnn.sums import are_halved  # it loads Numba, which PyTorch's processes do without

    L, H, V, E, T, B = row.L, row.H, row.V, row.E, row.T, row.B
    G = row.gates
    table = V * E if E else V * G * H  # read row by row: never packed
    products = G * H * E + G * H * H * (2 * L - 1) + H * V
    kept = {"lstm": 4 + 2, "gru": 4 + 1}.get(row.model, 1 + 1)  # gates and states of a unit
    buffers = kept * L * H + E
    logits = min(B * T * V, max(LOGITS, B * V))
    train = T * B * (buffers + H + E) + logits
    streams = streams_for(int(VAL_SHARE * max(TEXT, 4 * B * T)))
    window = window_for(streams, kept * L * H + V)
    validation = window * streams * buffers + min(streams * window * V, LOGITS)
    saving = max(table, G * H * H, H * V)
    packed = products + H * V  # there and back in the same place, but for the output's
    weights = table + products
    copies = 5 if are_halved(weights, B) else 4  # themselves, their gradient's sums, two moments
    numbers = copies * weights + packed + train + validation + saving
    return BASE + 4 * numbers / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    threads = parser.parse_args().threads
    lines, worst = [], 0.0
    for row in ROWS:
        formula = predicted(row, threads)
        found = measured(row, threads)
        worst = max(worst, abs(formula / found - 1))
        lines.append([row.title, f"{found:.0f}", f"{formula:.0f}", f"{formula / found - 1:+.0%}"])
    print(markdown(["configuration", "measured, MB", "formula, MB", "difference"], lines))
    sys.exit(worst > 0.1)


if __name__ == "__main__":
    main()
