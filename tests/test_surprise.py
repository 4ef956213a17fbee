"""The surprise of characters: against logits, and as `charrnn eval` shows it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from click.testing import CliRunner
from test_page import Reader

import charrnn
from charrnn import api, evaluate, surprise
from charrnn.cli import cli
from charrnn.data import Corpus, read_corpus
from charrnn.heatmap import Style
from charrnn.model import Model
from charrnn.vocab import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")
PLAIN = Style()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surprise")
    text = folder / "book.txt"
    text.write_text(BOOK[:6000], encoding="utf-8")
    odd = folder / "odd.txt"
    odd.write_text("naïve e\u0301 日本語 שלום <b>&amp;\"'\t\x07\n😀\n" * 60, encoding="utf-8")
    small = dict(hidden_size=12, batch_size=4, seq_length=16, max_steps=30, threads=1)
    charrnn.train(text, out_dir=folder / "char", **small)
    charrnn.train(odd, out_dir=folder / "odd", **small)
    charrnn.train(odd, out_dir=folder / "byte", level="byte", **small)
    return folder


def run(*arguments: object, columns: int = 80) -> Any:
    environment = {"COLUMNS": str(columns)}
    result = CliRunner().invoke(cli, ["eval", *map(str, arguments)], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return str(result.stderr.splitlines()[-1])


def corpus_of(text: str | bytes) -> Corpus:
    level = "char" if isinstance(text, str) else "byte"
    vocabulary = Vocabulary.build(text, level)
    counts = dict.fromkeys(vocabulary.symbols, 1)
    return Corpus(vocabulary.encode(text), counts, level, (0,), ("file",), "file", "")


def measured(lm: api.LanguageModel, corpus: Corpus, **options: Any) -> surprise.Surprise:
    scores = lm.evaluate(corpus.text, losses=True, **options)
    on_unknown = options.get("on_unknown", "skip")
    return surprise.surprise(lm.model, lm.vocabulary, corpus, scores["losses"], on_unknown)


def naive_bits(model: Model, ids: np.ndarray) -> np.ndarray:
    """Of ids[1:], by the oracle, in one stream from a zero state."""
    c = model.config
    states = naive.zero_states(c.model, c.num_layers, 1, c.hidden_size)
    logits, _, _ = naive.network_forward(
        model.params.views, ids[:-1, None], states,
        cell=c.model, activation=c.activation, residual=c.residual,
    )  # fmt: skip
    return naive.cross_entropy(logits, ids[1:, None])[0][:, 0] / math.log(2)


@pytest.mark.parametrize("name", ["char", "odd", "byte"])
def test_bits_are_those_of_the_oracle_and_sum_to_the_exact_score(shop: Path, name: str) -> None:
    lm = api.load(shop / name, threads=1)
    file = "book.txt" if name == "char" else "odd.txt"
    corpus = read_corpus([shop / file], level=lm.config.data.level)
    found = measured(lm, corpus, exact=True)
    scores = lm.evaluate(corpus.text, exact=True)
    total = scores["nats_per_char"] * scores["chars"] / math.log(2)
    assert np.nansum(found.bits) == pytest.approx(total, rel=1e-6)
    assert np.nansum(found.symbol_bits) == pytest.approx(total, rel=1e-6)
    assert np.isnan(found.bits[0]) and not np.isnan(found.bits[1:]).any()
    want = naive_bits(lm.model, found.ids[:400].astype(int))
    assert found.symbol_bits[1:400] == pytest.approx(want, abs=2e-5)


def test_every_loss_is_given_out_whatever_the_streams(shop: Path) -> None:
    lm = api.load(shop / "char", threads=1)
    ids = lm.vocabulary.encode(BOOK[:6000])
    nats, each = {}, {}
    for streams in (1, 3):
        each[streams] = np.full(len(ids) - 1, np.nan, np.float32)
        nats[streams], _ = evaluate.evaluate(
            lm.model, ids, streams=streams, warmup=400, out=each[streams]
        )
        assert each[streams].sum(dtype=np.float64) == pytest.approx(nats[streams], rel=1e-9)
    assert np.abs(each[1] - each[3]).max() < 1e-3


def test_bits_of_a_character_are_those_of_its_bytes(shop: Path) -> None:
    lm = api.load(shop / "byte", threads=1)
    corpus = read_corpus([shop / "odd.txt"], level="byte")
    found = measured(lm, corpus)
    place = found.chars.text.index("日")
    start = found.chars.starts[place]
    assert corpus.text[start : start + 3] == "日".encode()
    want = found.symbol_bits[start : start + 3].sum()
    assert found.bits[place] == pytest.approx(want, rel=1e-12)


def test_what_was_left_out_has_no_surprise(shop: Path) -> None:
    lm = api.load(shop / "char", threads=1)
    with_them, without = "Hxé the timé é", "Hx the tim "
    found, plain = (measured(lm, corpus_of(t)) for t in (with_them, without))
    left_out = [i for i, c in enumerate(with_them) if c == "é"]
    kept = np.delete(found.bits, left_out)
    assert np.isnan(found.bits[left_out]).all()
    assert np.array_equal(kept, plain.bits, equal_nan=True)
    assert [len(e) for e in found.expected(0, 5)] == [0, 3, 0, 3, 3]
    tips = surprise._tips(found, surprise.part(found.chars, 0, 99))
    assert tips[0] == "'H'  not predicted: nothing stands before it"
    assert tips[2] == "'é' U+00E9  left out: the model does not know it"


def test_expected_symbols_are_the_likeliest(shop: Path) -> None:
    lm = api.load(shop / "char", threads=1)
    text = BOOK[:1200]
    found = measured(lm, corpus_of(text), exact=True)
    z = lm.model.forward(found.ids[:-1, None])[0]["logits"][:, 0].astype(float)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for first, last in ((0, 5), (700, 703), (1198, 1200)):
        guesses = found.expected(first, last)
        assert len(guesses) == last - first
        for i, of_one in enumerate(guesses, first):
            best = np.argsort(-p[i - 1])[:3] if i else []
            names = [repr(lm.vocabulary.symbols[j]) for j in best]
            assert [g.symbol for g in of_one] == names
            assert [g.probability for g in of_one] == pytest.approx(
                [p[i - 1, j] for j in best], rel=1e-4
            )


def test_places_are_the_largest_and_apart(shop: Path) -> None:
    (shop / "first.txt").write_text("The Time\n", encoding="utf-8")
    lm = api.load(shop / "char", threads=1)
    corpus = read_corpus([shop / "first.txt", shop / "book.txt"])
    found = measured(lm, corpus)
    places = found.places(12)
    bits = np.nan_to_num(found.bits)
    assert places[0].position == bits.argmax()
    assert [p.bits for p in places] == sorted((p.bits for p in places), reverse=True)
    positions = sorted(p.position for p in places)
    assert min(np.diff(positions)) >= surprise.APART
    for p in places:
        text = Path(p.source).read_text(encoding="utf-8")
        assert text.splitlines(keepends=True)[p.line - 1][p.column - 1] == corpus.text[p.position]
    others = [b for i, b in enumerate(bits) if min(abs(i - np.array(positions))) >= 10]
    assert max(others) <= places[-1].bits
    assert 300 < len(surprise._peaks(found.bits, 10**6)) <= 601


def test_the_text_is_shaded(shop: Path) -> None:
    lm = api.load(shop / "char", threads=1)
    found = measured(lm, corpus_of(BOOK[:300]))
    shown = surprise.part(found.chars, 40, 100)
    *lines, empty, legend = surprise.lines(found, shown, PLAIN, 60)
    assert (empty, legend) == ("", "0 [ .:-=+*#%@] 8 bits or more; 100 of 300 characters, from 40")
    text, shades = "".join(lines[::2]), [x for line in lines[1::2] for x in line]
    assert all(len(line) <= 60 for line in lines)
    whole = BOOK[40:140].replace("\n", "$")
    assert text.replace(" ", "") == whole.replace(" ", "")
    row = BOOK[40:140].split("\n")[0]
    want = [round(min(b / 8, 1) * 9) for b in found.bits[40 : 40 + len(row)]]
    assert [" .:-=+*#%@".index(x) for x in shades[: len(row)]] == want[: len(shades[: len(row)])]


def test_eval_shows_it(shop: Path) -> None:
    plain = run(shop / "char", shop / "book.txt")
    result = run(shop / "char", shop / "book.txt", "--heatmap", "--length=200", "--places=3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(plain.stdout)
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines[1:]), lines
    assert re.search(r"200 of 6,000 characters, from 0$", result.stdout, re.M)
    assert lines[-4].split() == ["bits", "line", "text", "expected"]
    for line in lines[-3:]:
        assert re.match(r" *\d+\.\d  \d+:\d+ .*\[.*\].* '.*' [\d.]+ %", line), line


@pytest.mark.parametrize("name", ["odd", "byte"])
def test_a_page_has_every_character_and_escapes_it(shop: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "page.html"
    result = run(shop / name, shop / "odd.txt", "--html", file, "--length=50")
    assert result.exit_code == 0
    assert result.stderr == f"page in {file}, 50 of 1,980 characters, from 0\n"
    assert result.stdout == run(shop / name, shop / "odd.txt").stdout
    found = Reader(file.read_bytes())
    text = "naïve e\u0301 日本語 שלום <b>&amp;\"'\u21e5\u2407\u21b5\n😀\u21b5\n"
    assert found.text["pre"] == (text * 2)[: len(found.text["pre"])]
    assert len(found.text["pre"]) == 52  # 50 and the newlines behind two signs
    tips = {letter: tip for _, tip, letter in reversed(found.letters)}
    lm = api.load(shop / name, threads=1)
    level = lm.config.data.level
    measure = measured(lm, read_corpus([shop / "odd.txt"], level=level))
    at = {c: i for i, c in enumerate(measure.chars.text[:33])}
    assert tips["日"].startswith(f"'日' U+65E5  {measure.bits[at['日']]:.2f} bits (")
    assert " expected '" in tips["日"] or " expected byte" in tips["日"]
    assert tips["\u2407"].startswith("'\\x07'  ")
    assert tips["e\u0301"].count("\n") == 1  # a mark is pointed at with its letter
    assert list(tmp_path.iterdir()) == [file]
    first = file.read_bytes()
    run(shop / name, shop / "odd.txt", "--html", file, "--length=50")
    assert file.read_bytes() == first


def test_a_page_has_more_than_a_terminal(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    result = run(shop / "char", shop / "book.txt", "--html", file)
    assert result.stderr.splitlines()[-1] == f"page in {file}, all 6,000 characters"


def test_json_has_every_bit(shop: Path) -> None:
    arguments = [shop / "char", shop / "book.txt", "--json", "--exact"]
    result = run(*arguments, "--heatmap", "--length=100000", "--places=2")
    found = json.loads(result.stdout)
    plain = json.loads(run(*arguments).stdout)
    heat = found.pop("heatmap")
    assert found == plain and "losses" not in found
    assert (heat["offset"], heat["length"], heat["text"]) == (0, 6000, BOOK[:6000])
    assert heat["bits"][0] is None
    assert sum(heat["bits"][1:]) == pytest.approx(plain["bits_per_char"] * 5999, rel=1e-6)
    assert len(heat["places"]) == 2
    place = heat["places"][0]
    assert place["bits"] == max(heat["bits"][1:])
    assert place["character"] == BOOK[place["position"]]
    assert set(place["expected"][0]) == {"symbol", "probability"}


def test_a_text_of_two_characters_and_one_of_one(shop: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Th", encoding="utf-8")
    result = run(shop / "char", short, "--heatmap")
    assert result.exit_code == 0 and "; all 2 characters" in result.stdout
    short.write_text("T", encoding="utf-8")
    assert "nothing to score: the text has 1 characters" in error_of(
        shop / "char", short, "--heatmap"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--offset=1"], "--offset goes with --heatmap or --html"),
        (["--length=1"], "--length goes with --heatmap or --html"),
        (["--places=1"], "--places goes with --heatmap or --html"),
        (
            ["--heatmap", "--offset=6000"],
            "--offset is 6,000: the text has 6,000 characters, from 0",
        ),
        (["--html=page.txt"], "--html is 'page.txt': it must end in .html or .htm"),
        (["--html=no/page.html"], "there is no such folder"),
        (["--html=p.html", "--length=2000000"], "a page has 1,000,000 characters at the most"),
    ],
)
def test_refusals(
    shop: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        pytest.fail("what cannot be shown was measured")

    monkeypatch.setattr(api.LanguageModel, "evaluate", measured)
    assert message in error_of(shop / "char", shop / "book.txt", *arguments)
