"""Checkpoints: what is saved is loaded, a failed save costs nothing, a bad file is one error."""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
import re
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from charrnn import atomic, checkpoint
from charrnn.errors import InputError, SaveError

DTYPES = ("float32", "float64", "uint8", "uint16", "uint32", "int64", "bool")
SHAPES = ((), (1,), (0,), (3, 0, 2), (2, 3, 5))
METADATA = {
    "config": {"model": {"hidden_size": 7, "dropout": 0.1, "val_file": None, "residual": True}},
    "vocabulary": ["\n", '"', "\\", "a", "é", "中", "😀", "\u2028", "\ud800", "\ufffd"],
    "cursor": 2**63,
    "loss": 1e-300,
}


def state(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{dtype}.{i}": rng.integers(0, 200, shape).astype(dtype)
        for dtype in DTYPES
        for i, shape in enumerate(SHAPES)
    }


def assert_same(loaded, tensors, metadata):
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
    assert loaded.metadata == metadata


def forge(path, header, tensors=None, checksum=None):
    """A file with these strings in its header and, unless given, the right checksum."""
    tensors = tensors or {"w": np.ones(3, "f4")}
    header = {"format_version": "1", **header}
    header["checksum"] = checksum or checkpoint._checksum(tensors, header)
    safetensors.numpy.save_file(tensors, path, header)
    return path


def raw(path, header, data=b"", size=None):
    """A file made by hand: declared header size, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.safetensors"


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# --- What is saved is loaded ---------------------------------------------------------------------


def test_roundtrip(path):
    checkpoint.save(path, state(), METADATA)
    loaded = checkpoint.load(str(path))
    assert loaded.path == path
    assert_same(loaded, state(), METADATA)
    assert os.listdir(path.parent) == [path.name]


def test_roundtrip_of_nothing(path):
    checkpoint.save(path, {}, {})
    assert_same(checkpoint.load(path), {}, {})


def test_arrays_that_are_not_contiguous(path):
    base = np.arange(24, dtype="f4").reshape(4, 6)
    tensors = {"t": base.T, "step": base[::2, 1::3], "back": base[::-1], "big": base.astype(">f4")}
    checkpoint.save(path, tensors, {})
    for name, tensor in checkpoint.load(path).tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_the_same_state_gives_the_same_bytes(path, tmp_path):
    metadata = {letter: {"b": 1, "a": 2} for letter in "abcdefghijklmnop"}
    checkpoint.save(path, state(), metadata)
    other = tmp_path / "other"
    shuffled = {letter: {"a": 2, "b": 1} for letter in reversed(metadata)}
    checkpoint.save(other, dict(reversed(state().items())), shuffled)
    assert other.read_bytes() == path.read_bytes()


def test_other_readers_of_safetensors_understand_it(path):
    checkpoint.save(path, state(), METADATA)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["float32.4"], state()["float32.4"])
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
    assert header["format"] == "pt" and header["format_version"] == "1"
    assert json.loads(header["vocabulary"]) == METADATA["vocabulary"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_not_finite_are_never_saved(path, bad, dtype):
    weight = np.ones((3, 4), dtype)
    weight[1, 2] = bad
    with pytest.raises(InputError, match="'rnn.weight' .* holds NaN or infinity"):
        checkpoint.save(path, {"good": np.ones(2), "rnn.weight": weight}, {})
    with pytest.raises(InputError, match="'best_loss' cannot be kept"):
        checkpoint.save(path, {}, {"best_loss": bad})
    assert not path.exists()


def test_numbers_near_the_limit_are_finite(path):
    weight = np.array([np.finfo("f4").max, np.finfo("f4").min], "f4")
    checkpoint.save(path, {"w": weight}, {})
    np.testing.assert_array_equal(checkpoint.load(path).tensors["w"], weight)


def test_metadata_too_large_to_load_again_are_not_saved(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_HEADER", 1000)
    with pytest.raises(InputError, match="at most 1000 are allowed"):
        checkpoint.save(path, {}, {"vocabulary": "x" * 1000})
    assert not path.exists()


def test_saving_needs_memory_for_one_tensor(path):
    tensors = {name: np.ones((512, 1024), "f4").T for name in "abcd"}
    tracemalloc.start()
    try:
        checkpoint.save(path, tensors, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * tensors["a"].nbytes


def test_memory_is_the_files_size(path):
    checkpoint.save(path, {"a": np.ones(2**19), "b": np.ones(2**18)}, {})
    tracemalloc.start()
    try:
        checkpoint.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2**22 < peak < path.stat().st_size + 2**19


# --- A failed save costs nothing -----------------------------------------------------------------


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A file that takes one write and then has no room."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.file.close()

    def write(self, data):
        self.writes += 1
        return no_space() if self.writes > 1 else self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def fail_replace(monkeypatch):
    monkeypatch.setattr(os, "replace", no_space)


def fail_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)


def fail_write(monkeypatch):
    def full(*args):
        return FullDisk(builtins.open(*args))  # noqa: SIM115

    monkeypatch.setattr(atomic, "open", full, raising=False)


def fail_open(monkeypatch):
    monkeypatch.setattr(atomic, "open", no_space, raising=False)


@pytest.mark.parametrize("fail", [fail_replace, fail_fsync, fail_write, fail_open])
def test_a_failed_save_leaves_the_old_file_whole(path, monkeypatch, fail):
    checkpoint.save(path, state(1), METADATA)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(SaveError, match="could not save .*No space left.* whole") as caught:
            checkpoint.save(path, state(2), METADATA)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
    checkpoint.save(path, state(2), METADATA)
    assert_same(checkpoint.load(path), state(2), METADATA)


def test_a_limit_on_file_size_set_by_the_system(path):
    resource = pytest.importorskip("resource")
    checkpoint.save(path, state(1), METADATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(SaveError, match="File too large"):
            checkpoint.save(path, {"w": np.ones(2**14)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(checkpoint.load(path), state(1), METADATA)
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_save_leaves_nothing_behind(path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    checkpoint.save(path, state(1), METADATA)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, state(2), METADATA)
    assert_same(checkpoint.load(path), state(1), METADATA)
    assert os.listdir(path.parent) == [path.name]


def test_what_a_killed_process_left_is_swept(path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *args: None)
        checkpoint.save(path, {}, {})
    (path.parent / ".others.tmp").touch()
    assert len(os.listdir(path.parent)) == 2
    atomic.sweep(path.parent)
    assert os.listdir(path.parent) == [".others.tmp"]


def test_file_and_folder_reach_the_disk_in_order(path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("replace"), replace(*a)))
    checkpoint.save(path, state(), METADATA)
    assert steps[:2] == ["fsync", "replace"]
    assert steps[2:] == (["fsync"] if os.name == "posix" else [])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks what a descriptor is")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.ENOSPC])
def test_a_folder_that_cannot_be_synced(path, monkeypatch, code):
    """That a system cannot do it is no failure; a disk's error is one."""

    def without_folders(fd, fsync=os.fsync):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", without_folders)
    if code in (errno.EINVAL, errno.ENOTSUP):
        checkpoint.save(path, state(), METADATA)
    else:
        with pytest.raises(SaveError, match="could not sync the folder .* a power cut may take"):
            checkpoint.save(path, state(), METADATA)
    assert_same(checkpoint.load(path), state(), METADATA)
    assert os.listdir(path.parent) == [path.name]


