"""What files say beside numbers for kernels, checked before it is used.

A shape is a type as annotations write it: ``int`` is a count, from 0 and below 2**63; ``float`` any
finite number; ``list[X]``; ``tuple[X, Y]`` a list of just these; ``X | None``; ``Literal``; or a
dictionary of names and shapes, in which further names are allowed.
"""

from __future__ import annotations

import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from charrnn.errors import InputError

LIMIT = 2**63

CORPUS: Mapping[str, Any] = {
    "name": str,
    "sources": list[str],
    "fingerprint": str,
    "val_fingerprint": str | None,
    "chars": int,
}
PROGRESS: Mapping[str, Any] = {
    "step": int,
    "nats_per_char": float | None,
    "val_nats_per_char": float | None,
    "best_val_nats_per_char": float | None,
    "best_step": int | None,
    "finished": Literal["finished", "patience"] | None,
    "validations": list[tuple[int, float | None, float | None]],
}
"""What all commands read of it; training reads more: `charrnn.progress.Progress`."""


def check(value: Any, shape: Any, what: str, lacking: bool = False) -> Any:
    """``value``, which has this shape; with ``lacking`` an object may lack some of its names.

    Raises
    ------
    InputError
        If it has not; ``what`` says whose it is.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            raise _damaged(what, "it is no object")
        for name, inner in shape.items():
            if name in value:
                check(value[name], inner, f"{name!r} of {what}")
            elif not lacking:
                raise _damaged(what, f"it lacks {name!r}")
    elif not fits(value, shape):
        raise _damaged(what, f"it is {reprlib.repr(value)[:40]}")
    return value


def _damaged(what: str, fault: str) -> InputError:
    return InputError(f"{what} is damaged: {fault}; restore the file or use another one")


def fits(value: Any, shape: Any) -> bool:
    """Whether ``value`` has a shape that is no dictionary."""
    if shape is int:
        return type(value) is int and 0 <= value < LIMIT
    if shape is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # not NaN
    if shape is Any or type(value) is shape:
        return True
    origin, kinds = typing.get_origin(shape), typing.get_args(shape)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, kind) for kind in kinds)
    if origin is typing.Literal:
        return value in kinds
    if origin is list:
        return isinstance(value, list) and all(fits(item, kinds[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(kinds) and all(map(fits, value, kinds))
    return False
