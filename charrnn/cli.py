"""The command line: options -> config -> one library call.

Nothing heavy is imported before a command runs, so that ``charrnn --help`` is instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import math
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from charrnn import __version__, monitor
from charrnn.config import Config, ModelConfig, SampleConfig, flag
from charrnn.errors import CharRNNError, Diverged, InputError, SaveError
from charrnn.options import (
    SectionedCommand,
    as_json,
    count_option,
    given_of,
    on_unknown,
    options_of,
    word,
)

if TYPE_CHECKING:
    from charrnn.trainer import Run

AXES = ("steps", "characters", "time")
RUN_COLUMNS = ("name", "model", "parameters", "step", "best", "state", "age")

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --hidden_size will do
}


class Commands(click.Group):
    """A group whose errors, whatever they come from, are one line and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        _let_stdout_take_any_character()
        try:
            super().main(*args, **(kwargs | {"standalone_mode": False}))
            sys.exit(0)
        except click.UsageError as error:
            hint = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
            _fail(error.format_message() + hint, error.exit_code)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except CharRNNError as error:
            _fail(str(error), error.exit_code)
        except MemoryError as error:
            sizes = "--hidden-size, --num-layers, --batch-size or --seq-length"
            _fail(f"not enough memory ({error}): choose a smaller {sizes}", InputError.exit_code)
        except OSError as error:
            _fail(f"could not read or write: {error}", SaveError.exit_code)
        except click.Abort:  # click makes it from KeyboardInterrupt
            sys.exit(128 + signal.SIGINT)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except OSError as error:
            if error.errno != (errno.EINVAL if os.name == "nt" else errno.EPIPE):
                raise
            # As with `| head`: nobody reads on, and that is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if not name.startswith("-") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            ctx.fail(
                f"there is no command {name!r}"
                + (f", did you mean {close[0]!r}?" if close else f": use {', '.join(known)}")
            )
        return super().resolve_command(ctx, args)


def _fail(message: str, status: int) -> NoReturn:
    click.echo("Error: " + " ".join(message.splitlines()), err=True)
    sys.exit(status)


def _let_stdout_take_any_character() -> None:
    """A console keeps its encoding; files and pipes get UTF-8 on every system."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    elif sys.stdout.isatty():
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    else:
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")  # type: ignore[union-attr]


def _note(text: str) -> None:
    click.echo(text, err=True)


def _print_json(value: Any) -> None:
    from charrnn.runlog import dump_json

    click.echo(dump_json(value, indent=2).decode())


@click.group("charrnn", cls=Commands, context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(__version__, prog_name="charrnn")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train character-level recurrent language models, fast, on a CPU.

    \b
    charrnn train book.txt       train on a text, with a progress bar
    charrnn monitor              watch the newest run from another terminal
    charrnn runs                 list the runs that there are
    charrnn sample               write text with the newest model
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(cls=SectionedCommand)
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--out-dir", help="Folder of the run.  [default: runs/<name of the text>]")
@click.option("--resume", metavar="RUN|latest", help="Go on with a run: a folder, or the latest.")
@click.option("--init-from", metavar="CKPT", help="Start from the weights of another model.")
@on_unknown("add", "map", "error")
@click.option(
    "--live", is_flag=True, help="Show curves on the full screen; q goes back to the bar."
)
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@options_of(*Config.sections().values())
def train(
    files: tuple[str, ...],
    out_dir: str | None,
    resume: str | None,
    init_from: str | None,
    on_unknown: str,
    live: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a model on text files.

    FILE may be several files, folders (their .txt files), .gz files, or - for standard input.
    """
    changes = given_of(options)
    config = Config.from_options(changes)
    _check_start(files, given_of(click.get_current_context().params))

    from charrnn import runs
    from charrnn.live import beside

    if resume is not None:
        run = runs.resume(resume, files, changes)
    else:
        run = runs.start(files, config, out_dir, init_from, on_unknown, tuple(changes))
    with _stopping(run) as signals:
        events = run.events()
        if live:
            events = beside(events, run.folder, sys.stdin, sys.stderr)
        end = monitor.show(events, quiet=quiet)
    if end is not None and end["reason"] == "diverged":
        raise Diverged(end["message"])
    if signals:
        if end is None or end["reason"] == "interrupted":
            _note(f"go on with: {monitor.command('charrnn', 'train', '--resume', run.folder)}")
        sys.exit(128 + signals[0])


