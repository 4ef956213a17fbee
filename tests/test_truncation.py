"""The four plans: what they read, and that their gradients are sums of just the terms they claim.

The gradients are those that the trainer computes, summed over an epoch with the weights held fixed,
against `naive.components` times the plan's matrix of weights.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import naive
import networks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import KINDS, NETWORKS
from support import assert_close, same_bits

from charrnn import passes, recompute
from charrnn.config import Config, DataConfig
from charrnn.data import Streams
from charrnn.errors import InputError
from charrnn.learner import Learner
from charrnn.model import Model
from charrnn.recompute import Recomputed, segment_length, train_pass
from charrnn.sliding import Sliding
from charrnn.trainer import Run, Text
from charrnn.truncation import Documents, Piece, Plan, Randomized, Windows, plan
from charrnn.vocab import Vocabulary

B, N = 2, 23  # streams, and their length
V = 5
IDS = np.random.default_rng(5).integers(V, size=B * N + 1).astype(np.uint8)
SYMBOLS = "abcde"

each_kind = pytest.mark.parametrize(("cell", "activation"), KINDS)


def run_of(cell: str = "rnn", activation: str = "tanh", **options: Any) -> Run:
    """A float64 run over the text with random weights, of which no bias is zero."""
    network = dict(hidden_size=6, dropout=0.0, dtype="float64", batch_size=B, threads=1)
    config = Config.from_options(network | dict(model=cell, activation=activation) | options)
    vocabulary = Vocabulary.build(SYMBOLS, "char", 1)
    steps, _ = plan(config.data, IDS, (0,), config.train.seed)
    empty = IDS[:0]
    run = Run(Path(), config, Text(vocabulary, IDS, empty, empty, steps, {}, []))
    rng = np.random.default_rng(1)
    for view in run.model.params.views.values():
        view[...] = rng.normal(scale=0.5, size=view.shape)
    run.model.changed()
    return run


def epoch_gradient(run: Run) -> naive.Arrays:
    """The gradient of an epoch's summed losses, as the trainer's steps see it."""
    total = {name: np.zeros(a.shape) for name, a in run.model.grads.views.items()}
    for step in range(run.plan.steps(1)):
        piece = run.plan.piece(step)
        run.learner.gradients(piece, run.learner.window_of(piece), step)
        count = piece.scored / piece.weight
        for name, a in run.model.grads.views.items():
            total[name] += a * count
    return total


def terms_of(run: Run) -> Any:
    """`naive.components` of the streams, from a zero state."""
    c = run.config.model
    ids, targets = Streams(IDS, B).part(0, N)
    states = naive.zero_states(c.model, c.num_layers, B, c.hidden_size)
    return naive.components(
        run.model.params.views, ids, targets, states,
        cell=c.model, activation=c.activation, residual=c.residual,
    )  # fmt: skip


def assert_sums(run: Run, weights: np.ndarray) -> None:
    want = naive.weighted_sum(terms_of(run), weights)
    assert_close(epoch_gradient(run), {k: v for k, v in want.items() if k != "input"}, 1e-11)


DEEP: dict[str, Any] = dict(num_layers=2, embedding_size=6, residual=True)


# --- the terms of each plan ---------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("choice", ["never", "always"])
def test_full_has_all_terms(cell: str, activation: str, choice: str) -> None:
    run = run_of(cell, activation, bptt="full", recompute=choice, **DEEP)
    assert run.plan.steps(1) == 1
    assert_sums(run, naive.full_weights(N))


@each_kind
@pytest.mark.parametrize("length", [1, 7, 22])
def test_truncated_has_those_of_a_window(cell: str, activation: str, length: int) -> None:
    run = run_of(cell, activation, seq_length=length, **DEEP)
    assert_sums(run, naive.truncated_weights(N, length))


@each_kind
@pytest.mark.parametrize(
    ("length", "k1", "k2"), [(6, 1, 1), (6, 1, 10), (8, 2, 4), (6, 3, 14), (6, 6, 6), (5, 4, 7)]
)
def test_sliding_looks_back(cell: str, activation: str, length: int, k1: int, k2: int) -> None:
    """Also over several windows, and where k1 divides neither the window nor the text."""
    run = run_of(cell, activation, bptt="sliding", seq_length=length, k1=k1, k2=k2, **DEEP)
    weights = np.zeros((N, N))
    for t0 in range(0, N, length):  # groups begin anew with every window
        for start in range(t0, min(t0 + length, N), k1):
            end = min(start + k1, t0 + length, N)
            weights[start:end, max(start + k1 - k2, 0) : end] = 1
    weights *= np.tri(N)
    if length % k1 == 0:
        np.testing.assert_array_equal(weights, naive.sliding_weights(N, k1, k2))
    assert_sums(run, weights)


@each_kind
@pytest.mark.parametrize("prob", [None, "0.2", "3:0.4", "1", "4:1", "0"])
@pytest.mark.parametrize("choice", ["never", "always"])
def test_randomized_weighs_what_it_keeps(
    cell: str, activation: str, prob: str | None, choice: str
) -> None:
    options = dict(truncation_prob=prob, seq_length=8, recompute=choice)
    run = run_of(cell, activation, bptt="randomized", **options, **DEEP)
    assert isinstance(run.plan, Randomized)
    assert_sums(run, naive.weighted_links(ways_of(run.plan)))


def ways_of(plan: Randomized, epoch: int = 0) -> np.ndarray:
    """Factor of every link of an epoch: 0 at the windows' ends, 1 or 1/p within."""
    ways = np.zeros(plan.streams.length)
    bounds = plan.bounds(epoch)
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        for t in range(begin, end - 1):
            spared = t - begin + 1 < plan.spared
            ways[t] = 1 if spared else 1 / (1 - plan.probability)
    return ways


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_randomized_is_full_in_the_mean(seed: int) -> None:
    """Truncation to the same mean length stays far from it, by every measure."""
    run = run_of("rnn", hidden_size=6)
    terms = terms_of(run)
    full = _flat(naive.weighted_sum(terms, naive.full_weights(N)))
    truncated = _flat(naive.weighted_sum(terms, naive.truncated_weights(N, 4)))
    flat = np.array([[_flat(term) for term in row] + [0 * full] * (N - len(row)) for row in terms])
    draws = 4000
    mean_weights, gradients = np.zeros((N, N)), np.empty((draws, full.size))
    for i in range(draws):
        drawn = Randomized(Streams(IDS, B), 2, 1 / 3, seed * draws + i)
        weights = naive.weighted_links(ways_of(drawn))
        mean_weights += weights / draws
        gradients[i] = np.tensordot(weights, flat, 2)
    error = np.abs(gradients.mean(axis=0) - full) / (gradients.std(axis=0) / draws**0.5 + 1e-12)
    bias = np.abs(truncated - full) / (gradients.std(axis=0) / draws**0.5 + 1e-12)
    assert error.max() < 5 and np.median(error) < 1.2  # standard errors: 0.67 is to be expected
    assert np.median(bias) > 5
    near = np.abs(mean_weights - naive.full_weights(N))
    lag = np.subtract.outer(np.arange(N), np.arange(N))
    assert near[lag <= 3].max() < 0.1
    distance = np.linalg.norm(gradients.mean(axis=0) - full)
    assert distance < np.linalg.norm(truncated - full) / 4


