"""The slow oracle: every cell, the whole network, its gradient's components and every update rule.

Nothing here is fast and nothing comes from ``charrnn``: plain NumPy, one gate and one time step
after the other, in float64, written so that it can be checked against a textbook by eye.

Sizes: ``T`` time steps, ``B`` batch rows, ``V`` vocabulary, ``E`` embedding width, ``D`` input
width of a layer, ``H`` hidden, ``L`` layers, ``G`` gates per unit. ``dX`` is dLoss/dX and has the
shape of ``X``. A backward line names in brackets the forward line that it undoes.

Parameters of a layer: ``Wx (D, G*H)``, ``Wh (H, G*H)``, ``b (G*H,)`` with the gates side by side
(LSTM i, f, g, o; GRU r, z, n), and what a cell has beyond them. A cell's state is a dictionary:
``h (B, H)``, for the LSTM also ``c (B, H)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return (1 + np.tanh(a / 2)) / 2  # equal to 1 / (1 + exp(-a)), but never overflows


# Name -> the function, and its derivative as seen from its value y.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda y: 1 - y**2),
    "relu": (lambda a: np.maximum(a, 0), lambda y: (y > 0) * 1.0),
    "sigmoid": (sigmoid, lambda y: y * (1 - y)),
    "identity": (lambda a: a, np.ones_like),
}


def float64(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(a, dtype=np.float64) for name, a in arrays.items()}


def zeros_like(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.zeros(np.shape(a)) for name, a in arrays.items()}


# --- Cells ------------------------------------------------------------------------------------


class Cell(ABC):
    """A recurrent layer: the loop over time; its subclasses hold the arithmetic of one step."""

    gates: str
    states: tuple[str, ...] = ("h",)

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        G = len(self.gates)
        return {"Wx": (D, G * H), "Wh": (H, G * H), "b": (G * H,)}

    def forward(
        self, params: Mapping[str, Any], x: Any, state: Mapping[str, Any], activation: str = "tanh"
    ) -> tuple[Array, Arrays, Any]:
        """Outputs ``h (T, B, H)``, the final state, and the cache that `backward` needs.

        ``x`` is (T, B, D). ``activation`` matters to the plain rnn only.
        """
        p = self._by_gate(float64(params), activation)
        x, state = np.asarray(x, dtype=np.float64), float64(state)
        outputs, steps = [], []
        for t in range(len(x)):
            state, step = self.step(p, x[t], state)
            outputs.append(state["h"])
            steps.append(step)
        return np.stack(outputs), state, (activation, steps)

    def backward(
        self, params: Mapping[str, Any], cache: Any, dout: Any, dstate: Mapping[str, Any]
    ) -> tuple[Arrays, Array, Arrays]:
        """``dparams``, ``dx (T, B, D)`` and the initial state's gradient.

        ``dout`` (T, B, H) is the gradient of the outputs, ``dstate`` that of the final state.
        """
        activation, steps = cache
        p = self._by_gate(float64(params), activation)
        dparams = zeros_like(params)
        d = self._by_gate(dparams, activation)  # views: what is added to d is added to dparams
        dout, dstate = np.asarray(dout, dtype=np.float64), float64(dstate)
        dx = []
        for t in reversed(range(len(steps))):
            dstate["h"] = dstate["h"] + dout[t]
            dx_t, dstate = self.step_back(p, d, steps[t], dstate)
            dx.append(dx_t)
        return dparams, np.stack(dx[::-1]), dstate

    @abstractmethod
    def step(self, p: Any, x: Array, state: Arrays) -> tuple[Arrays, Any]:
        """One time step: the next state, and what `step_back` needs."""

    @abstractmethod
    def step_back(self, p: Any, d: Any, step: Any, dstate: Arrays) -> tuple[Array, Arrays]:
        """Undo `step`: adds to the gradients ``d``; returns dx and the earlier state's gradient."""

    def _by_gate(self, params: Arrays, activation: str) -> SimpleNamespace:
        """Views ``p.<gate>.Wx``, ``.Wh``, ``.b``, and the cell's other parameters by name."""
        shared = {name: params[name] for name in params if name not in ("Wx", "Wh", "b")}
        columns = [np.split(params[name], len(self.gates), axis=-1) for name in ("Wx", "Wh", "b")]
        gates = {
            gate: SimpleNamespace(Wx=Wx, Wh=Wh, b=b)
            for gate, Wx, Wh, b in zip(self.gates, *columns, strict=True)
        }
        return SimpleNamespace(**gates, **shared, activation=activation)


