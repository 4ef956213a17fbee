"""``charrnn sample``."""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import click

from charrnn.commands import note
from charrnn.config import Config, SampleConfig
from charrnn.errors import InputError
from charrnn.options import given_of, on_unknown, options_of


@click.command()
@click.argument("model", required=False)
@click.option("--prompt", help="Text to go on from.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from a file; - = stdin.")
@options_of(SampleConfig)
@click.option("--stop", multiple=True, help="End a sample before this string; repeatable.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="INTEGER",
    help="Seed of the random numbers.  [default: drawn, and shown on standard error]",
)
@click.option("--output", metavar="FILE", help="Write to a file instead of standard output.")
@on_unknown("skip", "map", "error")
def sample(
    model: str | None,
    prompt: str | None,
    prompt_file: str | None,
    stop: tuple[str, ...],
    seed: int | None,
    output: str | None,
    on_unknown: str,
    **options: Any,
) -> None:
    """Write text with a model.

    MODEL is a run folder or a checkpoint file; without it, the newest run's best model writes.
    """
    config = SampleConfig(**given_of(options))
    if prompt is not None and prompt_file is not None:
        click.get_current_context().fail("--prompt and --prompt-file are both given: use one")

    from charrnn import api, sampling

    lm = api.load(model)
    start = _prompt_text(prompt_file, lm.config) if prompt_file is not None else prompt or ""
    drawn = secrets.randbelow(2**32) if seed is None else seed
    steps = sampling.generate(
        lm.model,
        lm.vocabulary,
        config,
        prompt=start,
        seed=drawn,
        stop=stop,
        on_unknown=on_unknown,
    )
    with _output(output) as file:
        note(f"model {lm.path}" + (f", seed {drawn}" if seed is None else ""))
        for text in lm.notes:
            note(text)
        unknown = sampling.unknown_note(lm.vocabulary, start, on_unknown)
        if unknown is not None:
            note(unknown)
        text = start if isinstance(start, str) else start.decode("utf-8", "replace")
        _write_samples(file, text, steps, config.num_samples)


def _prompt_text(path: str, config: Config) -> str | bytes:
    from charrnn.data import read_corpus

    return read_corpus([path], level=config.data.level, encoding=config.data.encoding).text


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a UTF-8 file."""
    if path is None:
        yield sys.stdout
        return
    try:
        file = open(path, "w", encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"--output {path} cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error
    with file:
        yield file


STREAM_SECONDS = 0.02
"""Between two looks of a reader; flushing each character would take as long as drawing it."""


def _write_samples(file: TextIO, prompt: str, steps: Iterator[list[str]], count: int) -> None:
    """Stream the first sample; the others, made at the same time, follow it."""
    others: list[list[str]] = [[] for _ in range(count - 1)]
    file.write(prompt)
    file.flush()
    flushed = -math.inf
    for first, *rest in steps:
        file.write(first)
        if time.perf_counter() - flushed > STREAM_SECONDS:
            file.flush()
            flushed = time.perf_counter()
        for pieces, piece in zip(others, rest, strict=True):
            pieces.append(piece)
    file.write("\n")
    for pieces in others:
        file.write(f"---\n{prompt}{''.join(pieces)}\n")
