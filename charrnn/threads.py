"""A team of threads that walk through phases of kernel calls together.

Kernels release the interpreter's lock, so plain Python threads run them side by side. Each thread
has a table of calls of its own, and meets the others after every phase by spinning on a counter
(a microsecond) rather than through the interpreter and the system (50). Who does what is fixed,
and the items of a phase never write to the same place: timing cannot show in the results.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from charrnn.kernels.pack import aligned_zeros
from charrnn.kernels.program import COMPILED, DONE, GIVEN, YIELD, Call, Table, give, meet, serve
from charrnn.kernels.seat import ALONE, MET, NOWHERE, join, seats

LINE = 16
"""Columns that one thread takes at the least: a cache line of float32."""
MEMBERSHIP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

Item = Sequence[Call]
"""Calls that are made one after the other."""

Phase = Sequence[Item]
"""Items that may be done in any order, or side by side."""


class Part(NamedTuple):
    """What one thread takes of a window: rows r0 <= r < r1, and units if its seat is shared.

    What is not shared by units is done row by row, also by those who share units.
    """

    r0: int
    r1: int
    arrivals: np.ndarray
    seat: np.ndarray

    @property
    def rows(self) -> tuple[int, int]:
        return self.r0, self.r1

    def join(self) -> list[Call]:
        """The call that waits for all who share the units, if any do."""
        return [] if self.seat is ALONE else [(join, (self.arrivals, self.seat))]


def available() -> int:
    """Processors that this process may use: those it is bound to, or its control groups' share."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, math.ceil(min([count, *_quotas(MEMBERSHIP, CGROUPS)])))


def _quotas(membership: Path, root: Path) -> Iterator[float]:
    """Processors that the control groups of this process allow, where they set a limit (Linux).

    ``membership`` has the groups, a line each: number, controllers, path; ``root`` their files. In
    a container, which sees its own group as the root, the path may lead nowhere: then the root is
    asked alone.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # a group has no more than those above it
            if folder == top.parent:
                break
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                yield _quota(folder, version=1 if controllers else 2)


def _quota(folder: Path, version: int) -> float:
    """Microseconds of processor time in each period, over the period; infinite if unlimited."""
    if version == 2:
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
    return math.inf if quota == "max" or int(quota) < 0 else int(quota) / int(period)


def memory() -> float:
    """Bytes of memory that the machine has; infinite if it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


class Way(NamedTuple):
    """A number of threads that share work in the usual way, or contrary to it: see `Team`."""

    threads: int
    contrary: bool = False


class Team:
    """``size`` threads, the caller's included. The others start with the first shared work.

    Programs are for as many threads as the team has when they are made. Who keeps some while the
    team is resized keeps some for every size.

    Attributes
    ----------
    contrary : sizes at which training shares units where it would share rows, or the reverse
    """

    def __init__(self, size: int) -> None:
        self.most = size
        self.arrivals = aligned_zeros((8,), np.int64)  # each counter has a cache line of its own
        self._seats: dict[int, np.ndarray] = {}
        self._helpers: list[_Helper] = []
        self._process = os.getpid()
        self.contrary: set[int] = set()
        self.resize(size)

    def resize(self, size: int) -> None:
        """Let ``size`` threads work from now on, at most as many as at first."""
        if not 1 <= size <= self.most:
            raise ValueError(f"{size} of {self.most} threads")
        self.size = size
        self.seats = self._seats.setdefault(size, seats(size))

    @property
    def way(self) -> Way:
        """The way it works now."""
        return Way(self.size, self.size in self.contrary)

    def parts(self, B: int, count: int, units: bool, grain: int = 1) -> list[Part]:
        """A batch of B rows in ``count`` parts, or fewer where there are no rows for them.

        Less than ``grain`` rows are not worth a part, because they take as long as so many.

        With ``units`` all of the team share the units, even those without rows: their parts have
        to be the items of one phase, because they wait for each other.
        """
        if units:
            shared = [(self.arrivals, seat) for seat in self.seats]
        else:
            shared = [(NOWHERE, ALONE)] * min(count, -(-B // grain))
        return [Part(*share(B, i, len(shared)), *s) for i, s in enumerate(shared)]

    def program(self, *phases: Phase) -> Program:
        """Make phases ready to run one after the other; compiles what is not compiled yet."""
        return Program(self, phases)

    def helpers(self, count: int) -> list[_Helper]:
        """Of the other threads so many; after a fork they are in the parent alone."""
        if self._process != os.getpid():
            self._helpers, self._process = [], os.getpid()
        while len(self._helpers) < count:
            self._helpers.append(_Helper())
        return self._helpers[:count]

    def close(self) -> None:
        """Let the helpers end."""
        for helper in self._helpers:
            helper.give(0, -1, 0)
        self._helpers.clear()


class Program:
    """Phases of calls, as one table for each thread that takes part."""

    def __init__(self, team: Team, phases: Sequence[Phase]) -> None:
        self.team, self.seats = team, team.seats
        self.parties = min(team.size, max([1, *map(len, phases)])) if COMPILED else 1
        calls: list[list[Call]] = [[] for _ in range(self.parties)]
        for phase in phases:
            for i, item in enumerate(phase):
                calls[i % self.parties] += item
            for mine, seat in zip(calls, team.seats, strict=False):
                if self.parties > 1:
                    mine.append((meet, (team.arrivals, seat, self.parties, YIELD)))
        self.tables = [Table(c) for c in calls]

    def run(self, rounds: int = 1) -> None:
        """Go through all phases ``rounds`` times; the last item is finished on return."""
        if self.parties == 1:
            self.tables[0].walk(rounds)
            return
        team, others = self.team, self.tables[1:]
        self.seats[:, MET] = team.arrivals[0]
        try:
            for helper, table in zip(team.helpers(len(others)), others, strict=True):
                helper.give(table.address, len(table.calls), rounds)
            self.tables[0].walk(rounds)
        except BaseException:  # Ctrl-C on the way in: nobody may wait for this thread
            team.arrivals[0] += 1 << 40
            for helper in team.helpers(len(others)):
                helper.finish()
            raise


class _Helper:
    """A thread that walks through the tables that it is given."""

    def __init__(self) -> None:
        self._box = aligned_zeros((8,), np.int64)
        self._bell: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=self._work, name="charrnn", daemon=True).start()

    def give(self, table: int, rows: int, rounds: int) -> None:
        """The address of the next table and its size; -1 rows end the thread."""
        if give(self._box, table, rows, rounds):
            self._bell.put(None)

    def finish(self) -> None:
        """Wait until all that was given is done."""
        while self._box[DONE] < self._box[GIVEN]:
            time.sleep(1e-3)

    def _work(self) -> None:
        while not serve(self._box):
            self._bell.get()


def share(total: int, part: int, parts: int, multiple: int = 1) -> tuple[int, int]:
    """Bounds of one of ``parts`` nearly equal parts of ``range(total)``; it may be empty.

    Bounds are multiples of ``multiple``, but for the last one.
    """
    units = -(-total // multiple)
    return (
        min(total, units * part // parts * multiple),
        min(total, units * (part + 1) // parts * multiple),
    )


def dealt(calls: Sequence[Call], parts: int) -> Phase:
    """A run of calls for each of so many threads."""
    bounds = [share(len(calls), part, parts) for part in range(parts)]
    return [calls[first:last] for first, last in bounds]
