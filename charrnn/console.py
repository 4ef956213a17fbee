"""The person's side of ``sample --interactive``: lines of text and commands."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from charrnn import heatmap, signals, surprise
from charrnn.config import SampleConfig, flag
from charrnn.errors import CharRNNError, InputError
from charrnn.options import Number, word
from charrnn.sampling import unknown_note
from charrnn.session import FILE_SUFFIX, Session

SIGN = "/"  # of commands
PROMPT, MORE = "> ", ". "
MOST_LINES = 1000  # of the history file

SETTINGS = {f.name: f for f in dataclasses.fields(SampleConfig) if f.name != "num_samples"}
HELP = {
    "help": "this list, with the settings as they are",
    "seed N": "begin the random numbers of seed N",
    "stop TEXT": r"end a turn before TEXT, in which \n is a new line; off: never",
    "undo": "take back the last line and what followed it",
    "reset": "forget the text",
    "save NAME": f"keep where the text is; in a file if NAME ends in {FILE_SUFFIX}",
    "load NAME": "go back there",
    "quit": "as Ctrl-D does",
}
ABOUT = (
    "A line is read by the model, which goes on from it; an empty line lets it go on. A \\ at the "
    f"end of a line is a new line in the text, {SIGN}{SIGN} at its beginning one {SIGN}. Ctrl-C "
    "stops the model."
)


class Console:
    """A `Session` with a person, or with lines that come through a pipe.

    Parameters
    ----------
    on_unknown : what becomes of characters that the model does not know
    keys, stream, notes : where lines come from, text goes to, and all else goes to
    colours : whether new characters are coloured by their surprise
    """

    def __init__(
        self, session: Session, on_unknown: str, keys: TextIO, stream: TextIO, notes: TextIO,
        colours: bool,
    ) -> None:  # fmt: skip
        self.session, self.on_unknown = session, on_unknown
        self.keys, self.stream, self.notes = keys, stream, notes
        self.style = heatmap.style_of(stream) if colours else heatmap.Style()
        self.typed = keys.isatty()
        self.done = False
        self._line_begins = True

    def run(self, prompt: str | bytes = "") -> None:
        """Go on from ``prompt`` if there is one, then from line to line until they end."""
        if self.style.colours:
            self.note(surprise.stream_scale(self.style))
        if self.typed:
            self.note(f"{SIGN}help lists the commands; Ctrl-D ends")
        with _history(self.typed and self.stream.isatty()):
            if prompt:
                self._attempt(lambda: self.say(prompt))
            while not self.done:
                try:
                    line = self._read_line()
                    if line is None:
                        break
                    self._attempt(lambda line=line: self.take(line))  # type: ignore[misc]
                except KeyboardInterrupt:  # while a line was typed
                    if not self.typed:
                        raise
                    self.note("")
        if self.typed and not self.done:
            self.note("")

    def take(self, line: str) -> None:
        """A line: text, or a command."""
        if line.startswith(SIGN) and not line.startswith(2 * SIGN):
            name, _, value = line[len(SIGN) :].partition(" ")
            self._command(name.replace("_", "-"), value.strip())
        else:
            self.say(line[len(SIGN) :] if line.startswith(SIGN) else line)

    def say(self, text: str | bytes) -> None:
        """Let the model read ``text`` and go on."""
        session = self.session
        if text:
            session.vocabulary.encode(text, self.on_unknown)  # refuses what it must
            note = unknown_note(session.vocabulary, text, self.on_unknown)
            if note is not None:
                self.note(note)
        session.mark()
        with _kept_from_ending() as stopped:
            session.feed(text, self.on_unknown)
            self._write(text if isinstance(text, str) else text.decode("utf-8", "replace"))
            try:
                for piece in session.go_on():
                    coloured = self.style.colours > 0
                    self._write(
                        piece.text, surprise.stream(*piece, self.style) if coloured else None
                    )
                    if stopped:
                        break
            finally:
                if not self._line_begins:
                    self._write("\n")

    def note(self, text: str) -> None:
        """Say something that is not the model's."""
        self.notes.write(text + "\n")
        self.notes.flush()

    def _write(self, text: str, shown: str | None = None) -> None:
        if text:
            self.stream.write(text if shown is None else shown)
            self._line_begins = text.endswith("\n")
        self.stream.flush()

    def _attempt(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong is one line, and the session goes on."""
        try:
            action()
        except CharRNNError as error:
            self.note("Error: " + " ".join(str(error).splitlines()))

    # -- lines ----------------------------------------------------------------------------------

    def _read_line(self) -> str | None:
        r"""A line, or several that a \ joins; None at the end."""
        text, prompt = "", PROMPT
        while True:
            line = self._read(prompt)
            if line is None:
                return text or None
            if not line.endswith("\\") or line.endswith("\\\\"):
                return text + (line[:-1] if line.endswith("\\\\") else line)
            text, prompt = text + line[:-1] + "\n", MORE

    def _read(self, prompt: str) -> str | None:
        if self.typed and self.stream.isatty():
            try:
                with _terminal_kept(self.keys):
                    return input(prompt)  # by readline, if there is one
            except EOFError:
                return None
        if self.typed:
            self.notes.write(prompt)
            self.notes.flush()
        line = self.keys.readline()
        return line.removesuffix("\n") if line else None

    # -- commands -------------------------------------------------------------------------------

    def _command(self, name: str, value: str) -> None:
        names = [*map(_name, SETTINGS), *(entry.partition(" ")[0] for entry in HELP)]
        found = [n for n in names if n == name] or [n for n in names if name and n.startswith(name)]
        if len(found) != 1:
            which = f"may be {', '.join(found)}" if found else "is no command"
            raise InputError(
                f"{SIGN}{name} {which}: {SIGN}help lists them; {2 * SIGN} begins a text with {SIGN}"
            )
        field = found[0].replace("-", "_")
        if field in SETTINGS:
            self._set(field, value)
        else:
            getattr(self, f"_on_{field}")(value)

    def _set(self, field: str, value: str) -> None:
        """Change a setting, or show it."""
        if value:
            hint = SETTINGS[field].type
            given = Number(int if hint == "int" else float).convert(value, None, None)
            try:
                self.session.config = dataclasses.replace(self.session.config, **{field: given})
            except InputError as error:
                raise InputError(str(error).replace(flag(field), SIGN + _name(field))) from error
        self.note(f"{_name(field)} {self._value(field)}")

    def _value(self, field: str) -> str:
        return word(getattr(self.session.config, field))

    def _on_help(self, value: str) -> None:
        rows = [
            [f"{SIGN}{_name(field)} {self._value(field)}", f.metadata["help"]]
            for field, f in SETTINGS.items()
        ]
        rows += [[SIGN + entry, text] for entry, text in HELP.items()]
        indent = max(len(name) for name, _ in rows) + 2
        columns = max(shutil.get_terminal_size().columns, 2 * indent)
        wrap = textwrap.TextWrapper(columns, subsequent_indent=" " * indent)
        for name, text in rows:
            wrap.initial_indent = f"{name:<{indent}}"
            self.note(wrap.fill(text[0].lower() + text[1:].rstrip(".")))
        self._on_seed("")
        self._on_stop("")
        self.note(textwrap.fill(ABOUT, columns))

    def _on_seed(self, value: str) -> None:
        if value:
            if not value.isdecimal():
                raise InputError(f"{SIGN}seed is {value!r}: it must be a whole number at least 0")
            self.session.seed = int(value)
        self.note(f"seed {self.session.seed}, turn {self.session.turn}")

    def _on_stop(self, value: str) -> None:
        if value:
            text = value.replace("\\n", "\n").replace("\\t", "\t")
            self.session.stop = () if value == "off" else (text,)
        self.note("stop " + (" or ".join(map(repr, self.session.stop)) or "off"))

    def _on_undo(self, value: str) -> None:
        self.session.undo()
        self._say_where()

    def _on_reset(self, value: str) -> None:
        self.session.mark()
        self.session.reset()
        self._say_where()

    def _on_save(self, value: str) -> None:
        self.session.save(_required("save", value))
        self.note(f"saved as {value}")

    def _on_load(self, value: str) -> None:
        before = self.session.moment()
        self.session.load(_required("load", value))
        self.session.mark(before)
        self._say_where()

    def _on_quit(self, value: str) -> None:
        self.done = True

    def _say_where(self) -> None:
        tail = self.session.tail
        self.note(f"the text ends in {tail!r}" if tail else "there is no text")


def _name(field: str) -> str:
    return field.replace("_", "-")


def _required(command: str, value: str) -> str:
    if not value:
        raise InputError(f"{SIGN}{command} needs a NAME")
    return value


@contextlib.contextmanager
def _kept_from_ending() -> Iterator[list[int]]:
    """Ctrl-C is noted in the list, and ends nothing; a second one that is not heard ends all."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        with signals.ending_at_second([signal.SIGINT]):
            yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _terminal_kept(keys: TextIO) -> Iterator[None]:
    """While a line is edited, what kills the process leaves the terminal as it was found."""
    if os.name == "nt":
        yield
        return
    import termios

    modes = termios.tcgetattr(keys)

    def end(number: int) -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keys, termios.TCSANOW, modes)
        os._exit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:  # not for it to end: readline may not be back before the next key
        signal.signal(number, lambda number, frame: None)
    try:
        with signals.heard(numbers, end):
            yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _history(typed: bool) -> Iterator[None]:
    """Editing of lines and their history, by readline where Python has it (not on Windows)."""
    if not typed:
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(home) / "charrnn" / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(MOST_LINES)
        with contextlib.suppress(OSError):  # no history is no reason for an error
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(path)
