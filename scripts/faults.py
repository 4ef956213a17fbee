"""A campaign of faults against training runs: processes killed at any instant, calls that fail.

    python scripts/faults.py kill --kills 200      real processes, SIGKILL, resumed until the end
    python scripts/faults.py calls                 stopped at every call of a run, and resumed
    python scripts/faults.py disk                  every call of a run fails once, with every error
    python scripts/faults.py power                 the power is cut after every call of a run

`kill` trains each of a few small runs to its end once, undisturbed, and then again and again with
kills: at random instants, at a call to the operating system in the middle of a save, and, with an
empty kernel cache, while kernels are compiled. After every kill the run has to be readable, and in
the end it has to be the undisturbed one: the same bits in every checkpoint, the same metrics but
for what is under `time`. The others run in this process: see `stop_everywhere`,
`fail_everywhere` and `cut_everywhere`.

The exit status is 1 if anything differs. What was counted is printed as a table. POSIX only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import errno
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faults_child import PHASE_SIZE, Calls, fail_at, losing  # noqa: E402

from charrnn import api, checkpoint, listing, runlog, runs  # noqa: E402
from charrnn.config import Config  # noqa: E402
from charrnn.errors import CharRNNError, Ended, InputError, SaveError  # noqa: E402

BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")
CHARS = 4000
PATIENCE = 300  # seconds
CODES = ("ENOSPC", "EIO", "EDQUOT")

SMALL: dict[str, Any] = dict(batch_size=4, seq_length=16, threads=1)
EVERY: dict[str, Any] = dict(
    checkpoint_every=5, keep=2, eval_every=7, sample_every=50, log_every=3, log_gradients=11
)
KINDS: dict[str, dict[str, Any]] = {
    "lstm": dict(model="lstm", hidden_size=8, epochs=6, test_frac=0.05),
    "rnn, two layers, two threads": dict(
        model="rnn", hidden_size=16, num_layers=2, epochs=6, patience=50, threads=2
    ),
    "gru, sliding": dict(model="gru", hidden_size=8, bptt="sliding", k1=4, k2=10, epochs=5),
}
"""Runs to be killed."""


class Different(Exception):
    """A run that is not what it has to be."""


# -- what a run is --------------------------------------------------------------------------------


def content(path: Path) -> dict[str, Any]:
    """A checkpoint, but for the metrics' length: that depends on the digits of times."""
    loaded = checkpoint.load(path)
    tensors = {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in loaded.tensors.items()}
    return tensors | {k: v for k, v in loaded.metadata.items() if k != "metrics_length"}


