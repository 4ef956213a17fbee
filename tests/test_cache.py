"""The cache of compiled kernels: a second process compiles nothing, and damage costs only time."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import pytest
from support import run_python

from charrnn import cache, compiling
from charrnn.config import CELLS
from charrnn.kernels import jit, update
from charrnn.kernels.tile import tile_for

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
def test_the_tile_is_kept_without_what_others_would_link() -> None:
    tile = tile_for("float32")
    assert tile.address()  # loaded or compiled: found by its name
    module = tile.kernel.overloads[tile.signature].library._get_module_for_linking()
    assert not [*module.functions]
    assert len([*module.global_variables]) == 2


@compiler_only
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = (run(TRAINING, tmp_path) for _ in range(2))
    counts = {cell: first[cell][0] for cell in CELLS}
    # The first cell compiles what all share; each needs few of its own: one signature a kernel,
    # and a thunk for every list of argument types.
    assert counts[CELLS[0]] <= 41
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


def flipped(content: bytes) -> bytes:
    """With one bit changed in the machine code: nothing but a checksum notices."""
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "bit": flipped,
    "pickle": lambda content: b"cos\nsystem\n(S'touch ran'\ntR.",
    "pickle behind the checksum": lambda content: content[:32] + b"cos\nsystem\n(S'touch ran'\ntR.",
}


@compiler_only
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_costs_only_time(
    damage: str, warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    files = list(folder.rglob("*.nbc"))
    assert len(files) == 2
    for path in files:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert run(FEW, folder) == [2, warm[1]]
    assert run(FEW, folder) == [0, warm[1]]  # and it has been repaired
    assert not (Path(__file__).parent / "ran").exists()  # where the process ran


@compiler_only
def test_what_is_damaged_is_announced(warm: tuple[Path, list[float]], tmp_path: Path) -> None:
    """A file that has to be made again is as good as none."""
    code = FEW.partition("x = ")[0] + (
        "import numba\nvector = numba.typeof(np.zeros(4, np.float32))\n"
        "code = jit.Code(sgd, (vector,) * 3 + (numba.int64,) * 2)\n"
        "print(json.dumps(len(jit.uncompiled([code]))))"
    )
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    assert run(code, folder) == 0
    for path in folder.rglob("*.nbc"):
        path.write_bytes(flipped(path.read_bytes()))
    assert run(code, folder) == 1


@compiler_only
def test_what_killed_processes_left_is_removed(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    (inner,) = folder.iterdir()
    old, young = inner / "old.tmp", inner / "young.tmp"
    for path in (old, young):
        path.touch(0o600)
    os.utime(old, (0, 0))
    assert run(FEW, folder) == [0, warm[1]]
    assert young.exists() and not old.exists()


@compiler_only
@pytest.mark.skipif(os.name == "nt", reason="there are no such limits")
@pytest.mark.parametrize("where", ["full", "gone"])
def test_a_cache_that_cannot_grow_says_so(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "CACHE_FOLDER", tmp_path)
    assert jit.how_often() == "once per installation" and not list(tmp_path.iterdir())
    if where == "full":
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    else:
        monkeypatch.setattr(jit, "CACHE_FOLDER", tmp_path / "gone")
    try:
        said = jit.how_often()
    finally:
        if where == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    why = "File too large" if where == "full" else "No such file or directory"
    assert said == (
        f"at every start, as they are not kept: {jit.CACHE_FOLDER} cannot be written ({why})"
    )


@compiler_only
def test_files_in_each_other_s_place_cost_only_time(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """The checksum covers what a file is for: another kernel's code is not run."""
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    first, second = folder.rglob("*.nbc")
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert run(FEW, folder) == [2, warm[1]]
    assert run(FEW, folder) == [0, warm[1]]


