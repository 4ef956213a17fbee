"""Lists of kernel calls as data that compiled code walks through, and how its threads meet.

A call from Python costs a microsecond and, between threads, the interpreter's lock. A table of
calls costs nanoseconds: each row has the address of a thunk, compiled once for every combination
of argument types, and the address of the call's words, from which the thunk makes the arguments:

    the kernel's address, then of every array its data, shape and strides, of every number its bits
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from charrnn.kernels.jit import Code, kernel

SPINS = 200
"""Looks at a counter, 5 microseconds on a Zen 5, before the processor is offered to other threads.

The one that is waited for may need it: with 2000, threads on one core that meet in every time step
take twice to five times as long (lstm 2x512, 1x256), and with a core each they do not mind.
"""
IDLE_SPINS = 20_000
"""Looks for the next table, half a millisecond on a Zen 5, before a helper goes to sleep."""
GIVEN, DONE, ASLEEP, TABLE, ROWS, ROUNDS = range(6)
"""Elements of a helper's box: tables given and done so far, whether it sleeps, and the newest."""
WORD = ir.IntType(64)
X86 = platform.machine() in ("x86_64", "AMD64")
FLUSH = 0x8040
"""Bits of x86's MXCSR: numbers too small for a full mantissa are read and written as zero.

The moments of characters that a text seldom has become that small, and so do gradients that vanish.
Intel's processors need some 150 cycles for each such product.
"""

Call = tuple[Any, tuple[Any, ...]]
"""A kernel and its arguments."""


@intrinsic(prefer_literal=False)
def _invoke(typingctx, words, kinds):
    """Call a kernel with the arguments that ``words`` describes; ``kinds`` is their tuple type."""
    argtypes = kinds.instance_type.types

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], WORD.as_pointer())
        offsets = iter(range(sum(_width(t) for t in argtypes) + 1))

        def word():
            return builder.load(builder.gep(pointer, [WORD(next(offsets))]))

        address = word()
        values = [_argument(context, builder, t, word) for t in argtypes]
        kind = context.call_conv.get_function_type(types.none, argtypes)
        callee = builder.inttoptr(address, kind.as_pointer())
        context.call_conv.call_function(builder, callee, types.none, argtypes, values)
        return context.get_dummy_value()

    return types.void(words, kinds), codegen


def _width(kind):
    """Words of an argument."""
    return 1 + 2 * kind.ndim if isinstance(kind, types.Array) else 1


def _argument(context, builder, kind, word):
    if isinstance(kind, types.Array):
        item = context.get_data_type(kind.dtype)
        array = context.make_array(kind)(context, builder)
        populate_array(
            array,
            data=builder.inttoptr(word(), item.as_pointer()),
            shape=[word() for _ in range(kind.ndim)],
            strides=[word() for _ in range(kind.ndim)],
            itemsize=WORD(context.get_abi_sizeof(item)),
            meminfo=None,
        )
        return array._getvalue()
    value, bits = context.get_value_type(kind), word()
    if isinstance(value, ir.DoubleType):
        return builder.bitcast(bits, value)
    if isinstance(value, ir.FloatType):
        return builder.bitcast(builder.trunc(bits, ir.IntType(32)), value)
    return builder.trunc(bits, value) if value.width < 64 else bits


@intrinsic
def _jump(typingctx, thunk, words):
    """Call the thunk at an address."""

    def codegen(context, builder, signature, args):
        dummy, kinds = context.get_dummy_value(), (types.intp, types.TypeRef(types.none))
        callee = builder.inttoptr(
            args[0], context.call_conv.get_function_type(types.none, kinds).as_pointer()
        )
        context.call_conv.call_function(builder, callee, types.none, kinds, [args[1], dummy])
        return dummy

    return types.void(types.intp, types.intp), codegen


@intrinsic
def _yield(typingctx, address):
    """Let another thread have the processor: call `YIELD`."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def _pause(typingctx):
    """Tell the processor that this loop waits."""
    name, arguments = {
        "x86_64": ("llvm.x86.sse2.pause", []),
        "AMD64": ("llvm.x86.sse2.pause", []),
        "arm64": ("llvm.aarch64.hint", [1]),
        "aarch64": ("llvm.aarch64.hint", [1]),
    }.get(platform.machine(), (None, []))

    def codegen(context, builder, signature, args):
        if name:
            values = [ir.IntType(32)(a) for a in arguments]
            kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
            builder.call(builder.module.declare_intrinsic(name, fnty=kind), values)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _flush(typingctx):
    """Let this thread calculate without subnormal numbers (`FLUSH`); what `_restore` needs."""

    def codegen(context, builder, signature, args):
        if not X86:
            return ir.IntType(32)(0)
        place = cgutils.alloca_once(builder, ir.IntType(32))
        _control(builder, "stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, ir.IntType(32)(FLUSH)), place)
        _control(builder, "ldmxcsr", place)
        return before

    return types.uint32(), codegen


@intrinsic
def _restore(typingctx, before):
    """Let this thread calculate as it did before `_flush`."""

    def codegen(context, builder, signature, args):
        if X86:
            place = cgutils.alloca_once_value(builder, args[0])
            _control(builder, "ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


def _control(builder, name, place):
    """Store or load the register that controls the vector units."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte])
    instruction = builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", fnty=kind)
    builder.call(instruction, [builder.bitcast(place, byte)])


