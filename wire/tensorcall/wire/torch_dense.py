"""The elements of strided torch tensors ↔ bytes, of every dtype, without a needless copy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes
from tensorcall.wire.blobs import Blob
from tensorcall.wire.dtypes import Element
from tensorcall.wire.errors import Unencodable
from tensorcall.wire.numpy_arrays import EMPTY, bytes_of, check_values, data_of, take

if sys.byteorder != "little":
    raise ImportError("tensorcall carries torch tensors between little-endian machines only; use numpy arrays here")

# Those that the installed torch has: the table knows newer ones.
ELEMENTS: dict[torch.dtype, Element] = {
    getattr(torch, element.name): element for element in dtypes.ELEMENTS if hasattr(torch, element.name)
}

# The types, torch's and numpy's, as which numpy sees elements: their own, or integers where numpy has none. A view as
# integers keeps strides and gives no warning, whereas torch.empty() does for complex32.
_INTEGERS = {1: "uint8", 2: "int16", 4: "int32"}
_CARRIERS: dict[int, tuple[torch.dtype, np.dtype[Any]]] = {
    element.number: (
        (getattr(torch, element.name), element.numpy)
        if element.numpy is not None
        else (getattr(torch, _INTEGERS[element.itemsize]), np.dtype(_INTEGERS[element.itemsize]))
    )
    for element in dtypes.ELEMENTS
    if element is not dtypes.NUMPY
}

# numpy 1 has no arrays of more dimensions.
_NUMPY_DIMENSIONS = 32


def bytes_of_tensor(source: torch.Tensor, element: Element) -> memoryview:
    """Views the elements of a strided CPU tensor that tracks no gradient, or of a copy of it where it has gaps.

    Raises:
        Unencodable: the tensor's memory was freed.
        RuntimeError: torch gives no access to it.
    """
    if source.numel() == 0:
        return EMPTY
    has_memory = source.data_ptr() != 0
    if not has_memory and not source._is_zerotensor():
        raise Unencodable("the storage of this tensor was freed (by FSDP?): gather the tensor first")
    if has_memory and element.numpy is not None and source.is_contiguous():
        try:
            return bytes_of(source.numpy())
        except (RuntimeError, ValueError):
            # Its elements are yet to be conjugated or negated, or numpy has not so many dimensions.
            pass
    return bytes_of(_flat(source, element).numpy())


def _flat(source: torch.Tensor, element: Element) -> torch.Tensor:
    """Makes one flat tensor of a type that numpy has, by at most one copy."""
    if source.is_conj() and element.numpy is None:
        # torch can't conjugate bcomplex32 and warns about complex32: negate the halves that are imaginary.
        flipped = source.conj().view(torch.int32).clone(memory_format=torch.contiguous_format).view(-1)
        half = torch.float16 if element.number == pb.DTYPE_COMPLEX32 else torch.bfloat16
        flipped.view(half)[1::2].neg_()
        return flipped
    if source.is_conj() or source.is_neg() or source._is_zerotensor():
        source = source.clone(memory_format=torch.contiguous_format)
    if element.numpy is None:
        source = source.view(_CARRIERS[element.number][0])
    return source.contiguous().view(-1)


def append(table: list[Blob], *parts: torch.Tensor) -> list[int]:
    """Appends the parts of a tensor to the table, or none of them where one has no form."""
    blobs = []
    for part in parts:
        element = ELEMENTS[part.dtype]
        blobs.append(Blob(element.number, tuple(part.shape), bytes_of_tensor(part, element)))
    first = len(table)
    table.extend(blobs)
    return list(range(first, len(table)))


def first_line(error: BaseException) -> str:
    """Takes what torch says; below it follows where in C++ it was said."""
    return str(error).partition("\n")[0]


def decode_dense(blob: Blob, element: Element, nbytes: int) -> torch.Tensor:
    """Makes the tensor of a dense blob that was checked; it tracks no gradient.

    Raises:
        BadPayload: torch has no such dtype, the blob has not as many bytes as it should, or they are no such elements.
    """
    carrier, numpy_dtype = _CARRIERS[element.number]
    if nbytes:
        flat = len(blob.shape) > _NUMPY_DIMENSIONS
        array = take(blob, numpy_dtype, (nbytes // element.itemsize,) if flat else blob.shape, nbytes)
        if element.number == pb.DTYPE_BOOL:
            check_values(array)
        tensor = torch.from_numpy(array)
        if flat:
            tensor = tensor.view(blob.shape)
    else:
        data_of(blob, 0)
        # Not of an array: out of numpy, what has no elements comes with strides that some operations refuse.
        tensor = torch.empty(blob.shape, dtype=carrier, device="cpu")
    return tensor if element.numpy is not None else tensor.view(dtypes.torch_dtype(element))