def _check_start(files: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning together."""
    fail = click.get_current_context().fail
    if {"live", "quiet"} <= set(given):
        fail("--live and --quiet are both given: use one")
    if "resume" in given:
        for name in ("out_dir", "init_from", "on_unknown"):
            if name in given:
                fail(
                    f"{flag(name)} cannot be used with --resume, which goes on with a run as it is"
                )
    elif not files:
        fail("no text to train on: name one or more files, folders or -, or use --resume RUN")
    elif "on_unknown" in given and "init_from" not in given:
        fail("--on-unknown needs --init-from: a new model knows every character of its text")


@contextlib.contextmanager
def _stopping(run: Run) -> Iterator[list[int]]:
    """The first SIGINT, SIGTERM or SIGHUP lets ``run`` save and stop, a second one ends at once.

    Yields the list of signals received.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        run.interrupt()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nsaving at the end of this step; once more to end at once\n")

    before = [signal.signal(each, stop) for each in numbers]
    try:
        yield received
    finally:
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)


@cli.command()
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
        _note(f"model {lm.path}" + (f", seed {drawn}" if seed is None else ""))
        for text in lm.notes:
            _note(text)
        unknown = sampling.unknown_note(lm.vocabulary, start, on_unknown)
        if unknown is not None:
            _note(unknown)
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


@cli.command(name="eval")
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
        _note(f"{sum(missing.values()):,} unknown characters {fate}: {describe(missing)}")
    for note in lm.notes:
        _note(note)
    scores = lm.evaluate(text, exact=exact, baselines=baselines, on_unknown=on_unknown)
    if as_json:
        _print_json({"model": str(lm.path), **scores})
        return
    click.echo(f"{lm.path} on {scores['chars']:,} characters")
    bits_per_byte = scores["bits_per_byte"]
    _print_score("model", scores["bits_per_char"], f"  {bits_per_byte:.4g} bits/byte")
    for name in ("ngram", "xz"):
        if f"{name}_bits_per_char" in scores:
            _print_score({"ngram": "5-gram"}.get(name, name), scores[f"{name}_bits_per_char"])


def _print_score(name: str, bits: float, more: str = "") -> None:
    click.echo(f"  {name:<6}  {monitor.units(bits * math.log(2))}{more}")


@cli.command("monitor")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
def monitor_runs(runs: tuple[str, ...]) -> None:
    """Watch runs, from another terminal or after the fact.

    Shows loss curves, learning rate, gradient norm, speed and the newest sample of RUN, a run
    folder; several are overlaid; without one it is the newest run. Keys: q quits, x changes the x
    axis, l is a linear or logarithmic loss, u nats or bits. Without a terminal, a line is written
    for each event until nobody trains the runs any more.
    """
    from charrnn import live

    live.watch(runs, sys.stdin, sys.stdout)


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--output", "-o", required=True, metavar="FILE", help="The .png or .svg file to draw."
)
@click.option("--x", type=click.Choice(AXES), default="steps", help="The x axis.  [default: steps]")
@click.option("--log", is_flag=True, help="Make the loss axis logarithmic.")
@click.option("--bits", is_flag=True, help="Losses in bits per character instead of nats.")
def plot(runs: tuple[str, ...], output: str, x: str, log: bool, bits: bool) -> None:
    """Draw the loss curves of runs.

    Validation losses are strong lines, training losses faint ones. RUN is a run folder; several are
    told apart by the options in which they differ; without one it is the newest run.
    """
    from charrnn import curves
    from charrnn.live import View

    curves.plot(runs, output, View(x, log, bits))


@cli.command("runs")
@click.argument("folder", default="runs")
@click.option(
    "--sort",
    type=click.Choice(RUN_COLUMNS),
    default="age",
    help="Column to sort by: counts from the largest, all else from the smallest.  [default: age]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list of objects.")
def list_runs(folder: str, sort: str, as_json: bool) -> None:
    """List the runs below a folder.

    Shows model, steps, best validation loss, state and age of each: running, finished, patience
    (stopped by --patience), interrupted, diverged, killed (ended without saving), damaged. FOLDER
    is runs/ unless given.
    """
    from charrnn import listing

    runs = listing.ordered(listing.find(folder, time.time()), sort)
    if as_json:
        _print_json(runs)
        return
    for line in listing.table(runs) if runs else ():
        click.echo(line)
    for run in runs:
        if run["problem"] is not None:
            _note(run["problem"])
    if not runs:
        _note(f"there are no runs below {folder}")


