"""The library's door: train, load, sample, evaluate, look inside, and hand over to PyTorch."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import assert_close, relative_error

import charrnn
from charrnn import LanguageModel, checkpoint
from charrnn.data import read_corpus
from charrnn.errors import Diverged, InputError
from charrnn.kernels import jit

ROOT = Path(__file__).parent.parent
BOOK = (ROOT / "data" / "timemachine.txt").read_text(encoding="utf-8")
UNSEEN = BOOK[60_000:80_000]
SMALL: dict[str, Any] = dict(hidden_size=24, batch_size=16, seq_length=32, max_steps=5)
SMALL |= dict(dropout=0.0, threads=1)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """No waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "book.txt"
    file.write_text(BOOK[:40_000], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(text: Path) -> Path:
    """A trained run of two layers."""
    options = SMALL | dict(
        num_layers=2, max_steps=None, epochs=6, learning_rate=0.01, test_frac=0.05
    )
    charrnn.train(text, out_dir=text.parent / "run", **options)
    return text.parent / "run"


@pytest.fixture(scope="module")
def lm(run: Path) -> LanguageModel:
    return charrnn.load(run, threads=1)


def test_a_model_in_another_precision(
    run: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "HAS_BF16", True)
    rounded = charrnn.load(run, threads=1, precision="bf16")
    assert (rounded.model.operands, lm.model.operands) == ("bfloat16", "float32")
    assert rounded.config == lm.config  # it says how the model was trained
    want, got = (m.evaluate(UNSEEN)["nats_per_char"] for m in (lm, rounded))
    assert got == pytest.approx(want, abs=0.005) and got != want


def test_a_precision_that_a_model_cannot_have(text: Path, tmp_path: Path) -> None:
    options = SMALL | dict(max_steps=4, eval_every=2, dtype="float64")
    charrnn.train(text, out_dir=tmp_path / "run", **options)
    with pytest.raises(InputError, match="--precision bf16 is for float32, .* leave it out$"):
        charrnn.load(tmp_path / "run", precision="bf16")  # no other checkpoint would do either


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# --- train and load ------------------------------------------------------------------------------


def test_train_returns_the_best_model_and_shows_every_event(text: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    options = SMALL | dict(eval_every=2)
    trained = charrnn.train(str(text), out_dir=tmp_path / "run", on_event=events.append, **options)
    assert trained.path == tmp_path / "run" / "best.safetensors"
    assert trained.config.model.hidden_size == 24
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4, 5]
    assert events[-1]["event"] == "end" and events[-1]["reason"] == "finished"
    assert (
        trained.metadata["progress"]["best_val_nats_per_char"]
        == (events[-1]["best_val_nats_per_char"])
    )


def test_train_takes_several_files_and_another_model(text: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("ÄÖÜ" * 100, encoding="utf-8")
    options = SMALL | dict(hidden_size=24)
    found = charrnn.train([text, other], out_dir=tmp_path / "run", init_from=run, **options)
    old = charrnn.load(run).vocabulary
    assert found.vocabulary.symbols == (*old.symbols, "Ä", "Ö", "Ü")
    assert found.metadata["corpus"]["chars"] == 40_300


def test_train_refuses_before_it_writes(text: Path, tmp_path: Path) -> None:
    for options, message in [
        (dict(hiden_size=3), "unknown options: --hiden-size"),
        (dict(hidden_size=0), "--hidden-size is 0: it must be a whole number"),
        (dict(hidden_size="3"), "--hidden-size is '3': it must be a whole number"),
        (dict(on_unknown="error", init_from=tmp_path / "no"), "no does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            charrnn.train(text, out_dir=tmp_path / "run", **options)
    with pytest.raises(InputError, match="no text is given"):
        charrnn.train([], out_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_train_raises_what_diverged(text: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="no longer finite at step .*--learning-rate"):
        charrnn.train(
            text, out_dir=tmp_path / "run", **SMALL | dict(optimizer="sgd", learning_rate=1e38)
        )


def test_load_takes_a_folder_a_file_or_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = run / "last.safetensors"
    assert charrnn.load(run).path == run / "best.safetensors"
    assert charrnn.load(str(last)).path == last
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there are no runs below runs: make one with"):
        charrnn.load()
    shutil.copytree(run, tmp_path / "runs" / "one")
    os.utime(tmp_path / "runs" / "one" / "last.safetensors", (1, 1))
    shutil.copytree(run, tmp_path / "runs" / "a" / "two")
    assert charrnn.load().path == Path("runs/a/two/best.safetensors")
    (tmp_path / "runs" / "a" / "two" / "best.safetensors").unlink()
    assert charrnn.load().path == Path("runs/a/two/last.safetensors")


def test_load_refuses_what_is_no_checkpoint_of_ours(run: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, run / "config.json"):
        with pytest.raises(InputError, match=re.escape(str(path))):
            charrnn.load(path)
    good = checkpoint.load(run / "best.safetensors")
    file = tmp_path / "bad.safetensors"
    for change in (
        lambda t, m: t.pop("head.bias"),
        lambda t, m: t.update({"head.bias": t["head.bias"][1:]}),
        lambda t, m: t.update({"head.bias": t["head.bias"].astype(np.float64)}),
        lambda t, m: m.pop("config"),
        lambda t, m: m["vocabulary"].pop(),
        lambda t, m: m.update(config={"model": {"hidden_size": "large"}}),
        lambda t, m: m.update(vocabulary=[*m["vocabulary"][1:], m["vocabulary"][1]]),
    ):
        tensors, metadata = dict(good.tensors), json.loads(json.dumps(good.metadata))
        change(tensors, metadata)
        checkpoint.save(file, tensors, metadata)
        with pytest.raises(InputError):
            charrnn.load(file)


# --- sample --------------------------------------------------------------------------------------


def test_sampling_is_a_function_of_the_seed(lm: LanguageModel) -> None:
    one, two = (lm.sample("The ", length=300, seed=7) for _ in range(2))
    assert one == two != lm.sample("The ", length=300, seed=8)
    assert one[0].startswith("The ") and len(one[0]) == 304
    assert lm.sample(length=50) != lm.sample(length=50)  # a drawn seed
    many = lm.sample("The ", length=300, seed=7, num_samples=3)
    assert len(set(many)) == 3 and many[0] == one[0]


def test_sampling_knows_the_text(lm: LanguageModel) -> None:
    sample = lm.sample("the ", length=2000, temperature=1, seed=1)[0]
    assert 0.1 < sample.count(" ") / len(sample) < 0.3
    greedy = {lm.sample("the ", length=50, temperature=0, seed=seed)[0] for seed in range(3)}
    assert len(greedy) == 1


def test_sampling_s_options_are_checked(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match="--top-p is 2.0"):
        lm.sample(top_p=2.0)
    with pytest.raises(InputError, match="not in the vocabulary: '漢'"):
        lm.sample("漢", on_unknown="error")
    assert lm.sample("漢", length=3, seed=1)[0].startswith("漢")
    assert "." not in lm.sample("a", stop=".", length=500, seed=1)[0]


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_is_the_mean_by_hand(lm: LanguageModel) -> None:
    text = "é" + UNSEEN[:500].replace("q", "漢")  # characters that the model does not know
    known = [c for c in text if c in lm.vocabulary.symbols]
    ids = lm.vocabulary.encode("".join(known))[:, None]
    logits = lm.forward(ids[:-1])[0]["logits"]
    nats = -np.take_along_axis(log_softmax(logits), ids[1:, :, None].astype(int), -1)
    scores = lm.evaluate(text, exact=True)
    assert scores["chars"] == len(known) - 1 == nats.size
    assert scores["nats_per_char"] == pytest.approx(nats.mean(), rel=1e-5)
    assert scores["bits_per_char"] == pytest.approx(nats.mean() / math.log(2), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    size = len("".join(known[1:]).encode())
    assert scores["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / size, rel=1e-5)
    with pytest.raises(InputError, match="not in the vocabulary"):
        lm.evaluate(text, on_unknown="error")
    for nothing in ("", "a", "漢字"):
        with pytest.raises(InputError, match="nothing to score"):
            lm.evaluate(nothing)


def test_streams_are_within_1e_4_nats_of_one_stream(lm: LanguageModel) -> None:
    exact, streams = lm.evaluate(UNSEEN, exact=True), lm.evaluate(UNSEEN)
    assert exact["chars"] == streams["chars"] == 19_999
    assert 1.5 < exact["nats_per_char"] < 2.5  # it has learned something
    ids = lm.vocabulary.encode(UNSEEN)[:, None]
    losses, _ = lm.model.losses(ids[:-1], ids[1:])
    assert exact["nats_per_char"] == pytest.approx(losses.mean(dtype=float), rel=1e-6)
    assert 0 < abs(streams["nats_per_char"] - exact["nats_per_char"]) < 1e-4


def test_baselines_need_the_training_text(lm: LanguageModel, run: Path, tmp_path: Path) -> None:
    names = {"ngram_bits_per_char", "xz_bits_per_char"}
    scores = lm.evaluate(UNSEEN[:3000], baselines=True)
    assert all(1 < scores[name] < 5 for name in names)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    moved = charrnn.load(copy)
    moved.metadata["corpus"]["sources"] = [str(tmp_path / "gone.txt")]
    assert not names & set(moved.evaluate(UNSEEN[:3000], baselines=True))


def test_training_text_is_that_of_the_run(tmp_path: Path) -> None:
    """A text that has changed is not, though it is as long as before."""
    text, val = tmp_path / "text.txt", tmp_path / "val.txt"
    text.write_text(BOOK[:3000], encoding="utf-8")
    val.write_text(BOOK[3000:4000], encoding="utf-8")
    lm = charrnn.train(text, out_dir=tmp_path / "valued", val_file=str(val), **SMALL)
    assert lm.training_text() == BOOK[:3000]
    lm = charrnn.train(text, out_dir=tmp_path / "run", **SMALL)
    assert lm.training_text() == BOOK[:2700]
    text.write_text(BOOK[:2999] + "~", encoding="utf-8")
    assert lm.training_text() is None and lm.validation_text() is None


def test_the_text_of_a_pipe_is_kept_in_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = BOOK[:3000] + "äöü"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("latin-1"))))
    lm = charrnn.train("-", out_dir=tmp_path / "run", encoding="latin-1", val_frac=0, **SMALL)
    assert lm.training_text() == text


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model with an unknown symbol."""
    folder = tmp_path_factory.mktemp("rare")
    (folder / "text.txt").write_text(BOOK[:3000], encoding="utf-8")
    small = dict(hidden_size=8, epochs=1, seq_length=32, batch_size=4, threads=1)
    return charrnn.train(folder / "text.txt", out_dir=folder / "run", min_count=30, **small)


def test_unknown_characters_count_the_bytes_that_they_have(
    rare: LanguageModel, tmp_path: Path
) -> None:
    text = UNSEEN[:500] + "é漢"  # U+FFFD, which stands for them, has three
    assert sum(rare.vocabulary.missing(text).values()) > 9
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    for given in (text, read_corpus([str(tmp_path / "text.txt")])):
        scores = rare.evaluate(given, on_unknown="map")
        assert scores["chars"] == len(text) - 1
        bits = scores["bits_per_char"] * scores["chars"] / len(text[1:].encode())
        assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-9)


def test_baselines_whatever_becomes_of_unknown_characters(rare: LanguageModel) -> None:
    """They know the training text as the model knows it."""
    text = "".join(c for c in UNSEEN[:2000] if c not in rare.vocabulary.missing(UNSEEN))
    choices = ("skip", "map", "error")
    scores = [rare.evaluate(text, on_unknown=choice, baselines=True) for choice in choices]
    assert scores[0] == scores[1] == scores[2] and scores[0]["ngram_bits_per_char"] > 0


# --- inside --------------------------------------------------------------------------------------


def test_forward_and_gradients_have_their_shapes_and_names(lm: LanguageModel) -> None:
    T, B, V, H = 7, 3, lm.vocabulary.size, 24
    ids = np.random.default_rng(1).integers(V, size=(T + 1, B))
    arrays, state = lm.forward(ids[:-1])
    assert {k: a.shape for k, a in arrays.items()} == {"output": (T, B, H), "logits": (T, B, V)}
    assert {k: a.shape for k, a in state.items()} == {"h": (2, B, H), "c": (2, B, H)}
    g = lm.gradients(ids[:-1], ids[1:], state)
    G = 4 * H
    assert {k: a.shape for k, a in g.weights.items() if "bias_hh" not in k} == {
        "rnn.weight_ih_l0": (G, V),
        "rnn.weight_hh_l0": (G, H),
        "rnn.bias_ih_l0": (G,),
        "rnn.weight_ih_l1": (G, H),
        "rnn.weight_hh_l1": (G, H),
        "rnn.bias_ih_l1": (G,),
        "head.weight": (V, H),
        "head.bias": (V,),
    }
    assert {k: a.shape for k, a in g.state.items()} == {"h": (2, B, H), "c": (2, B, H)}
    after = lm.forward(ids[:-1], state)
    nats = -np.take_along_axis(log_softmax(after[0]["logits"]), ids[1:, :, None], -1).mean()
    assert g.loss == pytest.approx(nats, rel=1e-5)
    assert_close(g.final_state, after[1], 1e-6)


def test_forward_in_pieces_is_forward_in_one(lm: LanguageModel) -> None:
    ids = np.random.default_rng(2).integers(lm.vocabulary.size, size=(12, 3))
    whole, end = lm.forward(ids)
    state, parts = None, []
    for start in (0, 4, 8):
        arrays, state = lm.forward(ids[start : start + 4], state)
        parts.append(arrays["logits"])
    assert relative_error(np.concatenate(parts), whole["logits"]) < 1e-6
    assert_close(state or {}, end, 1e-6)


@pytest.mark.parametrize("ids", [[[0, 999]], [[-1]], [0, 1], [], [[0.5]], [[]]])
def test_ids_are_checked(ids: Any, lm: LanguageModel) -> None:
    with pytest.raises(InputError, match="ids"):
        lm.forward(np.array(ids))
    with pytest.raises(InputError, match="ids"):
        lm.gradients(np.array(ids), np.array(ids))


def test_targets_and_state_must_fit_the_ids(lm: LanguageModel) -> None:
    ids = np.zeros((4, 2), int)
    for wrong in (ids[:, :1], ids[:1, :1], ids[:3]):
        with pytest.raises(InputError):
            lm.gradients(ids, wrong)
    state = lm.forward(ids)[1]
    with pytest.raises(InputError, match="state"):
        lm.forward(np.zeros((4, 3), int), state)
    with pytest.raises(InputError):
        lm.forward(ids, {"h": state["h"]})


def test_describe_is_json_and_adds_up(lm: LanguageModel) -> None:
    found = json.loads(json.dumps(lm.describe()))
    V, H = lm.vocabulary.size, 24
    own = 4 * H * (V + H + 1) + 4 * H * (H + H + 1) + V * (H + 1)
    assert found["parameters"] == own
    shapes = {k: [int(n) for n in v.split(" x ")] for k, v in found["tensors"].items()}
    zero = 2 * 4 * H  # PyTorch's second biases
    assert sum(math.prod(shape) for shape in shapes.values()) == own + zero
    assert found["vocabulary"]["size"] == V == len(found["vocabulary"]["symbols"])
    assert found["corpus"]["chars"] == 40_000 and len(found["corpus"]["fingerprint"]) == 64
    assert found["training"]["best_val_nats_per_char"] > 1
    assert found["config"]["train"]["learning_rate"] == 0.01
    assert {"charrnn", "python", "numpy", "numba"} <= set(found["versions"])
    assert "torch.nn.LSTM" in found["pytorch"]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(model="rnn"), "torch.nn.RNN"),
        (dict(model="gru"), "torch.nn.GRU"),
        (dict(model="rnn", activation="identity"), "no module for the identity activation"),
        (dict(embedding_size=24, residual=True), "no module for residual links"),
        (dict(model="fastrnn"), "no module for the fastrnn cell"),
    ],
)
def test_describe_says_what_pytorch_makes_of_it(
    options: dict[str, Any], words: str, text: Path, tmp_path: Path
) -> None:
    """Nothing is compiled: without steps and validation no kernel runs."""
    config = charrnn.Config.from_options(SMALL | options)
    from charrnn import runs

    run = runs.start([str(text)], config, str(tmp_path / "run"))
    metadata = {"config": config.to_json(), "progress": {}, "corpus": {}, "unknown": None}
    metadata["vocabulary"] = list(run.text.vocabulary.symbols)
    tensors = run.model.to_torch(run.model.params)
    checkpoint.save(tmp_path / "x.safetensors", tensors, metadata)
    assert words in charrnn.load(tmp_path / "x.safetensors").describe()["pytorch"]


# --- PyTorch -------------------------------------------------------------------------------------


NETWORKS = [
    dict(model="lstm", num_layers=2),
    dict(model="lstm", embedding_size=10),
    dict(model="gru"),
    dict(model="rnn"),
]


def in_pytorch(lm: LanguageModel, ids: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Output, logits, loss and gradients of PyTorch's modules, loaded from the checkpoint."""
    torch = pytest.importorskip("torch")
    tensors = pytest.importorskip("safetensors.torch").load_file(lm.path)
    config = lm.config.model
    V, H = tensors["head.weight"].shape
    E = config.embedding_size
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[config.model]
    rnn, head = kind(E or V, H, config.num_layers), torch.nn.Linear(H, V)
    for module, prefix in ((rnn, "rnn."), (head, "head.")):
        part = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(part)
    x, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    table = tensors["embedding.weight"].requires_grad_() if E else None
    output, _ = rnn(table[x] if E else torch.nn.functional.one_hot(x, V).float())
    logits = head(output)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    grads = {f"rnn.{k}": p.grad for k, p in rnn.named_parameters()}
    grads |= {f"head.{k}": p.grad for k, p in head.named_parameters()}
    return output, logits, loss, grads | ({"embedding.weight": table.grad} if E else {})


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_pytorch_loads_a_checkpoint_and_agrees(
    options: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    lm = charrnn.train(text, out_dir=tmp_path / "run", **SMALL | options)
    ids = np.random.default_rng(1).integers(lm.vocabulary.size, size=(21, 3))
    output, logits, loss, theirs = in_pytorch(lm, ids)
    found = lm.forward(ids[:-1])[0]
    assert relative_error(found["output"], output.detach()) < 1e-5
    assert relative_error(found["logits"], logits.detach()) < 1e-5
    g = lm.gradients(ids[:-1], ids[1:])
    assert g.loss == pytest.approx(loss.item(), rel=1e-5)
    names = [k for k in theirs if "bias_hh" not in k]
    assert_close({k: g.weights[k] for k in names}, {k: theirs[k] for k in names}, 1e-4)


def test_every_gradient_has_pytorch_s_value_under_pytorch_s_name(lm: LanguageModel) -> None:
    """Nothing is the gradient of a second bias that differs from its tensor's in PyTorch."""
    ids = np.random.default_rng(1).integers(lm.vocabulary.size, size=(21, 3))
    theirs = in_pytorch(lm, ids)[-1]
    ours = lm.gradients(ids[:-1], ids[1:]).weights
    assert_close(ours, {k: theirs[k] for k in ours}, 1e-4)


def test_the_readme_s_snippet_runs(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"<!-- torch-snippet -->\s*```python\n(.*?)```", readme, re.S)
    assert snippet
    monkeypatch.chdir(tmp_path)
    options = SMALL | dict(max_steps=2)
    lm = charrnn.train(ROOT / "data" / "timemachine.txt", out_dir="runs/timemachine", **options)
    names: dict[str, Any] = {}
    exec(snippet[1], names)
    logits = lm.forward(names["ids"].numpy())[0]["logits"]
    assert torch.allclose(names["logits"], torch.tensor(logits), atol=1e-5)
