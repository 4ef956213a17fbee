"""The configurations that the scripts measure, and what is said of the machine beside them."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RATE, CLIP = 1e-3, 5.0


class Row(NamedTuple):
    """A configuration: cell, layers, hidden, batch, window, vocabulary, embedding."""

    model: str
    L: int
    H: int
    B: int
    T: int
    V: int = 65
    E: int = 0

    @property
    def title(self) -> str:
        more = f", V {self.V}, embedding {self.E}" if self.E else ""
        return f"{self.model} {self.L}x{self.H}, B {self.B}, T {self.T}{more}"

    @property
    def gates(self) -> int:
        return {"lstm": 4, "gru": 3}.get(self.model, 1)

    @property
    def forward_flop(self) -> float:
        """Useful operations for each character, forward alone: a multiply-add a weight."""
        G = self.gates
        return 2 * (G * self.H * self.H * (2 * self.L - 1) + self.H * self.V + G * self.H * self.E)

    @property
    def flop(self) -> float:
        """Useful operations of a training step for each character: three such products."""
        return 3 * self.forward_flop

    def options(self, threads: int, precision: str = "float32") -> dict[str, Any]:
        """Options of a training run with PyTorch's Adam and a constant rate."""
        options = dict(
            model=self.model, hidden_size=self.H, num_layers=self.L, embedding_size=self.E,
            batch_size=self.B, seq_length=self.T, dropout=0.0, threads=threads,
            optimizer="adam", learning_rate=RATE, lr_schedule="constant", warmup_steps=0,
            beta1=0.9, beta2=0.999, grad_clip=CLIP,
        )  # fmt: skip
        return options if precision == "float32" else options | {"precision": precision}


ROWS = [
    Row("rnn", 1, 100, 1, 25),
    Row("lstm", 1, 100, 1, 25),
    Row("rnn", 1, 256, 32, 35),
    Row("lstm", 2, 128, 50, 50),
    Row("lstm", 1, 256, 32, 64),
    Row("gru", 1, 256, 32, 64),
    Row("lstm", 1, 512, 32, 35),
    Row("lstm", 2, 512, 64, 100),
    Row("gru", 2, 512, 64, 100),
    Row("lstm", 1, 256, 32, 64, V=4500, E=256),
]


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def machine() -> str:
    """Name of the processor."""
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        for line in cpu.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> str:
    """Versions of all that takes part, and the commit; "+" if files have changed since."""
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {platform.python_version()}"]
    for name in ("numba", "numpy", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return ", ".join(found) + (f", commit {commit}" if commit else "")
