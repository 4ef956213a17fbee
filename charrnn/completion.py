"""What a shell offers for arguments that are runs, files and folders, told by what they are called.

Commands, options and choices are completed by click itself.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
)
from click.types import StringParamType

KINDS = {
    "RUN": "run", "RUNS": "run", "MODEL": "run", "MODELS": "run", "CKPT": "run",
    "FILE": "file", "FILES": "file", "FOLDER": "dir", "DIR": "dir",
}  # fmt: skip
"""Word of a metavar, or else of a name -> what it is."""

ODD = r"[^\w@%+=:,./~-]"
"""What bash may take for more than a letter."""


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
    """Click's own, for which ``--model=l`` has to be one word: bash makes three of it.

    What it offers stands on the command line as it is, so that spaces have to be escaped.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        return [word for word in args if word != "="], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        quoted = re.search("[\"']", os.environ["COMP_WORDS"])
        # The script's ``read`` takes every second backslash away.
        value = item.value if quoted else re.sub(ODD, r"\\\\\g<0>", item.value)
        return f"{item.type},{value}"


@add_completion_class
class Zsh(ZshComplete):
    """Click's own, which puts ``lstm`` in the place of ``--model=l``."""

    source_template = ZshComplete.source_template.replace(
        "_path_files", "compset -P '--*='; _path_files"
    )

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        return _words(super().get_completions(args, incomplete), incomplete)


@add_completion_class
class Fish(FishComplete):
    """Click's own, which cuts help and names at a comma, and offers nothing for ``--model=l``."""

    source_template = FishComplete.source_template.replace('split ","', 'split -m 1 ","', 1)

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        items = super().get_completions(args, incomplete)
        if incomplete.startswith("-"):  # it does not look behind ``--html=`` by itself
            items = [path for item in items for path in _paths(item)]
        return _words(items, incomplete)


def _words(items: list[CompletionItem], incomplete: str) -> list[CompletionItem]:
    """Values for ``--model=l`` as the whole words that they make."""
    option, equals, _ = incomplete.partition("=")
    if not (equals and option.startswith("--")):
        return items
    return [
        CompletionItem(f"{option}={item.value}") if item.type == "plain" else item for item in items
    ]


def _paths(item: CompletionItem) -> list[CompletionItem]:
    """What there is of the kind and the beginning that an item names; itself if it is no path."""
    if item.type == "plain":
        return [item]
    paths = sorted(glob.glob(glob.escape(item.value) + "*"))
    folders = [f"{path}/" for path in paths if os.path.isdir(path)]
    files = [path for path in paths if item.type == "file" and os.path.isfile(path)]
    return [CompletionItem(path) for path in folders + files]


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
