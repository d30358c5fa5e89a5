"""The way to one server: opened at first use, opened anew when it broke."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Literal, get_args

import grpc

from tensorcall.client import processes
from tensorcall.client.callbacks import carrying, refuse_to_wait
from tensorcall.client.carrier import Carrier, closed_error, deadline_error, from_rpc_error, no_answer
from tensorcall.client.futures import CallFuture
from tensorcall.client.housekeeping import housekeeper
from tensorcall.client.link import Link
from tensorcall.client.options import grpc_timeout, seconds
from tensorcall.client.payloads import PayloadReader
from tensorcall.client.references import references
from tensorcall.client.session import SessionCarrier
from tensorcall.client.unary import UnaryCarrier
from tensorcall.v1 import handler_service_pb2_grpc, rref_service_pb2_grpc
from tensorcall.wire.errors import NotImplementedByPeer, TensorcallError, Unreachable
from tensorcall.wire.rrefs import Opener, RRefId

CarrierName = Literal["auto", "session", "call"]
# Of the ways that gRPC knows to write where a server is.
_SCHEMES = ("dns", "unix", "xds", "passthrough")

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A dead peer is noticed; the server allows pings this often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that was just started is found soon, not after the two minutes that gRPC may back off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Error details take up to 8 KiB of trailers.
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 64 * 1024),
    # Functions are not idempotent: only what never left is sent again.
    ("grpc.enable_retries", 0),
]


class Connection:
    """One server's address, and what carries calls there. Safe from any thread."""

    def __init__(
        self,
        address: str,
        carrier: CarrierName,
        connect_timeout: float,
        *,
        metadata: Iterable[tuple[str, str]] = (),
        open_rref: Opener | None = None,
        known: bool = True,
    ) -> None:
        """Prepares a connection; nothing is sent.

        Args:
            address: HOST:PORT, or unix:PATH.
            carrier: "session", "call" or "auto".
            connect_timeout: how many seconds to wait for the server's first answer.
            metadata: sent with everything: keys in lower case, and values.
            open_rref: makes an RRef of a name in a result, without waiting; None: a UserRRef, over this connection
                where the value is this server's, else over one to its owner.
            known: whether references to this server's values that arrive elsewhere in this process may go over it.

        Raises:
            TypeError, ValueError: the address is none, or one of the others.
        """
        _check_address(address)
        if carrier not in get_args(CarrierName):
            raise ValueError(f"carrier is one of {', '.join(map(repr, get_args(CarrierName)))}, not {carrier!r}")
        patience = seconds("connect_timeout", connect_timeout)
        if patience <= 0:
            raise ValueError(f"connect_timeout is more than 0 seconds, not {connect_timeout!r}")
        self._generation = processes.generation
        self.address = address
        self.metadata = tuple(metadata)
        self._wanted = carrier
        self._connect_timeout: float = grpc_timeout(patience) or patience
        # Held for as long as it takes; the other, for what follows, only for moments: close() waits for nobody.
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._carrier: Carrier | None = None
        self._closed = False
        self._stub: rref_service_pb2_grpc.RRefServiceStub | None = None
        self.link = Link(self.ask_rrefs, address, way=lambda: self._channel)
        """What this process holds of the server's values, over this connection."""
        self.open_rref: Opener = open_rref or self._open_rref
        processes.keep_in_children(self)
        housekeeper.see_off(self.link)
        if known:
            references().add(self)

    def _open_rref(self, rref_id: RRefId) -> Any:
        return references().open(rref_id, self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def ready(self) -> bool:
        """Whether a call can be made without waiting for a connection."""
        return self._carrier is not None and self._carrier.alive

    @property
    def way(self) -> object:
        """What carries calls, to be compared with; see `callbacks`."""
        return self._channel

    def _refuse_inherited(self) -> None:
        processes.refuse_inherited(self._generation, f"the connection to {self.address}")

    def _open_channel(self) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._channel is None:
                self._channel = grpc.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
            return self._channel

    def carrier(self, timeout: float | None = None) -> Carrier:
        """Returns what carries calls: a session where the server has them, plain calls where not.

        Args:
            timeout: how many seconds the caller has, if less than it may take to connect.

        Raises:
            Unreachable: nobody answers.
            DeadlineExceeded: nobody answered within the caller's time.
            Cancelled: the connection was closed, maybe in the meantime.
            RequestError: it is the parent process'.
        """
        if self._generation != processes.generation:
            self._refuse_inherited()
        carrier = self._carrier
        if carrier is not None and carrier.alive:
            return carrier
        start = time.monotonic()
        patience = self._connect_timeout if timeout is None else min(timeout, self._connect_timeout)
        channel = self._open_channel()
        refuse_to_wait(channel)
        try:
            return self._carrier_within(channel, start, patience)
        except (TensorcallError, ValueError) as error:  # a closed channel is a ValueError to gRPC
            late = isinstance(error, Unreachable) and timeout is not None and time.monotonic() >= start + timeout
            if not (self._closed or late):
                raise
        raise closed_error() if self._closed or timeout is None else deadline_error(timeout)

    def _carrier_within(self, channel: grpc.Channel, start: float, patience: float) -> Carrier:
        if not self._opening.acquire(timeout=patience):
            raise no_answer(self.address, patience)
        try:
            carrier = self._carrier
            if carrier is None or not carrier.alive:
                try:
                    carrier = self._open(channel, max(0.0, start + patience - time.monotonic()))
                except Unreachable:
                    if time.monotonic() < start + patience:
                        raise
                    # Of the time that the caller gave, not of what was left of it.
                    raise no_answer(self.address, patience) from None
                with self._lock:
                    if not self._closed:
                        self._carrier = carrier
                if self._closed:
                    carrier.close()
                    raise closed_error()
            return carrier
        finally:
            self._opening.release()

    def _open(self, channel: grpc.Channel, patience: float) -> Carrier:
        if self._wanted != "call":
            try:
                reader = PayloadReader(self.link, lambda rref_id: self.open_rref(rref_id))
                return SessionCarrier(channel, self.address, patience, reader, self.metadata)
            except NotImplementedByPeer:
                if self._wanted == "session":
                    raise
        reader = PayloadReader(self.link, lambda rref_id: self.open_rref(rref_id), anonymous=True)
        return UnaryCarrier(channel, self.address, reader, self.metadata)

    def ask(self, method: str, request: Any, timeout: float | None) -> Any:
        """Calls one of HandlerService's methods that take and return generated messages.

        Raises:
            TensorcallError: it failed.
        """
        self._refuse_inherited()
        limit = self._connect_timeout if timeout is None else timeout
        end = time.monotonic() + limit
        try:
            stub = handler_service_pb2_grpc.HandlerServiceStub(self._open_channel())
            return getattr(stub, method)(request, timeout=grpc_timeout(limit), metadata=self.metadata)
        except grpc.RpcError as raised:
            if self._closed:
                error: TensorcallError = closed_error(in_flight=True)
            elif time.monotonic() >= end:
                # gRPC may tell of a lost connection instead: the server notices the deadline, too.
                error = deadline_error(limit)
            else:
                # Asking runs nothing, so it is all one when the server went away.
                error = from_rpc_error(raised, self.address, connected=False)
        except ValueError:
            if not self._closed:
                raise
            error = closed_error()
        try:
            raise error
        finally:
            del error  # this frame is part of its traceback

    def ask_rrefs(self, method: str, request: Any, timeout: float | None) -> Future[Any]:
        """Calls one of RRefService's methods; returns at once.

        Returns:
            The future of the response, which raises a TensorcallError.

        Raises:
            Cancelled: the connection was closed.
            RequestError: it is the parent process'.
        """
        self._refuse_inherited()
        # As long as there is one: the end of a lease is told while the connection is being closed.
        channel = self._channel or self._open_channel()
        # It may be closed in between.
        stub = self._stub
        if stub is None:
            stub = self._stub = rref_service_pb2_grpc.RRefServiceStub(channel)
        future = CallFuture(channel)
        try:
            call = getattr(stub, method).future(request, timeout=grpc_timeout(timeout), metadata=self.metadata)
        except ValueError:
            if not self._closed:
                raise
            raise closed_error() from None
        future.on_cancel(call.cancel)
        end = None if timeout is None else time.monotonic() + timeout

        def done(ended: Any) -> None:
            with carrying(channel):
                if ended.cancelled():
                    future.fail(closed_error(in_flight=True))
                    return
                failed = ended.exception()
                if failed is None:
                    future.resolve(ended.result())
                elif self._closed:
                    future.fail(closed_error(in_flight=True))
                elif timeout is not None and end is not None and time.monotonic() >= end:
                    future.fail(deadline_error(timeout))
                else:
                    failed.__traceback__ = None  # it leads back to the call, which is what was raised
                    future.fail(from_rpc_error(failed, self.address, connected=False))

        call.add_done_callback(done)
        return future

    def close(self) -> None:
        """Cancels what is in flight, lets go of all references and ends the connection. Idempotent.

        In a child process it only ends the child's use of it.
        """
        if self._generation != processes.generation:
            # Its threads are not there, its socket and its locks are the parent's.
            self._closed = True
            self.link.close()
            return
        with self._lock:
            first = not self._closed
            self._closed = True
            carrier, channel = self._carrier, self._channel
            self._carrier = None
        if carrier is not None:
            carrier.close()
        if first:
            references().discard(self)
            self.link.close()
        with self._lock:
            self._channel = self._stub = None
        if channel is not None:
            channel.close()


def _check_address(address: str) -> None:
    if not isinstance(address, str):
        raise TypeError(f"an address is a str, not {address!r}: write HOST:PORT, for example 127.0.0.1:50051")
    scheme, separator, rest = address.partition("://")
    if address.startswith(("unix:", "unix-abstract:")) or (separator and scheme in _SCHEMES):
        return
    if separator:
        raise ValueError(f"{address!r} is no address: write HOST:PORT without {scheme}://, for example {_host(rest)}")
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{address!r} is no address: write HOST:PORT, for example 127.0.0.1:50051, or unix:PATH")


def _host(rest: str) -> str:
    host = rest.partition("/")[0]
    return host if ":" in host else f"{host or '127.0.0.1'}:50051"
