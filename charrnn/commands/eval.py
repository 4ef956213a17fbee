"""``charrnn eval``."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from charrnn import monitor, signals
from charrnn.commands import echo, note, print_json, tell_details, verbose
from charrnn.config import flag
from charrnn.options import as_json, count_option, given_of, on_unknown
from charrnn.words import units

if TYPE_CHECKING:
    from charrnn.api import LanguageModel
    from charrnn.surprise import Place, Surprise

SHOWN, ON_PAGE, PLACES = 2_000, 20_000, 10
"""Characters that a terminal and a page are given, and places that are listed, by default."""


@click.command(name="eval")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--exact", is_flag=True, help="Score in one stream from a zero state; slower.")
@click.option("--baselines", is_flag=True, help="Add what a 5-gram model and xz reach.")
@click.option(
    "--heatmap", is_flag=True, help="Show the text, coloured by the surprise of each character, "
    "and list the most surprising places.",
)  # fmt: skip
@click.option("--html", metavar="FILE", help="Write the same as a page: a .html file.")
@count_option("--offset", help="First character that is shown.  [default: 0]", least=0, default=0)
@count_option("--length", help=f"How many are shown.  [default: {SHOWN:,}, on a page {ON_PAGE:,}]")
@count_option(
    "--places", help=f"Surprising places that are listed.  [default: {PLACES}]",
    least=0, most=1000, default=PLACES,
)  # fmt: skip
@click.option("--encoding", help="Encoding of the files.  [default: as the model was trained]")
@on_unknown("skip", "map", "error")
@as_json
@verbose
def evaluate(
    model: str,
    files: tuple[str, ...],
    exact: bool,
    baselines: bool,
    heatmap: bool,
    html: str | None,
    offset: int,
    length: int | None,
    places: int,
    encoding: str | None,
    on_unknown: str,
    as_json: bool,
) -> None:
    """Score text files with a model.

    Prints how well the model predicts them: nats and bits per character, bits per byte, perplexity.
    MODEL is a run folder or a checkpoint file, FILE as for train.

    \b
    charrnn eval runs/book other.txt --baselines
    charrnn eval runs/book other.txt --html page.html
    """
    seen = heatmap or html is not None
    for name in given_of(dict.fromkeys(("offset", "length", "places"))):
        if not seen:
            click.get_current_context().fail(f"{flag(name)} goes with --heatmap or --html")
    if html is not None:
        from charrnn import page

        page.check(html, length or ON_PAGE)

    with signals.fatal():
        from charrnn import api, surprise
        from charrnn.data import check_whole, read_corpus
        from charrnn.vocab import describe

    lm = api.load(model)
    data = lm.config.data
    encoding = encoding or data.encoding
    with monitor.reading() as told:
        corpus = read_corpus(
            files, level=data.level, encoding=encoding, on_progress=told, options=["encoding"]
        )
    if seen:
        check_whole(len(corpus), corpus.name)
        surprise.check_offset(offset, len(corpus))
    missing = lm.vocabulary.missing(corpus.counts)
    refused = on_unknown == "error" or (on_unknown == "map" and lm.vocabulary.unknown is None)
    if missing and not refused:
        fate = "skipped" if on_unknown == "skip" else "mapped to the unknown symbol"
        note(f"{sum(missing.values()):,} unknown characters {fate}: {describe(missing)}")
    for each in lm.notes:
        note(each)
    tell_details(lm, lm.config.options())
    more = {"losses": True} if seen else {}
    scores = lm.evaluate(corpus, exact=exact, baselines=baselines, on_unknown=on_unknown, **more)
    if not seen:
        _print_scores(lm, scores, as_json)
        return

    losses = scores.pop("losses")
    found = surprise.surprise(lm.model, lm.vocabulary, corpus, losses, on_unknown)
    listed = found.places(places)
    shown = surprise.part(found.chars, offset, length or SHOWN)
    if html is not None:
        _write_page(html, lm, scores, found, offset, length, listed)
    if as_json:
        scores |= {"heatmap": surprise.to_json(found, shown, listed)}
    _print_scores(lm, scores, as_json)
    if heatmap and not as_json:
        from charrnn.heatmap import style_of

        style = style_of(sys.stdout)
        lines = surprise.lines(found, shown, style, shutil.get_terminal_size().columns)
        listing = surprise.place_lines(found, listed, style)
        echo("\n".join(["", *lines, *([""] if listing else []), *listing]))


def _write_page(
    path: str, lm: LanguageModel, scores: Mapping[str, Any], found: Surprise, offset: int,
    length: int | None, listed: Sequence[Place],
) -> None:  # fmt: skip
    from charrnn import atomic, surprise

    shown = surprise.part(found.chars, offset, length or ON_PAGE)
    facts = [f"{lm.path} on {scores['chars']:,} characters: {_units(scores)}"]
    title = f"Surprise in {', '.join(found.sources)}"
    atomic.write(path, surprise.html(found, shown, listed, title, facts))
    note(f"page in {path}, {shown}")


def _print_scores(lm: LanguageModel, scores: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"model": str(lm.path), **scores})
        return
    echo(f"{lm.path} on {scores['chars']:,} characters")
    echo(f"  model   {_units(scores)}")
    for name in ("ngram", "xz"):
        if f"{name}_bits_per_char" in scores:
            nats = scores[f"{name}_bits_per_char"] * math.log(2)
            echo(f"  {dict(ngram='5-gram').get(name, name):<6}  {units(nats)}")


def _units(scores: Mapping[str, Any]) -> str:
    nats = scores["bits_per_char"] * math.log(2)
    return f"{units(nats)}  {scores['bits_per_byte']:.4g} bits/byte"
