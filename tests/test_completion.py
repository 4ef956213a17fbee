"""What shells offer: by click's interface, and in a real bash."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
from click.shell_completion import ShellComplete
from support import ROOT, run_python

from charrnn.cli import cli
from charrnn.config import CELLS

COMMANDS = sorted(cli.commands)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with runs a, b and deep/c, made in this order, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("deep/c", "b", "a")):
        path = tmp_path / "runs" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("")
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "none").mkdir()
    (tmp_path / "book.txt").write_text("text")
    return tmp_path


def offered(*words):
    """What is offered for the last word: values, or what kind of path."""
    complete = ShellComplete(cli, {}, "charrnn", "_CHARRNN_COMPLETE")
    *before, last = words
    items = complete.get_completions(before, last)
    return [item.value if item.type == "plain" else item.type for item in items]


def test_commands_options_and_choices():
    assert offered("") == COMMANDS
    assert offered("tr") == ["train"]
    assert offered("train", "--hid") == ["--hidden-size"]
    assert offered("train", "--model", "") == list(CELLS)
    assert offered("train", "--model=g") == ["gru"]
    assert offered("runs", "--sort", "s") == ["step", "state"]
    assert {"--interactive", "-i", "--color"} <= set(offered("sample", "-"))


@pytest.mark.parametrize(
    "line", ["sample", "eval", "info", "monitor", "plot", "gradients", "train --resume",
             "train x --init-from"],
)  # fmt: skip
def test_runs_are_offered_the_newest_first(line, runs):
    assert offered(*line.split(), "") == ["runs/deep/c", "runs/b", "runs/a"]
    assert offered(*line.split(), "runs/d") == ["runs/deep/c"]
    assert offered(*line.split(), "boo") == ["file"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("train", "file"), ("train --val-file", "file"), ("train --out-dir", "dir"),
        ("sample --prompt-file", "file"), ("sample --output", "file"), ("eval runs/a", "file"),
        ("plot -o", "file"), ("runs", "dir"), ("gradients --text", "file"),
        ("gradients --plot", "file"),
    ],
)  # fmt: skip
def test_files_and_folders(line, kind, runs):
    assert offered(*line.split(), "") == [kind]


def test_texts_and_numbers_have_nothing_to_offer(runs):
    for line in ("sample --prompt", "train --hidden-size", "sample --stop", "train --encoding"):
        assert offered(*line.split(), "") == []


@pytest.fixture
def program(runs):
    """A folder with a program called charrnn."""
    path = runs / "bin" / "charrnn"
    path.parent.mkdir()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from charrnn.cli import cli; cli()"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path.parent


def in_bash(folder, line):
    """What bash itself offers for the last word of a line that was typed, Tab after it."""
    words = line.split(" ")
    script = f"""
set -e
export PATH={folder}:$PATH
source <(_CHARRNN_COMPLETE=bash_source charrnn)
complete -p charrnn >&2
compopt() {{ echo "compopt $1 $2"; }}
COMP_WORDS=({" ".join(repr(word) for word in words)})
COMP_CWORD={len(words) - 1}
_charrnn_completion charrnn
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "-F _charrnn_completion charrnn" in done.stderr
    return done.stdout.split("\n")[:-1]


def has_bash() -> bool:
    if shutil.which("bash") is None or os.name == "nt":
        return False
    major = subprocess.run(["bash", "-c", "echo $BASH_VERSINFO"], capture_output=True).stdout
    return int(major) > 4  # macOS has 3, which click does not know


bash = pytest.mark.skipif(not has_bash(), reason="there is no bash of this century's second decade")


@bash
def test_bash_completes(program):
    assert in_bash(program, "charrnn ") == COMMANDS
    assert in_bash(program, "charrnn train --hid") == ["--hidden-size"]
    assert in_bash(program, "charrnn train --model l") == ["lstm"]
    assert in_bash(program, "charrnn train --model = l") == ["lstm"]  # as bash cuts --model=l
    assert in_bash(program, "charrnn sample runs/") == ["runs/deep/c", "runs/b", "runs/a"]
    assert in_bash(program, "charrnn train bo") == ["compopt -o default", ""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell, program):
    environment = os.environ | {"_CHARRNN_COMPLETE": f"{shell}_source"}
    done = subprocess.run([program / "charrnn"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"_CHARRNN_COMPLETE={shell}_complete" in done.stdout
    document = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert f"_CHARRNN_COMPLETE={shell}_source charrnn" in document
    if shutil.which(shell):  # it is a script that this shell understands
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_completing_imports_nothing_heavy(tmp_path):
    code = """
import os, sys
os.environ |= {"_CHARRNN_COMPLETE": "bash_complete", "COMP_WORDS": "charrnn tr", "COMP_CWORD": "1"}
from charrnn.cli import cli
try:
    cli(prog_name="charrnn")
except SystemExit as end:
    assert not end.code, end.code
print([m for m in ("numba", "numpy", "safetensors", "tqdm", "charrnn.model") if m in sys.modules])
"""
    begin = time.monotonic()
    assert run_python(code) == "plain,train\n[]\n"
    assert time.monotonic() - begin < 10  # it takes a fifth of a second on a machine of its own
