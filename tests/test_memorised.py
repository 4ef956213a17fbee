"""Passages of a sample that stand in the training text."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from charrnn import api, memorised, runlog, runs, trainer
from charrnn.config import Config, ModelConfig
from charrnn.memorised import memorised_shares, share
from charrnn.model import Model
from charrnn.vocab import Vocabulary


def ids(text):
    return np.frombuffer(text.encode(), np.uint8)


def expected(pieces, text):
    """By looking each passage up as it is."""
    n = memorised.LENGTH
    found = [p[i : i + n] in text for p in pieces for i in range(len(p) - n + 1)]
    return sum(found) / len(found)


def random_text(seed, size, symbols="ab"):
    return "".join(np.random.default_rng(seed).choice(list(symbols), size))


@pytest.mark.parametrize("block", [7, 20, 100, 2**20])
def test_share_is_that_of_plain_search(monkeypatch, block):
    monkeypatch.setattr(memorised, "BLOCK", block)
    text = random_text(0, 3000)
    near = list(text[300:400])
    near[50] = "b" if near[50] == "a" else "a"
    pieces = [text[:30], text[-25:], "".join(near), random_text(1, 200), "ab"]
    wanted = expected(pieces, text)
    assert 0.2 < wanted < 0.8
    assert share([ids(p) for p in pieces], ids(text)) == wanted


def test_memory_does_not_grow_with_the_text(monkeypatch):
    """Nor does what is found again and again add up."""
    monkeypatch.setattr(memorised, "BLOCK", 2000)
    once, peaks = ids(random_text(0, 2000)), []
    for times in (10, 500):
        text = np.tile(once, times)
        tracemalloc.start()
        assert share([once], text) == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_the_order_of_symbols_counts():
    text = ids("abcdefghijklmnopqrstuvwxyz")
    assert share([text], text) == 1
    assert share([text[::-1]], text) == 0
    for i in range(26):
        other = text.copy()
        other[i] += 1
        assert share([other], text) < 1


def test_wide_ids():
    text = np.random.default_rng(0).integers(0, 100_000, 1000).astype(np.uint32)
    assert share([text[10:60]], text) == 1
    assert share([text[10:60] + 1], text) == 0


def test_too_short_to_say():
    assert share([], ids("a" * 100)) is None
    assert share([ids("a" * 19)], ids("a" * 100)) is None
    assert share([ids("a" * 20)], ids("a" * 19)) == 0


class Copier:
    """A model that writes the alphabet, from a row of its own on."""

    def __init__(self, size):
        self.size = size

    def stepper(self, batch, config, unknown):
        self.at = np.arange(batch)
        return self

    def feed(self, ids, remember=True):
        pass

    def draw(self, u):
        rows = self.at + np.arange(len(u))[:, None]
        self.at = self.at + len(u)
        return rows % self.size


LETTERS = "\nabcdefghijklmnopqrstuvwxyz"


def test_shares_of_a_model_that_copies():
    vocabulary = Vocabulary.build(LETTERS)
    train = vocabulary.encode(LETTERS * 20)
    val = vocabulary.encode(random_text(0, 500, LETTERS))
    shares = memorised_shares(Copier(27), vocabulary, train, val, 1)
    assert shares == {"sampled": 1.0, "held_out": 0.0}
    shares = memorised_shares(Copier(27), vocabulary, val, train, 1)
    assert shares == {"sampled": 0.0, "held_out": 0.0}


def test_bytes_that_are_no_utf8_are_found_too():
    """As a text in Latin-1 or KOI8-R has them."""
    letters = bytes([10, *range(0xC0, 0xDA)])
    vocabulary = Vocabulary.build(letters, "byte")
    train = vocabulary.encode(letters * 20)
    shares = memorised_shares(Copier(27), vocabulary, train, train[:0], 1)
    assert shares == {"sampled": 1.0, "held_out": 1.0}


def test_without_validation_the_end_is_looked_up_in_what_is_before():
    vocabulary = Vocabulary.build(LETTERS)
    none = vocabulary.encode("")
    train = vocabulary.encode(LETTERS * 20)
    shares = memorised_shares(Copier(27), vocabulary, train, none, 1)
    assert shares == {"sampled": 1.0, "held_out": 1.0}
    train = vocabulary.encode(random_text(0, 500, LETTERS))
    assert memorised_shares(Copier(27), vocabulary, train, none, 1) == {
        "sampled": 0.0,
        "held_out": 0.0,
    }
    assert memorised_shares(Copier(27), vocabulary, train[:30], none, 1) is None


def test_the_last_tenth_is_what_is_held_out():
    vocabulary = Vocabulary.build(LETTERS)
    none = vocabulary.encode("")
    new = vocabulary.encode(random_text(1, 100, LETTERS))
    train = np.concatenate([vocabulary.encode(random_text(0, 800, LETTERS)), new, new])
    assert memorised_shares(Copier(27), vocabulary, train, none, 1)["held_out"] == 1


def test_held_out_pieces_are_spread_over_the_text():
    vocabulary = Vocabulary.build(LETTERS)
    train = vocabulary.encode(random_text(0, 1000, LETTERS))
    other = vocabulary.encode(random_text(1, 500, LETTERS))
    val = np.concatenate([train[:500], other])
    assert 0.3 < memorised_shares(Copier(27), vocabulary, train, val, 1)["held_out"] < 0.7


def test_the_same_seed_is_the_same_share():
    text = random_text(0, 4000, "ab")
    vocabulary = Vocabulary.build(text)
    model = Model(ModelConfig(model="rnn", hidden_size=8), vocabulary.size, 1)
    model.initialize(1)
    train, val = np.split(vocabulary.encode(text), [3000])
    shares = [memorised_shares(model, vocabulary, train, val, seed) for seed in (1, 1, 2)]
    assert shares[0] == shares[1]
    assert 0 <= shares[0]["sampled"] < 0.2 and 0 <= shares[0]["held_out"] < 0.2


def test_a_model_that_cannot_be_sampled():
    text = random_text(0, 1000, "ab")
    vocabulary = Vocabulary.build(text)
    model = Model(ModelConfig(model="rnn", hidden_size=8), vocabulary.size, 1)
    model.params.flat[:] = np.nan
    model.changed()
    train, val = np.split(vocabulary.encode(text), [800])
    assert memorised_shares(model, vocabulary, train, val, 1) is None


# --- At the end of a run -------------------------------------------------------------------------


def trained(folder, text, **options):
    """A small run that is ready."""
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    small = dict(model="rnn", hidden_size=16, batch_size=2, seq_length=10, max_steps=20)
    config = Config.from_options(small | dict(eval_every=0, dropout=0.0) | options)
    return runs.start([str(path)], config, str(folder / "run"))


def end_of(run):
    *_, end = run.events()
    return end


def test_the_end_of_a_run_says_it(tmp_path):
    end = end_of(trained(tmp_path, random_text(0, 2000, "ab\n")))
    assert set(end["memorised"]) == {"sampled", "held_out"}
    *_, logged = runlog.read(tmp_path / "run" / "metrics.jsonl")
    assert logged["memorised"] == end["memorised"]


def test_it_is_of_the_best_model(tmp_path, monkeypatch):
    """Which is what ``charrnn sample`` takes; at a rate this high it is not the last."""
    asked = []

    def shares(model, vocabulary, train, val, seed, look):
        asked.append(model.params.flat.copy())

    monkeypatch.setattr(trainer, "memorised_shares", shares)
    text = random_text(0, 2000, "ab\n")
    run = trained(tmp_path, text, eval_every=1, learning_rate=0.5, lr_schedule="constant")
    end = end_of(run)
    assert end["memorised"] is None and end["best_step"] < end["step"]
    best = api.load(tmp_path / "run" / "best.safetensors").model.params.flat
    assert np.array_equal(asked[0], best) and not np.array_equal(asked[0], run.model.params.flat)


def test_an_interrupted_run_does_not_say(tmp_path):
    run = trained(tmp_path, random_text(0, 2000, "ab\n"))
    run.interrupt()
    end = end_of(run)
    assert (end["reason"], end["memorised"]) == ("interrupted", None)
