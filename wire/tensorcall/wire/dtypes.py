"""The one table of element types: Dtype numbers, torch's dtypes, numpy's dtypes. See Dtype in tensor.proto.

Imports without torch; what torch and ml_dtypes have is looked up by name when it is needed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire.errors import BadPayload

if TYPE_CHECKING:
    import torch


# eq=False: an element is compared and hashed by identity, there is one of each.
@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """One element type."""

    number: int
    # As torch calls it; a torch that is older (or newer) than the type may lack it.
    name: str
    # In bytes; of the byte they share where several elements do.
    itemsize: int
    # Little-endian; None where numpy itself has no such type.
    numpy: np.dtype[Any] | None = None
    # Of floating or complex type: torch may track gradients.
    differentiable: bool = False
    complex: bool = False
    quantized: bool = False
    # How many elements share a byte.
    per_byte: int = 1

    def nbytes(self, shape: Sequence[int]) -> int:
        """Computes the size of so many elements in C order, in bytes.

        Elements that share a byte do so along the last dimension only, each row begins at a byte of its own: so torch
        sizes the storage of quint4x2 and quint2x4 (`get_sub_byte_tensor_size` in Quantizer.cpp).
        """
        count = self.itemsize
        for extent in shape:
            count *= extent
        if self.per_byte > 1 and shape and shape[-1]:
            count = count // shape[-1] * -(-shape[-1] // self.per_byte)
        return count


def _plain(number: int, name: str, numpy: str) -> Element:
    dtype = np.dtype(numpy)
    return Element(number, name, dtype.itemsize, dtype, differentiable=dtype.kind in "fc", complex=dtype.kind == "c")


def _floating(number: int, name: str, itemsize: int = 1, *, complex: bool = False) -> Element:
    return Element(number, name, itemsize, differentiable=True, complex=complex)


def _quantized(number: int, name: str, itemsize: int = 1, per_byte: int = 1) -> Element:
    return Element(number, name, itemsize, quantized=True, per_byte=per_byte)


# A type that numpy alone has, its size is told by TensorBlob.numpy_dtype.
NUMPY = Element(pb.DTYPE_NUMPY, "numpy", 0)

ELEMENTS = (
    _plain(pb.DTYPE_BOOL, "bool", "|b1"),
    _plain(pb.DTYPE_UINT8, "uint8", "|u1"),
    _plain(pb.DTYPE_UINT16, "uint16", "<u2"),
    _plain(pb.DTYPE_UINT32, "uint32", "<u4"),
    _plain(pb.DTYPE_UINT64, "uint64", "<u8"),
    _plain(pb.DTYPE_INT8, "int8", "|i1"),
    _plain(pb.DTYPE_INT16, "int16", "<i2"),
    _plain(pb.DTYPE_INT32, "int32", "<i4"),
    _plain(pb.DTYPE_INT64, "int64", "<i8"),
    _plain(pb.DTYPE_FLOAT16, "float16", "<f2"),
    _plain(pb.DTYPE_FLOAT32, "float32", "<f4"),
    _plain(pb.DTYPE_FLOAT64, "float64", "<f8"),
    _floating(pb.DTYPE_BFLOAT16, "bfloat16", 2),
    _floating(pb.DTYPE_COMPLEX32, "complex32", 4, complex=True),
    _plain(pb.DTYPE_COMPLEX64, "complex64", "<c8"),
    _plain(pb.DTYPE_COMPLEX128, "complex128", "<c16"),
    _floating(pb.DTYPE_FLOAT8_E4M3FN, "float8_e4m3fn"),
    _floating(pb.DTYPE_FLOAT8_E4M3FNUZ, "float8_e4m3fnuz"),
    _floating(pb.DTYPE_FLOAT8_E5M2, "float8_e5m2"),
    _floating(pb.DTYPE_FLOAT8_E5M2FNUZ, "float8_e5m2fnuz"),
    _floating(pb.DTYPE_FLOAT8_E8M0FNU, "float8_e8m0fnu"),
    _floating(pb.DTYPE_FLOAT4_E2M1FN_X2, "float4_e2m1fn_x2"),
    _floating(pb.DTYPE_BCOMPLEX32, "bcomplex32", 4, complex=True),
    _quantized(pb.DTYPE_QINT8, "qint8"),
    _quantized(pb.DTYPE_QUINT8, "quint8"),
    _quantized(pb.DTYPE_QINT32, "qint32", 4),
    _quantized(pb.DTYPE_QUINT4X2, "quint4x2", per_byte=2),
    _quantized(pb.DTYPE_QUINT2X4, "quint2x4", per_byte=4),
    Element(pb.DTYPE_BITS1X8, "bits1x8", 1),
    Element(pb.DTYPE_BITS2X4, "bits2x4", 1),
    Element(pb.DTYPE_BITS4X2, "bits4x2", 1),
    Element(pb.DTYPE_BITS8, "bits8", 1),
    Element(pb.DTYPE_BITS16, "bits16", 2),
    Element(pb.DTYPE_INT1, "int1", 1),
    Element(pb.DTYPE_INT2, "int2", 1),
    Element(pb.DTYPE_INT3, "int3", 1),
    Element(pb.DTYPE_INT4, "int4", 1),
    Element(pb.DTYPE_INT5, "int5", 1),
    Element(pb.DTYPE_INT6, "int6", 1),
    Element(pb.DTYPE_INT7, "int7", 1),
    # Also called torch.bit.
    Element(pb.DTYPE_UINT1, "uint1", 1),
    Element(pb.DTYPE_UINT2, "uint2", 1),
    Element(pb.DTYPE_UINT3, "uint3", 1),
    Element(pb.DTYPE_UINT4, "uint4", 1),
    Element(pb.DTYPE_UINT5, "uint5", 1),
    Element(pb.DTYPE_UINT6, "uint6", 1),
    Element(pb.DTYPE_UINT7, "uint7", 1),
    NUMPY,
)

BY_NUMBER = {element.number: element for element in ELEMENTS}
_BY_NAME = {element.name: element for element in ELEMENTS}
_BY_NUMPY_STR = {element.numpy.str: element for element in ELEMENTS if element.numpy is not None}


def _by_numpy_num() -> dict[int, Element]:
    """Maps numpy's own numbers, as several of them may mean one type: C's long is an int32 here and an int64 there."""
    table: dict[int, Element] = {}
    for code in "?bBhHiIlLqQefdgFDG":
        dtype = np.dtype(code)
        element = _BY_NUMPY_STR.get(dtype.newbyteorder("<").str)
        if element is not None:
            table[dtype.num] = element
    return table


_BY_NUMPY_NUM = _by_numpy_num()


@functools.cache
def torch_or_none() -> ModuleType | None:
    """Imports torch where it is installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def torch_dtype(element: Element) -> torch.dtype:
    """Finds torch's dtype.

    Raises:
        BadPayload: the torch that is installed has none of that name, or torch is not installed.
    """
    module = torch_or_none()
    dtype: torch.dtype | None = getattr(module, element.name, None)
    if dtype is None:
        version = f"torch {module.__version__}" if module else "a machine without torch"
        raise BadPayload(
            f"{version} has no dtype {element.name}: install a torch that has it here, or have the sender convert it"
        )
    return dtype


def of_numpy(dtype: np.dtype[Any]) -> Element | None:
    """Finds the element of a numpy dtype, in whichever byte order; None for those that only numpy has."""
    element = _BY_NUMPY_NUM.get(dtype.num)
    if element is None and dtype.type.__module__ == "ml_dtypes":
        element = _BY_NAME.get(dtype.name)
        if element is not None and element.itemsize != dtype.itemsize:
            return None
    return element


def numpy_dtype(element: Element) -> np.dtype[Any]:
    """Finds numpy's dtype, or the one that ml_dtypes adds to numpy.

    Raises:
        BadPayload: neither has one, or ml_dtypes would but is not installed.
    """
    if element.numpy is not None:
        return element.numpy
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        raise BadPayload(
            f"numpy has no dtype {element.name}: install torch (or ml_dtypes) here, or have the sender convert it"
        ) from None
    scalar = getattr(ml_dtypes, element.name, None)
    dtype: np.dtype[Any] | None = np.dtype(scalar) if scalar is not None else None
    if dtype is None or dtype.itemsize != element.itemsize:
        raise BadPayload(
            f"neither numpy nor ml_dtypes has a dtype {element.name}: install torch here, or have the sender convert it"
        )
    return dtype
