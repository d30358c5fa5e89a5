"""How commands end: exit codes, and errors in the caller's words on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

OK = 0
FAILED = 1
"""The function raised, the request was refused, the service can't."""
WRONG_USAGE = 2
UNREACHABLE = 2
"""Nobody answers there: the address is the most likely mistake."""
INTERRUPTED = 130
"""By Ctrl-C, as shells have it."""

# Of the first line of a remote message, in characters; all of it follows below.
_MAX_HEADLINE = 500


@contextlib.contextmanager
def told(address: str, function: str = "") -> Iterator[None]:
    """Tells of any TensorcallError raised within on stderr and exits with its code.

    Nothing of it may get any further: a remote exception is an instance of its original class, which click, too, may
    have an opinion of.

    Args:
        address: where the server should be.
        function: what is called.
    """
    from tensorcall.wire.errors import TensorcallError

    try:
        yield
    except TensorcallError as error:
        code = _tell(error, address, function)
    else:
        return
    raise click.exceptions.Exit(code)


def _tell(error: Exception, address: str, function: str) -> int:
    from tensorcall.wire.errors import RemoteError, Unreachable

    if isinstance(error, RemoteError):
        raised = headline(error)
        details = error.remote_traceback.rstrip("\n") or raised
        first = raised.partition("\n")[0]
        fail(f"{function or address} raised {first[:_MAX_HEADLINE]}")
        # Without frames, which are not for everybody, the traceback may have nothing to add.
        if details != raised or first != raised or len(first) > _MAX_HEADLINE:
            click.echo(details, err=True)
        return FAILED
    if isinstance(error, Unreachable):
        # gRPC tells the way to the cause, from the outside in.
        fail(f"nobody answers at {address}: {str(error).rpartition(': ')[2]}")
        return UNREACHABLE
    fail(str(error) or type(error).__name__)
    return FAILED


def headline(error: Exception) -> str:
    """Returns the type and the message of a RemoteError, as a traceback's last line has them."""
    from tensorcall.wire.errors import RemoteError
    from tensorcall.wire.traceback_text import headline as of_node

    assert isinstance(error, RemoteError)
    if error.tree is not None and error.tree.exceptions:
        return of_node(error.tree.exceptions[0])
    # The server told no more than a message.
    return str(error)


def fail(message: str) -> None:
    """Prints an error: one line on stderr, red on a terminal."""
    click.secho(message, fg="red", err=True)
