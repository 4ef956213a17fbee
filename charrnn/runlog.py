"""The run folder and its JSON: ``config.json`` and ``metrics.jsonl``.

``metrics.jsonl``, schema 1: UTF-8, one event a line, each a strict JSON object with ``event`` and
``step``, the number of training steps done. Losses are nats per character. What depends on the
clock is under ``time``; all else is the same whenever the run is repeated or resumed. A number
that is not finite is null. Readers ignore keys and events that they do not know. docs/metrics.md
is for users and has the units.

==========  =====================================================================================
event       further keys
==========  =====================================================================================
start       schema, total_steps, steps_per_epoch, parameters, train_chars, val_chars, vocab_size,
            batch_size, seq_length; val_nats_per_char, the newest, or null
train       epoch (fraction), chars (trained so far), nats_per_char (mean since the last such
            line), grad_norm (before clipping), clipped (share of steps), learning_rate,
            time: seconds, chars_per_second, threads
gradients   epoch; gradient_norms (before clipping), update_norms, weight_norms: tensor -> Euclidean
            norm; since the last such line: clipped (share of steps clipped by norm), clip_scale
            (mean factor of that); clipped_elements (share beyond --grad-clip-value); reach, see
            `charrnn.probe.Reach`
validation  epoch, val_nats_per_char, best (is this one the best yet), best_val_nats_per_char,
            best_step, time: seconds
sample      text
rollback    step (that the run went back to), diverged_step (which lines up to there are cut off),
            what (was not finite), rollbacks (how many there have been), learning_rate_scale (the
            factor of the learning rate from here on)
end         epoch, reason (finished, patience, interrupted, diverged), nats_per_char,
            val_nats_per_char, best_val_nats_per_char, best_step, test_nats_per_char, memorised
            (shares of passages found in the training text: sampled, held_out; see
            `charrnn.memorised`), message, time: seconds; what there is none of is null
==========  =====================================================================================
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import json
import math
import os
import re
import reprlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from charrnn import atomic, facts
from charrnn.errors import InputError, SaveError
from charrnn.opening import regular

SCHEMA = 1
ROOT = "runs"  # the folder of runs that are not placed elsewhere
RUN_FILES = (
    "config.json", "metrics.jsonl", "last.safetensors", "best.safetensors",
    "step-[1-9]*.safetensors",
)  # fmt: skip
"""Any of these makes a run; what is written before config.json does not."""
KEPT_TEXT = "text.txt"
"""Where a run keeps, as UTF-8, a text that came through a pipe."""

Shapes = Mapping[str, Mapping[str, Any]]

GRACE = 0.5  # seconds in which a lock that is only looked at by `held` becomes free
MOST_WAITING = 1 << 26  # bytes of lines that are kept in memory until they are on the disk
TAIL, LONGEST = 2**16, 2**24  # bytes: of a tail, and of the longest JSON text that is looked at
MOST_VALUES = 5 * 2**18  # of one: more than Unicode has characters, and a bound on memory
DEEPEST = 100  # lists and objects within each other; far below what Python can recurse
OWNER = 100  # bytes that a lock says of its owner


class RunLog:
    """The metrics file of a run, open for appending; a context manager.

    Lines that could not be written wait, and with them all that come later, until `sync` or
    `truncate`, or until they are more than `MOST_WAITING`. So the file is at any time a beginning
    of what was appended, in whole lines.

    Lines are kept until they are synced. After a sync that failed, systems may have dropped what it
    was for and say that the next one is good: all since the last good one is written again.

    Raises
    ------
    InputError
        If something that is no such file, or may not be written, is in its place.
    SaveError
        If it cannot be made or, from any method, written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _own_file(self.path)
        self._synced = os.fstat(self._file.fileno()).st_size  # bytes of whole lines
        self._lines = bytearray()  # behind them
        self._written = 0  # bytes of these that are in the file, in whole lines
        self._torn = False  # is there anything else behind those?
        self._failing = False  # did the last attempt to write or sync them fail?

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def length(self) -> int:
        """Bytes of all lines, those that wait included: what a checkpoint records."""
        return self._synced + len(self._lines)

    @property
    def waiting(self) -> int:
        """Bytes of the lines that are not written yet."""
        return len(self._lines) - self._written

    def append(self, event: Mapping[str, Any], *, later: bool = False) -> None:
        """Write one event as one line: all of it or, if the disk is full, nothing of it.

        ``later``: together with the next line, which is soon to come.
        """
        self._lines += dump_json(event) + b"\n"
        if len(self._lines) > MOST_WAITING:
            self.sync()
        elif not (later or self._failing):
            self._write()

    def sync(self) -> None:
        """Bring all lines to the disk."""
        self._write()
        with self._saving():
            try:
                os.fsync(self._file.fileno())
            except OSError:
                self._written, self._torn, self._failing = 0, True, True
                raise
        self._forget(self.length)

    def _forget(self, synced: int) -> None:
        """Nothing is to be written behind so many bytes."""
        self._synced, self._written, self._torn, self._failing = synced, 0, False, False
        self._lines.clear()

    def _write(self) -> None:
        """Write the lines that wait."""
        lines = memoryview(bytes(self._lines[self._written :]))
        self._failing = True
        with self._saving():
            self._mend()
            self._torn = True
            try:
                while lines:
                    lines = lines[self._file.write(lines) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._mend()
                raise
            self._torn = False
        self._written, self._failing = len(self._lines), False

    def _mend(self) -> None:
        if self._torn:
            self._file.truncate(self._synced + self._written)
            self._torn = False

    def truncate(self, length: int) -> str | None:
        """Cut back to the ``length`` that a checkpoint recorded, where a resumed run goes on.

        If the file has become shorter, its complete lines are kept, since lost metrics are no
        reason to lose the model; then a note for the user is returned.
        """
        with self._saving():
            kept = self.path.read_bytes()[:length].rfind(b"\n") + 1
            self._file.truncate(kept)
        self._forget(kept)
        if kept == length:
            return None
        return (
            f"{self.path} ends {length - kept} bytes before the checkpoint: those events are lost"
        )

    def close(self) -> None:
        """Close the file; appending is over."""
        self._file.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(
                f"could not write {self.path}: {error.strerror or error}; the lines before are"
                " whole: make room or allow writing, then resume the run"
            ) from error


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process while it trains.

    The operating system holds the lock and drops it when the process ends, however it ends.

    Raises
    ------
    InputError
        If another process has it, or something that is no such file is in its place.
    SaveError
        If the file cannot be made.
    """
    with _own_file(folder / "lock") as file:
        latest = time.monotonic() + GRACE
        while not _locked(file):
            if time.monotonic() > latest:
                file.seek(0)
                owner = file.read(OWNER).decode(errors="replace").strip() or "another process"
                raise InputError(
                    f"{folder} is being trained by {owner}: wait for it, or stop it first"
                )
            time.sleep(0.01)
        with contextlib.suppress(OSError):  # it is held without its owner's name, too
            file.truncate(0)
            file.write(f"process {os.getpid()}\n".encode())
        yield


def _own_file(path: Path) -> IO[bytes]:
    """A file of a run, open for appending.

    Unbuffered: nothing that failed to be written may turn up again when it is closed.
    """
    try:
        return open(path, "a+b", buffering=0, opener=regular)
    except OSError as error:
        fault = f"{path}: {error.strerror or error}"
        if os.path.lexists(path):
            raise InputError(
                f"cannot write {fault}; allow writing it, or remove what is in the place of the "
                "run's own file"
            ) from error
        raise SaveError(f"could not write {fault}; make room or allow writing") from error


def held(folder: Path) -> bool:
    """Whether a process trains in a run folder, by its `lock`.

    The system alone knows: a process that was killed leaves the file as it is. To look is to hold a
    shared lock for an instant; several may look at once, and who wants to train waits it out.
    """
    try:
        with open(folder / "lock", "rb", opener=regular) as file:
            return not _locked(file, shared=True)
    except OSError:  # there is none, or it is no lock of ours
        return False


def _locked(file: IO[Any], shared: bool = False) -> bool:
    """Whether the lock could be taken. A file system without locks lets everybody in.

    Windows has no shared one here: there, two who look at the same instant take each other for a
    trainer.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # a byte that nobody reads: the lock keeps readers off
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def read(path: str | Path, needed: Shapes = MappingProxyType({})) -> Iterator[dict[str, Any]]:
    """The complete events of a metrics file; a last line still being written is left out.

    ``needed``: kind of event -> what a line of it must say, as `charrnn.facts` describes it.

    Raises
    ------
    InputError
        If the file cannot be read, a line is not an event or lacks what is needed, or its schema
        is not ours.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            for number in itertools.count(1):
                line = file.readline(LONGEST + 1)
                if not line.endswith(b"\n") and len(line) <= LONGEST:
                    return
                where = f"line {number} of {path}"
                event = _event(line, where)
                facts.check(event, needed.get(event["event"], {}), where)
                yield event
    except OSError as error:
        raise InputError(
            f"cannot read the metrics {path}: {error.strerror or error}; name the folder of a run"
        ) from error


def tail(path: str | Path) -> list[dict[str, Any]]:
    """The last complete events of a metrics file of any length; at least one if it has any.

    Raises
    ------
    OSError
        If the file cannot be read.
    InputError
        If a line is not an event, or its schema is not ours.
    """
    with open(path, "rb", opener=regular) as file:
        length, size = file.seek(0, os.SEEK_END), TAIL
        while True:
            begin = file.seek(max(length - size, 0))
            lines = file.read(size).split(b"\n")[:-1]
            if begin:
                lines = lines[1:]
            if lines or not begin or size > LONGEST:
                break
            size *= 8
    if size > LONGEST:
        raise InputError(f"{path} does not end in lines: restore the file")
    return [_event(line, f"one of the last lines of {path}") for line in lines]


def event_at(path: str | Path, offset: int) -> dict[str, Any] | None:
    """The event whose line begins at a byte of a metrics file; None if none does.

    A checkpoint's ``metrics_length`` is such a byte.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with open(path, "rb", opener=regular) as file:
        file.seek(offset)
        line = file.readline(LONGEST)
    try:
        return _event(line, str(path)) if line.endswith(b"\n") else None
    except InputError:
        return None


def _event(line: bytes, where: str) -> dict[str, Any]:
    event = parse_json(line, where)
    if not isinstance(event, dict) or not {"event", "step"} <= event.keys():
        raise InputError(f"{where} is no event of a run: delete that line or restore the file")
    if event.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{where} has schema {reprlib.repr(event['schema'])[:20]}; this charrnn reads "
            f"{SCHEMA}: upgrade charrnn"
        )
    facts.check(event, {"event": str, "step": int}, where)
    return event


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; numbers that are not finite become null."""
    atomic.write(path, dump_json(value, indent=2) + b"\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file of a run, such as config.json.

    Raises
    ------
    OSError
        If the file cannot be read.
    InputError
        As `parse_json` does.
    """
    with open(path, "rb", opener=regular) as file:
        return parse_json(file.read(LONGEST + 1), str(path))


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a strict JSON text from an untrusted file, called ``what`` in the message.

    Raises
    ------
    InputError
        If it is malformed, nested too deeply, not UTF-8, has a number that is not finite, or is so
        long or has so many values that it is none of ours: a short text can mean many objects.
    """
    try:
        if len(text) > LONGEST or (len(text) > MOST_VALUES and _values(text) > MOST_VALUES):
            raise ValueError("it is too long")
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise ValueError("nested too deeply")
        return value
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(
            f"{what} is not valid JSON ({reason}): restore the file or use another one"
        ) from error


def _values(text: Any) -> int:
    """At least how many objects a JSON text makes; lists and dictionaries are large ones."""
    comma, opening = (",", "[{") if isinstance(text, str) else (b",", (b"[", b"{"))
    return text.count(comma) + 2 * sum(map(text.count, opening))


def _depth(value: Any) -> int:
    """How many lists and objects are within each other; without recursion."""
    inner, depth = [value], -1
    while inner:
        depth += 1
        inner = [
            item
            for outer in inner
            if isinstance(outer, (list, dict))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"a number that is not finite: {literal[:40]}")
    return number


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """Strict JSON, UTF-8: numbers that are not finite become null."""
    encode = json.JSONEncoder(indent=indent, ensure_ascii=False, allow_nan=False).encode
    try:
        text = encode(value)
    except ValueError:  # rare, and to look for them takes longer than all the rest
        text = encode(_nulled(value))
    # A lone surrogate (an undecodable file name) becomes \udcxx, which is JSON's escape for it.
    return text.encode(errors="backslashreplace")


def _nulled(value: Any) -> Any:
    """``value`` with None for every float that strict JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulled(item) for item in value]
    return value