def undo_affine(p: Any, d: Any, x: Array, h: Array, da: Array) -> tuple[Array, Array]:
    """Undo ``a = x @ p.Wx + h @ p.Wh + p.b``: adds to d; returns dx and dh."""
    d.Wx += x.T @ da
    d.Wh += h.T @ da
    d.b += da.sum(axis=0)
    return da @ p.Wx.T, da @ p.Wh.T


class RNN(Cell):
    """Elman (1990): h_t = activation(x_t Wx + h_(t-1) Wh + b)."""

    gates = "a"

    def step(self, p: Any, x: Array, state: Arrays) -> tuple[Arrays, Any]:
        h = state["h"]
        function, _ = ACTIVATIONS[p.activation]
        a = x @ p.a.Wx + h @ p.a.Wh + p.a.b  # (1)
        h_new = function(a)  # (2)
        return {"h": h_new}, (x, h, h_new)

    def step_back(self, p: Any, d: Any, step: Any, dstate: Arrays) -> tuple[Array, Arrays]:
        x, h, h_new = step
        _, derivative = ACTIVATIONS[p.activation]
        da = dstate["h"] * derivative(h_new)  # (2)
        dx, dh = undo_affine(p.a, d.a, x, h, da)  # (1)
        return dx, {"h": dh}


class GRU(Cell):
    """Cho et al. (2014) as PyTorch has it: the reset gate acts after the product with Wh.

    r = sigmoid(x Wx_r + h Wh_r + b_r);  z = sigmoid(x Wx_z + h Wh_z + b_z)
    n = tanh(x Wx_n + b_n + r * (h Wh_n + bhn));  h' = (1 - z) * n + z * h
    """

    gates = "rzn"

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(D, H), "bhn": (H,)}

    def step(self, p: Any, x: Array, state: Arrays) -> tuple[Arrays, Any]:
        h = state["h"]
        r = sigmoid(x @ p.r.Wx + h @ p.r.Wh + p.r.b)  # (1)
        z = sigmoid(x @ p.z.Wx + h @ p.z.Wh + p.z.b)  # (2)
        m = h @ p.n.Wh + p.bhn  # (3)
        n = np.tanh(x @ p.n.Wx + p.n.b + r * m)  # (4)
        h_new = (1 - z) * n + z * h  # (5)
        return {"h": h_new}, (x, h, r, z, m, n)

    def step_back(self, p: Any, d: Any, step: Any, dstate: Arrays) -> tuple[Array, Arrays]:
        x, h, r, z, m, n = step
        dh_new = dstate["h"]
        dn = dh_new * (1 - z)  # (5)
        dz = dh_new * (h - n)  # (5)
        dh_5 = dh_new * z  # (5)
        da_n = dn * (1 - n**2)  # (4) tanh
        dr = da_n * m  # (4) the reset
        dm = da_n * r  # (4) the reset
        d.n.Wx += x.T @ da_n  # (4) the product
        d.n.b += da_n.sum(axis=0)  # (4) the bias
        dx_4 = da_n @ p.n.Wx.T  # (4) the product
        d.n.Wh += h.T @ dm  # (3)
        d.bhn += dm.sum(axis=0)  # (3)
        dh_3 = dm @ p.n.Wh.T  # (3)
        dx_2, dh_2 = undo_affine(p.z, d.z, x, h, dz * z * (1 - z))  # (2)
        dx_1, dh_1 = undo_affine(p.r, d.r, x, h, dr * r * (1 - r))  # (1)
        return dx_1 + dx_2 + dx_4, {"h": dh_1 + dh_2 + dh_3 + dh_5}


