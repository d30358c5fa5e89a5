"""numpy array or scalar ↔ Blob."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes, numpy_types
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload, Unencodable

EMPTY = memoryview(b"")

_BIG_ENDIAN = {">"} if sys.byteorder == "little" else {">", "="}
# Those of which memoryview.cast knows the format.
_CASTABLE = frozenset("?bBhHiIlLqQefd")
_MAX_CODE_POINT = 0x10FFFF


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """Views the elements of a C-contiguous array as bytes. The view keeps the memory alive."""
    if array.size == 0:
        return EMPTY
    if array.dtype.char in _CASTABLE:
        return array.data.cast("B")
    return array.reshape(-1).view(np.uint8).data


def encode(array: np.ndarray[Any, Any]) -> Blob:
    """Makes the blob of an array; it views the array's memory where that is contiguous and little-endian.

    Raises:
        Unencodable: the dtype has no form on the wire.
    """
    dtype = array.dtype
    shape = array.shape
    element = dtypes.of_numpy(dtype)
    description = ""
    if element is None:
        element = dtypes.NUMPY
        description = numpy_types.describe(dtype)
        if not dtype.itemsize:
            raise Unencodable(f"elements of dtype {dtype} take no space: send the shape instead")
        if _has_gaps(dtype):
            array = _without_gaps(array)
    elif dtype.byteorder in _BIG_ENDIAN:
        if element.numpy is None:
            raise Unencodable(f"dtype {dtype} in big-endian order has no form on the wire: .astype() the other order")
        description = dtype.newbyteorder(">").str
        array = array.astype(dtype.newbyteorder("<"), order="C")
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return Blob(element.number, shape, bytes_of(array), container=pb.CONTAINER_NUMPY_ARRAY, numpy_dtype=description)


def encode_scalar(scalar: np.generic) -> Blob:
    """Makes the blob of a numpy scalar.

    Raises:
        Unencodable: the dtype has no form on the wire.
    """
    if isinstance(scalar, np.bytes_):
        # An array would lose the zeros at the end, and can't have elements without any byte.
        blob = Blob(pb.DTYPE_NUMPY, (), memoryview(bytes(scalar)), numpy_dtype=f"|S{len(scalar)}")
    elif isinstance(scalar, np.str_):
        data = scalar.encode("utf-32-le", "surrogatepass")
        blob = Blob(pb.DTYPE_NUMPY, (), memoryview(data), numpy_dtype=f"<U{len(scalar)}")
    else:
        blob = encode(np.asarray(scalar))
    blob.container = pb.CONTAINER_NUMPY_SCALAR
    return blob


def _has_gaps(dtype: np.dtype[Any]) -> bool:
    """Tells whether elements have bytes that mean nothing: between fields, and 6 of the 16 of a long double."""
    if dtype.fields is None:
        return dtype.char in "gG"
    fields = [field[0] for field in dtype.fields.values()]
    return sum(field.itemsize for field in fields) < dtype.itemsize or any(_has_gaps(field.base) for field in fields)


def _without_gaps(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Copies an array with zeros in the gaps: what lies there now may be freed memory, or columns not selected."""
    clean = np.zeros(array.shape, array.dtype)
    _fill(clean, array)
    return clean


def _fill(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
    if source.dtype.names is not None:
        for name in source.dtype.names:
            _fill(target[name], source[name])
    elif source.dtype.char in "gG":
        # Computed, so that only the bytes of the number are stored; an assignment copies all 16.
        np.positive(source, out=target)
    else:
        target[...] = source


def data_of(blob: Blob, nbytes: int) -> memoryview:
    """Gives the bytes of a blob's elements.

    Raises:
        BadPayload: there are none, or not as many as there should be.
    """
    data = blob.data
    if data is None:
        what = "its chunks have not come" if blob.chunked_size is not None else "its `data` is not set"
        raise BadPayload(f"a tensor of shape {list(blob.shape)} can't be made: {what}")
    if len(data) != nbytes:
        raise BadPayload(
            f"the elements of a tensor of shape {list(blob.shape)} take {nbytes:,} bytes, but {len(data):,} came: send "
            f"them in C order, without gaps"
        )
    return data


def take(blob: Blob, dtype: np.dtype[Any], shape: tuple[int, ...], nbytes: int) -> np.ndarray[Any, Any]:
    """Makes an array of a blob's elements: over its memory where nobody else holds it, else in memory of its own.

    That memory is numpy's for torch tensors as well: numpy asks the system for huge pages, and a first touch of
    256 MiB takes 30 ms instead of 100. What is lost is that such a tensor can't be resized.

    Raises:
        BadPayload: there are none, or not as many as there should be.
    """
    data = data_of(blob, nbytes)
    if not nbytes:
        return np.empty(shape, dtype)
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data)
    if blob.owned and not data.readonly and array.flags.aligned:
        return array
    fresh: np.ndarray[Any, Any] = array.copy()
    return fresh


def decode(blob: Blob, element: dtypes.Element, nbytes: int) -> Any:
    """Makes the array or scalar that a blob describes.

    Args:
        blob: neither sparse nor quantised, and checked.
        element: its element type.
        nbytes: how many bytes its elements take.

    Raises:
        BadPayload: numpy has no such type, the blob has not as many bytes as it should, or they are no such elements.
    """
    dtype = numpy_types.parse(blob.numpy_dtype) if element is dtypes.NUMPY else dtypes.numpy_dtype(element)
    scalar = blob.container == pb.CONTAINER_NUMPY_SCALAR
    if scalar and dtype.kind in "SU":
        return _text(blob, dtype, nbytes)
    array = take(blob, dtype, blob.shape, nbytes)
    check_values(array)
    if blob.numpy_dtype and element is not dtypes.NUMPY:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder(">"))
    return array[()] if scalar else array


def _text(blob: Blob, dtype: np.dtype[Any], nbytes: int) -> Any:
    data = bytes(data_of(blob, nbytes))
    if dtype.kind == "S":
        return np.bytes_(data)
    try:
        return np.str_(data.decode("utf-32-be" if dtype.str[0] == ">" else "utf-32-le", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise BadPayload(f"a numpy string is not UTF-32: {error}") from None


def check_values(array: np.ndarray[Any, Any]) -> None:
    """Refuses bytes that are no elements of their type.

    numpy and torch count True by adding bytes up, and write as many results as they counted: a bool that is neither 0
    nor 1 makes them write beyond the end.

    Raises:
        BadPayload: a bool is neither 0 nor 1, or a character is none of Unicode.
    """
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            check_values(array[name])
    elif dtype.kind == "b":
        if array.view(np.uint8).max(initial=0) > 1:
            raise BadPayload("a bool is neither 0 nor 1: send one byte of 0 or 1 for each")
    elif dtype.kind == "U" and dtype.itemsize and array.size:
        characters = np.ascontiguousarray(array).reshape(-1).view(dtype.str[0] + "u4")
        if characters.max(initial=0) > _MAX_CODE_POINT:
            raise BadPayload("a numpy string holds a character beyond U+10FFFF: send UTF-32")
