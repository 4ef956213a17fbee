"""Write the reference fixtures of the tests: small networks, computed by PyTorch.

Weights are float32 numbers; PyTorch computes with them in float64, so the same file serves
float32 and float64 kernels. Run by hand, with torch installed; a second run writes the same bytes.
Adding a cell that PyTorch lacks: write its recursion out as `fastrnn` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor, nn

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
T, B, V, H, L = 7, 3, 11, 5, 2
STEPS = 10  # of the training fixture
GATES = {"rnn": 1, "gru": 3, "lstm": 4, "fastrnn": 1}

Tensors = dict[str, Tensor]


def weights(cell: str, layers: int, generator: torch.Generator) -> Tensors:
    """Random float32 values under PyTorch's names; both biases differ from zero."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(layers):
        rows = GATES[cell] * H
        shapes[f"weight_ih_l{n}"] = (rows, H if n else V)
        shapes[f"weight_hh_l{n}"] = (rows, H)
        shapes[f"bias_ih_l{n}"] = shapes[f"bias_hh_l{n}"] = (rows,)
    shapes |= {"head.weight": (V, H), "head.bias": (V,)}
    tensors = {name: normal(shape, generator, 0.6) for name, shape in shapes.items()}
    if cell == "fastrnn":
        for n in range(layers):
            tensors |= {f"alpha_l{n}": torch.tensor([0.7]), f"beta_l{n}": torch.tensor([0.4])}
    return tensors


def normal(shape: tuple[int, ...], generator: torch.Generator, scale: float) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32) * scale


def run_module(
    module: Callable[..., nn.RNNBase], **options: Any
) -> Callable[..., tuple[Tensor, Tensors]]:
    """The forward pass of one of PyTorch's own modules, as a function of its weights."""

    def run(p: Tensors, x: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        layers = len(state["h0"])
        rnn = module(x.shape[-1], H, layers, dtype=torch.float64, **options)
        own = {name: w for name, w in p.items() if not name.startswith("head.")}
        initial = (state["h0"], state["c0"]) if "c0" in state else state["h0"]
        y, final = torch.func.functional_call(rnn, own, (x, initial))
        return y, dict(zip(("hn", "cn"), final if "c0" in state else (final,), strict=False))

    return run


def run_fastrnn(p: Tensors, x: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
    """h_t = beta h_(t-1) + alpha tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), layer by layer."""
    finals = []
    for n, h in enumerate(state["h0"]):
        outputs = []
        for x_t in x:
            u = F.linear(x_t, p[f"weight_ih_l{n}"], p[f"bias_ih_l{n}"])
            u = torch.tanh(u + F.linear(h, p[f"weight_hh_l{n}"], p[f"bias_hh_l{n}"]))
            h = p[f"beta_l{n}"] * h + p[f"alpha_l{n}"] * u
            outputs.append(h)
        x = torch.stack(outputs)
        finals.append(h)
    return x, {"hn": torch.stack(finals)}


def loss_of(
    run: Callable[..., Any], p: Tensors, ids: Tensor, targets: Tensor, state: Tensors
) -> tuple[Tensor, Tensor, Tensors]:
    """Mean nats per character, logits (T, B, V) and final states of the whole network."""
    y, final = run(p, F.one_hot(ids, V).double(), state)
    logits = F.linear(y, p["head.weight"], p["head.bias"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits, final


def gradient_fixture(cell: str, run: Callable[..., Any], seed: int) -> Tensors:
    """One window from a non-zero state: everything that goes in and comes out."""
    generator = torch.Generator().manual_seed(seed)
    given = weights(cell, L, generator)
    for name in ("h0", "c0") if cell == "lstm" else ("h0",):
        given[name] = normal((L, B, H), generator, 0.5)
    ids = torch.randint(V, (T, B), generator=generator)
    targets = torch.randint(V, (T, B), generator=generator)

    p = {name: w.double().requires_grad_() for name, w in given.items()}
    state: Tensors = {name: p.pop(name) for name in ("h0", "c0") if name in p}
    loss, logits, final = loss_of(run, p, ids, targets, state)
    leaves = {**p, **state}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {
        **given,
        "ids": ids,
        "targets": targets,
        "logits": logits,
        "loss": loss,
        **final,
        **{f"grad.{name}": grad for name, grad in zip(leaves, grads, strict=True)},
    }


ADAMW = {
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.01,
    "grad_clip": 0.5,
}


def training_fixture(seed: int) -> Tensors:
    """AdamW steps of a one-layer LSTM over successive windows, the state carried.

    Only matrices decay. ``bias_hh`` is not trained: beside ``bias_ih`` it would move the bias that
    they form twice as fast as the one bias that charrnn has.
    """
    generator = torch.Generator().manual_seed(seed)
    given = weights("lstm", 1, generator)
    text = torch.randint(V // 2, (STEPS * T + 1, B), generator=generator)  # half never occur
    ids, targets = text[:-1].view(STEPS, T, B), text[1:].view(STEPS, T, B)

    p = {name: w.double().requires_grad_("bias_hh" not in name) for name, w in given.items()}
    trained = [w for w in p.values() if w.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in trained if w.ndim == 2]},
        {"params": [w for w in trained if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["epsilon"],
        weight_decay=ADAMW["weight_decay"],
    )
    run = run_module(nn.LSTM)
    state = {name: torch.zeros(1, B, H, dtype=torch.float64) for name in ("h0", "c0")}
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, _, final = loss_of(run, p, ids[step], targets[step], state)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, ADAMW["grad_clip"]))
        losses.append(loss)
        optimizer.step()
        state = {"h0": final["hn"].detach(), "c0": final["cn"].detach()}
    return {
        **given,
        "ids": ids,
        "targets": targets,
        "losses": torch.stack(losses),
        "grad_norms": torch.stack(norms),
        "hn": final["hn"],
        "cn": final["cn"],
        **{f"final.{name}": w for name, w in p.items()},
    }


def write(path: Path, tensors: Tensors, **about: Any) -> None:
    """Write a fixture; ``about`` becomes the JSON string ``reference`` of the metadata."""
    arrays = {name: t.detach().contiguous().numpy() for name, t in tensors.items()}
    for name in ("ids", "targets"):
        arrays[name] = arrays[name].astype(np.int32)
    # One key only: safetensors does not keep the order of several, and the bytes would vary.
    metadata = {"reference": json.dumps({**about, "torch": torch.__version__}, sort_keys=True)}
    save_file(arrays, path, metadata=metadata)
    print(f"{path.name}: {len(arrays)} tensors, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out-dir", type=Path, default=FIXTURES, help="folder to write to [tests/fixtures]"
    )
    out = parser.parse_args().out_dir
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    runs: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = [
        ("rnn_tanh", "rnn", run_module(nn.RNN, nonlinearity="tanh"), {"activation": "tanh"}),
        ("rnn_relu", "rnn", run_module(nn.RNN, nonlinearity="relu"), {"activation": "relu"}),
        ("gru", "gru", run_module(nn.GRU), {}),
        ("lstm", "lstm", run_module(nn.LSTM), {}),
        ("fastrnn", "fastrnn", run_fastrnn, {}),
    ]
    for seed, (name, cell, run, about) in enumerate(runs, start=1):
        tensors = gradient_fixture(cell, run, seed)
        write(out / f"{name}.safetensors", tensors, cell=cell, **about)
    write(out / "adamw_lstm.safetensors", training_fixture(seed=10), cell="lstm", **ADAMW)


if __name__ == "__main__":
    main()
