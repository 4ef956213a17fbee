"""What the source promises: who imports whom, who prints, how little is compiled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import run_python

import charrnn

PACKAGE = Path(charrnn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in FILES}


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules that a file imports; those of our own by their full names.

    Without ``lazy`` only what its own import needs: neither functions nor ``if TYPE_CHECKING``.
    """
    found: set[str] = set()
    for node in ast.walk(tree(path)) if lazy else _at_import(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            assert node.module
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(NAMES)
            found |= inner or {node.module}
    return found


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _at_import(child)


def outside(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def ours(path: Path) -> set[str]:
    """Our own modules that a file imports, without ``charrnn.``."""
    return {n.partition(".")[2] for n in imports(path) if n.partition(".")[0] == "charrnn"}


def test_only_kernels_import_the_compiler() -> None:
    users = {path.parent.name for path in FILES if outside(path) & {"numba", "llvmlite"}}
    assert users == {"kernels"}, [p.name for p in FILES if outside(p) & {"numba", "llvmlite"}]


def test_only_the_decorator_of_the_project_compiles() -> None:
    """One policy: nobody else calls numba's own decorators."""
    decorators = {"njit", "generated_jit", "vectorize", "guvectorize", "stencil", "cfunc", "prange"}
    for path in FILES:
        names = {n.attr for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
        names |= {n.id for n in ast.walk(tree(path)) if isinstance(n, ast.Name)}
        assert not names & decorators or path.name == "jit.py", path


def test_only_commands_and_monitor_talk() -> None:
    talkers = {
        path.name
        for path in FILES
        for node in ast.walk(tree(path))
        if path.parent.name != "commands"
        and (
            (isinstance(node, ast.Name) and node.id == "print")
            or (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "echo"))
        )
    }
    assert talkers <= {"cli.py", "monitor.py"}


def test_only_monitor_draws_bars() -> None:
    assert {path.name for path in FILES if "tqdm" in outside(path)} <= {"monitor.py"}


# Module -> what of ours it may import. A folder's name stands for all in it.
CORE = {
    "errors": set(),
    "facts": {"errors"},
    "opening": set(),
    "threads": {"kernels"},
    "params": {"kernels"},
    "atomic": {"errors"},
    "config": {"errors"},
    "cache": set(),
    "kernels": {"cache", "kernels"},
    "cells": {"cells", "kernels", "threads"},
    "operands": {"kernels"},
    "stack": {"operands", "cells", "config", "kernels", "params", "sums", "threads"},
    "sums": {"kernels", "threads"},
    "passes": {
        "operands",
        "cells",
        "errors",
        "kernels",
        "model",
        "params",
        "stack",
        "sums",
        "threads",
    },
    "recompute": {"cells", "kernels", "model", "passes", "sums", "threads"},
    "sliding": {"cells", "kernels", "model", "passes", "stack", "threads"},
    "probe": {"kernels", "model", "passes"},
    "truncation": {"config", "data", "errors"},
    "stepper": {"config", "errors", "kernels", "model", "passes", "threads"},
    "model": {
        "operands",
        "cells",
        "config",
        "errors",
        "kernels",
        "params",
        "passes",
        "stack",
        "stepper",
        "threads",
    },
    "optim": {"config", "kernels", "params", "threads"},
    "schedules": {"config", "errors"},
    "vocab": {"errors"},
    "store": {"atomic", "cache", "errors"},
    "reading": {"cache", "errors", "opening", "store"},
    "data": {"cache", "errors", "reading", "store", "vocab"},
    "sampling": {"config", "errors", "stepper", "vocab"},
    "session": {"checkpoint", "config", "errors", "model", "sampling", "stepper", "vocab"},
    "console": {
        "config",
        "errors",
        "heatmap",
        "options",
        "sampling",
        "session",
        "signals",
        "surprise",
    },
    "evaluate": {"errors"},
    "chart": set(),
    "terminal": {"chart"},
    "signals": {"terminal"},
    "unrolled": {"cells", "errors", "kernels", "model", "params", "passes"},
    "gradients": {"cells", "unrolled"},
    "heatmap": {"chart"},
    "characters": {"chart"},
    "features": set(),
    "page": {"atomic", "errors", "heatmap"},
    "surprise": {"characters", "chart", "data", "errors", "heatmap", "model", "page", "vocab"},
    "inspection": {
        "api",
        "cells",
        "characters",
        "errors",
        "features",
        "heatmap",
        "model",
        "page",
        "passes",
    },
    "tensorboard": {"errors"},
    "completion": set(),
    "progress": {"facts"},
    "burst": {"kernels", "optim", "passes", "threads"},
    "learner": {
        "api",
        "burst",
        "checkpoint",
        "config",
        "errors",
        "kernels",
        "model",
        "optim",
        "passes",
        "probe",
        "recompute",
        "sliding",
        "truncation",
    },
    "saving": {"atomic", "checkpoint", "config", "errors", "kernels", "progress", "runlog"},
    "details": {"kernels", "model", "saving", "threads"},
    "plots": {"atomic", "errors", "gradients"},
    "subjects": {"api", "config", "data", "errors", "model", "vocab"},
    "laboratory": {
        "api",
        "data",
        "errors",
        "gradients",
        "heatmap",
        "model",
        "plots",
        "runlog",
        "subjects",
        "truncation",
        "unrolled",
        "vocab",
    },
    "advice": {"checkpoint", "config", "errors", "runlog", "table"},
    "memorised": {"config", "errors", "sampling", "vocab"},
    "table": set(),
    "words": set(),
    "monitor": {"advice", "words"},
    "options": {"config", "errors"},
    "curves": {"advice", "chart", "errors", "plots", "view", "watched"},
    "child": set(),
    "peer": {"config"},
    "tuner": {"threads"},
    "bench": {
        "cells",
        "child",
        "config",
        "kernels",
        "peer",
        "trainer",
        "truncation",
        "tuner",
        "vocab",
    },
    "listing": {"chart", "checkpoint", "errors", "facts", "runlog"},
    "watched": {"advice", "config", "errors", "opening", "runlog", "table", "words"},
    "view": {"chart", "watched", "words"},
    "live": {"chart", "runlog", "terminal", "view", "watched", "words"},
}


@pytest.mark.parametrize("module", CORE)
def test_layers(module: str) -> None:
    paths = [p for p in FILES if p.relative_to(PACKAGE).with_suffix("").parts[0] == module]
    assert paths
    for path in paths:
        assert {name.partition(".")[0] for name in ours(path)} <= CORE[module], path


def test_a_cell_imports_no_other_cell() -> None:
    for path in (PACKAGE / "cells").glob("*.py"):
        own = {name for name in ours(path) if name.startswith("cells")}
        assert own <= {"cells.base"}, path
    assert not any(name.startswith("cells") for name in ours(PACKAGE / "cells" / "base.py"))


def test_nobody_names_a_cell_but_its_file() -> None:
    """There is no ``if cell == "lstm"`` outside of the cells."""
    cells = {p.stem for p in (PACKAGE / "cells").glob("*.py")} - {"__init__", "base"}
    for path in FILES:
        if path.parent.name != "cells":
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.Compare | ast.MatchValue):
                    texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                    assert not cells & {t for t in texts if isinstance(t, str)}, path


def test_who_talks_is_imported_by_nobody_below() -> None:
    users = {path.name for path in FILES if ours(path) & {"cli", "monitor"}}
    commands = {path.name for path in (PACKAGE / "commands").glob("*.py")}
    assert users <= {"cli.py", "__main__.py"} | commands


def test_imports_have_no_cycle() -> None:
    graph = {name: imports(path, lazy=False) & set(NAMES) for name, path in NAMES.items()}
    while graph:
        free = [name for name, needed in graph.items() if not needed & set(graph)]
        assert free, f"these import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_kernels_and_modules_explain_themselves() -> None:
    for path in FILES:
        if path.stat().st_size:
            assert ast.get_docstring(tree(path)) or path.name == "__main__.py", path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                decorated = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
                assert "kernel" not in decorated or ast.get_docstring(node), node.name


def test_nothing_that_is_read_is_run() -> None:
    """No eval, exec, pickle or shell.

    The exception: Numba keeps compiled kernels as pickles, which `kernels/jit.py` loads from a
    folder of the user's own, after their checksum.
    """
    modules = {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    modules |= {"socket", "ssl", "http", "urllib", "ftplib", "requests", "smtplib", "xmlrpc"}
    modules |= {"multiprocessing", "pty", "runpy", "code", "ctypes"}
    names = {"eval", "exec", "compile", "__import__"}
    attributes = {"system", "popen", "Popen", "run_path", "check_call", "check_output"}
    attributes |= {"subprocess.run", "subprocess.call", "np.load", "torch.load"}
    found = set()
    for path in FILES:
        file = path.relative_to(PACKAGE).as_posix()
        found |= {(file, module) for module in outside(path) & modules}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found |= {(file, name) for name in names & {node.func.id}}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                whole = ast.unparse(node.func)
                found |= {(file, name) for name in attributes & {whole, node.func.attr}}
            elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
                found.add((file, node.arg))
    assert found == {
        ("child.py", "multiprocessing"),  # a process of ours hears from us alone
        ("kernels/jit.py", "ctypes"),  # whether the system lets a process use the matrix unit
        ("kernels/jit.py", "pickle"),
        ("kernels/program.py", "ctypes"),  # addresses of functions
        ("terminal.py", "ctypes"),  # the console of Windows
    }


def test_help_needs_no_numerics() -> None:
    code = """
import sys
import charrnn.cli, charrnn.config, charrnn.errors
print([m for m in ("numba", "llvmlite", "numpy", "charrnn.model") if m in sys.modules])
"""
    assert run_python(code).strip() == "[]"
