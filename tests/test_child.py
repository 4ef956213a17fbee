"""Objects in processes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from charrnn.child import Child, ChildError


class Counter:
    """Counts, in the child's process."""

    def __init__(self, start: int, left: Path) -> None:
        self.value, self.left = 10 // start, left

    def add(self, n: int) -> int:
        self.value += n
        return self.value

    def process(self) -> int:
        return os.getpid()

    def end(self) -> None:
        os._exit(3)

    def close(self) -> None:
        self.left.write_text("closed")


def test_a_child_answers_and_is_closed(tmp_path: Path) -> None:
    child = Child(Counter, 2, tmp_path / "left")
    pid = child.ask("process")
    assert pid != os.getpid()
    assert [child.ask("add", n) for n in (1, 2)] == [6, 8]
    with pytest.raises(ChildError, match="TypeError"):
        child.ask("add", "x")
    assert child.ask("add", 1) == 9  # an error is not the end
    if os.name != "nt":
        os.kill(pid, signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
        assert child.ask("add", 1) == 10
    child.close()
    assert (tmp_path / "left").read_text() == "closed"
    with pytest.raises(ChildError):
        child.ask("add", 1)


def test_a_child_that_cannot_be_made_or_ends(tmp_path: Path) -> None:
    child = Child(Counter, 0, tmp_path / "left")
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        child.ask("process")
    child.close()
    child = Child(Counter, 1, tmp_path / "left")
    with pytest.raises(ChildError, match="Counter: the process ended, status 3"):
        child.ask("end")
    child.close()
    assert not (tmp_path / "left").exists()
