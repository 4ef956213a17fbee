"""Checks what the main table does not show: odd shapes, threads, sampling, start, long windows.

Prints Markdown tables; every line ends with a bar and whether it was reached in this run. Two sides
of a comparison run in turn, each in a process of its own, and their medians are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memory import peak_of, train_command
from rows import ROOT, Row, environment, machine, markdown, versions

from charrnn.child import Child

Line = list[str]
ROUNDS = 3


def verdict(value: float, bar: float, below: bool = False) -> str:
    return "yes" if (value <= bar if below else value >= bar) else "**no**"


def turns(
    sides: list[tuple[Any, ...]], seconds: float, work: str = "train"
) -> tuple[list[float], float]:
    """Median characters per second of each (row, threads), and the limit of the first's threads.

    A side may name its precision, too.
    """
    from sides import Ours

    children = [Child(Ours, row.task(*how)) for row, *how in sides]
    for child in children:
        child.ask(work, seconds / 2)  # warm up
    found, limits = [], []
    for _ in range(ROUNDS):
        found.append([child.ask(work, seconds) for child in children])
        limits.append(children[0].ask("limit"))
    for child in children:
        child.close()
    return [statistics.median(rates) for rates in zip(*found, strict=True)], max(limits)


# -- odd shapes and threads ---------------------------------------------------------------------


def pairs(threads: int, seconds: float) -> Iterator[Line]:
    """Useful rate of odd shapes, as a share of that of their even neighbours."""
    base = Row("lstm", 1, 256, 32, 64)
    odd = [(base._replace(H=a), base._replace(H=b)) for a, b in ((100, 96), (250, 256), (333, 320))]
    odd += [(base._replace(B=a), base._replace(B=b)) for a, b in ((7, 8), (50, 48))]
    odd += [(Row("lstm", 1, 128, 4, 10_000), Row("lstm", 1, 128, 4, 100))]
    for row, neighbour in odd:
        (a, b), _ = turns([(row, threads), (neighbour, threads)], seconds)
        share = a * row.flop / (b * neighbour.flop)
        what = f"{row.title}, useful rate against {neighbour.title}"
        yield [what, f"{share:.0%}", "85 %", verdict(share, 0.85)]


def shares(threads: int, seconds: float) -> Iterator[Line]:
    """Share of the limit at the ends of the range of sizes."""
    for row, bar in ((Row("lstm", 1, 2048, 32, 35), 0.6), (Row("lstm", 1, 32, 32, 64), None)):
        (rate,), limit = turns([(row, threads)], seconds)
        share = rate * row.flop / limit
        line = [f"{row.title}: {rate:,.0f} chars/s, share of the limit", f"{share:.0%}"]
        yield [*line, f"{bar:.0%}", verdict(share, bar)] if bar else [*line, "", ""]


def threading(threads: int, seconds: float) -> Iterator[Line]:
    """Two threads against one, and more threads than cores."""
    for model, L, H, T in (("rnn", 1, 256, 35), ("lstm", 1, 256, 64), ("gru", 1, 256, 64),
                           ("lstm", 1, 512, 35)):  # fmt: skip
        row = Row(model, L, H, 32, T)
        (two, one), _ = turns([(row, 2), (row, 1)], seconds)
        yield [f"{row.title}: two threads against one", f"{two / one:.2f}", "1.8",
               verdict(two / one, 1.8)]  # fmt: skip
    for row in (Row("lstm", 1, 256, 32, 64), Row("rnn", 1, 100, 1, 25), Row("lstm", 1, 64, 2, 25)):
        sides = [(row, n) for n in (threads, 2 * threads, 4 * threads)]
        (fit, *more), _ = turns(sides, seconds)
        for (_, n), rate in zip(sides[1:], more, strict=True):
            what = f"{row.title}: {n} threads against {threads}, on {threads} cores"
            yield [what, f"{rate / fit:.2f}", "0.8", verdict(rate / fit, 0.8)]


# -- sampling and evaluation --------------------------------------------------------------------


def sampling(threads: int, seconds: float) -> Iterator[Line]:
    """Streaming one character at a time, 64 samples at once, evaluation against training."""
    large = Row("lstm", 2, 512, 1, 1)
    bars = [(Row("lstm", 1, 128, 1, 1), "float32", 100_000),
            (Row("gru", 1, 256, 1, 1), "float32", 60_000),
            (Row("lstm", 2, 256, 1, 1), "float32", 20_000),
            (large, "float32", 6_000), (large, "bf16", 6_000)]  # fmt: skip
    for row, precision, bar in bars:
        (rate,), _ = turns([(row, threads, precision)], seconds, "sample")
        name = f"{row.model} {row.L}x{row.H}, {precision}"
        yield [f"sampling, {name}, chars/s", f"{rate:,.0f}", f"{bar:,}", verdict(rate, bar)]
    row = Row("lstm", 2, 512, 64, 1)
    (rate,), limit = turns([(row, threads)], seconds, "sample")
    share = rate * row.forward_flop / limit
    what = f"64 samples at once, lstm 2x512: {rate:,.0f} chars/s, share of the limit"
    yield [what, f"{share:.0%}", "50 %", verdict(share, 0.5)]
    for row in (Row("lstm", 1, 256, 32, 64), Row("lstm", 2, 512, 64, 100)):
        from sides import Ours

        child = Child(Ours, row.task(threads))
        ratios = []
        for _ in range(ROUNDS + 1):  # the first is a warm-up
            ratios.append(child.ask("evaluate", seconds) / child.ask("train", seconds))
        child.close()
        ratio = statistics.median(ratios[1:])
        yield [f"evaluation against training, {row.title}", f"{ratio:.2f}", "2.5",
               verdict(ratio, 2.5)]  # fmt: skip


# -- start --------------------------------------------------------------------------------------


def until_first_character(command: list[str]) -> float:
    """Seconds from starting a command to the first character that it prints."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout and process.stdout.read(1)
    taken = time.perf_counter() - began
    process.kill()
    process.communicate()
    return taken