@cli.command()
@click.argument("model", required=False)
@as_json
def info(model: str | None, as_json: bool) -> None:
    """Describe a model.

    Shows its options, tensors, vocabulary, training history, text and versions. MODEL is a run
    folder or a checkpoint file; without it, the newest run's best model is described.
    """
    from charrnn import api

    description = api.load(model).describe()
    if as_json:
        _print_json(description)
    else:
        _print_tree(description)


SHOWN = ("overview", "components", "reach", "why", "clipping", "compare")
UNUSED = ("dropout", "precision", "dtype")
"""Options of a model that make no difference to `gradients`."""
FRESH = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in UNUSED)


@cli.command(cls=SectionedCommand)
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
@count_option("--offset", "Where in the text the window begins.  [default: 0]", 0, default=0)
@count_option("--length", "Characters of the window.  [default: 200, or all of the prompt]")
@count_option("--positions", "How many losses to look at.  [default: by what is measured]")
@click.option(
    "--loss", type=int, default=-1, help="The loss whose components are listed; negative from the "
    "end.  [default: -1]",
)  # fmt: skip
@count_option("--layer", "Which layer, from 1.  [default: the top one]")
@click.option(
    "--parameter", default="Wh", help="What the map of components shows: Wx, Wh, b, input, "
    "embedding.  [default: Wh]",
)  # fmt: skip
@click.option("--untrained", is_flag=True, help="Add every run's model as it was before training.")
@click.option("--plot", metavar="FILE", help="Also draw it: a .png or .svg file.")
@click.option("--encoding", help="Encoding of the files.  [default: as the model was trained]")
@on_unknown("skip", "map", "error")
@as_json
@options_of(ModelConfig, without=UNUSED)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=1, metavar="INTEGER",
    help="Seed of a fresh model's weights.  [default: 1]",
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
    """
    config = ModelConfig(**given_of({name: options.pop(name) for name in FRESH}))
    _check_gradients(models, show, untrained)

    import numpy as np

    from charrnn import heatmap, laboratory, plots

    if plot is not None:
        plots.check(plot)
    source = laboratory.Source(files, prompt, encoding)
    if models:
        subjects = laboratory.trained(models, source, untrained)
    else:
        subjects = laboratory.fresh(config, seed, source, several=show == "compare")
    request = laboratory.Request(
        **options, whole=prompt is not None, style=heatmap.style_of(sys.stdout),
        width=shutil.get_terminal_size().columns,
    )  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):  # an exploding gradient is a result
        view = laboratory.view(show, subjects, request)
    for note in laboratory.notes(subjects, on_unknown=request.on_unknown):
        _note(note)
    if plot is not None:
        plots.save(view.draw, plot)
    if as_json:
        _print_json(view.json)
    else:
        click.echo("\n".join(view.lines))


def _check_gradients(models: Sequence[str], show: str | None, untrained: bool) -> None:
    """Refuse options that have no meaning together."""
    fail = click.get_current_context().fail
    given = given_of(click.get_current_context().params)
    if "files" in given and "prompt" in given:
        fail("--text and --prompt are both given: use one")
    for name in (*FRESH, "seed"):
        if models and name in given:
            fail(f"{flag(name)} makes a fresh model and cannot be used with {models[0]}")
    if show == "compare" and not models:
        for name in given.keys() & set(FRESH) - {"hidden_size"}:
            fail(f"{flag(name)}: --show compare without a RUN has kinds of models of its own")
    if untrained and not models:
        fail("--untrained needs a RUN: a fresh model is untrained already")
    if (len(models) > 1 or untrained) and show not in (None, "compare"):
        fail(f"--show {show} is of one model: name one, or use --show compare")


def _print_tree(tree: Mapping[str, Any], indent: str = "") -> None:
    """Nested facts, one to a line, indented by their depth."""
    width = max(
        (len(str(key)) for key, value in tree.items() if not isinstance(value, dict)), default=0
    )
    for key, value in tree.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{key}")
            _print_tree(value, indent + "  ")
        else:
            click.echo(f"{indent}{key:<{width}}  {_fact(value)}")


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "-" if value is None else word(value)
