"""The text of arguments → values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from tensorcall.cli import files


def parse(text: str) -> Any:
    """Reads a value: JSON if it is that, else the text itself.

    `5`, `0.5`, `true`, `null`, `[1, 2]` and `{"a": 1}` are what JSON says, `NaN` and `Infinity` are floats, `"5"` (with
    its quotes) is a string, and so is everything else, such as `cat` or `2024-01-01`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def split(text: str) -> tuple[str | None, str]:
    """Splits `key=value`; the key is None where the text does not begin with a name and an equals sign."""
    head, equals, tail = text.partition("=")
    return (head, tail) if equals and head.isidentifier() else (None, text)


def gather(
    arguments: Iterable[str], strings: Iterable[str] = (), loads: Iterable[str] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """Makes the positional and the keyword arguments of a call.

    Args:
        arguments: VALUE or KEY=VALUE, with values as `parse` reads them.
        strings: KEY=TEXT, taken as they are.
        loads: FILE or KEY=FILE; see `files.load`. Files without a key follow the other positional arguments.

    Raises:
        click.UsageError: a key comes twice, a string has no key, or a file can't be loaded.
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}

    def add(key: str | None, value: Any) -> None:
        if key is None:
            positional.append(value)
        elif key in named:
            raise click.UsageError(f"the argument {key!r} is given twice")
        else:
            named[key] = value

    for argument in arguments:
        key, text = split(argument)
        add(key, parse(text))
    for string in strings:
        key, text = split(string)
        if key is None:
            raise click.UsageError(
                f"write --string KEY=TEXT, not --string {string}; a positional string that looks like JSON takes "
                f"""quotes of its own: '"5"'"""
            )
        add(key, text)
    for load in loads:
        key, path = split(load)
        add(key, files.load(path))
    return positional, named
