"""Tensors and arrays ↔ the table of blobs that a message carries beside its object.

Imports without torch; whatever needs it is imported when the first tensor comes along.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tensorcall.wire import dtypes, numpy_arrays
from tensorcall.wire.blob_checks import NUMPY_CONTAINERS, check
from tensorcall.wire.blobs import Blob
from tensorcall.wire.errors import BadPayload, TooLarge, Unencodable
from tensorcall.wire.limits import MAX_TENSORS
from tensorcall.wire.rrefs import Handle, Opener, RRefId

if TYPE_CHECKING:
    import torch

__all__ = ["TensorReader", "TensorWriter", "check", "is_tensor"]

# Exact classes: a subclass would arrive as what it is not.
_NUMPY_SCALARS = frozenset({*np.sctypeDict.values(), np.record}) - {np.object_}
_TENSORS: set[type] = {np.ndarray, *_NUMPY_SCALARS}
_TORCH: set[type] = set()


def is_tensor(obj: object) -> bool:
    """Tells whether an object goes into the table: a tensor, a Parameter, a numpy array or a numpy scalar.

    Subclasses do not, apart from Parameter; `TensorWriter.add` tells what to do about them.
    """
    kind = type(obj)
    return kind in _TENSORS or (not _TORCH and _is_torch(kind)) or _is_ml_scalar(kind)


def _is_torch(kind: type) -> bool:
    """Tells whether a class is torch's, without importing torch: if it was not, there are no tensors."""
    if not _TORCH and "torch" in sys.modules:
        # Another thread may be in the midst of importing it.
        nn: Any = getattr(sys.modules["torch"], "nn", None)
        if hasattr(nn, "Parameter"):
            _TORCH.update((sys.modules["torch"].Tensor, nn.Parameter))
            _TENSORS.update(_TORCH)
    return kind in _TORCH


def _is_ml_scalar(kind: type) -> bool:
    return kind.__module__ == "ml_dtypes" and issubclass(kind, np.generic)


@functools.cache
def _torch_tensors() -> ModuleType:
    from tensorcall.wire import torch_tensors

    return torch_tensors


class TensorWriter:
    """The sender's table, and the handles of references that went into the body.

    `blobs` view the memory of the tensors, which must not change until they are written.
    """

    __slots__ = ("_indices", "_kept", "blobs", "handles")

    def __init__(self) -> None:
        self.blobs: list[Blob] = []
        self.handles: list[Handle] = []
        self._indices: dict[int, int] = {}
        # An id is unique only as long as its object lives.
        self._kept: list[object] = []

    def add(self, tensor: object) -> int:
        """Puts a tensor into the table, once.

        A tensor that is not a leaf arrives as one. Strides and sharing of memory between two tensors are not kept;
        that two names mean one tensor is.

        Args:
            tensor: a torch.Tensor or torch.nn.Parameter of any dtype, layout and device, a numpy array of any dtype of
                fixed size, or a numpy scalar; no subclass of these.

        Returns:
            Its index; the same for the same object.

        Raises:
            Unencodable: it has no form on the wire; the message tells what to send instead.
            TooLarge: the table is full.
        """
        known = self._indices.get(id(tensor))
        if known is not None:
            return known
        kind = type(tensor)
        source: Any = tensor
        if kind is np.ndarray:
            blob = numpy_arrays.encode(source)
        elif _is_torch(kind):
            blob = _torch_tensors().encode(source, self.blobs)
        elif kind in _NUMPY_SCALARS or _is_ml_scalar(kind):
            blob = numpy_arrays.encode_scalar(source)
        else:
            raise Unencodable(_advice(tensor))
        index = len(self.blobs)
        if index >= MAX_TENSORS:
            raise TooLarge(f"a message holds at most {MAX_TENSORS:,} tensors: stack them, or send several messages")
        self.blobs.append(blob)
        self._kept.append(tensor)
        self._indices[id(tensor)] = index
        return index


