"""The cache of compiled kernels: a second process compiles nothing, and damage costs only time."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support import run_python

from charrnn.config import CELLS
from charrnn.kernels import jit

compiler_only = pytest.mark.skipif(jit.CACHE_FOLDER is None, reason="there is no cache to test")

TRAINING = """
import hashlib, json, sys
import networks
from charrnn.config import CELLS
from charrnn.kernels import jit

report, before = {}, 0
for cell in CELLS:
    model = networks.make(cell, dtype="float32", num_layers=2)
    loss, run = networks.train(model, networks.window(model))
    digest = hashlib.sha256(model.grads.flat.tobytes()).hexdigest()
    report[cell] = [jit.compiled - before, loss, digest]
    before = jit.compiled
print(json.dumps(report))
"""

FEW = """
import json
import numpy as np
from charrnn.kernels import jit
from charrnn.kernels.dropout import add
from charrnn.kernels.update import sgd

x = np.arange(24, dtype=np.float32)
sgd(x, x.copy(), np.full(4, 0.5, np.float32), 0, 24)
cube = x.reshape(2, 3, 4)
add(cube, cube.copy(), 0, 3)
print(json.dumps([jit.compiled, x.tolist()]))
"""
"""Two kernels: quick to compile."""


def run(code: str, folder: Path, **environment: str) -> Any:
    return json.loads(run_python(code, CHARRNN_CACHE_DIR=str(folder), **environment))


@compiler_only
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = (run(TRAINING, tmp_path) for _ in range(2))
    counts = {cell: first[cell][0] for cell in CELLS}
    # The first cell compiles what all share; each needs few of its own: one signature a kernel,
    # and a thunk for every list of argument types.
    assert counts[CELLS[0]] <= 36
    assert all(1 <= counts[cell] <= 6 for cell in CELLS[1:]), counts
    assert all(second[cell][0] == 0 for cell in CELLS)
    assert {c: r[1:] for c, r in first.items()} == {c: r[1:] for c, r in second.items()}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A cache with two kernels, and what they compute."""
    folder = tmp_path_factory.mktemp("cache")
    compiled, numbers = run(FEW, folder)
    assert compiled == 2 and numbers[1] != 1
    assert run(FEW, folder) == [0, numbers]
    return folder, numbers


@compiler_only
@pytest.mark.parametrize("kind", ("nbi", "nbc"))
@pytest.mark.parametrize("damage", ("empty", "half", "garbage", "folder"))
def test_damage_costs_only_time(
    kind: str, damage: str, warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    files = list(folder.rglob(f"*.{kind}"))
    assert len(files) == 2
    for path in files:
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            new = {"empty": b"", "half": content[: len(content) // 2], "garbage": b"\x80garbage"}
            path.write_bytes(new[damage])
    assert run(FEW, folder) == [2, warm[1]]
    if damage != "folder":
        assert run(FEW, folder) == [0, warm[1]]  # and it has been repaired


@compiler_only
def test_an_unwritable_folder_costs_only_time(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    for folder in (file, file / "below"):
        assert run(FEW, folder) == [2, warm[1]]
    assert file.read_text() == "no folder"


@compiler_only
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_folder_that_others_can_write_to_is_not_trusted(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    (inner,) = folder.iterdir()
    for path in (folder, inner):
        path.chmod(0o777)
        assert run(FEW, folder) == [2, warm[1]]
        path.chmod(0o700)
    assert run(FEW, folder) == [0, warm[1]]
    assert inner.stat().st_mode & 0o077 == 0


@compiler_only
@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
def test_a_group_s_umask_does_not_lose_the_cache(tmp_path: Path) -> None:
    code = "import os; os.umask(0o002)\n" + FEW
    assert run(code, tmp_path / "a" / "b")[0] > 0
    assert run(code, tmp_path / "a" / "b")[0] == 0


@compiler_only
def test_only_old_caches_of_our_own_are_removed(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """The folder may be anyone's choice: what we did not make in it stays, however old."""
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    (current,) = folder.iterdir()
    old, young = (folder / (letter * 20) for letter in "ab")
    for other in (old, young):
        shutil.copytree(current, other)
    foreign = folder / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("irreplaceable")
    (folder / "notes.txt").write_text("mine")
    for path in (old, foreign, folder / "notes.txt", current):
        os.utime(path, (0, 0))
    assert run(FEW, folder) == [0, warm[1]]  # the current one is in use, whatever its age
    assert not old.exists() and young.exists()
    assert (foreign / "chapter.txt").exists() and (folder / "notes.txt").exists()


@compiler_only
def test_settings_that_change_code_have_a_cache_of_their_own(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    for settings in ({"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_OPT": "1"}):
        assert run(FEW, folder, **settings) == [2, warm[1]]
        assert run(FEW, folder, **settings) == [0, warm[1]]
    assert run(FEW, folder) == [0, warm[1]]
    assert run(FEW, folder, NUMBA_CACHE_DIR=str(tmp_path)) == [0, warm[1]]  # changes no code


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHARRNN_CACHE_DIR", str(tmp_path))
    assert jit.cache_root() == tmp_path
    monkeypatch.setenv("CHARRNN_CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, where in (("XDG_CACHE_HOME", "x"), ("LOCALAPPDATA", "a")):
        monkeypatch.setenv(name, str(tmp_path / where))
    for system, where in (("linux", "x"), ("darwin", "Library/Caches"), ("win32", "a")):
        monkeypatch.setattr(sys, "platform", system)
        assert jit.cache_root() == tmp_path / where / "charrnn" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert jit.cache_root() == tmp_path / ".cache" / "charrnn" / "kernels"


UNCOMPILED = """
import json
import numpy as np
from charrnn.kernels import jit
from charrnn.kernels.dropout import add
from charrnn.kernels.program import Table, code
from charrnn.kernels.update import sgd

x = np.zeros((2, 3, 4), np.float32)
wide = x.astype(np.float64)
calls = [(add, (a, a.copy(), 0, rows)) for a in (x, wide) for rows in (3, 2)]
calls.append((sgd, (x.ravel(), x.ravel(), np.ones(4, np.float32), 0, 24)))

def left():
    return jit.uncompiled(part for call in calls for part in code(call))

before = left()
table = Table(calls)
compiled = jit.compiled
table.walk()
print(json.dumps([before, compiled, left()]))
"""


@compiler_only
def test_the_kernels_to_come_are_counted(tmp_path: Path) -> None:
    """What is announced to a person is what will be compiled.

    Here two types and another kernel, and as many thunks.
    """
    assert run(UNCOMPILED, tmp_path) == [6, 6, 0]
    assert run(UNCOMPILED, tmp_path) == [0, 0, 0]
    file = tmp_path / "file"
    file.touch()
    assert run(UNCOMPILED, file) == [6, 6, 0]
