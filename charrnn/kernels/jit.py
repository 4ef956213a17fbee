"""All of the compiler's policy: one decorator, one fast-math set, one cache, one target.

Every compiled function of the package is made by `kernel`.

Fast-math is ``{contract, nsz}`` and nothing more: a multiply-add may be fused and the sign of a
zero is free, but nothing may be reordered, so the vector body and the scalar tail of a loop give
the same bits. ``error_model="numpy"`` takes a branch out of every division. ``nogil`` lets our own
threads run kernels side by side.

The cache: Numba's own notices a change in the file of a function, not in the files of the functions
that it calls (numba#1833). So ours is a folder named after a hash of all our kernel sources, the
versions and every setting that changes code: what is found there was made from exactly this.

What Numba keeps of a compiled function is machine code in a pickle: to load it is to trust it. So
it is read from a folder that nobody but the user can write to (`_distrust`), and only if its
checksum is right (`_Store`). A cache that is missing, damaged, not private or cannot be written
costs compile time and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pickle
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite
import numba
from llvmlite import binding, ir
from numba.core import caching, config, event
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from charrnn import cache

F = TypeVar("F", bound=Callable[..., Any])

FAST_MATH = {"contract", "nsz"}
ROOM = 1 << 22
"""Bytes that have to be free for compiled kernels to be kept: training makes less."""

ABANDONED = 3600
"""Seconds after which nobody is writing a temporary file any more."""

PACKAGE = Path(__file__).resolve().parent.parent

compiled = 0
"""Signatures that this process has compiled rather than loaded."""


def versions() -> dict[str, str]:
    """Versions of the compiler."""
    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__}


def watch_compiling() -> event.TimingListener:
    """A clock whose ``duration`` is the time spent compiling from now on, once it is ``done``."""
    clock = event.TimingListener()
    event.register("numba:compile", clock)
    return clock


def _vector_bits() -> int:
    """Width of the widest vector unit of the processor that Numba compiles for.

    Asked of the code generator itself, so that ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` are
    obeyed: which registers hold the sum of two vectors of 16 floats?
    """
    module = ir.Module()
    vector = ir.VectorType(ir.FloatType(), 16)
    function = ir.Function(module, ir.FunctionType(vector, [vector, vector]), "probe")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.fadd(*function.args))
    codegen = cpu_target.target_context.codegen()
    parsed = binding.parse_assembly(str(module))
    parsed.triple = codegen.magic_tuple()[0]
    assembly = codegen._tm.emit_assembly(parsed)
    return 512 if "zmm" in assembly else 256 if "ymm" in assembly else 128


def _may_use_amx() -> bool:
    """Ask the system for the matrix unit, whose registers' 8 KB it saves for who has asked alone.

    Only Linux is asked, since 5.16: ``arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)``.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


VECTOR_BITS = 128 if config.DISABLE_JIT else _vector_bits()
VECTOR_REGISTERS = 32 if VECTOR_BITS == 512 or platform.machine() in ("arm64", "aarch64") else 16
LINE_BYTES = 64
"""Bytes of a cache line, and of the largest vector."""
PROCESSOR = cpu_target.target_context.codegen().magic_tuple()[1]
FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
HAS_BF16 = VECTOR_BITS == 512 and "+avx512bf16" in FEATURES
"""Whether that processor has dot products of bfloat16 pairs: their kernels are slow without."""

HAS_AMX = HAS_BF16 and "+amx-bf16" in FEATURES and _may_use_amx()
"""Whether it also has a unit for products of bfloat16 matrices, and this process may use it."""

if HAS_BF16:  # the tile holds them as assembly
    binding.initialize_native_asmparser()


def code_hash() -> str:
    """Hash of all that decides the machine code: sources, versions, processor, Numba's settings."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.glob("kernels/*.py"), *PACKAGE.glob("cells/*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    codegen = cpu_target.target_context.codegen()
    settings = sorted(
        (k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and "CACHE" not in k
    )
    parts = (sys.version, platform.machine(), numba.__version__, llvmlite.__version__, HAS_AMX)
    digest.update(repr((parts, codegen.magic_tuple(), settings)).encode())
    return digest.hexdigest()[:20]


def _cache_folder() -> tuple[Path | None, str]:
    """The folder for this very code, made private; or None, and why there is none."""
    try:
        root = cache.root("kernels")
        cache.make_private(root)
        root = root.resolve()  # what is checked is what is used
        folder = root / code_hash()
        folder.mkdir(exist_ok=True, mode=0o700)
        problem = _distrust(root, folder)
        if problem:
            return None, problem
        with contextlib.suppress(OSError):  # one that cannot be written can still be read
            os.utime(folder)
            _prune(root, folder)
        return folder, ""
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return None, f"there is no folder for them ({error})"


def _distrust(root: Path, folder: Path) -> str:
    """Who else may have written what is in ``folder``; empty if nobody.

    As OpenSSH does with keys: the caches and all that is in them belong to the user and only he
    may write to them; the folders above are his or the administrator's, and nobody else may rename
    what is in them. Windows keeps a user's folders to himself by default, which is not checked.
    """
    if not hasattr(os, "getuid"):
        return ""
    uid, others = os.getuid(), stat.S_IWGRP | stat.S_IWOTH
    for path in (root, folder, *folder.iterdir()):
        try:
            info = path.lstat()
        except FileNotFoundError:  # another process has just put it in its place
            continue
        kind = stat.S_ISREG if path.parent == folder else stat.S_ISDIR
        if not kind(info.st_mode):
            return f"{path} is neither a file nor a folder of ours (remove it)"
        if info.st_uid != uid or info.st_mode & others:
            return f"{path} is not yours alone to write (chmod -R go-w, or remove it)"
    for path in root.parents:
        info = path.stat()
        if info.st_uid not in (uid, 0):
            return f"{path} belongs to another user"
        alone = stat.S_IWOTH if _is_private_group(info.st_gid) else others
        if info.st_mode & alone and not info.st_mode & stat.S_ISVTX:
            return f"others may write to {path}"
    return ""


def _is_private_group(gid: int) -> bool:
    """Whether a group is the user's own and has no other member, as on most Linux systems."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def _prune(root: Path, keep: Path) -> None:
    """Remove the caches of other versions that nobody has used for a month.

    And from this one what processes that were killed have left.
    """
    for other in root.iterdir():
        ours = re.fullmatch(r"[0-9a-f]{20}", other.name) and other != keep
        if ours and time.time() - other.stat().st_mtime > cache.STALE_DAYS * 86400:
            shutil.rmtree(other, ignore_errors=True)
    for path in keep.glob("*.tmp"):
        with contextlib.suppress(OSError):  # somebody else may have removed it
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


CACHE_FOLDER, CACHE_PROBLEM = (None, "") if config.DISABLE_JIT else _cache_folder()
"""Where compiled kernels are kept; None if nowhere, and the reason."""


class _Locator(caching._CacheLocator):
    """Every kernel lives in `CACHE_FOLDER`, whose name already is the stamp of the code."""

    def __init__(self, py_func: Any) -> None:
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(CACHE_FOLDER)

    def get_source_stamp(self) -> str:
        return CACHE_FOLDER.name if CACHE_FOLDER else ""

    def get_disambiguator(self) -> str:
        return str(self._line)


class _CacheImpl(caching.CompileResultCacheImpl):
    def __init__(self, py_func: Any) -> None:
        # Not the parent's: that one searches for a locator, also by a setting of the user's.
        self._lineno = py_func.__code__.co_firstlineno
        self._locator = _Locator(py_func)
        name = f"{py_func.__module__.rpartition('.')[2]}.{py_func.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _Store:
    """The files of one kernel, one for every signature: a checksum, then what Numba keeps of it.

    In place of Numba's index and numbered files, where two processes that compile at the same time
    may give one number to two signatures, and where a flipped bit in machine code is run. Here a
    file's name comes from what it holds, and its checksum covers both.
    """

    def __init__(self, base: str) -> None:
        self._base = base

    def path(self, key: Any) -> Path:
        assert CACHE_FOLDER is not None
        return CACHE_FOLDER / f"{self._base}.{_digest(key).hex()[:20]}.nbc"

    def read(self, key: Any) -> memoryview | None:
        """The pickle that was saved; None if none was. A damaged file is removed."""
        path = self.path(key)
        try:
            content = memoryview(path.read_bytes())
        except OSError:
            return None
        checksum, data = content[:32], content[32:]
        if checksum == _digest(key, data):
            return data
        with contextlib.suppress(OSError):  # one that cannot be removed is no better
            path.unlink()
        return None

    def load(self, key: Any) -> Any:
        """What was saved; None if nothing was."""
        data = self.read(key)
        return None if data is None else pickle.loads(data)

    def save(self, key: Any, value: Any) -> None:
        path, data = self.path(key), dumps(value)
        descriptor, temporary = tempfile.mkstemp(".tmp", "", path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(key, data) + data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _digest(key: Any, data: Any = b"") -> bytes:
    """SHA-256 of a signature and its code."""
    digest = hashlib.sha256(repr(key).encode())
    digest.update(data)
    return digest.digest()


class _Cache(caching.FunctionCache):
    """Numba's cache with our files; one that cannot be read or written is no cache."""

    _impl_class = _CacheImpl
    by_address = False
    """Whether nobody links the kernel, because all call it at its address: see `Code`."""

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        self._cache_file = _Store(self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        global compiled
        result = None
        if CACHE_FOLDER is not None:
            # Not the parent's: that one first loads all that Numba can compile, half a second.
            with contextlib.suppress(Exception):
                rtsys.initialize(target_context)
                result = self._load_overload(sig, target_context)
        if result is None:
            if compiled == 0:
                cache.announce(f"compiling kernels, {how_often()}: up to 20 seconds")
            compiled += 1
        return result

    def save_overload(self, sig: Any, data: Any) -> None:
        if CACHE_FOLDER is not None:
            with contextlib.suppress(Exception):  # a full disk, a folder that is gone
                if self.by_address:
                    _keep_names_only(data)
                super().save_overload(sig, data)

    def has(self, sig: Any) -> bool:
        """Whether there is a file for this signature, and it is whole."""
        key = self._index_key(sig, cpu_target.target_context.codegen())
        return CACHE_FOLDER is not None and self._cache_file.read(key) is not None


def _keep_names_only(result: Any) -> None:
    """Take from a compiled kernel what others would link: the next process need not read it.

    It is the kernel's IR: the tile's takes 11 ms and 5 MB. The library's names stay, because code
    is found by them; they are not those of functions any more, so that to link them is an error.
    """
    names = result.fndesc.llvm_func_name, result.fndesc.llvm_cpython_wrapper_name
    names_only = "\n".join(f"@{name} = constant i8 0" for name in names)
    result.library._shared_module = binding.parse_assembly(names_only)


class Code(NamedTuple):
    """The compiled code of a kernel for one signature, as an argument that is an address."""

    kernel: Any
    signature: tuple[Any, ...]

    def address(self) -> int:
        """Where it is; it is compiled if need be. Without a compiler it is nowhere: 0."""
        if config.DISABLE_JIT:
            return 0
        if self.signature not in self.kernel.overloads:
            self.kernel.compile(self.signature)
        result = self.kernel.overloads[self.signature]
        return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


def kernel(function: F, by_address: bool = False) -> F:
    """Compile ``function`` at its first call with the policy of this module.

    Is it only called ``by_address``, see `Code`, then less of it is kept.
    """
    if config.DISABLE_JIT:
        return function
    dispatcher = numba.njit(
        nogil=True, fastmath=FAST_MATH, error_model="numpy", no_cfunc_wrapper=True
    )(function)
    dispatcher._cache = _Cache(function)
    dispatcher._cache.by_address = by_address
    dispatcher._can_compile = True
    return dispatcher


def unkept() -> str:
    """Why kernels that are compiled now will not be in the cache; empty if they will."""
    if CACHE_FOLDER is None:
        return CACHE_PROBLEM
    try:
        with tempfile.TemporaryFile(dir=CACHE_FOLDER) as trial:
            trial.write(bytes(ROOM))
    except OSError as error:
        return f"{CACHE_FOLDER} cannot be written ({error.strerror or error})"
    return ""


def how_often() -> str:
    """When a person has to wait for the compiler."""
    problem = unkept()
    if problem:
        return f"at every start, as they are not kept: {problem}"
    return "once per installation"


def uncompiled(codes: Iterable[Code]) -> list[Code]:
    """Those that have neither run nor are in the cache, each once."""
    if config.DISABLE_JIT:
        return []
    return [code for code in dict.fromkeys(codes) if not _is_compiled(*code)]


def _is_compiled(kernel: Any, signature: tuple[Any, ...]) -> bool:
    return signature in kernel.overloads or kernel._cache.has(signature)
