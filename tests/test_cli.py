"""The command line, with the library behind it replaced by fakes, and as real processes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import charrnn
from charrnn import cache
from charrnn.cli import cli
from charrnn.commands import note
from charrnn.commands import sample as sample_module
from charrnn.config import Config, SampleConfig
from charrnn.errors import InputError, SaveError

ROOT = Path(__file__).parent.parent
START = {
    "event": "start",
    "step": 0,
    "total_steps": 4,
    "steps_per_epoch": 2,
    "parameters": 10,
    "train_chars": 90,
    "val_chars": 10,
    "vocab_size": 5,
    "batch_size": 2,
    "seq_length": 3,
}


def end_event(reason="finished", message=None):
    return {
        "event": "end",
        "step": 4,
        "epoch": 2.0,
        "reason": reason,
        "nats_per_char": 1.0,
        "val_nats_per_char": None,
        "best_val_nats_per_char": None,
        "best_step": None,
        "test_nats_per_char": None,
        "message": message,
        "time": {"seconds": 1.0},
    }


class FakeRun:
    folder, config = Path("runs/book"), Config()

    def __init__(self, *events, during=lambda: None):
        self.given, self.during, self.interrupted = events, during, False

    def interrupt(self):
        self.interrupted = True

    def uncompiled(self):
        return []

    def events(self, pace):
        yield START
        self.during()
        if self.interrupted:
            yield end_event("interrupted")
        else:
            yield from self.given


@pytest.fixture
def trainer(monkeypatch):
    """A trainer that notes its calls; set ``.run`` to what it returns."""
    module = types.ModuleType("charrnn.runs")
    module.calls, module.run = [], FakeRun(end_event())

    def start(files, config, out_dir, init_from, on_unknown, given, on_progress):
        module.calls.append(("start", files, config, out_dir, init_from, on_unknown, given))
        return module.run

    def resume(run, files, changes, on_progress):
        module.calls.append(("resume", run, files, changes))
        return module.run

    module.start, module.resume = start, resume
    monkeypatch.setitem(sys.modules, "charrnn.runs", module)
    monkeypatch.setattr(charrnn, "runs", module, raising=False)
    return module


class FakeVocabulary:
    def missing(self, counts):
        return {c: n for c, n in counts.items() if c in "éß"}


class FakeModel:
    """Stands for a LanguageModel."""

    path, config, vocabulary, model = Path("runs/book/best.safetensors"), Config(), None, None

    def __init__(self):
        self.vocabulary, self.scored, self.notes = FakeVocabulary(), [], []

    def evaluate(self, text, **options):
        self.scored.append((text, options))
        scores = {"nats_per_char": 1.386294, "bits_per_char": 2.0, "bits_per_byte": 1.75}
        scores |= {"perplexity": 4.0, "chars": len(text) - 1}
        return scores | ({"ngram_bits_per_char": 3.0} if options["baselines"] else {})

    def describe(self):
        return {"step": 7, "config": {"model": {"residual": True}}, "symbols": ["a", "é"]}


def scored(lm):
    return [(corpus.text, options) for corpus, options in lm.scored]


@pytest.fixture
def lm(monkeypatch):
    """The model that every MODEL stands for; `.asked` lists what was given for MODEL."""
    model, module = FakeModel(), types.ModuleType("charrnn.api")
    model.asked = []
    module.load = lambda path=None, precision=None: model.asked.append(path) or model
    monkeypatch.setitem(sys.modules, "charrnn.api", module)
    monkeypatch.setattr(charrnn, "api", module, raising=False)
    return model


@pytest.fixture
def generate(monkeypatch):
    """Fake generation of the letters a, b, c for samples 0, 1, 2; notes its arguments."""
    module, calls = types.ModuleType("charrnn.sampling"), []

    def generate(model, vocabulary, config, **arguments):
        calls.append((config, arguments))
        return iter([list("abc"[: config.num_samples])] * config.length)

    module.generate = generate
    module.unknown_note = lambda vocabulary, prompt, fate: f"{fate} é" if "é" in prompt else None
    monkeypatch.setitem(sys.modules, "charrnn.sampling", module)
    monkeypatch.setattr(charrnn, "sampling", module, raising=False)
    return calls


def run(*args, **kwargs):
    result = CliRunner().invoke(cli, [str(a) for a in args], **kwargs)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def error_of(*args):
    """The only line of a refused command."""
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ").rstrip()


def test_who_hears_of_the_compiler(trainer, monkeypatch):
    """train counts its kernels itself; all others say that there are some."""
    monkeypatch.setattr(cache, "announce", print)
    run("train", "a.txt")
    assert cache.announce is print
    run("sample", "--help")
    assert cache.announce is note


# --- train ---------------------------------------------------------------------------------------


def test_train_hands_its_options_to_the_trainer(trainer):
    result = run("train", "a.txt", "b.txt", "--hidden-size", 7, "--lr", "0.5", "--residual")
    assert result.exit_code == 0, result.stderr
    ((kind, files, config, out_dir, init_from, on_unknown, given),) = trainer.calls
    assert set(given) == {"hidden_size", "learning_rate", "residual"}
    assert (kind, files, out_dir, init_from, on_unknown) == (
        "start",
        ("a.txt", "b.txt"),
        None,
        None,
        "add",
    )
    assert config == Config.from_options(dict(hidden_size=7, learning_rate=0.5, residual=True))


def test_every_field_of_the_config_is_a_flag_under_all_its_names(trainer):
    value_of = {
        "int": "3",
        "int | None": "3",
        "int | str": "3",
        "float": "0.5",
        "float | None": "0.5",
    }
    for section in Config.sections().values():
        for field in dataclasses.fields(section):
            value = value_of.get(field.type, "utf-16")
            if field.metadata["choices"]:
                value = field.metadata["choices"][-1]
            if field.name == "truncation_prob":
                value = "3:0.5"
            plan = {"k1": ["--bptt=sliding"], "k2": ["--bptt=sliding", "--k1=2"]}
            plan["truncation_prob"] = ["--bptt=randomized"]
            for name in (field.name, field.name.replace("_", "-"), *field.metadata["aliases"]):
                bool_ = field.type == "bool"
                option = f"--{name}" if bool_ else f"--{name}={value}"
                result = run("train", "a.txt", *plan.get(field.name, []), option)
                assert result.exit_code == 0, result.stderr
                given = getattr(getattr(trainer.calls[-1][2], _section_of(field.name)), field.name)
                assert str(given) == ("True" if bool_ else value)


def _section_of(field_name):
    return next(
        name
        for name, section in Config.sections().items()
        if field_name in {f.name for f in dataclasses.fields(section)}
    )


def test_resume_passes_on_what_was_given_and_nothing_else(trainer):
    assert run("train", "--resume", "latest", "--max-steps", 9, "--threads=0").exit_code == 0
    assert trainer.calls == [("resume", "latest", (), {"max_steps": 9, "threads": 0})]


@pytest.mark.parametrize("name, number", [("SIGINT", 2), ("SIGTERM", 15)])
def test_the_first_signal_stops_the_run_and_restores_the_default_action(trainer, name, number):
    handlers = []

    def during():
        signal.raise_signal(getattr(signal, name))
        handlers.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)))

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer.run = FakeRun(end_event(), during=during)
    result = run("train", "a.txt", "--quiet")
    assert trainer.run.interrupted
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert result.exit_code == 128 + number
    assert result.stderr == f"go on with: charrnn train --resume {Path('runs/book')}\n"


def test_the_first_of_two_signals_is_the_status(trainer, monkeypatch):
    def during():
        monkeypatch.setattr(
            "charrnn.commands.train.time.sleep", lambda seconds: signal.raise_signal(signal.SIGTERM)
        )
        signal.raise_signal(signal.SIGINT)

    trainer.run = FakeRun(end_event(), during=during)
    assert run("train", "a.txt", "--quiet").exit_code == 130


def test_a_run_that_finished_all_the_same_has_nothing_to_go_on_with(trainer):
    trainer.run = FakeRun(end_event(), during=lambda: signal.raise_signal(signal.SIGINT))
    trainer.run.interrupt = lambda: None
    result = run("train", "a.txt", "--quiet")
    assert (result.exit_code, result.stderr) == (130, "")


def test_divergence_is_status_3_with_its_message(trainer):
    trainer.run = FakeRun(end_event("diverged", "the loss is nan: lower --learning-rate"))
    result = run("train", "a.txt", "--quiet")
    assert result.exit_code == 3
    assert result.stderr == "Error: the loss is nan: lower --learning-rate\n"


def test_errors_of_the_library_are_one_line_with_their_status(trainer):
    def full():
        raise SaveError("no space\nleft")

    trainer.run = FakeRun(during=full)
    result = run("train", "a.txt", "--quiet")
    assert (result.exit_code, result.stderr) == (4, "Error: no space left\n")


def test_too_little_memory_is_wrong_input(trainer):
    def allocate():
        raise MemoryError("Unable to allocate 2.9 TiB")

    trainer.run = FakeRun(during=allocate)
    result = run("train", "a.txt", "--quiet")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: not enough memory (Unable to allocate 2.9 TiB): choose")


def test_interrupted_before_the_run_begins_is_130(trainer, monkeypatch):
    def start(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "start", start)
    result = run("train", "a.txt")
    assert (result.exit_code, result.stderr.strip()) == (130, "")


def test_a_file_that_ends_too_early_is_no_interruption(trainer, monkeypatch):
    def start(*args):
        raise EOFError("marshal data too short")

    monkeypatch.setattr(trainer, "start", start)
    result = run("train", "a.txt")
    assert result.exit_code == 4
    assert result.stderr.strip() == "Error: a file ends too early: marshal data too short"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("trian", "there is no command 'trian', did you mean 'train'? (see: charrnn --help)"),
        (
            "xyz",
            "there is no command 'xyz': use bench, eval, gradients, info, inspect, monitor, plot, "
            "runs, sample, train (see: charrnn --help)",
        ),
        (
            "train",
            "no text to train on: name one or more files, folders or -, or use --resume RUN "
            "(see: charrnn train --help)",
        ),
        (
            "train a --hidden_size 0",
            "--hidden-size is 0: it must be a whole number from 1 to 65,536",
        ),
        ("train a --epochs 1.5", "--epochs is '1.5': it must be a whole number at least 1"),
        (
            "train a --lr nan",
            "--learning-rate is nan: it must be a number above 0 and at most 1e+38",
        ),
        ("train a --dropout x", "--dropout is 'x': it must be a number at least 0 and below 1"),
        (
            "train --resume r --out-dir o",
            "--out-dir cannot be used with --resume, which goes on with a run as it is "
            "(see: charrnn train --help)",
        ),
        (
            "train a --on-unknown map",
            "--on-unknown needs --init-from: a new model knows every character of its text "
            "(see: charrnn train --help)",
        ),
        (
            "train a --val-frac 0.2 --val-file b",
            "--val-frac and --val-file are both given: use one (see: charrnn train --help)",
        ),
        (
            "train a --live --quiet",
            "--live and --quiet are both given: use one (see: charrnn train --help)",
        ),
        (
            "sample --prompt a --prompt-file b",
            "--prompt and --prompt-file are both given: use one (see: charrnn sample --help)",
        ),
        (
            "sample -i --num-samples 2",
            "--num-samples cannot be used with --interactive (see: charrnn sample --help)",
        ),
        (
            "sample -i --output o",
            "--output cannot be used with --interactive (see: charrnn sample --help)",
        ),
        (
            "sample -i --prompt-file -",
            "--prompt-file - with --interactive: lines come from there; name a file "
            "(see: charrnn sample --help)",
        ),
        (
            "sample --seed -1",
            "--seed is -1: it must be a whole number from 0 to 4,294,967,295",
        ),
        ("inspect --unit x", "--unit is x: it must be a whole number at least 0"),
        ("sample --top-p 0", "--top-p is 0.0: it must be a number above 0 and at most 1"),
    ],
)
def test_wrong_input(line, expected):
    assert error_of(*line.split()) == expected


@pytest.mark.parametrize(
    "line, parts",
    [
        ("train a --hiden-size 4", ["--hiden-size", "--hidden-size", "charrnn train --help"]),
        ("train a --model lstn", ["--model", "lstn", "gru", "lstm", "charrnn train --help"]),
        ("train a --seed", ["--seed", "requires an argument"]),
        ("eval", ["MODEL", "charrnn eval --help"]),
        ("eval m", ["FILE", "charrnn eval --help"]),
        ("sample a b", ["unexpected extra argument", "b", "charrnn sample --help"]),
    ],
)
def test_wrong_usage_in_click_s_words(line, parts):
    message = error_of(*line.split())
    assert all(part in message for part in parts), message


# --- sample --------------------------------------------------------------------------------------


def test_sample_writes_prompt_sample_newline(lm, generate):
    result = run("sample", "--prompt", "x\n", "--length", 3, "--seed", 5)
    assert result.stdout == "x\naaa\n"
    assert result.stderr == f"model {lm.path}\n"
    assert lm.asked == [None]
    assert generate == [
        (SampleConfig(length=3), dict(prompt="x\n", seed=5, stop=(), on_unknown="skip"))
    ]


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_what_this_machine_does_differently_is_said(command, lm, generate, tmp_path):
    file = tmp_path / "text"
    file.write_text("abc")
    lm.notes.append("no such instruction")
    arguments = ["m", str(file)] if command == "eval" else []
    assert "no such instruction" in run(command, *arguments).stderr


def test_samples_are_separated_by_a_line(lm, generate):
    result = run("sample", "m", "--num_samples", 3, "--length", 2, "--prompt", "é>", "--seed", 1)
    assert result.stdout == "é>aa\n---\né>bb\n---\né>cc\n"
    assert "skip é\n" in result.stderr
    assert run("sample", "--num-samples", 2, "--length", 0).stdout == "\n---\n\n"


def test_a_drawn_seed_is_shown_and_gives_the_same_again(lm, generate):
    shown = re.search(r"seed (\d+)\n", run("sample", "--length", 1).stderr)
    assert int(shown[1]) == generate[-1][1]["seed"]
    assert len({run("sample").stderr for _ in range(3)}) == 3


def test_stop_is_repeatable_and_output_is_a_file(lm, generate, tmp_path):
    file = tmp_path / "out.txt"
    result = run("sample", "--stop", "\n\n", "--stop", "é", "--length", 2, "--output", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert file.read_bytes() == b"aa\n"
    assert generate[-1][1]["stop"] == ("\n\n", "é")
    (tmp_path / "link").symlink_to("out.txt")
    assert run("sample", "--length", 3, "--output", tmp_path / "link").exit_code == 0
    assert file.read_bytes() == b"aaa\n" and (tmp_path / "link").is_symlink()


def test_output_that_cannot_be_written(lm, generate, tmp_path):
    result = run("sample", "--output", tmp_path / "no" / "out.txt")
    assert result.exit_code == 2
    assert "there is no such folder, make it first" in result.stderr
    assert run("sample", "--length", 2, "--output", "-").stdout == "aa\n"


OWN = ("config.json", "last.safetensors", "step-7.safetensors", "metrics.jsonl", "lock", "text.txt")


@pytest.mark.parametrize("name", OWN)
def test_output_is_no_file_of_a_run(name, lm, tmp_path):
    for each in OWN:
        (tmp_path / each).write_text("precious")
    (tmp_path / "link").symlink_to(name)
    for given in (name, "link"):
        result = run("sample", "--output", tmp_path / given)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert re.search(r"--output .* (is a file of the run|would be a checkpoint)", result.stderr)
        assert (tmp_path / name).read_text() == "precious"
    assert lm.asked == []


def test_output_is_not_the_model_that_is_read(lm, tmp_path):
    lm.path = tmp_path / "a model"
    lm.path.write_text("precious")
    assert "is the model that is read" in run("sample", "--output", lm.path).stderr
    assert lm.path.read_text() == "precious"


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_a_sample_that_is_cut_short_leaves_the_output_file_alone(
    number, lm, generate, tmp_path, monkeypatch
):
    def broken(*args, **kwargs):
        yield ["a"]
        if number is None:
            raise InputError("broken")
        signal.raise_signal(number)
        yield ["b"]

    monkeypatch.setattr(charrnn.sampling, "generate", broken)
    (tmp_path / "out.txt").write_text("precious")
    (tmp_path / "link").symlink_to("out.txt")
    result = run("sample", "--output", tmp_path / "link")
    assert result.exit_code == (2 if number is None else 128 + number)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("link", "out.txt"), "precious"
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no such device")
def test_output_goes_to_devices_and_a_full_one_is_named(lm, generate):
    assert run("sample", "--output", "/dev/null").exit_code == 0
    result = run("sample", "--output", "/dev/full", "--seed", 1)
    assert result.exit_code == 4
    assert result.stderr.splitlines()[-1] == (
        "Error: could not write /dev/full: No space left on device; name another file"
    )


def test_prompt_file_is_read_like_a_text(lm, generate, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffgrün\r\n".encode())
    assert run("sample", "--prompt-file", file, "--length", 1).stdout == "grün\na\n"
    assert run("sample", "--prompt-file", "-", "--length", 1, input="hi").stdout == "hia\n"


def test_a_bad_prompt_leaves_the_output_file_alone(lm, generate, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise InputError("refused")

    monkeypatch.setattr(charrnn.sampling, "generate", refuse)
    file = tmp_path / "out.txt"
    file.write_text("precious")
    assert run("sample", "--output", file).exit_code == 2
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("seconds", "want"), [(-1, [">", ">a", ">ab", ">abc"]), (1e3, [">", ">a"])]
)
def test_sample_streams_the_first_sample(seconds, want, monkeypatch):
    monkeypatch.setattr(sample_module, "STREAM_SECONDS", seconds)
    written = []

    class Spy(io.StringIO):
        def flush(self):
            written.append(self.getvalue())

    sample_module._write_samples(Spy(), ">", iter([["a", "x"], ["b", "y"], ["c", "z"]]), 2)
    assert written == want


def test_characters_that_an_encoding_lacks_are_replaced(lm, generate):
    result = run("sample", "--prompt", "\udce9", "--length", 1, "--seed", 1)
    assert (result.exit_code, result.stdout) == (0, "?a\n")


# --- eval and info -------------------------------------------------------------------------------


def test_eval_prints_every_unit(lm, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcé" * 3, encoding="utf-8")
    result = run("eval", "m", file, "--baselines")
    assert lm.asked == ["m"]
    assert scored(lm) == [("abcé" * 3, dict(exact=False, baselines=True, on_unknown="skip"))]
    assert result.stdout == (
        f"{lm.path} on 11 characters\n"
        "  model   1.386 nats/char  2.000 bits/char  perplexity 4  1.75 bits/byte\n"
        "  5-gram  2.079 nats/char  3.000 bits/char  perplexity 8\n"
    )
    assert result.stderr == "3 unknown characters skipped: 'é' (3 times)\n"


def test_eval_json_is_one_object(lm, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("naïve".encode("latin-1"))
    result = run("eval", "m", file, "--json", "--encoding", "latin-1", "--exact")
    scores = json.loads(result.stdout)
    assert scores["model"] == str(lm.path)
    assert scores["chars"] == 4
    assert scored(lm) == [("naïve", dict(exact=True, baselines=False, on_unknown="skip"))]


def test_info(lm):
    assert json.loads(run("info", "m", "--json").stdout) == lm.describe()
    assert run("info", "m").stdout == (
        "step     7\nconfig\n  model\n    residual  on\nsymbols  a é\n"
    )


# --- help, documentation, import -----------------------------------------------------------------


def test_charrnn_alone_prints_help():
    result = run()
    assert result.exit_code == 0
    assert result.stdout == run("--help").stdout
    assert all(command in result.stdout for command in cli.commands)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_is_a_command_too_and_has_an_example(command):
    help = run(command, "--help").stdout
    assert run("help", command).stdout == help
    assert f"\n  charrnn {command}" in help
    assert all(len(line) <= 100 for line in help.splitlines())


def test_help_alone_and_of_what_there_is_not():
    assert run("help").stdout == run("--help").stdout
    assert "did you mean 'train'?" in error_of("help", "trian")


def test_the_examples_in_help_are_options_that_exist():
    for name, command in cli.commands.items():
        known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        for line in re.findall(rf"^  charrnn {name} .*", run(name, "--help").stdout, re.M):
            assert set(re.findall(r" (--?[a-z][\w-]*)", line)) <= known, line


def test_version():
    assert run("--version").stdout == f"charrnn, version {charrnn.__version__}\n"


def test_help_shows_defaults_and_ranges_from_the_config():
    text = " ".join(run("train", "--help").stdout.split())
    assert "Units per layer (H). [default: 256; from 1 to 65,536]" in text
    assert "[default: 10, or no limit with --max-steps; at least 1]" in text
    assert "Model options: --model" in text
    text = " ".join(run("eval", "--help").stdout.split())
    assert "[default: 10; from 0 to 1,000]" in text


RESUMABLE = {
    field.name
    for section in Config.sections().values()
    for field in dataclasses.fields(section)
    if field.metadata["resumable"]
}


def described(command: str, option: click.Option) -> tuple[str, str]:
    """What docs/options.md has to say of an option: its heading and the line below."""
    first, *aliases = option.opts
    heading = f"`{first}`" + (f" / `{option.secondary_opts[0]}`" if option.secondary_opts else "")
    facts = re.findall(r"  \[(.*)\]$", option.help or "")
    if command == "train" and option.name in RESUMABLE:
        facts.append("may change on resume")
    if isinstance(option.type, click.Choice):
        facts.insert(0, "one of " + ", ".join(f"`{c}`" for c in option.type.choices))
    if aliases:
        facts.append("also " + ", ".join(f"`{a}`" for a in aliases))
    line = "; ".join(facts)
    return heading, f"*{line[0].upper()}{line[1:]}.*" if line else ""


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_is_documented_with_its_facts(command):
    document = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    chapter = re.search(rf"^## charrnn {command}\n(.*?)(?=^## |\Z)", document, re.S | re.M)
    assert chapter, f"docs/options.md has no chapter on {command}"
    sections = dict(re.findall(r"^### (.*?)\n+(.*?)(?=^### |\Z)", chapter[1], re.S | re.M))
    options = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    assert list(sections) == [described(command, option)[0] for option in options]
    for option in options:
        heading, facts = described(command, option)
        text = sections[heading]
        assert text.startswith(facts), f"{heading}: the facts are {facts}"
        assert len(text) > len(facts) + 20, f"{heading} says nothing"


def test_public_names():
    assert charrnn.Config is Config
    assert set(charrnn.__all__) <= set(dir(charrnn))
    with pytest.raises(AttributeError, match="'charrnn' has no attribute 'nothing'"):
        _ = charrnn.nothing


def python(*args, **kwargs):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | kwargs.pop("env", {})
    return subprocess.run(
        [sys.executable, *args], capture_output=True, env=environment, timeout=30, **kwargs
    )


def test_help_imports_nothing_heavy():
    result = python("-X", "importtime", "-m", "charrnn", "--help", env={"PYTHONWARNINGS": "error"})
    assert result.returncode == 0
    imported = set(re.findall(rb"\| +([\w.]+)", result.stderr))
    assert b"charrnn.cli" in imported
    assert not imported & {b"numpy", b"numba", b"tqdm", b"safetensors"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, charrnn; charrnn.Config; print({'numpy', 'numba'} & set(sys.modules))"
    assert python("-c", code).stdout.strip() == b"set()"


def test_gradients_has_one_thread_for_decompositions():
    """NumPy's library asks once, when it is loaded."""
    code = """if True:
        import os, sys
        from charrnn.cli import cli

        class Watch:
            def find_spec(self, name, *more):
                if name == "numpy":
                    print(os.environ["OPENBLAS_NUM_THREADS"])

        sys.meta_path.insert(0, Watch())
        cli(["gradients", "none"])
    """
    environment = {"OPENBLAS_NUM_THREADS": "3"}
    unset = {k: v for k, v in os.environ.items() if k not in environment}
    for env, threads in ((unset, b"1"), (unset | environment, b"3")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=env, timeout=30
        )
        assert (done.returncode, done.stdout.strip()) == (2, threads), done.stderr