def metrics(folder: Path) -> list[dict[str, Any]]:
    events = runlog.read(folder / "metrics.jsonl")
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves; what depends on the clock is left out."""
    files = {path.name: content(path) for path in sorted(folder.glob("*.safetensors"))}
    names = sorted(path.name for path in folder.iterdir())
    return {"files": names, "metrics": metrics(folder), **files}


def compare(folder: Path, whole: Path) -> None:
    """Whether a run is the undisturbed one."""
    lines = (folder / "metrics.jsonl").read_bytes()
    if not lines.endswith(b"\n") or b"\n\n" in lines:
        raise Different(f"{folder}: the metrics have a torn line")
    got, want = outcome(folder), outcome(whole)
    if got != want:
        parts = [k for k in got.keys() | want.keys() if got.get(k) != want.get(k)]
        raise Different(f"{folder} differs from {whole} in {', '.join(sorted(parts))}")


def check_readable(folder: Path) -> None:
    """Whatever has happened to a run, everything in it can be read."""
    for path in folder.glob("*.safetensors"):
        checkpoint.load(path)
    if (folder / "metrics.jsonl").exists():
        metrics(folder)
    if any(folder.glob("*.safetensors")):
        lm = api.load(folder, threads=1)
        lm.describe()
        lm.sample(length=5, seed=1)
    for run in listing.find(folder, time.time()):
        if run["problem"] is not None:
            raise Different(f"{folder}: {run['problem']}")


# -- kills ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Campaign:
    """Kills, and where they fell."""

    work: Path
    random: random.Random
    say: Callable[[str], None]
    commands_every: int = 10
    fell: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lives: int = 0
    read: int = 0
    """How often a command was run on what a kill had left."""
    ended: int = 0
    """Runs that came to their end and were compared."""

    @property
    def kills(self) -> int:
        return sum(self.fell.values())

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
        return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | more

    def train(self, folder: Path, options: dict[str, Any]) -> list[str]:
        """The arguments of the next life of a run: it is begun, or resumed if it has been."""
        if (folder / "config.json").exists():
            return ["train", "--resume", str(folder), "--quiet"]
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
        text = folder.parent / "text.txt"
        return ["train", str(text), f"--out-dir={folder}", "--quiet", *flags]

    def live(
        self,
        folder: Path,
        options: dict[str, Any],
        wait: Callable[[Any, Path], bool],
        *own: object,
        plain: bool = False,
        **more: str,
    ) -> bool:
        """One life of a run. Returns whether it came to its end.

        ``wait(process, phase file)`` returns when it is to be killed, False if it is not.
        """
        phase = self.work / "phase"
        phase.write_bytes(b"starting".ljust(PHASE_SIZE))
        command = [sys.executable, "-m", "charrnn"]
        if not plain:
            command = [sys.executable, str(ROOT / "scripts" / "faults_child.py")]
            command += ["--folder", str(folder), "--phase", str(phase), *map(str, own), "--"]
        self.lives += 1
        with open(self.work / "errors", "w+b") as errors:
            process = subprocess.Popen(
                [*command, *self.train(folder, options)],
                env=self.environment(**more), stdin=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            try:
                if wait(process, phase) and process.poll() is None:
                    process.kill()
                status = process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        if status == -9:
            where = "a plain process" if plain else phase.read_bytes().decode().strip()
            self.fell[self._place(where)] += 1
        elif status or (said and " has ended after " not in said):  # killed behind its last line
            raise Different(f"{folder}: status {status}: {said}")
        return status == 0

    def _place(self, phase: str) -> str:
        """Where a kill fell, in one of few words."""
        what, _, call = phase.partition(": ")
        if what in ("within a save", "within a line"):
            return f"{what}, {call.partition(' ')[0]} {call.partition(' ')[2]}" if call else what
        return what

    def check(self, folder: Path, commands: bool) -> None:
        """Read what a kill has left, with ``commands`` also by real processes."""
        if not folder.exists():
            return
        check_readable(folder)
        if commands and any(folder.glob("*.safetensors")):
            for words in (["info"], ["runs"], ["sample", "--length=5", "--seed=1"]):
                done = subprocess.run(
                    [sys.executable, "-m", "charrnn", words[0], str(folder), *words[1:]],
                    env=self.environment(), capture_output=True, text=True, timeout=PATIENCE,
                )  # fmt: skip
                self.read += 1
                if done.returncode:
                    raise Different(f"charrnn {words[0]} {folder}: {done.stderr}")

    # -- ways to be killed --

    def at_an_instant(self, process: Any, phase: Path) -> bool:
        """Some time after the process has begun to train; sometimes any time after its start."""
        begun = self.random.random() < 0.85
        if begun:
            _until(lambda: phase.read_bytes().split()[0] != b"starting", process)
        _sleep(self.random.uniform(0, 1.5), process)
        return True

    def any_time(self, process: Any, phase: Path) -> bool:
        _sleep(self.random.uniform(0.0, 3.0), process)
        return True

    def by_itself(self, process: Any, phase: Path) -> bool:
        process.wait(PATIENCE)
        return False

    def compiling(self, process: Any, phase: Path) -> bool:
        _until(lambda: phase.read_bytes()[:9] in (b"compiling", b"saving a "), process)
        _sleep(self.random.uniform(0, 4.0), process)
        return True

    def whole(self, name: str, options: dict[str, Any]) -> Path:
        """A run that nobody disturbs."""
        folder = self.work / name.replace(",", "").replace(" ", "-")
        folder.mkdir()
        (folder / "text.txt").write_text(BOOK[:CHARS], encoding="utf-8")
        if not self.live(folder / "whole", options, self.by_itself):
            raise Different(f"{folder}: the undisturbed run did not end")
        return folder / "whole"

    def kill(self, whole: Path, options: dict[str, Any], calls: int, most: int) -> None:
        """Kill a run at instants and at calls, at most so often, until it ends; compare it."""
        folder, killed = whole.parent / "killed", self.kills
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            way = self.random.random() if self.kills - killed < most else 2.0
            if way < 0.4:
                ended = self.live(folder, options, self.at_an_instant)
            elif way < 0.9:
                number = self.random.randrange(1, calls)
                place = self.random.choice(("before", "half", "after"))
                own = ("--kill-at", number, "--place", place)
                ended = self.live(folder, options, self.by_itself, *own)
            elif way < 1.0:
                ended = self.live(folder, options, self.any_time, plain=True)
            else:
                ended = self.live(folder, options, self.by_itself)
            if ended:
                break
            self.check(folder, commands=self.kills % self.commands_every == 0)
            self.say(f"{self.kills} kills, {self.ended} runs ended")
        compare(folder, whole)
        self.ended += 1

    def kill_compilation(self, whole: Path, options: dict[str, Any], kills: int) -> None:
        """Kill a run while an empty kernel cache is filled; then let it end, and compare it."""
        folder, cache = whole.parent / "compiled", self.work / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        ended = False
        for i in range(kills + 1):
            wait = self.compiling if i < kills else self.by_itself
            ended = self.live(folder, options, wait, CHARRNN_CACHE_DIR=str(cache))
            self.say(f"{self.kills} kills, {self.ended} runs ended")
            if ended:
                break
            self.check(folder, commands=False)
        compare(folder, whole)
        self.ended += 1


def _until(condition: Callable[[], bool], process: Any) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def _sleep(seconds: float, process: Any) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill_campaign(
    work: Path, kills: int, compile_kills: int, seed: int, say: Callable[[str], None],
    kinds: dict[str, dict[str, Any]] = KINDS, calls: int = 900, most: int = 12,
    commands_every: int = 10,
) -> Campaign:  # fmt: skip
    """At least so many kills, ``compile_kills`` of them while compiling.

    ``calls``: those at which a life may kill itself; ``most``: kills of one run;
    ``commands_every``: kills after which commands look at what is left.
    """
    campaign = Campaign(work, random.Random(seed), say, commands_every)
    wholes = {name: campaign.whole(name, SMALL | EVERY | o) for name, o in kinds.items()}
    first = next(iter(kinds))
    if compile_kills:
        campaign.kill_compilation(wholes[first], SMALL | EVERY | kinds[first], compile_kills)
    while campaign.kills < kills:
        for name, options in kinds.items():
            if campaign.kills < kills:
                campaign.kill(wholes[name], SMALL | EVERY | options, calls, most)
    return campaign


# -- every call -----------------------------------------------------------------------------------


def stop_everywhere(
    work: Path, every: int = 1, say: Callable[[str], None] = lambda text: None, until: int = 0,
    source: str = "", changes: dict[str, Any] | None = None, inherits: bool = False,
    **options: Any,
) -> tuple[int, int]:  # fmt: skip
    """Leave a run at every ``every``-th of its calls, as a kill does, and go on from what is there.

    At each call the folder is copied: before it, in the middle if it writes, and after it. Returns
    the number of calls and of copies, all of which became the undisturbed run.

    With ``until`` that is a run which was interrupted in this step before, and goes on from
    ``source``, one of its checkpoints, or the last, with ``changes`` of its options. With
    ``inherits`` it begins with the weights of another one, which is not there any more later.
    """
    whole, text = work / "whole", work / "text.txt"
    work.mkdir(parents=True, exist_ok=True)
    text.write_text(BOOK[: 1000 if "max_steps" in options else 1500], encoding="utf-8")
    parent = work / "parent" if inherits else None
    if parent:
        trained(parent, text, options | dict(max_steps=1, learning_rate=0.01))
    if until:
        run = runs.start([str(text)], Config.from_options(options), str(whole))
        for event in run.events():
            if event["event"] == "step" and event["step"] == until:
                run.interrupt()
    copies: dict[str, Path] = {}

    def copy(name: str, number: int, place: str) -> None:
        # What is there before a call is what was there after the one before.
        if number % every == 0 and place != "before":
            where = f"{place} call {number} ({name})"
            copies[where] = work / f"copy-{number}-{place}"
            shutil.copytree(whole, copies[where])

    with Calls(whole, copy).watched() as calls:
        trained(whole, text, options, source, changes, parent)
    if parent:
        parent = parent.rename(work / "parent in another place")
    for where, folder in copies.items():
        try:
            check_readable(folder)
            went_back = not source or _last_step(folder) != until
            with contextlib.suppress(Ended):
                trained(folder, text, options, "", changes, parent)
            if not went_back:  # then nothing was abandoned
                for path in whole.glob("abandoned-*"):
                    shutil.copy(path, folder)
            compare(folder, whole)
        except (Different, CharRNNError) as error:
            raise Different(f"{where}: {error}") from error
        shutil.rmtree(folder)
        say(f"stopped {where}")
    return len(calls.names), len(copies)


def _last_step(folder: Path) -> int:
    """Of a run's last checkpoint."""
    (progress,) = checkpoint.read_metadata(folder / "last.safetensors", "progress")
    return int(progress["step"])


