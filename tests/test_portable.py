"""The tests that are marked ``portable``, without the compiler, for other processors, watched."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from charrnn import cache
from charrnn.kernels import jit

ARITHMETIC = ("test_gemm.py", "test_elementwise.py")
ALL = (*ARITHMETIC, "test_update.py", "test_cells.py")
STRICT = (*ALL, "test_strict.py")
SETTINGS = {
    "Python": ({"NUMBA_DISABLE_JIT": "1"}, "portable", ALL),
    # See tests/strict.py. The fences are for the kernels that users run, as the cache has them.
    "bounds": ({"NUMBA_BOUNDSCHECK": "1"}, "portable or strict", (*STRICT, "test_extremes.py")),
    "fence behind": ({"CHARRNN_FENCE": "end"}, "portable or strict", STRICT),
    "fence before": ({"CHARRNN_FENCE": "begin"}, "portable or strict", STRICT),
    # 256 bits; without the second setting, Numba keeps what the real processor has beyond a name
    "haswell": ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}, "portable", ARITHMETIC),
    # products of bfloat16 without the matrix unit
    "no AMX": (
        {"NUMBA_CPU_FEATURES": ",".join(x for x in jit.FEATURES if "amx" not in x)},
        "portable",
        ("test_gemm.py",),
    ),
    # 128 bits, no fused multiply-add
    "generic": ({"NUMBA_CPU_NAME": "generic"}, "portable", ARITHMETIC),
}
OPTIONS = (
    *("-p", "no:cacheprovider"),
    *("-W", "ignore:overflow encountered in scalar:RuntimeWarning"),  # of the hash, in Python
)


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All of them at once, so that they share the cores."""
    started = {}
    for name, (settings, marks, files) in SETTINGS.items():
        if name == "haswell" and platform.machine() not in ("x86_64", "AMD64"):
            continue
        if name == "no AMX" and not jit.HAS_AMX:
            continue
        fenced = name.startswith("fence")
        if fenced and sys.platform != "linux":
            continue
        folder = cache.root("kernels") if fenced else tmp_path_factory.mktemp(name)
        started[name] = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", marks, *OPTIONS]
            + [str(Path(__file__).parent / file) for file in files],
            env=os.environ | settings | {"CHARRNN_CACHE_DIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", SETTINGS)
def test_portable_tests_pass(name: str, processes: dict[str, subprocess.Popen[str]]) -> None:
    if name not in processes:
        pytest.skip("not for this processor or system")
    output, _ = processes[name].communicate(timeout=300)
    assert processes[name].returncode == 0, output
    assert " passed" in output
