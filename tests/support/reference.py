"""The contract by means of the generated classes: slow, plain, and independent of the code under test."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
import torch

from tensorcall.v1 import rref_pb2, tensor_pb2, value_pb2
from tensorcall.wire.blobs import Blob, Quantization, Sparse
from tensorcall.wire.rrefs import RRefId


class Impossible(Exception):
    """The message describes no object."""


# --- messages → objects ----------------------------------------------------------------------------------------------


def object_of(value: value_pb2.Value, tensor: Callable[[int], Any] | None = None) -> Any:
    """What a Value stands for."""
    kind = value.WhichOneof("kind")
    match kind:
        case None:
            raise Impossible("no kind")
        case "null":
            return None
        case "bool" | "int" | "double" | "string" | "bytes":
            return getattr(value, kind)
        case "big_int":
            return int.from_bytes(value.big_int, "big", signed=True)
        case "bytearray":
            return bytearray(value.bytearray)
        case "list" | "tuple" | "set" | "frozenset":
            items = [object_of(item, tensor) for item in getattr(value, kind).items]
            return _hashing({"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind], items)
        case "map":
            return {name: object_of(item, tensor) for name, item in value.map.fields.items()}
        case "pairs":
            pairs = [(object_of(pair.key, tensor), object_of(pair.value, tensor)) for pair in value.pairs.items]
            return _hashing(dict, pairs)
        case "tensor":
            if tensor is None:
                raise Impossible("no table")
            return tensor(value.tensor)
        case "rref":
            return rref_of(value.rref)
        case "complex":
            return complex(value.complex.real, value.complex.imaginary)
    raise NotImplementedError(kind)


def _hashing(make: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    try:
        return make(items)
    except TypeError as error:
        raise Impossible(str(error)) from error


def rref_of(message: rref_pb2.RRefId) -> RRefId:
    """The name that an RRefId stands for."""
    return RRefId(message.owner, message.incarnation, message.sequence, message.address)


def rref_message(rref: RRefId) -> rref_pb2.RRefId:
    """The RRefId message of a name."""
    owner, incarnation, sequence, address = rref
    return rref_pb2.RRefId(owner=owner, incarnation=incarnation, sequence=sequence, address=address)


def blob_of(message: tensor_pb2.TensorBlob) -> Blob:
    """The blob that a TensorBlob stands for."""
    blob = Blob(message.dtype, tuple(message.shape))
    storage, layout = message.WhichOneof("storage"), message.WhichOneof("layout")
    if storage == "data":
        blob.data = memoryview(message.data)
    elif storage == "chunked":
        blob.chunked_size = message.chunked.size
    elif storage == "shared":
        raise Impossible("this connection shares no memory")
    if layout == "sparse":
        s = message.sparse
        blob.sparse = Sparse(s.kind, s.values, s.indices, s.compressed_indices, s.coalesced)
    elif layout == "quantization":
        q = message.quantization
        blob.quantization = Quantization(q.scheme, q.scale, q.zero_point, q.scales, q.zero_points, q.axis)
    blob.requires_grad = message.requires_grad
    blob.device = message.device
    blob.container = message.container
    blob.numpy_dtype = message.numpy_dtype
    return blob


# --- objects → messages ----------------------------------------------------------------------------------------------


def value_of(obj: Any, tensor: Callable[[Any], int] | None = None) -> value_pb2.Value:
    """The Value of an object."""
    kinds = {bool: "bool", float: "double", str: "string", bytes: "bytes"}
    if obj is None:
        return value_pb2.Value(null=0)
    if type(obj) in kinds:
        return value_pb2.Value(**{kinds[type(obj)]: obj})
    if type(obj) is bytearray:
        return value_pb2.Value(bytearray=bytes(obj))
    if type(obj) is int:
        return value_pb2.Value(int=obj) if -(2**63) <= obj < 2**63 else value_pb2.Value(big_int=_minimal(obj))
    if type(obj) is complex:
        return value_pb2.Value(complex=value_pb2.ComplexValue(real=obj.real, imaginary=obj.imag))
    if type(obj) in (list, tuple, set, frozenset):
        items = value_pb2.ListValue(items=[value_of(item, tensor) for item in obj])
        return value_pb2.Value(**{type(obj).__name__: items})
    if type(obj) is RRefId:
        return value_pb2.Value(rref=rref_message(obj))
    result = value_pb2.Value()
    if type(obj) is dict and all(type(name) is str for name in obj):
        result.map.SetInParent()
        for name, item in obj.items():
            result.map.fields[name].CopyFrom(value_of(item, tensor))
    elif type(obj) is dict:
        result.pairs.SetInParent()
        for name, item in obj.items():
            result.pairs.items.add(key=value_of(name, tensor), value=value_of(item, tensor))
    elif tensor is not None and isinstance(obj, torch.Tensor | np.ndarray):
        result.tensor = tensor(obj)
    else:
        raise NotImplementedError(type(obj))
    return result


def _minimal(n: int) -> bytes:
    length = 1
    while True:
        try:
            return n.to_bytes(length, "big", signed=True)
        except OverflowError:
            length += 1


def tensor_blob_of(blob: Blob) -> tensor_pb2.TensorBlob:
    """The TensorBlob of a blob, its elements inline."""
    message = tensor_pb2.TensorBlob(
        dtype=blob.dtype,  # type: ignore[arg-type]
        shape=blob.shape,
        requires_grad=blob.requires_grad,
        device=blob.device,
        container=blob.container,  # type: ignore[arg-type]
        numpy_dtype=blob.numpy_dtype,
    )
    if blob.data is not None:
        message.data = bytes(blob.data)
    if blob.chunked_size is not None:
        message.chunked.SetInParent()
        message.chunked.size = blob.chunked_size
    if blob.sparse is not None:
        message.sparse.SetInParent()
        for name, value in dataclasses.asdict(blob.sparse).items():
            setattr(message.sparse, name, value)
    if blob.quantization is not None:
        message.quantization.SetInParent()
        for name, value in dataclasses.asdict(blob.quantization).items():
            setattr(message.quantization, name, value)
    return message


# --- objects = objects -----------------------------------------------------------------------------------------------


def exact(obj: Any) -> Any:
    """What two objects have in common only if they are of one type and content: bits of NaN, order of dicts and all."""
    kind = type(obj)
    if kind is float:
        return kind, struct.pack(">d", obj)
    if kind is complex:
        return kind, exact(obj.real), exact(obj.imag)
    if isinstance(obj, RRefId):
        # Two that differ in the address are equal.
        return kind, obj[:]
    if isinstance(obj, list | tuple):
        return kind, [exact(item) for item in obj]
    if isinstance(obj, set | frozenset):
        return kind, sorted(repr(exact(item)) for item in obj)
    if isinstance(obj, dict):
        return kind, [(exact(name), exact(item)) for name, item in obj.items()]
    if isinstance(obj, torch.Tensor):
        return kind, obj.dtype, tuple(obj.shape), obj.detach().numpy().tobytes()
    if isinstance(obj, np.ndarray):
        return kind, obj.dtype, obj.shape, obj.tobytes()
    if isinstance(obj, memoryview):
        return bytes, bytes(obj)
    if isinstance(obj, enum.Enum):
        return kind, obj.name
    if dataclasses.is_dataclass(obj):
        return kind, [exact(getattr(obj, field.name, None)) for field in dataclasses.fields(obj)]
    return kind, obj


def hashable(items: Iterable[Any]) -> bool:
    """Whether all of these can be keys."""
    try:
        return all(isinstance(item, Hashable) and hash(item) is not None for item in items)
    except TypeError:
        return False
