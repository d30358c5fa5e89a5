"""Sparse torch tensor ↔ Blob. Its parts are dense blobs of the same table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tensorcall.v1 import tensor_pb2 as pb
from tensorcall.wire import dtypes
from tensorcall.wire.blobs import Blob, Sparse
from tensorcall.wire.dtypes import Element
from tensorcall.wire.errors import BadPayload, Unencodable
from tensorcall.wire.torch_dense import append, first_line
from tensorcall.wire.torch_warnings import hush

_KINDS: dict[torch.layout, int] = {
    torch.sparse_coo: pb.SPARSE_KIND_COO,
    torch.sparse_csr: pb.SPARSE_KIND_CSR,
    torch.sparse_csc: pb.SPARSE_KIND_CSC,
    torch.sparse_bsr: pb.SPARSE_KIND_BSR,
    torch.sparse_bsc: pb.SPARSE_KIND_BSC,
}
_LAYOUTS = {kind: layout for layout, kind in _KINDS.items()}
_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)


def encode(tensor: torch.Tensor, element: Element, table: list[Blob]) -> Blob:
    """Makes the blob of a sparse CPU tensor and appends its parts to the table.

    Raises:
        Unencodable: the layout is not one of the five.
    """
    layout = tensor.layout
    kind = _KINDS.get(layout)
    if kind is None:
        raise Unencodable(f"a tensor of layout {layout} has no form on the wire: send .to_dense()")
    if element.complex and element.numpy is None:
        hush(tensor.dtype)
    tensor = tensor.detach()
    if kind == pb.SPARSE_KIND_COO:
        values, indices = append(table, tensor._values(), tensor._indices())
        sparse = Sparse(kind, values, indices, coalesced=tensor.is_coalesced())
    else:
        if layout in _BY_COLUMN:
            plain, compressed = tensor.row_indices(), tensor.ccol_indices()
        else:
            plain, compressed = tensor.col_indices(), tensor.crow_indices()
        values, indices, compressed_indices = append(table, tensor.values(), plain, compressed)
        sparse = Sparse(kind, values, indices, compressed_indices)
    return Blob(element.number, tuple(tensor.shape), sparse=sparse)


def decode(blob: Blob, sparse: Sparse, part: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Makes the tensor of a sparse blob that was checked; torch checks that every index is within the shape.

    Args:
        blob: the sparse blob.
        sparse: its layout.
        part: gives the tensor of a part by its index.

    Raises:
        BadPayload: the parts make no tensor of that dtype and shape.
    """
    element = dtypes.BY_NUMBER[blob.dtype]
    dtype = dtypes.torch_dtype(element)
    values = part(sparse.values)
    if values.dtype is not dtype:
        raise BadPayload(f"a sparse tensor of {dtype} has values of {values.dtype}: send both in one dtype")
    if element.complex and element.numpy is None:
        hush(dtype)
    indices = _indices(part(sparse.indices))
    try:
        if sparse.kind == pb.SPARSE_KIND_COO:
            return torch.sparse_coo_tensor(
                indices, values, blob.shape, is_coalesced=sparse.coalesced, check_invariants=True, device="cpu"
            )
        layout = _LAYOUTS[sparse.kind]
        compressed = _indices(part(sparse.compressed_indices))
        hush(layout)
        return torch.sparse_compressed_tensor(
            compressed, indices, values, blob.shape, layout=layout, check_invariants=True, device="cpu"
        )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BadPayload(f"the parts make no sparse tensor of shape {list(blob.shape)}: {first_line(error)}") from None


def _indices(tensor: torch.Tensor) -> torch.Tensor:
    # torch would round others in silence.
    if tensor.dtype not in (torch.int64, torch.int32):
        raise BadPayload(f"a sparse tensor has indices of {tensor.dtype}: send int64 or int32")
    return tensor
