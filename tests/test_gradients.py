"""The laboratory against the slow oracle, automatic differentiation and central differences."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from networks import KINDS, NETWORKS, H, make
from support import assert_close, relative_error

from charrnn import gradients, unrolled
from charrnn.errors import InputError
from charrnn.model import Model
from charrnn.runlog import dump_json
from charrnn.unrolled import Probe

T = 7
SHAPES = {name: options for name, options in NETWORKS.items() if name != "dropout"}


def probe_of(model: Model, T: int = T, seed: int = 3) -> Probe:
    """A window of random characters from a random state."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(model.vocab_size, size=(2, T))
    state = {n: rng.normal(size=s.shape) for n, s in model.zero_state(1).items()}
    return Probe(model, ids, targets, state)


def small(cell: str = "lstm", activation: str = "tanh", **options: Any) -> Probe:
    return probe_of(make(cell, activation, **options))


def oracle(probe: Probe) -> list[list[naive.Arrays]]:
    config, state = probe.model.config, probe.state
    assert state is not None
    return naive.components(
        probe.model.params.views, probe.ids[:, None], probe.targets[:, None],
        [{n: s[i] for n, s in state.items()} for i in range(config.num_layers)],
        cell=config.model, activation=config.activation, residual=config.residual,
    )  # fmt: skip


