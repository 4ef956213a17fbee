"""Advice: every rule on a run that it is for, and on those that it must leave alone.

The runs are real ones, in fixtures/advice; scripts/make_advice.py trains them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from charrnn import advice
from charrnn.advice import (
    Course,
    clipped,
    falling,
    memorised,
    overfitting,
    too_high,
    too_low,
    vanishing,
)
from charrnn.cli import cli
from charrnn.config import Config

FIXTURES = Path(__file__).parent / "fixtures" / "advice"

# Run -> whose sentences are shown; a consequence of what is shown is not.
SUPPORTED = {
    "default": [],
    "shakespeare": ["falling"],
    "too-long": ["overfitting"],
    "overfit": ["overfitting"],
    "memorised": ["memorised"],
    "rnn-0.1": ["too_high"],
    "rnn-0.03": ["too_high"],
    "sgd-80": ["too_high"],
    "lstm-0.1": ["falling"],
    "lstm-0.00033": ["too_low"],
    "sgd-clip-0.02": ["clipped"],
    "adamw-clip-0.02": ["falling"],
    "sigmoid": ["vanishing"],
    "tanh": ["falling"],
    "tanh-256": ["vanishing"],
    "lstm-256": ["falling"],
    "constant": ["falling"],
    "no-dropout": [],
    "300-steps": [],
}


@cache
def lines_of(name):
    text = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def config_of(name):
    return Config.from_options(lines_of(name)[0]["options"])


def course_of(events):
    course = Course()
    for event in events:
        course.take(event)
    return course


def run(name):
    return course_of(lines_of(name)[1:]), config_of(name)


def supported(course, config):
    """The names of the rules whose sentences would be shown."""
    sentences = advice.advice(course, config)
    names = {rule(course, config): rule.__name__ for rule in advice.RULES}
    return [names[sentence] for sentence in sentences]


@pytest.mark.parametrize("name", SUPPORTED)
def test_real_runs(name):
    assert supported(*run(name)) == SUPPORTED[name]


def test_every_fixture_is_expected():
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == set(SUPPORTED)


# --- Sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPORTED)
def test_sentences_are_short_and_name_an_option(name):
    for sentence in advice.advice(*run(name)):
        assert "--" in sentence and "now " in sentence
        assert len(sentence) < 250 and "\n" not in sentence and "nan" not in sentence


def test_at_most_two_the_most_important_first():
    """The small text overfits; the same run with a tiny clip under sgd and copied samples."""
    course, config = run("overfit")
    course.sampled, course.held_out = 0.5, 0.01
    train = dataclasses.replace(config.train, optimizer="sgd", grad_clip=0.02)
    config = dataclasses.replace(config, train=train)
    for row in range(len(course.training.rows)):
        step, nats, norm, _, rate = course.training.rows[row]
        course.training.rows[row] = (step, nats, norm, 1.0, rate)
    assert clipped(course, config)
    assert supported(course, config) == ["overfitting", "memorised"]


# --- While a run goes on -------------------------------------------------------------------------


GOOD = [name for name, rules in SUPPORTED.items() if rules in ([], ["falling"])]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_run_is_left_alone_all_the_time(name):
    course, config = Course(), config_of(name)
    for event in lines_of(name)[1:]:
        if event["event"] != "end":
            course.take(event)
            assert advice.advice(course, config) == []


@pytest.mark.parametrize(
    ("name", "latest"),
    [("overfit", 550), ("rnn-0.1", 200), ("sgd-80", 200), ("lstm-0.00033", 450),
     ("sgd-clip-0.02", 400), ("sigmoid", 750)],
)  # fmt: skip
def test_what_is_wrong_is_said_while_it_goes_on(name, latest):
    events = [e for e in lines_of(name)[1:] if e["step"] <= latest and e["event"] != "end"]
    assert supported(course_of(events), config_of(name)) == SUPPORTED[name]


@pytest.mark.parametrize("name", SUPPORTED)
def test_nothing_is_said_of_a_few_steps(name):
    events = [e for e in lines_of(name)[1:] if e["step"] <= 100]
    end = {"event": "end", "step": 100, "reason": "finished", "memorised": None}
    course = course_of([*events, end])
    assert advice.advice(course, config_of(name)) in ([], [too_high(course, config_of(name))])


def test_a_run_that_goes_on_has_no_end():
    course, config = run("constant")
    assert falling(course, config)
    course.take(lines_of("constant")[1] | {"event": "start"})
    assert not falling(course, config)
    course, config = run("memorised")
    assert memorised(course, config)
    course.take({**lines_of("memorised")[2], "step": 1600})
    assert not memorised(course, config)


# --- Each rule against numbers of one's own -------------------------------------------------------


def curve(val, train=None, every=50, per_epoch=50, rate=lambda step: 0.01, **end):
    """A run whose losses are functions of the step, or lists of validations."""
    yield {"event": "start", "step": 0, "vocab_size": 65, "steps_per_epoch": per_epoch}
    for i, loss in enumerate(val, 1):
        for step in range((i - 1) * every + 10, i * every + 1, 10):
            nats = train(step) if train else loss
            facts = {"nats_per_char": nats, "grad_norm": 0.3, "clipped": 0.0}
            yield {"event": "train", "step": step, **facts, "learning_rate": rate(step)}
        yield {"event": "validation", "step": i * every, "val_nats_per_char": loss}
    yield {"event": "end", "step": i * every, "reason": "finished", "memorised": None} | end


def down(step):
    return 2.0 - step / 2000


def overfits(val, train=down, **more):
    return bool(overfitting(course_of(curve(val, train, **more)), Config()))


FALL = [2.5, 2.2, 2.1, 2.0, 1.9, 1.8, 1.75, 1.7]


def test_overfitting():
    assert overfits([*FALL, 1.76, 1.8, 1.84, 1.88])
    assert not overfits([*FALL, 1.76, 1.8])  # too early to tell
    assert overfits([2.0, 2.1, 2.2, 2.3]) and not overfits([2.0, 2.1, 2.2])
    assert not overfits([*FALL, 1.71, 1.72, 1.72, 1.73])  # within 2 %
    assert not overfits([*FALL, 1.76, 1.8, 1.84, 1.72])  # it comes down again
    assert not overfits([*FALL, 1.76, 1.8, 1.84, 1.88], train=lambda step: 2 + step / 2000)
    assert not overfits([*FALL, 1.76, 1.8, 1.84, 1.88], per_epoch=500)  # less than an epoch ago
    assert not overfits([*FALL, *[1.9, 2.3, 1.8] * 5])  # noise
    assert overfits([*FALL, *[1.8, 1.81] * 8]) and not overfits([*FALL, *[1.8, 1.83] * 8])


def test_overfitting_asks_for_patience_once():
    course, config = run("overfit")
    assert "(--patience 3)" in overfitting(course, config)
    patient = dataclasses.replace(config, train=dataclasses.replace(config.train, patience=5))
    assert "--patience" not in overfitting(course, patient)
    assert "--dropout (now 0)" in overfitting(course, config)
    assert "--hidden-size (now 128)" in overfitting(course, config)


def test_memorised():
    """Held-out text that repeats the training text makes copies no wonder."""

    def said(sampled, held_out):
        shares = {"sampled": sampled, "held_out": held_out}
        return memorised(course_of(curve([2.0], memorised=shares)), Config())

    assert said(0.06, 0.004).startswith("memorised passages: 6% of")
    assert not said(0.05, 0.004)
    assert not said(0.4, 0.2)
    assert not memorised(course_of(curve([2.0])), Config())


def test_too_high():
    def said(losses, val=None):
        at = dict(enumerate(losses, 1))
        events = curve(val or [2.0] * 4, lambda step: at.get(step // 10, losses[-1]))
        return too_high(course_of(events), Config())

    ruined = [4.0, 3.0, 2.5, 2.4, 3.5, 4.5, 5.0, 5.0, 4.0, 3.0]
    assert "rose from 2.500 nats/char at step 30 to 5.000 at step 70" in said(ruined)
    assert not said([4.0, 3.0, 2.5, 2.4, 6.0, 2.4, 2.3, 2.3])  # one line is an accident
    other_text = [4.0, 3.0, 2.5, 2.4, 3.5, 3.5, 3.5, 3.5]
    assert not said(other_text)
    assert said(other_text, [2.5, 3.5, 3.5, 3.5])  # what had been learned is gone
    assert not said([4.0, 3.0, 2.5, 2.4, 2.7, 2.7, 2.7, 2.7], [2.5, 2.8, 2.8, 2.8])  # a little


def clipping(share=1.0, norm=0.2, clip=0.02, optimizer="sgd", outburst=1.0):
    events = [
        {"event": "train", "step": 10 * i, "nats_per_char": 2.0, "clipped": share,
         "grad_norm": norm * (outburst if i % 4 == 0 else 1.0), "learning_rate": 1.0}
        for i in range(1, 41)
    ]  # fmt: skip
    return clipped(
        course_of(events), Config.from_options(dict(optimizer=optimizer, grad_clip=clip))
    )


def test_clipped():
    assert "in 100% of the steps" in clipping()
    assert "moves only 10% as far; try --grad-clip 0.4 (now 0.02)" in clipping()
    assert clipping(optimizer="momentum")
    assert clipping(share=0.6) and not clipping(share=0.5)
    assert not clipping(optimizer="adamw")  # whose updates do not know the gradient's size
    assert not clipping(outburst=10.0)  # that is what clipping is for
    assert clipping(outburst=2.5) and not clipping(outburst=3.5)
    assert not clipping(clip=0.0)
    assert not clipping(norm=0.01)  # below the limit
    events = [
        {"event": "train", "step": 10 * i, "nats_per_char": 2.0, "clipped": float(i <= 24),
         "grad_norm": 0.2, "learning_rate": 1.0}
        for i in range(1, 41)
    ]  # fmt: skip
    config = Config.from_options(dict(optimizer="sgd", grad_clip=0.02))
    assert not clipped(course_of(events), config)  # not any more


def gradients(changes, share, step=50, window=64, count=20):
    for i in range(1, count + 1):
        yield {
            "event": "gradients",
            "step": step * i,
            "update_norms": {"layers.0.Wh": changes, "head.Wy": 1.0},
            "weight_norms": {"layers.0.Wh": 1.0, "head.Wy": 1.0},
            "reach": {
                "chars": 5,
                "window": window,
                "lags": [8, 16, 32],
                "shares": None if share is None else [10 * share, share, share / 100],
            },
        }


def logarithmic(slope):
    """Validations that fall by ``slope`` nats when steps double."""
    return [4 - slope * math.log2(i) for i in range(1, 21)]


def test_too_low():
    def said(change, slope, lines=None, **options):
        events = [*curve(logarithmic(slope)), *(lines or gradients(change, 0.1))]
        return too_low(course_of(events), Config.from_options(dict(learning_rate=0.01) | options))

    assert "by 0.2%, while from step 500 to 1,000 validation fell by 0.30" in said(0.002, 0.3)
    assert not said(0.02, 0.3)  # the weights do move
    assert not said(0.002, 0.1)  # the end of a long run
    assert said(0.002, 0.18) and not said(0.002, 0.12)
    assert said(0.007, 0.3) and not said(0.009, 0.3)
    assert not said(0.002, 0.3, gradients(0.002, 0.1, step=300, count=3))  # too few to tell
    norms = {"layers.0.Wh": 1.0, "layers.1.Wh": 1.0}
    updates = {"layers.0.Wh": 0.002, "layers.1.Wh": 0.02}  # the second layer does move
    two = [e | {"update_norms": updates, "weight_norms": norms} for e in gradients(0.002, 0.1)]
    assert not said(0.002, 0.3, two)
    assert not said(0.002, 0.3, learning_rate=0.03)  # the rate is no longer high
    fast = curve(logarithmic(0.3), rate=lambda step: 0.01 if step <= 450 else 1e-6)
    slowed = [e for e in gradients(0.02, 0.1) if e["step"] <= 450]
    slowed += [e for e in gradients(1e-6, 0.1) if e["step"] > 450]
    config = Config.from_options(dict(learning_rate=0.01))
    assert not too_low(course_of([*fast, *slowed]), config)  # as its schedule does at the end


def test_vanishing():
    def said(*args, **more):
        return vanishing(course_of(gradients(0.1, *args, **more)), Config())

    assert "16 characters back only 1e-05 of it is left" in said(1e-5)
    assert "16 characters back only 0 of it is left" in said(None)  # no gradient at all
    assert not said(1e-3)
    assert "32 characters back" in said(1e-3, window=256)
    assert not said(1e-5, window=32)  # so short a window has no far away
    assert not said(1e-5, step=10)  # the first steps
    assert not said(1e-5, step=30) and said(1e-5, step=34)
    assert said(1.9e-4) and not said(2.1e-4)
    reach = {"window": 512, "lags": [16, 32, 64], "shares": [0.3, 0.2, 0.1]}
    assert advice._left(reach) == (32, 0.2)


def test_falling():
    def said(val, train=None, peak=0.01, **more):
        config = Config.from_options(dict(learning_rate=peak))
        return falling(course_of(curve(val, train, **more)), config)

    assert "by 0.20 nats/char from step 500 to 1,000" in said(logarithmic(0.2))
    assert "train longer (--max-steps 2000, now 1000)" in said(logarithmic(0.2))
    assert not said(logarithmic(0.04))
    assert not said(logarithmic(0.2), reason="patience")
    assert not said(logarithmic(0.2)[:7])
    early = dict(rate=lambda step: 0.01 if step <= 600 else 0.001)
    assert "from step 300 to 600" in said(logarithmic(0.2), **early)
    assert not said([*logarithmic(0.2)[:12], *[3.3] * 8], **early)  # the best is long ago
    early = dict(rate=lambda step: 0.01 if step <= 200 else 0.001)
    assert not said(logarithmic(0.2), **early)  # hardly any steps after the warm-up
    ahead = [4 - 0.4 * math.log2(max(step / 50, 1)) for step in range(1001)]
    assert not said(logarithmic(0.2), lambda step: ahead[step])  # training falls twice as fast
    for times, expected in ((1.4, True), (1.6, False)):
        faster = [4 - 0.2 * times * math.log2(max(step / 50, 1)) for step in range(1001)]
        assert bool(said(logarithmic(0.2), faster.__getitem__)) == expected
    assert not said(logarithmic(0.2), peak=0.03)  # all at a low rate: a fine-tuning's end


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    config, *events = lines_of("overfit")
    facts = {"config": Config.from_options(config["options"]).to_json()}
    (tmp_path / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    first = events[0] | {"schema": 1}
    text = "".join(json.dumps(event) + "\n" for event in [first, *events[1:]])
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_of_a_folder(folder):
    assert advice.of(folder) == advice.advice(*run("overfit")) != []


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"config": 1}', '{"event": "train"}\n']
)
def test_of_a_folder_that_is_damaged(folder, name, text):
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    assert advice.of(folder) == []


@pytest.mark.parametrize(
    "more",
    [
        {"event": "end", "reason": "finished", "memorised": 7},
        {"event": "end", "reason": "finished", "memorised": {"sampled": "much"}},
        {"event": "start", "steps_per_epoch": None},
        {"event": "train", "nats_per_char": 10**400},
        {"event": "gradients", "reach": 5, "update_norms": [], "weight_norms": [1]},
    ],
)
def test_bad_events(folder, more):
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 1000} | more) + "\n")
    assert advice.of(folder) == []


def test_numbers_that_are_not_finite_are_left_out():
    course = course_of(curve([2.0]))
    before = len(course.training["step"]), len(course.validating["step"])
    course.take({"event": "validation", "step": 60, "val_nats_per_char": None})
    facts = {"nats_per_char": None, "grad_norm": 1.0, "clipped": 0.0, "learning_rate": 1.0}
    course.take({"event": "train", "step": 60, **facts})
    assert (len(course.training["step"]), len(course.validating["step"])) == before


def test_a_long_run_is_kept_short_and_judged_alike():
    val = [2.5 - min(i, 500) / 500 + max(i - 500, 0) / 5000 for i in range(3000)]
    course = course_of(curve(val, lambda step: 2 / (1 + step / 10000)))
    assert len(course.training["step"]) <= 1025
    assert "overfitting since step 25," in overfitting(course, Config())


def test_train_and_monitor_say_the_same(tmp_path):
    """Letters at random have nothing to learn but by heart."""
    text, out = tmp_path / "letters.txt", str(tmp_path / "run")
    text.write_text("".join(random.Random(1).choices("abcdefgh", k=2000)), encoding="utf-8")
    options = "--model rnn --hidden-size 64 --dropout 0 --batch-size 4 --seq-length 25 "
    options += "--max-steps 300 --eval-every 10 --log-every 2"
    result = CliRunner().invoke(cli, ["train", str(text), "--out-dir", out, *options.split()])
    assert result.exit_code == 0, result.stderr
    said = [x[14:] for x in result.stderr.splitlines() if x.startswith("  advice      ")]
    assert said[0].startswith("overfitting since step ")
    lines = CliRunner().invoke(cli, ["monitor", out]).stdout.splitlines()
    assert [x[8:] for x in lines if x.startswith("advice: ")] == said == advice.of(Path(out))


def test_a_resumed_run_is_advised_by_what_it_was_resumed_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the time traveller " * 60)
    small = ["--hidden-size=4", "--batch-size=4", "--seq-length=8", "--epochs=1", "-q"]
    for line in (["text.txt", "--out-dir=a", *small], ["--resume=a", "--epochs=2", "--patience=7"]):
        assert CliRunner().invoke(cli, ["train", *line]).exit_code == 0
    config = advice.config_of(Path("a"))
    assert config is not None and config.train.patience == 7
    Path("a/last.safetensors").write_bytes(b"damaged")
    config = advice.config_of(Path("a"))  # at least what it began with
    assert config is not None and config.train.patience == 0
    Path("a/config.json").unlink()
    assert advice.config_of(Path("a")) is None
