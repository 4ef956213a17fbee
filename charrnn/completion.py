"""What a shell offers for arguments that are runs, files and folders, told by what they are called.

Commands, options and choices are completed by click itself.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class
from click.types import StringParamType

KINDS = {
    "RUN": "run", "RUNS": "run", "MODEL": "run", "MODELS": "run", "CKPT": "run",
    "FILE": "file", "FILES": "file", "FOLDER": "dir", "DIR": "dir",
}  # fmt: skip
"""Word of a metavar, or else of a name -> what it is."""


class Place(StringParamType):
    """A text that names a ``run``, ``file`` or ``dir``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Runs below ``runs/``, the newest first, else what the shell offers by itself."""
        runs = run_folders(incomplete) if self.kind == "run" else []
        kind = "dir" if self.kind == "dir" else "file"
        return [CompletionItem(run) for run in runs] or [CompletionItem(incomplete, type=kind)]


@add_completion_class
class Bash(BashComplete):
    """Click's own, for which ``--model=l`` has to be one word: bash makes three of it."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        return [word for word in args if word != "="], incomplete


def run_folders(beginning: str) -> list[str]:
    """Runs below ``runs/`` whose path begins so, the one that wrote metrics last first."""
    found = {}
    for depth in ("*", "*/*"):
        for path in Path("runs").glob(f"{depth}/metrics.jsonl"):
            name = path.parent.as_posix()
            with contextlib.suppress(OSError):  # it is gone
                if name.startswith(beginning):
                    found[name] = path.stat().st_mtime_ns
    return sorted(found, key=lambda name: (-found[name], name))


def prepare(command: click.Command) -> None:
    """Let a shell know of all parameters of a command what they name."""
    for parameter in command.params:
        words = re.findall(r"[A-Z]+", (parameter.metavar or parameter.name or "").upper())
        kinds = [KINDS[word] for word in words if word in KINDS]
        if kinds and type(parameter.type) is StringParamType:
            parameter.type = Place(kinds[0])
