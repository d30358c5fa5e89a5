"""Calls and their results ↔ CallRequest, CallResponse and Payload. See handler_service.proto and value.proto."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tensorcall.wire import blob_codec, pickles, rrefs, values
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload, TooLarge
from tensorcall.wire.limits import MAX_CALL_ID_BYTES, MAX_TENSORS, MAX_VALUES
from tensorcall.wire.protowire import VARINT, Parts, fields, key, nested, read_string, tag, utf8, varint
from tensorcall.wire.protowire import field as write_field
from tensorcall.wire.tensors import TensorReader, TensorWriter

# A tensor whose elements go in chunks: its index in the table, and the elements.
Chunked = tuple[int, memoryview]

WANT_VALUE, WANT_RREF = 1, 2


@dataclass(slots=True)
class Encoded:
    """A message in parts, and what follows it in chunks."""

    parts: Parts
    chunked: list[Chunked] = field(default_factory=list)
    # Of the references in it, to be kept alive until the receiver has forks of its own.
    handles: list[rrefs.Handle] = field(default_factory=list)
    # Who wants to know how much of the chunks has left: (bytes that have, bytes in all).
    progress: Callable[[int, int], object] | None = None

    @property
    def bytes(self) -> bytes:
        """The whole message; the one copy of its tensors on this side."""
        return b"".join(self.parts)


def _encode_table(prefix: bytes, writer: TensorWriter, chunk_above: int | None, into: Encoded) -> None:
    for index, blob in enumerate(writer.blobs):
        into.parts += nested(prefix, blob_codec.encode(blob, chunk_above))
        if chunk_above is not None and blob.data is not None and len(blob.data) > chunk_above:
            into.chunked.append((index, blob.data))


# --- CallRequest -----------------------------------------------------------------------------------------------------

_FUNCTION, _METHOD, _CALLABLE, _ARG, _KWARG = tag(1), tag(2), tag(3), tag(4), tag(5)
_ARGUMENTS_PICKLE, _TENSOR, _CALL_ID, _WANT = tag(6), tag(7), tag(8), tag(9, VARINT)
_FETCH, _CLIENT_ID, _NUMBER = tag(10), tag(11), tag(12, VARINT)
_METHOD_RREF, _METHOD_NAME = tag(1), tag(2)


@dataclass(slots=True)
class Target:
    """What a call runs: an exposed function, an owned value's method, a pickled callable, or nothing: it fetches."""

    function: str = ""
    method: tuple[rrefs.RRefId, str] | None = None
    pickle: bytes | None = None
    fetch: rrefs.RRefId | None = None

    def encode(self) -> bytes:
        """Writes the fields of CallRequest.target."""
        if self.method is not None:
            rref, name = self.method
            body = write_field(_METHOD_RREF, rrefs.encode(rref))
            return write_field(_METHOD, body + write_field(_METHOD_NAME, utf8(name)) if name else body)
        if self.pickle is not None:
            return write_field(_CALLABLE, self.pickle)
        if self.fetch is not None:
            return write_field(_FETCH, rrefs.encode(self.fetch))
        return write_field(_FUNCTION, utf8(self.function))


