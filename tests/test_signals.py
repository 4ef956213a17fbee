"""Ctrl-C where Python cannot raise: in a callback from foreign code, such as the compiler's."""

from __future__ import annotations

import ctypes
import signal
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
    with signals.not_lost_in_callbacks(), pytest.raises(KeyboardInterrupt):
        interrupted()
        time.sleep(30)
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is sys.__unraisablehook__


def test_what_else_a_callback_raises_is_reported_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with signals.not_lost_in_callbacks():
        broken()
    assert [report.exc_type for report in told] == [ValueError]
