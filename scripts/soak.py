"""Hours of one training run, stopped and resumed on the way: does anything grow? Linux only.

    python scripts/soak.py --minutes 240                    this source tree
    python scripts/soak.py --charrnn venv/bin/charrnn       an installed one

A small network is trained on a terminal of its own with checkpoints, kept checkpoints, validation,
samples and gradient lines. From time to time the process is suspended and continued, and ended by
SIGINT, SIGTERM, SIGHUP or SIGKILL and resumed. Every --every seconds its memory, open files,
threads, speed and the size of its folder are written to soak.jsonl. In the end the run is brought
to its end and everything in it is read.

Whether something grew: a straight line over time is fitted to what the processes had, with one
slope for all of them and a level for each; the first two minutes of a process do not count. Its
slope may not be more than is allowed, give or take two standard errors. The exit status is 1 if
anything grew or is not whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROOT, markdown

sys.path.insert(0, str(ROOT))

from faults import Different, check_readable, workplace  # noqa: E402

OPTIONS = {
    "model": "lstm", "hidden_size": 64, "embedding_size": 16, "num_layers": 2, "dropout": 0.2,
    "batch_size": 8, "seq_length": 32, "learning_rate": 5e-4, "threads": 1, "max_steps": 10**9,
    "on_divergence": "rollback",
}  # fmt: skip
LINES = {"train": 500, "validation": 5000, "sample": 10_000, "gradients": 3000}
"""Steps between lines of the metrics."""
CHECKPOINT_EVERY, KEEP = 4000, 3
STEPS_AT_THE_END = 2000
STATUS = {
    signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -signal.SIGKILL
}  # fmt: skip
WARM = 120
"""Seconds of a process that do not count: all that it does has to have been done once."""
PATIENCE = 120
"""Seconds in which a process has to end."""
OF_A_VALIDATION = 64
"""Bytes that a checkpoint may grow by with every validation: it lists them."""

ALLOWED = {
    "anonymous": (1e6, "MB", 1e6), "resident": (1e6, "MB", 1e6), "files": (0.5, "", 1.0),
    "threads": (0.5, "", 1.0), "entries": (0.5, "", 1.0), "checkpoints": (1e5, "MB", 1e6),
    "cache": (1e5, "MB", 1e6),
}  # fmt: skip
"""What is measured -> what its line may rise by in an hour, and the unit in which it is shown."""


def flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


class Life:
    """One process of the run, on a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.began, self.suspended = time.monotonic(), 0.0

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while piece := os.read(self.terminal, 1 << 16):
                self.shown = (self.shown + piece)[-4096:]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def end(self, how: signal.Signals | None) -> None:
        """Wait for the end, of itself or by a signal."""
        if how is not None:
            self.process.send_signal(how)
        status = self.process.wait(PATIENCE)
        self.reader.join()
        os.close(self.terminal)
        expected = 0 if how is None else STATUS[how]
        if status != expected:
            raise Different(f"status {status}, not {expected}: {self.shown.decode()}")

    def suspend(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)
        self.suspended += seconds

    def measured(self) -> dict[str, float]:
        """What the system says of the process."""
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        of = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+)(?: kB)?\n", status)}
        times = (folder / "stat").read_text().rpartition(")")[2].split()
        return {
            "anonymous": of["RssAnon"] * 1024,
            "resident": of["VmRSS"] * 1024,
            "threads": of["Threads"],
            "files": len(list((folder / "fd").iterdir())),
            "processor": sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK"),
        }


def size(folder: Path, pattern: str) -> int:
    total = 0
    for path in folder.rglob(pattern):
        with contextlib.suppress(FileNotFoundError):  # replaced or removed at this instant
            total += path.stat().st_size
    return total


def last_step(metrics: Path) -> int:
    """The step of the last whole line."""
    with metrics.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - (1 << 16), 0))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"])


