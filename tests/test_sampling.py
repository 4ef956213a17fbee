from __future__ import annotations

import math
from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import CELLS, ModelConfig, SampleConfig
from charrnn.errors import InputError
from charrnn.kernels import draw
from charrnn.model import Model
from charrnn.passes import Pass
from charrnn.sampling import generate, random_numbers, sample, unknown_note
from charrnn.stepper import MOST, PENALTY_REACH, Stepper, rule_of
from charrnn.vocab import Vocabulary

PLAIN = SampleConfig(temperature=1)
LETTERS = Vocabulary.build("\nabcdefgh")
BYTES = Vocabulary.build(bytes(range(256)), "byte")


class Fake:
    """A model without weights, and the slow twin of `charrnn.stepper`: a symbol at a time."""

    def stepper(self, batch, config, unknown):
        twin = Fake()
        twin.model, twin.batch, twin.config, twin.unknown = self, batch, config, unknown
        return twin

    def feed(self, ids, remember=True):
        assert ids.ndim == 2 and len(ids) and ids.shape[1] in (1, self.batch)
        self.pending = np.repeat(ids, self.batch // ids.shape[1], axis=1).astype(np.int32)
        self.history, self.state = self.pending if remember else self.pending[:0], None

    def draw(self, u):
        assert u.shape == (len(u), self.batch) and 1 <= len(u) <= MOST
        out = np.zeros(u.shape, np.int32)
        for ids, uniforms in zip(out, u, strict=True):
            logits, self.state = self.model.next_logits(self.pending, self.state)
            for b in range(self.batch):
                history = self.history[-PENALTY_REACH:, b]
                p = naive.probabilities(logits[b], history, self.config, self.unknown)
                ids[b] = np.argmax(np.cumsum(p) > uniforms[b] * p.sum())
            self.pending = ids[None]
            self.history = np.concatenate([self.history, self.pending])
        return out


class Script(Fake):
    """Gives each sample its own ids, one a step, whatever was drawn."""

    def __init__(self, vocabulary, *texts):
        self.size = vocabulary.size
        self.ids = np.array([vocabulary.encode(text) for text in texts], np.int64)

    def next_logits(self, ids, state=None):
        step = 0 if state is None else state
        assert ids.shape[1] == len(self.ids) and (step == 0 or len(ids) == 1)
        logits = np.full((len(self.ids), self.size), -1e4, np.float32)
        logits[np.arange(len(self.ids)), self.ids[:, step]] = 0
        return logits, step + 1


class Hash(Fake):
    """Logits depend on all ids so far, row by row; remembers what it was fed."""

    def __init__(self, size):
        self.table = np.random.default_rng(0).normal(size=(997, size)).astype(np.float32)
        self.fed = []

    def next_logits(self, ids, state=None):
        self.fed.append(ids)
        state = np.zeros(ids.shape[1], np.int64) if state is None else state
        for row in ids:
            state = (state * 31 + row + 1) % 997
        return self.table[state], state


def one(logits, config, history=(), unknown=None):
    """Probabilities (V,) of a single sample."""
    row, recent = np.array(logits, np.float32), np.array(history, np.int32)[-PENALTY_REACH:]
    p, order = np.zeros(row.size), np.zeros(row.size, np.int64)
    total = draw.distribution(p, row, recent, rule_of(config, unknown), order)
    if total == 0:
        raise InputError("no character has a finite logit")
    assert total == pytest.approx(p.sum(), rel=1e-12)
    return p / p.sum()


def pieces(text, config=None, stop=(), vocabulary=LETTERS, seed=0):
    config = config or SampleConfig(length=len(vocabulary.encode(text)))
    model = Script(vocabulary, text)
    return [step[0] for step in generate(model, vocabulary, config, seed=seed, stop=stop)]


def test_plain_probabilities_are_the_softmax():
    p = one([1, 2, 3], PLAIN)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())
    np.testing.assert_allclose(one([1, 2, 3], SampleConfig(temperature=0.5)), one([2, 4, 6], PLAIN))


