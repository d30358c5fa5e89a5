"""TensorBlob as Python sees it, apart from how it is written (codec) and what it becomes (tensors)."""

from __future__ import annotations

from dataclasses import dataclass

from tensorcall.v1 import tensor_pb2


@dataclass(slots=True)
class Sparse:
    """Which blobs of the table are the parts of a sparse tensor. See SparseLayout in tensor.proto."""

    kind: int
    values: int
    indices: int
    compressed_indices: int = 0
    coalesced: bool = False


@dataclass(slots=True)
class Quantization:
    """How stored integers stand for real numbers. See Quantization in tensor.proto."""

    scheme: int
    scale: float = 0.0
    zero_point: int = 0
    scales: int = 0
    zero_points: int = 0
    axis: int = 0


@dataclass(slots=True)
class Blob:
    """One TensorBlob.

    `data` views the elements, one dimension of bytes: the sender's own memory until it is written, the received
    message, or the buffer that chunks are gathered in (then it is writable and `owned`). At most one of `data` and
    `chunked_size` is set; neither is for a sparse blob.
    """

    dtype: int
    shape: tuple[int, ...]
    data: memoryview | None = None
    # The size of the elements, in bytes, that follow as chunks.
    chunked_size: int | None = None
    sparse: Sparse | None = None
    quantization: Quantization | None = None
    requires_grad: bool = False
    device: str = ""
    container: int = tensor_pb2.CONTAINER_UNSPECIFIED
    numpy_dtype: str = ""
    # Nobody else refers to the memory of `data`: a tensor may be made over it without a copy.
    owned: bool = False