class LSTM(Cell):
    """Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000).

    i, f, o = sigmoid(x Wx + h Wh + b);  g = tanh(x Wx_g + h Wh_g + b_g)
    c' = f * c + i * g;  h' = o * tanh(c')
    """

    gates = "ifgo"
    states = ("h", "c")

    def step(self, p: Any, x: Array, state: Arrays) -> tuple[Arrays, Any]:
        h, c = state["h"], state["c"]
        i = sigmoid(x @ p.i.Wx + h @ p.i.Wh + p.i.b)  # (1)
        f = sigmoid(x @ p.f.Wx + h @ p.f.Wh + p.f.b)  # (2)
        g = np.tanh(x @ p.g.Wx + h @ p.g.Wh + p.g.b)  # (3)
        o = sigmoid(x @ p.o.Wx + h @ p.o.Wh + p.o.b)  # (4)
        c_new = f * c + i * g  # (5)
        s = np.tanh(c_new)  # (6)
        h_new = o * s  # (7)
        return {"h": h_new, "c": c_new}, (x, h, c, i, f, g, o, s)

    def step_back(self, p: Any, d: Any, step: Any, dstate: Arrays) -> tuple[Array, Arrays]:
        x, h, c, i, f, g, o, s = step
        dh_new, dc_new = dstate["h"], dstate["c"]
        do = dh_new * s  # (7)
        ds = dh_new * o  # (7)
        dc_new = dc_new + ds * (1 - s**2)  # (6), beside what comes from the next step
        df = dc_new * c  # (5)
        dc = dc_new * f  # (5)
        di = dc_new * g  # (5)
        dg = dc_new * i  # (5)
        dx_4, dh_4 = undo_affine(p.o, d.o, x, h, do * o * (1 - o))  # (4)
        dx_3, dh_3 = undo_affine(p.g, d.g, x, h, dg * (1 - g**2))  # (3)
        dx_2, dh_2 = undo_affine(p.f, d.f, x, h, df * f * (1 - f))  # (2)
        dx_1, dh_1 = undo_affine(p.i, d.i, x, h, di * i * (1 - i))  # (1)
        return dx_1 + dx_2 + dx_3 + dx_4, {"h": dh_1 + dh_2 + dh_3 + dh_4, "c": dc}


class FastRNN(Cell):
    """Kusupati et al. (2018): h_t = beta h_(t-1) + alpha tanh(x_t Wx + h_(t-1) Wh + b)."""

    gates = "a"

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(D, H), "alpha": (1,), "beta": (1,)}

    def step(self, p: Any, x: Array, state: Arrays) -> tuple[Arrays, Any]:
        h = state["h"]
        u = np.tanh(x @ p.a.Wx + h @ p.a.Wh + p.a.b)  # (1)
        h_new = p.beta * h + p.alpha * u  # (2)
        return {"h": h_new}, (x, h, u)

    def step_back(self, p: Any, d: Any, step: Any, dstate: Arrays) -> tuple[Array, Arrays]:
        x, h, u = step
        dh_new = dstate["h"]
        d.beta += (dh_new * h).sum()  # (2)
        d.alpha += (dh_new * u).sum()  # (2)
        dh_2 = dh_new * p.beta  # (2)
        du = dh_new * p.alpha  # (2)
        dx, dh_1 = undo_affine(p.a, d.a, x, h, du * (1 - u**2))  # (1)
        return dx, {"h": dh_1 + dh_2}


CELLS: dict[str, Cell] = {"rnn": RNN(), "gru": GRU(), "lstm": LSTM(), "fastrnn": FastRNN()}


# --- The whole network ------------------------------------------------------------------------


def network_shapes(cell: str, V: int, H: int, L: int = 1, E: int = 0) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape: ``embedding``, ``layers.0.Wx``, ..., ``head.Wy``, ``head.by``."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, E)} if E else {}
    for layer in range(L):
        D = H if layer else (E or V)
        for name, shape in CELLS[cell].shapes(D, H).items():
            shapes[f"layers.{layer}.{name}"] = shape
    return {**shapes, "head.Wy": (H, V), "head.by": (V,)}


def zero_states(cell: str, L: int, B: int, H: int) -> list[Arrays]:
    return [{name: np.zeros((B, H)) for name in CELLS[cell].states} for _ in range(L)]


