"""How options are made: flags of the command line from the fields of config.py."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from charrnn.config import Config, Section, allowed, flag
from charrnn.errors import InputError


class SectionedCommand(click.Command):
    """A command whose help lists the options under the sections of the config."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        title_of = {
            field.name: f"{name.capitalize()} options"
            for name, section in Config.sections().items()
            for field in dataclasses.fields(section)
        }
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                title = title_of.get(parameter.name or "", "Options")
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Number(click.ParamType):
    """Text to a number. What is none stays text: config.py refuses it, as every bad value."""

    def __init__(self, kind: type[int] | type[float], word: str | None = None) -> None:
        self.kind = kind
        self.name = {int: "integer", float: "number"}[kind] + (f"|{word}" if word else "")

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self.kind(value)
        except ValueError:
            return value


def help_text(field: dataclasses.Field[Any]) -> tuple[str, str]:
    """What an option does; and its default and allowed values, in words."""
    text, _, default = field.metadata["help"].rstrip("]").partition("  [default: ")
    if field.default is not None:
        default = word(field.default)
    facts = [f"default: {default}"] if default else []
    if not field.metadata["choices"] and allowed(field.metadata):
        facts.append(allowed(field.metadata))
    return text, "; ".join(facts)


def word(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def options_of(*sections: type[Section], without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """A decorator that gives a command one option for every field of config sections."""

    def decorate(command: Any) -> Any:
        for section in reversed(sections):
            hints = typing.get_type_hints(section)
            fields = [f for f in dataclasses.fields(section) if f.name not in without]
            for field in reversed(fields):
                hint = hints[field.name]
                command = _option(field, (typing.get_args(hint) or (hint,))[0])(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], kind: type) -> Callable[[Any], Any]:
    names = [flag(name) for name in (field.name, *field.metadata["aliases"])]
    text, facts = help_text(field)
    help = f"{text}  [{facts}]" if facts else text
    attributes: dict[str, Any] = {}
    if kind is bool:
        names[0] += "/--no-" + names[0].removeprefix("--")
    elif kind in (int, float):
        attributes["type"] = Number(kind, field.metadata["word"])
    elif field.metadata["choices"]:
        attributes["type"] = click.Choice(field.metadata["choices"])
    # No default here: what was not given is left to the config.
    return click.option(*dict.fromkeys(names), field.name, default=None, help=help, **attributes)


def choices_of(section: type[Section], name: str) -> Sequence[str]:
    """The values that a field may have."""
    (field,) = (f for f in dataclasses.fields(section) if f.name == name)
    return typing.cast("Sequence[str]", field.metadata["choices"])


def given_of(names: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's parameters that stand on the command line."""
    source = click.get_current_context().get_parameter_source
    return {k: v for k, v in names.items() if source(k) is ParameterSource.COMMANDLINE}


def on_unknown(*choices: str) -> Callable[[Any], Any]:
    """The ``--on-unknown`` option; its first choice is the default."""
    return click.option(
        "--on-unknown",
        type=click.Choice(choices),
        default=choices[0],
        help=f"What to do with characters that the model does not know.  [default: {choices[0]}]",
    )


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class Count(click.ParamType):
    """A whole number within bounds, refused in the words of config.py."""

    name = "integer"

    def __init__(self, least: int, most: int | None) -> None:
        bounds = dict(min=least, max=most, above=None, below=None, choices=None)
        self.least, self.most, self.allowed = least, most, allowed(bounds)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        with contextlib.suppress(ValueError):
            number = int(value)
            if self.least <= number and (self.most is None or number <= self.most):
                return number
        raise InputError(f"{param.opts[0]} is {value}: it must be a whole number {self.allowed}")


def count_option(
    *names: str, help: str, least: int = 1, most: int | None = None, **more: Any
) -> Callable[[Any], Any]:
    """An option that takes a whole number; what is allowed joins the default in its help."""
    kind = Count(least, most)
    text, bracket, default = help.rstrip("]").partition("  [")
    facts = f"{default}; {kind.allowed}" if bracket else kind.allowed
    return click.option(*names, type=kind, help=f"{text}  [{facts}]", **more)