def test_a_real_process_refuses_in_one_line():
    result = python("-m", "charrnn", "train", "--hidden-size", "ten", "a.txt")
    assert result.returncode == 2
    assert result.stderr.decode().strip() == (
        "Error: --hidden-size is 'ten': it must be a whole number from 1 to 65,536"
    )


FAKE_SAMPLER = """
import sys, types
import charrnn.cli, itertools
api, sampling = types.ModuleType("charrnn.api"), types.ModuleType("charrnn.sampling")
lm = types.SimpleNamespace(path="p", model=None, vocabulary=None, notes=[])
api.load = lambda path, precision: lm
sampling.generate = lambda *a, **k: itertools.repeat(["\\u2192é"])
sampling.unknown_note = lambda *a: None
charrnn.api = sys.modules["charrnn.api"] = api
charrnn.sampling = sys.modules["charrnn.sampling"] = sampling
charrnn.cli.cli(["sample", "--seed", "1"], prog_name="charrnn")
"""


def sampling_process(**environment):
    return subprocess.Popen(
        [sys.executable, "-c", FAKE_SAMPLER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def test_a_closed_pipe_ends_sampling_quietly_and_pipes_get_utf_8():
    with sampling_process(PYTHONIOENCODING="ascii", LC_ALL="C") as process:
        assert process.stdout.read(5) == "→é".encode()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == b"model p\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a process Ctrl-C alone")
def test_ctrl_c_ends_sampling_quietly():
    with sampling_process() as process:
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=20) == 130
        assert process.stderr.read().split() == [b"model", b"p"]


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_ci_runs_the_readme_s_test_command(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    readme = tmp_path / "README.md"
    readme.write_text("<!-- test-command -->\n```sh\necho one &&\\\n  false\n```\n")
    result = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, timeout=30)
    assert result.stdout.splitlines()[-1] == b"one"
    assert result.returncode == 1
    readme.write_text("no command\n")
    result = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, timeout=30)
    assert result.returncode == 2
    assert result.stderr.startswith(b"README.md has no command between")
