"""``charrnn inspect``."""

from __future__ import annotations

import shutil
import sys

import click

from charrnn import signals
from charrnn.commands import echo, note, print_json
from charrnn.options import as_json, count_option, given_of, on_unknown

SHOWN, ON_PAGE = 400, 4_000
BEST, BEST_ON_PAGE = 2, 20
"""Characters, and units that were found, that a terminal and a page are given by default."""


@click.command()
@click.argument("model", metavar="[RUN|CKPT]", required=False)
@click.option(
    "--text", "files", multiple=True, metavar="FILE", help="Text to read; repeatable.  "
    "[default: what the run was validated on]",
)  # fmt: skip
@click.option("--prompt", help="Read this text, all of it.")
@count_option(
    "--unit", "units", least=0, multiple=True,
    help="Show the unit of this number; repeatable.  [default: the best that are found]",
)  # fmt: skip
@count_option("--layer", help="Which layer.  [default: all, with --unit the top one]")
@click.option(
    "--value", "values", multiple=True, metavar="NAME", help="What of a unit: h, c, or a gate of "
    "the cell; repeatable.  [default: all states; with --unit h]",
)  # fmt: skip
@count_option(
    "--best", least=0,
    help=f"How many found units are shown.  [default: {BEST}, on a page {BEST_ON_PAGE}]",
)  # fmt: skip
@count_option(
    "--offset", least=0,
    help="First character that is shown.  [default: the middle of the text, with --unit 0]",
)  # fmt: skip
@count_option("--length", help=f"How many are shown.  [default: {SHOWN}, on a page {ON_PAGE:,}]")
@click.option("--html", metavar="FILE", help="Write the same as a page: a .html file.")
@click.option("--encoding", help="Encoding of the files.  [default: as the model was trained]")
@on_unknown("skip", "map", "error")
@as_json
def inspect(
    model: str | None,
    files: tuple[str, ...],
    prompt: str | None,
    units: tuple[int, ...],
    layer: int | None,
    values: tuple[str, ...],
    best: int | None,
    offset: int | None,
    length: int | None,
    html: str | None,
    encoding: str | None,
    on_unknown: str,
    as_json: bool,
) -> None:
    """Show what single units of a network do over a text.

    Looks for the units that follow a property of the text best, such as the position in the line,
    scores them on text that has not chosen them, and colours the text by their values. RUN is a run
    folder, CKPT a checkpoint file; without one, the newest run's best model is looked at.

    \b
    charrnn inspect runs/book
    charrnn inspect runs/book --unit 42 --value c --html page.html
    """
    fail = click.get_current_context().fail
    given = given_of(click.get_current_context().params)
    if "files" in given and "prompt" in given:
        fail("--text and --prompt are both given: use one")
    if "encoding" in given and "files" not in given:
        fail("--encoding goes with --text: a run's own text is read as it was for training")
    if units and best is not None:
        fail("--best is of units that are found: it cannot be used with --unit")
    if html is not None:
        from charrnn import page

        page.check(html, length or ON_PAGE)

    with signals.fatal():
        from charrnn import api, atomic, inspection, subjects
        from charrnn.errors import InputError
        from charrnn.heatmap import style_of

    lm = api.load(model, threads=1)  # one stream: others would only wait
    text = lm.validation_text()
    if files or prompt is not None:
        text = subjects.Source(files, prompt, encoding).read(lm.config.data)
    if text is None:
        raise InputError(
            f"the text that {lm.path} was validated on is gone or has changed, or there was none: "
            "name one with --text"
        )
    usual = ON_PAGE if html is not None else SHOWN if prompt is None else len(text)
    usual_best = BEST if html is None else BEST_ON_PAGE
    request = inspection.Request(
        units, layer, values, usual_best if best is None else best, offset, length or usual
    )
    view = inspection.inspect(lm, text, request, on_unknown)
    subject = subjects.Subject(str(lm.path), lm.model, lm.vocabulary, text, lm)
    for each in subjects.notes([subject], on_unknown):
        note(each)
    heading = f"{lm.path}, {subjects.kind(lm.config.model)}"
    if html is not None:
        atomic.write(html, view.page(f"Units of {heading}", []))
    if as_json:
        print_json({"model": str(lm.path), **view.to_json()})
    else:
        width = shutil.get_terminal_size().columns
        lines = view.lines(style_of(sys.stdout), width) if html is None else view.table()
        echo("\n".join([heading, *lines]))
    if html is not None:
        note(f"page in {html}, {view.extent()}")