def test_windows_refuses_for_a_moment(path, monkeypatch):
    attempts, replace = [], os.replace

    def busy(*args):
        attempts.append(args)
        if len(attempts) < 3:
            raise PermissionError(errno.EACCES, "in use")
        replace(*args)

    temporary = path.with_name("temporary")
    temporary.write_text("new")
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "replace", busy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        atomic._replace(temporary, path)
    assert path.read_text() == "new" and len(attempts) == 3


def test_a_missing_folder_is_a_failed_save(tmp_path):
    with pytest.raises(SaveError, match="No such file or directory"):
        checkpoint.save(tmp_path / "gone" / "last.safetensors", {}, {})


# --- A bad file is one clear error ---------------------------------------------------------------


def small(path):
    tensors = {"w": np.arange(6, dtype="f4").reshape(2, 3), "n": np.array(5, "i8")}
    metadata = {"vocabulary": ["a", "é"], "cursor": 3}
    checkpoint.save(path, tensors, metadata)
    return tensors, metadata


def load_or_input_error(path, tensors, metadata):
    """Loading gives the very data or InputError; True if it gave data."""
    try:
        loaded = checkpoint.load(path)
    except InputError as error:
        assert "\n" not in str(error)
        return False
    assert_same(loaded, tensors, metadata)
    return True


