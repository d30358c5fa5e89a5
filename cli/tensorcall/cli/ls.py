"""`tensorcall ls`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tensorcall.cli.exits import OK, told
from tensorcall.cli.parameters import address_argument, examples, timeout_option

if TYPE_CHECKING:
    from tensorcall.client import Function


@click.command(
    epilog=examples(
        "tensorcall ls 127.0.0.1:50051",
        "tensorcall ls 127.0.0.1:50051 digits. --json",
    ),
)
@address_argument
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
@timeout_option
def ls(address: str, prefix: str, as_json: bool, timeout: float | None) -> int:
    """Lists what a server exposes.

    With PREFIX, only the functions whose names begin so.
    """
    from tensorcall.client import connect

    with told(address), connect(address, timeout=timeout) as remote:
        functions = remote.functions(prefix)
    if as_json:
        click.echo(json.dumps([as_object(function) for function in functions], ensure_ascii=False))
    elif functions:
        _print_table(functions)
    else:
        nothing = f"no function whose name begins with {prefix!r}" if prefix else "nothing"
        click.echo(f"{address} exposes {nothing}", err=True)
    return OK


def as_object(function: Function) -> dict[str, Any]:
    """Returns what is known of a function, for JSON."""
    described = {name: getattr(function, name) for name in ("name", "signature", "kind", "doc")}
    if function.methods:
        described["methods"] = [as_object(method) for method in function.methods]
    return described


def _print_table(functions: list[Function]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("NAME", "SIGNATURE", "WHAT IT DOES"):
        table.add_column(title, overflow="fold", no_wrap=title == "NAME")
    for function in functions:
        # As Text, since rich would read [brackets] in a string as markup.
        table.add_row(Text(function.name, "cyan"), Text(function.signature), Text(function.doc.partition("\n")[0]))
    # One function a line wherever a program may read them.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