@compiler_only
def test_folders_in_the_place_of_files_cost_only_time(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    for path in folder.rglob("*.nbc"):
        path.unlink()
        path.mkdir()
    assert run(FEW, folder) == [2, warm[1]]


@compiler_only
def test_every_bit_of_a_file_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit, "CACHE_FOLDER", tmp_path)
    store, key = jit._Store("kernel-1"), ("signature", 1)
    store.save(key, {"code": b"\x90" * 50})
    path = store.path(key)
    whole = path.read_bytes()
    assert store.load(key) == {"code": b"\x90" * 50}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for bit in range(8 * len(whole)):
        path.write_bytes(
            whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
        )
        assert store.load(key) is None and not path.exists()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.load(key) is None and not path.exists()
    assert store.load(("signature", 2)) is None


MANY = """
import json, os
import numpy as np
from charrnn.kernels import jit
from charrnn.kernels.update import sgd

order = [np.float32, np.float64]
if int(os.environ["TURN"]) % 2:
    order.reverse()
numbers = {}
for dtype in order:
    x = np.arange(24, dtype=dtype)
    sgd(x, x.copy(), np.full(4, 0.5, dtype), 0, 24)
    numbers[dtype.__name__] = x.tolist()
print(json.dumps([jit.compiled, sorted(numbers.items())]))
"""
"""Two signatures of one kernel, in either order."""


@compiler_only
def test_many_compile_into_a_cold_cache_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(lambda turn: run(MANY, folder, TURN=str(turn)), range(4)))
        assert all(result[1] == results[0][1] for result in results)
        assert run(MANY, folder, TURN="0") == [0, results[0][1]]
        assert len(list(folder.rglob("*.nbc"))) == 2 and not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)


