"""Memory and time that a text's size costs: 1 MB, 100 MB and 2 GB of generated text. Linux only.

Every text is trained on for some steps in fresh processes with a warm kernel cache: first when it
is read and encoded, then when its ids, of more than 16 MB, are found in the cache. `start` is the
time from the first look at the text until everything is ready for the first step, `processor` what
of it was not waiting; `anonymous` is the peak of RssAnon, memory that is no mapped file. Texts and
ids are written to --folder, 4 GB and more, and removed.

    python scripts/texts.py --whole "2 GB"     one text, each character trained on once

With --whole a small network is trained on all of a text by `charrnn train`, and its memory is shown
from its first step to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import ROOT, markdown

from charrnn import runlog

SIZES = {"1 MB": 10**6, "100 MB": 10**8, "2 GB": 2 * 10**9}
ALPHABETS = {
    "ASCII": "etaoin shrdlucmfwyp\n.,ETAOIN0123456789",
    "mixed": "etaoin shrdlu\n.,éß—“”жшя中文字😀",
}
SMALL = 1 << 24
"""Bytes of ids that are kept in memory."""
BLOCK = 1 << 20
"""Characters after which a text repeats itself."""

CHILD = """
import json, pathlib, re, sys, threading, time
from charrnn import cache

text, run, steps, texts = sys.argv[1:]
root = cache.root
cache.root = lambda kind: pathlib.Path(texts) if kind == "texts" else root(kind)

from charrnn import runs
from charrnn.config import Config

def memory(what):
    return int(re.search(what + r":\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], memory("RssAnon"))
threading.Thread(target=watch, daemon=True).start()

options = dict(max_steps=int(steps) + 1, val_frac=1e-5, threads=1, eval_every=0)
begin, worked = time.perf_counter(), time.process_time()
made = runs.start([text], Config.from_options(options), run)
start, worked = time.perf_counter() - begin, time.process_time() - worked
for event in made.events():
    if event["step"] == int(steps):
        break
done.set()
found = dict(start=start, worked=worked, anonymous=peak[0], mapped=memory("RssFile"))
print(json.dumps(found))
"""


def write_text(path: Path, size: int, alphabet: str) -> None:
    """Random letters, at least ``size`` bytes of UTF-8."""
    block = "".join(random.Random(1).choices(alphabet, k=min(size, BLOCK))).encode()
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


def measured(text: Path, folder: Path, steps: int) -> dict[str, float]:
    """Training on ``text`` in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, text, f"{run}/run", str(steps), folder / "texts"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def memory(process: int) -> dict[str, int]:
    """Bytes that a process has, by kind; nothing if it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return {name: 1024 * int(n) for name, n in re.findall(r"(Rss\w+|VmHWM):\s*(\d+)", status)}


def whole(text: Path, folder: Path) -> None:
    """Train on every character once, and show what the process had over its steps."""
    run, begin = folder / text.stem, time.perf_counter()
    flags = "--model rnn --hidden-size 16 --dropout 0 --batch-size 1024 --seq-length 64 --epochs 1"
    flags += " --threads 1 --val-frac 0.0001 --eval-every 5000 --checkpoint-every 1000 --quiet"
    process = subprocess.Popen(
        [sys.executable, "-m", "charrnn", "train", text, f"--out-dir={run}", *flags.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CHARRNN_CACHE_DIR": str(folder / "cache")},
    )
    found: list[tuple[int, float, dict[str, int]]] = []
    while process.poll() is None:
        time.sleep(0.5)
        if (run / "last.safetensors").exists() and (now := memory(process.pid)):
            last = runlog.tail(run / "metrics.jsonl")[-1]
            found.append((last["step"], time.perf_counter() - begin, now))
    taken, end = time.perf_counter() - begin, runlog.tail(run / "metrics.jsonl")[-1]
    if process.returncode or end["event"] != "end" or end["epoch"] < 0.999:
        raise SystemExit(f"status {process.returncode}: {end}")
    print(
        f"{text.stat().st_size:,} bytes; the first step after {found[0][1]:.1f} s; "
        f"{end['step']:,} steps in {taken:.0f} s, to epoch {end['epoch']:.5f}; "
        f"{end['val_nats_per_char']:.3f} nats/char of the validation text"
    )
    rows = []
    for part in range(11):
        step, seconds, now = found[round(part / 10 * (len(found) - 1))]
        kinds = [f"{now[kind] / 1e6:,.1f}" for kind in ("RssAnon", "RssFile", "VmHWM")]
        rows.append([f"{step:,}", f"{seconds:.0f}", *kinds])
    print(markdown(["step", "s", "anonymous, MB", "mapped, MB", "most of all so far, MB"], rows))
    peak = max(now["RssAnon"] for _, _, now in found)
    print(f"most anonymous in {len(found)} looks: {peak / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="default: the system's for temporary files")
    parser.add_argument("--steps", type=int, default=20, help="of training; default: 20")
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: all, by comma")
    parser.add_argument(
        "--whole", choices=("100 MB", "2 GB"), help="train on all of one text of this size"
    )
    args = parser.parse_args()
    if args.whole:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            for size in ("1 MB", args.whole):  # the first one compiles
                text = Path(name) / f"{size.replace(' ', '-')}.txt"
                write_text(text, SIZES[size], ALPHABETS["ASCII"])
                time.sleep(2.5)
                whole(text, Path(name))
        return
    heads = ["text", "ids are", "start, s", "processor, s", "anonymous, MB", "mapped, MB"]
    print(markdown(heads, []), flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for kind, alphabet in ALPHABETS.items():
            for size in args.sizes.split(","):
                text = folder / f"{kind}.txt"
                write_text(text, SIZES[size], alphabet)
                time.sleep(2.5)  # a file that has just changed is not kept in the cache
                measured(text, folder, 2)  # compiles what is not in the cache, reads the text
                for path in (folder / "texts").glob("*"):
                    path.unlink()
                for when in ("read", "found") if SIZES[size] > SMALL else ("read",):
                    m = measured(text, folder, args.steps)
                    seconds = [f"{m[part]:.2f}" for part in ("start", "worked")]
                    mb = [f"{m[part] / 1e6:.0f}" for part in ("anonymous", "mapped")]
                    row = [f"{kind}, {size}", when, *seconds, *mb]
                    print(f"| {' | '.join(row)} |", flush=True)
                text.unlink()


if __name__ == "__main__":
    main()