def encode_request(
    target: Target,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    call_id: str = "",
    want: int = 0,
    client_id: str = "",
    number: int = 0,
    pickled: bool = False,
    chunk_above: int | None = None,
) -> Encoded:
    """Writes a CallRequest.

    Args:
        target: what to call.
        args: positional arguments.
        kwargs: keyword arguments.
        call_id: identifies the call so that it is run at most once; empty: every arrival runs.
        want: WANT_VALUE, WANT_RREF or 0, which means the value.
        client_id: whose lease keeps references in the answer; not needed on a session.
        number: with WANT_RREF, what the client calls the value and its fork; 0: the owner names it.
        pickled: send the arguments pickled, not as Values.
        chunk_above: tensors of more bytes are left for chunks; None: all are inline.

    Raises:
        Unencodable, TooLarge: as `values.encode`.
    """
    writer = TensorWriter()
    head = [target.encode()]
    if pickled:
        head.append(write_field(_ARGUMENTS_PICKLE, pickles.dumps((args, kwargs), writer)))
    elif args or kwargs:
        head += values.encode_arguments(_ARG, args, _KWARG, kwargs, writer)
    encoded = Encoded([b"".join(head)], [], writer.handles)
    if writer.blobs:
        _encode_table(_TENSOR, writer, chunk_above, encoded)
    if call_id:
        encoded.parts.append(write_field(_CALL_ID, utf8(call_id)))
    if want:
        encoded.parts.append(_WANT + varint(want))
    if client_id:
        encoded.parts.append(write_field(_CLIENT_ID, utf8(client_id)))
    if number:
        encoded.parts.append(_NUMBER + varint(number))
    return encoded


