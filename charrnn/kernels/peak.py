"""What the arithmetic units can do: the rate that speeds are measured against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import VECTOR_BITS, VECTOR_REGISTERS, kernel

CHAINS = 16 if VECTOR_REGISTERS == 32 else 12
"""Independent sums: enough to hide a multiply-add's latency, few enough for the registers."""

ROUNDS = 1 << 17
"""Loops of a call: some 300 microseconds."""


@kernel
def multiply_adds(x, rounds):
    """``rounds`` times CHAINS vector multiply-adds between registers; x (1,) takes the sum."""
    _chains(x, rounds)


def _chains(x, rounds):
    """The compiler is off: there is nothing to measure."""


@overload(_chains)
def _chains_overload(x, rounds):
    return lambda x, rounds: _vector_chains(x, rounds)


@intrinsic(prefer_literal=False)
def _vector_chains(typingctx, x, rounds):
    def codegen(context, builder, signature, args):
        b = builder
        dtype = signature.args[0].dtype
        scalar = ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()
        lanes = VECTOR_BITS // dtype.bitwidth
        vector, index = ir.VectorType(scalar, lanes), ir.IntType(64)
        data = context.make_array(signature.args[0])(context, b, value=args[0]).data
        start = b.load(data)
        filled = ir.Constant(vector, ir.Undefined)
        for lane in range(lanes):
            filled = b.insert_element(filled, start, ir.Constant(ir.IntType(32), lane))
        before = b.block
        loop, end = b.append_basic_block("peak.loop"), b.append_basic_block("peak.end")
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(index)
        i.add_incoming(ir.Constant(index, 0), before)
        sums = [b.phi(vector) for _ in range(CHAINS)]
        new = [b.fadd(b.fmul(s, filled, flags=("contract",)), filled, flags=("contract",))
               for s in sums]  # fmt: skip
        after = b.add(i, ir.Constant(index, 1))
        for phi, value in zip((i, *sums), (after, *new), strict=True):
            phi.add_incoming(value, loop)
        for n, phi in enumerate(sums):
            phi.add_incoming(ir.Constant(vector, [float(n)] * lanes), before)
        b.cbranch(b.icmp_signed("<", after, args[1]), loop, end)
        b.position_at_end(end)
        total = new[0]
        for value in new[1:]:
            total = b.fadd(total, value)
        b.store(b.extract_element(total, ir.Constant(ir.IntType(32), 0)), data)
        return context.get_dummy_value()

    return types.void(x, types.intp), codegen


def peak_flops(team: Any, dtype: Any = np.float32, seconds: float = 0.2) -> float:
    """Floating-point operations per second of all threads of ``team`` at once, at their best.

    A multiply-add counts as two.
    """
    arrays = [np.full(1, 0.5, dtype) for _ in range(team.size)]
    lanes = VECTOR_BITS // 8 // np.dtype(dtype).itemsize
    program = team.program([[(multiply_adds, (x, ROUNDS))] for x in arrays])
    program.run()  # threads start
    rounds, best, until = 1, 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < until:
        began = time.perf_counter()
        program.run(rounds)
        taken = time.perf_counter() - began
        if taken < 0.02:
            rounds *= 2
        else:
            best = max(best, 2 * lanes * CHAINS * ROUNDS * rounds * team.size / taken)
    return best
