"""The oracle is right: against central differences, PyTorch and the committed fixtures."""

from __future__ import annotations

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


def network_case(cell: str, network: str) -> tuple[naive.Arrays, list[naive.Arrays], Any, Any, Any]:
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
    finals = []
    for n, state in enumerate(initial):
        y, final = torch_layer(cell, "tanh", naive.layer_params(p, n), x, state)
        if (n > 0 and options["residual"]) or network == "embedding residual":
            y = y + x
        x = y * torch.tensor(options["masks"][n])
        finals.append(values(final))
    logits = x @ p["head.Wy"] + p["head.by"]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()

    got_loss, grads, got_finals, dstates = naive.network_gradients(
        params, ids, targets, states, cell=cell, **options
    )
    assert got_loss == pytest.approx(loss.item(), rel=1e-12)
    assert_close(flat({}, got_finals), flat({}, finals), 1e-10)
    want = {name: t.grad.numpy() for name, t in flat(p, initial).items()}
    assert_close(flat(grads, dstates), want, 1e-10)


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