class Disk:
    """What a power cut would leave of a folder: an `Act` for `Calls`.

    All that is certain is what was synced: of a file its bytes at its last sync, of the folder its
    names. Names that are newer may have reached the disk or not, whatever their files have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: Calls | None = None
        self._names: dict[str, int] = {}  # as they were synced -> the file
        self._bytes: dict[int, bytes] = {}  # of each file, as they were synced
        self._kept: dict[int, int] = {}  # descriptors, so that no number is given twice

    def __call__(self, name: str, number: int, place: str) -> None:
        if name != "fsync" or place != "after" or self.calls is None:
            return
        descriptor = self.calls.descriptor
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            if os.path.samestat(os.fstat(descriptor), os.stat(self.folder)):
                self._names = self._now()
        else:
            self._bytes[self._file(f"/proc/self/fd/{descriptor}")] = Path(
                f"/proc/self/fd/{descriptor}"
            ).read_bytes()

    def _now(self) -> dict[str, int]:
        return {path.name: self._file(path) for path in self.folder.iterdir()}

    def _file(self, path: str | Path) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        number = os.fstat(descriptor).st_ino
        if self._kept.setdefault(number, descriptor) != descriptor:
            os.close(descriptor)
        return number

    def leave(self, folder: Path, newest_names: bool) -> None:
        """Write what a power cut leaves now: nothing that was not synced but, maybe, names."""
        folder.mkdir()
        for name, number in (self._now() if newest_names else self._names).items():
            (folder / name).write_bytes(self._bytes.get(number, b""))

    def close(self) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)


def cut_everywhere(
    work: Path, every: int = 1, say: Callable[[str], None] = lambda text: None, **options: Any
) -> tuple[int, int]:
    """Cut the power after every ``every``-th call of a run, and go on from what is on the disk.

    Twice: with the names that were synced, and with those of that instant. Once a checkpoint is
    said to be there, it or a later one is; before the first, the folder may hold no run at all.
    Returns the number of calls and of cuts, all of which became the undisturbed run. Linux only.
    """
    whole, text = work / "whole", work / "text.txt"
    work.mkdir(parents=True, exist_ok=True)
    text.write_text(BOOK[:1000], encoding="utf-8")
    cuts: dict[Path, int | None] = {}
    saved: list[int] = []
    disk = Disk(whole)

    def act(name: str, number: int, place: str) -> None:
        disk(name, number, place)
        if number % every == 0 and place != "before" and whole.is_dir():
            for names in ("synced", "newest"):
                folder = work / f"{place}-{number}-{name.replace(' ', '-')}-{names}"
                disk.leave(folder, names == "newest")
                cuts[folder] = saved[-1] if saved else None

    with contextlib.closing(disk), Calls(whole, act).watched() as calls:
        disk.calls = calls
        for event in runs.start([str(text)], Config.from_options(options), str(whole)).events():
            if event["event"] == "checkpoint":
                saved.append(event["step"])
    for folder, step in cuts.items():
        try:
            if step is not None or (folder / "last.safetensors").exists():
                check_readable(folder)
                found = checkpoint.load(folder / "last.safetensors").metadata["progress"]["step"]
                if step is not None and found < step:
                    raise Different(f"the checkpoint of step {step} is lost: there is {found}")
                with contextlib.suppress(Ended):
                    trained(folder, text, options)
                compare(folder, whole)
        except (Different, CharRNNError) as error:
            raise Different(f"{folder.name}: {error}") from error
        shutil.rmtree(folder)
        say(f"cut {folder.name}")
    return len(calls.names), len(cuts)


# -- calls that fail ------------------------------------------------------------------------------

DISK: dict[str, Any] = SMALL | dict(
    model="rnn", hidden_size=4, dropout=0.0, max_steps=9, checkpoint_every=3, keep=1, eval_every=2,
    log_every=1,
)  # fmt: skip
"""A run of which every call is to fail."""


@dataclasses.dataclass
class Failures:
    """What came of calls that failed."""

    calls: int = 0
    injected: int = 0
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def trained(
    folder: Path, text: Path, options: dict[str, Any], source: str = "",
    changes: dict[str, Any] | None = None, parent: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The events of a run, begun or resumed; Ended if it was stopped behind its last line."""
    if (folder / "config.json").exists():
        return list(runs.resume(str(folder / source), changes=changes).events())
    config, other = Config.from_options(options), str(parent) if parent else None
    return list(runs.start([str(text)], config, str(folder), other).events())


