"""A server as its callers see it."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tensorcall.client import calling
from tensorcall.client.carrier import ItemQueue, ItemSink, StreamHandle
from tensorcall.client.connection import CarrierName, Connection
from tensorcall.client.futures import CallFuture
from tensorcall.client.options import CallOptions
from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import UserRRef
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire.calls import Target
from tensorcall.wire.errors import NotExposed
from tensorcall.wire.rrefs import RRefId

KINDS = {
    pb.FUNCTION_KIND_FUNCTION: "function",
    pb.FUNCTION_KIND_COROUTINE: "coroutine",
    pb.FUNCTION_KIND_GENERATOR: "generator",
    pb.FUNCTION_KIND_CLASS: "class",
}


@dataclass(frozen=True, slots=True)
class Function:
    """An exposed function."""

    name: str
    """What to call it by."""

    signature: str
    """Its parameters and result, as Python would write them."""

    doc: str
    """Its docstring."""

    kind: str
    """"function", "coroutine", "generator" or "class"."""

    methods: tuple[Function, ...] = ()
    """A class' public methods."""

    def __str__(self) -> str:
        return f"{self.name}{self.signature}"


def _function(info: pb.FunctionInfo) -> Function:
    kind = KINDS.get(info.kind, "function")
    return Function(info.name, info.signature, info.doc, kind, tuple(_function(method) for method in info.methods))


def check_name(function: object) -> None:
    """Raises a TypeError if what is to be called is not given by its name."""
    if not isinstance(function, str):
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        advice = f", maybe {f'{module}.{name}'!r}" if module and name else ""
        raise TypeError(f"pass the name of the function as the server lists it{advice}, not {function!r}")


def start_stream(
    connection: Connection, options: CallOptions, name: str, args: Any, kwargs: Any, sink: ItemSink
) -> StreamHandle:
    """Calls a generator function."""
    check_name(name)
    carrier, request, timeout = calling.prepare(connection, options, Target(name), args, kwargs)
    return carrier.stream(request, timeout, options.prefetch, sink, pickle=options.pickle)