@pytest.mark.portable
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell, activation", KINDS)
def test_every_component_is_the_oracle_s(cell: str, activation: str, shape: str) -> None:
    probe = small(cell, activation, **SHAPES[shape])
    for loss, terms in enumerate(oracle(probe)):
        got = probe.terms(loss)
        assert len(got) == len(terms) == loss + 1
        for term, want in zip(got, terms, strict=True):
            assert_close(term, want | {"input": want["input"][0]}, 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell, activation", KINDS)
def test_norms_and_sums_are_those_of_the_components(cell: str, activation: str, shape: str) -> None:
    probe = small(cell, activation, **SHAPES[shape])
    found, terms = gradients.components(probe), oracle(probe)
    want = {
        name: np.array(
            [
                [np.linalg.norm(terms[l][e][name]) if e <= l else 0 for e in range(T)]
                for l in range(T)  # noqa: E741
            ]
        )
        for name in terms[0][0]
    }
    assert_close(found.norms, want, 1e-9)
    total = naive.weighted_sum(terms, naive.full_weights(T))
    norms = {name: np.linalg.norm(a) for name, a in total.items() if name != "input"}
    assert_close(found.totals, norms, 1e-9)
    assert found.own_residual < 1e-9 and found.total_residual < 1e-9
    assert np.array_equal(found.losses, np.arange(T))
    assert np.allclose(found.nats, probe.losses)


def test_some_losses_and_the_residuals_are_of_those_only() -> None:
    probe = small("gru", num_layers=2)
    found, whole = gradients.components(probe, [5, 2]), gradients.components(probe)
    assert found.losses.tolist() == [2, 5]
    assert_close(found.norms, {name: a[[2, 5]] for name, a in whole.norms.items()}, 1e-12)
    assert found.own_residual < 1e-9 and found.total_residual < 1e-9


def test_a_wrong_component_shows_in_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, right = small("lstm"), unrolled.Layer.back

    def wrong(self: Any, room: Any, time: int, rows: int, dh: Any) -> Any:
        room["dc0"][:rows] *= 1.001
        return right(self, room, time, rows, dh)

    monkeypatch.setattr(unrolled.Layer, "back", wrong)
    found = gradients.components(probe)
    assert found.own_residual > 1e-6 and found.total_residual > 1e-6


@pytest.mark.parametrize("losses", [[], [T], [-1]])
def test_losses_outside_of_the_window_are_refused(losses: list[int]) -> None:
    with pytest.raises(InputError, match="needed are times from 0 to 6"):
        next(small("rnn").walk(losses))


def test_nothing_is_changed() -> None:
    model = make("lstm", dtype="float32")
    before = model.params.flat.copy()
    probe = probe_of(model)
    gradients.components(probe)
    gradients.reach(probe)
    gradients.why(probe)
    assert model.params.flat.tobytes() == before.tobytes()
    assert probe.model.params.flat.dtype == np.float64
    assert np.array_equal(probe.model.params.views["head.Wy"], model.params.views["head.Wy"])


# -- automatic differentiation, where it is installed ---------------------------------------------


def torch_losses(
    torch: Any, cell: str, activation: str, copies: Any, ids: Any, targets: Any, state: Any
) -> Any:  # noqa: E501
    """Losses of one layer whose every time step has its own copy of the parameters."""
    s, tanh = torch.sigmoid, torch.tanh
    act = {"tanh": tanh, "relu": torch.relu, "sigmoid": s, "identity": lambda a: a}[activation]
    h, c, losses = state["h"], state.get("c"), []
    for p, i, target in zip(copies, ids, targets, strict=True):
        x, a = p["layers.0.Wx"][i] + p["layers.0.b"], h @ p["layers.0.Wh"]
        if cell == "rnn":
            h = act(x + a)
        elif cell == "fastrnn":
            h = p["layers.0.beta"] * h + p["layers.0.alpha"] * tanh(x + a)
        elif cell == "gru":
            (xr, xz, xn), (ar, az, an) = x.split(H), a.split(H)
            r, z = s(xr + ar), s(xz + az)
            h = (1 - z) * tanh(xn + r * (an + p["layers.0.bhn"])) + z * h
        else:
            i_, f, g, o = (x + a).split(H)
            c = s(f) * c + s(i_) * tanh(g)
            h = s(o) * tanh(c)
        logits = h @ p["head.Wy"] + p["head.by"]
        losses.append(torch.logsumexp(logits, 0) - logits[target])
    return losses


@pytest.mark.parametrize("cell, activation", KINDS)
def test_components_are_those_of_automatic_differentiation(cell: str, activation: str) -> None:
    torch = pytest.importorskip("torch")
    probe = small(cell, activation)
    views = probe.model.params.views
    copies = [{n: torch.tensor(a, requires_grad=True) for n, a in views.items()} for _ in range(T)]
    assert probe.state is not None
    state = {n: torch.tensor(s[0, 0]) for n, s in probe.state.items()}
    losses = torch_losses(torch, cell, activation, copies, probe.ids, probe.targets, state)
    for loss in (0, 3, T - 1):
        assert float(losses[loss].detach()) == pytest.approx(probe.losses[loss])
        flat = [(e, n) for e in range(loss + 1) for n in views]
        found = torch.autograd.grad(
            losses[loss], [copies[e][n] for e, n in flat], retain_graph=True, allow_unused=True
        )
        got = probe.terms(loss)
        for (e, name), gradient in zip(flat, found, strict=True):
            want = np.zeros_like(views[name]) if gradient is None else gradient.numpy()
            assert relative_error(got[e][name], want) < 1e-9, (loss, e, name)


# -- states ---------------------------------------------------------------------------------------


def loss_with_a_nudge(
    probe: Probe, loss: int, nudge: dict[tuple[int, int, str], np.ndarray]
) -> float:
    """L_loss by the oracle's steps, with something added to states (step, layer, name).

    An LSTM's c is nudged before its h is made of it.
    """
    config, views = probe.model.config, probe.model.params.views
    cell = naive.CELLS[config.model]
    layers = [naive.layer_params(views, i) for i in range(config.num_layers)]
    assert probe.state is not None
    states = [{n: s[i] for n, s in probe.state.items()} for i in range(config.num_layers)]
    for t in range(loss + 1):
        x = np.eye(probe.model.vocab_size)[[probe.ids[t]]]
        for i, params in enumerate(layers):
            new, _ = cell.step(cell._by_gate(params, config.activation), x, states[i])
            if (t, i, "c") in nudge:
                exposed = new["h"] / np.tanh(new["c"])
                new["c"] = new["c"] + nudge[t, i, "c"]
                new["h"] = exposed * np.tanh(new["c"])
            new["h"] = new["h"] + nudge.get((t, i, "h"), 0)
            states[i], x = new, new["h"]
    logits = x @ views["head.Wy"] + views["head.by"]
    return float(naive.cross_entropy(logits[None], probe.targets[[loss], None])[0][0, 0])


@pytest.mark.parametrize("cell, activation", KINDS)
def test_gradients_of_states_are_total(cell: str, activation: str) -> None:
    probe = small(cell, activation, num_layers=2)
    loss, direction = T - 1, np.random.default_rng(5).normal(size=H)
    for step in probe.walk([loss]):
        for layer, found in enumerate(step.layers):
            for name in probe.model.cell.states:
                up, down = (
                    loss_with_a_nudge(probe, loss, {(step.time, layer, name): size * direction})
                    for size in (1e-6, -1e-6)
                )
                want = (up - down) / 2e-6
                assert found[name][0] @ direction == pytest.approx(want, rel=1e-6, abs=1e-8)


def test_reach_is_the_walk_s_norms() -> None:
    probe = small("lstm", num_layers=2)
    found = gradients.reach(probe, positions=3, lags=3)
    assert found.positions.tolist() == [3, 4, 6]
    norms = {
        (loss, loss - step.time): np.linalg.norm(step.layers[0]["c"][0])
        for loss in (3, 4, 6)
        for step in probe.walk([loss])
    }
    curve = found.curve(0, "c")
    assert np.allclose(curve.at_zero, [norms[loss, 0] for loss in (3, 4, 6)], rtol=1e-12)
    shares = [[norms[loss, k] / norms[loss, 0] for k in range(4)] for loss in (3, 4, 6)]
    assert np.allclose(curve.median, np.median(shares, axis=0), rtol=1e-12)
    assert np.allclose(curve.quantiles[0], np.quantile(shares, 0.1, axis=0), rtol=1e-12)
    assert found.curve(-1) is found.curve(1, "h")
    assert {(c.layer, c.path) for c in found.curves} == {
        (layer, path) for layer in (0, 1) for path in ("h", "c", "c alone")
    }


def test_the_memory_alone_decays_by_its_factor() -> None:
    fastrnn = small("fastrnn")
    beta = abs(float(fastrnn.model.params.views["layers.0.beta"][0]))
    alone = gradients.reach(fastrnn, lags=4).curve(0, "h alone")
    assert np.allclose(alone.quantiles, beta ** np.arange(5), rtol=1e-12)

    model = make("lstm")
    model.params.views["layers.0.Wh"][:] = 0  # no way back but through c
    model.changed()
    found = gradients.reach(probe_of(model), lags=4)
    assert np.allclose(found.curve(0, "c alone").median, found.curve(0, "c").median, rtol=1e-12)


def curve_of(*median: float) -> gradients.Curve:
    return gradients.Curve(0, "h", np.ones(1), np.tile(median, (5, 1)))


def test_the_reach_is_the_lag_from_which_on_the_median_stays_below() -> None:
    assert curve_of(1, 0.5, 0.005, 0.02, 0.009, 0.0001).falls_below(0.01) == 4
    assert curve_of(1, 0.5, 0.005, 0.02, 0.009, 0.0001).falls_below(0.001) == 5
    assert curve_of(1, 0.5, 0.2).falls_below(0.01) is None
    assert curve_of(1, 0.001, np.nan).falls_below(0.01) is None
    assert curve_of(1, 0, 0).falls_below(0.01) == 1


# -- why ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell, activation", KINDS)
def test_jacobians_are_central_differences(cell: str, activation: str) -> None:
    probe = small(cell, activation, num_layers=2)
    config, views, last, layer = probe.model.config, probe.model.params.views, T - 2, 1
    names = probe.model.cell.states
    S = H * len(names)
    slow, one = naive.CELLS[cell], probe.layers[layer]
    assert one.x is not None

    def state_after(first: int, end: int, before: np.ndarray) -> np.ndarray:
        state = {n: before[None, i * H : (i + 1) * H] for i, n in enumerate(names)}
        x = one.x[first:end, None]
        _, after, _ = slow.forward(naive.layer_params(views, layer), x, state, config.activation)
        return np.hstack([after[n][0] for n in names])

    def slope(first: int, end: int) -> np.ndarray:
        start = np.hstack([one.values[n][first, 0] for n in names])
        columns = [
            (state_after(first, end, start + d) - state_after(first, end, start - d)) / 2e-5
            for d in 1e-5 * np.eye(S)
        ]
        return np.stack(columns, axis=1)

    for k, (step, product) in enumerate(probe.jacobians(layer, last, 4), 1):
        assert relative_error(step, slope(last + 1 - k, last + 2 - k)) < 1e-7
        assert np.abs(product - slope(last + 1 - k, last + 1)).max() < 1e-8


@pytest.mark.parametrize("cell, activation", KINDS)
def test_no_product_exceeds_its_bounds(cell: str, activation: str) -> None:
    found = gradients.why(small(cell, activation), positions=2, steps=5)
    assert found.last.tolist() == [4, 6]
    assert (found.products <= found.step_bounds * (1 + 1e-9)).all()
    assert np.allclose(found.products[:, 0], found.steps[:, 0])
    if cell in ("rnn", "fastrnn"):
        assert found.sigma_bounds is not None
        assert (found.step_bounds <= found.sigma_bounds * (1 + 1e-9)).all()
        if activation == "identity":
            assert np.allclose(found.step_bounds, found.sigma_bounds)
    else:
        assert found.sigma_bounds is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("cell", ["rnn", "fastrnn"])
def test_the_bound_of_the_largest_singular_value(cell: str, sign: int) -> None:
    model = make(cell)
    for name, view in model.params.views.items():
        if name in ("layers.0.alpha", "layers.0.beta"):
            view[:] = sign * np.abs(view)
    model.changed()
    probe = probe_of(model)
    found = gradients.why(probe, positions=1, steps=3)
    p, (last,) = probe.layers[0].p, found.last
    alpha, beta = p.get("alpha", 1.0), p.get("beta", 0.0)
    slopes = (1 - probe.layers[0].values["gates"][:, 0] ** 2).max(axis=1)
    steps = abs(beta) + abs(alpha) * slopes * np.linalg.norm(p["Wh"], 2)
    assert found.sigma_bounds is not None
    assert np.allclose(found.sigma_bounds, np.cumprod(steps[last - np.arange(3)]))


def test_what_gates_do() -> None:
    model = make("lstm")
    views = model.params.views
    views["layers.0.Wx"][:] = views["layers.0.Wh"][:] = 0
    bias = np.repeat([-3.0, 1.0, 2.0, 3.0], H)  # i closed, f as at the start, g high, o open
    views["layers.0.b"][:] = bias
    views["layers.0.Wh"][:, :H] = np.diag(-0.001 * np.arange(1, H + 1))
    model.changed()
    found = gradients.why(probe_of(model))
    i, f, g, o = found.gates
    assert [gate.name for gate in found.gates] == ["i", "f", "g", "o"]
    assert [(gate.low, gate.high) for gate in found.gates] == [(1, 0), (0, 0), (0, 1), (0, 1)]
    assert np.allclose(i.singular_values, 0.001 * np.arange(H, 0, -1))
    assert i.spectral_radius == pytest.approx(0.001 * H)
    y = naive.sigmoid(np.array(1.0))
    assert f.slope == pytest.approx(y * (1 - y))
    assert found.memory_chars == pytest.approx(np.full(H, -1 / np.log(y)))


@pytest.mark.parametrize(
    "bias, shut", [((-2.5, 1.0, 1.6, 2.5), True), ((-2.0, 1.0, 1.4, 2.0), False)]
)
def test_where_gates_are_saturated(bias: tuple[float, ...], shut: bool) -> None:
    model = make("lstm")
    views = model.params.views
    views["layers.0.Wx"][:] = views["layers.0.Wh"][:] = 0
    views["layers.0.b"][:] = np.repeat(bias, H)
    model.changed()
    found = [(gate.low, gate.high) for gate in gradients.why(probe_of(model)).gates]
    assert found == ([(1, 0), (0, 0), (0, 1), (0, 1)] if shut else [(0, 0)] * 4)


def test_memory_is_the_mean_of_the_logarithms() -> None:
    probe = small("lstm")
    f = probe.layers[0].values["gates"][:, 0, H : 2 * H]
    assert np.ptp(f, axis=0).max() > 0.1
    assert gradients.why(probe).memory_chars == pytest.approx(-1 / np.log(f).mean(axis=0))


def test_memory_that_grows_is_kept_for_ever() -> None:
    model = make("fastrnn")
    model.params.views["layers.0.beta"][:] = -1.25
    model.changed()
    memory = gradients.why(probe_of(model)).memory_chars
    assert memory is not None and np.isinf(memory).all()


def test_relu_s_dead_half_and_a_linear_network() -> None:
    (gate,) = gradients.why(small("rnn", "relu")).gates
    assert 0.1 < gate.low < 0.9
    assert gate.slope == pytest.approx(1 - gate.low)
    found = gradients.why(small("rnn", "identity"))
    assert (found.gates[0].low, found.gates[0].high, found.gates[0].slope) == (0, 0, 1)
    assert found.memory_chars is None


@pytest.mark.parametrize("scale", [1.0, 1e-250, 0.0, 1e200])
def test_spectral_norm(scale: float) -> None:
    a = np.random.default_rng(1).normal(size=(7, 7))
    assert gradients.spectral_norm(scale * a) == pytest.approx(scale * np.linalg.norm(a, 2))
    assert np.isinf(gradients.spectral_norm(np.full((2, 2), np.inf)))


# -- clipping -------------------------------------------------------------------------------------


def test_clipping() -> None:
    events = [
        {"event": "start", "step": 0},
        {"event": "train", "step": 10, "clipped": 0.5, "grad_norm": 2.0},
        {"event": "validation", "step": 15},
        {"event": "gradients", "step": 20, "clip_scale": 0.8, "clipped_elements": 0.25},
        {"event": "train", "step": 40, "clipped": 0.1, "grad_norm": None},
    ]
    g = np.array([3.0, 4.0, 0.0, 0.0], np.float32)
    found = gradients.clipping(events, {"a": g, "b": 0.1 * g}, limit=2.0, value_limit=3.5)
    assert (found.steps, found.clipped) == (40, pytest.approx((10 * 0.5 + 30 * 0.1) / 40))
    assert (found.scales, found.elements) == ([0.8], [0.25])
    assert found.logged[0] == 2.0 and np.isnan(found.logged[1])
    assert found.names == ["a", "b"]
    assert np.allclose(found.norms, [5, 0.5])
    assert np.allclose(found.factors, [2 / np.hypot(3, 3.5), 1])
    assert np.allclose(found.beyond, [0.25, 0])
    want = np.degrees(np.arctan2(4, 3) - np.arctan2(3.5, 3))
    assert np.allclose(found.angles, [want, 0])
    assert np.allclose(found.same_angles, [np.degrees(np.arctan2(4, 3)) - 45, 0])


def test_measurements_become_json() -> None:
    probe = small("gru")
    for found in (gradients.components(probe), gradients.reach(probe), gradients.why(probe)):
        assert dump_json(found.to_json())
    (curve, *_) = gradients.reach(probe, lags=2).to_json()["curves"]
    assert {"layer", "path", "at_zero", "quantiles", "falls_below_0.01"} <= curve.keys()