def layer_params(params: Mapping[str, Array], layer: int) -> Arrays:
    """The parameters of one layer without their prefix."""
    prefix = f"layers.{layer}."
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def network_forward(
    params: Mapping[str, Any],
    ids: Array,
    states: Sequence[Mapping[str, Any]],
    *,
    cell: str,
    activation: str = "tanh",
    residual: bool = False,
    masks: Sequence[Array] | None = None,
) -> tuple[Array, list[Arrays], Any]:
    """Logits (T, B, V), the final state of each layer, and the cache for `network_backward`.

    ``ids`` is (T, B), ``states`` has one state a layer. ``masks`` are the dropout masks, one
    (T, B, H) a layer, already scaled by 1/(1-p). A residual link adds a layer's input to its
    output where the widths agree; a one-hot input is never added.
    """
    params = float64(params)
    embedded = "embedding" in params
    rows = params["embedding"] if embedded else np.eye(params["head.by"].size)
    x = rows[ids]  # (1)
    finals, layers = [], []
    for layer, state in enumerate(states):
        own = layer_params(params, layer)
        h, final, cache = CELLS[cell].forward(own, x, state, activation)  # (2)
        linked = residual and h.shape == x.shape and (layer > 0 or embedded)
        y = h + x if linked else h  # (3)
        mask = np.ones_like(y) if masks is None else masks[layer]
        x = y * mask  # (4)
        finals.append(final)
        layers.append((cache, linked, mask))
    logits = x @ params["head.Wy"] + params["head.by"]  # (5)
    return logits, finals, (cell, ids, layers, x)


def network_backward(
    params: Mapping[str, Any],
    cache: Any,
    dlogits: Array,
    dstates: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Arrays, Array, list[Arrays]]:
    """Gradients of all parameters, of the input, and of each layer's initial state.

    The input's is (T, B, V) for a one-hot input, (T, B, E) for an embedding. ``dstates`` are the
    gradients of the final states; None means zero.
    """
    params = float64(params)
    cell, ids, layers, x = cache
    grads = zeros_like(params)
    grads["head.Wy"] = np.einsum("tbh,tbv->hv", x, dlogits)  # (5)
    grads["head.by"] = dlogits.sum(axis=(0, 1))  # (5)
    dx = dlogits @ params["head.Wy"].T  # (5)
    if dstates is None:
        dstates = zero_states(cell, len(layers), *x.shape[1:])
    dinitials: list[Arrays] = []
    for layer in reversed(range(len(layers))):
        own, (saved, linked, mask) = layer_params(params, layer), layers[layer]
        dy = dx * mask  # (4)
        dparams, dx, dinitial = CELLS[cell].backward(own, saved, dy, dstates[layer])  # (2)
        if linked:
            dx = dx + dy  # (3)
        for name, value in dparams.items():
            grads[f"layers.{layer}.{name}"] = value
        dinitials.insert(0, dinitial)
    if "embedding" in params:
        np.add.at(grads["embedding"], ids, dx)  # (1)
    return grads, dx, dinitials


def cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Nats of every character (T, B), and the gradient of their mean (T, B, V)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    one_hot = np.eye(logits.shape[-1])[targets]
    return -(one_hot * log_p).sum(axis=-1), (np.exp(log_p) - one_hot) / targets.size


def network_gradients(
    params: Mapping[str, Any],
    ids: Array,
    targets: Array,
    states: Sequence[Mapping[str, Any]],
    **options: Any,
) -> tuple[float, Arrays, list[Arrays], list[Arrays]]:
    """Mean nats per character, gradients, final states, gradients of the initial states.

    ``options`` are those of `network_forward`. The loss does not see the final states.
    """
    logits, finals, cache = network_forward(params, ids, states, **options)
    nats, dlogits = cross_entropy(logits, targets)
    grads, _, dinitials = network_backward(params, cache, dlogits)
    return float(nats.mean()), grads, finals, dinitials


# --- The gradient's way through time ----------------------------------------------------------


