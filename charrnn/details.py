"""What ``--verbose`` says: what a command works with, and what it took."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from charrnn.kernels import jit
from charrnn.model import Model
from charrnn.saving import versions
from charrnn.threads import available

MIB = 2**20


def work(model: Model, options: Mapping[str, Any]) -> list[str]:
    """Lines on versions, processor, threads, kernels, the model's size, and options in force."""
    count, itemsize = model.params.count, model.params.flat.itemsize
    units = {"bfloat16": " (AMX)", "float32": " (of many rows: three of bfloat16 each, AMX)"}
    unit = units.get(model.operands, "") if jit.HAS_AMX else ""
    return [
        "versions   " + ", ".join(f"{name} {value}" for name, value in versions().items()),
        f"processor  {jit.PROCESSOR}, vectors of {jit.VECTOR_BITS} bits",
        f"threads    {model.team.size}; processors that may be used {available()}",
        f"kernels    {jit.CACHE_FOLDER or 'not kept'}",
        f"weights    {count:,} of {model.config.dtype}, {count * itemsize / MIB:.1f} MiB; "
        f"factors of products {model.operands}{unit}",
        "options    " + ", ".join(f"{k.replace('_', '-')} {v}" for k, v in options.items()),
    ]


def effort(clock: Any) -> str:
    """A line on what it took; ``clock`` is of `charrnn.kernels.jit.watch_compiling`."""
    seconds = clock.duration if clock.done else 0.0
    text = f"compiled   {jit.compiled} kernels in {seconds:.1f} s"
    if sys.platform == "win32":
        return text
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return f"{text}; memory at the most {peak / MIB:,.0f} MiB"
