"""What the sections of the lesson are made with: models, commands, tables, pictures."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import ROOT

import charrnn
from charrnn.config import ModelConfig, flag
from charrnn.errors import Diverged
from charrnn.model import Model
from charrnn.unrolled import Probe
from charrnn.vocab import Vocabulary

TEXT = ROOT / "data" / "timemachine.txt"
HELD_OUT = 17_898
"""Characters at the end of the text that no model is trained on."""

COLOURS = {
    "rnn": "#D55E00", "relu": "#E69F00", "gru": "#009E73", "lstm": "#0072B2",
    "fastrnn": "#CC79A7", "sky": "#56B4E9", "grey": "#777777", "black": "#222222",
}  # fmt: skip
"""Okabe and Ito's, which the colour-blind can tell apart."""

STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6,
    "lines.linewidth": 1.8, "legend.frameon": False, "figure.facecolor": "white",
    "figure.constrained_layout.use": True, "svg.hashsalt": "charrnn",
}  # fmt: skip


class Section(NamedTuple):
    """A part of the document."""

    make: Callable[[Lesson], str]
    """The Markdown that stands between its markers."""
    quick: bool
    """Whether it does without training."""


SECTIONS: dict[str, Section] = {}
"""By name, in the order of their definition."""


def section(make: Callable[[Lesson], str] | None = None, *, quick: bool = False) -> Any:
    """Decorator: the function makes the section of its name."""
    if make is None:
        return lambda make: section(make, quick=True)
    SECTIONS[make.__name__.replace("_", "-")] = Section(make, quick)
    return make


class Lesson:
    """Where models are kept, and whether pictures are drawn.

    Parameters
    ----------
    cache : folder for runs; a run that is there already is not repeated
    pictures : whether to draw
    """

    def __init__(self, cache: Path, pictures: bool) -> None:
        self.cache, self.pictures = cache.absolute(), pictures

    def train(self, text: Path = TEXT, **options: Any) -> charrnn.LanguageModel | str:
        """The last model of a run with these options; if it diverged, where and why."""
        key = json.dumps([charrnn.__version__, text.name, options], sort_keys=True)
        folder = self.cache / hashlib.sha256(key.encode()).hexdigest()[:16]
        done = folder / "done.txt"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            message = ""
            try:
                charrnn.train(text, out_dir=folder, **options)
            except Diverged as error:
                message = str(error)
            done.write_text(message, encoding="utf-8")
        return done.read_text(encoding="utf-8") or charrnn.load(folder / "last.safetensors")

    def command(self, line: str, hide: str = "") -> str:
        """What a command line prints; below it as prompt.

        It runs in the cache, where ``data/`` and the named models in ``runs/`` are. Lines with
        ``hide`` are left out.
        """
        if not (self.cache / "data").exists():
            shutil.copytree(TEXT.parent, self.cache / "data")
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)], cwd=self.cache, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lines = [part for part in done.stdout.splitlines() if not hide or hide not in part]
        return fenced([*prompt(line), *lines])

    def name(self, lm: charrnn.LanguageModel, name: str) -> None:
        """Let commands know a model's run as ``runs/NAME``."""
        folder = self.cache / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(lm.path.parent, folder)

    def picture(
        self, name: str, alt: str, draw: Callable[[Any], None], size: tuple[float, float]
    ) -> str:
        """The Markdown of a picture; ``draw`` fills its figure of ``size`` inches."""
        if self.pictures:
            import matplotlib

            matplotlib.use("Agg")
            import matplotlib.pyplot as plt

            with plt.rc_context(STYLE):
                figure = plt.figure(figsize=size)
                draw(figure)
                path = ROOT / "docs" / "images" / f"{name}.svg"
                path.parent.mkdir(exist_ok=True)
                figure.savefig(path, metadata={"Date": None})
                plt.close(figure)
        return f"\n![{alt}](images/{name}.svg)\n"


def prompt(line: str) -> list[str]:
    """A command as it is typed, in lines that fit a page."""
    return textwrap.wrap(
        f"$ {line}", 96, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )


def command_of(text: str, options: dict[str, Any], out: str) -> str:
    """The command line of a run."""
    flags = " ".join(f"{flag(name)} {value}" for name, value in options.items())
    return f"charrnn train {text} {flags} --out-dir {out}"


def fenced(lines: Iterable[str], language: str = "") -> str:
    """A code block."""
    return "\n".join([f"```{language}", *(line.rstrip() for line in lines), "```", ""])


def fresh(seed: int = 1, **options: Any) -> tuple[Model, Vocabulary]:
    """An untrained float64 model of The Time Machine's vocabulary."""
    vocabulary = Vocabulary.build(text())
    model = Model(ModelConfig(dtype="float64", **options), vocabulary.size)
    model.initialize(seed)
    return model, vocabulary


def text() -> str:
    """The Time Machine."""
    return TEXT.read_text(encoding="utf-8")


def probe_of(model: Model, vocabulary: Vocabulary, part: str) -> Probe:
    """A stream of text in a model; the last character is only a target."""
    ids = vocabulary.encode(part)
    return Probe(model, ids[:-1], ids[1:])


def rounded(x: float, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if x == 0 or not np.isfinite(x):
        return f"{x:g}"
    exponent = int(np.floor(np.log10(abs(x))))
    return f"{x:.{max(0, digits - 1 - exponent)}f}" if -4 < exponent < 6 else f"{x:.{digits - 1}e}"


def below(x: float, limit: float) -> str:
    """What may differ in the last bits from machine to machine: only that it is small."""
    assert x < limit, f"{x} is not below {limit}"
    return f"below {limit:g}"