@pytest.mark.parametrize("temperature", [5e-324, 1e-6, 1, 1e6])
def test_extreme_logits_and_temperatures(temperature):
    p = one([-3e38, 0, 80, 3e38], SampleConfig(temperature=temperature))
    assert p.argmax() == 3 and p.sum() == 1
    p = one([0, 1], SampleConfig(temperature=temperature))
    assert p[1] == pytest.approx(1 / (1 + math.exp(-min(1 / max(temperature, 1e-300), 700))))


def test_greedy_takes_the_lowest_of_the_likeliest():
    np.testing.assert_array_equal(one([1, 5, 5, 2], SampleConfig(temperature=0)), [0, 1, 0, 0])
    np.testing.assert_array_equal(one([1, 5, 5, 2], SampleConfig(top_k=1)), [0, 1, 0, 0])


@pytest.mark.parametrize("temperature", [0, 1e-6, 1, 1e6])
def test_unknown_symbol_has_no_chance(temperature):
    p = one([1, 9, 2], SampleConfig(temperature=temperature), unknown=1)
    assert p[1] == 0 and p.sum() == pytest.approx(1)


def test_top_k_keeps_k_even_among_equals():
    logits = np.random.default_rng(0).integers(0, 4, 300)
    likeliest = sorted(range(300), key=lambda i: (-logits[i], i))
    kept = np.flatnonzero(one(logits, replace(PLAIN, top_k=120)))
    assert kept.tolist() == sorted(likeliest[:120])
    for k in (0, 3, 50):
        np.testing.assert_array_equal(
            one([1, 2, 3], replace(PLAIN, top_k=k)), one([1, 2, 3], PLAIN)
        )


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    np.testing.assert_allclose(one([3, 3, 3, 3], replace(PLAIN, top_p=0.5)), [0.5, 0.5, 0, 0])
    logits = np.log([1, 5, 2, 2])  # of 10
    for top_p, kept in [(1e-9, "0100"), (0.49, "0100"), (0.6, "0110"), (0.8, "0111"), (1, "1111")]:
        assert "".join("01"[int(x > 0)] for x in one(logits, replace(PLAIN, top_p=top_p))) == kept


def test_min_p_is_a_share_of_the_likeliest():
    np.testing.assert_allclose(
        one(np.log([1, 8, 3, 4]), replace(PLAIN, min_p=0.4)), [0, 8 / 12, 0, 4 / 12]
    )
    np.testing.assert_array_equal(one([1, 8, 3], replace(PLAIN, min_p=1.0)), [0, 1, 0])


def test_each_filter_sees_what_the_one_before_has_left():
    logits = np.log([8, 4, 2, 2])
    # Of all, 0.5 reaches half at once; a penalty of 2 on id 0 makes it need a second symbol.
    half = replace(PLAIN, top_p=0.5)
    np.testing.assert_allclose(one(logits, half), [1, 0, 0, 0])
    np.testing.assert_allclose(
        one(logits, replace(half, repetition_penalty=2.0), [0]), [0.5, 0.5, 0, 0]
    )
    # 8 of 8 + 4 + 2 is more than 0.55, 8 of all 16 is not.
    np.testing.assert_allclose(one(logits, replace(PLAIN, top_k=3, top_p=0.55)), [1, 0, 0, 0])
    # Temperature comes first: at 2, shares are those of sqrt(8), 2, sqrt(2), sqrt(2).
    kept = one(logits, SampleConfig(temperature=2, min_p=0.6)) > 0
    np.testing.assert_array_equal(kept, [True, True, False, False])


def test_repetition_penalty_divides_odds_once_for_each_of_the_last_64():
    config = replace(PLAIN, repetition_penalty=3.0)
    p, plain = one([2, -1, 0.5], config, [1, 1, 1]), one([2, -1, 0.5], PLAIN)
    assert p[1] / (1 - p[1]) == pytest.approx(plain[1] / (1 - plain[1]) / 3)
    assert p[0] / p[2] == pytest.approx(plain[0] / plain[2])
    np.testing.assert_array_equal(one([2, -1, 0.5], config, []), plain)
    np.testing.assert_allclose(one([2, 2], config, [1] + [0] * 64), [1 / 4, 3 / 4])
    np.testing.assert_allclose(one([2, 2], config, [1] + [0] * 63), [1 / 2, 1 / 2])