def fail_everywhere(
    work: Path, codes: tuple[str, ...] = CODES, every: int = 1, lasting: int = 0,
    forgetful: bool = False, say: Callable[[str], None] = lambda text: None, **more: Any,
) -> Failures:  # fmt: skip
    """Let each ``every``-th call of a run fail, one a run, with each error.

    With ``lasting``, so many calls after it fail, too, as on a disk that stays full for a while.
    A ``forgetful`` disk loses what a failed sync was for.
    Each run ends as `_after_a_failure` says.
    """
    options, whole, text = DISK | more, work / "whole", work / "text.txt"
    work.mkdir(parents=True, exist_ok=True)
    text.write_text(BOOK[:1000], encoding="utf-8")
    with Calls(whole, lambda *call: None).watched() as calls:
        trained(whole, text, options)
    found = Failures(len(calls.names))
    for code in codes:
        for number in range(1, found.calls + 1, every):
            folder = work / "run"
            shutil.rmtree(folder, ignore_errors=True)
            act = fail_at(number, getattr(errno, code), number + lasting if lasting else None)
            notes, error = [], None
            made = Calls(folder, act)
            if forgetful:
                made.act = losing(made, act)
            with made.watched():
                try:
                    events = trained(folder, text, options)
                    notes = [e["text"] for e in events if e["event"] == "note"]
                except CharRNNError as caught:
                    error = caught
            found.injected += 1
            where = f"{code} at call {number} ({made.names[number - 1]})"
            try:
                end = _after_a_failure(folder, whole, text, options, error, notes)
            except (Different, CharRNNError) as caught:
                raise Different(f"{where}: {caught}") from caught
            found.ends[end] += 1
            say(f"{where}: {end}")
    return found