# By name, since their modules need not be there: what to do about subclasses of tensors and arrays.
_SUBCLASSES = {
    "FakeTensor": "it has no elements: send its shape",
    "DTensor": "send .full_tensor() or .to_local()",
    "NestedTensor": "send list(tensor.unbind()), or .to_padded_tensor(0)",
    "UninitializedParameter": "run its module once first",
    "UninitializedBuffer": "run its module once first",
    "MaskedArray": "send .filled(), or .data and .mask",
    "recarray": "send array.view(numpy.ndarray)",
}


def _advice(obj: object) -> str:
    cls = type(obj)
    name = f"{cls.__module__}.{cls.__qualname__}"
    for base in cls.__mro__[1:]:
        if base is np.ndarray or base is np.generic:
            general = "send numpy.asarray() of it"
        elif _is_torch(base):
            general = "send .as_subclass(torch.Tensor)"
        else:
            continue
        return f"{name} is a subclass that would lose its nature: {_SUBCLASSES.get(cls.__name__, general)}"
    return f"{name} is neither a tensor nor a numpy array: send it as part of the object"


def _unopened(rref: RRefId) -> RRefId:
    return rref


class TensorReader:
    """The receiver's table: tensors by index, each made when it is first asked for.

    Each has memory of its own, apart from those that are `owned` already: they may be written to, and keep nothing of
    the message alive.
    """

    __slots__ = ("_blobs", "_made", "_prefer", "_taken", "open_rref")

    def __init__(
        self,
        blobs: Sequence[Blob],
        prefer: Literal["torch", "numpy"] | None = None,
        open_rref: Opener = _unopened,
    ) -> None:
        """Takes the table of a message.

        Args:
            blobs: the table. Nothing in it has been checked.
            prefer: what becomes of torch tensors, and of what may be either; None: torch tensors where torch is
                installed. Arrays of numpy stay arrays of numpy.
            open_rref: what becomes of references; they stay RRefIds without it.
        """
        self._blobs = blobs
        self.open_rref = open_rref
        self._prefer = prefer
        self._made: dict[int, Any] = {}
        self._taken: set[int] = set()

    def get(self, index: int) -> Any:
        """Gives the tensor at an index; the same object each time.

        Raises:
            BadPayload: there is none at that index, or it is impossible; or numpy, where torch is not installed or
                not preferred, has nothing like it.
        """
        if index in self._made:
            return self._made[index]
        blob = self._take(index)
        nbytes = check(blob)
        element = dtypes.BY_NUMBER[blob.dtype]
        if blob.container in NUMPY_CONTAINERS or element is dtypes.NUMPY or not self._wants_torch():
            if blob.sparse is not None or blob.quantization is not None:
                raise BadPayload(
                    "a sparse or quantised tensor needs torch: install it here, or have the sender .to_dense() or "
                    ".dequantize() it"
                )
            made = numpy_arrays.decode(blob, element, nbytes)
        else:
            made = _torch_tensors().decode(blob, element, nbytes, self._part)
        self._made[index] = made
        return made

    def _wants_torch(self) -> bool:
        return self._prefer != "numpy" and dtypes.torch_or_none() is not None

    def _take(self, index: int) -> Blob:
        """Finds a blob, once only: else one large blob could become many tensors, or two that share memory."""
        if not 0 <= index < len(self._blobs):
            raise BadPayload(f"tensor {index} is named, but the message has {len(self._blobs)}")
        if index in self._taken:
            raise BadPayload(f"tensor {index} was made before, as part of another tensor or in vain: send it once more")
        self._taken.add(index)
        return self._blobs[index]

    def _part(self, index: int) -> torch.Tensor:
        """Makes the tensor of a part of a sparse or quantised one."""
        blob = self._take(index)
        nbytes = check(blob)
        element = dtypes.BY_NUMBER[blob.dtype]
        if blob.sparse is not None or blob.quantization is not None or element is dtypes.NUMPY:
            raise BadPayload(f"tensor {index} is part of another tensor, but not dense: send parts as dense tensors")
        part: torch.Tensor = _torch_tensors().decode_dense(blob, element, nbytes)
        return part