def test_repetition_penalty_knows_the_prompt_and_what_was_drawn():
    symbols = "\n" + "".join(map(chr, range(100, 164)))
    vocabulary = Vocabulary.build(symbols)

    class Flat(Fake):
        def next_logits(self, ids, state=None):
            return np.zeros((ids.shape[1], 65)), None

    # Greedy takes the lowest symbol that is none of the last 64: the only one not among them.
    config = SampleConfig(temperature=0, repetition_penalty=2.0, length=130)
    assert sample(Flat(), vocabulary, config, seed=0) == [symbols * 2]
    config = replace(config, length=64)
    rest = symbols.replace(symbols[5], "")
    assert sample(Flat(), vocabulary, config, prompt=symbols[5], seed=0) == [symbols[5] + rest]


def test_logits_that_are_not_finite_are_refused():
    for logits in ([np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]):
        with pytest.raises(InputError, match="no character has a finite logit"):
            one(logits, PLAIN)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_probabilities_agree_with_the_slow_twin(data):
    size = data.draw(st.integers(1, 12))
    logits = data.draw(st.lists(st.sampled_from([-4, -1, 0, 0.5, 3]), min_size=size, max_size=size))
    history = data.draw(st.lists(st.integers(0, size - 1), max_size=70))
    unknown = data.draw(st.none() | st.integers(0, size - 1)) if size > 1 else None
    config = SampleConfig(
        temperature=data.draw(st.sampled_from([0, 0.3, 1, 40])),
        top_k=data.draw(st.integers(0, size + 1)),
        top_p=data.draw(st.sampled_from([0.01, 0.35, 0.8, 1])),
        min_p=data.draw(st.sampled_from([0, 0.05, 0.6, 1])),
        repetition_penalty=data.draw(st.sampled_from([1, 1.5, 30])),
    )
    got = one(logits, config, history, unknown)
    row = np.array(logits, np.float32)
    want = naive.probabilities(row, np.array(history[-64:], int), config, unknown)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-300)


def test_largest_seed_is_as_good_as_any():
    config = SampleConfig(length=20, num_samples=2)
    texts = [sample(Hash(LETTERS.size), LETTERS, config, seed=2**64 - k) for k in (1, 2)]
    assert len({*texts[0], *texts[1]}) == 4


def test_samples_and_seeds_share_no_numbers():
    firsts = {random_numbers(*each).random() for each in ((0, 0), (0, 1), (2**32, 0))}
    assert len(firsts) == 3


def test_symbols_of_probability_0_are_never_drawn():
    p = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    u = (0, 0.5, 1 - 2**-53)
    assert [draw.pick(row, x, 1.0) for row, x in zip(p, u, strict=True)] == [1, 2, 1]
    assert draw.pick(p[2], 1 - 2**-53, 1.0 + 1e-9) == 1  # a sum that came out too large


def test_draws_follow_the_probabilities():
    shares = np.array([0.5, 0.0, 0.3, 0.2, 0, 0, 0, 0, 0])

    class Fixed(Fake):
        def next_logits(self, ids, state=None):
            return np.tile(np.log(np.maximum(shares, 1e-300)), (ids.shape[1], 1)), None

    config = SampleConfig(temperature=1, length=200, num_samples=50)
    ids = LETTERS.encode("".join(sample(Fixed(), LETTERS, config, prompt="a", seed=1)), "skip")
    found = (np.bincount(ids, minlength=9) - 50 * np.eye(9)[1]) / 10_000
    np.testing.assert_allclose(found, shares, atol=0.02)


@pytest.mark.parametrize("filters", [{}, {"top_k": 4, "top_p": 0.9, "repetition_penalty": 1.3}])
def test_a_sample_is_the_same_alone_and_among_others(filters):
    config = SampleConfig(length=150, num_samples=8, **filters)
    model = Hash(LETTERS.size)
    eight = sample(model, LETTERS, config, seed=7)
    assert eight[:3] == sample(model, LETTERS, replace(config, num_samples=3), seed=7)
    assert eight[:1] == sample(model, LETTERS, replace(config, num_samples=1), seed=7)
    assert len(set(eight)) == 8
    assert set(eight).isdisjoint(sample(model, LETTERS, config, seed=8))
    # A longer sample begins with the shorter one.
    longer = sample(model, LETTERS, replace(config, length=200), seed=7)
    assert [text[:150] for text in longer] == eight