def test_flipped_bits(path):
    expected = small(path)
    whole = path.read_bytes()
    rng = random.Random(1)
    for bit in rng.sample(range(len(whole) * 8), 1000):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        survived = load_or_input_error(path, *expected)
        assert not survived or damaged[bit // 8 : bit // 8 + 1].isspace()  # padding of the header


def test_overwritten_stretches(path):
    expected = small(path)
    whole = path.read_bytes()
    rng = random.Random(2)
    for _ in range(300):
        start, length = rng.randrange(len(whole)), rng.randrange(1, 40)
        damaged = whole[:start] + rng.randbytes(length) + whole[start + length :]
        path.write_bytes(damaged)
        assert not load_or_input_error(path, *expected) or damaged == whole


def test_truncated_or_extended(path):
    expected = small(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not load_or_input_error(path, *expected)
    path.write_bytes(whole + b"\0")
    assert not load_or_input_error(path, *expected)


def test_wrong_checksum(path):
    refused(
        forge(path, {"cursor": "1"}, checksum="0" * 64), "checksum is wrong.*another checkpoint"
    )


@pytest.mark.parametrize(
    "old, new",
    [(b'"shape":[2,3]', b'"shape":[3,2]'), (b'"dtype":"F32"', b'"dtype":"I32"')],
)
def test_the_checksum_is_of_shapes_and_types(path, old, new):
    small(path)
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    refused(path, "its checksum is wrong")


@pytest.mark.parametrize(
    "header", [{}, {"format": "pt"}, {"format_version": "1"}, {"checksum": "0"}, None]
)
def test_foreign_safetensors(path, header):
    safetensors.numpy.save_file({"w": np.ones(3)}, path, header)
    refused(path, "a safetensors file, but not of charrnn")


def test_newer_format(path):
    refused(forge(path, {"format_version": "2"}), "format version '2'.* reads version 1: upgrade")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00."])
def test_foreign_files(path, content):
    path.write_bytes(content)
    refused(path, "damaged or not a checkpoint")


@pytest.mark.parametrize("size", [checkpoint.MAX_HEADER + 1, 2**40, 2**63, 2**64 - 1])
def test_huge_declared_header(path, size):
    refused(raw(path, b"{}", size=size), "does not begin like a safetensors file")


def test_header_larger_than_the_file(path):
    refused(raw(path, b"{}", size=10_000), "damaged")


@pytest.mark.parametrize(
    "dtype, shape, size",
    [
        ("BF16", [1], 2),
        ("F8_E4M3", [1], 1),
        ("F4", [1], 1),
        ("F32", [1] * 70, 4),
        ("F32", [2**62, 8], 4),
        ("F32", [2**63, 0], 0),
        ("F32", [-1], 4),
        ("X", [1], 4),
    ],
)
def test_tensors_that_numpy_cannot_hold(path, dtype, shape, size):
    metadata = {"format_version": "1", "checksum": "0"}
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    refused(raw(path, {"__metadata__": metadata, "w": tensor}, bytes(size)), "damaged")


@pytest.mark.parametrize(
    "text, match",
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("NaN", "not finite: NaN"),
        ("[-Infinity]", "not finite: -Infinity"),
        ("1e999", "not finite: 1e999"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("1 2", "not valid JSON"),
        pytest.param("9" * 100_000, "not valid JSON", id="long integer"),
    ],
)
def test_bad_metadata_with_a_right_checksum(path, text, match):
    refused(forge(path, {"cursor": text}), f"'cursor' .*{match}")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(path, bad):
    tensors = {"fine": np.ones(3), "head.bias": np.array([1, bad, 2], "f4")}
    refused(forge(path, {}, tensors), "'head.bias' .* holds NaN or infinity")


def test_paths_that_are_no_file(tmp_path):
    refused(tmp_path / "missing", "cannot read the checkpoint .* no such file")
    refused(tmp_path, "cannot read the checkpoint .* no such file")


def test_a_pipe_does_not_hang(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in this system's folders")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no such file")


# --- Which checkpoint ----------------------------------------------------------------------------


def make_run(folder, seconds, names=("best", "last")):
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.safetensors").write_bytes(b"")
        os.utime(folder / f"{name}.safetensors", (seconds, seconds))
    return folder


def test_newest_run(tmp_path):
    newest = make_run(tmp_path / "group" / "b", 2000)
    make_run(tmp_path / "a", 1000)
    make_run(tmp_path / "c", 3000, names=["best"])
    assert checkpoint.newest_run(tmp_path) == newest
    assert checkpoint.run_checkpoint(None, tmp_path) == newest / "best.safetensors"


@pytest.mark.parametrize("finished, newest", [(None, "old"), ("finished", "new")])
def test_a_run_that_was_to_make_no_step_counts(tmp_path, finished, newest):
    """One that has not come to its first does not."""
    make_run(tmp_path / "old", 1000)
    file = make_run(tmp_path / "new", 2000) / "last.safetensors"
    checkpoint.save(file, {}, {"progress": {"step": 0, "finished": finished}})
    os.utime(file, (2000, 2000))
    assert checkpoint.newest_run(tmp_path) == tmp_path / newest


@pytest.mark.parametrize(
    "find", [checkpoint.newest_run, lambda r: checkpoint.run_checkpoint(None, r)]
)
def test_no_runs_yet(tmp_path, find):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            InputError, match=re.escape(f"no runs below {root}: make one with `charrnn train FILE`")
        ):
            find(root)


def test_run_checkpoint_of_a_folder_or_file(tmp_path):
    both = make_run(tmp_path / "both", 1)
    last = make_run(tmp_path / "last", 1, names=["last"])
    assert checkpoint.run_checkpoint(str(both)) == both / "best.safetensors"
    assert checkpoint.run_checkpoint(last) == last / "last.safetensors"
    file = both / "last.safetensors"
    assert checkpoint.run_checkpoint(str(file)) == file


def test_run_checkpoint_errors(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.run_checkpoint(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.run_checkpoint(tmp_path / "missing")


@pytest.mark.parametrize("keep, left", [(0, []), (2, [100, 1000]), (3, [20, 100, 1000]), (9, None)])
def test_prune(tmp_path, keep, left):
    steps = [3, 20, 100, 1000]
    others = {"best.safetensors", "last.safetensors", "step-x.safetensors", "step-1.txt"}
    for name in [*others, *(f"step-{n}.safetensors" for n in steps)]:
        (tmp_path / name).touch()
    checkpoint.prune(tmp_path, keep)
    kept = {f"step-{n}.safetensors" for n in (steps if left is None else left)}
    assert set(os.listdir(tmp_path)) == kept | others
