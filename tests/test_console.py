"""Lines of text and commands: without a terminal, and in a real one."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support import ROOT, run_python
from test_session import LETTERS, session, turn

from charrnn import heatmap, surprise
from charrnn.console import Console
from charrnn.sampling import sample


def talk(*lines, on_unknown="skip", prompt="", **options):
    """What comes to standard output and to standard error, for these lines; and the session."""
    s = session(**options)
    out, notes = io.StringIO(), io.StringIO()
    keys = io.StringIO("".join(line + "\n" for line in lines))
    Console(s, on_unknown, keys, out, notes, colours=False).run(prompt)
    return out.getvalue(), notes.getvalue(), s


def test_a_line_is_continued_and_an_empty_one_goes_on():
    out, notes, s = talk("abc", "", "de")
    again = session()
    again.feed("abc")
    first, second = turn(again), turn(again)
    again.feed("de")
    want = [f"abc{first}", second, f"de{turn(again)}"]
    assert out == "".join(text + "\n" * (text[-1] != "\n") for text in want)
    assert notes == "" and s.turn == 3


def test_the_prompt_comes_first_and_is_what_sample_makes_of_it():
    out, _, s = talk(prompt="abba")
    text = sample(s.model, LETTERS, s.config, prompt="abba", seed=5)[0]
    assert out == text + "\n" * (text[-1] != "\n")


@pytest.mark.parametrize(
    ("lines", "read"),
    [
        (["ab\\", "", "/quit"], "ab\n"),
        (["ab\\", "cd\\", "ef"], "ab\ncd\nef"),
        (["ab\\\\"], "ab"),  # one \, which this model does not know
        (["//ab"], "ab"),
        (["\\", "/quit"], "\n"),  # a command is none in the middle of a text
        (["ab\\"], "ab\n"),  # the end of the lines
    ],
)
def test_what_is_read_of_lines(lines, read):
    out, _, s = talk(*lines, length=0)
    assert s.tail.replace("/quit", "").replace("/", "").replace("\\", "") == read
    assert out.replace("/quit", "") in (
        s.tail.replace("/quit", ""),
        s.tail.replace("/quit", "") + "\n",
    )


def test_settings_are_changed_and_shown():
    _, notes, s = talk(
        "/temperature 0.5", "/top_k 3", "/top-p .9", "/min-p 0.1", "/repetition-penalty 2",
        "/length 7", "/le", "/seed 12", "/stop a\\nb", "/stop", "/seed",
    )  # fmt: skip
    c = s.config
    assert (c.temperature, c.top_k, c.top_p, c.min_p) == (0.5, 3, 0.9, 0.1)
    assert (c.repetition_penalty, c.length, s.seed, s.stop) == (2, 7, 12, ("a\nb",))
    assert notes.splitlines() == [
        "temperature 0.5", "top-k 3", "top-p 0.9", "min-p 0.1", "repetition-penalty 2",
        "length 7", "length 7", "seed 12, turn 0", "stop 'a\\nb'", "stop 'a\\nb'",
        "seed 12, turn 0",
    ]  # fmt: skip
    assert talk("/stop off", stop=["a"])[2].stop == ()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/", "/ is no command: /help lists them; // begins a text with /"),
        ("/foo 3", "/foo is no command: /help lists them; // begins a text with /"),
        ("/s", "/s may be seed, stop, save: /help lists them; // begins a text with /"),
        ("/length x", "/length is 'x': it must be a whole number from 0 to 1,000,000,000"),
        ("/length -1", "/length is -1: it must be a whole number from 0 to 1,000,000,000"),
        ("/top-p 0", "/top-p is 0.0: it must be a number above 0 and at most 1"),
        ("/temperature nan", "/temperature is nan: it must be a number at least 0"),
        ("/seed -1", "/seed is '-1': it must be a whole number at least 0"),
        ("/seed 99999999999999999999", "it must be a whole number from 0 to 2**64 - 1"),
        ("/undo", "there is nothing to undo"),
        ("/save", "/save needs a NAME"),
        ("/load", "/load needs a NAME"),
        ("/load a", "a is not saved: there is nothing yet; names of files end in .safetensors"),
        ("/save no/such/folder.safetensors", "there is no text yet: nothing to save"),
    ],
)
def test_a_wrong_line_is_one_line_and_ends_nothing(line, error):
    out, notes, s = talk(line, "abc", length=3)
    assert notes.startswith("Error: ") and notes.count("\n") == 1 and error in notes
    assert out.startswith("abc") and s.turn == 1


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    _, notes, s = talk("abc", f"/save {tmp_path}/no/x.safetensors", "d", length=3)
    assert "Error: could not save" in notes and s.turn == 2


def test_unknown_characters_are_named_or_refused():
    _, notes, s = talk("abéc", length=0)
    assert notes == "prompt characters unknown to the model skipped: 'é' (once)\n"
    out, notes, s = talk("abéc", "abc", length=0, on_unknown="error")
    assert notes.startswith("Error: not in the vocabulary: 'é' (once)") and s.tail == "abc"
    assert out == "abc\n"


def test_undo_save_load_reset():
    out, notes, s = talk(
        "abc", "/save one", "def", "/undo", "gah", "/load one", "/undo", "/reset", "/undo", "/reset"
    )
    again = session()
    again.feed("abc")
    first = again.tail + turn(again)
    again.turn = 2
    again.feed("gah")
    third = again.tail + turn(again)
    where = [f"the text ends in {text[-60:]!r}" for text in (first, first, third)]
    wanted = ["saved as one", *where, "there is no text", where[2], "there is no text"]
    assert notes.splitlines() == wanted
    assert s.moment().place is None


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_help_has_every_command_with_its_value(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, notes, s = talk("/temp 0.25", "/help")
    shown = re.findall(r"^(/.*?)  ", notes, re.M)
    assert shown == [
        "/length 40", "/temperature 0.25", "/top-k 0", "/top-p 1", "/min-p 0",
        "/repetition-penalty 1", "/help", "/seed N", "/stop TEXT", "/undo", "/reset", "/save NAME",
        "/load NAME", "/quit",
    ]  # fmt: skip
    assert all(len(line) <= columns for line in notes.splitlines())
    assert "choose among the likeliest that together reach this probability" in " ".join(
        notes.split()
    )


def test_quit_ends():
    out, _, s = talk("/quit", "abc")
    assert (out, s.turn) == ("", 0)


def test_colours_stop_at_line_breaks():
    style = heatmap.Style(256, True)
    text = surprise.stream("aab\nc", [0.0, 0.0, 99.0, 1.0, 8.0], style)
    dark, bright = "\x1b[48;5;53m\x1b[97m", "\x1b[48;5;227m\x1b[30m"
    assert text == f"{dark}aa{bright}b\x1b[0m\n{bright}c\x1b[0m"
    assert surprise.stream("", [], style) == "\x1b[0m"


# --- As a process --------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
PATIENCE = 120  # seconds; compiling takes some


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    (folder / "text.txt").write_text("the time traveller said, in a café. " * 60, encoding="utf-8")
    run_python(f"""
