"""Every cell's gradients: against the oracle, central differences, fixtures and PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import naive
import networks
import numpy as np
import pytest
from networks import KINDS, NETWORKS, B, H, T, V, Window
from safetensors import safe_open
from support import assert_close, relative_error, same_bits

from charrnn import cells
from charrnn.config import CELLS, ModelConfig
from charrnn.model import Model

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}
each_kind = pytest.mark.parametrize(("cell", "activation"), KINDS)
each_cell = pytest.mark.parametrize("cell", CELLS)
each_network = pytest.mark.parametrize("network", NETWORKS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def test_cells_are_the_files_of_their_folder() -> None:
    """Adding a cell is one file and one slow twin; docs/cells.md has what else names them."""
    files = {p.stem for p in Path(cells.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert set(CELLS) == files == set(naive.CELLS)
    assert {cells.get(name).name for name in CELLS} == files
    assert {k for cell in CELLS for k in cells.get(cell).activations} == set(naive.ACTIVATIONS)


@each_cell
def test_shapes_are_the_oracles(cell: str) -> None:
    for L, E in ((1, 0), (2, 7)):
        config = ModelConfig(model=cell, hidden_size=H, num_layers=L, embedding_size=E)
        assert Model(config, V).shapes() == naive.network_shapes(cell, V, H, L, E)


# --- The oracle --------------------------------------------------------------------------------


def assert_equals_oracle(model: Model, data: Window, tolerance: float) -> None:
    loss, run = networks.train(model, data)
    masks = networks.masks(run) if model.config.dropout else None
    want_loss, want, finals, dinitials = networks.oracle(model, data, masks)
    assert loss == pytest.approx(want_loss, rel=tolerance)
    assert_close(networks.weight_gradients(run), want, tolerance)
    assert_close(run.state(), finals, tolerance)
    assert_close(networks.state_gradients(run), dinitials, tolerance)


@each_kind
@each_network
@each_dtype
def test_gradients_equal_the_oracles(cell: str, activation: str, network: str, dtype: str) -> None:
    model = networks.make(cell, activation, dtype, **NETWORKS[network])
    assert_equals_oracle(model, networks.window(model), TOLERANCE[dtype])


@pytest.mark.portable
@each_cell
def test_gradients_equal_the_oracles_everywhere(cell: str) -> None:
    """One network that has everything: embedding, residual links, dropout, a one-hot output."""
    model = networks.make(cell, dtype="float32", **NETWORKS["embedding"])
    assert_equals_oracle(model, networks.window(model), TOLERANCE["float32"])


@each_cell
def test_odd_shapes(cell: str) -> None:
    """Widths of one and around vectors and panels, a single row, a single step."""
    for h, v, t, b in ((1, 2, 3, 1), (16, 33, 1, 9), (33, 64, 2, 17), (70, 5, 3, 2)):
        model = networks.make(cell, dtype="float32", V=v, hidden_size=h)
        assert_equals_oracle(model, networks.window(model, t, b), TOLERANCE["float32"])


@each_cell
def test_gradient_of_real_valued_inputs(cell: str) -> None:
    """Where each character occurs once, the embedding is the input and its gradient dLoss/dx."""
    model = networks.make(cell, embedding_size=networks.E)
    data = networks.window(model)
    ids = np.random.default_rng(3).permutation(V)[: T * B].reshape(T, B)
    _, run = networks.train(model, data._replace(ids=ids))
    dx = run.window.dx[0]
    embedding = networks.weight_gradients(run)["embedding"]
    assert same_bits(embedding[ids], dx)
    assert not np.delete(embedding, ids, axis=0).any()

    params = model.params.views
    x = params["embedding"][ids]
    layer = naive.layer_params(params, 0)
    state = {n: s[0] for n, s in data.state.items()}
    out, _, cache = naive.CELLS[cell].forward(layer, x, state)
    _, dlogits = naive.cross_entropy(out @ params["head.Wy"] + params["head.by"], data.targets)
    zero = {n: np.zeros_like(s) for n, s in state.items()}
    _, want, _ = naive.CELLS[cell].backward(layer, cache, dlogits @ params["head.Wy"].T, zero)
    assert relative_error(dx, want) < 1e-9


# --- Central differences -----------------------------------------------------------------------

EPS = 1e-5


class Differences:
    """The loss of a model as a function of its weights and its initial state."""

    def __init__(self, model: Model, data: Window) -> None:
        self.model, self.data = model, data
        self.arrays = {**model.params.views, **{f"state {n}": s for n, s in data.state.items()}}

    def loss(self) -> float:
        self.model.changed()
        return float(self.model.losses(*self.data)[0].mean())

    def slope(self, moves: dict[str, np.ndarray]) -> float:
        """Derivative of the loss as every named array moves along its direction."""
        kept = {name: self.arrays[name].copy() for name in moves}
        losses = []
        for sign in (1, -1):
            for name, direction in moves.items():
                self.arrays[name][...] = kept[name] + sign * EPS * direction
            losses.append(self.loss())
        for name in moves:
            self.arrays[name][...] = kept[name]
        self.model.changed()
        return (losses[0] - losses[1]) / (2 * EPS)


@each_kind
def test_gradients_are_central_differences(cell: str, activation: str) -> None:
    options = NETWORKS["embedding"] | {"dropout": 0.0}
    model = networks.make(cell, activation, **options)
    data = networks.window(model)
    _, run = networks.train(model, data)
    grads = networks.weight_gradients(run)
    grads |= {f"state {n}": g for n, g in networks.state_gradients(run).items()}
    differences, rng = Differences(model, data), np.random.default_rng(4)
    assert set(grads) == set(differences.arrays)

    for name, grad in grads.items():
        count = grad.size if name.startswith("state") else min(grad.size, 12)
        for i in rng.choice(grad.size, count, replace=False):
            unit = np.zeros(grad.shape)
            unit.flat[i] = 1
            error = abs(differences.slope({name: unit}) - grad.flat[i])
            assert error < 1e-6 * abs(grad).max(), (name, i)

    along = {name: rng.normal(size=grad.shape) for name, grad in grads.items()}
    want = sum((grads[name] * along[name]).sum() for name in grads)
    scale = sum(np.linalg.norm(grads[n]) * np.linalg.norm(along[n]) for n in grads)
    assert abs(differences.slope(along) - want) < 1e-6 * scale


# --- Fixtures: no torch needed -----------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm", "fastrnn"])
def test_fixture(name: str, dtype: str) -> None:
    with safe_open(FIXTURES / f"{name}.safetensors", framework="numpy") as f:
        about = json.loads(f.metadata()["reference"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    layers, _, hidden = tensors["h0"].shape
    config = ModelConfig(
        model=about["cell"], activation=about.get("activation", "tanh"), hidden_size=hidden,
        num_layers=layers, dtype=dtype,
    )  # fmt: skip
    model = Model(config, len(tensors["head.bias"]))
    ours = {k: k if k.startswith("head.") else f"rnn.{k}" for k in tensors}
    weights = {ours[k]: v.astype(dtype) for k, v in tensors.items() if f"grad.{k}" in tensors}
    model.from_torch({k: v for k, v in weights.items() if not k.endswith(("h0", "c0"))})
    data = Window(
        tensors["ids"], tensors["targets"], {s: tensors[f"{s}0"] for s in model.cell.states}
    )
    tolerance = {"float64": 1e-11, "float32": 1e-4}[dtype]

    logits, final = model.forward(data.ids, data.state)
    got = model.gradients(*data)
    assert got.loss == pytest.approx(float(tensors["loss"]), rel=tolerance)
    assert relative_error(logits["logits"], tensors["logits"]) < tolerance
    for s in model.cell.states:
        assert relative_error(final[s], tensors[f"{s}n"]) < tolerance
        assert relative_error(got.final_state[s], tensors[f"{s}n"]) < tolerance
        assert relative_error(got.state[s], tensors[f"grad.{s}0"]) < tolerance
    want = {ours[k]: tensors[f"grad.{k}"] for k in tensors if f"grad.{k}" in tensors}
    want = {k: v for k, v in want.items() if "bias_hh" not in k and not k.endswith(("h0", "c0"))}
    if about["cell"] == "gru":  # its bias_hh has a part of its own
        for n in range(layers):
            part = got.weights[f"rnn.bias_hh_l{n}"][2 * hidden :]
            assert relative_error(part, tensors[f"grad.bias_hh_l{n}"][2 * hidden :]) < tolerance
    assert_close({k: got.weights[k] for k in want}, want, tolerance)


# --- PyTorch, where it is installed ------------------------------------------------------------

TORCH = [(c, a) for c, a in KINDS if cells.get(c).torch_module and a in ("tanh", "relu")]


@each_dtype
@pytest.mark.parametrize("embedding", (0, networks.E))
@pytest.mark.parametrize(("cell", "activation"), TORCH)
def test_torch_modules_agree(cell: str, activation: str, embedding: int, dtype: str) -> None:
    """The weights that `to_torch` gives, loaded into PyTorch's own modules."""
    torch = pytest.importorskip("torch")
    model = networks.make(cell, activation, dtype, num_layers=2, embedding_size=embedding)
    data = networks.window(model)
    ours = {k: torch.tensor(v) for k, v in model.to_torch(model.params).items()}
    kind = getattr(torch, dtype)
    rnn = getattr(torch.nn, model.cell.torch_module)(
        embedding or V, H, 2, dtype=kind, **({"nonlinearity": activation} if cell == "rnn" else {})
    )
    rnn.load_state_dict({k.removeprefix("rnn."): v for k, v in ours.items() if "rnn." in k})
    head = torch.nn.Linear(H, V, dtype=kind)
    head.load_state_dict({k.removeprefix("head."): v for k, v in ours.items() if "head." in k})
    ids = torch.tensor(data.ids)
    x = torch.nn.functional.one_hot(ids, V).to(kind)
    if embedding:
        table = ours["embedding.weight"].requires_grad_()
        x = torch.nn.functional.embedding(ids, table)
    state = {n: torch.tensor(s).requires_grad_() for n, s in data.state.items()}
    y, final = rnn(x, tuple(state.values()) if cell == "lstm" else state["h"])
    final = final if cell == "lstm" else (final,)
    loss = torch.nn.functional.cross_entropy(
        head(y).flatten(0, 1), torch.tensor(data.targets).flatten()
    )
    loss.backward()

    got, tolerance = model.gradients(*data), {"float64": 1e-10, "float32": 1e-4}[dtype]
    assert got.loss == pytest.approx(loss.item(), rel=tolerance)
    want = {f"rnn.{k}": p.grad for k, p in rnn.named_parameters() if "bias_hh" not in k}
    want |= {f"head.{k}": p.grad for k, p in head.named_parameters()}
    want |= {"embedding.weight": table.grad} if embedding else {}
    assert_close({k: got.weights[k] for k in want}, want, tolerance)
    assert_close(got.state, {n: s.grad for n, s in state.items()}, tolerance)
    assert_close(
        got.final_state,
        {n: s.detach() for n, s in zip(state, final, strict=True)},
        tolerance,
    )


# --- Worked example ----------------------------------------------------------------------------


@each_dtype
def test_textbook_example(dtype: str) -> None:
    """Input I, U = V = I, W = 2I: each step doubles what is remembered."""
    config = ModelConfig(model="rnn", activation="identity", hidden_size=5, dtype=dtype)
    model = Model(config, 5)
    views = model.params.views
    for name, factor in (("layers.0.Wx", 1), ("layers.0.Wh", 2), ("head.Wy", 1)):
        views[name][...] = factor * np.eye(5)
    logits = model.forward(np.arange(5)[:, None])[0]["logits"]
    powers = [[2.0 ** (t - j) if j <= t else 0.0 for j in range(5)] for t in range(5)]
    np.testing.assert_array_equal(logits[:, 0], powers)


# --- What a cell is to PyTorch -----------------------------------------------------------------


@each_cell
def test_torch_names_go_there_and_back(cell: str) -> None:
    model = networks.make(cell, num_layers=2, embedding_size=networks.E)
    other = networks.make(cell, num_layers=2, embedding_size=networks.E)
    other.params.flat[:] = 0
    other.from_torch({k: v.copy() for k, v in model.to_torch(model.params).items()})
    assert same_bits(other.params.flat, model.params.flat)
