"""One safetensors file holds a whole training state; it is replaced atomically.

Tensors are stored as they are. The header's metadata maps names to strings: each value that the
caller gives is stored as canonical JSON, and beside them stand

    format          "pt", how loaders of PyTorch models know whose names and layout these are
    format_version  "1"
    checksum        SHA-256, in hexadecimal, over all of the above: see `_checksum`

The same state gives the same bytes. Nothing is ever unpickled, and a file that is truncated,
damaged or not ours ends in one InputError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from charrnn import atomic
from charrnn.errors import InputError, SaveError
from charrnn.opening import regular
from charrnn.runlog import parse_json

FORMAT_VERSION = "1"
MAX_HEADER = 16 * 2**20  # bytes; far above any vocabulary, and a bound on memory for a bad file
MAX_TENSORS = 100_000
OWN_KEYS = ("format", "format_version", "checksum")

START = "step-0.safetensors"
"""In a run that began with another's weights: these. They cannot be drawn again by the seed."""

DTYPES = {"bool": "BOOL"} | {
    f"{kind}{bits}": f"{kind[0].upper()}{bits}"
    for kind, smallest in (("float", 16), ("int", 8), ("uint", 8))
    for bits in (8, 16, 32, 64)
    if bits >= smallest
}
"""NumPy's names of types -> the file's."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: named tensors and the metadata's values."""

    path: Path
    tensors: Tensors
    metadata: dict[str, Any]


