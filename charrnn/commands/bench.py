"""``charrnn bench``."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import click

from charrnn import signals
from charrnn.commands import echo, note, print_json
from charrnn.config import Config, DataConfig, TrainConfig
from charrnn.errors import InputError
from charrnn.options import SectionedCommand, as_json, count_option, given_of, options_of

TIMED = ("batch_size", "seq_length", "recompute", "optimizer", "threads")
"""Options of text and training that make a difference to the speed of `bench`'s steps."""
UNUSED = ("init", *(
    field.name
    for section in (DataConfig, TrainConfig)
    for field in dataclasses.fields(section)
    if field.name not in TIMED
))  # fmt: skip


@click.command(cls=SectionedCommand)
@click.option(
    "--torch/--no-torch",
    default=None,
    help="Measure PyTorch too.  [default: if it is installed]",
)
@count_option(
    "--vocab-size", help="Symbols of the random text.  [default: 65]", least=2, most=65536,
    default=65,
)  # fmt: skip
@as_json
@options_of(*Config.sections().values(), without=UNUSED)
def bench(torch: bool | None, vocab_size: int, as_json: bool, **options: Any) -> None:
    """Measure how fast this machine trains.

    Times whole training steps of a configuration and of the one that char-rnn made usual (lstm
    2x128, B 50, T 50, V 65) on a random text, with every number of threads that is worth it; as a
    share of what the processor's multiply-add units can do; and against PyTorch. Takes some 20
    seconds, and 20 more where kernels have to be compiled.

    \b
    charrnn bench
    charrnn bench --model gru --hidden-size 512 --batch-size 64
    """
    config = Config.from_options(given_of(options))
    installed = find_spec("torch") is not None
    if torch and not installed:
        raise InputError("--torch: PyTorch is not installed; pip install torch, or leave this out")

    with signals.fatal():
        from charrnn import bench
        from charrnn.peer import Task

    threads = config.train.threads
    field = Task(Config.from_options(bench.FIELD | {"threads": threads}), 65)
    tasks = dict.fromkeys([Task(config, vocab_size), field])
    machine, versions = bench.machine(), bench.versions()
    head = f"{machine}; {', '.join(f'{name} {v}' for name, v in versions.items())}"
    reports = []
    for task in tasks:
        note(f"measuring {task.title} ...")
        reports.append(bench.measure(task, installed if torch is None else torch))
        if not as_json:
            echo("\n".join([*([] if reports[1:] else [head]), "", *bench.lines(reports[-1])]))
    if as_json:
        print_json({"machine": machine, "versions": versions, "reports": reports})