def new_run_folder(out_dir: str | Path | None, corpus_name: str, root: str | Path = ROOT) -> Path:
    """Create the folder of a new run.

    Parameters
    ----------
    out_dir
        The folder that the user named; it may exist if it holds no run. None: ``root/<corpus>``,
        with ``-2``, ``-3``, ... after it if taken.
    corpus_name
        What the text is called; characters that trouble file systems are replaced.

    Raises
    ------
    InputError
        If ``out_dir`` is a file or holds a run, or the folder cannot be created.
    """
    if out_dir == "":
        raise InputError("--out-dir is empty: name a folder, or leave it out")
    folder = Path(root if out_dir is None else out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if out_dir is None:
            folder = _numbered_folder(folder, _safe_name(corpus_name))
        atomic.sync_folder(folder.parent)
    except OSError as error:
        raise no_folder(folder, error) from error
    if out_dir is not None:
        check_free(folder)
    return folder


def check_foreign(path: str | Path, option: str) -> None:
    """Refuse a file of a run, or any checkpoint, as the place of something else."""
    place = Path(os.path.realpath(path))
    if place.suffix == ".safetensors":
        raise InputError(f"{option} {path} would be a checkpoint: give it another ending")
    names = (*RUN_FILES, KEPT_TEXT, "lock")
    is_run = os.path.isfile(place.parent / "config.json")
    if is_run and any(fnmatch.fnmatchcase(place.name, name) for name in names):
        raise InputError(f"{option} {path} is a file of the run there: name another one")


def no_folder(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot create the run folder {folder}: {error.strerror or error};"
        " name a folder that can be written with --out-dir"
    )


def check_free(folder: Path) -> None:
    """InputError if a folder holds a run, or a file that one would overwrite."""
    found = next((path for pattern in RUN_FILES for path in folder.glob(pattern)), None)
    if found is None:
        return
    if (folder / "config.json").exists():
        raise InputError(
            f"--out-dir {folder} already holds a run: continue it with --resume {folder},"
            " or name another folder"
        )
    begin = f"; to begin with that model, --init-from {found}" * (found.suffix == ".safetensors")
    raise InputError(
        f"--out-dir {folder} holds a {found.name}, which a run would overwrite: name another "
        f"folder{begin}"
    )


def _numbered_folder(root: Path, name: str) -> Path:
    for number in itertools.count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")


def _safe_name(name: str) -> str:
    """``name`` as a folder name for any system: no odd characters, not long, not reserved."""
    name = re.sub(r"[^\w.-]+", "-", name)[:60].strip("-.") or "text"
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    return f"text-{name}" if reserved else name
