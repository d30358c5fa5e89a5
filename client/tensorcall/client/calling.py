"""Makes calls of anything that can be called: exposed functions, methods of values, or nothing but fetch a value."""

from __future__ import annotations

import time
from typing import Any

from tensorcall.client.carrier import Carrier
from tensorcall.client.connection import Connection
from tensorcall.client.forks import Fork
from tensorcall.client.futures import CallFuture
from tensorcall.client.options import CallOptions
from tensorcall.wire import calls
from tensorcall.wire.calls import Encoded, Target
from tensorcall.wire.errors import DeadlineExceeded, TensorcallError, TooLarge
from tensorcall.wire.protowire import size


def prepare(
    connection: Connection,
    options: CallOptions,
    target: Target,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    want: int = 0,
    number: int = 0,
) -> tuple[Carrier, Encoded, float | None]:
    """Encodes a call for whatever carries it.

    Args:
        connection: the way to the server.
        options: settings of the call.
        target: what to call.
        args: positional arguments.
        kwargs: keyword arguments.
        want: WANT_RREF for a reference to the result.
        number: with that, the fork's.

    Returns:
        The carrier, the call, and how much of its time is left.

    Raises:
        Unencodable, TooLarge: an argument can't be sent.
        Unreachable: nobody answers.
        DeadlineExceeded: the timeout is none, or has passed while the connection was opened.
    """
    timeout = options.timeout
    if timeout is not None and timeout <= 0:
        raise DeadlineExceeded(f"the timeout of {timeout:g} s had passed before the call was sent")
    if timeout is None or connection.ready:
        carrier = connection.carrier(timeout)
    else:
        end = time.monotonic() + timeout
        carrier = connection.carrier(timeout)
        timeout = max(0.0, end - time.monotonic())
    request = calls.encode_request(
        target,
        args,
        kwargs,
        call_id=options.call_id,
        want=want,
        client_id=carrier.client_id if number else "",
        number=number,
        pickled=options.pickle,
        chunk_above=carrier.chunk_above,
    )
    request.progress = options.progress
    length = size(request.parts)
    if length > carrier.max_message_bytes:
        raise TooLarge(
            f"the call has {length:,} bytes in one message, the server takes {carrier.max_message_bytes:,}: "
            "send large data as tensors, over a session"
        )
    return carrier, request, timeout


def submit(
    connection: Connection,
    options: CallOptions,
    target: Target,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    keep: Any = None,
) -> CallFuture:
    """Makes a call.

    Args:
        connection: the way to the server.
        options: settings of the call.
        target: what to call.
        args: positional arguments.
        kwargs: keyword arguments.
        keep: a handle to be kept alive until the call has ended, for example of the value whose method it is.

    Raises:
        Unencodable, TooLarge, Unreachable: as `prepare`.
    """
    carrier, request, timeout = prepare(connection, options, target, args, kwargs or {})
    if keep is not None:
        request.handles.append(keep)
    return carrier.submit(request, timeout, pickle=options.pickle)


def create(
    connection: Connection,
    options: CallOptions,
    target: Target,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    keep: Any = None,
) -> Fork:
    """Makes a call whose result stays on the server. Returns as soon as the call is under way.

    The first one at a server waits for a lease there.

    Returns:
        A fork of the result, pending until it is there.

    Raises:
        Unencodable, TooLarge, Unreachable: as `prepare`.
    """
    connection.carrier(options.timeout)  # a server that was restarted is noticed before the value has a name
    link = connection.link
    fork = link.new_name(options.timeout)
    try:
        carrier, request, timeout = prepare(
            connection, options, target, args, kwargs or {}, want=calls.WANT_RREF, number=fork.number
        )
        if keep is not None:
            request.handles.append(keep)
        call = carrier.submit(request, timeout, pickle=options.pickle)
    except BaseException as error:
        told = error if isinstance(error, TensorcallError) else TensorcallError(f"the call was not sent: {error}")
        link.abandon(fork, told.with_traceback(None) if told is not error else TensorcallError(str(error)))
        fork.let_go()
        raise
    link.follow(fork, call)
    return fork
