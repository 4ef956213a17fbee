"""``charrnn info``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from charrnn import signals
from charrnn.chart import printable
from charrnn.commands import echo, print_json
from charrnn.options import as_json, word


@click.command()
@click.argument("model", required=False)
@as_json
def info(model: str | None, as_json: bool) -> None:
    """Describe a model.

    Shows its options, tensors, vocabulary, training history, text and versions. MODEL is a run
    folder or a checkpoint file; without it, the newest run's best model is described.

    \b
    charrnn info runs/book
    """
    with signals.fatal():
        from charrnn import api

    description = api.load(model).describe()
    if as_json:
        print_json(description)
    else:
        print_tree(description)


def print_tree(tree: Mapping[str, Any], indent: str = "") -> None:
    """Nested facts, one to a line, indented by their depth."""
    width = max(
        (len(str(key)) for key, value in tree.items() if not isinstance(value, dict)), default=0
    )
    for key, value in tree.items():
        if isinstance(value, dict):
            echo(f"{indent}{printable(key)}")
            print_tree(value, indent + "  ")
        else:
            echo(f"{indent}{printable(key):<{width}}  {printable(_fact(value))}")


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "-" if value is None else word(value)
