"""What all commands have in common: exit statuses, -v and -q, terminals that show little."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support import ROOT
from test_console import Terminal, environment, posix, run_folder  # noqa: F401

from charrnn import errors
from charrnn.cli import cli

DOCUMENT = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")


def test_exit_statuses_are_documented():
    rows = re.findall(r"^\| ([\d, ]+) \|", DOCUMENT, re.M)
    listed = {int(number) for row in rows for number in row.split(", ")}
    kinds = [errors.CharRNNError, errors.InputError, errors.Diverged, errors.SaveError]
    assert listed == {0, 1, 129, 130, 143} | {kind.exit_code for kind in kinds}
    assert click.UsageError("").exit_code == 2


def test_a_fault_of_ours_is_status_1_with_a_traceback(tmp_path):
    code = """
import sys
import charrnn.api
charrnn.api.load = lambda path: 1 / 0
from charrnn.cli import cli
sys.argv = ["charrnn", "info", "x"]
cli()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_verbose_says_what_it_works_with(run_folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(run_folder)
    loud = CliRunner().invoke(cli, ["sample", "--length", "5", "--seed", "1", "-v"])
    plain = CliRunner().invoke(cli, ["sample", "--length", "5", "--seed", "1"])
    assert loud.exit_code == 0 and loud.stdout == plain.stdout
    said = dict(re.findall(r"^(\w+) {1,}(.*)$", loud.stderr, re.M))
    names = ["model", "versions", "processor", "threads", "kernels", "weights", "options"]
    assert list(said) == [*names, "compiled"]
    assert "length 5, temperature 0.8, " in said["options"]
    assert re.match(r"charrnn .*, python .*, numba ", said["versions"])
    assert re.match(r"\d+ kernels in \d+\.\d s", said["compiled"])
    assert plain.stderr == f"model {said['model']}\n"

    train = ["train", "text.txt", "--max-steps=2", "--hidden-size=9", "--out-dir=loud"]
    shown = CliRunner().invoke(cli, [*train, "-v"]).stderr
    assert "options    model lstm, hidden-size 9, " in shown and "learning-rate 0.01" in shown
    assert "finished at step 2" in shown and re.search(r"compiled +\d+ kernels in", shown)
    shown = CliRunner().invoke(cli, ["eval", "loud", "text.txt", "--verbose"])
    assert "hidden-size 9" in shown.stderr and "options" not in shown.stdout


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_says_where_an_error_came_from(flag, tmp_path):
    for line in (["sample", "none"], ["train", "none"], ["eval", "none", "none"]):
        result = CliRunner().invoke(cli, [*line, flag])
        assert result.exit_code == 2 and result.stderr.startswith("Traceback (most recent")
        short = CliRunner().invoke(cli, line).stderr
        assert short.count("\n") == 1
        assert short.splitlines() == [x for x in result.stderr.splitlines() if "Error: " in x][-1:]


def test_quiet_is_quiet(run_folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(run_folder)
    line = ["train", "text.txt", "--max-steps=2", "--hidden-size=9", "--out-dir=quiet", "-q"]
    result = CliRunner().invoke(cli, line)
    assert (result.exit_code, result.output) == (0, "")
    refused = CliRunner().invoke(cli, ["train", "text.txt", "-q", "-v"])
    assert refused.exit_code == 2 and "--quiet and --verbose are both given" in refused.stderr


OUTPUTS = {
    "eval runs/text text.txt --html": "page.html",
    "inspect runs/text --html": "page.html",
    "plot runs/text --output": "curves.svg",
    "gradients runs/text --plot": "reach.png",
    "sample runs/text --output": "out.txt",
    "train text.txt --out-dir": "run",
}
PLACES = {
    "no/{}": "no such folder|No such file",
    "text.txt/{}": "no such folder|is a file|Not a directory",
    "folder/{}": "is a folder: |Is a directory|already holds a run",
    "/proc/{}": "cannot be written: |cannot create the run folder",
    "x" * 300 + "{}": "cannot be written: |cannot create the run folder",
}


@pytest.mark.parametrize("line", OUTPUTS)
@pytest.mark.parametrize("place", PLACES, ids=["none", "a file", "a folder", "/proc", "long"])
def test_what_cannot_be_written_is_refused_before_there_is_anything_to_write(
    line,
    place,
    run_folder,  # noqa: F811
    monkeypatch,
    tmp_path,
):
    if "/proc" in place and not Path("/proc/self").exists():
        pytest.skip("nobody, root neither, can make a file in /proc: there is none here")
    name, message = OUTPUTS[line], PLACES[place]
    command, option = line.split()[0], line.split()[-1]
    if command == "train" and place.startswith("no/"):
        return  # it makes folders
    shutil.copytree(run_folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("folder", name).mkdir(parents=True)
    Path("folder", name, "config.json").touch()
    before = sorted(Path().rglob("*"))
    for work in ("evaluate.evaluate", "inspection.inspect", "curves.Watched", "subjects.trained",
                 "commands.sample._write_samples", "trainer.Run.events"):  # fmt: skip
        monkeypatch.setattr(f"charrnn.{work}", None)
    if place in ("text.txt/{}", "folder/{}"):  # then a long text is not read either
        monkeypatch.setattr("charrnn.runs._read", None)
    result = CliRunner().invoke(cli, [*line.split(), place.format(name)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert option in result.stderr
    assert any(part in result.stderr for part in message.split("|")), result.stderr
    assert sorted(Path().rglob("*")) == before


@posix
def test_a_terminal_of_ascii_gets_ascii(run_folder):  # noqa: F811
    poor = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for line in (["info"], ["sample", "--prompt", "café", "--length", "5"], ["sample", "nö"]):
        terminal = Terminal(run_folder, command=("-m", "charrnn", *line), **poor)
        terminal.end()
        assert terminal.seen.isascii() and "Traceback" not in terminal.seen
        assert "?" in terminal.seen or "\\xf6" in terminal.seen
