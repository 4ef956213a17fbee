"""What the whole network promises: order in time, independent rows, the same bits, clear errors."""

from __future__ import annotations

import math
import os
import signal
import time
import warnings
from typing import Any

import networks
import numpy as np
import pytest
from networks import KINDS, NETWORKS, B, H, T, V, Window
from support import assert_close, same_bits

from charrnn import operands, passes
from charrnn.config import CELLS, ModelConfig, SampleConfig
from charrnn.errors import InputError
from charrnn.kernels import jit, tile
from charrnn.kernels.pack import panel
from charrnn.kernels.seat import PARTIES
from charrnn.kernels.tile import operands_of
from charrnn.model import Model
from charrnn.passes import Pass
from charrnn.stepper import Stepper

each_cell = pytest.mark.parametrize("cell", CELLS)
each_kind = pytest.mark.parametrize(("cell", "activation"), KINDS)
each_network = pytest.mark.parametrize("network", NETWORKS)
FULL = NETWORKS["embedding"]


def forward(model: Model, data: Window) -> dict[str, np.ndarray]:
    """All that comes out: logits, the top layer, losses and the state after."""
    arrays, state = model.forward(data.ids, data.state)
    nats, after = model.losses(*data)
    assert all(same_bits(state[n], after[n]) for n in state)
    return {**arrays, "losses": nats, **{f"state {n}": s for n, s in state.items()}}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    different = [name for name in a if not same_bits(a[name], b[name])]
    assert not different


# --- Time and batch ----------------------------------------------------------------------------


@each_kind
def test_one_window_is_three_with_carried_state(cell: str, activation: str) -> None:
    model = networks.make(cell, activation, "float32", **FULL)
    data = networks.window(model, T=12)
    whole = forward(model, data)
    parts, state = [], data.state
    for i in (0, 4, 8):
        part = forward(model, Window(data.ids[i : i + 4], data.targets[i : i + 4], state))
        state = {n: part[f"state {n}"] for n in state}
        parts.append(part)
    for name in ("logits", "output", "losses"):
        assert same_bits(np.concatenate([p[name] for p in parts]), whole[name])
    assert_same_bits(state, {n: whole[f"state {n}"] for n in state})


@each_cell
def test_a_character_does_not_change_the_past(cell: str) -> None:
    model = networks.make(cell, dtype="float32", **FULL)
    data = networks.window(model)
    before = forward(model, data)
    for t in range(T):
        ids = data.ids.copy()
        ids[t] = (ids[t] + 1) % V
        after = forward(model, data._replace(ids=ids))
        for name in ("logits", "output", "losses"):
            assert same_bits(after[name][:t], before[name][:t])
            assert (after[name][t] != before[name][t]).any()


@each_cell
def test_rows_of_the_batch_never_meet(cell: str) -> None:
    model = networks.make(cell, dtype="float32", **FULL)
    data = networks.window(model, B=11)
    whole, order = forward(model, data), np.random.default_rng(5).permutation(11)

    def rows(data: Window, which: Any) -> Window:
        state = {n: s[:, which] for n, s in data.state.items()}
        return Window(data.ids[:, which], data.targets[:, which], state)

    for which in (order, [7], [2, 3, 9]):
        got = forward(model, rows(data, which))
        assert_same_bits(got, {name: a[:, which] for name, a in whole.items()})


@each_cell
def test_earlier_results_are_left_alone(cell: str) -> None:
    """What was handed out is not a view of work arrays, and what was given is not written to."""
    model = networks.make(cell, **FULL)
    one, two = networks.window(model), networks.window(model, seed=6)
    given = {n: s.copy() for n, s in one.state.items()}
    first, gradients = forward(model, one), model.gradients(*one)
    kept = [{n: a.copy() for n, a in part.items()} for part in (first, *gradients[1:])]
    forward(model, two), model.gradients(*two)
    for part, copy in zip((first, *gradients[1:]), kept, strict=True):
        assert_same_bits(part, copy)
    assert_same_bits(one.state, given)