def _after_a_failure(
    folder: Path, whole: Path, text: Path, options: dict[str, Any], error: CharRNNError | None,
    notes: list[str],
) -> str:  # fmt: skip
    """A failure is one line, nothing that is there is damaged, and the run goes on from it."""
    if error is not None:
        if not isinstance(error, (SaveError, InputError)) or "\n" in str(error):
            raise Different(f"{type(error).__name__}: {error}")
        if not isinstance(error, SaveError) and (folder / "config.json").exists():
            raise Different(f"not a failed save: {error}")
    if folder.exists():
        check_readable(folder)
    if error is None:
        _compare_failed(folder, whole)
        told = any("could not" in note for note in notes)
        return "went on and said so" if told else "nothing was lost"
    with contextlib.suppress(Ended):
        trained(folder, text, options)
    _compare_failed(folder, whole)
    return f"stopped with status {error.exit_code}, resumed"


def _compare_failed(folder: Path, whole: Path) -> None:
    """As `compare`; kept checkpoints may be missing, and so may what nobody could remove."""
    kept = {p.name for p in folder.glob("step-*")}
    for path in folder.glob("step-*"):
        checkpoint.load(path)
        path.unlink()
    copy = whole.with_name("whole-compared")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    if not kept <= {f"step-{n}.safetensors" for n in range(100)}:
        raise Different(f"stray files: {kept}")
    for path in copy.glob("step-*"):
        path.unlink()
    compare(folder, copy)