def _flat(arrays: naive.Arrays) -> np.ndarray:
    return np.concatenate([a.reshape(-1) for name, a in sorted(arrays.items()) if name != "input"])


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("network", NETWORKS)
@each_kind
@pytest.mark.parametrize(("T", "B"), [(1000, 3), (300, 50)])
def test_recomputed_has_the_bits_of_one_pass(
    cell: str, activation: str, network: str, dtype: str, T: int, B: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(recompute, "ROWS", 256)
    monkeypatch.setattr(passes, "are_halved", lambda weights, rows: rows > 3)
    model = networks.make(cell, activation, dtype, threads=2, **NETWORKS[network])
    model.params.flat *= 0.4  # relu and identity would overflow
    data = networks.window(model, T, B)
    whole = model.train_pass(T, B, model.config.dropout)
    parts = train_pass(model, T, B, model.config.dropout, "always")
    assert isinstance(parts, Recomputed) and len(parts.bounds) > 1
    want = networks.fill_and_run(whole, data), networks.weight_gradients(whole), whole.state()
    got = networks.fill_and_run(parts, data), networks.weight_gradients(whole), parts.state()
    assert np.isfinite(want[0]) and got[0] == want[0]
    assert same_bits(parts.losses, whole.losses)
    for mine, theirs in zip(got[1:], want[1:], strict=True):
        assert all(same_bits(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("T", [259, 7])
def test_a_short_last_segment_is_summed_as_the_others(
    T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix unit makes gradients of many rows, and those of the whole window count."""
    monkeypatch.setattr(recompute, "ROWS", 256)
    B, model = 8, networks.make("gru", dtype="float32", hidden_size=100)
    model.params.flat *= 0.1
    whole, parts = model.train_pass(259, B), train_pass(model, 259, B, 0.0, "always")
    data = networks.window(model, T, B)
    want, got = (
        (networks.fill_and_run(run.of_length(T), data), networks.weight_gradients(whole))
        for run in (whole, parts)
    )
    assert got[0] == want[0]
    assert all(same_bits(got[1][name], want[1][name]) for name in want[1])


@pytest.mark.parametrize("network", NETWORKS)
@each_kind
def test_sliding_as_far_as_its_window_is_truncated(
    cell: str, activation: str, network: str
) -> None:
    model = networks.make(cell, activation, "float32", threads=2, **NETWORKS[network])
    data = networks.window(model, T=9)
    whole = model.train_pass(9, networks.B, model.config.dropout)
    sliding = Sliding(model, 9, networks.B, model.config.dropout, 9, 9)
    want = networks.fill_and_run(whole, data), networks.weight_gradients(whole)
    got = networks.fill_and_run(sliding, data), networks.weight_gradients(whole)
    assert got[0] == want[0]
    assert all(same_bits(got[1][name], want[1][name]) for name in want[1])


@each_kind
def test_sliding_drops_on_the_way_back_what_it_dropped_on_the_way_there(
    cell: str, activation: str
) -> None:
    model = networks.make(cell, activation, num_layers=2, dropout=0.4)
    model.params.flat *= 0.4  # relu and identity would overflow
    data = networks.window(model, T=9)
    whole = model.train_pass(9, networks.B, 0.4)
    sliding = Sliding(model, 9, networks.B, 0.4, 2, 11)
    want = networks.fill_and_run(whole, data), networks.weight_gradients(whole)
    got = networks.fill_and_run(sliding, data), networks.weight_gradients(whole)
    assert got[0] == want[0]
    assert_close(got[1], want[1], 1e-11)


@pytest.mark.parametrize("bptt", ["full", "sliding", "randomized"])
def test_threads_do_not_show(bptt: str) -> None:
    results = []
    for threads in (1, 2, 3, 7):
        more = {"sliding": dict(k1=2, k2=7), "full": dict(recompute="always")}.get(bptt, {})
        options = dict(bptt=bptt, seq_length=9, threads=threads, num_layers=2, dropout=0.3)
        results.append(epoch_gradient(run_of("gru", dtype="float32", **options, **more)))
    for other in results[1:]:
        assert all(same_bits(other[name], results[0][name]) for name in other)


def weights_after(epochs: int, **options: Any) -> np.ndarray:
    run = run_of("lstm", num_layers=2, dropout=0.3, dtype="float32", epochs=epochs, **options)
    for step in range(run.total_steps):
        piece = run.plan.piece(step)
        _, clipping = run.learner.gradients(piece, run.learner.window_of(piece), step)
        run.learner.update(0.1, step + 1, clipping)
    return run.model.params.flat.copy()


def test_runs_of_plans_that_are_the_same() -> None:
    """Two epochs, each with a shorter last window, while weights change and state is carried."""
    truncated = weights_after(2, seq_length=6)
    assert same_bits(weights_after(2, seq_length=6, recompute="always"), truncated)
    assert same_bits(weights_after(2, seq_length=6, bptt="sliding", k1=6, k2=6), truncated)
    assert not same_bits(weights_after(2, seq_length=6, bptt="sliding", k1=6, k2=7), truncated)
    full = weights_after(2, bptt="full")
    assert same_bits(weights_after(2, bptt="full", recompute="always"), full)
    one = weights_after(2, bptt="randomized", truncation_prob="0")
    assert same_bits(one, full)
    assert not same_bits(one, truncated)


def test_looking_back_beyond_the_text_costs_nothing() -> None:
    """Nor does it change a bit."""
    for k1 in (1, 3, N + 2):
        options: dict[str, Any] = dict(bptt="sliding", seq_length=6, k1=k1)
        near, far = (weights_after(2, k2=k2, **options) for k2 in (N + k1, 10**9))
        assert same_bits(far, near)


def test_random_lengths_need_no_more_and_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest passes are made anew; what they compute stays the same."""
    options: dict[str, Any] = dict(bptt="randomized", seq_length=4)
    kept = weights_after(4, **options)
    monkeypatch.setattr(passes, "KEPT", 2)
    assert same_bits(weights_after(4, **options), kept)
    monkeypatch.setattr(passes, "KEPT_STEPS", 0)
    assert same_bits(weights_after(4, **options), kept)
    window = run_of(**options).learner.window
    third = [window.of_length(T) for T in (1, 2, 3)][-1]
    assert [T for T, *_ in window.shorter] == [2, 3] and window.of_length(3) is third
    monkeypatch.setattr(passes, "KEPT_STEPS", 6)
    assert window.of_length(1) is not window.of_length(4)
    assert [T for T, *_ in window.shorter] == [2, 3, 1, 4]


# --- against automatic differentiation --------------------------------------------------------

Stretch = tuple[int, int, int, list[float]]
"""Begin of the way back, first loss, end, and the factor of every step's link to the next."""


def stretches(run: Run) -> list[Stretch]:
    """What each plan computes, as its definition has it."""
    data = run.config.data
    if isinstance(run.plan, Randomized):
        bounds, ways = run.plan.bounds(0).tolist(), ways_of(run.plan).tolist()
        return [(t0, t0, t1, ways[t0:t1]) for t0, t1 in zip(bounds[:-1], bounds[1:], strict=True)]
    if data.bptt == "sliding":
        k1, k2 = data.look_back
        starts = range(0, N, k1)
        return [(max(0, t0 + k1 - k2), t0, min(t0 + k1, N), [1.0] * N) for t0 in starts]
    T = data.seq_length or N
    return [(t0, t0, min(t0 + T, N), [1.0] * N) for t0 in range(0, N, T)]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    "options",
    [
        dict(bptt="full"),
        dict(bptt="full", recompute="always"),
        dict(seq_length=7),
        dict(bptt="sliding", seq_length=8, k1=2, k2=11),
        dict(bptt="sliding", seq_length=5, k1=1, k2=4),
        dict(bptt="randomized", seq_length=6),
        dict(bptt="randomized", truncation_prob="2:0.3", seed=9),
    ],
    ids=str,
)
def test_plans_against_autograd(cell: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    run = run_of(cell, **options)
    model = run.model
    total = epoch_gradient(run)
    for name, view in model.grads.views.items():
        view[:] = total[name]
    got = model.to_torch(model.grads, gradients=True)

    weights = {n: torch.tensor(a.copy()) for n, a in model.to_torch(model.params).items()}
    H = model.config.hidden_size
    one = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](V, H).double()
    head = torch.nn.Linear(H, V).double()
    one.load_state_dict({n[4:]: a for n, a in weights.items() if n.startswith("rnn.")})
    head.load_state_dict({n[5:]: a for n, a in weights.items() if n.startswith("head.")})
    ids, targets = (torch.tensor(a).long() for a in Streams(IDS, B).part(0, N))
    x = torch.nn.functional.one_hot(ids, V).double()
    states = 2 if cell == "lstm" else 1
    for begin, first, end, ways in stretches(run):
        state = [torch.zeros(1, B, H, dtype=torch.float64)] * states
        loss = torch.zeros((), dtype=torch.float64)
        for t in range(end):
            out, after = one(x[t : t + 1], tuple(state) if states == 2 else state[0])
            if t >= first:
                loss += torch.nn.functional.cross_entropy(head(out[0]), targets[t], reduction="sum")
            way = ways[t - begin] if t >= begin else 0.0
            after = list(after) if states == 2 else [after]
            state = [way * s + (1 - way) * s.detach() for s in after]
        loss.backward()
    want = {f"rnn.{n}": a.grad.numpy() for n, a in one.named_parameters()}
    want |= {f"head.{n}": a.grad.numpy() for n, a in head.named_parameters()}
    assert_close(got, want, 1e-11)


# --- memory -------------------------------------------------------------------------------------


def test_a_long_window_needs_less_than_a_short_one() -> None:
    """20,000 steps that are recomputed against 1,000 that are not, at lstm 1x256, B 8."""
    config = Config.from_options(dict(model="lstm", hidden_size=256, dropout=0.0)).model

    def peak(T: int, choice: str) -> int:
        model = Model(config, 65)
        model.train_pass(8, 8)  # weights and gradients, which both need
        tracemalloc.start()
        run = train_pass(model, T, 8, 0.0, choice)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(run.ids) == T
        return used

    assert peak(20_000, "auto") < peak(1000, "auto")
    assert peak(1000, "auto") == pytest.approx(peak(1000, "never"), rel=0.01)


@pytest.mark.parametrize("B", [1, 2, 3, 7, 8, 32, 50, 256, 333])
def test_segments_are_whole_blocks_of_rows(B: int) -> None:
    for T in (1, 5, 1000, 20_000, 1_000_000):
        S = segment_length(T, B)
        least = max(T**0.5, 6144 / B)
        assert S == T or (S * B % 512 == 0 and least <= S < least + 513)


# --- what is read -------------------------------------------------------------------------------


def read(steps: Plan, epochs: int = 1) -> list[Piece]:
    return [steps.piece(step) for step in range(steps.steps(epochs))]


PLANS = [
    dict(bptt="truncated"),
    dict(bptt="full"),
    dict(bptt="full", seq_length=None),
    dict(bptt="sliding", k1=1, k2=1),
    dict(bptt="sliding", k1=2, k2=9),
    dict(bptt="randomized"),
    dict(bptt="randomized", truncation_prob="0.3"),
]


@given(
    st.integers(2, 200), st.integers(1, 9), st.integers(1, 40), st.sampled_from(PLANS),
    st.integers(0, 5),
)  # fmt: skip
def test_an_epoch_reads_each_stream_once(
    n: int, batch: int, length: int, options: dict[str, Any], seed: int
) -> None:
    data = DataConfig(**(dict(batch_size=batch, seq_length=length) | options))
    steps, _ = plan(data, np.arange(n, dtype=np.uint16), (0,), seed)
    rows, per_stream = steps.batch_size, (n - 1) // steps.batch_size
    for epoch in (0, 1):
        first, last = steps.steps(epoch), steps.steps(epoch + 1)
        place = 0  # where the state stands that the step before has left
        targets, chars = [], steps.chars(first)
        assert chars == epoch * per_stream * rows and steps.epochs(first) == epoch
        for step in range(first, last):
            assert steps.position(step) == (epoch, step - first)
            piece = steps.piece(step)
            assert piece.ids.dtype == piece.targets.dtype == np.int32
            assert piece.carried == (data.bptt != "full" and place > 0)
            assert data.bptt == "full" or piece.ids[0, 0] == place
            new = len(piece.targets)
            assert np.array_equal(piece.targets, piece.ids[-new:] + 1)
            assert piece.scored == piece.targets.size
            targets.append(piece.targets)
            place += piece.shift
            chars += piece.scored
            assert steps.chars(step + 1) == chars
        together = np.concatenate(targets)
        for b in range(rows):
            begin = b * per_stream + 1
            assert together[:, b].tolist() == list(range(begin, begin + per_stream))


def test_windows_by_hand() -> None:
    steps = Windows(Streams(np.arange(12), 2), 3)
    assert (steps.steps(1), steps.longest) == (2, 3)
    assert [p.ids.tolist() for p in read(steps)] == [[[0, 5], [1, 6], [2, 7]], [[3, 8], [4, 9]]]
    assert [steps.position(s) for s in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [steps.epochs(s) for s in range(4)] == [0, 0.5, 1, 1.5]


def test_windows_that_are_alike_are_those_of_the_next_steps() -> None:
    ids = np.arange(45)
    for length, carried in ((4, True), (7, True), (20, True), (50, True), (4, False)):
        windows = Windows(Streams(ids, 2), length, carried)
        for step in range(2 * windows.steps_per_epoch):
            pieces = [windows.piece(s) for s in range(step, step + 4)]
            like = [len(p.ids) == length and (p.carried or not i) for i, p in enumerate(pieces)]
            for most in (0, 1, 4):
                found, targets = windows.alike(step, most)
                count = min(most, [*like, False].index(False)) if carried else 0
                assert len(found) == len(targets) == count
                for piece, x, y in zip(pieces, found, targets, strict=False):
                    assert np.array_equal(x, piece.ids) and np.array_equal(y, piece.targets)
                    assert piece.shift == len(x) == length
    for other in (Windows(Streams(ids, 2), 4, overlap=2), Randomized(Streams(ids, 2), 3, 0.5, 1)):
        assert len(other.alike(0, 3)[0]) == 0


def test_overlapping_windows_by_hand() -> None:
    steps = Windows(Streams(np.arange(9), 1), 3, overlap=4)
    pieces = read(steps)
    assert [p.ids[:, 0].tolist() for p in pieces] == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [*range(2, 8)]]
    assert [p.targets[:, 0].tolist() for p in pieces] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert [p.shift for p in pieces] == [0, 2, 2]
    assert [p.carried for p in pieces] == [False, False, True]
    assert steps.longest == 7


def test_random_windows_follow_from_seed_and_epoch() -> None:
    text = Streams(np.arange(10_001), 2)
    one, again, other = (Randomized(text, 8, 0.1, seed) for seed in (1, 1, 2))
    assert one.steps(3) == again.steps(3)
    again.bounds(2)  # in another order
    for epoch in (0, 1, 2):
        assert np.array_equal(one.bounds(epoch), again.bounds(epoch))
    assert not np.array_equal(one.bounds(0), one.bounds(1))
    assert not np.array_equal(one.bounds(0), other.bounds(0))
    lengths = np.diff(one.bounds(0))[:-1]
    assert lengths.min() == 8
    assert lengths.mean() == pytest.approx(8 - 1 + 10, rel=0.1) and one.seq_length == 17


def test_random_windows_weigh_their_length() -> None:
    one = Randomized(Streams(np.arange(10_001), 2), 8, 0.1, 1)
    lengths = np.diff(one.bounds(0))
    assert [one.piece(step).weight for step in range(5)] == [n / 17 for n in lengths[:5]]


def test_random_windows_at_the_limits() -> None:
    text = Streams(np.arange(101), 1)
    assert Randomized(text, 1, 0.0, 1).bounds(0).tolist() == [0, 100]
    assert Randomized(text, 30, 1.0, 1).bounds(0).tolist() == [0, 30, 60, 90, 100]
    for least in (100, 101, 2**63 - 1, 10**23):
        at_least = Randomized(text, least, 0.5, 1)
        assert at_least.bounds(0).tolist() == [0, 100] and at_least.piece(0).ways is not None
    data = DataConfig(bptt="randomized", seq_length=20)
    steps, _ = plan(data, np.arange(10_001))
    assert isinstance(steps, Randomized)
    assert (steps.spared, steps.seq_length) == (10, 20)


@pytest.mark.parametrize(
    "prob", ["1e-15", "1e-18", "1e-20", "1e-300", "5e-324", f"{2**63 - 1}:0.5", f"{10**400}:0.5"]
)
def test_windows_that_end_beyond_all_numbers(prob: str) -> None:
    """The gradient of each is that of the whole stream."""
    data = DataConfig(bptt="randomized", truncation_prob=prob, batch_size=1)
    for n in (101, 100_001):
        steps, _ = plan(data, np.arange(n))
        assert isinstance(steps, Randomized)
        assert [steps.bounds(epoch).tolist() for epoch in (0, 1)] == [[0, n - 1]] * 2
        assert steps.seq_length == n - 1 and steps.piece(1).scored == n - 1


def test_a_file_is_a_document() -> None:
    ids, documents = np.arange(20), (0, 4, 5, 12, 12)  # of 4, 1, 7, 0 and 8 characters
    steps, note = plan(DataConfig(bptt="full", batch_size=2), ids, documents)
    assert isinstance(steps, Documents) and note is None
    assert (steps.steps(1), steps.longest, steps.batch_size) == (2, 7, 2)
    assert steps.seq_length == 5
    one, two = read(steps)
    assert one.ids.T.tolist() == [[0, 1, 2, 0, 0, 0], [5, 6, 7, 8, 9, 10]]
    assert one.targets.T.tolist() == [[1, 2, 3, -1, -1, -1], [6, 7, 8, 9, 10, 11]]
    assert two.ids.T.tolist() == [[12, 13, 14, 15, 16, 17, 18], [0] * 7]
    assert two.targets.T.tolist() == [[13, 14, 15, 16, 17, 18, 19], [-1] * 7]
    assert (one.scored, two.scored, one.carried, two.carried) == (9, 7, False, False)
    assert [steps.chars(s) for s in range(5)] == [0, 9, 16, 25, 32]
    pieces, _ = plan(DataConfig(bptt="full", batch_size=9, seq_length=3), ids, documents)
    assert [row.tolist() for row in read(pieces)[0].ids.T] == [
        [0, 1, 2], [5, 6, 7], [8, 9, 10], [12, 13, 14], [15, 16, 17], [18, 0, 0]
    ]  # fmt: skip


def test_documents_train_as_each_alone() -> None:
    """Filling up does not show in the gradient."""
    run = run_of("lstm", bptt="full", batch_size=3, **DEEP)
    documents = (0, 9, 30)
    steps, _ = plan(run.config.data, IDS, documents)
    learner, piece = Learner(run.model, run.config, steps), steps.piece(0)
    learner.gradients(piece, learner.window_of(piece), 0)
    got = {name: a * steps.piece(0).scored for name, a in run.model.grads.views.items()}
    want = {name: np.zeros(a.shape) for name, a in got.items()}
    for begin, end in ((0, 9), (9, 30), (30, len(IDS))):
        window = run.model.train_pass(end - begin - 1, 1)
        window.load(IDS[begin : end - 1, None], IDS[begin + 1 : end, None])
        window.set_state(None)
        window.run_gradients()
        for name, a in run.model.grads.views.items():
            want[name] += a * (end - begin - 1)
    assert_close(got, want, 1e-12)


def test_documents_without_a_target() -> None:
    with pytest.raises(InputError, match="no file has 2 training characters"):
        plan(DataConfig(bptt="full"), np.arange(2), (0, 1))


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(k1=3), "--k1 is 3 with --bptt truncated: it goes with --bptt sliding"),
        (dict(bptt="full", k2=3), "--k2 is 3 with --bptt full: it goes with --bptt sliding"),
        (dict(truncation_prob="0.1"), "--truncation-prob is 0.1 with --bptt truncated"),
        (dict(bptt="sliding", k1=8, k2=4), "--k2 is 4 with --k1 8: it must be at least --k1"),
        (dict(bptt="sliding", k1=0), "--k1 is 0: it must be a whole number at least 1"),
        (dict(bptt="randomized", truncation_prob="much"), "--truncation-prob is 'much': it must"),
        (dict(bptt="randomized", truncation_prob="1.5"), "it must be a probability P from 0 to 1"),
        (dict(bptt="randomized", truncation_prob="0:0.5"), "spared characters N of at least 1"),
        (dict(bptt="randomized", truncation_prob="nan"), "--truncation-prob is 'nan'"),
        (dict(bptt="backwards"), "it must be one of truncated, full, sliding, randomized"),
    ],
)
def test_options_that_make_no_plan(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        DataConfig(**options)
    assert message in str(error.value)
