"""Memory and time that a text's size costs: 1 MB, 100 MB and 2 GB of generated text. Linux only.

Every text is trained on for some steps in fresh processes with a warm kernel cache: first when it
is read and encoded, then when its ids, of more than 16 MB, are found in the cache. `start` is the
time from the first look at the text until everything is ready for the first step, `processor` what
of it was not waiting; `anonymous` is the peak of RssAnon, memory that is no mapped file. Texts and
ids are written to --folder, 4 GB and more, and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import ROOT, markdown

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="default: the system's for temporary files")
    parser.add_argument("--steps", type=int, default=20, help="of training; default: 20")
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: all, by comma")
    args = parser.parse_args()
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
