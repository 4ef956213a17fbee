"""``charrnn sample``."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from charrnn import atomic, runlog, signals
from charrnn.commands import note, tell_details, verbose
from charrnn.config import Config, ModelConfig, SampleConfig, flag
from charrnn.errors import InputError, SaveError
from charrnn.options import choices_of, count_option, given_of, on_unknown, options_of

if TYPE_CHECKING:
    from charrnn.session import Session


@click.command()
@click.argument("model", required=False)
@click.option("--prompt", help="Text to go on from.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from a file; - = stdin.")
@options_of(SampleConfig)
@click.option("--stop", multiple=True, help="End a sample before this string; repeatable.")
@count_option(
    "--seed", least=0, most=2**32 - 1,
    help="Seed of the random numbers.  [default: drawn, and shown on standard error]",
)  # fmt: skip
@click.option(
    "--precision",
    type=click.Choice(choices_of(ModelConfig, "precision")),
    help="Factors of products; bf16, on processors that multiply it, reads half as many bytes: "
    "large models are two to three times as fast.  [default: as the model was trained]",
)
@click.option("--output", metavar="FILE", help="Write to a file instead of standard output.")
@on_unknown("skip", "map", "error")
@click.option("--color", is_flag=True, help="Colour new characters by their surprise in bits.")
@click.option(
    "--interactive", "-i", is_flag=True, help="Type a text, see it continue, type on: a session."
)
@verbose
def sample(
    model: str | None,
    prompt: str | None,
    prompt_file: str | None,
    stop: tuple[str, ...],
    seed: int | None,
    precision: str | None,
    output: str | None,
    on_unknown: str,
    color: bool,
    interactive: bool,
    **options: Any,
) -> None:
    """Write text with a model.

    MODEL is a run folder or a checkpoint file; without it, the newest run's best model writes.

    \b
    charrnn sample --prompt "The " --length 300 --temperature 0.6
    charrnn sample runs/book --interactive
    """
    config = SampleConfig(**given_of(options))
    _check_sample(given_of(click.get_current_context().params))
    output = _checked(output)
    colours = color and output is None and _has_colours()

    with signals.fatal():
        from charrnn import api, sampling

    lm = api.load(model, precision=precision)
    if output is not None and os.path.realpath(output) == os.path.realpath(lm.path):
        raise InputError(f"--output {output} is the model that is read: name another file")
    start = _prompt_text(prompt_file, lm.config) if prompt_file is not None else prompt or ""
    drawn = secrets.randbelow(2**32) if seed is None else seed
    arguments: dict[str, Any] = dict(seed=drawn, stop=stop)
    if interactive or colours:
        from charrnn.session import Session

        session = Session(lm.model, lm.vocabulary, config, **arguments)
        lm.vocabulary.encode(start, on_unknown)  # refuses what it must
    else:
        steps = sampling.generate(
            lm.model, lm.vocabulary, config, prompt=start, on_unknown=on_unknown, **arguments
        )
    with _output(output) as file:
        note(f"model {lm.path}" + (f", seed {drawn}" if seed is None else ""))
        for text in lm.notes:
            note(text)
        tell_details(lm, dataclasses.asdict(config))
        if color and not colours:
            note("no colours: they need a terminal that has them, and NO_COLOR not to be set")
        if interactive:
            _talk(session, on_unknown, start, colours)
            return
        unknown = sampling.unknown_note(lm.vocabulary, start, on_unknown)
        if unknown is not None:
            note(unknown)
        text = start if isinstance(start, str) else start.decode("utf-8", "replace")
        if colours:
            session.feed(start, on_unknown)
            _write_coloured(file, text, session, config.num_samples)
        else:
            _write_samples(file, text, steps, config.num_samples)


def _check_sample(given: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning together."""
    fail = click.get_current_context().fail
    if {"prompt", "prompt_file"} <= set(given):
        fail("--prompt and --prompt-file are both given: use one")
    if "interactive" in given:
        if given.get("prompt_file") == "-":
            fail("--prompt-file - with --interactive: lines come from there; name a file")
        for name in {"num_samples", "output"} & set(given):
            fail(f"{flag(name)} cannot be used with --interactive")


def _has_colours() -> bool:
    from charrnn.heatmap import style_of

    return style_of(sys.stdout).colours > 0


def _talk(session: Session, on_unknown: str, start: str | bytes, colours: bool) -> None:
    """The session, until its lines end."""
    from charrnn.console import Console

    keys: Any = sys.stdin or io.TextIOWrapper(io.BytesIO())  # it may be closed
    if not keys.isatty():
        keys.reconfigure(encoding="utf-8")
    keys.reconfigure(errors="replace")
    Console(session, on_unknown, keys, sys.stdout, sys.stderr, colours).run(start)


def _write_coloured(file: TextIO, prompt: str, session: Session, count: int) -> None:
    """Stream one sample after the other."""
    from charrnn import heatmap, surprise

    style, start = heatmap.style_of(file), session.moment()
    note(surprise.stream_scale(style))
    for i in range(count):
        session.return_to(start)
        file.write(prompt if i == 0 else f"---\n{prompt}")
        for piece in session.go_on():
            file.write(surprise.stream(*piece, style))
            file.flush()
        file.write("\n")


def _prompt_text(path: str, config: Config) -> str | bytes:
    from charrnn.data import read_corpus

    data = config.data
    return read_corpus([path], level=data.level, encoding=data.encoding, options=[]).text


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or UTF-8: a file, which is replaced at the end, or what streams as it is."""
    if path is None:
        yield sys.stdout
        return
    with _opened(path) as data:
        file = io.TextIOWrapper(data, encoding="utf-8", errors="replace", newline="\n")
        try:
            yield file
            file.flush()
        finally:
            with contextlib.suppress(OSError):
                file.detach()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The place of ``--output``. What ends the process early leaves a file as it was."""
    if not _is_stream(path):
        place = os.path.realpath(path) if os.path.islink(path) else path
        with _ended_by_exceptions(), atomic.replacing(place) as data:
            yield data
        return
    try:
        opened = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"--output {path} cannot be written: {error.strerror}; name a file in a folder of yours"
        ) from error
    try:
        with opened:
            yield opened
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on
            raise
        raise SaveError(
            f"could not write {path}: {error.strerror or error}; name another file"
        ) from error


@contextlib.contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """What would end the process at once, and leave a temporary file, is raised instead."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    every = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    numbers = [n for n in every if n is not None and signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _checked(path: str | None) -> str | None:
    """The file of ``--output``, if it can be one; None is standard output."""
    if path is None or path == "-":
        return None
    if not _is_stream(path):
        runlog.check_foreign(path, "--output")
        atomic.check(path, "--output")
    return path


def _is_stream(path: str) -> bool:
    """Whether it is a device, a pipe, or what this process has open, as /dev/stdout: none of these
    is replaced."""
    other = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return other or os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))


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