def components(
    params: Mapping[str, Any],
    ids: Array,
    targets: Array,
    states: Sequence[Mapping[str, Any]],
    *,
    masks: Sequence[Array] | None = None,
    **options: Any,
) -> list[list[Arrays]]:
    """``terms[l][e]``: the part of step e <= l in the gradient of the loss at time l.

    The loss at time l is the sum over the batch rows, in nats. Imagine that every time step had
    its own copy of all parameters: a term is the gradient with respect to the copy of step e, all
    others held. The head's is zero for e < l. Beside the parameters, ``"input"`` is the gradient
    with respect to what the network reads at e: (B, V) for a one-hot input, (B, E) for an
    embedding. ``masks`` and ``options`` are those of `network_forward`.
    """
    caches, dlogits = [], []
    for t in range(len(ids)):  # every step is a window of its own
        now = slice(t, t + 1)
        dropout = None if masks is None else [mask[now] for mask in masks]
        logits, states, cache = network_forward(params, ids[now], states, masks=dropout, **options)
        _, dmean = cross_entropy(logits, targets[now])
        caches.append(cache)
        dlogits.append(dmean * targets[now].size)
    terms = []
    for loss in range(len(ids)):
        terms_of_loss: list[Arrays] = []
        dlogit, dstates = dlogits[loss], None
        for step in reversed(range(loss + 1)):
            grads, dx, dstates = network_backward(params, caches[step], dlogit, dstates)
            terms_of_loss.insert(0, {**grads, "input": dx[0]})
            dlogit = np.zeros_like(dlogit)  # earlier steps are reached through the states only
        terms.append(terms_of_loss)
    return terms


def weighted_sum(terms: Sequence[Sequence[Arrays]], weights: Array) -> Arrays:
    """The sum over l and e of ``weights[l, e] * terms[l][e]``.

    The steps share the parameters, but each has its own input: ``"input"`` is (T, B, D).
    """
    T = len(terms)

    def of_step(step: int, name: str) -> Array:
        return sum(weights[loss, step] * terms[loss][step][name] for loss in range(step, T))

    apart = {name: np.stack([of_step(step, name) for step in range(T)]) for name in terms[0][0]}
    return {name: a if name == "input" else a.sum(axis=0) for name, a in apart.items()}


# What a truncation strategy keeps: weights (T, T), loss l in the row, step e in the column.


def full_weights(T: int) -> Array:
    """Every loss is sent back to the first step."""
    return np.tri(T)


def truncated_weights(T: int, window: int) -> Array:
    """Every loss is sent back to the start of its window of ``window`` steps."""
    windows = np.arange(T) // window
    return np.tri(T) * (windows[:, None] == windows)


def sliding_weights(T: int, k1: int, k2: int) -> Array:
    """Williams and Peng (1990): every k1 steps, the newest k1 losses are sent back k2 >= k1 steps.

    The newest loss's own step is the first of the k2, so that the oldest of the k1 goes back
    k2 - k1 steps beyond its own; so it does if the text ends before the k1 are complete.
    """
    weights = np.zeros((T, T))
    for start in range(0, T, k1):
        end = min(start + k1, T)
        weights[start:end, max(start + k1 - k2, 0) : end] = 1
    return weights * np.tri(T)


def weighted_links(ways: Array) -> Array:
    """Tallec and Ollivier (2017): the gradient on its way from step t + 1 to t is times ways[t].

    Randomised truncation draws ways[t] = 0 with probability 1 - p, else 1/p: its mean is 1.
    """
    T = len(ways)
    weights = np.zeros((T, T))
    for loss in range(T):
        for step in range(loss + 1):
            weights[loss, step] = np.prod(ways[step:loss])
    return weights


# --- Clipping and update rules ----------------------------------------------------------------


def clip_by_value(grads: Mapping[str, Array], limit: float) -> Arrays:
    """Every element brought into [-limit, limit]; 0 is off."""
    return {k: np.clip(g, -limit, limit) if limit else g for k, g in grads.items()}


def global_norm(arrays: Iterable[Array]) -> float:
    return float(np.sqrt(sum(np.sum(a**2) for a in arrays)))


def clip_by_norm(grads: Mapping[str, Array], limit: float) -> tuple[Arrays, float]:
    """Gradients scaled to a global norm of at most ``limit`` (0 is off), and the norm before."""
    norm = global_norm(grads.values())
    scale = min(1.0, limit / (norm + 1e-6)) if limit else 1.0  # the 1e-6 is PyTorch's
    return {k: g * scale for k, g in grads.items()}, norm


@dataclass(frozen=True)
class Rates:
    """The numbers of an update rule, named as on the command line."""

    learning_rate: float
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0


# An update rule takes weights, gradient, memory and rates, changes the memory (empty at first)
# and returns the new weights. All are in PyTorch's formulation.


def _l2(w: Array, g: Array, p: Rates) -> Array:
    return g + p.weight_decay * w


