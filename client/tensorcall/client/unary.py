"""The carrier for servers (and proxies) without sessions: one gRPC call a call, tensors inline."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from tensorcall.client import processes
from tensorcall.client.callbacks import carrying
from tensorcall.client.carrier import ItemSink, closed_error, deadline_error, from_rpc_error, unreadable
from tensorcall.client.futures import CallFuture
from tensorcall.client.letting_go import made_apart
from tensorcall.client.options import grpc_timeout
from tensorcall.client.payloads import PayloadReader
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire import calls, exceptions
from tensorcall.wire.calls import Encoded, Payload
from tensorcall.wire.errors import RemoteError, TensorcallError
from tensorcall.wire.limits import MAX_MESSAGE_BYTES

_log = logging.getLogger(__name__)

_SERVICE = "/tensorcall.v1.HandlerService/"
# How long to wait for the rest of an error; what came with the status stands if it takes longer.
_GET_ERROR_SECONDS = 5.0


class UnaryCarrier:
    """Call and CallStream."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        reader: PayloadReader,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Needs nothing from the server yet.

        Args:
            channel: the way to the server.
            address: for messages.
            reader: reads results; its link's client id names this process where values are made.
            metadata: sent with every request.
        """
        self._channel = channel
        self._reader = reader
        self._metadata = metadata
        self.client_id = reader.link.client_id
        self._address = address
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_SERVICE + "Call")
        self._call_stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_SERVICE + "CallStream")
        self._get_error = channel.unary_unary(
            _SERVICE + "GetError",
            request_serializer=pb.GetErrorRequest.SerializeToString,
            response_deserializer=pb.GetErrorResponse.FromString,
        )
        self.chunk_above: int | None = None
        self.max_message_bytes = MAX_MESSAGE_BYTES
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it still carries calls: gRPC reconnects by itself."""
        return True

    def call(self, request: Encoded, timeout: float | None, *, pickle: bool) -> Any:
        """Makes a call and waits for its result."""
        end = _end(timeout)
        error: TensorcallError
        try:
            # The request's handles live as long as this frame.
            return self._read(self._invoke(self._call, request, timeout), pickle)
        except grpc.RpcError as raised:
            error = self._error(raised, timeout, end)
        except Exception as raised:
            error = unreadable(raised)
        try:
            raise self._whole(error)
        finally:
            del error  # this frame is part of its traceback

    def submit(self, request: Encoded, timeout: float | None, *, pickle: bool) -> CallFuture:
        """Makes a call."""
        end = _end(timeout)
        future = CallFuture(self._channel)
        handles = request.handles
        call = self._invoke(self._call.future, request, timeout)
        future.on_cancel(call.cancel)

        def done(ended: Any) -> None:
            # On gRPC's own thread: what waits for gRPC here would wait for ever.
            with carrying(self._channel):
                handles.clear()
                if ended.cancelled():
                    return  # only we cancel it, through the future
                # What is raised here would hold itself: gRPC's error is the call, which a traceback leads to.
                failed = ended.exception()
                if failed is not None:
                    self._fetch_whole(self._error(failed, timeout, end), future.fail)
                    return
                self._read_into(future, ended.result(), pickle)

        call.add_done_callback(done)
        return future

    def stream(
        self, request: Encoded, timeout: float | None, prefetch: int, sink: ItemSink, *, pickle: bool
    ) -> _UnaryStream:
        """Calls a generator function; a thread reads its items."""
        end = _end(timeout)
        call = self._invoke(self._call_stream, request, timeout)
        stream = _UnaryStream(call, prefetch)
        handles = request.handles

        def read() -> None:
            error: BaseException | None = None
            try:
                for response in call:
                    stream.await_credit()
                    sink.item(self._read(response, pickle))
                    # The next one may take long to come.
                    del response
            except grpc.RpcError as raised:
                raised.__traceback__ = None  # it leads back to the call, which is what was raised
                error = self._whole(self._error(raised, timeout, end))
            except Exception as raised:
                call.cancel()
                error = unreadable(raised)
            handles.clear()
            sink.end(error)

        threading.Thread(target=read, name="tensorcall-stream", daemon=True).start()
        return stream

    def _invoke(self, method: Callable[..., Any], request: Encoded, timeout: float | None) -> Any:
        try:
            return method(request.bytes, timeout=grpc_timeout(timeout), metadata=self._metadata)
        except ValueError:
            if not self._closed:
                raise
            # The channel was closed between the caller's look at it and this.
            raise closed_error() from None

    def _read(self, response: bytes, pickle: bool) -> Any:
        outcome = calls.decode_result(response)
        if not isinstance(outcome, Payload):
            return outcome
        if outcome.hold and not self._reader.link.met_owner:
            # Else it would not be known which of the references are the server's.
            self._reader.link.lease()
        return self._reader.read(outcome, pickle=pickle)

    def _read_into(self, future: CallFuture, response: bytes, pickle: bool) -> None:
        """Does the same without waiting."""
        try:
            outcome: Any = calls.decode_result(response)
        except Exception as error:
            future.fail(unreadable(error))
            return

        def read() -> None:
            try:
                result = self._reader.read(outcome, pickle=pickle) if isinstance(outcome, Payload) else outcome
            except Exception as error:
                future.fail(unreadable(error))
            else:
                future.resolve(result)

        if isinstance(outcome, Payload) and outcome.hold:
            self._reader.link.when_known(read)
        else:
            read()

    def close(self) -> None:
        """Has calls that end from here on raise Cancelled. The channel, which is closed next, ends them."""
        self._closed = True

    def _error(self, raised: grpc.RpcError, timeout: float | None, end: float) -> TensorcallError:
        if self._closed:
            return closed_error(in_flight=True)
        # The server notices the deadline, too, and may reset the stream first: gRPC then tells of a lost connection.
        if timeout is not None and time.monotonic() >= end:
            return deadline_error(timeout)
        return from_rpc_error(raised, self._address)

    def _whole(self, error: TensorcallError) -> TensorcallError:
        """Fetches what did not fit the status."""
        error_id = _missing(error)
        if error_id is None:
            return error
        try:
            request = pb.GetErrorRequest(error_id=error_id)
            response = self._get_error(request, timeout=_GET_ERROR_SECONDS, metadata=self._metadata)
        except grpc.RpcError:
            return error
        return made_apart(lambda: exceptions.from_tree(response.exception))

    def _fetch_whole(self, error: TensorcallError, done: Callable[[TensorcallError], None]) -> None:
        """Does the same without waiting."""
        error_id = _missing(error)
        if error_id is None:
            done(error)
            return

        def fetched(ended: Any) -> None:
            whole = error
            try:
                if ended.code() is grpc.StatusCode.OK:
                    response = ended.result()
                    whole = made_apart(lambda: exceptions.from_tree(response.exception))
            except Exception:
                _log.exception("the rest of an error can't be read")
            with carrying(self._channel):
                done(whole)

        try:
            request = pb.GetErrorRequest(error_id=error_id)
            asked = self._get_error.future(request, timeout=_GET_ERROR_SECONDS, metadata=self._metadata)
        except ValueError:  # the channel was closed
            done(error)
        else:
            asked.add_done_callback(fetched)


def _end(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _missing(error: TensorcallError) -> str | None:
    """Returns the id under which the rest of an error may be had; None if there is no rest."""
    tree = error.tree if isinstance(error, RemoteError) else None
    return tree.error_id if tree is not None and tree.truncated and tree.error_id else None


class _UnaryStream:
    """A streaming call, as its consumer sees it."""

    def __init__(self, call: Any, prefetch: int) -> None:
        self._call = call
        self._generation = processes.generation
        # gRPC's own flow control counts bytes; this counts items, so that the function is paused.
        self._credit = threading.Semaphore(prefetch)

    def await_credit(self) -> None:
        self._credit.acquire()

    def consumed(self) -> None:
        """Tells that one item was taken."""
        self._credit.release()

    def cancel(self) -> None:
        """Tells the server to stop."""
        if self._generation != processes.generation:
            return  # the parent's
        self._call.cancel()
        # The thread that reads may wait for credit.
        self._credit.release()
