"""How many threads are fastest: found among a run's own first steps, which count as any others.

Counts take turns, downwards and upwards, and their medians decide. It begins with all threads and
goes down until fewer are hopeless, after two turns, so that little is lost where a step takes
seconds: what is lost most often are two steps of the next smaller count.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator

from charrnn.threads import Team

ALL = 8
"""Up to here every number of threads is tried, then the powers of two and all there are."""

ROUNDS = 7
"""Turns of each count."""

TURN, LEAST, STEPS = 2e-3, 3, 32
"""Seconds of a turn, about, and steps, at the least and at the most."""

SLOW = 0.05
"""Seconds from which on one step is a turn. Quicker ones are preceded by one that is not counted:
it wakes threads, fills caches and, the very first, makes tables of calls (2 to 5 ms)."""

HOPELESS, SLOWER, LEVEL = 1.5, 1.1, 1.03
"""Times the best: what is given up after its first turns, and after several; and up to where more
threads are kept than needed, since validation may have more to do for them."""

PAUSE, AGAIN, LONGER = 60.0, 100, 2
"""The next search, since others may have kept processors busy, begins after so many seconds of
steps, or so many times what the last one took, or so many times the last pause, if that is more."""


class Tuner:
    """Resizes a team from step to step until it has found the fastest size, and now and then again.

    Attributes
    ----------
    searching : whether it does
    seconds : number of threads -> median time of a step, of all that the last search has tried
    """

    def __init__(self, team: Team) -> None:
        self.team = team
        self.searching = False
        self.seconds: dict[int, float] = {}
        self._size = team.most
        """What the last search has found."""
        self._spent = 0.0
        """Seconds of steps since the search, or the pause after it, began."""
        self._pause = 0.0
        """Seconds of steps from a search to the next."""
        self._wanted = False

    def begin(self) -> None:
        """Search, if there is something to choose from."""
        if self.team.most > 1:
            self.searching, self.seconds, self._wanted = True, {}, True
            self._search = self._turns()
            self.team.resize(next(self._search))

    def stop(self) -> None:
        """Never search any more: the team stays as it is."""
        self.searching = self._wanted = False

    def took(self, seconds: float) -> str | None:
        """Hear how long the step took that was made with the team as it is.

        Returns what to tell a person when it has found another size than before.
        """
        self._spent += seconds
        if self.searching:
            try:
                self.team.resize(self._search.send(seconds))
            except StopIteration as end:
                return self._end(end.value)
        elif self._wanted and self._spent > self._pause:
            self.begin()
        return None

    def _end(self, left: list[int]) -> str | None:
        """The search has ended with these sizes."""
        self._pause = max(PAUSE, AGAIN * self._spent, LONGER * self._pause)
        self._spent, self.searching = 0.0, False
        bound, before = LEVEL * min(self.seconds[n] for n in left), self._size
        self._size = max(n for n in left if self.seconds[n] <= bound)
        self.team.resize(self._size)
        if self._size == before:
            return None
        times = ", ".join(f"{milliseconds(s)} with {n}" for n, s in self.seconds.items())
        return f"trains with {self._size} of {self.team.most} threads (ms a step: {times})"

    def _turns(self) -> Generator[int, float, list[int]]:
        """Yields the size for the next step and is sent its time; returns what may be the best."""
        counts = sizes(self.team.most)
        yield counts[-1]  # the first step of all also loads or compiles the kernels
        self._spent = 0.0
        usual = yield counts[-1]
        turns: dict[int, list[float]] = {}
        for round in range(ROUNDS):
            for n in counts if round % 2 else reversed(counts):
                usual = yield from self._turn(n, usual)
                bound = HOPELESS * min(self.seconds.values(), default=0)
                if round == 0 and usual > bound:  # the first one, or bad luck
                    usual = min(usual, (yield from self._turn(n, usual)))
                turns.setdefault(n, []).append(usual)
                self.seconds[n] = statistics.median(turns[n])
                if round == 0 and usual > bound > 0:
                    break
            best = {n: min(times) for n, times in turns.items()}  # others may have had bad luck
            limit = (SLOWER if round else HOPELESS) * min(best.values())
            counts = [n for n in counts if n in best and best[n] <= limit]
            if len(counts) == 1:
                break
        return counts

    def _turn(self, n: int, usual: float) -> Generator[int, float, float]:
        """Some steps of ``n`` threads; returns the median of their times."""
        if usual >= SLOW:
            return (yield n)
        yield n
        times: list[float] = []
        while len(times) < LEAST or (sum(times) < TURN and len(times) < STEPS):
            times.append((yield n))
        return statistics.median(times)


def sizes(most: int) -> list[int]:
    """Numbers of threads that are tried where there may be ``most``, in order."""
    return [n for n in range(1, most + 1) if n <= ALL or n == most or n & (n - 1) == 0]


def milliseconds(seconds: float) -> str:
    """A number of three digits or more."""
    return f"{1e3 * seconds:,.0f}" if seconds > 0.1 else f"{1e3 * seconds:.3g}"
