"""`tensorcall rrefs`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tensorcall.cli.exits import OK, told
from tensorcall.cli.parameters import address_argument, examples

if TYPE_CHECKING:
    from tensorcall.v1.rref_service_pb2 import ListRRefsResponse, RRefInfo

_MAX_HOLDERS = 3


@click.command(
    epilog=examples(
        "tensorcall rrefs 127.0.0.1:50051",
        "tensorcall rrefs 127.0.0.1:50051 --limit 10 --json",
    ),
)
@address_argument
@click.option("--limit", metavar="N", type=click.IntRange(1, 100_000), default=1000, show_default=True,
              help="List no more than this.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
@click.option("--token", metavar="TOKEN", envvar="TENSORCALL_TOKEN", show_envvar=True, help="The server's secret.")
@click.option(
    "--timeout",
    "-t",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Give up after this.",
)
def rrefs(address: str, limit: int, as_json: bool, token: str | None, timeout: float) -> int:
    """Lists the values that clients have references to.

    The oldest first. Tells of each its type, its size as far as tensors tell, how long it has been there, who holds it
    and what made it.
    """
    with told(address):
        response = _ask(address, limit, token, timeout)
    if as_json:
        click.echo(json.dumps([_as_object(info) for info in response.rrefs], ensure_ascii=False))
        return OK
    if response.rrefs:
        _print_table(response.rrefs)
    else:
        click.echo(f"{address} keeps nothing", err=True)
    if response.total > len(response.rrefs):
        click.echo(f"{response.total - len(response.rrefs):,} more: --limit {response.total}", err=True)
    return OK


def _ask(address: str, limit: int, token: str | None, timeout: float) -> ListRRefsResponse:
    import grpc

    from tensorcall.v1.rref_service_pb2 import ListRRefsRequest
    from tensorcall.v1.rref_service_pb2_grpc import RRefServiceStub
    from tensorcall.wire import statuses

    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        try:
            return RRefServiceStub(channel).ListRRefs(ListRRefsRequest(limit=limit), timeout=timeout, metadata=metadata)
        except grpc.RpcError as raised:
            error: Any = raised
            details = dict(error.trailing_metadata() or ()).get(statuses.DETAILS_KEY)
            said, code = error.details() or "", error.code().value[0]
    raise statuses.from_grpc(code, said, details, connected=False, address=address)


def _as_object(info: RRefInfo) -> dict[str, Any]:
    return {
        "owner": info.rref.owner,
        "incarnation": info.rref.incarnation,
        "sequence": info.rref.sequence,
        "type": info.type,
        "bytes": info.bytes,
        "age": _seconds(info.age),
        "made_by": info.made_by,
        "holders": [
            {"client_id": each.client_id, "forks": each.forks, "lease_remaining": _seconds(each.lease_remaining)}
            for each in info.holders
        ],
    }


def _seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds() / 1e9)


def _print_table(infos: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def _text(told: str) -> Text:
        # Clients name themselves: what they write must not command the operator's terminal.
        return Text("".join(each if each.isprintable() else "\ufffd" for each in told))

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("ID", "TYPE", "SIZE", "AGE", "HOLDERS", "MADE BY"):
        right = title in ("SIZE", "AGE")
        table.add_column(title, overflow="fold", no_wrap=title == "ID", justify="right" if right else "left")
    for info in infos:
        # As Text, since rich would read [brackets] in a string as markup.
        cells = (
            info.type or "(being made, or failed)",
            _size(info.bytes),
            _age(_seconds(info.age)),
            _holders(info.holders),
            info.made_by,
        )
        table.add_row(Text(f"{info.rref.sequence:x}", "cyan"), *map(_text, cells))
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _holders(holders: Any) -> str:
    shown = [
        f"{each.client_id or '(nobody told)'}{f' ×{each.forks}' if each.forks > 1 else ''}"
        for each in holders[:_MAX_HOLDERS]
    ]
    if len(holders) > _MAX_HOLDERS:
        shown.append(f"{len(holders) - _MAX_HOLDERS} more")
    return ", ".join(shown)


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
