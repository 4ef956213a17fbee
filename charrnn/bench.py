"""How fast this machine trains a configuration: by threads, against the limit, against PyTorch.

A step is all that the trainer does in one: forward, BPTT, clipping, update, events, metrics. The
sides take turns of a fraction of a second, and while one calculates the other sleeps.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from charrnn import cells
from charrnn.child import Child, ChildError
from charrnn.config import Config, ModelConfig
from charrnn.kernels.peak import peak_flops
from charrnn.peer import PAUSE, Task, Torch, lacking
from charrnn.trainer import PACE, Run, Text
from charrnn.truncation import plan
from charrnn.tuner import HOPELESS, milliseconds
from charrnn.vocab import Vocabulary

FIELD: dict[str, Any] = dict(
    model="lstm", num_layers=2, hidden_size=128, batch_size=50, seq_length=50, dropout=0.0,
    optimizer="adam",
)  # fmt: skip
"""The configuration that char-rnn and those after it begin with."""

TURNS, SECONDS = 3, 0.4
"""Turns of each number of threads, and how long one is; a step at the least."""

SAME = {"float64": 1e-9, "float32": 1e-5, "bf16": 1e-4}
"""How far the sides' losses may be apart, relative."""


def flop(config: ModelConfig, vocab_size: int) -> float:
    """Useful operations of the way there for a character: a multiply-add, two, for every weight.

    A training step has three times as many. Rows that are read by character cost none.
    """
    H, L, E = config.hidden_size, config.num_layers, config.embedding_size
    G = cells.get(config.model, config.activation).gates
    return 2 * (G * H * H * (2 * L - 1) + H * vocab_size + G * H * E)


class Ours:
    """The trainer itself, event by event, on a random text; ``pace`` is that of `Run.events`."""

    def __init__(self, task: Task, pace: float = PACE) -> None:
        self.task = task
        endless = dict(max_steps=10**9, epochs=None, eval_every=0, checkpoint_every=0)
        config = Config.from_options(
            task.config.options() | endless | {"seq_length": task.seq_length}
        )
        symbols = tuple(chr(0x10000 + i) for i in range(task.vocab_size))
        ids = task.ids()
        windows, _ = plan(config.data, ids)
        text = Text(Vocabulary("char", symbols), ids, ids[:0], ids[:0], windows, {}, [])
        self.folder = tempfile.TemporaryDirectory()
        self.run = Run(Path(self.folder.name), config, text)
        self.model, self.team = self.run.model, self.run.model.team
        self.model.initialize(1)
        self._events = self.run.events(pace)

    def weights(self) -> dict[str, Any]:
        """Under PyTorch's names."""
        return self.model.to_torch(self.model.params)

    def step(self) -> int:
        """Training steps, until there is an event of them; how many."""
        while (event := next(self._events))["event"] != "step":
            pass
        return event["steps"]

    def ask(self, method: str, *arguments: Any) -> Any:
        """As `charrnn.child.Child.ask`."""
        return getattr(self, method)(*arguments)

    def use(self, threads: int) -> None:
        """Calculate with so many threads from now on."""
        self.team.resize(threads)

    def train(self, seconds: float) -> float:
        """Characters per second, as soon as the run has found how to share its work."""
        while self.run.tuner.searching:
            self.step()
        self.run.tuner.stop()
        return self.task.rate(self.step, seconds)

    def window_loss(self) -> float:
        """Mean nats of the task's window from a zero state, without dropout."""
        losses, _ = self.model.losses(*self.task.window())
        return float(losses.mean(dtype="float64"))

    def limit(self, seconds: float = 0.1) -> float:
        """Operations per second of the multiply-add units of all threads."""
        self.team.resize(self.team.most)
        return peak_flops(self.team, self.task.config.model.dtype, seconds)

    def close(self) -> None:
        """Remove what a run leaves behind."""
        self._events.close()  # type: ignore[attr-defined]
        self.folder.cleanup()


def measure(task: Task, torch: bool) -> dict[str, Any]:
    """A JSON-ready report on a task; with ``torch`` PyTorch is measured too.

    Returns
    -------
    dict
        ``configuration``, ``parameters``; ``compiled``: kernels, 0 if all came from the cache;
        ``start_seconds``: what the first step took beyond a usual one; ``limit_gflops``;
        ``charrnn`` and ``torch``: lists of ``threads``, ``chars_per_second`` (median), ``spread``
        ((largest - smallest) / median; null of one turn), ``ms_per_step`` and ``share`` (of the
        limit); ``ratio``: how many times as fast as PyTorch, each with its best number of threads;
        ``loss_difference``: relative; ``problem``: why there are no figures of PyTorch. What there
        is none of is null.
    """
    ours, peer, difference = Ours(task), None, None
    try:
        report = {"configuration": task.title, "parameters": ours.model.params.count, **start(ours)}
        problem = _problem(task, torch)
        if problem is None:
            peer = Child(Torch, task, ours.weights())
            try:
                difference = _difference(task, ours, peer)
            except ChildError as error:
                problem = str(error)
        timed = _timed(task, ours, peer if problem is None else None)
        return report | timed | {"loss_difference": difference, "problem": problem}
    finally:
        ours.close()
        if peer is not None:
            peer.close()


