from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.errors import InputError
from charrnn.evaluate import WARMUP, evaluate, report


class Recorder:
    """Ids are positions in the text: checks what it is fed and prices each target by a table."""

    work_per_char = 1

    def __init__(self, prices, enough_context=0):
        self.prices = prices
        self.enough_context = enough_context
        self.batch_sizes = set()

    def losses(self, ids, targets, state=None):
        assert ids.dtype == targets.dtype == np.int32
        assert ids.flags.c_contiguous and targets.flags.c_contiguous
        assert (targets == ids + 1).all() and (np.diff(ids, axis=0) == 1).all()
        begin, after = (ids[0], ids[0]) if state is None else state
        assert (ids[0] == after).all(), "a window does not go on where the last one ended"
        self.batch_sizes.add(ids.shape[1])
        context = targets - begin
        cold = context < np.minimum(targets, self.enough_context)
        return np.where(cold, np.nan, self.prices[targets]), (begin, targets[-1])


@pytest.mark.parametrize(
    ("streams", "work", "window"),
    [(64, 64, 64), (32, 64, 128), (1, 256, 1024), (1, 10**6, 4), (1, 10**7, 1)],
)
def test_windows_of_small_models_are_long_and_of_large_ones_short(streams, work, window):
    class Measured(Recorder):
        work_per_char = work

        def losses(self, ids, targets, state=None):
            lengths.append(len(ids))
            return super().losses(ids, targets, state)

    lengths = []
    evaluate(Measured(np.ones(20_000)), np.arange(20_000), streams=streams)
    assert max(lengths) == window


@settings(deadline=None, max_examples=300)
@given(
    n=st.integers(2, 400),
    streams=st.integers(1, 40),
    window=st.integers(1, 70),
    warmup=st.integers(0, 150),
)
def test_every_target_counts_once(n, streams, window, warmup):
    prices = np.random.default_rng(n).integers(1, 2**40, n).astype(np.float64)
    ids = np.arange(n, dtype=np.uint32)
    seen = []
    nats, count = evaluate(
        Recorder(prices),
        ids,
        streams=streams,
        window=window,
        warmup=warmup,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (nats, count) == (prices[1:].sum(), n - 1)
    assert seen == sorted(seen) and seen[-1] == (n - 1, n - 1)


@pytest.mark.parametrize(
    ("n", "streams"), [(5000, 1), (20_011, 5), (127_000, 31), (200_000, 32), (400_000, 64)]
)
def test_counted_targets_have_the_warm_up_before_them(n, streams):
    model = Recorder(np.ones(n), enough_context=WARMUP)
    # A cold target is NaN; those that are computed but not counted must not leak in.
    assert evaluate(model, np.arange(n)) == (n - 1, n - 1)
    assert model.batch_sizes == {streams}


def test_one_stream_is_from_a_zero_state():
    n = 50_000
    model = Recorder(np.ones(n), enough_context=n)
    assert evaluate(model, np.arange(n), streams=1) == (n - 1, n - 1)
    assert model.batch_sizes == {1}


def test_sum_is_accumulated_in_float64():
    prices = np.ones(1001, np.float32)
    prices[1] = 2**30
    assert evaluate(Recorder(prices), np.arange(1001), window=4000)[0] == 2**30 + 999


@pytest.mark.parametrize("n", [0, 1])
def test_too_short_a_text_is_refused(n):
    with pytest.raises(InputError, match=f"the text has {n} characters .* at least 2 are needed"):
        evaluate(Recorder(np.ones(2)), np.arange(n))


def test_report_has_every_unit():
    assert report(6 * math.log(2), 3, 4) == {
        "nats_per_char": pytest.approx(2 * math.log(2)),
        "bits_per_char": pytest.approx(2),
        "bits_per_byte": pytest.approx(1.5),
        "perplexity": pytest.approx(4),
        "chars": 3,
    }


def test_perplexity_overflows_to_infinity():
    assert report(1e6, 1, 1)["perplexity"] == math.inf
