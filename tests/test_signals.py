"""Ctrl-C where Python cannot raise, in a callback of the compiler's, and while modules are read."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

from charrnn import signals


@ctypes.CFUNCTYPE(None)
def interrupted() -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0)  # here at the latest the handler has run


@ctypes.CFUNCTYPE(None)
def broken() -> None:
    raise ValueError("of the callback")


def test_ctrl_c_in_a_callback_comes_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    began = time.monotonic()
    with signals.not_lost_in_callbacks(), pytest.raises(KeyboardInterrupt):
        interrupted()
        time.sleep(30)
    if os.name != "nt":  # where nothing wakes a thread that sleeps
        assert time.monotonic() - began < 20
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is sys.__unraisablehook__


def test_what_else_a_callback_raises_is_reported_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with signals.not_lost_in_callbacks():
        broken()
    assert [report.exc_type for report in told] == [ValueError]


@pytest.mark.skipif(os.name == "nt", reason="there a process does not end by a signal")
def test_ctrl_c_while_the_modules_are_read_ends_without_a_word():
    code = """
import signal, sys
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "charrnn.monitor":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)
from charrnn.__main__ import main
sys.argv = ["charrnn", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


COMMANDS = [
    "sample none", "sample -v none", "eval none x", "info none", "inspect none", "gradients none",
    "train none", "plot none --output=a.png", "monitor none", "runs none",
]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_ctrl_c_while_a_command_reads_modules_that_forget_it_ends_the_process(line):
    """NumPy's for random numbers do, in callbacks of their own."""
    code = """
import signal, sys
class Watching:
    def find_spec(self, name, *rest):
        if name == "numpy.random":
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
sys.meta_path.insert(0, Watching())
signal.signal(signal.SIGINT, signal.default_int_handler)
import atexit
def end():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("handled again")
atexit.register(end)
from charrnn.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
    assert done.stdout == "handled again\n"
