"""Turns: what the model goes on from, their random numbers, and the ways back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from charrnn import checkpoint
from charrnn import session as session_module
from charrnn.config import CELLS, ModelConfig, SampleConfig
from charrnn.errors import InputError
from charrnn.model import Model
from charrnn.sampling import sample
from charrnn.session import Session, fingerprint
from charrnn.stepper import PENALTY_REACH
from charrnn.vocab import Vocabulary

LETTERS = Vocabulary.build("\nabcdefgh")
BYTES = Vocabulary.build("aé€z".encode(), "byte")


def network(cell="lstm", vocabulary=LETTERS, seed=3, threads=1, **options):
    config = ModelConfig(model=cell, hidden_size=20, num_layers=2, **options)
    model = Model(config, vocabulary.size, threads)
    model.initialize(seed)
    model.params.views["head.Wy"][:] *= 8  # so that characters differ in their chances
    model.changed()
    return model


def session(model=None, length=40, seed=5, stop=(), vocabulary=LETTERS, **options):
    config = SampleConfig(length=length, **options)
    return Session(model or network(), vocabulary, config, seed=seed, stop=stop)


def turn(s):
    return "".join(piece.text for piece in s.go_on())


def surprise(model, vocabulary, text):
    """Bits of every character but the first, by one pass over the text."""
    ids = vocabulary.encode(text).reshape(-1, 1)
    nats, _ = model.losses(ids[:-1], ids[1:])
    return nats[:, 0] / np.log(2)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("prompt", ["", "abc" * 200])
def test_turn_i_is_sample_i(cell, prompt):
    s = session(network(cell), length=150, top_p=0.9, repetition_penalty=1.5)
    s.feed(prompt)
    start, got = s.moment(), []
    for _ in range(3):
        s.return_to(start)
        got.append(prompt + turn(s))
    config = replace(s.config, num_samples=3)
    assert got == sample(s.model, LETTERS, config, prompt=prompt, seed=5)


def test_a_turn_goes_on_from_all_that_was_there():
    s = session(repetition_penalty=2.0)
    s.feed("abc")
    text = "abc" + turn(s)
    s.feed("hag" * 30)
    text += "hag" * 30
    assert s.tail == text[-60:]
    fresh = session(repetition_penalty=2.0)
    fresh.turn = 1
    fresh.feed(text)
    assert turn(s) == turn(fresh)


@pytest.mark.parametrize("cell", CELLS)
def test_bits_are_the_model_s_own(cell):
    model = network(cell)
    s = session(model, length=130, temperature=0.3, top_k=3, repetition_penalty=1.4)
    s.feed("ab")
    pieces = list(s.go_on())
    text, bits = "".join(p.text for p in pieces), [b for p in pieces for b in p.bits]
    assert len(text) == len(bits) == 130
    np.testing.assert_allclose(bits, surprise(model, LETTERS, "ab" + text)[1:], rtol=1e-4)


def test_a_first_symbol_drawn_evenly_costs_the_bits_of_its_number():
    vocabulary = Vocabulary.build("aaabbbcccddde", min_count=2)
    assert vocabulary.unknown == 4
    s = session(network(vocabulary=vocabulary), vocabulary=vocabulary, length=3)
    first, *_ = s.go_on()
    assert len(first.text) == 1 and first.bits == [2.0]
    s = session(s.model, vocabulary=vocabulary, length=3)
    assert turn(s) == sample(s.model, vocabulary, s.config, seed=5)[0]


def test_a_long_turn_keeps_little(monkeypatch):
    kept = []
    monkeypatch.setattr(session_module, "MANY", 100)
    forget = session_module._Turn.forget
    monkeypatch.setattr(
        session_module._Turn, "forget", lambda self: kept.append(len(self.ids)) or forget(self)
    )
    s = session(length=2000)
    s.feed("a")
    text = turn(s)
    assert len(kept) > 5 and max(kept) < 300
    assert "a" + text == sample(s.model, LETTERS, s.config, prompt="a", seed=5)[0]


def test_what_was_not_taken_was_not_read():
    s = session(length=1000)
    s.feed("a")
    turns = s.go_on()
    text = "".join(next(turns).text for _ in range(5))
    turns.close()
    assert s.tail == "a" + text and 5 <= len(text) < 100
    fresh = session(length=1000)
    fresh.feed("a" + text)
    fresh.turn = 1
    assert turn(s) == turn(fresh)


@pytest.mark.parametrize("many", [session_module.MANY, 8])
@pytest.mark.parametrize("prompt", ["a", ""])
def test_a_stop_string_is_not_read(prompt, many, monkeypatch):
    monkeypatch.setattr(session_module, "MANY", many)
    s = session(length=400)
    s.feed(prompt)
    text = turn(s)
    stop = text[100:103]
    end = text.index(stop)
    s = session(length=400, stop=[stop])
    s.feed(prompt)
    assert turn(s) == text[:end] and s.tail == (prompt + text[:end])[-60:]
    fresh = session(length=400)
    if not prompt:
        fresh.feed("\n")
    fresh.feed(prompt + text[:end])
    s.stop, fresh.turn = (), 1
    assert turn(s) == turn(fresh)


def test_what_only_began_a_stop_string_is_read():
    s = session(length=30)
    s.feed("a")
    text = turn(s)
    s = session(length=30, stop=[text[-2:] + "impossible"])
    s.feed("a")
    pieces = list(s.go_on())
    assert "".join(p.text for p in pieces) == text
    assert [len(p.text) for p in pieces] == [len(p.bits) for p in pieces]
    fresh = session(length=30)
    fresh.feed("a" + text)
    fresh.turn = 1
    assert turn(s) == turn(fresh)


class Script:
    """A model, and its stepper, that draws the symbols of a text whatever it is fed."""

    def __init__(self, vocabulary, text):
        self.ids, self.at, self.fed = vocabulary.encode(text), None, []
        self.nats = np.full((64, 1), np.log(2))

    def stepper(self, batch, config, unknown, surprise):
        assert batch == 1 and surprise
        return self

    def set_rule(self, config):
        pass

    def feed(self, ids, remember=True):
        self.fed.append(ids[:, 0].tolist())
        self.at = self.at or 0

    def draw(self, u):
        self.at += len(u)
        return self.ids[self.at - len(u) : self.at, None]

    def place(self):
        return self.at

    def return_to(self, place):
        self.at = place


def test_bytes_are_drawn_until_a_character_is_complete():
    s = session(Script(BYTES, "aé€z€"), vocabulary=BYTES, length=1)
    s.feed("a")
    pieces = [list(s.go_on()) for _ in range(5)]
    assert ["".join(p.text for p in turn) for turn in pieces] == ["a", "é", "€", "z", "€"]
    assert [sum((p.bits for p in turn), []) for turn in pieces] == [[1], [2], [3], [1], [3]]


def test_bytes_that_are_no_text_are_shown_as_such():
    broken = session(Script(BYTES, b"\xe2\x82a\xe2\xe2\xe2\xe2"), vocabulary=BYTES, length=3)
    broken.feed("a")
    (first, second) = ([p for p in broken.go_on() if p.text] for _ in range(2))
    assert [p.text for p in first] == ["\ufffda"] and first[0].bits == [0, 3]
    assert "".join(p.text for p in second) == "\ufffd" * 4


def test_a_stop_string_of_bytes_is_not_read():
    script = Script(BYTES, "aé€z€")
    s = session(script, vocabulary=BYTES, length=20, stop=["€"])
    s.feed("z")
    assert turn(s) == "aé"
    assert script.fed == [BYTES.encode("z").tolist(), BYTES.encode("aé").tolist()]


def test_settings_change_on_the_fly():
    s = session(length=50)
    s.feed("a")
    start = s.moment()
    warm = turn(s)
    s.return_to(start)
    s.config, s.seed = replace(s.config, temperature=0.0, length=20), 5
    cold = turn(s)
    greedy = SampleConfig(length=20, temperature=0)
    assert (
        cold != warm[:20] and "a" + cold == sample(s.model, LETTERS, greedy, prompt="a", seed=5)[0]
    )
    s.return_to(start)
    s.config, s.seed = replace(s.config, temperature=0.8, length=50), 5
    assert turn(s) == warm


def test_undo_goes_back_mark_by_mark():
    s = session()
    with pytest.raises(InputError, match="nothing to undo"):
        s.undo()
    tails = []
    for text in ("ab", "cd", "ef"):
        tails.append(s.tail)
        s.mark()
        s.feed(text)
        turn(s)
    for tail in reversed(tails):
        s.undo()
        assert s.tail == tail
    with pytest.raises(InputError, match="nothing to undo"):
        s.undo()
    s.seed = 5
    s.feed("ab")
    assert "ab" + turn(s) == sample(s.model, LETTERS, s.config, prompt="ab", seed=5)[0]


@pytest.mark.parametrize("name", ["here", "file.safetensors"])
def test_what_is_saved_is_where_the_text_was(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = session(repetition_penalty=2.0)
    s.feed("abc" * 30)
    turn(s)
    tail = s.tail
    s.save(name)
    after = turn(s)
    s.reset()
    assert s.tail == ""
    s.load(name)
    s.turn = 1
    assert s.tail == tail and turn(s) == after
    if name.startswith("file"):
        s.save(name)  # one of its own kind may be replaced
        other = session(repetition_penalty=2.0)
        other.feed("h")
        other.load(name)
        assert other.tail == s.tail


def refused(s, name, part):
    """Loading is refused, and the session is where it was."""
    before = s.moment()
    with pytest.raises(InputError, match=part) as error:
        s.load(name)
    assert "\n" not in str(error.value)
    now = s.moment()
    assert now.tail == before.tail
    for mine, other in zip(now.place.state.values(), before.place.state.values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(now.place.recent, before.place.recent)
    np.testing.assert_array_equal(now.place.last, before.place.last)


def test_bad_files_are_refused(tmp_path):
    s = session()
    path = tmp_path / "s.safetensors"
    with pytest.raises(InputError, match="no text yet"):
        s.save(str(path))
    s.feed("abc")
    refused(s, "nowhere", "nowhere is not saved: there is nothing yet")
    refused(s, str(path), "no such file")
    s.save(str(path))
    whole = path.read_bytes()

    for model in (network(seed=4), network("gru"), network(threads=2)):
        other = session(model)
        other.feed("a")
        if fingerprint(model, LETTERS) == fingerprint(s.model, LETTERS):
            other.load(str(path))
        else:
            refused(other, str(path), "saved with another model")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(s, str(path), "damaged")
    for bad in (whole[:100], b"text", b""):
        path.write_bytes(bad)
        refused(s, str(path), "s.safetensors does not hold the state of a session")
    checkpoint.save(path, {"w": np.zeros(3)}, {"config": {}})
    content = path.read_bytes()
    refused(s, str(path), "does not hold the state of a session")
    with pytest.raises(InputError, match="save under another name"):
        s.save(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "changes",
    [
        {"last": np.array([9], np.int32)},  # no symbol: the kernel would read foreign memory
        {"last": np.array([-1], np.int32)},
        {"last": np.zeros(2, np.int32)},
        {"last": np.zeros(1, np.float32)},
        {"last": None},
        {"recent": np.full((1, PENALTY_REACH), 9, np.int32)},
        {"recent": np.full((1, 3), 0, np.int32)},
        {"state.h": np.zeros((2, 1, 21), np.float32)},
        {"state.c": None},
        {"state.x": np.zeros((2, 1, 20), np.float32)},
    ],
)
def test_files_whose_content_does_not_fit_are_refused(changes, tmp_path):
    s = session()
    s.feed("abc")
    path = tmp_path / "s.safetensors"
    s.save(str(path))
    source = checkpoint.load(path)
    tensors = {n: a for n, a in (source.tensors | changes).items() if a is not None}
    checkpoint.save(path, tensors, source.metadata)
    refused(s, str(path), "s.safetensors is damaged: ")


def test_a_damaged_model_leaves_the_session_where_it_was():
    s = session()
    s.feed("abc")
    s.model.params.views["head.by"][2] = np.nan
    with pytest.raises(InputError, match="no character a finite logit"):
        turn(s)
    assert s.tail == "abc"


def test_fingerprints_differ_where_models_do(tmp_path):
    models = [network(), network(seed=4), network("gru"), network("rnn")]
    models += [network("rnn", activation="relu"), network(residual=True)]
    prints = {fingerprint(model, LETTERS) for model in models}
    assert len(prints) == len(models)
    assert fingerprint(network(threads=3), LETTERS) == fingerprint(network(), LETTERS)
    assert fingerprint(network(), Vocabulary.build("\nabcdefgi")) not in prints


def test_length_0_lets_the_model_read_alone():
    s = session(length=0)
    assert turn(s) == "" and s.moment().place is None
    s.feed("abc")
    assert turn(s) == "" and s.tail == "abc"
