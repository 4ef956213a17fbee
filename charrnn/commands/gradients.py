"""``charrnn gradients``."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from charrnn import signals
from charrnn.commands import echo, note, print_json
from charrnn.config import ModelConfig, flag
from charrnn.options import (
    SectionedCommand,
    as_json,
    count_option,
    given_of,
    on_unknown,
    options_of,
)

SHOWN = ("overview", "components", "reach", "why", "clipping", "compare")
UNUSED = ("dropout", "precision", "dtype")
"""Options of a model that make no difference to `gradients`."""
FRESH = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in UNUSED)


@click.command(cls=SectionedCommand)
@click.argument("models", nargs=-1, metavar="[RUN|CKPT]...")
@click.option(
    "--show",
    type=click.Choice(SHOWN),
    help="What to measure.  [default: overview; of several models compare]",
)
@click.option(
    "--text", "files", multiple=True, metavar="FILE", help="Text to read; repeatable.  "
    "[default: what the run was trained on]",
)  # fmt: skip
@click.option("--prompt", help="Read this text, all of it.")
@count_option(
    "--offset", help="Where in the text the window begins.  [default: 0]", least=0, default=0
)
@count_option("--length", help="Characters of the window.  [default: 200, or all of the prompt]")
@count_option("--positions", help="How many losses to look at.  [default: by what is measured]")
@click.option(
    "--loss", type=int, default=-1, help="With --show components: of which loss; negative from the "
    "end.  [default: -1]",
)  # fmt: skip
@count_option("--layer", help="Which layer.  [default: the top one]")
@click.option(
    "--parameter", default="Wh", help="With --show components: what their map shows, such as "
    "Wx, Wh, b, input, embedding.  [default: Wh]",
)  # fmt: skip
@click.option("--untrained", is_flag=True, help="Add every run's model as it was before training.")
@click.option("--plot", metavar="FILE", help="Also draw it: a .png or .svg file.")
@click.option("--encoding", help="Encoding of the files.  [default: as the model was trained]")
@on_unknown("skip", "map", "error")
@as_json
@options_of(ModelConfig, without=UNUSED)
@count_option(
    "--seed", help="Seed of a fresh model's weights.  [default: 1]", least=0, most=2**32 - 1,
    default=1,
)  # fmt: skip
def gradients(
    models: tuple[str, ...],
    show: str | None,
    files: tuple[str, ...],
    prompt: str | None,
    untrained: bool,
    plot: str | None,
    encoding: str | None,
    as_json: bool,
    seed: int,
    **options: Any,
) -> None:
    """Show where the gradient goes through time.

    RUN is a run folder, CKPT a checkpoint file; without one, a fresh model is made as the model
    options say, or several kinds for --show compare. Nothing is changed.

    \b
    overview    reach and its reasons, in short
    components  what each earlier step adds to the gradient of each loss
    reach       how far back a loss is heard
    why         gates, singular values, Jacobians: why it vanishes or explodes
    clipping    how often and how much a run's gradients were clipped
    compare     several models side by side

    \b
    charrnn gradients runs/book
    charrnn gradients --show compare --text book.txt
    """
    config = ModelConfig(**given_of({name: options.pop(name) for name in FRESH}))
    _check_gradients(models, show, untrained)

    # Threads of NumPy's decompositions wait for each other: beside a busy process that takes ten
    # times as long as one thread.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with signals.fatal():
        import numpy as np

        from charrnn import heatmap, laboratory, plots, subjects

    if plot is not None:
        plots.check(plot)
    source = subjects.Source(files, prompt, encoding)
    if models:
        chosen = subjects.trained(models, source, untrained)
    else:
        chosen = subjects.fresh(config, seed, source, several=show == "compare")
    request = laboratory.Request(
        **options, whole=prompt is not None, style=heatmap.style_of(sys.stdout),
        width=shutil.get_terminal_size().columns,
    )  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):  # an exploding gradient is a result
        view = laboratory.view(show, chosen, request)
    for each in subjects.notes(chosen, on_unknown=request.on_unknown):
        note(each)
    if plot is not None:
        plots.save(view.draw, plot)
    if as_json:
        print_json(view.json)
    else:
        echo("\n".join(view.lines))


def _check_gradients(models: Sequence[str], show: str | None, untrained: bool) -> None:
    """Refuse options that have no meaning together."""
    fail = click.get_current_context().fail
    given = given_of(click.get_current_context().params)
    if "files" in given and "prompt" in given:
        fail("--text and --prompt are both given: use one")
    if "encoding" in given and "files" not in given:
        fail("--encoding goes with --text: a run's own text is read as it was for training")
    for name in (*FRESH, "seed"):
        if models and name in given:
            fail(f"{flag(name)} makes a fresh model and cannot be used with {models[0]}")
    if show == "compare" and not models:
        for name in given.keys() & set(FRESH) - {"hidden_size"}:
            fail(f"{flag(name)}: --show compare without a RUN has kinds of models of its own")
    for name in ("loss", "parameter"):
        if show != "components" and name in given:
            fail(f"{flag(name)} goes with --show components")
    if untrained and not models:
        fail("--untrained needs a RUN: a fresh model is untrained already")
    if (len(models) > 1 or untrained) and show not in (None, "compare"):
        fail(f"--show {show} is of one model: name one, or use --show compare")
