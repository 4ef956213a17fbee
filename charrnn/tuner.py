"""How many threads are fastest, and what they had best share: found among a run's own first steps.

These count as any others. Numbers of threads take turns, downwards and upwards, and their medians
decide. It begins with all threads and goes down until fewer are hopeless, after two turns, so that
little is lost where a step takes seconds: what is lost most often are two steps of the next smaller
number. Then the best number shares a layer's units where it has shared the batch, or the reverse,
in turn with the usual way.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator

from charrnn.threads import Team, Way

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


CLEARLY = 1.015
"""Times faster that the other way of sharing has to be, in the median and at best: what others do
meanwhile may slow down most turns of the usual way."""


class Tuner:
    """Changes a team from step to step until it has found the fastest way, and now and then again.

    Parameters
    ----------
    sizes : numbers of threads to choose from, in order
    by_units : number of threads -> whether they would share units, None if they have no choice

    Attributes
    ----------
    searching : whether it does
    seconds : number of threads -> median time of a step, of all that the last search has tried
    """

    def __init__(
        self, team: Team, sizes: list[int], by_units: Callable[[int], bool | None]
    ) -> None:
        self.team, self.sizes, self._by_units = team, sizes, by_units
        self.searching = False
        self.seconds: dict[int, float] = {}
        self._found = Way(team.most)
        """What the last search has found."""
        self._spent = 0.0
        """Seconds of steps since the search, or the pause after it, began."""
        self._pause = 0.0
        """Seconds of steps from a search to the next."""
        self._wanted = False

    def begin(self) -> None:
        """Search, if there is something to choose from."""
        if len(self.sizes) > 1 or self._by_units(self.sizes[-1]) is not None:
            self.searching, self._wanted = True, True
            self._search = self._turns()
            self._go(next(self._search))

    def _go(self, way: Way) -> None:
        """Let the team work this way from now on."""
        change = self.team.contrary.add if way.contrary else self.team.contrary.discard
        change(way.threads)
        self.team.resize(way.threads)

    def stop(self) -> None:
        """Never search any more: the team stays as it is."""
        self.searching = self._wanted = False

    def took(self, seconds: float) -> str | None:
        """Hear how long the step took that was made with the team as it is.

        Returns what to tell a person when it has found another way than before.
        """
        self._spent += seconds
        if self.searching:
            try:
                self._go(self._search.send(seconds))
            except StopIteration as end:
                return self._end(end.value)
        elif self._wanted and self._spent > self._pause:
            self.begin()
        return None

    def _end(self, found: Way) -> str | None:
        """The search has ended and found this."""
        self._pause = max(PAUSE, AGAIN * self._spent, LONGER * self._pause)
        self._spent, self.searching = 0.0, False
        before, self._found = self._found, found
        self._go(found)
        news = []
        if found.threads != before.threads:
            times = ", ".join(f"{milliseconds(s)} with {n}" for n, s in self.seconds.items())
            text = f"trains with {found.threads} of {self.team.most} threads"
            news.append(f"{text} (ms a step: {times})")
        if found.contrary != before.contrary:
            units = bool(self._by_units(found.threads)) != found.contrary
            shared = ("a layer's units", "the batch")[:: 1 if units else -1]
            news.append(f"its threads share {shared[0]}, not {shared[1]}: faster here")
        return "; ".join(news) or None

    def _turns(self) -> Generator[Way, float, Way]:
        """Yields the way of the next step and is sent its time; returns the best."""
        ways = [Way(n) for n in self.sizes]
        yield ways[-1]  # the first step of all also loads or compiles the kernels
        self._spent = 0.0
        usual = yield ways[-1]
        turns, left = yield from self._compare(ways, usual)
        seconds = {way: statistics.median(times) for way, times in turns.items()}
        self.seconds = {way.threads: taken for way, taken in seconds.items()}
        bound = LEVEL * min(seconds[way] for way in left)
        best = max(way for way in left if seconds[way] <= bound)
        if self._by_units(best.threads) is None:
            return best
        other = best._replace(contrary=True)
        turns, _ = yield from self._compare([other, best], seconds[best], best)
        faster = (CLEARLY * of(turns[other]) < of(turns[best]) for of in (min, statistics.median))
        return other if all(faster) else best

    def _compare(
        self, ways: list[Way], usual: float, kept: Way | None = None
    ) -> Generator[Way, float, tuple[dict[Way, list[float]], list[Way]]]:
        """Ways take turns, the last one first: their times, and which ways may be the best.

        Only the one that is ``kept`` is never given up before the end.
        """
        turns: dict[Way, list[float]] = {}
        seconds: dict[Way, float] = {}
        for round in range(ROUNDS):
            for way in ways if round % 2 else reversed(ways):
                usual = yield from self._turn(way, usual)
                bound = HOPELESS * min(seconds.values(), default=0)
                if round == 0 and usual > bound:  # the first one, or bad luck
                    usual = min(usual, (yield from self._turn(way, usual)))
                turns.setdefault(way, []).append(usual)
                seconds[way] = statistics.median(turns[way])
                if round == 0 and usual > bound > 0:
                    break
            best = {way: min(times) for way, times in turns.items()}  # others may have had bad luck
            limit = (SLOWER if round else HOPELESS) * min(best.values())
            ways = [w for w in ways if w == kept or (w in best and best[w] <= limit)]
            if len(ways) == 1:
                break
        return turns, ways

    def _turn(self, way: Way, usual: float) -> Generator[Way, float, float]:
        """Some steps made this way; returns the median of their times."""
        if usual >= SLOW:
            return (yield way)
        yield way
        times: list[float] = []
        while len(times) < LEAST or (sum(times) < TURN and len(times) < STEPS):
            times.append((yield way))
        return statistics.median(times)


def sizes(most: int) -> list[int]:
    """Numbers of threads that are tried where there may be ``most``, in order."""
    return [n for n in range(1, most + 1) if n <= ALL or n == most or n & (n - 1) == 0]


def milliseconds(seconds: float) -> str:
    """A number of three digits or more."""
    return f"{1e3 * seconds:,.0f}" if seconds > 0.1 else f"{1e3 * seconds:.3g}"