class ResultStream(Iterator[Any]):
    """The items of a generator function, as they come. Closing it, or leaving it early, stops the function."""

    def __init__(self, connection: Connection, options: CallOptions, name: str, args: Any, kwargs: Any) -> None:
        self._items = ItemQueue()
        self._timeout = options.timeout or 0.0
        self._deadline = None if options.timeout is None else time.monotonic() + options.timeout
        self._handle: StreamHandle | None = None
        self._connection = connection
        self._handle = start_stream(connection, options, name, args, kwargs, self._items)

    def __next__(self) -> Any:
        handle = self._handle
        if handle is None:
            raise StopIteration
        try:
            item = self._items.get(self._deadline, self._timeout, self._connection.way)
        except BaseException:
            self.close()
            raise
        handle.consumed()
        return item

    def close(self) -> None:
        """Stops the function. Idempotent; does nothing once the stream has ended."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel()
            # Another thread may wait for an item.
            self._items.end(None)

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that was left early lets go of it. This only queues a frame.
        if getattr(self, "_handle", None) is not None:
            self.close()


class Remote:
    """A server. Safe from any thread; see `connect`."""

    def __init__(self, connection: Connection, options: CallOptions) -> None:
        self._connection = connection
        self._options = options

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connection.address

    def options(self, **settings: Any) -> Remote:
        """Returns the same connection with other settings for calls.

        Args:
            settings: fields of `CallOptions`: timeout (seconds), call_id, pickle, prefetch, progress.

        Raises:
            TypeError: there is no such setting, or it is of another type.
            ValueError: a setting is out of bounds.
        """
        return Remote(self._connection, dataclasses.replace(self._options, **settings))

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls an exposed function and waits for its result.

        Args:
            function: its name.
            args: its positional arguments: numbers, strings, bytes, lists, tuples, dicts, sets, tensors, arrays,
                registered dataclasses and enums.
            kwargs: its keyword arguments; no name is taken by this method.

        Returns:
            What the function returned, with the same types. Tensors are torch tensors where torch is installed, numpy
            arrays where not; arrays are numpy arrays.

        Raises:
            RemoteError: the function raised; an instance of the original class, too, where that is known here.
            RequestError: the call was refused (NotExposed, BadArguments, Unencodable, …).
            ServiceError: the server can't just now (Overloaded, ShuttingDown, …).
            NetworkError: nobody answers (Unreachable), or the server went away in mid-call (ConnectionLost).
            DeadlineExceeded: no answer within `options(timeout=…)`.
        """
        check_name(function)
        options = self._options
        carrier, request, timeout = calling.prepare(self._connection, options, Target(function), args, kwargs)
        return carrier.call(request, timeout, pickle=options.pickle)

    def submit(self, function: str, /, *args: Any, **kwargs: Any) -> CallFuture:
        """Calls an exposed function and returns at once.

        Returns:
            The future of its result. It raises what `call` would; `cancel()` reaches the server.

        Raises:
            Unencodable, TooLarge: an argument can't be sent.
            Unreachable: nobody answers (at first use, or after the connection broke).
        """
        check_name(function)
        return calling.submit(self._connection, self._options, Target(function), args, kwargs)

    def remote(self, function: str, /, *args: Any, **kwargs: Any) -> RRef:
        """Calls an exposed function, or makes an instance of an exposed class, and leaves the result on the server.

        Returns as soon as the call is under way. The result lives as long as somebody refers to it: this reference,
        copies of it that went to other processes, calls that use it. A process that dies, or loses its connection for
        longer than its lease (60 s unless the server is set otherwise), refers to nothing any more; so does one that
        closes its connection.

        Returns:
            A reference. `to_here()` copies the result, `rpc_sync().method(…)` calls its methods, and it may stand
            anywhere among the arguments of other calls, to any server. What the function raises is raised there.

        Raises:
            Unencodable, TooLarge, Unreachable: as `submit`.
        """
        check_name(function)
        options = self._options
        fork = calling.create(self._connection, options, Target(function), args, kwargs)
        return UserRRef(self._connection, fork, options)

    def open_rref(self, rref_id: RRefId) -> Any:
        """Makes a reference of a name that came some other way, for example from a program in another language.

        Returns at once; whether there is such a value shows with `wait_confirmed()` or the first use. Until then
        somebody else must hold it: a name alone keeps nothing.
        """
        return self._connection.open_rref(rref_id)

    def stream(self, function: str, /, *args: Any, **kwargs: Any) -> ResultStream:
        """Calls an exposed generator function and returns an iterator over its items as they come.

        The function runs at most `options(prefetch=…)` items ahead. Leaving the loop early stops it.

        Raises:
            Unencodable, TooLarge, Unreachable: as `submit`. Iterating raises what `call` would.
        """
        return ResultStream(self._connection, self._options, function, args, kwargs)

    def functions(self, prefix: str = "") -> list[Function]:
        """Returns what is exposed, sorted by name; only names that begin with `prefix`."""
        response = self._connection.ask("ListFunctions", pb.ListFunctionsRequest(prefix=prefix), self._options.timeout)
        return [_function(info) for info in response.functions]

    def describe(self, function: str) -> Function:
        """Returns what is known of one exposed function.

        Raises:
            NotExposed: there is none of that name.
        """
        for found in self.functions(function):
            if found.name == function:
                return found
        names = [found.name for found in self.functions()]
        near = difflib.get_close_matches(function[:200], names, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"{len(names)} others are"
        raise NotExposed(f"no function {function[:200]!r} is exposed at {self.address}; {advice}")

    def close(self) -> None:
        """Cancels what is in flight and ends the connection, for all that share it. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Remote {self.address}>"


def connect(
    address: str,
    *,
    carrier: CarrierName = "auto",
    connect_timeout: float = 10.0,
    token: str | None = None,
    metadata: Iterable[tuple[str, str]] = (),
    **settings: Any,
) -> Remote:
    """Connects to a server: lazily, so that this never fails for want of one.

    Args:
        address: HOST:PORT, or unix:PATH.
        carrier: "session", "call", or "auto", which takes sessions where the server has them.
        connect_timeout: how many seconds to wait for the server's first answer.
        token: the server's secret, if it has one.
        metadata: pairs of a key in lower case and a value, sent with every call, for example for a proxy.
        settings: fields of `CallOptions` for all calls; see `Remote.options`.

    Returns:
        The server. Use it in a `with` statement, or close it.

    Raises:
        TypeError, ValueError: the address is none, or a setting can't be.
    """
    connection = Connection(address, carrier, connect_timeout, metadata=with_token(metadata, token))
    return Remote(connection, CallOptions(**settings))


def with_token(metadata: Iterable[tuple[str, str]], token: str | None) -> tuple[tuple[str, str], ...]:
    """Returns metadata that shows a token.

    Raises:
        TypeError: the token is none.
    """
    if token is None:
        return tuple(metadata)
    if not isinstance(token, str):
        raise TypeError(f"token is a str, not a {type(token).__name__}")
    return (*metadata, ("authorization", f"Bearer {token}"))