class Soak:
    """A run of ``seconds``, and what was measured of it."""

    def __init__(self, folder: Path, command: list[str], seconds: float, every: float) -> None:
        self.folder, self.command, self.every = folder, command, every
        self.run, self.cache = folder / "run", folder / "cache"
        self.until = time.monotonic() + seconds
        self.random = random.Random(1)
        self.samples: list[dict[str, Any]] = []
        self.ends: dict[str, int] = {}
        self.suspensions = self.lives = 0

    def begin(self, *more: str) -> Life:
        self.lives += 1
        given = [*self.command, "train", *more]
        if (self.run / "config.json").exists():
            given += ["--resume", str(self.run)]
        else:
            every = {"log": "train", "eval": "validation", "sample": "sample"}
            options = OPTIONS | {f"{flag}_every": LINES[line] for flag, line in every.items()}
            options |= {"log_gradients": LINES["gradients"], "checkpoint_every": CHECKPOINT_EVERY}
            given += [str(self.folder / "text.txt"), f"--out-dir={self.run}"]
            given += flags(options | {"keep": KEEP})
        environment = os.environ | {"CHARRNN_CACHE_DIR": str(self.cache), "TERM": "xterm"}
        return Life(given, environment)

    def go(self, shortest: float, longest: float, *more: str) -> None:
        """All of it: lives between so many seconds, and in the end a whole run."""
        shutil.copy(ROOT / "data" / "timemachine.txt", self.folder / "text.txt")
        while (left := self.until - time.monotonic()) > 0:
            drawn = self.random.uniform(shortest, longest)
            self.live(min(drawn, left), *more)
            self.look()
        steps = last_step(self.run / "metrics.jsonl") + STEPS_AT_THE_END
        self.begin(*more, f"--max-steps={steps}").end(None)
        self.check()

    def live(self, seconds: float, *more: str) -> None:
        life = self.begin(*more)
        try:
            due, suspend = self.every, self.random.uniform(0.2, 0.8) * seconds
            while life.seconds < seconds:
                time.sleep(max(0.0, min(due, suspend, seconds) - life.seconds))
                if life.process.poll() is not None:
                    raise Different(f"status {life.process.returncode}: {life.shown.decode()}")
                if life.seconds >= suspend:
                    life.suspend(self.random.uniform(2, 20))
                    self.suspensions, suspend = self.suspensions + 1, math.inf
                if life.seconds >= due:
                    self.sample(life)
                    due += self.every
            how = self.random.choice(list(STATUS))
            life.end(how)
            self.ends[how.name] = self.ends.get(how.name, 0) + 1
        finally:
            life.process.kill()

    def sample(self, life: Life) -> None:
        found = {
            "life": self.lives,
            "seconds": life.seconds,
            "time": time.monotonic(),
            "working": life.seconds - life.suspended,
            "step": last_step(self.run / "metrics.jsonl"),
            **life.measured(),
            "entries": len(list(self.run.iterdir())),
            "checkpoints": size(self.run, "*.safetensors"),
            "metrics": size(self.run, "metrics.jsonl"),
            "cache": size(self.cache, "*"),
        }
        self.samples.append(found)
        with (self.folder / "soak.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")

    def look(self) -> None:
        """Between two lives, everything can be read."""
        check_readable(self.run)

    def check(self) -> None:
        """Nothing is missing of the run that has ended, nothing is there twice, nothing else."""
        lines = (self.run / "metrics.jsonl").read_bytes()
        events = [json.loads(line) for line in lines.splitlines()]
        end = events[-1]
        if not lines.endswith(b"\n") or end["event"] != "end" or end["reason"] != "finished":
            raise Different(f"the metrics end in {lines[-200:]!r}")
        for kind, every in LINES.items():
            steps = [event["step"] for event in events if event["event"] == kind]
            due = list(range(every, end["step"] + 1, every))
            if kind in ("train", "validation") and end["step"] % every:
                due.append(end["step"])
            if steps != due:
                raise Different(f"{kind} lines: {len(steps)}, not {len(due)}")
        newest = end["step"] // CHECKPOINT_EVERY
        kept = [CHECKPOINT_EVERY * (newest - n) for n in range(KEEP)]
        names = {f"step-{step}.safetensors" for step in kept}
        names |= {"config.json", "metrics.jsonl", "lock", "best.safetensors", "last.safetensors"}
        if {path.name for path in self.run.iterdir()} != names:
            raise Different(f"the folder holds {sorted(p.name for p in self.run.iterdir())}")
        check_readable(self.run)
        self.rollbacks = sum(event["event"] == "rollback" for event in events)
        self.steps, self.lines = end["step"], len(events)


# -- lines ----------------------------------------------------------------------------------------


def lines_of(samples: list[dict[str, Any]], warm: float) -> Iterator[list[dict[str, Any]]]:
    """The samples of each process that count."""
    for life in sorted({sample["life"] for sample in samples}):
        own = [s for s in samples if s["life"] == life and s["seconds"] >= warm]
        if len(own) > 1:
            yield own


def slope(x: list[np.ndarray], y: list[np.ndarray]) -> tuple[float, float]:
    """The common slope of lines, a level for each, and its standard error."""
    dx = np.concatenate([part - part.mean() for part in x])
    dy = np.concatenate([part - part.mean() for part in y])
    found = float(dx @ dy / (dx @ dx))
    free = len(dx) - len(x) - 1
    rest = dy - found * dx
    return found, math.sqrt(rest @ rest / free / (dx @ dx)) if free > 0 else math.inf


