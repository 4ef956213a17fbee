"""The command line: options -> config -> one library call.

Nothing heavy is imported before a command runs, so that ``charrnn --help`` is instant.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
import traceback
from typing import Any, NoReturn, TextIO

import click

from charrnn import __version__, cache, completion, signals
from charrnn.commands import VERBOSE, note
from charrnn.commands.bench import bench
from charrnn.commands.eval import evaluate
from charrnn.commands.gradients import gradients
from charrnn.commands.info import info
from charrnn.commands.inspect import inspect
from charrnn.commands.monitor import monitor
from charrnn.commands.plot import plot
from charrnn.commands.runs import runs
from charrnn.commands.sample import sample
from charrnn.commands.train import train
from charrnn.errors import CharRNNError, InputError, SaveError

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
            with signals.not_lost_in_callbacks():
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
        except click.Abort as error:  # click makes it from KeyboardInterrupt, and from EOFError
            if isinstance(error.__cause__, EOFError):  # torn bytecode, for example
                _fail(f"a file ends too early: {error.__cause__}", SaveError.exit_code)
            sys.exit(128 + signal.SIGINT)
        finally:
            for stream in (sys.stdout, sys.stderr):
                _flush_or_forget(stream)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (CharRNNError, MemoryError):
            _trace(ctx)
            raise
        except OSError as error:
            if error.errno != (errno.EINVAL if os.name == "nt" else errno.EPIPE):
                _trace(ctx)
                raise
            _flush_or_forget(sys.stdout)  # as with `| head`: nobody reads on, and that is no error
            return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help":  # what strangers try first
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [args[1], "--help"]
        name, known = args[0], self.list_commands(ctx)
        if not name.startswith("-") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            ctx.fail(
                f"there is no command {name!r}"
                + (f", did you mean {close[0]!r}?" if close else f": use {', '.join(known)}")
            )
        return super().resolve_command(ctx, args)


def _flush_or_forget(stream: TextIO) -> None:
    """Leave nothing to be written at Python's end: if that failed, it would be the exit status."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _trace(ctx: click.Context) -> None:
    """With --verbose: where the error came from, before its line."""
    if VERBOSE in ctx.meta:
        click.echo(traceback.format_exc(), file=sys.stderr, nl=False)


def _fail(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        click.echo("Error: " + " ".join(message.splitlines()), file=sys.stderr)
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
    charrnn train --help         all options of a command
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    if ctx.invoked_subcommand != "train":  # which counts what it compiles, and may be quiet
        cache.announce = note


for command in (train, sample, evaluate, monitor, plot, runs, info, inspect, gradients, bench):
    completion.prepare(command)
    cli.add_command(command)