@each_cell
def test_advance_leads_to_the_state_of_forward(cell: str) -> None:
    model = networks.make(cell, dtype="float32", **FULL)
    data = networks.window(model)
    _, state = model.forward(data.ids, data.state)
    assert_same_bits(model.advance(data.ids, data.state), state)


def test_no_state_is_a_zero_state() -> None:
    model = networks.make("lstm")
    data = networks.window(model)
    forward(model, data)  # leaves another state behind
    zero = forward(model, data._replace(state=model.zero_state(B)))
    assert_same_bits(forward(model, data._replace(state=None)), zero)


# --- The same bits -----------------------------------------------------------------------------


def training_bits(cell: str, threads: int, shape: tuple[int, int], **options: Any) -> Any:
    model = networks.make(cell, dtype="float32", threads=threads, **options)
    data = networks.window(model, *shape)
    loss, run = networks.train(model, data)
    bits = networks.weight_gradients(run) | {"loss": np.array(loss)}
    bits |= {f"state {n}": s for n, s in run.state().items()}
    bits |= {f"dstate {n}": s for n, s in networks.state_gradients(run).items()}
    bits |= {f"forward {n}": a for n, a in forward(model, data).items()}
    model.team.close()
    return bits


@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", dict(V=50, hidden_size=333)), ("gru", dict(V=50, hidden_size=333))]
    + [(cell, dict(hidden_size=37, V=70, **{**FULL, "embedding_size": 37})) for cell in CELLS],
)
def test_threads_do_not_matter(cell: str, options: dict[str, Any]) -> None:
    one = training_bits(cell, 1, (3, 7), **options)
    for threads in (2, 3, 7):
        assert_same_bits(training_bits(cell, threads, (3, 7), **options), one)


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are made of two sums on any processor."""
    monkeypatch.setattr(passes, "are_halved", lambda weights, B: True)


@each_cell
def test_threads_of_two_sums_do_not_matter(cell: str, halved: None) -> None:
    """An even number of threads gives each a half of the rows."""
    options = dict(hidden_size=37, V=70, **{**FULL, "embedding_size": 37})
    for shape in ((23, 25), (1, 2)):
        one = training_bits(cell, 1, shape, **options)
        for threads in (2, 3, 4, 7):
            assert_same_bits(training_bits(cell, threads, shape, **options), one)


@each_cell
def test_two_sums_are_as_good_as_one(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(halved: bool) -> Any:
        monkeypatch.setattr(passes, "are_halved", lambda weights, B: halved)
        model = networks.make(cell, threads=2, V=70, **{**FULL, "embedding_size": 9})
        data = networks.window(model, 23, 25)
        return model.gradients(data.ids, data.targets, data.state).weights

    one, two = gradients(False), gradients(True)
    for name, want in one.items():
        assert np.abs(two[name] - want).max() < 1e-13 * np.abs(want).max(), name
    assert any((two[name] != want).any() for name, want in one.items())


@pytest.fixture
def by_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the units of a layer however small it is."""
    monkeypatch.setattr(Pass, "_by_units", lambda self, B: self.parts > 1)


@pytest.mark.parametrize("rows", (1, 2, 7, 32))  # 32 fill the matrix unit, where there is one
@pytest.mark.parametrize(
    "options",
    (
        dict(V=50, hidden_size=256),  # whole panels
        dict(V=50, hidden_size=333, precision="bf16"),
        dict(V=70, hidden_size=37, **{**FULL, "embedding_size": 37}),
        dict(V=70, hidden_size=133, num_layers=3),
    ),
    ids=("panels", "bf16", "full", "layers"),
)
@each_cell
def test_shared_units_do_not_matter(
    cell: str, options: dict[str, Any], rows: int, by_units: None
) -> None:
    """With fewer rows than threads, too, and threads without a panel or in the middle of one."""
    one = training_bits(cell, 1, (3, rows), **options)
    for threads in (2, 3, 7):
        assert_same_bits(training_bits(cell, threads, (3, rows), **options), one)


