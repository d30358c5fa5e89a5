"""`tensorcall call`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from tensorcall.cli import arguments, files, jsonable, output
from tensorcall.cli.exits import FAILED, OK, fail, told
from tensorcall.cli.parameters import TakesNegativeNumbers, address_argument, examples, timeout_option

if TYPE_CHECKING:
    from tensorcall.client import Remote


@click.command(
    cls=TakesNegativeNumbers,
    epilog=examples(
        "tensorcall call 127.0.0.1:50051 mymodule.add 1 2",
        "tensorcall call 127.0.0.1:50051 mymodule.greet name=Ada --string title=007",
        "tensorcall call 127.0.0.1:50051 digits.predict --load images=images.pt k=3 --json",
        'tensorcall call 127.0.0.1:50051 model.encode "a sentence" --save vector.npy',
    ),
)
@address_argument
@click.argument("name")
@click.argument("args", metavar="[ARG]…", nargs=-1)
@click.option("--string", "-s", "strings", metavar="KEY=TEXT", multiple=True, help="An argument taken as it is.")
@click.option(
    "--load",
    "-l",
    "loads",
    metavar="[KEY=]FILE",
    multiple=True,
    help="An argument from a .npy, .npz, .safetensors or .pt file; FILE:NAME takes one array of several.",
)
@timeout_option
@click.option("--stream", is_flag=True, help="Print items as they come. Generator functions are recognised without it.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: one line for a result, or for each item of a stream."
)
@click.option("--save", "target", metavar="FILE", help="Save the result as .npy, .pt or .safetensors; print nothing.")
def call(
    address: str,
    name: str,
    args: tuple[str, ...],
    strings: tuple[str, ...],
    loads: tuple[str, ...],
    timeout: float | None,
    stream: bool,
    as_json: bool,
    target: str | None,
) -> int:
    """Calls a function and prints its result.

    ARG is a value, or KEY=VALUE for a keyword argument. A value is read as JSON if it is that (5, 0.5, true, null, NaN,
    [1, 2], {"a": 1}) and else as a string (cat). For a string that looks like JSON, quote it twice, '"5"', or write
    --string KEY=5.

    --load takes tensors from .pt and .safetensors, arrays from .npy and .npz. Loaded arguments without a KEY follow the
    other positional ones.

    With --json a tensor is {"dtype": …, "shape": …, "data": …}; NaN and the infinities are strings, bytes are base64,
    tuples and sets are lists, a dict whose keys are no strings is a list of [key, value].
    """
    if target is not None:
        if as_json or stream:
            raise click.UsageError("--save goes with neither --json nor --stream: it prints nothing")
        files.check_target(target)
    positional, named = arguments.gather(args, strings, loads)

    from tensorcall.client import connect

    with told(address, name), connect(address, timeout=timeout) as remote:
        if stream or _is_generator(remote, name):
            if target is not None:
                raise click.UsageError(f"{name} is a generator function: --save takes one result, not a stream")
            return _print_items(remote, name, positional, named, as_json)
        result = _result(remote, name, positional, named)
    if target is not None:
        return _save(result, target)
    if as_json:
        click.echo(_json(result, indent=2 if sys.stdout.isatty() else None))
    else:
        output.show(result)
    return OK


def _is_generator(remote: Remote, name: str) -> bool:
    # Not `describe`, which refuses an unknown name by itself: the server's refusal has the nearest names.
    return any(found.name == name and found.kind == "generator" for found in remote.functions(name))


def _print_items(remote: Remote, name: str, positional: list[Any], named: dict[str, Any], as_json: bool) -> int:
    with remote.stream(name, *positional, **named) as items:
        for item in items:
            if as_json:
                click.echo(_json(item))
                sys.stdout.flush()
            else:
                output.show_item(item)
    return OK


def _result(remote: Remote, name: str, positional: list[Any], named: dict[str, Any]) -> Any:
    import concurrent.futures

    transfer = _Transfer()
    future = remote.options(progress=transfer).submit(name, *positional, **named)
    # Most calls are over before anybody could look at their progress.
    concurrent.futures.wait([future], timeout=0.5)
    with contextlib.nullcontext() if future.done() else _progress(name, transfer):
        # Ctrl-C ends the wait; leaving the connection then cancels the call.
        return future.result()


class _Transfer:
    """How much of a call's tensors has left."""

    def __init__(self) -> None:
        self.sent, self.total = 0, 0
        self.changed: Callable[[], object] = lambda: None

    def __call__(self, sent: int, total: int) -> None:
        self.sent, self.total = sent, total
        self.changed()


@contextlib.contextmanager
def _progress(name: str, transfer: _Transfer) -> Iterator[None]:
    """Shows on a terminal, on stderr, how much has been sent of a call that takes long, and for how long it has run."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
    ]
    if transfer.total:
        columns += [
            rich_progress.BarColumn(),
            rich_progress.DownloadColumn(),
            rich_progress.TransferSpeedColumn(),
        ]
    columns.append(rich_progress.TimeElapsedColumn())
    terminal = console.is_terminal
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not terminal) as display:
        task = display.add_task(name, total=transfer.total or None, completed=transfer.sent)
        transfer.changed = lambda: display.update(task, completed=transfer.sent)
        yield


def _save(result: object, target: str) -> int:
    try:
        files.save(result, target)
    except ImportError as error:
        reason = f"{target} can't be written without {error.name}: pip install {error.name}"
    except (TypeError, OSError) as error:
        reason = str(error)
    else:
        click.echo(f"saved {output.summary(result)} as {target}", err=True)
        return OK
    # Computing it may have taken long: what can't be saved is shown at least.
    output.show(result)
    fail(f"not saved: {reason}")
    return FAILED


_json = functools.partial(jsonable.dumps, warn=lambda text: click.secho(text, fg="yellow", err=True))
