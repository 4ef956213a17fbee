"""`charrnn gradients`: what it shows of real models, and its refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import charrnn
from charrnn import api, gradients, laboratory, subjects
from charrnn.cli import cli
from charrnn.commands.gradients import SHOWN
from charrnn.heatmap import Style
from charrnn.unrolled import Probe, in_float64

ROOT = Path(__file__).resolve().parent.parent
BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")
FRESH = ["--hidden-size=8", "--length=30"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two trained runs, one of them clipped hard in both ways."""
    folder = tmp_path_factory.mktemp("laboratory")
    text = folder / "book.txt"
    text.write_text(BOOK[:6000], encoding="utf-8")
    small = dict(hidden_size=12, batch_size=4, seq_length=16, max_steps=30, log_every=5, threads=1)
    charrnn.train(text, out_dir=folder / "lstm", num_layers=2, **small)
    clips = dict(grad_clip=0.1, grad_clip_value=0.01)
    charrnn.train(text, out_dir=folder / "gru", model="gru", log_gradients=10, **small, **clips)
    return folder


def run(*arguments: object, columns: int = 80) -> Any:
    result = CliRunner().invoke(
        cli, ["gradients", *map(str, arguments)], env={"COLUMNS": str(columns)}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def shown(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_knows_all_that_can_be_shown() -> None:
    assert {*laboratory.SHOWS, "compare"} == set(SHOWN)


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("show", SHOWN)
def test_a_run_is_shown_in_80_columns_and_left_as_it_was(shop: Path, show: str, name: str) -> None:
    before = bytes_of(shop)
    result = run(shop / name, "--show", show, "--length=60")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(shop) not in line), lines
    assert bytes_of(shop) == before


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("show", SHOWN)
def test_pictures(shop: Path, tmp_path: Path, show: str, kind: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"picture.{kind}"
    shown(shop / "gru", "--show", show, "--length=40", "--plot", file)
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[kind]
    data = file.read_bytes()
    assert data.startswith(start) and len(data) > 5000
    assert list(tmp_path.iterdir()) == [file]
    shown(shop / "gru", "--show", show, "--length=40", "--plot", file)
    assert file.read_bytes() == data


def probe_of_the_run(shop: Path, offset: int = 0, length: int = 50) -> Probe:
    lm = api.load(shop / "lstm", threads=1)
    ids = lm.vocabulary.encode(BOOK[: offset + length + 1]).astype(int)
    state = None
    if offset:
        warm = ids[max(0, offset - 1000) : offset, None]
        state = in_float64(lm.model).advance(warm)
    return Probe(lm.model, ids[offset:-1], ids[offset + 1 :], state)


def test_components_of_one_loss(shop: Path) -> None:
    out = shown(shop / "lstm", "--show=components", "--length=50", "--offset=1100", "--layer=1")
    terms = probe_of_the_run(shop, 1100).terms(49)
    rows = dict(re.findall(r"^(\d+|all e)  (.*)$", out, re.M))
    for e in (0, 19, 48, 49):
        want = [np.linalg.norm(terms[e][f"layers.0.{n}"]) for n in ("Wx", "Wh", "b")]
        want.append(np.linalg.norm(terms[e]["input"]))
        assert [float(x) for x in rows[str(e)].split()[-4:]] == pytest.approx(want, rel=0.06)
    total = [sum(t[f"layers.0.{n}"] for t in terms) for n in ("Wx", "Wh", "b")]
    want = [np.linalg.norm(a) for a in total]
    assert [float(x) for x in rows["all e"].split()] == pytest.approx(want, rel=0.06)
    head = re.search(r"^e = 49 only: head.Wy (\S+)  head.by (\S+)$", out, re.M)
    assert head
    want = [np.linalg.norm(terms[49][n]) for n in ("head.Wy", "head.by")]
    assert [float(x) for x in head.groups()] == pytest.approx(want, rel=0.06)
    residuals = [float(x) for x in re.findall(r"within (\S+)$", out, re.M)]
    assert len(residuals) == 2 and max(residuals) < 1e-12


def test_short_ways_back_are_listed_step_by_step(shop: Path) -> None:
    out = shown(shop / "lstm", "--show=components", "--prompt=The Time")
    table = out.split("\n\n")[1].splitlines()
    assert [line.split()[:2] for line in table[3:10]] == [
        ["0", "T"], ["1", "h"], ["2", "e"], ["3", "'"], ["4", "T"], ["5", "i"], ["6", "m"]
    ]  # fmt: skip
    assert table[0].startswith("Loss 6, e after m, ")
    assert "Loss 2, " in shown(shop / "lstm", "--show=components", "--prompt=The Time", "--loss=2")


def test_json_has_the_numbers(shop: Path) -> None:
    found = json.loads(shown(shop / "lstm", "--json", "--length=50"))
    probe = probe_of_the_run(shop)
    assert found["length"] == 50
    assert found["nats_per_char"] == pytest.approx(probe.losses.mean())
    curve = gradients.reach(probe).curve(1, "c")
    (got,) = [c for c in found["reach"]["curves"] if (c["layer"], c["path"]) == (1, "c")]
    assert got["quantiles"][2] == pytest.approx(curve.median.tolist())
    assert got["falls_below_0.01"] == curve.falls_below(0.01)
    assert found["why"]["steps"] == gradients.why(probe).to_json()["steps"]
    components = json.loads(shown(shop / "lstm", "--show=components", "--json", "--length=9"))
    assert np.shape(components["components"]["norms"]["layers.1.Wh"]) == (9, 9)


def test_the_parameter_and_the_layer_of_the_map(shop: Path) -> None:
    common = [shop / "lstm", "--show=components", "--length=20"]
    assert "\nlayers.1.Wh: loss l" in shown(*common)
    assert "\nlayers.0.b: loss l" in shown(*common, "--layer=1", "--parameter=b")
    assert "\ninput: loss l" in shown(*common, "--parameter=input")
    assert "this model has layers.0.Wx, " in error_of(*common, "--parameter=V")
    assert error_of(*common, "--layer=3") == "--layer is 3: this model's are 1 to 2"
    assert error_of(*common, "--loss=20") == (
        "--loss is 20: the window has 0 to 19, and -1 for the last"
    )


def test_clipping_reads_the_run_s_metrics(shop: Path) -> None:
    out = shown(shop / "gru", "--show=clipping")
    assert ", 30 steps\n--grad-clip 0.1, --grad-clip-value 0.01 (0 is off)\n" in out
    assert "\n--log-gradients: by norm x 0." in out
    assert "log-gradients" not in shown(shop / "lstm", "--show=clipping")
    found = json.loads(shown(shop / "gru", "--show=clipping", "--json"))["clipping"]
    assert len(found["scales"]) == 3
    assert 0 < found["clipped"] <= 1 and len(found["logged"]) == 6
    assert len(found["norms"]) == 8
    assert all(0 < x < 1 for x in found["beyond"])
    assert all(1 < x < 90 for x in found["angles"])
    assert [name.split(",")[0] for name in found["names"]] == ["start"] * 4 + ["now"] * 4


def test_the_gradients_that_are_clipped_are_those_of_training(shop: Path) -> None:
    found = json.loads(shown(shop / "lstm", "--show=clipping", "--json"))["clipping"]
    lm = api.load(shop / "lstm", threads=1)
    ids = lm.vocabulary.encode(BOOK[:5400]).astype(int)
    n = 5399 // 4
    first = [ids[i : i + 4 * n].reshape(4, n).T[:16] for i in (0, 1)]
    for name, place in (("now, from 0", 4), ("start, from 0", 0)):
        weights = lm.gradients(*first).weights
        squares = [np.sum(a**2) for n, a in weights.items() if "bias_hh" not in n]
        assert found["names"][place] == name
        assert found["norms"][place] == pytest.approx(np.sqrt(sum(squares)), rel=1e-4)
        lm.model.initialize(lm.config.train.seed)


def test_models_side_by_side(shop: Path) -> None:
    out = shown(shop / "lstm", shop / "gru", "--untrained", "--length=40")
    names = [line.split("  ")[0] for line in out.splitlines()[1:5]]
    assert names[0] == "untrained lstm 2x12" and names[2] == "untrained gru 1x12"
    assert names[1].endswith("lstm/best") and names[3].endswith("gru/best")
    # An untrained model is what training began with.
    found = json.loads(shown(shop / "gru", "--untrained", "--length=40", "--json"))["models"]
    lm = api.load(shop / "gru", threads=1)
    lm.model.initialize(lm.config.train.seed)
    ids = lm.vocabulary.encode(BOOK[:41]).astype(int)
    start = Probe(lm.model, ids[:-1], ids[1:])
    assert found[0]["nats_per_char"] == pytest.approx(start.losses.mean())
    assert found[1]["nats_per_char"] < found[0]["nats_per_char"]


def test_fresh_models_of_all_kinds(shop: Path) -> None:
    out = shown("--show=compare", "--text", shop / "book.txt", "--hidden-size=8", "--length=30")
    for name in subjects.KINDS:
        assert re.search(rf"^{re.escape(name)}  ", out, re.M)
    relu = next(line for line in out.splitlines() if line.startswith("rnn relu, identity"))
    assert relu.split()[4:8] == [">", "15", ">", "15"]


def test_a_fresh_model_of_any_configuration(shop: Path) -> None:
    options = ["--model=rnn", "--activation=sigmoid", "--num-layers=2", "--init=orthogonal"]
    options += ["--residual", "--embedding-size=8", "--text", shop / "book.txt", *FRESH]
    found = json.loads(shown(*options, "--json"))
    assert found["model"] == "untrained rnn 2x8 sigmoid orthogonal residual"
    assert found["config"]["embedding_size"] == 8
    assert shown(*options, "--seed=2") != shown(*options, "--seed=3")


def test_an_exploding_gradient_is_a_result() -> None:
    text = "ab" * 3000
    model = charrnn.Config.from_options(
        {"model": "rnn", "activation": "identity", "hidden_size": 16}
    ).model
    (subject,) = subjects.fresh(model, 1, subjects.Source(prompt=text))
    subject.model.params.views["layers.0.Wh"][:] *= 20
    subject.model.changed()
    request = laboratory.Request(length=600, positions=50)
    with np.errstate(over="ignore", invalid="ignore"):
        for show in ("overview", "components", "reach"):
            assert laboratory.view(show, [subject], request).lines


def test_colours_are_for_terminals(shop: Path) -> None:
    (subject,) = subjects.trained([str(shop / "gru")], subjects.Source())
    request = laboratory.Request(length=20, style=Style(256, True))
    lines = laboratory.show_components(subject, request).lines
    assert any("\x1b[48;5;" in line for line in lines)
    assert "\x1b" not in shown(shop / "gru", "--show=components", "--length=20")


def test_wrong_input(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, gru, book = shop / "lstm", shop / "gru", shop / "book.txt"
    hint = " (see: charrnn gradients --help)"
    refused = {
        (shop / "none",): f"{shop / 'none'} does not exist: name a run folder or a "
        ".safetensors file",
        (lstm, "--length=6000"): "the text has 5,400 characters: a window of --length 6,000 from "
        "--offset 0 and its last target need 6,001; give a smaller --length, or a longer text",
        (lstm, "--offset=5400"): "the text has 5,400 characters: a window of --length 200 from "
        "--offset 5,400 and its last target need 5,601; give a smaller --offset, or a longer text",
        (lstm, "--prompt=a"): "the text has 1 character: a window of --length 1 from --offset 0 "
        "and its last target need 2; give a longer text",
        (lstm, "--prompt=ëëë"): "the text has 0 characters that the model knows (3 others are "
        "skipped): a window of --length 1 from --offset 0 and its last target need 2; give a "
        "longer text",
        (
            lstm,
            "--prompt=Zoë",
            "--on-unknown=error",
        ): "not in the vocabulary: 'Z' (once), 'ë' (once): change the text or --on-unknown",
        (lstm, "--length=0"): "--length is 0: it must be a whole number at least 1",
        (lstm, "--text", shop / "no.txt"): f"'{shop / 'no.txt'}' does not exist: name text files, "
        ".gz files, folders of .txt files, or - for standard input",
        (lstm, "--text", book, "--prompt=a"): "--text and --prompt are both given: use one" + hint,
        (lstm, "--encoding=utf-8"): "--encoding goes with --text: a run's own text is read as it "
        "was for training" + hint,
        (lstm, "--hidden-size=9"): "--hidden-size makes a fresh model and cannot be used with "
        f"{lstm}{hint}",
        (lstm, gru, "--show=why"): "--show why is of one model: name one, or use --show compare"
        + hint,
        (lstm, "--untrained", "--show=why"): "--show why is of one model: name one, or use "
        f"--show compare{hint}",
        (lstm, "--seed=2"): f"--seed makes a fresh model and cannot be used with {lstm}{hint}",
        (): "a fresh model has no text of its own: name one with --text or --prompt, or name a RUN",
        (lstm, "--loss=3"): f"--loss goes with --show components{hint}",
        (lstm, "--show=reach", "--parameter=Wx"): f"--parameter goes with --show components{hint}",
        ("--untrained",): f"--untrained needs a RUN: a fresh model is untrained already{hint}",
        ("--show=clipping", "--text", book, *FRESH): "--show clipping needs a RUN: it reads what "
        "its training has logged",
        ("--show=compare", "--model=gru"): "--model: --show compare without a RUN has kinds of "
        f"models of its own{hint}",
        (lstm, "--plot=a.gif"): "--plot is 'a.gif': it must end in .png or .svg",
        (lstm, "--plot", shop / "no" / "a.png"): f"--plot {shop / 'no' / 'a.png'}: there is no "
        "such folder, make it first",
    }
    before = bytes_of(shop)
    for arguments, message in refused.items():
        assert error_of(*arguments) == message
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert error_of(lstm, "--plot=a.png") == (
        "--plot needs matplotlib: pip install 'charrnn[plot]', or leave --plot out"
    )
    assert bytes_of(shop) == before


def test_unknown_characters_are_named(shop: Path) -> None:
    result = run(shop / "lstm", "--prompt=The ë Time Machine")
    assert result.exit_code == 0
    assert result.stderr == "1 unknown characters skipped: 'ë' (once)\n"
    assert "17 characters" not in result.stdout and "16 characters from 0" in result.stdout


def test_the_training_text_may_be_gone(shop: Path, tmp_path: Path) -> None:
    text = tmp_path / "gone.txt"
    text.write_text(BOOK[:2000], encoding="utf-8")
    charrnn.train(text, out_dir=tmp_path / "run", max_steps=1, hidden_size=4)
    text.unlink()
    assert error_of(tmp_path / "run") == (
        f"the text that {tmp_path / 'run' / 'best.safetensors'} was trained on is gone or has "
        "changed: name one with --text"
    )