def test_who_shares_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large layers do, smaller ones with few rows, and nobody who would be without a panel."""
    H = 2 * panel("float32")
    size = 4 * H * H * 4

    def parties(B: int, threads: int = 2) -> int:
        model = networks.make("lstm", dtype="float32", threads=threads, hidden_size=H)
        return int(model.train_pass(2, B).shares[0].seat[PARTIES])

    monkeypatch.setattr(passes, "UNITS", size)
    monkeypatch.setattr(passes, "UNITS_OF_FEW", size)
    assert [parties(B) for B in (1, 7, 8)] == [2, 2, 2]
    monkeypatch.setattr(passes, "UNITS", size + 1)
    assert [parties(B) for B in (1, 7, 8)] == [2, 2, 1]
    assert [parties(B, threads=1) for B in (1, 8)] == [1, 1]
    assert parties(1, threads=3) == 1
    monkeypatch.setattr(passes, "UNITS_OF_FEW", size + 1)
    assert parties(1) == 1


def test_rows_for_one_thread_share_units_of_large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the matrix unit: each thread would have but a part of the rows that fill it."""
    for module in (jit, tile):
        monkeypatch.setattr(module, "HAS_AMX", True)
    for size, rows, threads, wanted in (
        (512, 32, 2, True), (512, 64, 2, False), (512, 64, 3, True), (512, 8, 2, False),
        (512, 16, 2, True),
        (256, 32, 2, False),
    ):  # fmt: skip
        model = networks.make("lstm", dtype="float32", hidden_size=size)
        assert passes.by_units(model, rows, threads) is wanted, (size, rows, threads)


@pytest.mark.parametrize("rows", (1, 7, 8))
def test_the_other_way_of_sharing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass for it is another one, on the same arrays, with the same bits."""
    monkeypatch.setattr(passes, "UNITS_OF_FEW", 1)
    model = networks.make("lstm", dtype="float32", threads=2, hidden_size=2 * panel("float32"))
    data = networks.window(model, 3, rows)
    loss, run = networks.train(model, data)
    usual = networks.weight_gradients(run)
    model.team.contrary.add(2)
    other = run.of_length(3)
    assert other is not run and other.of_length(3) is other
    parties = {int(x.shares[0].seat[PARTIES]) for x in (run, other) if isinstance(x, Pass)}
    assert parties == {1, 2}
    other.load(data.ids, data.targets)
    other.set_state(data.state)
    assert other.run_gradients() == loss
    assert_same_bits(networks.weight_gradients(other), usual)
    parties = {int(Pass(model, 3, rows, "forward").shares[0].seat[PARTIES])}
    assert parties == {2 if rows < 8 else 1}  # only training has it
    model.team.contrary.clear()
    assert other.of_length(3) is not other
    model.team.close()


def test_small_windows_stay_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = training_bits("lstm", 3, (3, 7), **FULL)
    monkeypatch.setattr(passes, "SMALL", 1 << 22)
    model = networks.make("lstm", dtype="float32", threads=3, **FULL)
    assert [len(model.train_pass(3, 7).forward), len(model.train_pass(3, 7).weights)] == [1, 1]
    assert_same_bits(training_bits("lstm", 3, (3, 7), **FULL), shared)


@each_cell
def test_a_second_run_has_the_same_bits(cell: str) -> None:
    """Work arrays carry nothing over from what was computed before."""
    model = networks.make(cell, dtype="float32", **FULL)
    one, two = networks.window(model), networks.window(model, seed=6)
    loss, run = networks.train(model, one)
    first = networks.weight_gradients(run)
    networks.train(model, two)
    assert networks.train(model, one)[0] == loss
    assert_same_bits(networks.weight_gradients(run), first)


@each_cell
@pytest.mark.parametrize("steps, block", ((1, 1), (2, 2), (3, 2), (4, 4)))
def test_blocks_of_logits_do_not_matter(
    cell: str, steps: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window's logits in blocks of a power of two time steps, the last of them shorter."""

    def results() -> tuple[Any, Any]:
        model = networks.make(cell, **FULL)
        data = networks.window(model, T=5)
        loss, run = networks.train(model, data)
        return forward(model, data) | {"all": run.losses.copy()}, networks.weight_gradients(run)

    outputs, grads = results()
    monkeypatch.setattr(passes, "BLOCK", steps * B * V)
    assert len(networks.make(cell).train_pass(5, B).blocks) == math.ceil(5 / block)
    in_blocks, grads_in_blocks = results()
    assert_same_bits(in_blocks, outputs)
    assert_close(grads_in_blocks, grads, 1e-12)


