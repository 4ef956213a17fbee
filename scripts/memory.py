"""Peak memory of whole training processes, as the operating system counts it, and its formula.

Every row is trained for three steps by the command line, with validation and checkpoint, in a fresh
process with a warm kernel cache. `predicted` is the formula of docs/performance.md: the exit status
is 1 unless it agrees with every measurement within 10 %.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import ROOT, Row

TEXT = 200_000
"""Characters of the text, at the least."""


def train_command(row: Row, folder: Path, threads: int, precision: str = "float32") -> list[str]:
    """A command that trains this row on a random text, which it writes into ``folder``."""
    text = folder / "text.txt"
    symbols = [chr(0x4E00 + i) for i in range(row.V)]
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
    """Peak of a training process of this row, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = train_command(row, Path(folder), threads, precision)
        return peak_of([*command, "--max-steps", "3"])