def save(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write a checkpoint atomically; its folder must exist.

    Parameters
    ----------
    tensors
        Name -> array of any shape, of floats, integers or booleans.
    metadata
        Name -> JSON-able value; the names of `OWN_KEYS` are reserved.

    Raises
    ------
    InputError
        If a number is not finite: such a checkpoint could never be used.
    SaveError
        If it cannot be written; the file before it is whole.
    """
    _check_finite(path, tensors)
    header = {name: _canonical(name, value) for name, value in metadata.items()}
    header |= {"format": "pt", "format_version": FORMAT_VERSION}
    header["checksum"] = _checksum(tensors, header)
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # all are aligned
    with atomic.replacing(path) as file:
        file.write(_header(path, {name: tensors[name] for name in order}, header))
        for name in order:
            file.write(_bytes(tensors[name]))


def load(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Needs no more memory than the file's size and a constant, whatever is in it.

    Raises
    ------
    InputError
        If it is no checkpoint of ours, damaged, of a newer format, or holds a number that is
        not finite.
    """
    path = Path(path)
    _check_header_size(path)
    with _reading(path), safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        _check_format(path, header)
        if len(file.keys()) > MAX_TENSORS:
            raise _damaged(path, f"it has {len(file.keys()):,} tensors")
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    for name, tensor in tensors.items():
        if tensor.dtype.name not in DTYPES:
            raise _damaged(path, f"tensor {name!r} is {tensor.dtype}")
    checksum = header.pop("checksum")
    if _checksum(tensors, header) != checksum:
        raise _damaged(path, "its checksum is wrong")
    _check_finite(path, tensors)
    metadata = {
        name: parse_json(text, f"{name!r} of {path}")
        for name, text in sorted(header.items())
        if name not in OWN_KEYS
    }
    return Checkpoint(path, tensors, metadata)


def read_metadata(path: str | Path, *names: str) -> list[Any]:
    """Some of a checkpoint's metadata, from its header alone: the checksum is not verified.

    Raises
    ------
    InputError
        If it is no checkpoint of ours, cut short, of a newer format, or lacks them.
    """
    header = _read_header(Path(path))
    for name in names:
        if name not in header:
            raise _damaged(Path(path), f"it lacks {name!r}")
    return [parse_json(header[name], f"{name!r} of {path}") for name in names]


def checksum(path: str | Path) -> str:
    """What tells a checkpoint's state from any other, from its header alone: it is not verified.

    Raises
    ------
    InputError
        If it is no checkpoint of ours, cut short, or of a newer format.
    """
    return _read_header(Path(path))["checksum"]


def _read_header(path: Path) -> dict[str, str]:
    """The strings of a checkpoint's header."""
    _check_header_size(path)
    with _reading(path), safetensors.safe_open(path, framework="numpy") as file:
        header: dict[str, str] = file.metadata() or {}
    _check_format(path, header)
    return header


def _canonical(name: str, value: Any) -> str:
    """One text for one value: keys sorted, no spaces, ASCII."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name!r} cannot be kept in a checkpoint: {error}") from error


def _bytes(tensor: NDArray[Any]) -> memoryview:
    """A tensor's elements as the file has them: in C order, little-endian.

    A copy only of what lies otherwise, and of one tensor at a time: a training state is large.
    """
    dense = np.asarray(tensor, tensor.dtype.newbyteorder("<"), order="C")
    return dense.reshape(-1).view(np.uint8).data


def _checksum(tensors: Mapping[str, NDArray[Any]], header: Mapping[str, str]) -> str:
    """SHA-256 of the header's strings, then of each tensor: name, dtype, shape, bytes; sorted."""
    digest = hashlib.sha256(_canonical("header", dict(header)).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical(name, [name, tensor.dtype.name, tensor.shape]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _check_finite(path: str | Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    for name, tensor in tensors.items():
        # The extremes show NaN and infinity without a temporary array.
        if tensor.dtype.kind == "f" and tensor.size:
            with np.errstate(invalid="ignore"):
                extremes = tensor.min(), tensor.max()
            if not np.isfinite(extremes).all():
                raise InputError(
                    f"tensor {name!r} of {path} holds NaN or infinity; only finite numbers are"
                    " allowed: use an earlier checkpoint"
                )


def _header(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> bytes:
    """What stands before the tensors. The library would order the metadata at random."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    if len(text) > MAX_HEADER:
        raise InputError(
            f"the metadata of {path} take {len(text)} bytes; at most {MAX_HEADER} are allowed:"
            " use a smaller vocabulary (--min-count)"
        )
    return len(text).to_bytes(8, "little") + text


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Python, the library and NumPy raise about a bad file into one InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        # The last three: a shape or a dtype that NumPy does not have.
        raise _damaged(path, f"{error}") from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged or not a checkpoint ({reason}): use another checkpoint of the run"
    )


def _check_header_size(path: Path) -> None:
    with _reading(path):
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with open(path, "rb", opener=regular) as file:
            size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER:
        raise _damaged(path, "it does not begin like a safetensors file")


def _check_format(path: Path, header: Mapping[str, str]) -> None:
    if "format_version" not in header or "checksum" not in header:
        raise InputError(
            f"{path} is a safetensors file, but not of charrnn: use one that charrnn train wrote"
        )
    if header["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {header['format_version'][:20]!r}; this charrnn reads"
            f" version {FORMAT_VERSION}: upgrade charrnn"
        )


def run_checkpoint(run_or_file: str | Path | None, root: str | Path = "runs") -> Path:
    """The checkpoint to use: of the newest run below ``root`` (None), of a run folder, or a file.

    Of a run it is the best one, else the last, else what it began with.

    Raises
    ------
    InputError
        If there is none.
    """
    path = newest_run(root) if run_or_file is None else Path(run_or_file)
    with _reading(path):  # a folder that may not be entered is another fault than an empty one
        if path.is_file():
            return path
        for name in ("best.safetensors", "last.safetensors", START):
            if (path / name).is_file():
                return path / name
    if path.is_dir():
        raise InputError(f"{path} holds no checkpoint: name a run folder or a .safetensors file")
    raise InputError(f"{path} does not exist: name a run folder or a .safetensors file")


def newest_run(root: str | Path = "runs") -> Path:
    """The folder below ``root`` whose ``last.safetensors`` is newest.

    A run that has only begun counts if there is no other.

    Raises
    ------
    InputError
        If there is none.
    """
    files = (path for path in Path(root).rglob("last.safetensors") if os.path.isfile(path))
    found = sorted(files, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    newest = next((path for path in found if not _only_begun(path)), next(iter(found), None))
    if newest is None:
        raise InputError(
            f"there are no runs below {root}: make one with `charrnn train FILE`,"
            " or name a run folder"
        )
    return newest.parent


def _only_begun(path: Path) -> bool:
    """Whether this is the checkpoint of a run before its first step."""
    try:
        (progress,) = read_metadata(path, "progress")
        return progress["step"] == 0 and progress["finished"] is None
    except (InputError, LookupError, TypeError):
        return False  # who uses it will hear of it


def of_run(folder: str | Path) -> list[Path]:
    """The checkpoints of a run folder, those that are there."""
    folder = Path(folder)
    named = [folder / "best.safetensors", folder / "last.safetensors"]
    return [path for path in named if path.is_file()] + list(_kept(folder).values())


def prune(folder: str | Path, keep: int) -> None:
    """Remove all but the ``keep`` latest ``step-<n>.safetensors`` of a run folder, and `START`."""
    steps = {step: path for step, path in _kept(folder).items() if step}
    _remove(steps[step] for step in sorted(steps)[: max(len(steps) - keep, 0)])


def remove_after(folder: str | Path, step: int) -> None:
    """Remove the ``step-<n>.safetensors`` of a run folder that are newer than ``step``."""
    _remove(path for n, path in _kept(folder).items() if n > step)


def steps_after(folder: str | Path, step: int) -> list[int]:
    """The n of the ``step-<n>.safetensors`` of a run folder that are newer than ``step``."""
    return sorted(n for n in _kept(folder) if n > step)


def set_aside(folder: str | Path, steps: Iterable[int]) -> list[Path]:
    """Rename ``step-<n>.safetensors`` of these steps, those that are there, as abandoned ones.

    They count no more as the run's, but are as good as before. Returns where they are.

    Raises
    ------
    SaveError
        If one cannot be renamed.
    """
    kept, aside = _kept(folder), []
    for path in (kept[step] for step in steps if step in kept):
        aside.append(_free_name(path.with_name(f"abandoned-{path.name}")))
        try:
            path.rename(aside[-1])
        except OSError as error:
            raise SaveError(
                f"could not rename {path} to {aside[-1].name}: {error.strerror or error}; "
                "allow it, then resume the run"
            ) from error
    atomic.sync_folder(Path(folder))
    return aside


def _free_name(path: Path) -> Path:
    """``path``, or with -2, -3, ... if it is taken."""
    free, n = path, 1
    while os.path.lexists(free):
        n += 1
        free = path.with_stem(f"{path.stem}-{n}")
    return free


def _kept(folder: str | Path) -> dict[int, Path]:
    """Step -> its ``step-<n>.safetensors`` in a run folder."""
    return {
        int(match[1]): path
        for path in Path(folder).iterdir()
        if (match := re.fullmatch(r"step-(\d+)\.safetensors", path.name))
    }


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # one in use (Windows) goes next time
            path.unlink()