def _element(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, value=args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def _add(typingctx, array, index, value):
    """``array[index] += value``, between all that the thread does before and after."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature, args)
        builder.atomic_rmw("add", pointer, args[2], "seq_cst")
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def _swap(typingctx, array, index, value):
    """Write ``array[index]`` and return what was there, as `_add` does."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature, args)
        return builder.atomic_rmw("xchg", pointer, args[2], "seq_cst")

    return types.intp(array, types.intp, types.intp), codegen


@intrinsic
def _look(typingctx, array, index):
    """``array[index]``, between all that the thread does before and after."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_element(context, builder, signature, args), "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def _word(typingctx, address, index):
    """The 64-bit word ``index`` at an address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], WORD.as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.intp(types.intp, types.intp), codegen


@kernel
def enter(words, kinds):
    """The thunk: one signature for each ``kinds``."""
    _invoke(words, kinds)


@kernel
def walk(table, rows, rounds):
    """Make the calls of the table at an address one after the other, ``rounds`` times over."""
    before = _flush()
    for _ in range(rounds):
        for i in range(rows):
            _jump(_word(table, 2 * i), _word(table, 2 * i + 1))
    _restore(before)


@kernel
def meet(arrivals, met, parties, give_way):
    """Wait until all ``parties`` are here. ``met[0]``: the arrivals when the caller last met."""
    met[0] += parties
    target = met[0]
    _add(arrivals, 0, 1)
    spins = 0
    while _look(arrivals, 0) < target:
        _pause()
        spins += 1
        if spins > SPINS:
            _yield(give_way)


@kernel
def give(box, table, rows, rounds):
    """Put a table into a helper's box; returns whether the helper sleeps and has to be woken.

    ``rows`` -1 is the end.
    """
    box[TABLE], box[ROWS], box[ROUNDS] = table, rows, rounds
    _add(box, GIVEN, 1)
    return _swap(box, ASLEEP, 0) == 1


@kernel
def serve(box):
    """A helper's work: the tables of its box, until none has come for a while; True at the end.

    It waits here, because the way back to the interpreter and its lock takes 50 microseconds.
    """
    spins = 0
    while True:
        if _look(box, GIVEN) > box[DONE]:
            if box[ROWS] >= 0:
                walk(box[TABLE], box[ROWS], box[ROUNDS])
            _add(box, DONE, 1)
            if box[ROWS] < 0:
                return True
            spins = 0
        elif spins < IDLE_SPINS:
            _pause()
            spins += 1
        else:
            _swap(box, ASLEEP, 1)
            if _look(box, GIVEN) == box[DONE]:
                return False
            _swap(box, ASLEEP, 0)  # a table after all; its giver may ring for nothing
            spins = 0


def _yield_address() -> int:
    """The system's function that offers the processor to another thread."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


YIELD = _yield_address()
COMPILED = not config.DISABLE_JIT


def code(call: Call) -> list[Code]:
    """What has to be compiled for a call: the kernel, the thunk, and code among the arguments."""
    function, arguments = call
    kinds = tuple(types.intp if isinstance(a, Code) else numba.typeof(a) for a in arguments)
    thunk = Code(enter, (types.intp, types.TypeRef(types.Tuple(kinds))))
    return [Code(function, kinds), thunk, *(a for a in arguments if isinstance(a, Code))]


def make(call: Call) -> None:
    """Make one call from Python."""
    function, arguments = call
    function(*(a.address() if isinstance(a, Code) else a for a in arguments))


class Table:
    """Calls that compiled code walks through. It keeps their arguments alive."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        if not COMPILED:
            return
        self._rows = np.zeros((len(calls), 2), np.int64)
        self.address = self._rows.ctypes.data
        self._words = []
        for row, call in zip(self._rows, calls, strict=True):
            function, thunk, *_ = code(call)
            words = [function.address()]
            words += [word for argument in call[1] for word in _words(argument)]
            self._words.append(np.array(words, np.int64))
            row[0] = thunk.address()
            row[1] = self._words[-1].ctypes.data

    def walk(self, rounds: int = 1) -> None:
        """Make the calls."""
        if not COMPILED:
            for _ in range(rounds):
                for call in self.calls:
                    make(call)
        else:
            walk(self.address, len(self.calls), rounds)


def _words(argument: Any) -> list[int]:
    """An argument as 64-bit words."""
    if isinstance(argument, np.ndarray):
        return [argument.ctypes.data, *argument.shape, *argument.strides]
    if isinstance(argument, (float, np.floating)):
        bits = np.asarray(argument)
        return [int(bits.view(f"i{bits.itemsize}"))]
    if isinstance(argument, Code):
        return [argument.address()]
    return [int(argument)]
