"""Two ways to make a kernel's access outside of an array end the process, for whole test runs.

    NUMBA_BOUNDSCHECK=1 CHARRNN_CACHE_DIR=folder python -m pytest    indices, checked by Numba
    CHARRNN_FENCE=end python -m pytest                               addresses, by the processor

The second one is for what has no indices, such as the tile's vectors; the kernels are those that
users run. pytest shows in which test the process died. `tests/conftest.py` applies both.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import callconv, cgutils


def die_of_exceptions() -> None:
    """Let exceptions of compiled functions end the process.

    Kernels raise none but for a failed check. Those called from a table could not pass it on: it
    would be ignored, and the rest of the kernel left out.
    """
    call = callconv.CPUCallConv.call_function

    def call_function(self: Any, builder: Any, *args: Any, **options: Any) -> Any:
        status, result = call(self, builder, *args, **options)
        with cgutils.if_unlikely(builder, status.is_error):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.trap"), [])
        return status, result

    callconv.CPUCallConv.call_function = call_function


# -- fences ---------------------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
NOTHING, BOTH = 0, 3  # PROT_NONE, PROT_READ | PROT_WRITE
PRIVATE = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
SET_HANDLER = 304  # PyDataMem_SetHandler in NumPy's table of functions, since 1.22
FILLED = 0xFF  # every float of these bytes is NaN

Address = ctypes.c_void_p
Size = ctypes.c_size_t


class _Allocator(ctypes.Structure):
    _fields_ = [
        ("context", Address),
        ("malloc", ctypes.CFUNCTYPE(Address, Address, Size)),
        ("calloc", ctypes.CFUNCTYPE(Address, Address, Size, Size)),
        ("realloc", ctypes.CFUNCTYPE(Address, Address, Address, Size)),
        ("free", ctypes.CFUNCTYPE(None, Address, Address, Size)),
    ]


class _Handler(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("allocator", _Allocator),
    ]


class Fence:
    """Memory for NumPy's arrays that ends, or begins, where nobody may read or write.

    What an array's pages hold beside it is looked at when the array is gone. Linux only; at most
    some 20,000 arrays at a time. NumPy frees some while an exception is pending, which is then
    lost: where it catches its own, as for whole numbers beyond 2**63, there is a SystemError.
    """

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self._sizes: dict[int, int] = {}
        c = self._c = ctypes.CDLL(None, use_errno=True)
        c.mmap.restype = Address
        c.mmap.argtypes = [Address, Size, *[ctypes.c_int] * 3, ctypes.c_long]
        c.mprotect.argtypes = [Address, Size, ctypes.c_int]
        c.munmap.argtypes = [Address, Size]
        kinds = dict(_Allocator._fields_)
        own = {name: kinds[name](getattr(self, name)) for name in list(kinds)[1:]}
        self._handler = _Handler(b"fence", 1, _Allocator(None, **own))

    def install(self) -> None:
        """Let this thread make arrays here from now on."""
        core = getattr(np, "_core", None) or np.core
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = Address, [ctypes.py_object, ctypes.c_char_p]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [Address, ctypes.c_char_p, Address]
        table = ctypes.cast(
            pointer(core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(Address)
        )
        ours = new(ctypes.addressof(self._handler), b"mem_handler", None)
        kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)
        kind(table[SET_HANDLER])(ours)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # some arrays are never gone

    def _place(self, size: int) -> tuple[int, int]:
        """Bytes of the pages for so many, and where in them these begin."""
        room = -(-max(size, 1) // PAGE) * PAGE
        return room, room - size if self.at_end else 0

    def _take(self, size: int, fill: int) -> int:
        room, shift = self._place(size)
        base = self._c.mmap(None, room + 2 * PAGE, NOTHING, PRIVATE, -1, 0)
        if base in (None, Address(-1).value) or self._c.mprotect(base + PAGE, room, BOTH):
            return 0
        ctypes.memset(base + PAGE, FILLED, room)
        address = base + PAGE + shift
        if not fill:
            ctypes.memset(address, 0, size)
        self._sizes[address] = size
        return address

    def malloc(self, context: int, size: int) -> int:
        return self._take(size, FILLED)

    def calloc(self, context: int, count: int, size: int) -> int:
        return self._take(count * size, 0)

    def realloc(self, context: int, address: int | None, size: int) -> int:
        new = self._take(size, FILLED)
        if new and address:
            ctypes.memmove(new, address, min(size, self._sizes[address]))
            self.free(context, address, 0)
        return new

    def free(self, context: int, address: int | None, size: int) -> None:
        if not address:
            return
        size = self._sizes.pop(address)
        room, shift = self._place(size)
        start = address - shift
        beside = ctypes.string_at(start, shift) + ctypes.string_at(
            address + size, room - shift - size
        )
        if beside.strip(bytes([FILLED])):
            ctypes.pythonapi.Py_FatalError(b"written beside an array")
        self._c.munmap(start - PAGE, room + 2 * PAGE)
