"""Blob ↔ TensorBlob message, without a copy of the elements. See tensor.proto."""

from __future__ import annotations

from collections.abc import Iterable

from tensorcall.wire.blobs import Blob, Quantization, Sparse
from tensorcall.wire.errors import BadPayload
from tensorcall.wire.limits import MAX_DIMENSIONS
from tensorcall.wire.protowire import (
    FIXED64,
    VARINT,
    Parts,
    field,
    fields,
    key,
    pack_double,
    read_double,
    read_packed,
    read_string,
    signed_varint,
    tag,
    to_int64,
    unzigzag,
    utf8,
    varint,
    zigzag,
)

_DTYPE, _SHAPE, _DATA, _CHUNKED = tag(1, VARINT), tag(2), tag(3), tag(4)
_SPARSE, _QUANTIZATION, _REQUIRES_GRAD = tag(6), tag(7), tag(8, VARINT) + b"\1"
_DEVICE, _CONTAINER, _NUMPY_DTYPE = tag(9), tag(10, VARINT), tag(11)
_SIZE = tag(1, VARINT)


def encode(blob: Blob, chunk_above: int | None = None) -> Parts:
    """Writes a TensorBlob message.

    Args:
        blob: what to write; the parts view its `data`.
        chunk_above: elements that take more bytes than this are announced as chunks, which the caller sends; None:
            they are always inline.
    """
    head = (_DTYPE + varint(blob.dtype)) if blob.dtype else b""
    if blob.shape:
        head += field(_SHAPE, b"".join(map(signed_varint, blob.shape)))
    parts: Parts = []
    if blob.data is not None:
        size = len(blob.data)
        if chunk_above is not None and size > chunk_above:
            head += field(_CHUNKED, _SIZE + varint(size))
        else:
            parts = [head + _DATA + varint(size), blob.data]
            head = b""
    elif blob.chunked_size is not None:
        head += field(_CHUNKED, _SIZE + varint(blob.chunked_size) if blob.chunked_size else b"")
    head += _encode_rest(blob)
    if head:
        parts.append(head)
    return parts


def _encode_rest(blob: Blob) -> bytes:
    """Writes the fields behind the storage."""
    rest = b""
    if blob.sparse is not None:
        s = blob.sparse
        numbers = (s.kind, s.values, s.indices, s.compressed_indices, int(s.coalesced))
        rest += field(_SPARSE, b"".join(tag(i, VARINT) + varint(n) for i, n in enumerate(numbers, 1) if n))
    elif blob.quantization is not None:
        q = blob.quantization
        body = tag(1, VARINT) + varint(q.scheme) if q.scheme else b""
        if q.scale or str(q.scale) == "-0.0":
            body += tag(2, FIXED64) + pack_double(q.scale)
        if q.zero_point:
            body += tag(3, VARINT) + zigzag(q.zero_point)
        by_channel = (q.scales, q.zero_points, q.axis)
        body += b"".join(tag(i, VARINT) + varint(n) for i, n in enumerate(by_channel, 4) if n)
        rest += field(_QUANTIZATION, body)
    if blob.requires_grad:
        rest += _REQUIRES_GRAD
    if blob.device:
        rest += field(_DEVICE, utf8(blob.device))
    if blob.container:
        rest += _CONTAINER + varint(blob.container)
    if blob.numpy_dtype:
        rest += field(_NUMPY_DTYPE, utf8(blob.numpy_dtype))
    return rest


_K_DTYPE, _K_SHAPE, _K_SHAPE_UNPACKED, _K_DATA = key(1, VARINT), key(2), key(2, VARINT), key(3)
_K_CHUNKED, _K_SHARED, _K_SPARSE, _K_QUANTIZATION = key(4), key(5), key(6), key(7)
_K_REQUIRES_GRAD, _K_DEVICE, _K_CONTAINER, _K_NUMPY_DTYPE = key(8, VARINT), key(9), key(10, VARINT), key(11)
_K_NUMBER, _K_SCALE = key(1, VARINT), key(2, FIXED64)


def decode(buffer: bytes, view: memoryview, start: int, end: int) -> Blob:
    """Reads the TensorBlob message between two positions; its `data` views the buffer.

    Raises:
        BadPayload: the message is malformed. Whether shape, dtype and data fit is checked where the tensor is made.
    """
    blob = Blob(0, ())
    shape: list[int] = []
    for k, a, b in fields(buffer, start, end):
        if k == _K_DTYPE:
            blob.dtype = a
        elif k == _K_SHAPE:
            _extend(shape, read_packed(buffer, a, b))
        elif k == _K_SHAPE_UNPACKED:
            _extend(shape, (a,))
        elif k == _K_DATA:
            blob.data, blob.chunked_size = view[a:b], None
        elif k == _K_CHUNKED:
            blob.data, blob.chunked_size = None, _number(buffer, a, b)
        elif k == _K_SHARED:
            raise BadPayload("a tensor lies in shared memory, but this connection shares none")
        elif k == _K_CONTAINER:
            blob.container = a
        elif k == _K_REQUIRES_GRAD:
            blob.requires_grad = a != 0
        elif k == _K_SPARSE:
            blob.sparse, blob.quantization = _decode_sparse(buffer, a, b), None
        elif k == _K_QUANTIZATION:
            blob.quantization, blob.sparse = _decode_quantization(buffer, a, b), None
        elif k == _K_DEVICE:
            blob.device = read_string(buffer, a, b)
        elif k == _K_NUMPY_DTYPE:
            blob.numpy_dtype = read_string(buffer, a, b)
    blob.shape = tuple(shape)
    return blob


def _extend(shape: list[int], varints: Iterable[int]) -> None:
    for extent in varints:
        if len(shape) == MAX_DIMENSIONS:
            raise BadPayload(f"a tensor has more than {MAX_DIMENSIONS} dimensions: flatten it")
        shape.append(to_int64(extent))


def _number(buffer: bytes, start: int, end: int) -> int:
    """Reads a message whose first field is a number, the only one."""
    number = 0
    for k, a, _ in fields(buffer, start, end):
        if k == _K_NUMBER:
            number = a
    return number


def _decode_sparse(buffer: bytes, start: int, end: int) -> Sparse:
    numbers = [0] * 6
    for k, a, _ in fields(buffer, start, end):
        if k & 7 == VARINT and k >> 3 <= 5:
            numbers[k >> 3] = a
    return Sparse(numbers[1], numbers[2], numbers[3], numbers[4], numbers[5] != 0)


def _decode_quantization(buffer: bytes, start: int, end: int) -> Quantization:
    numbers = [0] * 7
    scale = 0.0
    for k, a, _ in fields(buffer, start, end):
        if k == _K_SCALE:
            scale = read_double(buffer, a)
        elif k & 7 == VARINT and k >> 3 <= 6:
            numbers[k >> 3] = a
    return Quantization(numbers[1], scale, unzigzag(numbers[3]), numbers[4], numbers[5], numbers[6])
