"""Extremes of the options in combination: a clear refusal, or numbers that can be trusted.

Every number of an option is drawn from the ends of its range, which config.py has, and from what is
usual; sizes are small, for the time's sake. CHARRNN_EXTREMES=500 tries so many, others each time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charrnn import api, checkpoint, runs
from charrnn.config import Config, DataConfig, ModelConfig, SampleConfig, TrainConfig
from charrnn.errors import CharRNNError, InputError

SIZES: dict[str, Any] = {
    "hidden_size": (1, 2, 17), "num_layers": (1, 2, 20), "embedding_size": (0, 1, 5),
    "batch_size": (1, 3, 1000), "seq_length": (None, 1, 2, 7), "k1": (None, 1, 3),
    "k2": (None, 1, 3, 8), "truncation_prob": (None, "0.5", "2:0.3"), "max_steps": (None, 0, 1, 4),
    "epochs": (None, 1), "val_file": (None,), "encoding": ("utf-8",), "threads": (1, 2),
    "min_count": (1, 3), "warmup_steps": (0, 2), "max_rollbacks": (1, 3),
    "eval_every": (0, 1, 3), "checkpoint_every": (0, 1, 3), "log_every": (0, 1),
    "log_gradients": (0, 1), "sample_every": (0, 1, 2), "keep": (0, 1), "patience": (0, 1),
    "learning_rate": (None, 1e-300, 1e-3, 1.0, 1e6, 1e30), "seed": (0, 1, 2**32 - 1),
}  # fmt: skip
"""What is not left to the range: sizes, and counts of steps."""


def values(field: dataclasses.Field[Any], hint: Any) -> st.SearchStrategy[Any]:
    """The values of an option: its choices, or the ends of its range and what is usual."""
    facts = field.metadata
    if field.name in SIZES:
        return st.sampled_from(SIZES[field.name])
    if facts["choices"]:
        return st.sampled_from(facts["choices"])
    if hint is bool:
        return st.booleans()
    kind = int if int in (hint, *typing.get_args(hint)) else float
    ends = [facts["min"], facts["max"], field.default]
    if facts["above"] is not None:
        ends.append(facts["above"] + 1e-300)
    if facts["below"] is not None:
        ends.append(float(np.nextafter(facts["below"], -1)))
    if facts["max"] is None and facts["below"] is None:
        ends.append(1e6)
    return st.sampled_from([kind(end) for end in ends if end is not None])


def options(*sections: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some options of config sections; the others keep their defaults."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for section in sections:
        hints = typing.get_type_hints(section)
        found |= {f.name: values(f, hints[f.name]) for f in dataclasses.fields(section)}
    small = {n: found.pop(n) for n in ("hidden_size", "batch_size", "max_steps", "num_layers")}
    return st.fixed_dictionaries(small, optional=found)


TEXTS = st.sampled_from(
    ["a" * 40, "ab" * 60, "the time machine\n" * 12, "x\u00e9\u4e2d\U0001f600 " * 30]
)
RULES = st.fixed_dictionaries(
    {},
    optional=dict(
        temperature=st.sampled_from([0.0, 1e-6, 1e-300, 1.0, 1e6, 1e300]),
        top_k=st.sampled_from([0, 1, 3, 10**6]),
        top_p=st.sampled_from([1e-9, 0.5, 1.0]),
        min_p=st.sampled_from([0.0, 0.5, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1e3, 1e300]),
        num_samples=st.sampled_from([1, 3]),
    ),
)


@pytest.mark.strict
@settings(
    max_examples=int(os.environ.get("CHARRNN_EXTREMES", "40")), deadline=None,
    derandomize="CHARRNN_EXTREMES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(options(ModelConfig, DataConfig, TrainConfig), TEXTS, RULES)
def test_extremes(given: dict[str, Any], text: str, rules: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "text.txt").write_text(text, encoding="utf-8")
        check(folder, {"max_steps": 4, **given}, rules)
    finally:
        shutil.rmtree(folder)


def check(folder: Path, given: dict[str, Any], rules: dict[str, Any]) -> None:
    """Train, and look at what there is then."""
    try:
        run = runs.start(
            [str(folder / "text.txt")], Config.from_options(given), str(folder / "run")
        )
    except InputError as error:
        assert "\n" not in str(error) and not (folder / "run").exists()
        return
    with np.errstate(all="ignore"):
        end = list(run.events())[-1]
        assert end["event"] == "end" and end["reason"] in ("finished", "patience", "diverged")
        for path in checkpoint.of_run(folder / "run"):
            arrays = checkpoint.load(path).tensors  # refuses what is not finite
            assert arrays and all(np.isfinite(array).all() for array in arrays.values())
        try:
            lm = api.load(folder / "run")
        except CharRNNError:
            assert end["reason"] == "diverged" and not (folder / "run/best.safetensors").exists()
            return
        check_probabilities(lm)
        for sample in lm.sample("", length=12, seed=1, **rules):
            assert len(sample) == 12 or (lm.config.data.level == "byte" and 0 < len(sample) < 12)


def check_probabilities(lm: Any) -> None:
    """The next symbol's probabilities, as the losses have them, sum to 1 whatever came before."""
    V = lm.vocabulary.size
    ids = np.arange(3 * V).reshape(3, V) % V
    for first in range(V):
        assert np.isfinite(lm.model.losses(ids, np.full_like(ids, first))[0]).all()
    each = [lm.model.losses(ids, np.full_like(ids, target))[0] for target in range(V)]
    assert np.exp(-np.stack(each).astype(float)).sum(0) == pytest.approx(1, abs=1e-5)


def test_rules_at_their_ends_are_allowed() -> None:
    SampleConfig(temperature=1e-6, top_k=10**6)
