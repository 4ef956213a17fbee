from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from charrnn.baselines import KneserNey, _discounts, ngram_bits_per_char, xz_bits_per_char
from charrnn.vocab import Vocabulary

TIMEMACHINE = Path(__file__).parents[1] / "data" / "timemachine.txt"


def next_probabilities(model, context, vocab_size):
    """(V,) by asking for each symbol in turn."""
    return np.exp([-model.losses(np.array([*context, w]))[-1] for w in range(vocab_size)])


def naive_kneser_ney(text, vocab_size, order):
    """The textbook's definition with dictionaries; returns p(symbol, context)."""
    counts = []
    for n in range(1, order + 1):
        occurrences, left = defaultdict(int), defaultdict(set)
        for i in range(len(text) - n + 1):
            gram = tuple(text[i : i + n])
            occurrences[gram] += 1
            if i:
                left[gram].add(text[i - 1])
        if n == order:
            counts.append(occurrences)
        else:
            counts.append({gram: len(before) for gram, before in left.items()})

    def discount(n, count):
        times = [list(counts[n - 1].values()).count(k) for k in range(5)]
        estimates = [0, 0.5, 1, 1.5]
        if times[1] and times[2] and times[3]:
            y = times[1] / (times[1] + 2 * times[2])
            good_turing = [k - (k + 1) * y * times[k + 1] / times[k] for k in (1, 2, 3)]
            if min(good_turing) > 0:
                estimates = [0, *good_turing]
        return estimates[min(count, 3)]

    def probability(symbol, context):
        context = tuple(context)[max(0, len(context) - order + 1) :]
        n = len(context) + 1
        lower = probability(symbol, context[1:]) if context else 1 / vocab_size
        grams = {v: counts[n - 1].get((*context, v), 0) for v in range(vocab_size)}
        total = sum(grams.values())
        if not total:
            return lower
        gamma = sum(discount(n, c) for c in grams.values()) / total
        return (grams[symbol] - discount(n, grams[symbol])) / total + gamma * lower

    return probability


def test_kneser_ney_by_hand():
    # abab with a bigram model over {a, b, c}. Too few counts: discounts 1/2, 1, 3/2.
    model = KneserNey(np.array([0, 1, 0, 1]), 3, order=2)
    single = np.array([5, 5, 2]) / 12  # a and b follow one character each: 1/4 + 1/2 * 1/3
    np.testing.assert_allclose(
        next_probabilities(model, [0], 3), [single[0] / 2, 1 / 2 + single[1] / 2, single[2] / 2]
    )
    np.testing.assert_allclose(
        next_probabilities(model, [1], 3), [1 / 2 + single[0] / 2, single[1] / 2, single[2] / 2]
    )
    np.testing.assert_allclose(next_probabilities(model, [2], 3), single)


def test_discounts_by_hand():
    np.testing.assert_allclose(_discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])), [0, 0.5, 1.25, 1])
    np.testing.assert_array_equal(_discounts(np.array([1, 1, 2])), [0, 0.5, 1, 1.5])
    # The estimate of D(2) would be 2 - 3 * 1/3 * 3 = -1.
    np.testing.assert_array_equal(_discounts(np.array([1, 2, 3, 3, 3])), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [3, 7, 500])
def test_kneser_ney_is_the_textbooks(order, length):
    rng = np.random.default_rng(length)
    training = np.minimum(rng.geometric(0.4, length), 5) - 1
    text = np.minimum(rng.geometric(0.3, 40), 7) - 1  # 5 and 6 are never trained
    model = KneserNey(training.astype(np.uint8), 7, order)
    naive = naive_kneser_ney(training.tolist(), 7, order)
    expected = [naive(text[i], text[:i].tolist()) for i in range(1, len(text))]
    np.testing.assert_allclose(np.exp(-model.losses(text.astype(np.uint8))), expected, rtol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5, 6, 300])
def test_probabilities_sum_to_1(length):
    rng = np.random.default_rng(2)
    model = KneserNey(rng.integers(0, 4, length), 5)
    for context in ([0], [4], [1, 2], [4, 0, 1], *rng.integers(0, 5, (60, 6)).tolist()):
        p = next_probabilities(model, context, 5)
        assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-12)


def test_large_vocabulary_does_not_overflow():
    ids = np.random.default_rng(3).integers(99_000, 100_000, 5000).astype(np.uint32)
    model = KneserNey(np.concatenate([ids, ids]), 100_000)
    losses = model.losses(ids)
    assert losses.shape == (4999,)
    assert losses[10:].mean() < 1.5 < 5 < model.losses(ids[::-1]).mean() < math.log(100_000)


def test_kneser_ney_reads_english():
    text = TIMEMACHINE.read_text(encoding="utf-8")
    vocabulary = Vocabulary.build(text)
    ids = vocabulary.encode(text)
    training, test = np.split(ids, [len(ids) * 9 // 10])
    bits = [ngram_bits_per_char(training, test, vocabulary.size, order) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    share = (np.bincount(training, minlength=vocabulary.size) + 1) / (
        len(training) + vocabulary.size
    )
    unigram = -np.log2(share[test]).mean()
    assert 1.5 < bits[-1] < 0.6 * unigram < unigram < math.log2(vocabulary.size)


def test_xz_counts_only_what_is_new():
    rng = np.random.default_rng(4)
    noise, other = rng.bytes(100_000), rng.bytes(20_000)
    assert xz_bits_per_char(noise, other) == pytest.approx(8, rel=0.01)
    assert xz_bits_per_char(noise, noise[:20_000]) < 0.5  # found again 100,000 bytes back
    assert xz_bits_per_char(b"", b"ab" * 5000) < 0.1


def test_xz_counts_characters_of_text_and_bytes_of_bytes():
    text = "".join(map(chr, np.random.default_rng(5).integers(0x4E00, 0x9FFF, 3000)))
    per_char, per_byte = xz_bits_per_char("", text), xz_bits_per_char(b"", text.encode())
    assert per_char == pytest.approx(3 * per_byte)