def with_speed(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples but the first of a process, with the speed since the one before."""
    chars = OPTIONS["batch_size"] * OPTIONS["seq_length"]
    return [
        b | {
            "speed": chars * (b["step"] - a["step"]) / (b["working"] - a["working"]),
            "by processor": chars * (b["step"] - a["step"]) / (b["processor"] - a["processor"]),
        }
        for a, b in zip(samples, samples[1:], strict=False)
    ]  # fmt: skip


def report(samples: list[dict[str, Any]], warm: float) -> tuple[list[list[str]], bool]:
    """A row for all that was measured; whether nothing grew, nor the speed fell."""
    lives, rows, good = list(lines_of(samples, warm)), [], True
    if not lives:
        raise SystemExit("too short: no process was measured twice after its first minutes")
    validations = np.ptp([s["step"] for life in lives for s in life]) / LINES["validation"]
    listed = OF_A_VALIDATION * (KEEP + 2) * validations
    hours = np.ptp([s["time"] for life in lives for s in life]) / 3600
    for name, (allowed, unit, scale) in ALLOWED.items():
        across = name in ("checkpoints", "entries", "cache")  # of the run, not of a process
        parts = [[s for life in lives for s in life]] if across else lives
        if name == "checkpoints":
            allowed += listed / hours
        x = [np.array([s["time"] for s in part]) / 3600 for part in parts]
        y = [np.array([s[name] for s in part], float) for part in parts]
        rises, error = slope(x, y)
        flat = rises - 2 * error <= allowed
        good &= flat
        every = np.concatenate(y) / scale
        rows.append([
            f"{name}, {unit}" if unit else name,
            f"{every.min():.4g} to {every.max():.4g}",
            f"{rises / scale:+.3g} ± {error / scale:.2g}", f"{allowed / scale:.3g}",
            "no" if flat else "YES",
        ])  # fmt: skip
    parts = [with_speed(life) for life in lives]
    parts = [part for part in parts if len(part) > 1]
    for name in ("speed", "by processor") if parts else ():
        x = [np.array([s["time"] for s in part]) / 3600 for part in parts]
        y = [np.array([s[name] for s in part]) for part in parts]
        every = np.concatenate(y)
        rises, error = np.array(slope(x, y)) / every.mean()
        counts = name == "by processor"  # the other one is as fast as others let it be
        fell = counts and rises + 2 * error < -0.05
        good &= not fell
        rows.append([
            "chars a second" if not counts else "chars a second of the processor",
            f"{every.min():,.0f} to {every.max():,.0f}", f"{rises:+.1%} ± {error:.1%}",
            "-5.0%" if counts else "", "YES" if fell else "no",
        ])  # fmt: skip
    return rows, good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--charrnn", help="an installed command; default: this source tree")
    parser.add_argument("--folder", help="keep all files in this folder, which is to be empty")
    parser.add_argument("--every", type=float, default=60, help="seconds between measurements")
    parser.add_argument("--warm", type=float, default=WARM, help="seconds that do not count")
    parser.add_argument("--shortest", type=float, default=300, help="seconds of a process")
    parser.add_argument("--longest", type=float, default=1200, help="seconds of a process")
    parser.add_argument("--live", action="store_true", help="train with --live, not with the bar")
    args = parser.parse_args()
    command = [args.charrnn] if args.charrnn else [sys.executable, "-m", "charrnn"]
    if not args.charrnn:
        os.environ["PYTHONPATH"] = str(ROOT)
    for number in (signal.SIGINT, signal.SIGHUP):  # with nohup or &: what is started must hear them
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    with workplace(args.folder) as work:
        soak = Soak(work, command, 60 * args.minutes, args.every)
        try:
            soak.go(args.shortest, args.longest, *(["--live"] if args.live else []))
        except Different as error:
            print(f"DIFFERENT: {error}", file=sys.stderr)
            sys.exit(1)
        rows, good = report(soak.samples, args.warm)
    heads = ["", "from, to", "rises in an hour", "allowed", "grew"]
    print(markdown(heads, rows))
    ends = ", ".join(f"{count} {name}" for name, count in sorted(soak.ends.items()))
    print(
        f"{soak.steps:,} steps in {soak.lives} processes, {len(soak.samples)} measurements; "
        f"{ends}, {soak.suspensions} suspensions, {soak.rollbacks} rollbacks; {soak.lines:,} lines "
        "of the metrics and all checkpoints are whole"
    )
    sys.exit(not good)


if __name__ == "__main__":
    main()