# -- the command ----------------------------------------------------------------------------------


def progress() -> Callable[[str], None]:
    """Shows a line on a terminal, every half minute elsewhere."""
    last = [0.0]

    def say(text: str) -> None:
        now = time.perf_counter()
        if sys.stderr.isatty() or now - last[0] > 30:
            last[0] = now
            print(text, file=sys.stderr, flush=True)

    return say


@contextlib.contextmanager
def workplace(path: str | None) -> Iterator[Path]:
    if path is not None:
        Path(path).mkdir(parents=True, exist_ok=True)
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=("kill", "calls", "disk", "power"))
    parser.add_argument("--kills", type=int, default=200, help="at least so many")
    parser.add_argument("--compile-kills", type=int, default=12, help="of them while compiling")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="keep all files in this folder, which is to be empty")
    args = parser.parse_args()
    with workplace(args.folder) as work:
        try:
            begin = time.perf_counter()
            if args.campaign == "kill":
                done = kill_campaign(work, args.kills, args.compile_kills, args.seed, progress())
                print(
                    f"{done.kills} kills of {done.lives} processes; {done.ended} runs to their "
                    f"end, each the undisturbed one; {done.read} commands on what was left"
                )
                for place, count in sorted(done.fell.items(), key=lambda item: -item[1]):
                    print(f"{count:6}  {place}")
            elif args.campaign == "calls":
                for name, options in CALLS_OF.items():
                    folder = work / name.replace(" ", "-")
                    calls, copies = stop_everywhere(folder, say=progress(), **options)
                    print(f"{name}: {calls} calls, {copies} times stopped and resumed")
            elif args.campaign == "power":
                calls, cuts = cut_everywhere(work, say=progress(), **DISK)
                print(f"{calls} calls, {cuts} power cuts and resumed")
            else:
                for name, more in DISK_WAYS.items():
                    failed = fail_everywhere(
                        work / name.replace(",", "").replace(" ", "-"), say=progress(), **more
                    )
                    print(f"{name}: {failed.injected} failures at {failed.calls} calls")
                    for end, count in failed.ends.most_common():
                        print(f"{count:6}  {end}")
            print(f"in {time.perf_counter() - begin:.0f} s")
        except Different as error:
            print(f"DIFFERENT: {error}", file=sys.stderr)
            sys.exit(1)


ROLLBACK: dict[str, Any] = dict(
    model="rnn", activation="identity", hidden_size=16, dropout=0.0, batch_size=4, seq_length=64,
    learning_rate=1.0, grad_clip=0.0, epochs=4, threads=1, checkpoint_every=6, eval_every=7,
    log_every=5, keep=2, on_divergence="rollback",
)  # fmt: skip
"""A run that goes back five times: three times to its start, then to its best and before that."""

CALLS_OF: dict[str, dict[str, Any]] = {
    "plain": DISK,
    "rollbacks": ROLLBACK,
    "from another model": DISK | dict(inherits=True),
    "from another model, rollbacks": ROLLBACK | dict(inherits=True),
    "from an older checkpoint": DISK | dict(keep=9, until=7, source="step-3.safetensors"),
    "given more steps": DISK | dict(max_steps=4, until=4, changes=dict(max_steps=9)),
    "ended where it stood": DISK | dict(until=7, changes=dict(max_steps=7)),
}
"""Runs of which every call is looked at: what `stop_everywhere` takes."""

DISK_WAYS: dict[str, dict[str, Any]] = {
    "stop": {},
    "stop, the disk stays full": dict(lasting=10**6),
    "continue": dict(on_save_error="continue"),
    "continue, full for 4 calls": dict(on_save_error="continue", lasting=4),
    "continue, full until the end": dict(on_save_error="continue", lasting=10**6),
    "continue, a failed sync loses what it was for": dict(on_save_error="continue", forgetful=True),
}
"""Ways of failing: what `fail_everywhere` takes."""


if __name__ == "__main__":
    main()
