"""Damage the files of small runs in every way and see what charrnn makes of them.

Each case takes one of a few trained runs, changes a file of it (bits, stretches, lengths; or, the
checksum made right again, values of its JSON, tensors and their places) and uses the result as the
commands do. Allowed is one of two: everything works, or an InputError of one line (or a run that
diverges). Anything else is a failure: another exception, a warning, a crash, what would move a
terminal's cursor, more than --seconds or --memory, a file that is changed outside of the run's
folder.

    python scripts/fuzz.py --count 10000 --seed 1
    python scripts/fuzz.py --seed 1 --only 4711        # one case again, with its traceback

A case is a function of the seed and its number. The cases run in processes of their own, which are
watched from outside; the status is 1 if there was a failure.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

sys.path.append(str(Path(__file__).resolve().parent.parent))  # if none is installed

from charrnn import api, checkpoint, curves, listing, runlog, runs, saving, view, watched
from charrnn.chart import Style
from charrnn.cli import cli
from charrnn.config import Config
from charrnn.errors import LONGEST, CharRNNError, SaveError
from charrnn.progress import Progress

TEXT = "The Time Traveller (for so it will be convenient to speak of him) was expounding. " * 4
RUNS: dict[str, dict[str, Any]] = {
    "lstm": dict(model="lstm", hidden_size=5, dropout=0.1),
    "gru": dict(model="gru", hidden_size=4, num_layers=2, embedding_size=3, min_count=5),
    "rnn": dict(model="rnn", hidden_size=3, level="byte", optimizer="momentum", bptt="sliding"),
    "kept": dict(model="lstm", hidden_size=2, grad_clip_value=0.1),  # the text from a pipe
}
COMMON = dict(
    batch_size=2, seq_length=8, max_steps=6, eval_every=2, checkpoint_every=3, log_every=1,
    log_gradients=2, sample_every=3, keep=1, threads=1,
)  # fmt: skip

DEEP, DEEPISH, LONG = "\0deep", "\0deepish", "\0long"
"""Stand for JSON that Python could not write: see `dumped`."""
EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 65536, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30,
    10**400, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "1", "-1", "nan", "a" * 100_000, "\x1b[2J\x07", "\ud800", "\u202e", "a\nb", "a\0b",
    "$\\frac{", "../../outside", "/dev/zero", "/dev/stdin", "/proc/self/pagemap",
    "best", "lstm", "orthogonal", "bf16", "1000000000000:0.5", [], [0], [[]] * 1000, [None] * 5000,
    {}, {"a": {"b": [1]}}, DEEP, DEEPISH, LONG,
)  # fmt: skip


# -- changes --------------------------------------------------------------------------------------


def dumped(value: Any) -> bytes:
    """JSON as a stranger may write it: with NaN, huge numbers, deep and long values."""
    sys.set_int_max_str_digits(0)
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")
    sys.set_int_max_str_digits(4300)
    text = text.replace(json.dumps(DEEP).encode(), b"[" * 5000 + b"]" * 5000)
    text = text.replace(json.dumps(DEEPISH).encode(), b"[" * 960 + b"]" * 960)
    return text.replace(json.dumps(LONG).encode(), b"[" + b"[]," * 300_000 + b"[]]")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within a JSON value, with each of its keys or indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, (dict, list)) and len(inner) < 3000:
            yield from places(inner)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(value)) if isinstance(value, (dict, list)) else []
        if not found or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(EXTREMES))
        where, key = rng.choice(found)
        what = rng.randrange(10)
        if what < 6:
            where[key] = copy.deepcopy(rng.choice(EXTREMES))  # what is in it may be changed
        elif what == 6:
            del where[key]
        elif what == 7:  # another value of the same file
            other, name = rng.choice(found)
            with contextlib.suppress(LookupError):
                where[key] = copy.deepcopy(other[name])
        elif what == 8:
            number = where[key]
            if isinstance(number, (int, float)):
                where[key] = rng.choice((-number, number + 1, number * 10, number // 3))
        elif isinstance(where, dict):
            where[rng.choice(("x" * 50, "", "\x1b[2J", "hidden_size", "step"))] = copy.deepcopy(
                where[key]
            )
        else:
            where.append(copy.deepcopy(where[key]))
    return value


def damaged(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes with bits, a stretch, the length or the order of something changed."""
    data, n = bytearray(content), max(len(content), 1)
    at, size = rng.randrange(n), rng.choice((1, 4, 30, 1000))
    match rng.randrange(9):
        case 0 | 1:
            for _ in range(rng.choice((1, 1, 2, 10))):
                place = rng.randrange(n)
                data[place : place + 1] = bytes(
                    [(data[place] if data else 0) ^ 1 << rng.randrange(8)]
                )
        case 2:
            del data[at:]
        case 3:
            data[at : at + size] = rng.randbytes(size)
        case 4:
            data[at : at + size] = bytes(size)
        case 5:
            del data[at : at + size]
        case 6:
            data[at:at] = rng.choice((rng.randbytes(size), data[-size:], bytes(1_000_000)))
        case 7:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(max(len(other), 1)) :]
        case 8:  # the size of the header
            data[:8] = rng.choice(
                (0, 1, n, n - 8, 2**24, 2**24 + 1, 2**40, 2**63, 2**64 - 1)
            ).to_bytes(8, "little")
    return bytes(data)


