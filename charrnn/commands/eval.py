"""``charrnn eval``."""

from __future__ import annotations

import math

import click

from charrnn import monitor
from charrnn.commands import note, print_json
from charrnn.options import as_json, on_unknown


@click.command(name="eval")
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--exact", is_flag=True, help="Score in one stream from a zero state; slower.")
@click.option("--baselines", is_flag=True, help="Add what a 5-gram model and xz reach.")
@click.option("--encoding", help="Encoding of the files.  [default: as the model was trained]")
@on_unknown("skip", "map", "error")
@as_json
def evaluate(
    model: str,
    files: tuple[str, ...],
    exact: bool,
    baselines: bool,
    encoding: str | None,
    on_unknown: str,
    as_json: bool,
) -> None:
    """Score text files with a model.

    Prints how well the model predicts them: nats and bits per character, bits per byte, perplexity.
    MODEL is a run folder or a checkpoint file, FILE as for train.
    """
    from charrnn import api
    from charrnn.data import read_corpus
    from charrnn.vocab import describe

    lm = api.load(model)
    data = lm.config.data
    text = read_corpus(files, level=data.level, encoding=encoding or data.encoding).text
    missing = lm.vocabulary.missing(text)
    if missing and on_unknown != "error":
        fate = "skipped" if on_unknown == "skip" else "mapped to the unknown symbol"
        note(f"{sum(missing.values()):,} unknown characters {fate}: {describe(missing)}")
    for each in lm.notes:
        note(each)
    scores = lm.evaluate(text, exact=exact, baselines=baselines, on_unknown=on_unknown)
    if as_json:
        print_json({"model": str(lm.path), **scores})
        return
    click.echo(f"{lm.path} on {scores['chars']:,} characters")
    bits_per_byte = scores["bits_per_byte"]
    _print_score("model", scores["bits_per_char"], f"  {bits_per_byte:.4g} bits/byte")
    for name in ("ngram", "xz"):
        if f"{name}_bits_per_char" in scores:
            _print_score({"ngram": "5-gram"}.get(name, name), scores[f"{name}_bits_per_char"])


def _print_score(name: str, bits: float, more: str = "") -> None:
    click.echo(f"  {name:<6}  {monitor.units(bits * math.log(2))}{more}")
