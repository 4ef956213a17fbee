"""Runs of every checkpoint format that was ever released: they load, and mean what they meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from charrnn import api, checkpoint, listing, runs

RELEASED = sorted((Path(__file__).parent / "fixtures").glob("format-*"))


def test_the_present_format_is_among_them() -> None:
    assert f"format-{checkpoint.FORMAT_VERSION}" in [folder.name for folder in RELEASED]


@pytest.mark.parametrize("released", RELEASED, ids=lambda folder: folder.name)
def test_it_says_what_it_said(released: Path) -> None:
    expected = json.loads((released / "expected.json").read_text(encoding="utf-8"))
    text = (released / "original.txt").read_text(encoding="utf-8")
    lm = api.load(released, threads=1)
    assert lm.model.params.count == expected["parameters"]
    assert lm.metadata["progress"]["step"] == expected["step"]
    # The last bits depend on the machine; that they decide about a character is most unlikely.
    assert lm.sample("The ", length=60, seed=1)[0] == expected["sample"]
    nats = lm.evaluate(text)["nats_per_char"]
    assert nats == pytest.approx(expected["nats_per_char"], rel=1e-5)
    assert lm.describe()["vocabulary"]["symbols"][-1] == "<unknown>"


@pytest.mark.parametrize("released", RELEASED, ids=lambda folder: folder.name)
def test_it_is_trained_further(released: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(released, tmp_path / "run")
    before = checkpoint.load(folder / "last.safetensors")
    text = str(folder / "original.txt")
    run = runs.resume(str(folder), [text], {"max_steps": 23})
    losses = [event["nats_per_char"] for event in run.events() if event["event"] == "step"]
    assert len(losses) == 3 and np.isfinite(losses).all()
    (listed,) = listing.find(folder, 0.0)
    assert (listed["state"], listed["step"], listed["problem"]) == ("finished", 23, None)
    after = checkpoint.load(folder / "last.safetensors")
    assert after.metadata["progress"]["step"] == before.metadata["progress"]["step"] + 3
    assert after.tensors.keys() == before.tensors.keys()
