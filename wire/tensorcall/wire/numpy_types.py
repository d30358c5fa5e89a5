"""numpy dtype ↔ the text that describes it on the wire. See TensorBlob.numpy_dtype in tensor.proto.

The text is the one in the header of an .npy file. What a peer sends is matched against a grammar first: np.dtype()
alone would also take object types, type names, C format strings and nested tuples of its own.
"""

from __future__ import annotations

import ast
import functools
import re
from typing import Any

import numpy as np

from tensorcall.wire.errors import BadPayload, Unencodable

# A table with some 800 columns.
MAX_CHARS = 16 * 1024
_MAX_DEPTH = 32

_SIMPLE = re.compile(r"[<>|](?:b1|[iufc]\d{1,2}|[SUV]\d{1,10}|[mM]8(?:\[(?:[1-9]\d{0,8})?[a-zA-Z]{1,2}\])?)")
# As repr() writes strings: of other escapes Python would warn.
_ESCAPE = r"\\(?:[\\'\"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
_STRING = re.compile(rf"'(?:[^'\\]|{_ESCAPE})*'|\"(?:[^\"\\]|{_ESCAPE})*\"")
_OUTSIDE_STRINGS = re.compile(r"[\[\](),\d ]*")

# What numpy, the compiler and this module say of text that describes no type.
_MALFORMED = (ValueError, TypeError, OverflowError, SyntaxError, MemoryError, RecursionError)


@functools.lru_cache(maxsize=128)
def describe(dtype: np.dtype[Any]) -> str:
    """Writes the description of a dtype; `parse` reads it.

    Metadata and the flag that a structured dtype is aligned are lost, the places of its fields are kept.

    Raises:
        Unencodable: its elements are Python objects or of no fixed size, or another library defined it, or its fields
            overlap, or have titles.
    """
    if dtype.hasobject:
        what = "strings of any length" if dtype.kind == "T" else "Python objects"
        raise Unencodable(
            f"elements of dtype {dtype} are {what}: convert the array with .astype() to numbers or to a string type of "
            f"fixed length (such as 'U10'), or send .tolist()"
        )
    if dtype.num >= 256 or dtype.type.__module__ != "numpy":
        raise Unencodable(
            f"dtype {dtype} of {dtype.type.__module__} has no form on the wire: .view() it as integers, or .astype() it"
        )
    try:
        text = dtype.str if dtype.names is None else repr(dtype.descr)
        if _read(text) != dtype:
            raise ValueError(f"{text:.100} is all that numpy tells about it")
    except _MALFORMED as error:
        raise Unencodable(
            f"dtype {dtype} has no form on the wire ({error}): numpy.lib.recfunctions.repack_fields() makes it "
            f"plain, or send several plain arrays"
        ) from None
    return text


@functools.lru_cache(maxsize=128)
def parse(text: str) -> np.dtype[Any]:
    """Reads the description of a dtype.

    Raises:
        BadPayload: it is none, or of a type that has no fixed size or does not exist on this machine.
    """
    try:
        return _read(text)
    except _MALFORMED as error:
        raise BadPayload(
            f"numpy_dtype {text!r:.200} describes no numpy type of fixed size ({error}): send what numpy writes into "
            f"the header of an .npy file, such as '<M8[ns]' or \"[('x', '<f4')]\""
        ) from None


def _read(text: str) -> np.dtype[Any]:
    if len(text) > MAX_CHARS:
        raise ValueError(f"it takes {len(text):,} characters, at most {MAX_CHARS:,} are taken")
    return _structured(_literal(text)) if text.startswith("[") else _simple(text)


def _simple(text: object) -> np.dtype[Any]:
    if not isinstance(text, str) or not _SIMPLE.fullmatch(text):
        raise ValueError(f"{text!r:.60} is not a byte order, a kind and a size")
    dtype = np.dtype(text)
    # Only numpy's own spelling: no '|f4' (of whose byte order?), no '<b1'.
    if dtype.str != text:
        raise ValueError(f"{text!r:.60} is spelt {dtype.str!r}")
    if dtype.char in "gG" and not _longdouble_is_x87():
        raise ValueError("a long double of x86 does not exist here")
    return dtype


@functools.cache
def _longdouble_is_x87() -> bool:
    """Tells whether '<f16' is what it is on x86; other processors have another type of the same size and name."""
    return int(np.finfo(np.longdouble).nmant) == 63


def _literal(text: str) -> object:
    """Evaluates a list of fields. What could exhaust the compiler's stack is refused before it gets there."""
    outside = _STRING.sub("", text)
    if not _OUTSIDE_STRINGS.fullmatch(outside):
        raise ValueError("it is not a list of (name, type) or (name, type, shape)")
    depth = 0
    for bracket in re.findall(r"[\[\]()]", outside):
        depth += 1 if bracket in "[(" else -1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it nests deeper than {_MAX_DEPTH} levels")
    return ast.literal_eval(text)


def _structured(description: object) -> np.dtype[Any]:
    """Makes a dtype of a list of fields, as numpy.lib.format.descr_to_dtype does."""
    if not isinstance(description, list):
        return _simple(description)
    names, formats, offsets, offset = [], [], [], 0
    for entry in description:
        if not (isinstance(entry, tuple) and len(entry) in (2, 3) and isinstance(entry[0], str)):
            raise ValueError(f"{entry!r:.60} is not (name, type) or (name, type, shape)")
        inner = _structured(entry[1])
        # A void without a name is a gap between fields.
        if entry[0] or len(entry) == 3 or inner.names is not None or inner.kind != "V":
            if not entry[0]:
                raise ValueError("a field has no name")
            names.append(entry[0])
            formats.append(np.dtype((inner, _shape(entry[2]))) if len(entry) == 3 else inner)
            offsets.append(offset)
            inner = formats[-1]
        offset += inner.itemsize
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": offset})


def _shape(shape: object) -> tuple[int, ...]:
    if isinstance(shape, tuple) and shape and all(type(extent) is int and extent > 0 for extent in shape):
        return shape
    raise ValueError(f"{shape!r:.60} is not the shape of a field")