@compiler_only
@pytest.mark.skipif(os.name == "nt", reason="there are other ways on Windows")
def test_a_cache_that_cannot_be_written_is_read(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(warm[0], folder)
    (inner,) = folder.iterdir()
    for path in (*inner.iterdir(), inner, folder):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert run(FEW, folder) == [0, warm[1]]
    finally:
        inner.chmod(0o700)
        folder.chmod(0o700)


@compiler_only
def test_an_unwritable_folder_costs_only_time(
    warm: tuple[Path, list[float]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    for folder in (file, file / "below"):
        assert run(FEW, folder) == [2, warm[1]]
    assert file.read_text() == "no folder"


posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")


@compiler_only
@posix
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


@posix
def test_whom_the_cache_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As OpenSSH: files, folders and the folders above them."""
    root = tmp_path / "above" / "cache"
    folder, file = root / "hash", root / "hash" / "kernel.nbc"
    folder.mkdir(parents=True, mode=0o700)
    for path in (root.parent, root, folder):
        path.chmod(0o700)
    file.touch(0o600)
    trusted = jit._distrust
    assert trusted(root, folder) == ""
    for path in (root, folder, file):
        mode = path.stat().st_mode
        for bit in (0o020, 0o002):
            path.chmod(mode | bit)
            assert f"{path} is not yours alone to write" in trusted(root, folder)
        path.chmod(mode)
    root.parent.chmod(0o777)
    assert trusted(root, folder) == f"others may write to {root.parent}"
    root.parent.chmod(0o1777)  # like /tmp: nobody else may rename what is in it
    assert trusted(root, folder) == ""
    root.parent.chmod(0o770)
    monkeypatch.setattr(jit, "_is_private_group", lambda gid: False)
    assert trusted(root, folder) == f"others may write to {root.parent}"
    monkeypatch.setattr(jit, "_is_private_group", lambda gid: True)
    assert trusted(root, folder) == ""
    root.parent.chmod(0o700)
    link = folder / "link.nbc"
    link.symlink_to(file)
    assert trusted(root, folder) == f"{link} is neither a file nor a folder of ours (remove it)"
    link.unlink()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert f"{root} is not yours alone" in trusted(root, folder)


@posix
def test_a_private_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ann"))
    groups = {1: ("ann", []), 2: ("ann", ["ann"]), 3: ("ann", ["bob"]), 4: ("users", [])}

    def group(gid: int) -> SimpleNamespace:
        return SimpleNamespace(gr_name=groups[gid][0], gr_mem=groups[gid][1])

    monkeypatch.setattr(grp, "getgrgid", group)
    assert [jit._is_private_group(gid) for gid in (1, 2, 3, 4, 5)] == [
        True,
        True,
        False,
        False,
        False,
    ]


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
    checks = "0" if numba.config.BOUNDSCHECK else "1"
    for settings in ({"NUMBA_BOUNDSCHECK": checks}, {"NUMBA_OPT": "1"}):
        assert run(FEW, folder, **settings) == [2, warm[1]]
        assert run(FEW, folder, **settings) == [0, warm[1]]
    assert run(FEW, folder) == [0, warm[1]]
    assert run(FEW, folder, NUMBA_CACHE_DIR=str(tmp_path)) == [0, warm[1]]  # changes no code


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHARRNN_CACHE_DIR", str(tmp_path))
    assert cache.root("kernels") == tmp_path
    assert cache.root("texts") == tmp_path / "texts"
    monkeypatch.setenv("CHARRNN_CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, where in (("XDG_CACHE_HOME", "x"), ("LOCALAPPDATA", "a")):
        monkeypatch.setenv(name, str(tmp_path / where))
    for system, where in (("linux", "x"), ("darwin", "Library/Caches"), ("win32", "a")):
        monkeypatch.setattr(sys, "platform", system)
        assert cache.root("kernels") == tmp_path / where / "charrnn" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.root("kernels") == tmp_path / ".cache" / "charrnn" / "kernels"


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
    return len(jit.uncompiled(part for call in calls for part in code(call)))

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


@compiler_only
def test_that_there_is_something_to_compile_is_said_once(tmp_path: Path) -> None:
    first = "from charrnn import cache\nsaid = []\ncache.announce = said.append\n"
    code = first + FEW.replace("[jit.compiled, x.tolist()]", "[jit.compiled, said]")
    said = "compiling kernels, once per installation: up to 20 seconds"
    assert run(code, tmp_path) == [2, [said]]
    assert run(code, tmp_path) == [0, []]
    file = tmp_path / "file"
    file.touch()
    compiled, (said,) = run(code, file)
    assert compiled == 2 and said.startswith("compiling kernels, at every start, as they are not k")


HELPED = """
import json, multiprocessing, time
import numpy as np
from charrnn import compiling
from charrnn.kernels import jit
from charrnn.kernels.dropout import add
from charrnn.kernels.program import code
from charrnn.kernels.update import sgd

x = np.zeros((2, 3, 4), np.float32)
calls = [(add, (x, x, 0, 3)), (sgd, (x.ravel(), x.ravel(), np.ones(4, np.float32), 0, 24))]
codes = [part for call in calls for part in code(call)]
compiling.available = lambda: 2
few = []
with compiling.helped(jit.uncompiled(codes)):
    few.append(multiprocessing.active_children())
compiling.WORTH = len(codes)
with compiling.helped(jit.uncompiled(codes)):
    end = time.monotonic() + 120
    while jit.uncompiled(codes) and time.monotonic() < end:
        time.sleep(0.05)
with compiling.helped(jit.uncompiled(codes)):
    few.append(multiprocessing.active_children())
print(json.dumps([len(jit.uncompiled(codes)), jit.compiled, few]))
"""


@compiler_only
def test_another_process_compiles_too(tmp_path: Path) -> None:
    """Here all, since the first one only waits; for few kernels, or none, there is no other."""
    assert run(HELPED, tmp_path) == [0, 0, [[], []]]


@compiler_only
def test_without_room_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def started(*arguments: Any) -> None:
        asked.append(arguments)
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(compiling, "started", started)
    monkeypatch.setattr(compiling, "available", lambda: 2)
    with compiling.helped([jit.Code(update.sgd, (n,)) for n in range(compiling.WORTH)]):
        pass
    names = [("charrnn.kernels.update", "sgd", (n,)) for n in reversed(range(compiling.WORTH))]
    assert asked == [(compiling.compile_named, names)]