def forged(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint with something of it changed, and the right checksum."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    said, right = header["__metadata__"], True
    match rng.randrange(8):
        case 0 | 1 | 2:
            name = rng.choice([n for n in said if n not in checkpoint.OWN_KEYS])
            said[name] = dumped(changed(json.loads(said[name]), rng)).decode(errors="replace")
        case 3:
            name = rng.choice(list(said))
            right = name != "checksum"
            said[name] = rng.choice(("", "2", "\x1b[2J", "x" * 10_000, "{" * 9, "\ud800"))
            if rng.random() < 0.3:
                del said[name]
        case 4:  # places, shapes and types as they are not
            header = changed(header, rng)
        case 5:
            data = numbers_changed(header, data, rng)
        case 6:  # tensors that change places, or have a shape or a name of another
            a, b = rng.sample([n for n in header if n != "__metadata__"], 2)
            kind = rng.randrange(4)
            if kind == 0:
                header[a], header[b] = header[b], header[a]
            elif kind == 1:
                header[a + "x"] = header.pop(a)
            elif kind == 2:
                header[a]["shape"] = rng.choice(
                    (header[a]["shape"][::-1], [1, *header[a]["shape"]])
                )
            else:
                header[a]["dtype"] = rng.choice(("I32", "U32", "F16", "F64", "I64", "BF16", "BOOL"))
        case 7:  # many tensors of no size
            for i in range(rng.choice((1, 100, 20_000))):
                header[f"x{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return sealed(header, data, right)


def numbers_changed(header: dict[str, Any], data: bytes, rng: random.Random) -> bytes:
    """Some numbers of a tensor replaced: not finite, huge, tiny."""
    entry = rng.choice([e for n, e in header.items() if n != "__metadata__"])
    begin, end = entry["data_offsets"]
    numbers = np.frombuffer(data[begin:end], "f4").copy()
    bad = rng.choice((np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e20, 1e-45, 0.0))
    numbers[rng.randrange(max(len(numbers), 1)) if rng.random() < 0.5 else slice(None)] = bad
    return data[:begin] + numbers.tobytes() + data[end:]


def sealed(header: Any, data: bytes, right: bool) -> bytes:
    """The file with this header; ``right`` makes its checksum so, where that can be done."""
    if right and isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        said = {k: v for k, v in header["__metadata__"].items() if k != "checksum"}
        with contextlib.suppress(Exception):
            kinds = {v: k for k, v in checkpoint.DTYPES.items()}
            tensors = {
                name: np.frombuffer(
                    data[slice(*entry["data_offsets"])], kinds[entry["dtype"]]
                ).reshape(entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            }
            header["__metadata__"]["checksum"] = checkpoint._checksum(tensors, said)
    text = dumped(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def lines_changed(content: bytes, rng: random.Random) -> bytes:
    """Metrics with events that say something else, come twice, or in another order."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 3))):
        i = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 | 2:
                with contextlib.suppress(ValueError, RecursionError):
                    lines[i] = dumped(changed(json.loads(lines[i]), rng)) + b"\n"
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[i])
            case 4:
                rng.shuffle(lines)
            case 5:
                lines[i] = rng.choice(
                    (b"\n", b"{}\n", b"[" * 5000 + b"\n", b"x" * 2_000_000, b"\xff\n")
                )
    return b"".join(lines)


def file_replaced(path: Path, outside: Path, rng: random.Random) -> str:
    """Something in the place of a file that is none: a pipe, a link, a folder, nothing."""
    path.unlink(missing_ok=True)
    kind = rng.choice(("pipe", "link", "device", "folder", "nothing", "endless"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "endless":  # and yet a regular file
        path.symlink_to("/proc/self/pagemap")
    elif kind == "folder":
        path.mkdir()
    return kind


# -- uses -----------------------------------------------------------------------------------------


def use_model(folder: Path) -> None:
    """What sample, eval, info and gradients do, with every checkpoint that there is."""
    for path in sorted(folder.glob("*.safetensors")):
        lm = api.load(path, threads=1)
        json.dumps(lm.describe())
        lm.training_text()
        text = lm.sample("The ", length=10, seed=1)[0]
        assert len(text) >= 10 or lm.vocabulary.level == "byte"
        scores = lm.evaluate(TEXT)
        assert scores["chars"] > 0
        ids = lm.vocabulary.encode("Time", "skip").reshape(-1, 1)
        if len(ids):
            logits = lm.forward(ids)[0]["logits"].astype(np.float64)
            if np.isfinite(logits).all():
                p = np.exp(logits - logits.max(axis=-1, keepdims=True))
                assert np.allclose(p.sum(axis=-1) / p.sum(axis=-1), 1)


def use_folder(folder: Path) -> None:
    """What runs and monitor do."""
    found = listing.find(folder.parent, time.time())
    for order in listing.ORDERS:
        listing.table(listing.ordered(found, order))
    runlog.dump_json(found)
    seen = [watched.Watched(f, str(f)) for f in watched.find([str(folder)])]
    for run in seen:
        for _ in run.news(time.monotonic() + 5):
            pass
    for x, log in itertools.product(watched.AXES, (False, True)):
        shown = view.View(x, log)
        view.frame(seen, shown, 130, 40, Style(), time.time())
        view.frame(seen * 2, shown, 70, 20, Style(), time.time())


def use_plot(folder: Path) -> None:
    """What plot does."""
    curves.plot([str(folder)], str(folder / "curves.svg"), view.View())


def use_resume(folder: Path) -> None:
    """What train --resume does, for two steps."""
    run = runs.resume(str(folder), (), {"max_steps": 8})
    for count, event in enumerate(run.events()):
        if event["event"] == "step" and count > 4:
            run.interrupt()


def use_init_from(folder: Path) -> None:
    """What train --init-from does, for one step."""
    options = COMMON | {"max_steps": 1, "log_gradients": 0, "sample_every": 0}
    text = str(folder.parent.parent / "text.txt")
    new = str(folder / "new")
    run = runs.start([text], Config.from_options(options), new, str(folder), "add", tuple(options))
    for _ in run.events():
        pass


def use_rollback(folder: Path) -> None:
    """What a run does that has diverged."""
    saving.way_back(folder, Progress(step=9, rollbacks=[(5, 3, "loss")]), 9)


def command(*words: str) -> Callable[[Path], None]:
    """What a command does and prints."""

    def use(folder: Path) -> None:
        named = {"run": str(folder), "text": str(folder.parent.parent / "text.txt")}
        done = CliRunner().invoke(cli, [word.format(**named) for word in words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in (0, 2), (done.exit_code, done.stderr)
        for line in (done.stdout + done.stderr).split("\n"):
            assert line.isprintable(), line
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == (done.exit_code == 2), done.stderr

    use.__name__ = words[0]
    return use


MONITOR, CLIPPING = command("monitor", "{run}"), command("gradients", "{run}", "--show", "clipping")
BASELINES = command("eval", "{run}", "{text}", "--baselines")
INSPECT = command("inspect", "{run}", "--unit", "1")
USES: dict[str, tuple[Callable[[Path], None], ...]] = {
    "checkpoint": (
        use_model, use_model, use_resume, use_resume, use_init_from, use_folder, use_rollback,
        CLIPPING, BASELINES, INSPECT, command("info", "{run}"),
    ),
    "config": (use_folder, use_resume, use_resume, MONITOR),
    "metrics": (use_folder, use_resume, MONITOR, CLIPPING),
    "lock": (use_folder, use_resume, MONITOR),
    "file": (
        use_folder, use_resume, use_model, use_init_from, use_rollback, MONITOR, CLIPPING,
        BASELINES, INSPECT,
    ),
}  # fmt: skip


# -- cases ----------------------------------------------------------------------------------------


class Cases:
    """Trained runs in a folder, and the cases made of them."""

    def __init__(self, root: Path, seed: int, plots: bool) -> None:
        self.root, self.seed, self.plots = root, seed, plots
        (root / "text.txt").write_text(TEXT)
        (root / "outside").write_text("nobody may write here")
        for name, options in RUNS.items():
            config = Config.from_options(COMMON | options)
            text = "-" if name == "kept" else str(root / "text.txt")
            sys.stdin = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
            for _ in runs.start([text], config, str(root / name)).events():
                pass
        self.files = {p: p.read_bytes() for name in RUNS for p in (root / name).iterdir()}
        self.contents = list(self.files.values())

    def run(self, number: int) -> str:
        """Run one case; how it ended. What is not allowed is raised."""
        rng = random.Random(f"{self.seed}/{number}")
        name, kind = rng.choice(list(RUNS)), rng.choices(list(USES), (50, 15, 20, 3, 12))[0]
        folder = self.copy(name)
        what = self.change(folder, kind, rng)
        uses = USES[kind]
        if self.plots and kind == "metrics":
            uses += (use_plot,)
        use = rng.choice(uses)
        before = sorted(self.root.iterdir())
        title = f"{name}, {what}, {use.__name__}"
        try:
            use(folder)
            end = "used"
        except SaveError:
            raise
        except CharRNNError as error:
            message = str(error)
            assert message.isprintable() and 0 < len(message) <= LONGEST * 4, (title, message)
            end = "refused"
        except MemoryError:
            if list(folder.glob("*.safetensors")) or use is not use_resume:
                raise
            end = "refused"  # it was to begin a model that is too large, and could not
        except BaseException as error:
            error.add_note(title) if hasattr(error, "add_note") else None
            raise
        assert sorted(self.root.iterdir()) == before, title
        assert (self.root / "outside").read_text() == "nobody may write here", title
        assert all(p.read_bytes() == c for p, c in self.files.items()), title
        return f"{kind} {end}"

    def copy(self, name: str) -> Path:
        """A run as it was trained."""
        folder = self.root / "case" / "run"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, content in self.files.items():
            if path.parent.name == name:
                (folder / path.name).write_bytes(content)
        return folder

    def warm_up(self) -> None:
        """Everything with undamaged files: it works, and every kernel is loaded."""
        for name in RUNS:
            for use in (use_model, use_folder, use_init_from, use_resume):
                use(self.copy(name))

    def change(self, folder: Path, kind: str, rng: random.Random) -> str:
        """Change a file of the run; what was done."""
        if kind == "file":
            path = rng.choice(sorted(folder.iterdir()))
            if rng.random() < 0.3:
                other = rng.choice(list(self.files))
                path.write_bytes(self.files[other])
                return f"{path.name} is {other.name} of {other.parent.name}"
            return f"{path.name} is {file_replaced(path, self.root / 'outside', rng)}"
        if kind == "checkpoint":
            paths = sorted(folder.glob("*.safetensors"))
            for path in paths[1:]:  # best remains, or what is resumed
                path.unlink()
            path = paths[0].rename(folder / f"{rng.choice(('best', 'last', 'last'))}.safetensors")
        else:
            path = folder / {"config": "config.json", "metrics": "metrics.jsonl"}.get(kind, "lock")
            if kind == "config" and rng.random() < 0.3:
                for each in folder.glob("*.safetensors"):
                    each.unlink()
        content, how = path.read_bytes(), "structure"
        if rng.random() < 0.4 or kind == "lock":
            content, how = damaged(content, rng, self.contents), "bytes"
        elif kind == "checkpoint":
            content = forged(content, rng)
        elif kind == "config":
            content = dumped(changed(json.loads(content), rng))
        else:
            content = lines_changed(content, rng)
        path.write_bytes(content)
        return f"{path.name} by {how}"


def work(cases: Cases, numbers: range, pipe: int, memory: int) -> None:
    """The cases of a process: one line before and one after each."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    warnings.simplefilter("error")
    for number in numbers:
        os.write(pipe, f"{number}\n".encode())
        try:
            end = cases.run(number)
        except BaseException:
            end = "failed " + traceback.format_exc().replace("\n", "\0")[-3000:]
        os.write(pipe, f"{end}\n".encode(errors="replace"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.write(pipe, f"peak {peak}\n".encode())


def campaign(
    cases: Cases, numbers: range, seconds: float, memory: int
) -> tuple[collections.Counter[str], dict[int, str], int]:
    """Run cases in child processes: how often each end, the failures, the peak in KB."""
    ends: collections.Counter[str] = collections.Counter()
    failures: dict[int, str] = {}
    peak, at = 0, numbers.start
    while at < numbers.stop:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            work(cases, range(at, numbers.stop), writing, memory)
            os._exit(0)
        os.close(writing)
        buffer, current, fault = b"", None, "crashed"
        while True:
            if not select.select([reading], [], [], seconds)[0]:
                os.kill(child, signal.SIGKILL)
                fault = f"took more than {seconds:g} s"
                break
            block = os.read(reading, 1 << 16)
            if not block:
                break
            *lines, buffer = (buffer + block).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                if text.isdigit():
                    current, at = int(text), int(text) + 1
                elif text.startswith("peak "):
                    peak = max(peak, int(text[5:]))
                else:
                    if text.startswith("failed ") and current is not None:
                        failures[current] = text[7:].replace("\0", "\n")
                    ends[text.split()[0] if text.startswith("failed") else text] += 1
                    current = None
        os.close(reading)
        status = os.waitpid(child, 0)[1]
        if current is not None or (status and fault == "crashed"):
            failures[at - 1 if current is None else current] = f"{fault}, status {status}"
            ends["failed"] += 1
    return ends, failures, peak


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="cases (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the campaign (1)")
    parser.add_argument("--only", type=int, help="the number of a single case")
    parser.add_argument("--seconds", type=float, default=60, help="a case may take (60)")
    parser.add_argument(
        "--memory", type=int, default=512, help="MB beyond those at the start (512)"
    )
    parser.add_argument("--plots", action="store_true", help="draw pictures, too: slower")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder), options.seed, options.plots)
        cases.warm_up()
        if options.only is not None:
            warnings.simplefilter("error")
            print(cases.run(options.only))
            return 0
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        ends, failures, peak = campaign(
            cases, range(options.count), options.seconds, options.memory * 2**20
        )
    for number, fault in failures.items():
        print(f"case {number} of seed {options.seed}:\n{fault}\n")
    taken = time.monotonic() - began
    print(
        f"{options.count:,} cases of seed {options.seed} in {taken:.0f} s, {len(failures)} failed"
    )
    print(f"memory: {base / 1024:.0f} MB before, at most {peak / 1024:.0f} MB")
    for end, count in sorted(ends.items()):
        print(f"  {count:6,} {end}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
