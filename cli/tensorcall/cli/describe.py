"""`tensorcall describe`."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

from tensorcall.cli import snippets
from tensorcall.cli.exits import OK, told
from tensorcall.cli.ls import as_object
from tensorcall.cli.parameters import address_argument, examples, timeout_option
from tensorcall.cli.signatures import Parameter, parameters

if TYPE_CHECKING:
    from tensorcall.client import Function

_KINDS = {
    "coroutine": "A coroutine function: many of its calls run at once.",
    "generator": "A generator function: its items come one by one.",
    "class": "A class: callers make instances, and call methods on a reference to one.",
}


@click.command(
    epilog=examples(
        "tensorcall describe 127.0.0.1:50051 digits.predict",
    ),
)
@address_argument
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@timeout_option
def describe(address: str, name: str, as_json: bool, timeout: float | None) -> int:
    """Describes a function, and how to call it."""
    from tensorcall.client import connect

    with told(address), connect(address, timeout=timeout) as remote:
        function = remote.describe(name)
    if as_json:
        click.echo(json.dumps(as_object(function), ensure_ascii=False))
    else:
        _print(function, address)
    return OK


def _print(function: Function, address: str) -> None:
    click.echo(f"{click.style(function.name, bold=True)}{function.signature}")
    for text in (function.doc, _KINDS.get(function.kind, "")):
        if text:
            click.echo("\n" + textwrap.indent(text, "    "))
    known = parameters(function.signature)
    if known:
        _section("Parameters", _table(known))
    if function.methods:
        _section("Methods", _columns([(str(method), method.doc.partition("\n")[0]) for method in function.methods]))
    if function.kind != "class":
        _section("From a shell", [snippets.shell(function, address)])
        _section("From Python", snippets.python(function, address))


def _section(title: str, lines: list[str]) -> None:
    click.echo(f"\n{click.style(title, bold=True)}")
    for line in lines:
        click.echo(f"    {line}".rstrip())


def _table(known: list[Parameter]) -> list[str]:
    return _columns([(p.stars + p.name, p.type or "anything", _remark(p)) for p in known])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _remark(parameter: Parameter) -> str:
    if parameter.stars:
        return "any number"
    needed = "required" if parameter.required else f"default {parameter.default}"
    how = {"positional": ", by position only", "keyword": ", by name only"}.get(parameter.passed, "")
    return needed + how