import os
os.chdir({str(folder)!r})
import charrnn
charrnn.train("text.txt", hidden_size=16, max_steps=3, seq_length=8, batch_size=4)
""")
    return folder


def arguments(*more):
    return [sys.executable, "-m", "charrnn", "sample", "--seed", "3", "--length", "50", *more]


def environment(folder, **more):
    wanted = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "TERM": "xterm"}
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM")}
    return kept | wanted | more


def piped(folder, text, *more, **env):
    return subprocess.run(
        arguments(*more), input=text, cwd=folder, env=environment(folder, **env),
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip


def test_lines_from_a_pipe(run_folder):
    done = piped(run_folder, "the ñ\n/bad\n\n".encode(), "-i")
    assert done.returncode == 0, done.stderr
    alone = piped(run_folder, b"", "--prompt", "the ñ")
    assert done.stdout.startswith(alone.stdout)
    assert len(done.stdout.decode().replace("\n", "")) == 5 + 2 * 50
    assert b"Error: /bad is no command" in done.stderr and b"> " not in done.stdout
    assert not (run_folder / "state").exists()
    assert piped(run_folder, b"\xff\xfe\n", "-i", PYTHONIOENCODING="ascii").returncode == 0


def test_colours_without_a_terminal_are_none(run_folder):
    plain, wanted = piped(run_folder, b""), piped(run_folder, b"", "--color")
    assert wanted.stdout == plain.stdout
    assert b"no colours: they need a terminal" in wanted.stderr


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, folder, *more, command=(), **env):
        import pty

        self.master, slave = pty.openpty()
        self.found = self.modes()
        self.process = subprocess.Popen(
            [sys.executable, *command] if command else arguments(*more),
            cwd=folder, env=environment(folder, **env),
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def modes(self):
        import termios

        return termios.tcgetattr(self.master)  # both ends have the same

    def until(self, text):
        """Read until ``text`` comes; what came with it."""
        import select

        end, begin = time.monotonic() + PATIENCE, len(self.seen)
        while text not in self.seen[begin:]:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 1 << 16).decode(errors="replace")
                except OSError:
                    break  # the other side is closed
        return self.seen[begin:]

    def type(self, text):
        os.write(self.master, text.encode())

    def end(self):
        self.until("impossible")
        status = self.process.wait(PATIENCE)
        os.close(self.master)
        return status


@posix
def test_ctrl_c_stops_the_model_and_not_the_session(run_folder):
    terminal = Terminal(run_folder, "--interactive")
    assert "Ctrl-D ends" in terminal.until("> ")
    terminal.type("/length 1000000000\n")
    terminal.until("length 1000000000\r\n> ")
    terminal.type("the time\n")
    terminal.until("the time")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type("half a line")
    terminal.until("half a line")  # Python's readline waits on if Ctrl-C comes before it waits
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type("/undo\n")
    assert "there is no text" in terminal.until("\n> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    history = (run_folder / "state" / "charrnn" / "history").read_text()
    assert "the time\n/undo\n" in history and "half" not in history


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_at_the_prompt_ends_it_with_the_terminal_as_it_was(run_folder, name):
    number = getattr(signal, name)
    terminal = Terminal(run_folder, "-i")
    assert "Ctrl-D ends" in terminal.until("> ")
    terminal.type("half")
    terminal.until("half")
    assert terminal.modes() != terminal.found  # Python's readline has it
    terminal.process.send_signal(number)
    assert terminal.process.wait(PATIENCE) == 128 + number
    assert terminal.modes() == terminal.found
    os.close(terminal.master)


BUSY = """
import hashlib, sys
from charrnn.cli import cli
from charrnn.session import Session

def busy(*arguments):  # as a kernel is: C code in which no handler of Python's is run
    print("reading", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

Session.feed = busy
cli(["sample", "-i", "--prompt=the"], prog_name="charrnn")
"""


@posix
def test_a_second_ctrl_c_ends_what_does_not_hear_the_first(run_folder):
    terminal = Terminal(run_folder, command=("-c", BUSY))
    terminal.until("reading")
    terminal.type("\x03")
    time.sleep(0.5)
    assert terminal.process.poll() is None
    terminal.type("\x03")
    assert terminal.process.wait(10) == 130
    assert terminal.modes() == terminal.found
    os.close(terminal.master)


@posix
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_on_a_terminal(run_folder, no_color, coloured):
    terminal = Terminal(run_folder, "--color", "--num-samples", "2", NO_COLOR=no_color)
    assert terminal.end() == 0
    assert ("surprise: 0 [" in terminal.seen) is coloured
    assert ("\x1b[48;5;" in terminal.seen) is coloured
    assert ("no colours: " in terminal.seen) is not coloured
    plain = piped(run_folder, b"", "--num-samples", "2").stdout.decode()
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.seen).replace("\r\n", "\n")
    assert shown.endswith(plain)