@dataclass(slots=True)
class Request:
    """A CallRequest whose fields were found, but whose arguments were not read yet: the caller may not be allowed to.

    `blobs` still has to be filled where its tensors come in chunks.
    """

    buffer: bytes
    target: Target
    blobs: list[Blob]
    call_id: str
    want: int
    arguments_pickle: tuple[int, int] | None
    args: list[tuple[int, int]]
    kwargs: list[tuple[str, int, int]]
    client_id: str
    number: int

    @property
    def pickled(self) -> bool:
        """Whether reading or running it unpickles anything."""
        return self.arguments_pickle is not None or self.target.pickle is not None

    def arguments(self, open_rref: rrefs.Opener | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Reads the arguments.

        Args:
            open_rref: what becomes of references; they stay RRefIds without it.

        Raises:
            BadPayload: malformed, or impossible.
        """
        if self.arguments_pickle is not None:
            return self._unpickled(*self.arguments_pickle, open_rref)
        if not self.args and not self.kwargs:
            return (), {}
        spans = [*self.args, *((start, end) for _, start, end in self.kwargs)] if self.kwargs else self.args
        read = values.decode_many(self.buffer, spans, _reader(self.blobs, open_rref))
        if not self.kwargs:
            return tuple(read), {}
        count = len(self.args)
        return tuple(read[:count]), {name: read[count + i] for i, (name, _, _) in enumerate(self.kwargs)}

    def _unpickled(
        self, start: int, end: int, open_rref: rrefs.Opener | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        loaded = pickles.loads(memoryview(self.buffer)[start:end], _reader(self.blobs, open_rref, always=True))
        if pickles.is_missing(loaded):
            # A class or function that the arguments name is missing here: the caller is told, as by torch.
            raise loaded
        match loaded:
            case (tuple(args), dict(kwargs)) if type(loaded) is tuple and all(type(name) is str for name in kwargs):
                return args, kwargs
        raise BadPayload("the pickled arguments are not a tuple (args, kwargs)")


def _reader(blobs: list[Blob], open_rref: rrefs.Opener | None, always: bool = False) -> Any:
    """Returns what the reading of an object needs; None where that is nothing and it can do without."""
    if open_rref is not None:
        return TensorReader(blobs, open_rref=open_rref)
    return TensorReader(blobs) if blobs or always else None


_K_FUNCTION, _K_METHOD, _K_CALLABLE, _K_ARG, _K_KWARG = key(1), key(2), key(3), key(4), key(5)
_K_ARGUMENTS_PICKLE, _K_TENSOR, _K_CALL_ID, _K_WANT = key(6), key(7), key(8), key(9, VARINT)
_K_FETCH, _K_CLIENT_ID, _K_NUMBER = key(10), key(11), key(12, VARINT)
_K_METHOD_RREF, _K_METHOD_NAME = key(1), key(2)


def decode_request(buffer: bytes, start: int = 0, end: int | None = None) -> Request:
    """Finds the fields of the CallRequest between two positions.

    Raises:
        BadPayload: malformed, or without a target.
        TooLarge: more arguments or tensors than are taken.
    """
    target = None
    blobs: list[Blob] = []
    call_id, client_id = "", ""
    want = number = 0
    pickle = None
    args: list[tuple[int, int]] = []
    kwargs: list[tuple[str, int, int]] = []
    view: memoryview | None = None
    for k, a, b in fields(buffer, start, len(buffer) if end is None else end):
        if k == _K_ARG:
            args.append((a, b))
            if len(args) > MAX_VALUES:
                raise _too_many_arguments()
        elif k == _K_FUNCTION:
            target = Target(read_string(buffer, a, b))
        elif k == _K_TENSOR:
            view = view or memoryview(buffer)
            _append(blobs, blob_codec.decode(buffer, view, a, b))
        elif k == _K_KWARG:
            kwargs.append(values.read_entry(buffer, a, b))
            if len(kwargs) > MAX_VALUES:
                raise _too_many_arguments()
        elif k == _K_METHOD:
            target = Target(method=_decode_method(buffer, a, b))
        elif k == _K_CALLABLE:
            target = Target(pickle=buffer[a:b])
        elif k == _K_ARGUMENTS_PICKLE:
            pickle = (a, b)
        elif k == _K_CALL_ID:
            call_id = _read_id("call_id", buffer, a, b)
        elif k == _K_WANT:
            want = a
        elif k == _K_FETCH:
            target = Target(fetch=rrefs.decode(buffer, a, b))
        elif k == _K_CLIENT_ID:
            client_id = _read_id("client_id", buffer, a, b)
        elif k == _K_NUMBER:
            number = a
    if target is None:
        raise BadPayload("the call has no target: set `function` to the name of an exposed function")
    if pickle is not None and (args or kwargs):
        raise BadPayload("the call has both `arguments_pickle` and `args` or `kwargs`: send one form")
    return Request(buffer, target, blobs, call_id, want, pickle, args, kwargs, client_id, number)


def _read_id(name: str, buffer: bytes, start: int, end: int) -> str:
    if end - start > MAX_CALL_ID_BYTES:
        raise BadPayload(f"the {name} has {end - start} bytes; at most {MAX_CALL_ID_BYTES} are allowed")
    return read_string(buffer, start, end)


def _too_many_arguments() -> TooLarge:
    return TooLarge(f"the call has more than {MAX_VALUES:,} arguments: send numbers as a tensor")


def _append(blobs: list[Blob], blob: Blob) -> None:
    if len(blobs) >= MAX_TENSORS:
        raise TooLarge(f"the message has more than {MAX_TENSORS:,} tensors: stack them")
    blobs.append(blob)


def _decode_method(buffer: bytes, start: int, end: int) -> tuple[rrefs.RRefId, str]:
    rref, name = rrefs.RRefId("", 0, 0), ""
    for k, a, b in fields(buffer, start, end):
        if k == _K_METHOD_RREF:
            rref = rrefs.decode(buffer, a, b)
        elif k == _K_METHOD_NAME:
            name = read_string(buffer, a, b)
    return rref, name


# --- Payload ---------------------------------------------------------------------------------------------------------

_PICKLE, _VALUE, _PAYLOAD_TENSOR, _HOLD = tag(1), tag(2), tag(3), tag(4, VARINT)
_K_PICKLE, _K_VALUE, _K_PAYLOAD_TENSOR, _K_HOLD = key(1), key(2), key(3), key(4, VARINT)

Holder: TypeAlias = Callable[[list[rrefs.Handle]], int]
"""Keeps handles for whoever is sent them, and returns the hold's number."""


def encode_payload(
    obj: object, *, pickled: bool = False, chunk_above: int | None = None, hold: Holder | None = None
) -> Encoded:
    """Writes one object as a Payload: as a Value, or pickled.

    Args:
        obj: the object.
        pickled: pickle it.
        chunk_above: tensors of more bytes are left for chunks; None: all are inline.
        hold: keeps the references in it, if there are any.

    Raises:
        Unencodable, TooLarge: as `values.encode`.
    """
    writer = TensorWriter()
    if pickled:
        body = write_field(_PICKLE, pickles.dumps(obj, writer))
    else:
        body = write_field(_VALUE, values.encode(obj, writer))
    encoded = Encoded([body], [], writer.handles)
    if writer.blobs:
        _encode_table(_PAYLOAD_TENSOR, writer, chunk_above, encoded)
    if writer.handles and hold is not None:
        encoded.parts.append(_HOLD + varint(hold(writer.handles)))
    return encoded


@dataclass(slots=True)
class Payload:
    """A Payload whose fields were found, but whose object was not read yet: its tensors may come in chunks."""

    buffer: bytes
    blobs: list[Blob]
    value: tuple[int, int] | None
    pickle: tuple[int, int] | None
    hold: int = 0

    def object(self, *, allow_pickle: bool = False, open_rref: rrefs.Opener | None = None) -> Any:
        """Reads the object.

        Args:
            allow_pickle: whether it may be pickled.
            open_rref: what becomes of references; they stay RRefIds without it.

        Raises:
            BadPayload: malformed, impossible, or pickled where pickle is not allowed.
        """
        if self.value is not None:
            return values.decode(self.buffer, _reader(self.blobs, open_rref), *self.value)
        if self.pickle is None:
            raise BadPayload("the payload has no body")
        if not allow_pickle:
            raise BadPayload("the payload is pickled, and pickle was not asked for: options(pickle=True)")
        start, end = self.pickle
        loaded = pickles.loads(memoryview(self.buffer)[start:end], _reader(self.blobs, open_rref, always=True))
        if pickles.is_missing(loaded):
            raise BadPayload(str(loaded)) from loaded
        return loaded


def decode_payload(buffer: bytes, start: int = 0, end: int | None = None) -> Payload:
    """Finds the fields of the Payload between two positions.

    Raises:
        BadPayload: malformed.
        TooLarge: more tensors than are taken.
    """
    blobs: list[Blob] = []
    value = pickle = None
    hold = 0
    view: memoryview | None = None
    for k, a, b in fields(buffer, start, len(buffer) if end is None else end):
        if k == _K_VALUE:
            value, pickle = (a, b), None
        elif k == _K_PAYLOAD_TENSOR:
            view = view or memoryview(buffer)
            _append(blobs, blob_codec.decode(buffer, view, a, b))
        elif k == _K_PICKLE:
            pickle, value = (a, b), None
        elif k == _K_HOLD:
            hold = a
    return Payload(buffer, blobs, value, pickle, hold)


# --- CallResponse and CallStreamResponse -----------------------------------------------------------------------------

_RESULT, _RREF = tag(1), tag(2)
_K_RESULT, _K_RREF = key(1), key(2)


def wrap_result(payload: Encoded) -> Encoded:
    """Turns a Payload into the CallResponse, or the CallStreamResponse, that carries it."""
    return Encoded(nested(_RESULT, payload.parts), payload.chunked, payload.handles)


def encode_rref(rref: rrefs.RRefId) -> Encoded:
    """Writes the CallResponse that gives a reference."""
    return Encoded([write_field(_RREF, rrefs.encode(rref))])


def decode_result(buffer: bytes, start: int = 0, end: int | None = None) -> Payload | rrefs.RRefId:
    """Reads a CallResponse, or a CallStreamResponse, between two positions.

    Raises:
        BadPayload: malformed or empty.
    """
    outcome: Payload | rrefs.RRefId | None = None
    for k, a, b in fields(buffer, start, len(buffer) if end is None else end):
        if k == _K_RESULT:
            outcome = decode_payload(buffer, a, b)
        elif k == _K_RREF:
            outcome = rrefs.decode(buffer, a, b)
    if outcome is None:
        raise BadPayload("the response has neither a result nor a reference")
    return outcome
