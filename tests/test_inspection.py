"""Units: their values against the oracle, and whether the search finds what was put there."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import naive
import networks
import numpy as np
import pytest
from click.testing import CliRunner
from test_page import Reader

import charrnn
from charrnn import api, inspection
from charrnn.characters import characters
from charrnn.cli import cli
from charrnn.features import FEATURES
from charrnn.heatmap import Style
from charrnn.inspection import (
    Column,
    Finding,
    Request,
    Score,
    Units,
    area,
    correlations,
    search,
    value_names,
)
from charrnn.model import Model

ROOT = Path(__file__).resolve().parent.parent
BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspection")
    text = folder / "book.txt"
    text.write_text(BOOK[:12000], encoding="utf-8")
    small = dict(hidden_size=12, batch_size=4, seq_length=16, max_steps=60, threads=1)
    charrnn.train(text, out_dir=folder / "lstm", num_layers=2, val_frac=0.2, **small)
    charrnn.train(text, out_dir=folder / "byte", model="gru", level="byte", val_frac=0.2, **small)
    return folder


def run(*arguments: object, columns: int = 80) -> Any:
    environment = {"COLUMNS": str(columns)}
    result = CliRunner().invoke(cli, ["inspect", *map(str, arguments)], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def shown(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return str(result.stderr.splitlines()[-1])


# --- values ---------------------------------------------------------------------------------------


def oracle_states(model: Model, ids: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Every layer's states after each symbol, (T, H), by steps of the oracle."""
    c, p = model.config, naive.float64(model.params.views)
    cell = naive.CELLS[c.model]
    x = np.eye(model.vocab_size)[ids][:, None]
    layers = []
    for i, state in enumerate(naive.zero_states(c.model, c.num_layers, 1, c.hidden_size)):
        rows = []
        for t in range(len(ids)):
            _, state, _ = cell.forward(naive.layer_params(p, i), x[t : t + 1], state, c.activation)
            rows.append(state)
        layers.append({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        x = layers[-1]["h"][:, None]
    return layers


@pytest.mark.parametrize("cell, activation", networks.KINDS)
def test_values_are_those_of_the_oracle(
    cell: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "WINDOW", 7)
    model = networks.make(cell, activation, num_layers=2)
    ids = np.random.default_rng(4).integers(networks.V, size=24)
    states = model.cell.states
    units = Units(model, states, (1, 2))
    got = np.concatenate(list(units.read(ids)))
    layers = oracle_states(model, ids)
    want = np.hstack([layers[i][name] for i in range(2) for name in states])
    assert np.abs(got - want).max() < 1e-9
    assert [units.columns[0], units.columns[-1]] == [
        Column(1, "h", 0),
        Column(2, states[-1], networks.H - 1),
    ]


def test_gates_are_those_that_make_the_states() -> None:
    model = networks.make("lstm")
    ids = np.random.default_rng(4).integers(networks.V, size=24)
    names = value_names(model.cell)
    assert names == ("h", "c", "i", "f", "g", "o")
    read = np.concatenate(list(Units(model, names, (1,)).read(ids)))
    h, c, i, f, g, o = np.split(read, 6, axis=1)
    assert np.abs(c[1:] - (f[1:] * c[:-1] + i[1:] * g[1:])).max() < 1e-12
    assert np.abs(h - o * np.tanh(c)).max() < 1e-12
    assert min(x.min() for x in (i, f, o)) > 0 > g.min()
    assert value_names(networks.make("rnn", "relu").cell) == ("h",)
    assert value_names(networks.make("gru").cell) == ("h", "r", "z", "n")
    gru = networks.make("gru")
    h, _, z, n = np.split(
        np.concatenate(list(Units(gru, ("h", "r", "z", "n"), (1,)).read(ids))), 4, 1
    )
    assert np.abs(h[1:] - ((1 - z[1:]) * n[1:] + z[1:] * h[:-1])).max() < 1e-12


def test_a_part_of_a_text_of_bytes() -> None:
    model = networks.make("lstm")
    chars = characters("aé日b".encode() * 3)
    ids = np.random.default_rng(4).integers(networks.V, size=int(chars.starts[-1]))
    units = Units(model, ("c",), (1,))
    whole = np.concatenate(list(units.read(ids)))
    got = units.over(ids, chars, 1, 6, [Column(1, "c", 5), Column(1, "c", 2)])
    assert np.array_equal(got, whole[[2, 5, 6, 7, 9]][:, [5, 2]])


def test_the_state_before_a_part_is_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.make("gru")
    chars = characters("x" * 60)
    ids = np.random.default_rng(4).integers(networks.V, size=60)
    units = Units(model, ("h",), (1,))
    monkeypatch.setattr(inspection, "WARMUP", 20)
    (want,) = units.read(ids[10:40])
    assert np.array_equal(units.over(ids, chars, 30, 40, units.columns), want[20:])


# --- scores ---------------------------------------------------------------------------------------


def test_correlations_of_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "WINDOW", 16)
    model = networks.make("lstm")
    chars = characters("aé日".encode() * 25)
    ids = np.random.default_rng(4).integers(networks.V, size=int(chars.starts[-1]))
    units = Units(model, ("h", "c"), (1,))
    features = np.random.default_rng(5).normal(size=(75, 3))
    features[:, 1] = 2.0
    got = correlations(units, ids, chars, features)
    values = np.concatenate(list(units.read(ids)))[chars.starts[1:] - 1]
    for half, part in enumerate((slice(0, 37), slice(37, 75))):
        for i in (0, 2):
            want = [np.corrcoef(features[part, i], u)[0, 1] for u in values[part].T]
            assert got[half, i] == pytest.approx(want, abs=1e-9)
        assert not got[half, 1].any()


def test_area_under_the_curve() -> None:
    values = np.array([3.0, 1, 2, 2, 5])
    yes = np.array([1, 0, 1, 0, 0], bool)
    pairs = [(a > b) + (a == b) / 2 for a in values[yes] for b in values[~yes]]
    assert area(values, yes) == pytest.approx(np.mean(pairs))
    assert area(-values, yes) == pytest.approx(1 - np.mean(pairs))
    assert area(np.ones(5), yes) == 0.5


def quote_counter() -> tuple[Model, np.ndarray, str]:
    """An LSTM whose unit 1 remembers a quotation mark and whose unit 4 has seen a newline."""
    text = ('and "so it went", he said.\nOf "all" of that\n(he knew) 1 ' * 80)[:4000]
    symbols = sorted(set(text))
    model = networks.make("lstm", V=len(symbols), hidden_size=6)
    p = model.params.views
    H = 6
    for name in ("layers.0.Wh", "layers.0.Wx", "layers.0.b"):
        view = p[name]
        view.reshape(-1, 4, H)[:, :, [1, 4]] = 0
    b, Wx, Wh = (p[f"layers.0.{n}"].reshape(-1, 4, H) for n in ("b", "Wx", "Wh"))
    mark, newline = symbols.index('"'), symbols.index("\n")
    # Unit 1: c changes its sign at each mark: f = 1, i = 0 elsewhere.
    b[0, :, 1] = (-20, 20, 0, 20)
    Wx[mark, 0, 1], Wx[mark, 1, 1] = 40, -40
    Wh[1, 2, 1] = -20  # g = -sign(h) ...
    b[0, 2, 1] = 0.1  # ... and positive at the first mark
    b[0, :, 4] = (20, -20, 5, 20)
    Wx[newline, 2, 4] = -10  # below 0 where it is a yes
    model.changed()
    ids = np.array([symbols.index(c) for c in text])
    return model, ids, text


def test_the_search_finds_units_that_were_made_to_follow_something() -> None:
    model, ids, text = quote_counter()
    untrained = networks.make("lstm", V=model.vocab_size, hidden_size=6)
    found = search(Units(model, ("h", "c"), (1,)), untrained, ids, characters(text))
    assert {each.feature for each in found} == {feature.name for feature in FEATURES}
    by_name = {each.feature: each for each in found}
    quotes = by_name["inside quotes"].score
    assert quotes is not None and quotes.column.unit == 1
    assert quotes.r > 0.99 and quotes.first_r > 0.99 and quotes.auc == 1.0
    newline = by_name["after a newline"].score
    assert newline is not None and newline.column.unit == 4
    assert newline.r < -0.99 and newline.auc == 1.0
    gains = [each.gain for each in found]
    assert gains == sorted(gains, reverse=True)
    half = FEATURES[4].values(text)[2000:]
    assert by_name["inside quotes"].times == np.count_nonzero(np.diff(half, prepend=0) > 0)


def test_what_is_reported_was_not_chosen_by() -> None:
    """Noise chosen by the first half has no score in the second."""
    model = networks.make("lstm", hidden_size=networks.H)
    text = BOOK[:4000]
    ids = np.random.default_rng(6).integers(networks.V, size=4000)  # nothing to do with the text
    found = search(Units(model, ("h", "c"), (1,)), model, ids, characters(text))
    scores = [each.score for each in found if each.score is not None]
    assert np.mean([abs(s.first_r) for s in scores]) > 1.5 * np.mean([abs(s.r) for s in scores])
    assert all(s.auc is None or 0.3 < s.auc < 0.7 for s in scores)


def test_what_is_too_rare_has_no_score() -> None:
    model, _, _ = quote_counter()
    text = ("plain words " * 100 + "(x) ") * 2
    ids = np.zeros(len(text), int)
    by_name = {
        e.feature: e for e in search(Units(model, ("h",), (1,)), model, ids, characters(text))
    }
    assert by_name["inside brackets"].score is None and by_name["inside brackets"].times == 1
    assert by_name["inside a word"].score is not None


def test_both_halves_of_the_text_must_have_enough() -> None:
    model, _, _ = quote_counter()
    plain, brackets = "plain words " * 100, "(x) plain words " * 100
    for text in (brackets + plain * 2, plain * 2 + brackets):
        ids = np.zeros(len(text), int)
        found = search(Units(model, ("h",), (1,)), model, ids, characters(text))
        assert {each.feature: each for each in found}["inside brackets"].score is None


def test_what_is_enough() -> None:
    """Five beginnings of a yes and of a no, or three numbers."""
    yes_or_no = next(feature for feature in FEATURES if feature.yes_or_no)
    assert inspection._begins(np.array([1.0, 0.0] * 5)) == 5
    assert not inspection._enough(yes_or_no, np.array([1.0, 0.0] * 5)[:-1])
    assert inspection._enough(yes_or_no, np.array([1.0, 0.0] * 5 + [1.0]))
    numbers = next(feature for feature in FEATURES if not feature.yes_or_no)
    assert not inspection._enough(numbers, np.array([0.0, 1.0] * 50))
    assert inspection._enough(numbers, np.arange(9.0) % 3)


def test_a_sign_that_changes_is_nothing_found() -> None:
    def score(first_r: float, r: float) -> Score:
        return Score(Column(1, "h", 0), first_r, r, None)

    signs = [(0.5, 0.4), (-0.5, -0.4), (0.5, -0.4), (-0.5, 0.4)]
    assert [score(*each).held for each in signs] == [0.4, 0.4, -0.4, -0.4]
    untrained = (score(0.5, 0.2), score(0.5, -0.2), None)
    gains = [Finding("x", None, score(0.5, 0.6), each).gain for each in untrained]
    assert gains == [pytest.approx(0.4), 0.6, -math.inf]


def test_untrained_is_the_network_that_training_began_with(shop: Path) -> None:
    lm = api.load(shop / "lstm", threads=1)
    text = lm.validation_text()
    assert text is not None
    found = inspection.inspect(lm, text, Request(), "skip").findings
    lm.model.initialize(lm.config.train.seed)
    units = Units(lm.model, lm.model.cell.states, (1, 2))
    start = search(units, lm.model, lm.vocabulary.encode(text), characters(text))
    scores = {each.feature: each.score for each in start}
    assert {each.feature: each.untrained for each in found} == scores
    assert any(score is not None and score.column.value == "c" for score in scores.values())


# --- the command ----------------------------------------------------------------------------------


def test_a_run_is_searched_over_its_validation_text(shop: Path) -> None:
    before = {p: p.read_bytes() for p in shop.rglob("*") if p.is_file()}
    result = run(shop / "lstm", "--length=90")
    assert (result.exit_code, result.stderr) == (0, "")
    first, *lines = result.stdout.splitlines()
    assert first == f"{shop / 'lstm' / 'best.safetensors'}, lstm 2x12"
    assert not [line for line in lines if len(line) > 80]
    assert "Of 48 values of units" in lines[0] and "0 to 1,200 (first r)" in lines[1]
    part = BOOK[9600 + 1200 :][:90]
    texts = [i for i, line in enumerate(lines) if line == part.split("\n")[0] + "↵"[: "\n" in part]]
    assert len(texts) == 2  # by the two best units
    assert len(re.findall(r"90 of 2,400 characters, from 1,200$", result.stdout, re.M)) == 2
    assert {p: p.read_bytes() for p in shop.rglob("*") if p.is_file()} == before
    assert shown(shop / "lstm", "--length=90") == result.stdout


def test_json_is_what_the_table_shows(shop: Path) -> None:
    found = json.loads(shown(shop / "lstm", "--length=50", "--best=3", "--json"))
    assert (found["searched_chars"], found["searched_values"]) == (2400, 48)
    table = shown(shop / "lstm", "--best=0")
    assert "from" not in table
    for each in found["features"]:
        (row,) = [line for line in table.splitlines() if line.startswith(each["feature"] + "  ")]
        score = each["score"]
        if score is None:
            assert row.split()[-1 if each["times"] is None else -2] == "-"
            continue
        place = f"{score['layer']}  +{score['value']} {score['unit']} "
        assert re.search(place, row), row
        assert f" {score['first_r']:.2f} " in row and f" {score['r']:.2f} " in row + " "
    assert found["text"] == BOOK[9600 + 1200 :][:50]
    assert [len(unit["values"]) for unit in found["units"]] == [50] * 3
    lm = api.load(shop / "lstm", threads=1)
    unit = found["units"][0]
    ids = lm.vocabulary.encode(BOOK[9600:][:1250])
    values = np.concatenate(list(Units(lm.model, (unit["value"],), (unit["layer"],)).read(ids)))
    assert unit["values"] == pytest.approx(values[1200:, unit["unit"]], abs=1e-3)


def test_a_long_text_is_searched_in_part(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SEARCHED", 1500)
    found = json.loads(shown(shop / "lstm", "--json"))
    assert (found["searched_chars"], found["offset"]) == (1500, 750)


def test_named_units_over_a_prompt(shop: Path) -> None:
    out = shown(shop / "lstm", "--unit=3", "--unit=0", "--layer=1", "--value=f", "--prompt=The tim")
    assert "first r" not in out  # too short to be searched
    assert re.findall(r"^layer 1, f \d+$", out, re.M) == ["layer 1, f 3", "layer 1, f 0"]
    assert out.count("\nThe tim\n") == 2 and "; 7 of 7 characters, from 0" in out
    out = shown(shop / "lstm", "--unit=3", "--text", shop / "book.txt", "--length=60")
    assert "layer 2, h 3" in out and "60 of 12,000 characters, from 0" in out
    assert "Of 12 values of units" in out


def test_a_page(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "units.html"
    result = run(shop / "byte", "--html", file, "--length=300", "--best=2")
    assert result.exit_code == 0
    assert result.stderr == f"page in {file}, 300 of 2,400 characters, from 1,200\n"
    found = Reader(file.read_bytes())
    assert len(found.letters) == 600
    part = BOOK[9600 + 1200 :][:300]
    assert found.text["pre"].replace("\u21b5", "") == part * 2
    names = re.findall(r"layer 1, h (\d+)", found.text["h2"])
    assert len(names) == 2
    json_units = json.loads(shown(shop / "byte", "--length=300", "--best=2", "--json"))["units"]
    for k, unit in enumerate(json_units):
        top = np.abs(unit["values"]).max()
        for i in (0, 17, 299):
            shade, tip, _ = found.letters[300 * k + i]
            assert tip == f"{part[i]!r}  {unit['values'][i]:.3f}"
            level = round(abs(unit["values"][i]) / top * 10)
            want = ("b" if unit["values"][i] < 0 else "c") + str(level) if level else ""
            assert shade.removesuffix(" e") == want
    assert run(shop / "byte", "--html", file, "--length=300", "--best=2").exit_code == 0


def test_shades_of_units() -> None:
    values = np.array([[-2.0], [-0.1], [0.0], [1.0], [2.0]])
    view = inspection.View(0, 1, [], [Column(1, "h", 0)], values, "abcd\n", 0, 5)
    assert view.lines(Style(), 80) == [
        "", "layer 1, h 0", "", "abcd$", "=   +#"[:1] + "  +#", "",
        "-2 [=- +#] 2; 5 of 5 characters, from 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layer=3"], "--layer is 3: this model's are 1 to 2"),
        (["--unit=12"], "--unit is 12: this model's are 0 to 11"),
        (["--value=z"], "--value is 'z': units of this model have h, c, i, f, g, o"),
        (["--offset=2400"], "--offset is 2,400: the text has 2,400 characters, from 0"),
        (["--prompt=short"], "the text has 5 characters: a search for units needs 1,000"),
        (["--prompt=éé"], "the text has no character that the model knows"),
        (["--prompt="], "the text has no character that the model knows"),
        (["--prompt=a", "--text=b"], "--text and --prompt are both given"),
        (["--encoding=utf-8"], "--encoding goes with --text"),
        (["--encoding=utf-8", "--prompt=a"], "--encoding goes with --text"),
        (["--best=1", "--unit=1"], "--best is of units that are found"),
        (["--html=units.png"], "--html is 'units.png': it must end in .html or .htm"),
    ],
)
def test_refusals(shop: Path, arguments: list[str], message: str) -> None:
    assert message in error_of(shop / "lstm", *arguments)


def test_a_text_that_is_gone_is_asked_for(shop: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(BOOK[:3000], encoding="utf-8")
    small = dict(hidden_size=4, batch_size=4, seq_length=16, max_steps=2, threads=1)
    charrnn.train(text, out_dir=tmp_path / "run", **small)
    assert charrnn.load(tmp_path / "run").validation_text() == BOOK[2700:3000]
    charrnn.train(text, out_dir=tmp_path / "valued", val_file=str(shop / "book.txt"), **small)
    assert charrnn.load(tmp_path / "valued").validation_text() == BOOK[:12000]
    charrnn.train(text, out_dir=tmp_path / "none", val_frac=0, **small)
    assert charrnn.load(tmp_path / "none").validation_text() is None
    text.write_text(BOOK[:2999] + "~", encoding="utf-8")
    assert charrnn.load(tmp_path / "run").validation_text() is None
    message = error_of(tmp_path / "run")
    assert re.search("validated on is gone or has changed, .*: name one with --text", message)