def start(ours: Ours) -> dict[str, Any]:
    """Take the first steps: kernels are compiled or loaded, numbers of threads tried."""
    compiled = len(ours.run.uncompiled())
    first, usual = _step_seconds(ours), _step_seconds(ours)
    while ours.run.tuner.searching:
        usual = min(usual, _step_seconds(ours))
    ours.run.tuner.stop()
    return {"compiled": compiled, "start_seconds": first - usual}


def _problem(task: Task, torch: bool) -> str | None:
    """Why PyTorch is not measured."""
    if not torch:
        return "PyTorch is left out"
    option = lacking(task.config)
    return f"PyTorch's modules have no {option}" if option else None


def _difference(task: Task, ours: Ours, peer: Child) -> float:
    """How far the sides' losses are apart."""
    c = task.config.model
    mine, theirs = ours.window_loss(), peer.ask("window_loss")
    difference = abs(mine - theirs) / abs(mine)
    if not difference <= SAME["bf16" if c.precision == "bf16" else c.dtype]:  # NaN too
        raise ChildError(f"PyTorch's loss is {theirs:.7g} where ours is {mine:.7g}")
    return difference


def _timed(task: Task, ours: Ours, peer: Child | None) -> dict[str, Any]:
    """Both sides in turn, with every number of threads that is worth it."""
    counts = sorted(ours.run.tuner.seconds) or [ours.team.size]
    sides: dict[str, Callable[..., Any]] = {"charrnn": ours.ask}
    if peer is not None:
        sides["torch"] = peer.ask
        for n in counts:
            peer.ask("use", n)
            peer.ask("train", SECONDS / 2)  # warm up
    rates: dict[str, dict[int, list[float]]] = {side: {n: [] for n in counts} for side in sides}
    limit = 0.0
    for i in range(TURNS):
        for side, ask in sides.items():
            time.sleep(PAUSE if peer is not None else 0)
            worth = _worth(rates[side])
            for n in worth if i % 2 else reversed(worth):
                ask("use", n)
                rates[side][n].append(ask("train", SECONDS))
            if side == "charrnn":
                limit = max(limit, ours.limit())
    work = 3 * flop(task.config.model, task.vocab_size)
    found: dict[str, Any] = {"limit_gflops": limit / 1e9, "torch": None, "ratio": None}
    for side in sides:
        found[side] = [_row(task, n, r, work / limit) for n, r in rates[side].items()]
    if peer is not None:
        best = [max(rates[side].values(), key=statistics.median) for side in sides]
        found["ratio"] = statistics.median(a / b for a, b in zip(*best, strict=False))
    return found


def _worth(rates: dict[int, list[float]]) -> list[int]:
    """Numbers of threads that may be the best."""
    best = max((max(r, default=0.0) for r in rates.values()), default=0.0)
    return [n for n, r in rates.items() if not r or HOPELESS * max(r) >= best]


def _row(task: Task, threads: int, rates: Sequence[float], share: float) -> dict[str, Any]:
    rate = statistics.median(rates)
    return {
        "threads": threads,
        "chars_per_second": rate,
        "spread": (max(rates) - min(rates)) / rate if len(rates) > 1 else None,
        "ms_per_step": 1e3 * task.batch_size * task.seq_length / rate,
        "share": share * rate,
    }


def _step_seconds(ours: Ours) -> float:
    began = time.perf_counter()
    steps = ours.step()
    return (time.perf_counter() - began) / steps


def lines(report: dict[str, Any]) -> list[str]:
    """A report of `measure` as a table."""
    kernels, seconds = report["compiled"], f"{max(report['start_seconds'], 0):.1f} s"
    made = f"{kernels} kernels compiled in {seconds}, once per installation"
    table = [["", "threads", "chars/s", "spread", "ms a step", "of the limit"]]
    for side, name in (("charrnn", "charrnn"), ("torch", "PyTorch")):
        for row in report[side] or ():
            spread = "" if row["spread"] is None else f"{row['spread']:.0%}"
            table.append(
                [name, str(row["threads"]), f"{row['chars_per_second']:,.0f}", spread,
                 milliseconds(row["ms_per_step"] / 1e3), f"{row['share']:.0%}"]
            )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    out = [
        f"{report['configuration']}: {report['parameters']:,} parameters",
        *(
            "  " + "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
            for name, *cells in table
        ),
        f"  limit    {report['limit_gflops']:,.0f} GFLOP/s: multiply-adds on all threads",
        f"  kernels  {made if kernels else f'from the cache in {seconds}'}",
    ]
    if report["ratio"] is not None:
        out.append(
            f"  ratio    {report['ratio']:.2f} times as fast as PyTorch, same loss within "
            f"{report['loss_difference']:.0e}"
        )
    elif report["problem"]:
        out.append(f"  no ratio: {report['problem']}")
    return out


def machine() -> str:
    """Name of the processor."""
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        for line in cpu.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of all that takes part."""
    found = {"Python": platform.python_version()}
    for name in ("charrnn", "numba", "numpy", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
