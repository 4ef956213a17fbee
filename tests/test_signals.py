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