@pytest.mark.parametrize("length", [0, 1, 2, 300])
def test_prompt_then_exactly_length_new_characters(length):
    config = SampleConfig(length=length, num_samples=3)
    for text in sample(Hash(LETTERS.size), LETTERS, config, prompt="abba", seed=0):
        assert text.startswith("abba") and len(text) == 4 + length


def test_samples_stream_before_the_model_is_asked_again():
    model = Hash(LETTERS.size)
    steps = generate(model, LETTERS, SampleConfig(length=5), prompt="a", seed=0)
    next(steps)
    assert len(model.fed) == 1
    list(steps)
    assert len(model.fed) == 5  # the last character asks for nothing


@pytest.mark.parametrize("prompt", ["", "é€"])
def test_without_a_prompt_samples_begin_as_if_after_a_newline(prompt):
    model = Hash(LETTERS.size)
    assert len(sample(model, LETTERS, SampleConfig(length=3), prompt=prompt, seed=0)[0]) == 3 + len(
        prompt
    )
    assert model.fed[0].tolist() == [[LETTERS.encode("\n")[0]]]


def test_without_a_newline_the_first_symbol_is_uniform():
    vocabulary = Vocabulary.build("aaabbbcccz", min_count=2)
    config = SampleConfig(length=2, num_samples=3000, temperature=0)
    texts = sample(Hash(vocabulary.size), vocabulary, config, seed=0)
    assert {len(text) for text in texts} == {2}
    firsts = "".join(text[0] for text in texts)
    for symbol in "abc":
        assert firsts.count(symbol) / 3000 == pytest.approx(1 / 3, abs=0.05)


def test_stop_string_is_left_out_across_steps():
    assert pieces("abcabdef", stop=["abd"]) == ["", "", "abc", "", "", ""]
    assert pieces("abcabdef", stop="abd") == ["", "", "abc", "", "", ""]
    assert pieces("aab", stop=["ab"]) == ["", "a", ""]
    assert pieces("abc", stop=["a"]) == [""]


def test_what_only_began_a_stop_string_comes_at_the_end():
    assert pieces("cdab", stop=["abh"]) == ["c", "d", "", "ab"]


def test_a_stopped_sample_waits_for_the_others():
    model = Script(LETTERS, "abcd", "aaaa", "cdef")
    config = SampleConfig(length=4, num_samples=3)
    steps = list(generate(model, LETTERS, config, seed=0, stop=["b", "e"]))
    assert steps == [["a", "a", "c"], ["", "a", "d"], ["", "a", ""], ["", "a", ""]]


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("abc", min_size=1, max_size=14),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_agree_with_a_search_in_the_whole_text(text, stop):
    released = ""
    steps = pieces(text, stop=stop)
    for end, piece in enumerate(steps, 1):
        released += piece
        so_far = text[:end]
        found = [s for s in stop if so_far.endswith(s)]
        if found:
            assert released == so_far[: -max(map(len, found))] and end == len(steps)
            return
        if end < len(text):  # held is exactly the longest end that a stop string begins with
            held = so_far[len(released) :]
            assert released + held == so_far
            starts = [n for n in range(end + 1) if any(s.startswith(so_far[n:]) for s in stop)]
            assert len(released) == starts[0]
    assert released == text


def test_bytes_stream_as_whole_characters():
    text = "aé€😀z"
    steps = pieces(text, vocabulary=BYTES)
    assert steps == ["a", "", "é", "", "", "€", "", "", "", "😀", "z"]
    assert pieces(text, stop=["€"], vocabulary=BYTES) == ["a", "", "é", "", "", ""]


def test_bytes_count_as_symbols_and_a_broken_end_is_shown():
    steps = pieces(b"a\xe2\x82", SampleConfig(length=3), vocabulary=BYTES)
    assert steps == ["a", "", "\ufffd"]
    prompted = sample(
        Script(BYTES, b"ab"), BYTES, SampleConfig(length=2), prompt=b"\xc3\xa9", seed=0
    )
    assert prompted == ["éab"]


