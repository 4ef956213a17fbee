"""Character-level recurrent language models, trained fast on ordinary CPUs.

``train``, ``load``, ``LanguageModel`` and ``Config`` are the public names. They are looked up when
they are first used, so that ``import charrnn`` and ``charrnn --help`` import neither numba nor
numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charrnn.api import LanguageModel, load
    from charrnn.config import Config
    from charrnn.runs import train

__version__ = "0.1.0"
__all__ = ["Config", "LanguageModel", "__version__", "load", "train"]

_HOMES = {"Config": "config", "LanguageModel": "api", "load": "api", "train": "runs"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
