"""The configurations that the scripts measure, and what is said of the machine beside them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from charrnn.peer import Task

ROOT = Path(__file__).resolve().parent.parent
RATE, CLIP = 1e-3, 5.0

sys.path.insert(0, str(ROOT))


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
        from charrnn import cells

        return cells.get(self.model).gates

    @property
    def forward_flop(self) -> float:
        """Useful operations for each character, forward alone."""
        from charrnn.bench import flop

        return flop(self.task(1).config.model, self.V)

    @property
    def flop(self) -> float:
        """Useful operations of a training step for each character: three such products."""
        return 3 * self.forward_flop

    def task(self, threads: int, precision: str = "float32") -> Task:
        """This row as a task of the benchmark."""
        from charrnn.config import Config
        from charrnn.peer import Task

        return Task(Config.from_options(self.options(threads, precision)), self.V)

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


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables that child processes which start meanwhile are given."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def machine() -> str:
    """Name of the processor."""
    from charrnn.bench import machine

    return machine()


def versions() -> str:
    """Versions of all that takes part, and the commit; "+" if files have changed since."""
    from charrnn.bench import versions

    found = [f"{name} {version}" for name, version in versions().items() if name != "charrnn"]
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return ", ".join(found) + (f", commit {commit}" if commit else "")
