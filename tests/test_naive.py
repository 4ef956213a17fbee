"""The oracle is right: against central differences, PyTorch and the committed fixtures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from safetensors import safe_open

FIXTURES = Path(__file__).parent / "fixtures"
T, B, V, E, D, H, L = 6, 2, 11, 7, 4, 5, 3

# Every cell, the plain rnn with each of its activations.
KINDS = [("rnn", name) for name in naive.ACTIVATIONS]
KINDS += [(cell, "tanh") for cell in naive.CELLS if cell != "rnn"]
each_kind = pytest.mark.parametrize(("cell", "activation"), KINDS)

# Embedding width, residual links, dropout. A residual link at layer 0 needs E == H.
NETWORKS: dict[str, dict[str, Any]] = {
    "one-hot": dict(E=0, residual=False, dropout=0.0),
    "one-hot residual": dict(E=0, residual=True, dropout=0.3),
    "embedding": dict(E=E, residual=True, dropout=0.3),
    "embedding residual": dict(E=H, residual=True, dropout=0.3),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def relative_error(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape
    if not b.any():  # dead units, the head's components of earlier steps
        return np.inf if a.any() else 0.0
    return float(np.abs(a - b).max() / np.abs(b).max())


def assert_close(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float) -> None:
    assert set(got) == set(want)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert all(error < tolerance for error in errors.values()), errors


def draw(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]) -> naive.Arrays:
    return {name: rng.normal(scale=0.6, size=shape) for name, shape in shapes.items()}


def numerical(f: Callable[[], float], arrays: Mapping[str, naive.Array]) -> naive.Arrays:
    """Central differences of f by every element of the arrays that it reads."""
    eps, grads = 1e-5, naive.zeros_like(arrays)
    for name, a in arrays.items():
        for i in np.ndindex(a.shape):
            kept = a[i]
            a[i] = kept + eps
            above = f()
            a[i] = kept - eps
            grads[name][i] = (above - f()) / (2 * eps)
            a[i] = kept
    return grads


def layer_case(cell: str, seed: int = 0) -> tuple[naive.Arrays, naive.Arrays, naive.Arrays]:
    """Random parameters, inputs (x and initial state), and gradients of all that comes out."""
    rng = np.random.default_rng(seed)
    state = {name: (B, H) for name in naive.CELLS[cell].states}
    params = draw(rng, naive.CELLS[cell].shapes(D, H))
    return params, draw(rng, {"x": (T, B, D), **state}), draw(rng, {"out": (T, B, H), **state})


def split_x(inputs: naive.Arrays) -> tuple[naive.Array, naive.Arrays]:
    return inputs["x"], {name: a for name, a in inputs.items() if name != "x"}


def layer_gradients(
    cell: str, activation: str, params: naive.Arrays, inputs: naive.Arrays, douts: naive.Arrays
) -> tuple[naive.Arrays, naive.Arrays]:
    """What naive says: everything that comes out, and the gradient of everything that goes in."""
    out, final, cache = naive.CELLS[cell].forward(params, *split_x(inputs), activation)
    dfinal = {name: d for name, d in douts.items() if name != "out"}
    dparams, dx, dstate = naive.CELLS[cell].backward(params, cache, douts["out"], dfinal)
    return {"out": out, **final}, {**dparams, "x": dx, **dstate}


@each_kind
def test_layer_gradients_are_central_differences(cell: str, activation: str) -> None:
    params, inputs, douts = layer_case(cell)

    def loss() -> float:
        out, final, _ = naive.CELLS[cell].forward(params, *split_x(inputs), activation)
        return float(sum((douts[name] * a).sum() for name, a in {"out": out, **final}.items()))

    _, grads = layer_gradients(cell, activation, params, inputs, douts)
    assert_close(grads, numerical(loss, {**params, **inputs}), 1e-6)


def network_case(
    cell: str, network: str, L: int = L, B: int = B
) -> tuple[naive.Arrays, list[naive.Arrays], Any, Any, Any]:
    """Random parameters, initial states, ids, targets, and the options of `network_forward`."""
    choice, rng = NETWORKS[network], np.random.default_rng(1)
    params = draw(rng, naive.network_shapes(cell, V, H, L, choice["E"]))
    states = [draw(rng, {name: (B, H) for name in naive.CELLS[cell].states}) for _ in range(L)]
    ids, targets = rng.integers(V, size=(2, T, B))
    kept = 1 - choice["dropout"]
    masks = [(rng.random((T, B, H)) < kept) / kept for _ in range(L)]
    return params, states, ids, targets, {"residual": choice["residual"], "masks": masks}


def flat(params: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Any]:
    """Parameters and states of all layers in one dictionary."""
    return params | {f"{n}.{name}": a for n, s in enumerate(states) for name, a in s.items()}


@each_network
@pytest.mark.parametrize("cell", naive.CELLS)
def test_network_gradients_are_central_differences(cell: str, network: str) -> None:
    params, states, ids, targets, options = network_case(cell, network)

    def loss() -> float:
        logits, _, _ = naive.network_forward(params, ids, states, cell=cell, **options)
        return float(naive.cross_entropy(logits, targets)[0].mean())

    got, grads, _, dstates = naive.network_gradients(
        params, ids, targets, states, cell=cell, **options
    )
    assert got == loss()
    # Along one random direction: the layer test has seen every element.
    rng, eps = np.random.default_rng(2), 1e-5
    arrays, gradient = flat(params, states), flat(grads, dstates)
    for name, a in arrays.items():
        direction, kept = rng.normal(size=a.shape), a.copy()
        a += eps * direction
        above = loss()
        a[...] = kept - eps * direction
        slope = (above - loss()) / (2 * eps)
        a[...] = kept
        scale = np.linalg.norm(gradient[name]) * np.linalg.norm(direction)
        assert abs((gradient[name] * direction).sum() - slope) < 1e-6 * scale, name


def test_a_one_hot_input_is_never_a_residual() -> None:
    rng = np.random.default_rng(5)
    params = draw(rng, naive.network_shapes("rnn", V=H, H=H))
    ids, states = rng.integers(H, size=(T, B)), naive.zero_states("rnn", 1, B, H)
    linked, plain = (
        naive.network_forward(params, ids, states, cell="rnn", residual=residual)[0]
        for residual in (True, False)
    )
    np.testing.assert_array_equal(linked, plain)


@each_kind
def test_one_window_is_three_with_carried_state(cell: str, activation: str) -> None:
    params, inputs, douts = layer_case(cell)
    whole_outs, whole_grads = layer_gradients(cell, activation, params, inputs, douts)

    (x, state), outs, caches = split_x(inputs), [], []
    for window in np.split(x, 3):
        out, state, cache = naive.CELLS[cell].forward(params, window, state, activation)
        outs.append(out)
        caches.append(cache)
    assert_close({"out": np.concatenate(outs), **state}, whole_outs, 1e-14)

    dstate = {name: d for name, d in douts.items() if name != "out"}
    total, dxs = naive.zeros_like(params), list[naive.Array]()
    for cache, dout in zip(caches[::-1], np.split(douts["out"], 3)[::-1], strict=True):
        dparams, dx, dstate = naive.CELLS[cell].backward(params, cache, dout, dstate)
        total = {name: total[name] + dparams[name] for name in total}
        dxs.insert(0, dx)
    assert_close({**total, "x": np.concatenate(dxs), **dstate}, whole_grads, 1e-13)


def test_textbook_example() -> None:
    eye = np.eye(5)
    params = {"Wx": eye, "Wh": 2 * eye, "b": np.zeros(5)}
    out, _, _ = naive.CELLS["rnn"].forward(
        params, eye[:, None], {"h": np.zeros((1, 5))}, "identity"
    )
    powers = [[2.0 ** (t - j) if j <= t else 0.0 for j in range(5)] for t in range(5)]
    np.testing.assert_array_equal(out[:, 0], powers)


# --- The gradient's way through time ----------------------------------------------------------

# Network, layers, batch rows.
SIZES = [("one-hot", 1, 1), ("one-hot residual", 2, 3), ("embedding", 1, 3)]
SIZES += [("embedding residual", 1, 3), ("embedding residual", 2, 1), ("embedding residual", 2, 3)]
each_size = pytest.mark.parametrize(("network", "L", "B"), SIZES)


def components_case(cell: str, activation: str, network: str, L: int, B: int) -> tuple[Any, Any]:
    """What `network_forward` and `components` take: their arguments and their options."""
    params, states, ids, targets, options = network_case(cell, network, L, B)
    return (params, ids, targets, states), {"cell": cell, "activation": activation, **options}


def cut(options: dict[str, Any], window: slice) -> dict[str, Any]:
    """The options of `network_forward` for some of the steps."""
    return {**options, "masks": [mask[window] for mask in options["masks"]]}


def add(total: naive.Arrays, more: naive.Arrays) -> naive.Arrays:
    return {name: total.get(name, 0.0) + a for name, a in more.items()}


@each_kind
@each_size
def test_components_sum_to_the_gradient(
    cell: str, activation: str, network: str, L: int, B: int
) -> None:
    case, options = components_case(cell, activation, network, L, B)
    terms = naive.components(*case, **options)
    assert [len(terms_of_loss) for terms_of_loss in terms] == [1, 2, 3, 4, 5, 6]
    got = naive.weighted_sum(terms, naive.full_weights(T))
    assert got.pop("input").shape[:2] == (T, B)
    _, mean, _, _ = naive.network_gradients(*case, **options)
    assert_close(got, {name: T * B * g for name, g in mean.items()}, 1e-10)


def test_components_without_masks_have_no_dropout() -> None:
    case, options = components_case("lstm", "tanh", "one-hot", 2, 3)
    assert all((mask == 1).all() for mask in options["masks"])
    want = naive.components(*case, **options)
    got = naive.components(*case, **{**options, "masks": None})
    for e, loss in itertools.combinations_with_replacement(range(T), 2):
        assert_close(got[loss][e], want[loss][e], 1e-15)


@each_kind
@each_size
def test_components_are_central_differences(
    cell: str, activation: str, network: str, L: int, B: int
) -> None:
    case, options = components_case(cell, activation, network, L, B)
    params, ids, targets, states = case
    terms = naive.components(*case, **options)

    def losses(e: int, changes: naive.Arrays) -> naive.Array:
        """The losses of all times if some arrays change at step e and nowhere else."""
        nats, now = [], states
        for t in range(T):
            change = changes if t == e else {}
            p = {name: a + change.get(name, 0.0) for name, a in params.items()}
            x = p.get("embedding", np.eye(V))[ids[t]] + change.get("input", 0.0)
            p["embedding"] = x  # every batch row reads a row of its own: the input changes freely
            here = slice(t, t + 1)
            logits, now, _ = naive.network_forward(p, np.arange(B)[None], now, **cut(options, here))
            nats.append(naive.cross_entropy(logits, targets[here])[0].sum())
        return np.array(nats)

    # Along one random direction: the layer test has seen every element.
    rng, eps = np.random.default_rng(2), 1e-5
    for e, name in itertools.product(range(T), terms[0][0]):
        direction = rng.normal(size=terms[0][0][name].shape)
        above, below = (losses(e, {name: sign * eps * direction}) for sign in (1, -1))
        slopes = (above - below) / (2 * eps)
        np.testing.assert_array_equal(slopes[:e], 0)  # no loss feels what comes after it
        for loss in range(e, T):
            term, rounding = terms[loss][e][name], 4 * np.spacing(above[loss]) / eps
            scale = np.linalg.norm(term) * np.linalg.norm(direction)
            error = abs((term * direction).sum() - slopes[loss])
            assert error < 1e-6 * scale + rounding, (loss, e, name)


@each_kind
@each_size
@pytest.mark.parametrize("window", [1, 2, 4, 9])  # 4: the last window is shorter
def test_truncated_is_window_by_window(
    cell: str, activation: str, network: str, L: int, B: int, window: int
) -> None:
    case, options = components_case(cell, activation, network, L, B)
    params, ids, targets, states = case
    weights = naive.truncated_weights(T, window)
    got = naive.weighted_sum(naive.components(*case, **options), weights)
    del got["input"]
    want: naive.Arrays = {}
    for start in range(0, T, window):
        here = slice(start, start + window)
        _, mean, states, _ = naive.network_gradients(
            params, ids[here], targets[here], states, **cut(options, here)
        )
        want = add(want, {name: targets[here].size * g for name, g in mean.items()})
    assert_close(got, want, 1e-10)


@each_kind
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 3), (2, 3), (2, 4), (4, 5), (3, 9), (6, 6)])
def test_sliding_sends_the_newest_losses_back(cell: str, activation: str, k1: int, k2: int) -> None:
    case, options = components_case(cell, activation, "embedding residual", 2, 3)
    params, ids, targets, states = case
    weights = naive.sliding_weights(T, k1, k2)
    got = naive.weighted_sum(naive.components(*case, **options), weights)
    dinput = np.zeros_like(got["input"])
    want: naive.Arrays = {}
    for start in range(0, T, k1):
        end = min(start + k1, T)
        begin = max(start + k1 - k2, 0)
        before, here = slice(begin), slice(begin, end)
        now = states
        if before.stop:
            _, now, _ = naive.network_forward(params, ids[before], now, **cut(options, before))
        logits, _, cache = naive.network_forward(params, ids[here], now, **cut(options, here))
        nats, dlogits = naive.cross_entropy(logits, targets[here])
        dlogits[: start - end] = 0  # the older losses of this stretch have had their turn
        grads, dx, _ = naive.network_backward(params, cache, nats.size * dlogits)
        want = add(want, grads)
        dinput[here] += dx
    assert_close(got, {**want, "input": dinput}, 1e-10)


@each_kind
@each_size
def test_weighted_links_scale_the_way_back(
    cell: str, activation: str, network: str, L: int, B: int
) -> None:
    case, options = components_case(cell, activation, network, L, B)
    params, ids, targets, states = case
    ways = np.array([1.5, 0.7, 0.0, 3.0, -2.0, 99.0])  # nothing comes back to the last step
    got = naive.weighted_sum(naive.components(*case, **options), naive.weighted_links(ways))

    caches, dlogits = [], []
    for t in range(T):
        here = slice(t, t + 1)
        logits, states, cache = naive.network_forward(
            params, ids[here], states, **cut(options, here)
        )
        caches.append(cache)
        dlogits.append(B * naive.cross_entropy(logits, targets[here])[1])
    want: naive.Arrays = {}
    dstates, dinput = naive.zero_states(cell, L, B, H), []
    for t in reversed(range(T)):
        dstates = [{name: ways[t] * d for name, d in state.items()} for state in dstates]
        grads, dx, dstates = naive.network_backward(params, caches[t], dlogits[t], dstates)
        want = add(want, grads)
        dinput.insert(0, dx[0])
    assert_close(got, {**want, "input": np.stack(dinput)}, 1e-10)


def test_weights_of_the_strategies() -> None:
    def picture(weights: naive.Array) -> list[str]:
        assert set(np.unique(weights)) <= {0, 1}
        return ["".join(".x"[int(w)] for w in row) for row in weights]

    assert picture(naive.full_weights(3)) == ["x..", "xx.", "xxx"]
    assert picture(naive.truncated_weights(5, 2)) == ["x....", "xx...", "..x..", "..xx.", "....x"]
    assert picture(naive.sliding_weights(5, 1, 2)) == ["x....", "xx...", ".xx..", "..xx.", "...xx"]
    assert picture(naive.sliding_weights(5, 2, 3)) == ["x....", "xx...", ".xx..", ".xxx.", "...xx"]
    for window in (1, 2, 3, 6, 7):
        truncated = naive.truncated_weights(6, window)
        np.testing.assert_array_equal(truncated, naive.sliding_weights(6, window, window))
        cuts = (np.arange(1, 7) % window != 0) * 1.0  # a cut after every window
        np.testing.assert_array_equal(truncated, naive.weighted_links(cuts))
    np.testing.assert_array_equal(naive.full_weights(7), naive.sliding_weights(7, 3, 9))
    np.testing.assert_array_equal(
        naive.weighted_links(np.array([2.0, 3.0, 5.0])), [[1, 0, 0], [2, 1, 0], [6, 3, 1]]
    )


# Steps since the last cut -> the probability that the link is kept.
KEPT: dict[str, Callable[[int], float]] = {
    "constant": lambda age: 0.25,
    "by age": lambda age: [0.5, 0.125, 0.25, 0.5][age],
    "spares the first": lambda age: 1.0 if age < 2 else 0.5,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("backward", [False, True])  # the age may count either way
def test_randomised_truncation_has_the_full_gradient_as_its_mean(kept: str, backward: bool) -> None:
    T, mean, plain, total = 5, 0.0, 0.0, 0.0
    for pattern in itertools.product([False, True], repeat=T - 1):
        probability, ways, age = 1.0, np.ones(T), 0
        for t in reversed(range(T - 1)) if backward else range(T - 1):
            p = KEPT[kept](age)
            probability *= p if pattern[t] else 1 - p
            ways[t] = 1 / p if pattern[t] else 0.0
            age = age + 1 if pattern[t] else 0
        mean = mean + probability * naive.weighted_links(ways)
        plain = plain + probability * naive.weighted_links(np.sign(ways))
        total += probability
    assert total == 1  # all numbers here are powers of two: no rounding
    np.testing.assert_array_equal(mean, naive.full_weights(T))
    assert np.all(plain[T - 1, : T - 3] < 1)  # without 1/p the far steps are too small


# --- Fixtures: no torch needed ----------------------------------------------------------------


def load(name: str) -> tuple[naive.Arrays, dict[str, Any]]:
    with safe_open(FIXTURES / f"{name}.safetensors", framework="numpy") as f:
        about = json.loads(f.metadata()["reference"])
        keys = f.keys()
        return {key: f.get_tensor(key) for key in keys}, about


@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm", "fastrnn"])
def test_gradient_fixture(name: str) -> None:
    tensors, about = load(name)
    cell, activation = about["cell"], about.get("activation", "tanh")
    weights = {k: v for k, v in tensors.items() if f"grad.{k}" in tensors}
    params = naive.from_torch(weights, cell)
    initial = {state: tensors[f"{state}0"] for state in naive.CELLS[cell].states}
    states = [{k: v[n] for k, v in initial.items()} for n in range(len(initial["h"]))]
    ids, targets = tensors["ids"], tensors["targets"]
    options = {"cell": cell, "activation": activation}

    logits, _, _ = naive.network_forward(params, ids, states, **options)
    loss, grads, finals, dstates = naive.network_gradients(params, ids, targets, states, **options)
    assert_close(
        {"logits": logits, "loss": loss}, {k: tensors[k] for k in ("logits", "loss")}, 1e-12
    )
    for state in initial:
        assert relative_error([s[state] for s in finals], tensors[f"{state}n"]) < 1e-12
        assert relative_error([s[state] for s in dstates], tensors[f"grad.{state}0"]) < 1e-12
    # Both of PyTorch's biases have the gradient of their sum: take it once. GRU's bhn is apart.
    once = {k: tensors[f"grad.{k}"] * ("bias_hh" not in k) for k in weights}
    want = naive.from_torch(once, cell)
    for n in range(len(states) if cell == "gru" else 0):
        want[f"layers.{n}.bhn"] = tensors[f"grad.bias_hh_l{n}"][2 * states[n]["h"].shape[1] :]
    assert_close(grads, want, 1e-12)


def test_training_fixture() -> None:
    tensors, about = load("adamw_lstm")
    names = {k.removeprefix("final.") for k in tensors if k.startswith("final.")}
    params = naive.from_torch({k: tensors[k] for k in names}, "lstm")
    rates = naive.Rates(**{k: v for k, v in about.items() if k in naive.Rates.__annotations__})
    states = naive.zero_states("lstm", 1, *tensors["hn"].shape[1:])
    memory: dict[str, dict[str, Any]] = {}
    losses, norms = [], []
    for ids, targets in zip(tensors["ids"], tensors["targets"], strict=True):
        loss, grads, states, _ = naive.network_gradients(params, ids, targets, states, cell="lstm")
        grads, norm = naive.clip_by_norm(grads, about["grad_clip"])
        params = naive.update("adamw", params, grads, memory, rates)
        losses.append(loss)
        norms.append(norm)
    got = {"losses": losses, "grad_norms": norms, "hn": [states[0]["h"]], "cn": [states[0]["c"]]}
    assert_close(got, {k: tensors[k] for k in got}, 1e-12)
    assert min(norms) < about["grad_clip"] < max(norms)  # some steps clip, some do not
    final = {k: tensors[f"final.{k}"] for k in names}
    assert_close(params, naive.from_torch(final, "lstm"), 1e-12)


# --- PyTorch, where it is installed -----------------------------------------------------------


def torch_layer(cell: str, activation: str, p: Any, x: Any, state: Any) -> tuple[Any, Any]:
    """A layer in PyTorch: its own module if it has one, else the recursion written out."""
    torch = pytest.importorskip("torch")
    modules = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    if activation in ("tanh", "relu"):
        modules["rnn"] = lambda *sizes: torch.nn.RNN(*sizes, nonlinearity=activation)
    if cell in modules:
        rnn = modules[cell](*x.shape[2:], *state["h"].shape[1:]).double()
        bias_hh = torch.zeros_like(p["b"])
        if cell == "gru":
            bias_hh = torch.cat([bias_hh[: -len(p["bhn"])], p["bhn"]])
        own = {"weight_ih_l0": p["Wx"].T, "weight_hh_l0": p["Wh"].T}
        own |= {"bias_ih_l0": p["b"], "bias_hh_l0": bias_hh}
        initial = tuple(s[None] for s in state.values())
        out, final = torch.func.functional_call(
            rnn, own, (x, initial if cell == "lstm" else initial[0])
        )
        final = final if cell == "lstm" else (final,)
        return out, {name: s[0] for name, s in zip(state, final, strict=True)}
    function = {"identity": lambda a: a}.get(activation) or getattr(torch, activation)
    h, outputs = state["h"], []
    for x_t in x:
        u = function(x_t @ p["Wx"] + h @ p["Wh"] + p["b"])
        h = p["beta"] * h + p["alpha"] * u if cell == "fastrnn" else u
        outputs.append(h)
    return torch.stack(outputs), {"h": h}


def torch_network(
    p: Any, x: Any, states: list[Any], *, cell: str, activation: str, residual: bool, masks: Any
) -> tuple[Any, list[Any]]:
    """Logits and final states. ``x`` is the input (T, B, D); a one-hot one is never H wide here."""
    torch = pytest.importorskip("torch")
    finals = []
    for n, (state, mask) in enumerate(zip(states, masks, strict=True)):
        y, final = torch_layer(cell, activation, naive.layer_params(p, n), x, state)
        if residual and x.shape == y.shape:
            y = y + x
        x = y * torch.tensor(mask)
        finals.append(final)
    return x @ p["head.Wy"] + p["head.by"], finals


def leaves(arrays: Mapping[str, naive.Array]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}


def values(tensors: Mapping[str, Any]) -> naive.Arrays:
    return {name: t.detach().numpy() for name, t in tensors.items()}


@each_kind
def test_layer_equals_torch(cell: str, activation: str) -> None:
    params, inputs, douts = layer_case(cell)
    p, given = leaves(params), leaves(inputs)
    out, final = torch_layer(cell, activation, p, *split_x(given))
    outs = {"out": out, **final}
    sum((leaves(douts)[name] * a).sum() for name, a in outs.items()).backward()
    want = {name: t.grad.numpy() for name, t in {**p, **given}.items()}

    got_outs, got = layer_gradients(cell, activation, params, inputs, douts)
    assert_close(got_outs, values(outs), 1e-10)
    assert_close(got, want, 1e-10)


@each_network
@pytest.mark.parametrize("cell", naive.CELLS)
def test_network_equals_torch(cell: str, network: str) -> None:
    torch = pytest.importorskip("torch")
    params, states, ids, targets, options = network_case(cell, network)
    p, initial = leaves(params), [leaves(s) for s in states]

    x = p["embedding"][ids] if "embedding" in p else torch.eye(V).double()[ids]
    logits, finals = torch_network(p, x, initial, cell=cell, activation="tanh", **options)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()

    got_loss, grads, got_finals, dstates = naive.network_gradients(
        params, ids, targets, states, cell=cell, **options
    )
    assert got_loss == pytest.approx(loss.item(), rel=1e-12)
    assert_close(flat({}, got_finals), values(flat({}, finals)), 1e-10)
    want = {name: t.grad.numpy() for name, t in flat(p, initial).items()}
    assert_close(flat(grads, dstates), want, 1e-10)


@each_kind
@each_size
def test_components_equal_torch(cell: str, activation: str, network: str, L: int, B: int) -> None:
    torch = pytest.importorskip("torch")
    case, options = components_case(cell, activation, network, L, B)
    params, ids, targets, states = case
    terms = naive.components(*case, **options)
    now = [{name: torch.tensor(a) for name, a in state.items()} for state in states]
    steps: list[dict[str, Any]] = []  # every step has leaves of its own
    for t in range(T):
        here, p = slice(t, t + 1), leaves(params)
        rows = p["embedding"] if "embedding" in p else leaves({"eye": np.eye(V)})["eye"]
        x = rows[ids[t]]
        logits, now = torch_network(p, x[None], now, **cut(options, here))
        steps.append({**p, "input": x})
        goal = torch.tensor(targets[t])
        loss = torch.nn.functional.cross_entropy(logits[0], goal, reduction="sum")
        for e, step in enumerate(steps):
            grads = torch.autograd.grad(
                loss, list(step.values()), retain_graph=True, materialize_grads=True
            )
            want = dict(zip(step, (g.numpy() for g in grads), strict=True))
            assert_close(terms[t][e], want, 1e-10)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", naive.OPTIMIZERS)
def test_optimizer_equals_torch(name: str, weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    rates = naive.Rates(
        learning_rate=0.05, momentum=0.8, beta1=0.85, beta2=0.97, epsilon=1e-7,
        weight_decay=weight_decay,
    )  # fmt: skip
    betas = {"betas": (rates.beta1, rates.beta2), "eps": rates.epsilon}
    rules: dict[str, tuple[Any, dict[str, Any]]] = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": rates.momentum}),
        "adagrad": (torch.optim.Adagrad, {"eps": rates.epsilon}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": rates.beta2, "eps": rates.epsilon}),
        "adam": (torch.optim.Adam, betas),
        "adamw": (torch.optim.AdamW, betas),
    }
    kind, options = rules[name]
    rng, shapes = np.random.default_rng(3), {"W": (3, 4), "b": (5,)}
    params = draw(rng, shapes)
    p = leaves(params)
    groups = [{"params": [p["W"]], "weight_decay": weight_decay}]
    groups += [{"params": [p["b"]], "weight_decay": 0.0}]  # only matrices decay
    optimizer = kind(groups, lr=rates.learning_rate, **options)
    memory: dict[str, dict[str, Any]] = {}
    for _ in range(10):
        grads = draw(rng, shapes)
        for key, t in p.items():
            t.grad = torch.tensor(grads[key])
        optimizer.step()
        params = naive.update(name, params, grads, memory, rates)
        assert_close(params, values(p), 1e-12)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_equals_torch(limit: float) -> None:
    torch = pytest.importorskip("torch")
    grads = draw(np.random.default_rng(4), {"W": (3, 4), "b": (5,)})

    def torch_clipped(clip: Callable[..., Any]) -> tuple[naive.Arrays, Any]:
        p = leaves(grads)
        for name, t in p.items():
            t.grad = torch.tensor(grads[name])
        result = clip(p.values(), limit)
        return {name: t.grad.numpy() for name, t in p.items()}, result

    want, _ = torch_clipped(torch.nn.utils.clip_grad_value_)
    assert_close(naive.clip_by_value(grads, limit), want, 1e-15)
    want, norm = torch_clipped(torch.nn.utils.clip_grad_norm_)
    got, got_norm = naive.clip_by_norm(grads, limit)
    assert_close(got, want, 1e-14)
    assert got_norm == pytest.approx(norm.item(), rel=1e-14)


def test_clipping_is_off_at_zero() -> None:
    grads = {"W": np.full((2, 3), 9.0)}
    np.testing.assert_array_equal(naive.clip_by_value(grads, 0)["W"], grads["W"])
    np.testing.assert_array_equal(naive.clip_by_norm(grads, 0)[0]["W"], grads["W"])