@each_network
@each_cell
def test_a_shorter_window_borrows_the_arrays(cell: str, network: str) -> None:
    """In turn, as at the end of every epoch, both give the bits of a pass of their own."""
    model = networks.make(cell, dtype="float32", **NETWORKS[network])
    long = model.train_pass(6, B, model.config.dropout)
    short = long.of_length(T)
    assert long.of_length(6) is long and long.of_length(T) is short

    def bits(run: Pass, data: Window) -> dict[str, np.ndarray]:
        networks.fill_and_run(run, data)
        grads, states = networks.weight_gradients(run), networks.state_gradients(run)
        return {"losses": run.losses.copy(), **grads, **states}

    for _ in range(2):
        for run in (long, short):
            data = networks.window(model, len(run.ids))
            fresh = networks.make(cell, dtype="float32", **NETWORKS[network])
            alone = fresh.train_pass(*data.ids.shape, model.config.dropout)
            assert_same_bits(bits(run, data), bits(alone, data))


@each_cell
def test_state_is_carried_between_windows(cell: str) -> None:
    model = networks.make(cell, dtype="float32", **FULL)
    long = model.train_pass(6, B)
    short = long.of_length(T)
    data = networks.window(model, T=16)
    whole = forward(model, data)
    long.set_state(data.state)
    before, t = None, 0
    for run in (long, short, long):
        steps = len(run.ids)
        if before is not None:
            run.carry(before, len(before.ids))
        run.load(data.ids[t : t + steps], data.targets[t : t + steps])
        run.run_gradients()
        assert same_bits(run.losses, whole["losses"][t : t + steps])
        before, t = run, t + steps
    assert_same_bits(long.state(), {n: whole[f"state {n}"] for n in data.state})


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weights_products_in_pieces(
    threads: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of matrices that are long, such as those of large vocabularies."""
    found = []
    monkeypatch.setattr(passes, "SMALL", 0)
    for widest in (10**6, 40):
        monkeypatch.setattr(passes, "WIDEST", widest)
        options = dict(dtype="float32", precision=precision, hidden_size=70, num_layers=2)
        model = networks.make("lstm", threads=threads, V=150, **options)
        found.append(model.gradients(*networks.window(model)[:2]).weights)
    assert_same_bits(*found)


# --- New weights are seen ----------------------------------------------------------------------


def test_changed_weights_are_seen_by_every_pass() -> None:
    model = networks.make("lstm", **FULL)
    data = networks.window(model)
    long = model.train_pass(6, B)
    runs = [long, long.of_length(T), long.of_length(5)]
    for factor in (1.0, 0.5, 0.25):
        model.params.flat *= factor
        model.changed()
        for run in runs:
            steps = min(len(run.ids), T)
            run.ids[:steps], run.targets[:steps] = data.ids[:steps], data.targets[:steps]
            run.set_state(data.state)
            run.run_gradients()
        fresh = networks.make("lstm", **FULL)
        fresh.params.flat[:] = model.params.flat
        want, _ = fresh.losses(*data)
        for run in runs:
            assert same_bits(run.losses[:T], want)


def test_a_pass_that_the_model_has_forgotten_sees_new_weights() -> None:
    """The trainer holds on to its pass while validation and sampling run other shapes."""
    model = networks.make("lstm")
    data = networks.window(model)
    held = model.train_pass(T, B)
    networks.fill_and_run(held, data)
    for t in range(1, 8):
        model.forward(data.ids[:1].repeat(t, axis=0))
    model.params.flat *= 0.5
    model.changed()
    assert networks.fill_and_run(held, data) == networks.train(model, data)[0]


# --- Dropout -----------------------------------------------------------------------------------


def test_dropout_masks() -> None:
    model = networks.make("gru", dtype="float32", num_layers=2, hidden_size=37)
    run = model.train_pass(20, 30, 0.3)
    seen = []
    for seed, step in ((1, 1), (1, 2), (2, 1)):
        run.set_dropout_key(seed, step)
        seen += networks.masks(run)
    run.set_dropout_key(1, 1)
    again = networks.masks(run)
    assert all(same_bits(a, b) for a, b in zip(again, seen, strict=False))
    for i, mask in enumerate(seen):
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
        assert abs((mask > 0).mean() - 0.7) < 0.01  # three standard deviations
        for axes in ((1, 2), (0, 2), (0, 1)):  # nor do steps, rows or units stand out
            assert abs((mask > 0).mean(axis=axes) - 0.7).max() < 0.1
        for other in seen[:i]:  # steps, seeds and layers are independent of each other
            assert abs(((mask > 0) == (other > 0)).mean() - 0.58) < 0.02


def test_dropout_is_off_outside_of_training() -> None:
    plain, dropped = (networks.make("lstm", dropout=p) for p in (0.0, 0.5))
    data = networks.window(plain)
    assert_same_bits(forward(dropped, data), forward(plain, data))
    assert dropped.gradients(*data).loss == plain.gradients(*data).loss


# --- Loss --------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("init", ("uniform", "orthogonal", "identity"))
def test_first_loss_is_near_that_of_a_uniform_guess(cell: str, init: str) -> None:
    model = Model(ModelConfig(model=cell, hidden_size=40, init=init), 65)
    model.initialize(1)
    data = networks.window(model, 20, 16)
    loss = model.losses(data.ids, data.targets)[0].mean()
    assert abs(loss - math.log(65)) < 0.25


def test_targets_that_are_none_have_no_loss() -> None:
    model = networks.make("lstm")
    data = networks.window(model)
    run = model.train_pass(*data.ids.shape)
    networks.fill_and_run(run, data)  # now every target has left a loss
    want, targets = run.losses.copy(), data.targets.copy()
    targets[1:, 0] = targets[3, 2] = -1
    none = targets < 0
    run.load(data.ids, targets, count=int((~none).sum()))
    loss = run.run_gradients()
    assert not run.losses[none].any() and same_bits(run.losses[~none], want[~none])
    assert loss == pytest.approx(want[~none].mean(), rel=1e-12)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_confident_logits_do_not_overflow(dtype: str) -> None:
    model = networks.make("rnn", dtype=dtype)
    model.params.views["head.by"][:] = np.linspace(-1e4, 1e4, V)
    model.changed()
    data = networks.window(model)
    nats = model.losses(*data)[0]
    logits = model.forward(data.ids, data.state)[0]["logits"].astype(np.float64)
    want = logits.max(axis=-1) - np.take_along_axis(logits, data.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, want, rtol=1e-6, atol=1e-6)
    assert all(np.isfinite(g).all() for g in model.gradients(*data).weights.values())


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@each_cell
def test_what_is_not_a_number_shows_in_the_loss(cell: str, dtype: str) -> None:
    model = networks.make(cell, dtype=dtype)
    data = networks.window(model)
    for name, view in model.params.views.items():
        row = data.ids[0, 0] if name == "layers.0.Wx" else 0
        kept, view.reshape(len(view), -1)[row, 0] = view.reshape(len(view), -1)[row, 0], np.nan
        model.changed()
        assert not math.isfinite(model.gradients(*data).loss), name
        view.reshape(len(view), -1)[row, 0] = kept


# --- Initial weights ---------------------------------------------------------------------------


def test_initial_weights_are_a_function_of_seed_and_name() -> None:
    def drawn(seed: int, **options: Any) -> dict[str, np.ndarray]:
        model = Model(ModelConfig(**{"hidden_size": 30, **options}), 50)
        model.initialize(seed)
        return model.params.views

    one = drawn(1)
    assert_same_bits(drawn(1), one)
    deep = drawn(1, num_layers=2)
    assert all(same_bits(deep[n], one[n]) for n in one)
    other = drawn(2)
    assert not any(same_bits(other[n], one[n]) for n in one if n != "layers.0.b")
    bound = 30**-0.5
    for name in ("layers.0.Wh", "head.Wy", "head.by"):
        assert 0.9 * bound < abs(one[name]).max() <= bound * (1 + 1e-6)
    assert 1.6 < abs(one["layers.0.Wx"]).max() <= 3**0.5 * (1 + 1e-6)  # read alone: variance 1
    assert (one["layers.0.b"][30:60] == 1).all()  # forget gates start open
    for gate in np.split(drawn(1, init="orthogonal")["layers.0.Wh"], 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(30), atol=1e-5)
    for gate in np.split(drawn(1, init="identity")["layers.0.Wh"], 4, axis=1):
        np.testing.assert_array_equal(gate, np.eye(30))


# --- Errors ------------------------------------------------------------------------------------

GOOD = np.zeros((T, B), np.int64)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (GOOD + V, rf"ids from {V} to {V}: this model's are 0 to {V - 1}"),
        (GOOD - 1, rf"ids from -1 to -1: this model's are 0 to {V - 1}"),
        (GOOD[0], rf"ids of shape \({B},\) and type int64: \(T, B\) integers are needed"),
        (GOOD[:0], rf"ids of shape \(0, {B}\)"),
        (GOOD.astype(float), "type float64: .* integers are needed"),
        (np.full((T, B), 2**32), "this model's are 0 to"),
    ],
)
def test_wrong_ids(ids: np.ndarray, message: str) -> None:
    model = networks.make("rnn")
    for call in (model.forward, model.advance):
        with pytest.raises(InputError, match=message):
            call(ids)
    for call in (model.losses, model.gradients):
        with pytest.raises(InputError, match=message):
            call(ids, GOOD)
        with pytest.raises(InputError, match=message):
            call(GOOD, ids)


def test_targets_of_another_shape() -> None:
    model = networks.make("rnn")
    for targets in (GOOD[:1], GOOD[:, :1], GOOD[:2], np.zeros((T + 1, B), int)):
        for call in (model.losses, model.gradients):
            with pytest.raises(InputError, match="shape"):
                call(GOOD, targets)


def test_wrong_states() -> None:
    model = networks.make("lstm")
    state = model.zero_state(B + 1)
    needed = rf"state h has shape \(1, {B + 1}, {H}\): needed is \(1, {B}, {H}\)"
    with pytest.raises(InputError, match=needed):
        model.forward(GOOD, state)
    state = model.zero_state(B)
    with pytest.raises(InputError, match=r"the state has \['h'\]: needed is \['c', 'h'\]"):
        model.forward(GOOD, {"h": state["h"]})
    with pytest.raises(InputError, match="state c has shape"):
        model.forward(GOOD, {**state, "c": state["c"][0]})


def test_activation_of_another_cell() -> None:
    with pytest.raises(InputError, match="--activation relu with --model gru: this cell has tanh"):
        Model(ModelConfig(model="gru", activation="relu"), V)


def test_wrong_weights() -> None:
    model = networks.make("gru")
    tensors = model.to_torch(networks.make("gru").params)
    with pytest.raises(InputError, match=r"lack the tensor rnn.weight_hh_l0 \(27, 9\)"):
        model.from_torch({k: v for k, v in tensors.items() if k != "rnn.weight_hh_l0"})
    with pytest.raises(InputError, match=r"head.bias has shape \(3,\): this model needs \(23,\)"):
        model.from_torch(tensors | {"head.bias": np.zeros(3)})
    with pytest.raises(InputError, match="rnn.weight_ih_l1"):  # a layer more than the model has
        model.from_torch(tensors | {"rnn.weight_ih_l1": np.zeros((27, 9))})


# --- bfloat16 ----------------------------------------------------------------------------------


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a model of bfloat16 products, on any processor: slowly where it lacks them."""
    monkeypatch.setattr(jit, "HAS_BF16", True)
    return {"dtype": "float32", "precision": "bf16", "num_layers": 2}


@each_cell
def test_bf16_gradients_are_near(cell: str, bf16: dict[str, Any]) -> None:
    for more in ({}, {"embedding_size": 7}):
        model = networks.make(cell, **bf16, **more)
        near = networks.make(cell, **{**bf16, "precision": "float32"}, **more)
        data = networks.window(model)
        got, want = (m.gradients(data.ids, data.targets, data.state) for m in (model, near))
        assert model.operands == "bfloat16" and near.operands == "float32"
        # A factor is off by 2^-9 at the most; weights of size 0.6 let it grow over the steps.
        assert got.loss == pytest.approx(want.loss, rel=5e-3) and got.loss != want.loss
        for name, gradient in want.weights.items():
            scale = np.abs(gradient).max()
            assert np.abs(got.weights[name] - gradient).max() < 0.06 * scale, name


@each_cell
def test_bf16_has_the_same_bits_for_any_threads(cell: str, bf16: dict[str, Any]) -> None:
    results = []
    for threads in (1, 2, 3):
        model = networks.make(cell, threads=threads, **bf16)
        data = networks.window(model)
        results.append(model.gradients(data.ids, data.targets, data.state))
    for other in results[1:]:
        assert other.loss == results[0].loss
        assert_same_bits(other.weights, results[0].weights)


def test_bf16_is_float32_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "HAS_BF16", False)
    model = networks.make("lstm", dtype="float32", precision="bf16")
    plain = networks.make("lstm", dtype="float32")
    assert "--precision bf16 is float32 here" in model.notes[0] and not plain.notes
    data = networks.window(model)
    assert (
        model.gradients(data.ids, data.targets).loss == plain.gradients(data.ids, data.targets).loss
    )