def sgd(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    return w - p.learning_rate * _l2(w, g, p)


def momentum(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    velocity = memory["m"] = p.momentum * memory.get("m", 0.0) + _l2(w, g, p)
    return w - p.learning_rate * velocity


def adagrad(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    g = _l2(w, g, p)
    v = memory["v"] = memory.get("v", 0.0) + g**2
    return w - p.learning_rate * g / (np.sqrt(v) + p.epsilon)


def rmsprop(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    g = _l2(w, g, p)
    v = memory["v"] = p.beta2 * memory.get("v", 0.0) + (1 - p.beta2) * g**2
    return w - p.learning_rate * g / (np.sqrt(v) + p.epsilon)


def adam(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    g = _l2(w, g, p)
    step = memory["step"] = memory.get("step", 0) + 1
    m = memory["m"] = p.beta1 * memory.get("m", 0.0) + (1 - p.beta1) * g
    v = memory["v"] = p.beta2 * memory.get("v", 0.0) + (1 - p.beta2) * g**2
    m_hat = m / (1 - p.beta1**step)
    v_hat = v / (1 - p.beta2**step)
    return w - p.learning_rate * m_hat / (np.sqrt(v_hat) + p.epsilon)


def adamw(w: Array, g: Array, memory: dict[str, Any], p: Rates) -> Array:
    w = w - p.learning_rate * p.weight_decay * w
    return adam(w, g, memory, replace(p, weight_decay=0.0))


OPTIMIZERS = {rule.__name__: rule for rule in (sgd, momentum, adagrad, rmsprop, adam, adamw)}


def update(
    optimizer: str,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    memory: dict[str, dict[str, Any]],
    rates: Rates,
) -> Arrays:
    """New parameters after one step; only matrices decay. ``memory`` starts as ``{}``."""
    undecayed = replace(rates, weight_decay=0.0)
    return {
        name: OPTIMIZERS[optimizer](
            w, grads[name], memory.setdefault(name, {}), rates if w.ndim == 2 else undecayed
        )
        for name, w in params.items()
    }


# --- PyTorch's layout -------------------------------------------------------------------------


def from_torch(tensors: Mapping[str, Any], cell: str) -> Arrays:
    """Network parameters from tensors under PyTorch's names (``weight_ih_l0``, ...).

    The two biases are summed, except GRU's n part, where ``bias_hh`` is ``bhn``.
    """
    tensors = float64(tensors)
    params = {"embedding": tensors["embedding.weight"]} if "embedding.weight" in tensors else {}
    layers = sum(name.startswith("weight_ih_l") for name in tensors)
    for n in range(layers):
        own = {"Wx": tensors[f"weight_ih_l{n}"].T, "Wh": tensors[f"weight_hh_l{n}"].T}
        own["b"] = tensors[f"bias_ih_l{n}"].copy()
        bias_hh = tensors[f"bias_hh_l{n}"]
        if cell == "gru":
            H = bias_hh.size // 3
            own["b"][: 2 * H] += bias_hh[: 2 * H]
            own["bhn"] = bias_hh[2 * H :]
        else:
            own["b"] += bias_hh
        for name in ("alpha", "beta"):
            if f"{name}_l{n}" in tensors:
                own[name] = tensors[f"{name}_l{n}"]
        params |= {f"layers.{n}.{name}": value for name, value in own.items()}
    return {**params, "head.Wy": tensors["head.weight"].T, "head.by": tensors["head.bias"]}


# --- Sampling ----------------------------------------------------------------------------------


def probabilities(logits, history, config, unknown=None):
    """The distribution (V,) that the next symbol is drawn from; ``history``: ids to penalise."""
    z = logits.astype(np.float64)
    if unknown is not None:
        z[unknown] = -np.inf
    z[np.unique(history).astype(int)] -= np.log(config.repetition_penalty)
    if config.temperature == 0:
        return np.eye(len(z))[z.argmax()]
    p = np.exp((z - z.max()) / config.temperature)
    order = np.argsort(-p, kind="stable")
    kept = order[: config.top_k or len(p)]
    if config.top_p < 1:
        reached = np.cumsum(p[kept])
        kept = kept[: 1 + np.count_nonzero(reached[:-1] < config.top_p * reached[-1])]
    p[np.setdiff1d(order, kept)] = 0
    p[p < config.min_p * p.max()] = 0
    return p / p.sum()