def until_end(command: list[str]) -> float:
    """Seconds from starting a command to its end."""
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def start(threads: int, seconds: float) -> Iterator[Line]:
    """Commands in fresh processes: the help, a sample's first character, a run of one step."""
    charrnn = [sys.executable, "-m", "charrnn"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = train_command(Row("lstm", 1, 256, 32, 64), folder, threads)
        one_step = [*train, "--max-steps", "1", "--val-frac", "0"]
        sample = [*charrnn, "sample", f"{folder}/run", "--length", "1000000"]

        def trained() -> float:
            shutil.rmtree(folder / "run", ignore_errors=True)
            return until_end(one_step)

        def sampled() -> float:
            return until_first_character(sample)

        trained(), sampled()  # fill the cache
        for what, measure, warm, cold in (
            ("charrnn --help", lambda: until_end([*charrnn, "--help"]), 0.25, None),
            ("charrnn sample, first character", sampled, 1.0, 20.0),
            ("charrnn train, one step and all of the process", trained, 1.5, 20.0),
        ):
            taken = statistics.median(measure() for _ in range(2 * ROUNDS + 1))
            yield [f"{what}, s", f"{taken:.2f}", f"{warm}", verdict(taken, warm, below=True)]
            if cold:
                taken = without_cache(measure)
                yield [f"{what}, cold kernel cache, s", f"{taken:.1f}", f"{cold}",
                       verdict(taken, cold, below=True)]  # fmt: skip


def without_cache(measure: Callable[[], float]) -> float:
    """``measure()`` while the kernel cache is an empty folder."""
    with tempfile.TemporaryDirectory() as cache, environment(CHARRNN_CACHE_DIR=cache):
        return measure()


def truncation(threads: int, seconds: float) -> Iterator[Line]:
    """What recomputation and sliding truncation cost, against an ordinary pass of the same size."""
    from charrnn.config import ModelConfig
    from charrnn.model import Model
    from charrnn.recompute import Recomputed
    from charrnn.sliding import Sliding

    long, part = Row("lstm", 1, 256, 8, 20_000), Row("lstm", 1, 256, 8, 4000)
    with tempfile.TemporaryDirectory() as folder:  # first: a child's peak is at least its parent's
        row, steps = long._replace(T=1000), ["--max-steps", "2"]
        short = peak_of([*train_command(row, Path(folder), threads), *steps])
        command = [*train_command(long, Path(folder), threads), "--bptt", "full", *steps]
        command[command.index("--out-dir") + 1] += "-long"
        taken = peak_of(command)
    yield [f"{long.title}, recomputed, MB", f"{taken:.0f}", f"{short:.0f} (T 1,000, not)",
           verdict(taken, short, below=True)]  # fmt: skip
    model = Model(ModelConfig(model="lstm", hidden_size=256, dropout=0.0), 65, threads)
    model.initialize(1)
    sides = [Recomputed(model, part.T, part.B), model.train_pass(part.T, part.B)]
    yield compared("recomputed, time", part.title, sides, seconds, 1.4)
    for T, B, k1, k2 in ((64, 16, 16, 64), (64, 16, 1, 10), (64, 32, 8, 64), (25, 1, 1, 10)):
        whole = Sliding(model, T + k2 - k1, B, 0.0, k1, k2)
        sides = [whole.of_length(T + k2 - k1, T), model.train_pass(T, B)]
        title = f"lstm 1x256, B {B}, T {T}"
        yield compared(f"sliding k1 {k1}, k2 {k2}, time", title, sides, seconds, (k1 + k2) / k1)


def compared(what: str, title: str, sides: list[Any], seconds: float, bar: float) -> Line:
    """The median ratio of the times of two passes, in turn."""

    def clock(run: Any) -> float:
        begin = time.perf_counter()
        run.run_gradients()
        return time.perf_counter() - begin

    ratios: list[float] = []
    end = time.perf_counter() + 4 * seconds
    while time.perf_counter() < end or len(ratios) < 7:
        first, second = map(clock, sides)
        ratios.append(first / second)
    ratio = statistics.median(ratios[1:])
    return [f"{title}: {what}", f"{ratio:.2f}", f"{bar:.2g}", verdict(ratio, bar, below=True)]


PARTS = {"pairs": pairs, "shares": shares, "threads": threading, "sampling": sampling,
         "start": start, "truncation": truncation}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}  (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn (default 1)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    lines: list[Line] = []
    for name in args.parts or PARTS:
        for line in PARTS[name](args.threads, args.seconds):
            print(*line, sep="  ", file=sys.stderr, flush=True)
            lines.append(line)
    print(markdown(["what", "measured", "bar", "reached"], lines))
    print(f"\n{machine()}; {args.threads} threads; float32; {versions()}.")


if __name__ == "__main__":
    main()