def test_a_stepper_reads_no_foreign_memory() -> None:
    model = networks.make("lstm")
    stepper = model.stepper(1, SampleConfig())
    for ids in ([[V]], [[-1]], [[0], [V]]):
        with pytest.raises(InputError, match="this model's are 0 to"):
            stepper.feed(np.array(ids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_model_works_on_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other threads are in the parent alone."""
    monkeypatch.setattr(passes, "SMALL", 0)
    model = networks.make("lstm", dtype="float32", threads=2)
    data = networks.window(model)
    loss, _ = networks.train(model, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it may hang is what we test
        child = os.fork()
    if child == 0:
        os._exit(0 if networks.train(model, data)[0] == loss else 1)
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_bf16_does_not_go_with_float64() -> None:
    with pytest.raises(InputError, match="--precision bf16 is for float32, and this is float64"):
        networks.make("lstm", dtype="float64", precision="bf16")


# --- float32 on the matrix unit ------------------------------------------------------------------

matrix_unit = pytest.mark.skipif(not jit.HAS_AMX, reason="has no unit for matrices")
LARGE = dict(V=70, hidden_size=133, num_layers=2, embedding_size=133)
"""More than a panel of each kind of columns, and no whole number of them."""


@pytest.fixture(params=("parts", "whole"))
def made_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What products with weights are made of, on a machine of two processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    if request.param == "whole":
        monkeypatch.setattr(operands, "FEW", 0)
    return str(request.param)


@matrix_unit
@pytest.mark.parametrize("units", (False, True))
@each_cell
def test_parts_have_the_same_bits_for_any_threads(
    cell: str, units: bool, made_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pass, "_by_units", lambda self, B: units and self.parts > 1)
    for rows in (27, 64):
        one = training_bits(cell, 1, (5, rows), **LARGE)
        for threads in (2, 3, 7):
            assert_same_bits(training_bits(cell, threads, (5, rows), **LARGE), one)


@matrix_unit
@pytest.mark.parametrize(("hidden", "embedding"), ((100, 20), (20, 100)))
@each_cell
def test_one_of_two_gradients_is_made_of_parts(cell: str, hidden: int, embedding: int) -> None:
    """What one product has packed is no use to the next if that is made of something else."""
    options = dict(hidden_size=hidden, embedding_size=embedding)
    for rows in (2, 9):  # gradients of few rows fit the scratch
        found = {}
        for dtype in ("float32", "float64"):
            model = networks.make(cell, dtype=dtype, **options)
            for view in model.params.views.values():
                view[...] = (view / 10).astype(np.float32)
            model.changed()
            data = networks.window(model, 35, rows)
            state = {n: s.astype(np.float32) for n, s in data.state.items()}
            found[dtype] = model.gradients(data.ids, data.targets, state).weights
        assert_close(found["float32"], found["float64"], 1e-5)


@matrix_unit
def test_threads_that_share_the_steps_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """In three blocks, of which the last in time is a short one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(operands, "FEW", 0)
    rows, options = 27, dict(V=100, hidden_size=100)
    monkeypatch.setattr(passes, "BLOCK", 4 * rows * 100)
    one = training_bits("gru", 1, (10, rows), **options)
    for threads in (2, 3, 7):
        assert_same_bits(training_bits("gru", threads, (10, rows), **options), one)
    for threads, wanted in ((1, True), (2, True), (7, True)):
        model = networks.make("gru", dtype="float32", threads=threads, **options)
        run = model.train_pass(10, rows)
        assert run.by_time is wanted and [len(b.array) for b in run.blocks] == [2, 4, 4]
    assert not model.train_pass(10, 7 * 32).by_time  # each has rows enough


@matrix_unit
@each_cell
def test_parts_are_as_accurate_as_float32(
    cell: str, made_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(dtype: str) -> dict[str, np.ndarray]:
        model = networks.make(cell, dtype=dtype, **LARGE)
        for view in model.params.views.values():
            view[...] = (view / 10).astype(np.float32)
        model.changed()
        data = networks.window(model, 5, 64)
        state = {name: array.astype(np.float32) for name, array in data.state.items()}
        return model.gradients(data.ids, data.targets, state).weights

    exact, parts = gradients("float64"), gradients("float32")
    monkeypatch.setattr(jit, "HAS_AMX", False)
    float32 = gradients("float32")
    errors = [
        np.sqrt(sum(((found[name] - want) ** 2).sum() for name, want in exact.items()))
        for found in (parts, float32)
    ]
    assert 0 < errors[0] < 1.2 * errors[1]


@matrix_unit
@each_cell
def test_a_gradient_of_parts_in_pieces(cell: str, made_of: str) -> None:
    """Rows are added block by block, and D stays packed from one product to the next."""
    model = networks.make(cell, dtype="float32", threads=2, **LARGE)
    double = networks.make(cell, dtype="float64", **LARGE)
    for name, view in model.params.views.items():
        view[...] /= 10
        double.params.views[name][...] = view
    model.changed()
    double.changed()
    data = networks.window(model, 13, 50)  # 650 rows
    got, want = (m.gradients(data.ids, data.targets, data.state) for m in (model, double))
    for name, gradient in want.weights.items():
        scale = np.abs(gradient).max()
        assert np.abs(got.weights[name] - gradient).max() < 1e-5 * scale, name


@matrix_unit
def test_float32_and_parts_share_memory(made_of: str) -> None:
    """Packed weights of few rows and of many, one after the other, in any order."""

    def bits(model: Model, rows: int) -> dict[str, np.ndarray]:
        data = networks.window(model, 5, rows)
        losses, _ = model.losses(data.ids, data.targets, data.state)
        gradients = model.gradients(data.ids, data.targets, data.state).weights
        return {name: array.copy() for name, array in gradients.items()} | {"losses": losses}

    alone = {r: bits(networks.make("lstm", dtype="float32", **LARGE), r) for r in (3, 64)}
    model = networks.make("lstm", dtype="float32", **LARGE)
    for rows in (64, 3, 3, 64, 3):
        assert_same_bits(bits(model, rows), alone[rows])
    few, many = (model.stack(True, rows) for rows in (3, 64))
    for i in range(2):
        assert operands_of(few.k[i]["Wh"]) == "float32"
        assert operands_of(many.k[i]["Wh"]) == made_of
        assert np.shares_memory(few.k[i]["Wh"], many.k[i]["Wh"])


@matrix_unit
def test_samples_go_on_after_other_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = []
    for disturbed in (False, True):
        model = networks.make("lstm", dtype="float32", **LARGE)
        data = networks.window(model, 5, 64)
        model.gradients(data.ids, data.targets)
        stepper = Stepper(model, 2, SampleConfig())
        stepper.feed(np.zeros((3, 2), np.int32))
        drawn = []
        for step in range(4):
            if disturbed:
                model.losses(data.ids, data.targets)
            drawn.append(stepper.draw(np.full((7, 2), 0.1 + 0.2 * step)))
        found.append(np.concatenate(drawn))
    assert same_bits(*found)
