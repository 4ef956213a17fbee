"""What shells offer: by click's interface, and in real shells."""

from __future__ import annotations

import os
import re
import select
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
DOCUMENT = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")


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


LINES = dict(
    re.findall(r"^\| (bash|zsh|fish) \| .* \| `(.*)` \|$", DOCUMENT.replace(r"\|", "|"), re.M)
)
"""Shell -> what the documentation tells to put where it begins."""

SHOW = {
    "bash": """
PS1=READY
show() { printf '<<%s>>\\n' "$READLINE_LINE"; READLINE_LINE=; }
bind -x '"\\C-x": show'
""",
    "zsh": """
PS1=READY
show() { print -r -- "<<$BUFFER>>"; BUFFER= }
zle -N show
bindkey '^X' show
""",
}
"""What makes Ctrl-X show the line as it is, and empties it."""


class Shell:
    """bash or zsh on a terminal of its own, begun as the documentation says."""

    def __init__(self, name, program, folder):
        import pty

        start = f"export PATH={program}:$PATH\n{LINES[name]}\n{SHOW[name]}"
        if name == "bash":
            (folder / "rc").write_text(start)
            command = ["bash", "--rcfile", folder / "rc", "-i"]
        else:
            (folder / ".zshrc").write_text(f"autoload -U compinit; compinit -u -D\n{start}")
            command = ["zsh", "-o", "no_global_rcs", "-i"]
        master, slave = pty.openpty()
        self.master = master
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "ZDOTDIR": str(folder), "HOME": str(folder)},
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.until("READY")

    def until(self, pattern):
        """Read until the terminal shows what matches."""
        end, seen = time.monotonic() + 60, ""
        while not (found := re.search(pattern, re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen))):
            assert time.monotonic() < end, seen
            if select.select([self.master], [], [], 0.1)[0]:
                seen += os.read(self.master, 1 << 16).decode(errors="replace")
        return found

    def completed(self, line):
        """A line as it is after it was typed, and Tab."""
        os.write(self.master, f"{line}\t\x18".encode())
        return self.until("<<(.*)>>")[1]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture(params=["bash", "zsh"])
def shell(request, program, runs):
    name = request.param
    if not (has_bash() if name == "bash" else os.name != "nt" and shutil.which(name)):
        pytest.skip(f"{name} is not installed (bash: 5 or newer)")
    (runs / "runs" / "my run").mkdir()
    (runs / "runs" / "my run" / "metrics.jsonl").touch()
    shell = Shell(name, program, runs)
    yield shell
    shell.close()


def test_tab_completes_what_was_typed(shell):
    for line, want in {
        "charrnn sa": "charrnn sample ",
        "charrnn train --hid": "charrnn train --hidden-size ",
        "charrnn train --model l": "charrnn train --model lstm ",
        "charrnn train --model=l": "charrnn train --model=lstm ",
        "charrnn sample runs/d": "charrnn sample runs/deep/c ",
        "charrnn sample runs/m": "charrnn sample runs/my\\ run ",
        'charrnn sample "runs/m': 'charrnn sample "runs/my run" ',
        "charrnn train bo": "charrnn train book.txt ",
        "charrnn eval --html=bo": "charrnn eval --html=book.txt ",
        "charrnn train --out-dir r": "charrnn train --out-dir runs/",
    }.items():
        assert shell.completed(line) == want


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(program, runs):
    place = runs / "fish" / "completions" / "charrnn.fish"
    place.parent.mkdir(parents=True)
    place.write_text(LINES["fish"])
    environment = os.environ | {
        "PATH": f"{program}:{os.environ['PATH']}", "HOME": str(runs), "XDG_CONFIG_HOME": str(runs)
    }  # fmt: skip

    def offered(line):
        done = subprocess.run(
            ["fish", "-c", "complete -C $argv[1]", line], env=environment, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    assert [line.partition("\t")[0] for line in offered("charrnn ")] == COMMANDS
    assert offered("charrnn sa") == ["sample\tWrite text with a model."]
    (length,) = offered("charrnn sample --leng")
    assert length.startswith("--length\t") and "1,000,000,000" in length  # not cut at a comma
    assert offered("charrnn train --model l") == ["lstm"]
    assert offered("charrnn train --model=l") == ["--model=lstm"]
    assert offered("charrnn sample runs/d") == ["runs/deep/c"]
    assert offered("charrnn train bo") == ["book.txt"]
    assert offered("charrnn eval --html=bo") == ["--html=book.txt"]
    assert offered("charrnn train --out-dir=r") == ["--out-dir=runs/"]
    assert offered("charrnn train --out-dir=bo") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell, program):
    environment = os.environ | {"_CHARRNN_COMPLETE": f"{shell}_source"}
    done = subprocess.run([program / "charrnn"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"_CHARRNN_COMPLETE={shell}_complete" in done.stdout
    assert f"_CHARRNN_COMPLETE={shell}_source charrnn" in LINES[shell]
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