def test_unknown_prompt_characters_are_skipped_mapped_or_refused():
    vocabulary = Vocabulary.build("aabbccx", min_count=2)
    assert vocabulary.unknown == 3
    for on_unknown, fed in [("skip", [0, 1]), ("map", [0, 3, 3, 1])]:
        model = Hash(vocabulary.size)
        config = SampleConfig(length=1)
        text = sample(model, vocabulary, config, prompt="aéüb", seed=0, on_unknown=on_unknown)
        assert text[0].startswith("aéüb") and model.fed[0][:, 0].tolist() == fed
    with pytest.raises(InputError, match="'é'"):  # before the first step
        generate(model, vocabulary, config, prompt="aé", seed=0, on_unknown="error")


def test_unknown_note_names_the_characters():
    note = unknown_note(LETTERS, "aéüéb", "skip")
    assert note == "prompt characters unknown to the model skipped: 'é' (2 times), 'ü' (once)"
    assert "mapped to the unknown symbol: 'é'" in unknown_note(LETTERS, "é", "map")
    assert unknown_note(LETTERS, "abba", "skip") is None
    assert unknown_note(LETTERS, "é", "error") is None  # `generate` names it


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stop": ["a", ""]}, "--stop is empty"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**64}, "--seed is 18446744073709551616"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_step(wrong, message):
    with pytest.raises(InputError, match=message):
        generate(Hash(LETTERS.size), LETTERS, SampleConfig(), **{"seed": 0, **wrong})


# --- The compiled steps, against the slow twin on the same network -----------------------------


class Slow(Fake):
    """A real network, one window at a time."""

    def __init__(self, model):
        self.network = model

    def next_logits(self, ids, state=None):
        arrays, state = self.network.forward(ids, state)
        return arrays["logits"][-1], state


def network(cell="lstm", threads=1, **options):
    config = ModelConfig(model=cell, hidden_size=20, num_layers=2, dropout=0.4, **options)
    model = Model(config, LETTERS.size, threads)
    model.initialize(3)
    model.params.views["head.Wy"][:] *= 8  # so that characters differ in their chances
    model.changed()
    return model


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("more", [{}, {"top_k": 4, "top_p": 0.8, "repetition_penalty": 1.7}])
def test_compiled_steps_draw_what_the_slow_twin_draws(cell, more):
    model = network(cell, embedding_size=5 * (cell == "gru"))
    config = SampleConfig(length=150, num_samples=3, **more)
    arguments = (LETTERS, config)
    for prompt in ("", "abc" * 300):
        fast = sample(model, *arguments, prompt=prompt, seed=5)
        assert fast == sample(Slow(model), *arguments, prompt=prompt, seed=5)
        assert len(set(fast)) == 3


@pytest.mark.parametrize("by_units", (False, True))
@pytest.mark.parametrize("samples", (1, 7))
def test_threads_draw_the_same(samples, by_units, monkeypatch):
    monkeypatch.setattr(Pass, "_by_units", lambda self, B: by_units and self.parts > 1)
    config = SampleConfig(length=90, num_samples=samples)
    texts = [sample(network(threads=n), LETTERS, config, prompt="a", seed=1) for n in (1, 2, 3)]
    assert texts[0] == texts[1] == texts[2]


def test_two_generators_of_one_model_do_not_meet():
    model, config = network(), SampleConfig(length=60)
    alone = [sample(model, LETTERS, config, seed=n) for n in (1, 2)]
    together = zip(*(generate(model, LETTERS, config, seed=n) for n in (1, 2)), strict=True)
    assert [["".join(p[0] for p in text)] for text in zip(*together, strict=True)] == alone


def test_a_model_that_changed_draws_anew():
    model, config = network(), SampleConfig(length=60)
    before = sample(model, LETTERS, config, seed=1)
    model.params.flat *= -1
    model.changed()
    assert sample(model, LETTERS, config, seed=1) != before


def test_steps_of_a_damaged_model_are_refused():
    model = network()
    model.params.views["head.by"][2] = np.nan
    model.changed()
    with pytest.raises(InputError, match="no character a finite logit"):
        sample(model, LETTERS, SampleConfig(length=5), seed=1)


def test_a_call_draws_no_more_than_there_is_room_for():
    stepper = Stepper(network(), 3, SampleConfig())
    stepper.feed(np.zeros((200, 1), np.int64))
    assert (stepper.draw(np.zeros((MOST, 3))) >= 0).all()
    with pytest.raises(ValueError):
        stepper.draw(np.zeros((MOST + 1, 3)))
